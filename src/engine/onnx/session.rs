//! How sessions and runs are set up.

use std::path::Path;

use ort::logging::LogLevel;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{RunOptions, Session};

use super::{SessionOptions, cuda, openvino, unsupported};
use crate::engine::device::Device;
use crate::engine::{BatchSize, EngineError};

/// From the model's file, or (on the processor) from its `optimized` form, of which nothing is left to be done.
///
/// # Errors
/// The device is not there, or the model is none that it runs.
pub(super) fn open(
    environment: &ort::environment::Environment,
    options: &SessionOptions,
    optimized: Option<&Path>,
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
    let builder = builder(environment, level).map_err(failed)?;
    match &options.device {
        Device::Auto | Device::Cpu => builder
            .with_intra_threads(options.plan.threads)
            .map_err(ort::Error::from)
            .and_then(|mut builder| builder.commit_from_file(file))
            .map_err(failed),
        Device::OpenVino(device) => openvino::open(builder, device, options),
        Device::Cuda(_) | Device::TensorRt(_) => cuda::open(builder, options),
    }
}

/// What is the same for every device.
fn builder(
    environment: &ort::environment::Environment,
    level: GraphOptimizationLevel,
) -> ort::Result<SessionBuilder> {
    // No memory pattern: it reserves 20–30 MB more with a nano model (120 MB with a large one) for no gain.
    Ok(Session::builder(environment)?
        .with_memory_pattern(false)?
        // Between two parts of a run its threads wait in a loop, which where a core is wanted by somebody else burns the time of
        // the thread that they wait for: docs/runtime-options.md. In microseconds; older versions know only all or nothing.
        .with_config_entry("session.intra_op.spin_duration_us", "50")?
        // What goes wrong is reported by us; ONNX Runtime would print each failed run to stderr as well.
        // An application that shares ONNX Runtime with us may have bounded its arena; by default there is none of these.
        .with_env_allocators()?
        .with_log_level(LogLevel::Fatal)?
        .with_optimization_level(level)?)
}

/// How many frames a run takes on `device`, of a model that declares `batch`.
pub(super) fn batch_size(device: &Device, batch: BatchSize) -> BatchSize {
    match (device, batch) {
        (Device::OpenVino(_), BatchSize::Any) => openvino::OPEN_BATCH,
        (Device::Cuda(_) | Device::TensorRt(_), BatchSize::Any) => cuda::OPEN_BATCH,
        _ => batch,
    }
}

/// The arena of the processor's memory is shrunk after the run.
pub(super) fn shrink_options() -> ort::Result<RunOptions> {
    let mut options = RunOptions::new()?;
    options.set("memory.enable_memory_arena_shrinkage", "cpu:0")?;
    // As for the session: what goes wrong is reported by us.
    options.set_log_level(LogLevel::Fatal)?;
    Ok(options)
}
