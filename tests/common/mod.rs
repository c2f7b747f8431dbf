//! What the integration tests share: where the assets are, how a pipeline is run, how a test says that it
//! was skipped.
//!
//! Each test file compiles its own copy and uses a part of it.
#![allow(dead_code)]

use std::env;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Once, mpsc};
use std::time::{Duration, Instant};

use gst::prelude::*;
use gst_app::{AppSink, AppSrc};
use gst_video::VideoRegionOfInterestMeta;
use gstyolodetect::memory::pressure::{Level, Levels, Thresholds};
use gstyolodetect::memory::sample::{Sample, Sampler, SystemSampler};
use parking_lot::Mutex;

/// Long enough for a loaded machine, short enough to tell a hang.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Set in a process that [`another_process`] started.
const CHILD: &str = "YOLODETECT_TEST_CHILD";

/// Has a process keep no optimised models: what a start takes shall not depend on what ran before.
pub const NO_CACHE: (&str, &str) = ("YOLODETECT_MODEL_CACHE", "off");

/// Has [`init`] leave the environment as it is, for a program whose caller chooses the libraries.
///
/// # Safety
/// No other thread is there yet.
pub unsafe fn keep_environment() {
    // SAFETY: see above.
    unsafe { env::set_var(CHILD, "1") }
}

/// GStreamer with this plugin, whatever `GST_PLUGIN_PATH` says, and the fetched ONNX Runtime.
pub fn init() {
    static INIT: Once = Once::new();
    INIT.call_once(|| {
        if !is_child() {
            // SAFETY: before any other thread of the test reads the environment: every test begins here.
            unsafe {
                env::set_var("ORT_DYLIB_PATH", library());
                env::set_var(NO_CACHE.0, NO_CACHE.1);
            }
        }
        gst::init().unwrap();
        gstyolodetect::plugin_register_static().unwrap();
    });
}

/// A file that `tests/setup.sh` fetched or made.
pub fn asset(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/assets").join(name);
    assert!(path.exists(), "{} is missing: run tests/setup.sh", path.display());
    path
}

pub fn library() -> PathBuf {
    asset("lib/libonnxruntime.so.1")
}

pub fn yolo12n() -> String {
    asset("models/yolo12n.onnx").display().to_string()
}

pub fn tiny(name: &str) -> String {
    asset(&format!("models/tiny/{name}.onnx")).display().to_string()
}

/// A copy of a tiny model that differs in its description alone: elements that use it share an engine with
/// nobody but each other, whatever other tests of the process do. `owner` is a name that no other test has.
pub fn own_tiny(name: &str, owner: &str) -> String {
    const DOC_STRING: u8 = 6 << 3 | 2;
    let mut model = std::fs::read(tiny(name)).unwrap();
    model.extend([DOC_STRING, owner.len().try_into().unwrap()]);
    model.extend(owner.as_bytes());
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{owner}-{name}.onnx"));
    std::fs::write(&path, model).unwrap();
    path.display().to_string()
}

/// A folder with the plugin as another process loads it, in `scratch`. Cargo builds the library beside the tests;
/// GStreamer would scan all else that lies there.
pub fn plugin_folder(scratch: &Path) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let library = test.with_file_name("libgstyolodetect.so");
    assert!(library.exists(), "{} is missing", library.display());
    let folder = scratch.join("plugins");
    std::fs::create_dir(&folder).unwrap();
    std::os::unix::fs::symlink(&library, folder.join("libgstyolodetect.so")).unwrap();
    folder
}

/// A file of the folder that holds further models and results; `None`, said as a skip of `test`, without it.
pub fn shared(test: &str, name: &str) -> Option<PathBuf> {
    let folder = env::var_os("YOLODETECT_SHARED")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"));
    let path = folder.join(name);
    if path.exists() {
        return Some(path);
    }
    skip(test, &format!("there is no {name} (YOLODETECT_SHARED names its folder)"));
    None
}

/// Says that a test, or a part of it, cannot run here.
pub fn skip(test: &str, reason: &str) {
    println!("SKIPPED: {test}: {reason}");
    if let Some(log) = env::var_os("YOLODETECT_SKIP_LOG") {
        let mut log = OpenOptions::new().append(true).create(true).open(log).unwrap();
        writeln!(log, "{test}: {reason}").unwrap();
    }
}

/// A pipeline from gst-launch-1.0's notation; it is stopped when dropped.
pub struct Pipeline(pub gst::Pipeline);

impl Pipeline {
    pub fn new(description: &str) -> Self {
        init();
        let element =
            gst::parse::launch(description).unwrap_or_else(|error| panic!("{description}: {error}"));
        Self(element.downcast::<gst::Pipeline>().unwrap_or_else(|element| {
            let pipeline = gst::Pipeline::new();
            pipeline.add(&element).unwrap();
            pipeline
        }))
    }

    pub fn by_name(&self, name: &str) -> gst::Element {
        self.0.by_name(name).unwrap_or_else(|| panic!("no element {name}"))
    }

    pub fn bus(&self) -> gst::Bus {
        self.0.bus().unwrap()
    }

    /// Plays to the end; the error that a pipeline ends with is returned as text with its debug part.
    pub fn run(&self) -> Result<(), String> {
        let started = self.0.set_state(gst::State::Playing);
        let types = [gst::MessageType::Eos, gst::MessageType::Error];
        let message = self.bus().timed_pop_filtered(gst::ClockTime::try_from(PATIENCE).unwrap(), &types);
        match message.as_ref().map(|message| message.view()) {
            Some(gst::MessageView::Eos(_)) => Ok(()),
            Some(gst::MessageView::Error(error)) => {
                Err(format!("{} [{}]", error.error(), error.debug().unwrap_or_default()))
            }
            _ => panic!("the pipeline hangs (it started with {started:?})"),
        }
    }

    /// The next message of a kind.
    pub fn wait(&self, kind: gst::MessageType) -> gst::Message {
        let patience = gst::ClockTime::try_from(PATIENCE).unwrap();
        self.bus().timed_pop_filtered(patience, &[kind]).unwrap_or_else(|| panic!("no {kind:?} message"))
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        let _ = self.0.set_state(gst::State::Null);
    }
}

/// Fails where something hangs, instead of hanging with it.
pub fn within_patience(what: &str, work: impl FnOnce() + Send + 'static) {
    within(PATIENCE, what, work);
}

/// The same for what takes longer.
pub fn within(patience: Duration, what: &str, work: impl FnOnce() + Send + 'static) {
    let (done, finished) = mpsc::channel();
    std::thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    match finished.recv_timeout(patience) {
        Ok(()) => (),
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{what} hangs"),
        Err(mpsc::RecvTimeoutError::Disconnected) => panic!("{what} panicked"),
    }
}

/// Held by a test of which others that ran beside it would take the cores.
pub fn alone() -> parking_lot::MutexGuard<'static, ()> {
    static ALONE: parking_lot::Mutex<()> = parking_lot::Mutex::new(());
    init();
    ALONE.lock()
}

/// Runs this test executable's `test` alone in a process of its own, for what can happen only once per process;
/// there, [`is_child`] holds and ONNX Runtime is looked for as `library` (`ORT_DYLIB_PATH`) says.
pub fn another_process(test: &str, library: Option<&Path>, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args([test, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .envs([NO_CACHE])
        .envs(variables.iter().copied());
    match library {
        Some(library) => command.env("ORT_DYLIB_PATH", library),
        None => command.env_remove("ORT_DYLIB_PATH"),
    };
    command.output().unwrap()
}

/// Runs `test` in a process of its own, for what belongs to the whole process; true in that one, where the test goes on.
pub fn in_own_process(test: &str) -> bool {
    in_own_process_with(test, &[])
}

/// The same with environment variables.
pub fn in_own_process_with(test: &str, variables: &[(&str, &str)]) -> bool {
    if is_child() {
        return true;
    }
    let output = another_process(test, Some(&library()), variables);
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
    // What it printed is what this test prints.
    print!("{text}");
    false
}

pub fn is_child() -> bool {
    env::var_os(CHILD).is_some()
}

/// Whether nothing but a test's own doing puts memory under pressure; else says that `test` is skipped.
pub fn memory_is_calm(test: &str) -> bool {
    let mut sample = Sample::default();
    SystemSampler::default().sample(&mut sample);
    sample.resident = 0;
    let mut levels = Levels::default();
    levels.observe(&sample, &Thresholds::default(), Instant::now());
    let calm = levels.level() == Level::Nominal;
    if !calm {
        skip(test, &format!("memory is short on this machine: {sample:?}"));
    }
    calm
}

/// A picture of `target/assets/pictures`, in RGB.
pub fn picture(name: &str) -> gst::Sample {
    let file = asset(&format!("pictures/{name}.png"));
    let pipeline = Pipeline::new(&format!(
        "filesrc location={} ! pngdec ! videoconvert ! video/x-raw,format=RGB ! appsink name=sink sync=false wait-on-eos=false",
        file.display()
    ));
    pipeline.run().unwrap();
    let sink = pipeline.by_name("sink").downcast::<AppSink>().unwrap();
    sink.pull_sample().unwrap()
}

/// The sample as GStreamer converts (and resizes) it to `caps`.
pub fn converted(sample: &gst::Sample, caps: &str) -> gst::Sample {
    init();
    let caps: gst::Caps = caps.parse().unwrap();
    let patience = gst::ClockTime::try_from(PATIENCE).unwrap();
    gst_video::convert_sample(sample, &caps, Some(patience)).unwrap_or_else(|error| panic!("{caps}: {error}"))
}

pub fn video_info(sample: &gst::Sample) -> gst_video::VideoInfo {
    gst_video::VideoInfo::from_caps(sample.caps().unwrap()).unwrap()
}

/// An RGB frame of one colour.
pub fn solid(width: u32, height: u32, color: [u8; 3]) -> gst::Sample {
    init();
    let info = gst_video::VideoInfo::builder(gst_video::VideoFormat::Rgb, width, height)
        .fps(gst::Fraction::new(25, 1))
        .build()
        .unwrap();
    let mut bytes = vec![0; info.size()];
    for row in bytes.chunks_mut(info.stride()[0] as usize) {
        row[..3 * width as usize].chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(&color));
    }
    gst::Sample::builder().caps(&info.to_caps().unwrap()).buffer(&gst::Buffer::from_mut_slice(bytes)).build()
}

/// One box, as a program without this crate reads it from a region of interest.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub label: String,
    pub class: i32,
    pub confidence: f64,
    /// Corners in pixels, not rounded.
    pub xyxy: [f64; 4],
}

impl Seen {
    pub fn iou(&self, other: &[f64; 4]) -> f64 {
        let area = |r: &[f64; 4]| (r[2] - r[0]) * (r[3] - r[1]);
        let [x1, y1, x2, y2] = &self.xyxy;
        let width = (x2.min(other[2]) - x1.max(other[0])).max(0.0);
        let height = (y2.min(other[3]) - y1.max(other[1])).max(0.0);
        width * height / (area(&self.xyxy) + area(other) - width * height)
    }
}

/// One frame that came out.
#[derive(Debug)]
pub struct Out {
    pub pts: Option<gst::ClockTime>,
    /// Of the frame meta.
    pub status: String,
    pub batch: u32,
    pub boxes: Vec<Seen>,
}

impl Out {
    /// Reads the metas of exactly one `yolodetect`.
    pub fn new(sample: &gst::Sample) -> Self {
        let info = video_info(sample);
        let buffer = sample.buffer().unwrap();
        let records = gstyolodetect::meta::frames(buffer);
        let [record] = &records[..] else { panic!("{} frame metas", records.len()) };
        let (width, height) = (f64::from(info.width()), f64::from(info.height()));
        let boxes = buffer
            .iter_meta::<VideoRegionOfInterestMeta>()
            .map(|region| {
                let fields = region.param("detection").expect("a structure named detection");
                let number = |name| fields.get::<f64>(name).unwrap();
                Seen {
                    label: region.roi_type().to_string(),
                    class: fields.get("label_id").unwrap(),
                    confidence: number("confidence"),
                    xyxy: [
                        number("x_min") * width,
                        number("y_min") * height,
                        number("x_max") * width,
                        number("y_max") * height,
                    ],
                }
            })
            .collect();
        Self { pts: buffer.pts(), status: record.status.nick().to_string(), batch: record.batch, boxes }
    }

    /// The one box that was found.
    pub fn only(&self) -> &Seen {
        let [found] = &self.boxes[..] else { panic!("{} boxes: {self:?}", self.boxes.len()) };
        found
    }
}

/// Frames pushed by hand through a `yolodetect` (named `detect`, with these properties and ROI metas).
pub struct Detect {
    pub pipeline: Pipeline,
    pub source: AppSrc,
    pub sink: AppSink,
    pushed: u64,
}

impl Detect {
    pub fn new(properties: &str) -> Self {
        Self::behind("identity", properties)
    }

    /// The frames go through another element first.
    pub fn behind(element: &str, properties: &str) -> Self {
        let pipeline = Pipeline::new(&format!(
            "appsrc name=source format=time ! {element} ! yolodetect name=detect roi-meta=on {properties} \
             ! appsink name=sink sync=false wait-on-eos=false"
        ));
        let source = pipeline.by_name("source").downcast().unwrap();
        let sink = pipeline.by_name("sink").downcast().unwrap();
        Self { pipeline, source, sink, pushed: 0 }
    }

    pub fn element(&self) -> gst::Element {
        self.pipeline.by_name("detect")
    }

    /// What `pts` the frame `number` is given.
    pub fn pts(number: u64) -> gst::ClockTime {
        number * 40 * gst::ClockTime::MSECOND
    }

    /// Sends a frame of any caps on its way.
    pub fn push(&mut self, sample: &gst::Sample) {
        let mut buffer = sample.buffer_owned().unwrap();
        buffer.make_mut().set_pts(Self::pts(self.pushed));
        self.pushed += 1;
        // Frames travel with their caps, which change only where they differ.
        let sample = gst::Sample::builder().caps(&sample.caps_owned().unwrap()).buffer(&buffer).build();
        self.source.push_sample(&sample).unwrap();
    }

    /// The next frame to come out.
    pub fn pull(&self) -> Out {
        let patience = gst::ClockTime::try_from(PATIENCE).unwrap();
        Out::new(&self.sink.try_pull_sample(patience).expect("no frame comes out"))
    }

    /// A frame in, the same frame out; for settings that change in between.
    pub fn step(&mut self, sample: &gst::Sample) -> Out {
        self.pipeline.0.set_state(gst::State::Playing).unwrap();
        self.push(sample);
        self.pull()
    }

    /// Ends the stream and gives what came out: every frame that went in, once and in order.
    pub fn finish(&self) -> Result<Vec<Out>, String> {
        self.source.end_of_stream().unwrap();
        self.pipeline.run()?;
        let mut out = Vec::new();
        while let Some(sample) = self.sink.try_pull_sample(gst::ClockTime::ZERO) {
            out.push(Out::new(&sample));
        }
        let expected: Vec<_> = (0..self.pushed).map(|number| Some(Self::pts(number))).collect();
        assert_eq!(out.iter().map(|frame| frame.pts).collect::<Vec<_>>(), expected, "frames out of order");
        Ok(out)
    }
}

/// All of `samples` through one `yolodetect`.
pub fn detect<'a>(
    properties: &str,
    samples: impl IntoIterator<Item = &'a gst::Sample>,
) -> Result<Vec<Out>, String> {
    let mut detect = Detect::new(properties);
    samples.into_iter().for_each(|sample| detect.push(sample));
    detect.finish()
}

/// What was posted on the way.
#[derive(Default)]
pub struct Posted {
    /// Batch and limit of each message of a split batch.
    pub reduced: Vec<(u32, u32)>,
    pub warnings: Vec<String>,
}

/// Notes what the pipeline posts from now on.
pub fn watch(pipeline: &Pipeline) -> Arc<Mutex<Posted>> {
    let posted = Arc::new(Mutex::new(Posted::default()));
    pipeline.bus().set_sync_handler({
        let posted = posted.clone();
        move |_, message| {
            if let Some(fields) = message.structure().filter(|s| s.name() == "yolodetect-batch-reduced") {
                assert!(fields.get::<String>("model").unwrap().ends_with(".onnx"));
                posted.lock().reduced.push((fields.get("batch").unwrap(), fields.get("limit").unwrap()));
            }
            if let gst::MessageView::Warning(warning) = message.view() {
                posted.lock().warnings.push(warning.error().to_string());
            }
            gst::BusSyncReply::Pass
        }
    });
    posted
}
