//! Where an engine really runs, which may change while it does, and why.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::Mutex;

/// Shared by an engine and all who show its device. Lock: a leaf.
#[derive(Clone, Debug)]
pub struct ActiveDevice(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Rises with each change.
    version: AtomicU32,
    /// The latest reason was told by somebody.
    told: AtomicBool,
}

#[derive(Debug)]
struct State {
    device: Arc<str>,
    /// Why it is not the one that was asked for.
    reason: Option<Arc<str>>,
}

/// What is new since somebody looked last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub device: Arc<str>,
    pub reason: Arc<str>,
    /// Nobody else was given this one before.
    pub first: bool,
}

impl ActiveDevice {
    pub fn new(device: &str) -> Self {
        let state = State { device: device.into(), reason: None };
        Self(Arc::new(Shared {
            state: state.into(),
            version: AtomicU32::new(0),
            told: AtomicBool::new(true),
        }))
    }

    /// As the property `active-device` shows it.
    pub fn name(&self) -> Arc<str> {
        self.0.state.lock().device.clone()
    }

    /// From now on it runs on `device`, for `reason`: a whole sentence for the user.
    pub fn move_to(&self, device: &str, reason: &str) {
        let mut state = self.0.state.lock();
        *state = State { device: device.into(), reason: Some(reason.into()) };
        self.0.told.store(false, Ordering::Relaxed);
        self.0.version.fetch_add(1, Ordering::Release);
    }

    /// What has changed since `seen`, which starts at 0 and is moved on. One load where that is nothing.
    pub fn news(&self, seen: &AtomicU32) -> Option<Change> {
        if self.0.version.load(Ordering::Acquire) == seen.load(Ordering::Relaxed) {
            return None;
        }
        let state = self.0.state.lock();
        seen.store(self.0.version.load(Ordering::Acquire), Ordering::Relaxed);
        let reason = state.reason.clone()?;
        Some(Change {
            device: state.device.clone(),
            reason,
            first: !self.0.told.swap(true, Ordering::Relaxed),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_learns_of_a_change_once_and_one_of_them_first() {
        let device = ActiveDevice::new("cuda:0");
        let (a, b) = (AtomicU32::new(0), AtomicU32::new(0));
        assert_eq!((device.news(&a), &*device.name()), (None, "cuda:0"));
        device.move_to("cpu", "the GPU is lost");
        let change = |first| Some(Change { device: "cpu".into(), reason: "the GPU is lost".into(), first });
        assert_eq!(
            [device.news(&a), device.news(&a), device.clone().news(&b)],
            [change(true), None, change(false)]
        );
        // A late one learns of it too.
        assert_eq!((device.news(&AtomicU32::new(0)), &*device.name()), (change(false), "cpu"));
    }
}
