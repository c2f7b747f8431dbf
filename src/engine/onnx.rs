//! One ONNX Runtime session behind [`Engine`]. These files and [`super::runtime`] alone name `ort`.
//!
//! A run goes through the C API: its input is a view, made once, of a [`BatchTensor`]'s own memory, and its output is
//! read where ONNX Runtime has put it, so that a run copies no tensor and allocates nothing on our side. ONNX Runtime documents that `Run` may be
//! called by several threads at once on one session; `ort`'s own call wants it exclusively. `tests/callers.rs` compares
//! 100,000 such runs, bit by bit, with single ones.

mod cuda;
mod openvino;
pub mod optimize;
mod probe;
mod session;
mod value;

use std::ffi::CString;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ort::session::{RunOptions, Session};

use self::probe::{declared, lay_out, probe, read_metadata, tensor_type};
use self::value::{HostMemory, OwnedValue, Views, call, views};
use super::active::ActiveDevice;
use super::cache::{Entry, Figures};
use super::device::Device;
use super::model::InputPlan;
use super::plan::Plan;
use super::{Engine, EngineError, EngineErrorKind, ModelSpec, Output, gpu, runtime};
use crate::batch::{Ledger, Need};
use crate::decode::{Head, Layout};
use crate::detection::Labels;
use crate::memory;
use crate::memory::sample::Process;
use crate::tensor::{BatchTensor, FrameExtent};

/// All that decides how a model is loaded; equal options on equal content share an engine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionOptions {
    pub model: PathBuf,
    pub library: Option<PathBuf>,
    pub head: Option<Head>,
    pub device: Device,
    pub plan: Plan,
    /// For a GPU.
    pub gpu: gpu::Options,
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
    /// What the load taught, or an earlier one.
    figures: Figures,
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
        Self::load_from(options, None, max_batch, ledger)
    }

    /// As [`Self::load`], from a `cached` form of the model, where there is one. Its figures stand in for the runs, as far as
    /// they are of as many frames and threads: the arena is laid out by the first frames then.
    pub fn load_from(
        options: &SessionOptions,
        cached: Option<&Entry>,
        max_batch: usize,
        ledger: &mut Ledger,
    ) -> Result<Self, EngineError> {
        let before = Process::now();
        let file = options.model.as_path();
        let environment = runtime::environment(options.library.as_deref())?;
        let optimized = cached.map(Entry::graph);
        let session = session::open(environment, options, optimized.as_deref())?;
        // The parsed file and the graph before optimisation were left behind: gone before the first run, they do not add
        // to the peak.
        memory::return_free_heap();
        let opened = Process::now();
        let metadata = read_metadata(&session);
        let inputs: Vec<_> = session.inputs().iter().map(declared).collect();
        let mut plan = InputPlan::find(file, &inputs, &metadata)?;
        plan.batch = session::batch_size(&options.device, plan.batch);
        let host = HostMemory::new().map_err(|error| run_failed(file, error))?;
        let input_name = c_name(file, &inputs[0].name)?;

        let callers = options.plan.callers.max(1);
        let reserved = ledger.held();
        let least = plan.batch.capacity(1);
        ledger.laid_out(least, reserved.arena / least as u64);
        let known = cached.map(Entry::figures).filter(|figures| {
            figures.frames == plan.batch.capacity(max_batch.max(1))
                && names(&session).eq(figures.outputs.iter().map(|output| output.name.as_str()))
                && ledger.admit(figures.frames, 0).is_ok()
        });
        let (frames, shapes) = match known {
            Some(figures) => (figures.frames, figures.outputs.clone()),
            None => lay_out(max_batch, &plan, ledger, file, |frames| {
                probe(&session, &host, &plan, &input_name, frames, file)
            })?,
        };
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
                device: ActiveDevice::new(&options.device.resolved().to_string()),
                warm_run: Default::default(),
                loaded_bytes: 0,
                cached: cached.is_some(),
            },
            session,
            input_name,
            output_dims,
            host,
            shrink: session::shrink_options().map_err(|error| run_failed(file, error))?,
            has_arena: true.into(),
            figures: Figures { frames, threads: options.plan.threads, outputs: shapes, ..Default::default() },
        };
        engine.spec.warm_run = match known {
            Some(figures) if figures.threads == options.plan.threads => figures.warm_run,
            _ => engine.time_run(least)?,
        };
        let ran = Process::now();
        let (model, arena) = match (known, cached) {
            (Some(figures), _) => (figures.model, figures.arena),
            (None, None) => (
                opened.resident.saturating_sub(before.resident),
                ran.resident.saturating_sub(opened.resident),
            ),
            // The weights are pages of a file, which come with the first run.
            (None, Some(_)) => {
                let arena = ran.anonymous.saturating_sub(opened.anonymous);
                (ran.resident.saturating_sub(before.resident).saturating_sub(arena), arena)
            }
        };
        engine.spec.loaded_bytes = model.saturating_add(arena);
        engine.figures = Figures { model, arena, warm_run: engine.spec.warm_run, ..engine.figures };
        let arena = arena.saturating_mul(callers as u64);
        ledger.laid_out(frames, arena / frames as u64);
        // The tensors are the batcher's, made when a stream comes.
        ledger.set(Need { model, arena, tensors: 0 });
        Ok(engine)
    }

    /// What the load taught.
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// How long one more run takes, of so many black frames.
    fn time_run(&self, frames: usize) -> Result<Duration, EngineError> {
        let batch = BatchTensor::new(frames, self.spec.input);
        let mut batch = batch.map_err(|error| EngineError::no_room(&self.spec.file, error))?;
        let start = Instant::now();
        self.run(&mut batch, 0..frames, &mut |_| ())?;
        let time = start.elapsed();
        drop(batch);
        memory::return_free_heap();
        Ok(time)
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

fn names(session: &Session) -> impl Iterator<Item = &str> {
    session.outputs().iter().map(|output| output.name())
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
