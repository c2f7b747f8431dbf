//! What the process holds, and giving back what it does not use.

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

/// Returns the C heap's free pages to the system. Where the C library has no such call, nothing happens.
pub fn return_free_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
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
