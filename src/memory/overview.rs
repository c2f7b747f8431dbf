//! All figures at one moment, for those who show them.

use super::budget::{Consumer, HOST};
use super::monitor;
use super::pressure::Level;
use super::sample::{Process, Sample};

/// Bytes throughout.
#[derive(Clone, Debug)]
pub struct Overview {
    pub process: Process,
    /// The monitor's latest; `None` while nobody watches.
    pub sample: Option<Sample>,
    /// The highest of all watchers.
    pub level: Level,
    /// `memory-budget`, where there is one.
    pub ceiling: Option<u64>,
    /// What is reserved, in the order of [`Consumer::ALL`].
    pub usage: [(Consumer, u64); Consumer::ALL.len()],
}

impl Overview {
    /// The container's limit or the budget, whichever is lower.
    pub fn limit(&self) -> Option<u64> {
        let cgroup = self.sample.as_ref().and_then(|sample| sample.cgroup).map(|cgroup| cgroup.limit);
        cgroup.into_iter().chain(self.ceiling).min()
    }
}

/// The process's figures as the monitor saw them last; where it sleeps, those of the process are read now.
pub fn overview() -> Overview {
    let sample = monitor::latest();
    let process = sample.as_ref().map_or_else(Process::now, |sample| Process {
        resident: sample.resident,
        anonymous: sample.anonymous,
    });
    Overview {
        process,
        sample,
        level: monitor::level(),
        ceiling: HOST.ceiling(),
        usage: Consumer::ALL.map(|consumer| (consumer, HOST.reserved_for(consumer))),
    }
}
