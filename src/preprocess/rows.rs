//! The inner loops, one row at a time and free of state, so that a faster version can stand in for each.

use super::axis::{Axis, Step};
use super::color::Mix;

/// One row of a plane resized horizontally: bytes to floats, component by component.
///
/// `row` holds the plane's row and nothing behind it; its samples are `pixel_stride` bytes apart and the
/// components' bytes lie at `offsets` within each. `out` holds one row of `axis.taps.len()` floats per
/// component.
pub(super) fn resample(row: &[u8], pixel_stride: usize, offsets: &[usize], axis: &Axis, out: &mut [f32]) {
    match (pixel_stride, offsets) {
        (1, _) => resample_samples::<1, 1>(row, [0], axis, out),
        (2, &[a]) => resample_samples::<2, 1>(row, [a], axis, out),
        (2, &[a, b]) => resample_samples::<2, 2>(row, [a, b], axis, out),
        (3, &[a, b, c]) => resample_samples::<3, 3>(row, [a, b, c], axis, out),
        (4, &[a, b]) => resample_samples::<4, 2>(row, [a, b], axis, out),
        (4, &[a, b, c]) => resample_samples::<4, 3>(row, [a, b, c], axis, out),
        _ => debug_assert!(false, "no format has {offsets:?} in {pixel_stride} bytes"),
    }
}

fn resample_samples<const STRIDE: usize, const N: usize>(
    row: &[u8],
    offsets: [usize; N],
    axis: &Axis,
    out: &mut [f32],
) {
    let (samples, _) = row.as_chunks::<STRIDE>();
    // A sample is loaded once, as a word, and its components shifted out.
    let shifts = offsets.map(|offset| 8 * offset as u32);
    let load = |sample: &[u8; STRIDE]| {
        let word = sample.iter().rev().fold(0u32, |word, &byte| (word << 8) | u32::from(byte));
        shifts.map(|shift| f32::from((word >> shift) as u8))
    };
    let width = axis.taps.len();
    let mut rows = out.chunks_exact_mut(width);
    let mut out: [&mut [f32]; N] = std::array::from_fn(|_| rows.next().unwrap_or_default());
    match axis.step {
        Step::Copy => {
            for (i, sample) in samples.iter().take(width).enumerate() {
                let values = load(sample);
                for (out, value) in out.iter_mut().zip(values) {
                    out[i] = value;
                }
            }
        }
        Step::Pick => {
            for (i, tap) in axis.taps.iter().enumerate() {
                let values = load(&samples[tap.near as usize]);
                for (out, value) in out.iter_mut().zip(values) {
                    out[i] = value;
                }
            }
        }
        Step::Blend => {
            for (i, tap) in axis.taps.iter().enumerate() {
                let near = load(&samples[tap.near as usize]);
                let far = load(&samples[tap.far as usize]);
                for ((out, near), far) in out.iter_mut().zip(near).zip(far) {
                    out[i] = near + (far - near) * tap.weight;
                }
            }
        }
    }
}

/// `near + (far - near) * weight`, element by element.
pub(super) fn blend(near: &[f32], far: &[f32], weight: f32, out: &mut [f32]) {
    for ((out, near), far) in out.iter_mut().zip(near).zip(far) {
        *out = near + (far - near) * weight;
    }
}

/// One row of one channel, clamped to `0..=max`. Component rows are as long as `out`.
pub(super) fn mix(mix: &Mix, components: &[&[f32]; 3], max: f32, out: &mut [f32]) {
    match *mix {
        Mix::One { component, gain, bias } => {
            for (out, value) in out.iter_mut().zip(components[component]) {
                *out = (value * gain + bias).clamp(0.0, max);
            }
        }
        Mix::Three { gains: [g0, g1, g2], bias } => {
            let [c0, c1, c2] = components;
            for (((out, a), b), c) in out.iter_mut().zip(*c0).zip(*c1).zip(*c2) {
                *out = (a * g0 + b * g1 + c * g2 + bias).clamp(0.0, max);
            }
        }
    }
}
