//! One engine per model, however many elements ask for it.
//!
//! Loading takes place outside the registry's lock, once: whoever asks for the same engine meanwhile waits
//! for that load and shares its outcome. The registry holds engines weakly; the last element to let go of
//! one ends it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use xxhash_rust::xxh3::Xxh3;

use super::onnx::{OnnxEngine, SessionOptions};
use super::{EngineError, EngineErrorKind};
use crate::batch::{Batcher, batcher};
use crate::decode::Head;

/// What must agree for two elements to share an engine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EngineKey {
    /// Of the file's content: copies and links of one model are one model.
    model_hash: u128,
    head: Option<Head>,
    threads: usize,
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

/// The engine for `options`, loaded now unless another element already has it.
///
/// # Errors
/// See [`super::runtime::environment`] and [`OnnxEngine::load`]; a model file that cannot be read is
/// [`EngineErrorKind::ModelMissing`].
pub fn get(options: &SessionOptions) -> Result<Arc<Batcher>, EngineError> {
    let model_hash = hash_file(&options.model).map_err(|error| {
        EngineError::new(
            EngineErrorKind::ModelMissing,
            format!(
                "the model {} cannot be read, {error}: set model-file to the path of an ONNX file",
                options.model.display()
            ),
            "",
        )
    })?;
    // Also checks, for an engine that is there already, that the same library is meant.
    super::runtime::environment(options.library.as_deref())?;
    let key = EngineKey { model_hash, head: options.head, threads: options.threads };
    REGISTRY.get(key, || {
        let engine = OnnxEngine::load(options)?;
        stop_workers_at_exit();
        Batcher::new(Box::new(engine))
    })
}

impl Registry {
    fn get(
        &self,
        key: EngineKey,
        load: impl FnOnce() -> Result<Batcher, EngineError>,
    ) -> Result<Arc<Batcher>, EngineError> {
        let mut engines = self.engines.lock();
        loop {
            match engines.get_or_insert_default().entry(key.clone()) {
                Entry::Vacant(entry) => {
                    entry.insert(Known::Loading);
                    break;
                }
                Entry::Occupied(mut entry) => match entry.get() {
                    Known::Loading => {
                        self.settled.wait(&mut engines);
                        continue;
                    }
                    Known::Loaded(engine) => match engine.upgrade().filter(|engine| !engine.is_lost()) {
                        Some(engine) => return Ok(engine),
                        None => {
                            entry.insert(Known::Loading);
                            break;
                        }
                    },
                },
            }
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
    use crate::batch::Outcome;
    use crate::batch::batcher::tests::{spec, submit};
    use crate::engine::{BatchSize, Engine, ModelSpec};
    use crate::tensor::BatchTensor;

    struct Panics(ModelSpec);

    impl Engine for Panics {
        fn spec(&self) -> &ModelSpec {
            &self.0
        }

        fn run(&mut self, _: &mut BatchTensor, _: usize) -> Result<(), EngineError> {
            panic!("as the test wants it");
        }
    }

    fn key(model_hash: u128) -> EngineKey {
        EngineKey { model_hash, head: None, threads: 1 }
    }

    #[test]
    fn a_failed_load_is_tried_again_by_those_who_waited() {
        let registry = Registry::default();
        let tries = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let outcome = registry.get(key(1), || {
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
        let get = || registry.get(key(3), || Batcher::new(Box::new(Panics(spec(BatchSize::Any))))).unwrap();
        let first = get();
        assert!(Arc::ptr_eq(&first, &get()));
        let stream = first.attach(1);
        let slot = stream.acquire(true).ok().unwrap();
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
            let _ = registry.get(key(2), || panic!("in the load"));
        }));
        assert!(outcome.is_err());
        assert!(registry.get(key(2), || Err(EngineError::new(EngineErrorKind::Run, "again", ""))).is_err());
    }
}
