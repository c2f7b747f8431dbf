//! A batch for which there is no memory, for real: ONNX Runtime's arena has a limit, or a model wants terabytes.
//!

#[path = "common/arena.rs"]
mod arena;
mod common;

use common::{Detect, in_own_process, tiny, watch};

#[test]
fn a_batch_beyond_the_arena_is_run_in_parts() {
    // The arena belongs to the process.
    if !in_own_process("a_batch_beyond_the_arena_is_run_in_parts") {
        return;
    }
    common::init();
    // A frame of YOLO12n takes some 40 MB besides the 11 MB of weights, four take 160.
    arena::register(Some(110 << 20));
    let model = common::asset("models/variants/dynamic_batch.onnx").display().to_string();
    let mut detect = Detect::new(&format!(
        "model-file={model} max-batch=4 max-in-flight=16 batch-delay=5000000000 performance-hint=latency"
    ));
    let picture = common::picture("bus");
    for _ in 0..12 {
        detect.push(&picture);
    }
    let posted = watch(&detect.pipeline);
    let out = detect.finish().unwrap();
    assert_eq!(out.len(), 12);
    for frame in &out {
        assert_eq!(frame.status, "inferred");
        assert!(frame.boxes.len() >= 4, "{frame:?}");
        assert_eq!(frame.boxes, out[0].boxes);
    }
    let posted = posted.lock();
    assert!(!posted.reduced.is_empty(), "the arena was large enough");
    let (batch, limit) = posted.reduced[0];
    assert!(batch == 4 && limit < 4, "{:?}", posted.reduced);
    assert!(out[8..].iter().all(|frame| frame.batch <= limit), "later batches are small at once");
}

#[test]
fn every_element_with_a_frame_in_a_split_batch_says_so_and_loses_none() {
    let mut detect = Detect::new(&format!(
        "model-file={} threads=21 max-batch=4 max-in-flight=9 batch-delay=5000000000",
        tiny("hungry")
    ));
    let posted = watch(&detect.pipeline);
    let frames: Vec<_> = (0..40).map(|number| common::solid(64, 64, [100 + number, 0, 0])).collect();
    frames.iter().for_each(|frame| detect.push(frame));
    let out = detect.finish().unwrap();
    for (number, frame) in out.iter().enumerate() {
        let red = (frame.only().confidence * 255.0).round();
        assert_eq!((frame.status.as_str(), red), ("inferred", 100.0 + number as f64));
    }
    let posted = posted.lock();
    assert_eq!(posted.reduced, [(4, 2)], "told once, and later batches are small enough");
    assert!(out[4..].iter().all(|frame| frame.batch <= 2));
    assert_eq!(posted.warnings, [""; 0]);
}

#[test]
fn frames_for_which_there_is_no_memory_pass_as_failed_and_the_stream_goes_on() {
    let mut detect = Detect::new(&format!("model-file={} threads=22", tiny("hungry")));
    let posted = watch(&detect.pipeline);
    let (dark, white) = (common::solid(64, 64, [200, 0, 0]), common::solid(64, 64, [255, 255, 255]));
    // Longer than any other failure would be borne.
    let frames = [&dark, &white, &dark].into_iter().chain(std::iter::repeat_n(&white, 50)).chain([&dark]);
    frames.for_each(|frame| detect.push(frame));
    let out = detect.finish().unwrap();
    let failed: Vec<_> = out.iter().map(|frame| frame.status == "failed").collect();
    let expected: Vec<_> = (0..54).map(|number| !matches!(number, 0 | 2 | 53)).collect();
    assert_eq!(failed, expected);
    assert!(out.iter().all(|frame| frame.boxes.len() == usize::from(frame.status == "inferred")));
    let warnings = &posted.lock().warnings;
    assert_eq!(warnings.len(), 2, "one for each series");
    assert!(
        warnings[0].contains("hungry.onnx ran out of memory") && warnings[0].contains("status failed"),
        "{warnings:?}"
    );
}
