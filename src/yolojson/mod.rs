//! `yolojson`: what the detectors upstream found, as text.
//!
//! Takes video, reads only its metas ([`crate::meta`]) and puts out text; the pixels are not touched, so any memory and
//! format will do. One buffer of text for each frame, with the frame's timestamps.
//!
//! ```text
//! gst-launch-1.0 filesrc location=street.mp4 ! decodebin ! yolodetect model-file=yolo12n.onnx ! yolojson \
//!     ! filesink location=street.jsonl
//! ```
//!
//! # `format=lines`
//! One compact JSON object per line (`lines`):
//! ```text
//! {"frame":7,"time":0.280,"element":"yolodetect0","status":"inferred","batch":1,"rss_mb":148.2,"progress":2.8,
//!  "detections":[{"id":"0000002a","class":"car","class_id":2,"conf":0.873,"box":[12,30,88,41]}]}
//! ```
//! (one line; broken here). A frame that several `yolodetect` saw gives one line for each, with its own detections. What
//! other elements found goes into a line with `element` null, status `none` and this element's own frame count; frames
//! without any meta have such a line too.
//!
//! # `format=coco`
//! One JSON array over the whole stream, as the COCO evaluation tools read results (`coco`).

use gst::glib;
use gst::prelude::*;

mod coco;
mod imp;
mod lines;
mod progress;
mod rss;

/// What the text looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstYoloJsonFormat")]
#[repr(i32)]
pub enum Format {
    #[default]
    #[enum_value(name = "One JSON object per line and frame", nick = "lines")]
    Lines,
    #[enum_value(name = "COCO results: one array of records, closed at the end of the stream", nick = "coco")]
    Coco,
}

glib::wrapper! {
    pub struct YoloJson(ObjectSubclass<imp::YoloJson>)
        @extends gst_base::BaseTransform, gst::Element, gst::Object;
}

pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(Some(plugin), "yolojson", gst::Rank::NONE, YoloJson::static_type())
}
