//! Non-maximum suppression: of boxes that overlap too much, the most confident stays.

use std::array;

use super::candidates::Candidate;
use super::vectors::{Kernel, vectorised};
use crate::detection::Rect;

/// Boxes that are compared with a candidate at once.
const LANES: usize = 8;

/// The candidates' order: falling confidence, equal ones as they stand. Reused from frame to frame.
///
/// Whole numbers are sorted, in which the confidence stands above the place: no comparison looks a candidate up, and no
/// two are equal, so that an unstable sort, which needs no memory, gives what a stable one would.
#[derive(Debug, Default)]
pub(super) struct Ranking(Vec<u64>);

impl Ranking {
    /// Ranks `candidates`; only the `most` confident ones, where there are more.
    pub(super) fn rank(&mut self, candidates: &[Candidate], most: usize) {
        self.0.clear();
        self.0.extend(
            (0_u32..)
                .zip(candidates)
                .map(|(place, candidate)| u64::from(falling(candidate.confidence)) << 32 | u64::from(place)),
        );
        if self.0.len() > most {
            self.0.select_nth_unstable(most);
            self.0.truncate(most);
        }
        self.0.sort_unstable();
    }

    /// Places among the candidates, the most confident one's first.
    pub(super) fn places(&self) -> impl Iterator<Item = u32> {
        self.0.iter().map(|key| *key as u32)
    }
}

/// Rises as the number falls, in the order of [`f32::total_cmp`].
fn falling(number: f32) -> u32 {
    let bits = number.to_bits();
    // Positive numbers' bits rise with them; negative ones' fall.
    if bits >> 31 == 0 { !bits & (u32::MAX >> 1) } else { bits }
}

/// Greedy suppression over ranked candidates, with buffers that are reused.
///
/// What was kept is chained by class in blocks, most recent first, so that a candidate meets the kept boxes of its own
/// class only, and eight of them at once.
#[derive(Debug, Default)]
pub(super) struct Nms {
    /// Per class, the index into `blocks` of its most recent one.
    latest: Vec<Option<u32>>,
    /// Per block, the one of the same class that was filled before. Apart from the blocks and small, so that the next
    /// block is known before this one has come from memory.
    earlier: Vec<Option<u32>>,
    blocks: Vec<Block>,
    /// Places among the candidates.
    kept: Vec<u32>,
}

/// Boxes of one class by their sides.
#[derive(Debug)]
struct Block {
    x1: [f32; LANES],
    y1: [f32; LANES],
    x2: [f32; LANES],
    y2: [f32; LANES],
    area: [f32; LANES],
    /// How many there are; the other lanes hold a box that meets none.
    filled: usize,
}

impl Block {
    const EMPTY: Self = Self {
        x1: [f32::MAX; LANES],
        y1: [f32::MAX; LANES],
        x2: [f32::MIN; LANES],
        y2: [f32::MIN; LANES],
        area: [0.0; LANES],
        filled: 0,
    };

    fn push(&mut self, rect: &Rect) {
        let lane = self.filled;
        (self.x1[lane], self.y1[lane], self.x2[lane], self.y2[lane]) = (rect.x1, rect.y1, rect.x2, rect.y2);
        self.area[lane] = rect.area();
        self.filled += 1;
    }

    /// Whether any of the boxes overlaps `rect` by more than `iou`; as [`Rect::iou`] has it, box by box.
    #[inline(always)]
    fn overlaps(&self, rect: &Rect, area: f32, iou: f32) -> bool {
        // Not `f32::min` and `max`: coordinates are finite, and those have to think of NaN.
        let min = |a: f32, b: f32| if a < b { a } else { b };
        let max = |a: f32, b: f32| if a > b { a } else { b };
        let intersection: [f32; LANES] = array::from_fn(|lane| {
            let width = max(min(self.x2[lane], rect.x2) - max(self.x1[lane], rect.x1), 0.0);
            let height = max(min(self.y2[lane], rect.y2) - max(self.y1[lane], rect.y1), 0.0);
            width * height
        });
        // Most boxes do not meet: spare those the division.
        if !intersection.iter().fold(false, |any, intersection| any | (*intersection > 0.0)) {
            return false;
        }
        intersection.iter().zip(&self.area).fold(false, |any, (intersection, other)| {
            any | ((*intersection > 0.0) & (intersection / (other + area - intersection) > iou))
        })
    }
}

impl Nms {
    /// Keeps of `candidates`, in the order of `ranking`, each one whose IoU with every kept box of its class (of any
    /// class, if `class_agnostic`) is not above `iou`; at most `limit`. Gives what is kept in that order. Candidates of
    /// a class not below `classes` are left out.
    ///
    /// The same as offsetting the boxes by class and suppressing all against all, as Ultralytics does,
    /// without the rounding that the offsets bring.
    pub(super) fn select<'a>(
        &'a mut self,
        candidates: &'a [Candidate],
        ranking: &Ranking,
        classes: usize,
        class_agnostic: bool,
        iou: f32,
        limit: usize,
    ) -> impl Iterator<Item = &'a Candidate> {
        self.kept.clear();
        self.blocks.clear();
        self.earlier.clear();
        self.latest.clear();
        self.latest.resize(if class_agnostic { 1 } else { classes }, None);
        vectorised(Suppress { nms: self, candidates, ranking, class_agnostic, iou, limit });
        self.kept.iter().map(|place| &candidates[*place as usize])
    }

    /// Whether any box of the chain overlaps `rect` by more than `iou`.
    #[inline(always)]
    fn overlaps(&self, mut chain: Option<u32>, rect: &Rect, area: f32, iou: f32) -> bool {
        while let Some(index) = chain {
            if self.blocks[index as usize].overlaps(rect, area, iou) {
                return true;
            }
            chain = self.earlier[index as usize];
        }
        false
    }

    fn keep(&mut self, place: u32, rect: &Rect, class: usize) {
        self.kept.push(place);
        let latest = self.latest[class];
        let index = match latest {
            Some(index) if self.blocks[index as usize].filled < LANES => index,
            _ => {
                let index = self.blocks.len() as u32;
                self.blocks.push(Block::EMPTY);
                self.earlier.push(latest);
                self.latest[class] = Some(index);
                index
            }
        };
        self.blocks[index as usize].push(rect);
    }
}

/// See [`Nms::select`].
struct Suppress<'a> {
    nms: &'a mut Nms,
    candidates: &'a [Candidate],
    ranking: &'a Ranking,
    class_agnostic: bool,
    iou: f32,
    limit: usize,
}

impl Kernel for Suppress<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for place in self.ranking.places() {
            if self.nms.kept.len() >= self.limit {
                break;
            }
            let candidate = &self.candidates[place as usize];
            let chain = if self.class_agnostic { 0 } else { candidate.class as usize };
            let Some(&latest) = self.nms.latest.get(chain) else { continue };
            if !self.nms.overlaps(latest, &candidate.rect, candidate.rect.area(), self.iou) {
                self.nms.keep(place, &candidate.rect, chain);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(index: usize, rect: Rect, class: u32) -> Candidate {
        Candidate { rect, confidence: 1.0 - index as f32 / 65_536.0, class }
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
        let mut ranking = Ranking::default();
        ranking.rank(candidates, usize::MAX);
        Nms::default().select(candidates, &ranking, 4, agnostic, iou, limit).copied().collect()
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
