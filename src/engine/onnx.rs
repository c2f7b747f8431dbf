//! One ONNX Runtime session behind [`Engine`]. These files and [`super::runtime`] alone name `ort`.
//!
//! A run goes through the C API: on host memory (`host`) without a copy, on a GPU (`lanes`) with copies that overlap other runs.
//! ONNX Runtime documents that `Run` may be called by several threads at once on one session; `ort`'s own call wants it
//! exclusively. `tests/callers.rs` compares 100,000 such runs, bit by bit, with single ones.

mod binding;
mod cuda;
mod failure;
mod held;
mod host;
mod lanes;
mod openvino;
pub mod optimize;
mod ports;
mod probe;
mod session;
mod value;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ort::session::{RunOptions, Session};

pub use self::cuda::{check as check_gpu, open_card};
use self::failure::{Failure, run_failed};
use self::held::Held;
use self::lanes::Lanes;
use self::ports::Ports;
use self::probe::{declared, lay_out, probe, read_metadata};
use self::value::MemoryPlace;
use super::active::ActiveDevice;
use super::cache::{Entry, Figures};
use super::device::Device;
use super::gpu::budget::GpuUse;
use super::gpu::driver::{self, Card};
use super::model::InputPlan;
use super::plan::Plan;
use super::{Engine, EngineError, EngineErrorKind, ModelSpec, Output, gpu, runtime};
use crate::batch::{Ledger, Need};
use crate::decode::{Head, OutputShape};
use crate::detection::Labels;
use crate::memory;
use crate::memory::sample::Process;
use crate::tensor::BatchTensor;

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
    /// Bytes of the GPU that weights and what is between the layers may take; `None` for as much as there is.
    pub gpu_limit: Option<u64>,
    /// The folder that TensorRT's compiled models and timings are kept in.
    pub tensorrt_cache: Option<PathBuf>,
}

/// A loaded model.
pub struct OnnxEngine {
    spec: ModelSpec,
    ports: Ports,
    /// Before the session that it runs.
    way: Way,
    session: Held,
    /// Of a run after which the arena is shrunk.
    shrink: RunOptions,
    /// Whether there is an arena that may be shrunk, as far as is known.
    has_arena: AtomicBool,
    /// Of runs that are not recorded, where others are.
    unrecorded: Option<RunOptions>,
    /// What the load taught, or an earlier one.
    figures: Figures,
    /// Last: its context is what all else is in.
    gpu: Option<Gpu>,
}

/// How a run reaches the batch's memory.
enum Way {
    Host(MemoryPlace),
    Gpu(Lanes),
}

struct Gpu {
    card: Arc<Card>,
    bytes: GpuUse,
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
        let card = cuda::card(options)?;
        // Other engines record none of their runs while this one loads.
        let _quiet = card.as_ref().map(|_| driver::quiet());
        let free = [free_bytes(&card)];
        let optimized = cached.map(Entry::graph);
        let records = card.is_some() && options.gpu.graph;
        let session = session::open(environment, options, optimized.as_deref(), max_batch)?;
        let session = Held::new(session, &card, records);
        // The parsed file and the graph before optimisation were left behind: gone before the first run, they do not add
        // to the peak.
        memory::return_free_heap();
        let opened = Process::now();
        let free = [free[0], free_bytes(&card)];
        let metadata = read_metadata(&session);
        let inputs: Vec<_> = session.inputs().iter().map(declared).collect();
        let mut plan = InputPlan::find(file, &inputs, &metadata)?;
        plan.batch = session::batch_size(&options.device, plan.batch);

        let failed = |error: ort::Error| run_failed(file, error);
        let shrink = session::shrink_options(&options.device).map_err(failed)?;
        let unrecorded = records.then(session::unrecorded_options).transpose().map_err(failed)?;
        let reserved = ledger.held();
        let least = plan.batch.capacity(1);
        // What is between the layers is in the GPU's memory there.
        let frame_arena = if card.is_some() { 0 } else { reserved.arena / least as u64 };
        ledger.laid_out(least, frame_arena);
        let known = cached.map(Entry::figures).filter(|figures| {
            card.is_none()
                && figures.frames == plan.batch.capacity(max_batch.max(1))
                && names(&session).eq(figures.outputs.iter().map(|output| output.name.as_str()))
                && ledger.admit(figures.frames, 0).is_ok()
        });
        let find =
            |shapes: &[OutputShape]| Ports::find(file, &session, options.head, &metadata, &plan, shapes);
        let loading =
            Loading { options, session: &session, plan: &plan, shrink: &shrink, unrecorded: &unrecorded };
        let (frames, (shapes, ports, layout, way)) = match (known, &card) {
            (Some(figures), _) => {
                let (ports, layout) = find(&figures.outputs)?;
                let way = Way::Host(MemoryPlace::host().map_err(failed)?);
                (figures.frames, (figures.outputs.clone(), ports, layout, way))
            }
            (None, None) => lay_out(max_batch, &plan, ledger, file, |frames| {
                let shapes = probe(&session, None, &plan, frames, file)?;
                let (ports, layout) = find(&shapes)?;
                Ok((shapes, ports, layout, Way::Host(MemoryPlace::host().map_err(failed)?)))
            })?,
            (None, Some(card)) => lay_out(max_batch, &plan, ledger, file, |frames| {
                let shapes = loading.probe_and_shrink(least)?;
                let (ports, layout) = find(&shapes)?;
                let lanes = loading.lanes(card, &ports, frames)?;
                Ok((shapes, ports, layout, Way::Gpu(lanes)))
            })?,
        };

        let mut engine = Self {
            spec: ModelSpec {
                file: options.model.clone(),
                input_size: (plan.width, plan.height),
                batch: plan.batch,
                input: ports.input,
                output: ports.output,
                labels: metadata.names.map(Labels::new),
                layout,
                callers: options.plan.callers,
                device: ActiveDevice::new(&options.device.resolved().to_string()),
                warm_run: Default::default(),
                loaded_bytes: 0,
                cached: cached.is_some(),
            },
            ports,
            way,
            session,
            shrink,
            // A recorded run is replayed with the memory that it was recorded with.
            has_arena: (!records).into(),
            unrecorded,
            figures: Figures { frames, threads: options.plan.threads, outputs: shapes, ..Default::default() },
            gpu: None,
        };
        engine.spec.warm_run = match known {
            Some(figures) if figures.threads == options.plan.threads => figures.warm_run,
            _ => engine.time_run(least)?,
        };
        engine.gpu = card.map(|card| Gpu { bytes: engine.gpu_use(&card, free), card });
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
        let (arena, frame_arena) = match &engine.way {
            Way::Host(_) => {
                let arena = arena.saturating_mul(options.plan.callers.max(1) as u64);
                (arena, arena / frames as u64)
            }
            // All lanes have run; what a larger batch adds is what it gives.
            Way::Gpu(_) => (arena, (options.plan.callers.max(1) * engine.spec.output.bytes()) as u64),
        };
        ledger.laid_out(frames, frame_arena);
        // The tensors are the batcher's, made when a stream comes.
        ledger.set(Need { model, arena, tensors: 0 });
        Ok(engine)
    }

    /// What it takes of its GPU; `None` for one that is on none.
    pub fn gpu_bytes(&self) -> Option<GpuUse> {
        self.gpu.as_ref().map(|gpu| gpu.bytes)
    }

    /// By what was `free` before and after the session was made.
    fn gpu_use(&self, card: &Arc<Card>, free: [u64; 2]) -> GpuUse {
        let tensors = match &self.way {
            Way::Host(_) => 0,
            Way::Gpu(lanes) => lanes.bytes(),
        };
        let ran = free_bytes(&Some(card.clone()));
        GpuUse {
            context: card.context_bytes(),
            model: free[0].saturating_sub(free[1]),
            arena: free[1].saturating_sub(ran).saturating_sub(tensors),
            tensors,
        }
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
        self.run_with(&mut batch, 0..frames, &mut |_| (), self.unrecorded.as_ref())?;
        let time = start.elapsed();
        drop(batch);
        memory::return_free_heap();
        Ok(time)
    }

    fn run_with(
        &self,
        batch: &mut BatchTensor,
        frames: Range<usize>,
        read: &mut dyn FnMut(Output<'_>),
        options: Option<&RunOptions>,
    ) -> Result<(), EngineError> {
        debug_assert!(frames.end <= batch.capacity());
        let (session, ports) = (&self.session, &self.ports);
        match &self.way {
            Way::Host(place) => {
                // Of an engine that was on a GPU.
                batch
                    .bring_home(frames.clone())
                    .map_err(|why| run_failed(&self.spec.file, ort::Error::new(why)))?;
                host::run(session, place, ports, batch, &frames, options, read).map_err(Failure::from)
            }
            Way::Gpu(lanes) => lanes.run(session, ports, batch, &frames, options, read),
        }
        .map_err(|error| run_failed(&self.spec.file, error))
    }

    /// What runs that shrink are measured by: bytes that the process has, or of the GPU that are taken.
    fn taken_bytes(&self) -> u64 {
        match &self.gpu {
            Some(gpu) => gpu.card.memory().map_or(0, |memory| memory.total - memory.free.min(memory.total)),
            None => memory::resident_bytes(),
        }
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
            let before = self.taken_bytes();
            match self.run_with(batch, frames.clone(), read, Some(&self.shrink)) {
                Ok(()) => return Ok(Some(before.saturating_sub(self.taken_bytes()))),
                // As which a refused option counts.
                Err(error) if error.kind == EngineErrorKind::Run => (),
                Err(error) => return Err(error),
            }
        }
        // Without an arena, which an application may have replaced, ONNX Runtime refuses such a run before it begins.
        self.run_with(batch, frames, read, None)?;
        self.has_arena.store(false, Ordering::Relaxed);
        Ok(None)
    }
}

/// What a load on a GPU goes on with when there is a session.
struct Loading<'a> {
    options: &'a SessionOptions,
    session: &'a Session,
    plan: &'a InputPlan,
    shrink: &'a RunOptions,
    unrecorded: &'a Option<RunOptions>,
}

impl Loading<'_> {
    /// The real shapes of the outputs. What the arena took for this run, or before for more frames than there was room for, is given
    /// back: it is to be laid out by the largest batch.
    fn probe_and_shrink(&self, frames: usize) -> Result<Vec<OutputShape>, EngineError> {
        let probe = |options| probe(self.session, options, self.plan, frames, &self.options.model);
        // There may be nothing that can be shrunk, for which ONNX Runtime has no code.
        match self.unrecorded {
            Some(unrecorded) => probe(Some(unrecorded)),
            None => probe(Some(self.shrink)).or_else(|error| match error.kind {
                EngineErrorKind::ModelUnsupported => probe(None),
                _ => Err(error),
            }),
        }
    }

    fn lanes(&self, card: &Arc<Card>, ports: &Ports, frames: usize) -> Result<Lanes, EngineError> {
        let file = self.options.model.as_path();
        let mut batch =
            BatchTensor::new(frames, ports.input).map_err(|error| EngineError::no_room(file, error))?;
        let lanes = Lanes::new(card, self.options, ports, frames).map_err(|error| run_failed(file, error))?;
        lanes
            .warm_up(self.session, ports, self.plan.batch, &mut batch, self.unrecorded.as_ref())
            .map_err(|error| run_failed(file, error))?;
        Ok(lanes)
    }
}

/// Bytes of the GPU that nobody has; 0 where there is no telling.
fn free_bytes(card: &Option<Arc<Card>>) -> u64 {
    card.as_ref().and_then(|card| card.memory().ok()).map_or(0, |memory| memory.free)
}

fn names(session: &Session) -> impl Iterator<Item = &str> {
    session.outputs().iter().map(|output| output.name())
}

fn unsupported(file: &Path, what: String, detail: impl std::fmt::Display) -> EngineError {
    EngineError::new(
        EngineErrorKind::ModelUnsupported,
        format!("the model {} cannot be used: {what}", file.display()),
        detail,
    )
}
