//! What a family of models wants to be fed with.

use super::letterbox::Placement;
use half::f16;

/// The grey that surrounds the picture, 0..=255 on every channel; Ultralytics and YOLOX train with it.
pub const PADDING: u8 = 114;

/// Which colour the tensor's first plane holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChannelOrder {
    Rgb,
    Bgr,
}

/// What black and white are in the tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ValueRange {
    /// 0..=1
    Unit,
    /// 0..=255
    Byte,
}

impl ValueRange {
    /// White.
    pub fn max(self) -> f32 {
        match self {
            Self::Unit => 1.0,
            Self::Byte => 255.0,
        }
    }
}

/// Letterbox, channel order and value range that a model was trained with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InputStyle {
    pub placement: Placement,
    pub order: ChannelOrder,
    pub range: ValueRange,
}

impl InputStyle {
    /// Ultralytics' v5, v8 and later: centred, RGB, 0..=1.
    pub const ULTRALYTICS: Self =
        Self { placement: Placement::Center, order: ChannelOrder::Rgb, range: ValueRange::Unit };
    /// YOLOX since 0.1.1: top left, BGR as OpenCV reads it, 0..=255.
    pub const YOLOX: Self =
        Self { placement: Placement::TopLeft, order: ChannelOrder::Bgr, range: ValueRange::Byte };
}

/// One frame's place in the input tensor: `3 * height * width` elements, one plane per channel (NCHW).
#[derive(Debug)]
pub enum TensorMut<'a> {
    F32(&'a mut [f32]),
    F16(&'a mut [f16]),
}

impl TensorMut<'_> {
    /// Elements, not bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(tensor) => tensor.len(),
            Self::F16(tensor) => tensor.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
