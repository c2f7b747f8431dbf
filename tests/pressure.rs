//! Memory pressure as `yolodetect` tells it and acts on it. Thresholds of one byte make every process short of memory, so
//! that a test decides which level there is.

mod common;
#[path = "common/rig.rs"]
mod rig;

use std::sync::Arc;

use common::memory_is_calm;
use gst::prelude::*;
use gstyolodetect::memory;
use parking_lot::Mutex;
use rig::{Item, Rig, Seen, frames_of};

const NAME: &str = "yolodetect-memory-pressure";
/// What is always exceeded, and never.
const ALWAYS: u64 = 1;
const NEVER: u64 = u64::MAX;
const STEPS: [&str; 3] = ["memory-warning", "memory-critical", "memory-emergency"];
const LEVELS: [&str; 3] = ["warning", "critical", "emergency"];

/// One notice, from wherever it was read.
#[derive(Clone, Debug, PartialEq)]
struct Notice {
    level: String,
    previous: String,
    source: String,
    used: u64,
    threshold: u64,
    actions: Vec<String>,
}

impl Notice {
    fn new(fields: &gst::StructureRef) -> Option<Self> {
        if fields.name() != NAME {
            return None;
        }
        let text = |name| fields.get::<String>(name).unwrap();
        let number = |name| fields.get::<u64>(name).unwrap();
        let actions = fields.get::<gst::Structure>("actions").unwrap();
        let freed = actions.iter().map(|(_, freed)| freed.get::<u64>().unwrap()).sum::<u64>();
        assert_eq!(number("freed-bytes"), freed, "{fields}");
        number("limit-bytes");
        Some(Self {
            level: text("level"),
            previous: text("previous-level"),
            source: text("source"),
            used: number("used-bytes"),
            threshold: number("threshold-bytes"),
            actions: actions.fields().map(|name| name.to_string()).collect(),
        })
    }

    fn did(&self, action: &str) -> bool {
        self.actions.iter().any(|name| name == action)
    }

    /// Of an item that came out, if it is one.
    fn of(item: &Item) -> Option<Self> {
        match item {
            Item::Event(event) => Self::new(event.structure()?),
            _ => None,
        }
    }
}

/// A detector under watch, with its levels.
struct Pressed {
    rig: Rig,
    upstream: Arc<Mutex<Vec<Notice>>>,
    /// Frames pushed.
    pushed: u64,
}

impl Pressed {
    /// At rest: no threshold can be reached.
    fn new(properties: &[(&str, &str)]) -> Self {
        let pressed = Self::unlinked(properties);
        pressed.rig.link();
        pressed.rig.begin();
        pressed
    }

    /// The same before its stream begins.
    fn unlinked(properties: &[(&str, &str)]) -> Self {
        let never = NEVER.to_string();
        let mut all: Vec<(&str, &str)> = STEPS.iter().map(|&step| (step, never.as_str())).collect();
        // Not only quick: levels follow when a threshold is set, but fall no sooner than with the next look.
        all.push(("pressure-interval", "5000000"));
        all.extend(properties);
        let rig = Rig::unlinked(&all, false);
        let upstream: Arc<Mutex<Vec<Notice>>> = Arc::default();
        let seen = upstream.clone();
        rig.src.add_probe(gst::PadProbeType::EVENT_UPSTREAM, move |_, info| {
            seen.lock().extend(info.event().and_then(|event| Notice::new(event.structure()?)));
            gst::PadProbeReturn::Ok
        });
        Self { rig, upstream, pushed: 0 }
    }

    fn set(&self, property: &str, value: u64) {
        self.rig.element.set_property(property, value);
    }

    /// The next notice on the bus.
    fn message(&self) -> Notice {
        let message = self.rig.message(gst::MessageType::Element);
        assert_eq!(message.src(), Some(self.rig.element.upcast_ref()));
        Notice::new(message.structure().unwrap()).expect("no other element message")
    }

    /// Waits until `level` is told on the bus; all that was told until then.
    fn until(&self, level: &str) -> Vec<Notice> {
        let mut told = vec![self.message()];
        while told.last().is_some_and(|notice| notice.level != level) {
            told.push(self.message());
        }
        told
    }

    /// Raises the level to that of `step`, over those below; what was told of it.
    fn rise(&self, step: usize) -> Notice {
        STEPS[..=step].iter().for_each(|step| self.set(step, ALWAYS));
        self.until(LEVELS[step]).pop().unwrap()
    }

    /// Lets the level fall, all the way down; what was told.
    fn fall(&self) -> Vec<Notice> {
        self.set("pressure-cooldown", 0);
        STEPS.iter().for_each(|step| self.set(step, NEVER));
        self.until("nominal")
    }

    /// So many more frames, as they came out: each once, in order.
    fn frames(&mut self, count: u64) -> Vec<Seen> {
        let from = frames_of(&self.rig.seen.until("the frames before", |_| true)).len();
        self.rig.push_frames(self.pushed..self.pushed + count);
        let frames = self.rig.seen.frames(from + count as usize).split_off(from);
        let expected: Vec<_> = (self.pushed..self.pushed + count).collect();
        assert_eq!(frames.iter().map(|seen| seen.number).collect::<Vec<_>>(), expected);
        self.pushed += count;
        frames
    }

    fn statuses(&mut self, count: u64) -> Vec<&'static str> {
        self.frames(count).iter().map(|seen| seen.status).collect()
    }

    /// Waits until so many notices came downstream; all of them.
    fn downstream(&self, count: usize) -> Vec<Notice> {
        let notices = |items: &[Item]| items.iter().filter_map(Notice::of).collect::<Vec<_>>();
        notices(&self.rig.seen.until("events", |items| notices(items).len() >= count))
    }
}

/// Each notice goes on where the one before stopped.
fn assert_chain(from: &str, notices: &[Notice]) {
    let mut level = from;
    for notice in notices {
        assert_eq!(notice.previous, level, "{notices:?}");
        level = &notice.level;
    }
}

#[test]
fn levels_are_told_and_acted_on_and_taken_back() {
    if !memory_is_calm("levels_are_told_and_acted_on_and_taken_back") {
        return;
    }
    let mut pressed = Pressed::new(&[]);
    assert_eq!(pressed.statuses(4), ["inferred"; 4]);

    let warning = pressed.rise(0);
    assert_eq!((warning.level.as_str(), warning.previous.as_str()), ("warning", "nominal"));
    assert_eq!((warning.source.as_str(), warning.threshold), ("process", ALWAYS));
    assert!(warning.used > 1_000_000 && !warning.did("double-interval"), "{warning:?}");
    assert_eq!(pressed.statuses(4), ["inferred"; 4]);

    let critical = pressed.rise(1);
    assert_eq!((critical.level.as_str(), critical.previous.as_str()), ("critical", "warning"));
    assert!(critical.did("double-interval") && !critical.did("pass-uninferred"), "{critical:?}");
    let thinned = pressed.statuses(8);
    assert_eq!(thinned.iter().filter(|status| **status == "inferred").count(), 4, "{thinned:?}");
    assert!(thinned.windows(2).all(|pair| pair.contains(&"inferred") && pair.contains(&"interval")));

    let emergency = pressed.rise(2);
    assert_eq!((emergency.level.as_str(), emergency.previous.as_str()), ("emergency", "critical"));
    assert!(emergency.did("pass-uninferred") && !emergency.did("double-interval"), "{emergency:?}");
    assert_eq!(pressed.statuses(5), ["pressure"; 5]);
    assert_eq!(pressed.rig.count("skipped-pressure"), 5);

    let fallen = pressed.fall();
    assert_chain("emergency", &fallen);
    for undone in ["resume-inference", "restore-interval"] {
        assert_eq!(fallen.iter().filter(|notice| notice.did(undone)).count(), 1, "{undone}: {fallen:?}");
    }
    assert_eq!(pressed.statuses(4), ["inferred"; 4]);

    // The same, in the same order, on every way.
    let told: Vec<_> = [warning, critical, emergency].into_iter().chain(fallen).collect();
    assert_eq!(pressed.downstream(told.len()), told);
    assert_eq!(*pressed.upstream.lock(), told);
    assert_eq!(frames_of(&pressed.rig.seen.take()).len(), 25, "no frame is lost");
}

#[test]
fn a_jump_is_told_with_all_that_is_done() {
    let mut pressed = Pressed::new(&STEPS.map(|step| (step, "1")));
    // Also for those who read no element messages.
    let warning = pressed.rig.message(gst::MessageType::Warning);
    let gst::MessageView::Warning(warning) = warning.view() else { unreachable!() };
    let text = warning.error().to_string();
    assert!(text.contains("frames pass uninferred; raise memory-emergency"), "{text}");
    let emergency = pressed.message();
    assert_eq!((emergency.level.as_str(), emergency.previous.as_str()), ("emergency", "nominal"));
    assert!(emergency.did("double-interval") && emergency.did("pass-uninferred"), "{emergency:?}");
    assert_eq!(pressed.statuses(3), ["pressure"; 3]);
    pressed.fall();
    assert_eq!(pressed.statuses(3), ["inferred"; 3]);
}

#[test]
fn half_as_many_inferences_whatever_the_user_wants() {
    if !memory_is_calm("half_as_many_inferences_whatever_the_user_wants") {
        return;
    }
    // 100 frames are 4 s.
    for (interval, max_fps, expected) in [("1", "10", 20), ("5", "10", 10), ("3", "0", 17)] {
        let mut pressed = Pressed::new(&[("inference-interval", interval), ("max-fps", max_fps)]);
        pressed.rise(1);
        let statuses = pressed.statuses(100);
        let inferred = statuses.iter().filter(|status| **status == "inferred").count();
        assert_eq!(inferred, expected, "interval {interval}, {max_fps} a second");
        assert!(statuses.iter().all(|status| ["inferred", "interval"].contains(status)), "{statuses:?}");
    }
}

#[test]
fn without_reactions_it_is_only_told() {
    if !memory_is_calm("without_reactions_it_is_only_told") {
        return;
    }
    let mut pressed = Pressed::new(&[("pressure-reactions", "false")]);
    STEPS.iter().for_each(|step| pressed.set(step, ALWAYS));
    let told = pressed.until("emergency");
    let own = |notice: &Notice| notice.did("double-interval") || notice.did("pass-uninferred");
    assert!(!told.iter().any(own), "{told:?}");
    assert_eq!(pressed.statuses(4), ["inferred"; 4]);
    assert_eq!(pressed.downstream(told.len()), told);
}

#[test]
fn before_the_stream_begins_only_the_application_is_told() {
    let pressed = Pressed::unlinked(&[("memory-warning", "1"), ("memory-critical", "1")]);
    let told = pressed.message();
    assert_eq!((told.level.as_str(), told.previous.as_str()), ("critical", "nominal"));
    assert_eq!(*pressed.upstream.lock(), []);
    pressed.rig.link();
    pressed.rig.begin();
    assert_eq!(pressed.downstream(1), std::slice::from_ref(&told));
    assert_eq!(
        pressed.rig.seen.briefs(),
        ["stream-start", "caps", "segment", "custom-downstream-sticky"],
        "sticky events have their order"
    );
    assert_eq!(*pressed.upstream.lock(), [told]);
}

#[test]
fn a_paused_stream_is_told() {
    let pressed = Pressed::new(&[]);
    pressed.rig.element.set_state(gst::State::Paused).unwrap();
    let told = pressed.rise(0);
    assert_eq!(pressed.downstream(1), [told]);
}

#[test]
fn after_a_flush_or_a_new_stream_it_is_told_again() {
    if !memory_is_calm("after_a_flush_or_a_new_stream_it_is_told_again") {
        return;
    }
    let mut pressed = Pressed::new(&[]);
    let told = pressed.rise(0);
    assert_eq!(pressed.downstream(1), std::slice::from_ref(&told));
    pressed.frames(2);

    pressed.rig.seen.take();
    pressed.rig.flush();
    pressed.rig.event(rig::segment());
    assert_eq!(pressed.downstream(1), std::slice::from_ref(&told));
    let order = ["flush-start", "flush-stop", "segment", "custom-downstream-sticky"];
    assert_eq!(pressed.rig.seen.briefs(), order);
    pressed.frames(2);

    pressed.rig.seen.take();
    pressed.rig.begin();
    assert_eq!(pressed.downstream(1), std::slice::from_ref(&told));
    assert_eq!(pressed.rig.seen.briefs(), ["stream-start", "caps", "segment", "custom-downstream-sticky"]);
    // The one before may have been given to another: upstream has not changed.
    assert_eq!(*pressed.upstream.lock(), [told]);
    pressed.frames(2);

    // A valve behind it must not be left with what is long over.
    let fallen = pressed.fall();
    pressed.downstream(1 + fallen.len());
    pressed.rig.seen.take();
    pressed.rig.flush();
    pressed.rig.event(rig::segment());
    assert_eq!(pressed.downstream(1), fallen[fallen.len() - 1..]);
}

#[test]
fn a_stuck_stream_is_told_when_it_goes_on() {
    let stuck = Pressed::new(&[]);
    stuck.rig.seen.close();
    stuck.rig.push(0, 200).unwrap();
    stuck.rig.seen.until_blocked();
    stuck.set(STEPS[0], ALWAYS);
    // The monitor has seen both when it has told this one.
    let witness = Pressed::new(&[]);
    witness.rise(0);
    assert!(!stuck.rig.has_message(gst::MessageType::Element), "told by another thread than its own");
    stuck.rig.flush();
    let told = stuck.message();
    assert_eq!(told.level, "warning");
    stuck.rig.seen.take();
    stuck.rig.seen.open();
    stuck.rig.event(rig::segment());
    assert_eq!(stuck.downstream(1), [told]);
}

#[test]
fn the_monitor_posts_nothing_itself() {
    common::init();
    let pressed = Pressed::new(&[]);
    let by: Arc<Mutex<Vec<Option<String>>>> = Arc::default();
    let seen = by.clone();
    pressed.rig.bus.set_sync_handler(move |_, message| {
        if message.structure().is_some_and(|fields| fields.name() == NAME) {
            seen.lock().push(std::thread::current().name().map(String::from));
        }
        gst::BusSyncReply::Pass
    });
    pressed.rise(0);
    assert!(by.lock().iter().all(|name| name.as_deref() != Some("yolo-memory")) && !by.lock().is_empty());
}

#[test]
fn a_new_start_begins_without_pressure() {
    if !memory_is_calm("a_new_start_begins_without_pressure") {
        return;
    }
    let mut pressed = Pressed::new(&[]);
    pressed.rise(2);
    let element = &pressed.rig.element;
    element.set_state(gst::State::Ready).unwrap();
    STEPS.iter().for_each(|step| element.set_property(step, NEVER));
    element.set_state(gst::State::Playing).unwrap();
    pressed.rig.begin();
    pressed.rig.seen.take();
    pressed.pushed = 0;
    assert_eq!(pressed.statuses(4), ["inferred"; 4]);
    assert!(!pressed.rig.has_message(gst::MessageType::Element));
    assert_eq!(pressed.rise(0).previous, "nominal");
}

#[test]
fn memory_that_is_really_filled_is_told_acted_on_and_recovered_from() {
    let test = "memory_that_is_really_filled_is_told_acted_on_and_recovered_from";
    if !common::in_own_process(test) || !memory_is_calm(test) {
        return;
    }
    const MB: u64 = 1_000_000;
    let mut pressed = Pressed::new(&[("pressure-cooldown", "20000000")]);
    assert_eq!(pressed.statuses(4), ["inferred"; 4]);
    let before = memory::resident_bytes();
    for (step, above) in STEPS.iter().zip([100, 200, 400]) {
        pressed.set(step, before + above * MB);
    }
    // Written to, or it would not be there.
    let fill = |bytes: u64| vec![1u8; bytes as usize];
    let first = fill(270 * MB);
    let critical = pressed.until("critical");
    assert!(critical.iter().any(|notice| notice.did("double-interval")), "{critical:?}");
    let last = critical.last().unwrap();
    assert_eq!((last.source.as_str(), last.threshold), ("process", before + 200 * MB));
    assert!(last.used >= last.threshold, "{last:?}");
    let thinned = pressed.statuses(6);
    assert_eq!(thinned.iter().filter(|status| **status == "interval").count(), 3, "{thinned:?}");

    let second = fill(250 * MB);
    let emergency = pressed.until("emergency");
    assert!(emergency.iter().any(|notice| notice.did("pass-uninferred")), "{emergency:?}");
    assert_eq!(pressed.statuses(3), ["pressure"; 3]);

    assert_eq!(first.iter().chain(&second).map(|byte| u64::from(*byte)).sum::<u64>(), 520 * MB);
    drop((first, second));
    let fallen = pressed.until("nominal");
    for undone in ["resume-inference", "restore-interval"] {
        assert_eq!(fallen.iter().filter(|notice| notice.did(undone)).count(), 1, "{undone}: {fallen:?}");
    }
    assert_eq!(pressed.statuses(4), ["inferred"; 4]);

    let told: Vec<_> = critical.into_iter().chain(emergency).chain(fallen).collect();
    assert_chain("nominal", &told);
    assert_eq!(pressed.downstream(told.len()), told);
    assert_eq!(*pressed.upstream.lock(), told);
}
