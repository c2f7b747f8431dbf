//! Whether frames arrive in memory that was used before, whoever's pool it comes from.
//!
//! Each memory is marked when it is first seen. The mark is qdata of the `GstMemory` and vanishes with it.

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use gst::glib;
use gst::glib::translate::IntoGlib;
use parking_lot::Mutex;

/// One stream's marks.
pub struct Reuse {
    seen: Mark,
    place: usize,
}

/// Which places are taken. A quark is for ever: each of the streams that run at a time has one, and later ones have it
/// after them.
static PLACES: Mutex<Vec<bool>> = Mutex::new(Vec::new());

impl Default for Reuse {
    fn default() -> Self {
        // Of memories that outlive a stream the marks stay: the value says which stream's they are.
        static STREAMS: AtomicUsize = AtomicUsize::new(1);
        let mut places = PLACES.lock();
        let place = places.iter().position(|taken| !taken).unwrap_or_else(|| {
            places.push(false);
            places.len() - 1
        });
        places[place] = true;
        drop(places);
        let value = STREAMS.fetch_add(1, Ordering::Relaxed);
        Self { seen: Mark::new(&format!("yolodetect-seen-{place}"), value), place }
    }
}

impl Drop for Reuse {
    fn drop(&mut self) {
        PLACES.lock()[self.place] = false;
    }
}

impl Reuse {
    /// Whether the buffer's memory held a frame of this stream before. From now on it did.
    pub fn saw(&self, buffer: &gst::BufferRef) -> bool {
        first_memory(buffer).is_some_and(|memory| {
            let seen = self.seen.is_on(memory);
            if !seen {
                self.seen.put_on(memory);
            }
            seen
        })
    }
}

/// The first memory, or that of which it is a part; `None` for an empty buffer.
pub fn first_memory(buffer: &gst::BufferRef) -> Option<&gst::MemoryRef> {
    if buffer.n_memory() == 0 {
        return None;
    }
    let mut memory = buffer.peek_memory(0).as_ptr();
    // SAFETY: a memory holds a reference to its parent, so that all of the chain lives as long as the buffer does.
    unsafe {
        while !(*memory).parent.is_null() {
            memory = (*memory).parent;
        }
        Some(gst::MemoryRef::from_ptr(memory))
    }
}

/// A number that a memory carries under a name.
#[derive(Clone, Copy)]
pub struct Mark {
    name: glib::Quark,
    value: usize,
}

impl Mark {
    /// `value` is not 0. Names are never forgotten: there are to be few.
    pub fn new(name: &str, value: usize) -> Self {
        Self { name: glib::Quark::from_str(name), value }
    }

    pub fn is_on(&self, memory: &gst::MemoryRef) -> bool {
        // SAFETY: the memory lives, qdata has a lock of its own, and the value is only compared.
        let value =
            unsafe { gst::ffi::gst_mini_object_get_qdata(memory.as_ptr() as *mut _, self.name.into_glib()) };
        value as usize == self.value
    }

    pub fn put_on(&self, memory: &gst::MemoryRef) {
        // SAFETY: as above; qdata may be set on shared objects, and this value needs nobody to free it.
        unsafe {
            gst::ffi::gst_mini_object_set_qdata(
                memory.as_ptr() as *mut _,
                self.name.into_glib(),
                ptr::without_provenance_mut::<c_void>(self.value),
                None,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_is_new_once_for_each_stream() {
        gst::init().unwrap();
        let (one, other) = (Reuse::default(), Reuse::default());
        let buffer = gst::Buffer::with_size(100).unwrap();
        assert_eq!(
            [one.saw(&buffer), one.saw(&buffer), other.saw(&buffer), other.saw(&buffer)],
            [false, true, false, true]
        );
        assert!(one.saw(&buffer));
        // A copy has the memory, but for a deep one.
        assert!(one.saw(&buffer.copy()));
        assert!(!one.saw(&buffer.copy_deep().unwrap()));
        // What holds nothing was not held before.
        assert_eq!([one.saw(&gst::Buffer::new()), one.saw(&gst::Buffer::new())], [false, false]);
    }

    #[test]
    fn parts_of_a_memory_are_that_memory() {
        gst::init().unwrap();
        let reuse = Reuse::default();
        let whole = gst::Buffer::with_size(100).unwrap();
        let part = whole.copy_region(gst::BufferCopyFlags::MEMORY, 10..60).unwrap();
        let part_of_part = part.copy_region(gst::BufferCopyFlags::MEMORY, 10..20).unwrap();
        assert_eq!([reuse.saw(&part_of_part), reuse.saw(&part), reuse.saw(&whole)], [false, true, true]);
    }

    #[test]
    fn a_later_stream_takes_no_mark_for_its_own() {
        gst::init().unwrap();
        let buffer = gst::Buffer::with_size(100).unwrap();
        for _ in 0..20 {
            let reuse = Reuse::default();
            assert!(!reuse.saw(&buffer) && reuse.saw(&buffer));
        }
    }
}
