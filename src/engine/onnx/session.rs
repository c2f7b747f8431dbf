//! How sessions and runs are set up.

use ort::logging::LogLevel;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{RunOptions, Session};

use super::{SessionOptions, openvino, unsupported};
use crate::engine::device::Device;
use crate::engine::{BatchSize, EngineError};

/// # Errors
/// The device is not there, or the model is none that it runs.
pub(super) fn open(
    environment: &ort::environment::Environment,
    options: &SessionOptions,
) -> Result<Session, EngineError> {
    let failed = |error: ort::Error| {
        unsupported(
            &options.model,
            "ONNX Runtime cannot load it; it is no ONNX file, damaged, or made for a newer ONNX Runtime"
                .into(),
            error,
        )
    };
    match &options.device {
        Device::Auto | Device::Cpu => builder(environment)
            .and_then(|builder| Ok(builder.with_intra_threads(options.plan.threads)?))
            .and_then(|mut builder| builder.commit_from_file(&options.model))
            .map_err(failed),
        Device::OpenVino(device) => openvino::open(builder(environment).map_err(failed)?, device, options),
    }
}

/// What is the same for every device.
fn builder(environment: &ort::environment::Environment) -> ort::Result<SessionBuilder> {
    // No memory pattern: it reserves 20–30 MB more with a nano model (120 MB with a large one) for no gain.
    Ok(Session::builder(environment)?
        .with_memory_pattern(false)?
        // What goes wrong is reported by us; ONNX Runtime would print each failed run to stderr as well.
        // An application that shares ONNX Runtime with us may have bounded its arena; by default there is none of these.
        .with_env_allocators()?
        .with_log_level(LogLevel::Fatal)?
        .with_optimization_level(GraphOptimizationLevel::All)?)
}

/// How many frames a run takes on `device`, of a model that declares `batch`.
pub(super) fn batch_size(device: &Device, batch: BatchSize) -> BatchSize {
    match (device, batch) {
        (Device::OpenVino(_), BatchSize::Any) => openvino::OPEN_BATCH,
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
