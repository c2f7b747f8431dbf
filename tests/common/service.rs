//! In which order an engine served its streams, from what came out alone: the models `stamped` and `slow` say
//! in each result which run of the session it was. Threads that wake late cannot blur that, as they would a
//! clock.
#![allow(dead_code)]

use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::common::{self, PATIENCE};
use super::rig::{Rig, Seen, frames_of};

/// Below every stamp.
const THRESHOLD: &str = "0.1";

/// Runs that can be told apart.
const RUNS: u64 = 4000;

/// Stamps of the first runs after loading, in a session of its own.
fn stamps() -> &'static HashMap<u32, u64> {
    static STAMPS: OnceLock<HashMap<u32, u64>> = OnceLock::new();
    STAMPS.get_or_init(|| {
        let rig = rig(&common::tiny("stamped"), &[("max-in-flight", "64")]);
        rig.push_frames(0..RUNS);
        let seen = rig.seen.frames(RUNS as usize);
        let stamps: HashMap<_, _> = seen.iter().map(stamp).zip(0..).collect();
        assert_eq!(stamps.len() as u64, RUNS, "no stamp comes twice");
        stamps
    })
}

fn stamp(seen: &Seen) -> u32 {
    let of_run = seen.scores.iter().find(|(class, _)| *class == 1);
    of_run.unwrap_or_else(|| panic!("no stamp: {seen:?}")).1.to_bits()
}

/// Which run of its engine, counted from 0, a frame was inferred in.
pub fn run_of(seen: &Seen) -> u64 {
    *stamps().get(&stamp(seen)).unwrap_or_else(|| panic!("a run beyond {RUNS}: {seen:?}"))
}

/// One thread per run, so that the engine has one core at most.
pub fn rig(model: &str, properties: &[(&str, &str)]) -> Rig {
    let mut all = vec![("model-file", model), ("threads", "1"), ("confidence-threshold", THRESHOLD)];
    all.extend(properties);
    Rig::new(&all)
}

/// A frame that must be taken.
pub fn push(rig: &Rig, frame: u64) {
    rig.push(frame, 200).unwrap();
}

pub fn batches(rig: &Rig) -> u64 {
    rig.engine().get("batches").unwrap()
}

/// Waits until the engine has inferred so many frames.
pub fn until_served(rig: &Rig, frames: u64) {
    let served = |stats: &gst::StructureRef| {
        stats.get::<gst::Structure>("engine").unwrap().get::<u64>("frames").unwrap() >= frames
    };
    rig.until_stats(&format!("{frames} inferences"), served);
}

/// Does `push`, again and again, on a thread for each stream, while `meanwhile` runs.
pub fn while_pushing<R>(
    streams: usize,
    push: impl Fn(usize, u64) + Sync,
    meanwhile: impl FnOnce() -> R,
) -> R {
    /// Also when `meanwhile` panics, or the threads would go on for ever.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (stop, push) = (AtomicBool::new(false), &push);
    std::thread::scope(|scope| {
        let stopped = &stop;
        for stream in 0..streams {
            scope.spawn(move || {
                let frames = (0..).take_while(|_| !stopped.load(Ordering::Relaxed));
                frames.for_each(|frame| push(stream, frame));
            });
        }
        let _stop = Stop(&stop);
        meanwhile()
    })
}

/// Ends the streams and gives for each inference, in the engine's order, its run and whose it was.
pub fn order(rigs: &[Rig]) -> Vec<(u64, usize)> {
    let mut served = Vec::new();
    for (stream, rig) in rigs.iter().enumerate() {
        rig.event(gst::event::Eos::new());
        let seen = frames_of(&rig.seen.eos());
        let inferred = seen.iter().filter(|seen| seen.status == "inferred");
        served.extend(inferred.map(|seen| (run_of(seen), stream)));
    }
    served.sort_unstable();
    served
}

/// The first run from which on every stream was there.
pub fn joined(order: &[(u64, usize)], streams: usize) -> u64 {
    let first = |stream| {
        let found = order.iter().find(|served| served.1 == stream);
        found.unwrap_or_else(|| panic!("stream {stream} got nothing")).0
    };
    (0..streams).map(first).max().unwrap()
}

/// How many of `count` inferences from the run `start` on each stream got.
pub fn shares(order: &[(u64, usize)], streams: usize, start: u64, count: usize) -> Vec<usize> {
    let later: Vec<_> = order.iter().filter(|served| served.0 >= start).collect();
    let window = later.get(..count).unwrap_or_else(|| panic!("{} inferences only", later.len()));
    (0..streams).map(|stream| window.iter().filter(|served| served.1 == stream).count()).collect()
}

/// Each stream has as many inferences as its weight is worth, but for two or a tenth.
pub fn assert_shares(shares: &[usize], weights: &[usize]) {
    let (total, weight): (usize, usize) = (shares.iter().sum(), weights.iter().sum());
    for (share, part) in shares.iter().zip(weights) {
        let expected = total as f64 * *part as f64 / weight as f64;
        let tolerated = (expected / 10.0).max(2.0);
        assert!((*share as f64 - expected).abs() <= tolerated, "{shares:?}, not as {weights:?}");
    }
}

/// Waits until `enough`, looking again and again.
pub fn until(what: &str, mut enough: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !enough() {
        assert!(Instant::now() < deadline, "no {what}");
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
}
