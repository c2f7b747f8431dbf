//! What an element has between READY and NULL: its share of an engine, and how it names what that finds.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use super::live::Live;
use super::pressure::Pressure;
use super::settings::{MetaChoice, Overload, Settings};
use crate::batch::Stream;
use crate::batch::batcher::BatcherStats;
use crate::decode::{ClassFilter, Thresholds};
use crate::detection::{ClassId, Labels};
use crate::engine::active::Change;
use crate::engine::cache::Cache;
use crate::engine::device::Device;
use crate::engine::registry::{self, Lease, Wanted};
use crate::engine::{BatchSize, EngineError, EngineErrorKind};
use crate::memory::budget;
use crate::meta::{self, Kinds, LabelQuarks};

/// Lives from READY→PAUSED to PAUSED→READY.
pub struct Session {
    pub stream: Stream,
    pub labels: Labels,
    pub quarks: LabelQuarks,
    pub kinds: Kinds,
    pub element: Arc<str>,
    /// Dropped after `stream`: the engine is kept idle or goes.
    lease: Lease,
    /// `memory-budget`, in force while the element is there.
    _budget: Option<budget::Limit>,
    pub pressure: Pressure,
}

/// Names made in advance for an end-to-end model that does not say how many classes it has.
const UNTOLD_CLASSES: usize = 1000;

/// Most frames that a stream holds by itself, however large batch and interval are.
const MAX_AUTO_IN_FLIGHT: usize = 16;

impl Session {
    /// Checks the settings and gets the engine, loading it where no other element has it. `detectors` are in this
    /// process, this one included.
    pub fn open(
        settings: &Settings,
        element: &str,
        detectors: usize,
        pressure: Pressure,
        cache: Option<Cache>,
    ) -> Result<Self, EngineError> {
        let refuse = |message: String| EngineError::new(EngineErrorKind::Settings, message, "");
        let Some(model) = settings.model_file.clone() else {
            return Err(EngineError::new(
                EngineErrorKind::ModelMissing,
                "no model is set: set model-file to the ONNX file of a YOLO model",
                "",
            ));
        };
        let device = Device::parse(&settings.device.device).map_err(refuse)?;
        let kinds = kinds(settings).map_err(refuse)?;
        let bytes = settings.memory.memory_budget;
        // Before anything is loaded that it shall bound.
        let budget = (bytes != 0).then(|| budget::HOST.limit(element, bytes)).transpose();
        let _budget = budget.map_err(|conflict| refuse(conflict.to_string()))?;
        let max_batch = settings.max_batch as usize;
        let wanted = Wanted {
            model,
            library: settings.onnxruntime_library.clone(),
            head: settings.head.head(),
            device,
            gpu: settings.device.gpu(),
            fallback: settings.device.fallback(),
            gpu_budget: settings.memory.gpu_memory_budget,
            element: element.into(),
            threads: settings.thread_count(),
            hint: settings.performance_hint.hint(),
            detectors,
            max_batch,
            keep_alive: settings.memory.model_keep_alive.into(),
            cache,
        };
        let lease = registry::get(&wanted)?;
        let spec = lease.engine().spec();
        let labels =
            labels(settings.label_file.as_deref(), spec.labels.as_ref(), spec.layout.classes, &wanted.model)
                .map_err(refuse)?;
        let session = Self {
            quarks: LabelQuarks::new(&labels, spec.layout.classes.unwrap_or(UNTOLD_CLASSES)),
            labels,
            kinds,
            element: element.into(),
            stream: lease.attach(max_batch)?,
            lease,
            _budget,
            pressure,
        };
        session.class_filter(settings).map_err(refuse)?;
        Ok(session)
    }

    /// What is new of where the model runs since `seen`.
    pub fn device_news(&self, seen: &AtomicU32) -> Option<Change> {
        self.lease.news(seen)
    }

    /// How long the engine shall be kept when its last element has left.
    pub fn keep_engine_for(&self, time: Duration) {
        self.lease.keep_for(time);
    }

    /// A model that always runs another number of frames than is asked for; said once for each engine.
    pub fn batch_warning(&self, settings: &Settings) -> Option<String> {
        let BatchSize::Fixed(size) = self.stream.spec().batch else { return None };
        let file = self.stream.spec().file.display();
        let wanted = match settings.max_batch as usize {
            0 => self.lease.usual_batch(),
            wanted => wanted,
        };
        let warning = match wanted {
            wanted if wanted == size => return None,
            wanted if size == 1 => format!(
                "{file} runs one frame at a time, so that max-batch={wanted} changes nothing. Export it with a dynamic \
                 batch"
            ),
            _ => format!(
                "{file} always runs {size} frames; smaller batches are padded and take as long. Export it with a \
                 dynamic batch, or set max-batch={size} and enough streams to fill it"
            ),
        };
        self.stream.batcher().first_to_tell().then_some(warning)
    }

    fn class_filter(&self, settings: &Settings) -> Result<Option<ClassFilter>, String> {
        let classes = self.stream.spec().layout.classes;
        let ids =
            settings.classes.as_deref().map(|list| parse_classes(list, &self.labels, classes)).transpose()?;
        Ok(ids.map(ClassFilter::from_ids))
    }
}

fn kinds(settings: &Settings) -> Result<Kinds, String> {
    // Not asked where it does not matter: the first question loads a library.
    let analytics = match settings.analytics_meta {
        MetaChoice::Off => false,
        MetaChoice::Auto => meta::analytics_available(),
        MetaChoice::On if meta::analytics_available() => true,
        MetaChoice::On => {
            return Err("analytics-meta=on needs GStreamer 1.24 or newer with libgstanalytics-1.0 (gst-plugins-bad); \
                        use roi-meta instead"
                .into());
        }
    };
    let roi = match settings.roi_meta {
        MetaChoice::Auto => !analytics,
        choice => choice == MetaChoice::On,
    };
    Ok(Kinds { analytics, roi })
}

/// `classes` is `None` for an end-to-end model that does not say how many it has.
fn labels(
    file: Option<&Path>,
    known: Option<&Labels>,
    classes: Option<usize>,
    model: &Path,
) -> Result<Labels, String> {
    if let Some(file) = file {
        let text = fs::read_to_string(file)
            .map_err(|error| {
                format!(
                    "the label file {} cannot be read: {error}; set label-file to a text file with one class name a line",
                    file.display()
                )
            })?;
        let labels = Labels::from_lines(&text);
        if let Some(classes) = classes
            && labels.len() < classes
        {
            return Err(format!(
                "the label file {} has {} lines, but the model {} has {classes} classes: give each class a line",
                file.display(),
                labels.len(),
                model.display()
            ));
        }
        return Ok(labels);
    }
    Ok(match known {
        Some(names) => names.clone(),
        None if classes == Some(80) => Labels::coco(),
        None => Labels::numbered(classes.unwrap_or(0)),
    })
}

/// Names or numbers, separated by commas; a name may hold spaces, not commas.
fn parse_classes(list: &str, labels: &Labels, classes: Option<usize>) -> Result<Vec<ClassId>, String> {
    let parse = |entry: &str| {
        let number =
            entry.parse::<ClassId>().ok().filter(|&id| classes.is_none_or(|classes| (id as usize) < classes));
        labels.position(entry).or(number).ok_or_else(|| {
            let last = classes.unwrap_or(labels.len()).saturating_sub(1) as ClassId;
            format!(
                "classes={list}: the model has no class {entry:?}; it has those from 0 ({}) to {last} ({})",
                labels.name(0),
                labels.name(last)
            )
        })
    };
    let ids: Vec<ClassId> = list
        .split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
        .map(parse)
        .collect::<Result<_, _>>()?;
    if ids.is_empty() {
        return Err(format!("classes={list} names no class; leave it unset to keep all"));
    }
    Ok(ids)
}

/// The settings as a frame needs them, worked out once per change.
pub struct Tuning {
    pub thresholds: Arc<Thresholds>,
    pub interval: u32,
    pub max_fps: f64,
    pub overload: Overload,
    pub priority: u32,
    pub batch_delay: Duration,
    /// As the user wants it; 0 for [`Self::in_flight`] to decide.
    max_in_flight: usize,
}

impl Tuning {
    /// # Errors
    /// A `classes` entry that the model does not have.
    pub fn new(settings: &Settings, session: &Session) -> Result<Self, String> {
        Ok(Self {
            thresholds: Arc::new(Thresholds {
                confidence: settings.confidence_threshold,
                iou: settings.iou_threshold,
                class_agnostic: settings.class_agnostic_nms,
                max_detections: settings.max_detections as usize,
                classes: session.class_filter(settings)?,
            }),
            interval: settings.inference_interval.max(1),
            max_fps: settings.max_fps,
            overload: settings.overload,
            priority: settings.priority,
            batch_delay: settings.batch_delay.into(),
            max_in_flight: settings.max_in_flight as usize,
        })
    }

    /// Most frames held.
    pub fn in_flight(&self, session: &Session, live: &Live) -> usize {
        self.frames(session, live, Live::depth)
    }

    /// Buffers that upstream's pool should have for us.
    pub fn buffers(&self, session: &Session, live: &Live) -> usize {
        // And one being pushed.
        self.frames(session, live, Live::usual_depth) + 1
    }

    fn frames(&self, session: &Session, live: &Live, depth: fn(&Live) -> usize) -> usize {
        if self.max_in_flight != 0 {
            return self.max_in_flight;
        }
        // The stream's share of the engine's slots, every frame in one with the uninferred ones behind it.
        let BatcherStats { slots, streams, .. } = session.stream.batcher().stats();
        let share = slots.div_ceil(streams.max(1));
        // And one that is about to get a slot. Of many streams others stand in line at any time, but who has more than one
        // turn in a round must be there for the next.
        let next = usize::from(streams < 2 * slots || self.priority > 1);
        let busy = share.saturating_mul(self.interval as usize).min(MAX_AUTO_IN_FLIGHT.max(share)) + next;
        match live.is() {
            // A live source must not be held up while a frame takes as long as it was told.
            Some(true) if self.overload != Overload::Block => busy.max(depth(live)),
            _ => busy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_names_or_numbers() {
        let labels = Labels::coco();
        assert_eq!(parse_classes("person, traffic light,2", &labels, Some(80)), Ok(vec![0, 9, 2]));
        assert_eq!(parse_classes("7", &Labels::default(), None), Ok(vec![7]));
        assert!(parse_classes(", ", &labels, Some(80)).unwrap_err().contains("no class"));
        for wrong in ["dogg", "80", "-1", "person;car"] {
            let message = parse_classes(wrong, &labels, Some(80)).unwrap_err();
            assert!(message.contains(wrong) && message.contains("79 (toothbrush)"), "{message}");
        }
    }

    #[test]
    fn labels_come_from_the_file_then_the_model_then_coco() {
        let model = Path::new("m.onnx");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("names.txt");
        fs::write(&file, "a\nb\n").unwrap();
        let two = Labels::new(["x".to_string(), "y".to_string()]);
        assert_eq!(labels(Some(&file), Some(&two), Some(2), model).unwrap().name(0), "a");
        assert_eq!(labels(None, Some(&two), Some(2), model).unwrap().name(0), "x");
        assert_eq!(labels(None, None, Some(80), model).unwrap().name(0), "person");
        assert_eq!(labels(None, None, Some(3), model).unwrap().name(2), "2");
        let message = labels(Some(&file), None, Some(3), model).unwrap_err();
        assert!(message.contains("2 lines") && message.contains("3 classes"), "{message}");
        assert!(labels(Some(Path::new("/nowhere")), None, Some(3), model).unwrap_err().contains("/nowhere"));
    }
}
