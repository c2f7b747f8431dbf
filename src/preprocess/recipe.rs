//! What a conversion does, in numbers, for whoever does it elsewhere than on this processor: the same taps and sums that a
//! [`Converter`](super::Converter) works with.

use super::axis::Tap;
use super::color::{self, Mix};
use super::convert::{axes, padding};
use super::format::FrameFormat;
use super::letterbox::Letterbox;
use super::style::InputStyle;

/// From frames of one format to one model's input, `[3, height, width]`.
///
/// A value of the picture is `gains · components + bias`, clamped to `0..=max`, where each component is a byte, 0..=255, blended between
/// two columns and two rows of its plane. Around the picture lies `padding`.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    pub letterbox: Letterbox,
    /// One to three.
    pub components: Vec<Component>,
    /// Of each channel of the tensor, one for each component; those that there are not have 0.
    pub gains: [[f32; 3]; 3],
    pub bias: [f32; 3],
    pub max: f32,
    pub padding: f32,
}

/// Where one component of a frame's pixels lies.
#[derive(Clone, Debug, PartialEq)]
pub struct Component {
    pub plane: usize,
    /// Bytes from one sample of a row to the next, and to the first.
    pub pixel_stride: usize,
    pub offset: usize,
    /// For each column of the picture, and each row.
    pub x: Vec<Tap>,
    pub y: Vec<Tap>,
}

impl Recipe {
    /// For frames of `format` and a model's input of `model` pixels (width, height).
    pub fn new(format: &FrameFormat, model: (u32, u32), style: &InputStyle) -> Self {
        let letterbox = Letterbox::new((format.width, format.height), model, style.placement);
        let components = format.pixel.samples().iter().flat_map(|&samples| {
            let (x, y) = axes(format, &letterbox, samples);
            samples.offsets.iter().map(move |&offset| Component {
                plane: samples.plane,
                pixel_stride: samples.pixel_stride,
                offset,
                x: x.taps.clone(),
                y: y.taps.clone(),
            })
        });
        let mixes = color::mixes(format, style);
        let max = style.range.max();
        Self {
            letterbox,
            components: components.collect(),
            gains: mixes.map(|mix| match mix {
                Mix::One { component, gain, .. } => {
                    let mut gains = [0.0; 3];
                    gains[component] = gain;
                    gains
                }
                Mix::Three { gains, .. } => gains,
            }),
            bias: mixes.map(|mix| match mix {
                Mix::One { bias, .. } | Mix::Three { bias, .. } => bias,
            }),
            max,
            padding: padding(max),
        }
    }
}
