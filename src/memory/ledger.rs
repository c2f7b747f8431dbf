//! The figures of one stream's buffers.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::reuse::{self, Mark};

/// Figures of one stream's buffers. Requests and hits are counted on the memories that arrive, whoever's pool they come
/// from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Frames that arrived.
    pub requests: u64,
    /// Of which so many came in memory that had held a frame before.
    pub hits: u64,
    /// Buffers that our pool has made, those included that it has freed since; 0 where another pool is used.
    pub allocated: u64,
    /// Of our pool's buffers, at rest and out, and most that were ever out.
    pub available: u64,
    pub in_use: u64,
    pub peak: u64,
    /// That our pool's buffers hold.
    pub bytes: u64,
    /// Our pool's buffers that were made beyond its bound.
    pub misses: u64,
    /// The latest frame came in memory of our pool.
    pub own: bool,
}

impl PoolStats {
    /// Hits per request; `None` before the first frame.
    pub fn efficiency(&self) -> Option<f64> {
        (self.requests != 0).then(|| self.hits as f64 / self.requests as f64)
    }
}

/// What the pools of one stream have made: upstream is offered a new one each time it asks.
pub struct Ledger {
    allocated: AtomicU64,
    available: AtomicU64,
    in_use: AtomicU64,
    peak: AtomicU64,
    bytes: AtomicU64,
    misses: AtomicU64,
    /// On the memories of these pools' buffers.
    mark: Mark,
}

impl Default for Ledger {
    fn default() -> Self {
        static LEDGERS: AtomicUsize = AtomicUsize::new(1);
        Self {
            allocated: AtomicU64::default(),
            available: AtomicU64::default(),
            in_use: AtomicU64::default(),
            peak: AtomicU64::default(),
            bytes: AtomicU64::default(),
            misses: AtomicU64::default(),
            mark: Mark::new("yolodetect-pool", LEDGERS.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

impl Ledger {
    /// The pools' part of the figures.
    pub fn figures(&self) -> PoolStats {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        PoolStats {
            allocated: read(&self.allocated),
            available: read(&self.available),
            in_use: read(&self.in_use),
            peak: read(&self.peak),
            bytes: read(&self.bytes),
            misses: read(&self.misses),
            ..Default::default()
        }
    }

    /// Whether the buffer's memory is of one of these pools.
    pub fn made(&self, buffer: &gst::BufferRef) -> bool {
        reuse::first_memory(buffer).is_some_and(|memory| self.mark.is_on(memory))
    }

    pub(super) fn added(&self, bytes: u32) {
        self.allocated.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes.into(), Ordering::Relaxed);
    }

    pub(super) fn freed(&self, count: usize, bytes: u32) {
        self.bytes.fetch_sub(count as u64 * u64::from(bytes), Ordering::Relaxed);
    }

    pub(super) fn went_out(&self) {
        let in_use = self.in_use.fetch_add(1, Ordering::Relaxed) + 1;
        self.peak.fetch_max(in_use, Ordering::Relaxed);
    }

    pub(super) fn came_back(&self) {
        self.in_use.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn missed(&self) {
        self.misses.fetch_add(1, Ordering::Relaxed);
    }

    /// One more is at rest.
    pub(super) fn rest(&self) {
        self.available.fetch_add(1, Ordering::Relaxed);
    }

    /// Some are at rest no more.
    pub(super) fn rise(&self, count: usize) {
        self.available.fetch_sub(count as u64, Ordering::Relaxed);
    }

    pub(super) fn mark(&self, memory: &gst::MemoryRef) {
        self.mark.put_on(memory);
    }
}
