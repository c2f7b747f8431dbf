//! What this process holds of a GPU, by NVML's account, and of the host, by the kernel's; bytes. What the plugin counts itself is not asked.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use gst::prelude::*;
use gstyolodetect::engine::gpu::driver;
use nvml_wrapper::Nvml;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use parking_lot::Mutex;

use crate::streams::Streams;

/// Often enough to see what a load takes for a moment.
const INTERVAL: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// By the list of processes; `None` where this one is not on it.
    own: Option<u64>,
    /// By the whole card, more than before this process came to it.
    grown: u64,
}

impl Held {
    pub fn is_own(&self) -> bool {
        self.own.is_some()
    }

    pub fn bytes(&self) -> f64 {
        self.own.unwrap_or(self.grown) as f64
    }

    pub fn source(&self) -> &'static str {
        match self.own {
            Some(_) => "NVML, this process",
            // As in most containers, and on Windows.
            None => "NVML, of the whole card, less what was there before: it does not list this process",
        }
    }

    /// The more of both.
    pub fn or(&self, other: &Self) -> Self {
        Self { own: self.own.max(other.own), grown: self.grown.max(other.grown) }
    }

    /// More than `before`; what two sources say is not compared.
    pub fn over(&self, before: &Self) -> f64 {
        match (self.own, before.own) {
            (Some(now), Some(before)) => now as f64 - before as f64,
            _ => self.grown as f64 - before.grown as f64,
        }
    }
}

/// One GPU, found by its place in the machine: NVML's numbers are not CUDA's.
struct Card {
    nvml: Nvml,
    bus_id: String,
    /// Bytes that all processes held before.
    before: u64,
}

impl Card {
    fn find(gpu: u32) -> Result<Self, String> {
        let bus_id = driver::describe(gpu).map_err(|error| error.to_string())?.bus_id;
        let nvml = Nvml::init().map_err(|error| error.to_string())?;
        let mut card = Self { nvml, bus_id, before: 0 };
        card.before = card.look().ok_or("NVML does not tell of the GPU's memory")?.grown;
        Ok(card)
    }

    fn look(&self) -> Option<Held> {
        let device = self.nvml.device_by_pci_bus_id(&*self.bus_id).ok()?;
        let used = device.memory_info().ok()?.used;
        // Who computes and draws is in both lists, with everything in either.
        let lists = [device.running_compute_processes(), device.running_graphics_processes()];
        let own = lists.into_iter().flatten().filter_map(|list| own(&list)).max();
        Some(Held { own, grown: used.saturating_sub(self.before) })
    }
}

fn own(processes: &[ProcessInfo]) -> Option<u64> {
    let own = processes.iter().filter(|process| process.pid == std::process::id());
    own.filter_map(|process| match process.used_gpu_memory {
        UsedGpuMemory::Used(bytes) => Some(bytes),
        UsedGpuMemory::Unavailable => None,
    })
    .reduce(u64::saturating_add)
}

/// Looks at a GPU all the time, from before this process comes to it.
pub struct Watcher(Option<Watched>);

struct Watched {
    card: Arc<Card>,
    most: Arc<Mutex<Option<Held>>>,
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// At none on a processor, nor where nobody tells, which is said.
    pub fn new(gpu: Option<u32>) -> Self {
        let card = gpu.map(Card::find).and_then(|found| {
            found.inspect_err(|error| eprintln!("no figures of the GPU's memory: {error}")).ok()
        });
        Self(card.map(|card| Watched::start(Arc::new(card))))
    }

    pub fn now(&self) -> Option<Held> {
        self.0.as_ref()?.card.look()
    }

    /// Since the last call.
    pub fn most(&self) -> Option<Held> {
        let watched = self.0.as_ref()?;
        let now = self.now();
        let most = watched.most.lock().take();
        most.zip(now).map(|(most, now)| most.or(&now)).or(most).or(now)
    }
}

impl Watched {
    fn start(card: Arc<Card>) -> Self {
        let (end, ended) = mpsc::channel();
        let most = Arc::<Mutex<Option<Held>>>::default();
        let thread = thread::spawn({
            let (card, most) = (card.clone(), most.clone());
            move || {
                while ended.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                    let Some(now) = card.look() else { continue };
                    let mut most = most.lock();
                    *most = Some(most.map_or(now, |most| most.or(&now)));
                }
            }
        });
        Self { card, most, end: Some(end), thread: Some(thread) }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        drop(self.end.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Of the process.
pub fn resident(streams: &Streams) -> f64 {
    let memory =
        streams.detector(0).property::<gst::Structure>("stats").get::<gst::Structure>("memory").unwrap();
    memory.get::<u64>("rss").unwrap_or_default() as f64
}
