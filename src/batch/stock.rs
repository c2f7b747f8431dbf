//! The tensors of one engine: made for its streams, used again batch after batch, and gone when nobody needs them.

use super::ceiling;
use super::ledger::{Ledger, Need};
use crate::engine::{EngineError, ModelSpec};
use crate::tensor::BatchTensor;

pub(super) struct Stock {
    /// At rest. Taken for filling, given back after the run.
    free: Vec<BatchTensor>,
    /// All, those included that are being filled or run.
    count: usize,
    /// No longer needed, nor counted: for [`super::batcher::Shared::let_go`].
    pub gone: Vec<BatchTensor>,
    pub ledger: Ledger,
}

impl Stock {
    pub fn new(ledger: Ledger) -> Self {
        Self { free: Vec::new(), count: 0, gone: Vec::new(), ledger }
    }

    /// Makes what is missing of `count` tensors for batches of `capacity`, or of fewer frames where that does not fit.
    pub fn fill(&mut self, count: usize, capacity: usize, spec: &ModelSpec) -> Result<(), EngineError> {
        while self.count < count {
            let tensor = self.fit(None, capacity, spec)?;
            self.count += 1;
            self.free.push(tensor);
        }
        Ok(())
    }

    /// A tensor for a batch of `capacity`, or of fewer frames where that does not fit. Allocates only where the one at
    /// rest has another size, or was dropped.
    pub fn take(&mut self, capacity: usize, spec: &ModelSpec) -> Result<BatchTensor, EngineError> {
        match self.free.pop() {
            Some(tensor) if tensor.capacity() == capacity => Ok(tensor),
            Some(tensor) => self.fit(Some(tensor), capacity, spec),
            None => {
                let tensor = self.fit(None, capacity, spec)?;
                self.count += 1;
                Ok(tensor)
            }
        }
    }

    pub fn give_back(&mut self, tensor: BatchTensor) {
        self.free.push(tensor);
    }

    /// Those at rest are gone; bytes.
    pub fn drop_free(&mut self) -> u64 {
        let bytes = self.free.iter().map(|tensor| tensor.bytes() as u64).sum();
        self.count -= self.free.len();
        self.gone.append(&mut self.free);
        self.ledger.release(bytes);
        bytes
    }

    /// Makes those at rest no larger than `capacity`; bytes that this gave back.
    pub fn trim(&mut self, capacity: usize, spec: &ModelSpec) -> u64 {
        let before = self.ledger.held().tensors;
        for tensor in std::mem::take(&mut self.free) {
            match tensor.capacity() > capacity {
                true => match self.fit(Some(tensor), capacity, spec) {
                    Ok(tensor) => self.free.push(tensor),
                    Err(_) => self.count -= 1,
                },
                false => self.free.push(tensor),
            }
        }
        before.saturating_sub(self.ledger.held().tensors)
    }

    /// A tensor of `capacity` in place of `old`, which is gone; where memory or the budget does not suffice a smaller one, or `old`.
    fn fit(
        &mut self,
        mut old: Option<BatchTensor>,
        capacity: usize,
        spec: &ModelSpec,
    ) -> Result<BatchTensor, EngineError> {
        let mut frames = capacity;
        loop {
            let held = old.as_ref().map_or(0, |old| old.bytes() as u64);
            let error = match self.make(frames, held, spec) {
                Ok(tensor) => {
                    self.gone.extend(old);
                    return Ok(tensor);
                }
                Err(error) => error,
            };
            let smaller = (frames > 1 && !spec.batch.is_fixed()).then(|| ceiling::part(frames));
            match (old, smaller) {
                (Some(old), smaller) if smaller.is_none_or(|smaller| old.capacity() >= smaller) => {
                    return Ok(old);
                }
                (kept, Some(smaller)) => (old, frames) = (kept, smaller),
                (old, None) => {
                    self.gone.extend(old);
                    return Err(error);
                }
            }
        }
    }

    /// For `frames`, in place of one that holds so many bytes.
    fn make(&mut self, frames: usize, held: u64, spec: &ModelSpec) -> Result<BatchTensor, EngineError> {
        let bytes = (frames as u64).saturating_mul(spec.input.bytes() as u64);
        let more = bytes.saturating_sub(held);
        self.ledger.admit(frames, more).map_err(|exceeded| {
            let known = self.ledger.held();
            let need = Need { tensors: known.tensors + exceeded.wanted, ..known };
            EngineError::no_budget(&spec.file, need, &exceeded)
        })?;
        let tensor = BatchTensor::new(frames, spec.input).map_err(|error| {
            self.ledger.release(more);
            EngineError::no_room(&spec.file, error)
        })?;
        self.ledger.release(held.saturating_sub(bytes));
        Ok(tensor)
    }
}
