//! A frame's pixels to the model's input in one pass: resized, converted, scaled and padded row by row,
//! without an image in between.
//!
//! For each row of the picture, the one or two rows of each plane that it lies between are resized, each in the
//! plane's own resolution, and then mixed into red, green and blue; see [`Kernels`]. Nothing between source and
//! tensor is rounded to bytes. Ultralytics resizes bytes, with OpenCV's weights in fixed point, so its values
//! differ by up to one byte's step.

use super::axis::{Axis, Grid};
use super::color::{self, Mix};
use super::format::{FrameFormat, Plane, Samples};
use super::letterbox::Letterbox;
use super::margin::{FrameTensor, Margin, Painted};
use super::resampler::Resampler;
use super::rows::Kernels;
use super::style::{InputStyle, PADDING, TensorMut};
use half::f16;

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
    kernels: Kernels,
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
        Self::with_kernels(format, model, style, Kernels::best())
    }

    /// As [`new`](Self::new), with a version of the inner loops that need not be the fastest.
    pub fn with_kernels(format: FrameFormat, model: (u32, u32), style: InputStyle, kernels: Kernels) -> Self {
        let letterbox = Letterbox::new((format.width, format.height), model, style.placement);
        let resamplers =
            format.pixel.samples().iter().map(|&samples| resampler(&format, &letterbox, samples)).collect();
        Self {
            format,
            letterbox,
            kernels,
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

    /// Bytes of the frame's rows that [`convert`](Self::convert) reads: of those that the picture lies on, each once.
    pub fn source_bytes(&self) -> usize {
        self.resamplers.iter().map(Resampler::source_bytes).sum()
    }

    /// Writes the picture, and the padding around it where that is not there yet. Planes may be larger than needed,
    /// and there may be more of them; bytes between rows, and rows that the picture does not touch, are never read.
    pub fn convert(&mut self, planes: &[Plane<'_>], out: FrameTensor<'_>) -> Result<(), ConvertError> {
        let FrameTensor { values, margin } = out;
        self.check(planes, values.len())?;
        match values {
            TensorMut::F32(values) => self.write(planes, values, margin),
            TensorMut::F16(values) => self.write(planes, values, margin),
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

    fn write<T: Element>(&mut self, planes: &[Plane<'_>], out: &mut [T], margin: &mut Margin) {
        let (width, height) = size(self.letterbox.model());
        let (picture_width, picture_height) = size(self.letterbox.resized());
        let (left, top) = size(self.letterbox.pad());
        let padding = padding(self.max);
        margin.ensure(Painted::new(&self.letterbox, padding, size_of::<T>()), || {
            for channel in out.chunks_exact_mut(width * height) {
                paint_around(channel, width, (left, top), (picture_width, picture_height), padding);
            }
        });
        for row in 0..picture_height {
            for resampler in &mut self.resamplers {
                resampler.advance(self.kernels, planes, row);
            }
            let mut components: [&[f32]; 3] = [&[]; 3];
            let rows = self.resamplers.iter().flat_map(Resampler::components);
            components.iter_mut().zip(rows).for_each(|(component, row)| *component = row);

            for (channel, mix) in out.chunks_exact_mut(width * height).zip(&self.mixes) {
                let line = &mut channel[(top + row) * width + left..][..picture_width];
                T::mix(self.kernels, mix, &components, self.max, line, &mut self.scratch);
            }
        }
    }
}

/// The grey around the picture where white is `max`.
pub(super) fn padding(max: f32) -> f32 {
    f32::from(PADDING) * max / 255.0
}

/// Fills one channel, `width` values a row, but for the picture's rectangle.
fn paint_around<T: Element>(
    channel: &mut [T],
    width: usize,
    (left, top): (usize, usize),
    (picture_width, picture_height): (usize, usize),
    value: f32,
) {
    let value = T::from_f32(value);
    channel[..top * width].fill(value);
    channel[(top + picture_height) * width..].fill(value);
    for line in channel.chunks_exact_mut(width).skip(top).take(picture_height) {
        line[..left].fill(value);
        line[left + picture_width..].fill(value);
    }
}

fn resampler(format: &FrameFormat, letterbox: &Letterbox, samples: Samples) -> Resampler {
    let (x, y) = axes(format, letterbox, samples);
    Resampler::new(samples, format.row_bytes(samples.plane), x, y)
}

/// Which of a plane's columns and rows the picture's are made of.
pub(super) fn axes(format: &FrameFormat, letterbox: &Letterbox, samples: Samples) -> (Axis, Axis) {
    let grid = |subsampled, cosited| match (subsampled, cosited) {
        (false, _) => Grid::Full,
        (true, true) => Grid::Cosited,
        (true, false) => Grid::Between,
    };
    let (frame, resized) = (letterbox.frame(), letterbox.resized());
    let x = grid(samples.subsampled.horizontal, format.chroma.horizontal_cosited);
    let y = grid(samples.subsampled.vertical, format.chroma.vertical_cosited);
    (Axis::new(frame.0, resized.0, x), Axis::new(frame.1, resized.1, y))
}

fn size((x, y): (u32, u32)) -> (usize, usize) {
    (x as usize, y as usize)
}

/// What a tensor is made of.
trait Element: Copy {
    fn from_f32(value: f32) -> Self;
    /// One row of one channel; `scratch` is as long as `out`.
    fn mix(
        kernels: Kernels,
        mix: &Mix,
        components: &[&[f32]; 3],
        max: f32,
        out: &mut [Self],
        scratch: &mut [f32],
    );
}

impl Element for f32 {
    fn from_f32(value: f32) -> Self {
        value
    }

    fn mix(kernels: Kernels, mix: &Mix, components: &[&[f32]; 3], max: f32, out: &mut [f32], _: &mut [f32]) {
        kernels.mix(mix, components, max, out);
    }
}

impl Element for f16 {
    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
    }

    fn mix(
        kernels: Kernels,
        mix: &Mix,
        components: &[&[f32]; 3],
        max: f32,
        out: &mut [f16],
        scratch: &mut [f32],
    ) {
        kernels.mix_f16(mix, components, max, out, scratch);
    }
}
