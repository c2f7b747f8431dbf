//! From a model's output to detections: how the output is laid out ([`head`]), its candidates, their
//! suppression, the letterbox undone. Pure arithmetic on slices.
//!
//! The results are those of Ultralytics' `predict`: the best class per candidate, strict thresholds,
//! class-aware suppression, at most [`MAX_CANDIDATES`] candidates into it. Beyond that, what a broken
//! model may write is dropped: see [`decode`].

mod candidates;
pub mod head;
mod literal;
pub mod metadata;
mod nms;
mod scan;
mod vectors;

use half::f16;

pub use head::{Head, Layout, LayoutError, OutputShape};
pub use metadata::ModelMetadata;

use crate::detection::{ClassId, Detection};
use crate::preprocess::letterbox::Letterbox;
use candidates::{Candidate, Collect};
use nms::{Nms, Ranking};
use scan::Marks;
use vectors::vectorised;

/// So many candidates, the most confident, go into the suppression (`max_nms` in Ultralytics).
pub const MAX_CANDIDATES: usize = 30_000;

/// One frame's part of the output that the layout names, [`Layout::frame_len`] values.
#[derive(Clone, Copy, Debug)]
pub enum OutputRef<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
}

impl OutputRef<'_> {
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Thresholds {
    /// 0..=1; a detection is above it.
    pub confidence: f32,
    /// 0..=1; two detections of a class overlap by at most this (IoU).
    pub iou: f32,
    /// Suppress across classes.
    pub class_agnostic: bool,
    /// Per frame.
    pub max_detections: usize,
    /// Only these classes; `None` for all.
    pub classes: Option<ClassFilter>,
}

impl Default for Thresholds {
    /// Those of Ultralytics' `predict`.
    fn default() -> Self {
        Self { confidence: 0.25, iou: 0.7, class_agnostic: false, max_detections: 300, classes: None }
    }
}

/// A set of classes. Holds no more than the ids given, whatever their values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClassFilter(Box<[ClassId]>);

impl ClassFilter {
    /// Repeated ids count once; an empty set lets no detection through.
    pub fn from_ids(ids: impl IntoIterator<Item = ClassId>) -> Self {
        let mut ids: Vec<ClassId> = ids.into_iter().collect();
        ids.sort_unstable();
        ids.dedup();
        Self(ids.into_boxed_slice())
    }

    pub fn contains(&self, class: ClassId) -> bool {
        self.0.binary_search(&class).is_ok()
    }

    /// In rising order.
    pub fn ids(&self) -> &[ClassId] {
        &self.0
    }
}

/// Buffers that decoding reuses; one per thread that decodes. They grow to the busiest frame seen.
#[derive(Debug, Default)]
pub struct Scratch {
    marks: Marks,
    candidates: Vec<Candidate>,
    ranking: Ranking,
    nms: Nms,
}

/// Replaces the content of `out` with the detections in `output`: boxes in pixels of the frame that
/// `letterbox` was made for, cut to it, by falling confidence (equal ones in the output's order), at most
/// [`Thresholds::max_detections`].
///
/// The confidence is the best class score, times the objectness where the head has one; the first of
/// equal classes counts. An end-to-end head's detections are filtered by confidence and class but not
/// suppressed.
///
/// Dropped are: a candidate with a NaN or an infinity in its box, objectness or any class score; a box
/// without area (also one with its corners swapped), in the model's input or within the frame; an
/// end-to-end class that is no class of the model. A confidence above 1 counts as 1.
///
/// An `output` of another length than [`Layout::frame_len`] gives no detections.
pub fn decode(
    layout: &Layout,
    output: OutputRef<'_>,
    thresholds: &Thresholds,
    letterbox: &Letterbox,
    scratch: &mut Scratch,
    out: &mut Vec<Detection>,
) {
    out.clear();
    let Scratch { marks, candidates, ranking, nms } = scratch;
    candidates.clear();
    if !layout.is_sound() || output.len() != layout.frame_len() {
        return;
    }
    match output {
        OutputRef::F32(output) => vectorised(Collect { layout, output, thresholds, marks, candidates }),
        OutputRef::F16(output) => vectorised(Collect { layout, output, thresholds, marks, candidates }),
    }
    ranking.rank(candidates, MAX_CANDIDATES);

    let to_detection = |candidate: &Candidate| {
        let rect = letterbox.to_frame(candidate.rect);
        // Nothing is left of a box that lies in the letterbox's margin.
        let visible = rect.is_finite() && rect.x2 > rect.x1 && rect.y2 > rect.y1;
        visible.then_some(Detection { rect, confidence: candidate.confidence, class: candidate.class })
    };
    let limit = thresholds.max_detections;
    match layout.head {
        Head::End2End => {
            let ranked = ranking.places().map(|place| &candidates[place as usize]);
            out.extend(ranked.filter_map(to_detection).take(limit));
        }
        Head::V5 | Head::V8 | Head::Yolox => {
            let classes = layout.classes.unwrap_or(0);
            let kept =
                nms.select(candidates, ranking, classes, thresholds.class_agnostic, thresholds.iou, limit);
            out.extend(kept.filter_map(to_detection));
        }
    }
}

#[cfg(test)]
mod tests;
