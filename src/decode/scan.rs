//! The loops over scores: which of many are above the threshold, and which class is the best. Their results are those
//! of [`best_class`] for each candidate, whatever the numbers.

use std::array;

use half::f16;

use crate::detection::ClassId;

/// Scores looked at together.
pub(super) const LANES: usize = 8;

/// Columns whose marks are one word.
const WORD: usize = u64::BITS as usize;

/// A number as models write it.
pub(super) trait Value: Copy {
    /// An integer of the same size.
    type Bits: Copy + PartialOrd;

    fn bits(self) -> Self::Bits;

    fn get(self) -> f32;

    fn widen(values: &[Self; LANES]) -> [f32; LANES];

    /// Of numbers that are above `threshold`, the bits are above these as well, and of others they are not: as signed
    /// integers, floats' bits rise with them from 0 on and are negative where they are. Only a NaN may pass, too.
    ///
    /// `None` where there is no such integer, because the threshold is negative or no number.
    fn cutoff(threshold: f32) -> Option<Self::Bits>;
}

impl Value for f32 {
    type Bits = i32;

    #[inline(always)]
    fn bits(self) -> i32 {
        self.to_bits() as i32
    }

    #[inline(always)]
    fn get(self) -> f32 {
        self
    }

    #[inline(always)]
    fn widen(values: &[Self; LANES]) -> [f32; LANES] {
        *values
    }

    fn cutoff(threshold: f32) -> Option<i32> {
        // -0 counts as 0.
        (threshold >= 0.0).then_some(threshold.abs().bits())
    }
}

impl Value for f16 {
    type Bits = i16;

    #[inline(always)]
    fn bits(self) -> i16 {
        self.to_bits() as i16
    }

    #[inline(always)]
    fn get(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn widen(values: &[Self; LANES]) -> [f32; LANES] {
        values.map(widen_half)
    }

    fn cutoff(threshold: f32) -> Option<i16> {
        let threshold = (threshold >= 0.0).then_some(threshold.abs())?;
        let nearest = f16::from_f32(threshold);
        // Rounded down: what is above the threshold is above the last half that is not.
        Some(if nearest.to_f32() > threshold { nearest.bits() - 1 } else { nearest.bits() })
    }
}

/// `f16::to_f32` as arithmetic, which the compiler turns into vectors; that is a call for each number.
#[inline(always)]
fn widen_half(half: f16) -> f32 {
    const INFINITY: u32 = 0x7c00 << 13;
    // What the exponents' biases differ by, 127 - 15.
    const SCALE: f32 = f32::from_bits((127 + 112) << 23);
    let bits = u32::from(half.to_bits());
    let (sign, magnitude) = ((bits & 0x8000) << 16, (bits & 0x7fff) << 13);
    let special = if magnitude >= INFINITY { f32::INFINITY.to_bits() } else { 0 };
    f32::from_bits((f32::from_bits(magnitude) * SCALE).to_bits() | special | sign)
}

/// A bit for each column of a matrix: whether to look at it more closely. Reused from frame to frame.
#[derive(Debug, Default)]
pub(super) struct Marks(Vec<u64>);

impl Marks {
    /// Unmarks all of so many columns.
    pub(super) fn clear(&mut self, columns: usize) {
        self.0.clear();
        self.0.resize(columns.div_ceil(WORD), 0);
    }

    pub(super) fn mark_all(&mut self, columns: usize) {
        self.0.clear();
        self.0.resize(columns.div_ceil(WORD), u64::MAX);
        if let (Some(last), rest @ 1..) = (self.0.last_mut(), columns % WORD) {
            *last = (1 << rest) - 1;
        }
    }

    /// Marks the columns where the row's bits are above `cutoff`.
    ///
    /// Of many thousand scores a handful is: whether any of a word's is costs one comparison each and no store.
    #[inline(always)]
    pub(super) fn mark<T: Value>(&mut self, row: &[T], cutoff: T::Bits) {
        let (words, rest) = row.as_chunks::<WORD>();
        let (marks, last) = self.0.split_at_mut(words.len());
        for (word, marks) in words.iter().zip(marks) {
            if word.iter().fold(false, |any, value| any | (value.bits() > cutoff)) {
                *marks |= above(word, cutoff);
            }
        }
        if let Some(last) = last.first_mut() {
            *last |= above(rest, cutoff);
        }
    }

    /// The marked columns by groups of [`LANES`]: the group's first column and a bit for each of its columns.
    pub(super) fn groups(&self) -> impl Iterator<Item = (usize, u8)> {
        self.0.iter().enumerate().filter(|(_, word)| **word != 0).flat_map(|(index, word)| {
            let groups = word.to_le_bytes().into_iter().enumerate();
            groups
                .filter(|(_, group)| *group != 0)
                .map(move |(group, bits)| (index * WORD + group * LANES, bits))
        })
    }
}

#[inline(always)]
fn above<T: Value>(values: &[T], cutoff: T::Bits) -> u64 {
    values.iter().rev().fold(0, |bits, value| bits << 1 | u64::from(value.bits() > cutoff))
}

/// In each lane, the first of the highest scores met so far and when it was met, and whether all were finite.
#[derive(Clone, Copy)]
struct Best {
    score: [f32; LANES],
    turn: [u32; LANES],
    /// The magnitude, as bits, that is farthest from 0.
    farthest: [i32; LANES],
}

impl Best {
    const NONE: Self = Self { score: [f32::NEG_INFINITY; LANES], turn: [0; LANES], farthest: [0; LANES] };

    /// By value and with masks in place of branches: so the compiler keeps all of it in vectors.
    #[inline(always)]
    fn meet(self, scores: [f32; LANES], turn: u32) -> Self {
        let better: [u32; LANES] =
            array::from_fn(|lane| if scores[lane] > self.score[lane] { u32::MAX } else { 0 });
        let pick = |lane: usize, new: u32, old: u32| new & better[lane] | old & !better[lane];
        Self {
            score: array::from_fn(|lane| {
                f32::from_bits(pick(lane, scores[lane].to_bits(), self.score[lane].to_bits()))
            }),
            turn: array::from_fn(|lane| pick(lane, turn, self.turn[lane])),
            farthest: array::from_fn(|lane| self.farthest[lane].max(scores[lane].abs().to_bits() as i32)),
        }
    }

    /// `None` if any score was not finite.
    fn lane(&self, lane: usize) -> Option<(u32, f32)> {
        let finite = self.farthest[lane] < f32::INFINITY.to_bits() as i32;
        finite.then_some((self.turn[lane], self.score[lane]))
    }
}

/// The first of the highest scores; `None` if any score is not finite, for then the model failed here.
pub(super) fn best_class(scores: impl Iterator<Item = f32>) -> Option<(ClassId, f32)> {
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

/// [`best_class`] of the [`LANES`] columns from `first` on, where the matrix has so many; its rows are `n` long.
#[inline(always)]
pub(super) fn best_of_columns<T: Value>(
    scores: &[T],
    n: usize,
    first: usize,
) -> Option<[Option<(ClassId, f32)>; LANES]> {
    let mut best = Best::NONE;
    for (row, class) in scores.chunks_exact(n).zip(0..) {
        best = best.meet(T::widen(row.get(first..)?.first_chunk()?), class);
    }
    Some(array::from_fn(|lane| best.lane(lane)))
}

/// [`best_class`] of each score times `factor`.
#[inline(always)]
pub(super) fn best_product<T: Value>(scores: &[T], factor: f32) -> Option<(ClassId, f32)> {
    let (groups, rest) = scores.as_chunks::<LANES>();
    let mut best = Best::NONE;
    for (group, turn) in groups.iter().zip(0..) {
        best = best.meet(T::widen(group).map(|score| score * factor), turn);
    }
    let mut first: Option<(ClassId, f32)> = None;
    for lane in 0..if groups.is_empty() { 0 } else { LANES } {
        let (turn, score) = best.lane(lane)?;
        let class = turn * LANES as u32 + lane as ClassId;
        if first.is_none_or(|(other, highest)| score > highest || score == highest && class < other) {
            first = Some((class, score));
        }
    }
    for (class, score) in (groups.len() * LANES..).zip(rest) {
        let score = score.get() * factor;
        if !score.is_finite() {
            return None;
        }
        if first.is_none_or(|(_, highest)| score > highest) {
            first = Some((class as ClassId, score));
        }
    }
    first
}

#[cfg(test)]
mod tests {
    use super::super::vectors::{Kernel, vectorised};
    use super::*;
    use proptest::prelude::*;

    /// Runs a closure as both compilations of a kernel.
    struct Both<F>(F);

    impl<R, F: Fn() -> R> Kernel for &Both<F> {
        type Output = R;

        #[inline(always)]
        fn run(self) -> R {
            (self.0)()
        }
    }

    fn both<R: PartialEq + std::fmt::Debug>(work: impl Fn() -> R) -> R {
        let both = Both(work);
        let plain = both.run();
        assert_eq!(plain, vectorised(&both));
        plain
    }

    fn score() -> impl Strategy<Value = f32> {
        prop_oneof![
            8 => (0..20_u8).prop_map(|tenths| f32::from(tenths) / 10.0),
            4 => -1.0..2.0_f32,
            1 => prop::sample::select(vec![f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 1e-7]),
        ]
    }

    fn halves(values: &[f32]) -> Vec<f16> {
        values.iter().copied().map(f16::from_f32).collect()
    }

    fn check_marks<T: Value>(values: &[T], threshold: f32) {
        let Some(cutoff) = T::cutoff(threshold) else {
            assert!(threshold < 0.0 || threshold.is_nan());
            return;
        };
        let marked = both(|| {
            let mut marks = Marks::default();
            marks.clear(values.len());
            marks.mark(values, cutoff);
            marks.0
        });
        assert_eq!(marked.len(), values.len().div_ceil(WORD));
        for (column, value) in values.iter().map(|value| value.get()).enumerate() {
            let mark = marked[column / WORD] >> (column % WORD) & 1 == 1;
            assert!(mark == (value > threshold) || value.is_nan(), "{value} {threshold}");
        }
        assert!(
            values.len().is_multiple_of(WORD) || marked[values.len() / WORD] >> (values.len() % WORD) == 0
        );
    }

    fn check_columns<T: Value>(values: &[T], n: usize) {
        for first in 0..n {
            let best = both(|| best_of_columns(values, n, first));
            assert_eq!(best.is_some(), first + LANES <= n || values.len() < n);
            for (lane, best) in best.iter().flatten().enumerate().filter(|_| values.len() >= n) {
                let column = values.chunks_exact(n).map(|row| row[first + lane].get());
                assert_eq!(*best, best_class(column));
            }
        }
    }

    #[test]
    fn halves_are_widened_bit_by_bit() {
        for bits in 0..=u16::MAX {
            let half = f16::from_bits(bits);
            let (ours, theirs) = (widen_half(half), half.to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{bits:x}");
        }
    }

    #[test]
    fn a_half_is_above_the_cutoff_if_it_is_above_the_threshold() {
        let just = |value: f32| [value, value.next_down(), value.next_up()];
        for threshold in
            [0.0, -0.0, 1e-9, 0.25, 0.3, 1.0, 65_504.0, 1e9, f32::INFINITY].map(just).as_flattened()
        {
            let Some(cutoff) = f16::cutoff(*threshold) else { continue };
            for half in (0..=u16::MAX).map(f16::from_bits).filter(|half| !half.is_nan()) {
                assert_eq!(half.bits() > cutoff, half.to_f32() > *threshold, "{half} {threshold}");
            }
        }
    }

    #[test]
    fn groups_are_the_marked_columns() {
        let mut marks = Marks::default();
        for columns in [1, 7, 8, 9, 63, 64, 65, 200] {
            marks.mark_all(columns);
            let bits: u32 = marks.groups().map(|(_, group)| group.count_ones()).sum();
            assert_eq!(bits as usize, columns);
            assert!(marks.groups().map(|(first, _)| first).eq((0..columns).step_by(LANES)));
        }
        marks.clear(130);
        assert_eq!(marks.groups().count(), 0);
        marks.mark(&[vec![0.0; 127], vec![1.0], vec![0.0, 1.0]].concat(), f32::cutoff(0.5).unwrap());
        assert_eq!(marks.groups().collect::<Vec<_>>(), [(120, 0x80), (128, 2)]);
    }

    proptest! {
        #[test]
        fn what_is_above_is_marked(values in prop::collection::vec(score(), 0..300), threshold in score()) {
            check_marks(&values, threshold);
            check_marks(&halves(&values), threshold);
        }

        #[test]
        fn columns_have_their_best_class(
            (n, values) in (1..30_usize, 0..12_usize)
                .prop_flat_map(|(n, rows)| (Just(n), prop::collection::vec(score(), n * rows))),
        ) {
            check_columns(&values, n);
            check_columns(&halves(&values), n);
        }

        #[test]
        fn products_have_their_best_class(values in prop::collection::vec(score(), 0..60), factor in score()) {
            let expected = best_class(values.iter().map(|value| value * factor));
            assert_eq!(both(|| best_product(&values, factor)), expected);
            let values = halves(&values);
            let expected = best_class(values.iter().map(|value| value.to_f32() * factor));
            assert_eq!(both(|| best_product(&values, factor)), expected);
        }
    }
}
