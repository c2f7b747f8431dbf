//! Runs on a GPU, some of whose steps overlap those of other runs.
//!
//! A *lane* is what one run has for itself: a tensor on the GPU for what goes in and one for what comes out, pinned host memory for the
//! latter, and a queue of copies. There are as many lanes as callers. While one lane's run computes, the next batch is copied into
//! another's input, and what the last run gave is copied out and decoded.
//!
//! ONNX Runtime copies an input when it is bound, where it does not lie where it is wanted; so the lanes' own tensors are bound, and our own
//! copies fill them before that. One run computes at a time: two at once would have ONNX Runtime's arena grow to hold what is between the
//! layers twice, and a GPU is filled by one batch.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, ThreadId};

use ort::session::{RunOptions, Session};
use parking_lot::{Mutex, MutexGuard};

use super::binding::Binding;
use super::failure::Failure;
use super::host::slot_is_out;
use super::ports::Ports;
use super::value::MemoryPlace;
use super::{SessionOptions, session};
use crate::decode::OutputRef;
use crate::engine::cuda_frames::GpuMirror;
use crate::engine::device::Device;
use crate::engine::gpu::driver::{self, Card, Copies, DeviceMemory, Pin, PinnedMemory, Source};
use crate::engine::{BatchSize, EngineErrorKind, Output};
use crate::tensor::{BatchTensor, Element, Part, Parts};

/// A thread's lane is its own for good: ONNX Runtime keeps recorded graphs by thread.
pub(super) struct Lanes {
    lanes: Vec<Mutex<Lane>>,
    /// Of each lane, as far as they are taken.
    threads: Mutex<Vec<ThreadId>>,
    /// Held while a run computes.
    turn: Mutex<()>,
    maker: Maker,
}

/// What lanes are made with.
struct Maker {
    card: Arc<Card>,
    place: MemoryPlace,
    /// Runs are recorded.
    graphs: Option<Graphs>,
    /// Batches may become larger than the first lanes are for.
    grows: bool,
}

struct Graphs {
    /// Each run is recorded under a number of its own.
    next: AtomicU32,
    /// Of one that is not.
    unrecorded: RunOptions,
}

struct Lane {
    /// Before the memory that they are bound to.
    buckets: Vec<Bucket>,
    input: DeviceMemory,
    output: DeviceMemory,
    host: PinnedMemory,
    copies: Copies,
    /// For which there is room.
    frames: usize,
}

/// Runs of one number of frames.
struct Bucket {
    frames: usize,
    binding: Binding,
    /// Under which number such a run is recorded.
    graph: Option<RunOptions>,
    /// It is.
    recorded: bool,
    /// Runs that were to be recorded and failed.
    spoilt: u32,
}

/// Runs of a bucket that may fail in being recorded.
const ATTEMPTS: u32 = 2;

/// Threads whose lanes are remembered.
const MAX_THREADS: usize = 64;

/// What a [`BatchTensor`] keeps: its memory is pinned, or could not be, which makes copies slower and nothing else.
struct Pinned {
    _pin: Option<Pin>,
}

impl Lanes {
    /// For batches of up to `frames`.
    pub fn new(
        card: &Arc<Card>,
        options: &SessionOptions,
        ports: &Ports,
        frames: usize,
    ) -> Result<Self, Failure> {
        let maker = Maker {
            card: card.clone(),
            place: MemoryPlace::gpu(card.index())?,
            graphs: options.gpu.graph.then(Graphs::new).transpose()?,
            grows: !matches!(options.device, Device::TensorRt(_)),
        };
        let lanes = (0..options.plan.callers.max(1)).map(|_| maker.lane(ports, frames).map(Mutex::new));
        Ok(Self {
            lanes: lanes.collect::<Result<_, _>>()?,
            threads: Mutex::default(),
            turn: Mutex::default(),
            maker,
        })
    }

    /// Runs every number of frames that will be run, the largest first, so that all that later runs need is there: `batch` has
    /// room for the largest.
    pub fn warm_up(
        &self,
        session: &Session,
        ports: &Ports,
        size: BatchSize,
        batch: &mut BatchTensor,
        options: Option<&RunOptions>,
    ) -> Result<(), Failure> {
        for lane in &self.lanes {
            for frames in sizes(size, batch.capacity()) {
                let mut lane = lane.lock();
                lane.run(self, session, ports, (batch, &(0..frames)), options, &mut |_| ())?;
            }
        }
        Ok(())
    }

    /// Bytes of the GPU that the lanes' own tensors take.
    pub fn bytes(&self) -> u64 {
        let bytes = |lane: &Mutex<Lane>| {
            let lane = lane.lock();
            (lane.input.bytes() + lane.output.bytes()) as u64
        };
        self.lanes.iter().map(bytes).sum()
    }

    /// Runs these frames of `batch` and shows `read` what came out, in this thread's lane.
    pub fn run(
        &self,
        session: &Session,
        ports: &Ports,
        batch: &mut BatchTensor,
        frames: &Range<usize>,
        options: Option<&RunOptions>,
        read: &mut dyn FnMut(Output<'_>),
    ) -> Result<(), Failure> {
        self.own_lane().run(self, session, ports, (batch, frames), options, read)
    }

    fn own_lane(&self) -> MutexGuard<'_, Lane> {
        let own = thread::current().id();
        let mut threads = self.threads.lock();
        let position = threads.iter().position(|thread| *thread == own).unwrap_or_else(|| {
            if threads.len() == MAX_THREADS {
                // Most are gone, and the others come again.
                threads.clear();
            }
            threads.push(own);
            threads.len() - 1
        });
        drop(threads);
        self.lanes[position % self.lanes.len()].lock()
    }

    /// Has the GPU reach the batch's memory without a copy in between, from its first run on.
    fn pin(&self, batch: &mut BatchTensor) {
        if batch.binding.as_ref().is_some_and(|binding| binding.is::<Pinned>()) {
            return;
        }
        let capacity = batch.capacity();
        let Some(bytes) = batch.filled(0..capacity) else { return };
        let (start, len) = (bytes.as_ptr().cast_mut(), bytes.len());
        // SAFETY: the batch drops what is bound to its memory before that.
        let pin = unsafe { self.maker.card.pin(start, len) }.ok();
        batch.binding = Some(Box::new(Pinned { _pin: pin }));
    }
}

impl Graphs {
    fn new() -> ort::Result<Self> {
        // 0 is what ONNX Runtime takes where nobody says a number.
        Ok(Self { next: AtomicU32::new(1), unrecorded: session::unrecorded_options()? })
    }
}

impl Maker {
    fn lane(&self, ports: &Ports, frames: usize) -> Result<Lane, Failure> {
        let (input, output) = (frames * ports.input.bytes(), frames * ports.output.bytes());
        Ok(Lane {
            buckets: Vec::new(),
            input: self.card.alloc(input)?,
            output: self.card.alloc(output)?,
            host: self.card.alloc_pinned(output)?,
            copies: self.card.copies()?,
            frames,
        })
    }
}

impl Lane {
    fn run(
        &mut self,
        lanes: &Lanes,
        session: &Session,
        ports: &Ports,
        (batch, frames): (&mut BatchTensor, &Range<usize>),
        options: Option<&RunOptions>,
        read: &mut dyn FnMut(Output<'_>),
    ) -> Result<(), Failure> {
        let count = frames.len();
        if count > self.frames {
            if !lanes.maker.grows {
                return Err(Failure::Beyond { compiled: self.frames });
            }
            // An element came that wants larger batches.
            *self = lanes.maker.lane(ports, count)?;
        }
        lanes.pin(batch);
        let parts = batch.parts(frames.clone()).ok_or_else(slot_is_out)?;
        self.fill(parts, frames.start, ports.input.bytes())?;
        let known = self.buckets.iter().position(|bucket| bucket.frames == count);
        let position = match known {
            Some(position) => position,
            None => {
                self.bind(&lanes.maker, session, ports, count)?;
                self.buckets.len() - 1
            }
        };
        let bucket = &mut self.buckets[position];
        {
            let _turn = lanes.turn.lock();
            let unrecorded = lanes.maker.graphs.as_ref().map(|graphs| &graphs.unrecorded);
            bucket.run(session, options, unrecorded)?;
        }
        let output = &mut self.host.bytes_mut()[..count * ports.output.bytes()];
        self.copies.download(&self.output, output)?;
        let values = values(output, ports.output.element)?;
        read(Output { values, frame_len: ports.output.len });
        Ok(())
    }

    /// Copies the frames to the input, the one with the index `first` to its beginning.
    fn fill(&self, parts: Parts<'_>, first: usize, frame: usize) -> Result<(), Failure> {
        let sources = parts.map(|(frames, part)| {
            let source = match part {
                Part::Here(bytes) => Source::Host(bytes),
                Part::Mirrored(mirror) => GpuMirror::source(mirror, &frames),
            };
            ((frames.start - first) * frame, source)
        });
        self.copies.gather(sources, &self.input).map_err(Failure::from)
    }

    fn bind(
        &mut self,
        maker: &Maker,
        session: &Session,
        ports: &Ports,
        frames: usize,
    ) -> Result<(), Failure> {
        let place = &maker.place;
        let input = place.device_tensor(&self.input, &ports.input_shape(frames), ports.input.element)?;
        let output = place.device_tensor(&self.output, &ports.output_shape(frames), ports.output.element)?;
        let binding = Binding::new(session, (&ports.input_name, input), (&ports.output_name, output))?;
        let next = maker.graphs.as_ref().map(|graphs| graphs.next.fetch_add(1, Ordering::Relaxed));
        let graph = next.map(session::recorded_options).transpose()?;
        self.buckets.push(Bucket { frames, binding, graph, recorded: false, spoilt: 0 });
        Ok(())
    }
}

impl Bucket {
    /// With `options`; without any, the first run beside which nothing else is done on a GPU is recorded, and replayed by all later ones.
    fn run(
        &mut self,
        session: &Session,
        options: Option<&RunOptions>,
        unrecorded: Option<&RunOptions>,
    ) -> Result<(), Failure> {
        let graph = self.graph.as_ref().filter(|_| options.is_none());
        if graph.is_some()
            && !self.recorded
            && self.spoilt < ATTEMPTS
            && let Some(alone) = driver::alone()
        {
            let outcome = self.binding.run(session, graph).map_err(Failure::from);
            drop(alone);
            match outcome {
                Ok(()) => {
                    self.recorded = true;
                    return Ok(());
                }
                // Others in the process who use CUDA meanwhile spoil what is recorded, and know nothing of our locks. The input is still
                // there, for a run as without.
                Err(error) if error.kind() == EngineErrorKind::Run => self.spoilt += 1,
                Err(error) => return Err(error),
            }
        }
        let _quiet = driver::quiet();
        let options = options.or(if self.recorded { graph } else { unrecorded });
        self.binding.run(session, options).map_err(Failure::from)
    }
}

/// The numbers of frames that batches of up to `largest` are run with, falling.
fn sizes(size: BatchSize, largest: usize) -> impl Iterator<Item = usize> {
    let fewer = (0..usize::BITS).rev().map(|bit| 1 << bit).filter(move |&frames| frames < largest);
    std::iter::once(largest).chain(fewer.filter(move |_| !size.is_fixed()))
}

/// The floats that these bytes are.
fn values(bytes: &[u8], element: Element) -> Result<OutputRef<'_>, Failure> {
    // SAFETY: any bits are a valid float.
    let (outside, values) = unsafe {
        match element {
            Element::F32 => {
                let (before, values, after) = bytes.align_to();
                (before.len() + after.len(), OutputRef::F32(values))
            }
            Element::F16 => {
                let (before, values, after) = bytes.align_to();
                (before.len() + after.len(), OutputRef::F16(values))
            }
        }
    };
    // The driver gives whole pages.
    if outside == 0 { Ok(values) } else { Err(ort::Error::new("the output is not aligned").into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_frames_that_will_be_run_is_warmed_the_largest_first() {
        for (size, largest, expected) in [
            (BatchSize::Steps, 1, &[1][..]),
            (BatchSize::Steps, 2, &[2, 1]),
            (BatchSize::Steps, 6, &[6, 4, 2, 1]),
            (BatchSize::Steps, 8, &[8, 4, 2, 1]),
            (BatchSize::Fixed(4), 4, &[4]),
        ] {
            assert_eq!(sizes(size, largest).collect::<Vec<_>>(), expected);
            let run = |frames| expected.contains(&size.run(frames, largest));
            assert!((1..=largest).all(run), "{size:?}, {largest}");
        }
    }
}
