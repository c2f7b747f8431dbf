//! One engine per model, however many elements ask for it.
//!
//! Loading takes place outside the registry's lock, once: whoever asks for the same engine meanwhile waits
//! for that load and shares its outcome. Other loads wait too: what a model takes is measured by what the process
//! grows by, and their peaks shall not add up.
//!
//! Elements have a [`Lease`] on an engine. The registry holds it weakly while there is one; afterwards, for as long as
//! an element wanted it kept alive, itself ([`super::idle`]).
//!
//! Lock order: `loads`, then for a moment `engines`. An engine is dropped, which joins its threads, under neither but for
//! idle ones that make room for a load, under `loads`. A worker that sets its engine up anew (`super::recover`) waits for `loads` for a
//! bounded time (`turn`), since it may be the one that is joined.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::active::Change;
use super::cache::{Cache, Note, store, writer};
use super::choose::{self, Causes, Elsewhere, Machine, Recent};
use super::device::Device;
use super::estimate::{self, Estimate};
use super::idle::Idle;
use super::onnx::{OnnxEngine, SessionOptions, optimize};
use super::plan::{Hint, Plan};
use super::pressure::EnginePressure;
use super::recover::Consent;
use super::{Engine, EngineError, EngineErrorKind, gpu, hash, on_gpu, room, runtime};
use crate::batch::relief::Relief;
use crate::batch::{Batcher, Ledger, Stream, batcher};
use crate::decode::Head;
use crate::memory::budget::{self, Limit};

/// An engine as an element wants it.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub model: PathBuf,
    pub library: Option<PathBuf>,
    pub head: Option<Head>,
    pub device: Device,
    /// How it is used, where it is a GPU.
    pub gpu: gpu::Options,
    /// Whether the CPU shall do where the GPU cannot be used, or is lost; `None` where [`Device::Auto`] alone allows it.
    pub fallback: Option<bool>,
    /// Most bytes that the process may hold of the GPU; 0 for a share of its memory.
    pub gpu_budget: u64,
    /// The element's name, for messages.
    pub element: String,
    /// Of all runs together, at least 1.
    pub threads: usize,
    pub hint: Hint,
    /// Detectors that this process has now, for [`Hint::Auto`].
    pub detectors: usize,
    /// Frames that shall run together, for the warm-up; 0 for what the device is best with.
    pub max_batch: usize,
    /// How long the engine shall be kept after its last element has left.
    pub keep_alive: Duration,
    /// Where optimised models are kept; the first element decides that an engine has.
    pub cache: Option<Cache>,
}

/// What must agree for two elements to share an engine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct EngineKey {
    /// Of the file's content: copies and links of one model are one model.
    model_hash: u128,
    head: Option<Head>,
    device: Device,
    /// Of a GPU alone.
    gpu: Option<gpu::Options>,
    /// On a GPU they change nothing, and are as if nobody had set them.
    threads: usize,
    plan: Plan,
}

impl EngineKey {
    /// On `device`, which has been chosen.
    fn new(wanted: &Wanted, model_hash: u128, device: &Device) -> Self {
        let (gpu, threads, plan) = match device.gpu() {
            Some(_) => (Some(wanted.gpu), Plan::GPU.threads, Plan::GPU),
            None => (None, wanted.threads, Plan::new(wanted.hint, wanted.threads, wanted.detectors)),
        };
        Self { model_hash, head: wanted.head, device: device.clone(), gpu, threads, plan }
    }

    /// It runs, and where it was wanted: not on the CPU that took a GPU's place.
    fn still_has(&self, engine: &Batcher) -> bool {
        let is_there =
            self.device.gpu().is_none() || *engine.spec().device.name() == *self.device.to_string();
        is_there && !engine.is_lost()
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether the other is for the same model, differing in the plan at most.
    fn is_akin(&self, other: &Self) -> bool {
        *self == Self { plan: self.plan, ..other.clone() }
    }
}

pub(super) enum Known {
    Loading,
    Loaded(Entry),
}

pub(super) struct Entry {
    engine: Weak<Batcher>,
    /// To reach it without keeping it.
    relief: Relief,
    /// Of its elements.
    consent: Arc<Consent>,
    /// Why some of its elements have it and not the device that they asked for, as far as that was told.
    told: Vec<Causes>,
    /// Elements that have it now.
    users: usize,
    /// The longest that any of those wanted that ever had it.
    keep_alive: Duration,
    /// While there are no users.
    pub idle: Option<Idle>,
}

#[derive(Default)]
pub(super) struct Registry {
    pub engines: Mutex<Engines>,
    /// A load ended, well or not.
    settled: Condvar,
    /// Engines became idle or are so no longer.
    pub idled: Condvar,
    /// Held while a model loads.
    loads: Mutex<()>,
}

#[derive(Default)]
pub(super) struct Engines {
    pub known: Option<HashMap<EngineKey, Known>>,
    /// Of engines whose place another has, while they have elements.
    replaced: Vec<Relief>,
    /// Whether there is a thread that looks after the idle ones.
    pub keeper: bool,
}

static REGISTRY: Registry = Registry {
    engines: Mutex::new(Engines { known: None, replaced: Vec::new(), keeper: false }),
    settled: Condvar::new(),
    idled: Condvar::new(),
    loads: Mutex::new(()),
};

/// ONNX Runtime and this machine.
struct Here;

impl Machine for Here {
    fn built_in(&self, device: &Device) -> bool {
        runtime::has_provider(device)
    }

    fn check(&self, device: &Device) -> Result<(), EngineError> {
        super::onnx::check_gpu(device)
    }

    fn has_gpu(&self) -> bool {
        gpu::check::machine_has_gpu()
    }

    fn library(&self) -> String {
        runtime::library().map_or_else(|| "the one that is loaded".into(), |file| file.display().to_string())
    }
}

/// Loads on GPUs that failed.
static FAILED: Recent<Attempt> = Recent::new();

/// A load on a GPU, by all that this process has to do with how it ends.
#[derive(PartialEq)]
struct Attempt {
    key: EngineKey,
    budget: Option<u64>,
    /// Bytes that other engines hold.
    others: u64,
}

impl Attempt {
    /// As things are now; `None` where it is on no GPU.
    fn new(key: &EngineKey) -> Option<Self> {
        let budget = gpu::budget::of(key.device.gpu()?);
        Some(Self { key: key.clone(), budget: budget.ceiling(), others: budget.reserved() })
    }
}

/// The engine that is wanted, on the first device that can run it (`choose`), loaded now unless another element already has it. One
/// who leaves the plan open takes an engine with any.
///
/// # Errors
/// See [`super::runtime::environment`], [`gpu::check::check`], [`room::reserve`] and [`OnnxEngine::load`]; a model file that cannot be
/// read is [`EngineErrorKind::ModelMissing`]; [`EngineErrorKind::Settings`] where another element set another `gpu-memory-budget`.
pub fn get(wanted: &Wanted) -> Result<Lease, EngineError> {
    let model_hash = hash_of(wanted)?;
    // Also checks, for an engine that is there already, that the same library is meant.
    runtime::environment(wanted.library.as_deref())?;
    EnginePressure::watch(&REGISTRY);
    let gpu_limit = claim(wanted)?;
    let mut afterwards = Afterwards::default();
    let chosen = choose::choose(&wanted.device, wanted.fallback, &Here, |device| {
        let key = EngineKey::new(wanted, model_hash, device);
        REGISTRY.get(key.clone(), wanted.hint == Hint::Auto, |consent| {
            let _alone = REGISTRY.loads.lock();
            let attempt = Attempt::new(&key);
            if choose::allows_fallback(&wanted.device, wanted.fallback)
                && let Some(attempt) = &attempt
                && let Some(error) = FAILED.find(attempt, Instant::now())
            {
                return Err(error);
            }
            let outcome = REGISTRY.with_room(device, || {
                afterwards = Afterwards::default();
                load(wanted, &key, consent, &mut afterwards)
            });
            if let (Some(attempt), Err(error)) = (attempt, &outcome) {
                FAILED.note(attempt, Instant::now(), error);
            }
            outcome
        })
    });
    if let Some(cache) = &wanted.cache {
        afterwards.take_place(cache);
    }
    let (mut lease, elsewhere) = chosen?;
    lease.keep_for(wanted.keep_alive);
    lease.has(wanted, gpu_limit, elsewhere);
    Ok(lease)
}

fn hash_of(wanted: &Wanted) -> Result<u128, EngineError> {
    hash::of_file(&wanted.model).map_err(|error| {
        EngineError::new(
            EngineErrorKind::ModelMissing,
            format!(
                "the model {} cannot be read, {error}: set model-file to the path of an ONNX file",
                wanted.model.display()
            ),
            "",
        )
    })
}

/// Bounds the process's memory of the GPU that may be used.
fn claim(wanted: &Wanted) -> Result<Option<Limit>, EngineError> {
    let gpu = if wanted.device == Device::Auto { Some(0) } else { wanted.device.gpu() };
    let limit = gpu
        .filter(|_| wanted.gpu_budget != 0)
        .map(|gpu| gpu::budget::of(gpu).limit(&wanted.element, wanted.gpu_budget));
    limit
        .transpose()
        .map_err(|conflict| EngineError::new(EngineErrorKind::Settings, conflict.to_string(), ""))
}

/// Has those who want the same, until the lease is dropped, run `engine` instead of a model that is loaded; the model's file
/// only tells engines apart. For measurements of all that is not the engine.
pub fn lend(wanted: &Wanted, engine: Arc<dyn Engine>) -> Result<Lease, EngineError> {
    let ledger = Ledger::new(&budget::HOST, &wanted.model.display().to_string());
    let key = EngineKey::new(wanted, hash_of(wanted)?, &wanted.device.resolved());
    REGISTRY.get(key, false, |_| Batcher::new(engine, ledger))
}

/// Waits for the turn to load, which others have at the time: a load is measured by what the process grows by. For a worker of an
/// engine, which whoever has the turn may wait for in turn, to end that engine: so there is an end to it.
pub(super) fn turn() -> Option<MutexGuard<'static, ()>> {
    REGISTRY.loads.try_lock_for(EXIT_PATIENCE)
}

/// Engines that are kept without an element.
pub fn idle_engines() -> usize {
    REGISTRY.idle_engines()
}

/// What a load leaves to be done for the cache when no lock is held any more: whoever is told may start an element.
#[derive(Default)]
struct Afterwards {
    notes: Vec<Note>,
    order: Option<writer::Order>,
}

impl Afterwards {
    fn take_place(self, cache: &Cache) {
        self.notes.into_iter().for_each(|note| (cache.tell)(note));
        if let Some(order) = self.order {
            writer::start(cache, order);
        }
    }
}

fn load(
    wanted: &Wanted,
    key: &EngineKey,
    consent: &Arc<Consent>,
    afterwards: &mut Afterwards,
) -> Result<Batcher, EngineError> {
    let EngineKey { model_hash, plan, .. } = *key;
    let placed = (model_hash, key.device.clone());
    let max_batch = if wanted.max_batch == 0 { key.device.usual_batch() } else { wanted.max_batch };
    // An optimised graph is ONNX Runtime's own, for its own kernels.
    let cache = wanted.cache.as_ref().filter(|_| placed.1 == Device::Cpu);
    let mut place = cache.and_then(|cache| Some((cache, optimize::library_and_key(model_hash)?)));
    let mut cached = place.as_ref().and_then(|(cache, (_, key))| cache.find(key, &mut afterwards.notes));
    if let Some(entry) = &cached {
        estimate::expect(placed.clone(), &wanted.model, entry.figures());
    }
    let estimate = estimate::estimate(&placed, &wanted.model);
    let mut ledger = room::reserve(&wanted.model, &estimate, plan.callers)?;
    let options = SessionOptions {
        model: wanted.model.clone(),
        library: wanted.library.clone(),
        head: wanted.head,
        device: placed.1.clone(),
        plan,
        gpu: wanted.gpu,
        gpu_limit: None,
        tensorrt_cache: tensorrt_cache(wanted, key),
    };
    if let Some(gpu) = key.device.gpu() {
        let consent = consent.clone();
        let order = on_gpu::Order { options, gpu, model_hash, max_batch, cores: wanted.threads, consent };
        return on_gpu::apart(move || {
            let engine = on_gpu::load(order, &mut ledger)?;
            stop_workers_at_exit();
            let frame_tensor = engine.spec().input.bytes() as u64;
            let least = engine.spec().batch.capacity(1) as u64;
            // What its libraries keep for the process is in the first load's figures, and in the resident set ever after.
            let model = estimate.model.min(ledger.held().model);
            estimate::learn(placed, Estimate { model, frame_arena: 0, frame_tensor, least });
            within_budget(engine, ledger)
        });
    }
    let mut load_from = |entry: Option<&_>| OnnxEngine::load_from(&options, entry, max_batch, &mut ledger);
    let engine = match (load_from(cached.as_ref()), &cached, &place) {
        // Whatever it is, the model itself decides.
        (Err(error), Some(entry), Some((cache, (_, key))))
            if matches!(error.kind, EngineErrorKind::ModelUnsupported | EngineErrorKind::Run) =>
        {
            let engine = load_from(None)?;
            let folder = entry.folder().display();
            afterwards.notes.push(Note::Failed(format!("the cached {folder} cannot be used: {error}")));
            if let Err(error) = store::discard(&cache.folder, key) {
                afterwards.notes.push(Note::Failed(format!("{folder} stays in the cache: {error}")));
                place = None;
            }
            cached = None;
            engine
        }
        (outcome, ..) => outcome?,
    };
    stop_workers_at_exit();
    let spec = engine.spec();
    let measured = Estimate {
        model: ledger.held().model,
        frame_arena: ledger.frame_arena() / plan.callers.max(1) as u64,
        frame_tensor: spec.input.bytes() as u64,
        least: spec.batch.capacity(1) as u64,
    };
    estimate::learn(placed, measured);
    match (&cached, place) {
        (Some(entry), _) => entry.used_now(),
        (None, Some((_, (library, key)))) => {
            let (head, figures) = (wanted.head, engine.figures().clone());
            let model = spec.file.clone();
            afterwards.order = Some(writer::Order { model, library, key, head, figures });
        }
        (None, None) => (),
    }
    within_budget(Arc::new(engine), ledger)
}

/// What the load turned out to take is held against the host's budget.
fn within_budget(engine: Arc<dyn Engine>, mut ledger: Ledger) -> Result<Batcher, EngineError> {
    let file = &engine.spec().file;
    ledger.check().map_err(|exceeded| EngineError::no_budget(file, ledger.held(), &exceeded))?;
    Batcher::new(engine, ledger)
}

/// For engines that TensorRT builds: as with optimised graphs, of one model and library, where the cache is on.
fn tensorrt_cache(wanted: &Wanted, key: &EngineKey) -> Option<PathBuf> {
    let cache = wanted.cache.as_ref().filter(|_| matches!(key.device, Device::TensorRt(_)))?;
    Some(cache.folder.join("tensorrt").join(format!("{:032x}-{}", key.model_hash, runtime::version()?)))
}

impl Known {
    /// The engine, where it is still of use.
    fn engine(&self, key: &EngineKey) -> Option<Arc<Batcher>> {
        match self {
            Known::Loading => None,
            Known::Loaded(entry) => entry.engine.upgrade().filter(|engine| key.still_has(engine)),
        }
    }
}

impl Registry {
    /// With `any_plan`, an engine that differs from `key` in nothing else will do.
    pub fn get(
        &'static self,
        key: EngineKey,
        any_plan: bool,
        load: impl FnOnce(&Arc<Consent>) -> Result<Batcher, EngineError>,
    ) -> Result<Lease, EngineError> {
        let mut engines = self.engines.lock();
        let replaced = loop {
            let known = engines.known.get_or_insert_default();
            let mut loading = false;
            for (other, known) in known.iter_mut() {
                if !(if any_plan { key.is_akin(other) } else { key == *other }) {
                    continue;
                }
                loading |= matches!(known, Known::Loading);
                if let (Some(engine), Known::Loaded(entry)) = (known.engine(other), known) {
                    entry.users += 1;
                    if entry.idle.take().is_some() {
                        self.idled.notify_all();
                    }
                    return Ok(Lease::new(self, other.clone(), engine, entry.consent.clone()));
                }
            }
            if loading {
                self.settled.wait(&mut engines);
                continue;
            }
            break known.insert(key.clone(), Known::Loading);
        };
        engines.replaced.retain(Relief::has_engine);
        if let Some(Known::Loaded(entry)) = &replaced {
            engines.replaced.push(entry.relief.clone());
        }
        // Checked with the entry in place, as the exit looks for entries after it has said so.
        let exiting = super::runtime::exiting();
        drop(engines);
        // May end an idle engine.
        drop(replaced);

        // A panic in the load must not leave the others waiting for it.
        let consent = Arc::<Consent>::default();
        let guard = Settle { registry: self, key: &key, consent: consent.clone(), outcome: None };
        if exiting {
            return Err(super::runtime::too_late());
        }
        let engine = guard.loaded(Arc::new(load(&consent)?));
        Ok(Lease::new(self, key, engine, consent))
    }

    /// The holder of a lease has left.
    fn leave(&'static self, key: &EngineKey, engine: &Arc<Batcher>, keep_alive: Duration) {
        let mut engines = self.engines.lock();
        let exiting = super::runtime::exiting();
        let Some(known) = engines.known.as_mut() else { return };
        // A lost engine's place may be another's by now.
        let Some(Known::Loaded(entry)) = known.get_mut(key) else { return };
        if !std::ptr::eq(entry.engine.as_ptr(), Arc::as_ptr(engine)) {
            return;
        }
        entry.users -= 1;
        entry.keep_alive = entry.keep_alive.max(keep_alive);
        if entry.users > 0 {
            return;
        }
        if entry.keep_alive.is_zero() || !key.still_has(engine) || exiting {
            known.remove(key);
            return;
        }
        entry.idle = Some(Idle::new(engine.clone(), entry.keep_alive));
        if !self.look_after(&mut engines)
            && let Some(known) = engines.known.as_mut()
        {
            // Nobody would end it.
            known.remove(key);
        }
    }

    /// One of its elements tells why it has this engine; whether none has done so before.
    fn tells(&self, lease: &Lease, causes: Causes) -> bool {
        let mut engines = self.engines.lock();
        let known = engines.known.as_mut().and_then(|known| known.get_mut(&lease.key));
        let Some(Known::Loaded(entry)) = known else { return true };
        let first = !entry.told.contains(&causes);
        if first {
            entry.told.push(causes);
        }
        first
    }

    /// To reach every engine without keeping any.
    pub fn reliefs(&self) -> Vec<Relief> {
        let engines = self.engines.lock();
        let known = engines.known.iter().flat_map(HashMap::values).filter_map(|known| match known {
            Known::Loading => None,
            Known::Loaded(entry) => Some(&entry.relief),
        });
        known.chain(&engines.replaced).filter(|relief| relief.has_engine()).cloned().collect()
    }
}

/// An element's hold on an engine.
pub struct Lease {
    registry: &'static Registry,
    key: EngineKey,
    engine: Arc<Batcher>,
    /// Nanoseconds.
    keep_alive: AtomicU64,
    consent: Arc<Consent>,
    /// The element does not allow the CPU in the GPU's place.
    objects: bool,
    /// The element's `gpu-memory-budget`, in force while it is there.
    gpu_limit: Option<Limit>,
    /// Why it is not the device that was asked for, until that was told.
    elsewhere: Mutex<Option<Elsewhere>>,
}

impl Lease {
    fn new(registry: &'static Registry, key: EngineKey, engine: Arc<Batcher>, consent: Arc<Consent>) -> Self {
        Self {
            registry,
            key,
            engine,
            keep_alive: AtomicU64::new(0),
            consent,
            objects: false,
            gpu_limit: None,
            elsewhere: Mutex::new(None),
        }
    }

    /// What holds for this element of those that have the engine.
    fn has(&mut self, wanted: &Wanted, gpu_limit: Option<Limit>, elsewhere: Option<Elsewhere>) {
        if self.key.device.gpu().is_some() {
            self.gpu_limit = gpu_limit;
            self.objects = !choose::allows_fallback(&wanted.device, wanted.fallback);
            if self.objects {
                self.consent.object();
            }
        }
        *self.elsewhere.get_mut() = elsewhere;
    }

    /// What is new of where the engine runs: once that it is not the device that the element asked for, and later that it has moved.
    /// `seen` as with [`super::active::ActiveDevice::news`].
    pub fn news(&self, seen: &AtomicU32) -> Option<Change> {
        // It is never set later.
        let elsewhere = self.elsewhere.lock().take();
        let Some(Elsewhere { text, causes }) = elsewhere else {
            return self.engine.spec().device.news(seen);
        };
        let (device, first) = (self.engine.spec().device.name(), self.registry.tells(self, causes));
        Some(Change { device, reason: text.into(), first })
    }

    /// Frames that run together where nobody says how many.
    pub fn usual_batch(&self) -> usize {
        self.key.device.usual_batch()
    }

    pub fn engine(&self) -> &Arc<Batcher> {
        &self.engine
    }

    /// See [`Batcher::attach`]; idle engines make room for it. With 0 as [`Self::usual_batch`].
    pub fn attach(&self, max_batch: usize) -> Result<Stream, EngineError> {
        let max_batch = if max_batch == 0 { self.usual_batch() } else { max_batch };
        self.registry.with_room(&self.key.device, || self.engine.attach(max_batch))
    }

    /// How long the engine shall be kept after its last element has left.
    pub fn keep_for(&self, time: Duration) {
        self.keep_alive.store(time.as_nanos().try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.objects {
            self.consent.withdraw();
        }
        let keep_alive = Duration::from_nanos(self.keep_alive.load(Ordering::Relaxed));
        // The engine itself goes after this, outside of every lock.
        self.registry.leave(&self.key, &self.engine, keep_alive);
    }
}

/// Ends the entry's `Loading` in every case.
struct Settle<'a> {
    registry: &'a Registry,
    key: &'a EngineKey,
    consent: Arc<Consent>,
    outcome: Option<Arc<Batcher>>,
}

impl Settle<'_> {
    fn loaded(mut self, engine: Arc<Batcher>) -> Arc<Batcher> {
        self.outcome = Some(engine.clone());
        engine
    }
}

impl Drop for Settle<'_> {
    fn drop(&mut self) {
        let mut engines = self.registry.engines.lock();
        let known = engines.known.get_or_insert_default();
        match self.outcome.take() {
            Some(engine) => {
                let entry = Entry {
                    engine: Arc::downgrade(&engine),
                    relief: engine.relief(),
                    consent: self.consent.clone(),
                    told: Vec::new(),
                    users: 1,
                    keep_alive: Duration::ZERO,
                    idle: None,
                };
                known.insert(self.key.clone(), Known::Loaded(entry))
            }
            None => known.remove(self.key),
        };
        self.registry.settled.notify_all();
    }
}

/// How long the process's exit waits for loads, and then for runs, that are in progress.
pub(super) const EXIT_PATIENCE: Duration = Duration::from_secs(5);

/// Arranges that no load or run is in progress when the process's exit tears ONNX Runtime down.
///
/// Handlers run from the last to the first, and the library registers some of its own whenever it makes another of
/// its static objects. So this is called once the library is there and again after each step that makes such objects.
pub(super) fn stop_workers_at_exit() {
    extern "C" fn stop_workers() {
        super::runtime::close(EXIT_PATIENCE);
        // At exit nobody may be waited for without end: a lock that is held is left alone.
        let Some(mut engines) = REGISTRY.engines.try_lock_for(EXIT_PATIENCE) else { return };
        let deadline = Instant::now() + EXIT_PATIENCE;
        let loading = |known: &Known| matches!(known, Known::Loading);
        while engines.known.iter().flat_map(HashMap::values).any(loading)
            && !REGISTRY.settled.wait_until(&mut engines, deadline).timed_out()
        {}
        drop(engines);
        batcher::quiesce(EXIT_PATIENCE);
        gpu::driver::quiesce(EXIT_PATIENCE);
    }
    // With a bound, for processes that load again and again.
    static TIMES: AtomicUsize = AtomicUsize::new(0);
    if TIMES.fetch_add(1, Ordering::Relaxed) < 16 {
        crate::memory::at_exit(stop_workers);
    }
}

#[cfg(test)]
pub(super) mod tests;
