//! Sessions on Intel's OpenVINO, through ONNX Runtime's provider for it.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use libloading::Library;
use ort::ep::{self, ArbitrarilyConfigurableExecutionProvider, ExecutionProvider};
use ort::session::Session;
use ort::session::builder::SessionBuilder;

use super::{SessionOptions, unsupported};
use crate::engine::plan::Plan;
use crate::engine::{BatchSize, EngineError, EngineErrorKind, runtime};

/// Of a model that leaves it open.
pub(super) const OPEN_BATCH: BatchSize = BatchSize::Steps;

/// Loaded by ONNX Runtime from the folder that its own library is in.
const COMPANIONS: [&str; 2] = ["libonnxruntime_providers_shared.so", "libonnxruntime_providers_openvino.so"];
const WAY_OUT: &str = "fetch one with `pipelines/setup.sh --openvino`, or unpack the PyPI package onnxruntime-openvino, and \
                       name its libonnxruntime.so.* in the property onnxruntime-library or the environment variable \
                       ORT_DYLIB_PATH; or use device=cpu";
/// Of the error where a node is left to ONNX Runtime's own kernels.
const LEFT_OVER: &str = "assigned to the default CPU EP";

/// The whole model runs on `device`, or there is no session: what OpenVINO does not take, ONNX Runtime would run on its own
/// kernels without a word.
///
/// # Errors
/// [`EngineErrorKind::Library`] where the library has no OpenVINO, [`EngineErrorKind::Settings`] where OpenVINO has no such
/// device, [`EngineErrorKind::ModelUnsupported`].
pub(super) fn open(
    builder: SessionBuilder,
    device: &str,
    options: &SessionOptions,
) -> Result<Session, EngineError> {
    check(device)?;
    let mut builder = prepare(builder, device, &options.plan).map_err(|error| why_refused(device, &error))?;
    builder.commit_from_file(&options.model).map_err(|error| {
        // The file may lie in a folder of any name.
        let text = error.to_string().replace(&options.model.display().to_string(), "");
        let what = if text.contains(LEFT_OVER) {
            format!("OpenVINO's device {device} does not take all of its operators: use device=cpu")
        } else if text.contains("OpenVINO") {
            format!("OpenVINO cannot compile it for its device {device}: use device=cpu")
        } else {
            "ONNX Runtime cannot load it; it is no ONNX file, damaged, or made for a newer ONNX Runtime"
                .into()
        };
        unsupported(&options.model, what, error)
    })
}

/// What would fail later, with less to say.
fn check(device: &str) -> Result<(), EngineError> {
    if !ep::OpenVINO::is_available().unwrap_or_default() {
        return Err(missing(device, "is one without", ""));
    }
    match COMPANIONS.into_iter().find(|name| companion(name).is_some_and(|file| !file.is_file())) {
        Some(absent) => Err(missing(device, &format!("has no {absent} beside it"), "")),
        None => Ok(()),
    }
}

/// A file beside the loaded library; `None` where only the system's loader knows where that is.
fn companion(name: &str) -> Option<PathBuf> {
    let library = runtime::library()?.canonicalize().ok()?;
    Some(library.with_file_name(name))
}

fn missing(device: &str, what: &str, detail: impl Display) -> EngineError {
    let library = runtime::library().unwrap_or(Path::new("the loaded one")).display();
    EngineError::new(
        EngineErrorKind::Library,
        format!(
            "device=openvino:{device} needs an ONNX Runtime with OpenVINO, and {library} {what}: {WAY_OUT}"
        ),
        detail,
    )
}

/// OpenVINO would tie each thread of a run, the caller too, to one core, whatever else runs there: the decoders of the streams do,
/// and engines of other models, which it ties to the same ones.
const CONFIG: &str = r#"{"CPU":{"ENABLE_CPU_PINNING":"NO"}}"#;

fn prepare(builder: SessionBuilder, device: &str, plan: &Plan) -> ort::Result<SessionBuilder> {
    let mut provider = ep::OpenVINO::default()
        .with_device_type(device)
        // Of the model's own numbers: some processors would otherwise compute with fewer bits.
        .with_precision("ACCURACY")
        .with_num_threads(plan.callers + plan.threads - 1)
        .with_arbitrary_config("load_config", CONFIG);
    // A list of devices decides by itself, and refuses any other number.
    if !device.contains(':') {
        // Runs at the same time each have a share of the threads.
        provider = provider.with_num_streams(plan.callers.try_into().unwrap_or(u8::MAX));
    }
    Ok(builder
        // The threads are OpenVINO's; ONNX Runtime's would have nothing to run.
        .with_intra_threads(1)?
        .with_disable_cpu_fallback()?
        .with_execution_providers([provider.build().error_on_failure()])?)
}

/// ONNX Runtime gives one error for a provider that cannot be loaded and for a device that is not there.
fn why_refused(device: &str, error: &ort::Error) -> EngineError {
    if let Some(provider) = companion(COMPANIONS[1]) {
        // SAFETY: loading runs the file's initialisers; ONNX Runtime has just tried the same.
        if let Err(reason) = unsafe { Library::new(provider) } {
            let reason =
                std::error::Error::source(&reason).map_or_else(|| reason.to_string(), ToString::to_string);
            return missing(device, &format!("has beside it what cannot be loaded ({reason})"), error);
        }
    }
    EngineError::new(
        EngineErrorKind::Settings,
        format!(
            "device=openvino:{device} is not there: OpenVINO finds no such device, or no driver or plugin for it, or is older \
             than that of onnxruntime-openvino 1.24; device=cpu needs none"
        ),
        error,
    )
}
