//! The frames between the streams and the shared engine: who may fill which slot, and the threads that run batches.
//!
//! What to do follows from [`Queue`]; here are the tensors, the jobs, and the waiting.
//!
//! Lock order: `Shared::state` is never taken with a ticket's or an element's lock held; inside it nothing is taken but
//! the budget's, a leaf, where tensors are made or no longer needed. They are dropped outside of it (`Shared::let_go`).

use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::ledger::{Ledger, Need};
use super::queue::{BatchId, Granted, Queue};
use super::relief::Shrinking;
use super::stock::Stock;
use super::ticket::{Outcome, Reduced, Ticket};
use super::worker::Worker;
use crate::decode::Thresholds;
use crate::engine::gpu::budget::GpuUse;
use crate::engine::{Engine, EngineError, EngineErrorKind, ModelSpec};
use crate::preprocess::FrameTensor;
use crate::preprocess::letterbox::Letterbox;
use crate::tensor::{BatchTensor, TensorSlot};

/// What the worker needs to turn a frame's output into its result.
pub struct Job {
    pub ticket: Arc<Ticket>,
    pub thresholds: Arc<Thresholds>,
    pub letterbox: Letterbox,
    /// How long the frame may wait for others to join its batch.
    pub batch_delay: Duration,
}

/// How long a stream waits for a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    None,
    Until(Instant),
    Endless,
}

/// Why no slot was given.
#[derive(Clone, Debug)]
pub enum Refused {
    /// The stream is flushing or stopping.
    Flushing,
    /// None was free for as long as the caller wanted to wait.
    Busy,
    /// The engine is gone.
    EngineLost(Arc<EngineError>),
    /// There is no memory for a single frame, which may pass.
    NoRoom(Arc<EngineError>),
}

/// One batch on its way: jobs by slot, `None` while being filled and for holes.
pub(super) struct Batch {
    pub id: BatchId,
    pub tensor: BatchTensor,
    pub jobs: Vec<Option<Job>>,
    /// It should have had room for more.
    pub reduced: Option<Reduced>,
}

impl Batch {
    /// Ends every ticket that is still pending.
    pub fn settle(&self, outcome: &Outcome) {
        for job in self.jobs.iter().flatten() {
            job.ticket.settle(outcome.clone());
        }
    }
}

pub(super) struct State {
    pub queue: Queue,
    /// Being filled; the queue knows the same ones.
    pub forming: Vec<Batch>,
    pub stock: Stock,
    /// Recycled lists, so that a batch's jobs need no allocation.
    spare_jobs: Vec<Vec<Option<Job>>>,
    /// What each stream's thread waits on.
    waiters: Vec<(u64, Arc<Condvar>)>,
    pub stop: bool,
    /// The process exits: nothing of the engine's library may be touched any more.
    pub exiting: bool,
    /// Workers that have not yet let go of the engine, and threads that let go of tensors.
    pub workers: usize,
    pub lost: Option<Arc<EngineError>>,
    pub batches: u64,
    pub frames: u64,
    pub last_run: Duration,
}

pub(super) struct Shared {
    pub state: Mutex<State>,
    /// For workers: a slot settled, a drain is wanted, or they shall stop.
    pub work: Condvar,
    /// For whoever waits for the workers' end.
    pub ended: Condvar,
    pub spec: ModelSpec,
    pub shrinking: Shrinking,
}

impl Shared {
    /// Drops the tensors that are no longer needed, with the lock released meanwhile: on a GPU that may wait for the driver, and all streams would wait
    /// with it.
    pub fn let_go(&self, state: &mut MutexGuard<'_, State>) {
        let gone = mem::take(&mut state.stock.gone);
        if gone.is_empty() {
            return;
        }
        if state.exiting {
            // They hold values of the engine's library, which may be gone.
            return mem::forget(gone);
        }
        // The process's exit waits for this.
        state.workers += 1;
        MutexGuard::unlocked(state, || drop(gone));
        state.workers -= 1;
        self.ended.notify_all();
    }
}

/// One engine's queue and workers. Dropping it ends the runs in progress, then the threads, then the engine.
pub struct Batcher {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// See [`Self::number`].
    number: u64,
    next_stream: AtomicU64,
    /// See [`Self::first_to_tell`].
    told: AtomicBool,
}

/// Figures of one engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct BatcherStats {
    pub streams: usize,
    pub batches: u64,
    pub frames: u64,
    pub slots: usize,
    pub waiting: usize,
    /// Most frames in a batch as things are.
    pub batch_limit: usize,
    /// What is reserved for it of the host.
    pub held: Need,
    /// And of a GPU, where it runs on one.
    pub gpu: Option<GpuUse>,
}

impl Batcher {
    /// Starts as many workers as the engine takes callers. `ledger` has what the engine takes already.
    pub fn new(engine: Arc<dyn Engine>, ledger: Ledger) -> Result<Self, EngineError> {
        let spec = engine.spec().clone();
        let workers = spec.callers.max(1);
        // Who fills a batch needs the cores that a run on the processor has; a GPU would wait for it.
        let spare = usize::from(ledger.gpu().is_some());
        let queue = Queue::with_batches(spec.batch, workers, workers + spare);
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                queue,
                forming: Vec::new(),
                stock: Stock::new(ledger),
                spare_jobs: Vec::new(),
                waiters: Vec::new(),
                stop: false,
                exiting: false,
                workers: 0,
                lost: None,
                batches: 0,
                frames: 0,
                last_run: spec.warm_run,
            }),
            work: Condvar::new(),
            ended: Condvar::new(),
            spec,
            shrinking: Shrinking::default(),
        });
        let mut batcher = Self {
            shared: shared.clone(),
            workers: Vec::new(),
            number: NEXT_NUMBER.fetch_add(1, Ordering::Relaxed),
            next_stream: AtomicU64::new(0),
            told: AtomicBool::new(false),
        };
        for number in 0..workers {
            let worker = Worker::new(shared.clone(), engine.clone());
            shared.state.lock().workers += 1;
            let thread = std::thread::Builder::new()
                .name(format!("yolo-engine-{number}"))
                .spawn(move || worker.run())
                .map_err(|error| {
                    shared.state.lock().workers -= 1;
                    EngineError::new(
                        EngineErrorKind::Settings,
                        "a thread for the engine cannot be started",
                        error,
                    )
                })?;
            batcher.workers.push(thread);
        }
        let mut alive = WORKERS_ALIVE.lock();
        alive.retain(|workers| workers.strong_count() > 0);
        alive.push(Arc::downgrade(&shared));
        drop(alive);
        Ok(batcher)
    }

    pub fn spec(&self) -> &ModelSpec {
        &self.shared.spec
    }

    /// Counts the engines of the process: of one model there may be several, with other options or one after another.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// A stream that wants batches of up to `max_batch` frames, from now until the handle is dropped.
    ///
    /// # Errors
    /// [`EngineErrorKind::NoBudget`] or [`EngineErrorKind::OutOfMemory`] where there is no room for batches of a single
    /// frame.
    pub fn attach(self: &Arc<Self>, max_batch: usize) -> Result<Stream, EngineError> {
        let id = self.next_stream.fetch_add(1, Ordering::Relaxed);
        let woken = Arc::new(Condvar::new());
        let mut state = self.shared.state.lock();
        state.queue.attach(id, max_batch);
        let (batches, capacity) = (state.queue.batches(), state.queue.capacity());
        if let Err(error) = state.stock.fill(batches, capacity, &self.shared.spec) {
            state.leave(id);
            self.shared.let_go(&mut state);
            return Err(error);
        }
        state.waiters.push((id, woken.clone()));
        // Batches may be larger from now on.
        state.wake();
        drop(state);
        Ok(Stream { id, woken, batcher: self.clone(), flushing: AtomicBool::new(false) })
    }

    pub(super) fn downgrade(&self) -> Weak<Shared> {
        Arc::downgrade(&self.shared)
    }

    pub fn stats(&self) -> BatcherStats {
        let state = self.shared.state.lock();
        BatcherStats {
            streams: state.queue.streams(),
            batches: state.batches,
            frames: state.frames,
            slots: state.queue.slots(),
            waiting: state.queue.waiting(),
            batch_limit: state.queue.capacity(),
            held: state.stock.ledger.held(),
            gpu: state.stock.ledger.gpu(),
        }
    }

    /// What the latest batch took to run; before the first, the warm-up.
    pub fn last_run(&self) -> Duration {
        self.shared.state.lock().last_run
    }

    /// Whether the engine failed for good; such a batcher is no longer shared.
    pub fn is_lost(&self) -> bool {
        self.shared.state.lock().lost.is_some()
    }

    /// True for the first who asks: what concerns the model itself is said once, not by every stream.
    pub fn first_to_tell(&self) -> bool {
        !self.told.swap(true, Ordering::Relaxed)
    }
}

static NEXT_NUMBER: AtomicU64 = AtomicU64::new(0);

/// The workers of every engine of the process, those included whose last stream is just leaving.
static WORKERS_ALIVE: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());

/// For the process's exit: has every worker stop and leave its engine as it is, and waits up to `patience` for
/// those that run a batch or release an engine.
pub fn quiesce(patience: Duration) {
    let deadline = Instant::now() + patience;
    // Nobody may be waited for without end: a lock that is held for so long is left alone.
    let Some(workers) = WORKERS_ALIVE.try_lock_until(deadline) else { return };
    let workers: Vec<_> = workers.iter().filter_map(Weak::upgrade).collect();
    for shared in &workers {
        let Some(mut state) = shared.state.try_lock_until(deadline) else { continue };
        state.exiting = true;
        state.end(&shared.work);
    }
    for shared in &workers {
        let Some(mut state) = shared.state.try_lock_until(deadline) else { continue };
        while state.workers > 0 && !shared.ended.wait_until(&mut state, deadline).timed_out() {}
    }
    // Their tensors hold values of the engine's library.
    mem::forget(workers);
}

impl Drop for Batcher {
    fn drop(&mut self) {
        self.shared.state.lock().end(&self.shared.work);
        for worker in self.workers.drain(..) {
            // Workers catch their own panics.
            let _ = worker.join();
        }
    }
}

/// One stream's access to the engine.
pub struct Stream {
    id: u64,
    woken: Arc<Condvar>,
    batcher: Arc<Batcher>,
    flushing: AtomicBool,
}

impl Stream {
    pub fn spec(&self) -> &ModelSpec {
        self.batcher.spec()
    }

    pub fn batcher(&self) -> &Batcher {
        &self.batcher
    }

    /// While set, no slot is given and a waiting [`Self::acquire`] returns at once.
    pub fn set_flushing(&self, flushing: bool) {
        // Under the lock, or a waiter between its check and its wait would miss it.
        let mut state = self.batcher.shared.state.lock();
        self.flushing.store(flushing, Ordering::Relaxed);
        state.queue.withdraw(self.id);
        self.woken.notify_all();
        state.wake();
    }

    /// A slot in a batch that is being filled, in fair turns, shared by `priority` (at least 1).
    pub fn acquire(&self, priority: u32, mut patience: Patience) -> Result<Slot, Refused> {
        let shared = &self.batcher.shared;
        let mut state = shared.state.lock();
        let refused = loop {
            if let Some(lost) = &state.lost {
                break Refused::EngineLost(lost.clone());
            }
            if self.flushing.load(Ordering::Relaxed) || state.stop {
                break Refused::Flushing;
            }
            if let Some(granted) = state.queue.ask(self.id, priority, patience != Patience::None) {
                let memory = state.hand_out(granted, &shared.spec);
                if memory.is_err() && state.queue.close(granted.batch, self.id) {
                    // There is memory: what another batch has, which is on its way back.
                    continue;
                }
                // The next in line may find room too.
                state.wake();
                shared.let_go(&mut state);
                drop(state);
                let memory = memory.map_err(|error| Refused::NoRoom(Arc::new(error)))?;
                return Ok(Slot {
                    memory: Some(memory),
                    batch: granted.batch,
                    index: granted.index,
                    batcher: self.batcher.clone(),
                });
            }
            match patience {
                Patience::None => return Err(Refused::Busy),
                Patience::Endless => self.woken.wait(&mut state),
                Patience::Until(deadline) => {
                    if self.woken.wait_until(&mut state, deadline).timed_out() {
                        // Asks once more, as one who does not wait.
                        patience = Patience::None;
                    }
                }
            }
        };
        state.queue.leave(self.id);
        state.wake();
        Err(refused)
    }

    /// Asks that what is handed in runs now, however few they are.
    pub fn hurry(&self) {
        self.batcher.shared.state.lock().queue.hurry();
        self.batcher.shared.work.notify_all();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let shared = &self.batcher.shared;
        let mut state = shared.state.lock();
        state.waiters.retain(|(id, _)| *id != self.id);
        state.leave(self.id);
        state.wake();
        shared.let_go(&mut state);
    }
}

impl State {
    /// Wakes those streams that would get a slot now, and no others.
    pub fn wake(&mut self) {
        for stream in self.queue.entitled() {
            if let Some((_, woken)) = self.waiters.iter().find(|(id, _)| *id == stream) {
                woken.notify_one();
            }
        }
    }

    /// Nothing more is run or granted.
    pub fn end(&mut self, work: &Condvar) {
        self.stop = true;
        work.notify_all();
        self.waiters.iter().for_each(|(_, woken)| {
            woken.notify_all();
        });
    }

    /// The stream is gone; with the last of them what only streams need.
    fn leave(&mut self, stream: u64) {
        self.queue.detach(stream);
        if self.queue.streams() == 0 && !self.exiting {
            self.stock.drop_free();
        }
    }

    /// The memory of a slot that the queue granted; where there is none, its batch is to be closed. Memory and budget are looked at only where a batch opens that no
    /// tensor at rest fits: the largest `max-batch` or the ceiling changed, or tensors were dropped under pressure.
    fn hand_out(&mut self, granted: Granted, spec: &ModelSpec) -> Result<TensorSlot, EngineError> {
        if let Some(capacity) = granted.opens {
            let tensor = self.stock.take(capacity, spec)?;
            let room = tensor.capacity();
            self.queue.limit(granted.batch, room);
            let reduced = (room < capacity).then_some(Reduced {
                batch: granted.batch,
                frames: capacity as u32,
                limit: room as u32,
            });
            let mut jobs = self.spare_jobs.pop().unwrap_or_default();
            jobs.resize_with(room, || None);
            self.forming.push(Batch { id: granted.batch, tensor, jobs, reduced });
        }
        let batch = self.forming.iter_mut().find(|batch| batch.id == granted.batch);
        Ok(batch.expect("made with the batch's first slot").tensor.slot(granted.index))
    }

    /// Takes a batch out of those that are being filled.
    pub fn take(&mut self, id: BatchId) -> Option<Batch> {
        let place = self.forming.iter().position(|batch| batch.id == id)?;
        Some(self.forming.swap_remove(place))
    }

    pub fn recycle(&mut self, mut batch: Batch) {
        batch.jobs.clear();
        batch.tensor.forget_frames();
        self.spare_jobs.push(batch.jobs);
        self.stock.give_back(batch.tensor);
        if self.queue.streams() == 0 && !self.exiting {
            self.stock.drop_free();
        }
    }
}

/// A granted slot: filled and submitted, or dropped and thereby abandoned.
pub struct Slot {
    /// `None` once given back.
    memory: Option<TensorSlot>,
    batch: BatchId,
    index: usize,
    batcher: Arc<Batcher>,
}

impl Slot {
    /// The frame's part of the tensor; `None` only after it was given back.
    pub fn tensor(&mut self) -> Option<FrameTensor<'_>> {
        self.memory.as_mut().map(TensorSlot::tensor)
    }

    /// The frame's place, to be filled in another way; as [`Self::tensor`].
    pub fn place(&mut self) -> Option<&mut TensorSlot> {
        self.memory.as_mut()
    }

    /// Hands the filled slot in.
    pub fn submit(mut self, job: Job) {
        job.ticket.mark_submitted(Instant::now());
        self.settle(Some(job));
    }

    fn settle(&mut self, job: Option<Job>) {
        // The tensor's owner must find no slot out when the batch is sealed.
        if self.memory.take().is_none() {
            return;
        }
        let shared = &self.batcher.shared;
        let mut state = shared.state.lock();
        let due = job.as_ref().map(|job| Instant::now() + job.batch_delay);
        // The batch cannot have been sealed meanwhile: that waits for this very slot. It can have been thrown away.
        if state.queue.settle(self.batch, due) {
            if let Some(batch) = state.forming.iter_mut().find(|batch| batch.id == self.batch) {
                batch.jobs[self.index] = job;
            }
            shared.work.notify_one();
            return;
        }
        let outcome = state.lost.clone().map_or(Outcome::Cancelled, Outcome::EngineLost);
        drop(state);
        if let Some(job) = job {
            job.ticket.settle(outcome);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.settle(None);
    }
}

#[cfg(test)]
pub(crate) mod tests;
