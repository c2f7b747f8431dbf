//! The functions of `libcuda.so.1`, found by name, and what they return.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr;

use libloading::Library;
use once_cell::sync::OnceCell;

use super::DriverError;

/// What the library is called, and a [`DriverError::call`] where it is the library that is missing.
pub(in crate::engine::gpu) const LIBRARY: &str = "libcuda.so.1";
/// Where Windows puts it for its Linux guests, in case that the loader was not told.
const LIBRARY_OF_WSL: &str = "/usr/lib/wsl/lib/libcuda.so.1";

/// A context, stream, event, module or function.
pub(super) type Handle = *mut c_void;
/// A GPU's address.
pub(super) type Address = u64;

/// One field for each function, named as the driver does.
macro_rules! functions {
    ($($name:ident($($argument:ty),*);)*) => {
        #[allow(non_snake_case)]
        pub(super) struct Api {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> c_int,)*
            /// Of drivers since 11.7.
            pub(super) cuModuleGetLoadingMode: Option<unsafe extern "C" fn(*mut c_int) -> c_int>,
            /// Of drivers since 11.0.
            pub(super) cuDevicePrimaryCtxSetFlags_v2: Option<unsafe extern "C" fn(c_int, c_uint) -> c_int>,
            _library: Library,
        }

        impl Api {
            fn find(library: Library) -> Result<Self, DriverError> {
                Ok(Self {
                    // SAFETY: these are the types that the driver's API gives the functions of these names.
                    $($name: unsafe { library.get::<unsafe extern "C" fn($($argument),*) -> c_int>(stringify!($name)) }
                        .map(|function| *function)
                        .map_err(|_| lacks(stringify!($name)))?,)*
                    // SAFETY: as above.
                    cuModuleGetLoadingMode: unsafe { library.get("cuModuleGetLoadingMode") }.map(|function| *function).ok(),
                    // SAFETY: as above.
                    cuDevicePrimaryCtxSetFlags_v2: unsafe { library.get("cuDevicePrimaryCtxSetFlags_v2") }
                        .map(|function| *function)
                        .ok(),
                    _library: library,
                })
            }
        }
    };
}

functions! {
    cuInit(c_uint);
    cuDriverGetVersion(*mut c_int);
    cuGetErrorName(c_int, *mut *const c_char);
    cuGetErrorString(c_int, *mut *const c_char);
    cuDeviceGetCount(*mut c_int);
    cuDeviceGet(*mut c_int, c_int);
    cuDeviceGetName(*mut c_char, c_int, c_int);
    cuDeviceGetAttribute(*mut c_int, c_int, c_int);
    cuDeviceGetPCIBusId(*mut c_char, c_int, c_int);
    cuDevicePrimaryCtxGetState(c_int, *mut c_uint, *mut c_int);
    cuDevicePrimaryCtxRetain(*mut Handle, c_int);
    cuDevicePrimaryCtxRelease_v2(c_int);
    cuCtxPushCurrent_v2(Handle);
    cuCtxPopCurrent_v2(*mut Handle);
    cuMemGetInfo_v2(*mut usize, *mut usize);
    cuMemAlloc_v2(*mut Address, usize);
    cuMemFree_v2(Address);
    cuMemHostAlloc(*mut *mut c_void, usize, c_uint);
    cuMemFreeHost(*mut c_void);
    cuMemHostRegister_v2(*mut c_void, usize, c_uint);
    cuMemHostUnregister(*mut c_void);
    cuStreamCreate(*mut Handle, c_uint);
    cuStreamDestroy_v2(Handle);
    cuStreamSynchronize(Handle);
    cuEventCreate(*mut Handle, c_uint);
    cuEventDestroy_v2(Handle);
    cuEventRecord(Handle, Handle);
    cuEventSynchronize(Handle);
    cuMemcpyHtoDAsync_v2(Address, *const c_void, usize, Handle);
    cuMemcpyDtoHAsync_v2(*mut c_void, Address, usize, Handle);
    cuMemcpyDtoDAsync_v2(Address, Address, usize, Handle);
    cuMemcpyPeerAsync(Address, Handle, Address, Handle, usize, Handle);
    cuModuleLoadData(*mut Handle, *const c_void);
    cuModuleUnload(Handle);
    cuModuleGetFunction(*mut Handle, Handle, *const c_char);
    cuLaunchKernel(Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void);
}

/// The process's library, which stays open; one that cannot be opened may be there at the next call.
pub(super) fn api() -> Result<&'static Api, DriverError> {
    static API: OnceCell<Api> = OnceCell::new();
    API.get_or_try_init(|| Api::find(open()?))
}

fn open() -> Result<Library, DriverError> {
    // SAFETY: loading runs the library's initialisers; it is the driver's own, by a name that belongs to it.
    let opened = [LIBRARY, LIBRARY_OF_WSL].map(|name| unsafe { Library::new(name) });
    let [named, of_wsl] = opened;
    named.or_else(|error| of_wsl.map_err(|_| error)).map_err(|error| DriverError {
        call: LIBRARY,
        code: 0,
        // The loader's own words are the error's source.
        text: std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string),
    })
}

fn lacks(call: &'static str) -> DriverError {
    DriverError { call, code: 0, text: format!("{LIBRARY} has no such function: the driver is too old") }
}

impl Api {
    /// What a call returned, in the driver's words where it is no success.
    pub(super) fn outcome(&self, call: &'static str, code: c_int) -> Result<(), DriverError> {
        if code == 0 { Ok(()) } else { Err(DriverError { call, code, text: self.text(code) }) }
    }

    fn text(&self, code: c_int) -> String {
        let word = |function: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int| {
            let mut text = ptr::null();
            // SAFETY: it writes the address of a static text, or null for a number that it does not know.
            unsafe {
                function(code, &mut text);
                (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
            }
        };
        match (word(self.cuGetErrorName), word(self.cuGetErrorString)) {
            (Some(name), Some(text)) => format!("{name}, {text}"),
            (Some(text), None) | (None, Some(text)) => text,
            (None, None) => "an error that the driver has no name for".into(),
        }
    }
}
