//! What engines give back when memory is short, and take again when it is not.
//!
//! | level | what is done | undone |
//! | --- | --- | --- |
//! | warning | the next run of each engine shrinks ONNX Runtime's arena (`shrink-arena`) | by the run after it |
//! | critical | idle engines end (`evict-models`) | by who loads them again |
//! | critical, degrading | batches are halved, once for each level above (`halve-batch`) | below it (`restore-batch`) |
//! | emergency, degrading | tensors at rest are dropped (`drop-tensors`) | by the next batch |

use std::sync::{Arc, Weak};

use once_cell::sync::OnceCell;
use parking_lot::Mutex;

use super::registry::Registry;
use crate::memory::monitor::{self, Action, React};
use crate::memory::pressure::Level;

pub(super) struct EnginePressure {
    registry: &'static Registry,
    /// What was last degraded to.
    degraded: Mutex<Level>,
}

impl EnginePressure {
    pub fn new(registry: &'static Registry) -> Self {
        Self { registry, degraded: Mutex::new(Level::Nominal) }
    }

    /// Has `registry`'s engines react from now on; only the first call counts.
    pub fn watch(registry: &'static Registry) {
        static WATCHING: OnceCell<Arc<EnginePressure>> = OnceCell::new();
        WATCHING.get_or_init(|| {
            let reactor = Arc::new(Self::new(registry));
            let weak: Weak<Self> = Arc::downgrade(&reactor);
            monitor::add_reactor(weak);
            reactor
        });
    }
}

impl React for EnginePressure {
    fn react(&self, level: Level, degrade: Level, did: &mut Vec<Action>) {
        let engines = self.registry.reliefs();
        let mut note = |name, done: bool, freed| {
            if done {
                did.push(Action { name, freed });
            }
        };

        // What a request gave back is known after the next run, and told with the next request or at the end.
        let (mut asked, mut freed) = (false, 0);
        for engine in &engines {
            let (asks, bytes) = engine.shrink(level >= Level::Warning);
            asked |= asks;
            freed += bytes;
        }
        note("shrink-arena", asked || freed > 0, freed);

        if level >= Level::Critical {
            let evicted: Vec<_> = std::iter::from_fn(|| self.registry.evict_oldest()).collect();
            note("evict-models", !evicted.is_empty(), evicted.iter().sum());
        }

        let before = std::mem::replace(&mut *self.degraded.lock(), degrade);
        if degrade > before && degrade >= Level::Critical {
            let halved: Vec<_> = engines.iter().filter_map(|engine| engine.halve()).collect();
            note("halve-batch", !halved.is_empty(), halved.iter().sum());
        }
        if degrade < Level::Critical && before >= Level::Critical {
            let restored = engines.iter().filter(|engine| engine.restore()).count();
            note("restore-batch", restored > 0, 0);
        }
        if degrade >= Level::Emergency {
            let dropped: u64 = engines.iter().map(|engine| engine.drop_tensors()).sum();
            note("drop-tensors", dropped > 0, dropped);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::batcher::tests::{ARENA, FRAME, submit, willing};
    use crate::batch::{Outcome, Patience, Stream};
    use crate::engine::BatchSize;
    use crate::engine::registry::tests::{key, registry};
    use crate::memory::budget::Budget;
    use std::time::Duration;

    use Level::{Critical, Emergency, Nominal, Warning};

    static BUDGET: Budget = Budget::new("memory-budget", || 0);
    const HOUR: Duration = Duration::from_secs(3600);

    fn run_one(stream: &Stream) {
        let slot = stream.acquire(1, Patience::Endless).ok().unwrap();
        assert!(matches!(submit(slot, 0.5, Duration::ZERO).wait(), Outcome::Done));
        // The worker has given the batch back when it takes the next.
        while stream.batcher().stats().batches == 0 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn each_level_has_its_reactions_told_once_with_what_they_gave_back() {
        let registry = registry();
        let load = |model, batch| {
            registry.get(key(model), false, |_| Ok(willing(batch, Some(70), &BUDGET))).unwrap()
        };
        let (busy, kept) = (load(1, BatchSize::Any), load(2, BatchSize::Fixed(4)));
        let stream = busy.engine().attach(4).unwrap();
        let other = kept.engine().attach(4).unwrap();
        let pressure = EnginePressure::new(registry);
        let react = |level, degrade| {
            let mut did = Vec::new();
            pressure.react(level, degrade, &mut did);
            did.into_iter().map(|Action { name, freed }| (name, freed)).collect::<Vec<_>>()
        };
        assert_eq!(react(Nominal, Nominal), []);
        assert_eq!(react(Warning, Nominal), [("shrink-arena", 0)]);
        assert_eq!(react(Warning, Nominal), [("shrink-arena", 0)], "nothing has run yet");
        run_one(&stream);
        assert_eq!(react(Warning, Nominal), [("shrink-arena", 70)]);

        // Critical, but not so that it may cost inferences.
        drop(other);
        kept.keep_for(HOUR);
        drop(kept);
        let evicts = react(Critical, Warning);
        assert_eq!(evicts, [("shrink-arena", 0), ("evict-models", 3 * ARENA)]);
        assert_eq!(registry.idle_engines(), 0);
        assert_eq!(busy.engine().stats().batch_limit, 4);

        let halves = [("shrink-arena", 0), ("halve-batch", 2 * 2 * FRAME)];
        assert_eq!(react(Critical, Critical), halves);
        assert_eq!(react(Critical, Critical), halves[..1], "once");
        assert_eq!(busy.engine().stats().batch_limit, 2);
        let emergency = [("shrink-arena", 0), ("halve-batch", 2 * FRAME), ("drop-tensors", 2 * FRAME)];
        assert_eq!(react(Emergency, Emergency), emergency);
        assert_eq!(busy.engine().stats().held.tensors, 0);
        assert_eq!(react(Critical, Critical), [("shrink-arena", 0)]);
        assert_eq!(busy.engine().stats().batch_limit, 1);

        assert_eq!(react(Warning, Warning), [("shrink-arena", 0), ("restore-batch", 0)]);
        assert_eq!(busy.engine().stats().batch_limit, 4);
        assert_eq!(react(Nominal, Nominal), []);
        run_one(&stream);
        while react(Nominal, Nominal) != [("shrink-arena", 70)] {
            std::thread::yield_now();
        }
        assert_eq!(react(Nominal, Nominal), [], "told once");
    }
}
