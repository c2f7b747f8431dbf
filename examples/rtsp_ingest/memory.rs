//! What this process takes, and that it gives back what it no longer needs.

/// To be called first. Frames are large and go with their connection. By itself glibc begins to keep such
/// blocks for later, in as many places as there are threads: some reconnects cost as much as another camera
/// (on two cameras 12 to 20 MiB in a hundred reconnects, 1 MiB with this).
pub fn return_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a plain call of the C library; no other thread allocates yet.
    unsafe {
        // glibc's own threshold at the start; once set, it stays. Fails only for values that are out of
        // range.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024);
    }
}

/// Resident now, in MiB; 0 where the system does not tell.
pub fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes =
        line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|value| value.parse().ok());
    kibibytes.unwrap_or(0.0) / 1024.0
}
