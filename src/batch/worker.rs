//! One of the threads that run an engine's batches.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::batcher::{Batch, Job, Shared};
use super::ceiling;
use super::queue::Task;
use super::ticket::{Outcome, Reduced, Run};
use crate::decode::{self, Scratch};
use crate::engine::{Engine, EngineError, EngineErrorKind, Output};

pub struct Worker {
    shared: Arc<Shared>,
    engine: Arc<dyn Engine>,
    scratch: Scratch,
}

/// What is to be run of a batch.
struct RunTask {
    frames: usize,
    /// Of which so many are there.
    ready: usize,
    /// Most frames for which there is memory, as far as is known.
    limit: usize,
}

/// What a batch left to be noted.
struct Ran {
    frames: usize,
    ready: usize,
    /// Memory was enough for so many frames only.
    part: Option<usize>,
    /// Of the longest run; `None` where nothing was run at all.
    longest: Option<Duration>,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, engine: Arc<dyn Engine>) -> Self {
        Self { shared, engine, scratch: Scratch::default() }
    }

    pub fn run(mut self) {
        let mut ran = None;
        while let Some((mut batch, task)) = self.next_batch(ran.take()) {
            // Not a vfunc: nobody else would catch a panic here, and every stream would wait for ever.
            match catch_unwind(AssertUnwindSafe(|| self.process(&mut batch, &task))) {
                Ok(outcome) => ran = Some((batch, outcome)),
                Err(_) => {
                    self.lose(batch);
                    break;
                }
            }
        }
        self.end();
        let Self { shared, engine, .. } = self;
        if shared.state.lock().exiting {
            // Its library may be gone while it is released.
            std::mem::forget(engine);
        } else {
            drop(engine);
        }
        shared.state.lock().workers -= 1;
        shared.ended.notify_all();
    }

    /// Gives back the batch that `ran`, then waits for the next; `None` when the engine is to end. In one step, so that
    /// a worker that has work never counts as idle.
    fn next_batch(&self, ran: Option<(Batch, Ran)>) -> Option<(Batch, RunTask)> {
        let mut state = self.shared.state.lock();
        if let Some((batch, Ran { frames, ready, part, longest })) = ran {
            // One that nobody wanted any more says nothing about memory.
            state.queue.finished(if longest.is_some() { frames } else { 0 }, part);
            if let Some(longest) = longest {
                state.batches += 1;
                state.frames += ready as u64;
                state.last_run = longest;
            }
            state.recycle(batch);
        }
        loop {
            self.shared.let_go(&mut state);
            if state.stop {
                return None;
            }
            let task = state.queue.next(Instant::now());
            state.wake();
            match task {
                Task::Wait(None) => self.shared.work.wait(&mut state),
                Task::Wait(Some(until)) => {
                    self.shared.work.wait_until(&mut state, until);
                }
                Task::Discard(id) => {
                    if let Some(batch) = state.take(id) {
                        state.recycle(batch);
                    }
                }
                Task::Run { batch, granted, ready } => {
                    // Memory may have run out after the batch was opened.
                    let task = RunTask { frames: granted, ready, limit: state.queue.capacity() };
                    let batch = state.take(batch);
                    if !state.forming.is_empty() {
                        // It may have been this worker that looked after another batch's delay.
                        self.shared.work.notify_one();
                    }
                    return batch.map(|batch| (batch, task));
                }
            }
        }
    }

    /// Runs the batch, in parts where memory does not suffice for the whole, and ends its tickets.
    fn process(&mut self, batch: &mut Batch, task: &RunTask) -> Ran {
        let RunTask { frames, ready, limit } = *task;
        let mut ran = Ran { frames, ready, part: None, longest: None };
        // Those who waited for it may all have gone.
        if !batch.jobs.iter().flatten().any(|job| job.ticket.is_pending()) {
            return ran;
        }
        let size = self.shared.spec.batch;
        let mut part = frames.min(limit);
        let mut at = 0;
        while at < frames {
            // The whole, or parts that are powers of two.
            let count = if part < frames { ceiling::part(part.min(frames - at) + 1) } else { frames };
            let run = if count == frames { size.run(count, batch.tensor.capacity()) } else { count };
            let reduced = ran.part.map_or(batch.reduced, |limit| {
                let frames = frames as u32;
                Some(Reduced { batch: batch.id, frames, limit: limit as u32 })
            });
            let jobs = &batch.jobs[at..at + count];
            let layout = &self.engine.spec().layout;
            let mut report = Run {
                started: Instant::now(),
                took: Duration::ZERO,
                frames: jobs.iter().flatten().count() as u32,
                reduced,
            };
            let mut read = |output: Output<'_>| {
                report.took = report.started.elapsed();
                for (index, job) in jobs.iter().enumerate() {
                    let Some(Job { ticket, thresholds, letterbox, .. }) = job else { continue };
                    let output = output.frame(index);
                    ticket.complete(&report, |detections| {
                        decode::decode(layout, output, thresholds, letterbox, &mut self.scratch, detections);
                    });
                }
            };
            let (frames_run, shrinking) = (at..at + run, &self.shared.shrinking);
            let outcome = match shrinking.take() {
                true => self
                    .engine
                    .run_and_shrink(&mut batch.tensor, frames_run, &mut read)
                    .map(|freed| shrinking.done(freed)),
                false => self.engine.run(&mut batch.tensor, frames_run, &mut read),
            };
            if let Err(error) = outcome {
                if error.kind == EngineErrorKind::OutOfMemory {
                    // What the arena keeps of larger batches may be what is missing.
                    shrinking.ask();
                }
                if count > 1 && !size.is_fixed() && error.kind == EngineErrorKind::OutOfMemory {
                    part = ceiling::part(count);
                    ran.part = Some(part);
                    continue;
                }
                report.took = report.started.elapsed();
                let error = Arc::new(error);
                for job in jobs.iter().flatten() {
                    job.ticket.fail(&report, error.clone());
                }
            }
            ran.longest = ran.longest.max(Some(report.took));
            at += count;
        }
        ran
    }

    /// The engine is not to be trusted any more: every stream is told, and every worker ends.
    fn lose(&self, batch: Batch) {
        let message = format!(
            "running the model {} panicked; restart the pipeline to load it anew",
            self.shared.spec.file.display()
        );
        let error = Arc::new(EngineError::new(EngineErrorKind::Run, message, ""));
        let mut state = self.shared.state.lock();
        state.lost.get_or_insert(error.clone());
        state.end(&self.shared.work);
        drop(state);
        batch.settle(&Outcome::EngineLost(error));
    }

    /// Nobody is left who would run what was handed in.
    fn end(&self) {
        let mut state = self.shared.state.lock();
        let outcome = state.lost.clone().map_or(Outcome::Cancelled, Outcome::EngineLost);
        state.queue.abandon();
        let abandoned = std::mem::take(&mut state.forming);
        drop(state);
        for batch in abandoned {
            batch.settle(&outcome);
        }
    }
}
