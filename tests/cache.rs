//! Optimised models that are kept on disk: who writes them, when they are used, and that nothing else is.

mod common;

use std::collections::HashSet;
use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use common::{
    Detect, NO_CACHE, PATIENCE, Posted, Seen, asset, in_own_process_with, own_tiny, solid, tiny, watch,
    yolo12n,
};
use gst::prelude::*;
use gstyolodetect::batch::{Ledger, Need};
use gstyolodetect::decode::OutputRef;
use gstyolodetect::engine::cache::{Entry, Key, Readers, Rejected, entry};
use gstyolodetect::engine::device::Device;
use gstyolodetect::engine::onnx::{OnnxEngine, SessionOptions, optimize};
use gstyolodetect::engine::plan::Plan;
use gstyolodetect::engine::{Engine, hash, runtime};
use gstyolodetect::memory::budget::HOST;
use gstyolodetect::tensor::BatchTensor;
use parking_lot::Mutex;

const PROGRAM: &str = env!("CARGO_BIN_EXE_yolodetect-optimize");

/// Has elements find the program, which the tests are not beside.
fn init() {
    static INIT: Once = Once::new();
    common::init();
    INIT.call_once(|| {
        if !common::is_child() {
            let path = std::env::var("PATH").unwrap_or_default();
            let folder = Path::new(PROGRAM).parent().unwrap().display();
            // SAFETY: before any other thread of the test reads the environment: every test begins here.
            unsafe { std::env::set_var("PATH", format!("{folder}:{path}")) };
        }
    });
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: in vain");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A pipeline with one element, started and with its first frame through.
struct Start {
    detect: Detect,
    posted: Arc<Mutex<Posted>>,
    boxes: Vec<Seen>,
}

impl Start {
    fn new(model: &str, properties: &str) -> Self {
        init();
        let mut detect = Detect::new(&format!("model-file={model} {properties}"));
        let posted = watch(&detect.pipeline);
        let boxes = detect.step(&frame()).boxes;
        Self { detect, posted, boxes }
    }

    fn with(model: &str, cache: &Path) -> Self {
        Self::new(model, &format!("model-cache={}", cache.display()))
    }

    fn engine(&self) -> gst::Structure {
        self.detect.element().property::<gst::Structure>("stats").get("engine").unwrap()
    }

    fn is_cached(&self) -> bool {
        self.engine().get("cached").unwrap()
    }

    fn until_warned(&self, of: &str) {
        until(of, || self.posted.lock().warnings.iter().any(|warning| warning.contains(of)));
    }
}

fn frame() -> gst::Sample {
    solid(64, 64, [200, 100, 150])
}

fn key(model: &str) -> Key {
    init();
    runtime::environment(None).unwrap();
    optimize::library_and_key(hash::of_file(Path::new(model)).unwrap()).unwrap().1
}

fn until_there(cache: &Path, model: &str) -> Entry {
    let key = key(model);
    until("the entry is written", || Entry::open(cache, &key).is_ok());
    Entry::open(cache, &key).unwrap()
}

fn optimize(arguments: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).env("ORT_DYLIB_PATH", common::library()).envs([NO_CACHE]).output().unwrap()
}

/// By hand.
fn fill(cache: &Path, models: &[&str]) {
    let output = optimize(&[&["--cache", cache.to_str().unwrap()], models].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn names(cache: &Path) -> HashSet<String> {
    fs::read_dir(cache).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn the_first_start_has_an_entry_written_that_the_next_one_uses() {
    for (name, threads) in [("v8", "1"), ("f16", "1"), ("yolox", "1"), ("fixed_batch4", "1")] {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache");
        let model = own_tiny(name, "cache-first");
        let properties = format!("threads={threads} model-cache={}", cache.display());
        let cold = Start::new(&model, &properties);
        assert!(!cold.is_cached());
        let entry = until_there(&cache, &model);
        let device = |start: &Start| start.engine().get::<String>("device").unwrap();
        let (boxes, before) = (cold.boxes.clone(), device(&cold));
        drop(cold);
        let warm = Start::new(&model, &properties);
        assert!(warm.is_cached(), "{name}");
        assert_eq!((&warm.boxes, device(&warm)), (&boxes, before), "{name}");
        assert!(!boxes.is_empty(), "{name}");
        let bytes = |name: &str| warm.engine().get::<u64>(name).unwrap();
        // Measured by the process that wrote it.
        assert_eq!(bytes("model-bytes"), entry.figures().model);
        assert_eq!((mode(&cache), mode(entry.folder()), mode(&entry.graph())), (0o700, 0o700, 0o600));
        assert_eq!(names(&cache).len(), 1, "nothing else is left");
    }
}

fn load(model: &str, cached: Option<&Entry>, threads: usize, max_batch: usize) -> OnnxEngine {
    let plan = Plan { callers: 1, threads };
    let options = SessionOptions {
        model: model.into(),
        library: None,
        head: None,
        device: Device::Cpu,
        plan,
        gpu: Default::default(),
        gpu_limit: None,
        tensorrt_cache: None,
    };
    let mut ledger = Ledger::new(&HOST, "test");
    let engine = OnnxEngine::load_from(&options, cached, max_batch, &mut ledger).unwrap();
    let Need { model, arena, .. } = ledger.held();
    assert_eq!(engine.spec().loaded_bytes, model + arena);
    engine
}

/// What comes out for noise.
fn output_bits(engine: &OnnxEngine) -> Vec<u32> {
    let spec = engine.spec();
    let frames = spec.batch.capacity(1);
    let mut batch = BatchTensor::new(frames, spec.input).unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    for slot in batch.input_bytes().unwrap().chunks_exact_mut(spec.input.element.size()) {
        match slot.len() {
            4 => slot.copy_from_slice(&random.f32().to_le_bytes()),
            _ => slot.copy_from_slice(&half::f16::from_f32(random.f32()).to_le_bytes()),
        }
    }
    let mut bits = Vec::new();
    engine
        .run(&mut batch, 0..frames, &mut |output| {
            bits = match output.values {
                OutputRef::F32(values) => values.iter().map(|value| value.to_bits()).collect(),
                OutputRef::F16(values) => values.iter().map(|value| value.to_bits().into()).collect(),
            };
        })
        .unwrap();
    bits
}

#[test]
fn the_optimised_form_computes_the_same_to_the_last_bit() {
    let folder = tempfile::tempdir().unwrap();
    let models =
        [tiny("v8"), tiny("f16"), tiny("v5"), tiny("v8_dynamic_size"), tiny("fixed_batch4"), yolo12n()];
    init();
    fill(folder.path(), &models.each_ref().map(String::as_str));
    for model in &models {
        let entry = Entry::open(folder.path(), &key(model)).unwrap();
        let (plain, cached) = (load(model, None, 2, 1), load(model, Some(&entry), 2, 1));
        let bits = output_bits(&plain);
        assert!(bits.iter().any(|&bits| bits != 0) && bits == output_bits(&cached), "{model}");
        assert_eq!(plain.spec().layout, cached.spec().layout);
        assert_eq!(plain.spec().labels, cached.spec().labels);
        assert_eq!((plain.spec().cached, cached.spec().cached), (false, true));
    }
}

#[test]
fn figures_of_an_earlier_load_stand_in_for_runs_of_the_same_kind_alone() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny("v8_dynamic_batch");
    init();
    fill(folder.path(), &["--threads", "2", &model]);
    let entry = Entry::open(folder.path(), &key(&model)).unwrap();
    let known = entry.figures();
    assert_eq!((known.frames, known.threads, known.outputs.len()), (1, 2, 1));
    // To the nanosecond: nothing was run.
    assert_eq!(load(&model, Some(&entry), 2, 1).figures(), known);
    let other_threads = load(&model, Some(&entry), 1, 1);
    assert_ne!(other_threads.spec().warm_run, known.warm_run);
    assert_eq!(other_threads.figures().outputs, known.outputs);
    let batch = load(&model, Some(&entry), 4, 4);
    assert_eq!((batch.figures().frames, batch.figures().outputs[0].dims[0]), (4, 4));
    let wide = folder.path().join("wide");
    fill(&wide, &["--threads", "2", "--max-batch", "4", &model]);
    let entry = Entry::open(&wide, &key(&model)).unwrap();
    assert_eq!(entry.figures().frames, 4);
    assert_eq!(load(&model, Some(&entry), 2, 4).figures(), entry.figures());
}

#[test]
fn a_sound_entry_that_cannot_be_used_is_written_anew() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path();
    let model = own_tiny("v8", "cache-unusable");
    init();
    fill(cache, &[&model]);
    let (place, figures) = {
        let sound = Entry::open(cache, &key(&model)).unwrap();
        (sound.folder().to_path_buf(), sound.figures().clone())
    };
    fs::remove_file(place.join("manifest")).unwrap();
    fs::write(place.join("graph.onnx"), b"no graph").unwrap();
    entry::complete(&place, &key(&model), &figures, Readers::Nobody).unwrap();
    assert!(Entry::open(cache, &key(&model)).is_ok());
    // Starts another one from within the first one's start, as an application may that is told of it.
    let detect = Detect::new(&format!("model-file={model} model-cache={}", cache.display()));
    let (other, told) = (own_tiny("yolox", "cache-unusable"), Arc::new(Mutex::new(None)));
    let started = told.clone();
    detect.pipeline.bus().set_sync_handler(move |_, message| {
        if let gst::MessageView::Warning(warning) = message.view()
            && started.lock().is_none()
        {
            *started.lock() = Some(warning.error().to_string());
            drop(Start::new(&other, "model-cache=off"));
        }
        gst::BusSyncReply::Pass
    });
    let mut cold = Start { posted: Default::default(), boxes: Vec::new(), detect };
    cold.boxes = cold.detect.step(&frame()).boxes;
    assert!(!cold.is_cached() && !cold.boxes.is_empty());
    let told = told.lock().clone().unwrap();
    assert!(told.contains("cannot be used"), "{told}");
    assert!(matches!(Entry::open(cache, &key(&model)), Err(Rejected::Missing)), "it is gone at once");
    until_there(cache, &model);
    let boxes = std::mem::take(&mut cold.boxes);
    drop(cold);
    let warm = Start::with(&model, cache);
    assert_eq!((warm.is_cached(), &warm.boxes), (true, &boxes));
}

#[test]
fn what_is_prepared_by_hand_is_for_every_user_and_for_relative_paths() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["v8", "v5"] {
        fs::copy(tiny(name), folder.path().join(name)).unwrap();
    }
    std::os::unix::fs::symlink(common::library(), folder.path().join("library.so")).unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(["--cache", "cache", "--onnxruntime-library", "library.so", "v8", "v5"]);
    let output = command.current_dir(folder.path()).env_remove("ORT_DYLIB_PATH").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let cache = folder.path().join("cache");
    assert_eq!((names(&cache).len(), names(folder.path()).len()), (2, 4));
    for name in ["v8", "v5"] {
        let entry = Entry::open(&cache, &key(&tiny(name))).unwrap();
        assert_eq!(mode(entry.folder()), 0o755);
        for file in names(entry.folder()) {
            assert_eq!(mode(&entry.folder().join(&file)), 0o644, "{file}");
        }
    }
}

#[test]
fn a_damaged_entry_is_not_used_but_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path();
    let model = own_tiny("v8", "cache-damage");
    let sound = Start::with(&model, cache);
    let boxes = sound.boxes.clone();
    let entry = until_there(cache, &model).folder().to_path_buf();
    drop(sound);
    let edit = |name: &str| OpenOptions::new().write(true).open(entry.join(name)).unwrap();
    type Damage<'a> = (&'a str, &'a dyn Fn());
    let damages: [Damage; 6] = [
        ("a flipped bit", &|| edit("graph.onnx").write_all_at(b"\xff", 20).unwrap()),
        ("truncated", &|| edit("graph.onnx").set_len(100).unwrap()),
        ("garbage", &|| fs::write(entry.join("graph.onnx"), vec![0x5a; 5000]).unwrap()),
        ("an empty manifest", &|| edit("manifest").set_len(0).unwrap()),
        ("no graph", &|| fs::remove_file(entry.join("graph.onnx")).unwrap()),
        ("others may write", &|| fs::set_permissions(&entry, Permissions::from_mode(0o777)).unwrap()),
    ];
    for (what, damage) in damages {
        damage();
        assert!(Entry::open(cache, &key(&model)).is_err(), "{what}");
        let start = Start::with(&model, cache);
        assert_eq!((start.is_cached(), &start.boxes), (false, &boxes), "{what}");
        until_there(cache, &model);
        drop(start);
        assert!(Start::with(&model, cache).is_cached(), "{what}");
    }
    assert_eq!(names(cache).len(), 1);
}

#[test]
fn another_model_s_entry_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path();
    let [model, other] = [own_tiny("v8", "cache-other"), own_tiny("v8_one_class", "cache-other")];
    init();
    fill(cache, &[&other]);
    // Sound, but for its name.
    let moved = cache.join(key(&model).name());
    fs::rename(cache.join(key(&other).name()), &moved).unwrap();
    assert!(!Start::with(&model, cache).is_cached());
    until_there(cache, &model);
    // The file's content counts, not its name.
    fs::copy(&other, &model).unwrap();
    let start = Start::with(&model, cache);
    assert!(!start.is_cached());
    until_there(cache, &model);
}

#[test]
fn an_entry_may_go_while_it_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path();
    let model = asset("models/yolo12n.onnx").display().to_string();
    init();
    fill(cache, &[&model]);
    let mut start = Start::with(&model, cache);
    assert!(start.is_cached());
    fs::remove_dir_all(cache.join(key(&model).name())).unwrap();
    fill(cache, &[&model]);
    let again = start.detect.step(&frame());
    assert_eq!((again.status.as_str(), &again.boxes), ("inferred", &start.boxes));
}

#[test]
fn two_processes_may_write_the_same_entry() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny("v8");
    let start = || {
        let mut command = Command::new(PROGRAM);
        command.arg("--cache").arg(folder.path()).arg(&model).env("ORT_DYLIB_PATH", common::library());
        command.stdout(std::process::Stdio::null());
        command.spawn().unwrap()
    };
    for mut process in [start(), start(), start()] {
        assert!(process.wait().unwrap().success());
    }
    assert_eq!(names(folder.path()), HashSet::from([key(&model).name()]));
    assert!(Entry::open(folder.path(), &key(&model)).is_ok());
}

#[test]
fn a_cache_that_cannot_be_written_to_costs_nothing_but_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    for place in [file.as_path(), &file.join("below"), Path::new("/proc/yolodetect")] {
        let start = Start::with(&own_tiny("v8", "cache-place"), place);
        assert!(!start.is_cached() && !start.boxes.is_empty());
        start.until_warned("it cannot be written");
    }
    assert_eq!(fs::read(&file).unwrap(), b"");
}

#[test]
fn the_property_and_the_environment_say_where_and_whether() {
    let test = "the_property_and_the_environment_say_where_and_whether";
    // Not removed where a test fails: it has to be known in two processes.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache-environment");
    let _ = fs::remove_dir_all(&folder);
    let path = format!("{}:/usr/bin:/bin", Path::new(PROGRAM).parent().unwrap().display());
    if !in_own_process_with(test, &[(NO_CACHE.0, folder.to_str().unwrap()), ("PATH", &path)]) {
        return;
    }
    let model = own_tiny("v8", "cache-environment");
    for none in ["off", "\"\""] {
        drop(Start::new(&model, &format!("model-cache={none}")));
    }
    let own = tempfile::tempdir().unwrap();
    drop(Start::with(&model, own.path()));
    until_there(own.path(), &model);
    assert!(!folder.exists(), "where the property says something, the variable does not count");
    let start = Start::new(&model, "");
    assert!(!start.is_cached());
    until_there(&folder, &model);
    drop(start);
    assert!(Start::new(&model, "").is_cached());
    assert!(!Start::new(&model, "model-cache=off").is_cached());
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn without_the_program_that_is_said() {
    if !in_own_process_with("without_the_program_that_is_said", &[("PATH", "/nowhere")]) {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let start = Start::with(&own_tiny("v8", "cache-missing"), cache.path());
    assert!(!start.boxes.is_empty());
    start.until_warned("neither beside the plugin nor in PATH");
    assert!(names(cache.path()).is_empty());
}

/// A folder with a program of this text under the name that is looked for.
fn stand_in(text: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("yolodetect-optimize");
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    folder
}

#[test]
fn a_program_that_fails_crashes_or_is_none_is_borne() {
    const TEXT: &str = "YOLODETECT_TEST_STAND_IN";
    let test = "a_program_that_fails_crashes_or_is_none_is_borne";
    if !common::is_child() {
        for (text, said) in [
            ("#!/bin/sh\necho first >&2\necho wrong >&2\nexit 3\n", "failed (exit status: 3): wrong"),
            ("#!/bin/sh\nkill -SEGV $$\n", "signal: 11"),
            ("no program", "does not start"),
            ("#!/nowhere\n", "does not start"),
            ("#!/bin/sh\nwhile :; do echo flood >&2; done\n", "failed"),
        ] {
            let folder = stand_in(text);
            in_own_process_with(test, &[("PATH", folder.path().to_str().unwrap()), (TEXT, said)]);
        }
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let start = Start::with(&own_tiny("v8", "cache-crash"), cache.path());
    assert!(!start.boxes.is_empty());
    start.until_warned(&std::env::var(TEXT).unwrap());
}

#[test]
fn what_failed_is_not_tried_again_the_same_day() {
    let test = "what_failed_is_not_tried_again_the_same_day";
    if !common::is_child() {
        let folder = stand_in("#!/bin/sh\necho tried >> \"${0%/*}/count\"\nexit 3\n");
        in_own_process_with(test, &[("PATH", folder.path().to_str().unwrap())]);
        assert_eq!(fs::read_to_string(folder.path().join("count")).unwrap(), "tried\ntried\n");
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let model = own_tiny("v8", "cache-again");
    let failed = cache.path().join(key(&model).name() + ".failed");
    for said in ["exit status: 3", "less than a day ago", "exit status: 3"] {
        Start::with(&model, cache.path()).until_warned(said);
        assert!(fs::read_to_string(&failed).unwrap().contains("exit status: 3"));
        if said != "exit status: 3" {
            fs::remove_file(&failed).unwrap();
        }
    }
}

#[test]
fn an_application_that_waits_for_no_child_gets_its_entry_too() {
    let path = Path::new(PROGRAM).parent().unwrap().to_str().unwrap();
    if !in_own_process_with("an_application_that_waits_for_no_child_gets_its_entry_too", &[("PATH", path)]) {
        return;
    }
    // SAFETY: no child of this process is waited for by anybody else.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    let cache = tempfile::tempdir().unwrap();
    let model = own_tiny("v8", "cache-sigchld");
    let start = Start::with(&model, cache.path());
    until_there(cache.path(), &model);
    assert!(start.posted.lock().warnings.is_empty());
    // Where none comes, that is seen.
    let lost = tempfile::tempdir().unwrap();
    let model = own_tiny("v5", "cache-sigchld");
    let start = Start::with(&model, lost.path());
    fs::write(&model, "another").unwrap();
    start.until_warned("of an entry, there is none");
}

#[test]
fn by_hand_the_program_says_what_it_did_and_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let place = cache.to_str().unwrap();
    let (v8, v5, garbage) = (tiny("v8"), tiny("v5"), tiny("garbage"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    for (status, arguments, said) in [
        (0, &["--help"][..], "Usage: yolodetect-optimize"),
        (2, &[], "no model is named"),
        (2, &["--cache"], "--cache needs a value"),
        (2, &["--wrong", &v8], "there is no option --wrong"),
        (2, &["--limit", "much", &v8], "--limit much is not a number"),
        (2, &["--key", "1", &v8, &v5], "a single model"),
        (2, &["--warm-run", "long", &v8], "--warm-run long is not a number"),
        (2, &["--head", "v9", &v8], "--head v9 is none"),
        (1, &[&v8], "name a folder with --cache"),
        (1, &["--cache", place, "/nowhere.onnx"], "/nowhere.onnx: it cannot be read"),
        (1, &["--cache", place, "--onnxruntime-library", "/nowhere.so", &v8], "/nowhere.so"),
        (1, &["--cache", place, &garbage], "cannot load it"),
        (1, &["--cache", place, "--key", "0123", &v8], "asked for"),
    ] {
        let output = optimize(arguments);
        let all = text(&output.stdout) + &text(&output.stderr);
        assert_eq!((output.status.code(), all.contains(said)), (Some(status), true), "{arguments:?}: {all}");
    }
    assert!(!cache.exists(), "nothing was written");
    let output = optimize(&["--cache", place, &v8, &garbage, &v5]);
    assert_eq!((output.status.code(), names(&cache).len()), (Some(1), 2));
    assert_eq!(text(&output.stdout).matches("is new").count(), 2);
    assert!(text(&optimize(&["--cache", place, "--", &v8]).stdout).contains("is new"), "made anew by hand");
    assert!(text(&optimize(&["--cache", "off", "--", &v8]).stderr).contains("there is no cache"));
    // The one that was just written stays.
    fill(&cache, &["--limit", "0", &tiny("yolox")]);
    assert_eq!(names(&cache), HashSet::from([key(&tiny("yolox")).name()]));
}

#[test]
fn a_model_with_weights_in_other_files_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    init();
    fill(&whole, &[&yolo12n()]);
    // An optimised form is such a model.
    let entry: PathBuf = Entry::open(&whole, &key(&yolo12n())).unwrap().folder().into();
    let cache = folder.path().join("cache");
    let output = optimize(&["--cache", cache.to_str().unwrap(), entry.join("graph.onnx").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("further files"), "{said}");
    assert!(names(&cache).is_empty());
}
