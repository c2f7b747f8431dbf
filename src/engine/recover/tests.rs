//! The ladder by tables; and a GPU that fails as the test says, behind a real batcher with its streams and workers.

use super::*;
use crate::batch::batcher::tests::{confidence, firsts, show, spec, submit};
use crate::batch::{Batcher, Ledger, Outcome, Patience, Stream};
use crate::engine::BatchSize;
use crate::engine::active::{ActiveDevice, Change};
use crate::memory::budget::HOST;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use EngineErrorKind::{DeviceLost, OutOfMemory};
use Step::{Anew, Cpu, GiveUp};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_session_is_made_anew_before_the_cpu_does() {
    for (allowed, last) in [(true, Cpu), (false, GiveUp)] {
        let mut ladder = Ladder::default();
        assert_eq!(ladder.failed(false, allowed), Anew);
        assert_eq!(ladder.failed(true, allowed), last);
        ladder.cpu_failed();
        assert_eq!(ladder.failed(true, allowed), GiveUp);
    }
}

#[test]
fn further_sessions_come_after_more_and_more_runs() {
    let mut ladder = Ladder::default();
    let mut gaps = Vec::new();
    let mut gap = 0;
    while gaps.len() < 14 {
        gap += 1;
        if ladder.failed(false, false) == Anew {
            gaps.push(std::mem::take(&mut gap));
            assert_eq!(ladder.failed(true, false), GiveUp);
        }
    }
    let wait = MAX_WAIT + 1;
    assert_eq!(gaps, [1, 2, 3, 5, 9, 17, 33, 65, 129, 257, 513, wait, wait, wait]);
}

#[test]
fn all_is_well_again_after_many_runs_that_are() {
    let mut ladder = Ladder::default();
    ladder.ran();
    assert_eq!(ladder, Ladder::default());
    ladder.failed(false, true);
    ladder.failed(true, true);
    (1..STEADY).for_each(|_| ladder.ran());
    assert_ne!(ladder, Ladder::default());
    ladder.ran();
    assert_eq!(ladder, Ladder::default());
    // One that fails now and then is not set up anew each time.
    let mut steps = Vec::new();
    for _ in 0..4 {
        steps.push(ladder.failed(false, true));
        ladder.ran();
    }
    assert_eq!(steps, [Anew, Anew, Cpu, Anew]);
}

type Rule = Box<dyn FnMut(bool, &[f32]) -> Option<EngineErrorKind> + Send>;
type Making = Box<dyn FnMut(bool) -> Option<EngineErrorKind> + Send>;

/// The GPU and the CPU of a test. In `bool`s the CPU is true.
struct World {
    /// How the run of these frames ends.
    rule: Mutex<Rule>,
    making: Mutex<Making>,
    spec: ModelSpec,
    /// Of sessions that follow the first.
    later: Mutex<ModelSpec>,
    /// Frames of each run.
    runs: Mutex<Vec<(bool, usize)>>,
    /// Sessions that were made after the first.
    made: Mutex<Vec<bool>>,
    live: AtomicUsize,
    running: AtomicUsize,
    allowed: AtomicBool,
    exiting: AtomicBool,
    /// What the GPU held counts as given back.
    moved: AtomicBool,
    /// A run on the GPU says that it has begun, and waits.
    begun: Mutex<Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>>,
    /// Whether the batch of each run came with what a session has left with it.
    bound: Mutex<Vec<bool>>,
    broken: AtomicUsize,
}

struct Session {
    world: Arc<World>,
    spec: ModelSpec,
    cpu: bool,
}

impl Session {
    fn make(world: &Arc<World>, spec: ModelSpec, cpu: bool) -> Box<dyn Engine> {
        // One at a time, or there would be twice the memory.
        world.check(world.live.fetch_add(1, Ordering::SeqCst) == 0);
        Box::new(Self { world: world.clone(), spec, cpu })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.world.live.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Engine for Session {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn run(
        &self,
        batch: &mut BatchTensor,
        frames: Range<usize>,
        read: &mut dyn FnMut(Output<'_>),
    ) -> Result<(), EngineError> {
        let world = &self.world;
        world.running.fetch_add(1, Ordering::SeqCst);
        world.runs.lock().push((self.cpu, frames.len()));
        world.bound.lock().push(batch.binding.is_some());
        batch.binding = Some(Box::new(self.cpu));
        let waits = if self.cpu { None } else { world.begun.lock().take() };
        if let Some((begun, go_on)) = waits {
            begun.send(()).unwrap();
            world.check(go_on.recv_timeout(PATIENCE).is_ok());
        }
        let values = firsts(&self.spec, batch, &frames);
        let failure = (world.rule.lock())(self.cpu, &values);
        if failure.is_none() {
            show(&self.spec, &values, read);
        }
        world.running.fetch_sub(1, Ordering::SeqCst);
        failure.map_or(Ok(()), |kind| Err(EngineError::new(kind, "it failed", "")))
    }
}

struct Maker(Arc<World>);

impl Maker {
    fn make(&self, cpu: bool) -> Result<Box<dyn Engine>, EngineError> {
        let world = &self.0;
        world.check(world.running.load(Ordering::SeqCst) == 0);
        world.made.lock().push(cpu);
        let failure = (world.making.lock())(cpu);
        match failure {
            Some(kind) => Err(EngineError::new(kind, "it was not made", "")),
            None => Ok(Session::make(world, world.later.lock().clone(), cpu)),
        }
    }
}

impl Sessions for Maker {
    fn anew(&self) -> Result<Box<dyn Engine>, EngineError> {
        self.make(false)
    }

    fn on_cpu(&self, agrees: Agrees<'_>) -> Result<Box<dyn Engine>, EngineError> {
        let engine = self.make(true)?;
        agrees(engine.spec())?;
        self.0.moved.store(true, Ordering::Relaxed);
        Ok(engine)
    }

    fn cpu_allowed(&self) -> bool {
        self.0.allowed.load(Ordering::Relaxed)
    }

    fn exiting(&self) -> bool {
        self.0.exiting.load(Ordering::Relaxed)
    }
}

impl World {
    /// A worker must not panic over a test's own doubts.
    fn check(&self, well: bool) {
        self.broken.fetch_add(usize::from(!well), Ordering::SeqCst);
    }

    fn made(&self) -> Vec<bool> {
        self.made.lock().clone()
    }
}

struct Rig {
    world: Arc<World>,
    engine: Arc<Recovering>,
    batcher: Arc<Batcher>,
}

fn rig(batch: BatchSize, allowed: bool, rule: Rule) -> Rig {
    let device = ActiveDevice::new("cuda:0");
    let spec = ModelSpec { callers: 2, device, ..spec(batch) };
    let world = Arc::new(World {
        rule: Mutex::new(rule),
        making: Mutex::new(Box::new(|_| None)),
        later: Mutex::new(ModelSpec { device: ActiveDevice::new("another"), ..spec.clone() }),
        spec,
        runs: Default::default(),
        made: Default::default(),
        live: Default::default(),
        running: Default::default(),
        allowed: allowed.into(),
        exiting: Default::default(),
        moved: Default::default(),
        begun: Default::default(),
        bound: Default::default(),
        broken: Default::default(),
    });
    let first = Session::make(&world, world.spec.clone(), false);
    let engine = Arc::new(Recovering::new(first, Box::new(Maker(world.clone()))));
    let batcher = Batcher::new(engine.clone(), Ledger::new(&HOST, "fake.onnx")).unwrap();
    Rig { world, engine, batcher: Arc::new(batcher) }
}

impl Rig {
    /// Runs frames of these values, in one batch where nobody else is there.
    fn run(&self, stream: &Stream, values: &[f32]) -> Vec<Outcome> {
        let tickets: Vec<_> = values
            .iter()
            .map(|&value| {
                // The batch waits for as many as fill it or hurry it.
                let slot = stream.acquire(1, Patience::Endless).ok().unwrap();
                submit(slot, value, PATIENCE)
            })
            .collect();
        stream.hurry();
        let outcomes = tickets.iter().map(|ticket| ticket.wait());
        let outcomes: Vec<_> = outcomes.collect();
        for ((ticket, outcome), value) in tickets.iter().zip(&outcomes).zip(values) {
            if matches!(outcome, Outcome::Done) {
                assert_eq!(confidence(ticket), *value);
            }
        }
        outcomes
    }

    fn well(&self, stream: &Stream, values: &[f32]) {
        let outcomes = self.run(stream, values);
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Done)), "{outcomes:?}");
    }

    fn fails(&self, stream: &Stream, values: &[f32]) -> Arc<EngineError> {
        match self.run(stream, values).remove(0) {
            Outcome::Failed(error) => error,
            outcome => panic!("{outcome:?}"),
        }
    }

    fn runs(&self) -> Vec<(bool, usize)> {
        std::mem::take(&mut self.world.runs.lock())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.world.broken.load(Ordering::SeqCst), 0, "see World::check");
        }
    }
}

/// The first `times` runs on the GPU fail so.
fn fails_first(mut times: usize, kind: EngineErrorKind) -> Rule {
    Box::new(move |cpu, _| {
        let fails = !cpu && times > 0;
        times -= usize::from(fails);
        fails.then_some(kind)
    })
}

const GPU: bool = false;
const CPU: bool = true;

#[test]
fn frames_run_again_on_a_new_session() {
    for (kind, values) in [(OutOfMemory, &[0.5][..]), (DeviceLost, &[0.5, 0.6, 0.7])] {
        let rig = rig(BatchSize::Any, false, fails_first(1, kind));
        let stream = rig.batcher.attach(4).unwrap();
        rig.well(&stream, values);
        assert_eq!((rig.runs(), rig.world.made()), (vec![(GPU, values.len()); 2], vec![GPU]));
        assert_eq!(*rig.world.bound.lock(), [false; 2], "nothing of the last session is used");
        rig.well(&stream, &[0.8]);
        assert_eq!((rig.world.made().len(), &*rig.batcher.spec().device.name()), (1, "cuda:0"));
    }
}

#[test]
fn several_frames_without_memory_are_split_by_who_runs_them() {
    let rule: Rule = Box::new(|_, values| (values.len() > 2).then_some(OutOfMemory));
    let rig = rig(BatchSize::Any, true, rule);
    let stream = rig.batcher.attach(4).unwrap();
    rig.well(&stream, &[0.2, 0.4, 0.6, 0.8]);
    assert_eq!((rig.runs(), rig.world.made()), (vec![(GPU, 4), (GPU, 2), (GPU, 2)], vec![]));
}

#[test]
fn a_batch_that_cannot_be_split_has_its_session_made_anew() {
    let rig = rig(BatchSize::Fixed(3), true, fails_first(2, OutOfMemory));
    let stream = rig.batcher.attach(3).unwrap();
    rig.well(&stream, &[0.2, 0.4, 0.6]);
    assert_eq!((rig.runs(), rig.world.made()), (vec![(GPU, 3), (GPU, 3), (CPU, 3)], vec![GPU, CPU]));
}

#[test]
fn what_is_to_be_restarted_for_the_gpu_is_told() {
    for (kind, restart) in [(OutOfMemory, "restart the pipeline"), (DeviceLost, "restart the process")] {
        let rig = rig(BatchSize::Any, true, fails_first(usize::MAX, kind));
        let stream = rig.batcher.attach(1).unwrap();
        rig.well(&stream, &[0.5]);
        let change = rig.batcher.spec().device.news(&AtomicU32::new(0)).unwrap();
        assert!(change.reason.contains(restart), "{}", change.reason);
    }
    let rig = rig(BatchSize::Any, false, fails_first(usize::MAX, OutOfMemory));
    let stream = rig.batcher.attach(1).unwrap();
    assert_eq!(rig.fails(&stream, &[0.5]).message, "it failed");
}

#[test]
fn the_cpu_is_the_last_resort_and_runs_one_frame_at_a_time() {
    let rig = rig(BatchSize::Steps, true, fails_first(usize::MAX, DeviceLost));
    let stream = rig.batcher.attach(4).unwrap();
    rig.well(&stream, &[0.2, 0.4, 0.6, 0.8]);
    assert_eq!(rig.runs(), [(GPU, 4), (GPU, 4), (CPU, 1), (CPU, 1), (CPU, 1), (CPU, 1)]);
    assert_eq!(rig.world.made(), [GPU, CPU]);
    let seen = AtomicU32::new(0);
    let Some(Change { device, reason, first: true }) = rig.batcher.spec().device.news(&seen) else {
        panic!()
    };
    assert_eq!(&*device, "cpu");
    for words in ["cuda:0 failed", "it failed", "cpu runs the model fake.onnx", "restart"] {
        assert!(reason.contains(words), "{words}: {reason}");
    }
    // Batches are as small from now on, and nothing is made any more.
    rig.well(&stream, &[0.3]);
    assert_eq!((rig.runs(), rig.world.made().len()), (vec![(CPU, 1)], 2));
    assert_eq!(rig.batcher.stats().batch_limit, 1);
    // Its failures are its own.
    *rig.world.rule.lock() = Box::new(|_, _| Some(DeviceLost));
    assert_eq!(rig.fails(&stream, &[0.4]).message, "it failed");
    assert_eq!(rig.world.made().len(), 2);
}

#[test]
fn without_consent_frames_fail_and_sessions_are_made_ever_more_seldom() {
    let rig = rig(BatchSize::Any, false, fails_first(usize::MAX, DeviceLost));
    let stream = rig.batcher.attach(1).unwrap();
    for run in 0..40 {
        let error = rig.fails(&stream, &[0.5]);
        assert!(
            error.kind == DeviceLost && error.message.starts_with("it failed; restart the process"),
            "run {run}: {error}"
        );
    }
    assert_eq!(rig.world.made(), [GPU; 6]);
    *rig.world.rule.lock() = Box::new(|_, _| None);
    rig.well(&stream, &[0.5]);
    assert!(!rig.batcher.is_lost());
}

#[test]
fn one_objection_keeps_an_engine_from_the_cpu() {
    let consent = Consent::default();
    assert!(consent.is_given());
    consent.object();
    consent.object();
    consent.withdraw();
    assert!(!consent.is_given());
    consent.withdraw();
    assert!(consent.is_given());
}

#[test]
fn where_no_session_can_be_made_that_is_what_is_told_until_one_can() {
    let rig = rig(BatchSize::Any, true, fails_first(1, DeviceLost));
    let cpu = |cpu| if cpu { EngineErrorKind::NoBudget } else { DeviceLost };
    *rig.world.making.lock() = Box::new(move |on| Some(cpu(on)));
    let stream = rig.batcher.attach(1).unwrap();
    let error = rig.fails(&stream, &[0.5]);
    for words in ["it failed", "could not be made anew", "nor can the CPU"] {
        assert!(error.message.contains(words), "{error}");
    }
    assert_eq!(error.detail, "it was not made");
    assert_eq!(rig.world.made(), [GPU, CPU]);
    // Not for every frame.
    assert!(rig.fails(&stream, &[0.5]).message.contains("nor can the CPU"));
    assert_eq!(rig.world.made(), [GPU, CPU]);
    *rig.world.making.lock() = Box::new(|_| None);
    rig.well(&stream, &[0.6]);
    assert_eq!((rig.world.made(), rig.runs().len()), (vec![GPU, CPU, GPU], 2));
}

#[test]
fn a_shortage_of_memory_is_not_taken_for_a_lost_gpu() {
    // What the GPU failed with, and why there is no session on it nor, where that is tried, on the CPU.
    for (failed, [on_gpu, on_cpu], allowed, kind) in [
        (OutOfMemory, [OutOfMemory; 2], false, OutOfMemory),
        (DeviceLost, [OutOfMemory; 2], false, OutOfMemory),
        (OutOfMemory, [OutOfMemory, EngineErrorKind::Run], true, OutOfMemory),
        (DeviceLost, [DeviceLost, EngineErrorKind::NoBudget], true, EngineErrorKind::NoBudget),
        (OutOfMemory, [DeviceLost, EngineErrorKind::Run], true, DeviceLost),
    ] {
        let rig = rig(BatchSize::Any, allowed, fails_first(1, failed));
        *rig.world.making.lock() = Box::new(move |cpu| Some(if cpu { on_cpu } else { on_gpu }));
        let stream = rig.batcher.attach(1).unwrap();
        let first = rig.fails(&stream, &[0.5]);
        assert_eq!(
            (first.kind, first.message.starts_with("it failed; the session")),
            (kind, true),
            "{first}"
        );
        for _ in 0..12 {
            let error = rig.fails(&stream, &[0.5]);
            assert_eq!((error.kind, &error.message), (first.kind, &first.message));
        }
        let tries = rig.world.made().iter().filter(|&&made| made == GPU).count();
        assert!(tries > 2, "the GPU is not tried again: {:?}", rig.world.made());
        *rig.world.making.lock() = Box::new(|_| None);
        while let Some(Outcome::Failed(_)) = rig.run(&stream, &[0.6]).pop() {}
        assert!(rig.world.made().len() < 64);
        rig.well(&stream, &[0.7]);
    }
}

#[test]
fn another_model_in_the_file_is_not_taken() {
    for allowed in [false, true] {
        let rig = rig(BatchSize::Any, allowed, fails_first(1, DeviceLost));
        rig.world.later.lock().input_size = (64, 64);
        let stream = rig.batcher.attach(1).unwrap();
        let error = rig.fails(&stream, &[0.5]);
        assert!(error.detail.contains("fake.onnx has changed"), "{error}");
        assert_eq!(
            (rig.world.made().len(), rig.world.moved.load(Ordering::Relaxed)),
            (1 + usize::from(allowed), false)
        );
    }
}

#[test]
fn other_failures_are_none_of_the_gpu_s() {
    let rig = rig(BatchSize::Any, true, fails_first(1, EngineErrorKind::Run));
    let stream = rig.batcher.attach(1).unwrap();
    assert_eq!(rig.fails(&stream, &[0.5]).kind, EngineErrorKind::Run);
    assert_eq!((rig.world.made(), rig.runs()), (vec![], vec![(GPU, 1)]));
}

#[test]
fn at_the_process_s_exit_no_session_is_made() {
    let rig = rig(BatchSize::Any, true, fails_first(usize::MAX, DeviceLost));
    rig.world.exiting.store(true, Ordering::Relaxed);
    let stream = rig.batcher.attach(1).unwrap();
    assert_eq!(rig.fails(&stream, &[0.5]).message, "it failed");
    assert!(rig.world.made().is_empty());
    // Nor a further one where it begins meanwhile.
    rig.world.exiting.store(false, Ordering::Relaxed);
    let world = Arc::downgrade(&rig.world);
    *rig.world.making.lock() = Box::new(move |_| {
        world.upgrade()?.exiting.store(true, Ordering::Relaxed);
        Some(DeviceLost)
    });
    assert!(rig.fails(&stream, &[0.5]).message.contains("could not be made anew"));
    assert_eq!(rig.world.made(), [GPU]);
}

#[test]
fn two_workers_that_fail_together_make_one_session() {
    let rig = rig(BatchSize::Any, true, fails_first(2, DeviceLost));
    let stream = rig.batcher.attach(1).unwrap();
    let (begun_in, begun) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel();
    *rig.world.begun.lock() = Some((begun_in, may_go_on));
    let first = submit(stream.acquire(1, Patience::Endless).ok().unwrap(), 0.3, Duration::ZERO);
    begun.recv_timeout(PATIENCE).unwrap();
    let second = submit(stream.acquire(1, Patience::Endless).ok().unwrap(), 0.7, Duration::ZERO);
    // The second has failed and waits for the first, which is then to fail too.
    rig.until(|| rig.engine.current.try_read().is_none());
    assert!(rig.world.made().is_empty(), "a session is made beside a run");
    go_on.send(()).unwrap();
    assert_eq!([confidence(&first), confidence(&second)], [0.3, 0.7]);
    assert_eq!((rig.world.made(), rig.runs()), (vec![GPU], vec![(GPU, 1); 4]));
}

impl Rig {
    fn until(&self, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            assert!(Instant::now() < deadline, "it never comes");
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_run_in_progress_ends_on_its_session_before_another_is_made() {
    // The first to end is the second to begin.
    let rig = rig(BatchSize::Any, false, fails_first(1, OutOfMemory));
    let stream = rig.batcher.attach(1).unwrap();
    let (begun_in, begun) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel();
    *rig.world.begun.lock() = Some((begun_in, may_go_on));
    let slow = submit(stream.acquire(1, Patience::Endless).ok().unwrap(), 0.3, Duration::ZERO);
    begun.recv_timeout(PATIENCE).unwrap();
    let fails = submit(stream.acquire(1, Patience::Endless).ok().unwrap(), 0.7, Duration::ZERO);
    rig.until(|| rig.engine.current.try_read().is_none());
    assert!(matches!(slow.outcome(), Outcome::Pending) && rig.world.made().is_empty());
    go_on.send(()).unwrap();
    assert_eq!([confidence(&slow), confidence(&fails)], [0.3, 0.7]);
    assert_eq!(rig.world.made(), [GPU]);
}

#[test]
fn a_panic_while_a_session_is_made_leaves_nobody_waiting() {
    let rig = rig(BatchSize::Any, true, fails_first(usize::MAX, DeviceLost));
    *rig.world.making.lock() = Box::new(|_| panic!("as the test wants it"));
    let (one, two) = (rig.batcher.attach(1).unwrap(), rig.batcher.attach(1).unwrap());
    let slots = [&one, &two].map(|stream| stream.acquire(1, Patience::Endless).ok().unwrap());
    let tickets = slots.map(|slot| submit(slot, 0.5, Duration::ZERO));
    for ticket in tickets {
        assert!(matches!(ticket.wait(), Outcome::EngineLost(_)));
    }
    assert!(rig.batcher.is_lost());
}

/// Every frame ends once, with its own result or an error, whatever fails when.
#[test]
fn no_frame_is_lost_or_mistaken_among_many_failures() {
    const STREAMS: usize = 4;
    const FRAMES: usize = 300;
    for seed in 0..6 {
        let mut random = fastrand::Rng::with_seed(seed);
        let rule: Rule = Box::new(move |cpu, values| match random.u32(..100) {
            0..4 => Some(DeviceLost),
            4..16 if values.len() > 1 => Some(OutOfMemory),
            4..6 if !cpu => Some(OutOfMemory),
            _ => None,
        });
        let rig = rig(BatchSize::Steps, seed % 2 == 0, rule);
        let mut random = fastrand::Rng::with_seed(seed);
        *rig.world.making.lock() = Box::new(move |_| (random.u32(..3) == 0).then_some(DeviceLost));
        let done = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for number in 0..STREAMS {
                let (stream, rig, done) = (rig.batcher.attach(4).unwrap(), &rig, &done);
                scope.spawn(move || {
                    for frame in 0..FRAMES {
                        let values = [1, 2, 3].map(|part| {
                            0.3 + (number * FRAMES * 3 + frame * 3 + part) as f32
                                / (STREAMS * FRAMES * 6) as f32
                        });
                        let outcomes = rig.run(&stream, &values[..1 + frame % 3]);
                        let well = outcomes.iter().filter(|outcome| match outcome {
                            Outcome::Done => true,
                            Outcome::Failed(_) => false,
                            outcome => panic!("{outcome:?}"),
                        });
                        done.fetch_add(well.count(), Ordering::Relaxed);
                    }
                });
            }
        });
        assert!(!rig.batcher.is_lost() && done.into_inner() > FRAMES);
    }
}
