use proptest::prelude::*;

use super::*;
use crate::memory::sample::{Cgroup, Gpu, System};

const COOLDOWN: Duration = Duration::from_secs(30);
const NONE: Steps = [u64::MAX; 3];

/// Nothing but what a test adds has thresholds.
fn bare() -> Thresholds {
    Thresholds {
        process: NONE,
        process_degrades: [false; 3],
        budget: None,
        gpu: [u64::MAX; 2],
        gpu_degrades: [false; 2],
        gpu_budget: None,
        cooldown: COOLDOWN,
        react: true,
    }
}

fn resident(bytes: u64) -> Sample {
    Sample { resident: bytes, ..Sample::default() }
}

fn gpu(own: Option<u64>) -> Sample {
    Sample { gpus: vec![Gpu { index: 1, total: 10_000, used: 9_999, own }], ..Sample::default() }
}

/// The level of one sample.
fn level(sample: &Sample, thresholds: &Thresholds) -> (Level, Level) {
    let mut levels = Levels::default();
    levels.observe(sample, thresholds, Instant::now());
    (levels.level(), levels.degrade())
}

use Level::{Critical, Emergency, Nominal, Warning};

#[test]
fn levels_hold_from_their_threshold_on() {
    let thresholds = Thresholds { process: [100, 200, 300], ..bare() };
    for (used, expected) in [
        (0, Nominal),
        (99, Nominal),
        (100, Warning),
        (199, Warning),
        (200, Critical),
        (299, Critical),
        (300, Emergency),
        (u64::MAX, Emergency),
    ] {
        assert_eq!(level(&resident(used), &thresholds), (expected, Nominal), "{used}");
    }
}

#[test]
fn thresholds_in_the_wrong_order_or_at_the_ends_mean_what_they_say() {
    for (steps, used, expected) in [
        ([300, 100, 200], 99, Nominal),
        ([300, 100, 200], 100, Critical),
        ([300, 100, 200], 200, Emergency),
        ([300, 100, u64::MAX], 400, Critical),
        ([0, u64::MAX, u64::MAX], 0, Warning),
        ([0, 0, 0], 0, Emergency),
        (NONE, u64::MAX - 1, Nominal),
    ] {
        let thresholds = Thresholds { process: steps, ..bare() };
        assert_eq!(level(&resident(used), &thresholds).0, expected, "{steps:?} {used}");
    }
}

#[test]
fn each_source_has_its_shares() {
    let limited =
        |used| Sample { cgroup: Some(Cgroup { used, limit: 1000, stall: None }), ..Sample::default() };
    let system = |available| Sample {
        system: Some(System { total: 1000, available, stall: None }),
        ..Sample::default()
    };
    let budget = Thresholds { budget: Some(1000), ..bare() };
    for (sample, thresholds, expected, source) in [
        (limited(749), bare(), Nominal, None),
        (limited(750), bare(), Warning, Some("cgroup")),
        (limited(880), bare(), Critical, Some("cgroup")),
        (limited(950), bare(), Emergency, Some("cgroup")),
        (system(201), bare(), Nominal, None),
        (system(200), bare(), Warning, Some("system")),
        (system(100), bare(), Critical, Some("system")),
        (system(50), bare(), Emergency, Some("system")),
        (system(5000), bare(), Nominal, None),
        (resident(749), budget, Nominal, None),
        (resident(750), budget, Warning, Some("budget")),
        (resident(880), budget, Critical, Some("budget")),
        (resident(950), budget, Emergency, Some("budget")),
    ] {
        let mut levels = Levels::default();
        let change = levels.observe(&sample, &thresholds, Instant::now());
        assert_eq!((levels.level(), levels.degrade()), (expected, expected), "{sample:?}");
        assert_eq!(change.map(|change| change.source.to_string()).as_deref(), source, "{sample:?}");
    }
}

#[test]
fn a_gpu_has_the_lower_of_its_thresholds_and_its_budget() {
    let set = Thresholds { gpu: [1000, 2000], gpu_degrades: [true; 2], ..bare() };
    let budget = Thresholds { gpu: [100_000, 200_000], gpu_budget: Some(3000), ..bare() };
    let default = Thresholds { gpu: [100_000, 200_000], ..bare() };
    for (own, thresholds, expected) in [
        (Some(999), set, (Nominal, Nominal)),
        (Some(1000), set, (Warning, Warning)),
        (Some(2000), set, (Critical, Critical)),
        // More than the budget, which engines fill, and 110 % of it; there is no emergency of that.
        (Some(2999), budget, (Nominal, Nominal)),
        (Some(3000), budget, (Warning, Warning)),
        (Some(3300), budget, (Critical, Critical)),
        (Some(5000), budget, (Critical, Critical)),
        // The same of 80 % of the card; nobody has asked for that, so it costs nothing.
        (Some(7999), default, (Nominal, Nominal)),
        (Some(8000), default, (Warning, Nominal)),
        (Some(8800), default, (Critical, Nominal)),
        (Some(10_000), default, (Critical, Nominal)),
        // Strangers' use is not ours.
        (None, set, (Nominal, Nominal)),
    ] {
        assert_eq!(level(&gpu(own), &thresholds), expected, "{own:?} {thresholds:?}");
    }
    let change = Levels::default().observe(&gpu(Some(3100)), &budget, Instant::now()).unwrap();
    let Change { source, used, limit, threshold, .. } = change;
    assert_eq!((source, used, limit, threshold), (Source::Gpu(1), 3100, 3000, 3000));
}

#[test]
fn only_thresholds_that_the_user_has_set_cost_inferences() {
    let thresholds = Thresholds { process: [100, 200, 300], ..bare() };
    for (set, used, degrade) in [
        ([false; 3], 300, Nominal),
        ([true, false, false], 300, Warning),
        ([false, true, false], 300, Critical),
        ([false, true, false], 150, Nominal),
        ([true, true, true], 250, Critical),
    ] {
        let thresholds = Thresholds { process_degrades: set, ..thresholds };
        assert_eq!(level(&resident(used), &thresholds).1, degrade, "{set:?} {used}");
    }
}

/// Feeds used bytes at given seconds; what is told, as (second, previous, level).
fn told(thresholds: &Thresholds, samples: &[(u64, u64)]) -> Vec<(u64, Level, Level)> {
    let (mut levels, start) = (Levels::default(), Instant::now());
    samples
        .iter()
        .filter_map(|&(second, used)| {
            let change = levels.observe(&resident(used), thresholds, start + Duration::from_secs(second))?;
            Some((second, change.previous, change.level))
        })
        .collect()
}

#[test]
fn a_level_rises_at_once_and_falls_by_steps() {
    let thresholds = Thresholds { process: [100, 200, 300], ..bare() };
    let samples: Vec<_> = (0..200).map(|second| (second, if second == 5 { 300 } else { 0 })).collect();
    let expected = [
        (5, Nominal, Emergency),
        // The notice of a level that stays falls into the 30 s of calm, which begin with the first calm sample.
        (35, Emergency, Emergency),
        (36, Emergency, Critical),
        (66, Critical, Warning),
        (96, Warning, Nominal),
    ];
    assert_eq!(told(&thresholds, &samples), expected);
}

#[test]
fn a_level_is_held_within_the_hysteresis() {
    let thresholds = Thresholds { process: [100, 200, 300], ..bare() };
    let samples = [(0, 200), (10, 190), (40, 190), (41, 189), (60, 195), (61, 189), (90, 189), (91, 189)];
    let expected =
        [(0, Nominal, Critical), (40, Critical, Critical), (90, Critical, Critical), (91, Critical, Warning)];
    assert_eq!(told(&thresholds, &samples), expected);
    // The step below is held, too: its calm begins when it is left, not with the step before.
    let samples = [(0, 300), (1, 195), (31, 195), (40, 0), (61, 0), (69, 0), (70, 0)];
    let expected = [
        (0, Nominal, Emergency),
        (31, Emergency, Critical),
        (61, Critical, Critical),
        (70, Critical, Warning),
    ];
    assert_eq!(told(&thresholds, &samples), expected);
}

#[test]
fn a_level_that_stays_is_told_once_a_cooldown() {
    let thresholds = Thresholds { process: [100, 200, 300], ..bare() };
    let samples: Vec<_> = (0..=61).map(|second| (second, 150)).collect();
    let seconds: Vec<_> = told(&thresholds, &samples).iter().map(|told| told.0).collect();
    assert_eq!(seconds, [0, 30, 60]);
    let often = Thresholds { cooldown: Duration::ZERO, ..thresholds };
    assert_eq!(told(&often, &samples).len(), samples.len());
}

#[test]
fn without_a_cooldown_each_calm_sample_takes_a_step() {
    let thresholds = Thresholds { process: [100, 200, 300], cooldown: Duration::ZERO, ..bare() };
    let samples = [(0, 300), (0, 0), (0, 0), (0, 0), (0, 0)];
    let expected =
        [(0, Nominal, Emergency), (0, Emergency, Critical), (0, Critical, Warning), (0, Warning, Nominal)];
    assert_eq!(told(&thresholds, &samples), expected);
}

#[test]
fn a_clock_that_goes_back_makes_no_calm() {
    let thresholds = Thresholds { process: [100, 200, 300], ..bare() };
    let samples = [(100, 150), (50, 0), (60, 0), (79, 0), (80, 0)];
    assert_eq!(told(&thresholds, &samples), [(100, Nominal, Warning), (80, Warning, Nominal)]);
}

#[test]
fn thresholds_may_change_at_any_time() {
    let (mut levels, start) = (Levels::default(), Instant::now());
    let at = |second| start + Duration::from_secs(second);
    let low = Thresholds { process: [100, 200, 300], process_degrades: [true; 3], ..bare() };
    let high = Thresholds { process: [1000, 2000, 3000], ..low };
    let sample = resident(350);
    assert_eq!(levels.observe(&sample, &high, at(0)), None);
    assert_eq!(levels.observe(&sample, &low, at(1)).map(|change| change.level), Some(Emergency));
    assert_eq!(levels.observe(&sample, &high, at(2)), None);
    assert_eq!(levels.observe(&sample, &high, at(32)).map(|change| change.level), Some(Critical));
    assert_eq!(levels.degrade(), Critical);
    // Reactions that are not wanted any more end at once, telling goes on.
    let idle = Thresholds { react: false, ..low };
    assert_eq!(levels.observe(&sample, &idle, at(33)).map(|change| change.level), Some(Emergency));
    assert_eq!(levels.degrade(), Nominal);
    levels.observe(&sample, &low, at(34));
    assert_eq!(levels.degrade(), Emergency);
}

#[test]
fn the_source_that_decides_is_named() {
    let thresholds = Thresholds { process: [100, 200, 300], ..bare() };
    let both = |used, cgroup| Sample {
        cgroup: Some(Cgroup { used: cgroup, limit: 1000, stall: None }),
        ..resident(used)
    };
    let (mut levels, start) = (Levels::default(), Instant::now());
    let mut at = |second, sample: Sample| {
        let change = levels.observe(&sample, &thresholds, start + Duration::from_secs(second))?;
        Some((change.level, change.source.to_string(), change.used, change.limit, change.threshold))
    };
    let told = |level, source: &str, used, limit, threshold| {
        Some((level, source.to_string(), used, limit, threshold))
    };
    // The process is nearly at warning, which does not count on the way up.
    assert_eq!(at(0, both(99, 760)), told(Warning, "cgroup", 760, 1000, 750));
    assert_eq!(at(1, both(290, 760)), told(Critical, "process", 290, 0, 200));
    // Down: whoever still holds the level that is entered, with the threshold of the one that was left ...
    assert_eq!(at(2, both(50, 760)), None);
    assert_eq!(at(32, both(50, 760)), told(Warning, "cgroup", 760, 1000, 880));
    // ... or, where nobody does, who held it last.
    assert_eq!(at(33, both(90, 100)), None);
    assert_eq!(at(63, both(90, 100)), told(Nominal, "cgroup", 100, 1000, 750));
}

#[test]
fn who_holds_a_level_within_the_hysteresis_is_named() {
    let thresholds = Thresholds { process: [100, 200, 300], ..bare() };
    let (mut levels, start) = (Levels::default(), Instant::now());
    let mut at = |second, used, cgroup| {
        let sample =
            Sample { cgroup: Some(Cgroup { used: cgroup, limit: 1000, stall: None }), ..resident(used) };
        let change = levels.observe(&sample, &thresholds, start + Duration::from_secs(second))?;
        Some((change.level, change.source))
    };
    assert_eq!(at(0, 250, 860), Some((Critical, Source::Process)));
    assert_eq!(at(1, 10, 860), None);
    assert_eq!(at(30, 10, 860), Some((Critical, Source::Cgroup)));
}

#[test]
fn that_a_level_begins_to_cost_inferences_is_told() {
    let thresholds = Thresholds { process: [100, 200, 300], ..bare() };
    let (mut levels, start) = (Levels::default(), Instant::now());
    let limited = |used| Sample { cgroup: Some(Cgroup { used, limit: 1000, stall: None }), ..resident(250) };
    let mut at = |second, used| {
        let change = levels.observe(&limited(used), &thresholds, start + Duration::from_secs(second));
        (change.map(|change| (change.previous, change.level, change.source)), levels.degrade())
    };
    assert_eq!(at(0, 0), (Some((Nominal, Critical, Source::Process)), Nominal));
    assert_eq!(at(1, 760), (Some((Critical, Critical, Source::Process)), Warning));
    assert_eq!(at(2, 890), (Some((Critical, Critical, Source::Cgroup)), Critical));
    assert_eq!(at(3, 890), (None, Critical));
    assert_eq!(at(4, 0), (None, Critical));
    assert_eq!(at(34, 0), (Some((Critical, Critical, Source::Process)), Warning));
}

#[test]
fn a_source_that_is_gone_is_not_named() {
    let thresholds = Thresholds { process: [100, 200, 300], ..bare() };
    let (mut levels, start) = (Levels::default(), Instant::now());
    let limited = Sample { cgroup: Some(Cgroup { used: 760, limit: 1000, stall: None }), ..resident(7) };
    assert_eq!(levels.observe(&limited, &thresholds, start).unwrap().source, Source::Cgroup);
    levels.observe(&resident(7), &thresholds, start);
    let change = levels.observe(&resident(7), &thresholds, start + COOLDOWN).unwrap();
    assert_eq!(
        (change.level, change.source, change.used, change.threshold),
        (Nominal, Source::Process, 7, 100)
    );
}

#[test]
fn numbers_beyond_the_levels_are_the_highest() {
    assert_eq!(
        [0, 1, 2, 3, 4, 255].map(Level::from_number),
        [Nominal, Warning, Critical, Emergency, Emergency, Emergency]
    );
    assert_eq!(Level::ALL.map(Level::name), ["nominal", "warning", "critical", "emergency"]);
}

/// Any number, often one near a threshold or at an end.
fn bytes() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..1200u64, 1 => Just(0), 1 => Just(u64::MAX), 1 => any::<u64>()]
}

prop_compose! {
    fn samples()(resident in bytes(), used in bytes(), limit in bytes(), total in bytes(), available in bytes(), own in prop::option::of(bytes())) -> Sample {
        Sample {
            resident,
            cgroup: Some(Cgroup { used, limit, stall: None }),
            system: Some(System { total, available, stall: None }),
            ..Sample { gpus: gpu(own).gpus, ..Sample::default() }
        }
    }
}

prop_compose! {
    fn thresholds()(process in [bytes(), bytes(), bytes()], process_degrades: [bool; 3], budget in prop::option::of(bytes()),
        gpu in [bytes(), bytes()], gpu_degrades: [bool; 2], gpu_budget in prop::option::of(bytes()), cooldown in 0..60u64, react: bool) -> Thresholds {
        let cooldown = Duration::from_secs(cooldown);
        Thresholds { process, process_degrades, budget, gpu, gpu_degrades, gpu_budget, cooldown, react }
    }
}

proptest! {
    #[test]
    fn whatever_comes_levels_keep_their_promises(
        settings in thresholds(),
        others in thresholds(),
        steps in prop::collection::vec((samples(), 0..40u64, prop::bool::weighted(0.1)), 1..60),
    ) {
        let (mut levels, mut now) = (Levels::default(), Instant::now());
        let (mut told, mut held_until) = (None::<Instant>, now);
        for (sample, seconds, swap) in steps {
            now += Duration::from_secs(seconds);
            let thresholds = if swap { &others } else { &settings };
            let (before, degraded) = (levels.level(), levels.degrade());
            let reached = readings(&sample, thresholds).map(|reading| reading.level(100)).max().unwrap();
            let held = readings(&sample, thresholds).map(|reading| reading.level(HYSTERESIS)).max().unwrap();
            let change = levels.observe(&sample, thresholds, now);
            let after = levels.level();

            prop_assert!(levels.degrade() <= after);
            prop_assert!(thresholds.react || levels.degrade() == Nominal);
            prop_assert!(after >= reached, "it rises at once");
            if after > before {
                prop_assert_eq!(after, reached);
            }
            if after < before {
                prop_assert_eq!(after, before.below(), "a step at a time");
                prop_assert!(held < before);
                prop_assert!(now - held_until >= thresholds.cooldown, "after a cooldown of calm");
            }
            if thresholds.react && levels.degrade() < degraded {
                prop_assert_eq!(levels.degrade(), degraded.below());
            }
            if after != before || held >= after {
                held_until = now;
            }

            let again = after != Nominal && told.is_some_and(|told| now - told >= thresholds.cooldown);
            let moved = after != before || levels.degrade() != degraded;
            prop_assert_eq!(change.is_some(), moved || again);
            if let Some(change) = change {
                told = Some(now);
                prop_assert_eq!((change.previous, change.level), (before, after));
                let of_source = |reading: &Reading| (reading.source, reading.used, reading.limit)
                    == (change.source, change.used, change.limit);
                let mut named = readings(&sample, thresholds).filter(of_source);
                prop_assert!(named.any(|reading| after <= before || reading.level(100) == after), "{:?}", change);
            }
        }
    }
}
