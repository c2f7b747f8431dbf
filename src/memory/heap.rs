//! The C heap, of which Rust's is a part.

/// Returns the C heap's free pages to the system. Where the C library has no such call, nothing happens.
pub fn return_free_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// What the heap holds, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heap {
    /// Allocated by somebody.
    pub used: u64,
    /// Freed, and still the heap's: [`return_free_heap`] gives its pages back, yet it counts here until it is used again.
    pub free: u64,
}

impl Heap {
    /// Free over used; 0 for an empty heap.
    pub fn fragmentation(&self) -> f64 {
        if self.used == 0 { 0.0 } else { self.free as f64 / self.used as f64 }
    }
}

/// All of the process's arenas; `None` where the C library does not tell.
pub fn heap() -> Option<Heap> {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: mallinfo2 may be called at any time from any thread.
        let info = unsafe { libc::mallinfo2() };
        Some(Heap { used: (info.uordblks + info.hblkhd) as u64, free: info.fordblks as u64 })
    }
    #[cfg(not(target_env = "gnu"))]
    None
}
