//! Any number of RTSP cameras through one engine: how a service keeps a fleet of them playing.
//!
//! ```text
//! camera:  rtspsrc ! decodebin3 ! videoconvert  !  queue ! yolodetect ! yolojson ! filesink
//!          `-------- source: replaced ---------´  `------- tail: plays all the time -------´
//! ```
//! - `camera` keeps one camera playing, in a thread and a pipeline of its own
//! - `source` and `tail` are the two parts of that pipeline
//! - `backoff` and `trouble` say how long to wait after what, `status` what is known of a camera
//! - `fleet` has all cameras, `commands` is what can be typed, `console` what is shown
//!
//! It links GStreamer alone; the plugin is found through `GST_PLUGIN_PATH`, as by any application.

mod address;
mod arguments;
mod backoff;
mod camera;
mod cameras;
mod commands;
mod console;
mod fleet;
#[path = "../demo/interrupt.rs"]
mod interrupt;
mod memory;
mod source;
mod status;
mod tail;
mod trouble;

use std::process::ExitCode;

use arguments::Command;

/// Exit status of a wrong call, as of other command-line tools.
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    memory::return_large_blocks();
    let options = match arguments::parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => {
            println!("{}", arguments::USAGE);
            return ExitCode::SUCCESS;
        }
        Ok(Command::Ingest(options)) => *options,
        Err(reason) => {
            eprintln!("error: {reason}\n\n{}", arguments::USAGE);
            return ExitCode::from(WRONG_USAGE);
        }
    };
    let outcome = gst::init().map_err(|error| error.to_string()).and_then(|()| fleet::run(options));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("error: {reason}");
            ExitCode::FAILURE
        }
    }
}
