//! How sessions and runs are set up.

use ort::logging::LogLevel;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{RunOptions, Session};

use super::SessionOptions;

pub(super) fn open(
    environment: &ort::environment::Environment,
    options: &SessionOptions,
) -> ort::Result<Session> {
    // No memory pattern: it reserves 20–30 MB more with a nano model (120 MB with a large one) for no gain.
    Session::builder(environment)?
        .with_intra_threads(options.plan.threads)?
        .with_memory_pattern(false)?
        // What goes wrong is reported by us; ONNX Runtime would print each failed run to stderr as well.
        // An application that shares ONNX Runtime with us may have bounded its arena; by default there is none of these.
        .with_env_allocators()?
        .with_log_level(LogLevel::Fatal)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .commit_from_file(&options.model)
}

/// The arena of the processor's memory is shrunk after the run.
pub(super) fn shrink_options() -> ort::Result<RunOptions> {
    let mut options = RunOptions::new()?;
    options.set("memory.enable_memory_arena_shrinkage", "cpu:0")?;
    // As for the session: what goes wrong is reported by us.
    options.set_log_level(LogLevel::Fatal)?;
    Ok(options)
}
