//! Detections and the frame's status on a [`gst::Buffer`]: written by `yolodetect`, read by everybody else.
//!
//! Three metas, because they have different readers:
//! - [`frame`]: what became of the frame (inferred, skipped, …), on every buffer; readable from C and Python as a custom
//!   meta.
//! - [`analytics`]: GStreamer's own object-detection metadata, where the running GStreamer has it (1.24).
//! - [`roi`]: `GstVideoRegionOfInterestMeta`, which every GStreamer has.
//!
//! Elements that resize video scale the boxes of both box metas themselves (truncated to whole pixels), so a reader takes
//! the boxes as they are, in pixels of the frame it holds. Scaling strips a region of its parameters, in every release so
//! far; its confidence and class are then in the frame meta, which carries no geometry and passes unchanged.
//!
//! An object-detection mtd can hold neither a class number nor an id that outlives its buffer; the frame meta completes
//! it. [`found`] puts the parts together again.

use std::borrow::Cow;
use std::ffi::CStr;
use std::sync::Arc;

use gst::glib;
use gst::glib::translate::IntoGlib;

use crate::detection::{ClassId, Detection, Labels, Rect};

pub mod analytics;
mod fields;
pub mod frame;
pub mod roi;

pub use analytics::available as analytics_available;
pub use frame::{FrameRecord, frames, frames_into};

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// The model saw it; no detections mean that nothing was found.
    Inferred,
    /// Passed over by the user's wish (`inference-interval`, `max-fps`).
    Interval,
    /// Passed over because inference did not keep up with a live stream.
    Overload,
    /// Passed over because memory ran short.
    Pressure,
    /// Inference was tried and failed.
    Failed,
}

impl Status {
    pub fn nick(self) -> &'static str {
        self.text().as_str()
    }

    /// The nick as C reads it.
    fn text(self) -> &'static glib::GStr {
        match self {
            Status::Inferred => glib::gstr!("inferred"),
            Status::Interval => glib::gstr!("interval"),
            Status::Overload => glib::gstr!("overload"),
            Status::Pressure => glib::gstr!("pressure"),
            Status::Failed => glib::gstr!("failed"),
        }
    }

    pub fn from_nick(nick: &str) -> Option<Self> {
        [Status::Inferred, Status::Interval, Status::Overload, Status::Pressure, Status::Failed]
            .into_iter()
            .find(|status| status.nick() == nick)
    }
}

/// What `yolodetect` says of a frame as a whole.
#[derive(Clone, Debug)]
pub struct FrameInfo {
    /// The element's name.
    pub element: Arc<str>,
    /// The frame's number in the element's stream, from 0.
    pub frame: u64,
    pub status: Status,
    /// Detection `i` has the id `first_id + i` (modulo 2³²).
    pub first_id: u32,
    /// How long the model took over the batch; zero where the frame was not inferred.
    pub inference_time: gst::ClockTime,
    /// Frames in the batch; 0 where the frame was not inferred.
    pub batch: u32,
}

/// Which metas carry the boxes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds {
    /// Object-detection mtds; without effect where [`analytics_available`] is false.
    pub analytics: bool,
    /// One region-of-interest meta for each detection.
    pub roi: bool,
}

/// The labels of a model's classes as quarks, made once so that [`attach`] makes no strings.
#[derive(Clone, Debug)]
pub struct LabelQuarks {
    quarks: Vec<glib::Quark>,
    unknown: glib::Quark,
}

impl LabelQuarks {
    /// For `classes` classes, or as many as there are labels if that is more. A class without a label gets its number.
    ///
    /// Quarks live as long as the process: one set for each model, not for each frame.
    pub fn new(labels: &Labels, classes: usize) -> Self {
        let quark = |class| {
            // A C string ends at its first NUL.
            let name = labels.name(class as ClassId);
            glib::Quark::from_str(name.split('\0').next().unwrap_or_default())
        };
        Self {
            quarks: (0..classes.max(labels.len())).map(quark).collect(),
            unknown: glib::Quark::from_static_str(glib::gstr!("unknown")),
        }
    }

    /// The label's quark; that of `unknown` for a class beyond those it was made for.
    pub fn get(&self, class: ClassId) -> glib::Quark {
        self.quarks.get(class as usize).copied().unwrap_or(self.unknown)
    }
}

/// A box in whole pixels, at least 1×1 and inside its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelBox {
    pub x: u32,
    pub y: u32,
    pub w: u32,
    pub h: u32,
}

impl PixelBox {
    /// Corners rounded to whole pixels, then kept inside `frame_size` (width, height) with at least one pixel each way.
    pub fn new(rect: &Rect, frame_size: (u32, u32)) -> Self {
        let (x, w) = span(rect.x1, rect.x2, frame_size.0);
        let (y, h) = span(rect.y1, rect.y2, frame_size.1);
        Self { x, y, w, h }
    }
}

/// Start and length of one side. A float cast saturates and turns NaN into 0, so any input lands inside the frame; the
/// limit keeps both in an `i32`, which is what the metas hold.
fn span(from: f32, to: f32, size: u32) -> (u32, u32) {
    let size = size.clamp(1, i32::MAX as u32);
    let start = (from.round() as u32).min(size - 1);
    let end = (to.round() as u32).clamp(start + 1, size);
    (start, end - start)
}

/// Attaches the frame's status and its detections.
///
/// - `detections`: boxes in pixels of the frame, whose width and height are `frame_size`.
/// - `kinds`: which metas carry the boxes. With none, the frame meta still tells their number and classes.
///
/// A further element on the same buffer adds to what is there. An inferred frame without detections gets an (empty)
/// relation meta too, so that a renderer which keeps its last picture until the next meta, as `objectdetectionoverlay`
/// does, clears it.
///
/// # Errors
/// Where GStreamer refuses a meta. What was attached before that stays; the frame meta is then missing.
pub fn attach(
    buffer: &mut gst::BufferRef,
    info: &FrameInfo,
    detections: &[Detection],
    labels: &LabelQuarks,
    frame_size: (u32, u32),
    kinds: Kinds,
) -> Result<(), glib::BoolError> {
    let wants_relation = kinds.analytics && (info.status == Status::Inferred || !detections.is_empty());
    let first_mtd =
        if wants_relation { analytics::add(buffer, detections, labels, frame_size)? } else { None };
    // Before the regions: their order tells a reader which element they belong to.
    frame::add(buffer, info, detections, first_mtd)?;
    if kinds.roi {
        let first_id = first_mtd.unwrap_or(info.first_id);
        for (index, detection) in detections.iter().enumerate() {
            let id = first_id.wrapping_add(index as u32);
            roi::add(buffer, detection, id, labels.get(detection.class), frame_size);
        }
    }
    Ok(())
}

/// One object on a buffer, whichever meta carried it.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The detection's id; none for objects that no `yolodetect` attached.
    pub id: Option<u32>,
    /// Which of the buffer's [`frames`] it belongs to; none for those of other elements.
    pub element: Option<usize>,
    /// Its number in the relation meta, where it is there.
    pub mtd: Option<u32>,
    /// The box in whole pixels of this frame. Another element's may lie outside it or be empty.
    pub x: i32,
    pub y: i32,
    pub w: i32,
    pub h: i32,
    /// 0..=1 from `yolodetect`, any value from other elements.
    pub confidence: Option<f32>,
    /// The label's quark.
    pub class: Option<glib::Quark>,
    pub class_id: Option<ClassId>,
    /// `[x_min, y_min, x_max, y_max]` in parts of the frame (0..=1), finer than whole pixels; only from a region of
    /// interest that no element scaled.
    pub normalized: Option<[f64; 4]>,
}

impl Found {
    /// The class's name, empty where there is none. Another element's bytes that are no UTF-8 are replaced.
    pub fn label(&self) -> Cow<'static, str> {
        let Some(quark) = self.class else { return Cow::Borrowed("") };
        // SAFETY: a quark's string is NUL-terminated and lives as long as the process; it is null only for a quark that
        // was never made, which is checked.
        unsafe {
            let text = glib::ffi::g_quark_to_string(quark.into_glib());
            if text.is_null() { Cow::Borrowed("") } else { CStr::from_ptr(text).to_string_lossy() }
        }
    }
}

/// All objects on the buffer: those of every `yolodetect`, then those of other elements' regions. An object that is in
/// the relation meta and a region of interest is one object.
pub fn found(buffer: &gst::BufferRef) -> Vec<Found> {
    let mut found = Vec::new();
    found_into(buffer, &frames(buffer), &mut found);
    found
}

/// [`found`] into a reused `Vec`, which is cleared first. `frames` are this buffer's.
pub fn found_into(buffer: &gst::BufferRef, frames: &[FrameRecord], found: &mut Vec<Found>) {
    found.clear();
    analytics::read(buffer, frames, found);
    roi::read(buffer, frames, found);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn boxes_are_rounded_by_their_corners() {
        let size = (640, 480);
        let rounded = |x1, y1, x2, y2| {
            let PixelBox { x, y, w, h } = PixelBox::new(&Rect::new(x1, y1, x2, y2), size);
            [x, y, w, h]
        };
        assert_eq!(rounded(10.4, 20.5, 30.5, 40.4), [10, 21, 21, 19]);
        assert_eq!(rounded(0.0, 0.0, 640.0, 480.0), [0, 0, 640, 480]);
        assert_eq!(rounded(-5.0, -5.0, 700.0, 500.0), [0, 0, 640, 480]);
        assert_eq!(rounded(10.1, 10.1, 10.2, 10.2), [10, 10, 1, 1]);
        assert_eq!(rounded(640.0, 480.0, 640.0, 480.0), [639, 479, 1, 1]);
        assert_eq!(rounded(f32::NAN, 3.0, f32::NAN, f32::INFINITY), [0, 3, 1, 477]);
    }

    #[test]
    fn nicks_lead_back_to_their_status() {
        for status in [Status::Inferred, Status::Interval, Status::Overload, Status::Pressure, Status::Failed]
        {
            assert_eq!(Status::from_nick(status.nick()), Some(status));
        }
        assert_eq!(Status::from_nick("Inferred"), None);
    }

    #[test]
    fn labels_become_quarks_and_hostile_names_do_no_harm() {
        let labels = Labels::new(["käfer".to_string(), "a\0b".to_string(), String::new()]);
        let quarks = LabelQuarks::new(&labels, 5);
        let names: Vec<_> = (0..7).map(|class| quarks.get(class).as_str().to_string()).collect();
        assert_eq!(names, ["käfer", "a", "", "3", "4", "unknown", "unknown"]);
    }

    proptest! {
        #[test]
        fn boxes_lie_inside_the_frame(corners: [f32; 4], width: u32, height: u32) {
            let rect = Rect::new(corners[0], corners[1], corners[2], corners[3]);
            let PixelBox { x, y, w, h } = PixelBox::new(&rect, (width, height));
            prop_assert!(w >= 1 && h >= 1);
            prop_assert!(x + w <= width.max(1) && y + h <= height.max(1));
        }
    }
}
