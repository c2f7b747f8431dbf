//! Several threads run one session at the same time, through ONNX Runtime's C API: every result must be, bit by bit,
//! what a run alone gives.

mod common;

use std::ops::Range;
use std::path::PathBuf;

use gstyolodetect::batch::Ledger;
use gstyolodetect::decode::OutputRef;
use gstyolodetect::engine::device::Device;
use gstyolodetect::engine::onnx::{OnnxEngine, SessionOptions};
use gstyolodetect::engine::plan::Plan;
use gstyolodetect::engine::{Engine, Output};
use gstyolodetect::memory::budget::HOST;
use gstyolodetect::tensor::BatchTensor;

fn load(model: PathBuf, plan: Plan) -> OnnxEngine {
    common::init();
    let options = SessionOptions { model, library: None, head: None, device: Device::Cpu, plan };
    OnnxEngine::load(&options, 1, &mut Ledger::new(&HOST, "")).unwrap()
}

/// A batch of frames of noise; equal seeds are equal noise.
fn noise(engine: &OnnxEngine, frames: usize, seed: u64) -> BatchTensor {
    let spec = engine.spec();
    let mut batch = BatchTensor::new(frames, spec.input).unwrap();
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for value in batch.input_bytes().unwrap().as_chunks_mut::<4>().0 {
        // Xorshift; of the 64 bits those that make a float from 0 to 1.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *value = ((state >> 40) as f32 / (1u64 << 24) as f32).to_ne_bytes();
    }
    batch
}

/// The bits of what the run gives.
fn run(engine: &OnnxEngine, batch: &mut BatchTensor, frames: Range<usize>) -> Vec<u32> {
    let mut bits = Vec::new();
    let mut read = |output: Output<'_>| match output.values {
        OutputRef::F32(values) => bits.extend(values.iter().map(|value| value.to_bits())),
        OutputRef::F16(values) => bits.extend(values.iter().map(|value| u32::from(value.to_bits()))),
    };
    engine.run(batch, frames, &mut read).unwrap();
    bits
}

/// Runs `runs` batches on each of the plan's callers and compares each with the same batch run alone.
fn stress(engine: &OnnxEngine, inputs: u64, largest: usize, runs: usize) {
    let frames = |input: u64| 1 + input as usize % largest;
    let alone: Vec<_> = (0..inputs)
        .map(|input| run(engine, &mut noise(engine, frames(input), input), 0..frames(input)))
        .collect();
    assert!(alone.windows(2).all(|pair| pair[0] != pair[1]), "inputs that differ give results that do");
    std::thread::scope(|scope| {
        for caller in 0..engine.spec().callers {
            let alone = &alone;
            scope.spawn(move || {
                let mut batches: Vec<_> =
                    (0..inputs).map(|input| noise(engine, frames(input), input)).collect();
                for run in 0..runs {
                    // Each caller in an order of its own.
                    let input = (run * (2 * caller + 1) + caller) % inputs as usize;
                    let found = self::run(engine, &mut batches[input], 0..frames(input as u64));
                    assert!(
                        found == alone[input],
                        "caller {caller}, run {run}: input {input} gives another result than alone"
                    );
                }
            });
        }
    });
}

fn tiny() -> PathBuf {
    common::asset("models/tiny/v8_dynamic_batch.onnx")
}

#[test]
fn a_hundred_thousand_runs_of_callers_with_a_thread_each() {
    stress(&load(tiny(), Plan { callers: 4, threads: 1 }), 31, 4, 25_000);
}

#[test]
fn runs_of_callers_that_share_a_pool_of_threads() {
    stress(&load(tiny(), Plan { callers: 3, threads: 4 }), 31, 4, 5_000);
}

#[test]
fn five_hundred_runs_of_yolo12n() {
    let engine = load(common::asset("models/yolo12n.onnx"), Plan { callers: 2, threads: 1 });
    stress(&engine, 5, 1, 250);
}

#[test]
fn runs_of_yolo12n_in_batches_and_with_a_shared_pool() {
    let model = || common::asset("models/variants/dynamic_batch.onnx");
    stress(&load(model(), Plan { callers: 2, threads: 1 }), 3, 3, 6);
    stress(&load(model(), Plan { callers: 2, threads: 2 }), 3, 3, 6);
}

#[test]
fn frames_in_the_middle_of_a_batch_run_like_others() {
    let engine = load(tiny(), Plan { callers: 1, threads: 1 });
    let expected = run(&engine, &mut noise(&engine, 7, 1), 0..7);
    let frame = expected.len() / 7;
    for parts in [&[0..4, 4..6, 6..7][..], &[0..1, 1..7], &[2..4, 0..2, 4..7]] {
        let mut batch = noise(&engine, 7, 1);
        for part in parts {
            let found = run(&engine, &mut batch, part.clone());
            assert!(found == expected[part.start * frame..part.end * frame], "{part:?} of {parts:?}");
        }
    }
}
