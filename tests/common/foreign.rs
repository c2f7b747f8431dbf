//! An application, or a decoder, that has a context of its own on the driver's first GPU, be that a stand-in or not.
#![allow(dead_code)]

use std::ffi::c_void;
use std::ptr;

use gstyolodetect::memory::cuda::Span;
use libloading::os::unix::{Library, RTLD_NOW, Symbol};

pub struct Foreign {
    library: Library,
    context: *mut c_void,
}

/// Memory in that context; freed with it at the latest.
pub struct Memory<'a> {
    application: &'a Foreign,
    address: u64,
    bytes: usize,
}

impl Foreign {
    pub fn new() -> Self {
        // SAFETY: it is the driver's library.
        let library = unsafe { Library::open(Some("libcuda.so.1"), RTLD_NOW) }.unwrap();
        let mut application = Self { library, context: ptr::null_mut() };
        let init = application.call::<unsafe extern "C" fn(u32) -> i32>("cuInit");
        let create =
            application.call::<unsafe extern "C" fn(*mut *mut c_void, u32, i32) -> i32>("cuCtxCreate_v2");
        let device = application.call::<unsafe extern "C" fn(*mut i32, i32) -> i32>("cuDeviceGet");
        let pop = application.call::<unsafe extern "C" fn(*mut *mut c_void) -> i32>("cuCtxPopCurrent_v2");
        let (mut current, mut number) = (ptr::null_mut(), 0);
        // SAFETY: as the driver declares them.
        unsafe {
            assert_eq!(init(0), 0);
            assert_eq!(device(&mut number, 0), 0);
            assert_eq!(create(&mut application.context, 0, number), 0);
            assert_eq!(pop(&mut current), 0);
        }
        application
    }

    fn call<F: Copy>(&self, name: &str) -> F {
        // SAFETY: whoever calls gives the type of the driver's function.
        let function: Symbol<F> = unsafe { self.library.get(name.as_bytes()) }.unwrap();
        *function
    }

    fn within<T>(&self, act: impl FnOnce() -> T) -> T {
        let push = self.call::<unsafe extern "C" fn(*mut c_void) -> i32>("cuCtxPushCurrent_v2");
        let pop = self.call::<unsafe extern "C" fn(*mut *mut c_void) -> i32>("cuCtxPopCurrent_v2");
        let mut current = ptr::null_mut();
        // SAFETY: as the driver declares them; the context lives as long as this.
        unsafe {
            assert_eq!(push(self.context), 0);
            let given = act();
            assert_eq!(pop(&mut current), 0);
            given
        }
    }

    /// These bytes, in memory of the GPU that has room for no more.
    pub fn put(&self, bytes: &[u8]) -> Memory<'_> {
        let alloc = self.call::<unsafe extern "C" fn(*mut u64, usize) -> i32>("cuMemAlloc_v2");
        let copy = self.call::<unsafe extern "C" fn(u64, *const c_void, usize) -> i32>("cuMemcpyHtoD_v2");
        let mut address = 0;
        // SAFETY: as the driver declares them; there is room for as many bytes.
        self.within(|| unsafe {
            assert_eq!(alloc(&mut address, bytes.len()), 0);
            assert_eq!(copy(address, bytes.as_ptr().cast(), bytes.len()), 0);
        });
        Memory { application: self, address, bytes: bytes.len() }
    }
}

impl Memory<'_> {
    pub fn span(&self) -> Span<'_> {
        // SAFETY: it is there until this is dropped.
        unsafe { Span::new(self.address, self.bytes, self.application.context) }
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        let free = self.application.call::<unsafe extern "C" fn(u64) -> i32>("cuMemFree_v2");
        // SAFETY: it was allocated once.
        self.application.within(|| assert_eq!(unsafe { free(self.address) }, 0));
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let destroy = self.call::<unsafe extern "C" fn(*mut c_void) -> i32>("cuCtxDestroy_v2");
        // SAFETY: it was made once.
        assert_eq!(unsafe { destroy(self.context) }, 0);
    }
}
