//! An engine on a GPU that is set up anew where the GPU fails, and moved to the CPU where that does not help.
//!
//! | what failed | what is done |
//! | --- | --- |
//! | several frames, out of memory | nothing here: who runs them tries fewer |
//! | the least number of frames, out of memory; the GPU is lost | the session is made anew, and the same frames run again |
//! | those again, or no session can be made | where every element allows it the CPU runs them, and all others from then on |
//! | not allowed, or no room | the frames fail, and only after some further runs it is tried again |
//! | anything else | the frames fail |
//!
//! A session is made by the worker whose frames failed. It waits for the runs of the others; those that begin meanwhile wait for it, and streams
//! wait for free slots as ever. Of two workers that fail together one makes the session and the other finds it made.
//!
//! Lock order: `current`, held by each run for reading; under it `ladder`, a leaf, and what a load takes. Nothing is dropped or loaded
//! with a batcher's lock held.

use std::cell::Cell;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};

use super::{Engine, EngineError, EngineErrorKind, ModelSpec, Output};
use crate::tensor::BatchTensor;

/// Whether a session is of the model that the engine is for.
pub(super) type Agrees<'a> = &'a dyn Fn(&ModelSpec) -> Result<(), EngineError>;

/// Makes an engine's sessions.
pub(super) trait Sessions: Send + Sync {
    /// On the GPU that the engine was loaded on.
    fn anew(&self) -> Result<Box<dyn Engine>, EngineError>;
    /// What the GPU held counts as given back then, once `agrees` has looked at the new session.
    fn on_cpu(&self, agrees: Agrees<'_>) -> Result<Box<dyn Engine>, EngineError>;
    /// Whether every element that uses the engine allows that.
    fn cpu_allowed(&self) -> bool;
    /// The process ends: no session is made any more.
    fn exiting(&self) -> bool;
}

/// Whether the elements that use an engine allow it to move to the CPU.
#[derive(Default)]
pub(super) struct Consent {
    objections: AtomicUsize,
}

impl Consent {
    pub fn is_given(&self) -> bool {
        self.objections.load(Ordering::Relaxed) == 0
    }

    pub fn object(&self) {
        self.objections.fetch_add(1, Ordering::Relaxed);
    }

    /// One who has objected leaves.
    pub fn withdraw(&self) {
        self.objections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is tried next. Pure.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ladder {
    /// Runs that fail after a session was made before another one is; 0 while all is well.
    wait: u32,
    /// Runs since then.
    since: u32,
    /// Of the latest so many went well.
    row: u32,
    /// The CPU was tried since then.
    cpu_failed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Anew,
    Cpu,
    GiveUp,
}

/// At 30 frames/s the GPU is tried again every half minute.
const MAX_WAIT: u32 = 1024;
/// A GPU that fails now and then shall not have its session made anew all the time.
const STEADY: u32 = 256;

impl Ladder {
    fn ran(&mut self) {
        if self.wait == 0 {
            return;
        }
        self.since = self.since.saturating_add(1);
        self.row += 1;
        if self.row >= STEADY {
            *self = Self::default();
        }
    }

    /// Frames failed: for the second time, on a new session, where they are `retried`.
    fn failed(&mut self, retried: bool, cpu_allowed: bool) -> Step {
        self.row = 0;
        if !retried {
            self.since = self.since.saturating_add(1);
            if self.since > self.wait {
                *self = Self { wait: (self.wait * 2).clamp(1, MAX_WAIT), ..Self::default() };
                return Step::Anew;
            }
        }
        if cpu_allowed && !self.cpu_failed { Step::Cpu } else { Step::GiveUp }
    }

    fn cpu_failed(&mut self) {
        self.cpu_failed = true;
    }
}

/// See the module.
pub(super) struct Recovering {
    /// Of the first session; those that follow agree with it.
    spec: ModelSpec,
    sessions: Box<dyn Sessions>,
    current: RwLock<Current>,
    ladder: Mutex<Ladder>,
}

struct Current {
    engine: Result<Box<dyn Engine>, Missing>,
    /// Rises with each change.
    generation: u64,
    on_cpu: bool,
}

/// Why there is no session.
struct Missing {
    /// What the last one failed with.
    cause: EngineError,
    /// That and what was tried since, for whose frames fail.
    told: EngineError,
}

impl Recovering {
    pub fn new(engine: Box<dyn Engine>, sessions: Box<dyn Sessions>) -> Self {
        Self {
            spec: engine.spec().clone(),
            sessions,
            current: RwLock::new(Current { engine: Ok(engine), generation: 0, on_cpu: false }),
            ladder: Mutex::default(),
        }
    }

    fn run_or_recover(
        &self,
        batch: &mut BatchTensor,
        frames: Range<usize>,
        read: &mut dyn FnMut(Output<'_>),
        shrink: bool,
    ) -> Result<Option<u64>, EngineError> {
        let shown = Cell::new(false);
        let mut read = |output: Output<'_>| {
            shown.set(true);
            read(output);
        };
        let mut retried = false;
        loop {
            let (generation, outcome) = {
                let current = self.current.read();
                (current.generation, self.run_on(&current, batch, frames.clone(), &mut read, shrink))
            };
            let error = match outcome {
                Ok(freed) => {
                    self.ladder.lock().ran();
                    return Ok(freed);
                }
                Err(error) => error,
            };
            // What was shown once is a result.
            if shown.get() || !self.is_the_gpu_s(&error, frames.len()) {
                return Err(error);
            }
            self.recover(generation, error, retried)?;
            retried = true;
            // What the last session kept with the batch.
            batch.binding = None;
        }
    }

    fn run_on(
        &self,
        current: &Current,
        batch: &mut BatchTensor,
        frames: Range<usize>,
        read: &mut dyn FnMut(Output<'_>),
        shrink: bool,
    ) -> Result<Option<u64>, EngineError> {
        let engine = current.engine.as_ref().map_err(|missing| missing.told.clone())?;
        if current.on_cpu && frames.len() > self.spec.batch.capacity(1) {
            let message =
                "the CPU, in place of the GPU, runs one frame at a time: more take as long, and memory";
            return Err(EngineError::new(EngineErrorKind::OutOfMemory, message, ""));
        }
        match shrink {
            true => engine.run_and_shrink(batch, frames, read),
            false => engine.run(batch, frames, read).map(|()| None),
        }
    }

    fn is_the_gpu_s(&self, error: &EngineError, frames: usize) -> bool {
        match error.kind {
            // The budget has no room for a session: no run says so.
            EngineErrorKind::DeviceLost | EngineErrorKind::NoBudget => true,
            EngineErrorKind::OutOfMemory => frames <= self.spec.batch.capacity(1),
            _ => false,
        }
    }

    /// After `error` on the session of this `generation`: `Ok` where there is another one by now.
    fn recover(&self, generation: u64, error: EngineError, retried: bool) -> Result<(), EngineError> {
        // Ends the runs in progress.
        let mut current = self.current.write();
        if current.generation != generation {
            return Ok(());
        }
        if current.on_cpu || self.sessions.exiting() {
            return Err(error);
        }
        let allowed = self.sessions.cpu_allowed();
        let mut step = self.ladder.lock().failed(retried, allowed);
        let (cause, mut error) = match &current.engine {
            Ok(_) => (error.clone(), error),
            // What the last attempt came to is no part of it.
            Err(missing) => (missing.cause.clone(), error),
        };
        if step == Step::Anew {
            current.end(&cause, &cause);
            match self.sessions.anew().and_then(|engine| self.agrees(engine.spec()).map(|()| engine)) {
                Ok(engine) => {
                    current.engine = Ok(engine);
                    return Ok(());
                }
                Err(why) => {
                    error = cause.and("the session could not be made anew", why, EngineErrorKind::DeviceLost);
                    current.end(&cause, &error);
                    step = self.ladder.lock().failed(true, allowed);
                }
            }
        }
        if step == Step::GiveUp {
            if !allowed && !of_memory(&error) {
                error.message += &format!(
                    "; restart the {PROCESS} to use the GPU again, or let the CPU take over with device-fallback=on"
                );
            }
            return Err(error);
        }
        if self.sessions.exiting() {
            return Err(error);
        }
        current.end(&cause, &error);
        match self.sessions.on_cpu(&|spec| self.agrees(spec)) {
            Ok(engine) => {
                (current.engine, current.on_cpu) = (Ok(engine), true);
                let restart = if of_memory(&cause) && of_memory(&error) { "pipeline" } else { PROCESS };
                let reason = format!(
                    "{} failed while it ran: {error}. So cpu runs the model {} from now on; restart the {restart} to try the GPU again",
                    self.spec.device.name(),
                    self.spec.file.display()
                );
                self.spec.device.move_to("cpu", &reason);
                Ok(())
            }
            Err(why) => {
                self.ladder.lock().cpu_failed();
                let otherwise = error.kind;
                let error = error.and("nor can the CPU run it", why, otherwise);
                current.end(&cause, &error);
                Err(error)
            }
        }
    }

    /// Results of another model would be read wrongly.
    fn agrees(&self, new: &ModelSpec) -> Result<(), EngineError> {
        let known = &self.spec;
        let same = known.input == new.input
            && known.output == new.output
            && known.layout == new.layout
            && known.input_size == new.input_size
            && known.batch.capacity(1) == new.batch.capacity(1);
        if same { Ok(()) } else { Err(changed(&known.file)) }
    }
}

impl Current {
    /// The session ends, before there is another.
    fn end(&mut self, cause: &EngineError, told: &EngineError) {
        self.engine = Err(Missing { cause: cause.clone(), told: told.clone() });
        self.generation += 1;
    }
}

/// What a kernel's failure leaves of CUDA, lasts as long as the process.
const PROCESS: &str = "process";

/// What is short, which may pass.
fn of_memory(error: &EngineError) -> bool {
    matches!(error.kind, EngineErrorKind::OutOfMemory | EngineErrorKind::NoBudget)
}

impl EngineError {
    /// `what` was tried after this, and failed: of its kind where memory is what was short, which may pass, and else of the kind `otherwise`.
    fn and(&self, what: &str, why: EngineError, otherwise: EngineErrorKind) -> Self {
        let kind = if of_memory(&why) { why.kind } else { otherwise };
        Self::new(kind, format!("{}; {what}", self.message), why)
    }
}

/// The file of the engine is another by now.
pub(super) fn changed(file: &Path) -> EngineError {
    let message = format!(
        "the model {} has changed since it was loaded: restart the pipeline to load what is there now",
        file.display()
    );
    EngineError::new(EngineErrorKind::ModelUnsupported, message, "")
}

impl Engine for Recovering {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn run(
        &self,
        batch: &mut BatchTensor,
        frames: Range<usize>,
        read: &mut dyn FnMut(Output<'_>),
    ) -> Result<(), EngineError> {
        self.run_or_recover(batch, frames, read, false).map(drop)
    }

    fn run_and_shrink(
        &self,
        batch: &mut BatchTensor,
        frames: Range<usize>,
        read: &mut dyn FnMut(Output<'_>),
    ) -> Result<Option<u64>, EngineError> {
        self.run_or_recover(batch, frames, read, true)
    }
}

#[cfg(test)]
mod tests;
