//! The valve: when it shuts and opens, what it lets through meanwhile, and what its neighbours are told.
//!
//! Whole processes are short of memory where a test says so, in a process of its own; elsewhere the level comes along the
//! stream, as if from outside.

mod common;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::{PATIENCE, Pipeline, asset, in_own_process, memory_is_calm, tiny};
use gst::prelude::*;
use gst_app::{AppSink, AppSrc};
use gst_check::Harness;
use gst_video::prelude::*;
use gstyolodetect::memory::monitor::{self, Watch};
use gstyolodetect::memory::pressure::{Level, Thresholds};

const RAW: &str = "video/x-raw,format=GRAY8,width=2,height=2,framerate=25/1";

/// As an application tells it, or a `yolodetect` of another process.
fn level(name: &str) -> gst::Event {
    let fields = gst::Structure::builder("yolodetect-memory-pressure").field("level", name).build();
    gst::event::CustomDownstreamSticky::new(fields)
}

/// Keeps the whole process at `level` while it lives; ready when that holds.
fn press(level: Level) -> Watch {
    let mut process = [u64::MAX; 3];
    process[..level as usize].fill(1);
    let thresholds = Thresholds { process, cooldown: Duration::ZERO, react: false, ..Thresholds::default() };
    let watch = monitor::watch(thresholds, Duration::from_millis(5), || ());
    until("the level", || monitor::level() == level);
    watch
}

fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < deadline, "no {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The valve between a test's pads.
struct Valve(Harness);

impl Valve {
    fn new(properties: &[(&str, &str)], caps: &str) -> Self {
        common::init();
        let mut harness = Harness::new("pressurevalve");
        let element = harness.element().unwrap();
        for (name, value) in properties {
            element.set_property_from_str(name, value);
        }
        harness.set_src_caps_str(caps);
        let mut valve = Self(harness);
        valve.events();
        valve
    }

    fn push(&mut self, buffer: gst::Buffer) {
        self.0.push(buffer).unwrap();
    }

    /// A frame of 40 ms with these flags; whether it passed, and whether it was marked as discontinuous.
    fn frame(&mut self, number: u64, flags: gst::BufferFlags) -> Option<bool> {
        let mut buffer = gst::Buffer::with_size(4).unwrap();
        let fields = buffer.get_mut().unwrap();
        fields.set_pts(gst::ClockTime::from_mseconds(40) * number);
        fields.set_duration(gst::ClockTime::from_mseconds(40));
        fields.set_flags(flags);
        self.push(buffer);
        let passed = self.0.try_pull()?;
        assert_eq!(passed.flags() - gst::BufferFlags::DISCONT, flags);
        Some(passed.flags().contains(gst::BufferFlags::DISCONT))
    }

    fn raw(&mut self, number: u64) -> Option<bool> {
        self.frame(number, gst::BufferFlags::empty())
    }

    fn event(&mut self, event: gst::Event) {
        assert!(self.0.push_event(event));
    }

    fn level(&mut self, name: &str) {
        self.events();
        self.event(level(name));
        assert_eq!(self.events(), ["custom-downstream-sticky"], "the next valve wants it too");
    }

    /// What came out since the last call.
    fn events(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.0.try_pull_event()).map(|event| event.type_().name().to_string()).collect()
    }

    fn element(&self) -> gst::Element {
        self.0.element().unwrap()
    }

    fn is_active(&self) -> bool {
        self.element().property("active")
    }

    fn dropped(&self) -> u64 {
        self.element().property("dropped")
    }

    /// Of those that were asked for upstream.
    fn key_frames_asked(&mut self) -> usize {
        let events = std::iter::from_fn(|| self.0.try_pull_upstream_event());
        events.filter(|event| gst_video::UpstreamForceKeyUnitEvent::parse(event).is_ok()).count()
    }
}

fn calm(test: &str) -> bool {
    common::init();
    memory_is_calm(test)
}

#[test]
fn it_is_shut_from_its_level_on() {
    if !calm("it_is_shut_from_its_level_on") {
        return;
    }
    let levels = ["nominal", "warning", "critical", "emergency"];
    for (own, shut) in [("warning", 1), ("critical", 2), ("emergency", 3)] {
        let mut valve = Valve::new(&[("level", own)], RAW);
        for (number, name) in levels.into_iter().enumerate() {
            valve.level(name);
            let passes = valve.raw(number as u64).is_some();
            assert_eq!((passes, valve.is_active()), (number < shut, number >= shut), "{own} at {name}");
        }
        // May be changed while playing.
        valve.element().set_property_from_str("level", "emergency");
        valve.level("critical");
        assert_eq!(valve.raw(4), Some(true));
        assert_eq!(valve.dropped(), 4 - shut as u64);
    }
}

#[test]
fn the_first_buffer_after_a_gap_is_marked() {
    if !calm("the_first_buffer_after_a_gap_is_marked") {
        return;
    }
    let mut valve = Valve::new(&[], RAW);
    assert_eq!([valve.raw(0), valve.raw(1)], [Some(false), Some(false)]);
    valve.level("critical");
    assert_eq!([valve.raw(2), valve.raw(3)], [None, None]);
    valve.level("warning");
    assert_eq!([valve.raw(4), valve.raw(5)], [Some(true), Some(false)]);
    assert_eq!(valve.dropped(), 2);
    assert_eq!(valve.key_frames_asked(), 0, "raw frames are all alike");
}

#[test]
fn events_and_headers_pass_a_shut_valve() {
    if !calm("events_and_headers_pass_a_shut_valve") {
        return;
    }
    let mut valve = Valve::new(&[], "audio/x-vorbis");
    valve.level("emergency");
    assert_eq!(valve.frame(0, gst::BufferFlags::HEADER), Some(false));
    assert_eq!(valve.raw(1), None);
    let mut tags = gst::TagList::new();
    tags.get_mut().unwrap().add::<gst::tags::Title>(&"title", gst::TagMergeMode::Append);
    valve.event(gst::event::Tag::new(tags));
    valve.0.set_src_caps_str("audio/x-opus");
    valve.event(gst::event::Eos::new());
    assert_eq!(valve.events(), ["tag", "caps", "segment", "eos"]);
    assert_eq!(valve.dropped(), 1);
}

#[test]
fn a_whole_frame_with_headers_in_it_is_no_header() {
    if !calm("a_whole_frame_with_headers_in_it_is_no_header") {
        return;
    }
    let mut valve = Valve::new(&[], "video/x-h264,stream-format=byte-stream,alignment=au");
    valve.level("critical");
    // As h264parse marks every key frame of such a stream.
    assert_eq!(valve.frame(0, gst::BufferFlags::HEADER), None);
}

#[test]
fn parts_of_a_frame_share_its_fate() {
    if !calm("parts_of_a_frame_share_its_fate") {
        return;
    }
    let mut valve = Valve::new(&[], "video/x-h264,stream-format=byte-stream,alignment=nal");
    assert_eq!(valve.raw(0), Some(false));
    valve.level("critical");
    assert_eq!([valve.raw(0), valve.raw(1)], [Some(false), None]);
    valve.level("nominal");
    assert_eq!([valve.raw(1), valve.raw(2)], [None, Some(true)]);
}

#[test]
fn an_encoded_stream_opens_at_a_key_frame_which_is_asked_for_once() {
    if !calm("an_encoded_stream_opens_at_a_key_frame_which_is_asked_for_once") {
        return;
    }
    let (key, delta) = (gst::BufferFlags::empty(), gst::BufferFlags::DELTA_UNIT);
    let mut valve = Valve::new(&[], "video/x-vp8");
    for round in 0..2 {
        let mut number = round * 20;
        let mut frame = |valve: &mut Valve, flags| {
            number += 1;
            valve.frame(number, flags)
        };
        assert!(frame(&mut valve, key).is_some() && frame(&mut valve, delta).is_some());
        valve.level("critical");
        assert_eq!([key, delta].map(|flags| frame(&mut valve, flags)), [None; 2]);
        assert_eq!(valve.key_frames_asked(), 0, "it is shut");
        valve.level("nominal");
        assert_eq!([delta; 3].map(|flags| frame(&mut valve, flags)), [None; 3]);
        assert!(valve.is_active(), "it waits");
        assert_eq!(valve.key_frames_asked(), 1);
        assert_eq!([key, delta].map(|flags| frame(&mut valve, flags)), [Some(true), Some(false)]);
        assert!(!valve.is_active());
    }
    assert_eq!(valve.dropped(), 10);
}

#[test]
fn one_in_n_is_exact() {
    if !calm("one_in_n_is_exact") {
        return;
    }
    for thin in [1, 2, 4, 7] {
        let mut valve = Valve::new(&[("mode", "thin"), ("thin", &thin.to_string())], RAW);
        assert!((0..3).all(|number| valve.raw(number).is_some()));
        valve.level("critical");
        let passed: Vec<_> = (3..73).map(|number| valve.raw(number).is_some()).collect();
        let expected: Vec<_> = (0..70).map(|number| number % thin == 0).collect();
        assert_eq!(passed, expected);
        assert_eq!(valve.dropped(), 70 - 70u64.div_ceil(thin));
        valve.level("nominal");
        assert!((73..76).all(|number| valve.raw(number).is_some()));
    }
}

#[test]
fn downstream_hears_that_there_is_nothing() {
    if !calm("downstream_hears_that_there_is_nothing") {
        return;
    }
    // At once, for a sink that waits for its first buffer; then again and again.
    let gaps = |valve: &mut Valve, frames: std::ops::Range<u64>| -> Vec<u64> {
        frames
            .filter(|&number| {
                assert_eq!(valve.raw(number), None);
                valve.events() == ["gap"]
            })
            .collect()
    };
    let mut valve = Valve::new(&[], "video/x-vp8");
    valve.level("critical");
    assert_eq!(gaps(&mut valve, 0..12), [0, 5, 10]);
    valve.level("nominal");
    assert!(valve.raw(12).is_some());
    valve.level("critical");
    assert_eq!(gaps(&mut valve, 13..20), [17]);
    // And anew with each segment.
    valve.event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new()));
    assert_eq!(valve.events(), ["segment"]);
    assert_eq!(gaps(&mut valve, 20..22), [20]);

    // An encoder would collect them.
    let mut valve = Valve::new(&[], RAW);
    valve.level("critical");
    assert_eq!(gaps(&mut valve, 0..100), [0]);
}

#[test]
fn a_flush_or_a_new_stream_opens_it() {
    if !calm("a_flush_or_a_new_stream_opens_it") {
        return;
    }
    let segment = || gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new());
    let mut valve = Valve::new(&[], RAW);
    let shut = |valve: &mut Valve| {
        valve.level("emergency");
        assert_eq!(valve.raw(1), None);
        valve.events();
    };
    shut(&mut valve);
    valve.event(gst::event::FlushStart::new());
    valve.event(gst::event::FlushStop::new(true));
    valve.event(segment());
    assert!(valve.raw(0).is_some());
    valve.events();

    shut(&mut valve);
    valve.event(gst::event::StreamStart::new("another"));
    valve.event(segment());
    assert_eq!(valve.raw(0), Some(true));
    valve.events();

    shut(&mut valve);
    let element = valve.element();
    element.set_state(gst::State::Ready).unwrap();
    assert!(!valve.is_active());
    element.set_state(gst::State::Playing).unwrap();
    assert_eq!(valve.dropped(), 0);
}

#[test]
fn a_stream_without_caps_passes() {
    if !calm("a_stream_without_caps_passes") {
        return;
    }
    Pipeline::new("fakesrc num-buffers=20 sizetype=fixed sizemax=100 ! pressurevalve ! fakesink")
        .run()
        .unwrap();
}

/// Decoded frames of a part of an H.264 stream, as hashes of their pixels by their timestamps.
fn decoded(units: &[gst::Buffer], caps: &gst::Caps) -> BTreeMap<gst::ClockTime, u64> {
    let pipeline = Pipeline::new(&format!("appsrc name=source format=time ! {DECODER}"));
    let source = pipeline.by_name("source").downcast::<AppSrc>().unwrap();
    source.set_caps(Some(caps));
    for unit in units {
        source.push_buffer(unit.clone()).unwrap();
    }
    source.end_of_stream().unwrap();
    pictures(&pipeline)
}

const DECODER: &str = "avdec_h264 max-threads=1 ! appsink name=sink sync=false wait-on-eos=false";

/// What comes out of the decoder of `pipeline`.
fn pictures(pipeline: &Pipeline) -> BTreeMap<gst::ClockTime, u64> {
    pipeline.run().unwrap();
    let sink = pipeline.by_name("sink").downcast::<AppSink>().unwrap();
    let samples = std::iter::from_fn(|| sink.try_pull_sample(gst::ClockTime::ZERO));
    let hash = |sample: gst::Sample| {
        let info = gst_video::VideoInfo::from_caps(sample.caps().unwrap()).unwrap();
        let buffer = sample.buffer().unwrap();
        let frame = gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, &info).unwrap();
        let mut hasher = DefaultHasher::new();
        for plane in 0..frame.n_planes() {
            let stride = frame.plane_stride()[plane as usize] as usize;
            let rows = frame.plane_data(plane).unwrap().chunks(stride);
            let width = frame.comp_width(plane) as usize;
            rows.take(frame.comp_height(plane) as usize).for_each(|row| row[..width].hash(&mut hasher));
        }
        (buffer.pts().unwrap(), hasher.finish())
    };
    samples.map(hash).collect()
}

/// The units of the clip, which has six key frames and frames that are shown before those they are made from.
fn clip() -> (Vec<gst::Buffer>, gst::Caps) {
    let pipeline = Pipeline::new(&format!(
        "filesrc location={} ! qtdemux ! h264parse ! video/x-h264,stream-format=avc,alignment=au \
         ! appsink name=sink sync=false wait-on-eos=false",
        asset("clips/bikes.mp4").display()
    ));
    pipeline.run().unwrap();
    let sink = pipeline.by_name("sink").downcast::<AppSink>().unwrap();
    let samples: Vec<_> = std::iter::from_fn(|| sink.try_pull_sample(gst::ClockTime::ZERO)).collect();
    let caps = samples[0].caps_owned().unwrap();
    (samples.iter().map(|sample| sample.buffer_owned().unwrap()).collect(), caps)
}

fn is_key(unit: &gst::Buffer) -> bool {
    !unit.flags().contains(gst::BufferFlags::DELTA_UNIT)
}

#[test]
fn what_is_left_of_a_real_stream_decodes_to_the_same_pictures() {
    if !calm("what_is_left_of_a_real_stream_decodes_to_the_same_pictures") {
        return;
    }
    let (units, caps) = clip();
    let whole = decoded(&units, &caps);
    assert_eq!(whole.len(), 250);
    for mode in ["drop", "keyframes-only", "thin"] {
        let mut valve = Valve::new(&[("mode", mode), ("thin", "2")], &caps.to_string());
        let mut passed = Vec::new();
        for (number, unit) in units.iter().enumerate() {
            // In the midst of groups of pictures.
            match number {
                20 => valve.level("critical"),
                150 => valve.level("nominal"),
                _ => (),
            }
            valve.push(unit.clone());
            passed.extend(valve.0.try_pull());
        }
        let keys = passed.iter().filter(|unit| is_key(unit)).count();
        // Key frames are the units 0, 30, 76, 137, 187 and 242.
        assert_eq!(
            keys,
            match mode {
                "drop" => 3,
                "thin" => 5,
                _ => 6,
            }
        );
        let first = passed.iter().position(|unit| unit.flags().contains(gst::BufferFlags::DISCONT));
        assert!(passed.len() < 120 && first.is_some(), "{mode}: {}", passed.len());
        let left = decoded(&passed, &caps);
        assert_eq!(left.len(), passed.len(), "{mode}: each of them is shown");
        let spoilt: Vec<_> = left.iter().filter(|(pts, hash)| whole.get(pts) != Some(hash)).collect();
        assert!(spoilt.is_empty(), "{mode}: {} of {} are not the same: {spoilt:?}", spoilt.len(), left.len());
    }
}

#[test]
fn a_recording_with_a_gap_is_whole_again_behind_it() {
    if !calm("a_recording_with_a_gap_is_whole_again_behind_it") {
        return;
    }
    let (units, caps) = clip();
    let whole: Vec<_> = decoded(&units, &caps).into_values().collect();
    // Up to where it is shut, and from the next key frame on.
    let expected = |first: &[u64], last: &[u64]| whole.starts_with(first) && whole.ends_with(last);
    let scratch = tempfile::tempdir().unwrap();
    for (muxer, demuxer) in [("mp4mux", "qtdemux"), ("matroskamux", "matroskademux")] {
        let file = scratch.path().join(muxer);
        let recording = Pipeline::new(&format!(
            "filesrc location={} ! qtdemux ! h264parse ! pressurevalve name=valve ! {muxer} ! filesink location={}",
            asset("clips/bikes.mp4").display(),
            file.display()
        ));
        let number = AtomicU32::new(0);
        let sink = recording.by_name("valve").static_pad("sink").unwrap();
        sink.add_probe(gst::PadProbeType::BUFFER, move |pad, _| {
            match number.fetch_add(1, Ordering::Relaxed) {
                // A key frame.
                76 => assert!(pad.send_event(level("critical"))),
                179 => assert!(pad.send_event(level("nominal"))),
                _ => (),
            }
            gst::PadProbeReturn::Ok
        });
        recording.run().unwrap();
        let playing = Pipeline::new(&format!(
            "filesrc location={} ! {demuxer} ! h264parse ! {DECODER}",
            file.display()
        ));
        let shown: Vec<_> = pictures(&playing).into_values().collect();
        // Units 0 to 75, and 187 to 249.
        assert_eq!(shown.len(), 76 + 63, "{muxer}");
        assert!(expected(&shown[..76], &shown[76..]), "{muxer}");
    }
}

#[test]
fn a_branch_that_no_event_reaches_yields_to_a_detector_elsewhere() {
    let test = "a_branch_that_no_event_reaches_yields_to_a_detector_elsewhere";
    if !in_own_process(test) || !calm(test) {
        return;
    }
    let mut valve = Valve::new(&[], RAW);
    assert_eq!(valve.raw(0), Some(false));
    let detecting = Pipeline::new(&format!(
        "videotestsrc is-live=true ! video/x-raw,width=64,height=64 ! yolodetect name=detect model-file={} \
         pressure-interval=5000000 pressure-cooldown=0 memory-warning=1 memory-critical=1 ! fakesink",
        tiny("v8_dynamic_batch")
    ));
    detecting.0.set_state(gst::State::Playing).unwrap();
    until("pressure", || valve.raw(1).is_none());
    for step in ["memory-warning", "memory-critical"] {
        detecting.by_name("detect").set_property(step, u64::MAX);
    }
    until("relief", || valve.raw(2).is_some());
}

#[test]
fn it_needs_no_detector() {
    let test = "it_needs_no_detector";
    if !in_own_process(test) || !calm(test) {
        return;
    }
    let mut valve = Valve::new(&[("level", "warning")], RAW);
    assert_eq!(valve.raw(0), Some(false));
    let pressure = press(Level::Warning);
    assert_eq!(valve.raw(1), None);
    // The higher of the two counts.
    valve.level("nominal");
    assert_eq!(valve.raw(2), None);
    drop(pressure);
    until("relief", || valve.raw(3).is_some());
}

#[test]
fn it_opens_when_the_detector_that_told_it_is_taken_out() {
    let test = "it_opens_when_the_detector_that_told_it_is_taken_out";
    if !in_own_process(test) || !calm(test) {
        return;
    }
    let pipeline = Pipeline::new(&format!(
        "videotestsrc is-live=true ! video/x-raw,width=64,height=64,format=RGB ! identity name=before \
         ! yolodetect name=detect model-file={} memory-warning=1 memory-critical=1 ! pressurevalve name=valve ! fakesink name=sink",
        tiny("v8_dynamic_batch")
    ));
    let (before, detect, valve) =
        (pipeline.by_name("before"), pipeline.by_name("detect"), pipeline.by_name("valve"));
    pipeline.0.set_state(gst::State::Playing).unwrap();
    until("shut valve", || valve.property("active"));
    let (done, taken_out) = std::sync::mpsc::channel();
    let (bin, next) = (pipeline.0.clone(), valve.clone());
    before.static_pad("src").unwrap().add_probe(gst::PadProbeType::IDLE, move |pad, _| {
        let sink = next.static_pad("sink").unwrap();
        detect.static_pad("src").unwrap().unlink(&sink).unwrap();
        bin.remove(&detect).unwrap();
        pad.link(&sink).unwrap();
        let _ = done.send(detect.clone());
        gst::PadProbeReturn::Remove
    });
    let detect = taken_out.recv_timeout(PATIENCE).unwrap();
    detect.set_state(gst::State::Null).unwrap();
    until("open valve", || !valve.property::<bool>("active"));
}

#[test]
fn a_shut_valve_holds_no_pipeline_up() {
    let test = "a_shut_valve_holds_no_pipeline_up";
    if !in_own_process(test) || !calm(test) {
        return;
    }
    common::init();
    let _pressure = press(Level::Emergency);
    // A sink that waits for its first buffer.
    let endless = Pipeline::new(
        "videotestsrc ! video/x-raw,width=64,height=64 ! pressurevalve ! fakesink \
         audiotestsrc ! vorbisenc ! pressurevalve ! fakesink",
    );
    endless.0.set_state(gst::State::Paused).unwrap();
    let (reached, ..) = endless.0.state(gst::ClockTime::try_from(PATIENCE).unwrap());
    assert_eq!(reached, Ok(gst::StateChangeSuccess::Success));
    drop(endless);
    // A muxer that waits for all of its streams, of which one is fed only as long as the other is taken.
    let scratch = tempfile::tempdir().unwrap();
    let pipeline = Pipeline::new(&format!(
        "audiotestsrc num-buffers=500 ! opusenc ! opusparse ! tee name=both \
         both. ! queue ! mp4mux name=mux ! filesink location={} \
         both. ! pressurevalve name=valve ! queue ! mux.",
        scratch.path().join("out").display()
    ));
    pipeline.run().unwrap();
    assert!(pipeline.by_name("valve").property::<u64>("dropped") > 500);
}
