//! Fields of a `GstStructure` by their names' quarks, made once: by name, each access would look the quark up under a
//! lock of the whole process (GStreamer below 1.26; later ones take the quark's string, without copying it).

use std::sync::OnceLock;

use gst::glib;
use gst::glib::translate::{IntoGlib, ToGlibPtrMut};
use gst::glib::value::FromValue;

/// A field's name.
pub(super) struct Field {
    name: &'static glib::GStr,
    quark: OnceLock<glib::Quark>,
}

impl Field {
    pub(super) const fn new(name: &'static glib::GStr) -> Self {
        Self { name, quark: OnceLock::new() }
    }

    fn quark(&self) -> glib::ffi::GQuark {
        self.quark.get_or_init(|| glib::Quark::from_static_str(self.name)).into_glib()
    }

    pub(super) fn set(&self, fields: &mut gst::StructureRef, value: impl Into<glib::Value> + Send) {
        self.take(fields, value.into());
    }

    /// Sets a text that is not copied; copies of the structure have copies of it.
    pub(super) fn set_static(&self, fields: &mut gst::StructureRef, text: &'static glib::GStr) {
        let mut value = glib::Value::from_type(glib::Type::STRING);
        // SAFETY: the value holds a string, and the text ends with a NUL and lives as long as the process, since
        // GStreamer never unloads a plugin.
        unsafe { glib::gobject_ffi::g_value_set_static_string(value.to_glib_none_mut().0, text.as_ptr()) };
        self.take(fields, value);
    }

    /// `value` is one that may change threads.
    fn take(&self, fields: &mut gst::StructureRef, value: glib::Value) {
        let mut value = value.into_raw();
        // SAFETY: the structure is writable (`&mut`) and owns the value from here on.
        unsafe { gst::ffi::gst_structure_id_take_value(fields.as_mut_ptr(), self.quark(), &mut value) }
    }

    /// `None` where the field is missing or of another type.
    pub(super) fn get<'a, T: FromValue<'a>>(&self, fields: &'a gst::StructureRef) -> Option<T> {
        // SAFETY: the structure, which is borrowed for as long as the result lives, keeps the value. A `SendValue` is a
        // value that may change threads, as all values of a structure may.
        let value = unsafe {
            gst::ffi::gst_structure_id_get_value(fields.as_ptr(), self.quark())
                .cast::<glib::SendValue>()
                .as_ref()?
        };
        value.get().ok()
    }
}
