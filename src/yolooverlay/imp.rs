//! The GObject: properties, caps, and when to forget what was held.

use std::sync::LazyLock;

use gst::glib;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_base::subclass::base_transform::BaseTransformMode;
use gst_base::subclass::prelude::*;
use gst_video::VideoFormat;
use gst_video::prelude::*;
use gst_video::subclass::prelude::*;
use parking_lot::Mutex;

use super::boxes::Boxes;
use super::canvas::{Canvas, Grid};
use super::ink::Inks;
use super::painter::{self, Words};
use super::style::Style;

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("yolooverlay", gst::DebugColorFlags::empty(), Some("Detection overlay"))
});

/// Thicker lines and larger text hide the picture and mean a mistake.
const MAX_LINE_WIDTH: u32 = 128;
const MAX_FONT_SCALE: u32 = 32;

#[rustfmt::skip]
const FORMATS: [VideoFormat; 19] = [
    VideoFormat::Nv12, VideoFormat::I420, VideoFormat::Yv12, VideoFormat::Nv21, VideoFormat::Yuy2,
    VideoFormat::Uyvy, VideoFormat::Y42b, VideoFormat::Y444, VideoFormat::Rgb, VideoFormat::Bgr,
    VideoFormat::Rgbx, VideoFormat::Bgrx, VideoFormat::Xrgb, VideoFormat::Xbgr, VideoFormat::Rgba,
    VideoFormat::Bgra, VideoFormat::Argb, VideoFormat::Abgr, VideoFormat::Gray8,
];

#[derive(Clone, Copy, Debug, PartialEq)]
struct Settings {
    labels: bool,
    confidence: bool,
    hold: bool,
    line_width: u32,
    font_scale: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { labels: true, confidence: true, hold: true, line_width: 0, font_scale: 0 }
    }
}

/// What follows from the caps.
struct Look {
    width: u32,
    height: u32,
    grid: Grid,
    inks: Inks,
}

#[derive(Default)]
struct State {
    look: Option<Look>,
    boxes: Boxes,
    /// Working space, kept for its capacity.
    text: String,
}

#[derive(Default)]
pub struct YoloOverlay {
    settings: Mutex<Settings>,
    state: Mutex<State>,
}

#[glib::object_subclass]
impl ObjectSubclass for YoloOverlay {
    const NAME: &'static str = "GstYoloOverlay";
    type Type = super::YoloOverlay;
    type ParentType = gst_video::VideoFilter;
}

impl ObjectImpl for YoloOverlay {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            let default = Settings::default();
            vec![
                glib::ParamSpecBoolean::builder("labels")
                    .nick("Labels")
                    .blurb("Write the name of each box's class")
                    .default_value(default.labels)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecBoolean::builder("confidence")
                    .nick("Confidence")
                    .blurb("Write each box's confidence")
                    .default_value(default.confidence)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecBoolean::builder("hold")
                    .nick("Hold")
                    .blurb("On frames that were not inferred, draw the boxes of the last one that was")
                    .default_value(default.hold)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("line-width")
                    .nick("Line width")
                    .blurb(
                        "Thickness of the lines in pixels, made even where the format's chroma is subsampled \
                         (0 = by the frame's size)",
                    )
                    .maximum(MAX_LINE_WIDTH)
                    .default_value(default.line_width)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("font-scale")
                    .nick("Font scale")
                    .blurb("Magnification of the text (0 = by the frame's size)")
                    .maximum(MAX_FONT_SCALE)
                    .default_value(default.font_scale)
                    .mutable_playing()
                    .build(),
            ]
        });
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let mut settings = self.settings.lock();
        let before = *settings;
        // GObject has checked the value's type and range.
        match pspec.name() {
            "labels" => settings.labels = value.get().unwrap_or(before.labels),
            "confidence" => settings.confidence = value.get().unwrap_or(before.confidence),
            "hold" => settings.hold = value.get().unwrap_or(before.hold),
            "line-width" => settings.line_width = value.get().unwrap_or(before.line_width),
            "font-scale" => settings.font_scale = value.get().unwrap_or(before.font_scale),
            name => gst::warning!(CAT, imp = self, "No property {name}"),
        }
        if *settings != before {
            gst::debug!(CAT, imp = self, "{:?}", *settings);
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        let settings = *self.settings.lock();
        match pspec.name() {
            "labels" => settings.labels.to_value(),
            "confidence" => settings.confidence.to_value(),
            "hold" => settings.hold.to_value(),
            "line-width" => settings.line_width.to_value(),
            _ => settings.font_scale.to_value(),
        }
    }
}

impl GstObjectImpl for YoloOverlay {}

impl ElementImpl for YoloOverlay {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "YOLO detection overlay",
                "Filter/Editor/Video",
                "Draws detected objects' boxes, class names and confidences onto the frame in its own pixel format",
                env!("CARGO_PKG_AUTHORS"),
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            let caps = gst_video::VideoCapsBuilder::new().format_list(FORMATS).build();
            [("sink", gst::PadDirection::Sink), ("src", gst::PadDirection::Src)]
                .into_iter()
                .filter_map(|(name, direction)| {
                    gst::PadTemplate::new(name, direction, gst::PadPresence::Always, &caps).ok()
                })
                .collect()
        });
        &TEMPLATES
    }
}

impl BaseTransformImpl for YoloOverlay {
    const MODE: BaseTransformMode = BaseTransformMode::AlwaysInPlace;
    const PASSTHROUGH_ON_SAME_CAPS: bool = false;
    const TRANSFORM_IP_ON_PASSTHROUGH: bool = false;

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        *self.state.lock() = State::default();
        Ok(())
    }

    fn sink_event(&self, event: gst::Event) -> bool {
        // What was found before a jump in time is not where the next frame is.
        if matches!(event.type_(), gst::EventType::FlushStop | gst::EventType::Segment) {
            self.state.lock().boxes.clear();
        }
        self.parent_sink_event(event)
    }
}

impl VideoFilterImpl for YoloOverlay {
    fn set_info(
        &self,
        incaps: &gst::Caps,
        in_info: &gst_video::VideoInfo,
        outcaps: &gst::Caps,
        out_info: &gst_video::VideoInfo,
    ) -> Result<(), gst::LoggableError> {
        let mut state = self.state.lock();
        state.boxes.clear();
        state.look = Some(Look {
            width: in_info.width(),
            height: in_info.height(),
            grid: Grid::of(&in_info.format_info()),
            inks: Inks::new(in_info),
        });
        drop(state);
        self.parent_set_info(incaps, in_info, outcaps, out_info)
    }

    fn transform_frame_ip(
        &self,
        frame: &mut gst_video::VideoFrameRef<&mut gst::BufferRef>,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        let settings = *self.settings.lock();
        let State { look, boxes, text } = &mut *self.state.lock();
        let look = look.as_ref().ok_or(gst::FlowError::NotNegotiated)?;
        let objects = boxes.read(frame.buffer(), settings.hold);
        if !objects.is_empty() {
            let style =
                Style::new(look.width, look.height, look.grid, settings.line_width, settings.font_scale);
            let words = Words { name: settings.labels, confidence: settings.confidence };
            painter::paint(&mut Canvas::new(frame), objects, &style, &look.inks, words, text);
        }
        Ok(gst::FlowSuccess::Ok)
    }
}
