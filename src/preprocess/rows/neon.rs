//! The inner loops with NEON, which every AArch64 has: four outputs at a time.

use std::arch::aarch64::*;

use super::table::{GROUP, LANE, LOAD, ONE, Table};
use crate::preprocess::color::Mix;

/// See [`super::Columns::resample`]. `out` holds a row of whole groups for each component.
pub(super) fn resample(table: &Table, near: &[u8], far: Option<(&[u8], f32)>, out: &mut [f32]) {
    let row = Row { table, near, far, out };
    // SAFETY: NEON is part of the architecture.
    unsafe {
        match table.components() {
            1 => row.by_loads::<1>(),
            2 => row.by_loads::<2>(),
            _ => row.by_loads::<3>(),
        }
    }
}

struct Row<'a> {
    table: &'a Table,
    near: &'a [u8],
    far: Option<(&'a [u8], f32)>,
    out: &'a mut [f32],
}

impl Row<'_> {
    #[target_feature(enable = "neon")]
    fn by_loads<const N: usize>(self) {
        match self.table.loads() {
            1 => self.by_columns::<N, 1>(),
            2 => self.by_columns::<N, 2>(),
            _ => self.by_columns::<N, 4>(),
        }
    }

    #[target_feature(enable = "neon")]
    fn by_columns<const N: usize, const LOADS: usize>(self) {
        match self.table.weights() {
            None => self.by_rows::<N, LOADS, false>(&[]),
            Some(weights) => self.by_rows::<N, LOADS, true>(weights),
        }
    }

    #[target_feature(enable = "neon")]
    fn by_rows<const N: usize, const LOADS: usize, const BLEND: bool>(self, weights: &[[i16; 2 * GROUP]]) {
        let Self { table, near, far, out } = self;
        // Blended columns come as whole numbers of weights.
        let unit = if BLEND { 1.0 / f32::from(ONE) } else { 1.0 };
        let reader = |row| Reader::<N, LOADS, BLEND>::new(table, weights, row);
        let near = reader(near);
        match far {
            None => {
                let gain = vdupq_n_f32(unit);
                write(out, near.groups(), |group, lane| {
                    near.read(group, lane).map(|value| if BLEND { vmulq_f32(value, gain) } else { value })
                });
            }
            Some((far, weight)) => {
                let far = reader(far);
                let (near_gain, far_gain) = (vdupq_n_f32((1.0 - weight) * unit), vdupq_n_f32(weight * unit));
                write(out, near.groups(), |group, lane| -> [_; N] {
                    let (near, far) = (near.read(group, lane), far.read(group, lane));
                    std::array::from_fn(|i| vfmaq_f32(vmulq_f32(near[i], near_gain), far[i], far_gain))
                });
            }
        }
    }
}

/// Fills each component's row of `out`, lane by lane of each group.
#[inline]
#[target_feature(enable = "neon")]
fn write<const N: usize>(out: &mut [f32], groups: usize, values: impl Fn(usize, usize) -> [float32x4_t; N]) {
    let (out, _) = out.as_chunks_mut::<LANE>();
    let mut rows = out.chunks_exact_mut(2 * groups);
    let mut rows: [&mut [[f32; LANE]]; N] = std::array::from_fn(|_| rows.next().unwrap_or_default());
    for group in 0..groups {
        for lane in 0..2 {
            for (row, value) in rows.iter_mut().zip(values(group, lane)) {
                store(value, &mut row[2 * group + lane]);
            }
        }
    }
}

/// One row of a plane, as the table reads it.
struct Reader<'a, const N: usize, const LOADS: usize, const BLEND: bool> {
    row: &'a [u8],
    starts: &'a [[[u32; 2]; LOADS]],
    shuffles: &'a [[[[u8; 2 * LOAD]; N]; LOADS]],
    weights: &'a [[i16; 2 * GROUP]],
}

impl<'a, const N: usize, const LOADS: usize, const BLEND: bool> Reader<'a, N, LOADS, BLEND> {
    #[inline]
    fn new(table: &'a Table, weights: &'a [[i16; 2 * GROUP]], row: &'a [u8]) -> Self {
        assert!(row.len() >= table.row_bytes(), "a row of {} bytes", row.len());
        let (starts, _) = table.starts().as_chunks();
        let (shuffles, _) = table.shuffles().as_chunks();
        let (shuffles, _) = shuffles.as_chunks();
        assert!(shuffles.len() == starts.len() && (!BLEND || weights.len() == starts.len()));
        Self { row, starts, shuffles, weights }
    }

    fn groups(&self) -> usize {
        self.starts.len()
    }

    /// Four outputs of each component; multiplied by [`ONE`] where they are blended.
    #[inline]
    #[target_feature(enable = "neon")]
    fn read(&self, group: usize, lane: usize) -> [float32x4_t; N] {
        let (starts, shuffles) = (&self.starts[group], &self.shuffles[group]);
        let mut values = [vdupq_n_u8(0); N];
        for (starts, shuffles) in starts.iter().zip(shuffles) {
            // SAFETY: `Table` keeps every start at `row_bytes - LOAD` or below, and `new` has checked the row's length.
            let bytes = unsafe { vld1q_u8(self.row.as_ptr().add(starts[lane] as usize)) };
            for (value, shuffle) in values.iter_mut().zip(shuffles) {
                let (lanes, _) = shuffle.as_chunks::<LOAD>();
                // SAFETY: the array is as long as the load.
                let shuffle = unsafe { vld1q_u8(lanes[lane].as_ptr()) };
                *value = vorrq_u8(*value, vqtbl1q_u8(bytes, shuffle));
            }
        }
        if BLEND {
            let (lanes, _) = self.weights[group].as_chunks::<GROUP>();
            // SAFETY: the array is as long as the load.
            let weights = unsafe { vld1q_s16(lanes[lane].as_ptr()) };
            values.map(|pairs| {
                let pairs = vreinterpretq_s16_u8(pairs);
                let low = vmull_s16(vget_low_s16(pairs), vget_low_s16(weights));
                vcvtq_f32_s32(vpaddq_s32(low, vmull_high_s16(pairs, weights)))
            })
        } else {
            values.map(|value| vcvtq_f32_u32(vreinterpretq_u32_u8(value)))
        }
    }
}

/// See [`super::Kernels::mix`].
pub(super) fn mix(mix: &Mix, components: &[&[f32]; 3], max: f32, out: &mut [f32]) {
    // SAFETY: NEON is part of the architecture.
    unsafe {
        match *mix {
            Mix::One { component, gain, bias } => mix_one(components[component], gain, bias, max, out),
            Mix::Three { gains, bias } => mix_three(components, gains, bias, max, out),
        }
    }
}

#[target_feature(enable = "neon")]
fn mix_one(component: &[f32], gain: f32, bias: f32, max: f32, out: &mut [f32]) {
    let (gain, bias) = (vdupq_n_f32(gain), vdupq_n_f32(bias));
    let component = component.as_chunks::<LANE>().0;
    let values = component.iter().map(|component| vfmaq_f32(bias, load(component), gain));
    clamp_and_store(values, max, out);
}

#[target_feature(enable = "neon")]
fn mix_three(components: &[&[f32]; 3], gains: [f32; 3], bias: f32, max: f32, out: &mut [f32]) {
    let [g0, g1, g2] = gains.map(|gain| vdupq_n_f32(gain));
    let bias = vdupq_n_f32(bias);
    let [c0, c1, c2] = components.map(|component| component.as_chunks::<LANE>().0);
    let values = c0.iter().zip(c1).zip(c2).map(|((a, b), c)| {
        let sum = vfmaq_f32(bias, load(c), g2);
        vfmaq_f32(vfmaq_f32(sum, load(b), g1), load(a), g0)
    });
    clamp_and_store(values, max, out);
}

#[inline]
#[target_feature(enable = "neon")]
fn clamp_and_store(mut values: impl Iterator<Item = float32x4_t>, max: f32, out: &mut [f32]) {
    let (zero, max) = (vdupq_n_f32(0.0), vdupq_n_f32(max));
    let (lanes, rest) = out.as_chunks_mut::<LANE>();
    for (out, value) in lanes.iter_mut().zip(&mut values) {
        store(vminq_f32(vmaxq_f32(value, zero), max), out);
    }
    if let (false, Some(value)) = (rest.is_empty(), values.next()) {
        let mut last = [0.0; LANE];
        store(vminq_f32(vmaxq_f32(value, zero), max), &mut last);
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn load(from: &[f32; LANE]) -> float32x4_t {
    // SAFETY: the array is as long as the load.
    unsafe { vld1q_f32(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn store(value: float32x4_t, to: &mut [f32; LANE]) {
    // SAFETY: the array is as long as the store.
    unsafe { vst1q_f32(to.as_mut_ptr(), value) }
}
