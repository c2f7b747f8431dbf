//! This process's resident set, read seldom.

use std::time::{Duration, Instant};

use crate::memory;

/// The kernel adds the figure up for each read; nobody needs it for every frame.
const INTERVAL: Duration = Duration::from_millis(250);

/// Samples the resident set and keeps it for a while.
#[derive(Debug, Default)]
pub struct Rss {
    sampled: Option<Instant>,
    mebibytes: Option<f64>,
}

impl Rss {
    /// The resident set in MiB, at most [`INTERVAL`] old; none where the system does not tell.
    pub fn get(&mut self, now: Instant) -> Option<f64> {
        if self.sampled.is_none_or(|then| now.saturating_duration_since(then) >= INTERVAL) {
            self.sampled = Some(now);
            let bytes = memory::resident_bytes();
            self.mebibytes = (bytes != 0).then_some(bytes as f64 / f64::from(1 << 20));
        }
        self.mebibytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_sampled_seldom() {
        let mut rss = Rss::default();
        let start = Instant::now();
        let first = rss.get(start);
        assert!(!cfg!(target_os = "linux") || first.is_some_and(|mebibytes| mebibytes > 0.5));
        rss.mebibytes = Some(-1.0);
        assert_eq!(rss.get(start + INTERVAL / 2), Some(-1.0));
        assert_ne!(rss.get(start + INTERVAL), Some(-1.0));
    }
}
