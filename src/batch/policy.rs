//! When a batch runs: a pure function of what the queue holds and the time.

use std::time::Instant;

/// The batch that is being filled, as the decision needs it.
///
/// `ready <= settled <= granted <= capacity`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filling {
    /// Slots in the batch.
    pub capacity: usize,
    /// Slots given to streams so far.
    pub granted: usize,
    /// Of these, the ones that came back: filled, or abandoned by a flush.
    pub settled: usize,
    /// Of these, the ones that hold a frame.
    pub ready: usize,
    /// The earliest time at which one of the frames wants to run, however few there are.
    pub due: Option<Instant>,
    /// A stream waits for what it has handed in (end of stream, a drain): no more delay.
    pub urgent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing to do before the queue changes or, if given, the time comes.
    Wait(Option<Instant>),
    /// Run the granted slots; abandoned ones among them are holes.
    Dispatch,
    /// Every granted slot was abandoned: start over.
    Discard,
}

/// Called when the engine is idle. Without a delay asked for, an idle engine never waits: it is
/// work-conserving, and batches form by themselves while it is busy.
pub fn decide(filling: &Filling, now: Instant) -> Decision {
    // A granted slot is being filled right now, which takes milliseconds and blocks on nothing.
    if filling.granted == 0 || filling.settled < filling.granted {
        return Decision::Wait(None);
    }
    if filling.ready == 0 {
        return Decision::Discard;
    }
    if filling.granted == filling.capacity || filling.urgent {
        return Decision::Dispatch;
    }
    match filling.due {
        Some(due) if due > now => Decision::Wait(Some(due)),
        _ => Decision::Dispatch,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn filling(capacity: usize, granted: usize, settled: usize, ready: usize) -> Filling {
        Filling { capacity, granted, settled, ready, due: None, urgent: false }
    }

    #[test]
    fn table() {
        let now = Instant::now();
        let later = now + Duration::from_millis(5);
        let with = |due, urgent| Filling { due, urgent, ..filling(4, 2, 2, 2) };
        for (queue, expected) in [
            (filling(4, 0, 0, 0), Decision::Wait(None)),
            (filling(4, 1, 0, 0), Decision::Wait(None)),
            (filling(4, 2, 1, 1), Decision::Wait(None)),
            (filling(4, 1, 1, 1), Decision::Dispatch),
            (filling(4, 4, 4, 1), Decision::Dispatch),
            (filling(4, 3, 3, 0), Decision::Discard),
            (with(Some(later), false), Decision::Wait(Some(later))),
            (with(Some(now), false), Decision::Dispatch),
            (with(Some(later), true), Decision::Dispatch),
            (Filling { due: Some(later), ..filling(2, 2, 2, 2) }, Decision::Dispatch),
        ] {
            assert_eq!(decide(&queue, now), expected, "{queue:?}");
        }
    }

    proptest! {
        /// Whatever is ready runs at the latest when it is due and nobody is filling a slot any more.
        #[test]
        fn nothing_waits_for_ever(capacity in 1usize..33, granted in 0usize..33, settled in 0usize..33, ready in 0usize..33,
                                  delay in proptest::option::of(0u64..1000), urgent: bool) {
            let granted = granted.min(capacity);
            let settled = settled.min(granted);
            let ready = ready.min(settled);
            let now = Instant::now();
            let due = delay.map(|ms| now + Duration::from_millis(ms));
            let queue = Filling { capacity, granted, settled, ready, due, urgent };
            match decide(&queue, now) {
                Decision::Dispatch => prop_assert!(ready > 0 && settled == granted),
                Decision::Discard => prop_assert!(ready == 0 && granted > 0 && settled == granted),
                Decision::Wait(Some(until)) => {
                    prop_assert_eq!(Some(until), due);
                    prop_assert_eq!(decide(&queue, until), Decision::Dispatch);
                }
                Decision::Wait(None) => prop_assert!(granted == 0 || settled < granted),
            }
        }
    }
}
