//! A frame's pixels to the model's input in one pass: resized, converted, scaled and padded row by row,
//! without an image in between.
//!
//! For each row of the picture, the one or two rows of each plane that it lies between are resized
//! horizontally, each in the plane's own resolution, blended vertically, and then mixed into red, green and
//! blue. Interpolation is in floats. Ultralytics resizes bytes, with OpenCV's weights in fixed point, so its
//! values differ by up to one byte's step.

use super::axis::{Axis, Grid};
use super::color::{self, Mix};
use super::format::{FrameFormat, Plane, Samples};
use super::letterbox::Letterbox;
use super::resampler::Resampler;
use super::rows;
use super::style::{InputStyle, PADDING, TensorMut};
use half::f16;
use half::slice::HalfFloatSliceExt;

/// Why a frame could not be converted. The tensor is untouched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    #[error("the frame has {given} planes where its format has {needed}")]
    MissingPlane { needed: usize, given: usize },
    #[error("plane {plane} has a row stride of {given} bytes where its rows are {needed} bytes long")]
    RowStride { plane: usize, needed: usize, given: usize },
    #[error("plane {plane} has {given} bytes where the frame needs {needed}")]
    PlaneTooSmall { plane: usize, needed: usize, given: usize },
    #[error("the tensor has room for {given} elements where one frame has {needed}")]
    TensorSize { needed: usize, given: usize },
}

/// Converts the frames of one stream for one model. All tables and scratch rows are made once; they grow with
/// the model's width and height, not with the frame.
#[derive(Debug)]
pub struct Converter {
    format: FrameFormat,
    letterbox: Letterbox,
    resamplers: Vec<Resampler>,
    mixes: [Mix; 3],
    /// White in the tensor.
    max: f32,
    /// One row of floats on the way to f16.
    scratch: Vec<f32>,
}

impl Converter {
    /// For frames of `format` and a model's input of `model` pixels (width, height).
    pub fn new(format: FrameFormat, model: (u32, u32), style: InputStyle) -> Self {
        let letterbox = Letterbox::new((format.width, format.height), model, style.placement);
        let resamplers =
            format.pixel.samples().iter().map(|&samples| resampler(&format, &letterbox, samples)).collect();
        Self {
            format,
            letterbox,
            resamplers,
            mixes: color::mixes(&format, &style),
            max: style.range.max(),
            scratch: vec![0.0; letterbox.resized().0 as usize],
        }
    }

    pub fn letterbox(&self) -> &Letterbox {
        &self.letterbox
    }

    pub fn format(&self) -> &FrameFormat {
        &self.format
    }

    /// Writes every element of `out`, the padding too. Planes may be larger than needed, and there may be
    /// more of them; bytes between rows are never read.
    pub fn convert(&mut self, planes: &[Plane<'_>], out: TensorMut<'_>) -> Result<(), ConvertError> {
        self.check(planes, out.len())?;
        self.resamplers.iter_mut().for_each(Resampler::start_frame);
        match out {
            TensorMut::F32(out) => self.write(planes, out),
            TensorMut::F16(out) => self.write(planes, out),
        }
        Ok(())
    }

    fn check(&self, planes: &[Plane<'_>], elements: usize) -> Result<(), ConvertError> {
        let needed = self.format.pixel.planes();
        if planes.len() < needed {
            return Err(ConvertError::MissingPlane { needed, given: planes.len() });
        }
        for (plane, &Plane { data, row_stride }) in planes.iter().enumerate().take(needed) {
            let needed = self.format.row_bytes(plane);
            // The stride of a single row means nothing.
            if row_stride < needed && self.format.rows(plane) > 1 {
                return Err(ConvertError::RowStride { plane, needed, given: row_stride });
            }
            let needed = self.format.plane_bytes(plane, row_stride);
            if data.len() < needed {
                return Err(ConvertError::PlaneTooSmall { plane, needed, given: data.len() });
            }
        }
        let (width, height) = self.letterbox.model();
        let needed = (width as usize).saturating_mul(height as usize).saturating_mul(3);
        if elements != needed {
            return Err(ConvertError::TensorSize { needed, given: elements });
        }
        Ok(())
    }

    fn write<T: Element>(&mut self, planes: &[Plane<'_>], out: &mut [T]) {
        let (width, height) = size(self.letterbox.model());
        let (picture_width, picture_height) = size(self.letterbox.resized());
        let (left, top) = size(self.letterbox.pad());
        let padding = T::from_f32(f32::from(PADDING) * self.max / 255.0);

        for channel in out.chunks_exact_mut(width * height) {
            channel[..top * width].fill(padding);
            channel[(top + picture_height) * width..].fill(padding);
        }
        for row in 0..picture_height {
            for resampler in &mut self.resamplers {
                resampler.advance(planes, row);
            }
            let mut components: [&[f32]; 3] = [&[]; 3];
            let rows = self.resamplers.iter().flat_map(Resampler::components);
            components.iter_mut().zip(rows).for_each(|(component, row)| *component = row);

            for (channel, mix) in out.chunks_exact_mut(width * height).zip(&self.mixes) {
                let line = &mut channel[(top + row) * width..][..width];
                line[..left].fill(padding);
                line[left + picture_width..].fill(padding);
                T::write(&mut line[left..left + picture_width], &mut self.scratch, |line| {
                    rows::mix(mix, &components, self.max, line)
                });
            }
        }
    }
}

fn resampler(format: &FrameFormat, letterbox: &Letterbox, samples: Samples) -> Resampler {
    let grid = |subsampled, cosited| match (subsampled, cosited) {
        (false, _) => Grid::Full,
        (true, true) => Grid::Cosited,
        (true, false) => Grid::Between,
    };
    let (frame, resized) = (letterbox.frame(), letterbox.resized());
    let x = grid(samples.subsampled.horizontal, format.chroma.horizontal_cosited);
    let y = grid(samples.subsampled.vertical, format.chroma.vertical_cosited);
    Resampler::new(
        samples,
        format.row_bytes(samples.plane),
        Axis::new(frame.0, resized.0, x),
        Axis::new(frame.1, resized.1, y),
    )
}

fn size((x, y): (u32, u32)) -> (usize, usize) {
    (x as usize, y as usize)
}

/// What a tensor is made of.
trait Element: Copy {
    fn from_f32(value: f32) -> Self;
    /// Lets `fill` write a row of floats, into `out` itself or by way of `scratch`, which is as long.
    fn write(out: &mut [Self], scratch: &mut [f32], fill: impl FnOnce(&mut [f32]));
}

impl Element for f32 {
    fn from_f32(value: f32) -> Self {
        value
    }

    fn write(out: &mut [f32], _: &mut [f32], fill: impl FnOnce(&mut [f32])) {
        fill(out);
    }
}

impl Element for f16 {
    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
    }

    fn write(out: &mut [f16], scratch: &mut [f32], fill: impl FnOnce(&mut [f32])) {
        fill(scratch);
        out.convert_from_f32_slice(scratch);
    }
}
