//! A model that is loaded and can be run. [`Engine`] is all that the batcher knows of it.

pub mod active;
pub mod cache;
mod choose;
pub mod cuda_frames;
pub mod device;
pub mod estimate;
pub mod gpu;
pub mod hash;
pub mod header;
pub mod idle;
pub mod model;
mod on_gpu;
pub mod onnx;
pub mod plan;
pub mod pressure;
mod recover;
pub mod registry;
pub mod room;
pub mod runtime;

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::active::ActiveDevice;
use crate::batch::Need;
use crate::decode::{Layout, OutputRef};
use crate::detection::Labels;
use crate::memory::budget::{Exceeded, Megabytes};
use crate::tensor::{AllocError, BatchTensor, FrameExtent};

/// How many frames one run takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchSize {
    /// Always this many; a smaller batch runs with unused frames.
    Fixed(usize),
    Any,
    /// Any, but on a device that keeps memory for every number it has ever run: a smaller batch runs with unused
    /// frames up to the next power of two.
    Steps,
}

impl BatchSize {
    /// Room that a batch has where up to `wanted` frames shall run together.
    pub fn capacity(self, wanted: usize) -> usize {
        match self {
            BatchSize::Fixed(size) => size,
            BatchSize::Any | BatchSize::Steps => wanted,
        }
    }

    /// Frames to run so that the first `frames` of a batch of this `capacity` are.
    pub fn run(self, frames: usize, capacity: usize) -> usize {
        match self {
            BatchSize::Fixed(size) => size,
            BatchSize::Any => frames,
            BatchSize::Steps => frames.next_power_of_two().min(capacity),
        }
    }

    pub fn is_fixed(self) -> bool {
        matches!(self, BatchSize::Fixed(_))
    }
}

/// What is known of a model once it is loaded and has run once.
#[derive(Clone, Debug)]
pub struct ModelSpec {
    pub file: PathBuf,
    /// Width and height in pixels.
    pub input_size: (u32, u32),
    pub batch: BatchSize,
    pub input: FrameExtent,
    pub output: FrameExtent,
    pub layout: Layout,
    /// From the model's own metadata.
    pub labels: Option<Labels>,
    /// Runs that may be in progress at the same time.
    pub callers: usize,
    /// Where it runs, as `active-device` shows it.
    pub device: ActiveDevice,
    /// Of the warm-up's second run, batch 1 (or the fixed batch): the first guess at the latency.
    pub warm_run: Duration,
    /// What the process grew by while loading, bytes; 0 where it cannot be told.
    pub loaded_bytes: u64,
    /// From the cache, as ONNX Runtime had optimised it before.
    pub cached: bool,
}

/// One loaded model, run by up to [`ModelSpec::callers`] threads at the same time.
pub trait Engine: Send + Sync {
    fn spec(&self) -> &ModelSpec;

    /// Runs these frames of `batch` and shows `read` what came out, once. With [`BatchSize::Fixed`] it is always the
    /// whole batch.
    ///
    /// The output is the engine's own and goes when `read` returns: it has, most often, the place of something that
    /// the run needed before, so that it takes no memory of its own.
    ///
    /// # Errors
    /// Nothing was read then, and the engine stays usable; after [`EngineErrorKind::OutOfMemory`] fewer frames may go
    /// well.
    fn run(
        &self,
        batch: &mut BatchTensor,
        frames: Range<usize>,
        read: &mut dyn FnMut(Output<'_>),
    ) -> Result<(), EngineError>;

    /// As [`Self::run`]; afterwards gives back what the engine keeps for later runs. The bytes that the process got
    /// smaller by, or of a GPU's memory that became free; `None` for an engine that keeps nothing.
    fn run_and_shrink(
        &self,
        batch: &mut BatchTensor,
        frames: Range<usize>,
        read: &mut dyn FnMut(Output<'_>),
    ) -> Result<Option<u64>, EngineError> {
        self.run(batch, frames, read).map(|()| None)
    }
}

/// What a run gave, frame after frame.
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    /// Of all frames.
    pub values: OutputRef<'a>,
    /// Values of one frame.
    pub frame_len: usize,
}

impl<'a> Output<'a> {
    /// Of one frame, counted from the first that was run.
    pub fn frame(&self, index: usize) -> OutputRef<'a> {
        let range = index * self.frame_len..(index + 1) * self.frame_len;
        match self.values {
            OutputRef::F32(values) => OutputRef::F32(&values[range]),
            OutputRef::F16(values) => OutputRef::F16(&values[range]),
        }
    }
}

/// Why a model cannot be loaded or run. The text names the file and the way out.
#[derive(Clone, Debug)]
pub struct EngineError {
    pub kind: EngineErrorKind,
    pub message: String,
    /// The library's own words, for the debug text.
    pub detail: String,
    /// Which memory was short, where that is known.
    pub memory: Option<Memory>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    Host,
    /// Of the GPU that was to run it.
    Gpu,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineErrorKind {
    /// libonnxruntime is missing, too old or not what it says.
    Library,
    /// The model's file cannot be read.
    ModelMissing,
    /// The model is not one that this plugin can run.
    ModelUnsupported,
    /// The device is not there, or the settings cannot hold together.
    Settings,
    /// The model loaded, but a run failed.
    Run,
    /// There was not enough memory, for so many frames at least.
    OutOfMemory,
    /// The GPU does nothing more for this process, or for this session at the least.
    DeviceLost,
    /// It would be more than the budget or the container allows.
    NoBudget,
}

impl EngineError {
    pub fn new(kind: EngineErrorKind, message: impl Into<String>, detail: impl fmt::Display) -> Self {
        Self { kind, message: message.into(), detail: detail.to_string(), memory: None }
    }

    /// It is this memory that was short.
    pub fn of(self, memory: Memory) -> Self {
        Self { memory: Some(memory), ..self }
    }

    /// The frames of this model's batches find no room.
    pub fn no_room(model: &Path, error: AllocError) -> Self {
        let message = format!("there is no memory for the frames of the model {}", model.display());
        Self::new(EngineErrorKind::OutOfMemory, message, error).of(Memory::Host)
    }

    /// So much for this model is more than the budget has left.
    pub fn no_budget(model: &Path, need: Need, exceeded: &Exceeded) -> Self {
        let of_gpu = exceeded.property == gpu::budget::PROPERTY;
        Self::beyond(model, need, &exceeded.to_string()).of(if of_gpu { Memory::Gpu } else { Memory::Host })
    }

    /// `why` it does not fit, and what to do.
    pub(crate) fn beyond(model: &Path, need: Need, why: &str) -> Self {
        let Need { model: weights, arena, tensors } = need;
        let message = format!(
            "the model {} needs {} (model {}, arena {}, tensors {}), which is too much: {why}",
            model.display(),
            Megabytes(need.total()),
            Megabytes(weights),
            Megabytes(arena),
            Megabytes(tensors),
        );
        Self::new(EngineErrorKind::NoBudget, message, "")
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.detail.is_empty() { write!(f, " ({})", self.detail) } else { Ok(()) }
    }
}

impl std::error::Error for EngineError {}

#[cfg(test)]
mod tests {
    use super::BatchSize::{Any, Fixed, Steps};

    #[test]
    fn runs_are_as_large_as_the_model_and_its_device_want() {
        for (batch, frames, capacity, run) in [
            (Fixed(4), 1, 4, 4),
            (Any, 3, 8, 3),
            (Steps, 1, 8, 1),
            (Steps, 3, 8, 4),
            (Steps, 5, 8, 8),
            (Steps, 5, 6, 6),
            (Steps, 6, 6, 6),
        ] {
            assert_eq!(batch.run(frames, capacity), run, "{frames} frames of {capacity}, {batch:?}");
        }
        assert_eq!([Fixed(4).capacity(9), Any.capacity(9), Steps.capacity(6)], [4, 9, 6]);
    }
}
