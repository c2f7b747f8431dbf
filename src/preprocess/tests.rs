//! Conversion against a slow second implementation, OpenCV's numbers and known colours.

mod kernels;
mod margins;

use super::style::PADDING;
use super::*;
use half::f16;
use proptest::prelude::*;

const FORMATS: [PixelFormat; 19] = PixelFormat::ALL;
const MATRICES: [Matrix; 5] = [Matrix::Bt601, Matrix::Bt709, Matrix::Bt2020, Matrix::Smpte240m, Matrix::Fcc];
const FULL: Colorimetry = Colorimetry { matrix: Matrix::Bt601, range: Range::Full };
const CENTERED: ChromaSite = ChromaSite { horizontal_cosited: false, vertical_cosited: false };
/// RGB bytes with no padding where the sizes agree.
const BYTES: InputStyle =
    InputStyle { placement: Placement::Center, order: ChannelOrder::Rgb, range: ValueRange::Byte };

/// A frame's planes, each as short as it may be, with `garbage` between the rows.
struct Frame {
    format: FrameFormat,
    planes: Vec<(Vec<u8>, usize)>,
}

impl Frame {
    /// `pixel(component, x, y)` gives component 0..=2 (R, G, B or Y, Cb, Cr) of the sample at `(x, y)` of that
    /// component's own grid.
    fn new(
        format: FrameFormat,
        slack: usize,
        garbage: u8,
        pixel: impl Fn(usize, usize, usize) -> u8,
    ) -> Self {
        let (width, height) = (format.width as usize, format.height as usize);
        let (half_width, half_height) = (width.div_ceil(2), height.div_ceil(2));
        let sizes: &[(usize, usize)] = match format.pixel {
            PixelFormat::Rgb | PixelFormat::Bgr => &[(3 * width, height)],
            PixelFormat::Gray8 => &[(width, height)],
            PixelFormat::I420 | PixelFormat::Yv12 => {
                &[(width, height), (half_width, half_height), (half_width, half_height)]
            }
            PixelFormat::Nv12 | PixelFormat::Nv21 => &[(width, height), (2 * half_width, half_height)],
            PixelFormat::Yuy2 | PixelFormat::Uyvy => &[(4 * half_width, height)],
            PixelFormat::Y42b => &[(width, height), (half_width, height), (half_width, height)],
            PixelFormat::Y444 => &[(width, height); 3],
            _ => &[(4 * width, height)],
        };
        let mut planes: Vec<(Vec<u8>, usize)> = sizes
            .iter()
            .map(|&(row, rows)| (vec![garbage; (rows - 1) * (row + slack) + row], row + slack))
            .collect();
        for component in 0..components(format.pixel) {
            let (columns, rows) = grid(&format, component);
            for (x, y) in (0..rows).flat_map(|y| (0..columns).map(move |x| (x, y))) {
                let (plane, column) = place(format.pixel, component, x);
                let (data, stride) = &mut planes[plane];
                data[y * *stride + column] = pixel(component, x, y);
            }
        }
        Self { format, planes }
    }

    fn solid(pixel: PixelFormat, size: (u32, u32), colorimetry: Colorimetry, color: [u8; 3]) -> Self {
        Self::new(format(pixel, size, colorimetry), 0, 0, |component, _, _| color[component])
    }

    fn noise(format: FrameFormat, slack: usize, garbage: u8) -> Self {
        Self::new(format, slack, garbage, |component, x, y| {
            (x * 37 + y * 91 + component * 53 + x * y * 11 + ((x * 7) ^ (y * 5))) as u8
        })
    }

    fn planes(&self) -> Vec<Plane<'_>> {
        self.planes.iter().map(|(data, row_stride)| Plane { data, row_stride: *row_stride }).collect()
    }

    fn at(&self, component: usize, x: usize, y: usize) -> f64 {
        let (plane, column) = place(self.format.pixel, component, x);
        let (data, stride) = &self.planes[plane];
        f64::from(data[y * stride + column])
    }

    fn convert(&self, model: (u32, u32), style: InputStyle) -> Vec<f32> {
        self.convert_with(Kernels::best(), model, style)
    }

    fn convert_with(&self, kernels: Kernels, model: (u32, u32), style: InputStyle) -> Vec<f32> {
        let mut out = vec![f32::NAN; 3 * model.0 as usize * model.1 as usize];
        Converter::with_kernels(self.format, model, style, kernels)
            .convert(&self.planes(), fresh(TensorMut::F32(&mut out), &mut Margin::default()))
            .expect("the frame is complete");
        out
    }

    fn convert_to_f16(&self, kernels: Kernels, model: (u32, u32), style: InputStyle) -> Vec<f16> {
        let mut out = vec![f16::NAN; 3 * model.0 as usize * model.1 as usize];
        Converter::with_kernels(self.format, model, style, kernels)
            .convert(&self.planes(), fresh(TensorMut::F16(&mut out), &mut Margin::default()))
            .expect("the frame is complete");
        out
    }

    /// The same by the book: bilinear in double precision, then the textbook's conversion.
    fn reference(&self, model: (u32, u32), style: InputStyle) -> Vec<f64> {
        let frame = (self.format.width, self.format.height);
        let letterbox = Letterbox::new(frame, model, style.placement);
        let (left, top) = letterbox.pad();
        let (width, height) = letterbox.resized();
        let scale = if style.range == ValueRange::Unit { 255.0 } else { 1.0 };
        let (w, h) = (model.0 as usize, model.1 as usize);
        let mut out = vec![f64::from(PADDING) / scale; 3 * w * h];
        for (column, row) in (0..height).flat_map(|row| (0..width).map(move |column| (column, row))) {
            let place = |i: u32, resized: u32, frame: u32| {
                let place = (f64::from(i) + 0.5) * (f64::from(frame) / f64::from(resized)) - 0.5;
                place.clamp(0.0, f64::from(frame - 1))
            };
            let (x, y) = (place(column, width, frame.0), place(row, height, frame.1));
            let rgb = self.color_at(x, y);
            for (channel, &value) in rgb.iter().enumerate() {
                let channel = if style.order == ChannelOrder::Rgb { channel } else { 2 - channel };
                out[(channel * h + (top + row) as usize) * w + (left + column) as usize] = value / scale;
            }
        }
        out
    }

    fn color_at(&self, x: f64, y: f64) -> [f64; 3] {
        let Colorimetry { matrix, range } = self.format.colorimetry;
        let (black, white, swing) =
            if range == Range::Full { (0.0, 255.0, 255.0) } else { (16.0, 235.0, 224.0) };
        let level = |byte: f64| (byte - black) / (white - black);
        let value = |component| self.bilinear(component, x, y);
        let rgb = match self.format.pixel {
            PixelFormat::Gray8 => [level(value(0)); 3],
            pixel if is_yuv(pixel) => {
                let (kr, kb) = match matrix {
                    Matrix::Bt601 => (0.299, 0.114),
                    Matrix::Bt709 => (0.2126, 0.0722),
                    Matrix::Bt2020 => (0.2627, 0.0593),
                    Matrix::Smpte240m => (0.212, 0.087),
                    Matrix::Fcc => (0.3, 0.11),
                };
                let (luma, cb, cr) =
                    (level(value(0)), (value(1) - 128.0) / swing, (value(2) - 128.0) / swing);
                let red = luma + cr * 2.0 * (1.0 - kr);
                let blue = luma + cb * 2.0 * (1.0 - kb);
                [red, (luma - kr * red - kb * blue) / (1.0 - kr - kb), blue]
            }
            _ => [level(value(0)), level(value(1)), level(value(2))],
        };
        rgb.map(|value| (value * 255.0).clamp(0.0, 255.0))
    }

    fn bilinear(&self, component: usize, x: f64, y: f64) -> f64 {
        let (columns, rows) = grid(&self.format, component);
        let site = self.format.chroma;
        let along = |place: f64, samples: usize, pixels: u32, cosited: bool| {
            let subsampled = samples < pixels as usize;
            let place = match (subsampled, cosited) {
                (false, _) => place,
                (true, true) => place / 2.0,
                (true, false) => (place - 0.5) / 2.0,
            };
            place.clamp(0.0, (samples - 1) as f64)
        };
        let x = along(x, columns, self.format.width, site.horizontal_cosited);
        let y = along(y, rows, self.format.height, site.vertical_cosited);
        let (x0, y0) = (x.floor() as usize, y.floor() as usize);
        let (x1, y1) = ((x0 + 1).min(columns - 1), (y0 + 1).min(rows - 1));
        let (fx, fy) = (x - x0 as f64, y - y0 as f64);
        let top = self.at(component, x0, y0) * (1.0 - fx) + self.at(component, x1, y0) * fx;
        let bottom = self.at(component, x0, y1) * (1.0 - fx) + self.at(component, x1, y1) * fx;
        top * (1.0 - fy) + bottom * fy
    }
}

/// A place where nothing is painted yet.
fn fresh<'a>(values: TensorMut<'a>, margin: &'a mut Margin) -> FrameTensor<'a> {
    *margin = Margin::default();
    FrameTensor { values, margin }
}

fn format(pixel: PixelFormat, (width, height): (u32, u32), colorimetry: Colorimetry) -> FrameFormat {
    FrameFormat { pixel, width, height, colorimetry, chroma: CENTERED }
}

fn is_yuv(pixel: PixelFormat) -> bool {
    use PixelFormat::*;
    matches!(pixel, I420 | Yv12 | Nv12 | Nv21 | Yuy2 | Uyvy | Y42b | Y444)
}

fn components(pixel: PixelFormat) -> usize {
    if pixel == PixelFormat::Gray8 { 1 } else { 3 }
}

/// Columns and rows of a component.
fn grid(format: &FrameFormat, component: usize) -> (usize, usize) {
    use PixelFormat::*;
    let (width, height) = (format.width as usize, format.height as usize);
    match format.pixel {
        I420 | Yv12 | Nv12 | Nv21 if component > 0 => (width.div_ceil(2), height.div_ceil(2)),
        Yuy2 | Uyvy | Y42b if component > 0 => (width.div_ceil(2), height),
        _ => (width, height),
    }
}

/// Plane and byte within the row.
fn place(pixel: PixelFormat, component: usize, x: usize) -> (usize, usize) {
    use PixelFormat::*;
    match (pixel, component) {
        (Rgb, c) => (0, 3 * x + c),
        (Bgr, c) => (0, 3 * x + 2 - c),
        (Rgbx | Rgba, c) => (0, 4 * x + c),
        (Bgrx | Bgra, c) => (0, 4 * x + 2 - c),
        (Xrgb | Argb, c) => (0, 4 * x + 1 + c),
        (Xbgr | Abgr, c) => (0, 4 * x + 3 - c),
        (Yuy2, 0) => (0, 2 * x),
        (Yuy2, 1) => (0, 4 * x + 1),
        (Yuy2, _) => (0, 4 * x + 3),
        (Uyvy, 0) => (0, 2 * x + 1),
        (Uyvy, 1) => (0, 4 * x),
        (Uyvy, _) => (0, 4 * x + 2),
        (_, 0) => (0, x),
        (I420 | Y42b | Y444, c) => (c, x),
        (Yv12, c) => (3 - c, x),
        (Nv12, c) => (1, 2 * x + c - 1),
        (Nv21, c) => (1, 2 * x + 2 - c),
        (Gray8, _) => unreachable!("gray has one component"),
    }
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(found) - expected).abs() <= tolerance, "element {i}: {found}, not {expected}");
    }
}

#[test]
fn every_format_agrees_with_the_book() {
    for pixel in FORMATS {
        for (size, model) in [((17, 13), (8, 8)), ((7, 5), (12, 12)), ((16, 16), (16, 16)), ((9, 3), (3, 3))]
        {
            for range in [Range::Full, Range::Limited] {
                let frame =
                    Frame::noise(format(pixel, size, Colorimetry { matrix: Matrix::Bt709, range }), 5, 9);
                for style in [InputStyle::ULTRALYTICS, InputStyle::YOLOX] {
                    let expected = frame.reference(model, style);
                    for kernels in kernels::ALL {
                        let tolerance = kernels::tolerance(kernels(), style);
                        assert_close(&frame.convert_with(kernels(), model, style), &expected, tolerance);
                    }
                }
            }
        }
    }
}

/// The green channel as OpenCV's `resize(INTER_LINEAR)` of float pixels and `copyMakeBorder` make it, to one
/// decimal.
#[test]
fn resizes_as_opencv_does() {
    #[rustfmt::skip]
    const UP: [[f64; 12]; 12] = [
        [114.0; 12],
        [53.0, 66.9, 88.5, 110.0, 131.6, 153.2, 174.8, 196.4, 218.0, 228.9, 101.1, 19.0],
        [83.3, 98.6, 122.3, 146.0, 159.1, 133.0, 131.9, 155.6, 179.3, 195.9, 120.1, 71.3],
        [133.9, 151.4, 178.7, 206.0, 204.8, 99.4, 60.3, 87.6, 114.9, 141.0, 151.7, 158.6],
        [184.4, 161.6, 126.1, 152.2, 165.3, 113.2, 102.5, 133.4, 112.1, 81.3, 112.2, 132.0],
        [235.0, 161.1, 46.2, 70.0, 104.4, 138.8, 173.2, 207.6, 124.7, 20.5, 54.9, 77.0],
        [143.3, 125.1, 96.7, 129.9, 150.1, 105.2, 101.7, 139.6, 125.5, 101.8, 139.8, 164.2],
        [80.1, 106.8, 148.4, 174.5, 174.6, 83.4, 58.6, 100.1, 128.6, 154.7, 196.3, 223.0],
        [130.7, 159.7, 204.8, 157.4, 113.7, 109.0, 129.2, 174.3, 141.2, 93.9, 139.0, 168.0],
        [161.0, 191.4, 238.6, 147.2, 77.1, 124.4, 171.6, 218.9, 148.8, 57.4, 104.6, 135.0],
        [114.0; 12],
        [114.0; 12],
    ];
    #[rustfmt::skip]
    const DOWN: [[f64; 8]; 8] = [
        [114.0; 8],
        [130.5, 120.1, 165.7, 151.3, 94.2, 186.5, 22.7, 115.0],
        [113.1, 96.0, 126.9, 77.8, 192.7, 95.6, 158.5, 125.4],
        [163.7, 71.9, 174.8, 129.6, 67.2, 195.4, 118.3, 135.8],
        [96.9, 55.8, 205.3, 194.8, 167.0, 125.9, 158.1, 146.3],
        [168.8, 67.6, 62.5, 77.3, 100.2, 79.0, 117.9, 156.7],
        [99.4, 175.5, 110.3, 81.2, 138.7, 196.2, 77.6, 120.5],
        [114.0; 8],
    ];
    let green = |size, model: (u32, u32)| {
        let noise =
            |component: usize, x: usize, y: usize| (x * 37 + y * 91 + component * 53 + x * y * 11) as u8;
        let frame = Frame::new(format(PixelFormat::Rgb, size, FULL), 0, 0, noise);
        let pixels = (model.0 * model.1) as usize;
        frame.convert(model, BYTES)[pixels..2 * pixels].to_vec()
    };
    assert_close(&green((7, 5), (12, 12)), UP.as_flattened(), 0.06);
    assert_close(&green((17, 13), (8, 8)), DOWN.as_flattened(), 0.06);
}

#[test]
fn known_colors_come_out_as_such() {
    use Matrix::*;
    use Range::*;
    // Triples rounded to bytes, as the standards' tables of colour bars list them.
    #[rustfmt::skip]
    let known = [
        (Bt601, Limited, [81, 90, 240], [255, 0, 0]),
        (Bt601, Limited, [145, 54, 34], [0, 255, 0]),
        (Bt601, Limited, [41, 240, 110], [0, 0, 255]),
        (Bt601, Full, [76, 85, 255], [255, 0, 0]),
        (Bt709, Limited, [63, 102, 240], [255, 0, 0]),
        (Bt709, Limited, [173, 42, 26], [0, 255, 0]),
        (Bt709, Limited, [32, 240, 118], [0, 0, 255]),
        (Bt709, Full, [54, 99, 255], [255, 0, 0]),
        (Bt2020, Limited, [74, 97, 240], [255, 0, 0]),
        (Bt601, Limited, [235, 128, 128], [255, 255, 255]),
        (Bt601, Limited, [16, 128, 128], [0, 0, 0]),
        (Bt709, Full, [77, 128, 128], [77, 77, 77]),
        // Beyond black and white.
        (Bt709, Limited, [3, 128, 128], [0, 0, 0]),
        (Bt709, Limited, [250, 128, 128], [255, 255, 255]),
    ];
    for pixel in FORMATS.into_iter().filter(|&pixel| is_yuv(pixel)) {
        for (matrix, range, yuv, rgb) in known {
            let frame = Frame::solid(pixel, (5, 3), Colorimetry { matrix, range }, yuv);
            let out = frame.convert((5, 3), BYTES);
            for (channel, expected) in out.chunks(15).zip(rgb) {
                let found = channel[0];
                assert!((found - expected as f32).abs() <= 2.0, "{pixel:?} {matrix:?} {range:?}: {out:?}");
                assert!(channel.iter().all(|value| (value - found).abs() < 1e-3));
            }
        }
    }
}

#[test]
fn limited_rgb_and_gray_are_stretched() {
    let limited = Colorimetry { matrix: Matrix::Bt709, range: Range::Limited };
    for pixel in FORMATS.into_iter().filter(|&pixel| !is_yuv(pixel)) {
        let out = Frame::solid(pixel, (2, 2), limited, [235, 16, 125]).convert((2, 2), BYTES);
        let expected = if pixel == PixelFormat::Gray8 { [255.0; 3] } else { [255.0, 0.0, 126.9178] };
        for (channel, expected) in out.chunks(4).zip(expected) {
            assert!((channel[0] - expected).abs() < 1e-3, "{pixel:?}: {out:?}");
        }
    }
}

#[test]
fn same_size_keeps_every_pixel() {
    for pixel in FORMATS.into_iter().filter(|&pixel| !is_yuv(pixel)) {
        let frame = Frame::noise(format(pixel, (256, 3), FULL), 1, 7);
        let expected = frame.reference((256, 256), BYTES);
        let found = frame.convert((256, 256), BYTES);
        assert!(found.iter().zip(&expected).all(|(&a, &b)| f64::from(a) == b), "{pixel:?}");
        let unit = frame.convert((256, 256), InputStyle::ULTRALYTICS);
        let bytes = unit.iter().map(|value| (value * 255.0).round());
        assert!(bytes.zip(&expected).all(|(a, &b)| f64::from(a) == b), "{pixel:?}");
        assert!(unit.iter().all(|value| (0.0..=1.0).contains(value)));
    }
}

#[test]
fn white_is_one() {
    let out = Frame::solid(PixelFormat::Rgb, (4, 4), FULL, [255; 3]).convert((4, 4), InputStyle::ULTRALYTICS);
    assert_eq!(out, [1.0; 48]);
}

#[test]
fn padding_surrounds_the_picture() {
    let frame = Frame::solid(PixelFormat::Rgb, (2, 4), FULL, [10, 20, 30]);
    let pad = f32::from(PADDING);
    let rgb = frame.convert((5, 4), BYTES);
    // Three columns over: one to the left, two to the right.
    assert_eq!(rgb[..5], [pad, 10.0, 10.0, pad, pad]);
    let bgr = frame.convert((3, 5), InputStyle::YOLOX);
    // The gain is 1.25: two columns by five rows.
    assert_eq!(bgr[..6], [30.0, 30.0, pad, 30.0, 30.0, pad]);
    assert_eq!(bgr[30], 10.0);
    let bgr = frame.convert((2, 5), InputStyle::YOLOX);
    assert_eq!(bgr[6..10], [30.0, 30.0, pad, pad]);
    let unit = frame.convert((5, 4), InputStyle::ULTRALYTICS);
    assert_eq!(unit[0], pad / 255.0);
}

#[test]
fn rows_that_the_picture_skips_do_not_matter() {
    // At a third of the size the middle of each three pixels is the one that counts.
    let format = format(PixelFormat::Gray8, (9, 9), FULL);
    let frame = |garbage: u8| {
        Frame::new(format, 0, 0, move |_, x, y| if x % 3 == 1 && y % 3 == 1 { 50 } else { garbage })
    };
    assert_eq!(frame(0).convert((3, 3), BYTES), [50.0; 27]);
    assert_eq!(frame(255).convert((3, 3), BYTES), [50.0; 27]);
}

#[test]
fn half_floats_are_the_rounded_floats() {
    for kernels in kernels::ALL {
        for style in [InputStyle::ULTRALYTICS, InputStyle::YOLOX] {
            let frame = Frame::noise(format(PixelFormat::Nv12, (37, 21), FULL), 3, 1);
            let expected = frame.convert_with(kernels(), (24, 24), style);
            let found = frame.convert_to_f16(kernels(), (24, 24), style);
            assert!(found.iter().zip(&expected).all(|(found, &expected)| *found == f16::from_f32(expected)));
        }
    }
}

#[test]
fn a_second_frame_shows_nothing_of_the_first() {
    let first = Frame::noise(format(PixelFormat::I420, (31, 17), FULL), 0, 0);
    let second = Frame::solid(PixelFormat::I420, (31, 17), FULL, [200, 90, 60]);
    let mut converter = Converter::new(first.format, (16, 16), BYTES);
    let mut out = vec![0.0; 3 * 16 * 16];
    let mut margin = Margin::default();
    for frame in [&first, &second] {
        let out = FrameTensor { values: TensorMut::F32(&mut out), margin: &mut margin };
        converter.convert(&frame.planes(), out).expect("the frame is complete");
    }
    assert_eq!(out, second.convert((16, 16), BYTES));
}

#[test]
fn incomplete_frames_are_refused_by_name() {
    for pixel in FORMATS {
        let frame = Frame::noise(format(pixel, (5, 3), FULL), 2, 0);
        let mut converter = Converter::new(frame.format, (4, 4), BYTES);
        let mut out = vec![0.0; 48];
        let planes = frame.planes();
        let mut refused = |planes: &[Plane<'_>]| {
            let mut margin = Margin::default();
            converter
                .convert(planes, fresh(TensorMut::F32(&mut out), &mut margin))
                .expect_err("the frame is incomplete")
        };
        assert_eq!(
            refused(&planes[1..]),
            ConvertError::MissingPlane { needed: planes.len(), given: planes.len() - 1 }
        );
        for plane in 0..planes.len() {
            let Plane { data, row_stride } = planes[plane];
            let with = |data, row_stride| {
                let mut planes = planes.clone();
                planes[plane] = Plane { data, row_stride };
                planes
            };
            let (needed, given) = (data.len(), data.len() - 1);
            assert_eq!(
                refused(&with(&data[1..], row_stride)),
                ConvertError::PlaneTooSmall { plane, needed, given }
            );
            let (needed, given) = (row_stride - 2, row_stride - 3);
            assert_eq!(refused(&with(data, given)), ConvertError::RowStride { plane, needed, given });
            assert!(matches!(refused(&with(data, usize::MAX)), ConvertError::PlaneTooSmall { .. }));
        }
    }
}

#[test]
fn tensors_of_another_size_are_refused() {
    let frame = Frame::noise(format(PixelFormat::Rgb, (5, 3), FULL), 0, 0);
    let mut converter = Converter::new(frame.format, (4, 4), BYTES);
    for given in [0, 47, 49] {
        let (mut out, mut margin) = (vec![f16::ZERO; given], Margin::default());
        let error = converter.convert(&frame.planes(), fresh(TensorMut::F16(&mut out), &mut margin));
        assert_eq!(error, Err(ConvertError::TensorSize { needed: 48, given }));
    }
}

#[test]
fn extreme_sizes_are_converted() {
    for pixel in FORMATS {
        for size in [(1, 1), (16383, 1), (1, 16383), (16383, 2), (2, 1), (1, 2)] {
            let frame = Frame::noise(format(pixel, size, FULL), 0, 0);
            let expected = frame.reference((32, 20), BYTES);
            for kernels in kernels::ALL {
                let tolerance = kernels::tolerance(kernels(), BYTES);
                assert_close(&frame.convert_with(kernels(), (32, 20), BYTES), &expected, tolerance);
            }
        }
        let empty = FrameFormat { width: 0, height: 0, ..format(pixel, (1, 1), FULL) };
        let (mut out, mut margin) = ([0.0; 48], Margin::default());
        let error =
            Converter::new(empty, (4, 4), BYTES).convert(&[], fresh(TensorMut::F32(&mut out), &mut margin));
        assert!(matches!(error, Err(ConvertError::MissingPlane { .. })));
    }
}

proptest! {
    #[test]
    fn any_frame_agrees_with_the_book(
        pixel in 0..FORMATS.len(),
        size in (1u32..40, 1u32..40),
        model in (1u32..40, 1u32..40),
        matrix in 0..MATRICES.len(),
        limited: bool,
        (horizontal_cosited, vertical_cosited) in any::<(bool, bool)>(),
        yolox: bool,
        slack in 0usize..9,
    ) {
        let range = if limited { Range::Limited } else { Range::Full };
        let format = FrameFormat {
            chroma: ChromaSite { horizontal_cosited, vertical_cosited },
            ..format(FORMATS[pixel], size, Colorimetry { matrix: MATRICES[matrix], range })
        };
        let frame = Frame::noise(format, slack, 0);
        let style = if yolox { InputStyle::YOLOX } else { InputStyle::ULTRALYTICS };
        let other = Frame::noise(format, slack + 1, 255);
        let expected = frame.reference(model, style);
        for kernels in kernels::ALL {
            let found = frame.convert_with(kernels(), model, style);
            assert_close(&found, &expected, 2.0 * kernels::tolerance(kernels(), style));
            // What lies between the rows makes no difference.
            prop_assert_eq!(found, other.convert_with(kernels(), model, style));
        }
    }
}
