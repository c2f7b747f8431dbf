//! GPUs as NVIDIA's management library (NVML) sees them.
//!
//! The library is opened with the first sample. Where there is none, that is all that ever happens. One that fails, or
//! loses its GPUs, is closed and tried anew from time to time.

use std::mem::ManuallyDrop;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use nvml_wrapper::{Device, Nvml};
use parking_lot::Mutex;

use super::sample::Gpu;

/// The driver is asked no more often, whatever the interval of samples.
const INTERVAL: Duration = Duration::from_secs(1);

/// What has failed is tried again after this.
const RETRY: Duration = Duration::from_secs(60);

/// Whether the first attempt found a library. One that was not there will not appear while the process runs.
static PRESENT: OnceLock<bool> = OnceLock::new();

/// The machine's GPUs.
#[derive(Default)]
pub struct Gpus {
    nvml: Option<Library>,
    opened: Option<Instant>,
    /// A call has failed as it does when a GPU or the driver is lost.
    lost: bool,
    read: Option<Instant>,
    latest: Vec<Gpu>,
}

impl Gpus {
    /// Those that can be read, by index; the figures are up to a second old.
    pub fn sample(&mut self, now: Instant, into: &mut Vec<Gpu>) {
        let is_past =
            |then: Option<Instant>, time| then.is_none_or(|then| now.saturating_duration_since(then) >= time);
        if is_past(self.read, INTERVAL) {
            self.read = Some(now);
            if (self.nvml.is_none() || self.lost) && is_past(self.opened, RETRY) {
                self.opened = Some(now);
                // Closed before it is opened again: while it is open, the library that is gone would be found again.
                self.nvml = None;
                self.nvml = Library::open();
            }
            self.latest.clear();
            self.lost = self.nvml.as_ref().is_some_and(|Library(nvml)| read(nvml, &mut self.latest).is_err());
        }
        into.clone_from(&self.latest);
    }
}

/// Closed when dropped.
struct Library(ManuallyDrop<Nvml>);

impl Drop for Library {
    fn drop(&mut self) {
        // Its drop calls this function without looking, and panics.
        if self.0.lib().nvmlShutdown.is_ok() {
            // SAFETY: it is not used after this.
            unsafe { ManuallyDrop::drop(&mut self.0) };
        }
    }
}

impl Library {
    fn open() -> Option<Self> {
        if PRESENT.get() == Some(&false) {
            return None;
        }
        let nvml = Nvml::init();
        PRESENT.get_or_init(|| !matches!(nvml, Err(NvmlError::LibloadingError(_))));
        Some(Self(ManuallyDrop::new(nvml.ok()?)))
    }
}

/// # Errors
/// Where a GPU, or the library as a whole, is lost. All GPUs that can be read are there nevertheless.
fn read(nvml: &Nvml, gpus: &mut Vec<Gpu>) -> Result<(), Lost> {
    let mut outcome = Ok(());
    for index in 0..nvml.device_count().map_err(|_| Lost)? {
        let device = nvml.device_by_index(index);
        match device.and_then(|device| Ok((device.memory_info()?, own(&device)))) {
            Ok((memory, own)) => {
                let own = own.or_else(|| counted(index));
                gpus.push(Gpu { index, total: memory.total, used: memory.used, own });
            }
            // It works, and will never tell.
            Err(NvmlError::NotSupported | NvmlError::NoPermission | NvmlError::FailedToLoadSymbol(_)) => (),
            Err(_) => outcome = Err(Lost),
        }
    }
    outcome
}

struct Lost;

/// What this process holds on a GPU; `None` where the driver lists it with neither kind of processes, as in containers
/// where it tells the process numbers of the host.
fn own(device: &Device) -> Option<u64> {
    let lists = [device.running_compute_processes(), device.running_graphics_processes()];
    // A process that computes and draws is in both lists, with all its memory in either.
    lists.into_iter().flatten().filter_map(|list| listed(&list)).max()
}

/// A process has an entry for each part of a GPU that it uses.
fn listed(processes: &[ProcessInfo]) -> Option<u64> {
    let own = processes.iter().filter(|process| process.pid == std::process::id());
    own.filter_map(|process| match process.used_gpu_memory {
        UsedGpuMemory::Used(bytes) => Some(bytes),
        UsedGpuMemory::Unavailable => None,
    })
    .reduce(u64::saturating_add)
}

/// A GPU that this process uses, and how many bytes of it by its own count.
struct Counted {
    /// The driver's number.
    index: u32,
    /// CUDA's, which may be another.
    gpu: u32,
    bytes: fn(u32) -> u64,
}

/// Lock: a leaf.
static COUNTED: Mutex<Vec<Counted>> = Mutex::new(Vec::new());

/// From now on `bytes`, asked with `gpu`, tells what this process holds on the GPU at this place of the machine, where the driver does
/// not.
pub fn count(bus_id: &str, gpu: u32, bytes: fn(u32) -> u64) {
    let library = Library::open();
    let find =
        |Library(nvml): &Library| nvml.device_by_pci_bus_id(bus_id).and_then(|device| device.index()).ok();
    let index = library.as_ref().and_then(find);
    let mut counted = COUNTED.lock();
    if counted.iter().all(|known| known.gpu != gpu) {
        counted.push(Counted { index: index.unwrap_or(gpu), gpu, bytes });
    }
}

fn counted(index: u32) -> Option<u64> {
    let counted = COUNTED.lock();
    let known = counted.iter().find(|known| known.index == index)?;
    Some((known.bytes)(known.gpu)).filter(|&bytes| bytes > 0)
}

/// What is used of one GPU, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// By all.
    used: u64,
    /// By this process, where the driver lists it.
    own: Option<u64>,
}

impl Usage {
    /// Bytes that this process took since `before`; where it is not listed, those that all took.
    pub fn grown_by(&self, before: &Self) -> u64 {
        match self.own {
            // A process is listed from its first context on.
            Some(own) => own.saturating_sub(before.own.unwrap_or(0)),
            None => self.used.saturating_sub(before.used),
        }
    }
}

/// What is used now of the GPU at this place of the machine, as `0000:65:00.0`; the library is opened for this question. `None`
/// where it does not tell.
pub fn usage(bus_id: &str) -> Option<Usage> {
    let Library(nvml) = &Library::open()?;
    let device = nvml.device_by_pci_bus_id(bus_id).ok()?;
    Some(Usage { used: device.memory_info().ok()?.used, own: own(&device) })
}
