//! How a pooled frame lies in memory: what upstream's configuration of a pool asks for, and whether a buffer still is as
//! it was made.

use std::sync::atomic::{AtomicI32, Ordering};

use gst_video::prelude::*;
use gst_video::{VideoAlignment, VideoFrameFlags, VideoInfo, VideoMeta};

/// A frame's place in its buffer.
pub struct Layout {
    pub size: u32,
    /// With the padding and the strides that were asked for.
    info: VideoInfo,
    alignment: VideoAlignment,
    /// Buffers carry a `VideoMeta`.
    meta: bool,
}

/// Padding and row alignment beyond these are no decoder's.
const MAX_ALIGNMENT: u32 = 1 << 16;

impl Layout {
    /// Reads the configuration of a pool and writes back what is made of it.
    ///
    /// # Errors
    /// What of it cannot be followed.
    pub fn new(config: &mut gst::BufferPoolConfigRef) -> Result<Self, String> {
        let (caps, size, min, max) = config.params().ok_or("it has no parameters")?;
        let caps = caps.ok_or("it has no caps")?;
        // Those of encoded video are read too, and have no size.
        let info = VideoInfo::from_caps(&caps).ok().filter(|info| info.size() > 0);
        let mut info = info.ok_or_else(|| format!("{caps} are no raw video"))?;
        if (size as usize) < info.size() {
            return Err(format!("buffers of {size} bytes are too small for {caps}"));
        }
        if max != 0 && min > max {
            return Err(format!("of {max} buffers at most, there cannot be {min} at least"));
        }
        let meta = config.has_option(gst_video::BUFFER_POOL_OPTION_VIDEO_META);
        let mut alignment = VideoAlignment::default();
        // Without the meta nobody would know of the padding.
        if meta && config.has_option(gst_video::BUFFER_POOL_OPTION_VIDEO_ALIGNMENT) {
            let (allocator, mut params) = config.allocator().ok_or("it has no allocation parameters")?;
            alignment = config.video_alignment().unwrap_or_default();
            let padding = [
                alignment.padding_top(),
                alignment.padding_bottom(),
                alignment.padding_left(),
                alignment.padding_right(),
            ];
            let strides = alignment.stride_align();
            if padding.iter().chain(strides).any(|&bytes| bytes >= MAX_ALIGNMENT)
                || !strides.iter().all(|mask| (mask + 1).is_power_of_two())
            {
                return Err(format!(
                    "its alignment makes no sense: padding {padding:?}, strides {strides:?}"
                ));
            }
            // Rows are aligned only where the memory is.
            let strictest =
                alignment.stride_align().iter().fold(params.align(), |all, &one| all | one as usize);
            alignment.stride_align_mut().fill(strictest as u32);
            info.align(&mut alignment).map_err(|_| format!("{caps} cannot be aligned"))?;
            config.set_video_alignment(&alignment);
            if params.align() < strictest {
                params.set_align(strictest);
                config.set_allocator(allocator.as_ref(), Some(&params));
            }
        }
        let size = u32::try_from(info.size()).map_err(|_| format!("{caps} are too large"))?.max(size);
        config.set_params(Some(&caps), size, min, max);
        Ok(Self { size, info, alignment, meta })
    }

    /// Completes a new buffer.
    pub fn describe(&self, buffer: &mut gst::BufferRef) -> Result<(), gst::glib::BoolError> {
        if !self.meta {
            return Ok(());
        }
        let info = &self.info;
        let mut meta = VideoMeta::add_full(
            buffer,
            VideoFrameFlags::empty(),
            info.format(),
            info.width(),
            info.height(),
            info.offset(),
            info.stride(),
        )?;
        meta.set_alignment(&self.alignment)
    }

    /// Whether a buffer that comes back can hold another frame, once nobody else has its memory ([`is_free`]): it
    /// has the memory it was made with, whole, and its description.
    pub fn is_whole(&self, buffer: &gst::BufferRef) -> bool {
        // GStreamer sets the flag when memories are added, taken out or replaced.
        let touched = buffer.flags().contains(gst::BufferFlags::TAG_MEMORY);
        !touched && buffer.n_memory() > 0 && buffer.size() == self.size as usize && self.is_described(buffer)
    }

    fn is_described(&self, buffer: &gst::BufferRef) -> bool {
        let info = &self.info;
        match buffer.meta::<VideoMeta>() {
            Some(meta) => {
                self.meta
                    && (meta.format(), meta.width(), meta.height())
                        == (info.format(), info.width(), info.height())
                    && meta.offset() == info.offset()
                    && meta.stride() == info.stride()
            }
            None => !self.meta,
        }
    }
}

/// Whether nobody but the buffer has its memory.
pub fn is_free(buffer: &gst::BufferRef) -> bool {
    buffer.is_all_memory_writable() && buffer.iter_memories().all(is_held_once)
}

/// GStreamer calls a memory writable while no other buffer has it, but a bare reference is enough to read it.
fn is_held_once(memory: &gst::MemoryRef) -> bool {
    // SAFETY: the memory lives, and its count is only ever changed atomically.
    let holders = unsafe { AtomicI32::from_ptr(&raw mut (*memory.as_mut_ptr()).mini_object.refcount) };
    holders.load(Ordering::Acquire) == 1
}

/// Overwrites the pictures in it with zeros, but what somebody else sees.
pub fn wipe(buffer: &mut gst::BufferRef) {
    for index in 0..buffer.n_memory() {
        if is_held_once(buffer.peek_memory(index))
            && let Ok(memory) = buffer.peek_memory_mut(index)
            && let Ok(mut bytes) = memory.map_writable()
        {
            bytes.fill(0);
        }
    }
}
