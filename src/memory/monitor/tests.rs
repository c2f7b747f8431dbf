use std::sync::OnceLock;
use std::sync::mpsc;

use super::*;
use crate::memory::pressure::Source;

const COOLDOWN: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);

/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

use Level::{Critical, Emergency, Nominal, Warning};

/// Warning, critical and emergency from 100, 200 and 300 bytes on.
fn thresholds() -> Thresholds {
    Thresholds {
        process: [100, 200, 300],
        process_degrades: [true; 3],
        budget: None,
        gpu: [u64::MAX; 2],
        gpu_degrades: [false; 2],
        gpu_budget: None,
        cooldown: COOLDOWN,
        react: true,
    }
}

/// A monitor without a thread, and its clock.
struct Rig {
    monitor: &'static Monitor,
    start: Instant,
}

impl Rig {
    fn new() -> Self {
        let monitor = Box::leak(Box::new(Monitor::new(|| Box::new(Filled))));
        Self { monitor, start: Instant::now() }
    }

    fn watch(&self, thresholds: Thresholds) -> Watch {
        self.monitor.add(thresholds, SECOND, Box::new(|| ()))
    }

    fn step(&self, second: u64, used: u64) {
        let sample = Sample { resident: used, ..Sample::default() };
        self.monitor.step(&sample, self.start + Duration::from_secs(second));
    }

    fn reactor(&self) -> Arc<Log> {
        let reactor = Arc::new(Log::default());
        let weak: Weak<Log> = Arc::downgrade(&reactor);
        self.monitor.add_reactor(weak);
        reactor
    }
}

/// Keeps what it is told, and says that it gave back 7 bytes.
#[derive(Default)]
struct Log(Mutex<Vec<(Level, Level)>>);

impl Log {
    fn take(&self) -> Vec<(Level, Level)> {
        std::mem::take(&mut self.0.lock())
    }
}

impl React for Log {
    fn react(&self, level: Level, degrade: Level, did: &mut Vec<Action>) {
        self.0.lock().push((level, degrade));
        did.push(Action { name: "log", freed: 7 });
    }
}

fn names(notice: &Notice) -> Vec<&'static str> {
    notice.actions.iter().map(|action| action.name).collect()
}

#[test]
fn a_watcher_is_told_what_changed_and_what_was_done() {
    let rig = Rig::new();
    let (watch, reactor) = (rig.watch(thresholds()), rig.reactor());
    rig.step(0, 50);
    assert_eq!((watch.take(), watch.level(), rig.monitor.level()), (None, Nominal, Nominal));
    rig.step(1, 250);
    assert_eq!((watch.level(), watch.degrade(), rig.monitor.level()), (Critical, Critical, Critical));
    let notice = watch.take().unwrap();
    let Change { level, previous, source, used, threshold, .. } = notice.change;
    assert_eq!((level, previous, source, used, threshold), (Critical, Nominal, Source::Process, 250, 200));
    assert_eq!(notice.actions[0], Action { name: "log", freed: 7 });
    // The free heap last, when all others have freed what they can.
    assert_eq!(names(&notice), ["log", RETURN_HEAP]);
    assert_eq!(reactor.take(), [(Critical, Critical)]);
    assert_eq!(watch.take(), None);
}

#[test]
fn reactors_act_on_changes_and_once_a_cooldown() {
    let rig = Rig::new();
    let (watch, reactor) = (rig.watch(thresholds()), rig.reactor());
    for second in 0..=60 {
        rig.step(second, 150);
    }
    assert_eq!(reactor.take(), [(Warning, Warning); 3]);
    assert_eq!(watch.take().map(|notice| notice.actions.len()), Some(2));
    // Down: told, without pressing for more.
    for second in 61..=120 {
        rig.step(second, 0);
    }
    assert_eq!(reactor.take(), [(Warning, Warning), (Nominal, Nominal)]);
    rig.step(121, 0);
    assert_eq!(reactor.take(), []);
    let notice = watch.take().unwrap();
    assert_eq!((notice.change.previous, notice.change.level), (Warning, Nominal));
}

#[test]
fn the_fall_of_a_level_is_reported_with_what_was_undone_alone() {
    let rig = Rig::new();
    let (watch, reactor) = (rig.watch(thresholds()), rig.reactor());
    rig.step(0, 250);
    assert!(watch.take().is_some());
    rig.step(1, 50);
    rig.step(31, 50);
    let notice = watch.take().unwrap();
    assert_eq!((notice.change.previous, notice.change.level), (Critical, Warning));
    assert_eq!(names(&notice), ["log"]);
    assert_eq!(reactor.take(), [(Critical, Critical), (Warning, Warning)]);
}

#[test]
fn watchers_that_tell_a_level_at_different_times_do_not_press_more_often() {
    let rig = Rig::new();
    let (first, reactor) = (rig.watch(thresholds()), rig.reactor());
    rig.step(0, 150);
    let second = rig.watch(thresholds());
    // Who comes later learns the level, and what it brought along acts on it.
    rig.step(10, 150);
    assert_eq!(reactor.take().len(), 2);
    assert_eq!(second.take().map(|notice| notice.change.level), Some(Warning));
    assert!(first.take().is_some());
    rig.step(30, 150);
    let notice = first.take().unwrap();
    assert_eq!((notice.change.previous, notice.change.level), (Warning, Warning));
    assert_eq!((notice.actions, reactor.take()), (vec![], vec![]));
    rig.step(40, 150);
    assert_eq!(names(&second.take().unwrap()), ["log", RETURN_HEAP]);
    assert_eq!(reactor.take().len(), 1);
}

#[test]
fn the_highest_level_of_those_that_want_reactions_counts() {
    let rig = Rig::new();
    let reactor = rig.reactor();
    let idle = rig.watch(Thresholds { react: false, ..thresholds() });
    rig.step(0, 350);
    assert_eq!((idle.level(), idle.degrade(), rig.monitor.level()), (Emergency, Nominal, Emergency));
    assert_eq!(idle.take().map(|notice| notice.actions), Some(vec![]));
    assert_eq!(reactor.take(), []);

    let generous = rig.watch(Thresholds { process: [300, 400, 500], ..thresholds() });
    let careful = rig.watch(Thresholds { process_degrades: [true, false, false], ..thresholds() });
    rig.step(1, 350);
    assert_eq!((generous.level(), careful.level(), careful.degrade()), (Warning, Emergency, Warning));
    assert_eq!(reactor.take(), [(Emergency, Warning)]);
}

#[test]
fn reactions_are_undone_when_the_highest_watcher_leaves() {
    let rig = Rig::new();
    let reactor = rig.reactor();
    let low = rig.watch(thresholds());
    let high = rig.watch(Thresholds { process: [200, 300, 400], ..thresholds() });
    rig.step(0, 250);
    assert_eq!(reactor.take(), [(Critical, Critical)]);
    drop(low);
    assert_eq!(rig.monitor.level(), Warning);
    rig.step(1, 250);
    assert_eq!(reactor.take(), [(Warning, Warning)]);
    drop(high);
    assert_eq!(rig.monitor.level(), Nominal);
    rig.step(2, 250);
    assert_eq!(reactor.take(), [(Nominal, Nominal)]);
    rig.step(3, 250);
    assert_eq!(reactor.take(), []);
}

#[test]
fn reactions_are_undone_when_they_are_not_wanted_any_more() {
    let rig = Rig::new();
    let (watch, reactor) = (rig.watch(thresholds()), rig.reactor());
    rig.step(0, 350);
    watch.set(Thresholds { react: false, ..thresholds() }, SECOND);
    rig.step(1, 350);
    assert_eq!(reactor.take(), [(Emergency, Emergency), (Nominal, Nominal)]);
    assert_eq!((watch.level(), watch.degrade()), (Emergency, Nominal));
}

#[test]
fn a_reactor_that_comes_late_learns_the_level() {
    let rig = Rig::new();
    let _watch = rig.watch(thresholds());
    rig.step(0, 250);
    let late = rig.reactor();
    rig.step(1, 250);
    assert_eq!(late.take(), [(Critical, Critical)]);
    rig.step(2, 250);
    assert_eq!(late.take(), []);
    drop(late);
    rig.step(40, 250);
    assert!(rig.monitor.state.lock().reactors.is_empty());
}

#[test]
fn a_notice_that_was_not_taken_lives_on_in_the_next() {
    let rig = Rig::new();
    let (watch, _reactor) = (rig.watch(thresholds()), rig.reactor());
    rig.step(0, 150);
    rig.step(1, 250);
    for second in 2..1000 {
        rig.step(second, 350);
    }
    let notice = watch.take().unwrap();
    assert_eq!((notice.change.previous, notice.change.level), (Nominal, Emergency));
    assert_eq!(names(&notice), ["log", RETURN_HEAP], "{notice:?}");
    // At 0, 1 and 2 s, and each 30 s after that.
    assert_eq!(notice.actions[0].freed, 7 * (3 + 33));
}

#[test]
fn what_panics_does_not_keep_others_from_acting() {
    struct Panics;
    impl React for Panics {
        fn react(&self, _: Level, _: Level, _: &mut Vec<Action>) {
            panic!("meant to");
        }
    }
    let rig = Rig::new();
    let panics: Arc<dyn React> = Arc::new(Panics);
    rig.monitor.add_reactor(Arc::downgrade(&panics));
    let reactor = rig.reactor();
    let rude = rig.monitor.add(thresholds(), SECOND, Box::new(|| panic!("meant to")));
    let watch = rig.watch(thresholds());
    rig.step(0, 250);
    assert_eq!(reactor.take(), [(Critical, Critical)]);
    assert_eq!(watch.take().map(|notice| names(&notice)), Some(vec!["log", RETURN_HEAP]));
    assert!(rude.take().is_some());
}

/// A machine with 250 bytes in use.
struct Filled;

impl Sampler for Filled {
    fn sample(&mut self, into: &mut Sample) {
        into.resident = 250;
    }
}

/// Waits for what another thread brings about.
fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// An interval that no test outlasts: what happens in time happens because of a wake-up.
const NEVER: Duration = Duration::from_secs(3600);

#[test]
fn the_thread_lives_from_the_first_watcher_to_the_last() {
    let rig = Rig::new();
    let (monitor, reactor) = (rig.monitor, rig.reactor());
    for _ in 0..3 {
        let (told, is_told) = mpsc::channel();
        let notify = move || told.send(std::thread::current().name().map(str::to_string)).unwrap();
        let first = monitor.watch(thresholds(), NEVER, Box::new(notify));
        assert_eq!(is_told.recv_timeout(PATIENCE).unwrap().as_deref(), Some("yolo-memory"));
        assert!(first.take().is_some());
        assert_eq!(monitor.state.lock().latest.as_ref().map(|sample| sample.resident), Some(250));

        let second =
            monitor.watch(Thresholds { process: [1, 2, 300], ..thresholds() }, NEVER, Box::new(|| ()));
        eventually("the second watcher is served", || second.level() == Critical);
        second.set(Thresholds { process: [1, 2, 3], ..thresholds() }, NEVER);
        eventually("new thresholds hold at once", || second.level() == Emergency);
        drop(second);
        eventually("the level of who left is gone", || {
            reactor.0.lock().last() == Some(&(Critical, Critical))
        });
        drop(first);
        eventually("the thread ends", || !monitor.state.lock().runs);
        assert_eq!(reactor.take().last(), Some(&(Nominal, Nominal)));
        assert_eq!((monitor.level(), monitor.state.lock().latest.clone()), (Nominal, None));
    }
}

#[test]
fn a_change_while_memory_is_looked_at_is_not_overlooked() {
    /// Tells that it samples, and goes on when it may.
    struct Gated;
    type Gate = (mpsc::SyncSender<()>, Mutex<mpsc::Receiver<()>>);
    static ENTERED: OnceLock<Gate> = OnceLock::new();
    static LEAVE: OnceLock<Gate> = OnceLock::new();
    fn gate(gate: &'static OnceLock<Gate>) -> &'static Gate {
        gate.get_or_init(|| {
            let (sender, receiver) = mpsc::sync_channel(9);
            (sender, Mutex::new(receiver))
        })
    }
    let pass = |name| gate(name).1.lock().recv_timeout(PATIENCE).expect("nobody looks at memory");
    impl Sampler for Gated {
        fn sample(&mut self, into: &mut Sample) {
            gate(&ENTERED).0.send(()).unwrap();
            let _ = gate(&LEAVE).1.lock().recv_timeout(PATIENCE);
            into.resident = 250;
        }
    }
    let monitor: &'static Monitor = Box::leak(Box::new(Monitor::new(|| Box::new(Gated))));
    let watch = monitor.watch(thresholds(), NEVER, Box::new(|| ()));
    pass(&ENTERED);
    watch.set(Thresholds { process: [1, 2, 3], ..thresholds() }, NEVER);
    gate(&LEAVE).0.send(()).unwrap();
    pass(&ENTERED);
    // The same with who leaves: no sample is waited for.
    drop(watch);
    gate(&LEAVE).0.send(()).unwrap();
    pass(&ENTERED);
    gate(&LEAVE).0.send(()).unwrap();
    eventually("the thread ends", || !monitor.state.lock().runs);
}

#[test]
fn a_watcher_may_ask_and_leave_while_it_is_called() {
    let Rig { monitor, .. } = Rig::new();
    let own: Arc<OnceLock<Mutex<Option<Watch>>>> = Arc::default();
    let (told, is_told) = mpsc::channel();
    let notify = {
        let own = own.clone();
        move || {
            // The thread may be faster than whoever puts the watch there.
            let watch = own.wait().lock().take().unwrap();
            let level = monitor.level();
            watch.set(thresholds(), NEVER);
            let notice = watch.take();
            drop(watch);
            told.send((level, notice.is_some())).unwrap();
        }
    };
    let watch = monitor.watch(thresholds(), NEVER, Box::new(notify));
    assert!(own.set(Mutex::new(Some(watch))).is_ok());
    assert_eq!(is_told.recv_timeout(PATIENCE), Ok((Critical, true)));
    eventually("the thread ends", || !monitor.state.lock().runs);
}

#[test]
fn watchers_may_come_and_go_on_many_threads() {
    let Rig { monitor, .. } = Rig::new();
    let threads: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(move || {
                for _ in 0..100 {
                    let watch = monitor.watch(thresholds(), Duration::from_millis(1), Box::new(|| ()));
                    eventually("each watcher is served", || watch.level() == Critical);
                    watch.set(Thresholds { react: false, ..thresholds() }, NEVER);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    eventually("the thread ends", || !monitor.state.lock().runs);
    assert_eq!(monitor.level(), Nominal);
}
