//! An application around `yolodetect`: detects on a file, a picture or a camera, and leaves an annotated video
//! and the detections.
//!
//! It links GStreamer alone; the plugin is found through `GST_PLUGIN_PATH`, as by any application.
//! `pipelines/demo.sh` sets that up and calls this.

mod arguments;
mod detect;
mod interrupt;
mod memory;
mod progress;
mod sheet;
mod tally;

use std::process::ExitCode;

use arguments::Command;

/// Exit status of a wrong call, as of other command-line tools.
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    let command = match arguments::parse(std::env::args_os().skip(1)) {
        Ok(command) => command,
        Err(reason) => {
            eprintln!("error: {reason}\n\n{}", arguments::USAGE);
            return ExitCode::from(WRONG_USAGE);
        }
    };
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("error: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), String> {
    if let Command::Help = command {
        println!("{}", arguments::USAGE);
        return Ok(());
    }
    gst::init().map_err(|error| error.to_string())?;
    match command {
        Command::Help => Ok(()),
        Command::Detect(job) => detect::run(&job),
        Command::ContactSheet { video, picture } => sheet::run(&video, &picture),
    }
}

/// A URI as it is, a path as a URI.
fn uri(source: &str) -> Result<String, String> {
    if source.contains("://") {
        return Ok(source.into());
    }
    let path = std::path::absolute(source).map_err(|error| format!("{source}: {error}"))?;
    let uri = gst::glib::filename_to_uri(path, None).map_err(|error| format!("{source}: {error}"))?;
    Ok(uri.into())
}
