//! Streams through `yolodetect` beside a bare loop over ONNX Runtime: the same model, session options, callers and threads, the
//! same decoded frames from memory. Prints each pair of runs and the median of their ratios.
//!
//! The bare side is what somebody would write by hand: as many threads as callers, each of which takes the next frame, makes
//! it the model's input and runs the session through the C API, with nothing of this plugin's engine, batcher or element in
//! between. Both sides preprocess with this plugin's `Converter`, since that is the same work; the bare side does not decode
//! what the model puts out, and has one buffer, one stream and no order to keep.
//!
//! ```sh
//! cargo bench --bench streams -- [STREAMS [PAIRS [FRAMES [THREADS [HINT]]]]]
//! ```
//! FRAMES are those of each stream in one run; THREADS and HINT are the elements' `threads` (the cores unless told) and
//! `performance-hint`. Needs what `pipelines/setup.sh` fetches.

#[path = "bare/mod.rs"]
mod runtime_by_hand;

use std::env;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gst::prelude::*;
use gst_video::VideoFrameExt;
use gstyolodetect::engine::runtime;
use gstyolodetect::preprocess::convert::Converter;
use gstyolodetect::preprocess::{
    ChromaSite, Colorimetry, FrameFormat, FrameTensor, InputStyle, Margin, Matrix, PixelFormat, Plane, Range,
    TensorMut,
};
use ort::value::Tensor;
use parking_lot::{Condvar, Mutex};
use runtime_by_hand::{Bare, Options};

const PATIENCE: Duration = Duration::from_secs(300);

fn asset(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/assets").join(name);
    assert!(path.exists(), "{} is missing: run pipelines/setup.sh", path.display());
    path
}

/// Decoded frames that both sides read.
struct Film {
    caps: gst::Caps,
    info: gst_video::VideoInfo,
    frames: Vec<gst::Buffer>,
}

impl Film {
    fn decode(count: usize) -> Self {
        let pipeline = gst::parse::launch(&format!(
            "filesrc location={} ! decodebin ! video/x-raw,format=I420 ! appsink name=sink sync=false",
            asset("clips/bikes.mp4").display()
        ))
        .unwrap()
        .downcast::<gst::Pipeline>()
        .unwrap();
        let sink = pipeline.by_name("sink").unwrap().downcast::<gst_app::AppSink>().unwrap();
        pipeline.set_state(gst::State::Playing).unwrap();
        let samples: Vec<_> = (0..count).map(|_| sink.pull_sample().unwrap()).collect();
        pipeline.set_state(gst::State::Null).unwrap();
        let caps = samples[0].caps_owned().unwrap();
        let info = gst_video::VideoInfo::from_caps(&caps).unwrap();
        // Copies, so that no pool of the decoder is kept waiting.
        let frames = samples.iter().map(|sample| sample.buffer().unwrap().copy_deep().unwrap()).collect();
        Self { caps, info, frames }
    }
}

/// One stream: an element between two pads, of which the one counts what comes out.
struct Stream {
    element: gst::Element,
    src: gst::Pad,
    sink: gst::Pad,
}

#[derive(Default)]
struct Out {
    inferred: Mutex<usize>,
    changed: Condvar,
}

impl Stream {
    fn new(threads: usize, hint: &str, out: &Arc<Out>) -> Self {
        let element = gst::ElementFactory::make("yolodetect")
            .property("model-file", asset("models/yolo12n.onnx").display().to_string())
            .property_from_str("overload", "block")
            .property("threads", threads as u32)
            .property_from_str("performance-hint", hint)
            .build()
            .unwrap();
        let src = gst::Pad::builder(gst::PadDirection::Src).build();
        let out = out.clone();
        let sink = gst::Pad::builder(gst::PadDirection::Sink)
            .chain_function(move |_, _, buffer| {
                let records = gstyolodetect::meta::frames(&buffer);
                assert_eq!(records[0].status.nick(), "inferred");
                *out.inferred.lock() += 1;
                out.changed.notify_one();
                Ok(gst::FlowSuccess::Ok)
            })
            .build();
        src.link(&element.static_pad("sink").unwrap()).unwrap();
        element.static_pad("src").unwrap().link(&sink).unwrap();
        Self { element, src, sink }
    }

    fn start(&self, film: &Film) {
        self.sink.set_active(true).unwrap();
        self.element.set_state(gst::State::Playing).unwrap();
        self.src.set_active(true).unwrap();
        self.src.push_event(gst::event::StreamStart::new("bench"));
        self.src.push_event(gst::event::Caps::new(&film.caps));
        self.src.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new()));
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.element.set_state(gst::State::Null).unwrap();
    }
}

/// Frames a second of all streams together.
fn ours(streams: &[Stream], film: &Film, out: &Out, frames: usize) -> f64 {
    *out.inferred.lock() = 0;
    let start = Instant::now();
    std::thread::scope(|scope| {
        for stream in streams {
            scope.spawn(|| {
                for frame in film.frames.iter().cycle().take(frames) {
                    // A header of its own; the pixels are shared.
                    stream.src.push(frame.copy()).unwrap();
                }
            });
        }
        let mut inferred = out.inferred.lock();
        while *inferred < frames * streams.len() {
            assert!(!out.changed.wait_for(&mut inferred, PATIENCE).timed_out(), "frames are lost");
        }
    });
    (frames * streams.len()) as f64 / start.elapsed().as_secs_f64()
}

/// Frames a second of the bare loop.
fn bare(session: &Bare, callers: usize, film: &Film, frames: usize) -> f64 {
    const SIZE: u32 = 640;
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..callers {
            scope.spawn(|| {
                let format = FrameFormat {
                    pixel: PixelFormat::I420,
                    width: film.info.width(),
                    height: film.info.height(),
                    colorimetry: Colorimetry { matrix: Matrix::Bt601, range: Range::Limited },
                    chroma: ChromaSite { horizontal_cosited: true, vertical_cosited: false },
                };
                let mut converter = Converter::new(format, (SIZE, SIZE), InputStyle::ULTRALYTICS);
                let mut margin = Margin::default();
                let shape = [1, 3, SIZE as usize, SIZE as usize];
                let mut input = Tensor::from_array((shape, vec![0.0; shape.iter().product()])).unwrap();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= frames {
                        break;
                    }
                    let buffer = &film.frames[number % film.frames.len()];
                    let frame =
                        gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, &film.info).unwrap();
                    let planes = [0, 1, 2].map(|plane| Plane {
                        data: frame.plane_data(plane).unwrap(),
                        row_stride: frame.plane_stride()[plane as usize] as usize,
                    });
                    let values = TensorMut::F32(input.extract_tensor_mut().1);
                    converter.convert(&planes, FrameTensor { values, margin: &mut margin }).unwrap();
                    session.run(&input, |values| assert!(values[0].is_finite())).unwrap();
                }
            });
        }
    });
    frames as f64 / start.elapsed().as_secs_f64()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<_> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Seconds of processor time of the whole process, and how often its threads had to wait or were interrupted.
fn usage() -> [f64; 3] {
    // SAFETY: all zeros is a value of this plain struct, which is ours to be written to.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    [seconds(usage.ru_utime) + seconds(usage.ru_stime), usage.ru_nvcsw as f64, usage.ru_nivcsw as f64]
}

/// Runs both in turn and prints what they reach. Who begins alternates, since speed drifts.
fn compare(pairs: usize, frames: usize, names: [&str; 2], sides: [&dyn Fn() -> f64; 2]) {
    println!("pair   {:>10}   {:>10}   ratio   (frames/s of all streams together)", names[0], names[1]);
    let (mut rates, mut costs) = (Vec::new(), [Vec::new(), Vec::new()]);
    for pair in 1..=pairs {
        let mut figures = [0.0; 2];
        for side in if pair % 2 == 0 { [0, 1] } else { [1, 0] } {
            let before = usage();
            figures[side] = sides[side]();
            let after = usage();
            costs[side].push([0, 1, 2].map(|at| (after[at] - before[at]) / frames as f64));
        }
        let [first, second] = figures;
        println!("{pair:4}   {first:10.2}   {second:10.2}   {:5.3}", first / second);
        rates.push(figures);
    }
    for (name, costs) in names.iter().zip(&costs) {
        let [processor, waits, interrupts] = [0, 1, 2].map(|at| median(costs.iter().map(|cost| cost[at])));
        println!(
            "{name}: processor {:.1} ms a frame, {waits:.0} waits and {interrupts:.0} interruptions of a thread",
            processor * 1000.0
        );
    }
    println!("ratio {:.3}", median(rates.iter().map(|[first, second]| first / second)));
}

fn main() {
    let mut arguments = env::args().skip(1).filter(|argument| argument != "--bench");
    let mut number =
        |default: usize| arguments.next().map_or(default, |argument| argument.parse().expect("a number"));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (streams, pairs, frames, threads) = (number(8), number(7), number(12), number(cores));
    let hint = arguments.next().unwrap_or_else(|| "auto".into());
    // SAFETY: before any other thread is started.
    unsafe {
        if env::var_os("ORT_DYLIB_PATH").is_none() {
            env::set_var("ORT_DYLIB_PATH", asset("lib/libonnxruntime.so.1"));
        }
        // The bare side loads the model itself too.
        env::set_var("YOLODETECT_MODEL_CACHE", "off");
    }
    gst::init().unwrap();
    gstyolodetect::plugin_register_static().unwrap();
    let film = Film::decode(60);
    let total = streams * frames;
    let out = Arc::default();
    // All are there before the first is started, as in a pipeline: performance-hint=auto looks for others.
    let elements: Vec<_> = (0..streams).map(|_| Stream::new(threads, &hint, &out)).collect();
    elements.iter().for_each(|stream| stream.start(&film));
    let engine = elements[0].element.property::<gst::Structure>("stats").get::<gst::Structure>("engine");
    let callers = engine.unwrap().get::<u32>("callers").unwrap() as usize;
    let each = threads + 1 - callers;
    let options = Options { threads: each, ..Options::default() };
    let session =
        Bare::open(runtime::environment(None).unwrap(), &asset("models/yolo12n.onnx"), &options).unwrap();
    println!("{streams} streams, {frames} frames each, {callers} callers, {each} threads for a run");
    bare(&session, callers, &film, total / 4);
    ours(&elements, &film, &out, frames / 4);
    compare(
        pairs,
        total,
        ["yolodetect", "bare loop"],
        [&|| ours(&elements, &film, &out, frames), &|| bare(&session, callers, &film, total)],
    );
}
