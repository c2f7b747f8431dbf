//! Resizes the components of one plane, row after row.

use super::axis::{Axis, Tap};
use super::format::{Plane, Samples};
use super::rows::{Columns, Kernels};

/// One plane's components, resized: the rows of the plane that the picture does not touch are never read.
#[derive(Debug)]
pub(super) struct Resampler {
    plane: usize,
    /// Bytes of one row of the plane.
    row_bytes: usize,
    columns: Columns,
    rows: Axis,
    /// The current row of the picture, component by component.
    current: Vec<f32>,
}

impl Resampler {
    /// Rows of the plane are `row_bytes` long and hold every sample that `x` names.
    pub fn new(samples: Samples, row_bytes: usize, x: Axis, y: Axis) -> Self {
        let columns = Columns::new(samples, row_bytes, x);
        let current = columns.row();
        Self { plane: samples.plane, row_bytes, columns, rows: y, current }
    }

    /// Bytes of the plane's rows that the picture lies on.
    pub fn source_bytes(&self) -> usize {
        // Taps are in the plane's order, so a row that was there before is the last one counted.
        let mut rows = 0;
        let mut end = 0;
        for &Tap { near, far, .. } in &self.rows.taps {
            rows += (far + 1).saturating_sub(near.max(end));
            end = end.max(far + 1);
        }
        rows as usize * self.row_bytes
    }

    /// Makes row `row` of the picture the current one. The planes are long enough for their format.
    pub fn advance(&mut self, kernels: Kernels, planes: &[Plane<'_>], row: usize) {
        let Tap { near, far, weight } = self.rows.taps[row];
        let Plane { data, row_stride } = planes[self.plane];
        let bytes = |row: u32| &data[row as usize * row_stride..][..self.row_bytes];
        if let Some(next) = self.rows.taps.get(row + 1) {
            for row in next.near.max(far + 1)..=next.far {
                kernels.prefetch(bytes(row));
            }
        }
        let far = (weight != 0.0).then(|| (bytes(far), weight));
        self.columns.resample(kernels, bytes(near), far, &mut self.current);
    }

    /// The current row, one slice per component, each at least as long as the picture is wide.
    pub fn components(&self) -> impl Iterator<Item = &[f32]> {
        self.columns.split(&self.current)
    }
}
