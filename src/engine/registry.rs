//! One engine per model, however many elements ask for it.
//!
//! Loading takes place outside the registry's lock, once: whoever asks for the same engine meanwhile waits
//! for that load and shares its outcome. The registry holds engines weakly; the last element to let go of
//! one ends it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use xxhash_rust::xxh3::Xxh3;

use super::onnx::{OnnxEngine, SessionOptions};
use super::plan::{Hint, Plan};
use super::{EngineError, EngineErrorKind};
use crate::batch::{Batcher, batcher};
use crate::decode::Head;

/// An engine as an element wants it.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub model: PathBuf,
    pub library: Option<PathBuf>,
    pub head: Option<Head>,
    /// Of all runs together, at least 1.
    pub threads: usize,
    pub hint: Hint,
    /// Detectors that this process has now, for [`Hint::Auto`].
    pub detectors: usize,
}

/// What must agree for two elements to share an engine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct EngineKey {
    /// Of the file's content: copies and links of one model are one model.
    model_hash: u128,
    head: Option<Head>,
    threads: usize,
    plan: Plan,
}

impl EngineKey {
    /// Whether the other is for the same model, differing in the plan at most.
    fn is_akin(&self, other: &Self) -> bool {
        *self == Self { plan: self.plan, ..other.clone() }
    }
}

enum Known {
    Loading,
    Loaded(Weak<Batcher>),
}

#[derive(Default)]
struct Registry {
    engines: Mutex<Option<HashMap<EngineKey, Known>>>,
    /// A load ended, well or not.
    settled: Condvar,
}

static REGISTRY: Registry = Registry { engines: Mutex::new(None), settled: Condvar::new() };

/// The engine that is wanted, loaded now unless another element already has it. One who leaves the plan open takes
/// an engine with any.
///
/// # Errors
/// See [`super::runtime::environment`] and [`OnnxEngine::load`]; a model file that cannot be read is
/// [`EngineErrorKind::ModelMissing`].
pub fn get(wanted: &Wanted) -> Result<Arc<Batcher>, EngineError> {
    let model_hash = hash_file(&wanted.model).map_err(|error| {
        EngineError::new(
            EngineErrorKind::ModelMissing,
            format!(
                "the model {} cannot be read, {error}: set model-file to the path of an ONNX file",
                wanted.model.display()
            ),
            "",
        )
    })?;
    // Also checks, for an engine that is there already, that the same library is meant.
    super::runtime::environment(wanted.library.as_deref())?;
    let plan = Plan::new(wanted.hint, wanted.threads, wanted.detectors);
    let key = EngineKey { model_hash, head: wanted.head, threads: wanted.threads, plan };
    REGISTRY.get(key, wanted.hint == Hint::Auto, || {
        let engine = OnnxEngine::load(&SessionOptions {
            model: wanted.model.clone(),
            library: wanted.library.clone(),
            head: wanted.head,
            plan,
        })?;
        stop_workers_at_exit();
        Batcher::new(Arc::new(engine))
    })
}

impl Known {
    /// The engine, where it is still of use.
    fn engine(&self) -> Option<Arc<Batcher>> {
        match self {
            Known::Loading => None,
            Known::Loaded(engine) => engine.upgrade().filter(|engine| !engine.is_lost()),
        }
    }
}

impl Registry {
    /// With `any_plan`, an engine that differs from `key` in nothing else will do.
    fn get(
        &self,
        key: EngineKey,
        any_plan: bool,
        load: impl FnOnce() -> Result<Batcher, EngineError>,
    ) -> Result<Arc<Batcher>, EngineError> {
        let mut engines = self.engines.lock();
        loop {
            let known = engines.get_or_insert_default();
            let mut akin = known.iter().filter(|(other, _)| match any_plan {
                true => key.is_akin(other),
                false => key == **other,
            });
            if let Some(engine) = akin.clone().find_map(|(_, known)| known.engine()) {
                return Ok(engine);
            }
            if akin.any(|(_, known)| matches!(known, Known::Loading)) {
                self.settled.wait(&mut engines);
                continue;
            }
            known.insert(key.clone(), Known::Loading);
            break;
        }
        // Checked with the entry in place, as the exit looks for entries after it has said so.
        let exiting = super::runtime::exiting();
        drop(engines);

        // A panic in the load must not leave the others waiting for it.
        let guard = Settle { registry: self, key: &key, outcome: None };
        if exiting {
            return Err(super::runtime::too_late());
        }
        load().map(|engine| guard.loaded(Arc::new(engine)))
    }
}

/// Ends the entry's `Loading` in every case.
struct Settle<'a> {
    registry: &'a Registry,
    key: &'a EngineKey,
    outcome: Option<Weak<Batcher>>,
}

impl Settle<'_> {
    fn loaded(mut self, engine: Arc<Batcher>) -> Arc<Batcher> {
        self.outcome = Some(Arc::downgrade(&engine));
        engine
    }
}

impl Drop for Settle<'_> {
    fn drop(&mut self) {
        let mut engines = self.registry.engines.lock();
        let engines = engines.get_or_insert_default();
        // Entries whose engine is gone are swept here, so that they do not pile up.
        engines.retain(|_, known| match known {
            Known::Loading => true,
            Known::Loaded(engine) => engine.strong_count() > 0,
        });
        match self.outcome.take() {
            Some(engine) => engines.insert(self.key.clone(), Known::Loaded(engine)),
            None => engines.remove(self.key),
        };
        self.registry.settled.notify_all();
    }
}

fn hash_file(path: &Path) -> io::Result<u128> {
    let mut file = File::open(path)?;
    let mut hash = Xxh3::new();
    let mut chunk = vec![0; 1 << 16];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hash.digest128()),
            read => hash.update(&chunk[..read]),
        }
    }
}

/// How long the process's exit waits for loads, and then for runs, that are in progress.
pub(super) const EXIT_PATIENCE: Duration = Duration::from_secs(5);

/// Arranges that no load or run is in progress when the process's exit tears ONNX Runtime down.
///
/// Handlers run from the last to the first, and the library registers some of its own whenever it makes another of
/// its static objects. So this is called once the library is there and again after each step that makes such objects.
pub(super) fn stop_workers_at_exit() {
    extern "C" fn stop_workers() {
        super::runtime::close(EXIT_PATIENCE);
        // At exit nobody may be waited for without end: a lock that is held is left alone.
        let Some(mut engines) = REGISTRY.engines.try_lock_for(EXIT_PATIENCE) else { return };
        let deadline = Instant::now() + EXIT_PATIENCE;
        let loading = |known: &Known| matches!(known, Known::Loading);
        while engines.iter().flat_map(HashMap::values).any(loading)
            && !REGISTRY.settled.wait_until(&mut engines, deadline).timed_out()
        {}
        drop(engines);
        batcher::quiesce(EXIT_PATIENCE);
    }
    // With a bound, for processes that load again and again.
    static TIMES: AtomicUsize = AtomicUsize::new(0);
    if TIMES.fetch_add(1, Ordering::Relaxed) < 16 {
        crate::memory::at_exit(stop_workers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::batcher::tests::{spec, submit};
    use crate::batch::{Outcome, Patience};
    use crate::engine::{BatchSize, Engine, ModelSpec, Output};
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

    fn key(model_hash: u128) -> EngineKey {
        EngineKey { model_hash, head: None, threads: 4, plan: Plan { callers: 1, threads: 4 } }
    }

    fn load(registry: &Registry, key: EngineKey, any_plan: bool) -> Arc<Batcher> {
        registry.get(key, any_plan, || Batcher::new(Arc::new(Panics(spec(BatchSize::Any))))).unwrap()
    }

    #[test]
    fn who_leaves_the_plan_open_takes_what_is_there() {
        let registry = Registry::default();
        let latency = key(4);
        let throughput = EngineKey { plan: Plan { callers: 4, threads: 1 }, ..key(4) };
        let first = load(&registry, throughput.clone(), true);
        assert!(Arc::ptr_eq(&first, &load(&registry, latency.clone(), true)));
        let second = load(&registry, latency.clone(), false);
        assert!(!Arc::ptr_eq(&first, &second), "a plan that was asked for is kept to");
        drop(first);
        assert!(Arc::ptr_eq(&second, &load(&registry, throughput.clone(), true)));
        assert!(!Arc::ptr_eq(&second, &load(&registry, key(5), true)), "another model");
        let threads = EngineKey { threads: 2, ..latency };
        assert!(!Arc::ptr_eq(&second, &load(&registry, threads, true)), "threads were asked for");
    }

    #[test]
    fn who_leaves_the_plan_open_waits_for_another_plan_s_load() {
        let throughput = || EngineKey { plan: Plan { callers: 4, threads: 1 }, ..key(6) };
        for fails in [false, true] {
            let registry = Registry::default();
            let (begun_in, begun) = mpsc::channel();
            let (go_on, may_go_on) = mpsc::channel();
            std::thread::scope(|scope| {
                let first = scope.spawn(|| {
                    let (begun_in, may_go_on) = (begun_in, may_go_on);
                    registry.get(throughput(), false, || {
                        begun_in.send(()).unwrap();
                        may_go_on.recv_timeout(PATIENCE).unwrap();
                        match fails {
                            true => Err(EngineError::new(EngineErrorKind::Run, "no", "")),
                            false => Batcher::new(Arc::new(Panics(spec(BatchSize::Any)))),
                        }
                    })
                });
                begun.recv_timeout(PATIENCE).unwrap();
                let second = scope.spawn(|| {
                    let mut loaded = false;
                    let engine = registry.get(key(6), true, || {
                        loaded = true;
                        Batcher::new(Arc::new(Panics(spec(BatchSize::Any))))
                    });
                    (engine.unwrap(), loaded)
                });
                go_on.send(()).unwrap();
                let first = first.join().unwrap();
                let (second, loaded) = second.join().unwrap();
                assert_eq!((first.is_err(), loaded), (fails, fails));
                assert!(first.is_ok_and(|first| Arc::ptr_eq(&first, &second)) != fails);
            });
        }
    }

    #[test]
    fn a_failed_load_is_tried_again_by_those_who_waited() {
        let registry = Registry::default();
        let tries = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let outcome = registry.get(key(1), false, || {
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
        let registry = Registry::default();
        let get = || load(&registry, key(3), false);
        let first = get();
        assert!(Arc::ptr_eq(&first, &get()));
        let stream = first.attach(1);
        let slot = stream.acquire(1, Patience::Endless).ok().unwrap();
        assert!(matches!(submit(slot, 0.5, Duration::ZERO).wait(), Outcome::EngineLost(_)));
        let second = get();
        assert!(!Arc::ptr_eq(&first, &second), "elements that still hold the lost one are no matter");
        drop((first, stream));
        assert!(Arc::ptr_eq(&second, &get()));
        let gone = Arc::downgrade(&second);
        drop(second);
        assert!(gone.upgrade().is_none(), "the registry holds no engine by itself");
        get();
    }

    #[test]
    fn a_panic_while_loading_leaves_nobody_waiting() {
        let registry = Registry::default();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = registry.get(key(2), false, || panic!("in the load"));
        }));
        assert!(outcome.is_err());
        assert!(
            registry.get(key(2), false, || Err(EngineError::new(EngineErrorKind::Run, "again", ""))).is_err()
        );
    }
}
