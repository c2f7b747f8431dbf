//! One stream of a larger pipeline, which may be stopped, moved and taken out by itself, and which knows what
//! went into its `yolodetect` and what came out.
#![allow(dead_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use gst::State;
use gst::prelude::*;
use gst_app::{AppSrc, AppSrcCallbacks};
use parking_lot::Mutex;

use super::rig;

/// Much longer than anything here takes, and shorter than what is allowed for a step.
const PATIENCE: Duration = Duration::from_secs(30);

const FRAME: gst::ClockTime = gst::ClockTime::from_mseconds(40);

/// Between two flushes or stops.
#[derive(Debug, Default)]
struct Run {
    /// Timestamps, as they went in and came out.
    taken: Vec<Option<gst::ClockTime>>,
    given: Vec<Option<gst::ClockTime>>,
    /// The end of the stream went in, came out.
    ended: bool,
    end_seen: bool,
}

/// What passed each pad. A flush begins a new run at the one as at the other, since no data passes then.
#[derive(Default)]
struct Log {
    runs: Vec<Run>,
    /// The run in which each pad is.
    sink: usize,
    src: usize,
    frames: usize,
    /// Frames without exactly one status.
    unmarked: usize,
}

impl Log {
    fn run(&mut self, index: usize) -> &mut Run {
        while self.runs.len() <= index {
            self.runs.push(Run::default());
        }
        &mut self.runs[index]
    }

    fn at_sink(&mut self) -> &mut Run {
        self.run(self.sink)
    }

    fn at_src(&mut self) -> &mut Run {
        self.run(self.src)
    }

    /// All that went in came out, where the stream came to its end; where a flush or a stop cut it off, its
    /// beginning did.
    fn check(&self) {
        assert_eq!(self.unmarked, 0, "frames without one status");
        for (index, run) in self.runs.iter().enumerate() {
            let given = run.given.len();
            assert!(run.taken.starts_with(&run.given), "run {index}: {run:?}");
            assert!(!run.end_seen || given == run.taken.len(), "run {index} lost frames: {run:?}");
            assert!(run.ended || !run.end_seen, "run {index}: an end from nowhere");
        }
    }
}

/// What the source gives next.
struct Feed {
    frame: u64,
    size: u32,
    ended: bool,
}

impl Feed {
    fn next(&mut self, source: &AppSrc) {
        if self.ended {
            let _ = source.end_of_stream();
            return;
        }
        let picture = rig::picture(self.size, 200, self.frame * FRAME);
        self.frame += 1;
        // Frames travel with their caps.
        let sample = gst::Sample::builder().caps(&rig::caps(self.size)).buffer(&picture).build();
        // Refused while the source is stopped or flushed.
        let _ = source.push_sample(&sample);
    }
}

pub struct Branch {
    bin: gst::Bin,
    feed: Arc<Mutex<Feed>>,
    log: Arc<Mutex<Log>>,
    /// Asked for, reached or not.
    state: State,
    /// The end was sent, and no seek since.
    ended: bool,
}

impl Branch {
    /// A stream beside others in `pipeline`, stopped; the rest of its `yolodetect`'s description is
    /// `properties`.
    pub fn new(pipeline: &gst::Pipeline, properties: &str) -> Self {
        let description = format!(
            "appsrc name=source format=time stream-type=seekable ! yolodetect name=detect {properties} ! \
             fakesink name=sink sync=false async=false"
        );
        let bin = gst::parse::bin_from_description(&description, false).unwrap();
        // It has its own states, whatever those of the pipeline. Its sink does not take part in asynchronous
        // changes: a bin within a bin loses its way in them, with a plain queue as well.
        bin.set_locked_state(true);
        pipeline.add(&bin).unwrap();
        let branch = Self {
            bin,
            feed: Arc::new(Mutex::new(Feed { frame: 0, size: 64, ended: false })),
            log: Arc::default(),
            state: State::Null,
            ended: false,
        };
        branch.feed();
        branch.watch();
        branch
    }

    fn element(&self, name: &str) -> gst::Element {
        self.bin.by_name(name).unwrap()
    }

    fn source(&self) -> AppSrc {
        self.element("source").downcast().unwrap()
    }

    fn feed(&self) {
        let (feed, sought) = (self.feed.clone(), self.feed.clone());
        let callbacks = AppSrcCallbacks::builder()
            .need_data(move |source, _| feed.lock().next(source))
            .seek_data(move |_, to| {
                let mut feed = sought.lock();
                feed.frame = to / FRAME.nseconds();
                feed.ended = false;
                true
            });
        self.source().set_callbacks(callbacks.build());
    }

    fn watch(&self) {
        let types =
            gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM | gst::PadProbeType::EVENT_FLUSH;
        let detect = self.element("detect");
        let log = self.log.clone();
        detect.static_pad("sink").unwrap().add_probe(types, move |_, info| {
            let mut log = log.lock();
            match &info.data {
                Some(gst::PadProbeData::Buffer(buffer)) => log.at_sink().taken.push(buffer.pts()),
                Some(gst::PadProbeData::Event(event)) => match event.type_() {
                    gst::EventType::FlushStop => log.sink += 1,
                    gst::EventType::Eos => log.at_sink().ended = true,
                    _ => (),
                },
                _ => (),
            }
            gst::PadProbeReturn::Ok
        });
        let log = self.log.clone();
        detect.static_pad("src").unwrap().add_probe(types, move |_, info| {
            let mut log = log.lock();
            match &info.data {
                Some(gst::PadProbeData::Buffer(buffer)) => {
                    log.frames += 1;
                    log.unmarked += usize::from(gstyolodetect::meta::frames(buffer).len() != 1);
                    log.at_src().given.push(buffer.pts());
                }
                Some(gst::PadProbeData::Event(event)) => match event.type_() {
                    gst::EventType::FlushStop => log.src += 1,
                    gst::EventType::Eos => log.at_src().end_seen = true,
                    _ => (),
                },
                _ => (),
            }
            gst::PadProbeReturn::Ok
        });
    }

    fn plays(&self) -> bool {
        self.state == State::Playing
    }

    pub fn set_state(&mut self, state: State) {
        self.bin.set_state(state).unwrap();
        self.state = state;
        if state <= State::Ready {
            // Another life.
            let mut log = self.log.lock();
            let next = log.sink.max(log.src) + 1;
            (log.sink, log.src) = (next, next);
            drop(log);
            self.ended = false;
            self.feed.lock().ended = false;
        }
    }

    fn seek(&self, flags: gst::SeekFlags, to: u64) {
        let start = gst::ClockTime::from_mseconds(to);
        let none = gst::ClockTime::NONE;
        let seek = gst::event::Seek::new(1.0, flags, gst::SeekType::Set, start, gst::SeekType::None, none);
        assert!(self.element("sink").send_event(seek), "no seek");
    }

    pub fn flush_to(&mut self, to: u64) {
        if self.state >= State::Paused {
            self.seek(gst::SeekFlags::FLUSH, to);
            self.ended = false;
        }
    }

    /// Only where it plays: a source that does not flush waits for its own last push.
    pub fn seek_to(&mut self, to: u64) {
        if self.plays() && !self.ended {
            self.seek(gst::SeekFlags::empty(), to);
        }
    }

    pub fn set_size(&self, size: u32) {
        self.feed.lock().size = size;
    }

    /// The stream ends; where it plays, that is waited for.
    pub fn end(&mut self) {
        self.feed.lock().ended = true;
        self.ended = true;
        if self.plays() {
            self.until("end of the stream", |log| log.runs.last().is_some_and(|run| run.end_seen));
        }
    }

    pub fn until_frames(&self, count: usize) {
        if self.plays() && !self.ended {
            let before = self.log.lock().frames;
            self.until("frames", |log| log.frames >= before + count);
        }
    }

    fn until(&self, what: &str, enough: impl Fn(&Log) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !enough(&self.log.lock()) {
            let late = Instant::now() > deadline;
            assert!(!late, "no {what}: {}, {:?}", self.stats(), self.bin.state(gst::ClockTime::ZERO));
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn stats(&self) -> gst::Structure {
        self.element("detect").property("stats")
    }

    /// Plays, whatever it did before.
    pub fn revive(&mut self) {
        self.set_state(State::Playing);
        if self.ended {
            self.flush_to(0);
        }
    }

    /// Leaves the pipeline, and nothing behind. How many frames came out, and how many runs of frames were
    /// cut off.
    pub fn remove(self, pipeline: &gst::Pipeline) -> (usize, usize) {
        self.bin.set_state(State::Null).unwrap();
        pipeline.remove(&self.bin).unwrap();
        let counts = {
            let log = self.log.lock();
            log.check();
            let cut = log.runs.iter().filter(|run| run.given.len() < run.taken.len());
            (log.frames, cut.count())
        };
        let elements: Vec<_> = self.bin.children().iter().map(|element| element.downgrade()).collect();
        let bin = self.bin.downgrade();
        assert_eq!(elements.len(), 3);
        drop(self);
        // Messages on the pipeline's bus hold them, but for these no one does.
        let bus = pipeline.bus().unwrap();
        while let Some(message) = bus.pop() {
            let bad = matches!(message.type_(), gst::MessageType::Error | gst::MessageType::Warning);
            assert!(!bad, "{message:?}");
        }
        let gone = || bin.upgrade().is_none() && elements.iter().all(|element| element.upgrade().is_none());
        until("end of the elements", gone);
        counts
    }
}

/// Waits until `enough`, looking again and again.
pub fn until(what: &str, mut enough: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !enough() {
        assert!(Instant::now() < deadline, "no {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}
