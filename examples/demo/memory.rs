//! What this process takes, as the kernel counts it in `/proc/self/status`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Short against an inference, long against the reading.
const INTERVAL: Duration = Duration::from_millis(50);

/// Resident memory in MiB.
pub struct Peak {
    /// The kernel's own high-water mark.
    pub total: f64,
    /// Highest of the samples: heap, stacks, tensors; not the pages of files, which can be dropped.
    pub anonymous: f64,
}

/// Watches until asked.
pub struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    done: AtomicBool,
    /// KiB
    anonymous: AtomicU64,
}

impl Watch {
    pub fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let thread = thread::spawn(move || {
            while !theirs.done.load(Ordering::Relaxed) {
                theirs.anonymous.fetch_max(kibibytes("RssAnon:"), Ordering::Relaxed);
                thread::sleep(INTERVAL);
            }
        });
        Self { shared, thread: Some(thread) }
    }

    pub fn peak(mut self) -> Peak {
        self.shared.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It cannot panic.
            let _ = thread.join();
        }
        let anonymous = self.shared.anonymous.load(Ordering::Relaxed).max(kibibytes("RssAnon:"));
        Peak { total: mebibytes(kibibytes("VmHWM:")), anonymous: mebibytes(anonymous) }
    }
}

impl std::fmt::Display for Peak {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "peak memory {:.1} MiB, of which anonymous {:.1} MiB", self.total, self.anonymous)
    }
}

/// Resident now, in MiB.
pub fn resident() -> f64 {
    mebibytes(kibibytes("VmRSS:"))
}

fn mebibytes(kibibytes: u64) -> f64 {
    kibibytes as f64 / 1024.0
}

/// A line of the status; 0 where the system does not tell.
fn kibibytes(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|value| value.parse().ok()).unwrap_or(0)
}
