//! Which frames are worth an inference: one in N, and at most so many a second.

/// Remembers the last inferred frame.
#[derive(Debug, Default)]
pub struct Thinning {
    /// Frames since the last inferred one, itself counted; `None` before the first.
    since: Option<u32>,
    /// The timestamp from which on `max_fps` allows the next inference, and the inferred frame's own.
    next_due: Option<(gst::ClockTime, gst::ClockTime)>,
}

impl Thinning {
    /// Whether the next frame shall be inferred. Counts it.
    pub fn due(&mut self, pts: Option<gst::ClockTime>, interval: u32, max_fps: f64) -> bool {
        let by_count = self.since.is_none_or(|since| since >= interval);
        let by_time = match (max_fps > 0.0, self.next_due, pts) {
            // A jump back in time starts anew.
            (true, Some((due, last)), Some(pts)) => pts >= due || pts < last,
            _ => true,
        };
        self.since = self.since.map(|since| since.saturating_add(1));
        by_count && by_time
    }

    /// The frame that was just due got its inference. Without this call the next frame is due instead.
    pub fn inferred(&mut self, pts: Option<gst::ClockTime>, max_fps: f64) {
        self.since = Some(1);
        self.next_due = pts.filter(|_| max_fps > 0.0).map(|pts| {
            // Of a rate near zero the period is longer than any stream, and than the type holds.
            let longest = gst::ClockTime::MAX.nseconds();
            let period = gst::ClockTime::from_nseconds(((1e9 / max_fps) as u64).min(longest));
            // Counted from when it was due, not from when a frame happened to come: 10 of 25 frames a second
            // are 10, not the 8.3 that whole multiples of 40 ms would give.
            let due = match self.next_due {
                Some((due, _)) if pts >= due && pts - due < period => due.saturating_add(period),
                _ => pts.saturating_add(period),
            };
            (due, pts)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inferred(frames: u64, fps: u64, interval: u32, max_fps: f64) -> Vec<u64> {
        let mut thinning = Thinning::default();
        let mut chosen = Vec::new();
        for number in 0..frames {
            let pts = Some(gst::ClockTime::SECOND * number / fps);
            if thinning.due(pts, interval, max_fps) {
                thinning.inferred(pts, max_fps);
                chosen.push(number);
            }
        }
        chosen
    }

    #[test]
    fn one_in_n() {
        assert_eq!(inferred(7, 25, 1, 0.0), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(inferred(7, 25, 3, 0.0), [0, 3, 6]);
    }

    #[test]
    fn at_most_so_many_a_second() {
        assert_eq!(inferred(250, 25, 1, 10.0).len(), 100);
        assert_eq!(inferred(250, 25, 1, 30.0).len(), 250);
        assert_eq!(inferred(50, 25, 1, 0.5), [0]);
        assert_eq!(inferred(250, 25, 5, 10.0).len(), 50);
    }

    #[test]
    fn a_frame_that_found_no_room_passes_its_turn_on() {
        let mut thinning = Thinning::default();
        assert!(thinning.due(None, 4, 0.0));
        assert!(thinning.due(None, 4, 0.0));
        thinning.inferred(None, 0.0);
        assert!(!thinning.due(None, 4, 0.0));
    }

    #[test]
    fn a_rate_near_zero_is_one_frame() {
        for max_fps in [f64::from_bits(1), 1e-300, 1e-10, 5e-11] {
            assert_eq!(inferred(50, 25, 1, max_fps), [0], "{max_fps}");
        }
    }

    #[test]
    fn a_jump_back_is_a_new_start() {
        let mut thinning = Thinning::default();
        let at = |seconds| Some(gst::ClockTime::from_seconds(seconds));
        assert!(thinning.due(at(100), 1, 1.0));
        thinning.inferred(at(100), 1.0);
        assert!(thinning.due(at(3), 1, 1.0));
    }
}
