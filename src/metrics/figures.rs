//! What the process and its elements say of themselves: numbers, copied at one moment.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::memory::budget::Consumer;
use crate::memory::pool::PoolStats;
use crate::memory::pressure::Level;
use crate::memory::sample::Sample;
use crate::memory::{self, Overview};

/// Frames that were not inferred, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    pub interval: u64,
    pub overload: u64,
    pub pressure: u64,
}

impl Skipped {
    /// In this order everywhere.
    pub fn by_cause(&self) -> [(&'static str, u64); 3] {
        [("interval", self.interval), ("overload", self.overload), ("pressure", self.pressure)]
    }
}

/// One element's, counted since it was started.
#[derive(Clone, Debug, Default)]
pub struct StreamFigures {
    pub frames_in: u64,
    pub frames_out: u64,
    pub inferred: u64,
    pub skipped: Skipped,
    pub failed: u64,
    pub detections: u64,
    /// Frames in the element.
    pub queue_depth: u64,
    pub pool: PoolStats,
    pub engine: EngineFigures,
}

/// One engine's, counted since its model was loaded.
#[derive(Clone, Debug, Default)]
pub struct EngineFigures {
    /// Of the process's engines; there may be several of one model.
    pub number: u64,
    /// The model's file, without its folder.
    pub model: String,
    pub device: String,
    pub streams: u64,
    pub batches: u64,
    pub frames: u64,
    pub slots: u64,
    /// Streams that wait for a slot.
    pub waiting: u64,
    pub callers: u64,
    /// Frames.
    pub batch_limit: u64,
    /// Bytes that the process grew by while the model was loaded.
    pub bytes: u64,
    /// What the latest batch took to run, seconds.
    pub last_run: f64,
}

/// One that has figures to show.
pub trait Source: Send + Sync {
    /// `None` while it is stopped. Takes no lock for longer than a copy.
    fn figures(&self) -> Option<StreamFigures>;
}

#[derive(Debug)]
pub struct Stream {
    /// No other has it now.
    pub name: Arc<str>,
    pub figures: StreamFigures,
}

#[derive(Debug)]
pub struct Memory {
    pub sample: Sample,
    /// Of the whole process, bytes; `None` without a `memory-budget`.
    pub budget: Option<u64>,
    /// Bytes, in the order of [`Consumer::ALL`].
    pub reserved: [u64; Consumer::ALL.len()],
    pub level: Level,
}

impl Memory {
    /// Bytes that the process may hold at most: the container's limit or the budget, whichever is lower.
    pub fn limit(&self) -> Option<u64> {
        let cgroup = self.sample.cgroup.map(|cgroup| cgroup.limit);
        self.budget.into_iter().chain(cgroup).min()
    }
}

/// All that is known at one moment.
#[derive(Debug)]
pub struct Figures {
    pub memory: Memory,
    pub streams: Vec<Stream>,
    /// Each once, however many streams share it.
    pub engines: Vec<EngineFigures>,
}

struct Entry {
    name: Arc<str>,
    source: Weak<dyn Source>,
}

static SOURCES: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

/// Shows `source` on every server while it lives. Where a living one has the same name, `#2` or so follows it.
pub fn show(name: &str, source: Weak<dyn Source>) {
    let mut sources = SOURCES.lock();
    sources.retain(|entry| entry.source.strong_count() > 0);
    let taken = |name: &str| sources.iter().any(|entry| &*entry.name == name);
    let others = (2u64..).map(|number| format!("{name}#{number}"));
    let free = std::iter::once(name.to_string()).chain(others).find(|name| !taken(name));
    let name = free.unwrap_or_default().into();
    sources.push(Entry { name, source });
}

/// Asks everybody. Sources are called without a lock held.
pub fn collect() -> Figures {
    let sources: Vec<_> = SOURCES
        .lock()
        .iter()
        .filter_map(|entry| Some((entry.name.clone(), entry.source.upgrade()?)))
        .collect();
    let mut streams: Vec<_> = sources
        .into_iter()
        .filter_map(|(name, source)| Some(Stream { name, figures: source.figures()? }))
        .collect();
    streams.sort_by(|one, other| one.name.cmp(&other.name));
    let mut engines: Vec<_> = streams.iter().map(|stream| stream.figures.engine.clone()).collect();
    engines.sort_by_key(|engine| engine.number);
    engines.dedup_by_key(|engine| engine.number);
    Figures { memory: memory(), streams, engines }
}

fn memory() -> Memory {
    let Overview { process, sample, level, ceiling, usage } = memory::overview();
    // Before the monitor's first look, and where it has no thread.
    let process = Sample { resident: process.resident, anonymous: process.anonymous, ..Default::default() };
    Memory {
        sample: sample.unwrap_or(process),
        budget: ceiling,
        reserved: usage.map(|(_, bytes)| bytes),
        level,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(u64);

    impl Source for Fixed {
        fn figures(&self) -> Option<StreamFigures> {
            let engine = EngineFigures { number: self.0, ..Default::default() };
            (self.0 != 0).then(|| StreamFigures { engine, ..Default::default() })
        }
    }

    fn shown(name: &str, number: u64) -> Arc<dyn Source> {
        let source: Arc<dyn Source> = Arc::new(Fixed(number));
        show(name, Arc::downgrade(&source));
        source
    }

    /// Of this test; others may show streams at the same time.
    fn names() -> Vec<String> {
        let names = collect().streams.into_iter().map(|stream| stream.name.to_string());
        names.filter(|name| name.starts_with("figures-test")).collect()
    }

    #[test]
    fn names_are_unique_and_go_with_their_sources() {
        let first = shown("figures-test", 900_001);
        let second = shown("figures-test", 900_002);
        let other = shown("figures-test-other", 900_001);
        let stopped = shown("figures-test-stopped", 0);
        assert_eq!(names(), ["figures-test", "figures-test#2", "figures-test-other"]);
        let engines = collect().engines;
        assert_eq!(engines.iter().filter(|engine| engine.number > 900_000).count(), 2);
        drop(first);
        assert_eq!(names(), ["figures-test#2", "figures-test-other"]);
        let again = shown("figures-test", 900_001);
        assert_eq!(names(), ["figures-test", "figures-test#2", "figures-test-other"]);
        drop((second, other, stopped, again));
        assert!(names().is_empty());
    }
}
