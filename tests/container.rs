//! A real memory limit of the kernel: what the reactions to memory pressure give back is what lets the streams go on.
//!
//! The same process runs three times: with no limit, and twice with a limit of 0.8 times the peak that it had then, with
//! reactions and without. Two models stay cached from earlier work; then eight streams of a third begin, one after the
//! other.

mod common;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{PATIENCE, Pipeline, asset, init, library, skip, yolo12n};
use gst::prelude::*;

const TEST: &str = "a_container_s_limit_is_kept_by_what_is_given_back";
const STREAMS: usize = 8;
const FRAMES: u64 = 250;

/// In the process that is measured: the group to join, and whether it reacts.
const GROUP: &str = "YOLODETECT_TEST_GROUP";
const REACTIONS: &str = "YOLODETECT_TEST_REACTIONS";

/// A control group with a memory limit, gone when dropped.
struct Group {
    folder: PathBuf,
    unified: bool,
}

impl Group {
    /// Below this process's own, or at the top where that is not to be had; `None` where no group can be made.
    fn new(name: &str) -> Option<Self> {
        let mine = fs::read_to_string("/proc/self/cgroup").ok()?;
        let line = |controller: &str| {
            mine.lines().find_map(|line| {
                let mut parts = line.splitn(3, ':').skip(1);
                (parts.next()? == controller).then(|| parts.next())?
            })
        };
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let (root, own, unified) = match v1.is_dir() {
            true => (v1, line("memory")?, false),
            false => (Path::new("/sys/fs/cgroup"), line("")?, true),
        };
        let parents = [root.join(own.trim_start_matches('/')), root.to_path_buf()];
        parents.into_iter().find_map(|parent| {
            let folder = parent.join(format!("yolodetect-{name}-{}", std::process::id()));
            if unified {
                // Refused where the parent has processes of its own.
                let _ = fs::write(parent.join("cgroup.subtree_control"), "+memory");
            }
            fs::create_dir(&folder).ok()?;
            let group = Self { folder, unified };
            group.read(["memory.usage_in_bytes", "memory.current"]).map(|_| group)
        })
    }

    fn file(&self, [v1, v2]: [&str; 2]) -> PathBuf {
        self.folder.join(if self.unified { v2 } else { v1 })
    }

    fn read(&self, names: [&str; 2]) -> Option<u64> {
        fs::read_to_string(self.file(names)).ok()?.trim().parse().ok()
    }

    fn set_limit(&self, bytes: u64) {
        fs::write(self.file(["memory.limit_in_bytes", "memory.max"]), bytes.to_string()).unwrap();
    }

    /// `None` on kernels before 5.19 with the unified hierarchy.
    fn peak(&self) -> Option<u64> {
        self.read(["memory.max_usage_in_bytes", "memory.peak"])
    }

    /// How often the limit was hit.
    fn failures(&self) -> u64 {
        if !self.unified {
            return self.read(["memory.failcnt", ""]).unwrap();
        }
        let events = fs::read_to_string(self.folder.join("memory.events")).unwrap();
        events.lines().find_map(|line| line.strip_prefix("max ")?.parse().ok()).unwrap_or_default()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.folder);
    }
}

/// What the process that is measured says at its end.
struct Told {
    /// It came to its end.
    completed: bool,
    /// Bytes, by the messages.
    freed: u64,
    output: String,
}

fn measure(group: &Group, reactions: bool) -> Told {
    let output = Command::new(env::current_exe().unwrap())
        .args([TEST, "--exact", "--nocapture"])
        .env(GROUP, &group.folder)
        .env(REACTIONS, reactions.to_string())
        .env("ORT_DYLIB_PATH", library())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let freed = text.lines().filter_map(|line| line.strip_prefix("freed ")?.parse::<u64>().ok()).sum();
    let errors = String::from_utf8_lossy(&output.stderr);
    Told { completed: output.status.success(), freed, output: format!("{}\n{text}{errors}", output.status) }
}

/// The work that is measured.
fn work(group: &str, reactions: &str) {
    fs::write(Path::new(group).join("cgroup.procs"), std::process::id().to_string()).unwrap();
    init();
    for earlier in ["v5", "end2end"] {
        let model = asset(&format!("models/variants/{earlier}.onnx"));
        Pipeline::new(&format!(
            "videotestsrc num-buffers=2 ! video/x-raw,width=320,height=240 \
             ! yolodetect model-file={} model-keep-alive=3600000000000 ! fakesink",
            model.display()
        ))
        .run()
        .unwrap();
    }
    let streams: Vec<_> = (0..STREAMS)
        .map(|_| {
            let stream = Pipeline::new(&format!(
                "filesrc location={} ! decodebin ! yolodetect model-file={} max-fps=1 threads=2 \
                 pressure-interval=10000000 pressure-reactions={reactions} ! fakesink name=sink",
                asset("clips/bikes.mp4").display(),
                yolo12n()
            ));
            // The next one comes when this one's first frame has been inferred.
            stream.0.set_state(gst::State::Paused).unwrap();
            let (outcome, ..) = stream.0.state(gst::ClockTime::try_from(PATIENCE).unwrap());
            outcome.unwrap();
            stream
        })
        .collect();
    for stream in &streams {
        stream.0.set_state(gst::State::Playing).unwrap();
    }
    for (number, stream) in streams.iter().enumerate() {
        loop {
            let types = [gst::MessageType::Eos, gst::MessageType::Error, gst::MessageType::Element];
            let message =
                stream.bus().timed_pop_filtered(gst::ClockTime::try_from(PATIENCE).unwrap(), &types);
            match message.as_ref().expect("the stream hangs").view() {
                gst::MessageView::Eos(_) => break,
                gst::MessageView::Error(error) => panic!("{error:?}"),
                gst::MessageView::Element(element) => {
                    let Some(fields) = element.structure() else { continue };
                    // What was done for all is told by each: counted is what the first of them says.
                    if fields.name() == "yolodetect-memory-pressure" && number == 0 {
                        println!("{fields}\nfreed {}", fields.get::<u64>("freed-bytes").unwrap());
                    }
                }
                _ => (),
            }
        }
        let stats = stream.by_name("sink").property::<gst::Structure>("stats");
        assert_eq!(stats.get::<u64>("rendered"), Ok(FRAMES), "a frame was lost");
    }
    println!("all frames came out");
}

#[test]
fn a_container_s_limit_is_kept_by_what_is_given_back() {
    if let (Ok(group), Ok(reactions)) = (env::var(GROUP), env::var(REACTIONS)) {
        return work(&group, &reactions);
    }
    let group = |name| Group::new(name).filter(|group| group.peak().is_some());
    // The files' pages are in memory, and others', when it counts.
    let Some(warm) = group("warm") else {
        return skip(TEST, "no control group with a memory controller can be made here (needs root)");
    };
    let told = measure(&warm, true);
    assert!(told.completed, "{}", told.output);
    let unlimited = group("unlimited").unwrap();
    let told = measure(&unlimited, false);
    assert!(told.completed, "{}", told.output);
    let peak = unlimited.peak().unwrap();
    let limit = peak / 10 * 8;
    let mb = |bytes: u64| bytes as f64 / 1e6;
    println!("without a limit: peak {:.1} MB", mb(peak));

    let with = group("with").unwrap();
    with.set_limit(limit);
    let told = measure(&with, true);
    println!(
        "limit {:.1} MB, with reactions: peak {:.1} MB, limit hit {} times, {:.1} MB given back",
        mb(limit),
        mb(with.peak().unwrap()),
        with.failures(),
        mb(told.freed)
    );
    assert!(told.completed && told.output.contains("all frames came out"), "{}", told.output);
    assert_eq!(with.failures(), 0, "{}", told.output);
    assert!(with.peak().unwrap() < limit);
    assert!(told.freed >= peak - limit, "{}", told.output);

    let without = group("without").unwrap();
    without.set_limit(limit);
    let told = measure(&without, false);
    println!(
        "limit {:.1} MB, without reactions: {}, limit hit {} times",
        mb(limit),
        if told.completed { "it came to its end" } else { "it was killed" },
        without.failures()
    );
    assert!(!told.completed || without.failures() > 0, "{}", told.output);
}
