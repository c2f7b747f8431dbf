//! The thread that looks at memory while anybody watches, and tells them.
//!
//! On each sample, in this order: every watcher's level follows from its own thresholds; if any has something to be told,
//! the reactors (owners of memory) act on the highest level; then each such watcher gets a notice and is called. A watcher's
//! call must return at once: it wakes a thread of the watcher's own, which takes the notice.
//!
//! Lock order: `Monitor::state`, then `Budget::state`. Neither reactors nor watchers are called with it held.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::pressure::{Change, Level, Levels, Thresholds};
use super::sample::{Sample, Sampler, SystemSampler};

/// Something that was done against pressure, or taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Action {
    /// Such as `trim-pools`.
    pub name: &'static str,
    /// Bytes it gave back.
    pub freed: u64,
}

/// An owner of memory that acts by itself.
pub trait React: Send + Sync {
    /// `level` allows what costs no inferences, `degrade` (never above it) what does. Called when either changed, also
    /// downwards, and again while it stays, after each cooldown. Appends what was done; doing nothing appends nothing.
    fn react(&self, level: Level, degrade: Level, did: &mut Vec<Action>);
}

/// For a watcher to tell: what changed and what was done about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    pub change: Change,
    pub actions: Vec<Action>,
}

pub struct Monitor {
    state: Mutex<State>,
    wake: Condvar,
}

struct State {
    watchers: Vec<Arc<Watcher>>,
    reactors: Vec<Weak<dyn React>>,
    thread: Option<JoinHandle<()>>,
    latest: Option<(Instant, Sample)>,
}

struct Watcher {
    inner: Mutex<Inner>,
    level: AtomicU8,
    degrade: AtomicU8,
    notify: Box<dyn Fn() + Send + Sync>,
}

struct Inner {
    thresholds: Thresholds,
    interval: Duration,
    levels: Levels,
    notice: Option<Notice>,
}

static MONITOR: Monitor = Monitor::new();

/// Watches memory from now on until the guard is dropped. `notify` is called on the monitor's thread when there is a
/// notice to take.
pub fn watch(thresholds: Thresholds, interval: Duration, notify: impl Fn() + Send + Sync + 'static) -> Watch {
    MONITOR.watch(thresholds, interval, Box::new(notify))
}

/// Has `reactor` act on levels while it lives.
pub fn add_reactor(reactor: Weak<dyn React>) {
    MONITOR.state.lock().reactors.push(reactor);
}

/// The highest level of all watchers.
pub fn level() -> Level {
    MONITOR.level()
}

/// The latest sample; `None` while nobody watches.
pub fn latest() -> Option<Sample> {
    MONITOR.state.lock().latest.as_ref().map(|(_, sample)| sample.clone())
}

/// A watcher's place; dropping it ends the watching and, with the last, the thread.
pub struct Watch {
    monitor: &'static Monitor,
    watcher: Arc<Watcher>,
}

impl Watch {
    pub fn set(&self, thresholds: Thresholds, interval: Duration) {
        let mut inner = self.watcher.inner.lock();
        inner.thresholds = thresholds;
        inner.interval = interval;
        drop(inner);
        self.monitor.wake.notify_all();
    }

    /// What is to be told; a later notice replaces one that was not taken, but keeps its actions.
    pub fn take(&self) -> Option<Notice> {
        self.watcher.inner.lock().notice.take()
    }

    pub fn level(&self) -> Level {
        Level::from_number(self.watcher.level.load(Ordering::Relaxed))
    }

    /// The level as far as it may cost inferences.
    pub fn degrade(&self) -> Level {
        Level::from_number(self.watcher.degrade.load(Ordering::Relaxed))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.monitor.state.lock().watchers.retain(|watcher| !Arc::ptr_eq(watcher, &self.watcher));
        self.monitor.wake.notify_all();
    }
}

impl Monitor {
    const fn new() -> Self {
        let state = State { watchers: Vec::new(), reactors: Vec::new(), thread: None, latest: None };
        Self { state: Mutex::new(state), wake: Condvar::new() }
    }

    fn watch(
        &'static self,
        thresholds: Thresholds,
        interval: Duration,
        notify: Box<dyn Fn() + Send + Sync>,
    ) -> Watch {
        let watcher = self.add(thresholds, interval, notify);
        let mut state = self.state.lock();
        if state.thread.is_none() {
            // Without a thread levels stay nominal: no reason to refuse work.
            let thread = std::thread::Builder::new().name("yolo-memory".into());
            state.thread = thread.spawn(|| self.run(&mut SystemSampler::default())).ok();
        }
        drop(state);
        self.wake.notify_all();
        Watch { monitor: self, watcher }
    }

    fn add(
        &self,
        thresholds: Thresholds,
        interval: Duration,
        notify: Box<dyn Fn() + Send + Sync>,
    ) -> Arc<Watcher> {
        let inner = Inner { thresholds, interval, levels: Levels::default(), notice: None };
        let watcher = Arc::new(Watcher {
            inner: Mutex::new(inner),
            level: AtomicU8::new(0),
            degrade: AtomicU8::new(0),
            notify,
        });
        self.state.lock().watchers.push(watcher.clone());
        watcher
    }

    fn level(&self) -> Level {
        let state = self.state.lock();
        let levels = state.watchers.iter().map(|watcher| watcher.level.load(Ordering::Relaxed));
        Level::from_number(levels.max().unwrap_or_default())
    }

    fn run(&self, sampler: &mut dyn Sampler) {
        let mut sample = Sample::default();
        loop {
            sampler.sample(&mut sample);
            self.step(&sample, Instant::now());
            let mut state = self.state.lock();
            let interval = state.watchers.iter().map(|watcher| watcher.inner.lock().interval).min();
            match interval {
                Some(interval) => drop(self.wake.wait_for(&mut state, interval)),
                None => {
                    state.thread = None;
                    state.latest = None;
                    return;
                }
            }
        }
    }

    /// Takes a sample in, has the reactors act, and calls those who have something to tell.
    fn step(&self, sample: &Sample, now: Instant) {
        let mut state = self.state.lock();
        state.latest = Some((now, sample.clone()));
        let watchers = state.watchers.clone();
        state.reactors.retain(|reactor| reactor.strong_count() > 0);
        let reactors: Vec<_> = state.reactors.iter().filter_map(Weak::upgrade).collect();
        drop(state);

        let (mut level, mut degrade) = (Level::Nominal, Level::Nominal);
        let mut changes = Vec::new();
        for watcher in watchers {
            let mut inner = watcher.inner.lock();
            let Inner { thresholds, levels, .. } = &mut *inner;
            let change = levels.observe(sample, thresholds, now);
            if thresholds.react {
                level = level.max(levels.level());
                degrade = degrade.max(levels.degrade());
            }
            watcher.level.store(levels.level() as u8, Ordering::Relaxed);
            let degraded = watcher.degrade.swap(levels.degrade() as u8, Ordering::Relaxed);
            let moved = degraded != levels.degrade() as u8;
            drop(inner);
            if change.is_some() || moved {
                changes.push((watcher, change));
            }
        }
        if changes.is_empty() {
            return;
        }
        let mut actions = Vec::new();
        for reactor in reactors {
            reactor.react(level, degrade, &mut actions);
        }
        for (watcher, change) in changes {
            let Some(change) = change else { continue };
            watcher.inner.lock().put(Notice { change, actions: actions.clone() });
            (watcher.notify)();
        }
    }
}

impl Inner {
    fn put(&mut self, mut notice: Notice) {
        if let Some(before) = self.notice.take() {
            notice.change.previous = before.change.previous;
            let mut actions = before.actions;
            actions.append(&mut notice.actions);
            notice.actions = actions;
        }
        self.notice = Some(notice);
    }
}
