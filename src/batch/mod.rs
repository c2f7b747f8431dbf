//! Between the streams and the engine: who gets a slot, when a batch runs, and where its results go.
//!
//! Knows neither pads nor buffers, only slots and tickets: it never pushes and takes no element's lock.

pub mod batcher;
pub mod policy;
pub mod ticket;

pub use batcher::{Batcher, Refused, Slot, Stream};
pub use ticket::{Outcome, Ticket};
