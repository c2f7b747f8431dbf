//! The registry with engines that are none.

use super::*;
use crate::batch::Ledger;
use crate::batch::batcher::tests::{spec, submit};
use crate::batch::{Outcome, Patience};
use crate::engine::active::ActiveDevice;
use crate::engine::device::Device;
use crate::engine::{BatchSize, Engine, Memory, ModelSpec, Output};
use crate::memory::budget::HOST;
use crate::tensor::BatchTensor;
use std::ops::Range;
use std::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(60);

struct Panics(ModelSpec);

impl Engine for Panics {
    fn spec(&self) -> &ModelSpec {
        &self.0
    }

    fn run(
        &self,
        _: &mut BatchTensor,
        _: Range<usize>,
        _: &mut dyn FnMut(Output<'_>),
    ) -> Result<(), EngineError> {
        panic!("as the test wants it");
    }
}

pub fn key(model_hash: u128) -> EngineKey {
    EngineKey {
        model_hash,
        head: None,
        device: Device::Cpu,
        gpu: None,
        threads: 4,
        plan: Plan { callers: 1, threads: 4 },
    }
}

fn batcher() -> Result<Batcher, EngineError> {
    Batcher::new(Arc::new(Panics(spec(BatchSize::Any))), Ledger::new(&HOST, "fake.onnx"))
}

pub fn registry() -> &'static Registry {
    Box::leak(Box::default())
}

fn load(registry: &'static Registry, key: EngineKey, any_plan: bool) -> Lease {
    registry.get(key, any_plan, |_| batcher()).unwrap()
}

fn same(one: &Lease, other: &Lease) -> bool {
    Arc::ptr_eq(one.engine(), other.engine())
}

#[test]
fn who_leaves_the_plan_open_takes_what_is_there() {
    let registry = registry();
    let latency = key(4);
    let throughput = EngineKey { plan: Plan { callers: 4, threads: 1 }, ..key(4) };
    let first = load(registry, throughput.clone(), true);
    assert!(same(&first, &load(registry, latency.clone(), true)));
    let second = load(registry, latency.clone(), false);
    assert!(!same(&first, &second), "a plan that was asked for is kept to");
    drop(first);
    assert!(same(&second, &load(registry, throughput.clone(), true)));
    assert!(!same(&second, &load(registry, key(5), true)), "another model");
    let threads = EngineKey { threads: 2, ..latency.clone() };
    assert!(!same(&second, &load(registry, threads, true)), "threads were asked for");
}

#[test]
fn who_leaves_the_plan_open_waits_for_another_plan_s_load() {
    let throughput = || EngineKey { plan: Plan { callers: 4, threads: 1 }, ..key(6) };
    for fails in [false, true] {
        let registry = registry();
        let (begun_in, begun) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel();
        std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                let (begun_in, may_go_on) = (begun_in, may_go_on);
                registry.get(throughput(), false, |_| {
                    begun_in.send(()).unwrap();
                    may_go_on.recv_timeout(PATIENCE).unwrap();
                    match fails {
                        true => Err(EngineError::new(EngineErrorKind::Run, "no", "")),
                        false => batcher(),
                    }
                })
            });
            begun.recv_timeout(PATIENCE).unwrap();
            let second = scope.spawn(|| {
                let mut loaded = false;
                let engine = registry.get(key(6), true, |_| {
                    loaded = true;
                    batcher()
                });
                (engine.unwrap(), loaded)
            });
            go_on.send(()).unwrap();
            let first = first.join().unwrap();
            let (second, loaded) = second.join().unwrap();
            assert_eq!((first.is_err(), loaded), (fails, fails));
            assert!(first.is_ok_and(|first| same(&first, &second)) != fails);
        });
    }
}

#[test]
fn a_failed_load_is_tried_again_by_those_who_waited() {
    let registry = registry();
    let tries = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let outcome = registry.get(key(1), false, |_| {
                    tries.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(2));
                    Err(EngineError::new(EngineErrorKind::Run, "no", ""))
                });
                assert_eq!(outcome.err().map(|error| error.message), Some("no".to_string()));
            });
        }
    });
    assert_eq!(tries.load(Ordering::Relaxed), 8);
}

#[test]
fn a_sound_engine_is_shared_and_a_lost_one_is_loaded_anew() {
    let registry = registry();
    let get = || load(registry, key(3), false);
    let first = get();
    assert!(same(&first, &get()));
    let stream = first.engine().attach(1).unwrap();
    let slot = stream.acquire(1, Patience::Endless).ok().unwrap();
    assert!(matches!(submit(slot, 0.5, Duration::ZERO).wait(), Outcome::EngineLost(_)));
    let second = get();
    assert!(!same(&first, &second), "elements that still hold the lost one are no matter");
    drop((first, stream));
    assert!(same(&second, &get()));
    let gone = Arc::downgrade(second.engine());
    drop(second);
    assert!(gone.upgrade().is_none(), "the registry holds no engine by itself");
    get();
}

#[test]
fn a_panic_while_loading_leaves_nobody_waiting() {
    let registry = registry();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = registry.get(key(2), false, |_| panic!("in the load"));
    }));
    assert!(outcome.is_err());
    assert!(
        registry.get(key(2), false, |_| Err(EngineError::new(EngineErrorKind::Run, "again", ""))).is_err()
    );
}

fn leave(lease: Lease, keep_alive: Duration) {
    lease.keep_for(keep_alive);
    drop(lease);
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn an_idle_engine_is_there_for_who_returns() {
    let registry = registry();
    let (one, two) = (load(registry, key(7), false), load(registry, key(7), false));
    let engine = Arc::downgrade(one.engine());
    leave(one, HOUR);
    assert_eq!(registry.idle_engines(), 0, "it is in use");
    leave(two, Duration::ZERO);
    assert_eq!(registry.idle_engines(), 1, "the longest of all counts");
    let back = load(registry, key(7), false);
    assert!(std::ptr::eq(Arc::as_ptr(back.engine()), engine.as_ptr()));
    assert_eq!(registry.idle_engines(), 0);
    leave(back, Duration::ZERO);
    assert_eq!(registry.evict_oldest(), Some(0));
    assert!(engine.upgrade().is_none());
    assert_eq!((registry.evict_oldest(), registry.reliefs().len()), (None, 0));
}

#[test]
fn a_lost_engine_is_not_kept() {
    let registry = registry();
    let lease = load(registry, key(8), false);
    let stream = lease.engine().attach(1).unwrap();
    let slot = stream.acquire(1, Patience::Endless).ok().unwrap();
    assert!(matches!(submit(slot, 0.5, Duration::ZERO).wait(), Outcome::EngineLost(_)));
    drop(stream);
    leave(lease, HOUR);
    assert_eq!(registry.idle_engines(), 0);
}

#[test]
fn who_was_used_least_recently_makes_room_first() {
    let registry = registry();
    let leases = [1, 2, 3].map(|model| load(registry, key(model), false));
    let engines = leases.each_ref().map(|lease| Arc::downgrade(lease.engine()));
    let [one, two, three] = leases;
    [two, one].into_iter().for_each(|lease| leave(lease, HOUR));
    // Back for a moment, which makes it the latest.
    leave(load(registry, key(2), false), HOUR);
    let tries = AtomicUsize::new(0);
    let there = || engines.each_ref().map(|engine| engine.upgrade().is_some());
    let mut seen = Vec::new();
    let outcome: Result<(), _> = registry.with_room(&Device::Cpu, || {
        tries.fetch_add(1, Ordering::Relaxed);
        seen.push(there());
        Err(EngineError::new(EngineErrorKind::NoBudget, "no", ""))
    });
    assert_eq!(outcome.unwrap_err().message, "no");
    assert_eq!(seen, [[true, true, true], [false, true, true], [false, false, true]]);
    // Another failure is no reason for it.
    leave(three, HOUR);
    let failed: Result<(), _> =
        registry.with_room(&Device::Cpu, || Err(EngineError::new(EngineErrorKind::Run, "no", "")));
    assert!(failed.is_err() && registry.idle_engines() == 1);
    registry.with_room(&Device::Cpu, || Ok(())).unwrap();
}

#[test]
fn room_is_made_where_it_is_short() {
    let devices = [Device::Cuda(0), Device::Cpu, Device::Cuda(1), Device::TensorRt(1)];
    // What is short of memory, and for whom; who stays, after each try.
    for (memory, device, stays) in [
        (
            Memory::Gpu,
            Device::Cuda(1),
            &["cuda:0 cpu cuda:1 tensorrt:1", "cuda:0 cpu tensorrt:1", "cuda:0 cpu"][..],
        ),
        (
            Memory::Host,
            Device::Cuda(1),
            &[
                "cuda:0 cpu cuda:1 tensorrt:1",
                "cuda:0 cuda:1 tensorrt:1",
                "cuda:1 tensorrt:1",
                "tensorrt:1",
                "",
            ],
        ),
    ] {
        let registry = registry();
        for device in &devices {
            leave(on_device(registry, device), HOUR);
        }
        let mut seen = Vec::new();
        let failed: Result<(), _> = registry.with_room(&device, || {
            let there = devices.iter().filter(|device| {
                let key = EngineKey { device: (*device).clone(), ..key(1) };
                registry.engines.lock().known.as_ref().is_some_and(|known| known.contains_key(&key))
            });
            seen.push(there.map(Device::to_string).collect::<Vec<_>>().join(" "));
            Err(EngineError::new(EngineErrorKind::NoBudget, "no", "").of(memory))
        });
        assert!(failed.is_err());
        assert_eq!(seen, stays, "{memory:?}");
    }
}

#[test]
fn an_idle_engine_ends_when_its_time_is_over_and_no_other() {
    let registry = registry();
    let (short, long) = (load(registry, key(1), false), load(registry, key(2), false));
    let engines = [&short, &long].map(|lease| Arc::downgrade(lease.engine()));
    leave(long, HOUR);
    leave(short, Duration::from_millis(1));
    let deadline = Instant::now() + PATIENCE;
    while engines[0].upgrade().is_some() {
        assert!(Instant::now() < deadline, "it never ends");
        std::thread::yield_now();
    }
    assert!(registry.idle_engines() == 1 && registry.engines.lock().keeper);
    registry.evict_oldest();
    while registry.engines.lock().keeper {
        assert!(Instant::now() < deadline, "the thread stays without need");
        std::thread::yield_now();
    }
}

fn wanted(device: &str, fallback: Option<bool>, threads: usize) -> Wanted {
    Wanted {
        model: "fake.onnx".into(),
        library: None,
        head: None,
        device: Device::parse(device).unwrap(),
        gpu: Default::default(),
        fallback,
        gpu_budget: 0,
        element: "d0".into(),
        threads,
        hint: Hint::Auto,
        detectors: threads,
        max_batch: 0,
        keep_alive: Duration::ZERO,
        cache: None,
    }
}

#[test]
fn threads_tell_engines_apart_on_a_processor_and_options_on_a_gpu() {
    let key = |wanted: &Wanted| EngineKey::new(wanted, 1, &wanted.device);
    let [few, many] = [2, 8].map(|threads| wanted("cuda:1", None, threads));
    assert_eq!(key(&few), key(&many));
    assert_ne!(key(&few), key(&Wanted { device: Device::Cuda(0), ..few.clone() }));
    let graph = gpu::Options { graph: true, ..Default::default() };
    assert_ne!(key(&few), key(&Wanted { gpu: graph, ..few.clone() }));
    let exact = gpu::Options { tf32: false, ..Default::default() };
    assert_ne!(key(&few), key(&Wanted { gpu: exact, ..few.clone() }));
    let [few, many] = [2, 8].map(|threads| wanted("cpu", None, threads));
    assert_ne!(key(&few), key(&many));
    assert_eq!(key(&few), key(&Wanted { gpu: graph, ..few.clone() }));
}

fn on_device(registry: &'static Registry, device: &Device) -> Lease {
    let spec = ModelSpec { device: ActiveDevice::new(&device.to_string()), ..spec(BatchSize::Any) };
    let key = EngineKey { device: device.clone(), ..key(1) };
    let batcher = Batcher::new(Arc::new(Panics(spec)), Ledger::new(&HOST, "fake.onnx"));
    registry.get(key, false, |_| batcher).unwrap()
}

fn on_gpu(registry: &'static Registry, consents: &mpsc::Sender<Arc<Consent>>) -> Lease {
    let key = EngineKey { device: Device::Cuda(0), ..key(1) };
    registry
        .get(key, false, |consent| {
            consents.send(consent.clone()).unwrap();
            let spec = ModelSpec { device: ActiveDevice::new("cuda:0"), ..spec(BatchSize::Any) };
            Batcher::new(Arc::new(Panics(spec)), Ledger::new(&HOST, "fake.onnx"))
        })
        .unwrap()
}

#[test]
fn the_cpu_takes_a_gpu_s_place_where_every_element_allows_it() {
    let (registry, (consents_in, consents)) = (registry(), mpsc::channel());
    let [mut auto, mut named] = [(); 2].map(|()| on_gpu(registry, &consents_in));
    let consent = consents.try_recv().unwrap();
    auto.has(&wanted("auto", None, 1), None, None);
    assert!(consent.is_given());
    named.has(&wanted("cuda", None, 1), None, None);
    assert!(!consent.is_given());
    drop(named);
    assert!(consent.is_given());
    let mut strict = on_gpu(registry, &consents_in);
    strict.has(&wanted("auto", Some(false), 1), None, None);
    assert!(!consent.is_given() && consents.try_recv().is_err(), "it is one engine");
}

#[test]
fn an_engine_that_has_left_its_gpu_is_for_those_alone_who_have_it() {
    let (registry, (consents_in, _consents)) = (registry(), mpsc::channel());
    let [first, second] = [(); 2].map(|()| on_gpu(registry, &consents_in));
    assert!(same(&first, &second));
    first.engine().spec().device.move_to("cpu", "it is lost");
    let seen = AtomicU32::new(0);
    assert_eq!(
        second.news(&seen).map(|change| (change.first, &*change.reason == "it is lost")),
        Some((true, true))
    );
    assert_eq!(second.news(&seen), None);
    let third = on_gpu(registry, &consents_in);
    assert!(!same(&first, &third));
    assert_eq!(registry.reliefs().len(), 2, "those who have it give back memory as ever");
    drop(third);
    assert_eq!(registry.reliefs().len(), 1);
    leave(first, HOUR);
    leave(second, HOUR);
    assert_eq!((registry.idle_engines(), registry.reliefs().len()), (0, 0));
}

#[test]
fn why_it_is_another_device_is_told_to_those_who_asked_for_that_one() {
    let registry = registry();
    let [plain, mut failed, mut one, mut two, mut three] = [(); 5].map(|()| load(registry, key(1), false));
    let why = |text: &str, kind| Some(Elsewhere { text: text.into(), causes: vec![(Device::Cuda(0), kind)] });
    // An element that does not start tells nobody.
    failed.has(&wanted("auto", None, 1), None, why("no driver", EngineErrorKind::Library));
    drop(failed);
    let told = |lease: &Lease, seen: &AtomicU32| {
        lease.news(seen).map(|change| (change.reason.to_string(), change.first))
    };
    for (lease, reason, kind, first) in [
        (&mut one, "no driver", EngineErrorKind::Library, true),
        (&mut two, "no driver, in other words", EngineErrorKind::Library, false),
        (&mut three, "too small", EngineErrorKind::NoBudget, true),
    ] {
        lease.has(&wanted("auto", None, 1), None, why(reason, kind));
        let seen = AtomicU32::new(0);
        assert_eq!(told(lease, &seen), Some((reason.into(), first)));
        assert_eq!(told(lease, &seen), None);
    }
    assert_eq!(told(&plain, &AtomicU32::new(0)), None);
    assert_eq!((plain.usual_batch(), one.attach(0).unwrap().batcher().stats().batch_limit), (1, 1));
}
