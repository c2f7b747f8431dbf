//! The arithmetic, and loads that are none.

use super::*;
use crate::batch::{Ledger, Place};
use proptest::prelude::*;
use std::cell::RefCell;

const MB: u64 = 1_000_000;

fn room(limit: u64, context: u64, others: u64) -> Room {
    Room { limit, context, others }
}

fn wish(frames: usize) -> Wish {
    Wish { weights: 10 * MB, frame_tensors: 8 * MB, frames, least: 1 }
}

#[test]
fn what_is_left_is_the_arena_s() {
    let share = room(800 * MB, 300 * MB, 100 * MB).share(&wish(8)).unwrap();
    assert_eq!(share, Share { arena: (800 - 300 - 100 - 2 * 8 * 8) * MB, frames: 8, tensors: 128 * MB });
    // Batches are as large as leaves room for the weights.
    let share = room(400 * MB, 300 * MB, 0).share(&wish(8)).unwrap();
    assert_eq!((share.frames, share.arena), (4, 36 * MB));
    assert_eq!(room(326 * MB, 300 * MB, 0).share(&wish(8)).unwrap().frames, 1);
    let short = room(326 * MB - 1, 300 * MB, 0).share(&wish(8)).unwrap_err();
    assert_eq!((short.frames, short.tensors), (1, 16 * MB));
    let fixed = Wish { least: 4, ..wish(4) };
    assert_eq!(room(374 * MB - 1, 300 * MB, 0).share(&fixed).unwrap_err().frames, 4);
    assert_eq!(automatic(10 * MB), 8 * MB);
    assert_eq!(
        room(0, 0, 0)
            .share(&Wish { weights: 0, frame_tensors: 0, frames: 0, least: 0 })
            .map_err(|s| s.frames),
        Err(1)
    );
}

#[test]
fn the_sum_is_told() {
    let short = room(320 * MB, 300 * MB, 5 * MB).share(&wish(1)).unwrap_err();
    let error = short.error(Path::new("m.onnx"), 3, "more");
    assert_eq!((error.kind, &*error.detail), (EngineErrorKind::NoBudget, "more"));
    for words in [
        "m.onnx",
        "gpu-memory-budget=320000000 (320.0 MB)",
        "GPU 3",
        "326.0 MB are wanted for a single frame",
        "and an arena",
        "context 300.0 MB",
        "weights 10.0 MB",
        "tensors 16.0 MB",
        "5.0 MB are held",
        "raise gpu-memory-budget",
    ] {
        assert!(error.message.contains(words), "{words}: {error}");
    }
    let measured = Short { arena: 40 * MB, frames: 4, ..short }.error(Path::new("m.onnx"), 0, "");
    assert!(measured.message.contains("366.0 MB are wanted for its 4 frames"), "{measured}");
    assert!(measured.message.contains("other programs") && !error.message.contains("other programs"));
}

/// A model that takes so much on the GPU for a number of frames, in an arena that holds no more than its limit.
fn load(
    per_frame: u64,
    outside: u64,
    tried: &RefCell<Vec<usize>>,
) -> impl FnMut(&Share) -> Result<Outcome<u64>, EngineError> {
    move |share| {
        tried.borrow_mut().push(share.frames);
        let mut frames = share.frames;
        loop {
            let arena = 10 * MB + frames as u64 * per_frame;
            if arena <= share.arena {
                let used = arena + outside + tensors(frames, 8 * MB);
                return Ok(Outcome::Loaded(used, Measured { used, frames, frame_tensors: 8 * MB }));
            }
            if frames == 1 {
                return Ok(Outcome::OutOfMemory(EngineError::new(EngineErrorKind::OutOfMemory, "oom", "")));
            }
            frames = ceiling::part(frames);
        }
    }
}

fn fitted(limit: u64, per_frame: u64, outside: u64) -> (Result<usize, String>, Vec<usize>) {
    let tried = RefCell::default();
    let room = room(limit, 100 * MB, 0);
    let outcome = fit(&room, wish(8), load(per_frame, outside, &tried), |short, error| {
        short.error(Path::new("m.onnx"), 0, error.map(|error| error.message).unwrap_or_default())
    });
    let outcome = outcome.map(|fitted| {
        assert!(fitted.engine <= room.free());
        fitted.measured.frames
    });
    (outcome.map_err(|error| error.to_string()), tried.into_inner())
}

#[test]
fn loads_come_down_to_what_fits() {
    assert_eq!(fitted(1000 * MB, 20 * MB, 0), (Ok(8), vec![8]));
    // The arena holds half of the frames.
    assert_eq!(fitted(380 * MB, 20 * MB, 0), (Ok(4), vec![8]));
    // It would hold one, if nothing were kept for the tensors of eight.
    assert_eq!(fitted(250 * MB, 100 * MB, 0), (Ok(1), vec![8, 1]));
    // What nobody limits is too much, until the batches are small enough.
    assert_eq!(fitted(440 * MB, 20 * MB, 100 * MB), (Ok(4), vec![8, 4]));
    let (error, tried) = fitted(200 * MB, 100 * MB, 0);
    assert!(error.unwrap_err().ends_with("(oom)") && tried == [4, 1]);
    let (error, tried) = fitted(240 * MB, 20 * MB, 200 * MB);
    assert!(error.unwrap_err().contains("arena 220.0 MB") && tried == [8, 1]);
}

#[test]
fn other_failures_are_left_as_they_are() {
    let outcome = fit::<()>(
        &room(MB * 1000, 0, 0),
        wish(8),
        |_| Err(EngineError::new(EngineErrorKind::ModelUnsupported, "no", "")),
        |_, _| unreachable!(),
    );
    assert_eq!(outcome.err().map(|error| error.kind), Some(EngineErrorKind::ModelUnsupported));
}

#[test]
fn each_gpu_has_its_budget_and_its_context() {
    let limit = of(14).limit("d0", 5).unwrap();
    assert_eq!((of(14).ceiling(), of(13).ceiling()), (Some(5), None));
    let conflict = of(14).limit("d1", 6).err().unwrap().to_string();
    assert!(conflict.contains("gpu-memory-budget=6 of d1 and gpu-memory-budget=5 of d0"), "{conflict}");
    drop(limit);
    assert!(std::ptr::eq(of(15), of(63)));
    assert_eq!([learn_context(14, 7), learn_context(14, 0), context(14), context(13)], [7, 7, 7, 0]);
}

#[test]
fn what_grows_after_the_load_leaves_the_context_its_part() {
    learn_context(12, 400);
    let _limit = of(12).limit("d0", 1000).unwrap();
    let mut engine = Ledger::new(of(12), "m.onnx");
    engine.laid_out(1, 100);
    let mut ledger = Ledger::new(of(13), "m.onnx");
    ledger.runs_in(Place::on_gpu(engine, tensors(1, 25), 400));
    ledger.admit(4, 0).unwrap();
    assert_eq!((of(12).reserved(), of(12).room(), held(12)), (3 * (100 + 2 * 25), Some(150), 850));
    ledger.admit(5, 0).unwrap();
    let error = ledger.admit(6, 0).unwrap_err();
    assert_eq!((error.wanted, error.others, held(12)), (150, 400, 1000));
    drop(ledger);
    assert_eq!((held(12), of(12).room()), (0, Some(600)));
}

/// Also absurd ones.
fn bytes() -> impl Strategy<Value = u64> {
    prop_oneof![0..2_000 * MB, Just(0), Just(u64::MAX), any::<u64>()]
}

fn rooms() -> impl Strategy<Value = Room> {
    (bytes(), bytes(), bytes()).prop_map(|(limit, context, others)| Room { limit, context, others })
}

fn wishes() -> impl Strategy<Value = Wish> {
    let frames = prop_oneof![0..70_usize, Just(usize::MAX)];
    (bytes(), bytes(), frames, 0..9_usize).prop_map(|(weights, frame_tensors, frames, least)| Wish {
        weights,
        frame_tensors,
        frames,
        least,
    })
}

proptest! {
    #[test]
    fn a_share_is_within_the_budget(room in rooms(), wish in wishes()) {
        let all = |share: &Share| {
            [room.context, room.others, share.arena, share.tensors].map(u128::from).iter().sum::<u128>()
        };
        match room.share(&wish) {
            Ok(share) => {
                prop_assert!(all(&share) <= u128::from(room.limit), "{share:?}");
                prop_assert!(share.arena >= wish.weights && share.frames >= wish.least.max(1));
                prop_assert!(share.frames <= wish.frames.max(wish.least).max(1));
            }
            Err(short) => {
                prop_assert!(short.frames == wish.least.max(1));
                let need = room.context as u128 + room.others as u128 + wish.weights as u128 + short.tensors as u128;
                prop_assert!(need >= room.limit as u128);
                short.error(Path::new("m"), 0, "");
            }
        }
    }

    #[test]
    fn more_room_is_never_worse(room in rooms(), wish in wishes(), more in bytes()) {
        let larger = Room { limit: room.limit.saturating_add(more), ..room };
        if let Ok(share) = room.share(&wish) {
            let with_more = larger.share(&wish).unwrap();
            prop_assert!(with_more.frames >= share.frames);
            prop_assert!(with_more.frames > share.frames || with_more.arena >= share.arena);
        }
    }

    #[test]
    fn a_load_that_fits_is_within_the_budget_and_every_other_ends(
        limit in 0..2_000 * MB, per_frame in 0..200 * MB, outside in 0..300 * MB,
    ) {
        let (outcome, tried) = fitted(limit, per_frame, outside);
        prop_assert!(tried.len() <= 4);
        if let Ok(frames) = outcome {
            prop_assert!((1..=8).contains(&frames));
        }
    }
}
