//! What frames on a GPU take of its budget.

use std::sync::Arc;

use super::Refusal;
use crate::engine::gpu::budget;
use crate::engine::gpu::driver::Card;
use crate::memory::budget::Reservation;

/// Takes `more` bytes that are about to be allocated on the card.
///
/// # Errors
/// Where the budget has no room, or, without one, less than its automatic limit is left; and while an engine is loaded there, since what
/// that takes is measured by what the GPU has left.
pub fn take(card: &Arc<Card>, held: &mut Reservation, more: u64) -> Result<(), Refusal> {
    let gpu = card.index();
    if budget::is_loading(gpu) {
        return Err(Refusal::Loading);
    }
    let budget = budget::of(gpu);
    if budget.ceiling().is_none() {
        let limit = budget::automatic(card.memory()?.total);
        if budget::held(gpu).saturating_add(more) > limit {
            return Err(Refusal::Full { more, limit });
        }
    }
    Ok(held.grow(more)?)
}
