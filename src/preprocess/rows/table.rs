//! Where vectors find a row's samples: made once per stream, the same for every instruction set.
//!
//! Neighbouring outputs need bytes that lie close together. So four outputs (half of an AVX2 vector) are read by one
//! load of 16 bytes where the bytes of all of them lie within so many, else by two loads or by four; a byte shuffle
//! then brings each component's samples to their places, and zeros between them. That serves every pixel format and
//! every ratio with one kernel, does without gathers, which some processors are slow at, and reads no byte behind
//! the row: a load that would is moved back, and its shuffle with it.

use crate::preprocess::axis::{Axis, Step, Tap};
use crate::preprocess::format::Samples;

/// Outputs that are made together, in two lanes.
pub(super) const GROUP: usize = 8;
/// Those of one lane.
pub(super) const LANE: usize = GROUP / 2;
/// Bytes of one load.
pub(super) const LOAD: usize = 16;
/// A shuffle writes 0 where it is told to take this byte.
const ZERO: u8 = 0x80;
/// A weight of 1, so that a pair's weights always add up to it. Rounding a weight costs 0.008 of a byte's step at the
/// most; OpenCV's weights have 11 bits.
pub(super) const ONE: i16 = 1 << 14;

/// For each group of outputs: what to load, how to shuffle it, and how to weigh it. Both lanes lie side by side.
///
/// Every start is at most `row_bytes - LOAD`: the kernels' loads rely on it.
#[derive(Debug)]
pub(super) struct Table {
    row_bytes: usize,
    components: usize,
    loads: usize,
    /// The first byte of each load: `[group][load][lane]`.
    starts: Vec<[u32; 2]>,
    /// `[group][load][component]`: of 4 bytes for each output, the first takes the near sample, the third the far one.
    shuffles: Vec<[u8; 2 * LOAD]>,
    /// `[group]`: the weights of near and far for each output; none where nothing is blended.
    weights: Vec<[i16; 2 * GROUP]>,
}

impl Table {
    /// `None` where rows are shorter than a load.
    pub fn new(samples: &Samples, row_bytes: usize, axis: &Axis) -> Option<Self> {
        let last_start = row_bytes.checked_sub(LOAD)?;
        let (first_offset, last_offset) = (samples.offsets.iter().min()?, samples.offsets.iter().max()?);
        // The last group is filled up with the last output.
        let outputs = axis.taps.len().next_multiple_of(GROUP);
        let last_tap = axis.taps.last()?;
        let taps: Vec<Tap> = (0..outputs).map(|i| *axis.taps.get(i).unwrap_or(last_tap)).collect();
        let (lanes, _) = taps.as_chunks::<LANE>();

        let start = |tap: &Tap| (tap.near as usize * samples.pixel_stride + first_offset).min(last_start);
        let fits = |taps: &[Tap]| {
            let end = taps[taps.len() - 1].far as usize * samples.pixel_stride + last_offset;
            end < start(&taps[0]) + LOAD
        };
        // One output's two samples are 8 bytes at the most, so four loads always do.
        let loads = [1, 2, 4].into_iter().find(|loads| taps.chunks_exact(LANE / loads).all(fits))?;
        let per_load = LANE / loads;

        let blend = axis.step == Step::Blend;
        let shuffle = |lane: &[Tap; LANE], load: usize, offset: usize| {
            let start = start(&lane[load * per_load]);
            let mut shuffle = [ZERO; LOAD];
            for (i, tap) in lane.iter().enumerate().skip(load * per_load).take(per_load) {
                let place = |sample: u32| (sample as usize * samples.pixel_stride + offset - start) as u8;
                shuffle[4 * i] = place(tap.near);
                if blend {
                    shuffle[4 * i + 2] = place(tap.far);
                }
            }
            shuffle
        };
        let mut table = Self {
            row_bytes,
            components: samples.offsets.len(),
            loads,
            starts: Vec::new(),
            shuffles: Vec::new(),
            weights: Vec::new(),
        };
        for [left, right] in lanes.as_chunks::<2>().0 {
            for load in 0..loads {
                table.starts.push([left, right].map(|lane| start(&lane[load * per_load]) as u32));
                table.shuffles.extend(samples.offsets.iter().map(|&offset| {
                    let mut both = [ZERO; 2 * LOAD];
                    both[..LOAD].copy_from_slice(&shuffle(left, load, offset));
                    both[LOAD..].copy_from_slice(&shuffle(right, load, offset));
                    both
                }));
            }
            if blend {
                let taps = left.iter().chain(right);
                let weights = taps.flat_map(|tap| {
                    let far = (tap.weight * f32::from(ONE)).round() as i16;
                    [ONE - far, far]
                });
                let mut pairs = [0; 2 * GROUP];
                pairs.iter_mut().zip(weights).for_each(|(pair, weight)| *pair = weight);
                table.weights.push(pairs);
            }
        }
        Some(table)
    }

    /// Bytes that a row has at the least.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    pub fn components(&self) -> usize {
        self.components
    }

    /// Loads for each lane: 1, 2 or 4.
    pub fn loads(&self) -> usize {
        self.loads
    }

    pub fn starts(&self) -> &[[u32; 2]] {
        &self.starts
    }

    pub fn shuffles(&self) -> &[[u8; 2 * LOAD]] {
        &self.shuffles
    }

    /// As many as there are groups; `None` where no output lies between samples.
    pub fn weights(&self) -> Option<&[[i16; 2 * GROUP]]> {
        (!self.weights.is_empty()).then_some(&self.weights)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preprocess::axis::Grid;
    use crate::preprocess::format::PixelFormat;
    use proptest::prelude::*;

    fn table(pixel: PixelFormat, samples: usize, frame: u32, resized: u32) -> Option<Table> {
        let samples = &pixel.samples()[samples];
        let (grid, count) = match samples.subsampled.horizontal {
            true => (Grid::Cosited, frame.div_ceil(2)),
            false => (Grid::Full, frame),
        };
        Table::new(samples, count as usize * samples.pixel_stride, &Axis::new(frame, resized, grid))
    }

    #[test]
    fn outputs_share_loads_where_their_samples_lie_close_together() {
        let loads = |pixel, samples, frame, resized| table(pixel, samples, frame, resized).map(|t| t.loads());
        assert_eq!(loads(PixelFormat::Nv12, 0, 1920, 640), Some(1));
        assert_eq!(loads(PixelFormat::Nv12, 1, 1920, 640), Some(1));
        assert_eq!(loads(PixelFormat::Nv12, 0, 3840, 640), Some(2));
        assert_eq!(loads(PixelFormat::Bgr, 0, 640, 640), Some(1));
        assert_eq!(loads(PixelFormat::Bgr, 0, 1920, 640), Some(2));
        assert_eq!(loads(PixelFormat::Bgrx, 0, 3840, 640), Some(4));
        assert_eq!(loads(PixelFormat::Gray8, 0, 15, 640), None);
    }

    #[test]
    fn weights_are_there_where_samples_are_blended() {
        let found = table(PixelFormat::Gray8, 0, 64, 32).unwrap();
        let weights = found.weights().unwrap();
        assert_eq!((weights.len(), weights[0]), (4, [ONE / 2; 2 * GROUP]));
        assert!(table(PixelFormat::Gray8, 0, 96, 32).unwrap().weights().is_none());
    }

    proptest! {
        #[test]
        fn no_load_leaves_the_row(
            pixel in 0..4usize,
            samples in 0..2usize,
            frame in 1u32..5000,
            resized in 1u32..1500,
        ) {
            let pixel = [PixelFormat::Nv12, PixelFormat::Bgr, PixelFormat::Yuy2, PixelFormat::Abgr][pixel];
            let samples = samples.min(pixel.samples().len() - 1);
            if let Some(table) = table(pixel, samples, frame, resized) {
                let groups = resized.div_ceil(GROUP as u32) as usize;
                prop_assert_eq!(table.starts().len(), groups * table.loads());
                prop_assert_eq!(table.shuffles().len(), groups * table.loads() * table.components());
                for &start in table.starts().as_flattened() {
                    prop_assert!(start as usize + LOAD <= table.row_bytes());
                }
            }
        }
    }
}
