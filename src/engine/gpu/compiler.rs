//! NVIDIA's compiler for kernels, `libnvrtc.so`, opened when a kernel is first wanted.
//!
//! The kernel becomes machine code for the GPU at hand where the compiler knows it: that runs with every driver of the same major version. For a
//! GPU newer than the compiler it becomes text (PTX), which the driver compiles.

use std::ffi::{CString, c_char, c_int};
use std::path::Path;
use std::ptr;

use libloading::os::unix::Library;
use thiserror::Error;

use super::driver::{self, DriverError};
use super::kernels::Capability;
use super::libraries;

/// Why there is no kernel.
#[derive(Debug, Error)]
pub enum CompileError {
    #[error("NVIDIA's compiler {0} cannot be loaded; `pipelines/setup.sh --cuda` fetches it")]
    Absent(String),
    #[error("NVIDIA's compiler {compiler} does not know GPUs of compute capability {}.{} any more; `pipelines/setup.sh --cuda=12` fetches one that does", gpu.0, gpu.1)]
    Unknown { compiler: String, gpu: Capability },
    #[error("{call} of NVIDIA's compiler failed ({code}): {log}")]
    Failed { call: &'static str, code: c_int, log: String },
    #[error(transparent)]
    Driver(#[from] DriverError),
}

type Program = *mut std::ffi::c_void;

macro_rules! functions {
    ($($name:ident($($argument:ty),*);)*) => {
        #[allow(non_snake_case)]
        struct Api {
            $($name: unsafe extern "C" fn($($argument),*) -> c_int,)*
            _library: Library,
        }

        impl Api {
            fn find(library: Library) -> Result<Self, &'static str> {
                Ok(Self {
                    // SAFETY: these are the types that NVRTC's documentation gives the functions of these names.
                    $($name: unsafe { library.get::<unsafe extern "C" fn($($argument),*) -> c_int>(stringify!($name)) }
                        .map(|function| *function)
                        .map_err(|_| stringify!($name))?,)*
                    _library: library,
                })
            }
        }
    };
}

functions! {
    nvrtcGetNumSupportedArchs(*mut c_int);
    nvrtcGetSupportedArchs(*mut c_int);
    nvrtcCreateProgram(*mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char);
    nvrtcDestroyProgram(*mut Program);
    nvrtcCompileProgram(Program, c_int, *const *const c_char);
    nvrtcGetProgramLogSize(Program, *mut usize);
    nvrtcGetProgramLog(Program, *mut c_char);
    nvrtcGetCUBINSize(Program, *mut usize);
    nvrtcGetCUBIN(Program, *mut c_char);
    nvrtcGetPTXSize(Program, *mut usize);
    nvrtcGetPTX(Program, *mut c_char);
}

/// What the driver loads: machine code, or text with its end.
pub struct Image(Vec<u8>);

impl Image {
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Compiles `source`, whose name is for messages, for GPUs of this kind. The compiler is looked for in `folder` first.
///
/// # Errors
/// Where there is none for a CUDA that the driver runs and for this GPU, or it refuses.
pub fn compile(name: &str, source: &str, gpu: Capability, folder: &Path) -> Result<Image, CompileError> {
    let (api, target) = find(driver::driver_version()? / 1000, gpu, folder)?;
    let program = Compiling::begin(&api, name, source)?;
    program.compile(&format!("--gpu-architecture={}", target.word))?;
    program.image(target.is_text)
}

/// The oldest whose functions these are.
const OLDEST: u32 = 12;

/// A driver runs what was made by a compiler of its own CUDA, or an older one. What lies in the folder belongs to what is used there, and a
/// newer compiler may not know an older GPU any more.
fn find(newest: u32, gpu: Capability, folder: &Path) -> Result<(Api, Target), CompileError> {
    let names: Vec<_> =
        (OLDEST..=newest.max(OLDEST)).rev().map(|major| format!("libnvrtc.so.{major}")).collect();
    let (own, others): (Vec<_>, Vec<_>) = names.iter().partition(|name| folder.join(name).exists());
    let mut refusal = CompileError::Absent(names.join(" or "));
    for name in own.into_iter().chain(others) {
        let Some(library) = libraries::opened(name, folder) else { continue };
        let found =
            Api::find(library).map_err(|lacks| CompileError::Absent(format!("{name}, without {lacks},")));
        match found.and_then(|api| Ok((api.target(gpu)?, api))) {
            Ok((Some(target), api)) => return Ok((api, target)),
            Ok((None, _)) => refusal = CompileError::Unknown { compiler: name.clone(), gpu },
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}

/// What is compiled for.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    /// The compiler's.
    word: String,
    /// For which the driver compiles the rest.
    is_text: bool,
}

impl Api {
    /// `None` for a GPU that the compiler does not know any more.
    fn target(&self, gpu: Capability) -> Result<Option<Target>, CompileError> {
        let mut count = 0;
        // SAFETY: it writes one number.
        self.outcome("nvrtcGetNumSupportedArchs", unsafe { (self.nvrtcGetNumSupportedArchs)(&mut count) })?;
        let mut known = vec![0; usize::try_from(count).unwrap_or_default()];
        // SAFETY: there is room for as many numbers as there are.
        let code = unsafe { (self.nvrtcGetSupportedArchs)(known.as_mut_ptr()) };
        self.outcome("nvrtcGetSupportedArchs", code)?;
        Ok(target(&known, gpu))
    }

    fn outcome(&self, call: &'static str, code: c_int) -> Result<(), CompileError> {
        if code == 0 { Ok(()) } else { Err(CompileError::Failed { call, code, log: String::new() }) }
    }
}

/// Of kinds that are known: 90 for 9.0.
fn target(known: &[c_int], gpu: Capability) -> Option<Target> {
    let wanted = (gpu.0 * 10 + gpu.1) as c_int;
    let kind = known.iter().copied().filter(|kind| *kind <= wanted).max()?;
    let is_text = kind < wanted;
    Some(Target { word: format!("{}_{kind}", if is_text { "compute" } else { "sm" }), is_text })
}

/// Destroyed on drop.
struct Compiling<'a> {
    api: &'a Api,
    program: Program,
}

impl<'a> Compiling<'a> {
    fn begin(api: &'a Api, name: &str, source: &str) -> Result<Self, CompileError> {
        let text = |text: &str| CString::new(text).unwrap_or_default();
        let (name, source) = (text(name), text(source));
        let mut program = ptr::null_mut();
        // SAFETY: both texts live during the call, which copies them; there are no headers.
        let code = unsafe {
            (api.nvrtcCreateProgram)(
                &mut program,
                source.as_ptr(),
                name.as_ptr(),
                0,
                ptr::null(),
                ptr::null(),
            )
        };
        api.outcome("nvrtcCreateProgram", code)?;
        Ok(Self { api, program })
    }

    fn compile(&self, option: &str) -> Result<(), CompileError> {
        let option = CString::new(option).unwrap_or_default();
        // SAFETY: the program lives, and so does the list of one option.
        let code = unsafe { (self.api.nvrtcCompileProgram)(self.program, 1, &option.as_ptr()) };
        self.api.outcome("nvrtcCompileProgram", code).map_err(|error| match error {
            CompileError::Failed { call, code, .. } => CompileError::Failed { call, code, log: self.log() },
            other => other,
        })
    }

    fn log(&self) -> String {
        let read = self.read(self.api.nvrtcGetProgramLogSize, self.api.nvrtcGetProgramLog);
        let log = read.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        log.unwrap_or_default().trim_matches(['\0', '\n', ' ']).to_string()
    }

    fn image(&self, is_text: bool) -> Result<Image, CompileError> {
        let (call, read) = match is_text {
            true => ("nvrtcGetPTX", self.read(self.api.nvrtcGetPTXSize, self.api.nvrtcGetPTX)),
            false => ("nvrtcGetCUBIN", self.read(self.api.nvrtcGetCUBINSize, self.api.nvrtcGetCUBIN)),
        };
        read.map(Image).map_err(|code| CompileError::Failed { call, code, log: String::new() })
    }

    fn read(
        &self,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        get: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Result<Vec<u8>, c_int> {
        let well = |code| if code == 0 { Ok(()) } else { Err(code) };
        let mut bytes = 0;
        // SAFETY: the program lives; it writes one number.
        well(unsafe { size(self.program, &mut bytes) })?;
        let mut read = vec![0; bytes];
        // SAFETY: there is room for as many bytes as it has said.
        well(unsafe { get(self.program, read.as_mut_ptr().cast()) })?;
        Ok(read)
    }
}

impl Drop for Compiling<'_> {
    fn drop(&mut self) {
        // SAFETY: it was made once, and nobody else has it.
        unsafe { (self.api.nvrtcDestroyProgram)(&mut self.program) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_code_is_made_for_known_gpus_and_text_for_newer_ones() {
        let known = [75, 80, 86, 89, 90, 100, 120];
        for (gpu, word, is_text) in [
            ((9, 0), "sm_90", false),
            ((7, 5), "sm_75", false),
            ((12, 0), "sm_120", false),
            ((12, 1), "compute_120", true),
            ((8, 8), "compute_86", true),
        ] {
            assert_eq!(target(&known, gpu), Some(Target { word: word.to_string(), is_text }), "{gpu:?}");
        }
        assert_eq!(target(&known, (7, 0)), None);
    }
}
