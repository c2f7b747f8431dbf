//! `pressurevalve`: holds a branch back (a recording, a preview) while memory is short, so that the rest goes on.
//!
//! The level is the higher of two: the process's, which the valve watches by itself, so that it works on a branch that no
//! event reaches, without any `yolodetect`, and when one that was there is gone; and that of the latest
//! `yolodetect-memory-pressure` event on this stream from another process or the application, which is forgotten with a
//! flush, a new stream, and when the element stops. Events of this process say nothing that is not known earlier.
//!
//! - `gate` decides which units pass, `imp` is the GObject around it.

mod gate;
mod imp;

use gst::glib;
use gst::prelude::*;

use crate::memory::pressure::Level;

glib::wrapper! {
    /// See the [module](self).
    pub struct PressureValve(ObjectSubclass<imp::PressureValve>)
        @extends gst_base::BaseTransform, gst::Element, gst::Object;
}

/// `level`: from which level on the valve is shut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstPressureValveLevel")]
#[repr(i32)]
pub enum ShutLevel {
    #[enum_value(name = "From warning on", nick = "warning")]
    Warning = 1,
    #[default]
    #[enum_value(name = "From critical on", nick = "critical")]
    Critical,
    #[enum_value(name = "In an emergency", nick = "emergency")]
    Emergency,
}

impl ShutLevel {
    fn level(self) -> Level {
        match self {
            ShutLevel::Warning => Level::Warning,
            ShutLevel::Critical => Level::Critical,
            ShutLevel::Emergency => Level::Emergency,
        }
    }
}

/// `mode`: what passes while the valve is shut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstPressureValveMode")]
#[repr(i32)]
pub enum Mode {
    #[default]
    #[enum_value(name = "Nothing", nick = "drop")]
    Drop,
    #[enum_value(name = "Key frames of an encoded stream", nick = "keyframes-only")]
    KeyframesOnly,
    #[enum_value(
        name = "One frame in so many as thin says; of an encoded stream one key frame",
        nick = "thin"
    )]
    Thin,
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    ShutLevel::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
    Mode::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
    gst::Element::register(Some(plugin), "pressurevalve", gst::Rank::NONE, PressureValve::static_type())
}
