//! How far the stream has come, by a duration that is asked for seldom.

use std::time::{Duration, Instant};

/// A file's duration may become known or grow while it plays.
const INTERVAL: Duration = Duration::from_secs(1);

/// Live sources have none and never will.
const ATTEMPTS: u32 = 10;

/// Knows when to ask upstream for its duration, and what it said.
#[derive(Debug, Default)]
pub struct Progress {
    asked: Option<Instant>,
    failures: u32,
    duration: Option<gst::ClockTime>,
}

impl Progress {
    /// Whether it is time to ask; the answer goes to [`Progress::answer`].
    pub fn is_due(&self, now: Instant) -> bool {
        let waited = self.asked.is_none_or(|then| now.saturating_duration_since(then) >= INTERVAL);
        waited && self.failures < ATTEMPTS
    }

    pub fn answer(&mut self, now: Instant, duration: Option<gst::ClockTime>) {
        self.asked = Some(now);
        self.duration = duration.filter(|duration| !duration.is_zero());
        self.failures = if self.duration.is_some() { 0 } else { self.failures + 1 };
    }

    /// 0..=100
    pub fn percent(&self, stream_time: Option<gst::ClockTime>) -> Option<f64> {
        let part = stream_time?.nseconds() as f64 / self.duration?.nseconds() as f64;
        Some((part * 100.0).min(100.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_duration_is_asked_for_once_a_second() {
        let (mut progress, start) = (Progress::default(), Instant::now());
        assert!(progress.is_due(start));
        progress.answer(start, Some(gst::ClockTime::from_seconds(8)));
        assert!(!progress.is_due(start + INTERVAL / 2));
        assert!(progress.is_due(start + INTERVAL));
        assert_eq!(progress.percent(Some(gst::ClockTime::from_seconds(2))), Some(25.0));
        assert_eq!(progress.percent(Some(gst::ClockTime::from_seconds(9))), Some(100.0));
        assert_eq!(progress.percent(None), None);
    }

    #[test]
    fn it_gives_up_on_a_stream_without_duration() {
        let (mut progress, mut now) = (Progress::default(), Instant::now());
        for _ in 0..ATTEMPTS {
            assert!(progress.is_due(now));
            progress.answer(now, Some(gst::ClockTime::ZERO));
            now += INTERVAL;
        }
        assert!(!progress.is_due(now));
        assert_eq!(progress.percent(Some(gst::ClockTime::ZERO)), None);
    }
}
