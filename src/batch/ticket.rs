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
    /// The frame's batch had to be split.
    pub reduced: Option<Reduced>,
}

/// A batch that ran out of memory and was run in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reduced {
    /// Tells batches of one engine apart.
    pub batch: u64,
    /// Frames that were too many.
    pub frames: u32,
    /// Most frames in a run from now on.
    pub limit: u32,
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

    /// As [`Self::wait`], but no longer than until `deadline`; whether the frame is settled.
    pub fn wait_until(&self, deadline: Instant) -> bool {
        let mut state = self.state.lock();
        while matches!(state.outcome, Outcome::Pending) {
            if self.settled.wait_until(&mut state, deadline).timed_out() {
                return !matches!(state.outcome, Outcome::Pending);
            }
        }
        true
    }

    pub fn outcome(&self) -> Outcome {
        self.state.lock().outcome.clone()
    }

    /// Wakes the waiter; a result that comes later is not written any more. Whether there was none yet.
    pub fn cancel(&self) -> bool {
        self.settle(Outcome::Cancelled)
    }

    /// Calls `read` with the result; empty before it is done.
    pub fn with_result<R>(&self, read: impl FnOnce(&[Detection], &RunReport) -> R) -> R {
        let state = self.state.lock();
        read(&state.detections, &state.report)
    }

    /// Ends the frame before it was handed in: there is no memory for it.
    pub fn refuse(&self, error: Arc<EngineError>) {
        self.settle(Outcome::Failed(error));
    }

    pub(super) fn mark_submitted(&self, now: Instant) {
        self.state.lock().submitted = Some(now);
    }

    /// Whether anybody still wants the result.
    pub(super) fn is_pending(&self) -> bool {
        matches!(self.state.lock().outcome, Outcome::Pending)
    }

    /// Ends a ticket that is still pending; others keep their outcome. Whether it was.
    pub(super) fn settle(&self, outcome: Outcome) -> bool {
        let mut state = self.state.lock();
        let pending = matches!(state.outcome, Outcome::Pending);
        if pending {
            state.outcome = outcome;
            self.settled.notify_all();
        }
        pending
    }

    /// Lets `decode` fill the list of a frame that is still wanted.
    pub(super) fn complete(&self, run: &Run, decode: impl FnOnce(&mut Vec<Detection>)) {
        self.end(run, |detections| {
            decode(detections);
            Outcome::Done
        });
    }

    /// The frame's run failed.
    pub(super) fn fail(&self, run: &Run, error: Arc<EngineError>) {
        self.end(run, |_| Outcome::Failed(error));
    }

    fn end(&self, run: &Run, end: impl FnOnce(&mut Vec<Detection>) -> Outcome) {
        let mut state = self.state.lock();
        if !matches!(state.outcome, Outcome::Pending) {
            return;
        }
        let start = Instant::now();
        state.outcome = end(&mut state.detections);
        let since = |submitted| run.started.saturating_duration_since(submitted);
        state.report = RunReport {
            queued: state.submitted.map_or(Duration::ZERO, since),
            inference: run.took,
            decode: start.elapsed(),
            batch: run.frames,
            reduced: run.reduced,
        };
        self.settled.notify_all();
    }
}

/// A run as its frames are told of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub started: Instant,
    pub took: Duration,
    pub frames: u32,
    pub reduced: Option<Reduced>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(frames: u32) -> Run {
        Run { started: Instant::now(), took: Duration::from_millis(7), frames, reduced: None }
    }

    #[test]
    fn a_cancelled_ticket_takes_no_late_result() {
        let ticket = Ticket::default();
        assert!(ticket.cancel());
        ticket.complete(&run(1), |list| list.push(Detection::default()));
        assert!(matches!(ticket.wait(), Outcome::Cancelled));
        ticket.with_result(|detections, _| assert!(detections.is_empty()));
        ticket.reset();
        ticket.complete(&run(3), |list| list.push(Detection::default()));
        assert!(!ticket.cancel());
        assert!(matches!(ticket.wait(), Outcome::Done));
        ticket.with_result(|detections, report| {
            assert_eq!((detections.len(), report.batch, report.inference), (1, 3, Duration::from_millis(7)));
        });
    }

    #[test]
    fn a_wait_with_a_deadline_ends() {
        let ticket = Ticket::default();
        assert!(!ticket.wait_until(Instant::now() + Duration::from_millis(1)));
        let error = Arc::new(EngineError::new(crate::engine::EngineErrorKind::Run, "no", ""));
        ticket.fail(&run(1), error);
        assert!(ticket.wait_until(Instant::now()));
        assert!(matches!(ticket.outcome(), Outcome::Failed(_)));
    }
}
