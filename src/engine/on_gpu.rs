//! Loads of engines on NVIDIA's GPUs: within the budget, measured, and recovering.

use std::panic;
use std::sync::Arc;
use std::thread;

use super::device::Device;
use super::gpu::budget::{self, Fitted, GpuUse, Measured, Outcome, Room};
use super::gpu::driver::DriverError;
use super::onnx::{self, OnnxEngine, SessionOptions};
use super::plan::Plan;
use super::recover::{self, Agrees, Consent, Recovering, Sessions};
use super::{Engine, EngineError, EngineErrorKind, Memory, estimate, hash, registry, room, runtime};
use crate::batch::{Ledger, Need, Place};
use crate::memory::budget::{Budget, Megabytes};
use crate::memory::nvml;

/// Calls `load` on a thread that ends with it. ONNX Runtime changes which GPU is the current one of the thread that it is called by, which the
/// application's threads have their own use for; and it keeps what it has of sessions by thread, without a lock between a load there and the end of a
/// session elsewhere.
///
/// # Errors
/// Those of `load`, and where there can be no thread.
pub(super) fn apart<T: Send>(load: impl FnOnce() -> Result<T, EngineError> + Send) -> Result<T, EngineError> {
    /// As a process's first thread has it.
    const STACK: usize = 8 << 20;
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("yolo-load".into()).stack_size(STACK);
        match thread.spawn_scoped(scope, load) {
            Ok(thread) => thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic)),
            Err(error) => {
                let message = "a thread for the load cannot be started";
                Err(EngineError::new(EngineErrorKind::Settings, message, error))
            }
        }
    })
}

/// What is to be loaded.
pub(super) struct Order {
    pub options: SessionOptions,
    pub gpu: u32,
    pub model_hash: u128,
    /// Frames that shall run together.
    pub max_batch: usize,
    /// That the CPU may use in the GPU's place.
    pub cores: usize,
    pub consent: Arc<Consent>,
}

/// The engine, and what it is measured to take in the two ledgers: `ledger` has the host's.
///
/// # Errors
/// Those of [`OnnxEngine::load`]; [`EngineErrorKind::NoBudget`] with the sum where the budget of the GPU has no room.
pub(super) fn load(order: Order, ledger: &mut Ledger) -> Result<Arc<dyn Engine>, EngineError> {
    let Order { mut options, gpu, model_hash, max_batch, cores, consent } = order;
    let file = options.model.clone();
    let failed = |error: DriverError| {
        let message = format!("the driver does not tell of the memory of GPU {gpu}");
        EngineError::new(EngineErrorKind::DeviceLost, message, error)
    };
    // Makes CUDA's context, so that it is not taken for a part of the model.
    let card = onnx::open_card(&options, gpu).map_err(|error| error.of(Memory::Gpu))?;
    let _load = budget::Load::begin(gpu);
    let there = card.memory().map_err(failed)?;
    let budget = budget::of(gpu);
    let room = Room {
        limit: budget.ceiling().unwrap_or_else(|| budget::automatic(there.total)),
        context: budget::learn_context(gpu, card.context_bytes()),
        others: budget.reserved(),
    };
    let crowded = there.free < room.free();
    let placed = (model_hash, options.device.clone());
    let wish = estimate::estimate(&placed, &file).on_gpu(&file, max_batch);
    let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy().into_owned();
    let mut held = Ledger::new(budget, &name);
    let thought = ledger.held();

    let attempt = |share: &budget::Share| {
        options.gpu_limit = Some(share.arena);
        // Batches of other engines do not grow into it.
        held.set(Need { model: share.arena, tensors: share.tensors, ..Need::default() });
        ledger.set(thought);
        match OnnxEngine::load_from(&options, None, share.frames, ledger) {
            Ok(engine) => {
                let spec = engine.spec();
                let frame_tensors = (spec.input.bytes() + spec.output.bytes()) as u64;
                let frames = engine.figures().frames;
                // The context is there before and after.
                let used = engine.gpu_bytes().map_or(0, |bytes| GpuUse { context: 0, ..bytes }.total());
                Ok(Outcome::Loaded(engine, Measured { used, frames, frame_tensors }))
            }
            // Where it is the host's, the load has tried fewer frames by itself.
            Err(error)
                if error.kind == EngineErrorKind::OutOfMemory && error.memory != Some(Memory::Host) =>
            {
                Ok(Outcome::OutOfMemory(error))
            }
            Err(error) => Err(error),
        }
    };
    let Fitted { engine, measured, .. } = budget::fit(&room, wish, attempt, |short, error| match error {
        Some(error) if crowded => {
            let message = format!(
                "{}: of GPU {gpu} only {} were free of {}; end what else uses it, or use device=cpu",
                error.message,
                Megabytes(there.free),
                Megabytes(there.total)
            );
            EngineError::new(EngineErrorKind::OutOfMemory, message, error.detail).of(Memory::Gpu)
        }
        error => short.error(&file, gpu, error.map(|error| error.to_string()).unwrap_or_default()),
    })?;

    let Measured { frames, frame_tensors, .. } = measured;
    let GpuUse { model, arena, tensors, .. } = engine.gpu_bytes().unwrap_or_default();
    held.set(Need { model, arena, tensors });
    held.laid_out(frames, arena / frames.max(1) as u64);
    if frames < engine.spec().batch.capacity(max_batch) && !crowded {
        held.bound_frames(frames);
    }
    // Of what the host has only the pinned outputs grow with the batch.
    let (host, output) = (ledger.held(), ledger.frame_arena());
    let pinned = output.saturating_mul(frames as u64);
    let rest = host.model.saturating_add(host.arena).saturating_sub(pinned);
    ledger.set(Need { model: rest, arena: pinned, ..host });
    ledger.laid_out(frames, output);
    let place = Place::on_gpu(held, budget::tensors(1, frame_tensors), room.context);
    ledger.runs_in(place.clone());
    nvml::count(card.bus_id(), gpu, budget::held);
    let sessions = Remake { options, model_hash, frames, cores, place, consent };
    Ok(Arc::new(Recovering::new(Box::new(engine), Box::new(sessions))))
}

/// Makes sessions of an engine that was loaded before.
struct Remake {
    options: SessionOptions,
    model_hash: u128,
    frames: usize,
    cores: usize,
    place: Place,
    consent: Arc<Consent>,
}

/// For a session in place of another: what it takes is reserved already.
static RESERVED_ALREADY: Budget = Budget::new("", || 0);

impl Remake {
    fn load(
        &self,
        options: &SessionOptions,
        frames: usize,
        ledger: &mut Ledger,
    ) -> Result<OnnxEngine, EngineError> {
        let engine = OnnxEngine::load_from(options, None, frames, ledger)?;
        registry::stop_workers_at_exit();
        Ok(engine)
    }

    fn check_file(&self) -> Result<(), EngineError> {
        match hash::of_file(&self.options.model) {
            Ok(hash) if hash == self.model_hash => Ok(()),
            _ => Err(recover::changed(&self.options.model)),
        }
    }
}

impl Sessions for Remake {
    fn anew(&self) -> Result<Box<dyn Engine>, EngineError> {
        self.check_file()?;
        let _turn = registry::turn();
        let mut ledger = Ledger::new(&RESERVED_ALREADY, "");
        Ok(Box::new(self.load(&self.options, self.frames, &mut ledger)?))
    }

    fn on_cpu(&self, agrees: Agrees<'_>) -> Result<Box<dyn Engine>, EngineError> {
        self.check_file()?;
        let _turn = registry::turn();
        let file = &self.options.model;
        let options = SessionOptions {
            device: Device::Cpu,
            plan: Plan::instead_of_gpu(self.cores),
            gpu_limit: None,
            tensorrt_cache: None,
            ..self.options.clone()
        };
        let estimate = estimate::estimate(&(self.model_hash, Device::Cpu), file);
        let mut ledger = room::reserve(file, &estimate, options.plan.callers)?;
        let engine = self.load(&options, 1, &mut ledger)?;
        ledger.check().map_err(|exceeded| EngineError::no_budget(file, ledger.held(), &exceeded))?;
        agrees(engine.spec())?;
        ledger.bound_frames(engine.spec().batch.capacity(1));
        self.place.move_to_host(ledger);
        Ok(Box::new(engine))
    }

    fn cpu_allowed(&self) -> bool {
        self.consent.is_given()
    }

    fn exiting(&self) -> bool {
        runtime::exiting()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_has_a_thread_of_its_own_and_panics_for_its_caller() {
        let own = thread::current().id();
        assert_ne!(apart(|| Ok(thread::current().id())).unwrap(), own);
        let error = EngineError::new(EngineErrorKind::Run, "no", "");
        assert_eq!(apart::<()>(|| Err(error)).unwrap_err().kind, EngineErrorKind::Run);
        let panic = panic::catch_unwind(|| apart::<()>(|| panic!("as the test wants it"))).unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"as the test wants it"));
    }
}
