//! The driver's own library, `libcuda.so.1`: what GPUs there are, their memory, and copies to and from it.
//!
//! Opened when a GPU is first wanted, never linked. Each call makes the GPU's primary context, which ONNX Runtime uses as well, current for
//! its own duration, so that an application's contexts stay as they are.

use std::sync::Arc;

use thiserror::Error;

/// What the driver says.
#[derive(Clone, Debug, Error)]
#[error("{call}: {text} ({code})")]
pub struct DriverError {
    pub call: &'static str,
    /// `CUresult`; 0 where there is no such function or library.
    pub code: i32,
    pub text: String,
}

impl DriverError {
    pub fn is_out_of_memory(&self) -> bool {
        self.code == 2
    }
}

/// Bytes of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CardMemory {
    pub free: u64,
    pub total: u64,
}

/// One GPU, whose primary context is kept while this lives.
pub struct Card {
    index: u32,
}

impl Card {
    pub fn open(_index: u32) -> Result<Arc<Self>, DriverError> {
        unimplemented!()
    }

    /// As CUDA counts them.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// As the driver calls it.
    pub fn name(&self) -> &str {
        unimplemented!()
    }

    /// What the primary context took of the GPU, bytes, where this made it; 0 where another had.
    pub fn context_bytes(&self) -> u64 {
        unimplemented!()
    }

    pub fn memory(&self) -> Result<CardMemory, DriverError> {
        unimplemented!()
    }

    /// Memory of the GPU.
    pub fn alloc(self: &Arc<Self>, _bytes: usize) -> Result<DeviceMemory, DriverError> {
        unimplemented!()
    }

    /// Host memory that the GPU reaches without a copy in between, zeroed.
    pub fn alloc_pinned(self: &Arc<Self>, _bytes: usize) -> Result<PinnedMemory, DriverError> {
        unimplemented!()
    }

    /// Has the GPU reach host memory that is there already, until the guard is dropped.
    ///
    /// # Safety
    /// The memory outlives the guard.
    pub unsafe fn pin(self: &Arc<Self>, _start: *mut u8, _bytes: usize) -> Result<Pin, DriverError> {
        unimplemented!()
    }

    /// A queue of copies.
    pub fn copies(self: &Arc<Self>) -> Result<Copies, DriverError> {
        unimplemented!()
    }
}

/// Freed on drop.
pub struct DeviceMemory {}

impl DeviceMemory {
    /// The GPU's address.
    pub fn address(&self) -> u64 {
        unimplemented!()
    }

    pub fn bytes(&self) -> usize {
        unimplemented!()
    }
}

/// Freed on drop.
pub struct PinnedMemory {}

impl PinnedMemory {
    pub fn bytes(&self) -> &[u8] {
        unimplemented!()
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        unimplemented!()
    }
}

/// Memory that is pinned while this lives.
pub struct Pin {}

/// Copies run one after another, beside whatever else the GPU does.
pub struct Copies {}

impl Copies {
    /// To the beginning of `to`; done when this returns.
    pub fn upload(&self, _from: &[u8], _to: &DeviceMemory) -> Result<(), DriverError> {
        unimplemented!()
    }

    /// From the beginning of `from`; done when this returns.
    pub fn download(&self, _from: &DeviceMemory, _to: &mut [u8]) -> Result<(), DriverError> {
        unimplemented!()
    }
}
