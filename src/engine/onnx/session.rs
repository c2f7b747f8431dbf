//! How sessions and runs are set up.

use std::path::Path;

use ort::logging::LogLevel;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{RunOptions, Session};

use super::{SessionOptions, cuda, openvino, unsupported};
use crate::engine::device::Device;
use crate::engine::{BatchSize, EngineError};

/// From the model's file, or (on the processor) from its `optimized` form, of which nothing is left to be done. Runs will be of
/// up to `max_batch` frames.
///
/// # Errors
/// The device is not there, or the model is none that it runs.
pub(super) fn open(
    environment: &ort::environment::Environment,
    options: &SessionOptions,
    optimized: Option<&Path>,
    max_batch: usize,
) -> Result<Session, EngineError> {
    let failed = |error: ort::Error| {
        unsupported(
            &options.model,
            "ONNX Runtime cannot load it; it is no ONNX file, damaged, or made for a newer ONNX Runtime"
                .into(),
            error,
        )
    };
    let (file, level) = match optimized {
        Some(graph) => (graph, GraphOptimizationLevel::Disable),
        None => (options.model.as_path(), GraphOptimizationLevel::All),
    };
    // An application that shares ONNX Runtime with us may have bounded its arena; by default there is none of these. Not on a
    // GPU: an arena of the application's there would take the place of the session's own, whose limit would be none then.
    let shared = options.device.gpu().is_none();
    let builder = builder(environment, level, shared).map_err(failed)?;
    match &options.device {
        Device::Auto | Device::Cpu => builder
            .with_intra_threads(options.plan.threads)
            .map_err(ort::Error::from)
            .and_then(|mut builder| builder.commit_from_file(file))
            .map_err(failed),
        Device::OpenVino(device) => openvino::open(builder, device, options),
        Device::Cuda(_) | Device::TensorRt(_) => cuda::open(environment, builder, options, max_batch),
    }
}

/// What is the same for every device.
fn builder(
    environment: &ort::environment::Environment,
    level: GraphOptimizationLevel,
    shared_allocators: bool,
) -> ort::Result<SessionBuilder> {
    // No memory pattern: it reserves 20–30 MB more with a nano model (120 MB with a large one) for no gain.
    let builder = Session::builder(environment)?
        .with_memory_pattern(false)?
        // Between two parts of a run its threads wait in a loop, which where a core is wanted by somebody else burns the time of
        // the thread that they wait for: docs/runtime-options.md. In microseconds; older versions know only all or nothing.
        .with_config_entry("session.intra_op.spin_duration_us", "50")?
        // What goes wrong is reported by us; ONNX Runtime would print each failed run to stderr as well.
        .with_log_level(LogLevel::Fatal)?
        .with_optimization_level(level)?;
    Ok(if shared_allocators { builder.with_env_allocators()? } else { builder })
}

/// How many frames a run takes on `device`, of a model that declares `batch`.
pub(super) fn batch_size(device: &Device, batch: BatchSize) -> BatchSize {
    match (device, batch) {
        (Device::OpenVino(_), BatchSize::Any) => openvino::OPEN_BATCH,
        (Device::Cuda(_) | Device::TensorRt(_), BatchSize::Any) => cuda::OPEN_BATCH,
        _ => batch,
    }
}

/// The arenas, of the processor's memory and of the GPU's, are shrunk after the run. ONNX Runtime refuses a run that names one
/// that there is not.
pub(super) fn shrink_options(device: &Device) -> ort::Result<RunOptions> {
    let arenas = device.gpu().map_or("cpu:0".into(), |gpu| format!("cpu:0;gpu:{gpu}"));
    run_options("memory.enable_memory_arena_shrinkage", &arenas)
}

/// The run is recorded under `number` when it is the first in its thread, and replayed when it is not.
pub(super) fn recorded_options(number: u32) -> ort::Result<RunOptions> {
    run_options(GRAPH_NUMBER, &number.to_string())
}

/// Of a session whose runs are recorded: this one is not.
pub(super) fn unrecorded_options() -> ort::Result<RunOptions> {
    run_options(GRAPH_NUMBER, "-1")
}

const GRAPH_NUMBER: &str = "gpu_graph_id";

fn run_options(key: &str, value: &str) -> ort::Result<RunOptions> {
    let mut options = RunOptions::new()?;
    options.set(key, value)?;
    // As for the session: what goes wrong is reported by us.
    options.set_log_level(LogLevel::Fatal)?;
    Ok(options)
}
