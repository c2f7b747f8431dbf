//! Runs of one session by several threads at the same time, each compared with the same run alone.
#![allow(dead_code)]

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

use crate::common;

pub fn load(model: PathBuf, library: Option<PathBuf>, device: Device, plan: Plan) -> OnnxEngine {
    common::init();
    let options = SessionOptions {
        model,
        library,
        head: None,
        device,
        plan,
        gpu: Default::default(),
        gpu_limit: None,
        tensorrt_cache: None,
    };
    OnnxEngine::load(&options, 1, &mut Ledger::new(&HOST, "")).unwrap()
}

/// A batch of frames of noise; equal seeds are equal noise.
pub fn noise(engine: &OnnxEngine, frames: usize, seed: u64) -> BatchTensor {
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
pub fn run(engine: &OnnxEngine, batch: &mut BatchTensor, frames: Range<usize>) -> Vec<u32> {
    let mut bits = Vec::new();
    let mut read = |output: Output<'_>| match output.values {
        OutputRef::F32(values) => bits.extend(values.iter().map(|value| value.to_bits())),
        OutputRef::F16(values) => bits.extend(values.iter().map(|value| u32::from(value.to_bits()))),
    };
    engine.run(batch, frames, &mut read).unwrap();
    bits
}

/// Runs `runs` batches on each of the plan's callers and compares each with the same batch run alone.
pub fn stress(engine: &OnnxEngine, inputs: u64, largest: usize, runs: usize) {
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
