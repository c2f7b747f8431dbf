//! What an element does about memory pressure: it watches, tells its stream and the application, and infers less.
//!
//! The monitor's thread only marks the in-flight FIFO ([`super::inflight::Inflight::poke`]); the source pad's task takes
//! the notice from there between two frames, posts the message and pushes the events. A task that stands in a push tells
//! when that returns. Events wait until the stream has begun (a segment), and the downstream one is sent again with the
//! first segment after a flush or a new stream, since a valve forgets it then.

use std::sync::{Arc, Weak};
use std::time::Duration;

use gst::prelude::*;
use gst::subclass::prelude::*;
use parking_lot::Mutex;

use super::imp::{CAT, YoloDetect};
use super::inflight::Inflight;
use super::memory_settings::MemorySettings;
use crate::history::{self, History};
use crate::memory::budget::Megabytes;
use crate::memory::monitor::{self, Action, Notice, React, Watch};
use crate::memory::pressure::{Change, Level, Source, Thresholds};
use crate::pressure_event;

/// Lives as long as the session.
pub struct Pressure {
    watch: Watch,
    pub history: Arc<History>,
    /// What the other two were last told to do.
    wanted: Mutex<Wanted>,
    told: Mutex<Told>,
}

#[derive(Clone, Copy, PartialEq)]
struct Wanted {
    thresholds: Thresholds,
    interval: Duration,
    history: u32,
}

impl Wanted {
    fn new(settings: &MemorySettings) -> Self {
        Self {
            thresholds: settings.thresholds(),
            interval: settings.pressure_interval.into(),
            history: settings.history_size,
        }
    }
}

#[derive(Default)]
struct Told {
    latest: Option<gst::Structure>,
    /// `latest` is still to be pushed.
    downstream: bool,
    upstream: bool,
    /// For which the element's own reactions were told.
    degrade: Level,
}

/// From which level on, what is done, and how it is undone. Frees nothing by itself.
const REACTIONS: [(Level, &str, &str); 2] = [
    (Level::Critical, "double-interval", "restore-interval"),
    (Level::Emergency, "pass-uninferred", "resume-inference"),
];

fn reactions(before: Level, now: Level) -> impl Iterator<Item = Action> {
    REACTIONS.into_iter().filter_map(move |(from, done, undone)| {
        let name = match (before >= from, now >= from) {
            (false, true) => done,
            (true, false) => undone,
            _ => return None,
        };
        Some(Action { name, freed: 0 })
    })
}

/// Why frames pass uninferred, and what would help.
fn silence(change: &Change) -> String {
    let (what, remedy) = match change.source {
        Source::Process => ("the process", "raise memory-emergency"),
        Source::Cgroup => ("the container", "raise its limit"),
        Source::Budget => ("the process, by its memory-budget,", "raise the budget"),
        Source::System => ("the machine", "free some"),
        Source::Gpu(_) => ("the GPU", "free some"),
    };
    format!(
        "{what} is short of memory: {} are used, and from {} on frames pass uninferred; {remedy}, or use a smaller model or \
         fewer streams",
        Megabytes(change.used),
        Megabytes(change.threshold)
    )
}

impl Pressure {
    /// Watches from now on. `inflight` wakes the task that takes notices.
    pub fn new(settings: &MemorySettings, element: &str, inflight: Weak<Inflight>) -> Self {
        let wanted = Wanted::new(settings);
        let history = Arc::new(History::new(&history::SHELF, element, wanted.history as usize));
        let reactor: Weak<dyn React> = Arc::downgrade(&history) as _;
        monitor::add_reactor(reactor);
        let notify = move || {
            if let Some(inflight) = inflight.upgrade() {
                inflight.poke();
            }
        };
        let watch = monitor::watch(wanted.thresholds, wanted.interval, notify);
        Self { watch, history, wanted: Mutex::new(wanted), told: Mutex::default() }
    }

    /// Takes over settings that changed.
    pub fn follow(&self, settings: &MemorySettings) {
        let mut wanted = self.wanted.lock();
        let before = std::mem::replace(&mut *wanted, Wanted::new(settings));
        if wanted.history != before.history {
            self.history.set_size(wanted.history as usize);
        }
        // Wakes the monitor: not for a property that is none of its own.
        if *wanted != (Wanted { history: wanted.history, ..before }) {
            self.watch.set(wanted.thresholds, wanted.interval);
        }
    }

    /// Interval and rate of inferences, in place of those that the user wants; `None` where there are to be none.
    pub fn allowed(&self, interval: u32, max_fps: f64) -> Option<(u32, f64)> {
        match self.watch.degrade() {
            Level::Emergency => None,
            // Whichever is lower decides: halving both halves it.
            Level::Critical => Some((interval.saturating_mul(2), max_fps / 2.0)),
            Level::Warning | Level::Nominal => Some((interval, max_fps)),
        }
    }

    /// What is on the stream's pads may be forgotten: it is told again.
    pub fn tell_again(&self) {
        self.told.lock().downstream = true;
    }

    /// What is to be told now; `None` where there is nothing new. Where no frame is inferred from now on, also in words.
    fn take(&self) -> Option<(gst::Structure, Option<String>)> {
        let Notice { change, actions } = self.watch.take()?;
        let mut told = self.told.lock();
        let degrade = self.watch.degrade();
        let own: Vec<_> = reactions(told.degrade, degrade).collect();
        let silenced = told.degrade < Level::Emergency && degrade == Level::Emergency;
        let fields = pressure_event::structure(&change, actions.iter().chain(&own));
        *told = Told { latest: Some(fields.clone()), downstream: true, upstream: true, degrade };
        Some((fields, silenced.then(|| silence(&change))))
    }

    /// Takes what is still to be pushed, downstream and upstream.
    fn owed(&self) -> [Option<gst::Structure>; 2] {
        let mut told = self.told.lock();
        let ways = [std::mem::take(&mut told.downstream), std::mem::take(&mut told.upstream)];
        ways.map(|owed| told.latest.clone().filter(|_| owed))
    }
}

/// On the source pad's task.
impl YoloDetect {
    pub(super) fn take_notice(&self) {
        let Some(session) = self.session() else { return };
        let Some((fields, silence)) = session.pressure.take() else { return };
        gst::info!(CAT, imp = self, "{fields}");
        if let Some(silence) = silence {
            gst::element_imp_warning!(self, gst::ResourceError::NoSpaceLeft, ("{silence}"));
        }
        let _ = self.obj().post_message(gst::message::Element::builder(fields).src(&*self.obj()).build());
        self.tell_stream();
    }

    /// Pushes what is to be told, once the stream has begun.
    pub(super) fn tell_stream(&self) {
        let Some(session) = self.session() else { return };
        if self.srcpad.sticky_event::<gst::event::Segment>(0).is_none() {
            return;
        }
        let [downstream, upstream] = session.pressure.owed();
        if let Some(fields) = upstream {
            self.sinkpad.push_event(gst::event::CustomUpstream::new(fields));
        }
        if let Some(fields) = downstream {
            self.srcpad.push_event(gst::event::CustomDownstreamSticky::new(fields));
        }
    }

    /// An event has left that begins a stream, or a part of one.
    pub(super) fn follow_stream(&self, event: gst::EventType) {
        match event {
            gst::EventType::StreamStart => {
                if let Some(session) = self.session() {
                    session.pressure.tell_again();
                }
            }
            gst::EventType::Segment => self.tell_stream(),
            _ => (),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reaction_that_is_told_is_told_undone() {
        let names = |before, now| reactions(before, now).map(|action| action.name).collect::<Vec<_>>();
        assert_eq!(names(Level::Nominal, Level::Warning), [""; 0]);
        assert_eq!(names(Level::Warning, Level::Critical), ["double-interval"]);
        assert_eq!(names(Level::Nominal, Level::Emergency), ["double-interval", "pass-uninferred"]);
        assert_eq!(names(Level::Critical, Level::Critical), [""; 0]);
        assert_eq!(names(Level::Emergency, Level::Critical), ["resume-inference"]);
        assert_eq!(names(Level::Critical, Level::Warning), ["restore-interval"]);
    }
}
