//! A bounded pool of frame buffers for upstream to decode into.
//!
//! Upstream configures and activates it, as any pool; buffers outlive it, and it outlives the element that made it. Beyond
//! the number that [`Stock`] keeps, buffers are made all the same and freed on return: a decoder that had to wait for one
//! could wait for ever. What comes back changed is discarded; what is still shared rests until it is not,
//! or until its place is needed.
//!
//! Lock: `Shared::state` is a leaf. No buffer is made, wiped or freed with it held.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use once_cell::sync::Lazy;
use parking_lot::{Condvar, Mutex};

use super::layout::{self, Layout};
pub use super::ledger::{Ledger, PoolStats};
use super::monitor::{self, Action, React};
use super::pressure::Level;
use super::reuse;
use super::stock::{Stock, Taken};

static CAT: Lazy<gst::DebugCategory> = Lazy::new(|| {
    gst::DebugCategory::new("yolodetect-pool", gst::DebugColorFlags::empty(), Some("Pool of frame buffers"))
});

/// What the element's properties say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// Buffers that are kept, and made in advance; half as many again in a burst. `None`: as many as upstream's minimum
    /// and what a decoder may hold come to.
    pub size: Option<u32>,
    /// Overwrite pictures when their buffers come back.
    pub clear: bool,
}

/// Frames that a decoder may hold by itself, for reference and on its threads, as libav reckons it.
const DECODER: u32 = 32;

/// Most buffers that a pool is made to have.
const MAX_SIZE: u32 = 4096;

/// A pool, seen from those who trim it.
struct Shared {
    state: Mutex<State>,
    /// For who waits because all buffers that there may be are out.
    room: Condvar,
    rules: Rules,
    ledger: Arc<Ledger>,
}

#[derive(Default)]
struct State {
    stock: Stock<Resting>,
    /// `None` before it is configured.
    layout: Option<Arc<Layout>>,
    /// Buffers made when it is activated.
    advance: u32,
    size: u32,
}

/// A buffer that came back.
struct Resting {
    buffer: gst::Buffer,
    /// Its memory was somebody else's too, then. A decoder that keeps its frames has whoever changes a buffer's head make a
    /// copy of that, and the memory is on its way with the copy while the buffer is back.
    shared: bool,
}

impl Resting {
    fn is_usable(&self) -> bool {
        !self.shared || layout::is_free(&self.buffer)
    }
}

impl Shared {
    fn new(rules: Rules, ledger: Arc<Ledger>) -> Self {
        Self { state: Mutex::default(), room: Condvar::new(), rules, ledger }
    }

    /// Frees buffers at rest. How many bytes that gives back at once.
    fn free(&self, buffers: Vec<Resting>, size: u32) -> u64 {
        let usable = buffers.iter().filter(|resting| resting.is_usable()).count();
        self.ledger.rise(buffers.len());
        self.ledger.freed(buffers.len(), size);
        usable as u64 * u64::from(size)
    }

    fn clear(&self) {
        let mut state = self.state.lock();
        let (buffers, size) = (state.stock.clear(), state.size);
        drop(state);
        self.free(buffers, size);
    }

    fn set_pressed(&self, pressed: bool) -> u64 {
        let mut state = self.state.lock();
        state.stock.set_pressed(pressed);
        let buffers = if pressed { state.stock.trim() } else { Vec::new() };
        let size = state.size;
        drop(state);
        self.free(buffers, size)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Every pool of the process; trims them all under pressure.
pub struct Trimmer {
    pools: Mutex<Vec<Weak<Shared>>>,
    pressed: AtomicBool,
}

/// The process's one.
pub fn trimmer() -> &'static Arc<Trimmer> {
    static TRIMMER: OnceLock<Arc<Trimmer>> = OnceLock::new();
    TRIMMER.get_or_init(|| {
        let trimmer = Arc::new(Trimmer { pools: Mutex::default(), pressed: AtomicBool::new(false) });
        let weak = Arc::downgrade(&trimmer);
        monitor::add_reactor(weak);
        trimmer
    })
}

impl Trimmer {
    fn add(&self, pool: &Arc<Shared>) {
        let mut pools = self.pools.lock();
        pools.retain(|pool| pool.strong_count() > 0);
        pools.push(Arc::downgrade(pool));
        drop(pools);
        if self.pressed.load(Ordering::Relaxed) {
            pool.set_pressed(true);
        }
    }
}

impl React for Trimmer {
    fn react(&self, level: Level, _degrade: Level, did: &mut Vec<Action>) {
        let pressed = level >= Level::Warning;
        let before = self.pressed.swap(pressed, Ordering::Relaxed);
        let pools: Vec<_> = self.pools.lock().iter().filter_map(Weak::upgrade).collect();
        let freed: u64 = pools.iter().map(|pool| pool.set_pressed(pressed)).sum();
        if freed > 0 || (pressed && !before && !pools.is_empty()) {
            did.push(Action { name: "trim-pools", freed });
        }
    }
}

glib::wrapper! {
    pub struct FramePool(ObjectSubclass<imp::FramePool>) @extends gst::BufferPool, gst::Object;
}

impl FramePool {
    pub fn new(rules: Rules, ledger: Arc<Ledger>) -> Self {
        let pool: Self = glib::Object::new();
        // Nobody else has it yet.
        let shared = pool.imp().shared.get_or_init(|| Arc::new(Shared::new(rules, ledger)));
        trimmer().add(shared);
        pool
    }

    /// Buffers that upstream is told to have at least, where `held` are needed.
    pub fn minimum(rules: Rules, held: u32) -> u32 {
        rules.size.unwrap_or(held).min(MAX_SIZE)
    }

    /// Frees what is not needed and keeps less from now on, or as much as ever again. How many bytes were freed.
    pub fn set_pressed(&self, pressed: bool) -> u64 {
        self.imp().shared().set_pressed(pressed)
    }
}

mod imp {
    use super::*;

    #[derive(Default)]
    pub struct FramePool {
        pub(super) shared: OnceLock<Arc<Shared>>,
    }

    #[glib::object_subclass]
    impl ObjectSubclass for FramePool {
        const NAME: &'static str = "GstYoloDetectFramePool";
        type Type = super::FramePool;
        type ParentType = gst::BufferPool;
    }

    impl ObjectImpl for FramePool {}

    impl GstObjectImpl for FramePool {}

    impl BufferPoolImpl for FramePool {
        fn options() -> &'static [&'static str] {
            static OPTIONS: Lazy<[&'static str; 2]> = Lazy::new(|| {
                [
                    gst_video::BUFFER_POOL_OPTION_VIDEO_META.as_str(),
                    gst_video::BUFFER_POOL_OPTION_VIDEO_ALIGNMENT.as_str(),
                ]
            });
            &*OPTIONS
        }

        /// Only while no buffer is out and none rests here: the base class sees to that.
        fn set_config(&self, config: &mut gst::BufferPoolConfigRef) -> bool {
            let layout = Layout::new(config);
            let params = config.params();
            let (layout, min, max) = match (layout, params) {
                (Ok(layout), Some((_, _, min, max))) if min <= MAX_SIZE => (layout, min, max),
                (layout, _) => {
                    let reason = layout.err().unwrap_or_else(|| "it wants too many buffers".into());
                    gst::warning!(CAT, imp = self, "the configuration is refused: {reason}");
                    return false;
                }
            };
            if !self.parent_set_config(config) {
                return false;
            }
            let shared = self.shared();
            let bound = shared.rules.size.unwrap_or(min.saturating_add(DECODER)).clamp(min, MAX_SIZE);
            let advance = shared.rules.size.unwrap_or(min).clamp(min, MAX_SIZE);
            let mut state = shared.state.lock();
            state.stock.configure(bound as usize, max as usize);
            state.advance = if max == 0 { advance } else { advance.min(max) };
            state.size = layout.size;
            state.layout = Some(Arc::new(layout));
            true
        }

        fn start(&self) -> bool {
            let shared = self.shared();
            let advance = shared.state.lock().advance;
            for _ in 0..advance {
                match self.make(None) {
                    Ok(buffer) => {
                        shared.ledger.rest();
                        shared.state.lock().stock.add(Resting { buffer, shared: false });
                    }
                    Err(flow) => {
                        gst::warning!(CAT, imp = self, "no buffers can be made in advance: {flow}");
                        shared.clear();
                        return false;
                    }
                }
            }
            true
        }

        /// Called when all buffers are back.
        fn stop(&self) -> bool {
            self.shared().clear();
            true
        }

        fn flush_start(&self) {
            let shared = self.shared();
            // Or a waiter between its check and its wait would miss it.
            drop(shared.state.lock());
            shared.room.notify_all();
        }

        fn acquire_buffer(
            &self,
            params: Option<&gst::BufferPoolAcquireParams>,
        ) -> Result<gst::Buffer, gst::FlowError> {
            let shared = self.shared();
            let waits = !params.is_some_and(|p| p.flags().contains(gst::BufferPoolAcquireFlags::DONTWAIT));
            let mut state = shared.state.lock();
            let (replaced, miss) = loop {
                if self.obj().is_flushing() {
                    return Err(gst::FlowError::Flushing);
                }
                match state.stock.take(Resting::is_usable) {
                    Taken::Idle(Resting { mut buffer, shared: was_shared }) => {
                        shared.ledger.rise(1);
                        drop(state);
                        if was_shared {
                            self.wipe(&mut buffer);
                        }
                        shared.ledger.went_out();
                        return Ok(buffer);
                    }
                    Taken::Make { miss } => break (None, miss),
                    Taken::Replace(resting) => break (Some(resting.buffer), false),
                    Taken::None if waits => shared.room.wait(&mut state),
                    Taken::None => return Err(gst::FlowError::Eos),
                }
            };
            let size = state.size;
            drop(state);
            if let Some(buffer) = replaced {
                shared.ledger.rise(1);
                self.discard(buffer, size);
            }
            let made = self.make(params);
            match &made {
                Ok(_) => {
                    shared.ledger.went_out();
                    if miss {
                        shared.ledger.missed();
                    }
                }
                Err(_) => {
                    shared.state.lock().stock.lost();
                    shared.room.notify_one();
                }
            }
            made
        }

        fn alloc_buffer(
            &self,
            params: Option<&gst::BufferPoolAcquireParams>,
        ) -> Result<gst::Buffer, gst::FlowError> {
            let layout = self.shared().state.lock().layout.clone().ok_or(gst::FlowError::NotNegotiated)?;
            let mut buffer = self.parent_alloc_buffer(params)?;
            layout.describe(buffer.make_mut()).map_err(|_| gst::FlowError::Error)?;
            Ok(buffer)
        }

        fn release_buffer(&self, mut buffer: gst::Buffer) {
            let shared = self.shared();
            self.wipe(&mut buffer);
            shared.ledger.came_back();
            let mut state = shared.state.lock();
            let whole =
                buffer.is_writable() && state.layout.as_ref().is_some_and(|layout| layout.is_whole(&buffer));
            let spare = if whole {
                let resting = Resting { shared: !layout::is_free(&buffer), buffer };
                state.stock.give(resting).map(|spare| spare.buffer)
            } else {
                state.stock.lost();
                Some(buffer)
            };
            if spare.is_none() {
                // Before anybody can take it.
                shared.ledger.rest();
            }
            let size = state.size;
            drop(state);
            shared.room.notify_one();
            match spare {
                Some(buffer) if !whole => self.discard(buffer, size),
                Some(spare) => {
                    drop(spare);
                    shared.ledger.freed(1, size);
                }
                None => (),
            }
        }
    }

    impl FramePool {
        pub(super) fn shared(&self) -> &Arc<Shared> {
            // One that was not made by `new` follows the defaults.
            self.shared.get_or_init(|| Arc::new(Shared::new(Rules::default(), Arc::default())))
        }

        /// Frees a buffer that is not what it was.
        fn discard(&self, buffer: gst::Buffer, size: u32) {
            gst::debug!(CAT, imp = self, "discarded, since it came back changed or shared: {buffer:?}");
            drop(buffer);
            self.shared().ledger.freed(1, size);
        }

        fn wipe(&self, buffer: &mut gst::Buffer) {
            if self.shared().rules.clear
                && let Some(buffer) = buffer.get_mut()
            {
                layout::wipe(buffer);
            }
        }

        /// A new buffer, as the base class makes them.
        fn make(&self, params: Option<&gst::BufferPoolAcquireParams>) -> Result<gst::Buffer, gst::FlowError> {
            let shared = self.shared();
            let mut buffer = self.alloc_buffer(params)?;
            if let Some(memory) = reuse::first_memory(&buffer) {
                shared.ledger.mark(memory);
            }
            let parts = buffer.make_mut();
            // SAFETY: the buffer is writable and nobody else's. The function only sets flags of its metas.
            unsafe {
                gst::ffi::gst_buffer_foreach_meta(parts.as_mut_ptr(), Some(keep), std::ptr::null_mut());
            }
            // By this flag it is seen, on return, that somebody changed its memories.
            parts.unset_flags(gst::BufferFlags::TAG_MEMORY);
            shared.ledger.added(shared.state.lock().size);
            Ok(buffer)
        }
    }

    /// Has the base class leave the meta on the buffer when that comes back.
    ///
    /// # Safety
    /// `meta` points to a meta of a buffer that the caller owns.
    unsafe extern "C" fn keep(
        _buffer: *mut gst::ffi::GstBuffer,
        meta: *mut *mut gst::ffi::GstMeta,
        _data: glib::ffi::gpointer,
    ) -> glib::ffi::gboolean {
        // SAFETY: as above.
        unsafe { (**meta).flags |= gst::ffi::GST_META_FLAG_POOLED | gst::ffi::GST_META_FLAG_LOCKED };
        glib::ffi::GTRUE
    }
}
