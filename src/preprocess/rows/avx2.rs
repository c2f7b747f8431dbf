//! The inner loops with AVX2, FMA and F16C: eight outputs at a time.

use std::arch::x86_64::*;

use super::table::{GROUP, LOAD, ONE, Table};
use crate::preprocess::color::Mix;
use half::f16;

/// Proof that this processor has what this module needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Supported(());

impl Supported {
    pub fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c"))
        .then_some(Self(()))
    }
}

/// See [`super::Columns::resample`]. `out` holds a row of whole groups for each component.
pub(super) fn resample(_: Supported, table: &Table, near: &[u8], far: Option<(&[u8], f32)>, out: &mut [f32]) {
    let row = Row { table, near, far, out };
    // SAFETY: `Supported` is only made where the processor has these features.
    unsafe {
        match table.components() {
            1 => row.by_loads::<1>(),
            2 => row.by_loads::<2>(),
            _ => row.by_loads::<3>(),
        }
    }
}

/// Has the row fetched into the nearest cache while others are worked on.
pub(super) fn prefetch(_: Supported, row: &[u8]) {
    for line in row.chunks(64) {
        // SAFETY: a prefetch is a hint; it has no effect on what the program does.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
    }
}

struct Row<'a> {
    table: &'a Table,
    near: &'a [u8],
    far: Option<(&'a [u8], f32)>,
    out: &'a mut [f32],
}

impl Row<'_> {
    #[target_feature(enable = "avx2,fma")]
    fn by_loads<const N: usize>(self) {
        match self.table.loads() {
            1 => self.by_columns::<N, 1>(),
            2 => self.by_columns::<N, 2>(),
            _ => self.by_columns::<N, 4>(),
        }
    }

    #[target_feature(enable = "avx2,fma")]
    fn by_columns<const N: usize, const LOADS: usize>(self) {
        match self.table.weights() {
            None => self.by_rows::<N, LOADS, false>(&[]),
            Some(weights) => self.by_rows::<N, LOADS, true>(weights),
        }
    }

    #[target_feature(enable = "avx2,fma")]
    fn by_rows<const N: usize, const LOADS: usize, const BLEND: bool>(self, weights: &[[i16; 2 * GROUP]]) {
        let Self { table, near, far, out } = self;
        // Blended columns come as whole numbers of weights.
        let unit = if BLEND { 1.0 / f32::from(ONE) } else { 1.0 };
        let reader = |row| Reader::<N, LOADS, BLEND>::new(table, weights, row);
        let near = reader(near);
        match far {
            None => {
                let gain = _mm256_set1_ps(unit);
                write(out, near.groups(), |group| {
                    near.read(group).map(|value| if BLEND { _mm256_mul_ps(value, gain) } else { value })
                });
            }
            Some((far, weight)) => {
                let far = reader(far);
                let (near_gain, far_gain) =
                    (_mm256_set1_ps((1.0 - weight) * unit), _mm256_set1_ps(weight * unit));
                write(out, near.groups(), |group| -> [_; N] {
                    let (near, far) = (near.read(group), far.read(group));
                    std::array::from_fn(|i| {
                        _mm256_fmadd_ps(far[i], far_gain, _mm256_mul_ps(near[i], near_gain))
                    })
                });
            }
        }
    }
}

/// Fills each component's row of `out`, group by group.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn write<const N: usize>(out: &mut [f32], groups: usize, values: impl Fn(usize) -> [__m256; N]) {
    let (out, _) = out.as_chunks_mut::<GROUP>();
    let mut rows = out.chunks_exact_mut(groups);
    let mut rows: [&mut [[f32; GROUP]]; N] = std::array::from_fn(|_| rows.next().unwrap_or_default());
    for group in 0..groups {
        for (row, value) in rows.iter_mut().zip(values(group)) {
            store(value, &mut row[group]);
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

    /// Eight outputs of each component; multiplied by [`ONE`] where they are blended.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn read(&self, group: usize) -> [__m256; N] {
        let (starts, shuffles) = (&self.starts[group], &self.shuffles[group]);
        let mut values = [_mm256_setzero_si256(); N];
        for (starts, shuffles) in starts.iter().zip(shuffles) {
            let bytes = self.load(starts);
            for (value, shuffle) in values.iter_mut().zip(shuffles) {
                // SAFETY: the array is as long as the load.
                let shuffle = unsafe { _mm256_loadu_si256(shuffle.as_ptr().cast()) };
                *value = _mm256_or_si256(*value, _mm256_shuffle_epi8(bytes, shuffle));
            }
        }
        if BLEND {
            // SAFETY: the array is as long as the load.
            let weights = unsafe { _mm256_loadu_si256(self.weights[group].as_ptr().cast()) };
            values = values.map(|pairs| _mm256_madd_epi16(pairs, weights));
        }
        values.map(|value| _mm256_cvtepi32_ps(value))
    }

    /// The bytes for the two lanes.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(&self, &[left, right]: &[u32; 2]) -> __m256i {
        // SAFETY: `Table` keeps every start at `row_bytes - LOAD` or below, and `new` has checked the row's length.
        let lane = |start: u32| unsafe { _mm_loadu_si128(self.row.as_ptr().add(start as usize).cast()) };
        _mm256_inserti128_si256(_mm256_castsi128_si256(lane(left)), lane(right), 1)
    }
}

/// What a tensor is made of.
pub(super) trait Element: Copy + Default {
    /// # Safety
    /// The processor has AVX and F16C.
    unsafe fn store(value: __m256, to: &mut [Self; GROUP]);
}

impl Element for f32 {
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn store(value: __m256, to: &mut [Self; GROUP]) {
        store(value, to);
    }
}

impl Element for f16 {
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn store(value: __m256, to: &mut [Self; GROUP]) {
        let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value);
        // SAFETY: the array is as long as the store.
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), halves) }
    }
}

/// See [`super::Kernels::mix`].
pub(super) fn mix<T: Element>(_: Supported, mix: &Mix, components: &[&[f32]; 3], max: f32, out: &mut [T]) {
    // SAFETY: `Supported` is only made where the processor has these features.
    unsafe {
        match *mix {
            Mix::One { component, gain, bias } => mix_one(components[component], gain, bias, max, out),
            Mix::Three { gains, bias } => mix_three(components, gains, bias, max, out),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn mix_one<T: Element>(component: &[f32], gain: f32, bias: f32, max: f32, out: &mut [T]) {
    let (gain, bias) = (_mm256_set1_ps(gain), _mm256_set1_ps(bias));
    let component = component.as_chunks::<GROUP>().0;
    let values = component.iter().map(|component| _mm256_fmadd_ps(load(component), gain, bias));
    clamp_and_store(values, max, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn mix_three<T: Element>(components: &[&[f32]; 3], gains: [f32; 3], bias: f32, max: f32, out: &mut [T]) {
    let [g0, g1, g2] = gains.map(|gain| _mm256_set1_ps(gain));
    let bias = _mm256_set1_ps(bias);
    let [c0, c1, c2] = components.map(|component| component.as_chunks::<GROUP>().0);
    let values = c0.iter().zip(c1).zip(c2).map(|((a, b), c)| {
        let sum = _mm256_fmadd_ps(load(c), g2, bias);
        _mm256_fmadd_ps(load(a), g0, _mm256_fmadd_ps(load(b), g1, sum))
    });
    clamp_and_store(values, max, out);
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn clamp_and_store<T: Element>(mut values: impl Iterator<Item = __m256>, max: f32, out: &mut [T]) {
    let (zero, max) = (_mm256_setzero_ps(), _mm256_set1_ps(max));
    let (groups, rest) = out.as_chunks_mut::<GROUP>();
    for (out, value) in groups.iter_mut().zip(&mut values) {
        // SAFETY: this function has the features.
        unsafe { T::store(_mm256_min_ps(_mm256_max_ps(value, zero), max), out) }
    }
    if let (false, Some(value)) = (rest.is_empty(), values.next()) {
        let mut last = [T::default(); GROUP];
        // SAFETY: as above.
        unsafe { T::store(_mm256_min_ps(_mm256_max_ps(value, zero), max), &mut last) }
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(from: &[f32; GROUP]) -> __m256 {
    // SAFETY: the array is as long as the load.
    unsafe { _mm256_loadu_ps(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(value: __m256, to: &mut [f32; GROUP]) {
    // SAFETY: the array is as long as the store.
    unsafe { _mm256_storeu_ps(to.as_mut_ptr(), value) }
}
