//! The driver's own library, `libcuda.so.1`: what GPUs there are, their memory, and copies to and from it.
//!
//! Opened when a GPU is first wanted, never linked. Each call makes the GPU's primary context, which ONNX Runtime uses as well, current for
//! its own duration, so that an application's contexts stay as they are.

mod api;

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::fmt;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub(super) use self::api::LIBRARY;
use self::api::{Address, Api, Handle, api};
pub use self::kernel::{Argument, Kernel, Launch};
use crate::engine::runtime;
use crate::memory::cuda::Span;
use crate::memory::nvml;

/// What the driver says.
#[derive(Clone, Debug)]
pub struct DriverError {
    /// `libcuda.so.1` where the library itself cannot be opened.
    pub call: &'static str,
    /// `CUresult`; 0 where there is no such function or library, and for what is refused without asking the driver.
    pub code: i32,
    pub text: String,
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, code, text } = self;
        match code {
            // The loader names the file itself.
            0 if text.starts_with(call) => f.write_str(text),
            0 => write!(f, "{call}: {text}"),
            _ => write!(f, "{call}: {text} ({code})"),
        }
    }
}

impl std::error::Error for DriverError {}

/// `CUresult`s after which a context can do nothing more, by the documentation of the driver's API.
const LOST: [i32; 18] = [
    201, // invalid context: somebody has reset the GPU under us
    214, // memory error that could not be corrected
    220, // the same of NVLink
    226, // an exception that the GPU has contained: the process's work there is over
    700, // illegal address
    702, // a kernel that took too long
    709, // the context is destroyed
    710, // a kernel's assertion: the context must be destroyed
    714, // hardware stack error
    715, // illegal instruction
    716, // misaligned address
    717, // invalid address space
    718, // invalid program counter
    719, // a kernel that failed
    721, // a kernel that kept tensor memory
    810, // the server that shares the GPU (MPS) has ended this process's part
    911, // an error of a device outside of CUDA
    999, // unknown, as after a GPU that fell off the bus
];

impl DriverError {
    /// Memory of the GPU, or host memory that can be pinned, is used up.
    pub fn is_out_of_memory(&self) -> bool {
        self.code == 2
    }

    /// Nothing that this process has on the GPU works any more; what comes back, does so with a context made anew. A GPU that is
    /// refused (46, 100, 101) is none of these: that is said before there is a context.
    pub fn is_lost(&self) -> bool {
        LOST.contains(&self.code)
    }

    /// There is no driver: its library cannot be opened.
    pub fn is_absent(&self) -> bool {
        self.call == LIBRARY
    }

    fn refused(call: &'static str, text: String) -> Self {
        Self { call, code: 0, text }
    }
}

/// While CUDA records what a thread runs on a GPU, no other thread of the process may allocate, free or pin: that fails, and spoils what is
/// recorded. Held alone by a run that is recorded, and together by whatever else is done on a GPU.
static RECORDING: RwLock<()> = RwLock::new(());

/// Nothing is recorded while this is held, by as many threads as like, or several times by one.
pub fn quiet() -> RwLockReadGuard<'static, ()> {
    RECORDING.read_recursive()
}

/// For the process's exit, once nothing new is begun: waits up to `patience` for the calls in progress, as streaming threads make them.
pub fn quiesce(patience: Duration) {
    drop(RECORDING.try_write_for(patience));
}

/// A run may be recorded while this is held; `None` where something else is done on a GPU. Its thread calls nothing of this module
/// meanwhile.
pub fn alone() -> Option<RwLockWriteGuard<'static, ()>> {
    // To wait would have all others wait as well.
    RECORDING.try_write()
}

/// Calls a function of the driver by its name.
macro_rules! call {
    ($api:expr, $name:ident($($argument:expr),*)) => {
        $api.outcome(stringify!($name), ($api.$name)($($argument),*))
    };
}

mod kernel;

/// The newest CUDA that the driver runs: 12040 for 12.4.
pub fn driver_version() -> Result<u32, DriverError> {
    let api = api()?;
    let mut version = 0;
    // SAFETY: it writes one number, before and after `cuInit`.
    unsafe { call!(api, cuDriverGetVersion(&mut version)) }?;
    Ok(u32::try_from(version).unwrap_or(0))
}

/// GPUs that CUDA lets this process see.
pub fn device_count() -> Result<u32, DriverError> {
    let api = started()?;
    let mut count = 0;
    // SAFETY: it writes one number.
    unsafe { call!(api, cuDeviceGetCount(&mut count)) }?;
    Ok(u32::try_from(count).unwrap_or(0))
}

/// Whether kernels are loaded when they are first run, and not all of a library with it, which takes more of the GPU's memory
/// (`CUDA_MODULE_LOADING`); `None` where the driver does not tell.
pub fn loads_lazily() -> Option<bool> {
    const LAZY: c_int = 2;
    let mut mode = 0;
    // SAFETY: it writes one number.
    let code = unsafe { started().ok()?.cuModuleGetLoadingMode?(&mut mode) };
    (code == 0).then_some(mode == LAZY)
}

/// The driver's functions, which may be called.
fn started() -> Result<&'static Api, DriverError> {
    let api = api()?;
    // SAFETY: 0 is the one value that there is; repeated calls do nothing.
    unsafe { call!(api, cuInit(0)) }?;
    Ok(api)
}

/// A GPU as the driver describes it, without a context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// As the driver calls it.
    pub name: String,
    /// Major and minor number of what its processors can do.
    pub compute_capability: (u32, u32),
    /// Its place in the machine, by which the driver's other libraries know it (`0000:65:00.0`): their numbers may differ.
    pub bus_id: String,
}

/// # Errors
/// Where the driver fails, or has no GPU of this number.
pub fn describe(index: u32) -> Result<Description, DriverError> {
    describe_device(started()?, index).map(|(_, description)| description)
}

fn describe_device(api: &Api, index: u32) -> Result<(c_int, Description), DriverError> {
    const COMPUTE_CAPABILITY_MAJOR: c_int = 75;
    const COMPUTE_CAPABILITY_MINOR: c_int = 76;
    let mut device = 0;
    // SAFETY: it writes one number.
    unsafe { call!(api, cuDeviceGet(&mut device, c_int::try_from(index).unwrap_or(c_int::MAX))) }?;
    let attribute = |attribute| {
        let mut value = 0;
        // SAFETY: it writes one number.
        unsafe { call!(api, cuDeviceGetAttribute(&mut value, attribute, device)) }?;
        Ok(u32::try_from(value).unwrap_or(0))
    };
    let compute_capability = (attribute(COMPUTE_CAPABILITY_MAJOR)?, attribute(COMPUTE_CAPABILITY_MINOR)?);
    // SAFETY: both write a text, with its end, of no more bytes than they are told that there are.
    let name = text(|start, bytes| unsafe { call!(api, cuDeviceGetName(start, bytes, device)) })?;
    // SAFETY: as above.
    let bus_id = text(|start, bytes| unsafe { call!(api, cuDeviceGetPCIBusId(start, bytes, device)) })?;
    Ok((device, Description { name, compute_capability, bus_id }))
}

fn text(write: impl FnOnce(*mut c_char, c_int) -> Result<(), DriverError>) -> Result<String, DriverError> {
    const ROOM: u8 = 127;
    let mut bytes = [0; ROOM as usize + 1];
    write(bytes.as_mut_ptr().cast(), c_int::from(ROOM))?;
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    Ok(String::from_utf8_lossy(&bytes[..end]).trim().to_string())
}

/// Bytes of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CardMemory {
    pub free: u64,
    pub total: u64,
}

/// One GPU, whose primary context is kept while this lives.
pub struct Card {
    api: &'static Api,
    index: u32,
    device: c_int,
    context: Shared,
    description: Description,
    context_bytes: u64,
}

/// A handle of the driver's.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shared(Handle);

// SAFETY: the driver lets every thread use every handle.
unsafe impl Send for Shared {}
// SAFETY: it also lets several do so at once.
unsafe impl Sync for Shared {}

/// The primary context is this thread's current one while this lives, and nothing is recorded; its guard stays with its thread, and so does
/// this.
struct Current<'a> {
    card: &'a Card,
    _quiet: RwLockReadGuard<'static, ()>,
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        let mut was = ptr::null_mut();
        // SAFETY: it takes back what `Card::enter` has pushed. There is nobody to tell of a failure.
        let _ = unsafe { call!(self.card.api, cuCtxPopCurrent_v2(&mut was)) };
    }
}

impl Card {
    /// # Errors
    /// Where the driver fails, or has no GPU of this number, or makes no context there.
    pub fn open(index: u32) -> Result<Arc<Self>, DriverError> {
        // Of two at once, either would take the other's context for its own.
        static OPENING: Mutex<()> = Mutex::new(());
        let _opening = OPENING.lock();
        let _quiet = quiet();
        let api = started()?;
        let (device, description) = describe_device(api, index)?;
        let (mut flags, mut active) = (0, 0);
        // SAFETY: it writes two numbers.
        unsafe { call!(api, cuDevicePrimaryCtxGetState(device, &mut flags, &mut active)) }?;
        if active == 0 {
            wait_asleep(api, device, flags);
        }
        let before = if active == 0 { nvml::usage(&description.bus_id) } else { None };
        let mut context = ptr::null_mut();
        // SAFETY: it writes one handle, which is ours until it is released.
        unsafe { call!(api, cuDevicePrimaryCtxRetain(&mut context, device)) }?;
        let mut card = Self { api, index, device, context: Shared(context), description, context_bytes: 0 };
        if let Some(before) = before {
            let after = nvml::usage(&card.description.bus_id);
            card.context_bytes = after.map_or(0, |after| after.grown_by(&before));
        }
        Ok(Arc::new(card))
    }

    /// As CUDA counts them.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// As the driver calls it.
    pub fn name(&self) -> &str {
        &self.description.name
    }

    /// Major and minor number of what its processors can do.
    pub fn compute_capability(&self) -> (u32, u32) {
        self.description.compute_capability
    }

    /// Its place in the machine, by which the driver's other libraries know it.
    pub fn bus_id(&self) -> &str {
        &self.description.bus_id
    }

    /// What the primary context took of the GPU, bytes, where this made it; 0 where another had, and where NVIDIA's management
    /// library does not tell: the driver's own tells no figures before there is a context. Where that does not know
    /// this process, as in most containers, what other processes take at the same time counts too.
    pub fn context_bytes(&self) -> u64 {
        self.context_bytes
    }

    pub fn memory(&self) -> Result<CardMemory, DriverError> {
        let _current = self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: it writes two numbers.
        unsafe { call!(self.api, cuMemGetInfo_v2(&mut free, &mut total)) }?;
        Ok(CardMemory { free: free as u64, total: total as u64 })
    }

    /// Memory of the GPU.
    ///
    /// # Errors
    /// [`DriverError::is_out_of_memory`] where the GPU has not as much; a length of 0 is refused.
    pub fn alloc(self: &Arc<Self>, bytes: usize) -> Result<DeviceMemory, DriverError> {
        not_empty("cuMemAlloc_v2", bytes)?;
        let _current = self.enter()?;
        let mut address = 0;
        // SAFETY: it writes one address, which is ours until it is freed.
        unsafe { call!(self.api, cuMemAlloc_v2(&mut address, bytes)) }?;
        Ok(DeviceMemory { card: self.clone(), address, bytes })
    }

    /// Host memory that the GPU reaches without a copy in between, zeroed.
    ///
    /// # Errors
    /// As [`Card::alloc`], for what the host has of such memory.
    pub fn alloc_pinned(self: &Arc<Self>, bytes: usize) -> Result<PinnedMemory, DriverError> {
        not_empty("cuMemHostAlloc", bytes)?;
        let _current = self.enter()?;
        let mut start = ptr::null_mut();
        // SAFETY: it writes one address, which is ours until it is freed.
        unsafe { call!(self.api, cuMemHostAlloc(&mut start, bytes, 0)) }?;
        let start = NonNull::new(start.cast::<u8>())
            .ok_or_else(|| DriverError::refused("cuMemHostAlloc", "it gave no memory".into()))?;
        // SAFETY: the driver has just given so much memory, which nobody else knows.
        unsafe { start.write_bytes(0, bytes) };
        Ok(PinnedMemory { card: self.clone(), start, bytes })
    }

    /// Has the GPU reach host memory that is there already, until the guard is dropped.
    ///
    /// # Errors
    /// Where the driver cannot, or has done so already.
    ///
    /// # Safety
    /// The memory outlives the guard.
    pub unsafe fn pin(self: &Arc<Self>, start: *mut u8, bytes: usize) -> Result<Pin, DriverError> {
        not_empty("cuMemHostRegister_v2", bytes)?;
        let _current = self.enter()?;
        let start = start.cast::<c_void>();
        // SAFETY: the driver looks itself whether so much memory is there; it stays, says the caller.
        unsafe { call!(self.api, cuMemHostRegister_v2(start, bytes, 0)) }?;
        Ok(Pin { card: self.clone(), start: Shared(start) })
    }

    /// A queue of copies.
    pub fn copies(self: &Arc<Self>) -> Result<Copies, DriverError> {
        /// Does not wait for what others do on the GPU's default stream.
        const NON_BLOCKING: u32 = 1;
        /// Who waits sleeps, where it would else spin.
        const BLOCKING_SYNC: u32 = 1;
        const DISABLE_TIMING: u32 = 2;
        let _current = self.enter()?;
        let (mut stream, mut done) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: it writes one handle, which is ours until it is destroyed.
        unsafe { call!(self.api, cuStreamCreate(&mut stream, NON_BLOCKING)) }?;
        // SAFETY: as above.
        let made = unsafe { call!(self.api, cuEventCreate(&mut done, BLOCKING_SYNC | DISABLE_TIMING)) };
        if let Err(error) = made {
            // SAFETY: it was made above, and nobody has it.
            let _ = unsafe { call!(self.api, cuStreamDestroy_v2(stream)) };
            return Err(error);
        }
        Ok(Copies { card: self.clone(), stream: Shared(stream), done: Shared(done) })
    }

    fn enter(&self) -> Result<Current<'_>, DriverError> {
        let quiet = quiet();
        // Before [`quiesce`], which waits for this, or after it.
        if runtime::exiting() {
            return Err(DriverError::refused("cuCtxPushCurrent_v2", "the process is exiting".into()));
        }
        // SAFETY: the context is retained while the card lives; one that was destroyed nevertheless is an error.
        unsafe { call!(self.api, cuCtxPushCurrent_v2(self.context.0)) }?;
        Ok(Current { card: self, _quiet: quiet })
    }

    /// Gives something back. Where that fails, all that was there is gone with its context, and at the process's exit it goes
    /// with the process: then the driver may be closed already.
    fn give_back(&self, free: impl FnOnce(&Api) -> Result<(), DriverError>) {
        if runtime::exiting() {
            return;
        }
        if let Ok(_current) = self.enter() {
            let _ = free(self.api);
        }
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        if !runtime::exiting() {
            let _quiet = quiet();
            // SAFETY: it was retained once, and whatever was made in it keeps the card and so is gone.
            let _ = unsafe { call!(self.api, cuDevicePrimaryCtxRelease_v2(self.device)) };
        }
    }
}

/// Has those who wait for the GPU in its context, which is not there yet, sleep: by themselves, they burn a core for as long as each run takes. Where
/// that cannot be, or the application has said otherwise, they do as ever.
fn wait_asleep(api: &Api, device: c_int, flags: c_uint) {
    const HOW_TO_WAIT: c_uint = 7;
    const BLOCKING_SYNC: c_uint = 4;
    if let Some(set_flags) = api.cuDevicePrimaryCtxSetFlags_v2
        && flags & HOW_TO_WAIT == 0
    {
        // SAFETY: it takes two numbers.
        unsafe { set_flags(device, flags | BLOCKING_SYNC) };
    }
}

fn not_empty(call: &'static str, bytes: usize) -> Result<(), DriverError> {
    if bytes == 0 { Err(DriverError::refused(call, "of no bytes".into())) } else { Ok(()) }
}

/// Freed on drop.
pub struct DeviceMemory {
    card: Arc<Card>,
    address: Address,
    bytes: usize,
}

impl DeviceMemory {
    /// The GPU's address.
    pub fn address(&self) -> u64 {
        self.address
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it lies in the card's context.
    pub fn is_on(&self, card: &Card) -> bool {
        self.card.context == card.context
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: it was allocated once, in this context, and nobody has it any more.
        self.card.give_back(|api| unsafe { call!(api, cuMemFree_v2(self.address)) });
    }
}

/// Freed on drop.
pub struct PinnedMemory {
    card: Arc<Card>,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it is plain memory that this owns alone.
unsafe impl Send for PinnedMemory {}
// SAFETY: as above; it is written to through `&mut` alone.
unsafe impl Sync for PinnedMemory {}

impl PinnedMemory {
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: so much memory was given and zeroed, and it is freed with this.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; nobody else has a reference.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        // SAFETY: it was allocated once, in this context, and nobody has it any more.
        self.card.give_back(|api| unsafe { call!(api, cuMemFreeHost(self.start.as_ptr().cast())) });
    }
}

/// Memory that is pinned while this lives.
pub struct Pin {
    card: Arc<Card>,
    start: Shared,
}

impl Drop for Pin {
    fn drop(&mut self) {
        // SAFETY: it was registered once, in this context, and the memory is still there, says who pinned it.
        self.card.give_back(|api| unsafe { call!(api, cuMemHostUnregister(self.start.0)) });
    }
}

/// Where bytes are copied from.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    Host(&'a [u8]),
    /// Of the same GPU.
    Device {
        memory: &'a DeviceMemory,
        from: usize,
        bytes: usize,
    },
    /// In any context of the process, also on another GPU.
    Foreign(Span<'a>),
}

impl Source<'_> {
    fn bytes(&self) -> usize {
        match self {
            Self::Host(bytes) => bytes.len(),
            Self::Device { bytes, .. } => *bytes,
            Self::Foreign(span) => span.bytes(),
        }
    }
}

/// The driver's names for what a queue does.
const UPLOAD: &str = "cuMemcpyHtoDAsync_v2";
const DOWNLOAD: &str = "cuMemcpyDtoHAsync_v2";
const COPY: &str = "cuMemcpyDtoDAsync_v2";
const BRING: &str = "cuMemcpyPeerAsync";

/// Copies run one after another, beside whatever else the GPU does. Threads that use one queue wait for each other's copies.
pub struct Copies {
    card: Arc<Card>,
    stream: Shared,
    done: Shared,
}

impl Copies {
    /// To the beginning of `to`; done when this returns.
    ///
    /// # Errors
    /// Where the driver fails; nothing to copy, more than there is room for, and memory of another GPU are refused.
    pub fn upload(&self, from: &[u8], to: &DeviceMemory) -> Result<(), DriverError> {
        self.gather([(0, Source::Host(from))], to)
    }

    /// Each to its place in `to`, the bytes before it; all are done when this returns.
    ///
    /// # Errors
    /// As [`Copies::upload`].
    pub fn gather<'a>(
        &self,
        parts: impl IntoIterator<Item = (usize, Source<'a>)> + Clone,
        to: &DeviceMemory,
    ) -> Result<(), DriverError> {
        self.look_at_all(parts.clone(), to)?;
        self.run(|| self.begin_all(parts, to))
    }

    fn look_at_all<'a>(
        &self,
        parts: impl IntoIterator<Item = (usize, Source<'a>)>,
        to: &DeviceMemory,
    ) -> Result<(), DriverError> {
        parts.into_iter().try_for_each(|(at, source)| self.look_at(at, &source, to))
    }

    fn begin_all<'a>(
        &self,
        parts: impl IntoIterator<Item = (usize, Source<'a>)>,
        to: &DeviceMemory,
    ) -> Result<(), DriverError> {
        parts.into_iter().try_for_each(|(at, source)| self.begin(at, source, to))
    }

    /// Refuses what has no room, or is no place of this GPU.
    fn look_at(&self, at: usize, source: &Source<'_>, to: &DeviceMemory) -> Result<(), DriverError> {
        let place = at..at.saturating_add(source.bytes());
        match *source {
            Source::Host(_) => self.refuse(UPLOAD, place, to),
            Source::Device { memory, from, bytes } => {
                self.refuse(COPY, from..from.saturating_add(bytes), memory)?;
                self.refuse(COPY, place, to)
            }
            Source::Foreign(_) => self.refuse(BRING, place, to),
        }
    }

    /// Has the copy begin.
    fn begin(&self, at: usize, source: Source<'_>, to: &DeviceMemory) -> Result<(), DriverError> {
        let (api, stream) = (self.card.api, self.stream.0);
        let place = to.address + at as u64;
        // SAFETY: all of these have so much room, which was looked at, or the span's maker vouches for; they stay until the copy is
        // over, which is waited for.
        unsafe {
            match source {
                Source::Host(bytes) => {
                    call!(api, cuMemcpyHtoDAsync_v2(place, bytes.as_ptr().cast(), bytes.len(), stream))
                }
                Source::Device { memory, from, bytes } => {
                    let from = memory.address + from as u64;
                    call!(api, cuMemcpyDtoDAsync_v2(place, from, bytes, stream))
                }
                Source::Foreign(span) => {
                    let (own, from) = (self.card.context.0, span.address());
                    call!(api, cuMemcpyPeerAsync(place, own, from, span.context(), span.bytes(), stream))
                }
            }
        }
    }

    /// From the beginning of `from`; done when this returns.
    ///
    /// # Errors
    /// As [`Copies::upload`].
    pub fn download(&self, from: &DeviceMemory, to: &mut [u8]) -> Result<(), DriverError> {
        self.download_part(from, 0, to)
    }

    /// From the bytes of `from` that begin at `start`; done when this returns.
    ///
    /// # Errors
    /// As [`Copies::upload`].
    pub fn download_part(&self, from: &DeviceMemory, start: usize, to: &mut [u8]) -> Result<(), DriverError> {
        self.refuse(DOWNLOAD, start..start.saturating_add(to.len()), from)?;
        let (api, place) = (self.card.api, to.as_mut_ptr().cast());
        let from = from.address + start as u64;
        // SAFETY: as in `begin`; nobody else has a reference to where it goes.
        self.run(|| unsafe { call!(api, cuMemcpyDtoHAsync_v2(place, from, to.len(), self.stream.0)) })
    }

    fn refuse(
        &self,
        call: &'static str,
        part: Range<usize>,
        memory: &DeviceMemory,
    ) -> Result<(), DriverError> {
        not_empty(call, part.len())?;
        if memory.card.context != self.card.context {
            return Err(DriverError::refused(call, "the memory is another GPU's".into()));
        }
        if part.end > memory.bytes {
            let text = format!("{} bytes, of memory with {}", part.end, memory.bytes);
            return Err(DriverError::refused(call, text));
        }
        Ok(())
    }

    /// Has the stream do something, and waits for that.
    fn run(&self, begin: impl FnOnce() -> Result<(), DriverError>) -> Result<(), DriverError> {
        let api = self.card.api;
        let _current = self.card.enter()?;
        // Another thread may record its copy before this one waits; that is the later one, so both are over then.
        // SAFETY: both handles are ours.
        let over = begin().and_then(|()| unsafe {
            call!(api, cuEventRecord(self.done.0, self.stream.0))
                .and_then(|()| call!(api, cuEventSynchronize(self.done.0)))
        });
        if over.is_err() {
            // What did begin is not under way any more when its memory is given back to the caller.
            // SAFETY: the handle is ours.
            let _ = unsafe { call!(api, cuStreamSynchronize(self.stream.0)) };
        }
        over
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        // SAFETY: both were made once, in this context, and each copy was waited for.
        self.card.give_back(|api| unsafe {
            call!(api, cuEventDestroy_v2(self.done.0)).and(call!(api, cuStreamDestroy_v2(self.stream.0)))
        });
    }
}
