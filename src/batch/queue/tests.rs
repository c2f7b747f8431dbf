//! The queue with a simulated clock: streams, workers and time as a list of things that happen.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);

/// A stream of the simulation.
#[derive(Clone, Copy, Debug)]
struct Source {
    priority: u32,
    max_batch: usize,
    batch_delay: u64,
    /// From one frame to the next, ms; 0 always has one.
    period: u64,
    /// Passes frames on rather than wait for a slot.
    skips: bool,
}

const FILE: Source = Source { priority: 1, max_batch: 1, batch_delay: 0, period: 0, skips: false };

#[derive(Clone, Copy, Debug)]
enum Happens {
    /// The stream's next frame is there.
    Frame(usize),
    /// A frame is preprocessed.
    Filled {
        batch: BatchId,
        frame: usize,
    },
    RunEnds {
        frames: usize,
    },
    /// A batch may be due.
    Alarm,
}

#[derive(Default)]
struct Log {
    /// Frames that were run, by stream.
    inferred: Vec<usize>,
    passed: Vec<usize>,
    batches: Vec<usize>,
    /// From handing in to the run's start, the longest, in ms.
    longest_wait: u128,
}

/// One engine: a run of `n` frames takes `run + n * per_frame` ms and up to 5 more, preprocessing 1 ms.
struct World {
    sources: Vec<Source>,
    queue: Queue,
    run: u64,
    per_frame: u64,
    origin: Instant,
    now: u64,
    /// By time, then in the order in which they were planned.
    plan: BTreeMap<(u64, u64), Happens>,
    planned: u64,
    /// Frame and time handed in, of what is in each batch.
    filled: Vec<(BatchId, usize, u64)>,
    idle: usize,
    waiting: Vec<usize>,
    log: Log,
}

impl World {
    fn new(sources: &[Source], workers: usize, run: u64, per_frame: u64) -> Self {
        let mut world = Self {
            sources: sources.to_vec(),
            queue: Queue::new(BatchSize::Any, workers),
            run,
            per_frame,
            origin: Instant::now(),
            now: 0,
            plan: BTreeMap::new(),
            planned: 0,
            filled: Vec::new(),
            idle: workers,
            waiting: Vec::new(),
            log: Log {
                inferred: vec![0; sources.len()],
                passed: vec![0; sources.len()],
                ..Default::default()
            },
        };
        for (stream, source) in sources.iter().enumerate() {
            world.queue.attach(stream as u64, source.max_batch);
            world.at(stream as u64 % 7, Happens::Frame(stream));
        }
        world
    }

    fn at(&mut self, time: u64, happens: Happens) {
        self.planned += 1;
        self.plan.insert((time, self.planned), happens);
    }

    fn ask(&mut self, stream: usize) {
        let source = self.sources[stream];
        match self.queue.ask(stream as u64, source.priority, !source.skips) {
            Some(granted) => {
                self.waiting.retain(|&other| other != stream);
                self.at(self.now + 1, Happens::Filled { batch: granted.batch, frame: stream });
            }
            None if source.skips => {
                self.log.passed[stream] += 1;
                self.next_frame(stream);
            }
            None if !self.waiting.contains(&stream) => self.waiting.push(stream),
            None => (),
        }
    }

    fn next_frame(&mut self, stream: usize) {
        self.at(self.now + self.sources[stream].period, Happens::Frame(stream));
    }

    fn settle_down(&mut self) {
        // What the batcher's threads do when they are woken.
        loop {
            while self.idle > 0 {
                match self.queue.next(self.origin + MS * self.now as u32) {
                    Task::Run { batch, granted, ready } => {
                        self.idle -= 1;
                        let (run, kept): (Vec<_>, _) =
                            std::mem::take(&mut self.filled).into_iter().partition(|(id, ..)| *id == batch);
                        self.filled = kept;
                        assert_eq!(run.len(), ready, "each frame is in the batch that it was put in");
                        assert_eq!(granted, ready, "nothing is abandoned here");
                        for (_, frame, since) in run {
                            self.log.inferred[frame] += 1;
                            self.log.longest_wait = self.log.longest_wait.max(u128::from(self.now - since));
                        }
                        self.log.batches.push(ready);
                        // Not all alike, as in life: workers do not end together again and again.
                        let jitter = (self.planned.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) % 6;
                        let end = self.now + self.run + self.per_frame * ready as u64 + jitter;
                        self.at(end, Happens::RunEnds { frames: ready });
                    }
                    Task::Wait(Some(until)) => {
                        let due = (until - self.origin).as_millis() as u64;
                        assert!(due > self.now, "a wait for what is past");
                        self.at(due, Happens::Alarm);
                        break;
                    }
                    Task::Wait(None) => break,
                    Task::Discard(_) => panic!("nothing is abandoned here"),
                }
            }
            let entitled: Vec<_> = self.queue.entitled().collect();
            if entitled.is_empty() {
                break;
            }
            for stream in entitled {
                self.ask(stream as usize);
            }
        }
        // Work-conserving: an idle worker means that no frame lies ready that need not wait for company.
        if self.idle > 0 {
            for &(batch, frame, since) in &self.filled {
                let delay = self.sources.iter().map(|source| source.batch_delay).max().unwrap_or(0);
                let complete = !self.plan.values().any(
                    |happens| matches!(happens, Happens::Filled { batch: other, .. } if *other == batch),
                );
                assert!(!complete || self.now < since + delay, "stream {frame}'s frame lies idle");
            }
            let full = self.queue.room() == 0;
            assert!(full || self.waiting.is_empty(), "{:?} wait for an idle engine", self.waiting);
        }
    }

    /// Until so many batches have run.
    fn play(mut self, batches: usize) -> Log {
        while self.log.batches.len() < batches {
            let ((time, _), happens) = self.plan.pop_first().expect("something happens");
            self.now = time;
            match happens {
                Happens::Frame(stream) => self.ask(stream),
                Happens::Filled { batch, frame } => {
                    let due = self.now + self.sources[frame].batch_delay;
                    assert!(self.queue.settle(batch, Some(self.origin + MS * due as u32)));
                    self.filled.push((batch, frame, self.now));
                    self.next_frame(frame);
                }
                Happens::RunEnds { frames } => {
                    self.idle += 1;
                    self.queue.finished(frames, None);
                }
                Happens::Alarm => (),
            }
            self.settle_down();
        }
        self.log
    }
}

fn apart(counts: &[usize]) -> usize {
    counts.iter().max().unwrap() - counts.iter().min().unwrap()
}

#[test]
fn equal_streams_get_equal_shares() {
    for (streams, workers, max_batch) in [(2, 1, 1), (5, 1, 1), (16, 2, 1), (16, 1, 4), (3, 2, 4)] {
        let sources = vec![Source { max_batch, ..FILE }; streams];
        let log = World::new(&sources, workers, 20, 5).play(300);
        assert!(apart(&log.inferred) <= 1 + max_batch, "{:?}", log.inferred);
    }
}

#[test]
fn priorities_are_shares_of_a_busy_engine() {
    for (workers, max_batch) in [(1, 1), (2, 1), (1, 4), (1, 8)] {
        let sources = [3, 1, 1].map(|priority| Source { priority, max_batch, ..FILE });
        let log = World::new(&sources, workers, 20, 5).play(300);
        let frames: usize = log.inferred.iter().sum();
        for (count, share) in log.inferred.iter().zip([0.6, 0.2, 0.2]) {
            let wanted = share * frames as f64;
            assert!(
                (*count as f64 - wanted).abs() <= 2.0 + wanted / 10.0,
                "{:?}, {workers} workers, {max_batch}",
                log.inferred
            );
        }
    }
}

#[test]
fn a_slow_stream_gets_all_its_frames_beside_a_fast_one() {
    let slow = Source { period: 200, ..FILE };
    for fast in [FILE, Source { period: 8, ..FILE }, Source { period: 8, skips: true, ..FILE }] {
        let log = World::new(&[fast, slow], 1, 40, 0).play(300);
        // 5 frames a second, of 25 runs; a frame may be under way.
        assert!(log.inferred[1] >= 300 / 5 - 2, "{:?}", log.inferred);
        assert!(log.longest_wait <= 80);
    }
}

#[test]
fn batches_form_where_the_engine_is_busy_and_not_where_it_is_idle() {
    let busy = World::new(&[Source { max_batch: 4, ..FILE }; 8], 1, 50, 10).play(100);
    assert!(busy.batches[5..].iter().all(|&frames| frames == 4), "{:?}", busy.batches);
    let idle = World::new(&[Source { max_batch: 4, period: 100, ..FILE }], 1, 5, 1).play(100);
    assert!(idle.batches.iter().all(|&frames| frames == 1) && idle.longest_wait == 0, "{:?}", idle.batches);
}

#[test]
fn a_delay_fills_batches_and_ends() {
    let source = Source { max_batch: 4, period: 100, batch_delay: 30, ..FILE };
    let log = World::new(&[source; 4], 1, 5, 1).play(50);
    assert!(log.batches.iter().all(|&frames| frames == 4), "{:?}", log.batches);
    let lone = World::new(&[source], 1, 5, 1).play(50);
    assert_eq!((lone.longest_wait, lone.batches.iter().max()), (30, Some(&1)));
}

proptest! {
    /// Whatever the streams are: an idle engine leaves nothing lying (asserted at every step), every stream that waits
    /// is served, and a frame handed in waits for the batch before its own at most, besides its delay.
    #[test]
    fn work_is_conserved_and_nobody_starves(
        streams in proptest::collection::vec((1u32..5, 1usize..6, 0u64..20, 0u64..60, any::<bool>()), 1..10),
        workers in 1usize..4, run in 0u64..40, per_frame in 1u64..10,
    ) {
        let sources: Vec<_> = streams
            .iter()
            .map(|&(priority, max_batch, batch_delay, period, skips)| {
                // One that never waits and always has a frame would stop the clock.
                let period = if skips { period.max(1) } else { period };
                Source { priority, max_batch, batch_delay, period, skips }
            })
            .collect();
        let log = World::new(&sources, workers, run, per_frame).play(400);
        let largest = sources.iter().map(|source| source.max_batch).max().unwrap() as u64;
        let delay = sources.iter().map(|source| source.batch_delay).max().unwrap();
        let longest = run + per_frame * largest + 5;
        // The others of its batch may still be preprocessed.
        prop_assert!(log.longest_wait <= u128::from(longest + delay + 2), "{} ms", log.longest_wait);
        prop_assert!(log.batches.iter().all(|&frames| frames <= largest as usize));
        for (stream, source) in sources.iter().enumerate() {
            let asked = log.inferred[stream] + log.passed[stream];
            prop_assert!(source.skips || asked < 8 || log.inferred[stream] > 0, "{stream}: {:?}", log.inferred);
        }
    }
}
