//! Detections per class, read from the lines of `yolojson` as they pass.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use gst::prelude::*;
use serde_json::Value;

#[derive(Clone, Copy, Default)]
struct Class {
    detections: u64,
    frames: u64,
    /// 0..=1
    best: f64,
    /// The latest frame that had one, to count it once.
    line: u64,
}

#[derive(Clone, Default)]
pub struct Classes {
    lines: u64,
    classes: BTreeMap<String, Class>,
}

impl Classes {
    fn add(&mut self, line: &[u8]) {
        let Ok(line) = serde_json::from_slice::<Value>(line) else { return };
        self.lines += 1;
        for detection in line["detections"].as_array().into_iter().flatten() {
            let class = self.classes.entry(detection["class"].as_str().unwrap_or("?").into()).or_default();
            class.detections += 1;
            class.frames += u64::from(class.line != self.lines);
            class.line = self.lines;
            class.best = class.best.max(detection["conf"].as_f64().unwrap_or(0.0));
        }
    }
}

impl fmt::Display for Classes {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.classes.is_empty() {
            return writeln!(f, "nothing was detected");
        }
        let mut rows: Vec<_> = self.classes.iter().collect();
        rows.sort_by_key(|(_, class)| std::cmp::Reverse(class.detections));
        let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).max("class".len());
        writeln!(f, "{:width$}  detections  frames  best confidence", "class")?;
        for (name, class) in rows {
            let Class { detections, frames, best, .. } = class;
            writeln!(f, "{name:width$}  {detections:>10}  {frames:>6}  {best:>15.2}")?;
        }
        Ok(())
    }
}

/// Reads along at a pad of JSON lines.
#[derive(Clone, Default)]
pub struct Tally(Arc<Mutex<Classes>>);

impl Tally {
    pub fn watch(&self, pad: &gst::Pad) {
        let tally = self.clone();
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            if let Some(text) = info.buffer().and_then(|buffer| buffer.map_readable().ok()) {
                let mut classes = tally.0.lock().unwrap_or_else(PoisonError::into_inner);
                text.split(|&byte| byte == b'\n')
                    .filter(|line| !line.is_empty())
                    .for_each(|line| classes.add(line));
            }
            gst::PadProbeReturn::Ok
        });
    }

    pub fn get(&self) -> Classes {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
