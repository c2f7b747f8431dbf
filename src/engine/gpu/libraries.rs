//! Loads the libraries that a provider needs, for ever: the loader then finds them by their names when ONNX Runtime loads the provider,
//! wherever they lie.

use std::env;
use std::ffi::c_void;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_LAZY, RTLD_LOCAL, RTLD_NOW};
use parking_lot::Mutex;

use super::provider::{self, Flaw};
use crate::engine::cache::system;

/// A library that cannot be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    pub name: String,
    /// What is wrong with it; `None` where it is not there at all.
    pub why: Option<String>,
}

/// Those that stay, by the names by which they were wanted.
static KEPT: Mutex<Vec<(String, Library)>> = Mutex::new(Vec::new());

/// Loads `names`, each from `folder` where it is there, else from where the loader finds it. What was loaded stays, also where others
/// are missing, and is not looked for again.
///
/// # Errors
/// All that cannot be loaded.
pub fn keep(names: &[String], folder: &Path) -> Result<(), Vec<Missing>> {
    let mut kept = KEPT.lock();
    let mut wanted: Vec<Wanted> = Vec::new();
    for name in names {
        want(name, folder, &kept, &mut wanted);
    }
    let blocked = blocked(&wanted);
    wanted.retain(|library| library.flaw.is_some() || !blocked.contains(&library.name));
    loop {
        let before = wanted.len();
        wanted.retain_mut(|library| match library.load() {
            Ok(loaded) => {
                kept.push((library.name.clone(), loaded));
                false
            }
            Err(why) => {
                library.why = Some(why);
                true
            }
        });
        // One needs another, in an order that only the loader knows.
        if wanted.is_empty() || wanted.len() == before {
            break;
        }
    }
    if wanted.is_empty() { Ok(()) } else { Err(wanted.into_iter().map(Wanted::missing).collect()) }
}

/// One library that is wanted beside those, kept like them; `None` where it cannot be loaded.
pub fn opened(name: &str, folder: &Path) -> Option<Library> {
    keep(&[name.to_string()], folder).ok()?;
    open(Path::new(name), libc::RTLD_NOLOAD).ok()
}

struct Wanted {
    name: String,
    /// Where it lies beside ONNX Runtime.
    file: Option<PathBuf>,
    flaw: Option<Flaw>,
    needed: Vec<String>,
    /// The loader's words.
    why: Option<String>,
}

/// Those that are damaged, and those that would have the loader load a damaged one.
fn blocked(wanted: &[Wanted]) -> Vec<String> {
    let mut blocked: Vec<String> = Vec::new();
    loop {
        let more = wanted.iter().filter(|library| !blocked.contains(&library.name)).filter(|library| {
            library.flaw.is_some() || library.needed.iter().any(|name| blocked.contains(name))
        });
        let more: Vec<_> = more.map(|library| library.name.clone()).collect();
        if more.is_empty() {
            return blocked;
        }
        blocked.extend(more);
    }
}

/// Adds a library that is not kept yet, and those that it needs and that lie beside it, where the loader does not look.
fn want(name: &str, folder: &Path, kept: &[(String, Library)], wanted: &mut Vec<Wanted>) {
    if kept.iter().any(|(kept, _)| kept == name) || wanted.iter().any(|library| library.name == name) {
        return;
    }
    let file = Some(folder.join(name)).filter(|file| file.exists());
    let (needed, flaw) = match file.clone().or_else(|| on_path(name)).as_deref().map(provider::needed) {
        Some(Ok(needed)) => (needed, None),
        // The loader passes over what is none on its way.
        Some(Err(flaw)) if file.is_some() || matches!(flaw, Flaw::CutOff { .. }) => (Vec::new(), Some(flaw)),
        Some(Err(_)) | None => (Vec::new(), None),
    };
    wanted.push(Wanted { name: name.into(), file, flaw, needed: needed.clone(), why: None });
    for name in needed.iter().filter(|name| folder.join(name).exists()) {
        want(name, folder, kept, wanted);
    }
}

/// The file that the loader takes where a user has told it where to look. What it knows from the system is the system's to keep whole.
fn on_path(name: &str) -> Option<PathBuf> {
    let folders = env::var_os("LD_LIBRARY_PATH")?;
    env::split_paths(&folders).map(|folder| folder.join(name)).find(|file| file.exists())
}

impl Wanted {
    fn load(&self) -> Result<Library, String> {
        // One that the process has is the one that ONNX Runtime gets: by its path, a second would be loaded.
        if let Ok(loaded) = open(Path::new(&self.name), libc::RTLD_NOLOAD) {
            return Ok(loaded);
        }
        match &self.flaw {
            Some(flaw) => Err(flaw.to_string()),
            None => open(self.file.as_deref().unwrap_or(Path::new(&self.name)), 0),
        }
    }

    fn missing(self) -> Missing {
        let Self { name, flaw, why, .. } = self;
        let is_absent =
            |why: &String| why.starts_with(&format!("{name}: cannot open shared object file: No such"));
        let why = flaw.map(|flaw| flaw.to_string()).or_else(|| why.filter(|why| !is_absent(why)));
        Missing { name, why }
    }
}

/// What the library lacks is found out here, where it would else end the process at the first call of it.
fn open(path: &Path, more: libc::c_int) -> Result<Library, String> {
    // SAFETY: loading runs the library's initialisers; ONNX Runtime would load the same one, by the same name.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL | more) }.map_err(|error| {
        // The loader's own words are the error's source.
        std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
    })
}

/// By which path the loader has loaded ONNX Runtime's library, whatever path or name it is asked for by now; `None` where it
/// has none of that name.
pub fn loaded_file(name: &Path) -> Option<PathBuf> {
    // SAFETY: only what is loaded already is given, so nothing runs.
    let library = unsafe { Library::open(Some(name), RTLD_LAZY | libc::RTLD_NOLOAD) }.ok()?;
    // SAFETY: only the address is looked at.
    let entry = unsafe { library.get::<*const c_void>(b"OrtGetApiBase\0") }.ok()?;
    system::object_file(entry.into_raw().addr())
}
