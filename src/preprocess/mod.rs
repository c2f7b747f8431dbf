//! From a video frame to the model's input tensor: where the picture goes ([`letterbox`]) and how its
//! pixels become numbers ([`convert`]), in one pass.
//!
//! `format` names what comes in, `style` what the model wants; `axis`, `color`, `rows` and `resampler` are
//! the parts [`convert`] is made of.

mod axis;
mod color;
pub mod convert;
pub mod format;
pub mod letterbox;
pub mod margin;
mod resampler;
pub mod rows;
pub mod style;
#[cfg(test)]
mod tests;

pub use convert::{ConvertError, Converter};
pub use format::{ChromaSite, Colorimetry, FrameFormat, Matrix, PixelFormat, Plane, Range};
pub use letterbox::{Letterbox, Placement};
pub use margin::{FrameTensor, Margin};
pub use rows::Kernels;
pub use style::{ChannelOrder, InputStyle, TensorMut, ValueRange};
