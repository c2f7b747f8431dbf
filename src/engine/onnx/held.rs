//! A session until its end, which on a GPU has rules of its own.

use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::Arc;

use ort::session::Session;

use crate::engine::gpu::driver::{self, Card};
use crate::engine::runtime;

pub(super) struct Held {
    session: ManuallyDrop<Session>,
    /// That it is on.
    card: Option<Arc<Card>>,
    /// It may have recorded runs.
    records: bool,
}

impl Held {
    pub fn new(session: Session, card: &Option<Arc<Card>>, records: bool) -> Self {
        Self { session: ManuallyDrop::new(session), card: card.clone(), records }
    }

    /// ONNX Runtime frees pinned memory and recorded runs in destructors that throw where CUDA fails, which ends the process: after the GPU
    /// is lost all of CUDA's calls do, and those on what was recorded when the process exits. What a session had on a lost GPU is gone with
    /// the context; what it has of the host stays.
    fn must_stay(&self) -> bool {
        // A driver that does not tell of the memory would not free any.
        let lost = self.card.as_ref().is_some_and(|card| card.memory().is_err());
        lost || self.records && runtime::exiting()
    }
}

impl Deref for Held {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.must_stay() {
            let _quiet = self.card.as_ref().map(|_| driver::quiet());
            // SAFETY: dropped here alone, and not used any more.
            unsafe { ManuallyDrop::drop(&mut self.session) }
        }
    }
}
