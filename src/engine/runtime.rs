//! Finds libonnxruntime and loads it, once per process and only when the first model is wanted.
//!
//! The library cannot be unloaded and its environment can be made only once, so the first element to need
//! it decides which file is used; one that asks for another file afterwards is told so.

use std::env;
use std::ffi::{CStr, c_char, c_void};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use libloading::Library;
use once_cell::sync::OnceCell;
use ort::environment::Environment;
use ort::ep::{self, ExecutionProvider};
use ort::logging::LoggerFunction;
use parking_lot::Mutex;

use super::device::Device;
use super::{EngineError, EngineErrorKind};

/// The environment variable that names the library where no property does; the name is `ort`'s own.
pub const LIBRARY_VARIABLE: &str = "ORT_DYLIB_PATH";
/// What the system's loader is asked for when nothing is named.
const LIBRARY_NAMES: [&str; 2] = ["libonnxruntime.so.1", "libonnxruntime.so"];
const WAY_OUT: &str = "install ONNX Runtime 1.17 or newer (the file libonnxruntime.so.* of the PyPI package \
                       'onnxruntime' will do) and name it in the property onnxruntime-library or the \
                       environment variable ORT_DYLIB_PATH";

struct Loaded {
    environment: Environment,
    library: PathBuf,
    version: String,
}

static LOADED: OnceCell<Loaded> = OnceCell::new();
/// Loading is rare and must not run twice at a time; failures may be tried again with another file.
static LOADING: Mutex<()> = Mutex::new(());

/// The process exits: the library's own clean-up runs, or will in a moment.
static EXITING: AtomicBool = AtomicBool::new(false);

/// Whether it is too late to call the library.
pub(super) fn exiting() -> bool {
    EXITING.load(Ordering::SeqCst)
}

/// For the process's exit: keeps the library from being loaded or used for anything new, and waits up to
/// `patience` for a load that is in progress.
pub(super) fn close(patience: Duration) {
    EXITING.store(true, Ordering::SeqCst);
    drop(LOADING.try_lock_for(patience));
}

/// What is said to whoever wants a model then.
pub(super) fn too_late() -> EngineError {
    EngineError::new(EngineErrorKind::Library, "the process is exiting: no model is loaded any more", "")
}

/// The process's ONNX Runtime, loaded from `library` or, where that is `None`, from the environment
/// variable or the loader's path.
///
/// # Errors
/// [`EngineErrorKind::Library`] for a file that is missing, is no ONNX Runtime or too old, and
/// [`EngineErrorKind::Settings`] for a second file in one process.
pub fn environment(library: Option<&Path>) -> Result<&'static Environment, EngineError> {
    let _loading = LOADING.lock();
    if exiting() {
        return Err(too_late());
    }
    let candidates = candidates(library);
    if let Some(loaded) = LOADED.get() {
        return match library {
            Some(asked) if !same_file(asked, &loaded.library) => Err(EngineError::new(
                EngineErrorKind::Settings,
                format!(
                    "onnxruntime-library={} was asked for, but this process already runs {}; a process can load only one: \
                     give all elements the same",
                    asked.display(),
                    loaded.library.display()
                ),
                "",
            )),
            _ => Ok(&loaded.environment),
        };
    }
    let mut first_error = None;
    for candidate in &candidates {
        match load(candidate) {
            Ok((environment, version)) => {
                super::registry::stop_workers_at_exit();
                let loaded =
                    LOADED.get_or_init(|| Loaded { environment, library: candidate.clone(), version });
                return Ok(&loaded.environment);
            }
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    Err(first_error.unwrap_or_else(|| EngineError::new(EngineErrorKind::Library, WAY_OUT, "")))
}

/// The file that the process's ONNX Runtime was loaded from, as it was named.
pub fn library() -> Option<&'static Path> {
    LOADED.get().map(|loaded| loaded.library.as_path())
}

/// Of the library, as it calls itself; `None` before it is loaded.
pub fn version() -> Option<&'static str> {
    LOADED.get().map(|loaded| loaded.version.as_str())
}

/// Whether the library that is loaded was built with the provider for `device`, a GPU of NVIDIA's.
pub fn has_provider(device: &Device) -> bool {
    LOADED.get().is_some()
        && match device {
            Device::Cuda(_) => ep::CUDA::is_available(),
            Device::TensorRt(_) => ep::TensorRT::is_available(),
            Device::Auto | Device::Cpu | Device::OpenVino(_) => Ok(false),
        }
        .unwrap_or_default()
}

fn candidates(library: Option<&Path>) -> Vec<PathBuf> {
    if let Some(library) = library {
        return vec![library.to_path_buf()];
    }
    match env::var_os(LIBRARY_VARIABLE) {
        Some(path) if !path.is_empty() => vec![PathBuf::from(path)],
        _ => LIBRARY_NAMES.iter().map(PathBuf::from).collect(),
    }
}

fn same_file(a: &Path, b: &Path) -> bool {
    a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn load(library: &Path) -> Result<(Environment, String), EngineError> {
    // A relative path with a slash means relative to here; `ort` would look beside the executable first.
    let path = if library.components().count() > 1 && library.is_relative() {
        env::current_dir().map(|here| here.join(library)).unwrap_or_else(|_| library.to_path_buf())
    } else {
        library.to_path_buf()
    };
    if path.is_absolute() && !path.is_file() {
        return Err(EngineError::new(
            EngineErrorKind::Library,
            format!("there is no ONNX Runtime library at {}: {WAY_OUT}", path.display()),
            "",
        ));
    }
    // ONNX Runtime looks for its providers beside the name that it is loaded by, and does not follow links.
    let path = if path.is_absolute() { path.canonicalize().unwrap_or(path) } else { path };
    note_exit();
    // Kept open until `ort` has opened it too, so that it is not loaded twice.
    let (_checked, version) = check(&path)?;
    let not_working =
        |error: String| refuse(format!("{} is not a working ONNX Runtime library", path.display()), error);
    let builder = ort::init_from(&path).map_err(|error| not_working(error.to_string()))?;
    super::registry::stop_workers_at_exit();
    if exiting() {
        return Err(too_late());
    }
    // What goes wrong is reported by us; ONNX Runtime would print it to stderr as well. Where an application has made the
    // environment before, that keeps its own.
    let silent: LoggerFunction = Arc::new(|_, _, _, _, _| ());
    let environment = builder
        .with_name("yolodetect")
        .with_telemetry(false)
        .with_logger(silent)
        .build()
        .map_err(|error| {
            refuse(format!("the ONNX Runtime library {} does not start", path.display()), error.to_string())
        })?;
    Ok((environment, version))
}

/// An exit that begins while the library's file is being opened waits here until that is over.
fn note_exit() {
    extern "C" fn wait() {
        close(super::registry::EXIT_PATIENCE);
    }
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| crate::memory::at_exit(wait));
}

fn refuse(message: String, detail: String) -> EngineError {
    EngineError::new(EngineErrorKind::Library, format!("{message}: {WAY_OUT}"), detail)
}

/// What `OrtGetApiBase` points to. The functions are there in every ONNX Runtime, but not in whatever else may
/// export that name.
#[repr(C)]
struct ApiBase {
    get_api: Option<unsafe extern "system" fn(u32) -> *const c_void>,
    get_version: Option<unsafe extern "system" fn() -> *const c_char>,
}

/// Opens the library and makes sure that it has the API that `ort` was built for. `ort` itself would keep the
/// first library that exports the right name, so that the process could never load another, and panic or crash
/// on one that gives no version or no API.
fn check(path: &Path) -> Result<(Library, String), EngineError> {
    // SAFETY: loading runs the file's initialisers; which file it is, is the user's own choice.
    let library = unsafe { Library::new(path) }.map_err(|error| {
        // The loader's own words are the error's source.
        let reason = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        refuse(format!("the ONNX Runtime library {} cannot be loaded", path.display()), reason)
    })?;
    let not_working = |reason: &str| {
        refuse(format!("{} is not a working ONNX Runtime library", path.display()), reason.to_string())
    };
    // SAFETY: the type is that of ONNX Runtime's one exported entry point; the base, where there is one, is static
    // data of the library, and so is the version's text.
    let (get_api, version) = unsafe {
        let entry = library
            .get::<unsafe extern "system" fn() -> *const ApiBase>(b"OrtGetApiBase\0")
            .map_err(|_| {
                let message = format!("{} is a library, but not ONNX Runtime", path.display());
                refuse(message, "it exports no OrtGetApiBase".into())
            })?;
        let base = entry().as_ref().ok_or_else(|| not_working("OrtGetApiBase gives nothing"))?;
        let (Some(get_api), Some(get_version)) = (base.get_api, base.get_version) else {
            return Err(not_working("OrtGetApiBase gives no functions"));
        };
        let version = get_version();
        if version.is_null() {
            return Err(not_working("it has no version"));
        }
        (get_api, CStr::from_ptr(version).to_string_lossy().into_owned())
    };
    let minor =
        minor_version(&version).ok_or_else(|| not_working(&format!("it calls its version {version:?}")))?;
    if minor < ort::MINOR_VERSION {
        let message =
            format!("the ONNX Runtime library {} is version {version}, which is too old", path.display());
        return Err(refuse(message, format!("needed is 1.{} or newer", ort::MINOR_VERSION)));
    }
    // SAFETY: as ONNX Runtime declares it; any number may be asked for.
    if unsafe { get_api(ort::sys::ORT_API_VERSION) }.is_null() {
        return Err(not_working("it exports OrtGetApiBase but gives no API"));
    }
    Ok((library, version))
}

/// The 31 of `1.31.1`.
pub(super) fn minor_version(version: &str) -> Option<u32> {
    version.split('.').nth(1)?.parse().ok()
}
