//! `memory-budget`: who may claim it, what is refused for it, and what gives way. Each test has a process of its own, whose
//! budget it is.

mod common;
#[path = "common/rig.rs"]
mod rig;

use std::env;
use std::path::Path;

use common::{Detect, Pipeline, asset, in_own_process, in_own_process_with, tiny, watch, yolo12n};
use gst::prelude::*;
use gstyolodetect::engine::estimate::Estimate;
use gstyolodetect::engine::plan::Hint;
use gstyolodetect::engine::registry::{self, Wanted};
use gstyolodetect::memory;
use gstyolodetect::memory::budget::{Consumer, HOST};
use rig::Rig;

const MB: u64 = 1_000_000;

/// The process's greatest resident set, bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse::<u64>().unwrap() * 1024
}

/// What the process holds now and `more`.
fn now_and(more: u64) -> u64 {
    common::init();
    memory::return_free_heap();
    memory::resident_bytes() + more
}

fn detectors(of: &[(&str, u64)]) -> Pipeline {
    let branches = of.iter().map(|(name, budget)| {
        format!(
            "videotestsrc num-buffers=2 ! video/x-raw,width=64,height=64 ! \
             yolodetect name={name} memory-budget={budget} model-file={} ! fakesink ",
            tiny("v8")
        )
    });
    Pipeline::new(&branches.collect::<String>())
}

#[test]
fn elements_that_want_different_budgets_are_told_of_each_other() {
    if !in_own_process("elements_that_want_different_budgets_are_told_of_each_other") {
        return;
    }
    let error = detectors(&[("one", 2_000_000_000), ("two", 3_000_000_000)]).run().unwrap_err();
    for word in ["one", "two", "memory-budget=2000000000", "memory-budget=3000000000"] {
        assert!(error.contains(word), "{word}: {error}");
    }
    // Equal ones and none agree, and a budget ends with the element.
    detectors(&[("one", 2_000_000_000), ("two", 2_000_000_000), ("three", 0)]).run().unwrap();
    detectors(&[("one", 3_000_000_000)]).run().unwrap();
    assert_eq!(HOST.ceiling(), None);
    assert_eq!(HOST.reserved(), 0);
}

#[test]
fn a_model_beyond_the_budget_is_refused_with_the_sum() {
    if !in_own_process("a_model_beyond_the_budget_is_refused_with_the_sum") {
        return;
    }
    let budget = now_and(40 * MB);
    let with_budget = |budget: u64| {
        Pipeline::new(&format!(
            "videotestsrc num-buffers=1 ! yolodetect memory-budget={budget} model-file={} ! fakesink",
            yolo12n()
        ))
    };
    let refused = with_budget(budget);
    assert!(refused.0.set_state(gst::State::Playing).is_err());
    let message = refused.wait(gst::MessageType::Error);
    let gst::MessageView::Error(error) = message.view() else { unreachable!() };
    assert!(error.error().matches(gst::ResourceError::NoSpaceLeft), "{error:?}");
    let text = error.error().to_string();
    let estimate = Estimate::of_file(Path::new(&yolo12n())).need(1, 1).total();
    let limit = format!("memory-budget={budget}");
    let needs = format!("{:.1} MB", estimate as f64 / 1e6);
    for word in [&limit[..], &needs, "yolo12n.onnx", "the rest of the process", "raise memory-budget"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    println!("{text}");
    drop(refused);
    assert_eq!(HOST.reserved(), 0, "{:?}", HOST.usage());
    with_budget(now_and(100 * MB)).run().unwrap();
}

#[test]
fn what_a_model_really_took_counts() {
    if !in_own_process("what_a_model_really_took_counts") {
        return;
    }
    // Its arithmetic with 32 bits takes some 10 MB more than one would think.
    let model = asset("models/variants/f16.onnx");
    let thought = Estimate::of_file(&model).need(1, 1);
    let refused = || {
        let pipeline = Pipeline::new(&format!(
            "videotestsrc num-buffers=1 ! yolodetect name=detect model-file={} ! fakesink",
            model.display()
        ));
        gstyolodetect::engine::runtime::environment(None).unwrap();
        let budget = now_and(thought.total() + 2 * MB);
        pipeline.by_name("detect").set_property("memory-budget", budget);
        pipeline.run().unwrap_err()
    };
    // Loaded and given up, then not even loaded.
    for text in [refused(), refused()] {
        println!("{text}");
        let arena = text.split("arena ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
        assert!(arena.parse::<f64>().unwrap() * 1e6 > thought.arena as f64 * 1.05, "{text}");
        assert_eq!(HOST.reserved(), 0);
    }
}

#[test]
fn an_idle_engine_makes_room_and_one_in_use_does_not() {
    if !in_own_process("an_idle_engine_makes_room_and_one_in_use_does_not") {
        return;
    }
    let hour = "3600000000000";
    let first = Rig::new(&[("model-file", &yolo12n()), ("model-keep-alive", hour)]);
    let other = asset("models/variants/v5.onnx").display().to_string();
    // Not enough for another model of its size.
    let budget = now_and(30 * MB).to_string();
    let second = Pipeline::new(&format!(
        "videotestsrc num-buffers=1 ! yolodetect name=second memory-budget={budget} model-file={other} ! fakesink"
    ));
    let error = second.run().unwrap_err();
    for word in ["v5.onnx needs", "model of yolo12n.onnx", "arena of yolo12n.onnx"] {
        assert!(error.contains(word), "{word}: {error}");
    }
    second.0.set_state(gst::State::Null).unwrap();
    assert_eq!(registry::idle_engines(), 0);

    first.element.set_state(gst::State::Ready).unwrap();
    assert_eq!(registry::idle_engines(), 1);
    second.run().unwrap();
    assert_eq!(registry::idle_engines(), 0, "it has left for the other");
    let mut engines = HOST.usage();
    engines.retain(|usage| !matches!(usage.consumer, Consumer::Frames | Consumer::History));
    assert!(engines.iter().all(|usage| &*usage.owner == "v5.onnx"), "{engines:?}");
}

#[test]
fn batches_are_as_large_as_the_budget_allows() {
    if !in_own_process("batches_are_as_large_as_the_budget_allows") {
        return;
    }
    let picture = common::picture("bus");
    // YOLO12n takes some 30 MB for itself and for each frame in a batch, and 2 times 5 for each frame that waits.
    let budget = now_and(270 * MB);
    let mut detect = Detect::new(&format!(
        "model-file={} memory-budget={budget} max-batch=8 max-in-flight=32 batch-delay=5000000000 \
         performance-hint=latency",
        asset("models/variants/dynamic_batch.onnx").display()
    ));
    let posted = watch(&detect.pipeline);
    (0..24).for_each(|_| detect.push(&picture));
    let out = detect.finish().unwrap();
    assert_eq!(out.len(), 24);
    let largest = out.iter().map(|frame| frame.batch).max().unwrap();
    assert!((2..8).contains(&largest), "batches of {largest}");
    for frame in &out {
        assert_eq!((frame.status.as_str(), &frame.boxes), ("inferred", &out[0].boxes));
    }
    assert_eq!(posted.lock().reduced, [(8, largest)], "told once");
    println!("batches of {largest}, {:.1} MB of {:.1}", peak() as f64 / 1e6, budget as f64 / 1e6);
    assert!(peak() <= budget, "{} bytes of {budget}", peak());
}

/// Prints what a model was thought to take beside what it took, as the table in `engine/estimate.rs` has it.
#[test]
fn estimates_are_near_what_models_take() {
    const MODEL: &str = "YOLODETECT_TEST_MODEL";
    let name = "estimates_are_near_what_models_take";
    let Some(model) = env::var_os(MODEL).map(std::path::PathBuf::from) else {
        let own = [
            "models/tiny/v8.onnx",
            "models/yolo12n.onnx",
            "models/variants/f16.onnx",
            "models/variants/v5.onnx",
        ];
        let further =
            ["yolox_nano_coco_416_b1", "yolov5n_coco_640_b1", "yolo11n-seg_shape", "yolo11n-pose_shape"];
        let further = further.iter().filter_map(|file| common::shared(name, &format!("models/{file}.onnx")));
        let large = common::shared(name, "models/yolo11l_shape.onnx");
        for model in own.map(asset).into_iter().chain(further).chain(large) {
            in_own_process_with(name, &[(MODEL, model.to_str().unwrap())]);
        }
        return;
    };
    common::init();
    let thought = Estimate::of_file(&model).need(1, 1);
    let wanted = Wanted {
        model: model.clone(),
        library: None,
        head: None,
        device: gstyolodetect::engine::device::Device::Cpu,
        gpu: Default::default(),
        fallback: None,
        gpu_budget: 0,
        element: String::new(),
        threads: 2,
        hint: Hint::Latency,
        detectors: 1,
        max_batch: 1,
        keep_alive: Default::default(),
        cache: None,
    };
    // Once without counting: the library itself.
    gstyolodetect::engine::runtime::environment(None).unwrap();
    let before = memory::resident_bytes();
    let lease = registry::get(&wanted).unwrap();
    let held = lease.engine().stats().held;
    let grew = peak().saturating_sub(before);
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    println!(
        "{:24} file {:6.1}  model {:6.1}  arena {:6.1}  peak {:6.1}  estimate {:6.1} = {:.1} + {:.1}",
        model.file_stem().unwrap().to_string_lossy(),
        megabytes(std::fs::metadata(&model).unwrap().len()),
        megabytes(held.model),
        megabytes(held.arena),
        megabytes(grew),
        megabytes(thought.model + thought.arena),
        megabytes(thought.model),
        megabytes(thought.arena),
    );
    let (thought, took) = (thought.model + thought.arena, held.model + held.arena);
    assert!(thought + 5 * MB >= took * 3 / 4, "too little: {thought} of {took}");
    assert!(thought <= took * 5 / 4 + 15 * MB, "too much: {thought} of {took}");
    assert!(grew <= thought.max(took) * 5 / 4 + 15 * MB, "the peak was {grew}");
}
