//! Four streams of 1280x720 out of a real decoder, for long: memory does not grow, buffers and slots are used again, and
//! in the steady state no frame costs an allocation of Rust's.
//!
//! ```sh
//! cargo test --test soak -- --nocapture                                    # 20,000 frames of all streams together
//! YOLODETECT_SOAK_FRAMES=100000 cargo test --test soak -- --nocapture
//! ```
//!
//! The model is a tiny one: what is looked at is all that is around it, and the decoder takes most of the time.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use common::{Pipeline, asset, own_tiny};
use gst::prelude::*;

const STREAMS: usize = 4;
const DEFAULT_FRAMES: u64 = 20_000;
/// Of the frames, until everything has its size: the slowest stream's history has its 1000 frames by then.
const WARM_UP: f64 = 0.4;
/// In ns: the thread that looks at memory, once a second by default, allocates for it; counted here are frames.
const HOUR: u64 = 3_600_000_000_000;
/// Looks at the resident set.
const SAMPLES: u64 = 400;

/// Counts what Rust allocates while it is told to, in whatever thread but those that only watch.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;
static ON: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
/// Where the first of them came from.
static TRACES: Mutex<Vec<String>> = Mutex::new(Vec::new());
const TRACED: u64 = 5;

thread_local! {
    static WATCHING: Cell<bool> = const { Cell::new(false) };
}

impl Counting {
    fn count(&self) {
        // The test harness's own thread, which says what takes long, is the process's first.
        if !ON.load(Ordering::Relaxed)
            || WATCHING.get()
            // SAFETY: neither call has preconditions.
            || unsafe { libc::gettid() == libc::getpid() }
        {
            return;
        }
        if ALLOCATIONS.fetch_add(1, Ordering::Relaxed) < TRACED {
            WATCHING.set(true);
            let trace = Backtrace::force_capture().to_string();
            TRACES.lock().unwrap().push(trace);
            WATCHING.set(false);
        }
    }
}

// SAFETY: the system's allocator does all the work; counting allocates only where it is not counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.count();
        // SAFETY: the caller's promise is passed on, here and below.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.count();
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Counts frames of all streams and looks at the resident set every so many of them, without an allocation.
struct Watch {
    statm: File,
    page: u64,
    frames: AtomicU64,
    total: u64,
    detectors: Vec<gst::Element>,
    /// Resident bytes, without those of the pools: a pool makes its rarest buffer, of 1.4 MB, when threads first happen to meet
    /// so, which may be late.
    samples: Vec<AtomicU64>,
    finished: mpsc::SyncSender<()>,
}

impl Watch {
    fn new(total: u64, detectors: Vec<gst::Element>, finished: mpsc::SyncSender<()>) -> Self {
        // SAFETY: sysconf has no preconditions.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64;
        Self {
            statm: File::open("/proc/self/statm").unwrap(),
            page,
            frames: AtomicU64::new(0),
            total,
            detectors,
            samples: (0..SAMPLES).map(|_| AtomicU64::new(0)).collect(),
            finished,
        }
    }

    fn resident(&self) -> u64 {
        let mut text = [0; 128];
        let length = self.statm.read_at(&mut text, 0).unwrap();
        let text = std::str::from_utf8(&text[..length]).unwrap();
        text.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * self.page
    }

    /// What the pools hold, by their own count.
    fn pooled(&self) -> u64 {
        let watching = WATCHING.replace(true);
        let pools = self.detectors.iter().map(|detector| pool(detector).get::<u64>("bytes").unwrap());
        let bytes = pools.sum();
        WATCHING.set(watching);
        bytes
    }

    fn warm(&self) -> u64 {
        (self.total as f64 * WARM_UP) as u64
    }

    fn frame(&self) {
        let frame = self.frames.fetch_add(1, Ordering::Relaxed) + 1;
        if frame == self.warm() {
            ON.store(true, Ordering::Relaxed);
        }
        let every = self.total / SAMPLES;
        if frame.is_multiple_of(every)
            && let Some(sample) = self.samples.get((frame / every - 1) as usize)
        {
            sample.store(self.resident() - self.pooled(), Ordering::Relaxed);
        }
        if frame == self.total {
            ON.store(false, Ordering::Relaxed);
            self.finished.try_send(()).unwrap();
        }
    }

    /// Frame and resident bytes, after the warm-up.
    fn steady(&self) -> Vec<(f64, f64)> {
        let every = self.total / SAMPLES;
        let samples = self.samples.iter().zip(1u64..);
        samples
            .map(|(resident, number)| (number * every, resident.load(Ordering::Relaxed)))
            .filter(|&(frame, _)| frame > self.warm())
            .map(|(frame, resident)| (frame as f64, resident as f64))
            .collect()
    }
}

fn pool(detector: &gst::Element) -> gst::Structure {
    detector.property::<gst::Structure>("stats").get("pool").unwrap()
}

/// By least squares.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let (mean_x, mean_y) =
        (points.iter().map(|p| p.0).sum::<f64>() / count, points.iter().map(|p| p.1).sum::<f64>() / count);
    let covariance: f64 = points.iter().map(|p| (p.0 - mean_x) * (p.1 - mean_y)).sum();
    let variance: f64 = points.iter().map(|p| (p.0 - mean_x).powi(2)).sum();
    covariance / variance
}

#[test]
fn the_slope_is_that_of_the_line() {
    let line: Vec<_> = (0..50).map(|x| (f64::from(x), 7.0 - 3.0 * f64::from(x))).collect();
    assert!((slope(&line) + 3.0).abs() < 1e-9);
}

#[test]
fn memory_stays_as_it_is() {
    let total: u64 = match std::env::var("YOLODETECT_SOAK_FRAMES") {
        Ok(text) => text.parse().expect("YOLODETECT_SOAK_FRAMES is a number of frames"),
        Err(_) => DEFAULT_FRAMES,
    };
    assert!(total >= 10 * SAMPLES, "at least {} frames", 10 * SAMPLES);
    let folder = tempfile::tempdir().unwrap();
    let clip = folder.path().join("clip.h264");
    Pipeline::new(&format!(
        "filesrc location={} ! qtdemux ! h264parse ! video/x-h264,stream-format=byte-stream ! filesink location={}",
        asset("clips/bigbuckbunny.mp4").display(),
        clip.display()
    ))
    .run()
    .unwrap();

    let branch = |number| {
        format!(
            "multifilesrc location={} loop=true caps=video/x-h264,stream-format=byte-stream ! h264parse \
             ! avdec_h264 max-threads=1 ! yolodetect name=detect{number} model-file={} pressure-interval={HOUR} \
             ! fakesink name=sink{number} sync=false ",
            clip.display(),
            own_tiny("v8", "soak")
        )
    };
    let pipeline = Pipeline::new(&(0..STREAMS).map(branch).collect::<String>());
    let (finished, end) = mpsc::sync_channel(1);
    let detectors = (0..STREAMS).map(|number| pipeline.by_name(&format!("detect{number}"))).collect();
    let watch = Arc::new(Watch::new(total, detectors, finished));
    for number in 0..STREAMS {
        let watch = watch.clone();
        let pad = pipeline.by_name(&format!("sink{number}")).static_pad("sink").unwrap();
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
            watch.frame();
            gst::PadProbeReturn::Ok
        });
    }
    WATCHING.set(true);
    let start = Instant::now();
    pipeline.0.set_state(gst::State::Playing).unwrap();
    // 20 frames a second of all streams is much less than any machine's.
    end.recv_timeout(Duration::from_secs(60 + total / 20)).expect("the frames do not come");
    let took = start.elapsed();

    let steady = watch.steady();
    let megabytes = |bytes: f64| bytes / 1e6;
    let growth = megabytes(slope(&steady)) * 1e4;
    let resident = steady.iter().map(|point| point.1);
    let (least, most) = (resident.clone().fold(f64::MAX, f64::min), resident.fold(0.0, f64::max));
    let frames = total - watch.warm();
    let allocations = ALLOCATIONS.load(Ordering::Relaxed);
    println!(
        "{total} frames of {STREAMS} streams in {took:.1?}: {:.0} frames/s",
        total as f64 / took.as_secs_f64()
    );
    println!(
        "resident set without the pools after warm-up: {:.1} to {:.1} MB, slope {growth:+.3} MB per 10,000 frames",
        megabytes(least),
        megabytes(most)
    );
    let tenth = steady.len() / 10;
    let trend: Vec<_> = steady.chunks(tenth.max(1)).map(|part| megabytes(part[0].1)).collect();
    println!("resident set after each tenth of that, MB: {trend:.1?}");
    println!("Rust allocations in {frames} frames after warm-up: {allocations}");
    let mut worst: f64 = 1.0;
    for number in 0..STREAMS {
        let stats: gst::Structure = pipeline.by_name(&format!("detect{number}")).property("stats");
        let pool = pool(&pipeline.by_name(&format!("detect{number}")));
        println!("stream {number}: {pool}");
        assert_eq!(pool.get::<bool>("own"), Ok(true));
        worst = worst.min(pool.get("efficiency").unwrap());
        if number == 0 {
            let engine: gst::Structure = stats.get("engine").unwrap();
            let slots = f64::from(engine.get::<u32>("slots").unwrap());
            let used = engine.get::<u64>("frames").unwrap() as f64;
            let reuse = 1.0 - slots / used;
            println!("slots: {slots} for {used} frames, reuse {:.2} %", 100.0 * reuse);
            assert!(reuse > 0.95);
        }
    }
    println!("pool reuse, worst stream: {:.2} %", 100.0 * worst);
    assert!(worst > 0.95);
    let traces = TRACES.lock().unwrap();
    // None for frames; something may still be needed for the first time.
    assert!(allocations < frames / 1000, "{allocations}, the first of them:\n{}", traces.join("\n\n"));
    assert!(growth < 1.0, "the resident set grows by {growth:.3} MB per 10,000 frames");
}
