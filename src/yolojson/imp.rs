//! GObject and GStreamer glue of `yolojson`.

use std::sync::LazyLock;
use std::time::Instant;

use gst::glib;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_base::subclass::base_transform::{BaseTransformMode, GenerateOutputSuccess};
use gst_base::subclass::prelude::*;
use parking_lot::Mutex;

use super::Format;
use super::coco::Array;
use super::lines::{self, Line};
use super::progress::Progress;
use super::rss::Rss;
use crate::meta::{self, Found, FrameRecord};

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("yolojson", gst::DebugColorFlags::empty(), Some("YOLO detections as JSON"))
});

const TEXT: &str = "application/x-json";

/// What belongs to one run between READY and PAUSED and back. The vectors are kept to spare allocations.
#[derive(Default)]
struct State {
    format: Format,
    frame_size: (u32, u32),
    /// Frames seen, to number those that no `yolodetect` numbered.
    seen: u64,
    array: Array,
    progress: Progress,
    rss: Rss,
    frames: Vec<FrameRecord>,
    found: Vec<Found>,
    text: Vec<u8>,
}

impl State {
    /// Writes the buffer's lines or records into `text`.
    fn describe(&mut self, buffer: &gst::BufferRef, stream_time: Option<gst::ClockTime>, now: Instant) {
        let State { frames, found, text, .. } = self;
        text.clear();
        meta::frames_into(buffer, frames);
        meta::found_into(buffer, frames, found);
        let others = found.iter().any(|object| object.element.is_none());
        match self.format {
            Format::Lines => self.write_lines(others, stream_time, now),
            Format::Coco => self.write_records(),
        }
        self.seen += 1;
    }

    fn write_lines(&mut self, others: bool, stream_time: Option<gst::ClockTime>, now: Instant) {
        let State { frames, found, text, .. } = self;
        let foreign = Line {
            frame: self.seen,
            time: stream_time.map(|time| time.nseconds() as f64 / 1e9),
            element: None,
            status: "none",
            batch: 0,
            rss: self.rss.get(now),
            progress: self.progress.percent(stream_time),
        };
        for (element, frame) in frames.iter().enumerate() {
            let line = Line {
                frame: frame.frame,
                element: Some(&frame.element),
                status: frame.status.nick(),
                batch: frame.batch,
                ..foreign
            };
            lines::write(text, &line, found.iter().filter(|object| object.element == Some(element)));
        }
        if others || frames.is_empty() {
            lines::write(text, &foreign, found.iter().filter(|object| object.element.is_none()));
        }
    }

    fn write_records(&mut self) {
        let State { frames, found, text, .. } = self;
        let elements = (0..frames.len()).map(Some).chain([None]);
        for element in elements {
            let image_id = element.map_or(self.seen, |element| frames[element].frame);
            let own = found.iter().filter(|object| object.element == element);
            self.array.write(text, image_id, own, self.frame_size);
        }
    }
}

#[derive(Default)]
pub struct YoloJson {
    format: Mutex<Format>,
    state: Mutex<State>,
}

#[glib::object_subclass]
impl ObjectSubclass for YoloJson {
    const NAME: &'static str = "GstYoloJson";
    type Type = super::YoloJson;
    type ParentType = gst_base::BaseTransform;
}

impl ObjectImpl for YoloJson {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            vec![
                glib::ParamSpecEnum::builder_with_default("format", Format::default())
                    .nick("Format")
                    .blurb("What the text looks like")
                    .mutable_ready()
                    .build(),
            ]
        });
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        match (pspec.name(), value.get()) {
            ("format", Ok(format)) => *self.format.lock() = format,
            (name, _) => gst::error!(CAT, imp = self, "property {name} takes no {value:?}"),
        }
    }

    fn property(&self, _id: usize, _pspec: &glib::ParamSpec) -> glib::Value {
        // There is only the one.
        self.format.lock().to_value()
    }
}

impl GstObjectImpl for YoloJson {}

impl ElementImpl for YoloJson {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "YOLO detections as JSON",
                "Converter/Video/Metadata",
                "Describes each frame and what was detected on it, as JSON lines or COCO results",
                env!("CARGO_PKG_AUTHORS"),
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            let template = |name, direction, caps| {
                gst::PadTemplate::new(name, direction, gst::PadPresence::Always, &caps)
                    .expect("the templates are fixed and valid")
            };
            let formats = gst::List::new([Format::Lines, Format::Coco].map(nick));
            let text = gst::Caps::builder(TEXT).field("format", formats).build();
            vec![
                template("sink", gst::PadDirection::Sink, video_caps()),
                template("src", gst::PadDirection::Src, text),
            ]
        });
        &TEMPLATES
    }
}

/// Any video in any memory: the pixels are not read.
fn video_caps() -> gst::Caps {
    gst::Caps::builder("video/x-raw").any_features().build()
}

fn text_caps(format: Format) -> gst::Caps {
    gst::Caps::builder(TEXT).field("format", nick(format)).build()
}

fn nick(format: Format) -> &'static str {
    match format {
        Format::Lines => "lines",
        Format::Coco => "coco",
    }
}

impl BaseTransformImpl for YoloJson {
    const MODE: BaseTransformMode = BaseTransformMode::NeverInPlace;
    const PASSTHROUGH_ON_SAME_CAPS: bool = false;
    const TRANSFORM_IP_ON_PASSTHROUGH: bool = false;

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        *self.state.lock() = State { format: *self.format.lock(), ..State::default() };
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        *self.state.lock() = State::default();
        Ok(())
    }

    fn transform_caps(
        &self,
        direction: gst::PadDirection,
        _caps: &gst::Caps,
        filter: Option<&gst::Caps>,
    ) -> Option<gst::Caps> {
        let other = match direction {
            gst::PadDirection::Src => video_caps(),
            _ => text_caps(*self.format.lock()),
        };
        Some(match filter {
            Some(filter) => filter.intersect_with_mode(&other, gst::CapsIntersectMode::First),
            None => other,
        })
    }

    fn set_caps(&self, incaps: &gst::Caps, _outcaps: &gst::Caps) -> Result<(), gst::LoggableError> {
        let video = incaps.structure(0);
        let side = |name: &str| {
            let length = video.and_then(|video| video.get::<i32>(name).ok());
            length.and_then(|length| u32::try_from(length).ok()).unwrap_or(0)
        };
        self.state.lock().frame_size = (side("width"), side("height"));
        Ok(())
    }

    fn sink_event(&self, event: gst::Event) -> bool {
        match event.view() {
            gst::EventView::StreamStart(_) => self.state.lock().progress = Progress::default(),
            gst::EventView::Eos(_) => self.finish(),
            _ => (),
        }
        self.parent_sink_event(event)
    }

    fn propose_allocation(
        &self,
        _decide_query: Option<&gst::query::Allocation>,
        query: &mut gst::query::Allocation,
    ) -> Result<(), gst::LoggableError> {
        // Strides do not matter to who reads no pixels; without this, upstream may copy frames to get rid of them.
        query.add_allocation_meta::<gst_video::VideoMeta>(None);
        Ok(())
    }

    fn generate_output(&self) -> Result<GenerateOutputSuccess, gst::FlowError> {
        let Some(frame) = self.take_queued_buffer() else { return Ok(GenerateOutputSuccess::NoOutput) };
        let stream_time = self.stream_time(frame.pts());
        let now = Instant::now();
        self.ask_duration(now);

        let mut state = self.state.lock();
        state.describe(&frame, stream_time, now);
        if state.text.is_empty() {
            return Ok(GenerateOutputSuccess::NoOutput);
        }
        let mut output = self.text_buffer(&state.text)?;
        drop(state);
        if let Some(output) = output.get_mut() {
            output.set_pts(frame.pts());
            output.set_dts(frame.dts());
            output.set_duration(frame.duration());
        }
        Ok(GenerateOutputSuccess::Buffer(output))
    }
}

impl YoloJson {
    /// The time within the stream, or the bare timestamp where the segment is not in time.
    fn stream_time(&self, pts: Option<gst::ClockTime>) -> Option<gst::ClockTime> {
        match self.obj().segment().downcast_ref::<gst::ClockTime>() {
            Some(segment) => segment.to_stream_time(pts),
            None => pts,
        }
    }

    /// Without the lock: the query runs upstream through elements that we do not know.
    fn ask_duration(&self, now: Instant) {
        let is_due = {
            let state = self.state.lock();
            state.format == Format::Lines && state.progress.is_due(now)
        };
        if is_due {
            let duration = self.obj().sink_pad().peer_query_duration::<gst::ClockTime>();
            self.state.lock().progress.answer(now, duration);
        }
    }

    fn text_buffer(&self, text: &[u8]) -> Result<gst::Buffer, gst::FlowError> {
        let mut buffer = gst::Buffer::with_size(text.len()).map_err(|error| {
            gst::element_imp_error!(
                self,
                gst::ResourceError::NoSpaceLeft,
                ["no memory for {} bytes of text: {error}", text.len()]
            );
            gst::FlowError::Error
        })?;
        let copied = buffer.get_mut().map(|buffer| buffer.copy_from_slice(0, text));
        if copied != Some(Ok(())) {
            gst::element_imp_error!(self, gst::ResourceError::Write, ["cannot write into a new buffer"]);
            return Err(gst::FlowError::Error);
        }
        Ok(buffer)
    }

    /// Closes the array ahead of EOS.
    fn finish(&self) {
        let text = {
            let mut state = self.state.lock();
            if state.format != Format::Coco {
                return;
            }
            let State { array, text, .. } = &mut *state;
            text.clear();
            array.finish(text);
            self.text_buffer(text)
        };
        let Ok(text) = text else { return };
        let obj = self.obj();
        let pad = obj.src_pad();
        // A stream may end before it had caps; data must not come before these.
        if pad.sticky_event::<gst::event::Caps>(0).is_none() {
            pad.push_event(gst::event::Caps::new(&text_caps(Format::Coco)));
        }
        if pad.sticky_event::<gst::event::Segment>(0).is_none() {
            pad.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new()));
        }
        if let Err(error) = pad.push(text) {
            gst::warning!(CAT, imp = self, "the end of the array was not taken: {error}");
        }
    }
}
