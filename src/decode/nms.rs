//! Non-maximum suppression: of boxes that overlap too much, the most confident stays.

use super::candidates::Candidate;
use crate::detection::Rect;

/// Greedy suppression over sorted candidates, with buffers that are reused.
///
/// What was kept is chained by class, most recent first, so that a candidate meets the kept boxes of its
/// own class only.
#[derive(Debug, Default)]
pub(super) struct Nms {
    /// Per class, the index into `kept` of its most recent box.
    latest: Vec<Option<u32>>,
    kept: Vec<Kept>,
}

#[derive(Debug)]
struct Kept {
    rect: Rect,
    area: f32,
    /// The box of the same class that was kept before.
    earlier: Option<u32>,
    /// Index into the candidates.
    candidate: u32,
}

impl Nms {
    /// Keeps of `candidates`, sorted by falling confidence, each one whose IoU with every kept box of its
    /// class (of any class, if `class_agnostic`) is not above `iou`; at most `limit`. Gives what is
    /// kept in the candidates' order. Candidates of a class not below `classes` are left out.
    ///
    /// The same as offsetting the boxes by class and suppressing all against all, as Ultralytics does,
    /// without the rounding that the offsets bring.
    pub(super) fn select<'a>(
        &'a mut self,
        candidates: &'a [Candidate],
        classes: usize,
        class_agnostic: bool,
        iou: f32,
        limit: usize,
    ) -> impl Iterator<Item = &'a Candidate> {
        self.kept.clear();
        self.latest.clear();
        self.latest.resize(if class_agnostic { 1 } else { classes }, None);
        for (index, candidate) in candidates.iter().enumerate() {
            if self.kept.len() >= limit {
                break;
            }
            let chain = if class_agnostic { 0 } else { candidate.class as usize };
            let Some(&earlier) = self.latest.get(chain) else { continue };
            let area = candidate.rect.area();
            if !self.overlaps(earlier, &candidate.rect, area, iou) {
                self.latest[chain] = Some(self.kept.len() as u32);
                self.kept.push(Kept { rect: candidate.rect, area, earlier, candidate: index as u32 });
            }
        }
        self.kept.iter().map(|kept| &candidates[kept.candidate as usize])
    }

    /// Whether any box of the chain overlaps `rect` by more than `iou`.
    fn overlaps(&self, mut chain: Option<u32>, rect: &Rect, area: f32, iou: f32) -> bool {
        while let Some(index) = chain {
            let kept = &self.kept[index as usize];
            // Most pairs do not meet: spare those the division.
            let intersection = kept.rect.intersection(rect);
            if intersection > 0.0 && intersection / (kept.area + area - intersection) > iou {
                return true;
            }
            chain = kept.earlier;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(index: usize, rect: Rect, class: u32) -> Candidate {
        Candidate { rect, confidence: 1.0 - index as f32 / 65_536.0, class, index: index as u32 }
    }

    /// The definition, all against all.
    fn naive(candidates: &[Candidate], agnostic: bool, iou: f32, limit: usize) -> Vec<Candidate> {
        let mut kept: Vec<Candidate> = Vec::new();
        for candidate in candidates {
            let suppressed = kept.iter().any(|other| {
                (agnostic || other.class == candidate.class) && other.rect.iou(&candidate.rect) > iou
            });
            if !suppressed && kept.len() < limit {
                kept.push(*candidate);
            }
        }
        kept
    }

    fn select(candidates: &[Candidate], agnostic: bool, iou: f32, limit: usize) -> Vec<Candidate> {
        Nms::default().select(candidates, 4, agnostic, iou, limit).copied().collect()
    }

    #[test]
    fn the_threshold_is_strict_and_per_class() {
        // The second covers exactly half of the first: IoU 0.5.
        let (whole, half) = (Rect::new(0.0, 0.0, 10.0, 10.0), Rect::new(0.0, 0.0, 10.0, 5.0));
        let pair = [candidate(0, whole, 1), candidate(1, half, 1)];
        assert_eq!(select(&pair, false, 0.5, 300).len(), 2);
        assert_eq!(select(&pair, false, 0.499, 300), pair[..1]);
        let classes = [candidate(0, whole, 1), candidate(1, half, 2)];
        assert_eq!(select(&classes, false, 0.1, 300).len(), 2);
        assert_eq!(select(&classes, true, 0.1, 300), classes[..1]);
        assert_eq!(select(&classes, false, 0.1, 1), classes[..1]);
        assert_eq!(select(&classes, false, 0.1, 0), []);
        assert_eq!(select(&[candidate(0, whole, 4)], false, 0.5, 300), [], "not one of four classes");
    }

    #[test]
    fn a_suppressed_box_suppresses_none() {
        let at = |index: usize, x: f32| candidate(index, Rect::new(x, 0.0, x + 10.0, 10.0), 0);
        // Each overlaps its neighbour by 0.43; the first and the last by 0.11.
        let row = [at(0, 0.0), at(1, 4.0), at(2, 8.0)];
        assert_eq!(select(&row, false, 0.4, 300), [row[0], row[2]]);
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(
            boxes in prop::collection::vec(
                (0..40_u8, 0..40_u8, 1..30_u8, 1..30_u8, 0..4_u32),
                0..120,
            ),
            agnostic: bool,
            iou in prop_oneof![Just(0.0_f32), Just(0.5), Just(1.0), 0.0..1.0_f32],
            limit in prop_oneof![0..20_usize, Just(300)],
        ) {
            let candidates: Vec<Candidate> = boxes
                .iter()
                .enumerate()
                .map(|(index, &(x, y, w, h, class))| {
                    let (x, y, w, h) = (f32::from(x), f32::from(y), f32::from(w), f32::from(h));
                    candidate(index, Rect::new(x, y, x + w, y + h), class)
                })
                .collect();
            prop_assert_eq!(
                select(&candidates, agnostic, iou, limit),
                naive(&candidates, agnostic, iou, limit)
            );
        }
    }
}
