//! What `recent-detections` gives: the latest inferred frames, as they are on the buffers.

mod common;
#[path = "common/rig.rs"]
mod rig;

use std::sync::atomic::{AtomicBool, Ordering};

use common::{in_own_process, memory_is_calm, tiny};
use gst::prelude::*;
use gstyolodetect::memory::budget::{Consumer, HOST};
use rig::{Rig, Seen};
use serde_json::Value;

fn structure(rig: &Rig, most: u32) -> gst::Structure {
    rig.element.emit_by_name("recent-detections", &[&most])
}

fn json(rig: &Rig, most: u32) -> Value {
    serde_json::from_str(&rig.element.emit_by_name::<String>("recent-detections-json", &[&most])).unwrap()
}

fn structures(parent: &gst::StructureRef, field: &str) -> Vec<gst::Structure> {
    let array = parent.get::<gst::Array>(field).unwrap();
    array.iter().map(|value| value.get().unwrap()).collect()
}

/// The structure as JSON, through its public fields alone.
fn as_json(given: &gst::StructureRef) -> Value {
    let number = |fields: &gst::StructureRef, name| fields.get::<u32>(name).unwrap();
    let detection = |found: gst::Structure| {
        let confidence = (found.get::<f64>("confidence").unwrap() * 1e3).round() / 1e3;
        serde_json::json!({
            "id": format!("{:08x}", number(&found, "id")), "class": found.get::<String>("label").unwrap(),
            "class_id": number(&found, "class-id"), "conf": confidence,
            "box": (["x", "y", "w", "h"].map(|name| number(&found, name))),
        })
    };
    let frame = |frame: gst::Structure| {
        let pts = frame.get::<u64>("pts").unwrap();
        let detections: Vec<_> = structures(&frame, "detections").into_iter().map(detection).collect();
        serde_json::json!({
            "frame": frame.get::<u64>("frame").unwrap(),
            "pts": (pts != u64::MAX).then_some(pts),
            "detections": detections,
        })
    };
    let frames: Vec<_> = structures(given, "frames").into_iter().map(frame).collect();
    serde_json::json!({ "element": given.get::<String>("element").unwrap(), "frames": frames })
}

/// Numbers of the frames that are given.
fn numbers(given: &Value) -> Vec<u64> {
    given["frames"].as_array().unwrap().iter().map(|frame| frame["frame"].as_u64().unwrap()).collect()
}

/// The record says what was on the buffer.
fn assert_same(record: &Value, seen: &Seen) {
    assert_eq!(record["pts"].as_u64(), seen.pts.map(gst::ClockTime::nseconds));
    let found = record["detections"].as_array().unwrap();
    let side = |found: &Value, index: usize| found["box"][index].as_i64().unwrap() as i32;
    let boxes: Vec<_> =
        found.iter().map(|found| (side(found, 0), side(found, 1), side(found, 2), side(found, 3))).collect();
    assert_eq!(boxes, seen.boxes);
    let scores: Vec<_> = found
        .iter()
        .map(|found| (found["class_id"].as_u64().unwrap() as u32, found["conf"].as_f64().unwrap()))
        .collect();
    assert_eq!(scores.len(), seen.scores.len());
    for (score, seen) in scores.iter().zip(&seen.scores) {
        assert!(score.0 == seen.0 && (score.1 - f64::from(seen.1)).abs() < 6e-4, "{score:?} {seen:?}");
    }
    assert!(!found.is_empty() && found.iter().all(|found| found["class"].is_string()));
}

#[test]
fn the_latest_frames_are_given_as_they_left() {
    let rig = Rig::new(&[("name", "camera"), ("roi-meta", "on")]);
    assert_eq!(numbers(&json(&rig, 0)), [0; 0]);
    for index in 0..5 {
        rig.push(index, 100 + 20 * index as u8).unwrap();
    }
    // Without a timestamp.
    let mut buffer = rig::picture(64, 200, gst::ClockTime::ZERO);
    buffer.get_mut().unwrap().set_pts(None);
    rig.src.push(buffer).unwrap();
    let frames = rig.seen.frames(6);

    let all = json(&rig, 0);
    assert_eq!(all["element"], "camera");
    assert_eq!(numbers(&all), [0, 1, 2, 3, 4, 5]);
    for (record, seen) in all["frames"].as_array().unwrap().iter().zip(&frames) {
        assert_same(record, seen);
    }
    assert!(all["frames"][5]["pts"].is_null());
    let ids = |frame: usize| all["frames"][frame]["detections"][0]["id"].as_str().unwrap();
    assert!((1..6).all(|frame| ids(frame) > ids(frame - 1)), "ids of a stream are counted up");

    assert_eq!(structure(&rig, 0).name(), "recent-detections");
    assert_eq!(as_json(&structure(&rig, 0)), all, "both say the same");
    for most in [1, 4, 100] {
        let latest: Vec<_> = (6u64.saturating_sub(most)..6).collect();
        assert_eq!(numbers(&json(&rig, most as u32)), latest);
        assert_eq!(as_json(&structure(&rig, most as u32)), json(&rig, most as u32));
    }
    assert_eq!(rig.count("history-frames"), 6);
}

#[test]
fn only_inferred_frames_are_kept() {
    let rig = Rig::new(&[("inference-interval", "3")]);
    rig.push_frames(0..8);
    rig.seen.frames(8);
    assert_eq!(numbers(&json(&rig, 0)), [0, 3, 6]);
}

#[test]
fn the_size_may_be_changed_while_playing() {
    let rig = Rig::new(&[("history-size", "3")]);
    let after = |frames: std::ops::Range<u64>| {
        let end = frames.end as usize;
        rig.push_frames(frames);
        rig.seen.frames(end);
        numbers(&json(&rig, 0))
    };
    assert_eq!(after(0..5), [2, 3, 4]);
    rig.element.set_property("history-size", 1u32);
    assert_eq!(numbers(&json(&rig, 0)), [4]);
    rig.element.set_property("history-size", 4u32);
    assert_eq!(after(5..10), [6, 7, 8, 9]);
    rig.element.set_property("history-size", 0u32);
    assert_eq!(after(10..12), [0; 0]);
    assert_eq!(as_json(&structure(&rig, 0)), json(&rig, 0));
    rig.element.set_property("history-size", 2u32);
    assert_eq!(after(12..13), [12]);
}

#[test]
fn a_stopped_element_has_none() {
    let rig = Rig::new(&[("name", "stopped")]);
    rig.push_frames(0..3);
    rig.seen.frames(3);
    let held =
        || HOST.usage().iter().any(|usage| usage.consumer == Consumer::History && &*usage.owner == "stopped");
    assert!(held(), "{:?}", HOST.usage());
    rig.element.set_state(gst::State::Ready).unwrap();
    assert_eq!(numbers(&json(&rig, 0)), [0; 0]);
    assert!(!held(), "{:?}", HOST.usage());
    let unused = gst::ElementFactory::make("yolodetect").build().unwrap();
    let text: String = unused.emit_by_name("recent-detections-json", &[&0u32]);
    assert!(text.ends_with("\"frames\":[]}"), "{text}");
}

#[test]
fn it_can_be_read_from_any_thread_meanwhile() {
    let rig = Rig::new(&[
        ("model-file", &tiny("quarters")),
        ("history-size", "20"),
        ("confidence-threshold", "0.01"),
    ]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for most in [0, 7] {
            let (rig, done) = (&rig, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let given = numbers(&json(rig, most));
                    assert!(given.len() <= if most == 0 { 20 } else { 7 }, "{given:?}");
                    assert!(given.windows(2).all(|pair| pair[1] == pair[0] + 1), "{given:?}");
                }
            });
        }
        rig.push_frames(0..300);
        rig.seen.frames(300);
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(numbers(&json(&rig, 0)), (280..300).collect::<Vec<_>>());
}

#[test]
fn an_emergency_drops_it_and_a_calmer_time_keeps_it_again() {
    let test = "an_emergency_drops_it_and_a_calmer_time_keeps_it_again";
    if !in_own_process(test) || !memory_is_calm(test) {
        return;
    }
    let rig = Rig::new(&[("pressure-interval", "5000000")]);
    rig.push_frames(0..30);
    rig.seen.frames(30);
    assert_eq!(numbers(&json(&rig, 0)).len(), 30);
    // Its level, and what dropping the history freed.
    let told = || loop {
        let message = rig.message(gst::MessageType::Element);
        let fields = message.structure().unwrap();
        let level = fields.get::<String>("level").unwrap();
        let freed = fields.get::<gst::Structure>("actions").unwrap().get::<u64>("drop-history").ok();
        if level == "emergency" || level == "nominal" {
            return (level, freed);
        }
    };
    let steps = ["memory-warning", "memory-critical", "memory-emergency"];
    steps.iter().for_each(|step| rig.element.set_property(step, 1u64));
    let (level, freed) = told();
    assert_eq!(level, "emergency");
    assert!(freed.is_some_and(|freed| freed >= 30 * 64), "{freed:?}");
    assert_eq!(numbers(&json(&rig, 0)), [0; 0]);
    assert_eq!(HOST.reserved_for(Consumer::History), 0);

    rig.element.set_property("pressure-cooldown", 0u64);
    steps.iter().for_each(|step| rig.element.set_property(step, u64::MAX));
    while told().0 != "nominal" {}
    rig.push_frames(30..32);
    rig.seen.frames(32);
    assert_eq!(numbers(&json(&rig, 0)), [30, 31]);
}
