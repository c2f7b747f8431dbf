//! One ONNX Runtime session behind [`Engine`]. With [`super::runtime`], the only file that names `ort`.
//!
//! A run goes through the C API: its input is a view, made once, of a [`BatchTensor`]'s own memory, and its output is
//! read where ONNX Runtime has put it, so that a run copies no tensor and allocates nothing on our side. ONNX Runtime documents that `Run` may be
//! called by several threads at once on one session; `ort`'s own call wants it exclusively. `tests/callers.rs` compares
//! 100,000 such runs, bit by bit, with single ones.

use std::ffi::CString;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use ort::AsPointer;
use ort::logging::LogLevel;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{RunOptions, Session};
use ort::sys::{ONNXTensorElementDataType as OrtElement, OrtMemoryInfo, OrtValue};
use ort::value::{Outlet, TensorElementType, ValueType};

use super::model::{DeclaredInput, InputPlan};
use super::plan::Plan;
use super::{Engine, EngineError, EngineErrorKind, ModelSpec, Output, runtime};
use crate::batch::{Ledger, Need, ceiling};
use crate::decode::{Head, Layout, ModelMetadata, OutputRef, OutputShape};
use crate::detection::Labels;
use crate::memory;
use crate::tensor::{BatchTensor, Element, FrameExtent};

/// All that decides how a model is loaded; equal options on equal content share an engine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionOptions {
    pub model: PathBuf,
    pub library: Option<PathBuf>,
    pub head: Option<Head>,
    pub plan: Plan,
}

/// A loaded model.
pub struct OnnxEngine {
    spec: ModelSpec,
    session: Session,
    input_name: CString,
    /// Of the one output that is read; others are not asked for and so not computed where that is possible.
    output_name: CString,
    /// `[frames, …]` without the first, of the output.
    output_dims: Vec<i64>,
    host: HostMemory,
    /// Of a run after which the arena is shrunk.
    shrink: RunOptions,
    /// Whether there is an arena, as far as is known.
    has_arena: AtomicBool,
}

impl OnnxEngine {
    /// Loads the model and runs it twice, to learn its real shapes and speed and to lay its arena out: first with the
    /// `max_batch` frames that are wanted together, or as many as there is room for, then with one. `ledger` has what the
    /// load is thought to take, and then what was measured.
    ///
    /// # Errors
    /// [`EngineErrorKind::NoBudget`] too, where a batch of the least size takes more than there is.
    pub fn load(
        options: &SessionOptions,
        max_batch: usize,
        ledger: &mut Ledger,
    ) -> Result<Self, EngineError> {
        let rss_before = memory::resident_bytes();
        let file = options.model.as_path();
        let environment = runtime::environment(options.library.as_deref())?;
        let session = open(environment, options).map_err(|error| {
            unsupported(
                file,
                "ONNX Runtime cannot load it; it is no ONNX file, damaged, or made for a newer ONNX Runtime"
                    .into(),
                error,
            )
        })?;
        // The parsed file and the graph before optimisation were left behind: gone before the first run, they do not add
        // to the peak.
        memory::return_free_heap();
        let rss_opened = memory::resident_bytes();
        let metadata = read_metadata(&session);
        let inputs: Vec<_> = session.inputs().iter().map(declared).collect();
        let plan = InputPlan::find(file, &inputs, &metadata)?;
        let host = HostMemory::new().map_err(|error| run_failed(file, error))?;
        let input_name = c_name(file, &inputs[0].name)?;

        let callers = options.plan.callers.max(1);
        let reserved = ledger.held();
        let least = plan.batch.capacity(1);
        ledger.laid_out(least, reserved.arena / least as u64);
        let (frames, shapes) = lay_out(max_batch, &plan, ledger, file, |frames| {
            probe(&session, &host, &plan, &input_name, frames, file)
        })?;
        let layout =
            Layout::find(options.head, &metadata, (plan.height as usize, plan.width as usize), &shapes)
                .map_err(|error| unsupported(file, error.to_string(), ""))?;
        let chosen = &session.outputs()[layout.output];
        let (output_element, _) = tensor_type(chosen.dtype());
        let Some(output_element) = output_element else {
            return Err(unsupported(file, format!("its output {} is not of floats", chosen.name()), ""));
        };
        let output_dims = shapes[layout.output].dims.iter().skip(1).map(|&dim| dim as i64).collect();

        let mut engine = Self {
            output_name: c_name(file, chosen.name())?,
            spec: ModelSpec {
                file: options.model.clone(),
                input_size: (plan.width, plan.height),
                batch: plan.batch,
                input: plan.frame(),
                output: FrameExtent { element: output_element, len: layout.frame_len() },
                labels: metadata.names.map(Labels::new),
                layout,
                callers: options.plan.callers,
                device: "cpu".into(),
                warm_run: Default::default(),
                loaded_bytes: 0,
            },
            session,
            input_name,
            output_dims,
            host,
            shrink: shrink_options().map_err(|error| run_failed(file, error))?,
            has_arena: true.into(),
        };
        let mut warm =
            BatchTensor::new(least, engine.spec.input).map_err(|error| EngineError::no_room(file, error))?;
        let start = Instant::now();
        engine.run(&mut warm, 0..least, &mut |_| ())?;
        engine.spec.warm_run = start.elapsed();
        drop(warm);
        memory::return_free_heap();
        let rss_ran = memory::resident_bytes();
        engine.spec.loaded_bytes = rss_ran.saturating_sub(rss_before);
        let arena = rss_ran.saturating_sub(rss_opened).saturating_mul(callers as u64);
        ledger.laid_out(frames, arena / frames as u64);
        // The tensors are the batcher's, made when a stream comes.
        ledger.set(Need { model: rss_opened.saturating_sub(rss_before), arena, tensors: 0 });
        Ok(engine)
    }

    /// The view of these frames of `batch`, made at the first run of them.
    fn view<'a>(&self, batch: &'a mut BatchTensor, frames: &Range<usize>) -> ort::Result<&'a OwnedValue> {
        if views(batch).and_then(|views| views.of(frames)).is_none() {
            let (width, height) = self.spec.input_size;
            let extent = self.spec.input;
            let Some(bytes) = batch.input_bytes() else {
                return Err(ort::Error::new("a slot of the batch is still out"));
            };
            let bytes = &mut bytes[frames.start * extent.bytes()..frames.end * extent.bytes()];
            let shape = [frames.len() as i64, 3, i64::from(height), i64::from(width)];
            let view = self.host.view(bytes, &shape, extent.element)?;
            if !batch.binding.as_ref().is_some_and(|binding| binding.is::<Views>()) {
                batch.binding = Some(Box::new(Views::default()));
            }
            if let Some(views) = batch.binding.as_mut().and_then(|binding| binding.downcast_mut::<Views>()) {
                views.0.push((frames.clone(), view));
            }
        }
        views(batch)
            .and_then(|views| views.of(frames))
            .ok_or_else(|| ort::Error::new("the batch has no view"))
    }

    fn run_with(
        &self,
        batch: &mut BatchTensor,
        frames: Range<usize>,
        read: &mut dyn FnMut(Output<'_>),
        options: Option<&RunOptions>,
    ) -> Result<(), EngineError> {
        debug_assert!(frames.end <= batch.capacity());
        let FrameExtent { element, len } = self.spec.output;
        let failed = |error| run_failed(&self.spec.file, error);
        let value = self.run_batch(batch, &frames, options).map_err(failed)?;
        let values = value.values(element, frames.len() * len).map_err(failed)?;
        read(Output { values, frame_len: len });
        Ok(())
    }

    fn run_batch(
        &self,
        batch: &mut BatchTensor,
        frames: &Range<usize>,
        options: Option<&RunOptions>,
    ) -> ort::Result<OwnedValue> {
        if !batch.all_slots_returned() {
            return Err(ort::Error::new("a slot of the batch is still out"));
        }
        let input = self.view(batch, frames)?.0.as_ptr().cast_const();
        let mut output = ptr::null_mut();
        call(
            &self.session,
            options,
            &self.input_name,
            input,
            &[self.output_name.as_ptr()],
            std::slice::from_mut(&mut output),
        )?;
        let Some(value) = NonNull::new(output).map(OwnedValue) else {
            return Err(ort::Error::new("the run gave no output"));
        };
        let (element, dims) = value.element_and_dims()?;
        let same = dims.first() == Some(&(frames.len() as i64)) && dims[1..] == self.output_dims[..];
        if !same || element != Some(self.spec.output.element) {
            return Err(ort::Error::new(format!(
                "the output's shape changed from {:?} to {:?} between runs",
                self.output_dims,
                &dims[..]
            )));
        }
        Ok(value)
    }
}

impl Engine for OnnxEngine {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn run(
        &self,
        batch: &mut BatchTensor,
        frames: Range<usize>,
        read: &mut dyn FnMut(Output<'_>),
    ) -> Result<(), EngineError> {
        self.run_with(batch, frames, read, None)
    }

    fn run_and_shrink(
        &self,
        batch: &mut BatchTensor,
        frames: Range<usize>,
        read: &mut dyn FnMut(Output<'_>),
    ) -> Result<Option<u64>, EngineError> {
        if self.has_arena.load(Ordering::Relaxed) {
            let before = memory::resident_bytes();
            if self.run_with(batch, frames.clone(), read, Some(&self.shrink)).is_ok() {
                return Ok(Some(before.saturating_sub(memory::resident_bytes())));
            }
        }
        // Without an arena, which an application may have replaced, ONNX Runtime refuses such a run before it begins.
        self.run_with(batch, frames, read, None)?;
        self.has_arena.store(false, Ordering::Relaxed);
        Ok(None)
    }
}

fn open(environment: &ort::environment::Environment, options: &SessionOptions) -> ort::Result<Session> {
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
fn shrink_options() -> ort::Result<RunOptions> {
    let mut options = RunOptions::new()?;
    options.set("memory.enable_memory_arena_shrinkage", "cpu:0")?;
    // As for the session: what goes wrong is reported by us.
    options.set_log_level(LogLevel::Fatal)?;
    Ok(options)
}

/// Calls `probe` with `max_batch` frames, or with as many as there is room for, which are then in the ledger. How many that
/// was, and what it found.
fn lay_out<T>(
    max_batch: usize,
    plan: &InputPlan,
    ledger: &mut Ledger,
    file: &Path,
    probe: impl Fn(usize) -> Result<T, EngineError>,
) -> Result<(usize, T), EngineError> {
    let mut frames = plan.batch.capacity(max_batch.max(1));
    let can_be_fewer = |frames: usize| frames > 1 && !plan.batch.is_fixed();
    loop {
        let tensor = (frames - plan.batch.capacity(1)) as u64 * plan.frame().bytes() as u64;
        let outcome = match ledger.admit(frames, tensor) {
            Ok(()) => {
                let outcome = probe(frames);
                ledger.release(tensor);
                outcome
            }
            Err(exceeded) => {
                let held = ledger.held();
                let need = Need { arena: held.arena.saturating_add(exceeded.wanted), ..held };
                Err(EngineError::no_budget(file, need, &exceeded))
            }
        };
        match outcome {
            Ok(found) => return Ok((frames, found)),
            Err(EngineError { kind: EngineErrorKind::OutOfMemory | EngineErrorKind::NoBudget, .. })
                if can_be_fewer(frames) =>
            {
                frames = ceiling::part(frames);
            }
            Err(error) => return Err(error),
        }
    }
}

fn read_metadata(session: &Session) -> ModelMetadata {
    match session.metadata() {
        Ok(metadata) => ModelMetadata::read(|key| metadata.custom(key)),
        Err(_) => ModelMetadata::default(),
    }
}

fn declared(input: &Outlet) -> DeclaredInput {
    let (element, dims) = tensor_type(input.dtype());
    DeclaredInput { name: input.name().to_string(), dims, element, type_name: input.dtype().to_string() }
}

/// The element, where it is a float that we know, and the dimensions; open ones are -1.
fn tensor_type(dtype: &ValueType) -> (Option<Element>, Vec<i64>) {
    let element = match dtype.tensor_type() {
        Some(TensorElementType::Float32) => Some(Element::F32),
        Some(TensorElementType::Float16) => Some(Element::F16),
        _ => None,
    };
    (element, dtype.tensor_shape().map(|shape| shape.to_vec()).unwrap_or_default())
}

/// Runs the model once on black frames and reports every output's real shape.
fn probe(
    session: &Session,
    host: &HostMemory,
    plan: &InputPlan,
    input_name: &CString,
    frames: usize,
    file: &Path,
) -> Result<Vec<OutputShape>, EngineError> {
    let mut batch =
        BatchTensor::new(frames, plan.frame()).map_err(|error| EngineError::no_room(file, error))?;
    let shape = [frames as i64, 3, i64::from(plan.height), i64::from(plan.width)];
    let names: Vec<CString> =
        session.outputs().iter().map(|output| c_name(file, output.name())).collect::<Result<_, _>>()?;
    let name_pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
    let mut values = vec![ptr::null_mut(); names.len()];
    let outcome = (|| {
        let bytes = batch.input_bytes().ok_or_else(|| ort::Error::new("a slot of the batch is still out"))?;
        let input = host.view(bytes, &shape, plan.element)?;
        call(session, None, input_name, input.0.as_ptr(), &name_pointers, &mut values)
    })();
    let values: Vec<_> = values.into_iter().map(|value| NonNull::new(value).map(OwnedValue)).collect();
    outcome.map_err(|error| {
        if ran_out_of_memory(&error.to_string()) {
            return run_failed(file, error);
        }
        unsupported(
            file,
            format!("it cannot run on a picture of {}x{} pixels", plan.width, plan.height),
            error,
        )
    })?;
    let shape_of = |(output, value): (&Outlet, &Option<OwnedValue>)| {
        // Sequences and maps have no shape; the layout passes over them.
        let is_tensor = output.dtype().is_tensor();
        let known = value.as_ref().filter(|_| is_tensor).and_then(|value| value.element_and_dims().ok());
        let (element, dims) = known.unwrap_or_default();
        OutputShape {
            name: output.name().to_string(),
            dims: dims.iter().map(|&dim| dim.max(0) as usize).collect(),
            float: element.is_some(),
        }
    };
    Ok(session.outputs().iter().zip(&values).map(shape_of).collect())
}

fn c_name(file: &Path, name: &str) -> Result<CString, EngineError> {
    CString::new(name)
        .map_err(|error| unsupported(file, format!("the name {name:?} holds a zero byte"), error))
}

fn unsupported(file: &Path, what: String, detail: impl std::fmt::Display) -> EngineError {
    EngineError::new(
        EngineErrorKind::ModelUnsupported,
        format!("the model {} cannot be used: {what}", file.display()),
        detail,
    )
}

fn run_failed(file: &Path, error: ort::Error) -> EngineError {
    let (kind, what) = if ran_out_of_memory(&error.to_string()) {
        (EngineErrorKind::OutOfMemory, "ran out of memory")
    } else {
        (EngineErrorKind::Run, "failed")
    };
    EngineError::new(kind, format!("running the model {} {what}", file.display()), error)
}

/// ONNX Runtime has no error code for this. The words are those of its arena (at its limit; the system refuses more), of
/// the C++ library, and of CUDA.
fn ran_out_of_memory(message: &str) -> bool {
    [
        "Failed to allocate memory",
        "is smaller than requested bytes",
        "bad_alloc",
        "bad allocation",
        "out of memory",
        "CUDA_ERROR_OUT_OF_MEMORY",
    ]
    .iter()
    .any(|words| message.contains(words))
}

/// One call of `OrtApi::Run`. A null in `outputs` is allocated by ONNX Runtime and then the caller's.
fn call(
    session: &Session,
    options: Option<&RunOptions>,
    input_name: &CString,
    input: *const OrtValue,
    output_names: &[*const std::ffi::c_char],
    outputs: &mut [*mut OrtValue],
) -> ort::Result<()> {
    debug_assert_eq!(output_names.len(), outputs.len());
    let options = options.map_or(ptr::null(), AsPointer::ptr);
    // SAFETY: the session, the options, both name lists, the input value and every non-null output value are alive during
    // the call, and the lengths are those of the lists. `Run` does not change the session's own state.
    unsafe {
        ort::Error::result_from_status((ort::api().Run)(
            session.ptr().cast_mut(),
            options,
            &input_name.as_ptr(),
            &input,
            1,
            output_names.as_ptr(),
            outputs.len(),
            outputs.as_mut_ptr(),
        ))
    }
}

/// Views of one [`BatchTensor`], by the frames that they show.
#[derive(Default)]
struct Views(Vec<(Range<usize>, OwnedValue)>);

impl Views {
    fn of(&self, frames: &Range<usize>) -> Option<&OwnedValue> {
        self.0.iter().find(|(of, _)| of == frames).map(|(_, view)| view)
    }
}

fn views(batch: &BatchTensor) -> Option<&Views> {
    batch.binding.as_ref()?.downcast_ref()
}

/// An `OrtValue` that is ours to release.
struct OwnedValue(NonNull<OrtValue>);

// SAFETY: an OrtValue is reference-counted data without ties to a thread, and this is its only handle here.
unsafe impl Send for OwnedValue {}

impl Drop for OwnedValue {
    fn drop(&mut self) {
        // SAFETY: owned, released once.
        unsafe { (ort::api().ReleaseValue)(self.0.as_ptr()) }
    }
}

/// A tensor's shape, which is asked for after every run: not on the heap.
#[derive(Default)]
struct Dims {
    sizes: [i64; Self::MAX_RANK],
    rank: usize,
}

impl Dims {
    /// More than any model has.
    const MAX_RANK: usize = 16;

    fn of_rank(&mut self, rank: usize) -> ort::Result<&mut [i64]> {
        self.rank = rank;
        self.sizes.get_mut(..rank).ok_or_else(|| {
            ort::Error::new(format!("an output has {rank} dimensions, more than {}", Self::MAX_RANK))
        })
    }
}

impl Deref for Dims {
    type Target = [i64];

    fn deref(&self) -> &[i64] {
        &self.sizes[..self.rank.min(Self::MAX_RANK)]
    }
}

impl OwnedValue {
    fn element_and_dims(&self) -> ort::Result<(Option<Element>, Dims)> {
        let mut info = ptr::null_mut();
        let mut element = OrtElement::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
        let mut count = 0;
        let mut dims = Dims::default();
        // SAFETY: the value is alive; `info` is released below on every path; `dims` has room for `count`.
        unsafe {
            ort::Error::result_from_status((ort::api().GetTensorTypeAndShape)(self.0.as_ptr(), &mut info))?;
            let outcome = (|| {
                ort::Error::result_from_status((ort::api().GetTensorElementType)(info, &mut element))?;
                ort::Error::result_from_status((ort::api().GetDimensionsCount)(info, &mut count))?;
                let dims = dims.of_rank(count)?;
                ort::Error::result_from_status((ort::api().GetDimensions)(info, dims.as_mut_ptr(), count))
            })();
            (ort::api().ReleaseTensorTypeAndShapeInfo)(info);
            outcome?;
        }
        let element = match element {
            OrtElement::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT => Some(Element::F32),
            OrtElement::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 => Some(Element::F16),
            _ => None,
        };
        Ok((element, dims))
    }

    /// The tensor's first `len` values; the caller knows from its type and shape that it has as many.
    fn values(&self, element: Element, len: usize) -> ort::Result<OutputRef<'_>> {
        let mut data = ptr::null_mut();
        // SAFETY: the value is alive and a tensor in host memory; its type and shape were checked by the caller, so
        // `len` elements are there for as long as the value lives, aligned as ONNX Runtime aligns its tensors (beyond
        // either type's need); any bits are a valid float.
        unsafe {
            ort::Error::result_from_status((ort::api().GetTensorMutableData)(self.0.as_ptr(), &mut data))?;
            if data.is_null() {
                return Err(ort::Error::new("the output has no data"));
            }
            Ok(match element {
                Element::F32 => OutputRef::F32(std::slice::from_raw_parts(data.cast(), len)),
                Element::F16 => OutputRef::F16(std::slice::from_raw_parts(data.cast(), len)),
            })
        }
    }
}

/// ONNX Runtime's description of ordinary host memory.
struct HostMemory(NonNull<OrtMemoryInfo>);

// SAFETY: an immutable description.
unsafe impl Send for HostMemory {}
// SAFETY: as above.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    fn new() -> ort::Result<Self> {
        let mut info = ptr::null_mut();
        // SAFETY: `info` is an out parameter.
        unsafe {
            ort::Error::result_from_status((ort::api().CreateCpuMemoryInfo)(
                ort::sys::OrtAllocatorType::OrtDeviceAllocator,
                ort::sys::OrtMemType::OrtMemTypeDefault,
                &mut info,
            ))?;
        }
        NonNull::new(info).map(Self).ok_or_else(|| ort::Error::new("no memory description"))
    }

    /// A tensor over `bytes`, which must outlive it: [`BatchTensor`] drops its binding before its memory.
    fn view(&self, bytes: &mut [u8], shape: &[i64], element: Element) -> ort::Result<OwnedValue> {
        let element = match element {
            Element::F32 => OrtElement::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
            Element::F16 => OrtElement::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        };
        let mut value = ptr::null_mut();
        // SAFETY: ONNX Runtime checks the length against the shape; the memory outlives the value (above).
        unsafe {
            ort::Error::result_from_status((ort::api().CreateTensorWithDataAsOrtValue)(
                self.0.as_ptr(),
                bytes.as_mut_ptr().cast(),
                bytes.len(),
                shape.as_ptr(),
                shape.len(),
                element,
                &mut value,
            ))?;
        }
        NonNull::new(value).map(OwnedValue).ok_or_else(|| ort::Error::new("no tensor"))
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // SAFETY: owned, released once.
        unsafe { (ort::api().ReleaseMemoryInfo)(self.0.as_ptr()) }
    }
}
