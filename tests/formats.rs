//! Every pixel format, colorimetry, odd size and padded row gives what the same picture in RGB gives.

mod common;

use common::{Out, converted, detect, picture, solid, tiny, video_info, yolo12n};
use gst::prelude::*;
use gst_video::{VideoFormat, VideoFrameFlags, VideoInfo, VideoMeta};
use gstyolodetect::preprocess::{ChromaSite, Colorimetry, FrameFormat, Matrix, PixelFormat, Range};

/// All that the pads' template has, and what `preprocess` calls them.
#[rustfmt::skip]
const FORMATS: [(VideoFormat, PixelFormat); 19] = [
    (VideoFormat::Rgb, PixelFormat::Rgb),   (VideoFormat::Bgr, PixelFormat::Bgr),
    (VideoFormat::Rgbx, PixelFormat::Rgbx), (VideoFormat::Bgrx, PixelFormat::Bgrx),
    (VideoFormat::Xrgb, PixelFormat::Xrgb), (VideoFormat::Xbgr, PixelFormat::Xbgr),
    (VideoFormat::Rgba, PixelFormat::Rgba), (VideoFormat::Bgra, PixelFormat::Bgra),
    (VideoFormat::Argb, PixelFormat::Argb), (VideoFormat::Abgr, PixelFormat::Abgr),
    (VideoFormat::Gray8, PixelFormat::Gray8),
    (VideoFormat::I420, PixelFormat::I420), (VideoFormat::Yv12, PixelFormat::Yv12),
    (VideoFormat::Nv12, PixelFormat::Nv12), (VideoFormat::Nv21, PixelFormat::Nv21),
    (VideoFormat::Yuy2, PixelFormat::Yuy2), (VideoFormat::Uyvy, PixelFormat::Uyvy),
    (VideoFormat::Y42b, PixelFormat::Y42b), (VideoFormat::Y444, PixelFormat::Y444),
];

/// As caps write them: BT.601 and BT.709, limited and full range, and the rarer matrices.
const COLORIMETRIES: [&str; 6] = ["bt601", "bt709", "1:4:0:0", "1:3:5:1", "smpte240m", "bt2020"];

fn is_yuv(format: VideoFormat) -> bool {
    gst_video::VideoFormatInfo::from_format(format).is_yuv()
}

fn is_gray(format: VideoFormat) -> bool {
    gst_video::VideoFormatInfo::from_format(format).is_gray()
}

/// The colorimetries to try a format with; `None` leaves it to GStreamer.
fn colorimetries(format: VideoFormat) -> Vec<Option<&'static str>> {
    let all = COLORIMETRIES.iter().filter(|_| is_yuv(format)).map(|name| Some(*name));
    std::iter::once(None).chain(all).collect()
}

fn caps(format: VideoFormat, colorimetry: Option<&str>) -> String {
    let colorimetry = colorimetry.map(|name| format!(",colorimetry={name}")).unwrap_or_default();
    format!("video/x-raw,format={format}{colorimetry}")
}

#[test]
fn the_template_has_these_formats() {
    common::init();
    let element = gst::ElementFactory::make("yolodetect").build().unwrap();
    for pad in ["sink", "src"] {
        let template = element.pad_template(pad).unwrap();
        let structure = template.caps().structure(0).unwrap();
        let mut known: Vec<_> = structure
            .get::<gst::List>("format")
            .unwrap()
            .iter()
            .map(|name| name.get::<String>().unwrap())
            .collect();
        let mut expected: Vec<_> = FORMATS.iter().map(|(format, _)| format.to_string()).collect();
        known.sort();
        expected.sort();
        assert_eq!(known, expected);
    }
}

/// `preprocess` computes planes by itself; GStreamer's own layout must have room for what it reads.
#[test]
fn planes_are_laid_out_as_gstreamer_lays_them_out() {
    common::init();
    for (format, pixel) in FORMATS {
        for (width, height) in (1..=19).flat_map(|width| (1..=19).map(move |height| (width, height))) {
            let info = VideoInfo::builder(format, width, height).build().unwrap();
            let ours = FrameFormat {
                pixel,
                width,
                height,
                colorimetry: Colorimetry { matrix: Matrix::Bt601, range: Range::Full },
                chroma: ChromaSite { horizontal_cosited: false, vertical_cosited: false },
            };
            assert_eq!(info.n_planes() as usize, pixel.planes());
            for plane in 0..pixel.planes() {
                let what = format!("plane {plane} of {format} {width}x{height}");
                let components: Vec<_> = (0..info.n_components())
                    .filter(|&of| info.comp_plane(of as u8) as usize == plane)
                    .collect();
                let rows = components.iter().map(|&of| info.comp_height(of as u8) as usize).max();
                assert_eq!(Some(ours.rows(plane)), rows, "{what}");
                // One past the last byte of a row that any component has.
                let used = components
                    .iter()
                    .map(|&of| of as u8)
                    .map(|of| {
                        let last = (info.comp_width(of) as usize - 1) * info.comp_pstride(of) as usize;
                        last + info.comp_poffset(of) as usize + 1
                    })
                    .max()
                    .unwrap();
                let stride = info.stride()[plane] as usize;
                assert!(used <= ours.row_bytes(plane), "{what}: {used} bytes are used");
                assert!(
                    ours.row_bytes(plane) <= stride,
                    "{what}: rows of {} in {stride}",
                    ours.row_bytes(plane)
                );
                let end = info.offset()[plane] + ours.plane_bytes(plane, stride);
                let room = info.offset().get(plane + 1).copied().unwrap_or(info.size());
                assert!(end <= room, "{what}: ends at {end} of {room}");
            }
        }
    }
}

/// The marker models tell the mean of one channel: red and, of YOLOX's, blue.
#[test]
fn colours_keep_their_value_in_every_format_and_colorimetry() {
    common::init();
    let colors = [[200, 60, 120], [90, 220, 100], [120, 90, 230], [255, 255, 255]];
    for (model, channel, weight) in [("v8", 0, 1.0), ("yolox", 2, 0.9)] {
        let mut cases = Vec::new();
        for (format, _) in FORMATS {
            for colorimetry in colorimetries(format) {
                for color in colors {
                    // Square, so that no padding counts; odd, so that planes have halves.
                    for side in [64, 63] {
                        let sample = converted(&solid(side, side, color), &caps(format, colorimetry));
                        cases.push((color, sample));
                    }
                }
            }
        }
        let properties = format!("model-file={} confidence-threshold=0.05", tiny(model));
        let out = detect(&properties, cases.iter().map(|(_, sample)| sample)).unwrap();
        for ((color, sample), out) in cases.iter().zip(&out) {
            let info = video_info(sample);
            let expected = if is_gray(info.format()) {
                // Luma is all there is, on all three channels; BT.601 at full range.
                let [r, g, b] = color.map(f64::from);
                0.299 * r + 0.587 * g + 0.114 * b
            } else {
                f64::from(color[channel])
            };
            let found = out.only().confidence / weight * 255.0;
            // videoconvert is up to a step off in each component; a step of chroma is worth two of blue. The wrong
            // matrix costs ten and more.
            assert!(
                (found - expected).abs() < 4.5,
                "{color:?} as {:?}: {found}, not {expected}",
                sample.caps()
            );
        }
    }
}

/// The sample with `padding` bytes behind each row and before the first plane, filled with what would be seen.
fn padded(sample: &gst::Sample, padding: usize) -> gst::Sample {
    let info = video_info(sample);
    let tight = sample.buffer().unwrap().map_readable().unwrap();
    let (mut bytes, mut offsets, mut strides) = (vec![0xff; padding], Vec::new(), Vec::new());
    for plane in 0..info.n_planes() as usize {
        let component =
            (0..info.n_components()).find(|&of| info.comp_plane(of as u8) as usize == plane).unwrap();
        let (rows, stride) = (info.comp_height(component as u8) as usize, info.stride()[plane] as usize);
        offsets.push(bytes.len());
        strides.push((stride + padding) as i32);
        for row in 0..rows {
            bytes.extend(&tight[info.offset()[plane] + row * stride..][..stride]);
            bytes.extend(std::iter::repeat_n(if row % 2 == 0 { 0xff } else { 0 }, padding));
        }
    }
    let mut buffer = gst::Buffer::from_mut_slice(bytes);
    let flags = VideoFrameFlags::empty();
    VideoMeta::add_full(
        buffer.make_mut(),
        flags,
        info.format(),
        info.width(),
        info.height(),
        &offsets,
        &strides,
    )
    .unwrap();
    gst::Sample::builder().caps(&sample.caps_owned().unwrap()).buffer(&buffer).build()
}

/// The sample with each plane in a memory of its own.
fn in_pieces(sample: &gst::Sample) -> gst::Sample {
    let info = video_info(sample);
    let bytes = sample.buffer().unwrap().map_readable().unwrap();
    let planes = info.n_planes() as usize;
    let mut buffer = gst::Buffer::new();
    for plane in 0..planes {
        let end = if plane + 1 < planes { info.offset()[plane + 1] } else { info.size() };
        let piece = bytes[info.offset()[plane]..end].to_vec();
        buffer.make_mut().append_memory(gst::Memory::from_slice(piece));
    }
    VideoMeta::add_from_info(buffer.make_mut(), VideoFrameFlags::empty(), &info).unwrap();
    gst::Sample::builder().caps(&sample.caps_owned().unwrap()).buffer(&buffer).build()
}

#[test]
fn padded_rows_and_split_buffers_give_exactly_the_same() {
    let bus = picture("bus");
    for (width, height) in [(80, 60), (61, 83)] {
        let size = format!("width={width},height={height},pixel-aspect-ratio=1/1");
        let mut samples = Vec::new();
        for (format, _) in FORMATS {
            let sample = converted(&bus, &format!("{},{size}", caps(format, None)));
            samples.extend([padded(&sample, 1), padded(&sample, 64), in_pieces(&sample), sample]);
        }
        for model in ["v8", "yolox"] {
            let properties = format!("model-file={} confidence-threshold=0.01", tiny(model));
            let out = detect(&properties, &samples).unwrap();
            for (samples, out) in samples.chunks(4).zip(out.chunks(4)) {
                let expected = out[3].only();
                for other in &out[..3] {
                    assert_eq!(other.only(), expected, "{:?}", samples[3].caps());
                }
            }
        }
    }
}

/// Each object of `expected` once and no other, surely enough above the threshold.
fn assert_same_objects(what: &str, found: &Out, expected: &Out, iou: f64, confidence: f64) {
    for one in expected.boxes.iter().filter(|one| one.confidence > 0.5) {
        let matches = found.boxes.iter().filter(|other| {
            one.class == other.class
                && other.iou(&one.xyxy) >= iou
                && (one.confidence - other.confidence).abs() <= confidence
        });
        assert_eq!(matches.count(), 1, "{what}: {one:?} among {:#?}", found.boxes);
    }
    for one in found.boxes.iter().filter(|one| one.confidence > 0.5 + confidence) {
        let known =
            expected.boxes.iter().any(|other| one.class == other.class && one.iou(&other.xyxy) >= iou);
        assert!(known, "{what}: {one:?} is not in {:#?}", expected.boxes);
    }
}

/// A real network on a street scene, at an even and an odd size.
#[test]
fn the_same_objects_are_found_in_every_format() {
    let bus = picture("bus");
    for (width, height) in [(640, 480), (405, 539)] {
        let size = format!("width={width},height={height},pixel-aspect-ratio=1/1");
        let rgb = converted(&bus, &format!("video/x-raw,format=RGB,{size}"));
        // Gray drops the colours for everybody: the reference is gray too.
        let gray = converted(&converted(&rgb, "video/x-raw,format=GRAY8"), "video/x-raw,format=RGB");
        let mut samples = vec![rgb.clone(), gray];
        samples.extend(FORMATS.map(|(format, _)| converted(&rgb, &caps(format, None))));
        let out = detect(&format!("model-file={}", yolo12n()), &samples).unwrap();
        assert!(
            out[0].boxes.iter().filter(|found| found.confidence > 0.5).count() >= 4,
            "{:#?}",
            out[0].boxes
        );
        for ((format, _), found) in FORMATS.iter().zip(&out[2..]) {
            let what = format!("{format} {width}x{height}");
            if is_gray(*format) {
                assert_same_objects(&what, found, &out[1], 0.999, 0.001);
            } else if is_yuv(*format) {
                assert_same_objects(&what, found, &out[0], 0.95, 0.03);
            } else {
                // The same bytes in another order.
                assert_eq!(found.boxes, out[0].boxes, "{what}");
            }
        }
    }
}

/// What caps say of colorimetry and siting is followed: the boxes stay, whichever is used.
#[test]
fn the_same_objects_are_found_in_every_colorimetry() {
    let rgb =
        converted(&picture("bus"), "video/x-raw,format=RGB,width=405,height=539,pixel-aspect-ratio=1/1");
    let mut kinds: Vec<_> = COLORIMETRIES.map(|name| format!("colorimetry={name}")).into();
    kinds.extend(["mpeg2", "jpeg", "cosited", "dv"].map(|site| format!("chroma-site={site}")));
    let mut samples = vec![rgb.clone()];
    samples.extend(kinds.iter().map(|kind| converted(&rgb, &format!("video/x-raw,format=NV12,{kind}"))));
    let out = detect(&format!("model-file={}", yolo12n()), &samples).unwrap();
    for (kind, found) in kinds.iter().zip(&out[1..]) {
        assert_same_objects(kind, found, &out[0], 0.95, 0.03);
    }
}
