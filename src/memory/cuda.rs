//! Frames that GStreamer keeps in a GPU's memory, as far as they are looked at: its library for CUDA (`libgstcuda-1.0.so.0`) is asked where it is
//! loaded already, which it is wherever there are such frames, and never linked or loaded.

use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr;

use gst::ffi::{GstMapInfo, GstMemory};
use gst::glib::translate::from_glib;
use libloading::os::unix::{Library, RTLD_LAZY};
use once_cell::sync::OnceCell;

/// The feature of caps by which such frames are known.
pub const FEATURE: &str = "memory:CUDAMemory";

const LIBRARY: &str = "libgstcuda-1.0.so.0";
/// `GST_MAP_READ | GST_MAP_CUDA`: the address of the GPU, for reading.
const READ_ON_GPU: u32 = gst::ffi::GST_MAP_READ | 1 << 17;

/// The public beginning of a `GstCudaMemory`, as in 1.22 and 1.26.
#[repr(C)]
struct CudaMemory {
    memory: GstMemory,
    /// A `GstCudaContext`.
    context: *mut c_void,
}

struct Api {
    is_cuda: unsafe extern "C" fn(*mut GstMemory) -> c_int,
    handle: unsafe extern "C" fn(*mut c_void) -> *mut c_void,
    wait: Wait,
    _library: Library,
}

/// How what is under way to a memory is waited for.
enum Wait {
    /// Of releases since 1.24, whose memories know their streams.
    Memory(unsafe extern "C" fn(*mut GstMemory)),
    /// Earlier ones copy on the context's one stream, and do not always wait.
    Context {
        push: unsafe extern "C" fn(*mut c_void) -> c_int,
        synchronize: unsafe extern "C" fn(*mut c_void) -> c_int,
        pop: unsafe extern "C" fn(*mut *mut c_void) -> c_int,
    },
}

fn api() -> Option<&'static Api> {
    static API: OnceCell<Api> = OnceCell::new();
    API.get_or_try_init(|| {
        // SAFETY: only what is loaded already is given, so nothing runs.
        let library = unsafe { Library::open(Some(LIBRARY), RTLD_LAZY | libc::RTLD_NOLOAD) }.map_err(drop)?;
        // SAFETY: these are the types of the functions of these names in the library's headers.
        unsafe {
            let wait = match library.get("gst_cuda_memory_sync") {
                Ok(sync) => Wait::Memory(*sync),
                Err(_) => Wait::Context {
                    push: *library.get("gst_cuda_context_push").map_err(drop)?,
                    synchronize: *library.get("CuStreamSynchronize").map_err(drop)?,
                    pop: *library.get("gst_cuda_context_pop").map_err(drop)?,
                },
            };
            Ok::<_, ()>(Api {
                is_cuda: *library.get("gst_is_cuda_memory").map_err(drop)?,
                handle: *library.get("gst_cuda_context_get_handle").map_err(drop)?,
                wait,
                _library: library,
            })
        }
    })
    .ok()
}

/// Bytes in a context of CUDA's, which are there and not written to for as long as this may be used.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    address: u64,
    bytes: usize,
    context: *mut c_void,
    lives: PhantomData<&'a ()>,
}

impl Span<'_> {
    /// # Safety
    /// It is as the type says, and `context` is a `CUcontext`.
    pub unsafe fn new(address: u64, bytes: usize, context: *mut c_void) -> Self {
        Self { address, bytes, context, lives: PhantomData }
    }

    /// The GPU's address.
    pub fn address(&self) -> u64 {
        self.address
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The `CUcontext`.
    pub fn context(&self) -> *mut c_void {
        self.context
    }

    /// These of the bytes; `None` where there are not as many.
    pub fn part(&self, bytes: Range<usize>) -> Option<Self> {
        let fits = bytes.start <= bytes.end && bytes.end <= self.bytes;
        fits.then(|| Self { address: self.address + bytes.start as u64, bytes: bytes.len(), ..*self })
    }
}

/// A buffer's memory on a GPU, mapped for reading there until this is dropped.
pub struct CudaMap<'a> {
    memory: &'a gst::MemoryRef,
    info: GstMapInfo,
    context: *mut c_void,
}

impl<'a> CudaMap<'a> {
    /// `None` for a buffer that lies elsewhere.
    ///
    /// # Errors
    /// Why it cannot be read there.
    pub fn new(buffer: &'a gst::BufferRef) -> Result<Option<Self>, String> {
        if buffer.n_memory() == 0 {
            return Ok(None);
        }
        let Some(api) = api() else { return Err(format!("{LIBRARY} is not loaded, or lacks functions")) };
        let memory = buffer.peek_memory(0);
        let start = memory.as_ptr().cast_mut();
        // SAFETY: the memory lives as long as the buffer, and is one of CUDA's before it is looked at as such; its context lives as
        // long as it does. What is mapped is unmapped on drop.
        unsafe {
            if (api.is_cuda)(start) == 0 {
                return Ok(None);
            }
            if buffer.n_memory() > 1 {
                return Err(format!("the frame lies in {} memories", buffer.n_memory()));
            }
            let owner = (*start.cast::<CudaMemory>()).context;
            let context = (api.handle)(owner);
            let mut info = std::mem::zeroed();
            let mapped: bool = from_glib(gst::ffi::gst_memory_map(start, &mut info, READ_ON_GPU));
            if !mapped {
                return Err("GStreamer does not map the frame's memory for CUDA".into());
            }
            let map = Self { memory, info, context };
            match api.wait {
                Wait::Memory(sync) => sync(start),
                Wait::Context { push, synchronize, pop } => {
                    if push(owner) == 0 {
                        return Err("GStreamer's context for CUDA cannot be entered".into());
                    }
                    let code = synchronize(ptr::null_mut());
                    pop(ptr::null_mut());
                    if code != 0 {
                        return Err(format!("what is under way to the frame does not end ({code})"));
                    }
                }
            }
            Ok(Some(map))
        }
    }

    pub fn span(&self) -> Span<'_> {
        // SAFETY: it is mapped for reading, in this context, until this is dropped.
        unsafe { Span::new(self.info.data as u64, self.info.size, self.context) }
    }
}

impl Drop for CudaMap<'_> {
    fn drop(&mut self) {
        // SAFETY: it was mapped once, with this.
        unsafe { gst::ffi::gst_memory_unmap(self.memory.as_ptr().cast_mut(), &mut self.info) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_span_stay_within_it() {
        // SAFETY: nobody reads it.
        let span = unsafe { Span::new(1000, 10, std::ptr::null_mut()) };
        let part = |range| span.part(range).map(|part| (part.address(), part.bytes()));
        assert_eq!(part(2..7), Some((1002, 5)));
        assert_eq!(part(10..10), Some((1010, 0)));
        assert_eq!(part(3..11), None);
        #[expect(clippy::reversed_empty_ranges, reason = "as a wrong offset may give")]
        let wrong = part(7..2);
        assert_eq!(wrong, None);
    }

    #[test]
    fn a_buffer_of_the_host_is_not_mapped() {
        gst::init().unwrap();
        assert!(CudaMap::new(&gst::Buffer::new()).unwrap().is_none());
        // Nobody has loaded GStreamer's library, without which there is none to be told.
        match CudaMap::new(&gst::Buffer::with_size(100).unwrap()) {
            Ok(map) => assert!(map.is_none()),
            Err(why) => assert!(why.contains(LIBRARY), "{why}"),
        }
    }
}
