//! What the process holds, on the GPU and on the host, bytes.

use std::process::Command;
use std::time::Duration;

use gst::prelude::*;

use crate::streams::Streams;

/// What a card held before this process came to it.
pub struct Watcher {
    card: Option<String>,
    before: Option<f64>,
}

pub struct Look {
    /// `None` where nobody tells.
    pub card: Option<f64>,
    /// Who told.
    pub source: &'static str,
    pub resident: f64,
}

impl Watcher {
    pub fn new(device: &str) -> Self {
        let card = match device.split_once(':').unwrap_or((device, "0")) {
            ("cuda" | "tensorrt", number) => Some(number.to_string()),
            _ => None,
        };
        Self { before: card.as_deref().and_then(used), card }
    }

    pub fn look(&self, streams: &Streams) -> Look {
        // The plugin asks NVML once a second at most.
        std::thread::sleep(Duration::from_millis(if self.card.is_some() { 2500 } else { 0 }));
        let memory =
            streams.detector(0).property::<gst::Structure>("stats").get::<gst::Structure>("memory").unwrap();
        let own = memory.get::<u64>("gpu-own").ok().filter(|own| *own > 0).map(|own| own as f64);
        let grown = || Some(self.card.as_deref().and_then(used)? - self.before?);
        let (card, source) = match (&self.card, own) {
            (None, _) => (None, ""),
            (_, Some(own)) => (Some(own), "NVML"),
            // In a container the driver may not know whose memory it is.
            _ => (grown(), "nvidia-smi, of the whole card, less what was there before"),
        };
        Look { card, source, resident: memory.get::<u64>("rss").unwrap_or_default() as f64 }
    }
}

/// Of the whole card.
fn used(card: &str) -> Option<f64> {
    let output = Command::new("nvidia-smi")
        .args(["--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", card])
        .output()
        .ok()?;
    let mebibytes: f64 = String::from_utf8_lossy(&output.stdout).trim().parse().ok()?;
    Some(mebibytes * 1024.0 * 1024.0)
}
