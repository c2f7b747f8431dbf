//! What matters for live streams alone: whether this is one, how long a frame may take, and how long its thread may
//! wait for a slot without holding up the frame after it.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

const UNKNOWN: u8 = 0;
const NO: u8 = 1;
const YES: u8 = 2;

/// For streams that do not say how many frames a second they have.
const DEFAULT_PERIOD: Duration = Duration::from_micros(16_667);
/// Most frames that a live stream holds by itself.
const MAX_DEPTH: usize = 64;

/// Shared by the element's threads.
pub struct Live {
    upstream: AtomicU8,
    /// Our share of the pipeline's latency as announced, ns.
    announced: AtomicU64,
    /// From one frame to the next, ns.
    period: AtomicU64,
    /// A leaf among the locks.
    misses: Mutex<Misses>,
}

impl Default for Live {
    fn default() -> Self {
        Self {
            upstream: AtomicU8::new(UNKNOWN),
            announced: AtomicU64::new(0),
            period: AtomicU64::new(DEFAULT_PERIOD.as_nanos() as u64),
            misses: Mutex::default(),
        }
    }
}

/// For preprocessing, decoding, and threads that wake late; with a fast model these take longer than its runs.
const AIR: Duration = Duration::from_millis(10);

/// What a frame needs at most: [`wait`] until there is a slot, the run of the batch before its own, and its own.
pub fn needed(run: Duration, batch_delay: Duration) -> Duration {
    wait(run) + batch_delay + 2 * run + AIR
}

/// How long a frame may wait for a slot: one is free when a run ends, which takes now more, now less time.
pub fn wait(run: Duration) -> Duration {
    run + run / 2
}

impl Live {
    /// A new start, with what is known of the engine.
    pub fn reset(&self, needed: Duration) {
        self.forget();
        self.announced.store(needed.as_nanos() as u64, Ordering::Relaxed);
        *self.misses.lock() = Misses::default();
    }

    pub fn is(&self) -> Option<bool> {
        match self.upstream.load(Ordering::Relaxed) {
            UNKNOWN => None,
            known => Some(known == YES),
        }
    }

    pub fn learn(&self, live: bool) {
        self.upstream.store(if live { YES } else { NO }, Ordering::Relaxed);
    }

    /// Upstream is to be asked again.
    pub fn forget(&self) {
        self.upstream.store(UNKNOWN, Ordering::Relaxed);
    }

    pub fn set_period(&self, period: Option<Duration>) {
        let period = period.unwrap_or(DEFAULT_PERIOD);
        self.period.store(period.as_nanos() as u64, Ordering::Relaxed);
    }

    pub fn period(&self) -> Duration {
        Duration::from_nanos(self.period.load(Ordering::Relaxed))
    }

    pub fn announced(&self) -> Duration {
        Duration::from_nanos(self.announced.load(Ordering::Relaxed))
    }

    /// Announces `needed` where that is more than before; whether it is.
    pub fn announce(&self, needed: Duration) -> bool {
        let needed = needed.as_nanos() as u64;
        self.announced.fetch_max(needed, Ordering::Relaxed) < needed
    }

    /// A frame's result came in time.
    pub fn in_time(&self) {
        self.misses.lock().hit();
    }

    /// A frame had to leave without its result, where the engine's runs take so long that it would need `needed`.
    /// Whether more is announced now.
    pub fn missed(&self, needed: Duration) -> bool {
        // A quarter of air, so that noise does not have the pipeline reconfigured again and again.
        let raised = self.misses.lock().miss(needed + needed / 4);
        raised.is_some_and(|needed| self.announce(needed))
    }

    /// Most frames that are here at a time: those that come in while one takes as long as is announced.
    pub fn depth(&self) -> usize {
        self.frames_during(self.announced())
    }

    /// As many as are here for long where the engine is busy: a frame has its slot then, and takes two runs of the three
    /// and a half announced. What upstream's pool has from the start; it grows where more are needed.
    pub fn usual_depth(&self) -> usize {
        self.frames_during(self.announced() * 4 / 7)
    }

    fn frames_during(&self, time: Duration) -> usize {
        let frames = time.as_nanos() / self.period().as_nanos().max(1);
        // The one being pushed, and one that comes early.
        (frames as usize).saturating_add(3).min(MAX_DEPTH)
    }
}

/// Tells lasting slowness from a hiccup.
#[derive(Default)]
struct Misses {
    /// Late frames weigh one, those in time take a quarter off.
    weight: f32,
    least: Option<Duration>,
}

impl Misses {
    const TO_ACT: f32 = 4.0;

    fn hit(&mut self) {
        self.weight = (self.weight - 0.25).max(0.0);
        if self.weight == 0.0 {
            self.least = None;
        }
    }

    /// The least that would have been needed, once there were too many.
    fn miss(&mut self, needed: Duration) -> Option<Duration> {
        self.weight += 1.0;
        let least = self.least.map_or(needed, |least| least.min(needed));
        self.least = Some(least);
        if self.weight < Self::TO_ACT {
            return None;
        }
        *self = Self::default();
        Some(least)
    }
}

/// Follows a live stream's timestamps, to see how late a frame is.
#[derive(Default)]
pub struct Pace {
    /// The first frame's arrival.
    origin: Option<Instant>,
    /// From timestamp to arrival, of the frames that came earliest; ns since `origin`.
    earliest: i64,
    /// Since when every frame is later than [`LATE`]; ns since `origin`.
    late_since: Option<i64>,
}

/// Later than jitter makes a frame: the network stood still, or the timestamps begin anew.
const LATE: i64 = 1_000_000_000;
/// After a standstill the frames that were held back come at once. Who is late for longer than this began anew.
const CATCH_UP: i64 = 5_000_000_000;

impl Pace {
    /// How long it is until the next frame is due, for one with this timestamp that comes `now`. Nothing for a frame
    /// that is later than the others by a period: it is part of a burst, and the next is here already.
    pub fn slack(&mut self, pts: Option<gst::ClockTime>, now: Instant, period: Duration) -> Duration {
        let Some(pts) = pts else { return Duration::ZERO };
        let origin = *self.origin.get_or_insert(now);
        // A timestamp may be anything.
        let signed = |nanos: u128| i64::try_from(nanos).unwrap_or(i64::MAX);
        let (now, period) = (signed(now.duration_since(origin).as_nanos()), signed(period.as_nanos()));
        let offset = now - signed(pts.nseconds().into());
        // Creeps up, for a source whose clock is slower than ours.
        let expected = self.earliest.saturating_add(period / 256);
        self.late_since = (offset.saturating_sub(expected) >= LATE).then(|| self.late_since.unwrap_or(now));
        if self.late_since.take_if(|since| now - *since >= CATCH_UP).is_some() {
            self.earliest = offset;
        } else {
            self.earliest = expected.min(offset);
        }
        let late = offset.saturating_sub(self.earliest);
        Duration::from_nanos(period.saturating_sub(late).max(0) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_hiccup_is_no_reason_to_announce_more() {
        let live = Live::default();
        live.reset(100 * MS);
        for _ in 0..100 {
            (0..3).for_each(|_| assert!(!live.missed(5000 * MS)));
            (0..12).for_each(|_| live.in_time());
        }
        assert_eq!(live.announced(), 100 * MS);
        // Runs take longer for good; the least of what was seen is enough.
        assert!([5000, 400, 800, 400].map(|needed| live.missed(needed * MS))[3]);
        assert_eq!(live.announced(), 500 * MS);
        assert!(!(0..100).any(|_| live.missed(300 * MS)), "more is announced already");
    }

    #[test]
    fn depth_follows_latency_and_rate() {
        let live = Live::default();
        live.reset(200 * MS);
        live.set_period(Some(40 * MS));
        assert_eq!((live.depth(), live.usual_depth()), (8, 5));
        live.set_period(None);
        assert_eq!(live.depth(), 14);
        live.set_period(Some(Duration::ZERO));
        assert_eq!(live.depth(), MAX_DEPTH);
    }

    #[test]
    fn slack_is_what_is_left_of_the_period() {
        let start = Instant::now();
        let mut pace = Pace::default();
        let mut slack = |frame: u64, arrival: u32| {
            let pts = Some(gst::ClockTime::from_mseconds(10_000 + 40 * frame));
            let slack = pace.slack(pts, start + arrival * MS, 40 * MS);
            (slack.as_secs_f64() * 1000.0).round() as u32
        };
        assert_eq!(slack(0, 0), 40);
        assert_eq!(slack(1, 40), 40);
        assert_eq!(slack(2, 95), 25);
        assert_eq!(slack(3, 120), 40);
        // The network held four frames back.
        assert_eq!([4, 5, 6, 7].map(|frame| slack(frame, 300)), [0, 0, 0, 21]);
        assert_eq!(slack(8, 320), 40);
        // Its timestamps begin anew.
        assert_eq!(slack(1000, 360), 40);
        assert_eq!(slack(1001, 400), 40);
        assert_eq!(pace.slack(None, start, 40 * MS), Duration::ZERO);
    }

    #[test]
    fn a_long_stall_is_a_delay_and_a_new_start_is_not() {
        let start = Instant::now();
        let mut pace = Pace::default();
        let mut slack = |frame: u64, arrival: u32| {
            pace.slack(Some(gst::ClockTime::from_mseconds(40 * frame)), start + arrival * MS, 40 * MS)
        };
        (0..25).for_each(|frame| assert!(slack(u64::from(frame), 40 * frame) > 39 * MS));
        // Three seconds come at once: none of these may wait, or the stream would stay behind for good.
        for frame in 25..99 {
            assert_eq!(slack(frame, 4000), Duration::ZERO, "frame {frame}");
        }
        assert!(slack(100, 4002) > 37 * MS);
        // Timestamps from 0 again: these frames are late for good, which tells them from delayed ones.
        let again: Vec<_> = (0..250).map(|frame| slack(u64::from(frame), 4040 + 40 * frame)).collect();
        assert!(again[200..].iter().all(|&slack| slack > 39 * MS), "{again:?}");
    }

    #[test]
    fn no_timestamp_is_too_large() {
        let start = Instant::now();
        let mut pace = Pace::default();
        let extremes = [0, 1, i64::MAX as u64, i64::MAX as u64 + 1, u64::MAX - 1];
        for (at, &pts) in extremes.iter().chain(extremes.iter().rev()).cycle().take(100).enumerate() {
            let arrival = start + MS * 1000 * at as u32;
            for period in [Duration::ZERO, 40 * MS, Duration::from_secs(u64::from(u32::MAX))] {
                let slack = pace.slack(Some(gst::ClockTime::from_nseconds(pts)), arrival, period);
                assert!(slack <= period, "{pts}: {slack:?} of {period:?}");
            }
        }
    }

    #[test]
    fn a_slow_clock_is_followed() {
        let start = Instant::now();
        let mut pace = Pace::default();
        for frame in 0..100_000u64 {
            // 100 ppm, over more than an hour.
            let arrival = start + Duration::from_nanos(frame * 40_004_000);
            let slack = pace.slack(Some(gst::ClockTime::from_mseconds(40 * frame)), arrival, 40 * MS);
            assert!(slack > 39 * MS, "frame {frame}: {slack:?}");
        }
    }
}
