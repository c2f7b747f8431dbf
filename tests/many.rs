//! A crowd on one engine: sixteen streams of all sizes, formats and settings, cut off and started again at
//! random. Each picture says whose it is, so that a result in the wrong place shows.

mod common;
#[path = "common/marks.rs"]
mod marks;
#[path = "common/random.rs"]
mod random;
#[path = "common/rig.rs"]
mod rig;

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

use common::{own_tiny, within};
use gst::prelude::*;
use gst_video::{VideoFormat, VideoInfo};
use marks::STREAMS;
use random::Random;
use rig::{Flow, Rig, Seen, frames_of, millis, segment};

const FRAMES_PER_STREAM: u64 = 1250;

const FORMATS: [VideoFormat; 13] = [
    VideoFormat::Rgb,
    VideoFormat::Bgr,
    VideoFormat::Rgba,
    VideoFormat::Argb,
    VideoFormat::Gray8,
    VideoFormat::I420,
    VideoFormat::Yv12,
    VideoFormat::Nv12,
    VideoFormat::Nv21,
    VideoFormat::Yuy2,
    VideoFormat::Uyvy,
    VideoFormat::Y42b,
    VideoFormat::Y444,
];

/// How a run of frames ends.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// Everything is waited for.
    Wait,
    /// The stream ends, and another follows.
    End,
    /// A flush between two frames.
    Flush,
    /// A flush while frames are pushed, downstream taking them or not.
    Interrupt { stuck: bool },
    /// READY and back to PLAYING.
    Restart,
}

const CUTS: [Cut; 8] = [
    Cut::Wait,
    Cut::Wait,
    Cut::End,
    Cut::Flush,
    Cut::Flush,
    Cut::Interrupt { stuck: false },
    Cut::Interrupt { stuck: true },
    Cut::Restart,
];

/// A frame that was taken in.
struct Pushed {
    frame: u64,
    width: u32,
    /// By count alone; a stream that skips may pass it on uninferred all the same.
    due: bool,
}

/// What became of the frames.
#[derive(Debug, Default)]
struct Tally {
    pushed: u64,
    dropped: u64,
    statuses: BTreeMap<&'static str, u64>,
    flushes: u64,
    restarts: u64,
    largest_batch: u32,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.pushed += other.pushed;
        self.dropped += other.dropped;
        self.flushes += other.flushes;
        self.restarts += other.restarts;
        self.largest_batch = self.largest_batch.max(other.largest_batch);
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
    }

    fn came_out(&self) -> u64 {
        self.statuses.values().sum()
    }
}

struct Member {
    stream: u64,
    rig: Rig,
    random: Random,
    info: VideoInfo,
    interval: u64,
    skips: bool,
    /// What was pushed since the last cut, in order.
    run: Vec<Pushed>,
    /// Frames since the count for `inference-interval` began.
    counted: u64,
    /// Since the element was started, and whether a flush took frames away since.
    life: BTreeMap<&'static str, u64>,
    flushed: bool,
    last_number: Option<u64>,
    tally: Tally,
}

impl Member {
    fn new(stream: u64, seed: u64, model: &str) -> Self {
        let mut random = Random::new(seed, stream);
        let interval = *random.pick(&[1, 1, 1, 2, 7]);
        let skips = random.percent(40);
        let properties = [
            ("model-file", model.to_string()),
            ("threads", "1".into()),
            ("confidence-threshold", marks::THRESHOLD.into()),
            ("max-batch", random.pick(&[0, 1, 2, 4, 5, 8]).to_string()),
            ("batch-delay", random.pick(&[0, 0, 500_000, 3_000_000]).to_string()),
            ("max-in-flight", random.pick(&[0, 0, 1, 3, 40]).to_string()),
            ("inference-interval", interval.to_string()),
            ("overload", if skips { "skip" } else { "block" }.into()),
        ];
        println!("stream {stream}: {:?}", &properties[3..]);
        let rig = Rig::unlinked(&properties.each_ref().map(|(name, value)| (*name, value.as_str())), true);
        rig.link();
        let info = any_info(&mut random);
        let member = Self {
            stream,
            rig,
            random,
            info,
            interval,
            skips,
            run: Vec::new(),
            counted: 0,
            life: BTreeMap::new(),
            flushed: false,
            last_number: None,
            tally: Tally::default(),
        };
        member.begin();
        member
    }

    fn begin(&self) {
        self.rig.event(gst::event::StreamStart::new("test"));
        self.rig.event(gst::event::Caps::new(&self.info.to_caps().unwrap()));
        self.rig.event(segment());
    }

    fn push(&mut self) -> Flow {
        if self.random.percent(4) {
            let info = any_info(&mut self.random);
            let caps = info.to_caps().unwrap();
            // Its answer does not tell whether a pad that is flushed meanwhile took it.
            self.rig.src.push_event(gst::event::Caps::new(&caps));
            if self.rig.src.current_caps().is_some_and(|current| current == caps) {
                self.info = info;
            }
        }
        if self.random.percent(20) {
            // No stream of this crowd has the rate of another.
            std::thread::sleep(Duration::from_micros(self.random.within(0..200 * (1 + self.stream))));
        }
        let frame = self.tally.pushed;
        let picture = marks::picture(&self.info, marks::mark(self.stream, frame), millis(frame));
        self.rig.src.push(picture)?;
        let due = self.counted.is_multiple_of(self.interval);
        self.run.push(Pushed { frame, width: self.info.width(), due });
        self.counted += 1;
        self.tally.pushed += 1;
        Ok(gst::FlowSuccess::Ok)
    }

    fn play(mut self) -> Tally {
        while self.tally.pushed < FRAMES_PER_STREAM {
            let length = self.random.within(1..60).min(FRAMES_PER_STREAM - self.tally.pushed);
            for _ in 0..length {
                self.push().unwrap();
            }
            let cut = *self.random.pick(&CUTS);
            self.cut(cut);
        }
        self.cut(Cut::End);
        self.tally
    }

    fn cut(&mut self, cut: Cut) {
        match cut {
            Cut::Wait => {
                self.rig.seen.frames(self.run.len());
            }
            Cut::End => {
                self.rig.event(gst::event::Eos::new());
                self.rig.seen.eos();
            }
            Cut::Flush => self.rig.flush(),
            Cut::Interrupt { stuck } => self.interrupt(stuck),
            Cut::Restart => {
                self.rig.element.set_state(gst::State::Ready).unwrap();
                // Its pads will be reset; upstream's begin anew.
                self.rig.src.set_active(false).unwrap();
            }
        }
        let whole = matches!(cut, Cut::Wait | Cut::End);
        self.check(whole);
        match cut {
            Cut::Wait => (),
            Cut::End => self.begin(),
            Cut::Flush | Cut::Interrupt { .. } => {
                self.flushed = true;
                self.counted = 0;
                self.tally.flushes += 1;
                self.rig.event(segment());
            }
            Cut::Restart => {
                self.rig.element.set_state(gst::State::Playing).unwrap();
                self.rig.src.set_active(true).unwrap();
                self.begin();
                self.counted = 0;
                self.flushed = false;
                self.life.clear();
                self.last_number = None;
                self.tally.restarts += 1;
            }
        }
    }

    /// Pushes until a flush from another thread stops it.
    fn interrupt(&mut self, stuck: bool) {
        if stuck {
            self.rig.seen.close();
        }
        let (src, seen) = (self.rig.src.clone(), self.rig.seen.clone());
        let (start, started) = mpsc::channel();
        let after = Duration::from_micros(self.random.within(0..3000));
        let flush = std::thread::spawn(move || {
            started.recv().unwrap();
            std::thread::sleep(after);
            src.push_event(gst::event::FlushStart::new());
            move || {
                src.push_event(gst::event::FlushStop::new(true));
                seen.open();
            }
        });
        start.send(()).unwrap();
        let mut flow = Ok(gst::FlowSuccess::Ok);
        while flow.is_ok() && self.tally.pushed < FRAMES_PER_STREAM {
            flow = self.push();
        }
        assert!(matches!(flow, Ok(_) | Err(gst::FlowError::Flushing)), "{flow:?}");
        flush.join().unwrap()();
    }

    /// What came out since the last cut is what went in: all of it, or its beginning.
    fn check(&mut self, whole: bool) {
        let seen = frames_of(&self.rig.seen.take());
        let run = std::mem::take(&mut self.run);
        let stream = self.stream;
        assert!(seen.len() <= run.len(), "stream {stream}: {} frames of {}", seen.len(), run.len());
        assert!(!whole || seen.len() == run.len(), "stream {stream}: {} frames of {}", seen.len(), run.len());
        for (seen, pushed) in seen.iter().zip(&run) {
            self.check_frame(seen, pushed);
        }
        self.tally.dropped += (run.len() - seen.len()) as u64;
        if whole && !self.flushed {
            let counts = ["inferred", "interval", "overload"].map(|name| self.life.get(name).copied());
            let fields = ["inferred", "skipped-interval", "skipped-overload", "failed"];
            let stats = fields.map(|field| self.rig.count(field));
            let [inferred, interval, overload] = counts.map(Option::unwrap_or_default);
            assert_eq!(stats, [inferred, interval, overload, 0], "stream {stream}");
            assert_eq!(self.rig.count("frames-in"), inferred + interval + overload, "stream {stream}");
        }
    }

    fn check_frame(&mut self, seen: &Seen, pushed: &Pushed) {
        let context = || format!("stream {}, frame {}: {seen:?}", self.stream, pushed.frame);
        assert_eq!(seen.pts, Some(millis(pushed.frame)), "{}", context());
        assert_eq!(seen.width, Some(pushed.width as i32), "{}", context());
        assert!(self.last_number.is_none_or(|last| last < seen.number), "{}", context());
        let expected = match seen.status {
            "inferred" => Some(marks::mark(self.stream, pushed.frame)),
            _ => None,
        };
        assert_eq!(marks::read(seen), expected, "{}", context());
        let allowed = match (self.skips, pushed.due) {
            (false, true) => &["inferred"][..],
            (false, false) => &["interval"],
            (true, _) if self.interval == 1 => &["inferred", "overload"],
            (true, _) => &["inferred", "overload", "interval"],
        };
        assert!(allowed.contains(&seen.status), "{}", context());
        self.last_number = Some(seen.number);
        self.tally.largest_batch = self.tally.largest_batch.max(seen.batch);
        for counts in [&mut self.life, &mut self.tally.statuses] {
            *counts.entry(seen.status).or_default() += 1;
        }
    }
}

/// Any format and size of which [`marks`] can tell the quarters.
fn any_info(random: &mut Random) -> VideoInfo {
    let width = random.within(16..161);
    let height = random.within(width.div_ceil(2).max(16)..2 * width.min(80) + 1);
    VideoInfo::builder(*random.pick(&FORMATS), width as u32, height as u32)
        .fps(gst::Fraction::new(25, 1))
        .build()
        .unwrap()
}

#[test]
fn sixteen_streams_each_get_their_own_results_once_and_in_order() {
    common::init();
    let seed = random::seed();
    let model = own_tiny("quarters", "crowd");
    within(Duration::from_secs(300), "the crowd", move || {
        let mut total = Tally::default();
        std::thread::scope(|scope| {
            let model = &model;
            let member = |stream| scope.spawn(move || Member::new(stream, seed, model).play());
            let members: Vec<_> = (0..STREAMS).map(member).collect();
            members.into_iter().for_each(|member| total.add(member.join().unwrap()));
        });
        println!("{total:?}");
        assert_eq!(total.pushed, STREAMS * FRAMES_PER_STREAM);
        assert_eq!(total.came_out() + total.dropped, total.pushed);
        // The crowd is what it says.
        assert!(total.flushes > 100 && total.restarts > 20, "{total:?}");
        assert!(total.dropped < total.pushed / 4, "{total:?}");
        assert!(total.largest_batch > 1, "{total:?}");
        assert!(["inferred", "interval", "overload"].iter().all(|name| total.statuses.contains_key(name)));
    });
}

#[test]
fn marks_survive_every_format_and_size() {
    common::init();
    let seed = random::seed();
    let model = own_tiny("quarters", "marks");
    let properties =
        [("model-file", model.as_str()), ("threads", "1"), ("confidence-threshold", marks::THRESHOLD)];
    let rig = Rig::new(&properties);
    let mut random = Random::new(seed, 0);
    for round in 0..500 {
        let info = any_info(&mut random);
        rig.event(gst::event::Caps::new(&info.to_caps().unwrap()));
        let mark = random.within(0..STREAMS * marks::FRAMES);
        rig.src.push(marks::picture(&info, mark, millis(round))).unwrap();
        let seen = rig.seen.frames(1);
        assert_eq!(marks::read(&seen[0]), Some(mark), "{info:?}: {:?}", seen[0]);
        rig.seen.forget();
    }
}
