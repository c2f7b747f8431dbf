//! The buffers of one stream: whether they come in used memory, and how many of them there is room for.

use std::sync::Arc;

use crate::memory::budget::{Budget, Consumer, Exceeded, Reservation};
use crate::memory::pool::Ledger;
use crate::memory::reuse::Reuse;

/// What the memory of arriving buffers says.
#[derive(Default)]
pub struct Arrival {
    reuse: Reuse,
    ledger: Arc<Ledger>,
    /// Of the latest frame: it came in memory that held one before; in memory of our own pool.
    pub reused: bool,
    pub own: bool,
}

impl Arrival {
    /// Our own pools' figures are in `ledger`.
    pub fn new(ledger: Arc<Ledger>) -> Self {
        Self { ledger, ..Default::default() }
    }

    pub fn look_at(&mut self, buffer: &gst::BufferRef) {
        self.reused = self.reuse.saw(buffer);
        if !self.reused {
            // Whose it is was seen when it was new.
            self.own = self.ledger.made(buffer);
        }
    }
}

/// The frames in flight, as the memory budget counts them.
pub struct Footprint {
    budget: &'static Budget,
    held: Reservation,
    /// Frames, and the bytes of each, to which `granted` is the answer.
    asked: (usize, u64),
    granted: usize,
    /// While fewer are granted than are wanted, questions until the budget is asked again.
    patience: u32,
    told: bool,
}

/// So many frames after the budget had no room it is asked again: to ask costs a system call.
const FRAMES_TO_ASK_AGAIN: u32 = 256;

/// A stream that has to do with fewer frames.
#[derive(Debug)]
pub struct Shortage {
    exceeded: Exceeded,
    wanted: usize,
    granted: usize,
}

impl std::fmt::Display for Shortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { exceeded, wanted, granted } = self;
        write!(f, "{exceeded}; so {granted} frames are held instead of {wanted}")
    }
}

impl Footprint {
    pub fn new(budget: &'static Budget, owner: &str) -> Self {
        let held = budget.hold(Consumer::Frames, owner);
        Self { budget, held, asked: (0, 0), granted: 0, patience: 0, told: false }
    }

    /// How many frames of so many bytes may be held of those `wanted`, one at the least. The first time that they are
    /// fewer, also why.
    pub fn depth(&mut self, wanted: usize, frame: u64) -> (usize, Option<Shortage>) {
        if self.asked == (wanted, frame) {
            self.patience = self.patience.saturating_sub(1);
            if self.granted == wanted || self.patience > 0 {
                return (self.granted, None);
            }
        }
        self.asked = (wanted, frame);
        self.patience = FRAMES_TO_ASK_AGAIN;
        self.granted = wanted;
        let (before, bytes) = (self.held.bytes(), frame.saturating_mul(wanted as u64));
        let refused = match bytes.checked_sub(before) {
            Some(more) => self.held.grow(more).err(),
            None => {
                self.held.set(bytes);
                None
            }
        };
        let shortage = refused.and_then(|exceeded| {
            let room = before.saturating_add(self.budget.room().unwrap_or(u64::MAX));
            self.granted = ((room / frame.max(1)) as usize).clamp(1, wanted);
            self.held.set(frame.saturating_mul(self.granted as u64));
            let first = !std::mem::replace(&mut self.told, true);
            first.then_some(Shortage { exceeded, wanted, granted: self.granted })
        });
        (self.granted, shortage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_reserved_as_many_as_are_held() {
        static BUDGET: Budget = Budget::new("memory-budget", || 0);
        let mut frames = Footprint::new(&BUDGET, "camera");
        for (wanted, frame) in [(3, 1000), (3, 1000), (5, 1000), (2, 1000), (2, 4000), (4, 100)] {
            let (depth, shortage) = frames.depth(wanted, frame);
            assert!(depth == wanted && shortage.is_none());
            assert_eq!(BUDGET.reserved_for(Consumer::Frames), wanted as u64 * frame);
        }
        drop(frames);
        assert_eq!(BUDGET.reserved(), 0);
    }

    #[test]
    fn a_budget_lowers_the_depth_to_what_fits_and_says_so_once() {
        static BUDGET: Budget = Budget::new("memory-budget", || 1_000_000);
        let _limit = BUDGET.limit("camera", 10_500_000).unwrap();
        let mut frames = Footprint::new(&BUDGET, "camera");
        assert_eq!(frames.depth(4, 1_000_000).0, 4);
        let (depth, shortage) = frames.depth(16, 1_000_000);
        assert_eq!((depth, BUDGET.reserved()), (10, 10_000_000));
        let message = shortage.unwrap().to_string();
        for part in ["12.0 MB for the frames of camera", "memory-budget=10500000", "10 frames", "of 16"] {
            assert!(message.contains(part), "{message}");
        }
        // Others leave some room, then more.
        drop(_limit);
        let _limit = BUDGET.limit("camera", 12_500_000).unwrap();
        assert!((1..FRAMES_TO_ASK_AGAIN).all(|_| frames.depth(16, 1_000_000).0 == 10));
        assert_eq!(frames.depth(16, 1_000_000).0, 12);
        drop(_limit);
        assert!((1..FRAMES_TO_ASK_AGAIN).all(|_| frames.depth(16, 1_000_000).0 == 12));
        let (depth, shortage) = frames.depth(16, 1_000_000);
        assert_eq!((depth, BUDGET.reserved()), (16, 16_000_000));
        assert!(shortage.is_none());
        let _limit = BUDGET.limit("camera", 10_500_000).unwrap();
        // Larger ones do not fit at all, but without any nothing would move.
        let (depth, shortage) = frames.depth(16, 40_000_000);
        assert!(depth == 1 && shortage.is_none());
        assert_eq!(BUDGET.reserved(), 40_000_000);
        assert_eq!(frames.depth(3, 1_000_000).0, 3);
        assert_eq!(BUDGET.reserved(), 3_000_000);
    }
}
