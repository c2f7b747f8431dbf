//! What is known of a camera, and how it is told.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::tail::Counts;
use crate::trouble::Kind;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum State {
    Connecting,
    Playing,
    /// Frames come, but nobody takes the detector's output.
    Blocked,
    /// For the next attempt.
    Waiting {
        until: Instant,
        after: Kind,
    },
    Stopping,
}

/// Of one camera, shared by its thread, its streaming threads and the report.
pub struct Status(Mutex<Known>);

#[derive(Clone, Copy)]
pub struct Known {
    pub state: State,
    /// From the camera.
    pub came: u64,
    /// Into the detector, which had no room for the others.
    pub entered: u64,
    /// Times that frames came again after a break.
    pub reconnects: u64,
    /// Of this connection: its beginning, its first frame and its latest.
    began: Instant,
    first: Option<Instant>,
    latest: Option<Instant>,
    /// When the detector last gave a frame back.
    left: Option<Instant>,
}

impl Known {
    pub fn has_played(&self) -> bool {
        self.first.is_some()
    }

    /// Since when nothing has come.
    pub fn quiet_since(&self) -> Instant {
        self.latest.unwrap_or(self.began)
    }

    /// How long this connection gave frames.
    pub fn played(&self) -> Duration {
        self.latest.zip(self.first).map_or(Duration::ZERO, |(latest, first)| latest - first)
    }

    /// Whether frames have come for so long and none came out of the detector.
    pub fn is_stuck_for(&self, time: Duration) -> bool {
        let since = self.left.max(self.first);
        self.latest.zip(since).is_some_and(|(latest, since)| latest.saturating_duration_since(since) >= time)
    }
}

impl Default for Status {
    fn default() -> Self {
        Self(Mutex::new(Known {
            state: State::Connecting,
            came: 0,
            entered: 0,
            reconnects: 0,
            began: Instant::now(),
            first: None,
            latest: None,
            left: None,
        }))
    }
}

impl Status {
    pub fn get(&self) -> Known {
        *self.lock()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn connecting(&self) {
        self.set(State::Connecting);
        let mut known = self.lock();
        (known.began, known.first, known.latest) = (Instant::now(), None, None);
    }

    /// Who is stopping stays so.
    pub fn set(&self, state: State) {
        let mut known = self.lock();
        if known.state != State::Stopping {
            known.state = state;
        }
    }

    /// A frame from the camera; whether it is the first one of this connection.
    pub fn frame_came(&self) -> bool {
        let mut known = self.lock();
        let (now, is_first) = (Instant::now(), known.first.is_none());
        if is_first {
            known.first = Some(now);
            known.reconnects += u64::from(known.came > 0);
        }
        known.came += 1;
        known.latest = Some(now);
        if known.state == State::Connecting {
            known.state = State::Playing;
        }
        is_first
    }

    pub fn frame_entered(&self) {
        self.lock().entered += 1;
    }

    pub fn frame_left(&self) {
        let mut known = self.lock();
        known.left = Some(Instant::now());
        if known.state == State::Blocked {
            known.state = State::Playing;
        }
    }
}

/// One camera's line.
pub struct Line<'a> {
    pub name: &'a str,
    pub known: Known,
    pub counts: Counts,
    pub size: Option<(i32, i32)>,
    /// Frames a second of late.
    pub speed: f64,
}

impl Line<'_> {
    /// `width`: of the longest name.
    pub fn text(&self, width: usize) -> String {
        let Line { name, known, counts, speed, .. } = self;
        let size = self.size.map_or("-".into(), |(width, height)| format!("{width}x{height}"));
        let state = words(known.state);
        let Known { came, entered, reconnects, .. } = *known;
        let Counts { inferred, detections, waiting } = *counts;
        let dropped = came.saturating_sub(entered + waiting);
        format!(
            "{name:width$}  {state:32} {size:>9} {speed:>5.1} fps {came:>7} frames {dropped:>7} dropped \
             {inferred:>7} inferred {detections:>7} detections {reconnects:>3} reconnects"
        )
    }
}

fn words(state: State) -> String {
    match state {
        State::Connecting => "connecting".into(),
        State::Playing => "playing".into(),
        State::Blocked => "blocked by the output".into(),
        State::Stopping => "stopping".into(),
        State::Waiting { until, after } => {
            let left = until.saturating_duration_since(Instant::now());
            format!("{}, waiting {:.1} s", after.word(), left.as_secs_f64())
        }
    }
}
