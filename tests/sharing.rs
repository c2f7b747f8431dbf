//! Many elements, one engine: who shares, who does not, and that nobody gets another's results.
//!
//! Tests run at the same time in one process: each has `threads` of its own, and so engines of its own.

mod common;
#[path = "common/rig.rs"]
mod rig;

use std::collections::HashSet;
use std::time::Instant;

use common::{PATIENCE, Pipeline, tiny};
use gst::prelude::*;
use parking_lot::Mutex;
use rig::{Rig, Seen, frames_of, segment};

fn streams(rig: &Rig) -> u32 {
    rig.engine().get("streams").unwrap()
}

fn of(threads: &str, model: &str) -> Rig {
    Rig::new(&[("threads", threads), ("model-file", model)])
}

#[test]
fn the_same_model_is_one_engine_whatever_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::copy(tiny("v8"), path("copy.onnx")).unwrap();
    std::os::unix::fs::symlink(tiny("v8"), path("link.onnx")).unwrap();
    let rigs = [of("2", &tiny("v8")), of("2", &path("copy.onnx")), of("2", &path("link.onnx"))];
    assert_eq!(rigs.each_ref().map(streams), [3, 3, 3]);
    for (count, rig) in rigs.iter().enumerate() {
        rig.push_frames(0..1);
        rig.seen.frames(1);
        rig.until_stats("shared count", |stats| {
            let engine = stats.get::<gst::Structure>("engine").unwrap();
            engine.get::<u64>("frames") == Ok(count as u64 + 1)
        });
    }
    let [first, second, third] = rigs;
    drop(second);
    assert_eq!(streams(&first), 2);
    drop(first);
    third.push_frames(1..2);
    assert_eq!(third.seen.frames(2).len(), 2);
}

#[test]
fn other_options_or_another_model_is_another_engine() {
    let rigs = [of("3", &tiny("v8")), of("4", &tiny("v8")), of("3", &tiny("v8_one_class"))];
    assert_eq!(rigs.each_ref().map(streams), [1, 1, 1]);
    let head = Rig::new(&[("threads", "3"), ("model-file", &tiny("v8")), ("head", "v8")]);
    assert_eq!(streams(&head), 1);
    // The batch is no reason for a second copy.
    let batch = Rig::new(&[("threads", "3"), ("model-file", &tiny("v8")), ("max-batch", "4")]);
    assert_eq!(streams(&batch), 2);
}

#[test]
fn an_engine_goes_with_its_last_element() {
    let frames = |rig: &Rig| rig.engine().get::<u64>("frames").unwrap();
    let (one, two) = (of("5", &tiny("v8")), of("5", &tiny("v8")));
    for rig in [&one, &two] {
        rig.push_frames(0..1);
        rig.seen.frames(1);
    }
    one.until_stats("two frames", |stats| {
        stats.get::<gst::Structure>("engine").unwrap().get::<u64>("frames") == Ok(2)
    });
    one.element.set_state(gst::State::Ready).unwrap();
    assert!(one.stats().get::<gst::Structure>("engine").is_err());
    assert!(one.element.property::<Option<String>>("active-device").is_none());
    one.element.set_state(gst::State::Playing).unwrap();
    assert_eq!(frames(&one), 2, "it was there all the time");
    for rig in [&one, &two] {
        rig.element.set_state(gst::State::Ready).unwrap();
    }
    one.element.set_state(gst::State::Playing).unwrap();
    assert_eq!(frames(&one), 0, "it was loaded anew");
}

#[test]
fn elements_fill_a_batch_together() {
    let properties = [("threads", "6"), ("max-batch", "4"), ("batch-delay", "10000000000")];
    let rigs = [Rig::new(&properties), Rig::new(&properties)];
    for (rig, red) in rigs.iter().zip([100, 200]) {
        rig.push(0, red).unwrap();
        rig.push(1, red + 40).unwrap();
    }
    for (rig, red) in rigs.iter().zip([100, 200]) {
        let seen = rig.seen.frames(2);
        assert_eq!(seen.iter().map(|seen| seen.batch).collect::<Vec<_>>(), [4, 4]);
        assert_eq!(seen.iter().map(redness).collect::<Vec<_>>(), [red, red + 40]);
    }
}

#[test]
fn a_stream_that_is_stuck_holds_no_other_up() {
    let properties = [("threads", "7"), ("max-batch", "2"), ("max-in-flight", "4")];
    let (stuck, free) = (Rig::new(&properties), Rig::new(&properties));
    stuck.seen.close();
    std::thread::scope(|scope| {
        scope.spawn(|| while stuck.push(0, 200).is_ok() {});
        stuck.until_stats("full queue", |stats| stats.get::<u32>("queue-depth").unwrap() >= 4);
        free.push_frames(0..50);
        assert_eq!(free.seen.frames(50).len(), 50);
        stuck.seen.answer(Some(gst::FlowError::Eos));
        stuck.seen.open();
    });
    free.push_frames(50..60);
    free.seen.frames(60);
}

#[test]
fn detections_of_two_models_are_told_apart() {
    let (first, second) = (tiny("v8"), tiny("end2end"));
    let pipeline = Pipeline::new(&format!(
        "videotestsrc num-buffers=20 pattern=red ! video/x-raw,format=RGB,width=64,height=64 ! \
         yolodetect name=one model-file={first} ! yolodetect name=two model-file={second} ! fakesink name=sink"
    ));
    let frames = std::sync::Arc::new(Mutex::new(Vec::new()));
    pipeline.by_name("two").static_pad("src").unwrap().add_probe(gst::PadProbeType::BUFFER, {
        let frames = frames.clone();
        move |_, info| {
            if let Some(buffer) = info.buffer() {
                let records = gstyolodetect::meta::frames(buffer);
                let names: Vec<_> = records
                    .iter()
                    .map(|record| (record.element.clone(), record.frame, record.count))
                    .collect();
                let found: Vec<_> = gstyolodetect::meta::found(buffer)
                    .iter()
                    .map(|found| (found.element, found.id.unwrap(), found.label().to_string()))
                    .collect();
                frames.lock().push((names, found));
            }
            gst::PadProbeReturn::Ok
        }
    });
    pipeline.run().unwrap();
    let frames = frames.lock();
    assert_eq!(frames.len(), 20);
    let mut ids = HashSet::new();
    for (number, (names, found)) in frames.iter().enumerate() {
        let number = number as u64;
        assert_eq!(*names, [("one".to_string(), number, 1), ("two".to_string(), number, 2)]);
        let of: Vec<_> = found.iter().map(|(element, _, label)| (*element, label.as_str())).collect();
        assert_eq!(of, [(Some(0), "red"), (Some(1), "other"), (Some(1), "red")]);
        ids.extend(found.iter().map(|(_, id, _)| *id));
    }
    assert_eq!(ids.len(), 60, "no id is given twice");
}

/// The red of the picture that a frame's result was made from.
fn redness(seen: &Seen) -> u8 {
    (seen.confidence.expect("a box") * 255.0).round() as u8
}

#[test]
fn sixteen_streams_get_their_own_results_through_flushes_and_restarts() {
    const STREAMS: u64 = 16;
    const ROUNDS: u64 = 12;
    let deadline = Instant::now() + PATIENCE;
    std::thread::scope(|scope| {
        for stream in 0..STREAMS {
            scope.spawn(move || {
                let delay = if stream % 4 == 0 { "2000000" } else { "0" };
                let batch = (1 + stream % 5).to_string();
                let rig = Rig::new(&[("threads", "8"), ("max-batch", &batch), ("batch-delay", delay)]);
                let red = |index: u64| (90 + stream * 10 + index % 10) as u8;
                let mut pushed = 0;
                for round in 0..ROUNDS {
                    assert!(Instant::now() < deadline, "too slow");
                    rig.seen.forget();
                    for index in 0..7 {
                        rig.push(index, red(index)).unwrap();
                    }
                    pushed += 7;
                    // A round that is cut off, or waited for.
                    match (stream + round) % 4 {
                        0 => {
                            rig.flush();
                            rig.event(segment());
                        }
                        1 if round % 3 == 0 => {
                            rig.element.set_state(gst::State::Ready).unwrap();
                            rig.element.set_state(gst::State::Playing).unwrap();
                            // Its pads were reset; upstream's begin anew.
                            rig.src.set_active(false).unwrap();
                            rig.src.set_active(true).unwrap();
                            rig.begin();
                            pushed = 0;
                        }
                        _ => {
                            rig.seen.frames(7);
                            assert_eq!(rig.count("frames-in"), pushed);
                        }
                    }
                    let items = rig.seen.until("anything", |_| true);
                    for seen in frames_of(&items) {
                        let index = seen.pts.unwrap().mseconds() / 40;
                        assert_eq!(redness(&seen), red(index), "stream {stream}, round {round}: {seen:?}");
                    }
                }
            });
        }
    });
    let lone = Rig::new(&[("threads", "8")]);
    assert_eq!(streams(&lone), 1, "all others have left");
}

#[test]
fn a_file_does_not_starve_a_camera() {
    let model = common::yolo12n();
    let camera = Rig::new(&[("threads", "1"), ("model-file", &model), ("overload", "skip")]);
    let file = Rig::new(&[("threads", "1"), ("model-file", &model), ("overload", "block")]);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = file.push(0, 200);
            }
        });
        file.seen.frames(3);
        let deadline = Instant::now() + PATIENCE;
        let mut index = 0;
        while camera.count("inferred") < 4 {
            assert!(Instant::now() < deadline, "{}", camera.stats());
            let _ = camera.push(index, 200);
            index += 1;
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(file.count("inferred") >= 4);
}

#[test]
fn many_elements_that_start_at_once_load_once() {
    let rigs = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let rig = of("9", &tiny("v8"));
                rigs.lock().push(rig);
            });
        }
    });
    let rigs = rigs.into_inner();
    assert!(rigs.iter().all(|rig| streams(rig) == 8));
}
