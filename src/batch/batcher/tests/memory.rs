//! What a batcher holds, gives back, and does without.

use super::*;
use crate::batch::Place;

/// Runs `count` frames in one batch, as far as there is room in one; frames of the batch each was in.
fn run_together(stream: &Stream, count: usize) -> Vec<Arc<Ticket>> {
    let slots: Vec<_> = (0..count).map_while(|_| stream.acquire(1, Patience::None).ok()).collect();
    let tickets: Vec<_> = slots.into_iter().map(|slot| submit(slot, 0.5, Duration::ZERO)).collect();
    tickets.iter().for_each(|ticket| assert_eq!(confidence(ticket), 0.5));
    tickets
}

fn until_idle(batcher: &Batcher) {
    let deadline = Instant::now() + PATIENCE;
    while batcher.shared.state.lock().queue.running() > 0 {
        assert!(Instant::now() < deadline, "it runs for ever");
        std::thread::yield_now();
    }
}

fn report(ticket: &Ticket) -> (u32, Option<Reduced>) {
    ticket.with_result(|_, report| (report.batch, report.reduced))
}

#[test]
fn tensors_go_with_the_last_stream_and_come_with_the_next() {
    static BUDGET: Budget = Budget::new("memory-budget", || 0);
    let batcher = Arc::new(willing(BatchSize::Any, None, &BUDGET));
    let tensors = || batcher.stats().held.tensors;
    assert_eq!(tensors(), 0, "nobody is there");
    for _ in 0..3 {
        let (one, two) = (batcher.attach(4).unwrap(), batcher.attach(1).unwrap());
        assert_eq!(tensors(), 2 * 4 * FRAME);
        run_together(&one, 4);
        drop(one);
        assert_eq!(tensors(), 2 * 4 * FRAME);
        run_together(&two, 1);
        // While the last batch is being given back, or after that.
        drop(two);
        until_idle(&batcher);
        assert_eq!(tensors(), 0);
    }
    assert_eq!(BUDGET.reserved(), batcher.stats().held.total());
}

/// What an engine keeps with a tensor: notes whether the batcher's lock is free when it is dropped.
struct Kept {
    shared: Weak<Shared>,
    dropped: mpsc::Sender<bool>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        let shared = self.shared.upgrade().expect("a batcher");
        let is_free = shared.state.try_lock_for(Duration::from_secs(1)).is_some();
        self.dropped.send(is_free).unwrap();
    }
}

#[test]
fn tensors_are_dropped_with_the_lock_released() {
    static BUDGET: Budget = Budget::new("memory-budget", || 0);
    let batcher = Arc::new(willing(BatchSize::Any, None, &BUDGET));
    let (dropped_in, dropped) = mpsc::channel();
    let shared = &batcher.shared;
    // Runs a frame in a tensor with which something is kept.
    let keep = |stream: &Stream| {
        let slot = stream.acquire(1, Patience::Endless).unwrap();
        let kept = Kept { shared: Arc::downgrade(shared), dropped: dropped_in.clone() };
        shared.state.lock().forming[0].tensor.binding = Some(Box::new(kept));
        assert_eq!(confidence(&submit(slot, 0.5, Duration::ZERO)), 0.5);
        until_idle(&batcher);
        assert!(dropped.try_recv().is_err());
    };
    let is_dropped = |by: &str| assert_eq!(dropped.recv_timeout(PATIENCE), Ok(true), "{by}");

    let stream = batcher.attach(4).unwrap();
    keep(&stream);
    batcher.relief().drop_tensors();
    is_dropped("pressure");
    keep(&stream);
    batcher.relief().halve();
    is_dropped("pressure, of a tensor that was too large");
    keep(&stream);
    batcher.relief().restore();
    while dropped.try_recv().map(|is_free| assert!(is_free)).is_err() {
        run_together(&stream, 1);
        until_idle(&batcher);
    }
    keep(&stream);
    drop(stream);
    is_dropped("the last stream");

    let stream = batcher.attach(1).unwrap();
    let slot = stream.acquire(1, Patience::Endless).unwrap();
    let kept = Kept { shared: Arc::downgrade(shared), dropped: dropped_in.clone() };
    shared.state.lock().forming[0].tensor.binding = Some(Box::new(kept));
    drop(stream);
    drop(slot);
    is_dropped("a worker, behind the last stream");
    assert_eq!(BUDGET.reserved(), batcher.stats().held.total());
    // Else the process's exit would wait for it.
    let deadline = Instant::now() + PATIENCE;
    while shared.state.lock().workers > 1 {
        assert!(Instant::now() < deadline, "it lets go for ever");
        std::thread::yield_now();
    }
}

#[test]
fn a_batch_is_as_large_as_the_budget_allows_and_says_so() {
    static BUDGET: Budget = Budget::new("memory-budget", || 0);
    let batcher = Arc::new(willing(BatchSize::Any, None, &BUDGET));
    let limit = BUDGET.limit("test", 2 * 2 * FRAME + ARENA).unwrap();
    let stream = batcher.attach(8).unwrap();
    for _ in 0..3 {
        let tickets = run_together(&stream, 2);
        assert_eq!(report(&tickets[0]).0, 2);
        until_idle(&batcher);
    }
    assert_eq!(batcher.stats().batch_limit, 2);
    let held = batcher.stats().held;
    assert_eq!((held.tensors, held.arena), (4 * FRAME, ARENA));
    // More is allowed: a larger batch is tried after a while.
    drop(limit);
    let mut tries = 0;
    while batcher.stats().batch_limit < 8 {
        run_together(&stream, batcher.stats().batch_limit);
        until_idle(&batcher);
        tries += 1;
        assert!(tries < 1000, "the limit is never raised");
    }
    run_together(&stream, 8);
    assert_eq!(batcher.stats().held.arena, 7 * ARENA);
}

#[test]
fn the_first_batch_that_should_be_larger_tells_of_it() {
    static BUDGET: Budget = Budget::new("memory-budget", || 0);
    let batcher = Arc::new(willing(BatchSize::Any, None, &BUDGET));
    let _limit = BUDGET.limit("test", 2 * 2 * FRAME + ARENA).unwrap();
    let stream = batcher.attach(8).unwrap();
    let told = run_together(&stream, 1);
    assert_eq!(report(&told[0]), (1, Some(Reduced { batch: 1, frames: 8, limit: 2 })));
    until_idle(&batcher);
    assert_eq!(report(&run_together(&stream, 1)[0]), (1, None), "it is known by now");
}

#[test]
fn a_batch_is_as_large_as_there_is_room_for_on_the_gpu() {
    static HOST: Budget = Budget::new("memory-budget", || 0);
    static GPU: Budget = Budget::new("gpu-memory-budget", || 0);
    let mut ledger = Ledger::new(&HOST, "fake.onnx");
    ledger.laid_out(1, 0);
    let mut there = Ledger::new(&GPU, "fake.onnx");
    there.set(Need { model: 1000, arena: 100, tensors: 20 });
    there.laid_out(1, 100);
    let place = Place::on_gpu(there, 20, 7);
    ledger.runs_in(place.clone());
    let batcher = Arc::new(willing_with(BatchSize::Any, None, ledger));
    let gpu = |arena, tensors| Some(GpuUse { context: 7, model: 1000, arena, tensors });
    assert_eq!(batcher.stats().gpu, gpu(100, 20));
    let limit = GPU.limit("test", 1000 + 4 * 120).unwrap();
    let stream = batcher.attach(8).unwrap();
    let told = run_together(&stream, 4);
    assert_eq!(report(&told[0]), (4, Some(Reduced { batch: 1, frames: 8, limit: 4 })));
    until_idle(&batcher);
    assert_eq!(report(&run_together(&stream, 4)[0]), (4, None));
    until_idle(&batcher);
    assert_eq!((batcher.stats().gpu, batcher.stats().batch_limit), (gpu(400, 80), 4));
    drop(limit);

    // On the host from now on, with a frame at a time.
    let mut host = Ledger::new(&HOST, "fake.onnx");
    host.set(Need { model: 50, arena: 5, tensors: 0 });
    host.laid_out(1, 5);
    host.bound_frames(1);
    place.move_to_host(host);
    assert_eq!((GPU.reserved(), batcher.stats().gpu), (0, None));
    let held = batcher.stats().held;
    assert_eq!((held.model, held.arena, HOST.reserved()), (50, 5, held.total()));
    drop(stream);
    let stream = batcher.attach(2).unwrap();
    let told = run_together(&stream, 1);
    assert_eq!(report(&told[0]), (1, Some(Reduced { batch: 3, frames: 2, limit: 1 })));
    until_idle(&batcher);
    assert_eq!(batcher.stats().held.tensors, 2 * FRAME);
}

#[test]
fn an_arena_is_shrunk_after_it_was_too_small() {
    let rig = rig_with(BatchSize::Any, 1, 2);
    let stream = rig.batcher.attach(4).unwrap();
    rig.permit(100);
    run_together(&stream, 4);
    until_idle(&rig.batcher);
    // The fake one has none to shrink, and says so when it is asked to.
    assert_eq!(rig.batcher.relief().shrink(true), (false, 0));
}

#[test]
fn a_frame_for_which_the_budget_has_no_room_is_refused_with_the_sum() {
    static BUDGET: Budget = Budget::new("memory-budget", || 0);
    let batcher = Arc::new(willing(BatchSize::Any, None, &BUDGET));
    let limit = BUDGET.limit("test", FRAME).unwrap();
    let error = batcher.attach(4).err().expect("two tensors do not fit");
    assert!(error.kind == EngineErrorKind::NoBudget && error.message.contains("fake.onnx"), "{error}");
    assert_eq!((batcher.stats().streams, batcher.stats().held.tensors), (0, 0));
    drop(limit);
    let stream = batcher.attach(1).unwrap();
    assert_eq!(batcher.relief().drop_tensors(), 2 * FRAME);
    let limit = BUDGET.limit("test", FRAME - 1).unwrap();
    for patience in [Patience::None, Patience::Endless] {
        let refused = refused(stream.acquire(1, patience));
        assert!(matches!(refused, Refused::NoRoom(error) if error.message.contains("memory-budget=12287")));
    }
    drop(limit);
    run_together(&stream, 1);
}

#[test]
fn a_frame_waits_for_the_one_tensor_that_there_is_room_for() {
    static BUDGET: Budget = Budget::new("memory-budget", || 0);
    let batcher = Arc::new(willing(BatchSize::Any, None, &BUDGET));
    let streams = [batcher.attach(1).unwrap(), batcher.attach(1).unwrap()];
    assert_eq!(batcher.relief().drop_tensors(), 2 * FRAME);
    let _limit = BUDGET.limit("test", FRAME).unwrap();
    let slot = streams[0].acquire(1, Patience::None).unwrap();
    assert!(matches!(refused(streams[0].acquire(1, Patience::None)), Refused::Busy));
    // Also where the batch that is in use is thrown away.
    drop(slot);
    std::thread::scope(|scope| {
        for stream in &streams {
            scope.spawn(move || {
                for _ in 0..200 {
                    let slot =
                        stream.acquire(1, Patience::Endless).unwrap_or_else(|refused| panic!("{refused:?}"));
                    assert!(matches!(submit(slot, 0.5, Duration::ZERO).wait(), Outcome::Done));
                }
            });
        }
    });
    assert_eq!(batcher.stats().held.tensors, FRAME);
}

#[test]
fn batches_are_halved_and_restored() {
    static BUDGET: Budget = Budget::new("memory-budget", || 0);
    let batcher = Arc::new(willing(BatchSize::Any, None, &BUDGET));
    let stream = batcher.attach(4).unwrap();
    run_together(&stream, 4);
    until_idle(&batcher);
    let relief = batcher.relief();
    assert_eq!(relief.halve(), Some(2 * 2 * FRAME));
    assert_eq!(batcher.stats().held.tensors, 2 * 2 * FRAME);
    assert_eq!(run_together(&stream, 9).len(), 4, "two batches of two");
    until_idle(&batcher);
    assert_eq!(relief.halve(), Some(2 * FRAME));
    assert_eq!(relief.halve(), None, "one frame at the least");
    assert!(relief.restore() && !relief.restore());
    assert_eq!(run_together(&stream, 9).len(), 8);
    until_idle(&batcher);
    assert_eq!(relief.drop_tensors(), 8 * FRAME);
    assert_eq!(relief.drop_tensors(), 0);
    run_together(&stream, 4);
    let fixed = Arc::new(willing(BatchSize::Fixed(4), None, &BUDGET));
    assert_eq!(fixed.relief().halve(), None);
    let gone = batcher.relief();
    drop((stream, batcher));
    assert_eq!(
        (gone.halve(), gone.restore(), gone.drop_tensors(), gone.shrink(true)),
        (None, false, 0, (false, 0))
    );
}

#[test]
fn the_next_run_shrinks_once_for_who_asks() {
    static BUDGET: Budget = Budget::new("memory-budget", || 0);
    let run_one = |batcher: &Arc<Batcher>, stream: &Stream| {
        run_together(stream, 1);
        until_idle(batcher);
    };
    let batcher = Arc::new(willing(BatchSize::Any, Some(70), &BUDGET));
    let relief = batcher.relief();
    assert_eq!(relief.shrink(true), (false, 0), "nobody would run it");
    let stream = batcher.attach(1).unwrap();
    run_one(&batcher, &stream);
    assert_eq!(relief.shrink(false), (false, 0));
    assert_eq!(relief.shrink(true), (true, 0));
    (0..3).for_each(|_| run_one(&batcher, &stream));
    assert_eq!(relief.shrink(true), (true, 70), "of one run");
    run_one(&batcher, &stream);
    assert_eq!(relief.shrink(false), (false, 70));
    assert_eq!(relief.shrink(false), (false, 0), "told once");

    let without = Arc::new(willing(BatchSize::Any, None, &BUDGET));
    let stream = without.attach(1).unwrap();
    assert_eq!(without.relief().shrink(true), (true, 0));
    run_one(&without, &stream);
    assert_eq!(without.relief().shrink(true), (false, 0), "it has said that it has none");
}
