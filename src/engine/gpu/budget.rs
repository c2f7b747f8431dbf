//! How much of a GPU an engine may take. Pure.

/// Bytes of a GPU that an engine takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpuUse {
    /// CUDA itself, once for each process; 0 where an earlier engine has paid for it.
    pub context: u64,
    /// The session: weights, and the libraries' own.
    pub model: u64,
    /// What is between the layers of the largest batch.
    pub arena: u64,
    /// What goes in and comes out.
    pub tensors: u64,
}
