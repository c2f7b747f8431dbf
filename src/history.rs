//! The latest detections of a stream, kept so that they can be looked at: a ring for each stream.
//!
//! A ring is one list of equal records, a frame's own before those of its detections. It grows by doubling and stops where
//! it holds the frames that are wanted, or its equal share of the bytes that [`SHELF`] has for all of them. A full ring,
//! or one that finds no room in the budget, loses its own oldest frames, never another's. When a further stream joins,
//! the others give up what is beyond their new share with their next frame.
//!
//! Lock order: a ring's, then the budget's.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::detection::Detection;
use crate::memory::budget::{self, Budget, Consumer, Reservation};
use crate::memory::monitor::{Action, React};
use crate::memory::pressure::Level;

/// What all rings of a process share.
pub struct Shelf {
    /// Bytes of all rings together.
    limit: usize,
    rings: AtomicUsize,
    budget: &'static Budget,
}

/// The process's.
pub static SHELF: Shelf = Shelf::new(16 << 20, &budget::HOST);

/// A frame as it is kept, and given out again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Frame {
    pub number: u64,
    /// ns
    pub pts: Option<u64>,
    /// Detection `i` has the id `first_id + i`.
    pub first_id: u32,
    /// Width and height, in pixels.
    pub size: (u32, u32),
}

/// 32 bytes: a detection has 24, the rest tells which of the two this is.
#[derive(Clone, Copy)]
enum Record {
    Frame { number: u64, pts: u64, first_id: u32, detections: u16, width: u16, height: u16 },
    Detection(Detection),
}

const RECORD: usize = size_of::<Record>();
const _: () = assert!(RECORD == 32);

const NO_PTS: u64 = u64::MAX;
/// Of a ring that begins.
const FIRST_RECORDS: usize = 64;
/// So many frames after the budget had no room it is asked again: to ask costs a system call.
const FRAMES_TO_ASK_AGAIN: u32 = 256;

/// One stream's.
pub struct History {
    shelf: &'static Shelf,
    ring: Mutex<Ring>,
}

struct Ring {
    records: VecDeque<Record>,
    frames: usize,
    /// Most frames; 0 keeps none.
    size: usize,
    held: Reservation,
    /// Nothing is kept in an emergency.
    suspended: bool,
    /// Frames until the budget is asked again.
    refused: u32,
}

impl Shelf {
    pub const fn new(limit: usize, budget: &'static Budget) -> Self {
        Self { limit, rings: AtomicUsize::new(0), budget }
    }

    /// Most records of one ring.
    fn share(&self) -> usize {
        self.limit / RECORD / self.rings.load(Ordering::Relaxed).max(1)
    }
}

impl History {
    /// For a stream of `owner`: the latest `size` frames.
    pub fn new(shelf: &'static Shelf, owner: &str, size: usize) -> Self {
        let ring = Ring {
            records: VecDeque::new(),
            frames: 0,
            size: 0,
            held: shelf.budget.hold(Consumer::History, owner),
            suspended: false,
            refused: 0,
        };
        let history = Self { shelf, ring: Mutex::new(ring) };
        history.set_size(size);
        history
    }

    /// Keeps `size` frames from now on; 0 for none.
    pub fn set_size(&self, size: usize) {
        let mut ring = self.ring.lock();
        match (ring.size, size) {
            (0, 1..) => {
                self.shelf.rings.fetch_add(1, Ordering::Relaxed);
            }
            (1.., 0) => {
                self.shelf.rings.fetch_sub(1, Ordering::Relaxed);
            }
            _ => (),
        }
        if size < ring.size {
            while ring.frames > size {
                ring.forget_oldest();
            }
            ring.shrink_to(0);
        }
        ring.size = size;
    }

    /// Takes in an inferred frame.
    pub fn record(&self, frame: Frame, detections: &[Detection]) {
        let mut ring = self.ring.lock();
        let (share, needed) = (self.shelf.share(), 1 + detections.len());
        // A frame that no ring could hold is none to forget others for.
        let Ok(count) = u16::try_from(detections.len()) else { return };
        if ring.suspended || ring.size == 0 || needed > share {
            return;
        }
        if ring.records.capacity() > share {
            while ring.records.len() > share {
                ring.forget_oldest();
            }
            ring.shrink_to(share);
        }
        while ring.frames >= ring.size || ring.records.len() + needed > share {
            ring.forget_oldest();
        }
        ring.make_room(needed, share);
        while ring.records.len() + needed > ring.records.capacity() {
            if !ring.forget_oldest() {
                return;
            }
        }
        let narrow = |side: u32| u16::try_from(side).unwrap_or(u16::MAX);
        ring.records.push_back(Record::Frame {
            number: frame.number,
            pts: frame.pts.unwrap_or(NO_PTS),
            first_id: frame.first_id,
            detections: count,
            width: narrow(frame.size.0),
            height: narrow(frame.size.1),
        });
        ring.records.extend(detections.iter().copied().map(Record::Detection));
        ring.frames += 1;
    }

    /// The latest frames, `most` of them or (0) all, oldest first.
    pub fn recent(&self, most: usize) -> Vec<(Frame, Vec<Detection>)> {
        // Copied as it is: the stream waits for this lock.
        let records: Vec<Record> = {
            let ring = self.ring.lock();
            let skipped = if most == 0 { 0 } else { ring.frames.saturating_sub(most) };
            let start = (0..skipped).fold(0, |at, _| at + ring.length_at(at));
            ring.records.range(start..).copied().collect()
        };
        let mut frames = Vec::new();
        for record in records {
            match record {
                Record::Frame { number, pts, first_id, detections, width, height } => {
                    let pts = (pts != NO_PTS).then_some(pts);
                    let frame = Frame { number, pts, first_id, size: (width.into(), height.into()) };
                    frames.push((frame, Vec::with_capacity(detections.into())));
                }
                Record::Detection(detection) => {
                    if let Some((_, detections)) = frames.last_mut() {
                        detections.push(detection);
                    }
                }
            }
        }
        frames
    }

    /// Frames that are kept now.
    pub fn frames(&self) -> usize {
        self.ring.lock().frames
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.set_size(0);
    }
}

impl React for History {
    /// Lets go of everything in an emergency and keeps nothing while it lasts.
    fn react(&self, level: Level, _degrade: Level, did: &mut Vec<Action>) {
        let mut ring = self.ring.lock();
        ring.suspended = level >= Level::Emergency;
        if ring.suspended && ring.records.capacity() > 0 {
            let freed = ring.held.bytes();
            ring.frames = 0;
            ring.records.clear();
            ring.shrink_to(0);
            did.push(Action { name: "drop-history", freed });
        }
    }
}

impl Ring {
    /// Records of the frame that begins at `index`.
    fn length_at(&self, index: usize) -> usize {
        match self.records.get(index) {
            Some(Record::Frame { detections, .. }) => 1 + usize::from(*detections),
            _ => 1,
        }
    }

    /// Whether there was any.
    fn forget_oldest(&mut self) -> bool {
        if self.frames == 0 {
            return false;
        }
        let length = self.length_at(0);
        self.records.drain(..length);
        self.frames -= 1;
        true
    }

    /// Grows for `needed` more records, up to `most` in all, where the budget has room.
    fn make_room(&mut self, needed: usize, most: usize) {
        let (length, capacity) = (self.records.len(), self.records.capacity());
        if length + needed <= capacity {
            return;
        }
        if self.refused > 0 {
            self.refused -= 1;
            return;
        }
        let wanted = (2 * capacity).max(length + needed).max(FIRST_RECORDS).min(most);
        let granted = self.held.grow(((wanted - capacity) * RECORD) as u64).is_ok();
        if !granted || self.records.try_reserve_exact(wanted - length).is_err() {
            self.refused = FRAMES_TO_ASK_AGAIN;
        }
        self.held.set((self.records.capacity() * RECORD) as u64);
    }

    fn shrink_to(&mut self, records: usize) {
        self.records.shrink_to(records);
        self.held.set((self.records.capacity() * RECORD) as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A shelf of its own for a test, with a budget that knows of no other memory.
    fn shelf(records: usize) -> &'static Shelf {
        let budget = Box::leak(Box::new(Budget::new("memory-budget", || 0)));
        Box::leak(Box::new(Shelf::new(records * RECORD, budget)))
    }

    fn frame(number: u64) -> Frame {
        let pts = number.is_multiple_of(2).then_some(number * 40);
        Frame { number, pts, first_id: number as u32 * 1000, size: (640, 480) }
    }

    fn detections(number: u64, count: usize) -> Vec<Detection> {
        let one = |class| Detection { class, confidence: number as f32, ..Default::default() };
        (0..count as u32).map(one).collect()
    }

    fn numbers(history: &History) -> Vec<u64> {
        history.recent(0).iter().map(|(frame, _)| frame.number).collect()
    }

    #[test]
    fn the_latest_frames_are_kept_in_order() {
        let history = History::new(shelf(10_000), "element", 3);
        assert_eq!(history.recent(0), []);
        for number in 0..8 {
            history.record(frame(number), &detections(number, number as usize % 3));
        }
        let kept = |numbers: std::ops::Range<u64>| -> Vec<_> {
            numbers.map(|number| (frame(number), detections(number, number as usize % 3))).collect()
        };
        assert_eq!(history.recent(0), kept(5..8));
        assert_eq!(history.recent(2), kept(6..8));
        assert_eq!(history.recent(100), kept(5..8));
        history.set_size(1);
        assert_eq!(numbers(&history), [7]);
        history.set_size(0);
        history.record(frame(8), &[]);
        assert_eq!(numbers(&history), [0; 0]);
        history.set_size(2);
        history.record(frame(9), &[]);
        assert_eq!(numbers(&history), [9]);
    }

    #[test]
    fn an_emergency_empties_it_and_keeps_it_empty() {
        let shelf = shelf(10_000);
        let history = History::new(shelf, "element", 100);
        let react = |level| {
            let mut did = Vec::new();
            history.react(level, Level::Nominal, &mut did);
            did
        };
        history.record(frame(0), &detections(0, 5));
        assert_eq!(react(Level::Critical), []);
        assert_eq!(history.frames(), 1);
        let freed = shelf.budget.reserved_for(Consumer::History);
        assert_eq!(freed, (FIRST_RECORDS * RECORD) as u64);
        assert_eq!(react(Level::Emergency), [Action { name: "drop-history", freed }]);
        assert_eq!(shelf.budget.reserved(), 0);
        history.record(frame(1), &[]);
        assert_eq!(history.frames(), 0);
        assert_eq!(react(Level::Emergency), []);
        assert_eq!(react(Level::Critical), []);
        history.record(frame(2), &[]);
        assert_eq!(numbers(&history), [2]);
    }

    #[test]
    fn rings_share_what_there_is() {
        let shelf = shelf(1000);
        let fill = |history: &History, from| {
            (from..from + 1000).for_each(|number| history.record(frame(number), &detections(number, 9)));
        };
        let first = History::new(shelf, "first", 1000);
        fill(&first, 0);
        assert_eq!(first.frames(), 100);
        let second = History::new(shelf, "second", 1000);
        first.record(frame(1000), &detections(1000, 9));
        assert_eq!(first.frames(), 50, "its oldest went");
        fill(&second, 0);
        assert_eq!(numbers(&second), (950..1000).collect::<Vec<_>>());
        assert!(shelf.budget.reserved() <= 1000 * RECORD as u64);
        drop(first);
        fill(&second, 1000);
        assert_eq!(second.frames(), 100);
        // None has room for it; nothing else is forgotten for it.
        second.record(frame(0), &detections(0, 1000));
        assert_eq!(second.frames(), 100);
    }

    #[test]
    fn it_stays_as_small_as_the_budget() {
        let shelf = shelf(100_000);
        let _limit = shelf.budget.limit("user", 200 * RECORD as u64).unwrap();
        let history = History::new(shelf, "element", 1000);
        (0..1000).for_each(|number| history.record(frame(number), &detections(number, 9)));
        // 64, then 128; 256 are refused.
        assert_eq!(numbers(&history), (988..1000).collect::<Vec<_>>());
        assert_eq!(shelf.budget.reserved(), 128 * RECORD as u64);
        drop(_limit);
        let again = 1000 + u64::from(FRAMES_TO_ASK_AGAIN) + 20;
        (1000..again).for_each(|number| history.record(frame(number), &detections(number, 9)));
        assert!(history.frames() > 12, "the budget is asked again");
    }

    #[test]
    fn a_full_ring_allocates_nothing() {
        let history = History::new(shelf(100_000), "element", 50);
        let capacity = |history: &History| history.ring.lock().records.capacity();
        let pass = |from: u64| {
            (from..from + 500).for_each(|number| history.record(frame(number), &detections(number, 7)));
            capacity(&history)
        };
        let full = pass(0);
        assert_eq!((pass(500), pass(1000)), (full, full));
        assert!(full < 2 * 50 * 8 + FIRST_RECORDS);
    }

    proptest! {
        #[test]
        fn it_holds_the_latest_that_fit(
            room in 1usize..300,
            size in 0usize..20,
            counts in proptest::collection::vec(0usize..30, 0..60),
            most in 0usize..25,
        ) {
            let shelf = shelf(room);
            let history = History::new(shelf, "element", size);
            let mut model = VecDeque::new();
            for (number, &count) in counts.iter().enumerate() {
                let number = number as u64;
                history.record(frame(number), &detections(number, count));
                if size == 0 || 1 + count > room {
                    continue;
                }
                model.push_back((frame(number), detections(number, count)));
                let records = |model: &VecDeque<(_, Vec<_>)>| {
                    model.iter().map(|(_, found)| 1 + found.len()).sum::<usize>()
                };
                while model.len() > size || records(&model) > room {
                    model.pop_front();
                }
                prop_assert!(shelf.budget.reserved() <= (room * RECORD) as u64);
                prop_assert_eq!(history.frames(), model.len());
            }
            let skipped = if most == 0 { 0 } else { model.len().saturating_sub(most) };
            prop_assert_eq!(history.recent(most), model.into_iter().skip(skipped).collect::<Vec<_>>());
        }
    }
}
