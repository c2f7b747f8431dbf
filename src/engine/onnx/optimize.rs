//! ONNX Runtime's optimised form of a model as files, and what that form depends on.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;

use crate::engine::cache::{Key, entry, key, system};
use crate::engine::{EngineError, EngineErrorKind, header, runtime};

/// Bytes; smaller ones stay in the graph. Each of the others is mapped by itself, which takes a page at the least.
const LEAST_WEIGHTS: &str = "4096";

/// The file of the ONNX Runtime that this process has loaded, and the key of a model's optimised form by it; `None` where the
/// file cannot be told.
pub fn library_and_key(model_hash: u128) -> Option<(PathBuf, Key)> {
    let version = runtime::version()?;
    let file = system::object_file(std::ptr::from_ref(ort::api()).addr())?.canonicalize().ok()?;
    let data = fs::metadata(&file).ok()?;
    // Two builds of one version may differ.
    let library = format!("{version}, {} bytes of {}, {}", data.len(), data.mtime(), ort::info());
    Some((file, Key::new(model_hash, &library, &key::processor())))
}

/// Writes graph and weights of the `model`, an ONNX file's content, into `folder`.
///
/// A model that has weights in further files is refused: its hash does not tell when those change. Those that are not found
/// all the same, ONNX Runtime looks for in the current folder, which should be an empty one.
pub fn optimize(library: Option<&Path>, model: &[u8], folder: &Path) -> Result<(), EngineError> {
    let environment = runtime::environment(library)?;
    if header::has_external_data(model) == Some(true) {
        let message = "it has weights in further files, whose changes would not be noticed";
        return Err(EngineError::new(EngineErrorKind::ModelUnsupported, message, ""));
    }
    let write = || -> ort::Result<Session> {
        Session::builder(environment)?
            .with_intra_threads(1)?
            .with_log_level(LogLevel::Fatal)?
            .with_optimization_level(GraphOptimizationLevel::All)?
            .with_optimized_model_path(folder.join(entry::GRAPH))?
            .with_config_entry("session.optimized_model_external_initializers_file_name", entry::WEIGHTS)?
            .with_config_entry(
                "session.optimized_model_external_initializers_min_size_in_bytes",
                LEAST_WEIGHTS,
            )?
            .commit_from_memory(model)
    };
    write().map(drop).map_err(|error| {
        EngineError::new(EngineErrorKind::ModelUnsupported, "ONNX Runtime cannot optimise it", error)
    })
}
