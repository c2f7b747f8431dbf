//! How a processor's cores are shared among runs.
//!
//! ONNX Runtime gives a session a pool of threads, which helps whoever calls. With `callers` at the same time and
//! `threads` for one run, that is the caller itself and `threads - 1` of the pool, there are
//! `callers + threads - 1` threads: one for each core in every plan made here.

/// What a run of the engine is wanted for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Hint {
    /// Several callers where there are several streams and two cores or more for each.
    #[default]
    Auto,
    /// One run at a time, on all cores.
    Latency,
    /// As many runs at a time as there are cores, on one core each.
    Throughput,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Plan {
    /// Runs in progress at the same time, at least 1.
    pub callers: usize,
    /// Threads of one run while no other is in progress, at least 1.
    pub threads: usize,
}

/// Each caller has memory of its own for what is between a model's layers (40 MB with YOLO12n), and nobody asked for it.
const MAX_AUTO_CALLERS: usize = 4;
/// So on two cores, where two callers of one thread each are 5 to 25 % faster than one of two (`benches/session_options.sh`), that is
/// for the user to decide.
const CORES_FOR_EACH: usize = 2;

impl Plan {
    /// Of a GPU: one batch is copied while the other runs, and the processor only waits.
    pub const GPU: Self = Self { callers: 2, threads: 1 };

    /// Of the processor in place of a GPU, for as many callers as that had.
    pub fn instead_of_gpu(cores: usize) -> Self {
        let callers = Self::GPU.callers;
        Self { callers, threads: (cores.max(callers)) - callers + 1 }
    }

    /// For `cores` of the processor and, with [`Hint::Auto`], this many detectors in the process.
    pub fn new(hint: Hint, cores: usize, detectors: usize) -> Self {
        let cores = cores.max(1);
        let callers = match hint {
            Hint::Auto => detectors.min(MAX_AUTO_CALLERS).min(cores / CORES_FOR_EACH).max(1),
            Hint::Latency => 1,
            Hint::Throughput => cores,
        };
        Self { callers, threads: cores - callers + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_for_each_core() {
        for (hint, cores, detectors, callers, threads) in [
            (Hint::Latency, 8, 20, 1, 8),
            (Hint::Throughput, 8, 1, 8, 1),
            (Hint::Auto, 2, 0, 1, 2),
            (Hint::Auto, 2, 1, 1, 2),
            (Hint::Auto, 2, 16, 1, 2),
            (Hint::Auto, 4, 1, 1, 4),
            (Hint::Auto, 4, 16, 2, 3),
            (Hint::Auto, 16, 3, 3, 14),
            (Hint::Auto, 16, 100, 4, 13),
            (Hint::Auto, 1, 100, 1, 1),
            (Hint::Throughput, 0, 1, 1, 1),
        ] {
            let plan = Plan::new(hint, cores, detectors);
            assert_eq!(plan, Plan { callers, threads }, "{hint:?}, {cores} cores, {detectors} detectors");
        }
        assert_eq!([0, 1, 2, 8].map(|cores| Plan::instead_of_gpu(cores).threads), [1, 1, 1, 7]);
    }
}
