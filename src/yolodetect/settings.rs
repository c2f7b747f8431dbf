//! The properties of `yolodetect`: names, ranges, defaults, and their values.

use std::path::PathBuf;

use gst::glib;
use gst::prelude::*;
use once_cell::sync::Lazy;

use super::device_settings::{self, DeviceSettings};
use super::memory_settings::{self, MemorySettings};
use crate::decode::Head;
use crate::engine::plan::Hint;

/// What a property holds between being set and being used.
#[derive(Clone, Debug)]
pub struct Settings {
    pub model_file: Option<PathBuf>,
    pub label_file: Option<PathBuf>,
    pub head: HeadChoice,
    pub onnxruntime_library: Option<PathBuf>,
    /// `None` for what the environment says; empty for none.
    pub model_cache: Option<String>,
    pub confidence_threshold: f32,
    pub iou_threshold: f32,
    pub class_agnostic_nms: bool,
    pub max_detections: u32,
    pub classes: Option<String>,
    pub device: DeviceSettings,
    pub threads: u32,
    pub performance_hint: PerformanceHint,
    pub max_batch: u32,
    pub batch_delay: gst::ClockTime,
    pub max_in_flight: u32,
    pub inference_interval: u32,
    pub max_fps: f64,
    pub overload: Overload,
    pub priority: u32,
    pub analytics_meta: MetaChoice,
    pub roi_meta: MetaChoice,
    pub stats_interval: gst::ClockTime,
    pub memory: MemorySettings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            model_file: None,
            label_file: None,
            head: HeadChoice::Auto,
            onnxruntime_library: None,
            model_cache: None,
            confidence_threshold: 0.25,
            iou_threshold: 0.7,
            class_agnostic_nms: false,
            max_detections: 300,
            classes: None,
            device: DeviceSettings::default(),
            threads: 0,
            performance_hint: PerformanceHint::Auto,
            max_batch: 0,
            batch_delay: gst::ClockTime::ZERO,
            max_in_flight: 0,
            inference_interval: 1,
            max_fps: 0.0,
            overload: Overload::Auto,
            priority: 1,
            analytics_meta: MetaChoice::Auto,
            roi_meta: MetaChoice::Auto,
            stats_interval: gst::ClockTime::ZERO,
            memory: MemorySettings::default(),
        }
    }
}

/// `head`: how the model's output is laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstYoloDetectHead")]
#[repr(i32)]
pub enum HeadChoice {
    #[default]
    #[enum_value(name = "From the output's shape and the model's metadata", nick = "auto")]
    Auto,
    #[enum_value(name = "YOLOv5 and v7: [batch, N, 5 + classes] with objectness", nick = "v5")]
    V5,
    #[enum_value(name = "YOLOv8, v9, 11 and 12: [batch, 4 + classes, N]", nick = "v8")]
    V8,
    #[enum_value(name = "NMS inside the model: [batch, N, 6]", nick = "end2end")]
    End2End,
    #[enum_value(name = "YOLOX: [batch, N, 5 + classes], undecoded grid", nick = "yolox")]
    Yolox,
}

impl HeadChoice {
    pub fn head(self) -> Option<Head> {
        match self {
            HeadChoice::Auto => None,
            HeadChoice::V5 => Some(Head::V5),
            HeadChoice::V8 => Some(Head::V8),
            HeadChoice::End2End => Some(Head::End2End),
            HeadChoice::Yolox => Some(Head::Yolox),
        }
    }
}

/// `performance-hint`: how the processor's cores are shared among inferences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstYoloDetectPerformanceHint")]
#[repr(i32)]
pub enum PerformanceHint {
    #[default]
    #[enum_value(
        name = "Several inferences at a time where there are several detectors and two threads or more for each",
        nick = "auto"
    )]
    Auto,
    #[enum_value(name = "One inference at a time, on all threads", nick = "latency")]
    Latency,
    #[enum_value(name = "As many inferences at a time as threads, on one each", nick = "throughput")]
    Throughput,
}

impl PerformanceHint {
    pub fn hint(self) -> Hint {
        match self {
            PerformanceHint::Auto => Hint::Auto,
            PerformanceHint::Latency => Hint::Latency,
            PerformanceHint::Throughput => Hint::Throughput,
        }
    }
}

/// `overload`: what happens to a frame for which the engine has no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstYoloDetectOverload")]
#[repr(i32)]
pub enum Overload {
    #[default]
    #[enum_value(name = "skip when the source is live, else block", nick = "auto")]
    Auto,
    #[enum_value(name = "Wait until the engine has room; every frame is inferred", nick = "block")]
    Block,
    #[enum_value(name = "Pass the frame on uninferred, with the status overload", nick = "skip")]
    Skip,
}

/// `analytics-meta` and `roi-meta`: whether detections are attached in this form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstYoloDetectMetaChoice")]
#[repr(i32)]
pub enum MetaChoice {
    #[default]
    #[enum_value(name = "Analytics metas from GStreamer 1.24 on, ROI metas before", nick = "auto")]
    Auto,
    #[enum_value(name = "Always", nick = "on")]
    On,
    #[enum_value(name = "Never", nick = "off")]
    Off,
}

fn text(name: &str, nick: &str, blurb: &str) -> glib::ParamSpec {
    glib::ParamSpecString::builder(name).nick(nick).blurb(blurb).mutable_ready().build()
}

/// Every property, in the order in which `gst-inspect-1.0` shows them within their kind.
pub fn param_specs() -> &'static [glib::ParamSpec] {
    static SPECS: Lazy<Vec<glib::ParamSpec>> = Lazy::new(|| {
        let default = Settings::default();
        let mut specs = vec![
            text(
                "model-file",
                "Model file",
                "ONNX file of a YOLO detection model (v5 to v12, v10/v26 end-to-end, YOLOX)",
            ),
            text(
                "label-file",
                "Label file",
                "Class names, one a line (unset: the model's metadata, else COCO for 80 classes, else numbers)",
            ),
            glib::ParamSpecEnum::builder_with_default("head", default.head)
                .nick("Head")
                .blurb("How the model's output is laid out")
                .mutable_ready()
                .build(),
            text(
                "onnxruntime-library",
                "ONNX Runtime library",
                "libonnxruntime.so to load (unset: the environment variable ORT_DYLIB_PATH, else the loader's path)",
            ),
            text(
                "model-cache",
                "Model cache",
                "Folder of optimised models, for a fast start (off: none; unset: the environment variable \
                 YOLODETECT_MODEL_CACHE, else yolodetect in the user's cache folder)",
            ),
            glib::ParamSpecFloat::builder("confidence-threshold")
                .nick("Confidence threshold")
                .blurb("Detections must be more certain than this")
                .minimum(0.0)
                .maximum(1.0)
                .default_value(default.confidence_threshold)
                .mutable_playing()
                .build(),
            glib::ParamSpecFloat::builder("iou-threshold")
                .nick("IoU threshold")
                .blurb("Of two boxes that overlap by more than this, the less certain one is dropped")
                .minimum(0.0)
                .maximum(1.0)
                .default_value(default.iou_threshold)
                .mutable_playing()
                .build(),
            glib::ParamSpecBoolean::builder("class-agnostic-nms")
                .nick("Class-agnostic NMS")
                .blurb("Let boxes of different classes suppress each other")
                .default_value(default.class_agnostic_nms)
                .mutable_playing()
                .build(),
            glib::ParamSpecUInt::builder("max-detections")
                .nick("Maximum detections")
                .blurb("Most detections of a frame, the most certain ones")
                .minimum(1)
                .maximum(30_000)
                .default_value(default.max_detections)
                .mutable_playing()
                .build(),
            glib::ParamSpecString::builder("classes")
                .nick("Classes")
                .blurb("Classes to keep: names or numbers, separated by commas (unset: all)")
                .mutable_playing()
                .build(),
            glib::ParamSpecUInt::builder("threads")
                .nick("Threads")
                .blurb("Threads of all inferences together (0: one per processor that this process may use)")
                .maximum(1024)
                .default_value(default.threads)
                .mutable_ready()
                .build(),
            glib::ParamSpecEnum::builder_with_default("performance-hint", default.performance_hint)
                .nick("Performance hint")
                .blurb("How the processor's cores are shared among inferences; elements that say auto share any engine of the model")
                .mutable_ready()
                .build(),
            glib::ParamSpecUInt::builder("max-batch")
                .nick("Maximum batch")
                .blurb("Most frames that run together, of all streams that share the engine (0: 8 on a GPU, 1 elsewhere)")
                .maximum(256)
                .default_value(default.max_batch)
                .mutable_ready()
                .build(),
            glib::ParamSpecUInt64::builder("batch-delay")
                .nick("Batch delay")
                .blurb("Longest time that a frame waits for others to join its batch, in ns")
                .maximum(10 * gst::ClockTime::SECOND.nseconds())
                .default_value(default.batch_delay.nseconds())
                .mutable_playing()
                .build(),
            glib::ParamSpecUInt::builder("max-in-flight")
                .nick("Maximum in flight")
                .blurb("Most frames held at a time (0: as many as keep the engine busy)")
                .maximum(1024)
                .default_value(default.max_in_flight)
                .mutable_playing()
                .build(),
            glib::ParamSpecUInt::builder("inference-interval")
                .nick("Inference interval")
                .blurb("Infer one frame out of this many; the others pass with the status interval")
                .minimum(1)
                .default_value(default.inference_interval)
                .mutable_playing()
                .build(),
            glib::ParamSpecDouble::builder("max-fps")
                .nick("Maximum frames per second")
                .blurb("Infer at most this many frames a second of stream time (0: no limit)")
                .minimum(0.0)
                .maximum(10_000.0)
                .default_value(default.max_fps)
                .mutable_playing()
                .build(),
            glib::ParamSpecEnum::builder_with_default("overload", default.overload)
                .nick("Overload")
                .blurb("What happens to a frame for which the engine has no room")
                .mutable_playing()
                .build(),
            glib::ParamSpecUInt::builder("priority")
                .nick("Priority")
                .blurb("This stream's share of a busy engine, relative to the others'")
                .minimum(1)
                .maximum(1000)
                .default_value(default.priority)
                .mutable_playing()
                .build(),
            glib::ParamSpecEnum::builder_with_default("analytics-meta", default.analytics_meta)
                .nick("Analytics meta")
                .blurb("Attach detections as GstAnalyticsRelationMeta (needs GStreamer 1.24)")
                .mutable_ready()
                .build(),
            glib::ParamSpecEnum::builder_with_default("roi-meta", default.roi_meta)
                .nick("ROI meta")
                .blurb("Attach detections as GstVideoRegionOfInterestMeta")
                .mutable_ready()
                .build(),
            glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
                .nick("Statistics")
                .blurb("Frames, batches, times and the engine, since the element was started")
                .read_only()
                .build(),
            glib::ParamSpecUInt64::builder("stats-interval")
                .nick("Statistics interval")
                .blurb("Post the statistics as message yolodetect-stats this often, in ns (0: never)")
                .maximum(gst::ClockTime::MAX.nseconds())
                .default_value(default.stats_interval.nseconds())
                .mutable_playing()
                .build(),
        ];
        specs.extend(device_settings::param_specs());
        specs.extend(memory_settings::param_specs());
        specs
    });
    &SPECS
}

impl Settings {
    /// Takes over a writable property. The type system has checked type and range.
    pub fn set(&mut self, name: &str, value: &glib::Value) {
        fn read<'a, T: glib::value::FromValue<'a>>(value: &'a glib::Value) -> T
        where
            <T::Checker as glib::value::ValueTypeChecker>::Error: std::fmt::Debug,
        {
            value.get().expect("type checked by GObject")
        }
        let non_empty = |value: &glib::Value| read::<Option<String>>(value).filter(|text| !text.is_empty());
        let path = |value: &glib::Value| non_empty(value).map(PathBuf::from);
        match name {
            "model-file" => self.model_file = path(value),
            "label-file" => self.label_file = path(value),
            "head" => self.head = read(value),
            "onnxruntime-library" => self.onnxruntime_library = path(value),
            "model-cache" => self.model_cache = read(value),
            "confidence-threshold" => self.confidence_threshold = read(value),
            "iou-threshold" => self.iou_threshold = read(value),
            "class-agnostic-nms" => self.class_agnostic_nms = read(value),
            "max-detections" => self.max_detections = read(value),
            "classes" => self.classes = non_empty(value),
            "threads" => self.threads = read(value),
            "performance-hint" => self.performance_hint = read(value),
            "max-batch" => self.max_batch = read(value),
            "batch-delay" => self.batch_delay = gst::ClockTime::from_nseconds(read(value)),
            "max-in-flight" => self.max_in_flight = read(value),
            "inference-interval" => self.inference_interval = read(value),
            "max-fps" => self.max_fps = read(value),
            "overload" => self.overload = read(value),
            "priority" => self.priority = read(value),
            "analytics-meta" => self.analytics_meta = read(value),
            "roi-meta" => self.roi_meta = read(value),
            "stats-interval" => self.stats_interval = gst::ClockTime::from_nseconds(read(value)),
            other if self.device.set(other, value) || self.memory.set(other, value) => (),
            other => unreachable!("property {other} is not writable"),
        }
    }

    /// The value of a property that is set here; the read-only ones live elsewhere.
    pub fn get(&self, name: &str) -> Option<glib::Value> {
        let path =
            |path: &Option<PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned()).to_value();
        Some(match name {
            "model-file" => path(&self.model_file),
            "label-file" => path(&self.label_file),
            "head" => self.head.to_value(),
            "onnxruntime-library" => path(&self.onnxruntime_library),
            "model-cache" => self.model_cache.to_value(),
            "confidence-threshold" => self.confidence_threshold.to_value(),
            "iou-threshold" => self.iou_threshold.to_value(),
            "class-agnostic-nms" => self.class_agnostic_nms.to_value(),
            "max-detections" => self.max_detections.to_value(),
            "classes" => self.classes.to_value(),
            "threads" => self.threads.to_value(),
            "performance-hint" => self.performance_hint.to_value(),
            "max-batch" => self.max_batch.to_value(),
            "batch-delay" => self.batch_delay.nseconds().to_value(),
            "max-in-flight" => self.max_in_flight.to_value(),
            "inference-interval" => self.inference_interval.to_value(),
            "max-fps" => self.max_fps.to_value(),
            "overload" => self.overload.to_value(),
            "priority" => self.priority.to_value(),
            "analytics-meta" => self.analytics_meta.to_value(),
            "roi-meta" => self.roi_meta.to_value(),
            "stats-interval" => self.stats_interval.nseconds().to_value(),
            name => return self.device.get(name).or_else(|| self.memory.get(name)),
        })
    }

    /// Threads of all runs together.
    pub fn thread_count(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_every_range_can_be_set() {
        gst::init().unwrap();
        let mut settings = Settings::default();
        let mut checked = 0;
        for spec in param_specs() {
            if let Some(spec) = spec.downcast_ref::<glib::ParamSpecUInt64>() {
                for end in [spec.minimum(), spec.maximum()] {
                    settings.set(spec.name(), &end.to_value());
                    assert_eq!(settings.get(spec.name()).unwrap().get::<u64>(), Ok(end), "{}", spec.name());
                }
                checked += 1;
            }
        }
        assert!(checked > 0, "no property is a time");
    }
}
