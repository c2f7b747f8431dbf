//! What `yolodetect` counts, and the structure it shows it in.

use std::collections::VecDeque;
use std::time::Duration;

use super::buffers::Arrival;
use crate::batch::ticket::RunReport;
use crate::memory::pool::{Ledger, PoolStats};
use crate::meta::Status;
use crate::metrics::figures::{Skipped, StreamFigures};

/// Times of the latest frames; percentiles are of these.
const WINDOW: usize = 512;

/// The latest [`WINDOW`] durations, in microseconds.
#[derive(Default)]
struct Times(VecDeque<u32>);

impl Times {
    fn add(&mut self, time: Duration) {
        if self.0.is_empty() {
            self.0.reserve_exact(WINDOW);
        }
        if self.0.len() == WINDOW {
            self.0.pop_front();
        }
        self.0.push_back(u32::try_from(time.as_micros()).unwrap_or(u32::MAX));
    }

    /// The smallest time that `share` of the window does not exceed; `None` before the first.
    fn percentile(&self, share: f64) -> Option<gst::ClockTime> {
        let mut sorted: Vec<u32> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.max(1) - 1).map(|&micros| gst::ClockTime::from_useconds(micros.into()))
    }
}

/// Counted since the element went to PAUSED.
#[derive(Default)]
pub struct Stats {
    frames_in: u64,
    reused: u64,
    own_pool: bool,
    frames_out: u64,
    inferred: u64,
    interval: u64,
    overload: u64,
    pressure: u64,
    failed: u64,
    detections: u64,
    batch_sum: u64,
    preprocess: Times,
    queue: Times,
    inference: Times,
    decode: Times,
}

impl Stats {
    pub fn frame_in(&mut self, memory: &Arrival) {
        self.frames_in += 1;
        self.reused += u64::from(memory.reused);
        self.own_pool = memory.own;
    }

    /// What is known of the buffers: their way here, and what `ledger` says of our own.
    pub fn pool(&self, ledger: &Ledger) -> PoolStats {
        PoolStats { requests: self.frames_in, hits: self.reused, own: self.own_pool, ..ledger.figures() }
    }

    pub fn preprocessed(&mut self, time: Duration) {
        self.preprocess.add(time);
    }

    pub fn inferred(&mut self, report: &RunReport, detections: usize) {
        self.detections += detections as u64;
        self.batch_sum += u64::from(report.batch);
        self.queue.add(report.queued);
        self.inference.add(report.inference);
        self.decode.add(report.decode);
    }

    pub fn frame_out(&mut self, status: Status) {
        self.frames_out += 1;
        match status {
            Status::Inferred => self.inferred += 1,
            Status::Interval => self.interval += 1,
            Status::Overload => self.overload += 1,
            Status::Failed => self.failed += 1,
            Status::Pressure => self.pressure += 1,
        }
    }

    /// The same for the metrics server, without times.
    pub fn figures(&self) -> StreamFigures {
        StreamFigures {
            frames_in: self.frames_in,
            frames_out: self.frames_out,
            inferred: self.inferred,
            skipped: Skipped { interval: self.interval, overload: self.overload, pressure: self.pressure },
            failed: self.failed,
            detections: self.detections,
            ..Default::default()
        }
    }

    /// Adds the fields that this element counts; times are in nanoseconds.
    pub fn describe(&self, builder: gst::structure::Builder) -> gst::structure::Builder {
        let fill = if self.inferred == 0 { 0.0 } else { self.batch_sum as f64 / self.inferred as f64 };
        let mut builder = builder
            .field("frames-in", self.frames_in)
            .field("frames-out", self.frames_out)
            .field("inferred", self.inferred)
            .field("skipped-interval", self.interval)
            .field("skipped-overload", self.overload)
            .field("skipped-pressure", self.pressure)
            .field("failed", self.failed)
            .field("detections", self.detections)
            .field("mean-batch-fill", fill);
        for (name, times) in [
            ("preprocess", &self.preprocess),
            ("queue", &self.queue),
            ("inference", &self.inference),
            ("decode", &self.decode),
        ] {
            for (share, suffix) in [(0.5, "p50"), (0.99, "p99")] {
                let time = times.percentile(share).unwrap_or_default();
                builder = builder.field(format!("{name}-time-{suffix}"), time.nseconds());
            }
        }
        builder
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_latest_times() {
        let mut times = Times::default();
        assert_eq!(times.percentile(0.5), None);
        for millis in 0..10_000u64 {
            times.add(Duration::from_millis(millis));
        }
        let millis = |share| times.percentile(share).unwrap().mseconds();
        assert_eq!(times.0.len(), WINDOW);
        assert_eq!((millis(0.5), millis(0.99), millis(1.0)), (9_743, 9_994, 9_999));
    }
}
