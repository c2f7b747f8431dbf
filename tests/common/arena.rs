//! ONNX Runtime's memory as an application that shares the library with us may set it up.

use std::ptr;

use ort::AsPointer;

/// Every session of the process uses one allocator from now on: an arena that may hold so many bytes, or none.
pub fn register(arena: Option<usize>) {
    let environment = gstyolodetect::engine::runtime::environment(None).unwrap();
    let kind = match arena {
        Some(_) => ort::sys::OrtAllocatorType::OrtArenaAllocator,
        None => ort::sys::OrtAllocatorType::OrtDeviceAllocator,
    };
    let keys = [c"max_mem".as_ptr()];
    let (mut config, mut memory) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: plain calls of the C API with out parameters and lists of the lengths that are given; the environment
    // lives as long as the process, and keeps copies of the rest.
    unsafe {
        let api = ort::api();
        let check = |status| ort::Error::result_from_status(status).unwrap();
        check((api.CreateArenaCfgV2)(keys.as_ptr(), &arena.unwrap_or_default(), 1, &mut config));
        check((api.CreateCpuMemoryInfo)(kind, ort::sys::OrtMemType::OrtMemTypeDefault, &mut memory));
        check((api.CreateAndRegisterAllocator)(environment.ptr().cast_mut(), memory, config));
        (api.ReleaseArenaCfg)(config);
        (api.ReleaseMemoryInfo)(memory);
    }
}
