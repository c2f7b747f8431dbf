//! From a head's output to candidates: boxes in pixels of the model's input that are confident enough.
//! One function per head; the tensor is read where it lies, never transposed or copied.

use super::Thresholds;
use super::head::{Head, Layout, grid_size};
use super::scan::{LANES, Marks, Value, best_class, best_of_columns, best_product};
use super::vectors::Kernel;
use crate::detection::{ClassId, Rect};

/// A box that is confident enough, before suppression.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    /// Pixels of the model's input; finite, with an area.
    pub rect: Rect,
    /// 0..=1
    pub confidence: f32,
    pub class: ClassId,
}

/// Appends the candidates in one frame's `output` of [`Layout::frame_len`] values, in the output's order.
pub(super) struct Collect<'a, T> {
    pub layout: &'a Layout,
    pub output: &'a [T],
    pub thresholds: &'a Thresholds,
    pub marks: &'a mut Marks,
    pub candidates: &'a mut Vec<Candidate>,
}

impl<T: Value> Kernel for Collect<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { layout, output, thresholds, marks, candidates } = self;
        let mut sink = Sink { thresholds, candidates };
        match layout.head {
            Head::V8 => v8(layout, output, marks, &mut sink),
            Head::V5 => v5(layout, output, &mut sink),
            Head::Yolox => yolox(layout, output, &mut sink),
            Head::End2End => end2end(layout, output, &mut sink),
        }
    }
}

/// Where every candidate is judged by the same rules.
struct Sink<'a> {
    thresholds: &'a Thresholds,
    candidates: &'a mut Vec<Candidate>,
}

impl Sink<'_> {
    fn push(&mut self, rect: Rect, class: ClassId, confidence: f32) {
        // Ordered comparisons: NaN fails each of them.
        let confident = confidence > self.thresholds.confidence && confidence.is_finite();
        let has_area = rect.x2 > rect.x1 && rect.y2 > rect.y1 && rect.is_finite();
        let wanted = self.thresholds.classes.as_ref().is_none_or(|classes| classes.contains(class));
        if confident && has_area && wanted {
            let confidence = confidence.clamp(0.0, 1.0);
            self.candidates.push(Candidate { rect, confidence, class });
        }
    }
}

#[inline(always)]
fn v8<T: Value>(layout: &Layout, output: &[T], marks: &mut Marks, sink: &mut Sink<'_>) {
    let n = layout.candidates;
    let classes = layout.classes.unwrap_or(0);
    let (boxes, scores) = output.split_at(layout.first_score() * n);
    let scores = &scores[..classes * n];

    // Most candidates are below the threshold everywhere. One pass over the scores as they lie in memory finds the
    // others; a class that is not wanted makes no candidate, so its scores are not even read.
    match (T::cutoff(sink.thresholds.confidence), &sink.thresholds.classes) {
        (None, _) => marks.mark_all(n),
        (Some(cutoff), None) => {
            marks.clear(n);
            scores.chunks_exact(n).for_each(|row| marks.mark(row, cutoff));
        }
        (Some(cutoff), Some(wanted)) => {
            marks.clear(n);
            let rows = wanted.ids().iter().filter_map(|class| scores.chunks_exact(n).nth(*class as usize));
            rows.for_each(|row| marks.mark(row, cutoff));
        }
    }
    for (first, group) in marks.groups() {
        // The last group of a matrix may have fewer columns: it is looked at together with some before it.
        let shift = (first + LANES).saturating_sub(n);
        let together = first.checked_sub(shift).and_then(|first| best_of_columns(scores, n, first));
        for lane in (0..LANES).filter(|lane| group >> lane & 1 == 1) {
            let index = first + lane;
            let column = |values: &[T], row: usize| values[row * n + index].get();
            let best = match &together {
                Some(best) => best[lane + shift],
                None => best_class((0..classes).map(|class| column(scores, class))),
            };
            let Some((class, confidence)) = best else { continue };
            let [cx, cy, w, h] = [0, 1, 2, 3].map(|row| column(boxes, row));
            sink.push(Rect::from_center(cx, cy, w, h), class, confidence);
        }
    }
}

#[inline(always)]
fn v5<T: Value>(layout: &Layout, output: &[T], sink: &mut Sink<'_>) {
    let cutoff = T::cutoff(sink.thresholds.confidence);
    for row in output.chunks_exact(layout.row) {
        if let Some((class, confidence)) = objectness_times_class(layout, row, cutoff, sink) {
            let [cx, cy, w, h] = four(row);
            sink.push(Rect::from_center(cx, cy, w, h), class, confidence);
        }
    }
}

/// The grid undone as in YOLOX's `demo_postprocess`: centres count from their cell, sizes are logarithms,
/// both in units of the level's head stride; levels one after another, each row by row.
#[inline(always)]
fn yolox<T: Value>(layout: &Layout, output: &[T], sink: &mut Sink<'_>) {
    let cutoff = T::cutoff(sink.thresholds.confidence);
    let mut rows = output.chunks_exact(layout.row);
    for &head_stride in layout.head_strides {
        let (grid_rows, grid_columns) = grid_size(layout.input, head_stride);
        let scale = head_stride as f32;
        for (cell, row) in rows.by_ref().take(grid_rows * grid_columns).enumerate() {
            if let Some((class, confidence)) = objectness_times_class(layout, row, cutoff, sink) {
                let (grid_x, grid_y) = (cell % grid_columns, cell / grid_columns);
                let [x, y, w, h] = four(row);
                let (cx, cy) = ((x + grid_x as f32) * scale, (y + grid_y as f32) * scale);
                let rect = Rect::from_center(cx, cy, w.exp() * scale, h.exp() * scale);
                sink.push(rect, class, confidence);
            }
        }
    }
}

#[inline(always)]
fn end2end<T: Value>(layout: &Layout, output: &[T], sink: &mut Sink<'_>) {
    let cutoff = T::cutoff(sink.thresholds.confidence);
    let classes = layout.classes.unwrap_or(MAX_UNNAMED_CLASSES) as f32;
    for row in output.chunks_exact(layout.row) {
        if cutoff.is_some_and(|cutoff| row[4].bits() <= cutoff) {
            continue;
        }
        let [x1, y1, x2, y2] = four(row);
        let (confidence, class) = (row[4].get(), row[5].get());
        if class >= 0.0 && class < classes {
            sink.push(Rect::new(x1, y1, x2, y2), class as ClassId, confidence);
        }
    }
}

/// What an end-to-end model without names may count to. Beyond every vocabulary in use, and exact in f32.
const MAX_UNNAMED_CLASSES: usize = 65_536;

/// Objectness alone rules out nearly all rows, so it is looked at first: one cache line of each row.
#[inline(always)]
fn objectness_times_class<T: Value>(
    layout: &Layout,
    row: &[T],
    cutoff: Option<T::Bits>,
    sink: &Sink<'_>,
) -> Option<(ClassId, f32)> {
    if cutoff.is_some_and(|cutoff| row[4].bits() <= cutoff) {
        return None;
    }
    let objectness = row[4].get();
    if objectness > sink.thresholds.confidence {
        let first = layout.first_score();
        best_product(&row[first..first + layout.classes.unwrap_or(0)], objectness)
    } else {
        None
    }
}

#[inline(always)]
fn four<T: Value>(row: &[T]) -> [f32; 4] {
    [row[0], row[1], row[2], row[3]].map(T::get)
}
