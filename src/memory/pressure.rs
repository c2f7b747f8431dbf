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

/// Thresholds of one watcher.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// Of the resident set.
    pub process: Steps,
    /// The user has set them: only then may they cost inferences.
    pub process_degrades: bool,
    /// `memory-budget`, against which the resident set is held; `None` without one.
    pub budget: Option<u64>,
    /// Of this process on each GPU. There is no emergency of a GPU.
    pub gpu: [u64; 2],
    pub gpu_degrades: bool,
    /// How often a level that stays is told again, and how long memory must be well below a level before that is left.
    pub cooldown: Duration,
    /// Whether anything is to be done beside telling.
    pub react: bool,
}

/// Shares of a container's limit, or of the budget.
pub const SHARES: [f64; 3] = [0.75, 0.88, 0.95];
/// Shares of the system's memory that are in use: 20, 10 and 5 % are still available.
pub const SYSTEM_SHARES: [f64; 3] = [0.80, 0.90, 0.95];
/// A level is left where usage is below this share of its threshold.
pub const HYSTERESIS: f64 = 0.95;

/// One source's usage beside its thresholds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    pub source: Source,
    pub used: u64,
    /// 0 where there is none.
    pub limit: u64,
    pub steps: Steps,
    /// Whether this source may cost inferences.
    pub degrades: bool,
}

impl Reading {
    /// The level, where thresholds are `scale` times as high.
    fn level(&self, scale: f64) -> Level {
        let reached = self.steps.iter().filter(|&&step| self.used as f64 >= step as f64 * scale).count();
        Level::from_number(reached as u8)
    }

    /// Used bytes from which on `level` holds; 0 for nominal.
    fn threshold(&self, level: Level) -> u64 {
        match level {
            Level::Nominal => 0,
            level => self.steps[level as usize - 1],
        }
    }
}

fn shares(limit: u64, shares: [f64; 3]) -> Steps {
    shares.map(|share| (limit as f64 * share) as u64)
}

/// What a sample says to one watcher.
pub fn readings(sample: &Sample, thresholds: &Thresholds) -> impl Iterator<Item = Reading> {
    let process = Reading {
        source: Source::Process,
        used: sample.resident,
        limit: 0,
        steps: thresholds.process,
        degrades: thresholds.process_degrades,
    };
    let cgroup = sample.cgroup.map(|cgroup| Reading {
        source: Source::Cgroup,
        used: cgroup.used,
        limit: cgroup.limit,
        steps: shares(cgroup.limit, SHARES),
        degrades: true,
    });
    let budget = thresholds.budget.map(|budget| Reading {
        source: Source::Budget,
        used: sample.resident,
        limit: budget,
        steps: shares(budget, SHARES),
        degrades: true,
    });
    let system = sample.system.filter(|system| system.total > 0).map(|system| Reading {
        source: Source::System,
        used: system.total.saturating_sub(system.available),
        limit: system.total,
        steps: shares(system.total, SYSTEM_SHARES),
        degrades: true,
    });
    let [gpu_warning, gpu_critical] = thresholds.gpu;
    let gpus = sample.gpus.iter().filter_map(move |gpu| {
        Some(Reading {
            source: Source::Gpu(gpu.index),
            used: gpu.own?,
            limit: gpu.total,
            steps: [gpu_warning, gpu_critical, u64::MAX],
            degrades: thresholds.gpu_degrades,
        })
    });
    std::iter::once(process).chain(cgroup).chain(budget).chain(system).chain(gpus)
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

/// One watcher's level from sample to sample.
#[derive(Clone, Debug, Default)]
pub struct Levels {
    level: Track,
    /// Of those sources that may cost inferences.
    degrade: Track,
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
            // The next step takes its own time.
            *self = Self { level: self.level.below(), calm: Some(now) };
        }
    }
}

impl Levels {
    pub fn level(&self) -> Level {
        self.level.level
    }

    /// The level as far as it may cost inferences; never above [`Self::level`].
    pub fn degrade(&self) -> Level {
        self.degrade.level
    }

    /// Takes a sample in. What is to be told of it, if anything: a level that rose or fell, or one that has stayed for a
    /// cooldown.
    pub fn observe(&mut self, sample: &Sample, thresholds: &Thresholds, now: Instant) -> Option<Change> {
        let previous = self.level();
        let mut worst: Option<(Level, f64, Reading)> = None;
        let (mut reached, mut held) = ([Level::Nominal; 2], [Level::Nominal; 2]);
        for reading in readings(sample, thresholds) {
            let levels = (reading.level(1.0), reading.level(HYSTERESIS));
            for (track, counts) in [true, reading.degrades && thresholds.react].into_iter().enumerate() {
                if counts {
                    reached[track] = reached[track].max(levels.0);
                    held[track] = held[track].max(levels.1);
                }
            }
            let closeness = reading.used as f64 / (reading.steps[0] as f64).max(1.0);
            if worst.is_none_or(|(level, close, _)| (levels.1, closeness) > (level, close)) {
                worst = Some((levels.1, closeness, reading));
            }
        }
        self.level.observe(reached[0], held[0], thresholds.cooldown, now);
        self.degrade.observe(reached[1], held[1], thresholds.cooldown, now);
        let (_, _, reading) = worst?;
        let level = self.level();
        let again = level != Level::Nominal
            && self.told.is_some_and(|told| now.saturating_duration_since(told) >= thresholds.cooldown);
        if level == previous && !again {
            return None;
        }
        self.told = Some(now);
        let threshold = reading.threshold(level.max(previous));
        Some(Change {
            level,
            previous,
            source: reading.source,
            used: reading.used,
            limit: reading.limit,
            threshold,
        })
    }
}
