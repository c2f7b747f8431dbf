//! Whether there is room for a model: within the budget and within the container.

use std::path::Path;

use super::EngineError;
use super::estimate::Estimate;
use crate::batch::{Ledger, Need};
use crate::memory::budget::{HOST, Megabytes};
use crate::memory::sample::{Cgroup, SystemSampler};

/// Reserves what a load will take; a run has one frame at the least.
///
/// # Errors
/// [`super::EngineErrorKind::NoBudget`], with the sum.
pub fn reserve(file: &Path, estimate: &Estimate, callers: usize) -> Result<Ledger, EngineError> {
    let need = estimate.need(1, callers);
    if let Some(container) = SystemSampler::default().container() {
        within(container, file, need)?;
    }
    let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy();
    let mut ledger = Ledger::new(&HOST, &name);
    ledger.reserve(need).map_err(|exceeded| EngineError::no_budget(file, need, &exceeded))?;
    Ok(ledger)
}

/// Better refused than killed.
fn within(container: Cgroup, file: &Path, need: Need) -> Result<(), EngineError> {
    let Cgroup { used, limit, .. } = container;
    if need.total() <= limit.saturating_sub(used) {
        return Ok(());
    }
    let why = format!(
        "the container's limit is {limit} bytes ({}), of which {} are used: raise it, or use a smaller model or fewer streams",
        Megabytes(limit),
        Megabytes(used)
    );
    Err(EngineError::beyond(file, need, &why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineErrorKind;

    #[test]
    fn a_container_that_is_too_small_is_told_with_the_sum() {
        let need = Need { model: 50_000_000, arena: 30_000_000, tensors: 10_000_000 };
        let within = |used, limit| within(Cgroup { used, limit, stall: None }, Path::new("m.onnx"), need);
        assert!(within(10_000_000, 100_000_000).is_ok());
        for (used, limit) in [(10_000_001, 100_000_000), (200, 100), (0, 0)] {
            let error = within(used, limit).unwrap_err();
            assert_eq!(error.kind, EngineErrorKind::NoBudget);
            for word in ["m.onnx", "90.0 MB", "container", &limit.to_string()] {
                assert!(error.message.contains(word), "{word}: {}", error.message);
            }
        }
    }
}
