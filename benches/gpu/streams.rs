//! Streams of frames from memory through `yolodetect` elements of one pipeline.

use std::fmt::{self, Display};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gst::prelude::*;
use gst_app::AppSrc;
use parking_lot::{Condvar, Mutex};

use crate::PATIENCE;
use crate::common::{Detect, Out, Pipeline, Posted, watch};

/// Ends the process: what is measured by it is not.
pub fn stop(reason: impl Display) -> ! {
    eprintln!("{reason}");
    std::process::exit(1)
}

/// Frames that all streams show.
pub struct Film {
    caps: gst::Caps,
    frames: Vec<gst::Buffer>,
}

impl Film {
    /// Raw I420 pictures, one behind the other; only the first so many.
    pub fn read(file: &Path, width: u32, height: u32, take: Option<usize>) -> Self {
        let info = gst_video::VideoInfo::builder(gst_video::VideoFormat::I420, width, height)
            .fps(gst::Fraction::new(25, 1))
            .build()
            .unwrap_or_else(|error| stop(error));
        let bytes = std::fs::read(file).unwrap_or_else(|error| stop(format!("{}: {error}", file.display())));
        if bytes.is_empty() || !bytes.len().is_multiple_of(info.size()) {
            stop(format!("{} is not made of {width}x{height} pictures in I420", file.display()));
        }
        let frames = bytes
            .chunks(info.size())
            .take(take.unwrap_or(usize::MAX))
            .map(|frame| gst::Buffer::from_slice(frame.to_vec()))
            .collect();
        Self { caps: info.to_caps().unwrap(), frames }
    }

    pub fn len(&self) -> usize {
        self.frames.len()
    }

    pub fn info(&self) -> gst_video::VideoInfo {
        gst_video::VideoInfo::from_caps(&self.caps).unwrap_or_else(|error| stop(error))
    }

    pub fn frames(&self) -> impl Iterator<Item = &gst::Buffer> {
        self.frames.iter()
    }

    /// Every frame once through one element with these properties.
    pub fn detect(&self, properties: &str) -> Result<Vec<Out>, String> {
        self.detect_behind("identity", properties)
    }

    /// The same, behind another element.
    pub fn detect_behind(&self, element: &str, properties: &str) -> Result<Vec<Out>, String> {
        let mut detect = Detect::behind(element, properties);
        for frame in &self.frames {
            detect.push(&gst::Sample::builder().caps(&self.caps).buffer(frame).build());
        }
        detect.finish()
    }
}

/// What ended a pipeline.
#[derive(Debug)]
pub struct Failure {
    pub message: String,
    /// What the message leaves out: ONNX Runtime's own words, for one.
    pub detail: String,
}

impl Failure {
    fn new(message: impl Display, detail: &str) -> Self {
        let line = |text: &str| text.replace(['\n', '\t'], " ");
        Self { message: line(&message.to_string()), detail: line(detail) }
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

pub struct Streams {
    pipeline: Pipeline,
    sources: Vec<AppSrc>,
    detectors: Vec<gst::Element>,
    out: Arc<Counter>,
    posted: Arc<Mutex<Posted>>,
}

#[derive(Default)]
struct Counter {
    /// Frames that came out, and those of them that were inferred.
    counts: Mutex<(usize, usize)>,
    changed: Condvar,
}

impl Streams {
    pub fn made(count: usize, properties: &str) -> Self {
        let description: String = (0..count)
            .map(|number| {
                format!(
                    "appsrc name=source{number} format=time block=true max-buffers=4 max-bytes=0 \
                     ! yolodetect name=detect{number} overload=block {properties} \
                     ! fakesink name=sink{number} sync=false async=false "
                )
            })
            .collect();
        let pipeline = Pipeline::new(&description);
        let out = Arc::<Counter>::default();
        for number in 0..count {
            let out = out.clone();
            let pad = pipeline.by_name(&format!("sink{number}")).static_pad("sink").unwrap();
            pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
                if let Some(buffer) = info.buffer() {
                    let inferred = gstyolodetect::meta::frames(buffer)
                        .iter()
                        .any(|frame| frame.status.nick() == "inferred");
                    let mut counts = out.counts.lock();
                    counts.0 += 1;
                    counts.1 += usize::from(inferred);
                    out.changed.notify_one();
                }
                gst::PadProbeReturn::Ok
            });
        }
        let sources =
            (0..count).map(|n| pipeline.by_name(&format!("source{n}")).downcast().unwrap()).collect();
        let detectors = (0..count).map(|n| pipeline.by_name(&format!("detect{n}"))).collect();
        let posted = watch(&pipeline);
        Self { pipeline, sources, detectors, out, posted }
    }

    /// So many streams that play; the error of the one that does not.
    pub fn start(count: usize, properties: &str) -> Result<Self, Failure> {
        let mut streams = Self::made(count, properties);
        streams.play()?;
        Ok(streams)
    }

    pub fn play(&mut self) -> Result<(), Failure> {
        let started = self.pipeline.0.set_state(gst::State::Playing);
        match (self.error(), started) {
            (Some(error), _) => Err(error),
            (None, Err(error)) => Err(Failure::new(error, "")),
            (None, Ok(_)) => Ok(()),
        }
    }

    fn error(&self) -> Option<Failure> {
        let message = self.pipeline.bus().pop_filtered(&[gst::MessageType::Error])?;
        let gst::MessageView::Error(error) = message.view() else { return None };
        Some(Failure::new(error.error(), &error.debug().unwrap_or_default()))
    }

    /// So many frames through each stream, until all have come out.
    pub fn feed(&self, film: &Film, each: usize) -> Result<(), Failure> {
        let wanted = self.passed() + each * self.sources.len();
        std::thread::scope(|scope| {
            for source in &self.sources {
                scope.spawn(move || {
                    for frame in film.frames.iter().cycle().take(each) {
                        // A header of its own; the pixels are shared.
                        let sample = gst::Sample::builder().caps(&film.caps).buffer(&frame.copy()).build();
                        if source.push_sample(&sample).is_err() {
                            return;
                        }
                    }
                });
            }
            let result = self.wait_for(wanted);
            if result.is_err() {
                // Lets those go that still push.
                let _ = self.pipeline.0.set_state(gst::State::Null);
            }
            result
        })
    }

    fn wait_for(&self, wanted: usize) -> Result<(), Failure> {
        let mut counts = self.out.counts.lock();
        let (mut seen, mut since) = (counts.0, Instant::now());
        while counts.0 < wanted {
            self.out.changed.wait_for(&mut counts, Duration::from_millis(200));
            if let Some(error) = self.error() {
                return Err(error);
            }
            if counts.0 != seen {
                (seen, since) = (counts.0, Instant::now());
            } else if since.elapsed() > PATIENCE {
                let message = format!("nothing comes out after {seen} of {wanted} frames");
                return Err(Failure::new(message, ""));
            }
        }
        Ok(())
    }

    /// Frames a second of all streams together.
    pub fn rate(&self, film: &Film, each: usize) -> Result<f64, Failure> {
        let start = Instant::now();
        self.feed(film, each)?;
        Ok((each * self.sources.len()) as f64 / start.elapsed().as_secs_f64())
    }

    pub fn detector(&self, number: usize) -> &gst::Element {
        &self.detectors[number]
    }

    /// Of the statistics.
    pub fn engine(&self) -> gst::Structure {
        self.detectors[0].property::<gst::Structure>("stats").get("engine").expect("an engine while it plays")
    }

    /// Batches and frames that the engine has run.
    pub fn runs(&self) -> (u64, u64) {
        let engine = self.engine();
        (engine.get("batches").unwrap(), engine.get("frames").unwrap())
    }

    pub fn passed(&self) -> usize {
        self.out.counts.lock().0
    }

    pub fn inferred(&self) -> usize {
        self.out.counts.lock().1
    }

    /// The frames to which batches were reduced, of each message of that.
    pub fn reduced_to(&self) -> Vec<u32> {
        self.posted.lock().reduced.iter().map(|(_, limit)| *limit).collect()
    }

    pub fn warnings(&self) -> Vec<String> {
        self.posted.lock().warnings.clone()
    }
}
