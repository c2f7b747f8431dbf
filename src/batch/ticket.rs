//! A frame's claim on its result: handed in with the slot, waited for by the stream's own task.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::detection::Detection;
use crate::engine::EngineError;

/// How a frame fared.
#[derive(Clone, Debug, Default)]
pub enum Outcome {
    #[default]
    Pending,
    Done,
    /// The run failed; the engine is still there.
    Failed(Arc<EngineError>),
    /// The engine is gone for good; every later request is refused too.
    EngineLost(Arc<EngineError>),
    /// The stream no longer wants it; a late result is thrown away.
    Cancelled,
}

/// What a finished run says of itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunReport {
    /// From the frame being handed in to the run's start.
    pub queued: Duration,
    /// The run of the whole batch.
    pub inference: Duration,
    /// Candidates, NMS, letterbox undone; of this frame alone.
    pub decode: Duration,
    /// Frames that ran together, holes not counted; at least 1.
    pub batch: u32,
}

#[derive(Default)]
struct State {
    outcome: Outcome,
    detections: Vec<Detection>,
    report: RunReport,
    submitted: Option<Instant>,
}

/// Reused frame after frame; its list keeps its memory.
#[derive(Default)]
pub struct Ticket {
    state: Mutex<State>,
    settled: Condvar,
}

impl Ticket {
    /// Made ready for a new frame. The caller must be its only holder.
    pub fn reset(&self) {
        let mut state = self.state.lock();
        state.outcome = Outcome::Pending;
        state.detections.clear();
        state.report = RunReport::default();
        state.submitted = None;
    }

    /// Waits until the frame is done, failed or cancelled.
    pub fn wait(&self) -> Outcome {
        let mut state = self.state.lock();
        while matches!(state.outcome, Outcome::Pending) {
            self.settled.wait(&mut state);
        }
        state.outcome.clone()
    }

    pub fn outcome(&self) -> Outcome {
        self.state.lock().outcome.clone()
    }

    /// Wakes the waiter; a result that comes later is not written any more.
    pub fn cancel(&self) {
        self.settle(Outcome::Cancelled);
    }

    /// Calls `read` with the result; empty before it is done.
    pub fn with_result<R>(&self, read: impl FnOnce(&[Detection], &RunReport) -> R) -> R {
        let state = self.state.lock();
        read(&state.detections, &state.report)
    }

    pub(super) fn mark_submitted(&self, now: Instant) {
        self.state.lock().submitted = Some(now);
    }

    /// Ends a ticket that is still pending; others keep their outcome.
    pub(super) fn settle(&self, outcome: Outcome) {
        let mut state = self.state.lock();
        if matches!(state.outcome, Outcome::Pending) {
            state.outcome = outcome;
            self.settled.notify_all();
        }
    }

    /// Lets `decode` fill the list of a frame that is still wanted.
    pub(super) fn complete(
        &self,
        started: Instant,
        inference: Duration,
        batch: u32,
        decode: impl FnOnce(&mut Vec<Detection>),
    ) {
        let mut state = self.state.lock();
        if !matches!(state.outcome, Outcome::Pending) {
            return;
        }
        let start = Instant::now();
        decode(&mut state.detections);
        let queued =
            state.submitted.map_or(Duration::ZERO, |submitted| started.saturating_duration_since(submitted));
        state.report = RunReport { queued, inference, decode: start.elapsed(), batch };
        state.outcome = Outcome::Done;
        self.settled.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancelled_ticket_takes_no_late_result() {
        let ticket = Ticket::default();
        ticket.cancel();
        ticket.complete(Instant::now(), Duration::ZERO, 1, |list| list.push(Detection::default()));
        assert!(matches!(ticket.wait(), Outcome::Cancelled));
        ticket.with_result(|detections, _| assert!(detections.is_empty()));
        ticket.reset();
        ticket.complete(Instant::now(), Duration::from_millis(7), 3, |list| list.push(Detection::default()));
        ticket.cancel();
        assert!(matches!(ticket.wait(), Outcome::Done));
        ticket.with_result(|detections, report| {
            assert_eq!((detections.len(), report.batch, report.inference), (1, 3, Duration::from_millis(7)));
        });
    }
}
