//! Who is next for a slot: start-time fair queueing among streams, weighted by their priority. Pure.
//!
//! Each claim has a start tag, in virtual time; the least is served first and moves the virtual time to its tag. The
//! claim after it starts where it ends, `1 / priority` later, or now if the stream was away meanwhile: nobody saves
//! turns up. Between streams that always want a slot the numbers granted, divided by the priorities, differ by no
//! more than one turn of either (Goyal, Vin, Cheng: Start-time Fair Queueing, SIGCOMM 1996).
//!
//! A stream that had to wait comes back, in all likelihood, as soon as its frame is handed in. Until then it keeps an
//! absent claim, or those who happen to stand there would take its turns.

/// One turn of a stream with priority 1, in virtual time; divisible by every priority up to 16.
const TURN: u64 = 720_720;

/// Virtual time for one slot.
fn cost(priority: u32) -> u64 {
    TURN / u64::from(priority.max(1))
}

#[derive(Debug)]
struct Claim {
    stream: u64,
    tag: u64,
    cost: u64,
    /// Its thread waits right here; otherwise it comes back with its next frame.
    present: bool,
}

/// Streams that want a slot.
#[derive(Debug, Default)]
pub struct Line {
    /// By tag; equal ones first come, first served.
    claims: Vec<Claim>,
    /// The tag served last.
    now: u64,
    /// Where each stream's latest turn ends, for those that were ever granted one.
    ends: Vec<End>,
}

/// Of a stream's latest turn.
#[derive(Debug)]
struct End {
    stream: u64,
    tag: u64,
    /// Of that turn.
    cost: u64,
}

impl Line {
    /// Takes a place, or changes how the one it has is held. Whether it is new.
    pub fn join(&mut self, stream: u64, priority: u32, present: bool) -> bool {
        if let Some(claim) = self.claims.iter_mut().find(|claim| claim.stream == stream) {
            (claim.present, claim.cost) = (present, cost(priority));
            return false;
        }
        let end = self.ends.iter().find(|end| end.stream == stream).map_or(0, |end| end.tag);
        self.insert(Claim { stream, tag: end.max(self.now), cost: cost(priority), present });
        true
    }

    fn insert(&mut self, claim: Claim) {
        let place = self.claims.partition_point(|other| other.tag <= claim.tag);
        self.claims.insert(place, claim);
    }

    /// Slots that others get before this stream's next; `None` if it is not in line. With `turns`, those that the
    /// others would come back for until its tag's time comes are counted too.
    pub fn ahead(&self, stream: u64, turns: bool) -> Option<usize> {
        let place = self.claims.iter().position(|claim| claim.stream == stream)?;
        Some(self.ahead_of(place, turns))
    }

    fn ahead_of(&self, place: usize, turns: bool) -> usize {
        if !turns {
            return place;
        }
        let tag = self.claims[place].tag;
        let slots = |claim: &Claim| (tag - claim.tag).div_ceil(claim.cost.max(1)).max(1) as usize;
        self.claims[..place].iter().map(slots).sum()
    }

    /// Streams whose thread waits and for whom `room` slots are enough, in their order; `turns` as above.
    pub fn entitled(&self, room: usize, turns: bool) -> impl Iterator<Item = u64> {
        (0..self.claims.len())
            .take_while(move |&place| self.ahead_of(place, turns) < room)
            .filter(|&place| self.claims[place].present)
            .map(|place| self.claims[place].stream)
    }

    /// Gives `stream`, which is in line, its slot. With `standing` it is in line again, absent.
    pub fn grant(&mut self, stream: u64, standing: bool) {
        let Some(place) = self.claims.iter().position(|claim| claim.stream == stream) else { return };
        let claim = self.claims.remove(place);
        self.now = self.now.max(claim.tag);
        let end = End { stream, tag: claim.tag + claim.cost, cost: claim.cost };
        let tag = end.tag;
        match self.ends.iter_mut().find(|end| end.stream == stream) {
            Some(known) => *known = end,
            None => self.ends.push(end),
        }
        if standing {
            self.insert(Claim { tag, present: false, ..claim });
        }
    }

    /// There was no slot for `stream` after all: it has the turn that it was just granted before it, and stands where it
    /// asks again.
    pub fn take_back(&mut self, stream: u64) {
        self.leave(stream);
        if let Some(end) = self.ends.iter_mut().find(|end| end.stream == stream) {
            end.tag -= std::mem::take(&mut end.cost);
        }
    }

    /// Drops the claims of all streams that are not here, but for `except`.
    pub fn lapse(&mut self, except: Option<u64>) {
        self.claims.retain(|claim| claim.present || Some(claim.stream) == except);
    }

    /// A stream flushes: it wants nothing for now. One whose thread is here leaves by itself.
    pub fn withdraw(&mut self, stream: u64) {
        self.claims.retain(|claim| claim.present || claim.stream != stream);
    }

    /// Gives the claim up, whoever holds it.
    pub fn leave(&mut self, stream: u64) {
        self.claims.retain(|claim| claim.stream != stream);
    }

    /// The stream is gone for good.
    pub fn forget(&mut self, stream: u64) {
        self.leave(stream);
        self.ends.retain(|end| end.stream != stream);
    }

    /// Streams whose thread waits.
    pub fn waiting(&self) -> usize {
        self.claims.iter().filter(|claim| claim.present).count()
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All streams always want a slot: who gets the next `count`.
    fn saturated(line: &mut Line, priorities: &[u32], count: usize) -> Vec<usize> {
        (0..count)
            .map(|_| {
                for (stream, &priority) in priorities.iter().enumerate() {
                    line.join(stream as u64, priority, true);
                }
                let next = line.entitled(1, true).next().unwrap();
                line.grant(next, true);
                next as usize
            })
            .collect()
    }

    fn counts(granted: &[usize], streams: usize) -> Vec<usize> {
        (0..streams).map(|stream| granted.iter().filter(|&&id| id == stream).count()).collect()
    }

    #[test]
    fn equal_streams_take_turns() {
        assert_eq!(saturated(&mut Line::default(), &[1, 1, 1], 7), [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn priorities_are_shares_and_may_change() {
        let mut line = Line::default();
        assert_eq!(counts(&saturated(&mut line, &[3, 1], 300), 2), [225, 75]);
        let then = counts(&saturated(&mut line, &[1, 1], 300), 2);
        assert!(then[0].abs_diff(then[1]) <= 2, "{then:?}");
    }

    #[test]
    fn nobody_saves_turns_up() {
        let mut line = Line::default();
        saturated(&mut line, &[1], 1000);
        // The second was away all the time; now it gets every other slot, not a thousand.
        assert_eq!(counts(&saturated(&mut line, &[1, 1], 100), 2), [50, 50]);
    }

    #[test]
    fn a_place_is_kept_for_one_who_comes_back() {
        let mut line = Line::default();
        line.join(1, 1, false);
        line.join(2, 1, true);
        let entitled = |line: &Line, room| line.entitled(room, true).collect::<Vec<_>>();
        assert_eq!((line.ahead(2, true), entitled(&line, 1), entitled(&line, 2)), (Some(1), vec![], vec![2]));
        line.lapse(Some(2));
        assert_eq!((line.ahead(2, true), line.ahead(1, true)), (Some(0), None));
        assert_eq!(line.waiting(), 1);
        line.withdraw(2);
        assert_eq!(line.waiting(), 1, "its thread is here");
        line.leave(2);
        assert!(line.is_empty());
    }

    #[test]
    fn turns_to_come_count_where_several_slots_are_free() {
        let mut line = Line::default();
        for stream in [1, 2] {
            line.join(stream, [3, 1][stream as usize - 1], true);
        }
        line.grant(1, true);
        line.grant(2, true);
        line.join(2, 1, true);
        // Of the next slots two are the first stream's before it is the second's turn.
        assert_eq!((line.ahead(2, true), line.ahead(2, false)), (Some(2), Some(1)));
        assert_eq!(line.entitled(2, true).count(), 0);
        assert_eq!(line.entitled(3, true).collect::<Vec<_>>(), [2]);
        assert_eq!(line.entitled(2, false).collect::<Vec<_>>(), [2]);
    }

    proptest! {
        /// Goyal's bound, for streams that always want a slot, over any stretch.
        #[test]
        fn shares_follow_priorities(priorities in proptest::collection::vec(1u32..20, 2..9), warm in 0usize..200,
                                    count in 1usize..600) {
            let mut line = Line::default();
            saturated(&mut line, &priorities, warm);
            let counts = counts(&saturated(&mut line, &priorities, count), priorities.len());
            for (a, &weight_a) in priorities.iter().enumerate() {
                for (b, &weight_b) in priorities.iter().enumerate() {
                    let share = |stream: usize, weight: u32| counts[stream] as f64 / f64::from(weight);
                    let apart = (share(a, weight_a) - share(b, weight_b)).abs();
                    let bound = 1.0 / f64::from(weight_a) + 1.0 / f64::from(weight_b);
                    // Turns are whole numbers of virtual time: a little less than 1 / priority each.
                    prop_assert!(apart <= bound * 1.001 + 0.01, "{counts:?} of {priorities:?}");
                }
            }
        }

        /// Whatever streams do, one that waits is served after a bounded number of others.
        #[test]
        fn nobody_starves(steps in proptest::collection::vec((0u64..6, 1u32..5, 0u8..4), 1..300)) {
            let mut line = Line::default();
            line.join(99, 1, true);
            let mut before = 0;
            for (stream, priority, step) in steps {
                match step {
                    0 => line.withdraw(stream),
                    1 => { line.join(stream, priority, false); }
                    _ => { line.join(stream, priority, true); }
                }
                line.lapse(None);
                let Some(next) = line.entitled(1, false).next() else { continue };
                line.grant(next, step == 3);
                if next == 99 {
                    line.join(99, 1, true);
                    before = 0;
                } else {
                    before += 1;
                }
                // Six others of priority 4 at most, within one turn of its own and one that was under way.
                prop_assert!(before <= 6 * 2 * 5, "{before} were served before it");
            }
        }
    }
}
