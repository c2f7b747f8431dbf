//! From a frame's components to the tensor's channels: one affine sum per channel, computed once per stream.

use super::format::{ColorModel, FrameFormat, Range};
use super::style::{ChannelOrder, InputStyle};

/// How one channel of the tensor is made from the components (each 0..=255). The sum is clamped to
/// `0..=max`; the value range's scale is already in gains and biases.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mix {
    /// `gain * components[component] + bias`
    One { component: usize, gain: f32, bias: f32 },
    /// `gains · components + bias`
    Three { gains: [f32; 3], bias: f32 },
}

/// The tensor's three channels, in its own order.
pub(super) fn mixes(format: &FrameFormat, style: &InputStyle) -> [Mix; 3] {
    let scale = f64::from(style.range.max()) / 255.0;
    // Black, and the spans that stand for 0..=255 of luma or RGB, and for one whole swing of chroma.
    let (black, luma_span, chroma_span) = match format.colorimetry.range {
        Range::Full => (0.0, 255.0, 255.0),
        Range::Limited => (16.0, 219.0, 224.0),
    };
    let luma = scale * 255.0 / luma_span;
    let chroma = scale * 255.0 / chroma_span;
    let one = |component| Mix::One { component, gain: luma as f32, bias: (-luma * black) as f32 };
    let three = |cb: f64, cr: f64| {
        let (cb, cr) = (cb * chroma, cr * chroma);
        let bias = -luma * black - 128.0 * (cb + cr);
        Mix::Three { gains: [luma as f32, cb as f32, cr as f32], bias: bias as f32 }
    };
    let [red, green, blue] = match format.pixel.color_model() {
        ColorModel::Rgb => [one(0), one(1), one(2)],
        ColorModel::Gray => [one(0); 3],
        ColorModel::Yuv => {
            // The inverse of Y = Kr R + Kg G + Kb B, Cb = (B - Y) / (2 (1 - Kb)), Cr = (R - Y) / (2 (1 - Kr)).
            let (kr, kb) = format.colorimetry.matrix.kr_kb();
            let kg = 1.0 - kr - kb;
            let (cr_to_red, cb_to_blue) = (2.0 * (1.0 - kr), 2.0 * (1.0 - kb));
            [
                three(0.0, cr_to_red),
                three(-cb_to_blue * kb / kg, -cr_to_red * kr / kg),
                three(cb_to_blue, 0.0),
            ]
        }
    };
    match style.order {
        ChannelOrder::Rgb => [red, green, blue],
        ChannelOrder::Bgr => [blue, green, red],
    }
}
