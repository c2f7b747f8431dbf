//! The batcher with engines that do as the test says.

use super::*;
use crate::decode::{Head, Layout, ModelMetadata, OutputShape};
use crate::detection::Detection;
use crate::engine::BatchSize;
use crate::preprocess::letterbox::Placement;
use crate::tensor::{Element, FrameExtent};
use std::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(60);
/// What a frame holds that the fake engine fails or panics at.
const POISON: f32 = -1.0;
const PANIC: f32 = -2.0;

/// Finds one box whose confidence is the first value of the frame. Each run waits for a permission.
struct FakeEngine {
    spec: ModelSpec,
    permissions: mpsc::Receiver<()>,
    /// Frames of each run.
    runs: mpsc::Sender<usize>,
}

impl Engine for FakeEngine {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn run(&mut self, batch: &mut BatchTensor, frames: usize) -> Result<(), EngineError> {
        let _ = self.runs.send(frames);
        if self.permissions.recv_timeout(PATIENCE).is_err() {
            return Err(EngineError::new(EngineErrorKind::Run, "the test is over", ""));
        }
        let input = self.spec.input.len;
        let output = self.spec.output.len;
        let firsts: Vec<f32> = batch
            .input_bytes()
            .expect("no slot is out")
            .chunks_exact(4 * input)
            .map(|frame| f32::from_ne_bytes([frame[0], frame[1], frame[2], frame[3]]))
            .take(frames)
            .collect();
        assert!(!firsts.contains(&PANIC), "as the test wants it");
        if firsts.contains(&POISON) {
            return Err(EngineError::new(EngineErrorKind::Run, "poisoned", ""));
        }
        for (result, first) in batch.output_bytes().chunks_exact_mut(4 * output).zip(firsts) {
            result.fill(0);
            // Rows: cx, cy, w, h, score; the first candidate of each.
            for (row, value) in [16.0, 16.0, 8.0, 8.0, first].into_iter().enumerate() {
                let at = 4 * row * output / 5;
                result[at..at + 4].copy_from_slice(&f32::to_ne_bytes(value));
            }
        }
        Ok(())
    }
}

/// Dropped from the top: without permissions no run goes on for long.
struct Rig {
    permissions: mpsc::Sender<()>,
    batcher: Arc<Batcher>,
    runs: mpsc::Receiver<usize>,
}

/// A model of 32x32 pixels and one class.
pub(crate) fn spec(batch: BatchSize) -> ModelSpec {
    let input = (32, 32);
    let candidates = 16 + 4 + 1;
    let shape = OutputShape { name: "output0".into(), dims: vec![1, 5, candidates], float: true };
    let layout = Layout::find(Some(Head::V8), &ModelMetadata::default(), input, &[shape]).unwrap();
    ModelSpec {
        file: "fake.onnx".into(),
        input_size: (32, 32),
        batch,
        input: FrameExtent { element: Element::F32, len: 3 * 32 * 32 },
        output: FrameExtent { element: Element::F32, len: layout.frame_len() },
        layout,
        labels: None,
        device: "fake".into(),
        warm_run: Duration::ZERO,
        loaded_bytes: 0,
    }
}

fn rig(batch: BatchSize) -> Rig {
    let (permissions, permissions_out) = mpsc::channel();
    let (runs_in, runs) = mpsc::channel();
    let engine = FakeEngine { spec: spec(batch), permissions: permissions_out, runs: runs_in };
    Rig { batcher: Arc::new(Batcher::new(Box::new(engine)).unwrap()), permissions, runs }
}

impl Rig {
    fn permit(&self, runs: usize) {
        (0..runs).for_each(|_| self.permissions.send(()).unwrap());
    }

    /// Frames of the next run, when it has begun.
    fn run(&self) -> usize {
        self.runs.recv_timeout(PATIENCE).expect("a run")
    }

    fn until(&self, condition: impl Fn(&State) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(&self.batcher.shared.state.lock()) {
            assert!(Instant::now() < deadline, "it never comes about");
            std::thread::yield_now();
        }
    }
}

fn job(ticket: &Arc<Ticket>, batch_delay: Duration) -> Job {
    let thresholds =
        Thresholds { confidence: 0.1, iou: 0.7, class_agnostic: false, max_detections: 10, classes: None };
    Job {
        ticket: ticket.clone(),
        thresholds: Arc::new(thresholds),
        letterbox: Letterbox::new((32, 32), (32, 32), Placement::Center),
        batch_delay,
    }
}

pub(crate) fn submit(mut slot: Slot, value: f32, batch_delay: Duration) -> Arc<Ticket> {
    match slot.tensor() {
        Some(TensorMut::F32(values)) => values.fill(value),
        _ => panic!("no f32 tensor"),
    }
    let ticket = Arc::new(Ticket::default());
    slot.submit(job(&ticket, batch_delay));
    ticket
}

fn confidence(ticket: &Ticket) -> f32 {
    assert!(matches!(ticket.wait(), Outcome::Done), "{:?}", ticket.outcome());
    ticket.with_result(|detections: &[Detection], _| {
        assert_eq!(detections.len(), 1);
        detections[0].confidence
    })
}

fn refused(outcome: Result<Slot, Refused>) -> Refused {
    outcome.err().expect("a refusal")
}

#[test]
fn each_frame_gets_its_own_result_and_batches_form_while_the_engine_is_busy() {
    let rig = rig(BatchSize::Any);
    let stream = rig.batcher.attach(4);
    let lone = submit(stream.acquire(true).unwrap(), 0.9, Duration::ZERO);
    assert_eq!(rig.run(), 1, "an idle engine waits for nobody");
    let values = [0.2, 0.4, 0.6];
    let others: Vec<_> =
        values.iter().map(|&value| submit(stream.acquire(true).unwrap(), value, Duration::ZERO)).collect();
    rig.permit(2);
    assert_eq!(rig.run(), 3);
    assert_eq!(confidence(&lone), 0.9);
    assert_eq!(others.iter().map(|ticket| confidence(ticket)).collect::<Vec<_>>(), values);
    others[0].with_result(|_, report| assert_eq!(report.batch, 3));
    rig.until(|state| !state.running);
    let stats = rig.batcher.stats();
    assert_eq!((stats.batches, stats.frames, stats.streams), (2, 4, 1));
}

#[test]
fn a_delay_holds_a_batch_until_it_is_full_or_somebody_hurries() {
    let rig = rig(BatchSize::Any);
    rig.permit(2);
    let stream = rig.batcher.attach(2);
    let first = submit(stream.acquire(true).unwrap(), 0.3, PATIENCE);
    assert!(matches!(first.outcome(), Outcome::Pending));
    submit(stream.acquire(true).unwrap(), 0.5, PATIENCE);
    assert_eq!(rig.run(), 2);
    let last = submit(stream.acquire(true).unwrap(), 0.7, PATIENCE);
    stream.hurry();
    assert_eq!(rig.run(), 1);
    assert_eq!(confidence(&last), 0.7);
}

#[test]
fn abandoned_slots_are_holes() {
    let rig = rig(BatchSize::Any);
    rig.permit(2);
    let stream = rig.batcher.attach(3);
    let (hole, kept) = (stream.acquire(true).unwrap(), stream.acquire(true).unwrap());
    let ticket = submit(kept, 0.8, Duration::ZERO);
    assert!(matches!(ticket.outcome(), Outcome::Pending), "a granted slot is waited for");
    drop(hole);
    assert_eq!(rig.run(), 2);
    assert_eq!(confidence(&ticket), 0.8);
    ticket.with_result(|_, report| assert_eq!(report.batch, 1));
    // A batch of holes alone does not run.
    drop(stream.acquire(true).unwrap());
    rig.until(|state| state.filling.is_none() && !state.running);
    submit(stream.acquire(true).unwrap(), 0.8, Duration::ZERO);
    assert_eq!(rig.run(), 1);
}

#[test]
fn the_largest_max_batch_that_is_attached_decides() {
    let rig = rig(BatchSize::Any);
    let (small, large) = (rig.batcher.attach(1), rig.batcher.attach(4));
    assert_eq!(rig.batcher.stats().slots, 8);
    let slots: Vec<_> = (0..4).map(|_| small.acquire(false).unwrap()).collect();
    assert!(matches!(refused(small.acquire(false)), Refused::Busy));
    drop(large);
    assert_eq!(rig.batcher.stats().slots, 2);
    drop(slots);
    rig.until(|state| state.filling.is_none());
    let _one = small.acquire(false).unwrap();
    assert!(matches!(refused(small.acquire(false)), Refused::Busy));
}

#[test]
fn a_fixed_batch_is_what_it_is() {
    let rig = rig(BatchSize::Fixed(2));
    let stream = rig.batcher.attach(7);
    assert_eq!(rig.batcher.stats().slots, 4);
    let _slots = [stream.acquire(false).unwrap(), stream.acquire(false).unwrap()];
    assert!(matches!(refused(stream.acquire(false)), Refused::Busy));
}

#[test]
fn streams_that_wait_are_served_in_turn() {
    const STREAMS: usize = 4;
    const ROUNDS: usize = 5;
    let rig = rig(BatchSize::Any);
    let first = rig.batcher.attach(1);
    // One runs, one is full: everyone else stands in line.
    submit(first.acquire(true).unwrap(), 0.5, Duration::ZERO);
    rig.run();
    submit(first.acquire(true).unwrap(), 0.5, Duration::ZERO);
    let (order_in, order) = mpsc::channel();
    std::thread::scope(|scope| {
        for id in 0..STREAMS {
            let (stream, order_in) = (rig.batcher.attach(1), order_in.clone());
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    let slot = stream.acquire(true).unwrap();
                    order_in.send(id).unwrap();
                    submit(slot, 0.5, Duration::ZERO);
                }
            });
            rig.until(|state| state.line.len() == id + 1);
        }
        for turn in 0..STREAMS * ROUNDS {
            rig.permit(1);
            rig.run();
            assert_eq!(order.recv_timeout(PATIENCE).unwrap(), turn % STREAMS);
            // It stands in line again, or is through.
            let through = (turn + 1).saturating_sub(STREAMS * (ROUNDS - 1));
            rig.until(|state| state.line.len() == STREAMS - through);
        }
    });
    rig.permit(2);
}

#[test]
fn a_stream_that_does_not_wait_keeps_its_turn() {
    let rig = rig(BatchSize::Any);
    let (file, camera) = (rig.batcher.attach(1), rig.batcher.attach(1));
    submit(file.acquire(true).unwrap(), 0.5, Duration::ZERO);
    rig.run();
    submit(file.acquire(true).unwrap(), 0.5, Duration::ZERO);
    assert!(matches!(refused(camera.acquire(false)), Refused::Busy));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| file.acquire(true).map(|slot| submit(slot, 0.5, Duration::ZERO)));
        rig.until(|state| state.line.iter().any(|claim| claim.present));
        rig.permit(1);
        rig.run();
        // There is room again, and the file's thread was told; but it is the camera's turn.
        rig.until(|state| state.filling.is_none());
        let slot = camera.acquire(false).expect("its turn");
        submit(slot, 0.9, Duration::ZERO);
        assert!(!waiting.is_finished());
        rig.permit(1);
        rig.run();
        let ticket = waiting.join().unwrap().unwrap();
        rig.permit(2);
        assert_eq!(confidence(&ticket), 0.5);
    });
}

#[test]
fn an_idle_engine_waits_for_no_absent_stream() {
    let rig = rig(BatchSize::Any);
    let (file, camera) = (rig.batcher.attach(1), rig.batcher.attach(1));
    submit(file.acquire(true).unwrap(), 0.5, Duration::ZERO);
    rig.run();
    submit(file.acquire(true).unwrap(), 0.5, Duration::ZERO);
    assert!(matches!(refused(camera.acquire(false)), Refused::Busy));
    rig.permit(3);
    // The camera never comes back.
    assert_eq!(confidence(&submit(file.acquire(true).unwrap(), 0.7, Duration::ZERO)), 0.7);
}

#[test]
fn a_flush_frees_a_waiter_and_gives_its_place_up() {
    let rig = rig(BatchSize::Any);
    let (stays, flushes) = (rig.batcher.attach(1), rig.batcher.attach(1));
    submit(stays.acquire(true).unwrap(), 0.5, Duration::ZERO);
    rig.run();
    submit(stays.acquire(true).unwrap(), 0.5, Duration::ZERO);
    assert!(matches!(refused(flushes.acquire(false)), Refused::Busy));
    flushes.set_flushing(true);
    assert!(rig.batcher.shared.state.lock().line.is_empty());
    flushes.set_flushing(false);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| refused(flushes.acquire(true)));
        rig.until(|state| state.line.len() == 1);
        flushes.set_flushing(true);
        assert!(matches!(waiting.join().unwrap(), Refused::Flushing));
    });
    assert!(rig.batcher.shared.state.lock().line.is_empty());
    rig.permit(2);
}

#[test]
fn a_failing_run_fails_its_frames_and_no_others() {
    let rig = rig(BatchSize::Any);
    let stream = rig.batcher.attach(2);
    let (a, b) = (stream.acquire(true).unwrap(), stream.acquire(true).unwrap());
    let (a, b) = (submit(a, POISON, PATIENCE), submit(b, 0.5, PATIENCE));
    rig.permit(2);
    assert!(matches!(a.wait(), Outcome::Failed(error) if error.message == "poisoned"));
    assert!(matches!(b.wait(), Outcome::Failed(_)));
    assert_eq!(confidence(&submit(stream.acquire(true).unwrap(), 0.6, Duration::ZERO)), 0.6);
    assert!(!rig.batcher.is_lost());
}

#[test]
fn a_panic_loses_the_engine_for_every_stream() {
    let rig = rig(BatchSize::Any);
    let (one, two) = (rig.batcher.attach(1), rig.batcher.attach(1));
    let ran = submit(one.acquire(true).unwrap(), PANIC, Duration::ZERO);
    rig.run();
    let full = two.acquire(true).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| refused(one.acquire(true)));
        rig.until(|state| state.line.len() == 1);
        rig.permit(1);
        assert!(matches!(ran.wait(), Outcome::EngineLost(error) if error.message.contains("fake.onnx")));
        assert!(matches!(waiting.join().unwrap(), Refused::EngineLost(_)));
    });
    // A slot that was still being filled, and later requests.
    assert!(matches!(submit(full, 0.5, Duration::ZERO).wait(), Outcome::EngineLost(_)));
    assert!(matches!(refused(two.acquire(true)), Refused::EngineLost(_)));
    assert!(matches!(refused(two.acquire(false)), Refused::EngineLost(_)));
    assert!(rig.batcher.is_lost());
}

#[test]
fn the_end_leaves_nobody_waiting() {
    let Rig { batcher, permissions, runs } = rig(BatchSize::Any);
    let stream = batcher.attach(2);
    let running = submit(stream.acquire(true).unwrap(), 0.5, Duration::ZERO);
    runs.recv_timeout(PATIENCE).unwrap();
    let handed_in = submit(stream.acquire(true).unwrap(), 0.5, Duration::ZERO);
    let being_filled = stream.acquire(true).unwrap();
    {
        let mut state = batcher.shared.state.lock();
        (state.stop, state.exiting) = (true, true);
    }
    permissions.send(()).unwrap();
    assert!(matches!(running.wait(), Outcome::Done), "a run in progress is completed");
    assert!(matches!(handed_in.wait(), Outcome::Cancelled));
    assert!(matches!(submit(being_filled, 0.5, Duration::ZERO).wait(), Outcome::Cancelled));
    assert!(matches!(refused(stream.acquire(true)), Refused::Flushing));
    drop((stream, batcher));
}

#[test]
fn an_engine_ends_with_its_last_stream() {
    let Rig { batcher, permissions, runs } = rig(BatchSize::Any);
    let streams = [batcher.attach(1), batcher.attach(1)];
    drop(batcher);
    let ticket = submit(streams[0].acquire(true).unwrap(), 0.5, Duration::ZERO);
    permissions.send(()).unwrap();
    assert_eq!(confidence(&ticket), 0.5);
    drop(streams);
    runs.recv().unwrap();
    assert!(runs.recv().is_err(), "the engine was dropped");
}
