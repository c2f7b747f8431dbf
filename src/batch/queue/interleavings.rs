//! Threads that do their steps in any order: nobody may sleep while there is something for it to do.
//!
//! Streams and workers sleep and are woken just as in the batcher: each stream on a condition of its own, woken where
//! [`Queue::entitled`] names it; workers on a common one, one of them at a time, whichever it is.

use super::*;
use proptest::prelude::*;
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Thread {
    Elsewhere,
    Asleep,
    /// Woken, but the lock is not its own yet.
    Woken,
}

#[derive(Debug)]
struct StreamThread {
    id: u64,
    priority: u32,
    state: Thread,
    flushing: bool,
    granted: usize,
}

#[derive(Debug)]
struct WorkerThread {
    state: Thread,
    /// When it wakes by itself.
    alarm: Option<u64>,
    /// Frames of the batch that it runs.
    runs: Option<usize>,
}

struct Threads {
    queue: Queue,
    origin: Instant,
    now: u64,
    streams: Vec<StreamThread>,
    workers: Vec<WorkerThread>,
    /// Workers asleep.
    sleepers: Vec<usize>,
    /// Granted and not yet settled.
    out: Vec<Granted>,
    /// Decides what the system decides: which worker is woken, where memory is short.
    whim: u8,
    next_stream: u64,
}

impl Threads {
    fn new(batch: BatchSize, workers: usize) -> Self {
        let mut threads = Self {
            queue: Queue::new(batch, workers),
            origin: Instant::now(),
            now: 0,
            streams: Vec::new(),
            workers: (0..workers)
                .map(|_| WorkerThread { state: Thread::Woken, alarm: None, runs: None })
                .collect(),
            sleepers: Vec::new(),
            out: Vec::new(),
            whim: 0,
            next_stream: 0,
        };
        threads.attach(1, 1);
        threads
    }

    fn attach(&mut self, max_batch: usize, priority: u32) {
        let id = self.next_stream;
        self.next_stream += 1;
        self.queue.attach(id, max_batch);
        let state = Thread::Elsewhere;
        self.streams.push(StreamThread { id, priority, state, flushing: false, granted: 0 });
        self.wake();
    }

    /// `State::wake`
    fn wake(&mut self) {
        let entitled: Vec<_> = self.queue.entitled().collect();
        for stream in &mut self.streams {
            if stream.state == Thread::Asleep && entitled.contains(&stream.id) {
                stream.state = Thread::Woken;
            }
        }
    }

    fn notify_worker(&mut self) {
        if !self.sleepers.is_empty() {
            let worker = self.sleepers.swap_remove(usize::from(self.whim) % self.sleepers.len());
            self.workers[worker].state = Thread::Woken;
        }
    }

    /// A turn of the loop in `Stream::acquire`.
    fn ask(&mut self, stream: usize, waits: bool) {
        let StreamThread { id, priority, flushing, .. } = self.streams[stream];
        self.streams[stream].state = Thread::Elsewhere;
        if flushing {
            self.queue.leave(id);
            self.wake();
        } else if let Some(granted) = self.queue.ask(id, priority, waits) {
            match granted.opens {
                Some(capacity) if self.whim.is_multiple_of(7) => {
                    self.queue.limit(granted.batch, 1 + self.whim as usize % capacity);
                }
                Some(_) if self.whim.is_multiple_of(11) => {
                    if self.queue.close(granted.batch, id) {
                        return self.ask(stream, waits);
                    }
                    self.streams[stream].granted += 1;
                    return self.wake();
                }
                _ => (),
            }
            assert!(!self.out.iter().any(|out| (out.batch, out.index) == (granted.batch, granted.index)));
            self.out.push(granted);
            self.streams[stream].granted += 1;
            self.wake();
        } else if waits {
            self.streams[stream].state = Thread::Asleep;
        }
    }

    /// A turn of the loop in `Worker::next_batch`.
    fn work(&mut self, worker: usize) {
        loop {
            let task = self.queue.next(self.origin + MS * self.now as u32);
            self.wake();
            match task {
                Task::Run { granted, ready, .. } => {
                    assert!(0 < ready && ready <= granted);
                    self.workers[worker] =
                        WorkerThread { state: Thread::Elsewhere, alarm: None, runs: Some(granted) };
                    if !self.queue.forming.is_empty() {
                        self.notify_worker();
                    }
                    return;
                }
                Task::Discard(_) => continue,
                Task::Wait(until) => {
                    let alarm = until.map(|until| (until - self.origin).as_millis() as u64);
                    self.workers[worker] = WorkerThread { state: Thread::Asleep, alarm, runs: None };
                    self.sleepers.push(worker);
                    return;
                }
            }
        }
    }

    fn settle(&mut self, at: usize, delay: Option<u64>) {
        let granted = self.out.swap_remove(at);
        let due = delay.map(|delay| self.origin + MS * (self.now + delay) as u32);
        assert!(self.queue.settle(granted.batch, due), "a batch waits for its slots");
        self.notify_worker();
    }

    fn finish(&mut self, worker: usize, part: Option<usize>) {
        if let Some(frames) = self.workers[worker].runs.take() {
            self.queue.finished(frames, part);
            self.work(worker);
        }
    }

    fn pass(&mut self, time: u64) {
        self.now += time;
        for (number, worker) in self.workers.iter_mut().enumerate() {
            if worker.state == Thread::Asleep && worker.alarm.is_some_and(|alarm| alarm <= self.now) {
                worker.state = Thread::Woken;
                self.sleepers.retain(|&sleeper| sleeper != number);
            }
        }
    }

    fn step(&mut self, (what, whom, how): (u8, u8, u8)) {
        let pick = |count: usize| (count > 0).then(|| usize::from(whom) % count);
        self.whim = how;
        match what {
            0..=5 => {
                if let Some(stream) = pick(self.streams.len())
                    && (self.streams[stream].state == Thread::Elsewhere)
                {
                    self.ask(stream, !how.is_multiple_of(3));
                }
            }
            // Woken, or its patience has an end.
            6..=8 => {
                if let Some(stream) = pick(self.streams.len())
                    && (self.streams[stream].state != Thread::Elsewhere)
                {
                    let woken = self.streams[stream].state == Thread::Woken;
                    self.ask(stream, woken && !how.is_multiple_of(5));
                }
            }
            9..=12 => {
                if let Some(at) = pick(self.out.len()) {
                    let delay = [Some(0), Some(0), Some(4), Some(9), None];
                    self.settle(at, delay[usize::from(how) % delay.len()]);
                }
            }
            13..=15 => {
                if let Some(worker) = pick(self.workers.len())
                    && (self.workers[worker].state == Thread::Woken)
                {
                    self.work(worker);
                }
            }
            16..=18 => {
                if let Some(worker) = pick(self.workers.len()) {
                    self.finish(worker, how.is_multiple_of(9).then_some(1 + usize::from(how) % 3));
                }
            }
            19 => self.pass(u64::from(how) % 5),
            20 => {
                self.queue.hurry();
                while !self.sleepers.is_empty() {
                    self.notify_worker();
                }
            }
            21 => {
                if let Some(stream) = pick(self.streams.len()) {
                    let stream = &mut self.streams[stream];
                    stream.flushing = !stream.flushing;
                    if stream.state == Thread::Asleep {
                        stream.state = Thread::Woken;
                    }
                    self.queue.withdraw(stream.id);
                    self.wake();
                }
            }
            24 => drop(self.queue.press()),
            25 => {
                self.queue.ease();
                self.wake();
            }
            22 if self.streams.len() < 8 => self.attach(usize::from(how) % 5, 1 + u32::from(whom) % 6),
            _ => {
                if let Some(stream) = pick(self.streams.len())
                    && (self.streams[stream].state == Thread::Elsewhere)
                {
                    self.queue.detach(self.streams.swap_remove(stream).id);
                    self.wake();
                }
            }
        }
        self.check_counts();
    }

    fn check_counts(&self) {
        let Queue { batches, free, withheld, running, workers, forming, .. } = &self.queue;
        assert!(free <= batches && running <= workers);
        assert_eq!(free + withheld + running + forming.len(), *batches);
        assert!(*withheld == 0 || running + forming.len() > 0, "nobody brings them back");
        assert_eq!(*running, self.workers.iter().filter(|worker| worker.runs.is_some()).count());
        for (place, (id, batch)) in forming.iter().enumerate() {
            assert!(batch.ready <= batch.settled && batch.settled <= batch.granted);
            assert!(0 < batch.granted && batch.granted <= batch.capacity);
            assert!(batch.granted == batch.capacity || place + 1 == forming.len(), "only the last has room");
            let out = self.out.iter().filter(|granted| granted.batch == *id).count();
            assert_eq!(out, batch.granted - batch.settled);
        }
    }

    /// Lets all that are woken do what they woke for, then looks who sleeps.
    fn check_sleepers(&mut self) {
        loop {
            if let Some(worker) = self.workers.iter().position(|worker| worker.state == Thread::Woken) {
                self.work(worker);
            } else if let Some(stream) = self.streams.iter().position(|stream| stream.state == Thread::Woken)
            {
                self.ask(stream, true);
            } else {
                break;
            }
        }
        self.check_counts();
        let alarms =
            self.workers.iter().filter(|worker| worker.state == Thread::Asleep).map(|worker| worker.alarm);
        if let Some(alarm) = alarms.map(|alarm| alarm.unwrap_or(u64::MAX)).min() {
            match self.queue.next(self.origin + MS * self.now as u32) {
                Task::Wait(until) => {
                    let due = until.map_or(u64::MAX, |until| (until - self.origin).as_millis() as u64);
                    assert!(alarm <= due, "nobody wakes at {due}, at {alarm} only");
                }
                task => panic!("workers sleep and there is {task:?}"),
            }
        }
        for StreamThread { id, priority, state, .. } in &self.streams {
            if *state == Thread::Asleep {
                assert_eq!(self.queue.ask(*id, *priority, true), None, "stream {id} sleeps and has its turn");
            }
        }
    }

    /// Slots are filled and runs end: everyone who waits is served.
    fn drain(&mut self) {
        for _ in 0..10_000 {
            self.check_sleepers();
            if !self.out.is_empty() {
                self.settle(0, Some(3));
            } else if let Some(worker) = self.workers.iter().position(|worker| worker.runs.is_some()) {
                self.finish(worker, None);
            } else if self.queue.forming.is_empty() {
                break;
            } else {
                self.pass(1);
            }
        }
        self.check_sleepers();
        assert!(self.streams.iter().all(|stream| stream.state == Thread::Elsewhere), "{:?}", self.streams);
        assert_eq!(self.queue.free, self.queue.batches);
        assert_eq!(self.queue.waiting(), 0);
    }

    /// The engine ends with batches in every state; runs in progress are finished by their workers.
    fn end(&mut self) {
        self.queue.abandon();
        for granted in std::mem::take(&mut self.out) {
            assert!(!self.queue.settle(granted.batch, None));
        }
        for worker in &mut self.workers {
            if let Some(frames) = worker.runs.take() {
                self.queue.finished(frames, None);
                self.queue.abandon();
            }
        }
        self.check_counts();
        assert_eq!(self.queue.free, self.queue.batches);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..Default::default() })]

    #[test]
    fn nobody_sleeps_while_there_is_something_to_do(
        size in prop_oneof![Just(BatchSize::Any), Just(BatchSize::Steps), Just(BatchSize::Fixed(3))],
        workers in 1usize..5,
        streams in proptest::collection::vec((0usize..5, 1u32..6), 1..7),
        steps in proptest::collection::vec((0u8..26, any::<u8>(), any::<u8>(), 0u8..4), 1..400),
        ends: bool,
    ) {
        let mut threads = Threads::new(size, workers);
        for (max_batch, priority) in streams {
            threads.attach(max_batch, priority);
        }
        for (what, whom, how, look) in steps {
            threads.step((what, whom, how));
            if look == 0 {
                threads.check_sleepers();
            }
        }
        if ends { threads.end() } else { threads.drain() }
    }
}
