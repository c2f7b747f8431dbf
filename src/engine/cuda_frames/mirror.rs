//! A batch's frames on the GPU, beside those on the host.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use super::{Refusal, room};
use crate::engine::gpu::budget;
use crate::engine::gpu::driver::{Card, Copies, DeviceMemory, Source};
use crate::memory::budget::{Consumer, Reservation};
use crate::tensor::Mirror;

/// Memory of a GPU for as many frames as a batch has, reserved of its budget.
pub struct GpuMirror {
    memory: DeviceMemory,
    copies: Copies,
    /// Bytes of one frame.
    frame: usize,
    _reserved: Reservation,
}

impl GpuMirror {
    /// For `frames` of so many bytes each.
    ///
    /// # Errors
    /// Where the budget or the GPU has no room.
    pub fn new(card: &Arc<Card>, frames: usize, frame: usize, owner: &str) -> Result<Self, Refusal> {
        let bytes = frames.saturating_mul(frame);
        let mut reserved = budget::of(card.index()).hold(Consumer::Tensors, owner);
        room::take(card, &mut reserved, bytes as u64)?;
        Ok(Self { memory: card.alloc(bytes)?, copies: card.copies()?, frame, _reserved: reserved })
    }

    pub fn is_on(&self, card: &Card) -> bool {
        self.memory.is_on(card)
    }

    /// There is no other kind.
    pub fn of(mirror: &dyn Mirror) -> &Self {
        let mirror: &dyn Any = mirror;
        mirror.downcast_ref().expect("mirrors are made here alone")
    }

    /// Where these frames of `mirror` are copied from.
    pub fn source<'a>(mirror: &'a dyn Mirror, frames: &Range<usize>) -> Source<'a> {
        let Self { memory, frame, .. } = Self::of(mirror);
        Source::Device { memory, from: frames.start * frame, bytes: frames.len() * frame }
    }

    /// Of the frame with this index.
    pub fn address(&self, index: usize) -> u64 {
        self.memory.address() + (index * self.frame) as u64
    }
}

impl Mirror for GpuMirror {
    fn fetch(&self, index: usize, to: &mut [u8]) -> Result<(), String> {
        self.copies
            .download_part(&self.memory, index * self.frame, to)
            .map_err(|error| format!("a frame on the GPU cannot be had: {error}"))
    }
}
