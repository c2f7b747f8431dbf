//! The batcher with engines that do as the test says.

use super::*;
use crate::batch::ticket::Reduced;
use crate::decode::{Head, Layout, ModelMetadata, OutputRef, OutputShape};
use crate::detection::Detection;
use crate::engine::active::ActiveDevice;
use crate::engine::{BatchSize, Output};
use crate::memory::budget::{Budget, HOST};
use crate::preprocess::TensorMut;
use crate::preprocess::letterbox::Placement;
use crate::tensor::{Element, FrameExtent};
use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;

mod memory;

const PATIENCE: Duration = Duration::from_secs(60);
/// What a frame holds that the fake engine fails or panics at.
const POISON: f32 = -1.0;
const PANIC: f32 = -2.0;

/// Finds one box whose confidence is the first value of the frame. Each run waits for a permission.
struct FakeEngine {
    spec: ModelSpec,
    permissions: Mutex<mpsc::Receiver<()>>,
    /// Frames of each run.
    runs: mpsc::Sender<usize>,
    /// More frames than this run out of memory.
    memory: AtomicUsize,
    /// What a run that shrinks gives back.
    arena: Option<u64>,
}

impl Engine for FakeEngine {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn run(
        &self,
        batch: &mut BatchTensor,
        frames: Range<usize>,
        read: &mut dyn FnMut(Output<'_>),
    ) -> Result<(), EngineError> {
        let _ = self.runs.send(frames.len());
        if self.permissions.lock().recv_timeout(PATIENCE).is_err() {
            return Err(EngineError::new(EngineErrorKind::Run, "the test is over", ""));
        }
        if frames.len() > self.memory.load(Ordering::Relaxed) {
            return Err(EngineError::new(EngineErrorKind::OutOfMemory, "no memory", ""));
        }
        let firsts = firsts(&self.spec, batch, &frames);
        assert!(!firsts.contains(&PANIC), "as the test wants it");
        if firsts.contains(&POISON) {
            return Err(EngineError::new(EngineErrorKind::Run, "poisoned", ""));
        }
        show(&self.spec, &firsts, read);
        Ok(())
    }

    fn run_and_shrink(
        &self,
        batch: &mut BatchTensor,
        frames: Range<usize>,
        read: &mut dyn FnMut(Output<'_>),
    ) -> Result<Option<u64>, EngineError> {
        self.run(batch, frames, read).map(|()| self.arena)
    }
}

/// The first value of each of the frames, which are of `f32`.
pub(crate) fn firsts(spec: &ModelSpec, batch: &mut BatchTensor, frames: &Range<usize>) -> Vec<f32> {
    let input = batch.input_bytes().expect("no slot is out");
    input
        .chunks_exact(4 * spec.input.len)
        .map(|frame| f32::from_ne_bytes([frame[0], frame[1], frame[2], frame[3]]))
        .skip(frames.start)
        .take(frames.len())
        .collect()
}

/// One box for each frame, of these confidences.
pub(crate) fn show(spec: &ModelSpec, confidences: &[f32], read: &mut dyn FnMut(Output<'_>)) {
    let output = spec.output.len;
    let mut values = vec![0.0; output * confidences.len()];
    for (result, &first) in values.chunks_exact_mut(output).zip(confidences) {
        // Rows: cx, cy, w, h, score; the first candidate of each.
        for (row, value) in [16.0, 16.0, 8.0, 8.0, first].into_iter().enumerate() {
            result[row * output / 5] = value;
        }
    }
    read(Output { values: OutputRef::F32(&values), frame_len: output });
}

/// Runs whatever comes, with an arena from which a run can give back so much. Its ledger is of `budget`.
pub(crate) fn willing(batch: BatchSize, arena: Option<u64>, budget: &'static Budget) -> Batcher {
    let mut ledger = Ledger::new(budget, "fake.onnx");
    ledger.laid_out(1, ARENA);
    willing_with(batch, arena, ledger)
}

pub(crate) fn willing_with(batch: BatchSize, arena: Option<u64>, ledger: Ledger) -> Batcher {
    let (permissions_in, permissions) = mpsc::channel();
    (0..100_000).for_each(|_| permissions_in.send(()).unwrap());
    let engine = FakeEngine {
        spec: spec(batch),
        permissions: Mutex::new(permissions),
        runs: mpsc::channel().0,
        memory: usize::MAX.into(),
        arena,
    };
    Batcher::new(Arc::new(engine), ledger).unwrap()
}

/// Bytes of a frame of [`spec`], and what [`willing`]'s arena grows by for one.
pub(crate) const FRAME: u64 = 4 * 3 * 32 * 32;
pub(crate) const ARENA: u64 = 1000;

/// Dropped from the top: without permissions no run goes on for long.
struct Rig {
    permissions: mpsc::Sender<()>,
    batcher: Arc<Batcher>,
    runs: mpsc::Receiver<usize>,
    engine: Weak<FakeEngine>,
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
        callers: 1,
        device: ActiveDevice::new("fake"),
        warm_run: Duration::ZERO,
        loaded_bytes: 0,
        cached: false,
    }
}

fn rig(batch: BatchSize) -> Rig {
    rig_with(batch, 1, usize::MAX)
}

fn rig_with(batch: BatchSize, callers: usize, memory: usize) -> Rig {
    let (permissions, permissions_out) = mpsc::channel();
    let (runs_in, runs) = mpsc::channel();
    let engine = Arc::new(FakeEngine {
        spec: ModelSpec { callers, ..spec(batch) },
        permissions: Mutex::new(permissions_out),
        runs: runs_in,
        memory: memory.into(),
        arena: None,
    });
    let batcher = Batcher::new(engine.clone() as Arc<dyn Engine>, Ledger::new(&HOST, "fake.onnx")).unwrap();
    Rig { batcher: Arc::new(batcher), permissions, runs, engine: Arc::downgrade(&engine) }
}

impl Rig {
    fn permit(&self, runs: usize) {
        (0..runs).for_each(|_| self.permissions.send(()).unwrap());
    }

    /// Frames of the next run, when it has begun.
    fn run(&self) -> usize {
        self.runs.recv_timeout(PATIENCE).expect("a run")
    }

    /// One frame of the stream runs, another has the slot after it.
    fn occupy(&self, stream: &Stream) {
        submit(stream.acquire(1, Patience::Endless).unwrap(), 0.5, Duration::ZERO);
        self.run();
        submit(stream.acquire(1, Patience::Endless).unwrap(), 0.5, Duration::ZERO);
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
    match slot.tensor().map(|tensor| tensor.values) {
        Some(TensorMut::F32(values)) => values.fill(value),
        _ => panic!("no f32 tensor"),
    }
    let ticket = Arc::new(Ticket::default());
    slot.submit(job(&ticket, batch_delay));
    ticket
}

pub(crate) fn confidence(ticket: &Ticket) -> f32 {
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
    let stream = rig.batcher.attach(4).unwrap();
    let lone = submit(stream.acquire(1, Patience::Endless).unwrap(), 0.9, Duration::ZERO);
    assert_eq!(rig.run(), 1, "an idle engine waits for nobody");
    let values = [0.2, 0.4, 0.6];
    let others: Vec<_> = values
        .iter()
        .map(|&value| submit(stream.acquire(1, Patience::Endless).unwrap(), value, Duration::ZERO))
        .collect();
    rig.permit(2);
    assert_eq!(rig.run(), 3);
    assert_eq!(confidence(&lone), 0.9);
    assert_eq!(others.iter().map(|ticket| confidence(ticket)).collect::<Vec<_>>(), values);
    others[0].with_result(|_, report| assert_eq!(report.batch, 3));
    rig.until(|state| state.queue.running() == 0);
    let stats = rig.batcher.stats();
    assert_eq!((stats.batches, stats.frames, stats.streams), (2, 4, 1));
}

#[test]
fn a_delay_holds_a_batch_until_it_is_full_or_somebody_hurries() {
    let rig = rig(BatchSize::Any);
    rig.permit(2);
    let stream = rig.batcher.attach(2).unwrap();
    let first = submit(stream.acquire(1, Patience::Endless).unwrap(), 0.3, PATIENCE);
    assert!(matches!(first.outcome(), Outcome::Pending));
    submit(stream.acquire(1, Patience::Endless).unwrap(), 0.5, PATIENCE);
    assert_eq!(rig.run(), 2);
    let last = submit(stream.acquire(1, Patience::Endless).unwrap(), 0.7, PATIENCE);
    stream.hurry();
    assert_eq!(rig.run(), 1);
    assert_eq!(confidence(&last), 0.7);
}

#[test]
fn abandoned_slots_are_holes() {
    let rig = rig(BatchSize::Any);
    rig.permit(2);
    let stream = rig.batcher.attach(3).unwrap();
    let (hole, kept) =
        (stream.acquire(1, Patience::Endless).unwrap(), stream.acquire(1, Patience::Endless).unwrap());
    let ticket = submit(kept, 0.8, Duration::ZERO);
    assert!(matches!(ticket.outcome(), Outcome::Pending), "a granted slot is waited for");
    drop(hole);
    assert_eq!(rig.run(), 2);
    assert_eq!(confidence(&ticket), 0.8);
    ticket.with_result(|_, report| assert_eq!(report.batch, 1));
    // A batch of holes alone does not run.
    drop(stream.acquire(1, Patience::Endless).unwrap());
    rig.until(|state| state.forming.is_empty() && state.queue.running() == 0);
    submit(stream.acquire(1, Patience::Endless).unwrap(), 0.8, Duration::ZERO);
    assert_eq!(rig.run(), 1);
}

#[test]
fn the_largest_max_batch_that_is_attached_decides() {
    let rig = rig(BatchSize::Any);
    let (small, large) = (rig.batcher.attach(1).unwrap(), rig.batcher.attach(4).unwrap());
    assert_eq!(rig.batcher.stats().slots, 8);
    let slots: Vec<_> = (0..8).map(|_| small.acquire(1, Patience::None).unwrap()).collect();
    assert!(matches!(refused(small.acquire(1, Patience::None)), Refused::Busy));
    drop(large);
    assert_eq!(rig.batcher.stats().slots, 2);
    drop(slots);
    rig.until(|state| state.forming.is_empty());
    let _slots = [(); 2].map(|()| small.acquire(1, Patience::None).unwrap());
    assert!(matches!(refused(small.acquire(1, Patience::None)), Refused::Busy));
}

#[test]
fn a_fixed_batch_is_what_it_is() {
    let rig = rig(BatchSize::Fixed(2));
    let stream = rig.batcher.attach(7).unwrap();
    assert_eq!(rig.batcher.stats().slots, 4);
    let slots = [(); 4].map(|()| stream.acquire(1, Patience::None).unwrap());
    assert!(matches!(refused(stream.acquire(1, Patience::None)), Refused::Busy));
    drop(slots);
    submit(stream.acquire(1, Patience::Endless).unwrap(), 0.5, Duration::ZERO);
    assert_eq!(rig.run(), 2, "a single frame runs with an unused one");
    rig.permit(1);
}

#[test]
fn several_callers_run_at_the_same_time() {
    let rig = rig_with(BatchSize::Any, 3, usize::MAX);
    let stream = rig.batcher.attach(1).unwrap();
    assert_eq!(rig.batcher.stats().slots, 3);
    let tickets = [0.2, 0.4, 0.6].map(|value| {
        let ticket = submit(stream.acquire(1, Patience::Endless).unwrap(), value, Duration::ZERO);
        assert_eq!(rig.run(), 1, "without waiting for the others");
        ticket
    });
    assert!(matches!(refused(stream.acquire(1, Patience::None)), Refused::Busy));
    assert_eq!(rig.batcher.shared.state.lock().queue.running(), 3);
    rig.permit(4);
    assert_eq!(tickets.map(|ticket| confidence(&ticket)), [0.2, 0.4, 0.6]);
    assert_eq!(confidence(&submit(stream.acquire(1, Patience::Endless).unwrap(), 0.8, Duration::ZERO)), 0.8);
    // And all end together.
    let engine = rig.engine.clone();
    drop((stream, rig));
    assert!(engine.upgrade().is_none());
}

#[test]
fn a_device_with_costly_shapes_sees_few() {
    let rig = rig(BatchSize::Steps);
    let stream = rig.batcher.attach(6).unwrap();
    for (frames, run) in [(1, 1), (3, 4), (5, 6), (6, 6)] {
        // Held back, so that they run together.
        let slots: Vec<_> = (0..frames).map(|_| stream.acquire(1, Patience::Endless).unwrap()).collect();
        let tickets: Vec<_> = slots.into_iter().map(|slot| submit(slot, 0.5, Duration::ZERO)).collect();
        rig.permit(1);
        assert_eq!(rig.run(), run, "{frames} frames");
        tickets.iter().for_each(|ticket| assert_eq!(confidence(ticket), 0.5));
    }
}

#[test]
fn a_batch_that_runs_out_of_memory_is_split_and_no_frame_is_lost() {
    let rig = rig_with(BatchSize::Any, 1, 2);
    let stream = rig.batcher.attach(7).unwrap();
    rig.permit(1000);
    let handed_in = Cell::new(0);
    let run = |count: usize| {
        handed_in.set(handed_in.get() + count as u64);
        let slots: Vec<_> = (0..count).map(|_| stream.acquire(1, Patience::Endless).unwrap()).collect();
        let values = (1..=count).map(|number| number as f32 / 10.0 + 0.1);
        let tickets: Vec<_> =
            slots.into_iter().zip(values).map(|(slot, value)| submit(slot, value, Duration::ZERO)).collect();
        for (number, ticket) in tickets.iter().enumerate() {
            assert!((confidence(ticket) - (number as f32 / 10.0 + 0.2)).abs() < 1e-6);
        }
        tickets
    };
    let runs = |count: usize| (0..count).map(|_| rig.run()).collect::<Vec<_>>();
    let split = run(7);
    assert_eq!(runs(6), [7, 4, 2, 2, 2, 1]);
    split[6].with_result(|_, report| {
        assert_eq!(report.reduced, Some(Reduced { batch: 1, frames: 7, limit: 2 }));
        assert_eq!(report.batch, 1);
    });
    rig.until(|state| state.queue.running() == 0);
    assert_eq!(rig.batcher.stats().batch_limit, 2);
    // From now on batches are small enough.
    run(2)[0].with_result(|_, report| assert_eq!(report.reduced, None));
    assert_eq!(runs(1), [2]);
    // There is memory again: larger batches are tried after a while.
    rig.engine.upgrade().unwrap().memory.store(usize::MAX, Ordering::Relaxed);
    let mut tries = 0;
    while rig.batcher.stats().batch_limit < 7 {
        run(rig.batcher.stats().batch_limit);
        tries += 1;
        assert!(tries < 1000, "the limit is never raised");
    }
    assert!(tries > 64, "it is raised slowly, not after {tries}");
    run(7);
    rig.until(|state| state.queue.running() == 0);
    assert_eq!(rig.batcher.stats().frames, handed_in.get());
}

#[test]
fn a_frame_for_which_there_is_no_memory_at_all_fails_alone() {
    let rig = rig_with(BatchSize::Any, 1, 0);
    let stream = rig.batcher.attach(2).unwrap();
    rig.permit(100);
    let slots = [(); 2].map(|()| stream.acquire(1, Patience::Endless).unwrap());
    for ticket in slots.map(|slot| submit(slot, 0.5, Duration::ZERO)) {
        assert!(
            matches!(ticket.wait(), Outcome::Failed(error) if error.kind == EngineErrorKind::OutOfMemory)
        );
        ticket.with_result(|_, report| assert!(report.reduced.is_some_and(|reduced| reduced.limit == 1)));
    }
    rig.engine.upgrade().unwrap().memory.store(1, Ordering::Relaxed);
    assert_eq!(confidence(&submit(stream.acquire(1, Patience::Endless).unwrap(), 0.6, Duration::ZERO)), 0.6);
}

#[test]
fn a_fixed_batch_cannot_be_split() {
    let rig = rig_with(BatchSize::Fixed(4), 1, 2);
    let stream = rig.batcher.attach(4).unwrap();
    rig.permit(2);
    let ticket = submit(stream.acquire(1, Patience::Endless).unwrap(), 0.5, Duration::ZERO);
    assert!(matches!(ticket.wait(), Outcome::Failed(_)));
    assert_eq!(rig.run(), 4);
    assert_eq!(rig.batcher.stats().batch_limit, 4);
}

#[test]
fn a_frame_that_nobody_wants_any_more_is_not_run() {
    let rig = rig(BatchSize::Any);
    let stream = rig.batcher.attach(1).unwrap();
    submit(stream.acquire(1, Patience::Endless).unwrap(), 0.5, Duration::ZERO);
    rig.run();
    let late = submit(stream.acquire(1, Patience::Endless).unwrap(), 0.5, Duration::ZERO);
    assert!(late.cancel());
    rig.permit(2);
    let wanted = submit(stream.acquire(1, Patience::Endless).unwrap(), 0.9, Duration::ZERO);
    assert_eq!(rig.run(), 1);
    assert_eq!(confidence(&wanted), 0.9);
    assert!(rig.runs.try_recv().is_err(), "three frames, two runs");
}

#[test]
fn patience_has_an_end_and_keeps_the_turn() {
    let rig = rig(BatchSize::Any);
    let (file, camera) = (rig.batcher.attach(1).unwrap(), rig.batcher.attach(1).unwrap());
    rig.occupy(&file);
    let soon = || Patience::Until(Instant::now() + Duration::from_millis(5));
    assert!(matches!(refused(camera.acquire(1, soon())), Refused::Busy));
    std::thread::scope(|scope| {
        let waiting =
            scope.spawn(|| camera.acquire(1, Patience::Until(Instant::now() + PATIENCE)).map(|_| ()));
        rig.until(|state| state.queue.waiting() == 1);
        assert!(matches!(refused(file.acquire(1, Patience::None)), Refused::Busy));
        rig.permit(1);
        assert!(waiting.join().unwrap().is_ok());
    });
    rig.permit(1);
}

#[test]
fn streams_that_wait_are_served_in_turn() {
    const STREAMS: usize = 4;
    const ROUNDS: usize = 5;
    let rig = rig(BatchSize::Any);
    let first = rig.batcher.attach(1).unwrap();
    // Everyone else stands in line.
    rig.occupy(&first);
    let (order_in, order) = mpsc::channel();
    std::thread::scope(|scope| {
        for id in 0..STREAMS {
            let (stream, order_in) = (rig.batcher.attach(1).unwrap(), order_in.clone());
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    let slot = stream.acquire(1, Patience::Endless).unwrap();
                    order_in.send(id).unwrap();
                    submit(slot, 0.5, Duration::ZERO);
                }
            });
            rig.until(|state| state.queue.waiting() == id + 1);
        }
        for turn in 0..STREAMS * ROUNDS {
            rig.permit(1);
            rig.run();
            assert_eq!(order.recv_timeout(PATIENCE).unwrap(), turn % STREAMS);
            // It stands in line again, or is through.
            let through = (turn + 1).saturating_sub(STREAMS * (ROUNDS - 1));
            rig.until(|state| state.queue.waiting() == STREAMS - through);
        }
    });
    rig.permit(2);
}

#[test]
fn a_stream_that_does_not_wait_keeps_its_turn() {
    let rig = rig(BatchSize::Any);
    let (file, camera) = (rig.batcher.attach(1).unwrap(), rig.batcher.attach(1).unwrap());
    rig.occupy(&file);
    assert!(matches!(refused(camera.acquire(1, Patience::None)), Refused::Busy));
    std::thread::scope(|scope| {
        let waiting =
            scope.spawn(|| file.acquire(1, Patience::Endless).map(|slot| submit(slot, 0.5, Duration::ZERO)));
        rig.until(|state| state.queue.waiting() == 1);
        rig.permit(1);
        rig.run();
        // There is room again, and the file's thread was told; but it is the camera's turn.
        rig.until(|state| state.forming.is_empty());
        let slot = camera.acquire(1, Patience::None).expect("its turn");
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
    let (file, camera) = (rig.batcher.attach(1).unwrap(), rig.batcher.attach(1).unwrap());
    rig.occupy(&file);
    assert!(matches!(refused(camera.acquire(1, Patience::None)), Refused::Busy));
    rig.permit(3);
    // The camera never comes back.
    assert_eq!(confidence(&submit(file.acquire(1, Patience::Endless).unwrap(), 0.7, Duration::ZERO)), 0.7);
}

#[test]
fn a_flush_frees_a_waiter_and_gives_its_place_up() {
    let rig = rig(BatchSize::Any);
    let (stays, flushes) = (rig.batcher.attach(1).unwrap(), rig.batcher.attach(1).unwrap());
    rig.occupy(&stays);
    assert!(matches!(refused(flushes.acquire(1, Patience::None)), Refused::Busy));
    flushes.set_flushing(true);
    flushes.set_flushing(false);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| refused(flushes.acquire(1, Patience::Endless)));
        rig.until(|state| state.queue.waiting() == 1);
        flushes.set_flushing(true);
        assert!(matches!(waiting.join().unwrap(), Refused::Flushing));
    });
    assert_eq!(rig.batcher.stats().waiting, 0);
    rig.permit(2);
}

#[test]
fn a_failing_run_fails_its_frames_and_no_others() {
    let rig = rig(BatchSize::Any);
    let stream = rig.batcher.attach(2).unwrap();
    let (a, b) =
        (stream.acquire(1, Patience::Endless).unwrap(), stream.acquire(1, Patience::Endless).unwrap());
    let (a, b) = (submit(a, POISON, PATIENCE), submit(b, 0.5, PATIENCE));
    rig.permit(2);
    assert!(matches!(a.wait(), Outcome::Failed(error) if error.message == "poisoned"));
    assert!(matches!(b.wait(), Outcome::Failed(_)));
    assert_eq!(confidence(&submit(stream.acquire(1, Patience::Endless).unwrap(), 0.6, Duration::ZERO)), 0.6);
    assert!(!rig.batcher.is_lost());
}

#[test]
fn a_panic_loses_the_engine_for_every_stream() {
    let rig = rig(BatchSize::Any);
    let (one, two) = (rig.batcher.attach(1).unwrap(), rig.batcher.attach(1).unwrap());
    let ran = submit(one.acquire(1, Patience::Endless).unwrap(), PANIC, Duration::ZERO);
    rig.run();
    let full = two.acquire(1, Patience::Endless).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| refused(one.acquire(1, Patience::Endless)));
        rig.until(|state| state.queue.waiting() == 1);
        rig.permit(1);
        assert!(matches!(ran.wait(), Outcome::EngineLost(error) if error.message.contains("fake.onnx")));
        assert!(matches!(waiting.join().unwrap(), Refused::EngineLost(_)));
    });
    // A slot that was still being filled, and later requests.
    assert!(matches!(submit(full, 0.5, Duration::ZERO).wait(), Outcome::EngineLost(_)));
    assert!(matches!(refused(two.acquire(1, Patience::Endless)), Refused::EngineLost(_)));
    assert!(matches!(refused(two.acquire(1, Patience::None)), Refused::EngineLost(_)));
    assert!(rig.batcher.is_lost());
}

#[test]
fn a_panic_beside_another_run_loses_the_engine_and_not_that_run() {
    let rig = rig_with(BatchSize::Any, 3, usize::MAX);
    let stream = rig.batcher.attach(1).unwrap();
    // The first to run gets the first permission.
    let panics = submit(stream.acquire(1, Patience::Endless).unwrap(), PANIC, Duration::ZERO);
    rig.run();
    rig.until(|state| state.queue.running() == 1);
    let runs = submit(stream.acquire(1, Patience::Endless).unwrap(), 0.5, Duration::ZERO);
    rig.run();
    let being_filled = stream.acquire(1, Patience::Endless).unwrap();
    rig.permit(1);
    assert!(matches!(panics.wait(), Outcome::EngineLost(_)));
    assert!(matches!(refused(stream.acquire(1, Patience::Endless)), Refused::EngineLost(_)));
    assert!(matches!(submit(being_filled, 0.5, Duration::ZERO).wait(), Outcome::EngineLost(_)));
    assert!(matches!(runs.outcome(), Outcome::Pending));
    rig.permit(1);
    assert_eq!(confidence(&runs), 0.5);
    let engine = rig.engine.clone();
    rig.until(|state| state.workers == 0);
    drop((stream, rig));
    assert!(engine.upgrade().is_none());
}

#[test]
fn the_end_leaves_nobody_waiting() {
    let Rig { batcher, permissions, runs, .. } = rig(BatchSize::Any);
    let stream = batcher.attach(2).unwrap();
    let running = submit(stream.acquire(1, Patience::Endless).unwrap(), 0.5, Duration::ZERO);
    runs.recv_timeout(PATIENCE).unwrap();
    let handed_in = submit(stream.acquire(1, Patience::Endless).unwrap(), 0.5, Duration::ZERO);
    let being_filled = stream.acquire(1, Patience::Endless).unwrap();
    {
        let mut state = batcher.shared.state.lock();
        (state.stop, state.exiting) = (true, true);
    }
    permissions.send(()).unwrap();
    assert!(matches!(running.wait(), Outcome::Done), "a run in progress is completed");
    assert!(matches!(handed_in.wait(), Outcome::Cancelled));
    assert!(matches!(submit(being_filled, 0.5, Duration::ZERO).wait(), Outcome::Cancelled));
    assert!(matches!(refused(stream.acquire(1, Patience::Endless)), Refused::Flushing));
    drop((stream, batcher));
}

#[test]
fn an_engine_ends_with_its_last_stream() {
    let Rig { batcher, permissions, runs, .. } = rig(BatchSize::Any);
    let streams = [batcher.attach(1).unwrap(), batcher.attach(1).unwrap()];
    drop(batcher);
    let ticket = submit(streams[0].acquire(1, Patience::Endless).unwrap(), 0.5, Duration::ZERO);
    permissions.send(()).unwrap();
    assert_eq!(confidence(&ticket), 0.5);
    drop(streams);
    runs.recv().unwrap();
    assert!(runs.recv().is_err(), "the engine was dropped");
}
