//! Engines that nobody uses any more and that are kept for whoever comes back: until their time is over, or until
//! memory is wanted, when those go first that were used least recently. They hold no tensors.
//!
//! One thread waits for the next one's time, while there are any. Engines are dropped outside of the registry's lock.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use super::device::Device;
use super::registry::{EngineKey, Engines, Entry, Known, Registry};
use super::{EngineError, EngineErrorKind, Memory, runtime};
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
    /// Tries `load`, which is for `device`, and again after each idle engine that made room where it was short.
    pub fn with_room<T>(
        &self,
        device: &Device,
        mut load: impl FnMut() -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        loop {
            let error = match load() {
                Err(error) => error,
                outcome => return outcome,
            };
            let short = matches!(error.kind, EngineErrorKind::NoBudget | EngineErrorKind::OutOfMemory);
            // Engines on GPUs have memory of the host too.
            let gpu = device.gpu().filter(|_| error.memory == Some(Memory::Gpu));
            let helps = |other: &Device| gpu.is_none() || other.gpu() == gpu;
            if !short || self.evict(helps).is_none() {
                return Err(error);
            }
        }
    }

    /// Ends the idle engine that was used least recently; the bytes of the host that were reserved for it.
    pub fn evict_oldest(&self) -> Option<u64> {
        self.evict(|_| true)
    }

    /// Of those on devices that `helps` accepts; those that hold most of the host's memory first, as a GPU's do not.
    fn evict(&self, helps: impl Fn(&Device) -> bool) -> Option<u64> {
        let mut engines = self.engines.lock();
        let oldest = engines
            .idle()
            .filter(|(key, _)| helps(key.device()))
            .min_by_key(|(key, idle)| (key.device().gpu().is_some(), idle.since))
            .map(|(key, _)| key.clone());
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
