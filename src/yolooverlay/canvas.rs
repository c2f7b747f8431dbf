//! Paints rectangles into a video frame of any 8-bit format with whole-byte components.

use std::convert::Infallible;
use std::ops::Range;

use embedded_graphics::Pixel;
use embedded_graphics::draw_target::DrawTarget;
use embedded_graphics::geometry::{OriginDimensions, Size};
use gst_video::prelude::*;

use super::ink::Ink;

/// A half-open rectangle in luma pixels, possibly beyond the frame. Empty where an end is not above its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    pub x0: i64,
    pub y0: i64,
    pub x1: i64,
    pub y1: i64,
}

impl Area {
    pub fn new(x0: i64, y0: i64, x1: i64, y1: i64) -> Self {
        Self { x0, y0, x1, y1 }
    }

    pub fn width(&self) -> i64 {
        self.x1 - self.x0
    }

    pub fn height(&self) -> i64 {
        self.y1 - self.y0
    }

    pub fn is_empty(&self) -> bool {
        self.x0 >= self.x1 || self.y0 >= self.y1
    }

    pub fn intersection(&self, other: &Area) -> Area {
        Area::new(self.x0.max(other.x0), self.y0.max(other.y0), self.x1.min(other.x1), self.y1.min(other.y1))
    }

    /// Grown outwards to multiples of the grid, so that its edges cut no chroma sample in two.
    pub fn snapped(&self, grid: Grid) -> Area {
        Area::new(grid.down_x(self.x0), grid.down_y(self.y0), grid.up_x(self.x1), grid.up_y(self.y1))
    }
}

/// The luma pixels that share one chroma sample: 2×2 for 4:2:0, 2×1 for 4:2:2, 1×1 for the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    pub x: i64,
    pub y: i64,
}

impl Grid {
    pub fn of(format: &gst_video::VideoFormatInfo) -> Self {
        let most = |subsampling: &[u32]| 1 << subsampling.iter().max().copied().unwrap_or(0);
        Self { x: most(format.w_sub()), y: most(format.h_sub()) }
    }

    pub fn down_x(&self, x: i64) -> i64 {
        x - x.rem_euclid(self.x)
    }

    pub fn down_y(&self, y: i64) -> i64 {
        y - y.rem_euclid(self.y)
    }

    pub fn up_x(&self, x: i64) -> i64 {
        self.down_x(x + self.x - 1)
    }

    pub fn up_y(&self, y: i64) -> i64 {
        self.down_y(y + self.y - 1)
    }
}

/// Where one component's samples lie.
#[derive(Clone, Copy, Debug, Default)]
struct Component {
    plane: usize,
    /// Bytes from the start of the row to the first sample.
    offset: usize,
    /// Bytes from one sample to the next.
    pixel_stride: usize,
    /// Subsampling, as a power of two.
    w_sub: u32,
    h_sub: u32,
}

/// A frame's writable planes and where in them each component lies.
pub struct Canvas<'a> {
    planes: [&'a mut [u8]; 4],
    /// Bytes from one row to the next, by plane.
    row_strides: [usize; 4],
    components: [Component; 4],
    n_components: usize,
    width: i64,
    height: i64,
}

impl<'a> Canvas<'a> {
    pub fn new(frame: &'a mut gst_video::VideoFrameRef<&mut gst::BufferRef>) -> Self {
        let format = frame.format_info();
        let n_components = format.n_components() as usize;
        // The format's own lists are as long as it has components.
        let mut components = [Component::default(); 4];
        for (i, component) in components.iter_mut().take(n_components).enumerate() {
            *component = Component {
                plane: format.plane()[i] as usize,
                offset: format.poffset()[i] as usize,
                pixel_stride: usize::try_from(format.pixel_stride()[i]).unwrap_or(0).max(1),
                w_sub: format.w_sub()[i],
                h_sub: format.h_sub()[i],
            };
        }
        let mut row_strides = [0; 4];
        for (ours, theirs) in row_strides.iter_mut().zip(frame.plane_stride()) {
            *ours = usize::try_from(*theirs).unwrap_or(0);
        }
        Self {
            row_strides,
            components,
            n_components,
            width: i64::from(frame.width()),
            height: i64::from(frame.height()),
            planes: frame.planes_data_mut(),
        }
    }

    pub fn bounds(&self) -> Area {
        Area::new(0, 0, self.width, self.height)
    }

    /// Paints `area`, cut to the frame. A chroma sample of which the area covers only a part is mixed by that part.
    pub fn fill_rect(&mut self, area: &Area, ink: Ink) {
        let area = area.intersection(&self.bounds());
        if area.is_empty() {
            return;
        }
        let components = self.components;
        for (component, value) in components.iter().zip(ink.0).take(self.n_components) {
            let columns = Samples::new(area.x0..area.x1, component.w_sub, self.width);
            let rows = Samples::new(area.y0..area.y1, component.h_sub, self.height);
            for y in rows.touched.clone() {
                let row_share = rows.share(y);
                if row_share.is_whole() {
                    self.fill(component, y, columns.whole.clone(), value);
                } else {
                    self.mix(component, y, columns.whole.clone(), value, row_share);
                }
                for x in [columns.touched.start..columns.whole.start, columns.whole.end..columns.touched.end]
                {
                    let share = columns.share(x.start).and(row_share);
                    self.mix(component, y, x, value, share);
                }
            }
        }
    }

    /// The bytes of a row from the first of `columns` on, to the row's end or a little beyond the last one.
    fn samples(&mut self, component: &Component, y: i64, columns: &Range<i64>) -> &mut [u8] {
        let start = component.offset
            + y as usize * self.row_strides[component.plane]
            + columns.start as usize * component.pixel_stride;
        let count = (columns.end - columns.start).max(0) as usize;
        // The last sample's pixel may end with the plane, short of a whole pixel stride.
        let bytes = count.saturating_sub(1) * component.pixel_stride + usize::from(count > 0);
        self.planes[component.plane].get_mut(start..start + bytes).unwrap_or_default()
    }

    fn fill(&mut self, component: &Component, y: i64, columns: Range<i64>, value: u8) {
        let samples = self.samples(component, y, &columns);
        match component.pixel_stride {
            1 => samples.fill(value),
            stride => samples.iter_mut().step_by(stride).for_each(|sample| *sample = value),
        }
    }

    fn mix(&mut self, component: &Component, y: i64, columns: Range<i64>, value: u8, share: Share) {
        let samples = self.samples(component, y, &columns);
        for sample in samples.iter_mut().step_by(component.pixel_stride) {
            *sample = share.mix(*sample, value);
        }
    }
}

/// Samples of one axis that a run of luma pixels touches, and those of them that it covers wholly.
struct Samples {
    pixels: Range<i64>,
    subsampling: u32,
    /// Luma pixels on this axis.
    length: i64,
    touched: Range<i64>,
    /// Lies within `touched`.
    whole: Range<i64>,
}

impl Samples {
    /// `pixels` is not empty and lies within `0..length`.
    fn new(pixels: Range<i64>, subsampling: u32, length: i64) -> Self {
        let last = (1 << subsampling) - 1;
        let touched = pixels.start >> subsampling..(pixels.end + last) >> subsampling;
        let start = ((pixels.start + last) >> subsampling).min(touched.end);
        // At an odd length the last sample stands for fewer pixels: reaching the end covers it.
        let end = if pixels.end == length { touched.end } else { pixels.end >> subsampling };
        Self { pixels, subsampling, length, touched, whole: start..end.max(start) }
    }

    /// How much of the sample's pixels within the frame are covered.
    fn share(&self, sample: i64) -> Share {
        let start = sample << self.subsampling;
        let end = ((sample + 1) << self.subsampling).min(self.length);
        Share {
            part: (self.pixels.end.min(end) - self.pixels.start.max(start)).max(0) as u32,
            of: (end - start).max(1) as u32,
        }
    }
}

/// A fraction of a sample; `of` is at most 16 (4×4 luma pixels).
#[derive(Clone, Copy)]
struct Share {
    part: u32,
    of: u32,
}

impl Share {
    fn is_whole(self) -> bool {
        self.part == self.of
    }

    fn and(self, other: Share) -> Share {
        Share { part: self.part * other.part, of: self.of * other.of }
    }

    fn mix(self, old: u8, new: u8) -> u8 {
        let sum = u32::from(old) * (self.of - self.part) + u32::from(new) * self.part + self.of / 2;
        (sum / self.of) as u8
    }
}

/// The canvas as embedded-graphics draws on it: from `origin` on, each of its pixels `scale` × `scale` of ours.
pub struct Magnified<'c, 'a> {
    pub canvas: &'c mut Canvas<'a>,
    pub origin: (i64, i64),
    /// At least 1.
    pub scale: i64,
}

impl Magnified<'_, '_> {
    fn fill(&mut self, x: Range<i64>, y: i64, ink: Ink) {
        let (left, top) = self.origin;
        let area = Area::new(
            left + x.start * self.scale,
            top + y * self.scale,
            left + x.end * self.scale,
            top + (y + 1) * self.scale,
        );
        self.canvas.fill_rect(&area, ink);
    }
}

impl OriginDimensions for Magnified<'_, '_> {
    fn size(&self) -> Size {
        let size = |length: i64| u32::try_from(length / self.scale.max(1)).unwrap_or(0);
        Size::new(size(self.canvas.width), size(self.canvas.height))
    }
}

impl DrawTarget for Magnified<'_, '_> {
    type Color = Ink;
    type Error = Infallible;

    /// Neighbours of one row and colour are painted as one run: shared chroma is then mixed once, not pixel by pixel.
    fn draw_iter<I>(&mut self, pixels: I) -> Result<(), Infallible>
    where
        I: IntoIterator<Item = Pixel<Ink>>,
    {
        let mut run: Option<(Range<i64>, i64, Ink)> = None;
        for Pixel(point, ink) in pixels {
            let (x, y) = (i64::from(point.x), i64::from(point.y));
            match &mut run {
                Some((columns, row, colour)) if columns.end == x && *row == y && *colour == ink => {
                    columns.end += 1
                }
                _ => {
                    if let Some((columns, row, colour)) = run.replace((x..x + 1, y, ink)) {
                        self.fill(columns, row, colour);
                    }
                }
            }
        }
        if let Some((columns, row, colour)) = run {
            self.fill(columns, row, colour);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn areas_grow_to_the_grid_also_below_zero() {
        let grid = Grid { x: 2, y: 2 };
        assert_eq!(Area::new(-3, -2, 5, 4).snapped(grid), Area::new(-4, -2, 6, 4));
        assert_eq!(Area::new(1, 1, 2, 2).snapped(Grid { x: 2, y: 1 }), Area::new(0, 1, 2, 2));
    }

    proptest! {
        /// On one axis, by counting: each sample's share is that of its pixels which are covered.
        #[test]
        fn samples_are_covered_by_their_pixels(
            length in 1i64..20, from in 0i64..20, to in 0i64..20, subsampling in 0u32..3,
        ) {
            let (from, to) = (from.min(length - 1), to.min(length));
            prop_assume!(from < to);
            let samples = Samples::new(from..to, subsampling, length);
            let count = (length + (1 << subsampling) - 1) >> subsampling;
            for sample in 0..count {
                let pixels = (0..length).filter(|pixel| pixel >> subsampling == sample);
                let of = pixels.clone().count();
                let part = pixels.filter(|pixel| (from..to).contains(pixel)).count();
                prop_assert_eq!(samples.touched.contains(&sample), part > 0);
                prop_assert_eq!(samples.whole.contains(&sample), part == of);
                if part > 0 {
                    let share = samples.share(sample);
                    prop_assert_eq!((share.part as usize, share.of as usize), (part, of));
                }
            }
            prop_assert!(samples.touched.start <= samples.whole.start && samples.whole.end <= samples.touched.end);
            // What is mixed at either end is one sample at most.
            prop_assert!(samples.whole.start - samples.touched.start <= 1);
            prop_assert!(samples.touched.end - samples.whole.end <= 1);
        }
    }

    #[test]
    fn mixing_is_exact_at_its_ends() {
        for (old, new) in [(0, 255), (255, 0), (16, 235), (128, 128)] {
            assert_eq!(Share { part: 0, of: 4 }.mix(old, new), old);
            assert_eq!(Share { part: 4, of: 4 }.mix(old, new), new);
        }
        assert_eq!(Share { part: 1, of: 4 }.mix(0, 200), 50);
    }

    #[test]
    fn any_area_is_cut_to_the_frame() {
        gst::init().expect("GStreamer starts");
        let info = gst_video::VideoInfo::builder(gst_video::VideoFormat::I420, 5, 3).build().expect("valid");
        let mut buffer = gst::Buffer::from_mut_slice(vec![0u8; info.size()]);
        let mut frame =
            gst_video::VideoFrameRef::from_buffer_ref_writable(buffer.make_mut(), &info).expect("writable");
        let mut canvas = Canvas::new(&mut frame);
        let (min, max) = (i64::from(i32::MIN), 2 * i64::from(i32::MAX));
        for empty in
            [Area::new(3, 0, 3, 3), Area::new(4, 2, 1, 1), Area::new(5, 0, max, 3), Area::new(min, min, 0, 0)]
        {
            canvas.fill_rect(&empty, Ink([9; 4]));
        }
        assert!(canvas.planes.iter().all(|plane| plane.iter().all(|byte| *byte == 0)));
        canvas.fill_rect(&Area::new(min, min, max, max), Ink([9; 4]));
        let (stride, chroma_stride) = (canvas.row_strides[0], canvas.row_strides[1]);
        assert_eq!(canvas.planes[0][2 * stride..][..6], [9, 9, 9, 9, 9, 0]);
        assert_eq!(canvas.planes[2][chroma_stride..][..4], [9, 9, 9, 0]);
    }
}
