//! Between the streams and the engine: who gets a slot, when a batch runs, and where its results go.
//!
//! Pure, with the time passed in: [`mod@line`] (who is next), [`policy`] (when a batch runs), [`ceiling`] (how large it may
//! be), and [`queue`], which puts these together. Around them [`batcher`] keeps the frames and the results' [`ticket`]s,
//! `worker` runs, `stock` has the tensors, [`ledger`] holds what the engine takes of the budget, and [`relief`] gives memory back under pressure. Knows neither pads nor buffers, only slots and tickets: it never pushes and takes no element's
//! lock.

pub mod batcher;
pub mod ceiling;
pub mod ledger;
pub mod line;
pub mod policy;
pub mod queue;
pub mod relief;
mod stock;
pub mod ticket;
mod worker;

pub use batcher::{Batcher, Patience, Refused, Slot, Stream};
pub use ledger::{Ledger, Need, Place};
pub use ticket::{Outcome, Ticket};
