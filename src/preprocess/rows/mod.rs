//! The inner loops, one row at a time and free of state: resizing a row of a plane, and mixing a row of components
//! into a channel of the tensor. `scalar` says what they do and runs everywhere; `avx2` and `neon` do the same with
//! vectors, by the `table`s that a stream's geometry gives once.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
mod table;

use super::axis::Axis;
use super::color::Mix;
use super::format::Samples;
use half::f16;
use table::Table;

/// Which version of the inner loops a converter uses. Their results differ by less than 0.04 of one byte's step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernels(Set);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Supported),
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Kernels {
    /// Plain Rust, for every processor.
    pub const SCALAR: Self = Self(Set::Scalar);

    /// The fastest that this processor has: AVX2 with FMA and F16C on x86-64 (also where there is AVX-512), NEON on
    /// AArch64.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(supported) = avx2::Supported::detect() {
            return Self(Set::Avx2(supported));
        }
        #[cfg(target_arch = "aarch64")]
        return Self(Set::Neon);
        #[cfg(not(target_arch = "aarch64"))]
        Self::SCALAR
    }

    pub fn name(self) -> &'static str {
        match self.0 {
            Set::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(_) => "avx2",
            #[cfg(target_arch = "aarch64")]
            Set::Neon => "neon",
        }
    }

    /// Tells the processor that this row of a plane is next: rows that are not neighbours are no pattern that it finds
    /// out by itself. A fifth of the time with 1080p NV12 from memory; long rows lose, since they push out the tables.
    pub(super) fn prefetch(self, row: &[u8]) {
        #[cfg(target_arch = "x86_64")]
        if let Set::Avx2(supported) = self.0
            && row.len() <= 8192
        {
            avx2::prefetch(supported, row);
        }
        // There is no stable intrinsic for it.
        #[cfg(not(target_arch = "x86_64"))]
        let _ = row;
    }

    /// One row of one channel, clamped to `0..=max`. Component rows are at least as long as `out`, rounded up to whole
    /// [`GROUP`](table::GROUP)s.
    pub(super) fn mix(self, mix: &Mix, components: &[&[f32]; 3], max: f32, out: &mut [f32]) {
        match self.0 {
            Set::Scalar => scalar::mix(mix, components, max, out),
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(supported) => avx2::mix(supported, mix, components, max, out),
            #[cfg(target_arch = "aarch64")]
            Set::Neon => neon::mix(mix, components, max, out),
        }
    }

    /// As [`mix`](Self::mix), rounded to the nearest f16. `scratch` is as long as `out`.
    pub(super) fn mix_f16(
        self,
        mix: &Mix,
        components: &[&[f32]; 3],
        max: f32,
        out: &mut [f16],
        scratch: &mut [f32],
    ) {
        #[cfg(target_arch = "x86_64")]
        if let Set::Avx2(supported) = self.0 {
            return avx2::mix(supported, mix, components, max, out);
        }
        self.mix(mix, components, max, scratch);
        half::slice::HalfFloatSliceExt::convert_from_f32_slice(out, scratch);
    }
}

/// The columns of one plane's components, resized.
#[derive(Debug)]
pub(super) struct Columns {
    samples: Samples,
    axis: Axis,
    /// `None` where the plane's rows are too short for vectors.
    table: Option<Table>,
    /// From one component's row to the next, in floats.
    stride: usize,
}

impl Columns {
    /// For rows of `row_bytes` bytes, which hold every sample that `axis` names.
    pub fn new(samples: Samples, row_bytes: usize, axis: Axis) -> Self {
        let table = Table::new(&samples, row_bytes, &axis);
        let stride = axis.taps.len().next_multiple_of(table::GROUP);
        Self { samples, axis, table, stride }
    }

    /// A row of floats for each component, each as long as [`split`](Self::split) expects it.
    pub fn row(&self) -> Vec<f32> {
        vec![0.0; self.stride * self.samples.offsets.len()]
    }

    /// One slice for each component of a [`row`](Self::row).
    pub fn split<'a>(&self, row: &'a [f32]) -> impl Iterator<Item = &'a [f32]> + use<'a> {
        row.chunks_exact(self.stride)
    }

    /// Resizes a row of the plane, or what lies between two of them: `near` and `far`, which has `weight` (0..1).
    /// Slices hold the plane's row and nothing behind it.
    pub fn resample(&self, kernels: Kernels, near: &[u8], far: Option<(&[u8], f32)>, out: &mut [f32]) {
        match (kernels.0, &self.table) {
            #[cfg(target_arch = "x86_64")]
            (Set::Avx2(supported), Some(table)) => avx2::resample(supported, table, near, far, out),
            #[cfg(target_arch = "aarch64")]
            (Set::Neon, Some(table)) => neon::resample(table, near, far, out),
            _ => scalar::resample(&self.samples, &self.axis, near, far, self.stride, out),
        }
    }
}
