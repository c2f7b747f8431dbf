//! The thread that looks at memory while anybody watches, and tells them.
//!
//! On each sample, in this order: every watcher's level follows from its own thresholds; the reactors (owners of memory)
//! act on the highest level of those that want reactions; where that is pressing, the free heap, which they may have
//! added to, is returned to the system; then each watcher that has something to be told gets a notice and is called. A
//! watcher's call must return at once: it wakes a thread of the watcher's own, which takes the notice.
//!
//! The thread ends with the last watcher; reactors are then told that all is nominal. A reactor or a watcher's call that
//! panics does not end it.
//!
//! Lock order: `Monitor::state`, then `Watcher::inner`. Neither reactors nor watchers are called with one held.

use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};
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

struct Monitor {
    state: Mutex<State>,
    /// Waited for by the thread alone.
    wake: Condvar,
    /// The highest level of all watchers.
    level: AtomicU8,
    sampler: fn() -> Box<dyn Sampler>,
}

struct State {
    watchers: Vec<Arc<Watcher>>,
    reactors: Vec<Reactor>,
    /// Whether there is a thread.
    runs: bool,
    /// Watchers or thresholds have changed since the last sample was begun.
    changed: bool,
    latest: Option<Sample>,
    /// When reactors were called last because of a level that is not nominal.
    acted: Option<Instant>,
}

struct Reactor {
    target: Weak<dyn React>,
    /// The levels that it was told last.
    told: (Level, Level),
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

static MONITOR: Monitor = Monitor::new(|| Box::new(SystemSampler::default()));

/// Watches memory from now on until the guard is dropped. `notify` is called on the monitor's thread when there is a
/// notice to take; a call that has begun by then may outlast the guard.
pub fn watch(thresholds: Thresholds, interval: Duration, notify: impl Fn() + Send + Sync + 'static) -> Watch {
    MONITOR.watch(thresholds, interval, Box::new(notify))
}

/// Has `reactor` act on levels while it lives; the present one with the next sample, if that is not nominal.
pub fn add_reactor(reactor: Weak<dyn React>) {
    MONITOR.add_reactor(reactor);
}

/// The highest level of all watchers. An atomic load.
pub fn level() -> Level {
    MONITOR.level()
}

/// The latest sample; `None` while nobody watches.
pub fn latest() -> Option<Sample> {
    MONITOR.state.lock().latest.clone()
}

/// A watcher's place; dropping it ends the watching and, with the last, the thread.
pub struct Watch {
    monitor: &'static Monitor,
    watcher: Arc<Watcher>,
}

impl Watch {
    /// Takes other thresholds; memory is looked at with them at once.
    pub fn set(&self, thresholds: Thresholds, interval: Duration) {
        let mut inner = self.watcher.inner.lock();
        inner.thresholds = thresholds;
        inner.interval = interval;
        drop(inner);
        self.monitor.change(|_| ());
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
        self.monitor.change(|watchers| watchers.retain(|watcher| !Arc::ptr_eq(watcher, &self.watcher)));
    }
}

impl Monitor {
    const fn new(sampler: fn() -> Box<dyn Sampler>) -> Self {
        let state = State {
            watchers: Vec::new(),
            reactors: Vec::new(),
            runs: false,
            changed: false,
            latest: None,
            acted: None,
        };
        Self { state: Mutex::new(state), wake: Condvar::new(), level: AtomicU8::new(0), sampler }
    }

    fn watch(
        &'static self,
        thresholds: Thresholds,
        interval: Duration,
        notify: Box<dyn Fn() + Send + Sync>,
    ) -> Watch {
        let watch = self.add(thresholds, interval, notify);
        let mut state = self.state.lock();
        if !state.runs {
            // Without a thread levels stay nominal: no reason to refuse work.
            let thread = std::thread::Builder::new().name("yolo-memory".into());
            state.runs = thread.spawn(|| self.run()).is_ok();
        }
        drop(state);
        watch
    }

    fn add(
        &'static self,
        thresholds: Thresholds,
        interval: Duration,
        notify: Box<dyn Fn() + Send + Sync>,
    ) -> Watch {
        let inner = Inner { thresholds, interval, levels: Levels::default(), notice: None };
        let watcher = Arc::new(Watcher {
            inner: Mutex::new(inner),
            level: AtomicU8::new(0),
            degrade: AtomicU8::new(0),
            notify,
        });
        self.change(|watchers| watchers.push(watcher.clone()));
        Watch { monitor: self, watcher }
    }

    fn add_reactor(&self, target: Weak<dyn React>) {
        self.state.lock().reactors.push(Reactor { target, told: Default::default() });
    }

    fn level(&self) -> Level {
        Level::from_number(self.level.load(Ordering::Relaxed))
    }

    /// Has the thread look at once.
    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Watcher>>)) {
        let mut state = self.state.lock();
        change(&mut state.watchers);
        state.changed = true;
        self.publish(&state);
        drop(state);
        self.wake.notify_one();
    }

    fn publish(&self, state: &State) {
        let levels = state.watchers.iter().map(|watcher| watcher.level.load(Ordering::Relaxed));
        self.level.store(levels.max().unwrap_or_default(), Ordering::Relaxed);
    }

    fn run(&self) {
        let mut sampler = (self.sampler)();
        let mut sample = Sample::default();
        loop {
            self.state.lock().changed = false;
            go_on(|| sampler.sample(&mut sample));
            self.step(&sample, Instant::now());
            let mut state = self.state.lock();
            // Not with the first sample that finds nobody: in that one the reactors have been told.
            if state.watchers.is_empty() && !state.changed {
                state.runs = false;
                state.latest = None;
                return;
            }
            let interval = state.watchers.iter().map(|watcher| watcher.inner.lock().interval).min();
            if let (Some(interval), false) = (interval, state.changed) {
                self.wake.wait_for(&mut state, interval);
            }
        }
    }

    /// Takes a sample in, has the reactors act, and calls those who have something to tell.
    fn step(&self, sample: &Sample, now: Instant) {
        let mut state = self.state.lock();
        state.latest = Some(sample.clone());
        let watchers = state.watchers.clone();
        drop(state);

        let mut press = Press::default();
        let mut changes = Vec::new();
        for watcher in watchers {
            if let Some(change) = watcher.observe(sample, now, &mut press) {
                changes.push((watcher, change));
            }
        }
        let actions = self.react(&press, now);
        for (watcher, change) in changes {
            watcher.inner.lock().put(Notice { change, actions: actions.clone() });
            go_on(|| (watcher.notify)());
        }
    }

    /// Has those reactors act that know another level, or all where pressure rises or stays.
    fn react(&self, press: &Press, now: Instant) -> Vec<Action> {
        let levels = (press.level, press.degrade);
        let mut state = self.state.lock();
        self.publish(&state);
        // Watchers that began at different times tell a level that stays at different times.
        let is_due = |acted: Instant| now.saturating_duration_since(acted) >= press.cooldown;
        let stays = press.stays && state.acted.is_none_or(is_due);
        let acts = press.level != Level::Nominal && (press.rises || stays);
        if acts {
            state.acted = Some(now);
        }
        state.reactors.retain(|reactor| reactor.target.strong_count() > 0);
        let called: Vec<_> =
            state.reactors.iter_mut().filter(|reactor| acts || reactor.told != levels).collect();
        let called: Vec<_> = called
            .into_iter()
            .filter_map(|reactor| {
                reactor.told = levels;
                reactor.target.upgrade()
            })
            .collect();
        drop(state);

        let mut actions = Vec::new();
        for reactor in called {
            go_on(|| reactor.react(press.level, press.degrade, &mut actions));
        }
        if acts {
            let before = super::resident_bytes();
            super::return_free_heap();
            let freed = before.saturating_sub(super::resident_bytes());
            actions.push(Action { name: RETURN_HEAP, freed });
        }
        actions
    }
}

/// The action that comes last.
pub const RETURN_HEAP: &str = "return-heap";

/// What the watchers that want reactions say together.
#[derive(Default)]
struct Press {
    level: Level,
    degrade: Level,
    /// For one of them the level has risen, or may cost more.
    rises: bool,
    /// For one of them it has stayed for a cooldown.
    stays: bool,
    /// The shortest of those that tell so.
    cooldown: Duration,
}

impl Watcher {
    /// Takes a sample in and adds to `press`; what is to be told.
    fn observe(&self, sample: &Sample, now: Instant, press: &mut Press) -> Option<Change> {
        let mut inner = self.inner.lock();
        let Inner { thresholds, levels, .. } = &mut *inner;
        let degraded = levels.degrade();
        let change = levels.observe(sample, thresholds, now);
        self.level.store(levels.level() as u8, Ordering::Relaxed);
        self.degrade.store(levels.degrade() as u8, Ordering::Relaxed);
        if thresholds.react {
            press.level = press.level.max(levels.level());
            press.degrade = press.degrade.max(levels.degrade());
            press.rises |= levels.degrade() > degraded;
            if let Some(change) = &change {
                press.rises |= change.level > change.previous;
                if change.level == change.previous && levels.degrade() == degraded {
                    let shortest = if press.stays { press.cooldown } else { Duration::MAX };
                    press.cooldown = thresholds.cooldown.min(shortest);
                    press.stays = true;
                }
            }
        }
        change
    }
}

/// Whatever panics here has its message printed by the panic hook; memory is watched on.
fn go_on(work: impl FnOnce()) {
    let _ = panic::catch_unwind(AssertUnwindSafe(work));
}

impl Inner {
    /// A notice that was not taken lives on in the later one; actions of one name are added up, so that it stays small.
    fn put(&mut self, mut notice: Notice) {
        if let Some(before) = self.notice.take() {
            notice.change.previous = before.change.previous;
            let mut actions = before.actions;
            for action in notice.actions {
                match actions.iter_mut().find(|known| known.name == action.name) {
                    Some(known) => known.freed = known.freed.saturating_add(action.freed),
                    None => actions.push(action),
                }
            }
            notice.actions = actions;
        }
        self.notice = Some(notice);
    }
}

#[cfg(test)]
mod tests;
