//! `device=cuda` and `device=tensorrt` on a machine without a GPU: everything of the product is real, ONNX Runtime computes on the
//! processor what it would on a GPU, and the GPU's memory is the host's (`tests/stand_ins/onnxruntime.rs`, `tests/data/cuda_stand_in.c`).

#[path = "common/boxes.rs"]
mod boxes;
mod common;
#[path = "common/cuda_driver.rs"]
mod cuda_driver;
#[path = "common/gpu.rs"]
mod gpu;
#[path = "common/stress.rs"]
mod stress;

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use boxes::{compare_all, every_layout_finds_the_same, pictures_keep_their_own_boxes, references};
use common::{Detect, PATIENCE, asset, solid, tiny, watch, yolo12n};
use cuda_driver::{Balance, balance};
use gpu::{control, forget, log, logged, on_gpu, scratch};
use gst::prelude::*;
use gstyolodetect::batch::Ledger;
use gstyolodetect::engine::device::Device;
use gstyolodetect::engine::gpu::{ConvSearch, Options};
use gstyolodetect::engine::onnx::{OnnxEngine, SessionOptions};
use gstyolodetect::engine::plan::Plan;
use gstyolodetect::engine::{Engine, EngineError, EngineErrorKind};
use gstyolodetect::memory::budget::{Consumer, HOST};
use stress::{noise, run, stress};

/// As every engine on a GPU has them.
const PLAN: Plan = Plan { callers: 2, threads: 1 };

fn options(model: PathBuf, device: Device) -> SessionOptions {
    common::init();
    SessionOptions {
        model,
        library: None,
        head: None,
        device,
        plan: PLAN,
        gpu: Options::default(),
        gpu_limit: None,
        tensorrt_cache: None,
    }
}

/// A small model of any batch, on the GPU.
fn tiny_options() -> SessionOptions {
    options(tiny("v8_dynamic_batch").into(), Device::Cuda(0))
}

fn load(options: &SessionOptions, max_batch: usize) -> Result<OnnxEngine, EngineError> {
    OnnxEngine::load(options, max_batch, &mut Ledger::new(&HOST, ""))
}

/// The number of frames of each run with bound tensors so far.
fn bound() -> Vec<usize> {
    logged("bound ").iter().map(|frames| frames.parse().unwrap()).collect()
}

#[test]
fn yolo12n_finds_what_onnxruntime_finds() {
    let test = "yolo12n_finds_what_onnxruntime_finds";
    let Some(references) = references(test, 70, "yolo12n_coco_640_b1") else { return };
    if on_gpu(test) {
        compare_all("yolo12n", &yolo12n(), "device=cuda", 70, &references);
        assert!(bound().len() > 20, "it ran on the GPU");
        assert_eq!(balance(), Balance::default());
    }
}

/// Those with 16 bits and with an open batch too.
#[test]
fn every_layout_of_one_network_finds_the_same_on_a_gpu() {
    if on_gpu("every_layout_of_one_network_finds_the_same_on_a_gpu") {
        every_layout_finds_the_same("device=cuda");
        assert_eq!(balance(), Balance::default());
    }
}

#[test]
fn pictures_that_run_together_keep_their_own_boxes_on_a_gpu() {
    if on_gpu("pictures_that_run_together_keep_their_own_boxes_on_a_gpu") {
        pictures_keep_their_own_boxes("device=cuda");
        assert!(bound().contains(&4), "{:?}", bound());
    }
}

#[test]
fn the_active_device_is_the_gpu_and_its_number_counts() {
    if !on_gpu("the_active_device_is_the_gpu_and_its_number_counts") {
        return;
    }
    cuda_driver::control("count=2");
    for (device, active) in [("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("tensorrt:1", "tensorrt:1")] {
        let mut detect = Detect::new(&format!("model-file={} device={device}", tiny("v8")));
        assert_eq!(detect.step(&solid(64, 64, [200, 100, 150])).boxes.len(), 1);
        let found: Option<String> = detect.element().property("active-device");
        assert_eq!(found.as_deref(), Some(active));
    }
    assert_eq!(logged("cuda device_id="), ["0", "1", "1"]);
    assert_eq!(logged("tensorrt device_id="), ["1"]);
    assert_eq!(balance(), Balance::default());
}

/// Every frame of every stream once, in order, with its own box; and while that goes on, nothing is allocated on the GPU.
#[test]
fn eight_streams_share_one_session_and_allocate_nothing() {
    if !on_gpu("eight_streams_share_one_session_and_allocate_nothing") {
        return;
    }
    let properties =
        format!("model-file={} device=cuda max-batch=8 max-in-flight=8", tiny("v8_dynamic_batch"));
    let mut streams: Vec<_> = (0..8).map(|_| Detect::new(&properties)).collect();
    let (started, frames) = (std::sync::Barrier::new(8), 60);
    let red = |stream: usize, frame: usize| 100 + (stream * 17 + frame * 5) as u8 % 150;
    let loaded = std::sync::OnceLock::new();
    thread::scope(|scope| {
        for (number, stream) in streams.iter_mut().enumerate() {
            let (started, loaded) = (&started, &loaded);
            scope.spawn(move || {
                stream.step(&solid(64, 64, [255, 0, 0]));
                started.wait();
                loaded.get_or_init(balance);
                for frame in 0..frames {
                    stream.push(&solid(64, 64, [red(number, frame), 0, 0]));
                }
                let found: Vec<_> =
                    (0..frames).map(|_| (stream.pull().only().confidence * 255.0).round() as u8).collect();
                let expected: Vec<_> = (0..frames).map(|frame| red(number, frame)).collect();
                assert_eq!(found, expected, "stream {number}");
            });
        }
    });
    assert_eq!(logged("session").len(), 1, "one session for all");
    assert!(logged("two at once").is_empty());
    let (before, after) = (loaded.get().unwrap(), balance());
    // Tensors are pinned when they first run.
    assert_eq!(Balance { pins: 0, ..*before }, Balance { pins: 0, ..after });
    assert!((1..=4).contains(&after.pins), "{after:?}");
    drop(streams);
    assert_eq!(balance(), Balance::default());
}

#[test]
fn providers_are_set_up_as_promised() {
    if !on_gpu("providers_are_set_up_as_promised") {
        return;
    }
    load(&tiny_options(), 1).unwrap();
    let mut expected = [
        "device_id=0",
        "arena_extend_strategy=kSameAsRequested",
        "cudnn_conv_algo_search=HEURISTIC",
        "cudnn_conv_use_max_workspace=0",
        "enable_cuda_graph=0",
    ];
    expected.sort_unstable();
    let mut found = logged("cuda ");
    found.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(logged("append "), ["cuda"]);
    for (search, name) in [(ConvSearch::Exhaustive, "EXHAUSTIVE"), (ConvSearch::Default, "DEFAULT")] {
        forget();
        let gpu = Options { conv_search: search, max_workspace: true, tf32: false, graph: true };
        load(&SessionOptions { gpu, gpu_limit: Some(700 << 20), ..tiny_options() }, 1).unwrap();
        let found = logged("cuda ");
        for option in [
            &format!("cudnn_conv_algo_search={name}"),
            "cudnn_conv_use_max_workspace=1",
            "use_tf32=0",
            "enable_cuda_graph=1",
            "gpu_mem_limit=734003200",
        ] {
            assert!(found.iter().any(|found| found == option), "no {option} in {found:?}");
        }
    }
}

#[test]
fn tensorrt_comes_before_cuda_and_keeps_what_it_compiles() {
    if !on_gpu("tensorrt_comes_before_cuda_and_keeps_what_it_compiles") {
        return;
    }
    let folder = scratch().join("tensorrt");
    let options = SessionOptions {
        device: Device::TensorRt(0),
        gpu_limit: Some(1 << 30),
        tensorrt_cache: Some(folder.clone()),
        ..tiny_options()
    };
    load(&options, 8).unwrap();
    assert!(folder.is_dir());
    assert_eq!(logged("append "), ["tensorrt", "cuda"]);
    let folder = folder.display();
    let mut expected = [
        "device_id=0".to_string(),
        "trt_max_workspace_size=1073741824".into(),
        "trt_engine_cache_enable=1".into(),
        format!("trt_engine_cache_path={folder}"),
        "trt_timing_cache_enable=1".into(),
        format!("trt_timing_cache_path={folder}"),
        "trt_profile_min_shapes=images:1x3x64x64".into(),
        "trt_profile_opt_shapes=images:8x3x64x64".into(),
        "trt_profile_max_shapes=images:8x3x64x64".into(),
    ];
    expected.sort_unstable();
    let mut found = logged("tensorrt ");
    found.sort_unstable();
    assert_eq!(found, expected);
    // More than it was compiled for at once would have it compile anew.
    let small = load(&options, 2).unwrap();
    let error = small.run(&mut noise(&small, 4, 1), 0..4, &mut |_| ()).unwrap_err();
    assert!(error.kind == EngineErrorKind::OutOfMemory && error.detail.contains("up to 2"), "{error}");
    assert_eq!(run(&small, &mut noise(&small, 2, 1), 0..2).len(), 2 * small.spec().output.len);
    drop(small);
    // It would replay one graph for all sizes.
    let gpu = Options { graph: true, ..Options::default() };
    let error = load(&SessionOptions { gpu, ..options.clone() }, 2).err().unwrap();
    assert_eq!(error.kind, EngineErrorKind::Settings, "{error}");
    assert!(error.message.contains("cuda-graph=true is not for device=tensorrt:0"), "{error}");
    forget();
    // One size is all that there is.
    let fixed = SessionOptions { model: tiny("fixed_batch4").into(), tensorrt_cache: None, ..options };
    load(&fixed, 8).unwrap();
    assert!(logged("tensorrt trt_profile").is_empty() && logged("tensorrt trt_engine").is_empty());
}

#[test]
fn all_sizes_are_warmed_on_each_lane_the_largest_first() {
    if !on_gpu("all_sizes_are_warmed_on_each_lane_the_largest_first") {
        return;
    }
    for (max_batch, warmed) in [(8, &[8, 4, 2, 1][..]), (6, &[6, 4, 2, 1]), (1, &[1])] {
        forget();
        let engine = load(&tiny_options(), max_batch).unwrap();
        let runs: Vec<_> = log().into_iter().filter(|line| !line.starts_with("cuda ")).collect();
        assert_eq!(runs[..4], ["append cuda", "session", "shrink cpu:0;gpu:0", "plain 1"], "{runs:?}");
        // And once more one frame, to see how long that takes.
        assert_eq!(bound(), [warmed, warmed, &[1]].concat());
        let (input, output) = (engine.spec().input.bytes(), engine.spec().output.bytes());
        let gpu = engine.gpu_bytes().unwrap();
        assert_eq!(gpu.tensors, (2 * max_batch * (input + output)) as u64);
        assert_eq!((gpu.model, gpu.arena), (0, 0), "the stand-in's are on the host");
        let held = balance();
        assert_eq!((held.allocations, held.pinned, held.streams), (4, 2, 2));
        for frames in [1, 8, 3, 4].into_iter().filter(|&frames| frames <= max_batch) {
            run(&engine, &mut noise(&engine, frames, 1), 0..frames);
        }
        assert_eq!(Balance { pins: 0, ..balance() }, held);
        drop(engine);
        assert_eq!(balance(), Balance::default());
    }
    forget();
    drop(load(&options(tiny("fixed_batch4").into(), Device::Cuda(0)), 8).unwrap());
    assert_eq!(bound(), [4, 4, 4]);
    assert_eq!(balance(), Balance::default());
}

#[test]
fn callers_at_the_same_time_get_what_each_gets_alone() {
    if !on_gpu("callers_at_the_same_time_get_what_each_gets_alone") {
        return;
    }
    let engine = load(&tiny_options(), 4).unwrap();
    stress(&engine, 31, 4, 3_000);
    drop(engine);
    // Batches come that are larger than any before.
    stress(&load(&tiny_options(), 1).unwrap(), 31, 6, 200);
    let model = asset("models/variants/dynamic_batch.onnx");
    stress(&load(&options(model, Device::Cuda(0)), 2).unwrap(), 3, 2, 4);
    assert!(logged("two at once").is_empty(), "one run computes at a time");
    assert_eq!(balance(), Balance::default());
}

/// Waits for what other threads do, and no longer than for a hang to be told.
fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_next_batch_is_copied_while_one_computes() {
    if !on_gpu("the_next_batch_is_copied_while_one_computes") {
        return;
    }
    let engine = load(&tiny_options(), 2).unwrap();
    let alone = [1, 2].map(|seed| run(&engine, &mut noise(&engine, 2, seed), 0..2));
    forget();
    control("held=1");
    thread::scope(|scope| {
        let caller = |seed: u64| {
            let engine = &engine;
            scope.spawn(move || run(engine, &mut noise(engine, 2, seed), 0..2))
        };
        let first = caller(1);
        until("a run begins", || bound().len() == 1);
        assert_eq!(balance().pins, 1);
        let second = caller(2);
        // That is where its copy begins.
        until("the next one's memory is pinned", || balance().pins == 2);
        assert_eq!(bound().len(), 1, "it does not compute yet");
        control("");
        assert_eq!([first.join().unwrap(), second.join().unwrap()], alone);
    });
    assert_eq!(bound().len(), 2);
}

#[test]
fn one_batch_is_decoded_while_the_next_computes() {
    if !on_gpu("one_batch_is_decoded_while_the_next_computes") {
        return;
    }
    let engine = load(&tiny_options(), 2).unwrap();
    let (ran, other) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        engine
            .run(&mut noise(&engine, 2, 1), 0..2, &mut |output| {
                let (ran, engine) = (ran.clone(), &engine);
                scope.spawn(move || {
                    ran.send(run(engine, &mut noise(engine, 1, 2), 0..1)).unwrap();
                });
                let other = other.recv_timeout(PATIENCE).expect("a run beside the decoding of another");
                assert_eq!(other.len(), output.frame_len);
            })
            .unwrap();
    });
}

#[test]
fn frames_in_the_middle_of_a_batch_run_like_others() {
    if !on_gpu("frames_in_the_middle_of_a_batch_run_like_others") {
        return;
    }
    let engine = load(&tiny_options(), 8).unwrap();
    let expected = run(&engine, &mut noise(&engine, 7, 1), 0..7);
    let frame = expected.len() / 7;
    for parts in [&[0..4, 4..6, 6..7][..], &[2..4, 0..2, 4..7]] {
        let mut batch = noise(&engine, 7, 1);
        for part in parts {
            let found = run(&engine, &mut batch, part.clone());
            assert!(found == expected[part.start * frame..part.end * frame], "{part:?} of {parts:?}");
        }
    }
}

/// As with a model whose first layer only the processor has.
#[test]
fn each_run_sees_its_own_frames_where_the_processor_reads_them_first() {
    if !on_gpu("each_run_sees_its_own_frames_where_the_processor_reads_them_first") {
        return;
    }
    let found = || {
        let engine = load(&tiny_options(), 2).unwrap();
        [1, 2, 3].map(|seed| run(&engine, &mut noise(&engine, 2, seed), 0..2))
    };
    let expected = found();
    assert_ne!(expected[0], expected[1]);
    control("copies=1");
    assert!(found() == expected);
}

#[test]
fn a_tensor_is_pinned_once_and_runs_all_the_same_where_it_cannot_be() {
    if !on_gpu("a_tensor_is_pinned_once_and_runs_all_the_same_where_it_cannot_be") {
        return;
    }
    let engine = load(&tiny_options(), 2).unwrap();
    let mut batch = noise(&engine, 2, 1);
    let expected = run(&engine, &mut batch, 0..2);
    assert_eq!(balance().pins, 1);
    assert_eq!(run(&engine, &mut batch, 0..2), expected);
    assert_eq!(balance().pins, 1);
    cuda_driver::control("cuMemHostRegister_v2=801");
    let mut other = noise(&engine, 2, 1);
    assert_eq!(run(&engine, &mut other, 0..2), expected);
    assert_eq!(balance().pins, 1);
    drop((batch, engine));
    assert_eq!(balance(), Balance::default());
}

#[test]
fn a_batch_beyond_the_gpu_s_memory_is_run_in_parts() {
    if !on_gpu("a_batch_beyond_the_gpu_s_memory_is_run_in_parts") {
        return;
    }
    let mut detect = Detect::new(&format!(
        "model-file={} device=cuda max-batch=8 max-in-flight=32 batch-delay=5000000000",
        tiny("v8_dynamic_batch")
    ));
    detect.pipeline.0.set_state(gst::State::Paused).unwrap();
    let posted = watch(&detect.pipeline);
    // The load has found room for eight.
    detect.push(&solid(64, 64, [100, 0, 0]));
    common::within_patience("the load", || {
        while !bound().contains(&8) {
            thread::yield_now();
        }
    });
    control("frames=4");
    for frame in 1..40 {
        detect.push(&solid(64, 64, [100 + frame, 0, 0]));
    }
    let out = detect.finish().unwrap();
    for (number, frame) in out.iter().enumerate() {
        let red = (frame.only().confidence * 255.0).round();
        assert_eq!((frame.status.as_str(), red), ("inferred", 100.0 + number as f64));
    }
    let told = posted.lock().reduced.clone();
    // Both lanes may have been about to run eight.
    assert!(matches!(&told[..], [(8, 4)] | [(8, 4), (8, 4)]), "{told:?}");
    drop(detect);
    assert_eq!(balance(), Balance::default());
}

#[test]
fn a_load_takes_as_large_a_batch_as_there_is_room_for() {
    if !on_gpu("a_load_takes_as_large_a_batch_as_there_is_room_for") {
        return;
    }
    control("frames=3");
    let engine = load(&tiny_options(), 8).unwrap();
    assert_eq!(bound(), [2, 1, 2, 1, 1]);
    assert_eq!(run(&engine, &mut noise(&engine, 2, 1), 0..2).len(), 2 * engine.spec().output.len);
    assert_eq!(balance().allocations, 4, "nothing is left of what was tried");
    drop(engine);
    // The GPU has no room for the tensors themselves.
    control("");
    forget();
    cuda_driver::control("limit=300000");
    let engine = load(&tiny_options(), 8).unwrap();
    assert!(bound()[0] < 8, "{:?}", bound());
    drop(engine);
    cuda_driver::control("limit=1000");
    let error = load(&tiny_options(), 8).err().unwrap();
    assert_eq!(error.kind, EngineErrorKind::OutOfMemory, "{error}");
    assert_eq!(balance(), Balance::default());
}

#[test]
fn failures_say_what_they_are() {
    if !on_gpu("failures_say_what_they_are") {
        return;
    }
    for (text, kind, words) in [
        ("session=1", EngineErrorKind::OutOfMemory, "gpu-memory-budget"),
        ("session=2", EngineErrorKind::ModelUnsupported, "cannot be used"),
        ("provider=1", EngineErrorKind::Library, "libcublasLt.so.13"),
        ("lost=700", EngineErrorKind::DeviceLost, "device=cuda:0 does not work"),
        ("frames=0", EngineErrorKind::OutOfMemory, "ran out of memory"),
    ] {
        control(text);
        let error = load(&tiny_options(), 8).err().unwrap_or_else(|| panic!("no error with {text}"));
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.to_string().contains(words), "`{words}` is not in: {error}");
        assert_eq!(balance(), Balance::default(), "{text}");
    }
    // That says as little of a GPU that is full as of one that does not work.
    control("session=3");
    for (driver, kind) in
        [("", EngineErrorKind::ModelUnsupported), ("others=8000000000", EngineErrorKind::OutOfMemory)]
    {
        cuda_driver::control(driver);
        let error = load(&tiny_options(), 8).err().unwrap();
        assert_eq!(error.kind, kind, "{error}");
        assert_eq!(balance(), Balance::default());
    }
    cuda_driver::control("");
    control("");
    let engine = load(&tiny_options(), 8).unwrap();
    let mut batch = noise(&engine, 8, 1);
    let mut kind = |text: &str, driver: &str| {
        control(text);
        cuda_driver::control(driver);
        let outcome = engine.run(&mut batch, 0..8, &mut |_| panic!("nothing came out"));
        outcome.map_err(|error| error.kind).unwrap_err()
    };
    assert_eq!(kind("failing=1", ""), EngineErrorKind::OutOfMemory);
    assert_eq!(kind("lost=719", ""), EngineErrorKind::DeviceLost);
    assert_eq!(kind("", "cuMemcpyHtoDAsync_v2=700"), EngineErrorKind::DeviceLost);
    assert_eq!(kind("", "cuMemcpyDtoHAsync_v2=2"), EngineErrorKind::OutOfMemory);
    assert_eq!(kind("", "cuMemcpyDtoHAsync_v2=1"), EngineErrorKind::Run);
    cuda_driver::control("");
    assert_eq!(run(&engine, &mut batch, 0..8).len(), 8 * engine.spec().output.len, "and all is well again");
}

#[test]
fn a_run_that_shrinks_names_both_arenas_and_finds_the_same() {
    if !on_gpu("a_run_that_shrinks_names_both_arenas_and_finds_the_same") {
        return;
    }
    let engine = load(&tiny_options(), 2).unwrap();
    let mut batch = noise(&engine, 2, 1);
    let expected = run(&engine, &mut batch, 0..2);
    forget();
    let mut shrink = || engine.run_and_shrink(&mut batch, 0..2, &mut |_| ()).unwrap();
    assert_eq!(shrink(), Some(0), "the stand-in has no arena on the GPU");
    assert_eq!(logged("shrink "), ["cpu:0;gpu:0"]);
    control("failing=1");
    let error = engine.run_and_shrink(&mut noise(&engine, 2, 1), 0..2, &mut |_| ()).unwrap_err();
    assert_eq!(error.kind, EngineErrorKind::OutOfMemory);
    assert_eq!(shrink(), Some(0), "the next one shrinks all the same");
    control("arena=0");
    assert_eq!([shrink(), shrink()], [None, None]);
    assert_eq!(run(&engine, &mut batch, 0..2), expected);
    // Nor is a load held up by that.
    load(&tiny_options(), 2).unwrap();
}

/// A recorded run is replayed with the addresses that it was recorded with, by the thread that recorded it.
#[test]
fn recorded_runs_have_numbers_of_their_own_and_nothing_is_shrunk() {
    if !on_gpu("recorded_runs_have_numbers_of_their_own_and_nothing_is_shrunk") {
        return;
    }
    let gpu = Options { graph: true, ..Options::default() };
    let engine = load(&SessionOptions { gpu, ..tiny_options() }, 2).unwrap();
    let warmed = logged("run gpu_graph_id=");
    assert_eq!(warmed, ["-1"; 6], "the probe, two sizes on two lanes, and the timed run");
    assert_eq!(logged("shrink "), [""; 0]);
    forget();
    let runs = |engine: &OnnxEngine| {
        forget();
        for frames in [1, 2, 1, 2] {
            run(engine, &mut noise(engine, frames, 1), 0..frames);
        }
        let numbers = logged("run gpu_graph_id=");
        assert_eq!(numbers[..2], numbers[2..], "a thread has one lane");
        assert_ne!(numbers[0], numbers[1], "another size is another graph");
        numbers
    };
    let numbers = [(); 2].map(|()| thread::scope(|scope| scope.spawn(|| runs(&engine)).join().unwrap()));
    assert!(numbers[0].iter().all(|number| number != "-1" && !numbers[1].contains(number)), "{numbers:?}");
    assert_eq!(engine.run_and_shrink(&mut noise(&engine, 1, 1), 0..1, &mut |_| ()).unwrap(), None);
    assert_eq!(logged("shrink "), [""; 0]);
}

#[test]
fn an_onnxruntime_that_keeps_one_graph_in_all_records_none() {
    if !on_gpu("an_onnxruntime_that_keeps_one_graph_in_all_records_none") {
        return;
    }
    control("minor=17");
    load(&tiny_options(), 1).unwrap();
    let gpu = Options { graph: true, ..Options::default() };
    let error = load(&SessionOptions { gpu, ..tiny_options() }, 1).err().unwrap();
    assert_eq!(error.kind, EngineErrorKind::Settings, "{error}");
    for words in ["cuda-graph=true", "1.18", "1.17.0"] {
        assert!(error.message.contains(words), "`{words}` is not in: {error}");
    }
}

#[test]
fn an_onnxruntime_that_does_not_know_tf32_is_told() {
    if !on_gpu("an_onnxruntime_that_does_not_know_tf32_is_told") {
        return;
    }
    control("minor=17");
    let gpu = Options { tf32: false, ..Options::default() };
    let error = load(&SessionOptions { gpu, ..tiny_options() }, 1).err().unwrap();
    assert_eq!(error.kind, EngineErrorKind::Settings, "{error}");
    assert!(error.message.contains("cuda-tf32=false needs") && error.detail.contains("use_tf32"), "{error}");
}

/// ONNX Runtime ends the process when it is to free what a session has there.
#[test]
fn a_session_is_neither_ended_nor_begun_on_a_gpu_that_is_lost() {
    if !on_gpu("a_session_is_neither_ended_nor_begun_on_a_gpu_that_is_lost") {
        return;
    }
    let drivers = ["", "lost=700", "cuMemGetInfo_v2=700", "cuMemGetInfo_v2=1"];
    for (graph, driver) in [true, false].into_iter().flat_map(|graph| drivers.map(|driver| (graph, driver))) {
        let gpu = Options { graph, ..Options::default() };
        let options = SessionOptions { gpu, ..tiny_options() };
        let engine = load(&options, 1).unwrap();
        run(&engine, &mut noise(&engine, 1, 1), 0..1);
        forget();
        cuda_driver::control(driver);
        drop(engine);
        let ends = logged("end of a session").len();
        if driver.is_empty() {
            assert_eq!(ends, 1);
            continue;
        }
        let error = load(&options, 1).err().unwrap();
        assert_eq!(error.kind, EngineErrorKind::DeviceLost, "{error}");
        assert!(error.message.contains("does not work any more"), "{error}");
        assert_eq!((ends, logged("session").len()), (0, 0), "{gpu:?}, {driver}");
        cuda_driver::control("");
    }
}

#[test]
fn a_load_in_which_the_gpu_is_lost_is_an_error_and_no_more() {
    if !on_gpu("a_load_in_which_the_gpu_is_lost_is_an_error_and_no_more") {
        return;
    }
    control("held=1");
    thread::scope(|scope| {
        let load = scope.spawn(|| load(&tiny_options(), 1).err().unwrap());
        until("a run that warms it up", || !bound().is_empty());
        cuda_driver::control("lost=700");
        control("");
        let error = load.join().unwrap();
        assert_eq!(error.kind, EngineErrorKind::DeviceLost, "{error}");
        assert!(logged("end of a session").is_empty());
    });
}

#[test]
fn the_host_s_part_of_an_engine_grows_by_its_pinned_outputs() {
    if !on_gpu("the_host_s_part_of_an_engine_grows_by_its_pinned_outputs") {
        return;
    }
    let output = load(&tiny_options(), 1).unwrap().spec().output.bytes() as u64;
    let start = |frames: u64| {
        let model = tiny("v8_dynamic_batch");
        let mut detect = Detect::new(&format!("model-file={model} device=cuda max-batch={frames}"));
        detect.step(&solid(64, 64, [255, 0, 0]));
        assert_eq!(HOST.reserved_for(Consumer::Arena), frames * PLAN.callers as u64 * output);
        detect
    };
    let _both = [1, 4].map(start);
}

/// As beside a decoder that uses CUDA in the same process.
#[test]
fn a_run_that_cannot_be_recorded_runs_as_without_and_is_tried_once_more() {
    if !on_gpu("a_run_that_cannot_be_recorded_runs_as_without_and_is_tried_once_more") {
        return;
    }
    let gpu = Options { graph: true, ..Options::default() };
    let options = SessionOptions { gpu, ..tiny_options() };
    let once = |engine: &OnnxEngine, frames| run(engine, &mut noise(engine, frames, 1), 0..frames);
    let expected = once(&load(&tiny_options(), 2).unwrap(), 1);
    // How many attempts fail, and for each run whether it was tried to record it, and whether it ran as without.
    for (spoilt, expected_runs) in [
        (0, [(true, false), (true, false), (true, false)]),
        (1, [(true, true), (true, false), (true, false)]),
        (9, [(true, true), (true, true), (false, true)]),
    ] {
        let engine = load(&options, 2).unwrap();
        control(&format!("spoilt={spoilt}"));
        for (tried, as_without) in expected_runs {
            forget();
            assert_eq!(once(&engine, 1), expected);
            let numbers = logged("run gpu_graph_id=");
            let found = |wanted: bool| numbers.iter().any(|number| (number != "-1") == wanted);
            assert_eq!((found(true), found(false)), (tried, as_without), "{numbers:?}");
        }
        // Another size has attempts of its own.
        control("");
        forget();
        once(&engine, 2);
        assert_ne!(logged("run gpu_graph_id="), ["-1"]);
    }
    // What is wrong otherwise is no matter of recording.
    let engine = load(&options, 1).unwrap();
    for (text, kind) in
        [("failing=1", EngineErrorKind::OutOfMemory), ("lost=700", EngineErrorKind::DeviceLost)]
    {
        control(text);
        forget();
        let error = engine.run(&mut noise(&engine, 1, 1), 0..1, &mut |_| ()).unwrap_err();
        assert_eq!((error.kind, bound().len()), (kind, 0));
    }
}

/// What one does there spoils what the other records, so that waits for a run that is alone.
#[test]
fn a_run_is_recorded_when_no_other_engine_uses_a_gpu() {
    if !on_gpu("a_run_is_recorded_when_no_other_engine_uses_a_gpu") {
        return;
    }
    let gpu = Options { graph: true, ..Options::default() };
    let other = load(&tiny_options(), 1).unwrap();
    let engine = load(&SessionOptions { gpu, ..tiny_options() }, 1).unwrap();
    let expected = run(&other, &mut noise(&other, 1, 1), 0..1);
    forget();
    control("held=1");
    thread::scope(|scope| {
        let run = |engine| scope.spawn(move || run(engine, &mut noise(engine, 1, 1), 0..1));
        let first = run(&other);
        until("a run begins", || bound().len() == 1);
        let second = run(&engine);
        until("and another", || bound().len() == 2);
        assert_eq!(logged("run gpu_graph_id="), ["-1"]);
        control("");
        assert!([first.join().unwrap(), second.join().unwrap()].iter().all(|found| *found == expected));
    });
    forget();
    assert_eq!(run(&engine, &mut noise(&engine, 1, 1), 0..1), expected);
    let numbers = logged("run gpu_graph_id=");
    assert!(matches!(&numbers[..], [number] if number != "-1"), "{numbers:?}");
}
