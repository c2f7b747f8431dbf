//! Several `yolodetect` in one pipeline, whose frames a test pushes and pulls, and all that they post.
#![allow(dead_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use gst::prelude::*;
use gst_app::{AppSink, AppSrc};
use parking_lot::Mutex;

use super::common::{Detect, Out, PATIENCE, Pipeline, solid};

/// What the elements have posted, with the name of each.
#[derive(Clone, Default)]
pub struct Posted {
    pub warnings: Vec<(String, String)>,
    /// With the debug part.
    pub errors: Vec<(String, String)>,
    /// Device and reason of each `yolodetect-device-changed`.
    pub moved: Vec<(String, String, String)>,
    /// Batch and limit of each `yolodetect-batch-reduced`.
    pub reduced: Vec<(u32, u32)>,
    /// Of `yolodetect-memory-pressure`.
    pub pressure: Vec<gst::Structure>,
    /// `active-device`, whenever it was notified of.
    pub notified: Vec<(String, Option<String>)>,
}

impl Posted {
    /// The one warning.
    pub fn warning(&self) -> &str {
        let [(_, text)] = &self.warnings[..] else { panic!("not one warning: {:?}", self.warnings) };
        text
    }

    /// The one error.
    pub fn error(&self) -> &str {
        let [(_, text)] = &self.errors[..] else { panic!("not one error: {:?}", self.errors) };
        text
    }

    fn note(&mut self, message: &gst::MessageRef) {
        let name = message.src().map(|source| source.name().to_string()).unwrap_or_default();
        match message.view() {
            gst::MessageView::Warning(warning) => self.warnings.push((name, warning.error().to_string())),
            gst::MessageView::Error(error) => {
                let text = format!("{} [{}]", error.error(), error.debug().unwrap_or_default());
                self.errors.push((name, text));
            }
            gst::MessageView::Element(element) => {
                let Some(fields) = element.structure() else { return };
                let text = |field| fields.get::<String>(field).unwrap();
                match fields.name().as_str() {
                    "yolodetect-device-changed" => {
                        assert!(text("model").ends_with(".onnx"));
                        self.moved.push((name, text("device"), text("reason")));
                    }
                    "yolodetect-batch-reduced" => {
                        self.reduced.push((fields.get("batch").unwrap(), fields.get("limit").unwrap()));
                    }
                    "yolodetect-memory-pressure" => self.pressure.push(fields.to_owned()),
                    _ => (),
                }
            }
            _ => (),
        }
    }
}

pub struct Streams {
    pub pipeline: Pipeline,
    branches: Vec<Branch>,
    posted: Arc<Mutex<Posted>>,
}

struct Branch {
    element: gst::Element,
    source: AppSrc,
    sink: AppSink,
    pushed: u64,
    pulled: u64,
}

/// A marker model's confidence is `red / 255`.
fn red(number: u64) -> u8 {
    100 + (number % 150) as u8
}

impl Streams {
    /// One for each of these `properties`, all with `model`; their names are `detect0` and so on. They are stopped.
    pub fn new(model: &str, properties: &[&str]) -> Self {
        let branches = properties.iter().enumerate().map(|(at, properties)| {
            format!(
                "appsrc name=source{at} format=time ! yolodetect name=detect{at} roi-meta=on model-file={model} {properties} \
                 ! appsink name=sink{at} sync=false wait-on-eos=false "
            )
        });
        let pipeline = Pipeline::new(&branches.collect::<String>());
        let posted = Arc::new(Mutex::new(Posted::default()));
        let noted = posted.clone();
        pipeline.bus().set_sync_handler(move |_, message| {
            noted.lock().note(message);
            gst::BusSyncReply::Pass
        });
        let branches = (0..properties.len()).map(|at| {
            let element = pipeline.by_name(&format!("detect{at}"));
            let noted = posted.clone();
            element.connect_notify(Some("active-device"), move |element, _| {
                let device = element.property("active-device");
                noted.lock().notified.push((element.name().into(), device));
            });
            let source = pipeline.by_name(&format!("source{at}")).downcast().unwrap();
            let sink = pipeline.by_name(&format!("sink{at}")).downcast().unwrap();
            Branch { element, source, sink, pushed: 0, pulled: 0 }
        });
        let branches = branches.collect();
        Self { pipeline, branches, posted }
    }

    /// The same, playing.
    pub fn playing(model: &str, properties: &[&str]) -> Self {
        let streams = Self::new(model, properties);
        streams.start().unwrap();
        streams
    }

    /// # Errors
    /// What the elements posted.
    pub fn start(&self) -> Result<(), String> {
        let started = self.pipeline.0.set_state(gst::State::Playing);
        started.map(drop).map_err(|_| self.posted().error().to_string())
    }

    pub fn posted(&self) -> Posted {
        self.posted.lock().clone()
    }

    /// Waits for something to be posted.
    pub fn until(&self, what: &str, done: impl Fn(&Posted) -> bool) -> Posted {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let posted = self.posted();
            if done(&posted) {
                return posted;
            }
            assert!(Instant::now() < deadline, "no {what}: {:?} {:?}", posted.warnings, posted.errors);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn element(&self, stream: usize) -> &gst::Element {
        &self.branches[stream].element
    }

    pub fn active(&self, stream: usize) -> String {
        let device: Option<String> = self.element(stream).property("active-device");
        device.expect("it runs")
    }

    /// Of the statistics.
    pub fn engine(&self, stream: usize) -> gst::Structure {
        self.element(stream).property::<gst::Structure>("stats").get("engine").expect("an engine")
    }

    /// Sends so many frames into each stream.
    pub fn push(&mut self, frames: u64) {
        for _ in 0..frames {
            for branch in &mut self.branches {
                let sample = solid(64, 64, [red(branch.pushed), 0, 0]);
                let mut buffer = sample.buffer_owned().unwrap();
                buffer.make_mut().set_pts(Detect::pts(branch.pushed));
                branch.pushed += 1;
                let sample =
                    gst::Sample::builder().caps(&sample.caps_owned().unwrap()).buffer(&buffer).build();
                branch.source.push_sample(&sample).unwrap();
            }
        }
    }

    /// So many frames of each stream come out, next and in order; their statuses.
    pub fn pull(&mut self, frames: u64) -> Vec<Out> {
        let patience = gst::ClockTime::try_from(PATIENCE).unwrap();
        let mut all = Vec::new();
        for branch in &mut self.branches {
            for _ in 0..frames {
                let sample = branch.sink.try_pull_sample(patience);
                let out =
                    Out::new(&sample.unwrap_or_else(|| panic!("{} gives no frame", branch.element.name())));
                assert_eq!(out.pts, Some(Detect::pts(branch.pulled)), "of {}", branch.element.name());
                if out.status == "inferred" {
                    let found = (out.only().confidence * 255.0).round();
                    assert_eq!(found, f64::from(red(branch.pulled)), "another frame's box");
                }
                branch.pulled += 1;
                all.push(out);
            }
        }
        all
    }

    /// So many frames through each stream, every one inferred.
    pub fn infer(&mut self, frames: u64) {
        self.push(frames);
        self.pull_inferred(frames);
    }

    pub fn pull_inferred(&mut self, frames: u64) {
        for out in self.pull(frames) {
            assert_eq!(out.status, "inferred", "{out:?}");
        }
    }

    /// The streams end, with nothing more than was pulled.
    pub fn finish(&self) {
        for branch in &self.branches {
            branch.source.end_of_stream().unwrap();
        }
        self.pipeline.run().unwrap();
        for branch in &self.branches {
            assert!(branch.sink.try_pull_sample(gst::ClockTime::ZERO).is_none(), "more frames than went in");
            assert_eq!(branch.pulled, branch.pushed);
        }
    }
}
