//! The element `yolodetect`: infers, attaches detections, passes every frame on.
//!
//! It behaves like a `queue` that also detects: frames are taken in on the upstream thread, preprocessed
//! into a slot of the shared engine's next batch, and pushed by the source pad's own task once their result
//! is there, in order, with the serialized events and queries between them.
//!
//! ```sh
//! gst-launch-1.0 filesrc location=street.mp4 ! decodebin ! videoconvert ! \
//!     yolodetect model-file=yolo12n.onnx ! yolooverlay ! videoconvert ! autovideosink
//! ```

mod buffers;
mod device_settings;
mod figures;
mod imp;
mod inflight;
mod intake;
mod live;
mod memory_settings;
mod negotiation;
mod outlet;
mod pressure;
mod reader;
mod recent;
mod report;
mod session;
mod settings;
mod stats;
mod thinning;

use gst::glib;
use gst::prelude::*;

pub use device_settings::{ConvSearch, DeviceFallback};
pub use settings::{HeadChoice, MetaChoice, Overload, PerformanceHint};

glib::wrapper! {
    /// See the [module](self).
    pub struct YoloDetect(ObjectSubclass<imp::YoloDetect>) @extends gst::Element, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    HeadChoice::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
    PerformanceHint::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
    DeviceFallback::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
    ConvSearch::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
    Overload::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
    MetaChoice::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
    gst::Element::register(Some(plugin), "yolodetect", gst::Rank::NONE, YoloDetect::static_type())
}
