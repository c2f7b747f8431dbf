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
pub mod cuda;
pub mod heap;
mod layout;
mod ledger;
pub mod monitor;
pub mod nvml;
mod overview;
pub mod pool;
pub mod pressure;
pub mod reuse;
pub mod sample;
pub mod stock;

pub use heap::return_free_heap;
pub use overview::{Overview, overview};

/// The process's resident set, bytes; 0 where procfs does not say.
pub fn resident_bytes() -> u64 {
    sample::Process::now().resident
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
    use super::*;

    #[test]
    fn a_running_process_has_a_resident_set_and_a_heap() {
        assert!(resident_bytes() > 100_000);
        return_free_heap();
        if cfg!(target_env = "gnu") {
            let before = heap::heap().unwrap();
            let held = vec![1u8; 10_000_000];
            let with = heap::heap().unwrap();
            assert!(with.used >= before.used + held.len() as u64 / 2, "{before:?} {with:?}");
        }
    }

    #[test]
    fn fragmentation_is_free_over_used() {
        assert_eq!(heap::Heap { used: 200, free: 50 }.fragmentation(), 0.25);
        assert_eq!(heap::Heap::default().fragmentation(), 0.0);
    }
}
