//! What an engine gives back while memory is short.
//!
//! Lock order: each call takes the batcher's state alone, and under it the budget's; tensors are dropped outside of it.

use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::batcher::{Batcher, Shared};

/// Between who asks an engine to shrink and the run that does it.
#[derive(Default)]
pub(super) struct Shrinking {
    asked: AtomicBool,
    /// The engine keeps nothing that it could give back.
    never: AtomicBool,
    /// Not yet told.
    freed: AtomicU64,
}

impl Shrinking {
    /// Has the next run shrink, if the engine can.
    pub fn ask(&self) -> bool {
        let asks = !self.never.load(Ordering::Relaxed);
        if asks {
            self.asked.store(true, Ordering::Relaxed);
        }
        asks
    }

    /// Whether the run that asks shall shrink; no other will.
    pub fn take(&self) -> bool {
        // A load first: nearly always there is nothing to take.
        self.asked.load(Ordering::Relaxed) && self.asked.swap(false, Ordering::Relaxed)
    }

    /// What came of it; see [`crate::engine::Engine::run_and_shrink`].
    pub fn done(&self, freed: Option<u64>) {
        match freed {
            Some(bytes) => drop(self.freed.fetch_add(bytes, Ordering::Relaxed)),
            None => self.never.store(true, Ordering::Relaxed),
        }
    }
}

/// A hold on an engine that does not keep it.
#[derive(Clone)]
pub struct Relief(Weak<Shared>);

impl Batcher {
    pub fn relief(&self) -> Relief {
        Relief(self.downgrade())
    }
}

impl Relief {
    /// Whether it is still there.
    pub fn has_engine(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// Has the next run give back what the engine keeps between runs. Whether one will, and the bytes of earlier ones
    /// that were not told yet.
    pub fn shrink(&self, ask: bool) -> (bool, u64) {
        let Some(shared) = self.0.upgrade() else { return (false, 0) };
        let shrinking = &shared.shrinking;
        // An engine that nobody uses runs nothing.
        let asks = ask && shared.state.lock().queue.streams() > 0 && shrinking.ask();
        (asks, shrinking.freed.swap(0, Ordering::Relaxed))
    }

    /// Halves the batches that are opened from now on, and the tensors at rest. The bytes that this gave back; `None`
    /// where batches are as small as they can be.
    pub fn halve(&self) -> Option<u64> {
        let shared = self.0.upgrade()?;
        let mut state = shared.state.lock();
        let halved = state.queue.press();
        let capacity = state.queue.capacity();
        let freed = halved.then(|| state.stock.trim(capacity, &shared.spec));
        shared.let_go(&mut state);
        freed
    }

    /// Takes back every [`Self::halve`]; whether there was one.
    pub fn restore(&self) -> bool {
        let Some(shared) = self.0.upgrade() else { return false };
        let mut state = shared.state.lock();
        let restored = state.queue.ease();
        // There may be room for those who wait.
        state.wake();
        restored
    }

    /// Drops the tensors at rest, which are made again when they are needed; bytes.
    pub fn drop_tensors(&self) -> u64 {
        let Some(shared) = self.0.upgrade() else { return 0 };
        let mut state = shared.state.lock();
        let freed = if state.exiting { 0 } else { state.stock.drop_free() };
        shared.let_go(&mut state);
        freed
    }
}
