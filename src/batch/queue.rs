//! What stands between the streams and the engine, without the frames themselves: slots, batches, who is next. Pure:
//! every answer follows from the calls before and the time that is passed in.
//!
//! There are as many batches as workers, two at the least, so that one fills while the other runs; their number does not
//! grow with the streams. (Several workers share the cores with those who fill slots: a further batch would take memory
//! and save no time.) Whoever wants a slot stands in a [`Line`]; a batch runs when [`policy::decide`] says so.

use std::collections::VecDeque;
use std::time::Instant;

use super::ceiling::Ceiling;
use super::line::Line;
use super::policy::{self, Decision, Filling};
use crate::engine::BatchSize;

/// A batch from its first slot until it was run or thrown away.
pub type BatchId = u64;

/// A slot: the frame `index` of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    pub batch: BatchId,
    pub index: usize,
    /// For the batch's first slot: how many frames it shall have room for.
    pub opens: Option<usize>,
}

/// What an idle worker shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Run the first `granted` frames, of which `ready` hold one.
    Run { batch: BatchId, granted: usize, ready: usize },
    /// Nothing is in it.
    Discard(BatchId),
    /// Come back when something changes or, if given, the time comes.
    Wait(Option<Instant>),
}

struct Stream {
    id: u64,
    max_batch: usize,
}

pub struct Queue {
    batch: BatchSize,
    workers: usize,
    running: usize,
    /// All of them.
    batches: usize,
    /// Those that are neither being filled nor run.
    free: usize,
    /// Not counted as free, since there was no memory for one: until another comes back, which brings its own.
    withheld: usize,
    /// Oldest first; only the last one may have room.
    forming: VecDeque<(BatchId, Filling)>,
    next_batch: BatchId,
    streams: Vec<Stream>,
    line: Line,
    ceiling: Ceiling,
    /// Most frames in a batch while memory is under pressure.
    pressed: Option<usize>,
}

impl Queue {
    /// For `workers` that run a batch each.
    pub fn new(batch: BatchSize, workers: usize) -> Self {
        Self::with_batches(batch, workers, workers)
    }

    /// As [`Self::new`], with this many batches in all, two at the least: those beyond the workers' can be filled while all of these run.
    pub fn with_batches(batch: BatchSize, workers: usize, batches: usize) -> Self {
        let batches = batches.max(2);
        Self {
            batch,
            workers,
            running: 0,
            batches,
            free: batches,
            withheld: 0,
            forming: VecDeque::new(),
            next_batch: 0,
            streams: Vec::new(),
            line: Line::default(),
            ceiling: Ceiling::default(),
            pressed: None,
        }
    }

    /// A stream that wants batches of up to `max_batch` frames; the largest wish decides.
    pub fn attach(&mut self, id: u64, max_batch: usize) {
        self.streams.push(Stream { id, max_batch: max_batch.max(1) });
    }

    pub fn detach(&mut self, id: u64) {
        self.streams.retain(|stream| stream.id != id);
        self.line.forget(id);
    }

    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Streams whose thread waits for a slot.
    pub fn waiting(&self) -> usize {
        self.line.waiting()
    }

    #[cfg(test)]
    pub fn running(&self) -> usize {
        self.running
    }

    /// All slots, free or not.
    pub fn slots(&self) -> usize {
        self.batches * self.capacity()
    }

    pub fn batches(&self) -> usize {
        self.batches
    }

    fn wish(&self) -> usize {
        self.streams.iter().map(|stream| stream.max_batch).max().unwrap_or(1)
    }

    /// Frames of a batch that is opened now.
    pub fn capacity(&self) -> usize {
        let size = self.ceiling.size(self.wish());
        self.batch.capacity(self.pressed.map_or(size, |most| most.min(size)))
    }

    /// Halves the batches that are opened from now on; whether that changes anything.
    pub fn press(&mut self) -> bool {
        let capacity = self.capacity();
        let halves = capacity > 1 && !self.batch.is_fixed();
        if halves {
            self.pressed = Some(capacity / 2);
        }
        halves
    }

    /// Takes back what [`Self::press`] did; whether it did anything.
    pub fn ease(&mut self) -> bool {
        self.pressed.take().is_some()
    }

    /// A worker has nothing to run: work goes before turns, nobody is held up for one who is not here.
    fn idle(&self) -> bool {
        self.running < self.workers
    }

    /// Slots that could be granted right now.
    fn room(&self) -> usize {
        let open = self.forming.back().map_or(0, |(_, batch)| batch.capacity - batch.granted);
        open + self.free * self.capacity()
    }

    /// `stream` wants a slot. If it is not its turn it stands in line from now on, as one that `waits` right here or
    /// will ask again; see [`Self::entitled`].
    pub fn ask(&mut self, stream: u64, priority: u32, waits: bool) -> Option<Granted> {
        if self.idle() {
            self.line.lapse(Some(stream));
        }
        let new = self.line.join(stream, priority, waits);
        if self.line.ahead(stream, !self.idle()).is_none_or(|ahead| ahead >= self.room()) {
            return None;
        }
        // Who came in vain before wants more than there is, and will be back.
        self.line.grant(stream, !new);
        Some(self.open_slot())
    }

    fn open_slot(&mut self) -> Granted {
        let full = self.forming.back().is_none_or(|(_, batch)| batch.granted == batch.capacity);
        if full {
            let capacity = self.capacity();
            self.free -= 1;
            self.next_batch += 1;
            self.forming.push_back((self.next_batch, Filling { capacity, ..Default::default() }));
        }
        let (id, batch) = self.forming.back_mut().expect("one was just made where there was none");
        batch.granted += 1;
        Granted { batch: *id, index: batch.granted - 1, opens: full.then_some(batch.capacity) }
    }

    /// Streams that wait and would get a slot if they asked now.
    pub fn entitled(&mut self) -> impl Iterator<Item = u64> {
        let idle = self.idle();
        if idle {
            self.line.lapse(None);
        }
        self.line.entitled(self.room(), !idle)
    }

    /// `stream` flushes: it gives up its turn. One whose thread waits here calls [`Self::leave`] by itself.
    pub fn withdraw(&mut self, stream: u64) {
        self.line.withdraw(stream);
    }

    pub fn leave(&mut self, stream: u64) {
        self.line.leave(stream);
    }

    /// A granted slot comes back: with a frame that wants to run at `due` at the latest, or abandoned. Whether the
    /// batch is still there.
    pub fn settle(&mut self, batch: BatchId, due: Option<Instant>) -> bool {
        let Some((_, batch)) = self.forming.iter_mut().find(|(id, _)| *id == batch) else { return false };
        batch.settled += 1;
        if let Some(due) = due {
            batch.ready += 1;
            batch.due = Some(batch.due.map_or(due, |known| known.min(due)));
        }
        true
    }

    /// There is memory for no more than `capacity` frames in a batch that was just opened.
    pub fn limit(&mut self, batch: BatchId, capacity: usize) {
        if let Some((_, batch)) = self.forming.iter_mut().find(|(id, _)| *id == batch)
            && capacity < batch.capacity
        {
            batch.capacity = capacity;
            self.ceiling.lower(capacity);
        }
    }

    /// There is no memory at all for a batch that was just opened. Whether another is in use, for which `stream` waits with
    /// the turn that it had: none is opened before that comes back.
    pub fn close(&mut self, batch: BatchId, stream: u64) -> bool {
        if let Some(place) = self.forming.iter().position(|(id, _)| *id == batch) {
            self.forming.remove(place);
            self.free += 1;
        }
        let others = self.running > 0 || !self.forming.is_empty();
        if others {
            self.withheld += std::mem::take(&mut self.free);
            self.line.take_back(stream);
        }
        others
    }

    /// Batches are free again.
    fn come_back(&mut self, batches: usize) {
        self.free += batches + std::mem::take(&mut self.withheld);
    }

    /// Somebody waits for what is handed in: no more delay for it.
    pub fn hurry(&mut self) {
        self.forming.iter_mut().for_each(|(_, batch)| batch.urgent = true);
    }

    /// The next task of a worker that has none. A batch to run is in use until [`Self::finished`].
    pub fn next(&mut self, now: Instant) -> Task {
        let mut wake = None;
        for place in 0..self.forming.len() {
            let (batch, filling) = self.forming[place];
            match policy::decide(&filling, now) {
                Decision::Wait(None) => continue,
                Decision::Wait(Some(until)) => {
                    wake = Some(wake.map_or(until, |known: Instant| known.min(until)));
                    continue;
                }
                Decision::Dispatch => {
                    self.forming.remove(place);
                    self.running += 1;
                    return Task::Run { batch, granted: filling.granted, ready: filling.ready };
                }
                Decision::Discard => {
                    self.forming.remove(place);
                    self.come_back(1);
                    return Task::Discard(batch);
                }
            }
        }
        Task::Wait(wake)
    }

    /// A batch was run; `frames` were in it. Where memory did not suffice for them, `part` is what did.
    pub fn finished(&mut self, frames: usize, part: Option<usize>) {
        self.running -= 1;
        self.come_back(1);
        match part {
            Some(part) => self.ceiling.lower(part),
            None => self.ceiling.ran(frames, self.wish()),
        }
    }

    /// Ends all that is being filled.
    pub fn abandon(&mut self) {
        self.come_back(self.forming.len());
        self.forming.clear();
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod interleavings;
