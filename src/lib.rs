//! YOLO detection for GStreamer: many streams, one shared ONNX Runtime session, bounded memory.
//!
//! The modules stand in the order in which a frame meets them.

pub mod yolodetect;

pub mod preprocess;

pub mod tensor;

pub mod batch;

pub mod engine;

pub mod decode;

pub mod detection;

pub mod meta;

pub mod memory;

pub mod history;

pub mod pressure_event;

pub mod metrics;

pub mod yolooverlay;

pub mod yolojson;

pub mod pressurevalve;

gst::plugin_define!(
    yolodetect,
    env!("CARGO_PKG_DESCRIPTION"),
    plugin_init,
    concat!(env!("CARGO_PKG_VERSION"), "-", env!("COMMIT_ID")),
    "MIT/X11",
    env!("CARGO_PKG_NAME"),
    env!("CARGO_PKG_NAME"),
    env!("CARGO_PKG_NAME"),
    env!("BUILD_REL_DATE")
);

fn plugin_init(plugin: &gst::Plugin) -> Result<(), gst::glib::BoolError> {
    yolodetect::register(plugin)?;
    yolooverlay::register(plugin)?;
    yolojson::register(plugin)?;
    pressurevalve::register(plugin)
}
