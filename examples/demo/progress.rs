//! How far the run is: counted at the detector's source pad, told on standard error.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gst::prelude::*;

use crate::memory;

/// Where nobody watches a line change.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

/// The frames that left the detector.
#[derive(Clone, Copy, Default)]
pub struct Counted {
    pub frames: u64,
    first: Option<Instant>,
    last: Option<Instant>,
    /// Stream time of the latest.
    position: Option<gst::ClockTime>,
}

impl Counted {
    /// From the first frame to the latest; `None` before the second.
    pub fn frames_per_second(&self) -> Option<f64> {
        let elapsed = (self.last?.duration_since(self.first?)).as_secs_f64();
        (self.frames > 1 && elapsed > 0.0).then(|| (self.frames - 1) as f64 / elapsed)
    }
}

/// Counts frames as they leave a pad.
#[derive(Clone, Default)]
pub struct Counter(Arc<Mutex<Counted>>);

impl Counter {
    pub fn watch(&self, pad: &gst::Pad) {
        let counter = self.clone();
        pad.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
            let segment = pad.sticky_event::<gst::event::Segment>(0);
            let position = info.buffer().and_then(|buffer| {
                segment.as_ref()?.segment().downcast_ref::<gst::ClockTime>()?.to_stream_time(buffer.pts())
            });
            let now = Instant::now();
            let mut counted = counter.0.lock().unwrap_or_else(PoisonError::into_inner);
            counted.frames += 1;
            counted.first.get_or_insert(now);
            counted.last = Some(now);
            counted.position = position;
            gst::PadProbeReturn::Ok
        });
    }

    pub fn get(&self) -> Counted {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One line that changes on a terminal, a line now and then elsewhere.
pub struct Display {
    terminal: bool,
    told: Instant,
}

impl Display {
    pub fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), told: Instant::now() }
    }

    /// `duration`: of the whole stream, where that is known.
    pub fn show(&mut self, counted: &Counted, duration: Option<gst::ClockTime>) {
        if !self.terminal && self.told.elapsed() < PLAIN_INTERVAL {
            return;
        }
        self.told = Instant::now();
        let part = counted.position.zip(duration.filter(|duration| !duration.is_zero()));
        let percent = part.map_or(String::new(), |(position, duration)| {
            let percent = 100.0 * position.nseconds() as f64 / duration.nseconds() as f64;
            format!("{:3.0} %  ", percent.min(100.0))
        });
        let speed = counted.frames_per_second().unwrap_or(0.0);
        let line =
            format!("{percent}{} frames  {speed:.1} frames/s  {:.0} MiB", counted.frames, memory::resident());
        // Nothing is lost if nobody can read it.
        let _ = if self.terminal {
            write!(std::io::stderr(), "\r{line}\x1b[K")
        } else {
            writeln!(std::io::stderr(), "{line}")
        };
    }

    /// Makes room for what is printed next.
    pub fn clear(&self) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
