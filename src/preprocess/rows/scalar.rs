//! The inner loops in plain Rust: what the others are compared with.

use crate::preprocess::axis::{Axis, Step};
use crate::preprocess::color::Mix;
use crate::preprocess::format::Samples;

/// One row of a plane resized horizontally: bytes to floats, component by component, each to a row of `stride` floats
/// of which those of `axis` are written.
pub(super) fn resample(
    samples: &Samples,
    axis: &Axis,
    near: &[u8],
    far: Option<(&[u8], f32)>,
    stride: usize,
    out: &mut [f32],
) {
    row(samples, axis, near, stride, out, |out, value| *out = value);
    if let Some((far, weight)) = far {
        row(samples, axis, far, stride, out, |out, value| *out += (value - *out) * weight);
    }
}

fn row(
    samples: &Samples,
    axis: &Axis,
    bytes: &[u8],
    stride: usize,
    out: &mut [f32],
    put: impl Fn(&mut f32, f32),
) {
    match (samples.pixel_stride, samples.offsets) {
        (1, _) => row_of::<1, 1>(bytes, [0], axis, stride, out, put),
        (2, &[a]) => row_of::<2, 1>(bytes, [a], axis, stride, out, put),
        (2, &[a, b]) => row_of::<2, 2>(bytes, [a, b], axis, stride, out, put),
        (3, &[a, b, c]) => row_of::<3, 3>(bytes, [a, b, c], axis, stride, out, put),
        (4, &[a, b]) => row_of::<4, 2>(bytes, [a, b], axis, stride, out, put),
        (4, &[a, b, c]) => row_of::<4, 3>(bytes, [a, b, c], axis, stride, out, put),
        (bytes, offsets) => debug_assert!(false, "no format has {offsets:?} in {bytes} bytes"),
    }
}

fn row_of<const BYTES: usize, const N: usize>(
    row: &[u8],
    offsets: [usize; N],
    axis: &Axis,
    stride: usize,
    out: &mut [f32],
    put: impl Fn(&mut f32, f32),
) {
    let (samples, _) = row.as_chunks::<BYTES>();
    // A sample is loaded once, as a word, and its components shifted out.
    let shifts = offsets.map(|offset| 8 * offset as u32);
    let load = |sample: &[u8; BYTES]| {
        let word = sample.iter().rev().fold(0u32, |word, &byte| (word << 8) | u32::from(byte));
        shifts.map(|shift| f32::from((word >> shift) as u8))
    };
    let width = axis.taps.len();
    let mut rows = out.chunks_exact_mut(stride);
    let mut out: [&mut [f32]; N] =
        std::array::from_fn(|_| rows.next().map(|row| &mut row[..width]).unwrap_or_default());
    match axis.step {
        Step::Copy => {
            for (i, sample) in samples.iter().take(width).enumerate() {
                let values = load(sample);
                for (out, value) in out.iter_mut().zip(values) {
                    put(&mut out[i], value);
                }
            }
        }
        Step::Pick => {
            for (i, tap) in axis.taps.iter().enumerate() {
                let values = load(&samples[tap.near as usize]);
                for (out, value) in out.iter_mut().zip(values) {
                    put(&mut out[i], value);
                }
            }
        }
        Step::Blend => {
            for (i, tap) in axis.taps.iter().enumerate() {
                let near = load(&samples[tap.near as usize]);
                let far = load(&samples[tap.far as usize]);
                for ((out, near), far) in out.iter_mut().zip(near).zip(far) {
                    put(&mut out[i], near + (far - near) * tap.weight);
                }
            }
        }
    }
}

/// One row of one channel, clamped to `0..=max`. Component rows are at least as long as `out`.
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
