//! How many buffers a pool keeps. Pure: it counts things of any kind.
//!
//! A stock has a bound and, for bursts, half as many again. What is made beyond that is a miss and leaves the stock when
//! it is given back. Under pressure half of that is kept.

/// So many takes are a window over which the need is looked at.
const WINDOW: u32 = 64;

/// Things at rest, and how many are out.
pub struct Stock<T> {
    idle: Vec<T>,
    out: usize,
    /// Most that are kept, with the burst.
    most: usize,
    /// Most that there may be at all.
    max: usize,
    pressed: bool,
    need: Need,
}

/// Most that were out at a time lately: in the window that runs, and in the one before.
#[derive(Default)]
struct Need {
    now: usize,
    before: usize,
    takes: u32,
}

impl Need {
    fn took(&mut self, out: usize) {
        self.takes += 1;
        if self.takes >= WINDOW {
            self.roll(out);
        }
        self.now = self.now.max(out);
    }

    fn roll(&mut self, out: usize) {
        *self = Self { now: out, before: self.now, takes: 0 };
    }
}

/// What [`Stock::take`] answers.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken<T> {
    /// One that was at rest.
    Idle(T),
    /// To be made; it counts as out already.
    Make { miss: bool },
    /// To be made in the place of this one, which is of no use and is to go.
    Replace(T),
    /// All there may be are out.
    None,
}

impl<T> Default for Stock<T> {
    fn default() -> Self {
        Self { idle: Vec::new(), out: 0, most: 0, max: usize::MAX, pressed: false, need: Need::default() }
    }
}

impl<T> Stock<T> {
    /// For a new life. `max`: most that there may be, 0 for no such limit.
    pub fn configure(&mut self, bound: usize, max: usize) {
        self.max = if max == 0 { usize::MAX } else { max };
        self.most = bound.saturating_add(bound.div_ceil(2)).min(self.max);
        self.need = Need::default();
        self.idle.reserve(self.most);
    }

    pub fn set_pressed(&mut self, pressed: bool) {
        self.pressed = pressed;
    }

    fn kept(&self) -> usize {
        if self.pressed { self.most.div_ceil(2) } else { self.most }
    }

    fn all(&self) -> usize {
        self.out + self.idle.len()
    }

    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    pub fn out(&self) -> usize {
        self.out
    }

    /// One of those at rest that are `usable`, the latest to come back.
    pub fn take(&mut self, usable: impl Fn(&T) -> bool) -> Taken<T> {
        let taken = match self.idle.iter().rposition(usable) {
            Some(at) => Taken::Idle(self.idle.remove(at)),
            None if self.all() < self.kept().min(self.max) => Taken::Make { miss: false },
            None if !self.idle.is_empty() => Taken::Replace(self.idle.remove(0)),
            None if self.out < self.max => Taken::Make { miss: true },
            None => return Taken::None,
        };
        self.out += 1;
        self.need.took(self.out);
        taken
    }

    /// One that was out is no more: it was not made after all, or came back unusable.
    pub fn lost(&mut self) {
        self.out = self.out.saturating_sub(1);
    }

    /// One comes back; given back to the caller where it is one too many.
    pub fn give(&mut self, thing: T) -> Option<T> {
        let spare = self.all() > self.kept();
        self.lost();
        if spare {
            return Some(thing);
        }
        self.idle.push(thing);
        None
    }

    /// A new one, made before anybody asked.
    pub fn add(&mut self, thing: T) {
        self.idle.push(thing);
    }

    /// Takes out of it what lately nobody needed, and what is more than is kept.
    pub fn trim(&mut self) -> Vec<T> {
        let needed = self.need.now.max(self.need.before).min(self.kept());
        let spare = self.all().saturating_sub(needed).min(self.idle.len());
        self.need.roll(self.out);
        // Those that have rested longest.
        self.idle.drain(..spare).collect()
    }

    /// Takes all out of it that is at rest.
    pub fn clear(&mut self) -> Vec<T> {
        self.idle.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stock(bound: usize, max: usize) -> Stock<u32> {
        let mut stock = Stock::default();
        stock.configure(bound, max);
        stock
    }

    /// Takes `count`; how many of them were misses.
    fn take(stock: &mut Stock<u32>, count: usize) -> usize {
        (0..count).filter(|_| stock.take(|_| true) == Taken::Make { miss: true }).count()
    }

    fn give(stock: &mut Stock<u32>, count: u32) -> usize {
        (0..count).filter_map(|thing| stock.give(thing)).count()
    }

    #[test]
    fn a_burst_is_kept_and_what_is_beyond_it_is_not() {
        for (bound, kept) in [(1, 2), (4, 6), (5, 8), (0, 0)] {
            let mut stock = stock(bound, 0);
            assert_eq!(take(&mut stock, 10), 10 - kept, "{bound}");
            assert_eq!(give(&mut stock, 10), 10 - kept, "{bound}");
            assert_eq!((stock.idle(), stock.out()), (kept, 0), "{bound}");
        }
    }

    #[test]
    fn the_latest_to_come_back_leaves_first() {
        let mut stock = stock(4, 0);
        take(&mut stock, 2);
        give(&mut stock, 2);
        assert_eq!(stock.take(|_| true), Taken::Idle(1));
    }

    #[test]
    fn those_of_no_use_stay_until_their_place_is_needed() {
        let mut stock = stock(2, 0);
        take(&mut stock, 3);
        for thing in [1, 2, 3] {
            assert_eq!(stock.give(thing), None);
        }
        assert_eq!(stock.take(|&thing| thing < 3), Taken::Idle(2));
        assert_eq!(stock.take(|_| false), Taken::Replace(1));
        assert_eq!((stock.idle(), stock.out()), (1, 2));
        assert_eq!(stock.take(|_| false), Taken::Replace(3));
        assert_eq!(stock.take(|_| false), Taken::Make { miss: true });
    }

    #[test]
    fn no_more_than_the_limit() {
        let mut stock = stock(4, 2);
        assert_eq!(take(&mut stock, 2), 0);
        assert_eq!(stock.take(|_| true), Taken::None);
        stock.lost();
        assert_eq!(stock.take(|_| true), Taken::Make { miss: false });
        assert_eq!(give(&mut stock, 2), 0);
    }

    #[test]
    fn trimming_leaves_what_is_needed() {
        let mut stock = stock(8, 0);
        take(&mut stock, 12);
        give(&mut stock, 12);
        // Four at a time, for longer than two windows.
        for _ in 0..WINDOW {
            take(&mut stock, 4);
            give(&mut stock, 4);
        }
        assert_eq!((stock.trim().len(), stock.idle()), (8, 4));
        assert_eq!(stock.trim().len(), 0);
    }

    #[test]
    fn trimming_a_stock_that_stands_still_takes_all_that_rests() {
        let mut stock = stock(8, 0);
        take(&mut stock, 12);
        give(&mut stock, 10);
        stock.set_pressed(true);
        // Six may stay at first: they were needed a moment ago.
        assert_eq!((stock.trim().len(), stock.idle()), (6, 4));
        assert_eq!([stock.trim().len(), stock.trim().len()], [0, 4]);
        assert_eq!((stock.out(), stock.idle()), (2, 0));
    }

    #[test]
    fn under_pressure_half_is_kept_until_it_is_over() {
        let mut stock = stock(4, 0);
        stock.set_pressed(true);
        assert_eq!(take(&mut stock, 6), 3);
        assert_eq!((give(&mut stock, 6), stock.idle()), (3, 3));
        stock.set_pressed(false);
        assert_eq!(take(&mut stock, 6), 0);
        assert_eq!((give(&mut stock, 6), stock.idle()), (0, 6));
    }

    proptest! {
        /// Whatever happens, things are neither lost nor made up, and at rest there are no more than are kept.
        #[test]
        fn the_count_is_right(bound in 0usize..6, max in 0usize..8, steps in prop::collection::vec(0u8..6, 0..200)) {
            let mut stock = stock(bound, max);
            let mut out = 0usize;
            for step in steps {
                match step {
                    0..=1 => match stock.take(|_| step == 0) {
                        Taken::Idle(_) | Taken::Make { .. } | Taken::Replace(_) => out += 1,
                        Taken::None => prop_assert!(max != 0 && out == max),
                    },
                    2..=3 if out > 0 => {
                        stock.give(0);
                        out -= 1;
                    }
                    4 => {
                        stock.set_pressed(true);
                        stock.trim();
                        prop_assert!(stock.idle() + out <= stock.kept().max(out));
                    }
                    _ => stock.set_pressed(false),
                }
                prop_assert_eq!(stock.out(), out);
                prop_assert!(stock.idle() <= stock.most);
                prop_assert!(max == 0 || out + stock.idle() <= max);
            }
            let idle = stock.idle();
            prop_assert_eq!(stock.clear().len(), idle);
        }
    }
}
