//! The shared engine's thread and the slots that streams fill for it.
//!
//! There are as many tensors as workers and one more, so that one batch fills while another runs; their
//! number does not grow with the streams. Slots are granted first come, first served. A stream stands in line
//! with at most one frame, so that this is round robin among them. A stream that does not wait keeps its place in
//! the line for its next frame; else one that waits, or whose frames happen to come at the right time, would get
//! every slot. An idle engine waits for nobody: such places lapse.
//!
//! Lock order: `Shared::state` is taken alone, never with a ticket's or an element's lock held or taken
//! inside it.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::policy::{self, Decision, Filling};
use super::ticket::{Outcome, Ticket};
use crate::decode::{self, Scratch, Thresholds};
use crate::engine::{Engine, EngineError, EngineErrorKind, ModelSpec};
use crate::preprocess::TensorMut;
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

/// Why no slot was given.
#[derive(Clone, Debug)]
pub enum Refused {
    /// The stream is flushing or stopping.
    Flushing,
    /// None is free and the caller did not want to wait.
    Busy,
    /// The engine is gone.
    EngineLost(Arc<EngineError>),
}

/// One batch on its way: jobs by slot, `None` while being filled and for holes.
struct Batch {
    tensor: BatchTensor,
    jobs: Vec<Option<Job>>,
    filling: Filling,
}

impl Batch {
    /// Ends every ticket that is still pending.
    fn settle(&self, outcome: &Outcome) {
        self.jobs.iter().flatten().for_each(|job| job.ticket.settle(outcome.clone()));
    }
}

/// A stream's place in the line for a slot.
struct Claim {
    stream: u64,
    /// Its thread waits right here; otherwise it comes back with its next frame.
    present: bool,
}

struct State {
    /// Tensors at rest. Taken for filling, given back after the run.
    free: Vec<BatchTensor>,
    filling: Option<Batch>,
    /// Streams that want a slot, first come first.
    line: VecDeque<Claim>,
    /// A recycled list, so that a batch's jobs need no allocation.
    spare_jobs: Vec<Vec<Option<Job>>>,
    /// `max-batch` of every stream that is attached; the largest decides.
    wishes: Vec<(u64, usize)>,
    running: bool,
    stop: bool,
    /// The process exits: nothing of the engine's library may be touched any more.
    exiting: bool,
    /// The worker is through, its engine released or left alone.
    ended: bool,
    lost: Option<Arc<EngineError>>,
    batches: u64,
    frames: u64,
}

struct Shared {
    state: Mutex<State>,
    /// For the worker: a slot settled, a drain is wanted, or it shall stop.
    work: Condvar,
    /// For streams: a slot may be free, or waiting has no more sense.
    room: Condvar,
    spec: ModelSpec,
    next_stream: AtomicU64,
}

/// Tensors beside the one that runs.
const WORKERS: usize = 1;

/// One engine's queue and worker. Dropping it ends the run in progress, then the thread, then the engine.
pub struct Batcher {
    shared: Arc<Shared>,
    /// `None` only while dropping.
    worker: Option<JoinHandle<()>>,
}

/// Figures of one engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct BatcherStats {
    pub streams: usize,
    pub batches: u64,
    pub frames: u64,
    pub slots: usize,
    pub waiting: usize,
}

impl Batcher {
    pub fn new(engine: Box<dyn Engine>) -> Result<Self, EngineError> {
        let spec = engine.spec().clone();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                free: Vec::new(),
                filling: None,
                line: VecDeque::new(),
                spare_jobs: Vec::new(),
                wishes: Vec::new(),
                running: false,
                stop: false,
                exiting: false,
                ended: false,
                lost: None,
                batches: 0,
                frames: 0,
            }),
            work: Condvar::new(),
            room: Condvar::new(),
            spec,
            next_stream: AtomicU64::new(0),
        });
        {
            let mut state = shared.state.lock();
            for _ in 0..=WORKERS {
                let tensor =
                    BatchTensor::new(state.capacity(&shared.spec), shared.spec.input, shared.spec.output);
                state.free.push(tensor);
            }
        }
        let worker = std::thread::Builder::new()
            .name("yolo-engine".into())
            .spawn({
                let shared = shared.clone();
                move || Worker { shared, engine, scratch: Scratch::default() }.run()
            })
            .map_err(|error| {
                EngineError::new(EngineErrorKind::Settings, "the engine's thread cannot be started", error)
            })?;
        let mut workers = WORKERS_ALIVE.lock();
        workers.retain(|worker| worker.strong_count() > 0);
        workers.push(Arc::downgrade(&shared));
        drop(workers);
        Ok(Self { shared, worker: Some(worker) })
    }

    pub fn spec(&self) -> &ModelSpec {
        &self.shared.spec
    }

    /// A stream that wants batches of up to `max_batch` frames, from now until the handle is dropped.
    pub fn attach(self: &Arc<Self>, max_batch: usize) -> Stream {
        let id = self.shared.next_stream.fetch_add(1, Ordering::Relaxed);
        self.shared.state.lock().wishes.push((id, max_batch.max(1)));
        Stream { id, batcher: self.clone(), flushing: AtomicBool::new(false) }
    }

    pub fn stats(&self) -> BatcherStats {
        let state = self.shared.state.lock();
        BatcherStats {
            streams: state.wishes.len(),
            batches: state.batches,
            frames: state.frames,
            slots: (WORKERS + 1) * state.capacity(&self.shared.spec),
            waiting: state.line.iter().filter(|claim| claim.present).count(),
        }
    }

    /// Whether the engine failed for good; such a batcher is no longer shared.
    pub fn is_lost(&self) -> bool {
        self.shared.state.lock().lost.is_some()
    }
}

/// Every worker of the process, those included whose last stream is just leaving.
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
        state.stop = true;
        state.exiting = true;
        shared.work.notify_all();
        shared.room.notify_all();
    }
    for shared in &workers {
        let Some(mut state) = shared.state.try_lock_until(deadline) else { continue };
        while !state.ended && !shared.room.wait_until(&mut state, deadline).timed_out() {}
    }
    // Their tensors hold values of the engine's library.
    std::mem::forget(workers);
}

impl Drop for Batcher {
    fn drop(&mut self) {
        {
            let mut state = self.shared.state.lock();
            state.stop = true;
            self.shared.work.notify_all();
            self.shared.room.notify_all();
        }
        if let Some(worker) = self.worker.take() {
            // The worker catches its own panics.
            let _ = worker.join();
        }
    }
}

/// One stream's access to the engine.
pub struct Stream {
    id: u64,
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
        state.line.retain(|claim| claim.present || claim.stream != self.id);
        self.batcher.shared.room.notify_all();
    }

    /// A slot in the batch that is being filled, waiting for it if `wait`.
    pub fn acquire(&self, wait: bool) -> Result<Slot, Refused> {
        let shared = &self.batcher.shared;
        let mut state = shared.state.lock();
        let outcome = loop {
            if let Some(lost) = &state.lost {
                break Err(Refused::EngineLost(lost.clone()));
            }
            if self.flushing.load(Ordering::Relaxed) || state.stop {
                break Err(Refused::Flushing);
            }
            if !state.running && state.filling.is_none() {
                state.line.retain(|claim| claim.present || claim.stream == self.id);
            }
            let place = state.line.iter().position(|claim| claim.stream == self.id);
            let ahead = place.unwrap_or(state.line.len());
            if state.room(&shared.spec) > ahead
                && let Some(granted) = state.grant(&shared.spec)
            {
                break Ok(granted);
            }
            match place {
                Some(place) => state.line[place].present = wait,
                None => state.line.push_back(Claim { stream: self.id, present: wait }),
            }
            if !wait {
                return Err(Refused::Busy);
            }
            shared.room.wait(&mut state);
        };
        state.line.retain(|claim| claim.stream != self.id);
        if !state.line.is_empty() {
            // The next in line may find room too.
            shared.room.notify_all();
        }
        outcome.map(|(slot, index)| Slot { memory: Some(slot), index, batcher: self.batcher.clone() })
    }

    /// Asks that what is handed in runs now, however few they are.
    pub fn hurry(&self) {
        let mut state = self.batcher.shared.state.lock();
        if let Some(batch) = &mut state.filling {
            batch.filling.urgent = true;
            self.batcher.shared.work.notify_one();
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut state = self.batcher.shared.state.lock();
        state.wishes.retain(|(id, _)| *id != self.id);
        state.line.retain(|claim| claim.stream != self.id);
        self.batcher.shared.room.notify_all();
    }
}

impl State {
    fn capacity(&self, spec: &ModelSpec) -> usize {
        spec.batch.frames(self.wishes.iter().map(|(_, wish)| *wish).max().unwrap_or(1))
    }

    /// Slots that could be granted right now.
    fn room(&self, spec: &ModelSpec) -> usize {
        match &self.filling {
            Some(batch) => batch.filling.capacity - batch.filling.granted,
            None if self.free.is_empty() => 0,
            None => self.capacity(spec),
        }
    }

    fn grant(&mut self, spec: &ModelSpec) -> Option<(TensorSlot, usize)> {
        if self.filling.is_none() {
            let capacity = self.capacity(spec);
            let mut tensor = self.free.pop()?;
            if tensor.capacity() != capacity {
                // A stream with another `max-batch` came or went; rare, and never while a batch is in use.
                tensor = BatchTensor::new(capacity, spec.input, spec.output);
            }
            let mut jobs = self.spare_jobs.pop().unwrap_or_default();
            jobs.resize_with(capacity, || None);
            self.filling = Some(Batch { tensor, jobs, filling: Filling { capacity, ..Default::default() } });
        }
        let batch = self.filling.as_mut()?;
        if batch.filling.granted == batch.filling.capacity {
            return None;
        }
        let index = batch.filling.granted;
        batch.filling.granted += 1;
        Some((batch.tensor.slot(index), index))
    }

    fn recycle(&mut self, mut batch: Batch) {
        batch.jobs.clear();
        self.spare_jobs.push(batch.jobs);
        self.free.push(batch.tensor);
    }
}

/// A granted slot: filled and submitted, or dropped and thereby abandoned.
pub struct Slot {
    /// `None` once given back.
    memory: Option<TensorSlot>,
    index: usize,
    batcher: Arc<Batcher>,
}

impl Slot {
    /// The frame's part of the tensor; `None` only after it was given back.
    pub fn tensor(&mut self) -> Option<TensorMut<'_>> {
        self.memory.as_mut().map(TensorSlot::tensor)
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
        if let Some(lost) = state.lost.clone() {
            drop(state);
            if let Some(job) = job {
                job.ticket.settle(Outcome::EngineLost(lost));
            }
            return;
        }
        // The batch cannot have been sealed meanwhile: that waits for this very slot. It can have been thrown away.
        let Some(batch) = &mut state.filling else {
            drop(state);
            if let Some(job) = job {
                job.ticket.cancel();
            }
            return;
        };
        batch.filling.settled += 1;
        if let Some(job) = job {
            let due = Instant::now() + job.batch_delay;
            batch.filling.due = Some(batch.filling.due.map_or(due, |known| known.min(due)));
            batch.filling.ready += 1;
            batch.jobs[self.index] = Some(job);
        }
        shared.work.notify_one();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.settle(None);
    }
}

struct Worker {
    shared: Arc<Shared>,
    engine: Box<dyn Engine>,
    scratch: Scratch,
}

impl Worker {
    fn run(mut self) {
        while let Some(mut batch) = self.next_batch() {
            // Not a vfunc: nobody else would catch a panic here, and every stream would wait for ever.
            let outcome = catch_unwind(AssertUnwindSafe(|| self.process(&mut batch)));
            if outcome.is_err() {
                let message = format!(
                    "running the model {} panicked; restart the pipeline to load it anew",
                    self.shared.spec.file.display()
                );
                self.lose(batch, EngineError::new(EngineErrorKind::Run, message, ""));
                break;
            }
            self.finish(batch);
        }
        self.end();
        let Self { shared, engine, .. } = self;
        if shared.state.lock().exiting {
            // Its library may be gone while it is released.
            std::mem::forget(engine);
        } else {
            drop(engine);
        }
        shared.state.lock().ended = true;
        shared.room.notify_all();
    }

    /// Waits for a batch that shall run; `None` when the engine is to end.
    fn next_batch(&self) -> Option<Batch> {
        let mut state = self.shared.state.lock();
        loop {
            if state.stop {
                return None;
            }
            let decision = match &state.filling {
                Some(batch) => policy::decide(&batch.filling, Instant::now()),
                None => Decision::Wait(None),
            };
            match decision {
                Decision::Wait(None) => self.shared.work.wait(&mut state),
                Decision::Wait(Some(until)) => {
                    self.shared.work.wait_until(&mut state, until);
                }
                Decision::Discard => {
                    if let Some(batch) = state.filling.take() {
                        state.recycle(batch);
                        self.shared.room.notify_all();
                    }
                }
                Decision::Dispatch => {
                    let batch = state.filling.take()?;
                    state.running = true;
                    // Another tensor can be filled from here on.
                    self.shared.room.notify_all();
                    return Some(batch);
                }
            }
        }
    }

    fn process(&mut self, batch: &mut Batch) {
        let started = Instant::now();
        let frames = batch.filling.granted;
        if let Err(error) = self.engine.run(&mut batch.tensor, frames) {
            batch.settle(&Outcome::Failed(Arc::new(error)));
            return;
        }
        let inference = started.elapsed();
        let fill = batch.filling.ready as u32;
        let layout = &self.engine.spec().layout;
        for (index, job) in batch.jobs.iter().enumerate() {
            let Some(job) = job else { continue };
            let output = batch.tensor.output(index);
            job.ticket.complete(started, inference, fill, |detections| {
                decode::decode(
                    layout,
                    output,
                    &job.thresholds,
                    &job.letterbox,
                    &mut self.scratch,
                    detections,
                );
            });
        }
    }

    fn finish(&self, batch: Batch) {
        let mut state = self.shared.state.lock();
        state.running = false;
        state.batches += 1;
        state.frames += batch.filling.ready as u64;
        state.recycle(batch);
        self.shared.room.notify_all();
    }

    /// Nothing runs any more; [`Self::end`] follows.
    fn lose(&self, batch: Batch, error: EngineError) {
        let error = Arc::new(error);
        self.shared.state.lock().lost = Some(error.clone());
        batch.settle(&Outcome::EngineLost(error));
    }

    /// Nobody is left who would run what was handed in.
    fn end(&self) {
        let (abandoned, outcome) = {
            let mut state = self.shared.state.lock();
            state.running = false;
            self.shared.room.notify_all();
            (state.filling.take(), state.lost.clone().map_or(Outcome::Cancelled, Outcome::EngineLost))
        };
        if let Some(batch) = abandoned {
            batch.settle(&outcome);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
