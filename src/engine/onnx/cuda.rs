//! Sessions on NVIDIA's GPUs, through ONNX Runtime's providers for CUDA and TensorRT.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use ort::environment::Environment;
use ort::ep::{
    self, ArbitrarilyConfigurableExecutionProvider, ArenaExtendStrategy, ExecutionProviderDispatch,
};
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

use super::failure::{Failure, kind};
use super::probe::{declared, read_metadata};
use super::{SessionOptions, unsupported};
use crate::engine::device::Device;
use crate::engine::gpu::ConvSearch;
use crate::engine::gpu::check::{self, Library};
use crate::engine::gpu::driver::Card;
use crate::engine::model::InputPlan;
use crate::engine::{BatchSize, EngineError, EngineErrorKind, header, runtime};

/// Of a model that leaves it open: the arena keeps memory for every number that it has run.
pub(super) const OPEN_BATCH: BatchSize = BatchSize::Steps;

/// Whether the ONNX Runtime that this process has loaded can use `device`, a GPU.
///
/// # Errors
/// See [`check::check`].
pub fn check(device: &Device) -> Result<(), EngineError> {
    let file = runtime::library().unwrap_or(Path::new("libonnxruntime.so"));
    check::check(device, Library { file, built_in: runtime::has_provider(device) })
}

/// The GPU that `device` is on, after all has been looked at that it needs; `None` for what is no GPU.
///
/// # Errors
/// See [`check::check`]; what the driver says to a context on it.
pub(super) fn card(options: &SessionOptions) -> Result<Option<Arc<Card>>, EngineError> {
    let Some(index) = options.device.gpu() else { return Ok(None) };
    check(&options.device)?;
    runs_on_gpu(options)?;
    if options.gpu.graph {
        can_record(&options.device, runtime::version().unwrap_or_default())?;
    }
    let card = open_card(options, index)?;
    // ONNX Runtime may end the process over a session that it cannot finish on a GPU that is lost.
    match card.memory() {
        Ok(_) => Ok(Some(card)),
        Err(error) => Err(lost(options, error.into())),
    }
}

/// Operators of quantised models that neither provider has, up to ONNX Runtime 1.31 at the least: there the processor computes them, on one
/// thread, and what is in between travels to and fro.
const ONLY_ON_CPU: [&str; 4] = ["ConvInteger", "QLinearConv", "QLinearMatMul", "DynamicQuantizeLinear"];

/// # Errors
/// [`EngineErrorKind::ModelUnsupported`] where ONNX Runtime would leave the model's work to the processor without a word.
fn runs_on_gpu(options: &SessionOptions) -> Result<(), EngineError> {
    let left = header::operators(&options.model, &ONLY_ON_CPU);
    if left.is_empty() {
        return Ok(());
    }
    let what = format!(
        "it is quantised with operators that ONNX Runtime has for the processor alone, {}: use device=cpu, or for device={} a model in 16 \
         or 32 bits, or one quantised in the format QDQ",
        left.join(", "),
        options.device
    );
    Err(unsupported(&options.model, what, ""))
}

/// # Errors
/// What the driver says to a context on this GPU.
pub fn open_card(options: &SessionOptions, index: u32) -> Result<Arc<Card>, EngineError> {
    Card::open(index).map_err(|error| refused(options, Failure::Driver(error), EngineErrorKind::Library))
}

/// Whether `device` keeps a graph for each size of batch and lane, by the number that a run has, with ONNX Runtime of this `version`.
/// Others keep one in all, and replay it with whatever memory it was recorded with.
fn can_record(device: &Device, version: &str) -> Result<(), EngineError> {
    const FIRST: u32 = 18;
    let why = if !matches!(device, Device::Cuda(_)) {
        format!(
            "is not for device={device}, as TensorRT keeps one graph for all sizes of batches: use device=cuda"
        )
    } else if runtime::minor_version(version).is_none_or(|minor| minor < FIRST) {
        format!(
            "needs ONNX Runtime 1.{FIRST} or newer, and {version}, which is loaded, keeps one graph for all sizes of batches: use \
             another"
        )
    } else {
        return Ok(());
    };
    Err(EngineError::new(
        EngineErrorKind::Settings,
        format!("cuda-graph=true {why}, or cuda-graph=false"),
        "",
    ))
}

/// # Errors
/// [`EngineErrorKind::OutOfMemory`], [`EngineErrorKind::DeviceLost`], [`EngineErrorKind::Library`] where the provider cannot be
/// used, and [`EngineErrorKind::ModelUnsupported`].
pub(super) fn open(
    environment: &Environment,
    builder: SessionBuilder,
    options: &SessionOptions,
    max_batch: usize,
) -> Result<Session, EngineError> {
    let model = |error: ort::Error| refused(options, error.into(), EngineErrorKind::ModelUnsupported);
    let profile = match options.device {
        Device::TensorRt(_) => profile(environment, options, max_batch).map_err(model)?,
        _ => None,
    };
    let mut builder = prepare(builder, options, profile)
        .map_err(|error| refused(options, error.into(), EngineErrorKind::Library))?;
    builder.commit_from_file(&options.model).map_err(model)
}

fn prepare(
    builder: SessionBuilder,
    options: &SessionOptions,
    profile: Option<Profile>,
) -> ort::Result<SessionBuilder> {
    let cuda = cuda(options).error_on_failure();
    let providers = match options.device {
        Device::TensorRt(_) => vec![tensorrt(options, profile).error_on_failure(), cuda],
        _ => vec![cuda],
    };
    Ok(builder
        // What is left to the processor is a few numbers of shapes.
        .with_intra_threads(1)?
        // Weights in the arena would keep what is around them from being given back.
        .with_config_entry("session.use_device_allocator_for_initializers", "1")?
        .with_execution_providers(providers)?)
}

fn cuda(options: &SessionOptions) -> ExecutionProviderDispatch {
    let search = match options.gpu.conv_search {
        ConvSearch::Heuristic => "HEURISTIC",
        ConvSearch::Exhaustive => "EXHAUSTIVE",
        ConvSearch::Default => "DEFAULT",
    };
    let mut provider = ep::CUDA::default()
        .with_device_id(number(options))
        // The arena would else double with every step, up to twice what is needed.
        .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
        .with_arbitrary_config("cudnn_conv_algo_search", search)
        .with_arbitrary_config("cudnn_conv_use_max_workspace", flag(options.gpu.max_workspace))
        .with_arbitrary_config("enable_cuda_graph", flag(options.gpu.graph));
    if !options.gpu.tf32 {
        // It is on where nothing is said, and older releases refuse an option that they do not know.
        provider = provider.with_arbitrary_config(TF32, flag(false));
    }
    if let Some(limit) = limit(options) {
        provider = provider.with_memory_limit(limit);
    }
    provider.build()
}

fn tensorrt(options: &SessionOptions, profile: Option<Profile>) -> ExecutionProviderDispatch {
    let mut provider = ep::TensorRT::default().with_device_id(number(options));
    if let Some(limit) = limit(options) {
        provider = provider.with_max_workspace_size(limit);
    }
    // A folder that cannot be made only makes each start as slow as the first.
    if let Some(folder) =
        options.tensorrt_cache.as_deref().filter(|folder| fs::create_dir_all(folder).is_ok())
    {
        provider = provider
            .with_arbitrary_config("trt_engine_cache_enable", flag(true))
            .with_engine_cache_path(folder.display())
            .with_arbitrary_config("trt_timing_cache_enable", flag(true))
            .with_timing_cache_path(folder.display());
    }
    if let Some(Profile { least, largest }) = profile {
        provider = provider
            .with_profile_min_shapes(least)
            .with_profile_opt_shapes(&largest)
            .with_profile_max_shapes(largest);
    }
    provider.build()
}

/// The option of CUDA's provider, from ONNX Runtime 1.18 on.
const TF32: &str = "use_tf32";

/// As the providers' documentation writes it; `ort` has other words.
fn flag(on: bool) -> &'static str {
    if on { "1" } else { "0" }
}

fn number(options: &SessionOptions) -> i32 {
    options.device.gpu().and_then(|gpu| i32::try_from(gpu).ok()).unwrap_or_default()
}

fn limit(options: &SessionOptions) -> Option<usize> {
    options.gpu_limit.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
}

/// Inputs that TensorRT compiles for: `name:1x3x640x640`.
struct Profile {
    least: String,
    largest: String,
}

/// Without one, TensorRT would compile anew for every size that it sees for the first time; `None` for a model that has but one.
fn profile(
    environment: &Environment,
    options: &SessionOptions,
    max_batch: usize,
) -> ort::Result<Option<Profile>> {
    // Nothing runs in it.
    let session = Session::builder(environment)?
        .with_intra_threads(1)?
        .with_config_entry("session.disable_prepacking", "1")?
        .with_log_level(LogLevel::Fatal)?
        .with_optimization_level(GraphOptimizationLevel::Disable)?
        .commit_from_file(&options.model)?;
    let inputs: Vec<_> = session.inputs().iter().map(declared).collect();
    let open = inputs.iter().any(|input| input.dims.iter().any(|&size| size < 0));
    // What is none of ours is refused where every model is.
    let Some(plan) = InputPlan::find(&options.model, &inputs, &read_metadata(&session)).ok().filter(|_| open)
    else {
        return Ok(None);
    };
    let shape = |wanted: usize| {
        let frames = plan.batch.capacity(wanted);
        format!("{}:{frames}x3x{}x{}", inputs[0].name, plan.height, plan.width)
    };
    Ok(Some(Profile { least: shape(1), largest: shape(max_batch.max(1)) }))
}

fn lost(options: &SessionOptions, error: Failure) -> EngineError {
    let message = format!("device={} does not work any more", options.device);
    EngineError::new(EngineErrorKind::DeviceLost, message, error)
}

/// Why there is no session. What is neither the memory's nor the GPU's fault is `otherwise`.
fn refused(options: &SessionOptions, error: Failure, otherwise: EngineErrorKind) -> EngineError {
    let device = &options.device;
    // The file may lie in a folder of any name.
    let text = error.to_string().replace(&options.model.display().to_string(), "");
    let kind = match &error {
        Failure::Onnx(_) => kind(&text),
        _ => error.kind(),
    };
    match (kind, otherwise) {
        (EngineErrorKind::OutOfMemory, _) => EngineError::new(
            EngineErrorKind::OutOfMemory,
            format!(
                "device={device} has too little free memory to load the model {}: close what else uses it, or raise \
                 gpu-memory-budget where that is set",
                options.model.display()
            ),
            error,
        ),
        (EngineErrorKind::DeviceLost, _) => lost(options, error),
        // "Unknown provider option: \"use_tf32\"."
        (_, EngineErrorKind::Library) if !options.gpu.tf32 && text.contains(TF32) => EngineError::new(
            EngineErrorKind::Settings,
            "cuda-tf32=false needs an ONNX Runtime that knows the option, 1.18 or newer: use another, or cuda-tf32=true",
            error,
        ),
        (_, EngineErrorKind::Library) => EngineError::new(
            EngineErrorKind::Library,
            format!("device={device} cannot be used by the ONNX Runtime that is loaded; device=cpu can"),
            error,
        ),
        _ => {
            // "This session cannot use the graph capture feature (1.17: the CUDA Graph feature) as requested by the user".
            let what = if options.gpu.graph && text.contains("This session cannot use the") {
                "its runs cannot be recorded as CUDA graphs, for which the whole model must run on the GPU"
            } else {
                "ONNX Runtime cannot load it; it is no ONNX file, damaged, or made for a newer ONNX Runtime, or has what the \
                 device does not run"
            };
            unsupported(&options.model, what.into(), error)
        }
    }
}
