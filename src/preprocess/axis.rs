//! Which samples a resized row or column is made of, computed once per stream.

/// One resized position: `near` and `far` are neighbouring samples, or the same where `weight` is 0.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct Tap {
    pub near: u32,
    pub far: u32,
    /// Of `far`, 0..1; `near` weighs the rest.
    pub weight: f32,
}

/// How much work a row takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Every sample once, in order.
    Copy,
    /// One sample each: every weight is 0.
    Pick,
    /// Two samples each.
    Blend,
}

/// Where the samples of one plane lie along one axis of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grid {
    /// One for each pixel.
    Full,
    /// One for two pixels, at the first.
    Cosited,
    /// One for two pixels, half way between them.
    Between,
}

/// One axis of one plane, resized.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    pub taps: Vec<Tap>,
    pub step: Step,
}

impl Axis {
    /// `frame` pixels onto `resized` ones, both at least 1, for a plane that samples them on `grid`.
    ///
    /// Bilinear with half-pixel centres as OpenCV's `INTER_LINEAR`: pixel `i` of the picture lies at
    /// `(i + 0.5) * frame / resized - 0.5` of the frame, clamped to its edges; chroma is taken from that same
    /// place.
    pub fn new(frame: u32, resized: u32, grid: Grid) -> Self {
        let samples = if grid == Grid::Full { frame } else { frame.div_ceil(2) };
        let last = samples - 1;
        let (frame, size) = (f64::from(frame), f64::from(resized));
        let taps: Vec<Tap> = (0..resized)
            .map(|i| {
                // One division of whole numbers, so that a place that falls on a sample does so exactly.
                let pixel =
                    (((2.0 * f64::from(i) + 1.0) * frame - size) / (2.0 * size)).clamp(0.0, frame - 1.0);
                let place = match grid {
                    Grid::Full => pixel,
                    Grid::Cosited => pixel / 2.0,
                    Grid::Between => (pixel - 0.5) / 2.0,
                }
                .max(0.0);
                let near = place as u32;
                let weight = (place - f64::from(near)) as f32;
                if near >= last || weight == 0.0 {
                    Tap { near: near.min(last), far: near.min(last), weight: 0.0 }
                } else {
                    Tap { near, far: near + 1, weight }
                }
            })
            .collect();
        let step = if taps.iter().any(|tap| tap.weight != 0.0) {
            Step::Blend
        } else if samples == resized && taps.iter().zip(0..).all(|(tap, i)| tap.near == i) {
            Step::Copy
        } else {
            Step::Pick
        };
        Self { taps, step }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn places(axis: &Axis) -> Vec<f32> {
        axis.taps.iter().map(|tap| tap.near as f32 + tap.weight).collect()
    }

    #[test]
    fn centers_are_half_pixels_and_edges_are_clamped() {
        assert_eq!(places(&Axis::new(2, 4, Grid::Full)), [0.0, 0.25, 0.75, 1.0]);
        assert_eq!(places(&Axis::new(4, 2, Grid::Full)), [0.5, 2.5]);
        assert_eq!(places(&Axis::new(1, 3, Grid::Full)), [0.0, 0.0, 0.0]);
        assert_eq!(places(&Axis::new(5, 1, Grid::Full)), [2.0]);
    }

    #[test]
    fn chroma_lies_where_its_site_says() {
        assert_eq!(places(&Axis::new(5, 5, Grid::Cosited)), [0.0, 0.5, 1.0, 1.5, 2.0]);
        assert_eq!(places(&Axis::new(6, 6, Grid::Between)), [0.0, 0.25, 0.75, 1.25, 1.75, 2.0]);
        assert_eq!(places(&Axis::new(1, 1, Grid::Between)), [0.0]);
        // A cosited last pair has no sample to its right.
        assert_eq!(places(&Axis::new(4, 4, Grid::Cosited)), [0.0, 0.5, 1.0, 1.0]);
    }

    #[test]
    fn whole_ratios_need_no_blending() {
        assert_eq!(Axis::new(640, 640, Grid::Full).step, Step::Copy);
        assert_eq!(Axis::new(1920, 640, Grid::Full).step, Step::Pick);
        assert_eq!(Axis::new(1280, 640, Grid::Full).step, Step::Blend);
        assert_eq!(Axis::new(1, 4, Grid::Full).step, Step::Pick);
        assert_eq!(Axis::new(1280, 640, Grid::Between).step, Step::Copy);
    }

    proptest! {
        #[test]
        fn taps_stay_within_the_plane(frame in 1u32..=16383, resized in 1u32..2000, grid in 0..3) {
            let grid = [Grid::Full, Grid::Cosited, Grid::Between][grid as usize];
            let samples = if grid == Grid::Full { frame } else { frame.div_ceil(2) };
            let axis = Axis::new(frame, resized, grid);
            prop_assert_eq!(axis.taps.len(), resized as usize);
            for tap in &axis.taps {
                prop_assert!(tap.near <= tap.far && tap.far - tap.near <= 1 && tap.far < samples);
                prop_assert!((0.0..=1.0).contains(&tap.weight));
            }
            prop_assert!(axis.taps.windows(2).all(|pair| pair[0].near <= pair[1].near));
        }
    }
}
