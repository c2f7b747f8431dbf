//! The part of a camera's pipeline that stays: detector, JSON lines, and where these go.
//!
//! ```text
//! (the source) ! queue leaky ! yolodetect ! yolojson ! filesink or standard output
//! ```
//! A camera cannot be made to wait: its pictures would come later and later. The queue drops the oldest frame
//! when the detector has no room for more, because of too many cameras or because nobody takes its output; what
//! the detector takes in, it gives back, inferred or not.
//!
//! It plays on between two connections. So its detector keeps its share of the engine, frames are counted on,
//! and no reconnect loads a model. One pipeline a camera: each has its own clock, bus and state.

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use gst::glib;
use gst::prelude::*;

use crate::trouble::explain;

/// What every camera's detector is.
#[derive(Clone, Debug)]
pub struct Detection {
    pub element: String,
    pub model: PathBuf,
    pub properties: Vec<(String, String)>,
}

/// Where the JSON lines go.
#[derive(Clone)]
pub enum Output {
    /// Each camera's into a file of its own.
    Folder(PathBuf),
    /// All to standard output, whole lines; the function is called when that is closed.
    Standard(Arc<dyn Fn() + Send + Sync>),
}

/// What the detector did.
#[derive(Clone, Copy, Default)]
pub struct Counts {
    pub inferred: u64,
    pub detections: u64,
    /// Frames before the detector, now.
    pub waiting: u64,
}

pub struct Tail {
    pub pipeline: gst::Pipeline,
    /// Where the source is linked.
    pub entry: gst::Pad,
    /// Where frames come into the detector and out of it.
    pub detector_sink: gst::Pad,
    pub detector_src: gst::Pad,
    detector: gst::Element,
    /// Of lives that are over; the detector counts from 0 in each.
    earlier: Mutex<Counts>,
}

impl Tail {
    /// Builds it and lets it play, which loads the model where no other camera has it.
    pub fn start(name: &str, detection: &Detection, output: &Output) -> Result<Self, String> {
        let tail = Self::build(name, detection, output)?;
        match tail.play() {
            Ok(()) => Ok(tail),
            Err(reason) => {
                tail.stop();
                Err(reason)
            }
        }
    }

    fn build(name: &str, detection: &Detection, output: &Output) -> Result<Self, String> {
        // Named after the camera: every record tells it. No camera's name has a colon.
        let detector = make(&detection.element, name)?;
        if detector.has_property("model-file") {
            detector.set_property("model-file", detection.model.to_string_lossy().into_owned());
        }
        detection.properties.iter().try_for_each(|(property, value)| set(&detector, property, value))?;
        let queue = waiting_room(name)?;
        let lines = make("yolojson", &format!("{name}:lines"))?;
        let sink = match output {
            Output::Folder(folder) => file(name, folder)?,
            Output::Standard(closed) => standard_output(name, closed.clone()),
        };
        let pipeline = gst::Pipeline::with_name(name);
        let chain = [&queue, &detector, &lines, &sink];
        pipeline.add_many(chain).map_err(|error| error.to_string())?;
        gst::Element::link_many(chain).map_err(|error| error.to_string())?;
        Ok(Self {
            entry: pad(&queue, "sink")?,
            detector_sink: pad(&detector, "sink")?,
            detector_src: pad(&detector, "src")?,
            pipeline,
            detector,
            earlier: Mutex::default(),
        })
    }

    fn play(&self) -> Result<(), String> {
        // The sinks wait for no first frame, so this ends at once, whether a source is there or not.
        self.pipeline.set_state(gst::State::Playing).map(|_| ()).map_err(|_| {
            let message = self.bus().pop_filtered(&[gst::MessageType::Error]);
            match message.as_ref().map(|message| message.view()) {
                Some(gst::MessageView::Error(error)) => explain(&error.error(), error.debug()),
                _ => "the detection does not start".into(),
            }
        })
    }

    /// After an error of the detector or the sink, such as a lost engine; without a source. All of it starts
    /// anew: the detector asks for an engine, which is a fresh one if the old one is lost, and the file is
    /// opened again.
    pub fn restart(&self) -> Result<(), String> {
        let counts = self.counts();
        *self.earlier.lock().unwrap_or_else(PoisonError::into_inner) = counts;
        self.stop();
        self.play()
    }

    pub fn stop(&self) {
        // Does not fail on the way down.
        let _ = self.pipeline.set_state(gst::State::Null);
    }

    pub fn bus(&self) -> gst::Bus {
        self.pipeline.bus().expect("every pipeline has a bus")
    }

    pub fn counts(&self) -> Counts {
        let mut counts = *self.earlier.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = self.entry.parent_element();
        counts.waiting = queue.map_or(0, |queue| queue.property::<u32>("current-level-buffers").into());
        if self.detector.has_property("stats")
            && let Ok(stats) = self.detector.property_value("stats").get::<gst::Structure>()
        {
            counts.inferred += stats.get::<u64>("inferred").unwrap_or(0);
            counts.detections += stats.get::<u64>("detections").unwrap_or(0);
        }
        counts
    }

    /// Width and height of the latest frames.
    pub fn picture_size(&self) -> Option<(i32, i32)> {
        let caps = self.entry.current_caps()?;
        let fields = caps.structure(0)?;
        Some((fields.get("width").ok()?, fields.get("height").ok()?))
    }
}

fn make(factory: &str, name: &str) -> Result<gst::Element, String> {
    gst::ElementFactory::make(factory).name(name).build().map_err(|error: glib::BoolError| {
        format!("{}; set GST_PLUGIN_PATH: eval \"$(pipelines/setup.sh --print-env)\"", error.message)
    })
}

fn pad(element: &gst::Element, name: &str) -> Result<gst::Pad, String> {
    element.static_pad(name).ok_or_else(|| format!("{} has no pad {name}", element.name()))
}

/// As large as a decoder's bursts, and no larger: each place may keep a picture.
fn waiting_room(name: &str) -> Result<gst::Element, String> {
    let queue = make("queue", &format!("{name}:queue"))?;
    queue.set_property_from_str("leaky", "downstream");
    queue.set_property("max-size-buffers", 4_u32);
    queue.set_property("max-size-bytes", 0_u32);
    queue.set_property("max-size-time", 0_u64);
    Ok(queue)
}

/// Sets a property from text; what does not fit is told.
fn set(element: &gst::Element, name: &str, text: &str) -> Result<(), String> {
    let kind = element.factory().map_or_else(String::new, |factory| factory.name().into());
    let property = element
        .find_property(name)
        .filter(|property| property.flags().contains(glib::ParamFlags::WRITABLE))
        .ok_or_else(|| format!("--set {name}: {kind} has no such property; see gst-inspect-1.0 {kind}"))?;
    let value = glib::Value::deserialize_with_pspec(text, &property).ok();
    let value = value.filter(|value| is_in_range(&property, value)).ok_or_else(|| {
        format!("--set {name}={text}: not a value that it takes; see gst-inspect-1.0 {kind}")
    })?;
    element.set_property_from_value(name, &value);
    Ok(())
}

/// Setting a number out of range panics.
fn is_in_range(property: &glib::ParamSpec, value: &glib::Value) -> bool {
    macro_rules! check {
        ($($kind:ident $number:ty),*) => {
            $(if let Some(range) = property.downcast_ref::<glib::$kind>() {
                let fits = |number: $number| (range.minimum()..=range.maximum()).contains(&number);
                return value.get::<$number>().is_ok_and(fits);
            })*
        };
    }
    check!(ParamSpecInt i32, ParamSpecUInt u32, ParamSpecInt64 i64, ParamSpecUInt64 u64);
    check!(ParamSpecFloat f32, ParamSpecDouble f64);
    true
}

/// Appends, each line as it comes: somebody may follow the file, and what is there from an earlier run stays.
fn file(name: &str, folder: &std::path::Path) -> Result<gst::Element, String> {
    let sink = make("filesink", &format!("{name}:file"))?;
    sink.set_property("location", folder.join(format!("{name}.jsonl")).to_string_lossy().into_owned());
    sink.set_property("append", true);
    sink.set_property_from_str("buffer-mode", "unbuffered");
    // Or the pipeline would wait for a first frame.
    sink.set_property("async", false);
    Ok(sink)
}

/// Not `fdsink`: several of them would cut each other's long lines in pieces.
fn standard_output(name: &str, closed: Arc<dyn Fn() + Send + Sync>) -> gst::Element {
    let write = move |sink: &gst_app::AppSink| {
        let sample = sink.pull_sample().map_err(|_| gst::FlowError::Flushing)?;
        let text =
            sample.buffer().and_then(|buffer| buffer.map_readable().ok()).ok_or(gst::FlowError::Error)?;
        if std::io::stdout().lock().write_all(&text).is_err() {
            closed();
        }
        Ok(gst::FlowSuccess::Ok)
    };
    let callbacks = gst_app::AppSinkCallbacks::builder().new_sample(write).build();
    let sink = gst_app::AppSink::builder().name(format!("{name}:output")).sync(false).async_(false);
    sink.max_buffers(1).callbacks(callbacks).build().upcast()
}
