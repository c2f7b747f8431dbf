//! From a video frame to the model's input tensor: where the picture goes ([`letterbox`]) and how its
//! pixels become numbers ([`convert`]), in one pass.
//!
//! `format` names what comes in, `style` what the model wants; `axis`, `color`, `rows` and `resampler` are
//! the parts [`convert`] is made of, and `margin` remembers where the grey around the picture is painted already. [`recipe`] tells a GPU the same.
//!
//! # Why own kernels
//!
//! 1920×1080 NV12 to a 640×640 tensor of f32, one thread, every buffer reused, four frames in turn; times as multiples
//! of the vectorised kernels' (0.25 to 0.7 ms by what else the machine did), each from a run with both in turns:
//!
//! | candidate | multiple |
//! | --- | --- |
//! | own kernels, AVX2 | 1 |
//! | own kernels, scalar | 4.7 |
//! | OpenCV 5.0.0: planes shrunk, then `cvtColorTwoPlane`, split and multiplied with NumPy | 1.6 |
//! | OpenCV 5.0.0: `cvtColor`, `resize`, split and multiplied with NumPy | 10 |
//! | `fast_image_resize` 6.1.0 of both planes, `yuv` 0.8.20, loop into planes of f32 | 3.0 |
//! | `yuv` 0.8.20, `fast_image_resize` 6.1.0, loop into planes of f32 | 4.9 |
//!
//! The libraries write whole pictures of bytes between their steps, which they round to, and none makes a tensor: that
//! last loop alone takes about as long as the vectorised kernels take for all. `benches/against_opencv.sh` prints OpenCV's rows
//! (x86-64); the crates were measured by hand, on an AMD Zen 3 with other work on it, as 10th percentiles of 400
//! conversions. OpenCV's multiples are of medians, under more of it. Not tried: gathers, which are slow where microcode
//! works around their leaks, and stores past the cache. There is no AVX-512 version; such processors run the AVX2 one.

mod axis;
mod color;
pub mod convert;
pub mod format;
pub mod letterbox;
pub mod margin;
pub mod recipe;
mod resampler;
pub mod rows;
pub mod style;
#[cfg(test)]
mod tests;

pub use axis::Tap;
pub use convert::{ConvertError, Converter};
pub use format::{ChromaSite, Colorimetry, FrameFormat, Matrix, PixelFormat, Plane, Range};
pub use letterbox::{Letterbox, Placement};
pub use margin::{FrameTensor, Margin};
pub use recipe::Recipe;
pub use rows::Kernels;
pub use style::{ChannelOrder, InputStyle, TensorMut, ValueRange};
