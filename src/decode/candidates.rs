//! From a head's output to candidates: boxes in pixels of the model's input that are confident enough.
//! One function per head; the tensor is read where it lies, never transposed or copied.

use std::cmp::Ordering;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::Thresholds;
use super::head::{Head, Layout, grid_size};
use crate::detection::{ClassId, Rect};

/// Candidates of a v8 output looked at together: their best scores (2 KiB) stay in the first-level cache
/// while all class rows pass by, and a block of 80 rows (160 KiB) in the second.
const BLOCK: usize = 512;

/// A box that is confident enough, before suppression.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    /// Pixels of the model's input; finite, with an area.
    pub rect: Rect,
    /// 0..=1
    pub confidence: f32,
    pub class: ClassId,
    /// Place in the output: among equally confident ones the first goes first.
    pub index: u32,
}

impl Candidate {
    /// Falling confidence, then place in the output. A total order, so an unstable sort, which needs no
    /// memory, gives what a stable one would.
    pub(super) fn rank(&self, other: &Self) -> Ordering {
        other.confidence.total_cmp(&self.confidence).then(self.index.cmp(&other.index))
    }
}

/// A number as models write it.
pub(super) trait Value: Copy {
    fn get(self) -> f32;

    /// `values` as f32, in `buffer` (of at least their length) where they have to be converted.
    fn widen<'a>(values: &'a [Self], buffer: &'a mut [f32; BLOCK]) -> &'a [f32];
}

impl Value for f32 {
    fn get(self) -> f32 {
        self
    }

    fn widen<'a>(values: &'a [Self], _: &'a mut [f32; BLOCK]) -> &'a [f32] {
        values
    }
}

impl Value for f16 {
    fn get(self) -> f32 {
        self.to_f32()
    }

    fn widen<'a>(values: &'a [Self], buffer: &'a mut [f32; BLOCK]) -> &'a [f32] {
        let buffer = &mut buffer[..values.len()];
        values.convert_to_f32_slice(buffer);
        buffer
    }
}

/// Appends the candidates in one frame's `output` of [`Layout::frame_len`] values.
pub(super) fn collect<T: Value>(
    layout: &Layout,
    output: &[T],
    thresholds: &Thresholds,
    candidates: &mut Vec<Candidate>,
) {
    let mut sink = Sink { thresholds, candidates };
    match layout.head {
        Head::V8 => v8(layout, output, &mut sink),
        Head::V5 => v5(layout, output, &mut sink),
        Head::Yolox => yolox(layout, output, &mut sink),
        Head::End2End => end2end(layout, output, &mut sink),
    }
}

/// Where every candidate is judged by the same rules.
struct Sink<'a> {
    thresholds: &'a Thresholds,
    candidates: &'a mut Vec<Candidate>,
}

impl Sink<'_> {
    fn push(&mut self, index: usize, rect: Rect, class: ClassId, confidence: f32) {
        // Ordered comparisons: NaN fails each of them.
        let confident = confidence > self.thresholds.confidence && confidence.is_finite();
        let has_area = rect.x2 > rect.x1 && rect.y2 > rect.y1 && rect.is_finite();
        let wanted = self.thresholds.classes.as_ref().is_none_or(|classes| classes.contains(class));
        if confident && has_area && wanted {
            let confidence = confidence.clamp(0.0, 1.0);
            self.candidates.push(Candidate { rect, confidence, class, index: index as u32 });
        }
    }
}

/// The first of the highest scores; `None` if any score is not finite, for then the model failed here.
fn best_class(scores: impl Iterator<Item = f32>) -> Option<(ClassId, f32)> {
    let mut best = None;
    for (class, score) in scores.enumerate() {
        if !score.is_finite() {
            return None;
        }
        if best.is_none_or(|(_, highest)| score > highest) {
            best = Some((class as ClassId, score));
        }
    }
    best
}

fn v8<T: Value>(layout: &Layout, output: &[T], sink: &mut Sink<'_>) {
    let n = layout.candidates;
    let classes = layout.classes.unwrap_or(0);
    let (boxes, scores) = output.split_at(layout.first_score() * n);
    let scores = &scores[..classes * n];
    let (mut best, mut buffer) = ([0.0; BLOCK], [0.0; BLOCK]);

    for start in (0..n).step_by(BLOCK) {
        let best = &mut best[..BLOCK.min(n - start)];
        // Most candidates are below the threshold; whether one is above takes only the highest score.
        best.fill(sink.thresholds.confidence);
        for row in scores.chunks_exact(n) {
            let row = T::widen(&row[start..start + best.len()], &mut buffer);
            for (best, &score) in best.iter_mut().zip(row) {
                *best = if score > *best { score } else { *best };
            }
        }
        for (offset, &best) in best.iter().enumerate() {
            if best > sink.thresholds.confidence {
                let index = start + offset;
                let column = |values: &[T], row: usize| values[row * n + index].get();
                let Some((class, confidence)) = best_class((0..classes).map(|c| column(scores, c))) else {
                    continue;
                };
                let [cx, cy, w, h] = [0, 1, 2, 3].map(|row| column(boxes, row));
                sink.push(index, Rect::from_center(cx, cy, w, h), class, confidence);
            }
        }
    }
}

fn v5<T: Value>(layout: &Layout, output: &[T], sink: &mut Sink<'_>) {
    for (index, row) in output.chunks_exact(layout.row).enumerate() {
        if let Some((class, confidence)) = objectness_times_class(layout, row, sink) {
            let [cx, cy, w, h] = four(row);
            sink.push(index, Rect::from_center(cx, cy, w, h), class, confidence);
        }
    }
}

/// The grid undone as in YOLOX's `demo_postprocess`: centres count from their cell, sizes are logarithms,
/// both in units of the level's head stride; levels one after another, each row by row.
fn yolox<T: Value>(layout: &Layout, output: &[T], sink: &mut Sink<'_>) {
    let mut rows = output.chunks_exact(layout.row).enumerate();
    for &head_stride in layout.head_strides {
        let (grid_rows, grid_columns) = grid_size(layout.input, head_stride);
        let scale = head_stride as f32;
        for grid_y in 0..grid_rows {
            for grid_x in 0..grid_columns {
                let Some((index, row)) = rows.next() else { return };
                if let Some((class, confidence)) = objectness_times_class(layout, row, sink) {
                    let [x, y, w, h] = four(row);
                    let (cx, cy) = ((x + grid_x as f32) * scale, (y + grid_y as f32) * scale);
                    let rect = Rect::from_center(cx, cy, w.exp() * scale, h.exp() * scale);
                    sink.push(index, rect, class, confidence);
                }
            }
        }
    }
}

fn end2end<T: Value>(layout: &Layout, output: &[T], sink: &mut Sink<'_>) {
    for (index, row) in output.chunks_exact(layout.row).enumerate() {
        let [x1, y1, x2, y2] = four(row);
        let (confidence, class) = (row[4].get(), row[5].get());
        let classes = layout.classes.unwrap_or(MAX_UNNAMED_CLASSES) as f32;
        if class >= 0.0 && class < classes {
            sink.push(index, Rect::new(x1, y1, x2, y2), class as ClassId, confidence);
        }
    }
}

/// What an end-to-end model without names may count to. Beyond every vocabulary in use, and exact in f32.
const MAX_UNNAMED_CLASSES: usize = 65_536;

/// Objectness alone rules out nearly all rows, so it is looked at first.
fn objectness_times_class<T: Value>(layout: &Layout, row: &[T], sink: &Sink<'_>) -> Option<(ClassId, f32)> {
    let objectness = row[4].get();
    if objectness > sink.thresholds.confidence {
        let first = layout.first_score();
        let scores = &row[first..first + layout.classes.unwrap_or(0)];
        best_class(scores.iter().map(|score| score.get() * objectness))
    } else {
        None
    }
}

fn four<T: Value>(row: &[T]) -> [f32; 4] {
    [row[0], row[1], row[2], row[3]].map(T::get)
}
