use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;

/// A budget of its own for a test.
fn budget(resident: fn() -> u64) -> &'static Budget {
    Box::leak(Box::new(Budget::new("memory-budget", resident)))
}

fn empty() -> &'static Budget {
    budget(|| 0)
}

const MB: u64 = 1_000_000;

#[test]
fn reservations_are_granted_up_to_the_limit_and_given_back() {
    let budget = empty();
    let _limit = budget.limit("detect0", 100).unwrap();
    assert_eq!((budget.ceiling(), budget.room()), (Some(100), Some(100)));
    let model = budget.reserve(Consumer::Model, "a.onnx", 60).unwrap();
    let mut arena = budget.reserve(Consumer::Arena, "a.onnx", 40).unwrap();
    assert_eq!((budget.reserved(), budget.room()), (100, Some(0)));
    assert!(arena.grow(1).is_err());
    assert_eq!((arena.bytes(), budget.reserved_for(Consumer::Arena)), (40, 40));
    drop(model);
    assert_eq!((budget.reserved(), budget.room()), (40, Some(60)));
    arena.grow(60).unwrap();
    assert_eq!(budget.reserved(), 100);
    // What is there cannot be refused.
    arena.set(150);
    assert_eq!((budget.reserved(), budget.room()), (150, Some(0)));
    assert!(arena.grow(0).is_err());
    drop(arena);
    assert_eq!((budget.reserved(), budget.usage()), (0, vec![]));
}

#[test]
fn without_a_limit_everything_is_granted_and_counted() {
    let budget = budget(|| u64::MAX);
    let mut one = budget.reserve(Consumer::Frames, "detect0", u64::MAX).unwrap();
    let _other = budget.reserve(Consumer::Frames, "detect1", u64::MAX).unwrap();
    one.grow(u64::MAX).unwrap();
    assert_eq!((budget.reserved(), budget.reserved_for(Consumer::Frames)), (u64::MAX, u64::MAX));
    assert_eq!((budget.ceiling(), budget.room()), (None, None));
}

#[test]
fn what_others_hold_counts_once() {
    static RESIDENT: AtomicU64 = AtomicU64::new(50);
    let budget = budget(|| RESIDENT.load(Ordering::Relaxed));
    let _limit = budget.limit("detect0", 100).unwrap();
    assert_eq!(budget.room(), Some(50));
    let mut held = budget.reserve(Consumer::Model, "a.onnx", 40).unwrap();
    // The model has come into the resident set.
    RESIDENT.store(90, Ordering::Relaxed);
    assert_eq!(budget.room(), Some(10));
    let refused = held.grow(11).unwrap_err();
    assert_eq!((refused.wanted, refused.others, refused.limit), (11, 50, 100));
    held.grow(10).unwrap();
    RESIDENT.store(u64::MAX, Ordering::Relaxed);
    assert_eq!(budget.room(), Some(0));
    assert!(held.grow(u64::MAX).is_err());
}

#[test]
fn two_limits_that_differ_are_a_conflict_that_names_both() {
    let budget = empty();
    let first = budget.limit("detect0", 100).unwrap();
    let same = budget.limit("detect1", 100).unwrap();
    let none = budget.limit("detect2", 0).unwrap();
    let conflict = budget.limit("detect3", 200).err().unwrap();
    assert_eq!(
        conflict.to_string(),
        "memory-budget=200 of detect3 and memory-budget=100 of detect0 cannot both hold: the budget is that of the \
         whole process, give all elements the same or only one of them any"
    );
    drop(first);
    assert_eq!(budget.ceiling(), Some(100));
    assert_eq!(&*budget.limit("detect3", 200).err().unwrap().holder, "detect1");
    drop(same);
    assert_eq!(budget.ceiling(), None);
    let other = budget.limit("detect3", 200).unwrap();
    assert_eq!(budget.ceiling(), Some(200));
    drop((none, other));
    assert_eq!(budget.ceiling(), None);
}

#[test]
fn a_refusal_shows_the_sum() {
    static RESIDENT: AtomicU64 = AtomicU64::new(12 * MB);
    let budget = budget(|| RESIDENT.load(Ordering::Relaxed));
    let _limit = budget.limit("detect0", 100 * MB).unwrap();
    let refuse = |bytes| budget.reserve(Consumer::Model, "yolo12n.onnx", bytes).err().unwrap().to_string();
    assert_eq!(
        refuse(90 * MB),
        "90.0 MB for the model of yolo12n.onnx do not fit into memory-budget=100000000 (100.0 MB), of which 12.0 MB \
         are taken by the rest of the process: raise memory-budget, or use a smaller model or fewer streams"
    );
    let _small = budget.reserve(Consumer::Tensors, "a.onnx", 5 * MB).unwrap();
    let _large = budget.reserve(Consumer::Model, "a.onnx", 40_500_000).unwrap();
    RESIDENT.store(57_500_000, Ordering::Relaxed);
    assert_eq!(
        refuse(86 * MB),
        "86.0 MB for the model of yolo12n.onnx do not fit into memory-budget=100000000 (100.0 MB), of which 40.5 MB \
         are taken by the model of a.onnx, 5.0 MB by the tensors of a.onnx, and 12.0 MB by the rest of the process: \
         raise memory-budget, or use a smaller model or fewer streams"
    );
    let _frames: Vec<_> = (1..=4)
        .map(|stream| budget.reserve(Consumer::Frames, &format!("detect{stream}"), stream * MB).unwrap())
        .collect();
    RESIDENT.store(0, Ordering::Relaxed);
    assert_eq!(
        refuse(86 * MB),
        "86.0 MB for the model of yolo12n.onnx do not fit into memory-budget=100000000 (100.0 MB), of which 40.5 MB \
         are taken by the model of a.onnx, 5.0 MB by the tensors of a.onnx, 4.0 MB by the frames of detect4, 3.0 MB by \
         the frames of detect3, 3.0 MB by 2 more, and 0.0 MB by the rest of the process: raise memory-budget, or use a \
         smaller model or fewer streams"
    );
}

#[test]
fn usage_is_listed_largest_first_and_by_consumer() {
    let budget = empty();
    let _held: Vec<_> =
        [(Consumer::Tensors, 5), (Consumer::Model, 40), (Consumer::History, 0), (Consumer::Model, 7)]
            .map(|(consumer, bytes)| budget.reserve(consumer, "x", bytes).unwrap())
            .into_iter()
            .collect();
    assert_eq!(budget.usage().iter().map(|usage| usage.bytes).collect::<Vec<_>>(), [40, 7, 5]);
    let by_consumer = Consumer::ALL.map(|consumer| (consumer.name(), budget.reserved_for(consumer)));
    assert_eq!(by_consumer, [("model", 47), ("arena", 0), ("tensors", 5), ("frames", 0), ("history", 0)]);
}

#[test]
fn threads_share_a_budget_without_exceeding_it() {
    let budget = empty();
    let _limit = budget.limit("detect0", 1000).unwrap();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(move || {
                let mut held = Vec::new();
                for round in 0..2000 {
                    held.extend(budget.reserve(Consumer::Frames, "detect0", 1 + round % 90));
                    assert!(budget.reserved() <= 1000);
                    if round % 3 == 0 {
                        held.pop();
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(budget.reserved(), 0);
}

#[derive(Clone, Debug)]
enum Step {
    Reserve(u64),
    Grow(usize, u64),
    Drop(usize),
}

proptest! {
    #[test]
    fn the_sum_never_exceeds_the_limit(
        limit in 1..1000u64,
        resident in 0..1000u64,
        steps in prop::collection::vec(prop_oneof![
            (0..400u64).prop_map(Step::Reserve),
            (any::<usize>(), prop_oneof![0..200u64, Just(u64::MAX)]).prop_map(|(at, more)| Step::Grow(at, more)),
            any::<usize>().prop_map(Step::Drop),
        ], 1..80),
    ) {
        thread_local!(static RESIDENT: std::cell::Cell<u64> = const { std::cell::Cell::new(0) });
        RESIDENT.set(resident);
        let budget = budget(|| RESIDENT.get());
        let _limit = budget.limit("detect0", limit).unwrap();
        let mut held: Vec<Reservation> = Vec::new();
        for step in steps {
            let before: u64 = held.iter().map(Reservation::bytes).sum();
            let room = budget.room().unwrap();
            prop_assert_eq!(room, limit.saturating_sub(before.max(resident)));
            // Nothing fits where there is more than the limit already, not even nothing.
            let fits = |bytes: u64| before.max(resident).saturating_add(bytes) <= limit;
            match step {
                Step::Reserve(bytes) => {
                    let granted = budget.reserve(Consumer::Frames, "detect0", bytes);
                    prop_assert_eq!(granted.is_ok(), fits(bytes));
                    match granted {
                        Ok(granted) => held.push(granted),
                        Err(refused) => prop_assert_eq!(refused.others, resident.saturating_sub(before)),
                    }
                }
                Step::Grow(at, more) if !held.is_empty() => {
                    let at = at % held.len();
                    let granted = held[at].grow(more).is_ok();
                    prop_assert_eq!(granted, fits(more));
                }
                Step::Drop(at) if !held.is_empty() => drop(held.swap_remove(at % held.len())),
                _ => (),
            }
            let sum: u64 = held.iter().map(Reservation::bytes).sum();
            prop_assert!(sum <= limit);
            prop_assert_eq!(budget.reserved(), sum);
        }
        drop(held);
        prop_assert_eq!(budget.reserved(), 0);
    }
}
