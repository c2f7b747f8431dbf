//! Several threads run one session at the same time, through ONNX Runtime's C API: every result must be, bit by bit,
//! what a run alone gives.

mod common;
#[path = "common/stress.rs"]
mod stress;

use std::path::PathBuf;

use gstyolodetect::engine::device::Device;
use gstyolodetect::engine::onnx::OnnxEngine;
use gstyolodetect::engine::plan::Plan;
use stress::{noise, run, stress};

fn load(model: PathBuf, plan: Plan) -> OnnxEngine {
    stress::load(model, None, Device::Cpu, plan)
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
