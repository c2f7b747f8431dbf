//! What one engine has reserved of the budget, and whether a larger batch fits.
//!
//! Lock order: used under the batcher's state; takes the place's, and under that the budget's, a leaf.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::engine::gpu::budget::GpuUse;
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
    /// No batch has more, whatever there is room for.
    bound: Option<usize>,
    /// Of an engine that has memory elsewhere too.
    place: Option<Place>,
}

/// Where an engine runs that is not tied to the host, and what it holds there. Shared with who moves it. Batches of a size that was
/// admitted once are taken to come again, so that nothing of it is given back before the engine moves or ends.
#[derive(Clone)]
pub struct Place(Arc<Mutex<Placed>>);

struct Placed {
    ledger: Ledger,
    /// What one more frame in a batch adds to the tensors there, those of all batches that have any at the same time, bytes.
    frame_tensors: u64,
    /// On a GPU: what its context takes, bytes. `None` on the host.
    context: Option<u64>,
}

impl Place {
    /// A GPU, whose context takes so much; `frame_tensors` are those of [`crate::engine::gpu::budget::tensors`].
    pub fn on_gpu(ledger: Ledger, frame_tensors: u64, context: u64) -> Self {
        Self(Arc::new(Mutex::new(Placed { ledger, frame_tensors, context: Some(context) })))
    }

    /// What is held there is given back; from now on `ledger` has what the engine takes, of the host.
    pub fn move_to_host(&self, ledger: Ledger) {
        let moved = Placed { ledger, frame_tensors: 0, context: None };
        // Given back after the lock.
        let _left = std::mem::replace(&mut *self.0.lock(), moved);
    }

    /// What is held of a GPU, where it is one.
    pub fn gpu(&self) -> Option<GpuUse> {
        let placed = self.0.lock();
        let Need { model, arena, tensors } = placed.ledger.own();
        placed.context.map(|context| GpuUse { context, model, arena, tensors })
    }

    fn admit(&self, frames: usize) -> Result<(), Exceeded> {
        let mut placed = self.0.lock();
        let further = frames.saturating_sub(placed.ledger.frames) as u64;
        let tensors = further.saturating_mul(placed.frame_tensors);
        placed.ledger.admit(frames, tensors)
    }

    /// What is held of the host.
    fn on_host(&self) -> Need {
        let placed = self.0.lock();
        if placed.context.is_none() { placed.ledger.own() } else { Need::default() }
    }
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
            bound: None,
            place: None,
        }
    }

    /// What is held of the host; of a [`Place`] beside it only what is the host's.
    pub fn held(&self) -> Need {
        let own = self.own();
        match self.place.as_ref().map(Place::on_host) {
            None => own,
            Some(more) => Need {
                model: own.model.saturating_add(more.model),
                arena: own.arena.saturating_add(more.arena),
                tensors: own.tensors.saturating_add(more.tensors),
            },
        }
    }

    fn own(&self) -> Need {
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

    /// The engine runs there: batches must find room there too.
    pub fn runs_in(&mut self, place: Place) {
        self.place = Some(place);
    }

    /// What is held of a GPU.
    pub fn gpu(&self) -> Option<GpuUse> {
        self.place.as_ref()?.gpu()
    }

    /// No batch gets more frames: larger ones were tried, and failed.
    pub fn bound_frames(&mut self, frames: usize) {
        self.bound = Some(frames.max(1));
    }

    /// What the arena grows by with each further frame in a batch.
    pub fn frame_arena(&self) -> u64 {
        self.frame_arena
    }

    /// Takes what batches of `frames` add: to the arena, and `tensor` bytes of input.
    pub fn admit(&mut self, frames: usize, tensor: u64) -> Result<(), Exceeded> {
        let further = frames.saturating_sub(self.frames) as u64;
        let arena = further.saturating_mul(self.frame_arena);
        if self.bound.is_some_and(|bound| frames > bound) {
            return Err(self.arena.refuse(arena));
        }
        let tensors = self.tensors.bytes();
        self.tensors.grow(tensor.saturating_add(arena))?;
        if let Some(place) = &self.place
            && let Err(exceeded) = place.admit(frames)
        {
            self.tensors.set(tensors);
            return Err(exceeded);
        }
        self.arena.set(self.arena.bytes().saturating_add(arena));
        self.tensors.set(tensors.saturating_add(tensor));
        self.frames = self.frames.max(frames);
        Ok(())
    }

    /// So many bytes of input are gone.
    pub fn release(&mut self, tensor: u64) {
        self.tensors.set(self.tensors.bytes().saturating_sub(tensor));
    }

    /// The sum, where what is held now is more than the budget.
    pub fn check(&mut self) -> Result<(), Exceeded> {
        let held = self.own().total();
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
    fn what_does_not_fit_in_both_places_is_taken_in_none() {
        static HOST: Budget = Budget::new("memory-budget", || 0);
        static GPU: Budget = Budget::new("gpu-memory-budget", || 0);
        let mut there = Ledger::new(&GPU, "m.onnx");
        there.laid_out(1, 10);
        let mut ledger = Ledger::new(&HOST, "m.onnx");
        ledger.laid_out(1, 0);
        ledger.runs_in(Place::on_gpu(there, 5, 3));
        let taken = |ledger: &Ledger| (HOST.reserved(), GPU.reserved(), ledger.gpu().unwrap().total());
        ledger.admit(2, 7).unwrap();
        assert_eq!(taken(&ledger), (7, 15, 18));
        {
            let _limit = GPU.limit("d0", 29).unwrap();
            let error = ledger.admit(3, 7).unwrap_err();
            assert_eq!((error.property, taken(&ledger)), ("gpu-memory-budget", (7, 15, 18)));
        }
        let _limit = HOST.limit("d0", 13).unwrap();
        assert_eq!(ledger.admit(3, 7).unwrap_err().property, "memory-budget");
        assert_eq!(taken(&ledger), (7, 15, 18));
        // As many as before are there already.
        ledger.admit(2, 6).unwrap();
        assert_eq!(taken(&ledger), (13, 15, 18));
    }

    #[test]
    fn a_bound_holds_whatever_there_is_room_for() {
        static BUDGET: Budget = Budget::new("memory-budget", || 0);
        let mut ledger = Ledger::new(&BUDGET, "m.onnx");
        ledger.laid_out(1, 10);
        ledger.bound_frames(4);
        ledger.admit(4, 1).unwrap();
        let error = ledger.admit(5, 1).unwrap_err();
        assert_eq!((error.wanted, &*error.owner, BUDGET.reserved()), (10, "m.onnx", 31));
        ledger.bound_frames(0);
        ledger.admit(1, 0).unwrap();
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
