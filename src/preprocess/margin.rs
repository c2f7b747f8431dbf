//! The grey around the picture, painted once for each place and geometry.

use super::letterbox::Letterbox;
use super::style::TensorMut;

/// What was painted around the picture in one frame's place in a tensor. It belongs to the place: another converter
/// paints again only where its geometry or its grey differs. Whoever writes there in another way makes it the default
/// again, which is not painted.
#[derive(Debug, Default)]
pub struct Margin(Option<Painted>);

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Painted {
    model: (u32, u32),
    resized: (u32, u32),
    pad: (u32, u32),
    /// In the tensor, before it is rounded to its element.
    value: f32,
    element_size: usize,
}

impl Painted {
    pub fn new(letterbox: &Letterbox, value: f32, element_size: usize) -> Self {
        let (model, resized, pad) = (letterbox.model(), letterbox.resized(), letterbox.pad());
        Self { model, resized, pad, value, element_size }
    }
}

impl Margin {
    /// Lets `paint` paint what is not painted yet.
    pub(super) fn ensure(&mut self, wanted: Painted, paint: impl FnOnce()) {
        if self.0 != Some(wanted) {
            // Should `paint` not come to its end, nothing counts as painted.
            self.0 = None;
            paint();
            self.0 = Some(wanted);
        }
    }
}

/// One frame's place in a tensor, and what is painted there.
#[derive(Debug)]
pub struct FrameTensor<'a> {
    pub values: TensorMut<'a>,
    pub margin: &'a mut Margin,
}
