//! This process's resident set, read seldom.

use std::fs::File;
use std::io::{Read, Seek};
use std::time::{Duration, Instant};

/// The kernel adds the figure up for each read; nobody needs it for every frame.
const INTERVAL: Duration = Duration::from_millis(250);

/// Samples the resident set and keeps file and text buffer between reads.
#[derive(Debug, Default)]
pub struct Rss {
    file: Option<File>,
    text: String,
    sampled: Option<Instant>,
    mebibytes: Option<f64>,
}

impl Rss {
    /// The resident set in MiB, at most [`INTERVAL`] old; none where the system does not tell.
    pub fn get(&mut self, now: Instant) -> Option<f64> {
        if self.sampled.is_none_or(|then| now.saturating_duration_since(then) >= INTERVAL) {
            self.sampled = Some(now);
            self.mebibytes = self.sample();
        }
        self.mebibytes
    }

    fn sample(&mut self) -> Option<f64> {
        // `status` and not the shorter `statm`, which counts in pages of a size that the standard library does not tell.
        if self.file.is_none() {
            self.file = File::open("/proc/self/status").ok();
        }
        let file = self.file.as_mut()?;
        self.text.clear();
        file.rewind().ok()?;
        file.read_to_string(&mut self.text).ok()?;
        resident(&self.text)
    }
}

/// `VmRSS` of `/proc/self/status`, in MiB.
fn resident(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resident_set_is_read_from_the_status() {
        let status = "Name:\tgst\nVmHWM:\t  999 kB\nVmRSS:\t   151552 kB\nRssAnon:\t  1 kB\n";
        assert_eq!(resident(status), Some(148.0));
        assert_eq!(resident("VmRSS:\tmuch\n"), None);
        assert_eq!(resident(""), None);
    }

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
