//! Memory pressure as a level. Pure: it follows from samples, thresholds and the time that is passed in.

use std::fmt;
use std::time::{Duration, Instant};

use super::sample::Sample;

/// How short memory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    #[default]
    Nominal,
    Warning,
    Critical,
    Emergency,
}

impl Level {
    pub const ALL: [Level; 4] = [Level::Nominal, Level::Warning, Level::Critical, Level::Emergency];

    pub fn name(self) -> &'static str {
        match self {
            Level::Nominal => "nominal",
            Level::Warning => "warning",
            Level::Critical => "critical",
            Level::Emergency => "emergency",
        }
    }

    /// The level of this number, the highest for numbers beyond.
    pub fn from_number(number: u8) -> Self {
        Self::ALL[usize::from(number).min(Self::ALL.len() - 1)]
    }

    fn below(self) -> Self {
        Self::from_number((self as u8).saturating_sub(1))
    }
}

/// Where memory is short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Source {
    /// The process by itself.
    #[default]
    Process,
    /// Its container's limit.
    Cgroup,
    /// The process beside its `memory-budget`.
    Budget,
    /// The machine.
    System,
    /// The process on this GPU.
    Gpu(u32),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Process => f.write_str("process"),
            Source::Cgroup => f.write_str("cgroup"),
            Source::Budget => f.write_str("budget"),
            Source::System => f.write_str("system"),
            Source::Gpu(index) => write!(f, "gpu:{index}"),
        }
    }
}

/// Used bytes from which on a level holds: warning, critical, emergency. `u64::MAX` where there is none.
pub type Steps = [u64; 3];

/// Thresholds of one watcher. Where they are in the wrong order, the highest level that is reached counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// Of the resident set.
    pub process: Steps,
    /// Those that the user has set: only they may cost inferences.
    pub process_degrades: [bool; 3],
    /// `memory-budget`, against which the resident set is held; `None` without one.
    pub budget: Option<u64>,
    /// Of this process on each GPU. There is no emergency of a GPU.
    pub gpu: [u64; 2],
    /// As `process_degrades`.
    pub gpu_degrades: [bool; 2],
    /// `gpu-memory-budget`, of this process on each GPU; `None` for four fifths of the card, which never cost inferences.
    pub gpu_budget: Option<u64>,
    /// How often a level that stays is told again, and how long memory must be well below a level before that is left.
    pub cooldown: Duration,
    /// Whether anything is to be done beside telling.
    pub react: bool,
}

/// Per cent of a container's limit, or of a budget, from which on a level holds.
pub const SHARES: [u64; 3] = [75, 88, 95];
/// Per cent of the system's memory that are in use: 20, 10 and 5 are still available.
pub const SYSTEM_SHARES: [u64; 3] = [80, 90, 95];
/// Of a GPU's budget: engines fill theirs up to it, which is no reason to infer less; what comes on top of it is somebody else's in this process,
/// such as a decoder's.
pub const GPU_BUDGET_SHARES: [u64; 2] = [100, 110];
/// A level is left where usage is below so many per cent of its threshold.
pub const HYSTERESIS: u64 = 95;

/// One source's usage beside its thresholds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    pub source: Source,
    pub used: u64,
    /// 0 where there is none.
    pub limit: u64,
    pub steps: Steps,
    /// Which of the steps may cost inferences.
    pub degrades: [bool; 3],
}

impl Reading {
    /// The highest level of which `share` per cent are reached.
    fn level(&self, share: u64) -> Level {
        self.highest(|step| self.used >= percent(self.steps[step], share))
    }

    /// The same of the steps that may cost inferences.
    fn degrade(&self, share: u64) -> Level {
        self.highest(|step| self.degrades[step] && self.used >= percent(self.steps[step], share))
    }

    fn highest(&self, reached: impl Fn(usize) -> bool) -> Level {
        Level::from_number((0..3).rev().find(|&step| reached(step)).map_or(0, |step| step as u8 + 1))
    }

    /// Used bytes from which on `level` holds, or the nearest level below it that this source has; 0 for nominal.
    fn threshold(&self, level: Level) -> u64 {
        let steps = &self.steps[..level as usize];
        let known = steps.iter().rev().find(|&&step| step != u64::MAX);
        known.or(steps.last()).copied().unwrap_or(0)
    }

    /// Usage in parts of the threshold of `level`.
    fn fullness(&self, level: Level) -> f64 {
        self.used as f64 / self.threshold(level).max(1) as f64
    }
}

fn percent(whole: u64, share: u64) -> u64 {
    (u128::from(whole) * u128::from(share) / 100) as u64
}

fn percents(whole: u64, shares: [u64; 3]) -> Steps {
    shares.map(|share| percent(whole, share))
}

/// What a sample says to one watcher.
pub fn readings(sample: &Sample, thresholds: &Thresholds) -> impl Iterator<Item = Reading> {
    let Thresholds { process, process_degrades, budget, gpu, gpu_degrades, gpu_budget, .. } = *thresholds;
    let process = Reading {
        source: Source::Process,
        used: sample.resident,
        limit: 0,
        steps: process,
        degrades: process_degrades,
    };
    let cgroup = sample.cgroup.map(|cgroup| Reading {
        source: Source::Cgroup,
        used: cgroup.used,
        limit: cgroup.limit,
        steps: percents(cgroup.limit, SHARES),
        degrades: [true; 3],
    });
    let budget = budget.map(|budget| Reading {
        source: Source::Budget,
        used: sample.resident,
        limit: budget,
        steps: percents(budget, SHARES),
        degrades: [true; 3],
    });
    let system = sample.system.filter(|system| system.total > 0).map(|system| Reading {
        source: Source::System,
        used: system.total.saturating_sub(system.available),
        limit: system.total,
        steps: percents(system.total, SYSTEM_SHARES),
        degrades: [true; 3],
    });
    // Two readings of each GPU: its thresholds and its budget may differ in what they may cost.
    let gpus = sample.gpus.iter().filter_map(move |on| {
        let (source, used) = (Source::Gpu(on.index), on.own?);
        let set = Reading {
            source,
            used,
            limit: on.total,
            steps: [gpu[0], gpu[1], u64::MAX],
            degrades: [gpu_degrades[0], gpu_degrades[1], false],
        };
        let limit = gpu_budget.unwrap_or(percent(on.total, 80));
        let [warning, critical] = GPU_BUDGET_SHARES.map(|share| percent(limit, share));
        let degrades = [gpu_budget.is_some(); 3];
        Some([set, Reading { source, used, limit, steps: [warning, critical, u64::MAX], degrades }])
    });
    std::iter::once(process).chain(cgroup).chain(budget).chain(system).chain(gpus.flatten())
}

/// A level that is to be told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    pub level: Level,
    pub previous: Level,
    /// The one that is shortest.
    pub source: Source,
    pub used: u64,
    pub limit: u64,
    /// Of `level`; for one that was left, of the level before.
    pub threshold: u64,
}

/// Of the resident set where the user sets none.
pub const PROCESS_STEPS: Steps = [2_000_000_000, 3_000_000_000, 4_000_000_000];
/// Of this process on a GPU.
pub const GPU_STEPS: [u64; 2] = [1_000_000_000, 1_500_000_000];

/// Those of a watcher for whom the user sets nothing.
impl Default for Thresholds {
    fn default() -> Self {
        Self {
            process: PROCESS_STEPS,
            process_degrades: [false; 3],
            budget: None,
            gpu: GPU_STEPS,
            gpu_degrades: [false; 2],
            gpu_budget: None,
            cooldown: Duration::from_secs(30),
            react: true,
        }
    }
}

/// One watcher's level from sample to sample.
#[derive(Clone, Debug, Default)]
pub struct Levels {
    level: Track,
    /// Of those steps that may cost inferences.
    degrade: Track,
    /// Who was the last to hold the level up.
    source: Source,
    told: Option<Instant>,
}

/// Rises at once; falls a step after a cooldown below the hysteresis.
#[derive(Clone, Copy, Debug, Default)]
struct Track {
    level: Level,
    /// Since when usage has been well below the level.
    calm: Option<Instant>,
}

impl Track {
    fn observe(&mut self, reached: Level, held: Level, cooldown: Duration, now: Instant) {
        if reached > self.level {
            *self = Self { level: reached, calm: None };
        } else if held >= self.level {
            self.calm = None;
        } else if now.saturating_duration_since(*self.calm.get_or_insert(now)) >= cooldown {
            // The next step takes its own time, which begins when that level is no longer held either.
            let level = self.level.below();
            *self = Self { level, calm: (held < level).then_some(now) };
        }
    }
}

impl Levels {
    pub fn level(&self) -> Level {
        self.level.level
    }

    /// The level as far as it may cost inferences; never above [`Self::level`].
    pub fn degrade(&self) -> Level {
        self.degrade.level.min(self.level())
    }

    /// Takes a sample in. What is to be told of it, if anything: a level that rose or fell or may now cost more or fewer
    /// inferences, or one that has stayed for a cooldown.
    pub fn observe(&mut self, sample: &Sample, thresholds: &Thresholds, now: Instant) -> Option<Change> {
        let all = || readings(sample, thresholds);
        let Thresholds { cooldown, react, .. } = *thresholds;
        let (previous, degraded) = (self.level(), self.degrade());
        let highest = |share| all().map(|reading| reading.level(share)).max().unwrap_or_default();
        self.level.observe(highest(100), highest(HYSTERESIS), cooldown, now);
        if react {
            let highest = |share| all().map(|reading| reading.degrade(share)).max().unwrap_or_default();
            self.degrade.observe(highest(100), highest(HYSTERESIS), cooldown, now);
        } else {
            // The user wants nothing done: at once, not a step at a time.
            self.degrade = Track::default();
        }

        let (level, degrade) = (self.level(), self.degrade());
        let fullest = |of: &dyn Fn(&Reading) -> bool| {
            let fullness = |reading: &Reading| reading.fullness(level.max(previous));
            all().filter(of).max_by(|one, other| fullness(one).total_cmp(&fullness(other)))
        };
        // Whoever holds the level up; on the way down, where nobody does, who did so last.
        let holder = fullest(&|reading| {
            if level > previous {
                reading.level(100) >= level
            } else if degrade > degraded && degrade == level {
                reading.degrade(100) >= level
            } else {
                level != Level::Nominal && reading.level(HYSTERESIS) >= level
            }
        });
        let same = || fullest(&|reading| reading.source == self.source);
        let reading = holder.or_else(same).or_else(|| fullest(&|_| true))?;
        self.source = reading.source;

        let stays = level == previous && level != Level::Nominal;
        let again = stays && self.told.is_none_or(|told| now.saturating_duration_since(told) >= cooldown);
        if level == previous && degrade == degraded && !again {
            return None;
        }
        self.told = Some(now);
        Some(Change {
            level,
            previous,
            source: reading.source,
            used: reading.used,
            limit: reading.limit,
            threshold: reading.threshold(level.max(previous)),
        })
    }
}

#[cfg(test)]
mod tests;
