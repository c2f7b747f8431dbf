//! Whether a device of NVIDIA's can be used, looked at before ONNX Runtime loads anything for it: its own errors name a file at best, and it
//! may crash.

use std::path::Path;

use crate::engine::EngineError;
use crate::engine::device::Device;

/// What ONNX Runtime's loaded library is.
#[derive(Clone, Copy, Debug)]
pub struct Library<'a> {
    /// As it was named; maybe only for the loader.
    pub file: &'a Path,
    /// It was built with the provider for the device.
    pub built_in: bool,
}

/// Whether `device`, a GPU, can be used. Loads what it needs, so that ONNX Runtime finds it.
///
/// # Errors
/// [`crate::engine::EngineErrorKind::Library`] for files and the driver, [`crate::engine::EngineErrorKind::Settings`] for a GPU that is not there: what is missing,
/// and how to get it.
pub fn check(_device: &Device, _library: Library<'_>) -> Result<(), EngineError> {
    unimplemented!()
}

/// Whether this machine has a GPU of NVIDIA's, as far as can be seen without the driver's library.
pub fn machine_has_gpu() -> bool {
    unimplemented!()
}
