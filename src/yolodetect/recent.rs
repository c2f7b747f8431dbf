//! The action signals that give out the history.
//!
//! Both have one parameter, the number of frames that are wanted at most, the latest ones (0: all that are kept), and give
//! inferred frames only, oldest first:
//!
//! ```json
//! {"element":"yolodetect0","frames":[{"frame":3,"pts":120000000,"detections":[
//!     {"id":"00000011","class":"car","class_id":2,"conf":0.873,"box":[10,12,64,40]}]}]}
//! ```
//!
//! `recent-detections` gives the same as a structure of that name: `frames` and `detections` are `GstValueArray`s of
//! structures; `frame`, `pts` (ns; 2⁶⁴−1 where JSON has null) are uint64, `label` is a string, `id`, `class-id`, `x`, `y`, `w`, `h`
//! are uint, `confidence` is a double. JSON has a detection as `yolojson` writes it. Boxes are those on the buffers, in whole pixels.

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use once_cell::sync::Lazy;
use serde_json::json;

use super::imp::YoloDetect;
use crate::detection::{Detection, Labels};
use crate::history::Frame;
use crate::meta::PixelBox;

const NAME: &str = "recent-detections";

type Frames = Vec<(Frame, Vec<Detection>)>;

pub fn signals() -> &'static [glib::subclass::Signal] {
    static SIGNALS: Lazy<Vec<glib::subclass::Signal>> = Lazy::new(|| {
        vec![
            signal::<gst::Structure>(NAME, |element, frames, labels| {
                structure(element, &frames, labels).to_value()
            }),
            signal::<String>("recent-detections-json", |element, frames, labels| {
                json(element, &frames, labels).to_value()
            }),
        ]
    });
    &SIGNALS
}

fn signal<T: StaticType>(
    name: &str,
    show: impl Fn(&str, Frames, &Labels) -> glib::Value + Send + Sync + 'static,
) -> glib::subclass::Signal {
    let handler = move |arguments: &[glib::Value]| {
        let element = arguments.first()?.get::<super::YoloDetect>().ok()?;
        let most = arguments.get(1)?.get::<u32>().ok()?;
        let (frames, labels) = element.imp().recent(most);
        Some(show(&element.name(), frames, &labels))
    };
    glib::subclass::Signal::builder(name)
        .param_types([u32::static_type()])
        .return_type::<T>()
        .run_last()
        .action()
        .class_handler(handler)
        .build()
}

impl YoloDetect {
    /// Nothing while stopped.
    fn recent(&self, most: u32) -> (Frames, Labels) {
        let Some(session) = self.session() else { return Default::default() };
        (session.pressure.history.recent(most as usize), session.labels.clone())
    }
}

/// Ids and boxes beside their detections.
fn described<'a>(
    frame: &'a Frame,
    detections: &'a [Detection],
) -> impl Iterator<Item = (u32, PixelBox, &'a Detection)> {
    detections.iter().enumerate().map(|(index, detection)| {
        let id = frame.first_id.wrapping_add(index as u32);
        (id, PixelBox::new(&detection.rect, frame.size), detection)
    })
}

fn structure(element: &str, frames: &Frames, labels: &Labels) -> gst::Structure {
    let detection = |(id, PixelBox { x, y, w, h }, found): (u32, PixelBox, &Detection)| {
        gst::Structure::builder("detection")
            .field("id", id)
            .field("label", text(&labels.name(found.class)))
            .field("class-id", found.class)
            .field("confidence", f64::from(found.confidence))
            .field("x", x)
            .field("y", y)
            .field("w", w)
            .field("h", h)
            .build()
            .to_send_value()
    };
    let frame = |(frame, detections): &(Frame, Vec<Detection>)| {
        gst::Structure::builder("frame")
            .field("frame", frame.number)
            .field("pts", frame.pts.unwrap_or(u64::MAX))
            .field("detections", gst::Array::new(described(frame, detections).map(detection)))
            .build()
            .to_send_value()
    };
    gst::Structure::builder(NAME)
        .field("element", element)
        .field("frames", gst::Array::new(frames.iter().map(frame)))
        .build()
}

fn json(element: &str, frames: &Frames, labels: &Labels) -> String {
    let detection = |(id, PixelBox { x, y, w, h }, found): (u32, PixelBox, &Detection)| {
        json!({
            "id": format!("{id:08x}"), "class": text(&labels.name(found.class)), "class_id": found.class,
            "conf": (f64::from(found.confidence) * 1e3).round() / 1e3, "box": [x, y, w, h],
        })
    };
    let frame = |(frame, detections): &(Frame, Vec<Detection>)| {
        let detections: Vec<_> = described(frame, detections).map(detection).collect();
        json!({ "frame": frame.number, "pts": frame.pts, "detections": detections })
    };
    let frames: Vec<_> = frames.iter().map(frame).collect();
    json!({ "element": element, "frames": frames }).to_string()
}

/// A label may hold any characters, C's strings end at a NUL.
fn text(label: &str) -> &str {
    label.split('\0').next().unwrap_or_default()
}
