//! Who holds how much of what is allowed: reservations with an owner, given back on drop. Pure bookkeeping.
//!
//! A budget is a ceiling of the whole process. What is not reserved here (the application, decoders, libraries) is in its
//! resident set and counts as well: a reservation of `wanted` bytes is granted where
//! `max(resident set, all reservations) + wanted` stays within the limit. With no limit everything is granted and still
//! counted.
//!
//! The greater of the two and not their sum, because most of what is reserved is resident: the sum would count it twice
//! and refuse what fits. The resident set alone would not see what is promised and not yet written to, and with that alone
//! reservations could exceed the limit. What neither sees is how much of others' memory hides behind a promise that is
//! not kept yet: whoever reserves much writes to it soon, and [`Reservation::set`]s it to what it has become. Memory that
//! grows past its reservation, or is nobody's, is what levels of pressure are for.
//!
//! Lock: `Budget::state` is a leaf; nothing else is taken while it is held.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use thiserror::Error;

/// What memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Consumer {
    /// A session: weights and graph.
    Model,
    /// What a session's runs need between layers.
    Arena,
    /// Inputs that batches are formed in.
    Tensors,
    /// Buffers of streams that wait for their results.
    Frames,
    /// Detections that are kept.
    History,
}

impl Consumer {
    pub const ALL: [Consumer; 5] =
        [Consumer::Model, Consumer::Arena, Consumer::Tensors, Consumer::Frames, Consumer::History];

    pub fn name(self) -> &'static str {
        match self {
            Consumer::Model => "model",
            Consumer::Arena => "arena",
            Consumer::Tensors => "tensors",
            Consumer::Frames => "frames",
            Consumer::History => "history",
        }
    }
}

/// One kind of memory: the host's, or that of a device.
pub struct Budget {
    /// The property that sets its limit.
    property: &'static str,
    /// Bytes that the process holds of this memory by the system's own count.
    resident: fn() -> u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: Vec<Entry>,
    limits: Vec<Claim>,
    /// Taken whoever has reserved what, bytes.
    aside: u64,
    next: u64,
}

struct Entry {
    id: u64,
    consumer: Consumer,
    owner: Arc<str>,
    bytes: u64,
}

struct Claim {
    id: u64,
    owner: Arc<str>,
    bytes: u64,
}

/// The host's memory.
pub static HOST: Budget = Budget::new("memory-budget", super::resident_bytes);

/// Does not fit, with the sum.
#[derive(Clone, Debug, Error)]
pub struct Exceeded {
    pub property: &'static str,
    pub consumer: Consumer,
    pub owner: Arc<str>,
    pub wanted: u64,
    pub limit: u64,
    /// What the process holds beside reservations.
    pub others: u64,
    /// Reservations, largest first.
    pub users: Vec<Usage>,
}

/// What one owner has reserved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    pub consumer: Consumer,
    pub owner: Arc<str>,
    pub bytes: u64,
}

/// Two live owners want different limits.
#[derive(Clone, Debug, Error)]
#[error(
    "{property}={wanted} of {owner} and {property}={known} of {holder} cannot both hold: the budget is that of the whole \
     process, give all elements the same or only one of them any"
)]
pub struct Conflict {
    pub property: &'static str,
    pub owner: Arc<str>,
    pub wanted: u64,
    pub holder: Arc<str>,
    pub known: u64,
}

impl Budget {
    pub const fn new(property: &'static str, resident: fn() -> u64) -> Self {
        let state = State { entries: Vec::new(), limits: Vec::new(), aside: 0, next: 0 };
        Self { property, resident, state: Mutex::new(state) }
    }

    /// Bounds the process while the guard lives. 0 bounds nothing and agrees with every limit.
    pub fn limit(&'static self, owner: &str, bytes: u64) -> Result<Limit, Conflict> {
        let mut state = self.state.lock();
        if bytes != 0
            && let Some(known) = state.limits.iter().find(|claim| claim.bytes != 0 && claim.bytes != bytes)
        {
            return Err(Conflict {
                property: self.property,
                owner: owner.into(),
                wanted: bytes,
                holder: known.owner.clone(),
                known: known.bytes,
            });
        }
        let id = state.next_id();
        state.limits.push(Claim { id, owner: owner.into(), bytes });
        Ok(Limit { budget: self, id })
    }

    /// Most bytes that the process may hold; `None` without a limit.
    pub fn ceiling(&self) -> Option<u64> {
        self.state.lock().ceiling()
    }

    /// Bytes for `owner` (a model's file, an element's name), or the sum that shows why not.
    pub fn reserve(
        &'static self,
        consumer: Consumer,
        owner: &str,
        bytes: u64,
    ) -> Result<Reservation, Exceeded> {
        let mut held = self.hold(consumer, owner);
        held.grow(bytes)?;
        Ok(held)
    }

    /// An empty reservation, to be filled by [`Reservation::grow`] or [`Reservation::set`].
    pub fn hold(&'static self, consumer: Consumer, owner: &str) -> Reservation {
        let mut state = self.state.lock();
        let id = state.next_id();
        state.entries.push(Entry { id, consumer, owner: owner.into(), bytes: 0 });
        Reservation { budget: self, id, bytes: 0 }
    }

    /// Bytes that can still be reserved; `None` without a limit.
    pub fn room(&self) -> Option<u64> {
        let resident = (self.resident)();
        let state = self.state.lock();
        state.ceiling().map(|limit| limit.saturating_sub(state.taken(resident)))
    }

    /// All that is reserved.
    pub fn reserved(&self) -> u64 {
        self.state.lock().reserved()
    }

    /// What is taken once and for all, and beside all reservations, by the device itself: 0 at first. The largest of those that were
    /// ever told counts.
    pub fn set_aside(&self, bytes: u64) -> u64 {
        let mut state = self.state.lock();
        state.aside = state.aside.max(bytes);
        state.aside
    }

    /// Every reservation that is not empty, largest first.
    pub fn usage(&self) -> Vec<Usage> {
        self.state.lock().usage()
    }

    /// What all of one kind have reserved.
    pub fn reserved_for(&self, consumer: Consumer) -> u64 {
        let state = self.state.lock();
        sum(state.entries.iter().filter(|entry| entry.consumer == consumer).map(|entry| entry.bytes))
    }
}

/// Without a limit anything is granted, also more than there can be.
fn sum(bytes: impl Iterator<Item = u64>) -> u64 {
    bytes.fold(0, u64::saturating_add)
}

impl State {
    fn next_id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn ceiling(&self) -> Option<u64> {
        self.limits.iter().map(|claim| claim.bytes).find(|&bytes| bytes != 0)
    }

    fn reserved(&self) -> u64 {
        sum(self.entries.iter().map(|entry| entry.bytes))
    }

    /// Of the limit, where so much is resident.
    fn taken(&self, resident: u64) -> u64 {
        self.reserved().saturating_add(self.aside).max(resident)
    }

    fn usage(&self) -> Vec<Usage> {
        let mut usage: Vec<_> = self
            .entries
            .iter()
            .filter(|entry| entry.bytes != 0)
            .map(|entry| Usage { consumer: entry.consumer, owner: entry.owner.clone(), bytes: entry.bytes })
            .collect();
        usage.sort_by_key(|usage| std::cmp::Reverse(usage.bytes));
        usage
    }

    fn exceeded(&mut self, held: &Reservation, wanted: u64, limit: u64, others: u64) -> Exceeded {
        let users = self.usage();
        let entry = self.entry(held.id);
        Exceeded {
            property: held.budget.property,
            consumer: entry.as_ref().map_or(Consumer::Model, |entry| entry.consumer),
            owner: entry.map_or_else(|| "".into(), |entry| entry.owner.clone()),
            wanted,
            limit,
            others,
            users,
        }
    }

    fn entry(&mut self, id: u64) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.id == id)
    }
}

/// A limit in force.
pub struct Limit {
    budget: &'static Budget,
    id: u64,
}

impl Drop for Limit {
    fn drop(&mut self) {
        self.budget.state.lock().limits.retain(|claim| claim.id != self.id);
    }
}

/// Bytes that count as taken until this is dropped.
pub struct Reservation {
    budget: &'static Budget,
    id: u64,
    bytes: u64,
}

impl Reservation {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes `more` bytes that are about to be allocated.
    pub fn grow(&mut self, more: u64) -> Result<(), Exceeded> {
        let resident = (self.budget.resident)();
        let mut state = self.budget.state.lock();
        let taken = state.taken(resident);
        if let Some(limit) = state.ceiling()
            && taken.saturating_add(more) > limit
        {
            let others = taken.saturating_sub(state.reserved());
            return Err(state.exceeded(self, more, limit, others));
        }
        self.bytes = self.bytes.saturating_add(more);
        if let Some(entry) = state.entry(self.id) {
            entry.bytes = self.bytes;
        }
        Ok(())
    }

    /// The sum where `more` bytes are refused for another reason than the limit.
    pub fn refuse(&self, more: u64) -> Exceeded {
        let mut state = self.budget.state.lock();
        let limit = state.ceiling().unwrap_or_else(|| state.reserved());
        state.exceeded(self, more, limit, 0)
    }

    /// What it really is, as measured: never refused, since it is there.
    pub fn set(&mut self, bytes: u64) {
        self.bytes = bytes;
        if let Some(entry) = self.budget.state.lock().entry(self.id) {
            entry.bytes = bytes;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.state.lock().entries.retain(|entry| entry.id != self.id);
    }
}

/// Bytes as people read them.
pub struct Megabytes(pub u64);

impl fmt::Display for Megabytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} MB", self.0 as f64 / 1e6)
    }
}

/// Of those that hold most, how many an error names.
const NAMED: usize = 4;

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { property, consumer, owner, wanted, limit, others, users } = self;
        let (consumer, limit_is) = (consumer.name(), Megabytes(*limit));
        let wanted = Megabytes(*wanted);
        write!(
            f,
            "{wanted} for the {consumer} of {owner} do not fit into {property}={limit} ({limit_is}), of which "
        )?;
        let (named, more) = users.split_at(users.len().min(NAMED));
        // Said once, with the first.
        let mut are_taken = " are taken";
        for Usage { consumer, owner, bytes } in named {
            write!(f, "{}{are_taken} by the {} of {owner}, ", Megabytes(*bytes), consumer.name())?;
            are_taken = "";
        }
        if !more.is_empty() {
            let bytes = sum(more.iter().map(|usage| usage.bytes));
            write!(f, "{} by {} more, ", Megabytes(bytes), more.len())?;
        }
        let (and, others) = (if users.is_empty() { "" } else { "and " }, Megabytes(*others));
        write!(f, "{and}{others}{are_taken} by the rest of the process: ")?;
        write!(f, "raise {property}, or use a smaller model or fewer streams")
    }
}

#[cfg(test)]
mod tests;
