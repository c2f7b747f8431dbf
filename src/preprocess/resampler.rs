//! Resizes the components of one plane, row after row.

use super::axis::{Axis, Tap};
use super::format::{Plane, Samples};
use super::rows;

/// No row of the plane: a plane has fewer rows than that.
const NONE: u32 = u32::MAX;
const BLENDED: usize = 2;

/// Horizontally resized rows of one plane: the two that the current row of the picture lies between, and
/// their blend. A row that the next row of the picture needs again is kept, so that each row of the plane is
/// resized at most once, and never where the picture does not touch it.
#[derive(Debug)]
pub(super) struct Resampler {
    samples: Samples,
    /// Bytes of one row of the plane.
    row_bytes: usize,
    x: Axis,
    y: Axis,
    /// Each holds one row of floats per component.
    buffers: [Vec<f32>; 3],
    /// The plane's row that lies in each of the first two buffers.
    held: [u32; 2],
    current: usize,
}

impl Resampler {
    pub fn new(samples: Samples, row_bytes: usize, x: Axis, y: Axis) -> Self {
        let buffer = vec![0.0; samples.offsets.len() * x.taps.len()];
        let buffers = [buffer.clone(), buffer.clone(), buffer];
        Self { samples, row_bytes, x, y, buffers, held: [NONE; 2], current: 0 }
    }

    pub fn start_frame(&mut self) {
        self.held = [NONE; 2];
    }

    /// Makes row `row` of the picture the current one. The planes are long enough for their format.
    pub fn advance(&mut self, planes: &[Plane<'_>], row: usize) {
        let Tap { near, far, weight } = self.y.taps[row];
        let plane = &planes[self.samples.plane];
        let near_buffer = if self.held[1] == near { 1 } else { 0 };
        self.hold(plane, near, near_buffer);
        self.current = near_buffer;
        if weight != 0.0 {
            self.hold(plane, far, 1 - near_buffer);
            let [first, second, blended] = &mut self.buffers;
            let (near, far) = if near_buffer == 0 { (first, second) } else { (second, first) };
            rows::blend(near, far, weight, blended);
            self.current = BLENDED;
        }
    }

    fn hold(&mut self, plane: &Plane<'_>, row: u32, buffer: usize) {
        if self.held[buffer] != row {
            let start = row as usize * plane.row_stride;
            let bytes = &plane.data[start..start + self.row_bytes];
            let Samples { pixel_stride, offsets, .. } = self.samples;
            rows::resample(bytes, pixel_stride, offsets, &self.x, &mut self.buffers[buffer]);
            self.held[buffer] = row;
        }
    }

    /// The current row, one slice per component.
    pub fn components(&self) -> impl Iterator<Item = &[f32]> {
        self.buffers[self.current].chunks_exact(self.x.taps.len())
    }
}
