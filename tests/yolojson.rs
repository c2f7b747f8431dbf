//! What `yolojson` writes, and the metas it reads: attached, carried through a pipeline, read back.
//!
//! Runs on every GStreamer from 1.22 on; where analytics metadata exists (1.24), it is tested too.

use std::sync::{Arc, Once};

use gst::prelude::*;
use gstyolodetect::detection::{Detection, Labels, Rect};
use gstyolodetect::meta::{self, Found, FrameInfo, Kinds, LabelQuarks, Status};

const CAPS: &str = "video/x-raw,format=I420,width=64,height=48,framerate=25/1";
const SIZE: (u32, u32) = (64, 48);
const FRAME_BYTES: usize = 64 * 48 * 3 / 2;

const ROI: Kinds = Kinds { analytics: false, roi: true };
const ANALYTICS: Kinds = Kinds { analytics: true, roi: false };
const BOTH: Kinds = Kinds { analytics: true, roi: true };

fn init() {
    static INIT: Once = Once::new();
    INIT.call_once(|| {
        gst::init().unwrap();
        gstyolodetect::plugin_register_static().unwrap();
    });
}

/// The ways of attaching boxes that the running GStreamer has.
fn kinds() -> Vec<Kinds> {
    init();
    let all = [ROI, ANALYTICS, BOTH];
    all.into_iter().filter(|kinds| kinds.roi || meta::analytics_available()).collect()
}

fn info(element: &str, frame: u64, first_id: u32) -> FrameInfo {
    FrameInfo {
        element: Arc::from(element),
        frame,
        status: Status::Inferred,
        first_id,
        inference_time: gst::ClockTime::from_mseconds(80),
        batch: 1,
    }
}

fn detection(class: u32, confidence: f32, corners: [f32; 4]) -> Detection {
    let [x1, y1, x2, y2] = corners;
    Detection { rect: Rect::new(x1, y1, x2, y2), confidence, class }
}

fn coco_labels() -> LabelQuarks {
    LabelQuarks::new(&Labels::coco(), 80)
}

fn picture(frame: u64) -> gst::Buffer {
    let mut buffer = gst::Buffer::with_size(FRAME_BYTES).unwrap();
    let writable = buffer.get_mut().unwrap();
    writable.set_pts(gst::ClockTime::from_mseconds(40) * frame);
    writable.set_duration(gst::ClockTime::from_mseconds(40));
    buffer
}

fn attach(buffer: &mut gst::Buffer, info: &FrameInfo, detections: &[Detection], kinds: Kinds) {
    meta::attach(buffer.make_mut(), info, detections, &coco_labels(), SIZE, kinds).unwrap();
}

/// A region as other elements attach it: id and parent left at 0.
fn attach_foreign(buffer: &mut gst::Buffer, label: &str, rect: (u32, u32, u32, u32)) {
    gst_video::VideoRegionOfInterestMeta::add(buffer.make_mut(), label, rect);
}

fn harness(properties: &str) -> gst_check::Harness {
    init();
    let mut harness = gst_check::Harness::new_parse(&format!("yolojson {properties}"));
    harness.set_src_caps_str(CAPS);
    harness
}

fn text(buffer: &gst::BufferRef) -> String {
    String::from_utf8(buffer.map_readable().unwrap().to_vec()).unwrap()
}

/// The text without the one figure that no test can know.
fn without_rss(text: &str) -> String {
    let lines = text.lines().map(|line| match line.split_once(",\"rss_mb\":") {
        Some((before, after)) => format!("{before}{}\n", &after[after.find(',').unwrap()..]),
        None => format!("{line}\n"),
    });
    lines.collect()
}

fn pushed(harness: &mut gst_check::Harness, buffer: gst::Buffer) -> String {
    without_rss(&text(&harness.push_and_pull(buffer).unwrap()))
}

#[test]
fn a_frame_is_one_line_with_its_timestamps() {
    for kinds in kinds() {
        let mut harness = harness("");
        let mut buffer = picture(3);
        let found =
            [detection(2, 0.8734, [10.0, 20.0, 30.4, 40.0]), detection(0, 0.5, [-5.0, 0.0, 80.0, 48.0])];
        attach(&mut buffer, &info("yolodetect0", 7, 41), &found, kinds);
        let output = harness.push_and_pull(buffer).unwrap();
        assert_eq!(output.pts(), Some(gst::ClockTime::from_mseconds(120)));
        assert_eq!(output.duration(), Some(gst::ClockTime::from_mseconds(40)));
        assert!(text(&output).contains(",\"rss_mb\":"));
        assert_eq!(
            without_rss(&text(&output)),
            concat!(
                r#"{"frame":7,"time":0.120,"element":"yolodetect0","status":"inferred","batch":1,"#,
                r#""detections":[{"id":"00000029","class":"car","class_id":2,"conf":0.873,"box":[10,20,20,20]},"#,
                r#"{"id":"0000002a","class":"person","class_id":0,"conf":0.500,"box":[0,0,64,48]}]}"#,
                "\n"
            )
        );
        let caps = harness.sinkpad().unwrap().current_caps().unwrap();
        assert_eq!(caps.to_string(), "application/x-json, format=(string)lines");
    }
}

#[test]
fn a_frame_that_was_passed_over_is_not_an_empty_one() {
    let mut harness = harness("");
    let mut buffer = picture(0);
    let skipped = FrameInfo {
        status: Status::Overload,
        batch: 0,
        inference_time: gst::ClockTime::ZERO,
        ..info("d", 0, 0)
    };
    attach(&mut buffer, &skipped, &[], BOTH);
    assert_eq!(
        pushed(&mut harness, buffer),
        "{\"frame\":0,\"time\":0.000,\"element\":\"d\",\"status\":\"overload\",\"batch\":0,\"detections\":[]}\n"
    );
}

#[test]
fn two_elements_give_a_line_each_with_their_own_detections() {
    for first in kinds() {
        for second in kinds() {
            let mut harness = harness("");
            let mut buffer = picture(0);
            // Both count their ids from 0 and find the same thing.
            let car = detection(2, 0.5, [1.0, 2.0, 11.0, 12.0]);
            let person = detection(0, 0.25, [0.0, 0.0, 8.0, 8.0]);
            attach(&mut buffer, &info("one", 5, 0), &[car], first);
            attach(&mut buffer, &info("two", 6, 0), &[car, person], second);
            let car = r#"{"id":"00000000","class":"car","class_id":2,"conf":0.500,"box":[1,2,10,10]}"#;
            let person = r#"{"id":"00000001","class":"person","class_id":0,"conf":0.250,"box":[0,0,8,8]}"#;
            let line = |frame: u32, element: &str, detections: &str| {
                format!(
                    "{{\"frame\":{frame},\"time\":0.000,\"element\":\"{element}\",\"status\":\"inferred\",\
                     \"batch\":1,\"detections\":[{detections}]}}\n"
                )
            };
            let expected = line(5, "one", car) + &line(6, "two", &format!("{car},{person}"));
            assert_eq!(pushed(&mut harness, buffer), expected, "{first:?} {second:?}");
        }
    }
}

#[test]
fn what_others_found_has_its_own_line() {
    let mut harness = harness("");
    let none = "\"element\":null,\"status\":\"none\",\"batch\":0,\"detections\":";
    let expected = format!("{{\"frame\":0,\"time\":0.000,{none}[]}}\n");
    assert_eq!(pushed(&mut harness, picture(0)), expected);

    let mut buffer = picture(1);
    attach_foreign(&mut buffer, "a \"face\"\n", (1, 2, 3, 4));
    let face = r#"{"id":null,"class":"a \"face\"\n","class_id":null,"conf":null,"box":[1,2,3,4]}"#;
    let expected = format!("{{\"frame\":1,\"time\":0.040,{none}[{face}]}}\n");
    assert_eq!(pushed(&mut harness, buffer), expected);

    for kinds in kinds() {
        let mut buffer = picture(2);
        attach_foreign(&mut buffer, "face", (1, 2, 3, 4));
        attach(&mut buffer, &info("ours", 9, 0), &[detection(2, 0.5, [1.0, 2.0, 4.0, 6.0])], kinds);
        // Numbered as ours are, but later than ours and not by us.
        attach_foreign(&mut buffer, "car", (9, 9, 9, 9));
        let mut region = gst_video::VideoRegionOfInterestMeta::add(buffer.make_mut(), "dog", (7, 7, 7, 7));
        region.set_parent_id(-1);
        let lines = pushed(&mut harness, buffer);
        let lines: Vec<serde_json::Value> =
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let told: Vec<_> = lines
            .iter()
            .map(|line| {
                let detections = line["detections"].as_array().unwrap();
                let classes: Vec<_> = detections.iter().map(|one| one["class"].as_str().unwrap()).collect();
                (line["element"].as_str(), classes)
            })
            .collect();
        assert_eq!(told, [(Some("ours"), vec!["car"]), (None, vec!["face", "car", "dog"])], "{kinds:?}");
    }
}

#[test]
fn coco_records_make_one_array() {
    let mut harness = harness("format=coco");
    for frame in 0..3 {
        let mut buffer = picture(frame);
        let stop_sign = detection(11, 0.75, [10.25, 20.5, 30.5, 40.0]);
        let found = if frame == 1 { vec![] } else { vec![stop_sign] };
        attach(&mut buffer, &info("d", frame, 0), &found, BOTH);
        harness.push(buffer).unwrap();
    }
    harness.push_event(gst::event::Eos::new());
    assert_eq!(harness.buffers_in_queue(), 3, "two frames with detections and the end");
    let bytes = harness.take_all_data_as_bytes().unwrap();
    let box_and_score = r#""bbox":[10.25,20.50,20.25,19.50],"score":0.75000}"#;
    assert_eq!(
        std::str::from_utf8(&bytes).unwrap(),
        format!(
            "[\n{{\"image_id\":0,\"category_id\":13,{box_and_score},\n\
             {{\"image_id\":2,\"category_id\":13,{box_and_score}\n]\n"
        )
    );
}

#[test]
fn coco_without_frames_is_an_empty_array() {
    let mut with_caps = harness("format=coco");
    with_caps.push_event(gst::event::Eos::new());
    assert_eq!(with_caps.take_all_data_as_bytes().unwrap().as_ref(), b"[]\n");

    let mut bare = gst_check::Harness::new_parse("yolojson format=coco");
    bare.play();
    bare.push_event(gst::event::StreamStart::new("bare"));
    bare.push_event(gst::event::Eos::new());
    assert_eq!(bare.take_all_data_as_bytes().unwrap().as_ref(), b"[]\n");
    let caps = bare.sinkpad().unwrap().current_caps().unwrap();
    assert_eq!(caps.to_string(), "application/x-json, format=(string)coco");
}

#[test]
fn a_flush_and_new_caps_change_nothing_but_the_frames() {
    let mut harness = harness("");
    harness.push_and_pull(picture(0)).unwrap();
    harness.push_event(gst::event::FlushStart::new());
    harness.push_event(gst::event::FlushStop::new(true));
    harness.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new()));
    harness.set_src_caps_str("video/x-raw,format=GRAY8,width=8,height=8,framerate=25/1");
    let line = pushed(&mut harness, picture(1));
    assert!(line.starts_with("{\"frame\":1,\"time\":0.040,"), "{line}");
}

#[test]
fn any_memory_will_do() {
    let mut harness = harness("");
    harness.set_src_caps_str("video/x-raw(memory:CUDAMemory),format=NV12,width=64,height=48,framerate=25/1");
    assert!(pushed(&mut harness, picture(0)).contains("\"status\":\"none\""));
}

#[test]
fn progress_follows_the_streams_duration() {
    init();
    let description = "videotestsrc num-buffers=4 ! video/x-raw,width=16,height=16,framerate=25/1 ! yolojson ! \
                       appsink name=sink sync=false";
    let lines = run(description, |_| ());
    let progress: Vec<_> = lines
        .iter()
        .map(|sample| serde_json::from_str::<serde_json::Value>(&text(sample.buffer().unwrap())).unwrap())
        .map(|line| line["progress"].as_f64())
        .collect();
    assert_eq!(progress, [Some(0.0), Some(25.0), Some(50.0), Some(75.0)]);
}

/// Runs a pipeline with an appsink named `sink` to its end and returns what that received.
fn run(description: &str, feed: impl FnOnce(&gst::Pipeline)) -> Vec<gst::Sample> {
    let pipeline = gst::parse::launch(description).unwrap().downcast::<gst::Pipeline>().unwrap();
    feed(&pipeline);
    samples(&pipeline)
}

fn samples(pipeline: &gst::Pipeline) -> Vec<gst::Sample> {
    let sink = pipeline.by_name("sink").unwrap().downcast::<gst_app::AppSink>().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let mut samples = Vec::new();
    while let Some(sample) = sink.try_pull_sample(gst::ClockTime::from_seconds(20)) {
        samples.push(sample);
    }
    let failure = pipeline.bus().unwrap().pop_filtered(&[gst::MessageType::Error]);
    pipeline.set_state(gst::State::Null).unwrap();
    assert!(failure.is_none(), "{failure:?}");
    samples
}

/// Left, top, right and bottom, in parts of the frame, to compare across scales.
fn relative(corners: [f32; 4], size: (u32, u32)) -> [f32; 4] {
    let [x1, y1, x2, y2] = corners;
    let (width, height) = (size.0 as f32, size.1 as f32);
    [x1 / width, y1 / height, x2 / width, y2 / height]
}

fn corners(object: &Found) -> [f32; 4] {
    [object.x, object.y, object.x + object.w, object.y + object.h].map(|value| value as f32)
}

#[test]
fn metas_pass_elements_that_copy_convert_and_scale() {
    let found = [
        detection(2, 0.875, [10.0, 20.0, 30.0, 40.0]),
        detection(0, 0.25, [0.0, 0.0, 64.0, 48.0]),
        detection(79, 0.5, [60.0, 4.0, 64.0, 8.0]),
    ];
    for (kinds, size) in kinds().into_iter().flat_map(|kinds| [(kinds, (128, 96)), (kinds, (32, 48))]) {
        let (width, height) = size;
        let description = format!(
            "appsrc name=src format=time caps={CAPS} ! tee name=t ! queue ! videoconvert ! video/x-raw,format=RGB ! \
             videoscale ! video/x-raw,width={width},height={height},pixel-aspect-ratio=1/1 ! \
             videoconvert ! video/x-raw,format=NV12 ! appsink name=sink sync=false  t. ! queue ! fakesink"
        );
        let samples = run(&description, |pipeline| {
            let source = pipeline.by_name("src").unwrap().downcast::<gst_app::AppSrc>().unwrap();
            let mut buffer = picture(0);
            attach(&mut buffer, &info("one", 1, 100), &found, kinds);
            attach(&mut buffer, &info("two", 2, 100), &found[..1], kinds);
            source.push_buffer(buffer).unwrap();
            source.end_of_stream().unwrap();
        });
        let buffer = samples[0].buffer().unwrap();

        let frames = meta::frames(buffer);
        let told: Vec<_> = frames.iter().map(|f| (f.element.as_str(), f.frame, f.count, f.status)).collect();
        assert_eq!(told, [("one", 1, 3, Status::Inferred), ("two", 2, 1, Status::Inferred)]);

        let scaled = meta::found(buffer);
        let ids: Vec<_> = scaled.iter().map(|object| (object.element, object.id, object.class_id)).collect();
        let expected = [
            (Some(0), Some(100), Some(2)),
            (Some(0), Some(101), Some(0)),
            (Some(0), Some(102), Some(79)),
            (Some(1), Some(100), Some(2)),
        ];
        assert_eq!(ids, expected, "{kinds:?}");
        assert_eq!(scaled[2].label(), "toothbrush");
        for (object, original) in scaled.iter().zip(found.iter().chain(&found[..1])) {
            assert_eq!(object.confidence, Some(original.confidence));
            let rect = original.rect;
            let before = relative([rect.x1, rect.y1, rect.x2, rect.y2], SIZE);
            let after = relative(corners(object), size);
            for (before, after) in before.into_iter().zip(after) {
                assert!((before - after).abs() < 1.5 / 32.0, "{kinds:?} {size:?} {before} {after}");
            }
        }
    }
}

#[test]
fn regions_carry_what_is_promised() {
    for kinds in kinds().into_iter().filter(|kinds| kinds.roi) {
        let mut buffer = picture(0);
        attach(&mut buffer, &info("one", 0, 500), &[detection(2, 0.5, [16.0, 12.0, 32.0, 48.0])], kinds);
        attach(&mut buffer, &info("two", 0, 700), &[detection(0, 0.75, [0.0, 0.0, 8.0, 8.0])], kinds);
        let regions: Vec<_> = buffer.iter_meta::<gst_video::VideoRegionOfInterestMeta>().collect();
        let with_mtds = kinds.analytics && meta::analytics_available();
        let ids: Vec<_> = regions.iter().map(|region| region.id()).collect();
        assert_eq!(ids, if with_mtds { [0, 1] } else { [500, 700] });
        assert!(meta::found(&buffer).iter().all(|object| object.normalized.is_some()));
        let region = &regions[0];
        assert_eq!((region.roi_type(), region.rect(), region.parent_id()), ("car", (16, 12, 16, 36), -1));
        let fields = region.param("detection").unwrap();
        let sides =
            ["x_min", "x_max", "y_min", "y_max", "confidence"].map(|name| fields.get::<f64>(name).unwrap());
        assert_eq!(sides, [0.25, 0.5, 0.25, 1.0, 0.5]);
        assert_eq!(fields.get::<i32>("label_id").unwrap(), 2);
    }
}

#[test]
fn hostile_detections_do_no_harm() {
    for kinds in kinds() {
        let mut harness = harness("");
        let mut buffer = picture(0);
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let found = [detection(u32::MAX, nan, [nan; 4]), detection(80, inf, [inf, -inf, -inf, inf])];
        let info = info("d\0e", 0, u32::MAX);
        meta::attach(buffer.make_mut(), &info, &found, &coco_labels(), (0, 0), kinds).unwrap();
        let line = pushed(&mut harness, buffer);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["element"], "d");
        assert_eq!(value["detections"].as_array().unwrap().len(), 2, "{line}");
        assert_eq!(value["detections"][1]["id"], "00000000", "ids wrap around");
        assert_eq!(value["detections"][0]["class"], "unknown");
        assert_eq!(value["detections"][0]["box"], serde_json::json!([0, 0, 1, 1]));
    }
}

#[test]
fn many_detections_on_one_buffer() {
    for kinds in kinds() {
        let mut buffer = picture(0);
        let found: Vec<_> = (0..300).map(|class| detection(class % 80, 0.5, [1.0, 2.0, 3.0, 4.0])).collect();
        attach(&mut buffer, &info("one", 0, 0), &found[..1], kinds);
        attach(&mut buffer, &info("two", 0, 0), &found, kinds);
        let read = meta::found(&buffer.copy());
        let second = read.iter().filter(|object| object.element == Some(1));
        assert_eq!(
            second.map(|object| object.id).collect::<Vec<_>>(),
            (0..300).map(Some).collect::<Vec<_>>()
        );
        assert_eq!(read.len(), 301);
    }
}

#[test]
fn gstreamers_own_overlay_draws_them_and_clears_empty_frames() {
    init();
    if gst::ElementFactory::find("objectdetectionoverlay").is_none() {
        eprintln!("skipped: this GStreamer has no objectdetectionoverlay");
        return;
    }
    // Not from an appsrc: the overlay (1.26) is not negotiated unless an allocation query comes by.
    let description = format!(
        "videotestsrc name=src num-buffers=3 pattern=black ! {CAPS} ! objectdetectionoverlay draw-labels=false ! \
         appsink name=sink sync=false"
    );
    let pipeline = gst::parse::launch(&description).unwrap().downcast::<gst::Pipeline>().unwrap();
    let pad = pipeline.by_name("src").unwrap().static_pad("src").unwrap();
    let frames = std::sync::atomic::AtomicU64::new(0);
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, probe| {
        let frame = frames.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let found = [detection(0, 0.5, [8.0, 8.0, 40.0, 32.0])];
        let found = if frame == 1 { &found[..0] } else { &found[..] };
        attach(probe.buffer_mut().unwrap(), &info("d", frame, 0), found, ANALYTICS);
        gst::PadProbeReturn::Ok
    });
    let drawn = samples(&pipeline).into_iter().map(|sample| {
        let pixels = sample.buffer().unwrap().map_readable().unwrap();
        pixels[..64 * 48].iter().any(|luma| *luma != pixels[0])
    });
    assert_eq!(drawn.collect::<Vec<_>>(), [true, false, true]);
}
