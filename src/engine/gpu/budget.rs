//! How much of a GPU an engine may take.
//!
//! ```text
//!  gpu-memory-budget          of this process, on one GPU; 80 % of its memory where nothing is set
//!    − the context            what CUDA itself takes for the process
//!    − other engines          of ours, on the same GPU
//!    − tensors                of this engine: inputs and outputs of the batches that are copied and run at the same time
//!    = the arena's limit      for weights and what is between layers
//! ```
//!
//! Only what the arena is limited to is certain before a load. What else a session takes (cuBLAS, cuDNN, kernels) is part of what is
//! measured afterwards, and [`fit`] tries smaller batches where that is more than the budget.
//!
//! But for the process's budgets at its end this is pure.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::batch::ceiling;
use crate::engine::{EngineError, EngineErrorKind, Memory};
use crate::memory::budget::{Budget, Megabytes};

/// The property that sets the limit.
pub const PROPERTY: &str = "gpu-memory-budget";
/// Batches that have tensors on the GPU at the same time: one is copied while the other runs.
pub const LANES: u64 = 2;

/// What an engine takes of a GPU, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpuUse {
    /// Of the process, once, however many engines there are.
    pub context: u64,
    /// Weights.
    pub model: u64,
    /// Between layers, and what the libraries keep for the session.
    pub arena: u64,
    pub tensors: u64,
}

impl GpuUse {
    pub fn total(&self) -> u64 {
        [self.model, self.arena, self.tensors].into_iter().fold(self.context, u64::saturating_add)
    }
}

/// What there is of a GPU before a load, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Most that the process may hold.
    pub limit: u64,
    pub context: u64,
    /// What other engines hold.
    pub others: u64,
}

/// What a model is thought to take, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    pub weights: u64,
    /// Input and output of one frame.
    pub frame_tensors: u64,
    /// Frames that shall run together, at least 1.
    pub frames: usize,
    /// That a run has at the least.
    pub least: usize,
}

/// What an engine gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Limit of the arena, weights included, bytes.
    pub arena: u64,
    pub frames: usize,
    /// Of these frames, bytes.
    pub tensors: u64,
}

/// The limit where none is set: the rest is the desktop's, the decoders', and other programs'.
pub fn automatic(total: u64) -> u64 {
    total / 5 * 4
}

/// Of batches of `frames`.
pub fn tensors(frames: usize, frame_tensors: u64) -> u64 {
    LANES.saturating_mul(frames as u64).saturating_mul(frame_tensors)
}

impl Room {
    /// For one engine with everything.
    pub fn free(&self) -> u64 {
        self.limit.saturating_sub(self.context).saturating_sub(self.others)
    }

    /// With as many frames of those wanted as leave room for the weights.
    ///
    /// # Errors
    /// Not even the least fits.
    pub fn share(&self, wish: &Wish) -> Result<Share, Short> {
        let least = wish.least.max(1);
        let mut frames = wish.frames.max(least);
        loop {
            let tensors = tensors(frames, wish.frame_tensors);
            let arena = self.free().saturating_sub(tensors);
            if arena > 0 && arena >= wish.weights {
                return Ok(Share { arena, frames, tensors });
            }
            if frames <= least {
                let arena = wish.weights;
                return Err(Short { room: *self, weights: arena, arena: 0, tensors, frames });
            }
            frames = ceiling::part(frames).max(least);
        }
    }
}

/// Not enough for the smallest batch, with the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Short {
    pub room: Room,
    pub weights: u64,
    /// Between the layers, as far as is known.
    pub arena: u64,
    pub tensors: u64,
    pub frames: usize,
}

impl Short {
    pub fn error(&self, model: &Path, gpu: u32, detail: impl fmt::Display) -> EngineError {
        let Self { room: Room { limit, context, others }, weights, arena, tensors, frames } = *self;
        let need = GpuUse { context, model: weights, arena, tensors };
        // What was measured is exact; else the arena was at its limit and wanted more.
        let (more, measured) = match arena {
            0 => (" and an arena for what is between its layers", ""),
            _ => (
                "",
                "; it was measured by what the GPU had left, so that other programs may have taken a part meanwhile",
            ),
        };
        let frames = if frames == 1 { "a single frame".into() } else { format!("its {frames} frames") };
        let message = format!(
            "the model {} does not fit into {PROPERTY}={limit} ({}) on GPU {gpu}: {} are wanted for {frames} at the least{more} \
             (context {}, weights {}, arena {}, tensors {}), and {} are held by other engines: raise {PROPERTY}, use a smaller \
             model or one of 16 bits, or run it with device=cpu{measured}",
            model.display(),
            Megabytes(limit),
            Megabytes(need.total()),
            Megabytes(context),
            Megabytes(weights),
            Megabytes(arena),
            Megabytes(tensors),
            Megabytes(others),
        );
        EngineError::new(EngineErrorKind::NoBudget, message, detail).of(Memory::Gpu)
    }
}

/// What a load took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Of the GPU, the context excepted, bytes.
    pub used: u64,
    /// Most frames that have run together.
    pub frames: usize,
    /// Input and output of one of them, bytes.
    pub frame_tensors: u64,
}

/// What a load came to.
pub enum Outcome<T> {
    Loaded(T, Measured),
    /// Not even the least number of frames ran.
    OutOfMemory(EngineError),
}

/// How it ended.
pub struct Fitted<T> {
    pub engine: T,
    pub share: Share,
    pub measured: Measured,
}

/// Has `load` load with what there is room for, and again with smaller batches where it was too much all the same.
///
/// # Errors
/// Those of `load`, and of the last one that ran out of memory or took too much, as [`Short`].
pub fn fit<T>(
    room: &Room,
    mut wish: Wish,
    mut load: impl FnMut(&Share) -> Result<Outcome<T>, EngineError>,
    short: impl Fn(&Short, Option<EngineError>) -> EngineError,
) -> Result<Fitted<T>, EngineError> {
    let mut share = room.share(&wish).map_err(|sum| short(&sum, None))?;
    loop {
        let (arena, error) = match load(&share)? {
            Outcome::Loaded(engine, measured) if measured.used <= room.free() => {
                return Ok(Fitted { engine, share, measured });
            }
            // The tensors were a guess, and what is not the arena's nobody limits.
            Outcome::Loaded(engine, measured) => {
                drop(engine);
                wish.frame_tensors = wish.frame_tensors.max(measured.frame_tensors);
                let other = tensors(measured.frames, measured.frame_tensors).saturating_add(wish.weights);
                wish.frames = share.frames.min(measured.frames);
                (measured.used.saturating_sub(other), None)
            }
            // It has tried fewer frames by itself, but with the tensors of all in the sum.
            Outcome::OutOfMemory(error) => {
                wish.frames = wish.least.max(1);
                (0, Some(error))
            }
        };
        let least = wish.least.max(1);
        if share.frames <= least {
            let sum =
                Short { room: *room, weights: wish.weights, arena, tensors: share.tensors, frames: least };
            return Err(short(&sum, error));
        }
        // Fewer each time, so that there is an end.
        wish.frames = wish.frames.min(ceiling::part(share.frames)).max(least);
        share = room.share(&wish).map_err(|sum| short(&sum, error))?;
    }
}

/// GPUs with a budget of their own; those beyond share the last one's.
pub const GPUS: usize = 16;

/// The budgets of this process. All of one GPU's is reserved by what was measured, or the context's, which is set aside.
static BUDGETS: [Budget; GPUS] = [const { Budget::new(PROPERTY, || 0) }; GPUS];

/// Of the GPU with this number.
pub fn of(gpu: u32) -> &'static Budget {
    &BUDGETS[(gpu as usize).min(GPUS - 1)]
}

/// What CUDA's context takes of this GPU, bytes, as far as is known; 0 before the first engine.
pub fn context(gpu: u32) -> u64 {
    learn_context(gpu, 0)
}

/// A context was made that took so much, which no engine gets from now on; 0, by who found one that was there, says nothing.
pub fn learn_context(gpu: u32, bytes: u64) -> u64 {
    of(gpu).set_aside(bytes)
}

/// What this process's engines and their context hold of this GPU, bytes.
pub fn held(gpu: u32) -> u64 {
    match of(gpu).reserved() {
        0 => 0,
        engines => engines.saturating_add(context(gpu)),
    }
}

/// Engines that are being loaded on each GPU.
static LOADS: [AtomicUsize; GPUS] = [const { AtomicUsize::new(0) }; GPUS];

/// While this is held, what an engine takes of this GPU is measured by what the GPU has left: nobody else of this process takes any.
pub struct Load(&'static AtomicUsize);

impl Load {
    pub fn begin(gpu: u32) -> Self {
        let loads = &LOADS[(gpu as usize).min(GPUS - 1)];
        loads.fetch_add(1, Ordering::SeqCst);
        Self(loads)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

pub fn is_loading(gpu: u32) -> bool {
    LOADS[(gpu as usize).min(GPUS - 1)].load(Ordering::SeqCst) > 0
}

#[cfg(test)]
mod tests;
