//! Engines that nobody uses any more and that are kept for whoever comes back: until their time is over, or until
//! memory is wanted, when those go first that were used least recently. They hold no tensors.
//!
//! One thread waits for the next one's time, while there are any. Engines are dropped outside of the registry's lock.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use super::registry::{EngineKey, Engines, Entry, Known, Registry};
use super::{EngineError, EngineErrorKind, runtime};
use crate::batch::Batcher;
use crate::memory;

pub(super) struct Idle {
    engine: Arc<Batcher>,
    since: Instant,
    until: Instant,
}

impl Idle {
    pub fn new(engine: Arc<Batcher>, keep_alive: Duration) -> Self {
        let since = Instant::now();
        Self { engine, since, until: since + keep_alive }
    }
}

impl Registry {
    /// Tries `load`, and again after each idle engine that made room.
    pub fn with_room<T>(&self, mut load: impl FnMut() -> Result<T, EngineError>) -> Result<T, EngineError> {
        loop {
            match load() {
                Err(EngineError {
                    kind: EngineErrorKind::NoBudget | EngineErrorKind::OutOfMemory, ..
                }) if self.evict_oldest().is_some() => (),
                outcome => return outcome,
            }
        }
    }

    /// Ends the idle engine that was used least recently; the bytes that were reserved for it.
    pub fn evict_oldest(&self) -> Option<u64> {
        let mut engines = self.engines.lock();
        let oldest = engines.idle().min_by_key(|(_, idle)| idle.since).map(|(key, _)| key.clone());
        let evicted = engines.remove(&oldest?);
        // Perhaps the last one that was waited for.
        self.idled.notify_all();
        drop(engines);
        evicted.map(|engine| {
            let bytes = engine.stats().held.total();
            drop(engine);
            memory::return_free_heap();
            bytes
        })
    }

    pub fn idle_engines(&self) -> usize {
        self.engines.lock().idle().count()
    }

    /// Has a thread wait for the end of the idle engines' time; whether there is one.
    pub fn look_after(&'static self, engines: &mut Engines) -> bool {
        if engines.keeper {
            self.idled.notify_all();
        } else {
            let thread = std::thread::Builder::new().name("yolo-keep-alive".into());
            engines.keeper = thread.spawn(|| self.keep()).is_ok();
        }
        engines.keeper
    }

    fn keep(&self) {
        let mut engines = self.engines.lock();
        // At the process's exit its library may be gone already: what is idle then stays as it is.
        while !runtime::exiting() {
            let Some((key, until)) = engines
                .idle()
                .min_by_key(|(_, idle)| idle.until)
                .map(|(key, idle)| (key.clone(), idle.until))
            else {
                break;
            };
            if until <= Instant::now() {
                let expired = engines.remove(&key);
                MutexGuard::unlocked(&mut engines, || {
                    drop(expired);
                    memory::return_free_heap();
                });
            } else {
                self.idled.wait_until(&mut engines, until);
            }
        }
        engines.keeper = false;
    }
}

impl Engines {
    fn idle(&self) -> impl Iterator<Item = (&EngineKey, &Idle)> {
        self.known.iter().flat_map(HashMap::iter).filter_map(|(key, known)| match known {
            Known::Loaded(Entry { idle: Some(idle), .. }) => Some((key, idle)),
            _ => None,
        })
    }

    /// Takes out an idle engine.
    fn remove(&mut self, key: &EngineKey) -> Option<Arc<Batcher>> {
        match self.known.as_mut()?.remove(key)? {
            Known::Loaded(Entry { idle: Some(idle), .. }) => Some(idle.engine),
            _ => None,
        }
    }
}
