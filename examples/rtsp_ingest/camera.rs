//! One camera: a thread that keeps it playing.
//!
//! The thread alone starts, watches, replaces and stops what plays; it waits on its pipeline's bus, and
//! nothing that it waits for is shared with another camera.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gst::prelude::*;

use crate::backoff::Backoff;
use crate::cameras::Entry;
use crate::source::{self, Connection, Source};
use crate::status::{State, Status};
use crate::tail::{Detection, Output, Tail};
use crate::trouble::{Trouble, explain};

/// Words on the bus, besides those of the source.
const FIRST_FRAME: &str = "first-frame";
const STOP: &str = "stop";

/// The bus wakes the thread; this is for a word that got lost, as restarting a pipeline empties its bus.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// What is waited for, and how long.
#[derive(Clone, Debug)]
pub struct Patience {
    pub stall: Duration,
    pub min_backoff: Duration,
    pub max_backoff: Duration,
}

/// What a camera says to the outside.
pub enum News {
    /// Something worth a line.
    Said(String),
    /// Its thread is at its end.
    Gone,
}

/// What all cameras have in common.
#[derive(Clone)]
pub struct Common {
    pub connection: Connection,
    pub detection: Detection,
    pub output: Output,
    pub patience: Patience,
}

/// The handle of a camera's thread.
pub struct Camera {
    pub entry: Entry,
    pub status: Arc<Status>,
    pub tail: Arc<Tail>,
    stopping: Arc<AtomicBool>,
}

impl Camera {
    /// # Errors
    /// Why there can be no detection, which is nothing that waiting would change.
    pub fn start(
        entry: Entry,
        common: &Common,
        tell: impl Fn(News) + Send + 'static,
    ) -> Result<Self, String> {
        let tail = Arc::new(Tail::start(&entry.name, &common.detection, &common.output)?);
        let status = Arc::new(Status::default());
        let stopping = Arc::new(AtomicBool::new(false));
        count_frames(&tail, &status);
        let keeper = Keeper {
            entry: entry.clone(),
            connection: common.connection.clone(),
            stall: common.patience.stall,
            backoff: Backoff::new(common.patience.min_backoff, common.patience.max_backoff),
            tail: tail.clone(),
            broken: None,
            status: status.clone(),
            stopping: stopping.clone(),
            tell: Box::new(tell),
        };
        let thread = std::thread::Builder::new().name(entry.name.clone()).spawn(move || keeper.run());
        match thread {
            Ok(_) => Ok(Self { entry, status, tail, stopping }),
            Err(error) => {
                tail.stop();
                Err(format!("{}: no thread for it: {error}", entry.name))
            }
        }
    }

    /// Begins the end; [`News::Gone`] tells that it is reached.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.status.set(State::Stopping);
        source::tell(&self.tail.pipeline, STOP);
    }
}

fn count_frames(tail: &Tail, status: &Arc<Status>) {
    let (came, pipeline) = (status.clone(), tail.pipeline.downgrade());
    on_frame(&tail.entry, move || {
        if came.frame_came()
            && let Some(pipeline) = pipeline.upgrade()
        {
            source::tell(&pipeline, FIRST_FRAME);
        }
    });
    let (entered, left) = (status.clone(), status.clone());
    on_frame(&tail.detector_sink, move || entered.frame_entered());
    on_frame(&tail.detector_src, move || left.frame_left());
}

fn on_frame(pad: &gst::Pad, count: impl Fn() + Send + Sync + 'static) {
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
        count();
        gst::PadProbeReturn::Ok
    });
}

/// What the bus says.
enum Event {
    Stop,
    FirstFrame,
    /// The connection's end.
    Broken(Trouble),
    Warning(String),
}

struct Keeper {
    entry: Entry,
    connection: Connection,
    stall: Duration,
    backoff: Backoff,
    tail: Arc<Tail>,
    /// Why the tail must be restarted before anything else.
    broken: Option<Trouble>,
    status: Arc<Status>,
    stopping: Arc<AtomicBool>,
    tell: Box<dyn Fn(News) + Send>,
}

impl Keeper {
    fn run(mut self) {
        while let Err(trouble) = self.play() {
            let pause = self.backoff.next(self.status.get().played(), trouble.kind.is_hopeless());
            let Trouble { kind, reason } = trouble;
            self.say(format!("{}: {reason}; next attempt in {:.1} s", kind.word(), pause.as_secs_f64()));
            let until = Instant::now() + pause;
            self.status.set(State::Waiting { until, after: kind });
            if self.wait(until) {
                break;
            }
        }
        self.status.set(State::Stopping);
        self.tail.stop();
        (self.tell)(News::Gone);
    }

    /// One connection, from its beginning to its end; `Ok` when the camera is to stop.
    fn play(&mut self) -> Result<(), Trouble> {
        self.status.connecting();
        if let Some(trouble) = self.broken.take() {
            self.tail.restart().map_err(|reason| {
                self.broken = Some(trouble);
                Trouble::detection(reason)
            })?;
        }
        let source = Source::start(&self.entry, &self.connection, &self.tail.pipeline, &self.tail.entry)
            .map_err(Trouble::lost)?;
        let outcome = self.watch(&source);
        source.stop();
        outcome
    }

    fn watch(&mut self, source: &Source) -> Result<(), Trouble> {
        let began = Instant::now();
        loop {
            let known = self.status.get();
            let patient_until = known.quiet_since().max(began) + self.stall;
            match self.next_event(Some(source), patient_until) {
                Some(Event::Stop) => return Ok(()),
                Some(Event::Broken(trouble)) => return Err(trouble),
                Some(Event::FirstFrame) => self.say_playing(),
                Some(Event::Warning(text)) => self.say(text),
                None => (),
            }
            let known = self.status.get();
            if known.quiet_since().max(began).elapsed() >= self.stall {
                return Err(Trouble::stalled(self.stall, known.has_played()));
            }
            // Nothing that another connection would change.
            if known.is_stuck_for(self.stall) && known.state != State::Blocked {
                self.say("nobody takes the detector's output".into());
                self.status.set(State::Blocked);
            }
        }
    }

    /// Waits between two connections; whether the camera is to stop.
    fn wait(&mut self, until: Instant) -> bool {
        while Instant::now() < until {
            if let Some(Event::Stop) = self.next_event(None, until) {
                return true;
            }
        }
        self.stopping.load(Ordering::Acquire)
    }

    /// The next word on the bus that means something; `None` where none came for a while, `until` at the
    /// latest.
    fn next_event(&mut self, source: Option<&Source>, until: Instant) -> Option<Event> {
        if self.stopping.load(Ordering::Acquire) {
            return Some(Event::Stop);
        }
        let wait = until.saturating_duration_since(Instant::now()).min(LONGEST_WAIT);
        let kinds = [gst::MessageType::Error, gst::MessageType::Warning, gst::MessageType::Application];
        let message = self.tail.bus().timed_pop_filtered(gst::ClockTime::try_from(wait).ok(), &kinds)?;
        let of_source = source.is_some_and(|source| source.posted(&message));
        let of_tail =
            !of_source && message.src().is_some_and(|object| object.has_as_ancestor(&self.tail.pipeline));
        match message.view() {
            gst::MessageView::Error(error) if of_source => {
                Some(Event::Broken(Trouble::of_source(error, &self.entry.address)))
            }
            gst::MessageView::Error(error) if of_tail => {
                let trouble = Trouble::detection(explain(&error.error(), error.debug()));
                self.broken = Some(trouble.clone());
                Some(Event::Broken(trouble))
            }
            gst::MessageView::Warning(warning) if of_source || of_tail => {
                Some(Event::Warning(format!("warning: {}", explain(&warning.error(), warning.debug()))))
            }
            gst::MessageView::Application(word) => match word.structure()?.name().as_str() {
                source::ENDED if of_source => {
                    Some(Event::Broken(Trouble::lost("the camera ended its stream")))
                }
                FIRST_FRAME => Some(Event::FirstFrame),
                STOP => Some(Event::Stop),
                _ => None,
            },
            // Of a connection that is over.
            _ => None,
        }
    }

    fn say_playing(&self) {
        let size =
            self.tail.picture_size().map_or(String::new(), |(width, height)| format!(", {width}x{height}"));
        self.say(format!("playing{size}"));
    }

    fn say(&self, text: String) {
        (self.tell)(News::Said(text));
    }
}
