//! What a frame costs in the element besides inference and preprocessing: an engine that does nothing, a model's input so small that
//! there is next to nothing to preprocess, frames of 640×640, everything on one core.
//!
//! ```sh
//! cargo bench --bench element -- [FRAMES [ROUNDS]]
//! ```
//! Prints frames/s (median of the rounds) for batches of one and of eight and frames without and with detections, then the
//! preprocessing of such a frame for a model of 640×640, which comes on top.

use std::env;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gst::prelude::*;
use gstyolodetect::decode::{Head, Layout, ModelMetadata, OutputRef, OutputShape};
use gstyolodetect::engine::active::ActiveDevice;
use gstyolodetect::engine::device::Device;
use gstyolodetect::engine::plan::Hint;
use gstyolodetect::engine::registry::{self, Wanted};
use gstyolodetect::engine::{BatchSize, Engine, EngineError, ModelSpec, Output};
use gstyolodetect::preprocess::convert::Converter;
use gstyolodetect::preprocess::{
    ChromaSite, Colorimetry, FrameFormat, Matrix, PixelFormat, Plane, Range as Levels,
};
use gstyolodetect::tensor::{BatchTensor, Element, FrameExtent};
use parking_lot::{Condvar, Mutex};

const PATIENCE: Duration = Duration::from_secs(120);
/// Pixels of a frame each way.
const SIDE: u32 = 640;
/// And of the model's input, of which there shall be little.
const INPUT_SIDE: u32 = 32;
/// Most detections of the engine below.
const DETECTIONS: usize = 20;
/// Batches of one that are compared with batches of so many.
const BATCH: usize = 8;

/// Gives the same detections for every frame, at once.
struct Nothing {
    spec: ModelSpec,
    /// Of a full batch.
    output: Vec<f32>,
}

impl Nothing {
    fn new(model: &std::path::Path, detections: usize) -> Self {
        let output = OutputShape { name: "output".into(), dims: vec![1, DETECTIONS, 6], float: true };
        let metadata = ModelMetadata::default();
        let side = INPUT_SIDE as usize;
        let layout = Layout::find(Some(Head::End2End), &metadata, (side, side), &[output]).unwrap();
        let row = |index| {
            let confidence = if index < detections { 0.9 } else { 0.0 };
            [4.0, 4.0, 20.0, 20.0, confidence, (index % 80) as f32]
        };
        let frame: Vec<f32> = (0..DETECTIONS).flat_map(row).collect();
        let spec = ModelSpec {
            file: model.into(),
            input_size: (INPUT_SIDE, INPUT_SIDE),
            batch: BatchSize::Any,
            input: FrameExtent { element: Element::F32, len: 3 * side * side },
            output: FrameExtent { element: Element::F32, len: layout.frame_len() },
            layout,
            labels: None,
            callers: 1,
            device: ActiveDevice::new("none"),
            warm_run: Duration::ZERO,
            loaded_bytes: 0,
            cached: false,
        };
        Self { spec, output: frame.repeat(BATCH) }
    }
}

impl Engine for Nothing {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn run(
        &self,
        _: &mut BatchTensor,
        frames: Range<usize>,
        read: &mut dyn FnMut(Output<'_>),
    ) -> Result<(), EngineError> {
        let len = self.spec.output.len;
        read(Output { values: OutputRef::F32(&self.output[..frames.len() * len]), frame_len: len });
        Ok(())
    }
}

/// Frames/s of each round.
fn frames_per_second(batch: u32, detections: usize, frames: usize, rounds: usize) -> Vec<f64> {
    // Any file will do, but every engine needs another one.
    let model = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&model, format!("{batch} {detections}")).unwrap();
    let wanted = Wanted {
        model: model.path().into(),
        library: None,
        head: None,
        device: Device::Auto,
        cache: None,
        gpu: Default::default(),
        fallback: None,
        gpu_budget: 0,
        element: String::new(),
        threads: 1,
        hint: Hint::Latency,
        detectors: 1,
        max_batch: batch as usize,
        keep_alive: Duration::ZERO,
    };
    let _lease = registry::lend(&wanted, Arc::new(Nothing::new(model.path(), detections))).unwrap();
    let element = gst::ElementFactory::make("yolodetect")
        .property("model-file", model.path().display().to_string())
        .property("threads", 1u32)
        .property_from_str("performance-hint", "latency")
        .property("max-batch", batch)
        .property_from_str("overload", "block")
        .build()
        .unwrap();
    let inferred = Arc::new((Mutex::new(0), Condvar::new()));
    let counter = inferred.clone();
    let sink = gst::Pad::builder(gst::PadDirection::Sink)
        .chain_function(move |_, _, _| {
            *counter.0.lock() += 1;
            counter.1.notify_one();
            Ok(gst::FlowSuccess::Ok)
        })
        .build();
    let src = gst::Pad::builder(gst::PadDirection::Src).build();
    src.link(&element.static_pad("sink").unwrap()).unwrap();
    element.static_pad("src").unwrap().link(&sink).unwrap();
    sink.set_active(true).unwrap();
    element.set_state(gst::State::Playing).unwrap();
    src.set_active(true).unwrap();
    let info = gst_video::VideoInfo::builder(gst_video::VideoFormat::Rgb, SIDE, SIDE).build().unwrap();
    src.push_event(gst::event::StreamStart::new("bench"));
    src.push_event(gst::event::Caps::new(&info.to_caps().unwrap()));
    src.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new()));
    let frame = gst::Buffer::with_size(info.size()).unwrap();

    let round = |count: usize| {
        *inferred.0.lock() = 0;
        let start = Instant::now();
        for _ in 0..count {
            // A header of its own; the pixels are shared.
            src.push(frame.copy()).unwrap();
        }
        let mut seen = inferred.0.lock();
        while *seen < count {
            assert!(!inferred.1.wait_for(&mut seen, PATIENCE).timed_out(), "frames are lost");
        }
        count as f64 / start.elapsed().as_secs_f64()
    };
    round(frames / 4);
    let rates = (0..rounds).map(|_| round(frames)).collect();
    let stats = element.property::<gst::Structure>("stats");
    let counted = stats.get::<u64>("detections").unwrap() / stats.get::<u64>("inferred").unwrap();
    assert_eq!(counted, detections as u64);
    element.set_state(gst::State::Null).unwrap();
    rates
}

/// Microseconds that a frame takes to become a model's input of the same size.
fn preprocessing(pixel: PixelFormat, rounds: usize) -> Vec<f64> {
    let format = FrameFormat {
        pixel,
        width: SIDE,
        height: SIDE,
        colorimetry: Colorimetry { matrix: Matrix::Bt601, range: Levels::Limited },
        chroma: ChromaSite { horizontal_cosited: true, vertical_cosited: false },
    };
    let layout = Nothing::new(std::path::Path::new(""), 0).spec.layout;
    let mut converter = Converter::new(format, (SIDE, SIDE), layout.input_style());
    let extent = FrameExtent { element: Element::F32, len: 3 * (SIDE * SIDE) as usize };
    let mut batch = BatchTensor::new(1, extent).unwrap();
    let planes: Vec<Vec<u8>> = (0..pixel.planes())
        .map(|plane| vec![100; format.plane_bytes(plane, format.row_bytes(plane))])
        .collect();
    let planes: Vec<_> = planes
        .iter()
        .enumerate()
        .map(|(plane, data)| Plane { data, row_stride: format.row_bytes(plane) })
        .collect();
    let mut time = || {
        let start = Instant::now();
        converter.convert(&planes, batch.slot(0).tensor()).unwrap();
        start.elapsed().as_secs_f64() * 1e6
    };
    time();
    (0..rounds).map(|_| time()).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Every thread from now on runs on the first core that this process may use.
fn stay_on_one_core() {
    // SAFETY: both calls are given a set of their own and its size.
    unsafe {
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        assert_eq!(libc::sched_getaffinity(0, size_of_val(&allowed), &mut allowed), 0);
        let first = (0..libc::CPU_SETSIZE as usize).find(|&core| libc::CPU_ISSET(core, &allowed)).unwrap();
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(first, &mut one);
        assert_eq!(libc::sched_setaffinity(0, size_of_val(&one), &one), 0);
    }
}

fn main() {
    let mut arguments = env::args().skip(1).filter(|argument| argument != "--bench");
    let mut number =
        |default: usize| arguments.next().map_or(default, |argument| argument.parse().expect("a number"));
    let (frames, rounds) = (number(20_000), number(7));
    stay_on_one_core();
    if env::var_os("ORT_DYLIB_PATH").is_none() {
        let library = concat!(env!("CARGO_MANIFEST_DIR"), "/target/assets/lib/libonnxruntime.so.1");
        // SAFETY: before any other thread is started.
        unsafe { env::set_var("ORT_DYLIB_PATH", library) };
    }
    gst::init().unwrap();
    gstyolodetect::plugin_register_static().unwrap();
    println!("{SIDE}x{SIDE} RGB, one core, {}, {rounds} rounds of {frames} frames", gst::version_string());
    println!("batch   detections   frames/s   µs a frame");
    for batch in [1, BATCH as u32] {
        for detections in [0, 5, DETECTIONS] {
            let rate = median(frames_per_second(batch, detections, frames, rounds));
            println!("{batch:5}   {detections:10}   {rate:8.0}   {:10.1}", 1e6 / rate);
        }
    }
    for (name, pixel) in [("RGB", PixelFormat::Rgb), ("NV12", PixelFormat::Nv12)] {
        println!("preprocessing {name} to 640x640 f32: {:.0} µs", median(preprocessing(pixel, 200)));
    }
}
