//! A bounded pool of frame buffers for upstream to decode into.

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
}

impl PoolStats {
    /// Hits per request; `None` before the first frame.
    pub fn efficiency(&self) -> Option<f64> {
        (self.requests != 0).then(|| self.hits as f64 / self.requests as f64)
    }
}
