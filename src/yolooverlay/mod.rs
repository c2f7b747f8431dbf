//! `yolooverlay`: draws what was detected onto the frame, in place and in the stream's own pixel format.
//!
//! The frame is never converted; only the bytes of painted pixels are written.
//!
//! - `boxes` reads the detections of a buffer and holds the last ones,
//! - `palette` gives each class its colour, `ink` turns colours into a format's component values,
//! - `canvas` paints rectangles into any 8-bit format,
//! - `style` sizes lines and text to the frame, `label` words and places the labels,
//! - `painter` puts the picture together, `imp` is the GObject around it.

mod boxes;
mod canvas;
mod imp;
mod ink;
mod label;
mod painter;
mod palette;
mod style;

use gst::glib;
use gst::prelude::*;

glib::wrapper! {
    pub struct YoloOverlay(ObjectSubclass<imp::YoloOverlay>)
        @extends gst_video::VideoFilter, gst_base::BaseTransform, gst::Element, gst::Object;
}

pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(Some(plugin), "yolooverlay", gst::Rank::NONE, YoloOverlay::static_type())
}
