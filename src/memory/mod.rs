//! What the process holds of memory, what it may hold, and what to do when it runs short.
//!
//! ```text
//!  sample   procfs, cgroup, PSI, heap, NVML ──┐ one thread per process while anybody watches (`monitor`)
//!  budget   reservations by owner             │
//!                                             ▼
//!  pressure readings → level, pure       each watcher's own thresholds, hysteresis, cooldown
//!                                             │
//!                ┌────────────────────────────┴─────────────┐
//!  reactors      owners of memory give some back      watchers take a notice, on their own threads
//! ```
//!
//! This module knows none of those who react: it publishes levels.

pub mod budget;
pub mod heap;
pub mod monitor;
pub mod pool;
pub mod pressure;
pub mod sample;

pub use heap::return_free_heap;

use std::fs;

/// The process's resident set, bytes; 0 where procfs does not say.
pub fn resident_bytes() -> u64 {
    let Ok(statm) = fs::read_to_string("/proc/self/statm") else { return 0 };
    let pages = statm.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * page_size()
}

fn page_size() -> u64 {
    // SAFETY: sysconf has no preconditions.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}

/// Has `handler` called at the process's exit, before the handlers that were registered earlier.
pub fn at_exit(handler: extern "C" fn()) {
    // SAFETY: the handler is a plain function that stays loaded: GStreamer never unloads plugins.
    unsafe {
        libc::atexit(handler);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_running_process_has_a_resident_set() {
        assert!(super::resident_bytes() > 100_000);
        super::return_free_heap();
    }
}
