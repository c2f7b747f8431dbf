//! The memory that frames are preprocessed into.
//!
//! A [`BatchTensor`] is one contiguous input `[capacity, 3, height, width]`. Its frames are handed out one by one as [`TensorSlot`]s, which several streams fill at the same time;
//! afterwards the whole is run in place. Nothing here is allocated per frame.

use std::alloc::{Layout as AllocLayout, alloc_zeroed, dealloc};
use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use half::f16;
use once_cell::sync::OnceCell;
use thiserror::Error;

use crate::preprocess::{FrameTensor, Margin, TensorMut};

/// What one value of a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    F32,
    F16,
}

impl Element {
    pub fn size(self) -> usize {
        match self {
            Element::F32 => size_of::<f32>(),
            Element::F16 => size_of::<f16>(),
        }
    }
}

/// The length of one frame in a tensor and what its values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameExtent {
    pub element: Element,
    /// In values, not bytes.
    pub len: usize,
}

impl FrameExtent {
    pub fn bytes(&self) -> usize {
        self.len * self.element.size()
    }
}

/// The system has no memory for a tensor.
#[derive(Clone, Copy, Debug, Error)]
#[error("{bytes} bytes cannot be had")]
pub struct AllocError {
    pub bytes: usize,
}

/// Memory of a device with a place for each frame of a batch, where a frame may lie instead of here.
pub trait Mirror: Any + Send + Sync {
    /// Copies the frame with this index to its place here.
    ///
    /// # Errors
    /// Why it cannot be had.
    fn fetch(&self, index: usize, to: &mut [u8]) -> Result<(), String>;
}

/// Zeroed bytes on a cache line's boundary, freed on drop, and what is painted in each frame's place.
struct Memory {
    places: Box<[Place]>,
    /// Made with the first frame that lies there.
    mirror: OnceCell<Box<dyn Mirror>>,
    start: NonNull<u8>,
    /// What was allocated, in which `start` lies.
    block: NonNull<u8>,
    layout: AllocLayout,
}

/// One frame's.
#[derive(Default)]
struct Place {
    /// Whether a slot is out.
    taken: AtomicBool,
    /// Whether the frame lies in the mirror. Written by who has the slot, read by who has all of them.
    mirrored: AtomicBool,
    margin: UnsafeCell<Margin>,
}

/// The widest vector load there is (AVX-512), and a cache line.
const ALIGNMENT: usize = 64;
/// The allocator's own, up to which it takes zeroed pages from the system as they are. It would write to each page of a block
/// with a greater one, which takes a second for a large batch.
const BLOCK_ALIGNMENT: usize = 16;

// SAFETY: `Memory` is plain bytes and marks that it owns; who may touch which of them at a time is decided by
// `BatchTensor` (exclusive through `&mut`) and `TensorSlot` (disjoint ranges).
unsafe impl Send for Memory {}
// SAFETY: as above; through `&Memory` alone neither byte nor mark can be reached.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(frames: usize, extent: FrameExtent) -> Result<Self, AllocError> {
        let bytes = frames.checked_mul(extent.bytes()).ok_or(AllocError { bytes: usize::MAX })?;
        let layout = bytes
            .checked_add(ALIGNMENT)
            .and_then(|size| AllocLayout::from_size_align(size, BLOCK_ALIGNMENT).ok())
            .ok_or(AllocError { bytes })?;
        // SAFETY: the layout's size is not 0.
        let block = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(AllocError { bytes })?;
        // SAFETY: less than ALIGNMENT, by which the block is larger than what is used.
        let start = unsafe { block.add(block.align_offset(ALIGNMENT)) };
        let places = (0..frames).map(|_| Place::default()).collect();
        Ok(Self { places, mirror: OnceCell::new(), start, block, layout })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this very layout.
        unsafe { dealloc(self.block.as_ptr(), self.layout) }
    }
}

/// One batch's input.
pub struct BatchTensor {
    /// What an engine keeps with this memory (its views of it). Declared first: it goes before the memory.
    pub binding: Option<Box<dyn Any + Send>>,
    input: Arc<Memory>,
    extent: FrameExtent,
    capacity: usize,
}

impl BatchTensor {
    /// Room for `capacity` frames, zeroed.
    pub fn new(capacity: usize, extent: FrameExtent) -> Result<Self, AllocError> {
        Ok(Self { binding: None, input: Arc::new(Memory::new(capacity, extent)?), extent, capacity })
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.capacity * self.extent.bytes()
    }

    /// Hands out frame `index` for filling.
    ///
    /// `&mut self` keeps anyone from reading while slots are handed out; the owner uses the tensor in no other way before
    /// they are dropped (see [`Self::all_slots_returned`]).
    ///
    /// # Panics
    /// Where the frame's slot is out, or there is no such frame.
    pub fn slot(&mut self, index: usize) -> TensorSlot {
        assert!(index < self.capacity, "slot {index} of {}", self.capacity);
        let taken = self.input.places[index].taken.swap(true, Ordering::Acquire);
        assert!(!taken, "slot {index} is out");
        TensorSlot { memory: self.input.clone(), index, extent: self.extent }
    }

    /// Whether nobody can be writing to the input any more.
    pub fn all_slots_returned(&self) -> bool {
        Arc::strong_count(&self.input) == 1
    }

    /// The bytes of these frames, to be read. `None` while a slot is out.
    ///
    /// # Panics
    /// Where there are no such frames.
    pub fn filled(&mut self, frames: Range<usize>) -> Option<&[u8]> {
        let memory = Arc::get_mut(&mut self.input)?;
        // SAFETY: the memory is ours, of this length and initialised; with no slot out (`get_mut`), nobody writes to it.
        let all =
            unsafe { std::slice::from_raw_parts(memory.start.as_ptr(), self.capacity * self.extent.bytes()) };
        Some(&all[frames.start * self.extent.bytes()..frames.end * self.extent.bytes()])
    }

    /// These frames, by where they lie. `None` while a slot is out.
    ///
    /// # Panics
    /// Where there are no such frames.
    pub fn parts(&mut self, frames: Range<usize>) -> Option<Parts<'_>> {
        assert!(frames.end <= self.capacity, "{frames:?} of {}", self.capacity);
        Arc::get_mut(&mut self.input)?;
        Some(Parts { memory: &self.input, frame: self.extent.bytes(), frames })
    }

    /// Has these frames lie here. The mirror goes once no frame is left in it.
    ///
    /// # Errors
    /// Why one of them cannot be had of its mirror; all others are here then.
    pub fn bring_home(&mut self, frames: Range<usize>) -> Result<(), String> {
        let bytes = self.extent.bytes();
        let Some(memory) = Arc::get_mut(&mut self.input) else { return Ok(()) };
        let mut outcome = Ok(());
        for index in frames {
            let place = &mut memory.places[index];
            if !*place.mirrored.get_mut() {
                continue;
            }
            let Some(mirror) = memory.mirror.get() else { continue };
            // SAFETY: the memory is ours, has a place for each frame, and is initialised; nobody else reaches it (`get_mut`).
            let to =
                unsafe { std::slice::from_raw_parts_mut(memory.start.as_ptr().add(index * bytes), bytes) };
            *place.margin.get_mut() = Margin::default();
            match mirror.fetch(index, to) {
                Ok(()) => *place.mirrored.get_mut() = false,
                Err(why) => outcome = outcome.and(Err(why)),
            }
        }
        if !memory.places.iter_mut().any(|place| *place.mirrored.get_mut()) {
            memory.mirror.take();
        }
        outcome
    }

    /// The frames that were here have been run: none counts as lying in the mirror, which stays for those to come.
    pub fn forget_frames(&mut self) {
        if let Some(memory) = Arc::get_mut(&mut self.input) {
            memory.places.iter_mut().for_each(|place| *place.mirrored.get_mut() = false);
        }
    }

    /// The whole input's bytes, for the engine. `None` while a slot is out. What is painted in it is forgotten, since
    /// it may be written over.
    pub fn input_bytes(&mut self) -> Option<&mut [u8]> {
        let memory = Arc::get_mut(&mut self.input)?;
        memory.places.iter_mut().for_each(|place| *place.margin.get_mut() = Margin::default());
        // SAFETY: the memory is ours, of this length and initialised; with no slot out (`get_mut`), `&mut
        // self` makes the access exclusive.
        Some(unsafe {
            std::slice::from_raw_parts_mut(memory.start.as_ptr(), self.capacity * self.extent.bytes())
        })
    }
}

/// Frames of a batch in turn, as many together as lie in one place.
#[derive(Clone)]
pub struct Parts<'a> {
    memory: &'a Memory,
    /// Bytes.
    frame: usize,
    frames: Range<usize>,
}

/// Some frames of a batch.
pub enum Part<'a> {
    Here(&'a [u8]),
    Mirrored(&'a dyn Mirror),
}

impl<'a> Iterator for Parts<'a> {
    type Item = (Range<usize>, Part<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let memory = self.memory;
        let mirrored = |index: usize| memory.places[index].mirrored.load(Ordering::Relaxed);
        let first = self.frames.next()?;
        let lies_there = mirrored(first);
        while self.frames.start < self.frames.end && mirrored(self.frames.start) == lies_there {
            self.frames.start += 1;
        }
        let frames = first..self.frames.start;
        let part = match memory.mirror.get() {
            Some(mirror) if lies_there => Part::Mirrored(mirror.as_ref()),
            // SAFETY: the memory is initialised, has a place for each of these frames, and nobody writes to it: no slot was out when
            // this was made, and none is given while the batch is borrowed.
            _ => Part::Here(unsafe {
                let start = memory.start.as_ptr().add(first * self.frame);
                std::slice::from_raw_parts(start, frames.len() * self.frame)
            }),
        };
        Some((frames, part))
    }
}

/// One frame's part of a batch's input: exclusive until it is dropped.
pub struct TensorSlot {
    memory: Arc<Memory>,
    index: usize,
    extent: FrameExtent,
}

impl Drop for TensorSlot {
    fn drop(&mut self) {
        self.memory.places[self.index].taken.store(false, Ordering::Release);
    }
}

impl TensorSlot {
    /// The frame's values, `[3, height, width]`, and what is painted around the picture there.
    pub fn tensor(&mut self) -> FrameTensor<'_> {
        let FrameExtent { element, len } = self.extent;
        self.memory.places[self.index].mirrored.store(false, Ordering::Relaxed);
        // SAFETY: within the memory and the only slot of this index (both checked when it was made), aligned, initialised;
        // and the tensor's owner reads only once every slot is gone.
        let values = unsafe {
            let start = self.memory.start.as_ptr().add(self.index * self.extent.bytes());
            match element {
                Element::F32 => TensorMut::F32(std::slice::from_raw_parts_mut(start.cast(), len)),
                Element::F16 => TensorMut::F16(std::slice::from_raw_parts_mut(start.cast(), len)),
            }
        };
        // SAFETY: as above, of the mark with this index.
        let margin = unsafe { &mut *self.memory.places[self.index].margin.get() };
        FrameTensor { values, margin }
    }

    pub fn extent(&self) -> FrameExtent {
        self.extent
    }

    /// Has `fill` write the frame, whose index it is told, to the batch's mirror, which `make` makes for so many frames where there is none
    /// yet.
    ///
    /// # Errors
    /// Those of the two; the frame does not lie there then.
    pub fn fill_mirror<E>(
        &mut self,
        make: impl FnOnce(usize) -> Result<Box<dyn Mirror>, E>,
        fill: impl FnOnce(&dyn Mirror, usize) -> Result<(), E>,
    ) -> Result<(), E> {
        let Memory { places, mirror, .. } = &*self.memory;
        let place = &places[self.index];
        place.mirrored.store(false, Ordering::Relaxed);
        let mirror = mirror.get_or_try_init(|| make(places.len()))?;
        fill(mirror.as_ref(), self.index)?;
        place.mirrored.store(true, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU8;

    #[test]
    #[should_panic(expected = "slot 1 is out")]
    fn a_slot_that_is_out_is_not_given_again() {
        let mut batch = BatchTensor::new(2, FrameExtent { element: Element::F32, len: 3 }).unwrap();
        drop(batch.slot(1));
        let _first = batch.slot(1);
        batch.slot(1);
    }

    #[test]
    fn slots_are_disjoint_and_the_whole_is_reachable_only_without_them() {
        let extent = FrameExtent { element: Element::F32, len: 3 };
        let mut batch = BatchTensor::new(2, extent).unwrap();
        let (mut first, mut second) = (batch.slot(0), batch.slot(1));
        match (first.tensor().values, second.tensor().values) {
            (TensorMut::F32(a), TensorMut::F32(b)) => {
                a.fill(1.0);
                b.fill(2.0);
            }
            _ => panic!("not f32"),
        }
        assert!(batch.input_bytes().is_none() && batch.filled(0..1).is_none());
        drop(first);
        assert!(!batch.all_slots_returned());
        drop(second);
        let values: Vec<f32> = batch
            .input_bytes()
            .unwrap()
            .chunks(4)
            .map(|b| f32::from_ne_bytes(b.try_into().unwrap()))
            .collect();
        assert_eq!(values, [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]);
        let second = [2.0_f32; 3].map(f32::to_ne_bytes);
        assert_eq!(batch.filled(1..2).unwrap(), second.as_flattened());
        assert_eq!(batch.bytes(), 2 * 3 * 4);
    }

    struct Fake(Box<[AtomicU8]>);

    impl Mirror for Fake {
        fn fetch(&self, index: usize, to: &mut [u8]) -> Result<(), String> {
            match self.0[index].load(Ordering::Relaxed) {
                0 => Err(format!("frame {index} was never there")),
                byte => {
                    to.fill(byte);
                    Ok(())
                }
            }
        }
    }

    /// So many frames, none of which is there.
    fn fake(frames: usize) -> Result<Box<dyn Mirror>, ()> {
        Ok(Box::new(Fake((0..frames).map(|_| AtomicU8::new(0)).collect())))
    }

    fn put(mirror: &dyn Mirror, index: usize) -> Result<(), ()> {
        let fake = (mirror as &dyn Any).downcast_ref::<Fake>().unwrap();
        fake.0[index].store(7, Ordering::Relaxed);
        Ok(())
    }

    /// Which frames lie together, and whether in the mirror.
    fn places(batch: &mut BatchTensor, frames: Range<usize>) -> Vec<(Range<usize>, bool)> {
        let parts = batch.parts(frames).unwrap();
        parts.map(|(frames, part)| (frames, matches!(part, Part::Mirrored(_)))).collect()
    }

    #[test]
    fn frames_lie_here_or_in_the_mirror() {
        let extent = FrameExtent { element: Element::F32, len: 1 };
        let mut batch = BatchTensor::new(4, extent).unwrap();
        // One that cannot be made is tried again.
        assert_eq!(batch.slot(1).fill_mirror(|_| Err(()), put), Err(()));
        assert_eq!(batch.slot(1).fill_mirror(fake, put), Ok(()));
        assert_eq!(batch.slot(2).fill_mirror(|_| unreachable!(), put), Ok(()));
        let slot = batch.slot(0);
        assert!(batch.parts(0..4).is_none());
        drop(slot);
        assert_eq!(places(&mut batch, 0..4), [(0..1, false), (1..3, true), (3..4, false)]);
        assert_eq!(places(&mut batch, 2..3), [(2..3, true)]);
        // What is written here lies here, and what could not be written there does not lie there.
        batch.slot(1).tensor();
        assert_eq!(batch.slot(2).fill_mirror(fake, |_, _| Err(())), Err(()));
        assert_eq!(places(&mut batch, 0..4), [(0..4, false)]);
        batch.slot(3).fill_mirror(fake, put).unwrap();
        batch.bring_home(0..4).unwrap();
        assert_eq!(places(&mut batch, 0..4), [(0..4, false)]);
        assert_eq!(batch.filled(2..4).unwrap(), [0, 0, 0, 0, 7, 7, 7, 7]);
    }

    #[test]
    fn frames_of_a_mirror_that_is_lost_are_lost_alone_and_with_their_batch() {
        let extent = FrameExtent { element: Element::F32, len: 1 };
        let mut batch = BatchTensor::new(3, extent).unwrap();
        let nothing = |_: &dyn Mirror, _| Ok::<_, ()>(());
        batch.slot(0).fill_mirror(fake, nothing).unwrap();
        batch.slot(1).fill_mirror(fake, nothing).unwrap();
        batch.slot(2).fill_mirror(fake, put).unwrap();
        for _ in 0..2 {
            assert_eq!(batch.bring_home(0..3), Err("frame 0 was never there".into()));
            assert_eq!(places(&mut batch, 0..3), [(0..2, true), (2..3, false)]);
        }
        batch.forget_frames();
        batch.bring_home(0..3).unwrap();
        assert!(batch.input.mirror.get().is_none(), "nobody needs it");
        assert_eq!(places(&mut batch, 0..3), [(0..3, false)]);
    }

    #[test]
    fn a_tensor_that_cannot_be_is_an_error() {
        let extent = FrameExtent { element: Element::F32, len: usize::MAX / 16 };
        assert_eq!(
            Memory::new(3, FrameExtent { len: 5, ..extent }).unwrap().start.align_offset(ALIGNMENT),
            0
        );
        for capacity in [1, 2, 1 << 20] {
            assert!(BatchTensor::new(capacity, extent).is_err());
        }
    }
}
