//! What there is to measure on a GPU, one part of it in each call: memory, budgets and errors belong to a whole process. `tests/gpu.sh`
//! calls all parts and makes one table of what they print.
//!
//! ```sh
//! cargo bench --bench gpu -- PART KEY=VALUE...
//! ```
//! A row is `row`, what was measured, the figure, the goal, and `ok`, `FAILED`, `rehearsed` or `not measured`, separated by tabs. Other lines are
//! figures for the caller. The keys are those of [`Arguments`]. Frames are raw I420 pictures of one size in one file, since a
//! machine with a GPU may have no decoder. ONNX Runtime is the one that `ORT_DYLIB_PATH` names.

#[path = "gpu/bare.rs"]
mod bare;
#[path = "gpu/boxes.rs"]
mod boxes;
#[path = "gpu/budgets.rs"]
mod budgets;
#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/common/foreign.rs"]
mod foreign;
#[path = "gpu/memory.rs"]
mod memory;
#[path = "gpu/on_card.rs"]
mod on_card;
#[path = "gpu/streams.rs"]
mod streams;

use std::collections::HashMap;
use std::env;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bare::BareLoop;
use boxes::Difference;
use common::Out;
use gst::prelude::*;
use gstyolodetect::engine::device::Device;
use gstyolodetect::engine::gpu::driver;
use gstyolodetect::engine::runtime;
use memory::Watcher;
use streams::{Film, Streams, stop};

/// Streams that share the engine wherever there are several.
const STREAMS: usize = 8;
const MB: f64 = 1e6;

struct Arguments(HashMap<String, String>);

impl Arguments {
    fn get<T: FromStr>(&self, key: &str) -> Option<T> {
        let text = self.0.get(key)?;
        Some(text.parse().unwrap_or_else(|_| stop(format!("{key}={text} cannot be read"))))
    }

    fn need<T: FromStr>(&self, key: &str) -> T {
        self.get(key).unwrap_or_else(|| stop(format!("{key}=… is missing")))
    }

    /// As `yolodetect` takes it.
    fn device(&self) -> String {
        self.need("device")
    }

    /// Its number, as CUDA counts.
    fn gpu(&self) -> Option<u32> {
        Device::parse(&self.device()).unwrap_or_else(|error| stop(error)).gpu()
    }

    fn model(&self) -> String {
        self.need("model")
    }

    /// Whether speed and memory are judged: on a processor they only show that all of this runs.
    fn rehearsal(&self) -> bool {
        self.device() == "cpu"
    }

    fn film(&self) -> Film {
        let size: String = self.need("size");
        let (width, height) = size.split_once('x').unwrap_or_else(|| stop("size=WIDTHxHEIGHT"));
        let side = |text: &str| text.parse().unwrap_or_else(|_| stop("size=WIDTHxHEIGHT"));
        Film::read(&self.need::<PathBuf>("frames"), side(width), side(height), self.get("take"))
    }

    /// Properties of an element on the device.
    fn properties(&self, batch: usize) -> String {
        format!("device={} model-file={} max-batch={batch} {}", self.device(), self.model(), self.extra())
    }

    /// Further properties.
    fn extra(&self) -> String {
        self.get("extra").unwrap_or_default()
    }
}

fn row(what: &str, figure: &str, goal: &str, verdict: &str) {
    println!("row\t{what}\t{figure}\t{goal}\t{verdict}");
}

fn judge(what: &str, figure: &str, goal: &str, reached: bool) {
    row(what, figure, goal, if reached { "ok" } else { "FAILED" });
}

/// What only a GPU can reach.
fn judge_speed(arguments: &Arguments, what: &str, figure: &str, goal: &str, reached: bool) {
    if arguments.rehearsal() {
        row(what, figure, goal, "rehearsed")
    } else {
        judge(what, figure, goal, reached)
    }
}

/// Which GPU it is that is measured, for the table's head.
fn card(arguments: &Arguments) {
    let name = match arguments.gpu().map(driver::describe) {
        None => "no GPU".into(),
        Some(Err(error)) => stop(error),
        Some(Ok(driver::Description { name, compute_capability: (major, minor), bus_id })) => {
            format!("{name}, compute capability {major}.{minor}, at {bus_id}")
        }
    };
    let driver = driver::driver_version().ok().filter(|_| arguments.gpu().is_some());
    let driver =
        driver.map(|version| format!(", driver for CUDA {}.{}", version / 1000, version % 1000 / 10));
    println!("card\t{name}{}", driver.unwrap_or_default());
}

/// The same boxes as on the CPU, from batches as from single frames, and where they were really found.
fn parity(arguments: &Arguments) {
    const BATCH: usize = 8;
    let film = arguments.film();
    let on = |device: &str, model: &str, properties: &str| {
        let properties = format!("device={device} model-file={model} {properties} {}", arguments.extra());
        film.detect(&properties).unwrap_or_else(|error| stop(error))
    };
    let check = |what: &str, model: &str, expected: &[Out], properties: &str, confidence: f64| {
        // Frames wait for company, and the last ones for nobody.
        let properties = format!("max-batch={BATCH} batch-delay=1000000000 {properties}");
        let found = on(&arguments.device(), model, &properties);
        let difference = Difference::of(expected, &found);
        let largest = found.iter().map(|frame| frame.batch as usize).max().unwrap_or_default();
        let wanted = BATCH.min(film.len());
        judge(
            &format!("boxes beside the CPU's, {what}"),
            &format!("{difference}, in batches of up to {largest}"),
            &format!("IoU ≥ 0.98, confidence within {confidence}, from batches of {wanted}"),
            difference.is_within(0.98, confidence) && largest == wanted,
        );
    };
    let (model, single) = (arguments.model(), "max-batch=1");
    let expected = on("cpu", &model, single);
    check("f32", &model, &expected, "", 0.01);
    check("f32 without TF32 (cuda-tf32=false)", &model, &expected, "cuda-tf32=false", 0.01);
    let f16 = arguments.need::<String>("f16");
    check("f16", &f16, &on("cpu", &f16, single), "", 0.02);
    let streams = Streams::start(1, &arguments.properties(8)).unwrap_or_else(|error| stop(error));
    let active: String = streams.detector(0).property("active-device");
    let numbered = |device: &str| match device {
        "cuda" | "tensorrt" => format!("{device}:0"),
        device => device.to_string(),
    };
    let expected = numbered(&arguments.device());
    judge("active-device", &active, &expected, active == expected);
}

/// Eight streams for long: one engine, every frame, and memory that stays.
fn steady(arguments: &Arguments) {
    let (film, frames) = (arguments.film(), arguments.need::<usize>("frames-in-all"));
    let watcher = Watcher::new(arguments.gpu());
    let streams = Streams::start(STREAMS, &arguments.properties(8)).unwrap_or_else(|error| stop(error));
    let each = frames.div_ceil(STREAMS);
    // Pools, heap and arena have reached their size.
    let warm = (each / 10).max(2);
    streams.feed(&film, warm).unwrap_or_else(|error| stop(error));
    let resident = memory::resident(&streams);
    let (before, begun) = (watcher.now(), watcher.most());
    streams.feed(&film, each - warm).unwrap_or_else(|error| stop(error));
    let most = watcher.most();
    let resident = (memory::resident(&streams) - resident) / MB;
    let engine = streams.engine();
    let sharing: u32 = engine.get("streams").unwrap();
    judge("streams of one engine", &sharing.to_string(), "8", sharing as usize == STREAMS);
    let (inferred, out) = (streams.inferred(), each * STREAMS);
    judge(
        "frames that were inferred",
        &format!("{inferred} of {out}"),
        "all",
        inferred == out && streams.passed() == out,
    );
    let (own, grown) = ("VRAM of this process, max-batch 8", format!("VRAM grows over {out} frames"));
    match (begun, before, most) {
        (Some(begun), Some(before), Some(most)) => {
            let all = begun.or(&most);
            let figure = format!("{:.0} MB at most ({})", all.bytes() / MB, all.source());
            judge(own, &figure, "< 800 MB", all.bytes() < 800.0 * MB);
            // NVML counts in steps of 2 MB.
            let more = most.over(&before);
            judge(&grown, &format!("{:.1} MB ({})", more / MB, most.source()), "≤ 4 MB", more <= 4.0 * MB);
        }
        _ => {
            row(own, "no figures of a GPU", "< 800 MB", "not measured");
            row(&grown, "no figures of a GPU", "≤ 4 MB", "not measured");
        }
    }
    let what = format!("resident set grows over {out} frames");
    judge_speed(arguments, &what, &format!("{resident:.1} MB"), "≤ 16 MB", resident <= 16.0);
}

/// Frames a second at one batch, beside the bare loop, in turns.
fn throughput(arguments: &Arguments) {
    let (film, batch) = (arguments.film(), arguments.need::<usize>("batch"));
    let (seconds, pairs) = (arguments.need::<f64>("seconds"), arguments.get("pairs").unwrap_or(3));
    // Full batches are what is compared: a frame waits for company.
    let properties = format!("{} batch-delay=20000000", arguments.properties(batch));
    let streams = Streams::start(STREAMS, &properties).unwrap_or_else(|error| stop(error));
    let environment = runtime::environment(None).unwrap_or_else(|error| stop(error.message));
    let mut bare = BareLoop::open(environment, &arguments.model(), &arguments.device(), batch)
        .unwrap_or_else(|error| stop(format!("the bare loop: {error}")));
    // Whole batches, so that the last one waits for nobody.
    let step = (1..=batch).find(|each| (each * STREAMS).is_multiple_of(batch)).unwrap_or(batch);
    // Warm, then as many frames as take about as long as they shall.
    let rate = |count| streams.rate(&film, count).unwrap_or_else(|error| stop(error));
    let mut each = step;
    rate(each);
    let each = loop {
        let whole = rate(each) * seconds / STREAMS as f64;
        if each as f64 >= whole / 8.0 {
            break (whole.ceil() as usize).next_multiple_of(step);
        }
        each *= 2;
    };
    let mut bare_rate =
        |count| bare.rate(count).unwrap_or_else(|error| stop(format!("the bare loop: {error}")));
    bare_rate(1);
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let (batches, frames) = streams.runs();
    for pair in 0..pairs {
        let runs = each * STREAMS / batch;
        let (a, b) = if pair % 2 == 0 {
            let a = rate(each);
            (a, bare_rate(runs))
        } else {
            let b = bare_rate(runs);
            (rate(each), b)
        };
        ours.push(a);
        theirs.push(b);
        ratios.push(a / b);
    }
    let fill = (streams.runs().1 - frames) as f64 / (streams.runs().0 - batches).max(1) as f64;
    let [ours, theirs, ratio] = [ours, theirs, ratios].map(median);
    let what = format!("throughput at batch {batch}");
    let goal = "≥ 0.95 of the bare loop, which copies and runs in turn, where the pipeline copies one batch while it runs another";
    let figure =
        format!("{ours:.1} frames/s, {fill:.2} a batch; the bare loop {theirs:.1}; ratio {ratio:.3}");
    if fill < 0.95 * batch as f64 {
        return row(&what, &format!("{figure}; batches were not full"), goal, "not measured");
    }
    println!("rate\t{batch}\t{ours}");
    match bare.not_pinned() {
        Some(why) if !arguments.rehearsal() => {
            row(&what, &format!("{figure}; it has no pinned memory: {why}"), goal, "not measured")
        }
        _ => judge_speed(arguments, &what, &figure, goal, ratio >= 0.95),
    }
}

/// A GPU that no machine has.
fn errors(arguments: &Arguments) {
    // CUDA counts from 0; 63 is the last that the property takes. A rehearsal has an ONNX Runtime without CUDA, which is seen first.
    let absent = if arguments.rehearsal() {
        "device=cuda:63 needs an ONNX Runtime with CUDA"
    } else {
        "device=cuda:63 is not there: CUDA sees"
    };
    let properties =
        |device: &str| format!("device={device} model-file={} {}", arguments.model(), arguments.extra());
    for (device, words) in [("cuda:63", absent), ("cuda:99", "device=cuda:99 names no GPU")] {
        let (what, goal) = (format!("device={device}"), format!("an element error: {words} …"));
        match Streams::start(1, &properties(device)) {
            Ok(_) => judge(&what, "it plays", &goal, false),
            Err(error) => judge(&what, &error.message, &goal, error.message.contains(words)),
        }
    }
    let (what, goal) =
        ("device=cuda:63 device-fallback=on", format!("on the CPU, with a warning: {absent} …"));
    let started = Streams::start(1, &format!("{} device-fallback=on", properties("cuda:63")));
    match started.and_then(|streams| streams.feed(&arguments.film(), 1).map(|()| streams)) {
        Ok(streams) => {
            let device: String = streams.detector(0).property("active-device");
            let warnings = streams.warnings();
            let figure =
                format!("on {device}, {} frame inferred; {}", streams.inferred(), warnings.join("; "));
            let told = warnings.iter().any(|warning| warning.contains(absent));
            judge(what, &figure, &goal, device == "cpu" && streams.inferred() == 1 && told);
        }
        Err(error) => judge(what, &error.message, &goal, false),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let mut words = env::args().skip(1).filter(|word| word != "--bench");
    let part = words.next().unwrap_or_else(|| stop("which part? tests/gpu.sh calls all of them"));
    let pairs = words.map(|word| match word.split_once('=') {
        Some((key, value)) => (key.to_string(), value.to_string()),
        None => stop(format!("{word} is no KEY=VALUE")),
    });
    let arguments = Arguments(pairs.collect());
    // SAFETY: before any other thread is started. The libraries are those of the caller's environment.
    unsafe {
        common::keep_environment();
        // For the part that has such frames; no other is changed by it.
        env::set_var(on_card::VARIABLE, "1");
    }
    gst::init().unwrap();
    gstyolodetect::plugin_register_static().unwrap();
    match part.as_str() {
        "card" => card(&arguments),
        "parity" => parity(&arguments),
        "steady" => steady(&arguments),
        "throughput" => throughput(&arguments),
        "need" => budgets::need(&arguments),
        "budget" => budgets::budget(&arguments),
        "too-small" => budgets::too_small(&arguments),
        "on-card" => on_card::on_card(&arguments),
        "errors" => errors(&arguments),
        part => stop(format!("there is no part {part}")),
    }
    // Whoever reads the rows knows that none is missing.
    println!("end");
}

/// Long enough for a card that is shared, short enough to tell a hang.
const PATIENCE: Duration = Duration::from_secs(120);
