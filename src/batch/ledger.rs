//! What one engine has reserved of the budget, and whether a larger batch fits.
//!
//! Lock order: used under the batcher's state; takes the budget's, a leaf.

use crate::memory::budget::{Budget, Consumer, Exceeded, Reservation};

/// Bytes that an engine takes, or is thought to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    pub model: u64,
    pub arena: u64,
    pub tensors: u64,
}

impl Need {
    pub fn total(&self) -> u64 {
        self.model.saturating_add(self.arena).saturating_add(self.tensors)
    }
}

/// An engine's reservations, given back on drop.
pub struct Ledger {
    model: Reservation,
    arena: Reservation,
    tensors: Reservation,
    /// What one more frame in a batch adds to the arena, of all runs that may be in progress together.
    frame_arena: u64,
    /// Most frames in a batch that the arena is reserved for.
    frames: usize,
}

impl Ledger {
    /// Nothing yet, of `owner`, a model's file.
    pub fn new(budget: &'static Budget, owner: &str) -> Self {
        let hold = |consumer| budget.hold(consumer, owner);
        Self {
            model: hold(Consumer::Model),
            arena: hold(Consumer::Arena),
            tensors: hold(Consumer::Tensors),
            frame_arena: 0,
            frames: 0,
        }
    }

    /// What is held.
    pub fn held(&self) -> Need {
        Need { model: self.model.bytes(), arena: self.arena.bytes(), tensors: self.tensors.bytes() }
    }

    /// Takes what a load is thought to need, all or nothing.
    pub fn reserve(&mut self, need: Need) -> Result<(), Exceeded> {
        self.model.grow(need.total())?;
        self.set(need);
        Ok(())
    }

    /// What it really is.
    pub fn set(&mut self, held: Need) {
        // The smaller ones first: in between nobody shall find room that is not there.
        self.arena.set(held.arena);
        self.tensors.set(held.tensors);
        self.model.set(held.model);
    }

    /// The arena is laid out for batches of up to `frames`, and grows by so much with each further one.
    pub fn laid_out(&mut self, frames: usize, frame_arena: u64) {
        self.frames = frames;
        self.frame_arena = frame_arena;
    }

    /// What the arena grows by with each further frame in a batch.
    pub fn frame_arena(&self) -> u64 {
        self.frame_arena
    }

    /// Takes what batches of `frames` add: to the arena, and `tensor` bytes of input.
    pub fn admit(&mut self, frames: usize, tensor: u64) -> Result<(), Exceeded> {
        let further = frames.saturating_sub(self.frames) as u64;
        let arena = further.saturating_mul(self.frame_arena);
        let tensors = self.tensors.bytes();
        self.tensors.grow(tensor.saturating_add(arena))?;
        self.arena.set(self.arena.bytes() + arena);
        self.tensors.set(tensors + tensor);
        self.frames = self.frames.max(frames);
        Ok(())
    }

    /// So many bytes of input are gone.
    pub fn release(&mut self, tensor: u64) {
        self.tensors.set(self.tensors.bytes().saturating_sub(tensor));
    }

    /// The sum, where what is held now is more than the budget.
    pub fn check(&mut self) -> Result<(), Exceeded> {
        let held = self.held().total();
        self.model.grow(0).map_err(|exceeded| {
            let owner = exceeded.owner.clone();
            let users = exceeded.users.into_iter().filter(|user| user.owner != owner).collect();
            Exceeded { wanted: held, users, ..exceeded }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_takes_its_tensor_and_what_the_arena_grows_by() {
        static BUDGET: Budget = Budget::new("memory-budget", || 0);
        let _limit = BUDGET.limit("d0", 200).unwrap();
        let mut ledger = Ledger::new(&BUDGET, "m.onnx");
        ledger.reserve(Need { model: 50, arena: 20, tensors: 10 }).unwrap();
        ledger.laid_out(1, 20);
        ledger.admit(1, 0).unwrap();
        assert_eq!(ledger.held(), Need { model: 50, arena: 20, tensors: 10 });
        ledger.admit(3, 30).unwrap();
        assert_eq!(ledger.held(), Need { model: 50, arena: 60, tensors: 40 });
        let error = ledger.admit(5, 20).unwrap_err();
        assert_eq!((error.wanted, error.limit), (60, 200));
        assert_eq!(ledger.held().total(), 150, "all or nothing");
        ledger.release(30);
        ledger.admit(3, 20).unwrap();
        assert_eq!(ledger.held(), Need { model: 50, arena: 60, tensors: 30 }, "the arena stays");
        drop(ledger);
        assert_eq!(BUDGET.reserved(), 0);
    }

    #[test]
    fn what_was_measured_is_held_against_the_budget() {
        static BUDGET: Budget = Budget::new("memory-budget", || 0);
        let _limit = BUDGET.limit("d0", 100).unwrap();
        let mut ledger = Ledger::new(&BUDGET, "m.onnx");
        ledger.reserve(Need { model: 60, ..Default::default() }).unwrap();
        assert!(ledger.check().is_ok());
        ledger.set(Need { model: 70, arena: 40, tensors: 0 });
        let error = ledger.check().unwrap_err();
        assert_eq!((error.wanted, &error.users[..]), (110, &[][..]));
        assert!(ledger.reserve(Need::default()).is_err());
    }
}
