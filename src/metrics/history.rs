//! What was, so that a page that is just opened has something to draw, and rates.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::figures::{Figures, Stream};
use crate::memory::budget::Consumer;
use crate::memory::pressure::Level;

/// Between two rows.
pub const PERIOD: Duration = Duration::from_secs(1);
/// Rows that are kept: ten minutes.
pub const ROWS: usize = 600;
/// Rates are of the latest so many periods.
const WINDOW: usize = 5;

/// The process at one moment; bytes throughout.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Counts up from 0.
    pub number: u64,
    /// Since the server's start.
    pub time: Duration,
    pub resident: u64,
    pub anonymous: u64,
    pub limit: Option<u64>,
    pub reserved: [u64; Consumer::ALL.len()],
    pub level: Level,
    /// Of all GPUs together, by all processes and by this one; `None` without any.
    pub gpu_used: Option<u64>,
    pub gpu_own: Option<u64>,
    /// Of all streams together.
    pub rates: Option<Rates>,
}

/// Per second, and the share of frames that came in reused memory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    pub frames_in: f64,
    pub frames_out: f64,
    pub inferred: f64,
    /// 0 to 1; `None` where no buffer was asked for.
    pub hit_rate: Option<f64>,
}

/// What rates are made of.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    frames_in: u64,
    frames_out: u64,
    inferred: u64,
    requests: u64,
    hits: u64,
}

impl Counters {
    fn of(stream: &Stream) -> Self {
        let figures = &stream.figures;
        Self {
            frames_in: figures.frames_in,
            frames_out: figures.frames_out,
            inferred: figures.inferred,
            requests: figures.pool.requests,
            hits: figures.pool.hits,
        }
    }

    /// What was added since `then`; `None` where the counting began anew.
    fn since(self, then: Self) -> Option<Self> {
        Some(Self {
            frames_in: self.frames_in.checked_sub(then.frames_in)?,
            frames_out: self.frames_out.checked_sub(then.frames_out)?,
            inferred: self.inferred.checked_sub(then.inferred)?,
            requests: self.requests.checked_sub(then.requests)?,
            hits: self.hits.checked_sub(then.hits)?,
        })
    }

    fn rates(self, seconds: f64) -> Rates {
        let per_second = |count: u64| count as f64 / seconds;
        Rates {
            frames_in: per_second(self.frames_in),
            frames_out: per_second(self.frames_out),
            inferred: per_second(self.inferred),
            hit_rate: hit_rate(self.hits, self.requests),
        }
    }
}

fn hit_rate(hits: u64, requests: u64) -> Option<f64> {
    (requests != 0).then(|| hits as f64 / requests as f64)
}

struct Mark {
    at: Instant,
    counters: Vec<(Arc<str>, Counters)>,
}

pub struct History {
    start: Instant,
    rows: VecDeque<Row>,
    next: u64,
    marks: VecDeque<Mark>,
    rates: Vec<(Arc<str>, Rates)>,
}

impl History {
    pub fn new(start: Instant) -> Self {
        Self { start, rows: VecDeque::new(), next: 0, marks: VecDeque::new(), rates: Vec::new() }
    }

    /// Adds a row; the oldest makes room for it.
    pub fn observe(&mut self, figures: &Figures, now: Instant) {
        let counters: Vec<_> =
            figures.streams.iter().map(|stream| (stream.name.clone(), Counters::of(stream))).collect();
        let rates = self.observe_rates(Mark { at: now, counters });
        let memory = &figures.memory;
        let sample = &memory.sample;
        let gpu = !sample.gpus.is_empty();
        if self.rows.len() == ROWS {
            self.rows.pop_front();
        }
        self.rows.push_back(Row {
            number: self.next,
            time: now.saturating_duration_since(self.start),
            resident: sample.resident,
            anonymous: sample.anonymous,
            limit: memory.limit(),
            reserved: memory.reserved,
            level: memory.level,
            gpu_used: gpu.then(|| sample.gpus.iter().map(|gpu| gpu.used).sum()),
            gpu_own: sample.gpus.iter().filter_map(|gpu| gpu.own).reduce(|one, other| one + other),
            rates,
        });
        self.next += 1;
    }

    fn observe_rates(&mut self, mark: Mark) -> Option<Rates> {
        self.rates.clear();
        let (mut sum, mut requests, mut hits) = (None, 0, 0);
        for (name, counters) in &mark.counters {
            // A stream that has just come has a younger first mark than others.
            let known = self.marks.iter().find_map(|then| {
                let (_, counted) = then.counters.iter().find(|(known, _)| known == name)?;
                Some((counters.since(*counted)?, mark.at.saturating_duration_since(then.at).as_secs_f64()))
            });
            let Some((grown, seconds)) = known.filter(|(_, seconds)| *seconds > 0.0) else { continue };
            let rates = grown.rates(seconds);
            let total: &mut Rates = sum.get_or_insert_default();
            total.frames_in += rates.frames_in;
            total.frames_out += rates.frames_out;
            total.inferred += rates.inferred;
            requests += grown.requests;
            hits += grown.hits;
            total.hit_rate = hit_rate(hits, requests);
            self.rates.push((name.clone(), rates));
        }
        if self.marks.len() == WINDOW {
            self.marks.pop_front();
        }
        self.marks.push_back(mark);
        sum
    }

    /// Of a stream that has been seen twice.
    pub fn rates(&self, stream: &str) -> Option<&Rates> {
        self.rates.iter().find(|(name, _)| &**name == stream).map(|(_, rates)| rates)
    }

    /// Rows from `number` on.
    pub fn since(&self, number: u64) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.number >= number)
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures::{Memory, StreamFigures};
    use super::*;
    use crate::memory::sample::{Gpu, Sample};

    fn figures(frames: &[(&str, u64)]) -> Figures {
        let stream = |&(name, frames_in): &(&str, u64)| {
            let mut figures = StreamFigures { frames_in, frames_out: frames_in, ..Default::default() };
            figures.pool.requests = frames_in;
            figures.pool.hits = frames_in / 2;
            Stream { name: name.into(), figures }
        };
        let gpu = |own| Gpu { index: 0, total: 100, used: 50, own };
        let sample = Sample { resident: 7, gpus: vec![gpu(Some(3)), gpu(None)], ..Default::default() };
        let memory = Memory { sample, budget: Some(9), reserved: [1; 5], level: Level::Warning };
        Figures { memory, streams: frames.iter().map(stream).collect(), engines: Vec::new() }
    }

    #[test]
    fn the_oldest_rows_make_room() {
        let start = Instant::now();
        let mut history = History::new(start);
        for second in 0..ROWS as u64 + 10 {
            history.observe(&figures(&[]), start + Duration::from_secs(second));
        }
        assert_eq!(history.since(0).count(), ROWS);
        let first = history.since(0).next().unwrap();
        assert_eq!((first.number, first.time), (10, Duration::from_secs(10)));
        assert_eq!((first.resident, first.limit, first.level), (7, Some(9), Level::Warning));
        assert_eq!((first.gpu_used, first.gpu_own, first.rates), (Some(100), Some(3), None));
        assert_eq!(history.since(ROWS as u64 + 8).map(|row| row.number).collect::<Vec<_>>(), [608, 609]);
        assert_eq!(history.since(u64::MAX).count(), 0);
    }

    #[test]
    fn rates_are_of_a_window_and_begin_anew_with_the_counters() {
        let start = Instant::now();
        let mut history = History::new(start);
        let mut at = |second: u64, frames: &[(&str, u64)]| {
            history.observe(&figures(frames), start + Duration::from_secs(second));
            let rate = |name| history.rates(name).map(|rates| rates.frames_in);
            (rate("a"), rate("b"), history.since(second).next().unwrap().rates.map(|rates| rates.frames_in))
        };
        assert_eq!(at(0, &[("a", 1000)]), (None, None, None));
        assert_eq!(at(1, &[("a", 1010)]), (Some(10.0), None, Some(10.0)));
        assert_eq!(at(2, &[("a", 1040), ("b", 5)]), (Some(20.0), None, Some(20.0)));
        assert_eq!(at(3, &[("a", 1060), ("b", 35)]), (Some(20.0), Some(30.0), Some(50.0)));
        // The element was started again.
        assert_eq!(at(4, &[("a", 3), ("b", 65)]), (None, Some(30.0), Some(30.0)));
        assert_eq!(at(5, &[("a", 13)]), (Some(10.0), None, Some(10.0)));
        for second in 6..20 {
            at(second, &[("a", 13)]);
        }
        assert_eq!(at(20, &[("a", 113)]).0, Some(20.0), "a fifth of what came in the latest of five seconds");
        assert_eq!(history.rates("a").unwrap().hit_rate, Some(0.5));
    }
}
