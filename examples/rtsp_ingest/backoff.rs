//! How long to wait before a camera is tried again.

use std::time::Duration;

/// A camera that has played so long is well again; one that breaks earlier is still being waited for longer
/// and longer.
pub const HEALTHY: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    /// Attempts in a row without a healthy stretch.
    pub failures: u32,
}

impl Backoff {
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max: max.max(min), failures: 0 }
    }

    /// After an attempt that `played` for so long, or not at all. A `hopeless` one waits longest at once:
    /// asking again soon would not help, but may lock an account.
    pub fn next(&mut self, played: Duration, hopeless: bool) -> Duration {
        if played >= HEALTHY {
            self.failures = 0;
        }
        self.failures += 1;
        let doubled = self.min.saturating_mul(2_u32.saturating_pow(self.failures - 1));
        let longest = if hopeless { self.max } else { doubled.min(self.max) };
        // Between half of it and all: cameras that went down together do not come back together. fastrand is
        // small, well kept and in the tree already (tempfile needs it); the standard library has no random
        // numbers.
        longest.mul_f64(0.5 + 0.5 * fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn assert_between(waited: Duration, longest: Duration) {
        assert!(waited >= longest / 2 && waited <= longest, "{waited:?} is not a jittered {longest:?}");
    }

    #[test]
    fn it_doubles_up_to_the_maximum() {
        let mut backoff = Backoff::new(SECOND, 10 * SECOND);
        for longest in [1, 2, 4, 8, 10, 10] {
            assert_between(backoff.next(SECOND, false), longest * SECOND);
        }
        backoff.failures = u32::MAX - 1;
        assert_between(backoff.next(SECOND, false), 10 * SECOND);
    }

    #[test]
    fn a_healthy_stretch_starts_anew() {
        let mut backoff = Backoff::new(SECOND, 60 * SECOND);
        backoff.next(Duration::ZERO, false);
        backoff.next(Duration::ZERO, false);
        assert_between(backoff.next(HEALTHY, false), SECOND);
        assert_between(backoff.next(HEALTHY / 2, false), 2 * SECOND);
    }

    #[test]
    fn the_hopeless_waits_longest() {
        let mut backoff = Backoff::new(SECOND, 60 * SECOND);
        assert_between(backoff.next(Duration::ZERO, true), 60 * SECOND);
    }

    #[test]
    fn no_two_cameras_come_back_together() {
        let waits: std::collections::HashSet<_> =
            (0..100).map(|_| Backoff::new(SECOND, SECOND).next(Duration::ZERO, false)).collect();
        assert!(waits.len() > 90, "{} different waits of 100", waits.len());
    }
}
