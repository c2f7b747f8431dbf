//! A model that is loaded and can be run. [`Engine`] is all that the batcher knows of it.

pub mod model;
pub mod onnx;
pub mod registry;
pub mod runtime;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::decode::Layout;
use crate::detection::Labels;
use crate::tensor::{BatchTensor, FrameExtent};

/// How many frames one run takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchSize {
    /// Always this many; a smaller batch runs with unused frames.
    Fixed(usize),
    Any,
}

impl BatchSize {
    /// The number of frames to run, or to have room for, where `wanted` are.
    pub fn frames(self, wanted: usize) -> usize {
        match self {
            BatchSize::Fixed(size) => size,
            BatchSize::Any => wanted,
        }
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
    /// Where it runs, as `active-device` shows it.
    pub device: String,
    /// Of the warm-up's second run, batch 1 (or the fixed batch): the first guess at the latency.
    pub warm_run: Duration,
    /// What the process grew by while loading, bytes; 0 where it cannot be told.
    pub loaded_bytes: u64,
}

/// One loaded model. Owned by one worker thread.
pub trait Engine: Send {
    fn spec(&self) -> &ModelSpec;

    /// Runs the first `frames` frames of `batch`: reads its input, fills its output.
    ///
    /// On an error the output is undefined and the engine stays usable.
    fn run(&mut self, batch: &mut BatchTensor, frames: usize) -> Result<(), EngineError>;
}

/// Why a model cannot be loaded or run. The text names the file and the way out.
#[derive(Clone, Debug)]
pub struct EngineError {
    pub kind: EngineErrorKind,
    pub message: String,
    /// The library's own words, for the debug text.
    pub detail: String,
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
}

impl EngineError {
    pub fn new(kind: EngineErrorKind, message: impl Into<String>, detail: impl fmt::Display) -> Self {
        Self { kind, message: message.into(), detail: detail.to_string() }
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.detail.is_empty() { write!(f, " ({})", self.detail) } else { Ok(()) }
    }
}

impl std::error::Error for EngineError {}
