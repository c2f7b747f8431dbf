//! One look at the memory of the process and of what surrounds it.

use std::path::PathBuf;
use std::time::Instant;

use sysinfo::{MemoryRefreshKind, System as Machine};

use super::heap::{self, Heap};
use super::nvml::Gpus;

mod cgroup;
mod procfs;

pub use procfs::Process;

use cgroup::Cgroups;
use procfs::Text;

/// Bytes throughout. What the system does not tell is missing, or 0.
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

/// The container, where it has a limit below the machine's memory. Of nested ones the fullest, since that runs short first.
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

/// Takes samples.
pub trait Sampler: Send {
    fn sample(&mut self, into: &mut Sample);
}

/// The real one. Text is read into a buffer that is kept between samples.
pub struct SystemSampler {
    /// `/proc`.
    proc: PathBuf,
    text: Text,
    cgroups: Cgroups,
    /// `None` on a system that is not known.
    machine: Option<Machine>,
    gpus: Gpus,
}

impl Default for SystemSampler {
    fn default() -> Self {
        Self::new("/proc")
    }
}

impl SystemSampler {
    /// Reads of `proc` what Linux has in `/proc`; the machine's memory and the GPUs are always this machine's.
    pub fn new(proc: impl Into<PathBuf>) -> Self {
        Self {
            proc: proc.into(),
            text: Text::default(),
            cgroups: Cgroups::default(),
            machine: Machine::new().ok(),
            gpus: Gpus::default(),
        }
    }

    /// The container alone, for one who is about to take memory; GPUs are not asked.
    pub fn container(&mut self) -> Option<Cgroup> {
        let total = self.system().map(|system| system.total);
        self.cgroups.sample(&mut self.text, &self.proc, total)
    }

    /// The machine alone.
    pub fn system(&mut self) -> Option<System> {
        let machine = self.machine.as_mut()?;
        machine.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        let (total, available) = (machine.total_memory(), machine.available_memory());
        let stall = procfs::stall(&mut self.text, &self.proc.join("pressure/memory"));
        (total > 0).then_some(System { total, available, stall })
    }
}

impl Sampler for SystemSampler {
    fn sample(&mut self, into: &mut Sample) {
        let Process { resident, anonymous } =
            Process::read(&mut self.text, &self.proc.join("self/statm")).unwrap_or_default();
        into.resident = resident;
        into.anonymous = anonymous;
        into.system = self.system();
        let total = into.system.map(|system| system.total);
        into.cgroup = self.cgroups.sample(&mut self.text, &self.proc, total);
        into.heap = heap::heap();
        self.gpus.sample(Instant::now(), &mut into.gpus);
    }
}

#[cfg(test)]
mod tests;
