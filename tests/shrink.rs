//! ONNX Runtime's arena, shrunk by a run: for real, in a process of its own since the resident set is the process's.

#[path = "common/arena.rs"]
mod arena;
mod common;

use common::in_own_process;
use gstyolodetect::batch::Ledger;
use gstyolodetect::decode::OutputRef;
use gstyolodetect::engine::device::Device;
use gstyolodetect::engine::onnx::{OnnxEngine, SessionOptions};
use gstyolodetect::engine::plan::Plan;
use gstyolodetect::engine::{Engine, Output};
use gstyolodetect::memory::budget::HOST;
use gstyolodetect::tensor::BatchTensor;

fn load(model: &str) -> OnnxEngine {
    common::init();
    let plan = Plan { callers: 1, threads: 2 };
    let options = SessionOptions {
        model: common::asset(model),
        library: None,
        head: None,
        device: Device::Cpu,
        plan,
        gpu: Default::default(),
        gpu_limit: None,
        tensorrt_cache: None,
    };
    OnnxEngine::load(&options, 1, &mut Ledger::new(&HOST, "")).unwrap()
}

/// What came out, and the bytes of a run that was to shrink.
fn run(engine: &OnnxEngine, batch: &mut BatchTensor, shrink: bool) -> (Vec<f32>, Option<u64>) {
    let (mut values, frames) = (Vec::new(), 0..batch.capacity());
    let mut read = |output: Output<'_>| match output.values {
        OutputRef::F32(found) => values.extend_from_slice(found),
        OutputRef::F16(_) => panic!("a model of 32 bits"),
    };
    let freed = match shrink {
        true => engine.run_and_shrink(batch, frames, &mut read).unwrap(),
        false => engine.run(batch, frames, &mut read).map(|()| None).unwrap(),
    };
    (values, freed)
}

fn pattern(engine: &OnnxEngine, frames: usize) -> BatchTensor {
    let mut batch = BatchTensor::new(frames, engine.spec().input).unwrap();
    let values = batch.input_bytes().unwrap().as_chunks_mut::<4>().0;
    values.iter_mut().enumerate().for_each(|(at, value)| *value = ((at % 251) as f32 / 251.0).to_ne_bytes());
    batch
}

#[test]
fn a_run_that_shrinks_gives_memory_back_and_finds_the_same() {
    if !in_own_process("a_run_that_shrinks_gives_memory_back_and_finds_the_same") {
        return;
    }
    let engine = load("models/variants/dynamic_batch.onnx");
    let (mut one, mut four) = (pattern(&engine, 1), pattern(&engine, 4));
    let expected = run(&engine, &mut one, false).0;
    // A large batch leaves an arena behind that small ones do not need.
    let large = run(&engine, &mut four, false).0;
    let (found, freed) = run(&engine, &mut one, true);
    let freed = freed.expect("there is an arena");
    println!("{:.1} MB freed", freed as f64 / 1e6);
    assert!(freed > 50_000_000, "{freed} bytes freed");
    assert!(found == expected);
    for _ in 0..3 {
        assert!(run(&engine, &mut one, false).0 == expected);
        assert!(run(&engine, &mut one, true).0 == expected);
    }
    assert!(run(&engine, &mut four, false).0 == large);
}

/// Frames before, in and after a run that was to shrink; its bytes.
fn beside_an_application(test: &str, arena: Option<usize>) -> Option<Option<u64>> {
    if !in_own_process(test) {
        return None;
    }
    common::init();
    arena::register(arena);
    let engine = load("models/variants/dynamic_batch.onnx");
    let mut batch = pattern(&engine, 2);
    let expected = run(&engine, &mut batch, false).0;
    let (found, freed) = run(&engine, &mut batch, true);
    assert!(found == expected);
    for shrink in [false, true, true] {
        assert!(run(&engine, &mut batch, shrink).0 == expected);
    }
    Some(freed)
}

#[test]
fn an_arena_of_the_application_is_shrunk_too() {
    let freed = beside_an_application("an_arena_of_the_application_is_shrunk_too", Some(1 << 30));
    println!("{freed:?}");
    assert!(freed.is_none_or(|freed| freed.is_some_and(|freed| freed > 10_000_000)));
}

#[test]
fn without_an_arena_frames_are_run_all_the_same() {
    let freed = beside_an_application("without_an_arena_frames_are_run_all_the_same", None);
    assert!(freed.is_none_or(|freed| freed.is_none()), "{freed:?}");
}
