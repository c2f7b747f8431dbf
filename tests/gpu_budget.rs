//! What an engine takes of a GPU, within `gpu-memory-budget` and beyond, as an application sees it. All of NVIDIA's is stand-ins, so each
//! test runs in a process of its own.

mod common;
#[path = "common/cuda_driver.rs"]
mod cuda_driver;
#[path = "common/gpu.rs"]
mod gpu;
#[path = "common/streams.rs"]
mod streams;

use std::fs;

use common::{memory_is_calm, own_tiny, tiny};
use cuda_driver::{Balance, balance};
use gpu::{forget, logged, nvml_control, on_gpu_with};
use gst::prelude::*;
use streams::Streams;

/// What CUDA's context takes.
const CONTEXT: u64 = 300 << 20;
const TOTAL: u64 = 8 << 30;
/// Input of one frame, and what is thought of its output before the load.
const FRAME: u64 = 2 * 3 * 64 * 64 * 4;
/// Batches that have tensors on the GPU.
const LANES: u64 = 2;

fn model() -> String {
    tiny("v8_dynamic_batch")
}

fn weights() -> u64 {
    fs::metadata(model()).unwrap().len()
}

/// A budget with room for so many frames in a batch, and half of one more for each lane.
fn room_for(frames: u64) -> u64 {
    CONTEXT + weights() + LANES * frames * FRAME + FRAME
}

/// True in the child, which is beside all of NVIDIA's libraries.
fn on_measured_gpu(test: &str) -> bool {
    let is_child = on_gpu_with(test, &[], |folder| drop(folder.nvml()));
    if is_child {
        nvml_control(&format!("total={TOTAL}\ncontext={CONTEXT}"));
    }
    is_child
}

fn all_is_given_back() {
    assert_eq!(balance(), Balance::default());
}

/// The most frames of a run with bound tensors so far.
fn largest_run() -> u64 {
    logged("bound ").iter().map(|frames| frames.parse().unwrap()).max().unwrap_or(0)
}

/// Of the statistics: total, context, model, arena, tensors.
fn gpu_bytes(streams: &Streams) -> [u64; 5] {
    let engine = streams.engine(0);
    let parts: gst::Structure = engine.get("gpu").unwrap();
    let [context, model, arena, tensors] =
        ["context", "model", "arena", "tensors"].map(|part| parts.get::<u64>(part).unwrap());
    [engine.get("gpu-bytes").unwrap(), context, model, arena, tensors]
}

#[test]
fn a_budget_too_small_for_eight_frames_makes_batches_smaller_from_the_first_on() {
    if !on_measured_gpu("a_budget_too_small_for_eight_frames_makes_batches_smaller_from_the_first_on") {
        return;
    }
    for (frames, limit) in [(4, 4u32), (7, 4), (1, 1)] {
        forget();
        let budget = room_for(frames);
        let all = format!("device=cuda gpu-memory-budget={budget}");
        let mut streams = Streams::playing(&model(), &[&all, &all]);
        streams.infer(1);
        let posted = streams.posted();
        assert!(!posted.reduced.is_empty(), "it is told with the first batch");
        streams.infer(40);
        streams.finish();
        let posted = streams.posted();
        assert_eq!(posted.reduced[0], (8, limit));
        // More is tried now and then.
        assert!(posted.reduced.iter().all(|(_, got)| *got == limit), "{:?}", posted.reduced);
        assert!(posted.warnings.is_empty() && posted.errors.is_empty(), "{:?}", posted.warnings);
        assert_eq!(streams.engine(0).get("batch-limit"), Ok(limit));
        assert_eq!(largest_run(), u64::from(limit));
        let [total, context, model, arena, tensors] = gpu_bytes(&streams);
        assert_eq!((context, total), (CONTEXT, context + model + arena + tensors));
        assert!(tensors > 0 && total <= budget, "{total} of {budget}");
        assert_eq!(tensors, balance().bytes as u64);
        drop(streams);
        all_is_given_back();
    }
}

/// The number of megabytes behind `name` in a message.
fn megabytes(text: &str, name: &str) -> f64 {
    let (_, rest) = text.split_once(name).unwrap_or_else(|| panic!("no `{name}` in: {text}"));
    rest.trim_start().split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_budget_too_small_for_one_frame_is_an_error_with_the_sum() {
    if !on_measured_gpu("a_budget_too_small_for_one_frame_is_an_error_with_the_sum") {
        return;
    }
    let budget = CONTEXT + weights() + FRAME;
    let set = format!("gpu-memory-budget={budget}");
    let streams = Streams::new(&model(), &[&format!("device=cuda {set}")]);
    let error = streams.start().unwrap_err();
    for words in
        [&set, "on GPU 0", "a single frame", "raise gpu-memory-budget", "device=cpu", "other engines"]
    {
        assert!(error.contains(words), "no `{words}` in: {error}");
    }
    let parts = ["(context", ", weights", ", arena", ", tensors"].map(|part| megabytes(&error, part));
    let wanted = megabytes(&error, "on GPU 0:");
    assert!((parts.iter().sum::<f64>() - wanted).abs() < 0.3, "{parts:?}: {error}");
    assert!(wanted > budget as f64 / 1e6, "{error}");
    assert!((parts[0] - CONTEXT as f64 / 1e6).abs() < 0.1 && parts[3] > 0.0, "{error}");
    all_is_given_back();
    // Where the CPU may do, that is why it does.
    let mut streams = Streams::playing(&model(), &[&set, &set]);
    streams.infer(5);
    assert_eq!(streams.active(1), "cpu");
    assert!(streams.posted().warning().contains(&set), "{}", streams.posted().warning());
    drop(streams);
    // And who raises the budget has the GPU at once.
    let mut streams = Streams::playing(&model(), &[&format!("gpu-memory-budget={}", room_for(8))]);
    streams.infer(5);
    assert_eq!(streams.active(0), "cuda:0");
    assert!(streams.posted().warnings.is_empty(), "{:?}", streams.posted().warnings);
    drop(streams);
    all_is_given_back();
}

#[test]
fn each_engine_has_what_the_others_leave() {
    if !on_measured_gpu("each_engine_has_what_the_others_leave") {
        return;
    }
    let budget = CONTEXT + 2 * weights() + LANES * 9 * FRAME;
    let all = format!("device=cuda gpu-memory-budget={budget}");
    let model = |number: usize| own_tiny("v8_dynamic_batch", &format!("gpu_budget_{number}"));
    let mut engines = vec![Streams::playing(&model(0), &[&all])];
    let error = loop {
        assert!(engines.len() < 10, "there is no end of room");
        let streams = Streams::new(&model(engines.len()), &[&all]);
        if let Err(error) = streams.start() {
            break error;
        }
        engines.push(streams);
    };
    assert!(error.contains("held by other engines") && megabytes(&error, ", and") > 0.0, "{error}");
    for _ in 0..2 {
        engines.iter_mut().for_each(|streams| streams.infer(20));
    }
    let largest: Vec<_> =
        engines.iter().map(|streams| streams.engine(0).get::<u32>("batch-limit").unwrap()).collect();
    assert!(
        largest.len() > 1 && largest[0] == 8 && largest.is_sorted_by(|one, next| one >= next),
        "{largest:?}"
    );
    assert!(largest.last() < Some(&8), "{largest:?}");
    assert!(engines[0].posted().reduced.is_empty());
    let own: u64 = engines.iter().map(|streams| gpu_bytes(streams)[0] - CONTEXT).sum();
    assert!(CONTEXT + own <= budget, "{own} and the context, of {budget}");
    for streams in &engines {
        assert_eq!(gpu_bytes(streams)[1], CONTEXT, "the process has one");
        assert!(streams.posted().warnings.is_empty() && streams.posted().errors.is_empty());
    }
    drop(engines);
    all_is_given_back();
}

#[test]
fn two_budgets_are_an_error_that_names_both() {
    if !on_measured_gpu("two_budgets_are_an_error_that_names_both") {
        return;
    }
    let [one, other] = [1_000_000_000u64, 2_000_000_000].map(|budget| format!("gpu-memory-budget={budget}"));
    let mut first = Streams::playing(&model(), &[&one]);
    for device in ["auto", "cuda", "tensorrt", "cuda:0 device-fallback=on"] {
        let error = Streams::new(&model(), &[&format!("device={device} {other}")]).start().unwrap_err();
        for words in [&one, &other, "of the whole process", "detect0"] {
            assert!(error.contains(words), "no `{words}` in: {error}");
        }
    }
    // Nobody else's business.
    let mut cpu = Streams::playing(&model(), &[&format!("device=cpu {other}")]);
    let mut same = Streams::playing(&model(), &[&one, ""]);
    for streams in [&mut first, &mut cpu, &mut same] {
        streams.infer(5);
        assert!(streams.posted().warnings.is_empty());
    }
    assert_eq!(same.active(0), "cuda:0");
    drop((first, same));
    let mut second = Streams::playing(&model(), &[&other]);
    second.infer(5);
    assert_eq!(second.active(0), "cuda:0");
    drop(second);
    all_is_given_back();
}

#[test]
fn without_a_budget_the_arena_has_four_fifths_of_the_card_less_the_rest() {
    if !on_measured_gpu("without_a_budget_the_arena_has_four_fifths_of_the_card_less_the_rest") {
        return;
    }
    let mut streams = Streams::playing(&model(), &["device=cuda"]);
    streams.infer(5);
    let limit = TOTAL / 5 * 4 - CONTEXT - LANES * 8 * FRAME;
    assert_eq!(logged("cuda gpu_mem_limit="), [limit.to_string()]);
    assert!(streams.posted().reduced.is_empty());
    assert_eq!(largest_run(), 8);
    drop(streams);
    all_is_given_back();
}

#[test]
fn on_a_gpu_that_others_have_filled_batches_are_smaller_until_they_leave() {
    if !on_measured_gpu("on_a_gpu_that_others_have_filled_batches_are_smaller_until_they_leave") {
        return;
    }
    let left = |bytes: u64| cuda_driver::control(&format!("others={}", TOTAL - CONTEXT - bytes));
    left(1000);
    let error = Streams::new(&model(), &["device=cuda"]).start().unwrap_err();
    for words in ["GPU 0", "were free of 8589.9 MB", "end what else uses it", "device=cpu"] {
        assert!(error.contains(words), "no `{words}` in: {error}");
    }
    all_is_given_back();
    left(LANES * 3 * FRAME);
    let mut streams = Streams::playing(&model(), &["device=cuda batch-delay=5000000000 max-in-flight=32"]);
    streams.infer(40);
    let posted = streams.posted();
    assert!(posted.warnings.is_empty() && posted.errors.is_empty(), "{:?}", posted.warnings);
    assert!(
        posted.reduced.iter().all(|(wanted, _)| *wanted == 8) && largest_run() < 8,
        "{:?}",
        posted.reduced
    );
    streams.finish();
    drop(streams);
    all_is_given_back();
}

#[test]
fn pressure_of_a_gpu_is_told_and_has_its_arena_shrunk() {
    let test = "pressure_of_a_gpu_is_told_and_has_its_arena_shrunk";
    if !memory_is_calm(test) || !on_measured_gpu(test) {
        return;
    }
    let holds = |bytes: u64| {
        let (total, process) = (64u64 << 30, std::process::id());
        nvml_control(&format!("count=1\ntotal={total}\npid={process}\nown_compute={bytes}"));
    };
    holds(500_000_000);
    let never = u64::MAX;
    let calm = format!("memory-warning={never} memory-critical={never} memory-emergency={never}");
    let properties = format!(
        "device=cuda {calm} gpu-memory-warning=1000000000 gpu-memory-critical=4000000000 pressure-interval=1000000"
    );
    let mut streams = Streams::playing(&model(), &[&properties]);
    streams.infer(5);
    forget();
    assert!(streams.posted().pressure.is_empty());
    holds(2_000_000_000);
    let posted = streams.until("pressure", |posted| !posted.pressure.is_empty());
    let told = &posted.pressure[0];
    let text = |field: &str| told.get::<String>(field).unwrap();
    assert_eq!((text("level").as_str(), text("source").as_str()), ("warning", "gpu:0"));
    assert_eq!(
        (told.get("used-bytes"), told.get("threshold-bytes")),
        (Ok(2_000_000_000u64), Ok(1_000_000_000u64))
    );
    let actions: gst::Structure = told.get("actions").unwrap();
    assert!(actions.has_field("shrink-arena"), "{told}");
    assert!(logged("shrink ").is_empty(), "nothing has run since then");
    streams.infer(5);
    assert_eq!(logged("shrink "), ["cpu:0;gpu:0"], "the next run, and no other");
    let memory: gst::Structure =
        streams.element(0).property::<gst::Structure>("stats").get("memory").unwrap();
    assert_eq!(memory.get("gpu-own"), Ok(2_000_000_000u64));
    streams.finish();
    drop(streams);
    all_is_given_back();
}
