//! Frames that lie in a GPU's memory, preprocessed there.
//!
//! ```text
//!  planes of the frame, in whatever context of CUDA's its owner has
//!     │ copied on the GPU, into the context that ONNX Runtime uses          (GpuConverter::convert, the streaming thread)
//!  planes, ours
//!     │ letterbox.cu: resized, converted, scaled and padded in one pass
//!  the batch's mirror                                                     (GpuMirror, one beside each tensor)
//!     │ copied on the GPU, between frames that come from the host           (the lane of the engine's worker)
//!  the session's input
//! ```
//!
//! Pixels never reach the host. Both copies are of a few MB in the GPU's own memory, which has hundreds of GB a second: the first spares
//! sharing a context with decoders, and gives their frame back at once; the second lets frames of both kinds share a batch.

mod kernel;
mod mirror;
mod room;

use std::path::Path;
use std::sync::Arc;

use thiserror::Error;

use self::kernel::Frame;
pub use self::mirror::GpuMirror;
use super::gpu::budget;
use super::gpu::check;
use super::gpu::compiler::CompileError;
use super::gpu::driver::{Card, Copies, DeviceMemory, DriverError, Kernel, Launch, Source};
use super::runtime;
use crate::memory::budget::{Consumer, Exceeded, Megabytes, Reservation};
use crate::memory::cuda::Span;
use crate::preprocess::style::InputStyle;
use crate::preprocess::{FrameFormat, Recipe};
use crate::tensor::{Element, Mirror, TensorSlot};

/// Why frames are not converted on the GPU. They can all the same be read on the host.
#[derive(Debug, Error)]
pub enum Refusal {
    #[error(transparent)]
    Compiler(#[from] CompileError),
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error(transparent)]
    Budget(#[from] Exceeded),
    /// Where no budget is set.
    #[error("{} more would be beyond the {} that the process may take of the GPU", Megabytes(*more), Megabytes(*limit))]
    Full { more: u64, limit: u64 },
    #[error("a model is being loaded there")]
    Loading,
    #[error("{0}")]
    Unreadable(String),
    #[error("the frame has {given} planes where its format has {needed}")]
    MissingPlane { needed: usize, given: usize },
    #[error("plane {plane} has {given} bytes where its {rows} rows of {row_stride} need {needed}")]
    PlaneTooSmall { plane: usize, rows: usize, row_stride: usize, needed: usize, given: usize },
    #[error("the tensor has room for {given} elements where one frame has {needed}")]
    TensorSize { needed: usize, given: usize },
    #[error("the batch's frames lie on another GPU")]
    Elsewhere,
}

impl Refusal {
    /// Memory is what is short, which may pass.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Budget(_) | Self::Full { .. } | Self::Loading => true,
            Self::Driver(error) => error.is_out_of_memory(),
            _ => false,
        }
    }
}

/// One plane of a frame on a GPU.
#[derive(Clone, Copy)]
pub struct GpuPlane<'a> {
    pub memory: Span<'a>,
    /// Bytes from one row to the next.
    pub row_stride: usize,
}

/// Converts the frames of one stream for one model, as [`crate::preprocess::Converter`] does on the processor.
pub struct GpuConverter {
    card: Arc<Card>,
    /// Whose frames they are, for the budget.
    owner: String,
    /// Of planes and tables.
    held: Reservation,
    format: FrameFormat,
    recipe: Recipe,
    kernel: Kernel,
    copies: Copies,
    tables: kernel::Tables,
    /// The frame's planes, as large as the largest that came.
    planes: Option<DeviceMemory>,
}

/// Where each plane begins among ours: more than any kernel wants aligned.
const ALIGNMENT: usize = 256;

/// Most planes of a format.
const MAX_PLANES: usize = 3;

/// Of a frame's planes: where each begins among ours, and what is read of it.
type Places<'a> = [Option<(usize, Span<'a>)>; MAX_PLANES];

impl GpuConverter {
    /// For frames of `format` and a model's input of `model` pixels (width, height) on the GPU of this number. Compiles the kernel, which
    /// takes a moment, where the process has none for that GPU.
    ///
    /// # Errors
    /// Where the driver fails, or NVIDIA's compiler is not there.
    pub fn new(
        gpu: u32,
        format: FrameFormat,
        model: (u32, u32),
        style: &InputStyle,
        owner: &str,
    ) -> Result<Self, Refusal> {
        let card = Card::open(gpu)?;
        let folder = runtime::library().and_then(check::folder);
        let kernel = kernel::load(&card, folder.as_deref().unwrap_or(Path::new("/")))?;
        let copies = card.copies()?;
        let recipe = Recipe::new(&format, model, style);
        let tables = kernel::Tables::new(&card, &copies, &recipe)?;
        let mut held = budget::of(gpu).hold(Consumer::Frames, owner);
        held.set(tables.bytes() as u64);
        Ok(Self { card, owner: owner.into(), held, format, recipe, kernel, copies, tables, planes: None })
    }

    /// Has the frame lie in the mirror of the slot's batch; all is done when this returns, and the planes are not needed any more.
    ///
    /// # Errors
    /// Why it does not. The slot can still be filled on the host.
    pub fn convert(&mut self, planes: &[GpuPlane<'_>], slot: &mut TensorSlot) -> Result<(), Refusal> {
        let (places, end) = self.lay_out(planes)?;
        let extent = slot.extent();
        let (width, height) = self.recipe.letterbox.model();
        let needed = 3 * width as usize * height as usize;
        if extent.len != needed {
            return Err(Refusal::TensorSize { needed, given: extent.len });
        }
        let own = self.own_planes(end)?;
        let own = &*self.planes.insert(own);
        let sources = places.into_iter().flatten().map(|(at, plane)| (at, Source::Foreign(plane)));
        let starts = places.map(|place| place.map_or(0, |(at, _)| own.address() + at as u64));
        let strides = std::array::from_fn(|index| planes.get(index).map_or(0, |plane| plane.row_stride));
        let frame = Frame::new(&self.recipe, &self.tables, starts, strides);
        let (card, owner, kernel, copies) = (&self.card, &self.owner, &self.kernel, &self.copies);
        slot.fill_mirror(
            |frames| Ok(Box::new(GpuMirror::new(card, frames, extent.bytes(), owner)?) as Box<dyn Mirror>),
            |mirror, index| {
                let mirror = GpuMirror::of(mirror);
                if !mirror.is_on(card) {
                    return Err(Refusal::Elsewhere);
                }
                let frame = frame.into(mirror.address(index), extent.element == Element::F16);
                let launch = Launch { kernel, size: frame.size(), argument: &frame };
                Ok(copies.gather_and_launch(sources, own, &launch)?)
            },
        )
    }

    /// What is read of each plane, with its place among ours, and where these end.
    fn lay_out<'a>(&self, planes: &[GpuPlane<'a>]) -> Result<(Places<'a>, usize), Refusal> {
        let (needed, given) = (self.format.pixel.planes(), planes.len());
        let planes = planes.get(..needed).ok_or(Refusal::MissingPlane { needed, given })?;
        let (mut places, mut end) = ([None; MAX_PLANES], 0);
        for (index, (plane, place)) in planes.iter().zip(&mut places).enumerate() {
            let GpuPlane { memory, row_stride } = *plane;
            let (needed, given) = (self.format.plane_bytes(index, row_stride), memory.bytes());
            let rows = self.format.rows(index);
            let rows_fit = row_stride >= self.format.row_bytes(index) || rows == 1;
            let Some(memory) = memory.part(0..needed).filter(|_| rows_fit) else {
                return Err(Refusal::PlaneTooSmall { plane: index, rows, row_stride, needed, given });
            };
            *place = Some((end, memory));
            end = (end + needed).next_multiple_of(ALIGNMENT);
        }
        Ok((places, end))
    }

    /// Memory for planes of so many bytes: that of the frame before, unless it is too small.
    fn own_planes(&mut self, bytes: usize) -> Result<DeviceMemory, Refusal> {
        if let Some(own) = self.planes.take().filter(|own| own.bytes() >= bytes) {
            return Ok(own);
        }
        // What was too small is gone before there is more.
        self.held.set(self.tables.bytes() as u64);
        room::take(&self.card, &mut self.held, bytes as u64)?;
        self.card.alloc(bytes).map_err(|error| {
            self.held.set(self.tables.bytes() as u64);
            error.into()
        })
    }
}
