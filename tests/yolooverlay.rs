//! `yolooverlay` seen from outside: what it paints, and what it leaves alone, in every format.

use std::path::Path;
use std::sync::Arc;

use gst::prelude::*;
use gst_video::prelude::*;
use gst_video::{VideoFormat, VideoFrame, VideoInfo, VideoRegionOfInterestMeta};
use gstyolodetect::detection::{Detection, Labels, Rect};
use gstyolodetect::meta::{self, FrameInfo, Kinds, LabelQuarks, Status};

#[rustfmt::skip]
const FORMATS: [VideoFormat; 19] = [
    VideoFormat::Rgb, VideoFormat::Bgr, VideoFormat::Rgbx, VideoFormat::Bgrx, VideoFormat::Xrgb,
    VideoFormat::Xbgr, VideoFormat::Rgba, VideoFormat::Bgra, VideoFormat::Argb, VideoFormat::Abgr,
    VideoFormat::Gray8, VideoFormat::I420, VideoFormat::Yv12, VideoFormat::Nv12, VideoFormat::Nv21,
    VideoFormat::Yuy2, VideoFormat::Uyvy, VideoFormat::Y42b, VideoFormat::Y444,
];

/// The palette's colour of class 2.
const BLUE: [u8; 3] = [30, 75, 255];

fn init() {
    gst::init().expect("GStreamer starts");
    gstyolodetect::plugin_register_static().expect("the plugin registers");
}

struct Roi {
    rect: [u32; 4],
    label: &'static str,
    class: Option<i32>,
    confidence: Option<f64>,
}

fn roi(x: u32, y: u32, w: u32, h: u32) -> Roi {
    Roi { rect: [x, y, w, h], label: "car", class: Some(2), confidence: Some(0.5) }
}

fn add(buffer: &mut gst::BufferRef, roi: &Roi) {
    let [x, y, w, h] = roi.rect;
    let mut meta = VideoRegionOfInterestMeta::add(buffer, roi.label, (x, y, w, h));
    let mut detection = gst::Structure::new_empty("detection");
    if let Some(class) = roi.class {
        detection.set("label_id", class);
    }
    if let Some(confidence) = roi.confidence {
        detection.set("confidence", confidence);
    }
    meta.add_param(detection);
}

/// A buffer of noise that is the same every time; `pad` bytes follow each row.
fn noise(info: &VideoInfo, pad: i32) -> gst::Buffer {
    let format = info.format_info();
    let strides: Vec<i32> =
        info.stride()[..info.n_planes() as usize].iter().map(|stride| stride + pad).collect();
    let mut offsets = Vec::new();
    let mut size = 0;
    for (plane, stride) in strides.iter().enumerate() {
        offsets.push(size);
        let component = format.component(plane as u32)[0] as u8;
        size += *stride as usize * info.comp_height(component) as usize;
    }
    let mut seed = 1u32;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 24) as u8
    })
    .take(size)
    .collect();
    let mut buffer = gst::Buffer::from_mut_slice(bytes);
    let writable = buffer.get_mut().expect("new buffers are writable");
    gst_video::VideoMeta::add_full(
        writable,
        gst_video::VideoFrameFlags::empty(),
        info.format(),
        info.width(),
        info.height(),
        &offsets,
        &strides,
    )
    .expect("a valid layout");
    buffer
}

/// `properties` as in a launch line: `name=value` apart by spaces.
fn overlay(properties: &str, info: &VideoInfo) -> gst_check::Harness {
    let element = gst::ElementFactory::make("yolooverlay").build().expect("it is registered");
    for (name, value) in properties.split_whitespace().filter_map(|property| property.split_once('=')) {
        element.set_property_from_str(name, value);
    }
    let mut harness = gst_check::Harness::with_element(&element, Some("sink"), Some("src"));
    harness.set_src_caps(info.to_caps().expect("valid caps"));
    harness
}

fn draw(properties: &str, info: &VideoInfo, buffer: gst::Buffer) -> gst::Buffer {
    overlay(properties, info).push_and_pull(buffer).expect("the frame comes out")
}

/// One component's samples, row by row.
fn samples(info: &VideoInfo, buffer: &gst::Buffer, component: u32) -> Vec<Vec<u8>> {
    let frame = VideoFrame::from_buffer_readable(buffer.clone(), info).expect("a readable frame");
    let data = frame.comp_data(component).expect("the component is there");
    let (stride, step) = (frame.comp_stride(component) as usize, frame.comp_pstride(component) as usize);
    (0..frame.comp_height(component) as usize)
        .map(|y| (0..frame.comp_width(component) as usize).map(|x| data[y * stride + x * step]).collect())
        .collect()
}

/// What GStreamer's own converter makes of a frame all in `colour`: one value a component.
fn reference(info: &VideoInfo, colour: [u8; 3]) -> Vec<u8> {
    let rgb = VideoInfo::builder(VideoFormat::Rgb, info.width(), info.height()).build().expect("valid");
    let mut buffer = gst::Buffer::with_size(rgb.size()).expect("memory");
    {
        let buffer = buffer.get_mut().expect("new");
        let mut frame = gst_video::VideoFrameRef::from_buffer_ref_writable(buffer, &rgb).expect("mappable");
        let stride = frame.plane_stride()[0] as usize;
        for row in frame.plane_data_mut(0).expect("a plane").chunks_exact_mut(stride) {
            row.chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(&colour));
        }
    }
    let sample = gst::Sample::builder().buffer(&buffer).caps(&rgb.to_caps().expect("valid")).build();
    let caps = info.to_caps().expect("valid");
    let converted = gst_video::convert_sample(&sample, &caps, Some(gst::ClockTime::from_seconds(10)))
        .expect("videoconvert knows the format");
    let converted = converted.buffer_owned().expect("a buffer");
    (0..info.n_components()).map(|component| samples(info, &converted, component)[0][0]).collect()
}

/// Luma pixels that share a chroma sample, across and down.
fn grid(info: &VideoInfo) -> (i64, i64) {
    match info.format() {
        VideoFormat::I420 | VideoFormat::Yv12 | VideoFormat::Nv12 | VideoFormat::Nv21 => (2, 2),
        VideoFormat::Yuy2 | VideoFormat::Uyvy | VideoFormat::Y42b => (2, 1),
        _ => (1, 1),
    }
}

/// Whether the outline `line` wide of the box, grown to the chroma grid, has the luma pixel.
fn on_outline(rect: [i64; 4], line: i64, (gx, gy): (i64, i64), x: i64, y: i64) -> bool {
    let [left, top, width, height] = rect;
    let (x0, y0) = (left.div_euclid(gx) * gx, top.div_euclid(gy) * gy);
    let (x1, y1) = ((left + width + gx - 1).div_euclid(gx) * gx, (top + height + gy - 1).div_euclid(gy) * gy);
    let outer = (x0..x1).contains(&x) && (y0..y1).contains(&y);
    let inner = (x0 + line..x1 - line).contains(&x) && (y0 + line..y1 - line).contains(&y);
    outer && !inner
}

/// Every sample against the model: on the outline the value that GStreamer's converter would give it, elsewhere
/// the very value that was there.
fn check_outline(info: &VideoInfo, pad: i32, rect: [i64; 4]) {
    let before = noise(info, pad);
    let mut buffer = before.copy_deep().expect("memory");
    let [x, y, w, h] = rect.map(|value| value as u32);
    add(buffer.get_mut().expect("a copy"), &roi(x, y, w, h));
    let after = draw("labels=false confidence=false line-width=4", info, buffer);
    let colour = reference(info, BLUE);
    let format = info.format_info();
    let mut painted = 0;
    for component in 0..info.n_components() {
        let (old, new) = (samples(info, &before, component), samples(info, &after, component));
        let (w_sub, h_sub) = (format.w_sub()[component as usize], format.h_sub()[component as usize]);
        for (y, (old, new)) in old.iter().zip(&new).enumerate() {
            for (x, (old, new)) in old.iter().zip(new).enumerate() {
                let (luma_x, luma_y) = ((x << w_sub) as i64, (y << h_sub) as i64);
                let context = || format!("{} {rect:?} component {component} at {x},{y}", info.name());
                if on_outline(rect, 4, grid(info), luma_x, luma_y) {
                    painted += 1;
                    assert!(new.abs_diff(colour[component as usize]) <= 1, "{}: {new} {colour:?}", context());
                } else {
                    assert_eq!(old, new, "{}", context());
                }
            }
        }
    }
    assert!(painted > 0, "{} {rect:?}", info.name());
    check_padding(info, &before, &after);
}

/// Bytes after each row and unnamed bytes of pixels (the x of RGBx) are nobody's to write.
fn check_padding(info: &VideoInfo, before: &gst::Buffer, after: &gst::Buffer) {
    let frame = VideoFrame::from_buffer_readable(before.clone(), info).expect("readable");
    let mut named = vec![false; before.size()];
    for component in 0..frame.n_components() {
        let start = frame.plane_offset()[frame.comp_plane(component) as usize]
            + frame.comp_poffset(component) as usize;
        for y in 0..frame.comp_height(component) as usize {
            for x in 0..frame.comp_width(component) as usize {
                let row = start + y * frame.comp_stride(component) as usize;
                named[row + x * frame.comp_pstride(component) as usize] = true;
            }
        }
    }
    let (old, new) = (before.map_readable().expect("readable"), after.map_readable().expect("readable"));
    assert_eq!(old.len(), new.len());
    for (at, named) in named.into_iter().enumerate() {
        assert!(named || old[at] == new[at], "{}: byte {at}", info.name());
    }
}

#[test]
fn outlines_are_exact_in_every_format() {
    init();
    for format in FORMATS {
        for (width, height) in [(64, 48), (65, 49)] {
            let info = VideoInfo::builder(format, width, height).build().expect("valid");
            for (pad, rect) in [
                (0, [8, 8, 32, 24]),
                (12, [9, 7, 31, 25]),
                (0, [0, 0, 40, 30]),
                (12, [40, 30, 100, 100]),
                (0, [63, 47, 9, 9]),
                (0, [20, 20, 3, 1]),
            ] {
                check_outline(&info, pad, rect);
            }
        }
    }
}

#[test]
fn colorimetry_is_that_of_the_stream() {
    init();
    for format in [VideoFormat::I420, VideoFormat::Nv12, VideoFormat::Yuy2, VideoFormat::Y444] {
        for colorimetry in ["bt601", "bt709", "bt2020", "1:4:0:0", "1:3:5:1"] {
            let colorimetry: gst_video::VideoColorimetry = colorimetry.parse().expect("known");
            let info = VideoInfo::builder(format, 64, 48).colorimetry(&colorimetry).build().expect("valid");
            check_outline(&info, 0, [8, 8, 32, 24]);
        }
    }
}

#[test]
fn labels_stay_within_their_place() {
    init();
    for format in FORMATS {
        let info = VideoInfo::builder(format, 161, 121).build().expect("valid");
        let before = noise(&info, 4);
        let mut buffer = before.copy_deep().expect("memory");
        add(buffer.get_mut().expect("a copy"), &roi(60, 60, 70, 40));
        let after = draw("", &info, buffer);
        let (old, new) = (samples(&info, &before, 0), samples(&info, &after, 0));
        let mut above = 0;
        for (y, (old, new)) in old.iter().zip(&new).enumerate() {
            for (x, (old, new)) in old.iter().zip(new).enumerate() {
                let around = (60..130).contains(&x) && (40..100).contains(&y);
                assert!(around || old == new, "{} at {x},{y}", info.name());
                above += usize::from(y < 60 && old != new);
            }
        }
        // "car 0.50" is 8 characters of 6×10 pixels.
        assert!(above > 400, "{}: {above}", info.name());
        check_padding(&info, &before, &after);
    }
}

#[test]
fn opaque_where_painted() {
    init();
    let info = VideoInfo::builder(VideoFormat::Rgba, 64, 48).build().expect("valid");
    let mut buffer = noise(&info, 0);
    add(buffer.get_mut().expect("new"), &roi(0, 0, 64, 48));
    let after = draw("labels=false confidence=false", &info, buffer);
    assert!(samples(&info, &after, 3)[0].iter().all(|alpha| *alpha == 255));
}

#[test]
fn frames_without_boxes_pass_untouched_and_uncopied() {
    init();
    let info = VideoInfo::builder(VideoFormat::Nv12, 64, 48).build().expect("valid");
    let buffer = noise(&info, 0);
    let bytes = buffer.map_readable().expect("readable").to_vec();
    let memory = buffer.map_readable().expect("readable").as_ptr();
    let after = draw("", &info, buffer);
    let map = after.map_readable().expect("readable");
    assert_eq!(map.as_slice(), bytes);
    assert_eq!(map.as_ptr(), memory);
}

#[test]
fn a_shared_buffer_is_copied_with_its_boxes() {
    init();
    let info = VideoInfo::builder(VideoFormat::I420, 64, 48).build().expect("valid");
    let mut buffer = noise(&info, 0);
    add(buffer.get_mut().expect("new"), &roi(8, 8, 32, 24));
    let kept = buffer.copy_deep().expect("memory");
    let after = draw("", &info, buffer.clone());
    assert_eq!(samples(&info, &kept, 0), samples(&info, &buffer, 0), "the other holder's frame is its own");
    assert_ne!(samples(&info, &after, 0), samples(&info, &buffer, 0));
    assert_eq!(after.iter_meta::<VideoRegionOfInterestMeta>().count(), 1);
}

#[test]
fn properties_act_while_playing() {
    init();
    let info = VideoInfo::builder(VideoFormat::Gray8, 320, 240).build().expect("valid");
    let mut harness = overlay("", &info);
    let element = harness.element().expect("it is in there");
    let mut painted = |property: &str, value: &str| {
        element.set_property_from_str(property, value);
        let mut buffer = noise(&info, 0);
        let before = samples(&info, &buffer, 0).concat();
        add(buffer.get_mut().expect("new"), &roi(100, 100, 100, 100));
        let after = harness.push_and_pull(buffer).expect("the frame comes out");
        before.iter().zip(samples(&info, &after, 0).concat()).filter(|(old, new)| *old != new).count()
    };
    let both = painted("hold", "true");
    let name_only = painted("confidence", "false");
    let none = painted("labels", "false");
    assert!(both > name_only && name_only > none, "{both} {name_only} {none}");
    assert!(painted("line-width", "10") > 3 * none);
    painted("line-width", "1");
    let small = painted("labels", "true");
    assert!(painted("font-scale", "2") > small);
    for (property, value) in [("line-width", "128"), ("font-scale", "32")] {
        painted(property, value);
        assert_eq!(element.property::<u32>(property).to_string(), value);
    }
}

const LONG: &str = "a name so long that it does not fit into any frame of these tests, however small the letters \
                    may be, and then some more of it to be quite sure that it has to be cut off somewhere";

#[test]
fn hostile_boxes_are_harmless() {
    init();
    let extremes =
        [0, 1, 2, 47, 64, 1000, i32::MAX as u32, i32::MIN as u32, -1i32 as u32, -64i32 as u32, u32::MAX - 1];
    let labels = ["", " ", "\n\r\t\u{7f}\u{85}", "行人", "🚗🚙", "e\u{301}\u{202e}\u{feff}", "%s%n{}", LONG];
    let confidences = [None, Some(0.5), Some(f64::NAN), Some(f64::INFINITY), Some(-1e300), Some(1e30)];
    for (format, width, height) in [
        (VideoFormat::I420, 64, 48),
        (VideoFormat::Nv12, 3, 3),
        (VideoFormat::Uyvy, 33, 1),
        (VideoFormat::Rgb, 1, 33),
        (VideoFormat::Gray8, 400, 9),
    ] {
        let info = VideoInfo::builder(format, width, height).build().expect("valid");
        let mut buffer = noise(&info, 0);
        let mut n = 0;
        for x in extremes {
            for y in extremes {
                for size in extremes {
                    let roi = Roi {
                        rect: [x, y, size, extremes[n % extremes.len()]],
                        label: labels[n % labels.len()],
                        class: [None, Some(n as i32), Some(i32::MAX), Some(i32::MIN)][n % 4],
                        confidence: confidences[n % confidences.len()],
                    };
                    add(buffer.get_mut().expect("ours"), &roi);
                    n += 1;
                }
            }
        }
        let before = buffer.copy_deep().expect("memory");
        let after = draw("", &info, buffer);
        check_padding(&info, &before, &after);
    }
}

#[test]
fn the_smallest_frames() {
    init();
    for format in FORMATS {
        for (width, height) in [(1, 1), (1, 2), (2, 1), (3, 3)] {
            let info = VideoInfo::builder(format, width, height).build().expect("valid");
            let mut buffer = noise(&info, 0);
            add(buffer.get_mut().expect("new"), &roi(0, 0, width, height));
            let after = draw("", &info, buffer);
            let colour = reference(&info, BLUE);
            for component in 0..info.n_components() {
                let value = samples(&info, &after, component)[0][0];
                let expected = colour[component as usize];
                assert!(value.abs_diff(expected) <= 1, "{} {width}x{height}", info.name());
            }
        }
    }
}

/// A buffer as one `yolodetect` after the other leaves it: each with its status and the boxes it found.
fn detected(info: &VideoInfo, elements: &[(&str, Status, &[Rect])]) -> gst::Buffer {
    let mut buffer = gst::Buffer::from_mut_slice(vec![0; info.size()]);
    for (frame, (element, status, rects)) in elements.iter().enumerate() {
        let frame_info = FrameInfo {
            element: Arc::from(*element),
            frame: frame as u64,
            status: *status,
            first_id: 100 * frame as u32,
            inference_time: gst::ClockTime::ZERO,
            batch: 1,
        };
        let detections: Vec<Detection> =
            rects.iter().map(|rect| Detection { rect: *rect, confidence: 0.9, class: 2 }).collect();
        let labels = LabelQuarks::new(&Labels::coco(), 80);
        let kinds = Kinds { analytics: false, roi: true };
        let size = (info.width(), info.height());
        meta::attach(buffer.get_mut().expect("new"), &frame_info, &detections, &labels, size, kinds)
            .expect("the buffer takes metas");
    }
    buffer
}

/// Whether the top left corners of two boxes, `A` and `B`, are painted on a frame that was black.
fn seen(info: &VideoInfo, buffer: &gst::Buffer) -> [bool; 2] {
    let luma = samples(info, buffer, 0);
    [A, B].map(|rect| luma[rect.y1 as usize][rect.x1 as usize] != 0)
}

const A: Rect = Rect { x1: 8.0, y1: 8.0, x2: 24.0, y2: 40.0 };
const B: Rect = Rect { x1: 32.0, y1: 8.0, x2: 56.0, y2: 40.0 };

#[test]
fn boxes_are_held_over_frames_that_were_not_inferred() {
    init();
    let info = VideoInfo::builder(VideoFormat::Gray8, 64, 48).build().expect("valid");
    let mut harness = overlay("labels=false confidence=false", &info);
    let element = harness.element().expect("it is in there");
    let push = |harness: &mut gst_check::Harness, elements: &[(&str, Status, &[Rect])]| {
        let buffer = harness.push_and_pull(detected(&info, elements)).expect("the frame comes out");
        seen(&info, &buffer)
    };
    let h = &mut harness;
    assert_eq!(push(h, &[("one", Status::Interval, &[])]), [false, false], "nothing to hold yet");
    assert_eq!(push(h, &[("one", Status::Inferred, &[A])]), [true, false]);
    for status in [Status::Interval, Status::Overload, Status::Pressure, Status::Failed, Status::Interval] {
        assert_eq!(push(h, &[("one", status, &[])]), [true, false], "{status:?}");
    }
    assert_eq!(push(h, &[("one", Status::Inferred, &[])]), [false, false], "inferred and nothing found");
    assert_eq!(push(h, &[("one", Status::Interval, &[])]), [false, false], "which is held, too");

    // Each of two detectors has its own.
    let both = [("one", Status::Inferred, [A].as_slice()), ("two", Status::Inferred, [B].as_slice())];
    assert_eq!(push(h, &both), [true, true]);
    let first_only = [("one", Status::Inferred, [].as_slice()), ("two", Status::Overload, &[])];
    assert_eq!(push(h, &first_only), [false, true]);
    assert_eq!(push(h, &[("three", Status::Interval, &[])]), [false, false], "another stream's detector");

    element.set_property("hold", false);
    assert_eq!(push(h, &[("one", Status::Inferred, &[A])]), [true, false]);
    assert_eq!(push(h, &[("one", Status::Interval, &[])]), [false, false]);
}

#[test]
fn held_boxes_do_not_outlive_a_jump() {
    init();
    let info = VideoInfo::builder(VideoFormat::Gray8, 64, 48).build().expect("valid");
    let smaller = VideoInfo::builder(VideoFormat::Gray8, 62, 48).build().expect("valid");
    let segment = || gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new());
    for jump in ["none", "flush", "segment", "caps"] {
        let mut harness = overlay("labels=false confidence=false", &info);
        harness.push_and_pull(detected(&info, &[("one", Status::Inferred, &[A])])).expect("it comes out");
        let mut now = &info;
        match jump {
            "flush" => {
                harness.push_event(gst::event::FlushStart::new());
                harness.push_event(gst::event::FlushStop::new(true));
                harness.push_event(segment());
            }
            "segment" => assert!(harness.push_event(segment())),
            "caps" => {
                now = &smaller;
                harness.set_src_caps(now.to_caps().expect("valid"));
            }
            _ => {}
        }
        let after = harness.push_and_pull(detected(now, &[("one", Status::Interval, &[])]));
        assert_eq!(seen(now, &after.expect("it comes out")), [jump == "none", false], "{jump}");
    }
}

/// Pictures for people to look at: `target/overlay-*.png`.
#[test]
fn pictures() {
    init();
    for (format, width, height) in [
        ("I420", 176, 144),
        ("NV12", 640, 360),
        ("YUY2", 641, 481),
        ("NV12", 1280, 720),
        ("RGB", 1920, 1080),
        ("NV12", 3840, 2160),
    ] {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target is above tmp");
        let path = folder.join(format!("overlay-{format}-{width}x{height}.png"));
        let pipeline = gst::parse::launch(&format!(
            "videotestsrc num-buffers=1 pattern=smpte ! video/x-raw,format={format},width={width},height={height} \
             ! yolooverlay name=overlay ! videoconvert ! pngenc ! filesink name=sink"
        ))
        .expect("the elements are there")
        .downcast::<gst::Pipeline>()
        .expect("a pipeline");
        pipeline.by_name("sink").expect("named so").set_property("location", path.to_str().expect("UTF-8"));
        let overlay = pipeline.by_name("overlay").expect("named so");
        overlay.static_pad("sink").expect("it has one").add_probe(
            gst::PadProbeType::BUFFER,
            move |_, info| {
                add_scene(info.buffer_mut().expect("a buffer probe").make_mut(), width, height);
                gst::PadProbeReturn::Ok
            },
        );
        pipeline.set_state(gst::State::Playing).expect("it plays");
        let ends = [gst::MessageType::Eos, gst::MessageType::Error];
        let message = pipeline
            .bus()
            .expect("it has one")
            .timed_pop_filtered(gst::ClockTime::from_seconds(60), &ends)
            .expect("it ends");
        pipeline.set_state(gst::State::Null).expect("it stops");
        assert_eq!(message.type_(), gst::MessageType::Eos, "{message:?}");
        assert!(path.metadata().expect("it was written").len() > 0);
    }
}

/// Boxes of all sorts: overlapping, at every border, without class or confidence, tiny.
fn add_scene(buffer: &mut gst::BufferRef, width: u32, height: u32) {
    let scale = |part: f64, of: u32| (part * f64::from(of)) as u32;
    let at = |x, y, w, h| [scale(x, width), scale(y, height), scale(w, width), scale(h, height)];
    for (rect, label, class, confidence) in [
        (at(0.05, 0.25, 0.2, 0.6), "person", Some(0), Some(0.94)),
        (at(0.18, 0.35, 0.2, 0.55), "bicycle", Some(1), Some(0.71)),
        (at(0.45, 0.02, 0.3, 0.3), "car", Some(2), Some(0.88)),
        (at(0.86, 0.4, 0.3, 0.3), "traffic light", Some(9), Some(0.5)),
        (at(0.5, 0.5, 0.25, 0.4), "Fußgänger", None, None),
        (at(0.0, 0.9, 0.2, 0.3), "dog", Some(16), Some(0.33)),
        (at(0.6, 0.62, 0.02, 0.02), "sports ball", Some(32), Some(0.29)),
    ] {
        add(buffer, &Roi { rect, label, class, confidence });
    }
}
