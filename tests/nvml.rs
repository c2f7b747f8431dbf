//! GPUs through NVIDIA's management library, which a stand-in takes the place of: `tests/data/nvml_stand_in.c`. Each test
//! runs in a process of its own, since a library is found once per process.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{another_process, is_child, plugin_folder};
use gstyolodetect::memory::nvml::{self, Gpus};
use gstyolodetect::memory::sample::Gpu;

/// The variables of the stand-in, which it reads for each call.
const CONTROL: &str = "NVML_STAND_IN";
const LOG: &str = "NVML_STAND_IN_LOG";

const UNKNOWN: u32 = 999;
const GPU_IS_LOST: u32 = 15;
const NOT_SUPPORTED: u32 = 3;
const DRIVER_NOT_LOADED: u32 = 9;

/// Builds the library into `folder`, as the name that programs open.
fn build(folder: &Path, options: &[&str]) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/nvml_stand_in.c");
    let library = folder.join("libnvidia-ml.so.1");
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).args(options).status();
    assert!(built.expect("cc").success());
}

/// Runs `test` again where the loader looks into a folder with the stand-in, or into an empty one. True in that process.
fn beside_library(test: &str, options: Option<&[&str]>) -> bool {
    if is_child() {
        return true;
    }
    let folder = tempfile::tempdir().unwrap();
    if let Some(options) = options {
        build(folder.path(), options);
    }
    let (control, log) = (folder.path().join("control"), folder.path().join("log"));
    fs::write(&control, "").unwrap();
    fs::write(&log, "").unwrap();
    let variables = [
        ("LD_LIBRARY_PATH", folder.path().to_str().unwrap()),
        (CONTROL, control.to_str().unwrap()),
        (LOG, log.to_str().unwrap()),
    ];
    let mut variables = variables.to_vec();
    if options.is_none() {
        // The loader tells what it looks for.
        variables.push(("LD_DEBUG", "libs"));
    }
    let output = another_process(test, None, &variables);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.contains("1 passed"), "{out}");
    if options.is_none() {
        let attempts = err.matches("find library=libnvidia-ml.so.1").count();
        assert_eq!(attempts, 1, "one look is enough");
        // Its lines begin with the process's number.
        let said = |line: &&str| !line.trim_start().starts_with(|first: char| first.is_ascii_digit());
        assert_eq!(err.lines().filter(said).find(|line| !line.trim().is_empty()), None);
    } else {
        assert_eq!(err, "", "nothing is said where nobody can do anything about it");
    }
    false
}

fn control(text: &str) {
    fs::write(std::env::var_os(CONTROL).unwrap(), text).unwrap();
}

/// How often the stand-in has noted `what`.
fn noted(what: &str) -> usize {
    fs::read_to_string(std::env::var_os(LOG).unwrap()).unwrap().lines().filter(|line| *line == what).count()
}

fn is_loaded() -> bool {
    fs::read_to_string("/proc/self/maps").unwrap().contains("libnvidia-ml")
}

/// GPUs and a clock.
struct Rig {
    gpus: Gpus,
    start: Instant,
}

impl Rig {
    fn new() -> Self {
        Self { gpus: Gpus::default(), start: Instant::now() }
    }

    fn at(&mut self, millis: u64) -> Vec<Gpu> {
        // What was there before must not stay.
        let mut gpus = vec![Gpu { index: 77, ..Gpu::default() }];
        self.gpus.sample(self.start + Duration::from_millis(millis), &mut gpus);
        gpus
    }
}

fn both(own: Option<u64>) -> Vec<Gpu> {
    [(0, 8000, 500), (1, 8001, 501)].map(|(index, total, used)| Gpu { index, total, used, own }).to_vec()
}

#[test]
fn without_a_library_there_are_no_gpus() {
    if beside_library("without_a_library_there_are_no_gpus", None) {
        let mut rig = Rig::new();
        for second in [0, 1, 61, 200] {
            assert_eq!(rig.at(second * 1000), []);
        }
        assert_eq!(Rig::new().at(0), []);
    }
}

#[test]
fn what_the_driver_does_not_list_is_counted_by_its_holder() {
    if !beside_library("what_the_driver_does_not_list_is_counted_by_its_holder", Some(&[])) {
        return;
    }
    let mut rig = Rig::new();
    assert_eq!(rig.at(0), both(None));
    // CUDA's first GPU is the driver's second.
    nvml::count("0000:02:00.0", 0, |gpu| 40 + u64::from(gpu));
    nvml::count("0000:01:00.0", 1, |_| 0);
    let own = |gpus: Vec<Gpu>| gpus.iter().map(|gpu| gpu.own).collect::<Vec<_>>();
    assert_eq!(own(rig.at(1000)), [None, Some(40)], "nothing held is nothing known");
    control(&format!("pid={}\nown_compute=7", std::process::id()));
    assert_eq!(own(rig.at(2000)), [Some(7), Some(7)], "the driver knows better");
}

#[test]
fn figures_arrive_once_a_second() {
    if !beside_library("figures_arrive_once_a_second", Some(&[])) {
        return;
    }
    let mut rig = Rig::new();
    assert!(!is_loaded(), "not before somebody wants to know");
    assert_eq!(rig.at(0), both(None));
    assert!(is_loaded());
    control("used=700");
    for millis in (0..1000).step_by(10) {
        assert_eq!(rig.at(millis), both(None));
    }
    assert_eq!(noted("count"), 1);
    assert_eq!(rig.at(1000).iter().map(|gpu| gpu.used).collect::<Vec<_>>(), [700, 701]);
    assert_eq!((noted("init"), noted("count")), (1, 2));
    drop(rig);
    assert_eq!(noted("shutdown"), 1);
    assert!(!is_loaded());
}

#[test]
fn only_what_is_listed_for_this_process_is_its_own() {
    if !beside_library("only_what_is_listed_for_this_process_is_its_own", Some(&[])) {
        return;
    }
    let pid = std::process::id();
    let mut rig = Rig::new();
    for (second, text, own) in [
        (0, format!("pid={pid}\nown_compute=120"), Some(120)),
        (1, format!("pid={pid}\nown_graphics=80"), Some(80)),
        // A process that computes and draws is in both lists with all that it holds.
        (2, format!("pid={pid}\nown_compute=120\nown_graphics=120"), Some(120)),
        (3, format!("pid={pid}\nown_compute=-1"), None),
        (4, format!("pid={pid}\nown_compute=-1\nown_graphics=80"), Some(80)),
        (5, format!("pid={pid}\nown_compute=120\ngraphics={NOT_SUPPORTED}"), Some(120)),
        (6, format!("pid={pid}\nown_compute=120\ncompute={NOT_SUPPORTED}"), None),
        // Numbers of another namespace.
        (7, format!("pid={}\nown_compute=120", pid + 1), None),
        (8, String::new(), None),
    ] {
        control(&text);
        assert_eq!(rig.at(second * 1000), both(own), "{text}");
    }
    assert_eq!(noted("init"), 1, "a list that cannot be had is no reason to begin anew");
}

#[test]
fn a_gpu_that_fails_is_missing() {
    if !beside_library("a_gpu_that_fails_is_missing", Some(&[])) {
        return;
    }
    let mut rig = Rig::new();
    let mut indices = |second: u64, text: String| {
        control(&text);
        rig.at(second * 1000).iter().map(|gpu| gpu.index).collect::<Vec<_>>()
    };
    assert_eq!(indices(0, format!("memory@0={NOT_SUPPORTED}")), [1]);
    assert_eq!(indices(100, format!("handle@1={NOT_SUPPORTED}")), [0]);
    assert!(indices(200, "count=0".into()).is_empty());
    assert_eq!((noted("init"), noted("shutdown")), (1, 0), "nothing is lost, so nothing is begun anew");
    assert_eq!(indices(300, format!("memory@1={GPU_IS_LOST}")), [0]);
    assert_eq!(indices(301, String::new()), [0, 1]);
}

#[test]
fn a_gpu_that_is_lost_comes_back() {
    if !beside_library("a_gpu_that_is_lost_comes_back", Some(&[])) {
        return;
    }
    let mut rig = Rig::new();
    assert_eq!(rig.at(0), both(None));
    control(&format!("devices={UNKNOWN}"));
    for second in 10..60 {
        assert_eq!(rig.at(second * 1000), []);
    }
    assert_eq!((noted("init"), noted("shutdown")), (1, 0));
    // A minute after the last attempt it is begun anew, for which the library must not stay open.
    for second in 60..150 {
        assert_eq!(rig.at(second * 1000), []);
    }
    assert_eq!((noted("load"), noted("init"), noted("shutdown")), (3, 3, 2));
    control(&format!("init={DRIVER_NOT_LOADED}\ndevices={UNKNOWN}"));
    for second in 150..250 {
        assert_eq!(rig.at(second * 1000), []);
    }
    assert_eq!((noted("init"), noted("init failed")), (3, 2));
    control("");
    assert_eq!(rig.at(299_000), []);
    assert_eq!(rig.at(300_000), both(None));
}

#[test]
fn a_library_that_vanishes_may_return() {
    if !beside_library("a_library_that_vanishes_may_return", Some(&[])) {
        return;
    }
    let mut rig = Rig::new();
    assert_eq!(rig.at(0), both(None));
    let folder = Path::new(&std::env::var_os(CONTROL).unwrap()).parent().unwrap().to_path_buf();
    let (library, aside) = (folder.join("libnvidia-ml.so.1"), folder.join("aside"));
    // What is open stays open.
    fs::rename(&library, &aside).unwrap();
    assert_eq!(rig.at(1_000), both(None));
    control(&format!("devices={UNKNOWN}"));
    assert_eq!(rig.at(2_000), []);
    control("");
    assert_eq!(rig.at(70_000), [], "closed, and no longer to be found");
    fs::rename(&aside, &library).unwrap();
    assert_eq!(rig.at(129_000), []);
    assert_eq!(rig.at(130_000), both(None));
}

#[test]
fn a_library_that_lacks_functions_does_no_harm() {
    if beside_library("a_library_that_lacks_functions_does_no_harm", Some(&["-DWITHOUT_SHUTDOWN"])) {
        let mut rig = Rig::new();
        assert_eq!(rig.at(0), both(None));
        drop(rig);
        assert_eq!(Rig::new().at(0), both(None));
    }
}

#[test]
fn looking_at_the_plugin_does_not_open_the_library() {
    let folder = tempfile::tempdir().unwrap();
    build(folder.path(), &[]);
    let log = folder.path().join("log");
    let output = Command::new("gst-inspect-1.0")
        .arg("yolodetect")
        .env("GST_PLUGIN_PATH", plugin_folder(folder.path()))
        .env("GST_REGISTRY", folder.path().join("registry"))
        .env("LD_LIBRARY_PATH", folder.path())
        .env(LOG, &log)
        .output()
        .expect("gst-inspect-1.0");
    assert!(output.status.success(), "{output:?}");
    assert!(!log.exists(), "the library was loaded");
}
