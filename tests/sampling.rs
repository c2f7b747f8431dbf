//! What is read of memory on a real machine, and what the element's statistics say of it. Budget, monitor and container
//! are the process's, so each test has a process of its own.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{PATIENCE, Pipeline, another_process, is_child, library, skip, tiny};
use gst::prelude::*;
use gstyolodetect::memory::budget::{Consumer, HOST};
use gstyolodetect::memory::monitor;
use gstyolodetect::memory::pressure::{Level, Thresholds};
use gstyolodetect::memory::sample::{Sample, Sampler, SystemSampler};

/// Runs `test` again by itself. True in that process.
fn alone(test: &str, variables: &[(&str, &str)]) -> bool {
    if is_child() {
        return true;
    }
    let output = another_process(test, Some(&library()), variables);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{out}\n{err}");
    false
}

fn memory(element: &gst::Element) -> gst::Structure {
    element.property::<gst::Structure>("stats").get("memory").unwrap()
}

#[test]
fn statistics_show_what_the_process_holds() {
    if !alone("statistics_show_what_the_process_holds", &[]) {
        return;
    }
    let pipeline =
        Pipeline::new(&format!("videotestsrc ! yolodetect name=detect model-file={} ! fakesink", tiny("v8")));
    let detect = pipeline.by_name("detect");
    // Nobody watches yet: what the process holds is read when it is asked for.
    let resting = memory(&detect);
    assert!(resting.get::<u64>("rss").unwrap() > resting.get::<u64>("anonymous").unwrap());
    assert!(resting.get::<u64>("anonymous").unwrap() > 100_000);
    assert_eq!(resting.get::<&str>("level"), Ok("nominal"));
    assert!(!resting.has_field("heap-used") && !resting.has_field("system-available"), "{resting}");

    pipeline.0.set_state(gst::State::Playing).unwrap();
    pipeline.wait(gst::MessageType::AsyncDone);
    let before = memory(&detect);
    let _limit = HOST.limit("test", 1_000_000_000_000).unwrap();
    let _frames = HOST.reserve(Consumer::Frames, "test", 3_000_000).unwrap();
    let _history = HOST.reserve(Consumer::History, "test", 20_000).unwrap();
    let thresholds = Thresholds {
        process: [1, u64::MAX, u64::MAX],
        process_degrades: [false; 3],
        budget: None,
        gpu: [u64::MAX; 2],
        gpu_degrades: [false; 2],
        gpu_budget: None,
        cooldown: Duration::from_secs(30),
        react: false,
    };
    let watch = monitor::watch(thresholds, Duration::from_millis(10), || ());
    let deadline = Instant::now() + PATIENCE;
    while watch.level() == Level::Nominal {
        assert!(Instant::now() < deadline, "memory is not looked at");
        std::thread::sleep(Duration::from_millis(1));
    }

    let watched = memory(&detect);
    let number =
        |name: &str| watched.get::<u64>(name).unwrap_or_else(|error| panic!("{name}: {error}: {watched}"));
    let limit = monitor::latest().unwrap().cgroup.map_or(1_000_000_000_000, |cgroup| cgroup.limit);
    assert_eq!((watched.get::<&str>("level"), number("limit")), (Ok("warning"), limit));
    assert!(number("system-available") > 1_000_000);
    if cfg!(target_env = "gnu") {
        assert!(number("heap-used") > 10_000 && number("heap-free") > 0);
    }
    let budget = |memory: &gst::Structure| {
        let budget = memory.get::<gst::Structure>("budget").unwrap();
        assert_eq!(budget.n_fields(), 5);
        ["model", "arena", "tensors", "frames", "history"].map(|name| budget.get::<u64>(name).unwrap())
    };
    let (before, after) = (budget(&before), budget(&watched));
    // The element's own frames come and go.
    assert!(after[3] >= 3_000_000 && after[4] >= before[4] + 20_000, "{before:?} {after:?}");
}

/// The group that a child process is to enter.
const GROUP: &str = "YOLODETECT_TEST_GROUP";

const LIMIT: u64 = 512 << 20;

/// A control group below this process's own, with a limit; removed when dropped.
struct Group(PathBuf);

impl Group {
    fn new() -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let find =
            |prefix: &str| own.lines().find_map(|line| line.split_once(prefix).map(|(_, group)| group));
        let name = format!("yolodetect-test-{}", std::process::id());
        let versions = [
            ("/sys/fs/cgroup/memory", find(":memory:"), "memory.limit_in_bytes"),
            ("/sys/fs/cgroup", find("0::"), "memory.max"),
        ];
        versions.into_iter().find_map(|(mount, group, limit)| {
            let folder = Path::new(mount).join(group?.trim_start_matches('/')).join(&name);
            fs::create_dir(&folder).ok()?;
            let group = Self(folder);
            // Not `fs::write`, which would make a file where there is no controller.
            let mut limit = fs::OpenOptions::new().write(true).open(group.0.join(limit)).ok()?;
            std::io::Write::write_all(&mut limit, LIMIT.to_string().as_bytes()).ok()?;
            Some(group)
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn the_limit_of_a_real_container_is_found() {
    const TEST: &str = "the_limit_of_a_real_container_is_found";
    if !is_child() {
        match Group::new() {
            Some(group) => {
                alone(TEST, &[(GROUP, group.0.to_str().unwrap())]);
            }
            None => skip(TEST, "no control group with a memory limit can be made here"),
        }
        return;
    }
    let group = PathBuf::from(std::env::var_os(GROUP).unwrap());
    let mut sampler = SystemSampler::default();
    let mut sample = || {
        let mut sample = Sample::default();
        sampler.sample(&mut sample);
        sample.cgroup
    };
    let outside = sample();
    assert_ne!(outside.map(|cgroup| cgroup.limit), Some(LIMIT));
    // A process that is moved while it runs.
    fs::write(group.join("cgroup.procs"), std::process::id().to_string()).unwrap();
    let entered = sample().unwrap();
    assert_eq!(entered.limit, LIMIT);
    let held = vec![1u8; 40_000_000];
    let filled = sample().unwrap();
    assert!(filled.used >= entered.used + held.len() as u64 * 9 / 10, "{entered:?} {filled:?}");
    assert!(filled.used < entered.used + 2 * held.len() as u64, "{entered:?} {filled:?}");

    // Pages of files are given back before anything fails: they do not count.
    let raw = || {
        let files = ["memory.usage_in_bytes", "memory.current"];
        let text = files.iter().find_map(|file| fs::read_to_string(group.join(file)).ok()).unwrap();
        text.trim().parse::<u64>().unwrap()
    };
    let (raw_before, cached) = (raw(), vec![2u8; 60_000_000]);
    let with_buffer = sample().unwrap();
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    fs::write(file.path(), &cached).unwrap();
    let (raw_after, with_file) = (raw(), sample().unwrap());
    assert!(
        raw_after >= raw_before + 100_000_000,
        "the file's pages are the group's: {raw_before} {raw_after}"
    );
    assert!(with_file.used < with_buffer.used + 30_000_000, "{with_buffer:?} {with_file:?}");
    drop(held);
}
