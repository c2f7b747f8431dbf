//! One look at the memory of the process and of what surrounds it.

use super::heap::Heap;

/// Bytes throughout.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// The process's resident set, and of it what is no file's page.
    pub resident: u64,
    pub anonymous: u64,
    pub cgroup: Option<Cgroup>,
    pub system: Option<System>,
    pub heap: Option<Heap>,
    pub gpus: Vec<Gpu>,
}

/// The container, where it has a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cgroup {
    /// Usage without the file cache that the kernel would drop first.
    pub used: u64,
    pub limit: u64,
    /// Share of the last 10 s in which some task waited for memory, 0 to 100; `None` where the kernel does not say.
    pub stall: Option<f32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct System {
    pub total: u64,
    pub available: u64,
    /// As [`Cgroup::stall`], of the whole machine.
    pub stall: Option<f32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gpu {
    pub index: u32,
    pub total: u64,
    /// By all processes.
    pub used: u64,
    /// By this one; `None` where the driver does not say.
    pub own: Option<u64>,
}

/// Takes samples; keeps files open and buffers between them.
pub trait Sampler: Send {
    fn sample(&mut self, into: &mut Sample);
}

/// The real one.
#[derive(Default)]
pub struct SystemSampler {}

impl Sampler for SystemSampler {
    fn sample(&mut self, into: &mut Sample) {
        into.resident = super::resident_bytes();
    }
}
