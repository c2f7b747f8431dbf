//! `letterbox.cu` and what it is called with.

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Refusal;
use crate::engine::gpu::compiler::{self, CompileError, Image};
use crate::engine::gpu::driver::{Argument, Card, Copies, DeviceMemory, DriverError, Kernel};
use crate::engine::gpu::kernels::Capability;
use crate::preprocess::{Recipe, Tap};

const SOURCE: &str = include_str!("letterbox.cu");

/// The kernel on this GPU. The compiler is looked for in `folder` first.
pub fn load(card: &Arc<Card>, folder: &Path) -> Result<Kernel, Refusal> {
    let image = image(card.compute_capability(), folder)?;
    Ok(card.kernel(&image, c"letterbox")?)
}

/// Compiled once in a process for each kind of GPU.
fn image(gpu: Capability, folder: &Path) -> Result<Arc<Image>, CompileError> {
    static IMAGES: Mutex<Vec<(Capability, Arc<Image>)>> = Mutex::new(Vec::new());
    // Held meanwhile: streams that start together want the same one.
    let mut images = IMAGES.lock();
    if let Some((_, image)) = images.iter().find(|(of, _)| *of == gpu) {
        return Ok(image.clone());
    }
    let image = Arc::new(compiler::compile("letterbox.cu", SOURCE, gpu, folder)?);
    images.push((gpu, image.clone()));
    Ok(image)
}

/// The recipe's taps on the GPU: for each component those of its columns, then of its rows.
pub struct Tables {
    memory: DeviceMemory,
    /// Where columns and rows of each component begin, bytes.
    starts: [(usize, usize); 3],
}

impl Tables {
    pub fn new(card: &Arc<Card>, copies: &Copies, recipe: &Recipe) -> Result<Self, DriverError> {
        let mut bytes = Vec::new();
        let mut put = |taps: &[Tap]| {
            let start = bytes.len();
            for tap in taps {
                bytes.extend(tap.near.to_ne_bytes());
                bytes.extend(tap.far.to_ne_bytes());
                bytes.extend(tap.weight.to_ne_bytes());
            }
            start
        };
        let mut starts = [(0, 0); 3];
        for (start, component) in starts.iter_mut().zip(&recipe.components) {
            *start = (put(&component.x), put(&component.y));
        }
        let memory = card.alloc(bytes.len())?;
        copies.upload(&bytes, &memory)?;
        Ok(Self { memory, starts })
    }

    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }
}

/// `struct Component` of the kernel.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Component {
    samples: u64,
    x: u64,
    y: u64,
    row_stride: u32,
    pixel_stride: u32,
}

/// `struct Frame` of the kernel, of the same layout.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Frame {
    components: [Component; 3],
    out: u64,
    count: u32,
    width: u32,
    height: u32,
    left: u32,
    top: u32,
    picture_width: u32,
    picture_height: u32,
    halves: u32,
    gains: [[f32; 3]; 3],
    bias: [f32; 3],
    max: f32,
    padding: f32,
}

// SAFETY: member by member as in `letterbox.cu`, whose types have the same sizes and alignments; the converter keeps tables, planes and
// mirror until the kernel is over.
unsafe impl Argument for Frame {}

impl Frame {
    /// With planes that begin at these addresses.
    pub fn new(recipe: &Recipe, tables: &Tables, planes: [u64; 3], strides: [usize; 3]) -> Self {
        let Recipe { letterbox, components, gains, bias, max, padding } = recipe;
        let ((width, height), (left, top)) = (letterbox.model(), letterbox.pad());
        let (picture_width, picture_height) = letterbox.resized();
        let mut frame = Self {
            count: components.len() as u32,
            width,
            height,
            left,
            top,
            picture_width,
            picture_height,
            gains: *gains,
            bias: *bias,
            max: *max,
            padding: *padding,
            ..Self::default()
        };
        let own = frame.components.iter_mut().zip(components).zip(tables.starts);
        for ((own, component), (x, y)) in own {
            let table = |start: usize| tables.memory.address() + start as u64;
            *own = Component {
                samples: planes[component.plane] + component.offset as u64,
                x: table(x),
                y: table(y),
                // Plane and rows were looked at, and are less than what a GPU has.
                row_stride: strides[component.plane] as u32,
                pixel_stride: component.pixel_stride as u32,
            };
        }
        frame
    }

    /// What goes to the address `out`, in 16 bits or in 32.
    pub fn into(self, out: u64, halves: bool) -> Self {
        Self { out, halves: halves.into(), ..self }
    }

    /// Width and height of the model's input.
    pub fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    /// By the rules of C, as the compiler lays the kernel's structure out.
    #[test]
    fn the_argument_is_laid_out_as_in_the_kernel() {
        assert_eq!((size_of::<Component>(), size_of::<Frame>()), (32, 192));
        assert_eq!(offset_of!(Frame, out), 96);
        assert_eq!(offset_of!(Frame, count), 104);
        assert_eq!(offset_of!(Frame, halves), 132);
        assert_eq!(offset_of!(Frame, gains), 136);
        assert_eq!(offset_of!(Frame, padding), 188);
    }
}
