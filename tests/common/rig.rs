//! `yolodetect` between two pads of the test's own, so that a test decides what comes in, what downstream
//! answers and when, and sees everything that comes out, in order.
#![allow(dead_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use gst::prelude::*;
use gstyolodetect::meta;
use parking_lot::{Condvar, Mutex};

use super::common::{self, PATIENCE};

pub type Flow = Result<gst::FlowSuccess, gst::FlowError>;

/// A frame as it came out.
#[derive(Clone, Debug)]
pub struct Seen {
    pub pts: Option<gst::ClockTime>,
    pub number: u64,
    pub status: &'static str,
    pub batch: u32,
    pub element: String,
    /// `x, y, w, h` of each detection.
    pub boxes: Vec<(i32, i32, i32, i32)>,
    pub ids: Vec<u32>,
    /// Of the first detection; a marker model's says how red the picture was.
    pub confidence: Option<f32>,
    /// Class and confidence of each detection.
    pub scores: Vec<(u32, f32)>,
    /// The width that the pad's caps said then.
    pub width: Option<i32>,
}

impl Seen {
    pub fn new(buffer: &gst::BufferRef, caps: Option<gst::Caps>) -> Self {
        let frames = meta::frames(buffer);
        let last = frames.last().expect("every frame has a status");
        let found = meta::found(buffer);
        Self {
            pts: buffer.pts(),
            number: last.frame,
            status: last.status.nick(),
            batch: last.batch,
            element: last.element.clone(),
            boxes: found.iter().map(|found| (found.x, found.y, found.w, found.h)).collect(),
            ids: found.iter().filter_map(|found| found.id).collect(),
            confidence: found.first().and_then(|found| found.confidence),
            scores: found.iter().filter_map(|found| Some((found.class_id?, found.confidence?))).collect(),
            width: caps.and_then(|caps| caps.structure(0)?.get("width").ok()),
        }
    }
}

#[derive(Clone, Debug)]
pub enum Item {
    Frame(Seen),
    Event(gst::Event),
    /// The query's type.
    Query(String),
}

impl Item {
    /// For comparing orders: the frame's milliseconds, the event's type, the query's.
    pub fn brief(&self) -> String {
        match self {
            Item::Frame(seen) => format!("frame {}", seen.pts.map_or(-1, |pts| pts.mseconds() as i64)),
            Item::Event(event) => event.type_().name().to_string(),
            Item::Query(kind) => format!("query {kind}"),
        }
    }
}

#[derive(Default)]
struct Downstream {
    items: Vec<Item>,
    /// Frames that wait at the gate.
    waiting: usize,
    closed: bool,
    flushing: bool,
    answer: Option<gst::FlowError>,
}

#[derive(Default)]
pub struct Sink {
    state: Mutex<Downstream>,
    changed: Condvar,
}

impl Sink {
    fn frame(&self, pad: &gst::Pad, buffer: gst::Buffer) -> Flow {
        let mut state = self.state.lock();
        state.waiting += 1;
        self.changed.notify_all();
        while state.closed && !state.flushing {
            self.changed.wait(&mut state);
        }
        state.waiting -= 1;
        let flow = match (state.flushing, state.answer) {
            (true, _) => Err(gst::FlowError::Flushing),
            (false, Some(error)) => Err(error),
            _ => Ok(gst::FlowSuccess::Ok),
        };
        if flow.is_ok() {
            state.items.push(Item::Frame(Seen::new(&buffer, pad.current_caps())));
        }
        self.changed.notify_all();
        flow
    }

    fn event(&self, event: gst::Event) -> bool {
        let mut state = self.state.lock();
        match event.type_() {
            gst::EventType::FlushStart => state.flushing = true,
            gst::EventType::FlushStop => state.flushing = false,
            _ => (),
        }
        state.items.push(Item::Event(event));
        self.changed.notify_all();
        true
    }

    fn query(&self, pad: &gst::Pad, query: &mut gst::QueryRef) -> bool {
        if !query.is_serialized() {
            return gst::Pad::query_default(pad, gst::Object::NONE, query);
        }
        let name = query.type_().name().to_string();
        if let gst::QueryViewMut::Allocation(query) = query.view_mut() {
            query.add_allocation_pool(gst::BufferPool::NONE, 1000, 2, 10);
            query.add_allocation_pool(gst::BufferPool::NONE, 1000, 1, 0);
        }
        self.state.lock().items.push(Item::Query(name));
        self.changed.notify_all();
        true
    }

    /// Frames wait in the sink until it is opened.
    pub fn close(&self) {
        self.state.lock().closed = true;
    }

    pub fn open(&self) {
        self.state.lock().closed = false;
        self.changed.notify_all();
    }

    pub fn answer(&self, answer: Option<gst::FlowError>) {
        self.state.lock().answer = answer;
    }

    /// Waits until `enough` of what came out.
    pub fn until(&self, what: &str, enough: impl Fn(&[Item]) -> bool) -> Vec<Item> {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.state.lock();
        while !enough(&state.items) {
            let late = self.changed.wait_until(&mut state, deadline).timed_out();
            assert!(!late, "no {what}: {:?}", state.items.iter().map(Item::brief).collect::<Vec<_>>());
        }
        state.items.clone()
    }

    /// Waits until a frame stands before the closed gate.
    pub fn until_blocked(&self) {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.state.lock();
        while state.waiting == 0 {
            assert!(!self.changed.wait_until(&mut state, deadline).timed_out(), "no frame comes");
        }
    }

    pub fn frames(&self, count: usize) -> Vec<Seen> {
        let items = self.until(&format!("{count} frames"), |items| frames_of(items).len() >= count);
        frames_of(&items)
    }

    pub fn eos(&self) -> Vec<Item> {
        self.until("end of stream", |items| items.iter().any(|item| item.brief() == "eos"))
    }

    pub fn forget(&self) {
        self.state.lock().items.clear();
    }

    /// What came out since the last call.
    pub fn take(&self) -> Vec<Item> {
        std::mem::take(&mut self.state.lock().items)
    }

    pub fn briefs(&self) -> Vec<String> {
        self.state.lock().items.iter().map(Item::brief).collect()
    }
}

pub fn frames_of(items: &[Item]) -> Vec<Seen> {
    let frame = |item: &Item| match item {
        Item::Frame(seen) => Some(seen.clone()),
        _ => None,
    };
    items.iter().filter_map(frame).collect()
}

pub struct Rig {
    pub element: gst::Element,
    pub bus: gst::Bus,
    /// Pushes into the element.
    pub src: gst::Pad,
    /// Gets what comes out of it.
    pub sink: gst::Pad,
    pub seen: Arc<Sink>,
    /// What the source says of itself.
    pub live: Arc<AtomicBool>,
}

/// A red square; a marker model's confidence is `red / 255`.
pub fn picture(size: u32, red: u8, pts: gst::ClockTime) -> gst::Buffer {
    let mut pixels = vec![0; (size * size * 3) as usize];
    pixels.iter_mut().step_by(3).for_each(|channel| *channel = red);
    let mut buffer = gst::Buffer::from_mut_slice(pixels);
    buffer.get_mut().unwrap().set_pts(pts);
    buffer
}

pub fn caps(size: u32) -> gst::Caps {
    gst_video::VideoCapsBuilder::new()
        .format(gst_video::VideoFormat::Rgb)
        .width(size as i32)
        .height(size as i32)
        .framerate(gst::Fraction::new(25, 1))
        .build()
}

pub fn millis(time: u64) -> gst::ClockTime {
    gst::ClockTime::from_mseconds(time)
}

pub fn segment() -> gst::Event {
    gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new())
}

impl Rig {
    /// Running, with the marker model `v8_dynamic_batch` and `overload=block` where `properties` do not say
    /// otherwise. Tests run at the same time and would share their engine: one that looks at batches asks for a
    /// number of threads of its own.  `stream-start`, caps of 64x64 and a segment have been pushed.
    pub fn new(properties: &[(&str, &str)]) -> Self {
        let rig = Self::unlinked(properties, true);
        rig.link();
        rig.begin();
        rig
    }

    pub fn unlinked(properties: &[(&str, &str)], live: bool) -> Self {
        common::init();
        let element = gst::ElementFactory::make("yolodetect")
            .property("model-file", common::tiny("v8_dynamic_batch"))
            .property_from_str("overload", "block")
            .property_from_str("performance-hint", "latency")
            .build()
            .unwrap();
        for (name, value) in properties {
            element.set_property_from_str(name, value);
        }
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        let seen = Arc::new(Sink::default());
        let live = Arc::new(AtomicBool::new(live));
        let answer = live.clone();
        let src = gst::Pad::builder(gst::PadDirection::Src)
            .name("test-src")
            .query_function(move |pad, parent, query| match query.view_mut() {
                gst::QueryViewMut::Latency(query) => {
                    query.set(answer.load(Ordering::SeqCst), millis(7), Some(millis(70)));
                    true
                }
                _ => gst::Pad::query_default(pad, parent, query),
            })
            .build();
        let (chain, event, query) = (seen.clone(), seen.clone(), seen.clone());
        // Without a template a pad takes no other caps than its first.
        let template = gst::PadTemplate::new(
            "test-sink",
            gst::PadDirection::Sink,
            gst::PadPresence::Always,
            &gst::Caps::new_any(),
        );
        let sink = gst::Pad::builder_from_template(&template.unwrap())
            .name("test-sink")
            .chain_function(move |pad, _, buffer| chain.frame(pad, buffer))
            .event_function(move |_, _, passing| event.event(passing))
            .query_function(move |pad, _, asked| query.query(pad, asked))
            .build();
        src.link(&element.static_pad("sink").unwrap()).unwrap();
        sink.set_active(true).unwrap();
        element.set_state(gst::State::Playing).unwrap();
        src.set_active(true).unwrap();
        Self { element, bus, src, sink, seen, live }
    }

    pub fn link(&self) {
        self.element.static_pad("src").unwrap().link(&self.sink).unwrap();
    }

    pub fn begin(&self) {
        self.event(gst::event::StreamStart::new("test"));
        self.event(gst::event::Caps::new(&caps(64)));
        self.event(segment());
    }

    pub fn event(&self, event: gst::Event) {
        let name = event.type_();
        assert!(self.src.push_event(event), "{name:?} is refused");
    }

    /// A frame of 64x64 at `index` times 40 ms.
    pub fn push(&self, index: u64, red: u8) -> Flow {
        self.src.push(picture(64, red, millis(40 * index)))
    }

    /// Several, all alike.
    pub fn push_frames(&self, indices: std::ops::Range<u64>) {
        for index in indices {
            self.push(index, 200).unwrap();
        }
    }

    /// Pushes until the answer is bad, and returns it.
    pub fn push_until_refused(&self) -> gst::FlowError {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Err(flow) = self.push(0, 200) {
                return flow;
            }
            assert!(Instant::now() < deadline, "every frame is taken");
            std::thread::yield_now();
        }
    }

    pub fn flush(&self) {
        self.src.push_event(gst::event::FlushStart::new());
        self.src.push_event(gst::event::FlushStop::new(true));
    }

    pub fn stats(&self) -> gst::Structure {
        self.element.property("stats")
    }

    pub fn count(&self, field: &str) -> u64 {
        self.stats().get::<u64>(field).unwrap_or_else(|error| panic!("{field}: {error}"))
    }

    pub fn engine(&self) -> gst::Structure {
        self.stats().get("engine").expect("an engine")
    }

    /// Waits for a figure of the statistics.
    pub fn until_stats(&self, what: &str, enough: impl Fn(&gst::StructureRef) -> bool) {
        until_stats(&self.element, what, enough);
    }

    /// The next message of a kind.
    pub fn message(&self, kind: gst::MessageType) -> gst::Message {
        let patience = gst::ClockTime::try_from(PATIENCE).unwrap();
        self.bus.timed_pop_filtered(patience, &[kind]).unwrap_or_else(|| panic!("no {kind:?} message"))
    }

    pub fn has_message(&self, kind: gst::MessageType) -> bool {
        self.bus.pop_filtered(&[kind]).is_some()
    }
}

/// Waits for a figure of a `yolodetect`'s statistics.
pub fn until_stats(element: &gst::Element, what: &str, enough: impl Fn(&gst::StructureRef) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    let stats = || element.property::<gst::Structure>("stats");
    while !enough(&stats()) {
        assert!(Instant::now() < deadline, "no {what}: {}", stats());
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.seen.open();
        let _ = self.element.set_state(gst::State::Null);
        let _ = self.src.set_active(false);
        let _ = self.sink.set_active(false);
        // Its messages hold the element, which holds it.
        self.bus.set_flushing(true);
    }
}
