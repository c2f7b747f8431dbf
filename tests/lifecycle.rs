//! Starting and stopping, in every order and at every time: nothing hangs, leaks or crashes.
//!
//! What can only be judged from outside (leaks at the end of GStreamer, the process's exit) runs in a child: this
//! very executable with one test chosen and a role in the environment.

mod common;
#[path = "common/rig.rs"]
mod rig;

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{PATIENCE, Pipeline, asset, tiny, within_patience, yolo12n};
use gst::State::{Null, Paused, Playing, Ready};
use gst::prelude::*;
use rig::{Rig, millis};

const ROLE: &str = "YOLODETECT_TEST_ROLE";

/// Runs `test` of this executable as a child in `role`, with more of the environment.
fn child(test: &str, role: &str, environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    command.env(ROLE, role).envs(environment.iter().copied());
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let reader = |mut pipe: Box<dyn std::io::Read + Send>| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            pipe.read_to_end(&mut text).map(|_| text)
        })
    };
    let (stdout, stderr) =
        (reader(Box::new(child.stdout.take().unwrap())), reader(Box::new(child.stderr.take().unwrap())));
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                child.kill().unwrap();
                panic!("{test} as {role} hangs");
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    Output { status, stdout: stdout.join().unwrap().unwrap(), stderr: stderr.join().unwrap().unwrap() }
}

fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// Endless pictures into `sink`, of 64x64 for a tiny model.
fn endless(properties: &str, sink: &str) -> Pipeline {
    Pipeline::new(&format!(
        "videotestsrc ! video/x-raw,format=RGB,width=64,height=64 ! yolodetect name=detect {properties} ! {sink}"
    ))
}

fn patience() -> gst::ClockTime {
    gst::ClockTime::try_from(PATIENCE).unwrap()
}

#[test]
fn every_order_of_states_with_frames_in_flight() {
    within_patience("a state change", || {
        let pipeline =
            endless(&format!("model-file={} max-batch=2", tiny("v8_dynamic_batch")), "fakesink name=sink");
        let states = [Null, Ready, Paused, Playing];
        for from in states {
            for to in states {
                for state in [from, to] {
                    pipeline.0.set_state(state).unwrap();
                    if state >= Paused {
                        pipeline.0.state(patience()).0.unwrap();
                    }
                }
                // And without waiting for what was asked before.
                pipeline.0.set_state(from).unwrap();
                pipeline.0.set_state(to).unwrap();
            }
        }
        let playing = pipeline.0.set_state(Playing);
        assert!(playing.is_ok());
        pipeline.0.state(patience()).0.unwrap();
        assert!(pipeline.bus().pop_filtered(&[gst::MessageType::Error]).is_none());
    });
}

#[test]
fn stopping_while_downstream_is_stuck() {
    within_patience("stopping", || {
        for target in [Paused, Playing] {
            // Nobody pulls.
            let properties = format!("model-file={} max-in-flight=2", tiny("v8"));
            let pipeline = endless(&properties, "appsink max-buffers=1 sync=false");
            pipeline.0.set_state(target).unwrap();
            pipeline.0.state(patience()).0.unwrap();
            until_full(&pipeline);
            pipeline.0.set_state(Null).unwrap();

            // A blocked pad: nothing leaves, and upstream's allocation query waits behind the first event.
            let pipeline = endless(&properties, "fakesink async=false");
            let pad = pipeline.by_name("detect").static_pad("src").unwrap();
            let (blocked, is_blocked) = std::sync::mpsc::channel();
            pad.add_probe(gst::PadProbeType::BLOCK_DOWNSTREAM, move |_, _| {
                let _ = blocked.send(());
                gst::PadProbeReturn::Ok
            });
            pipeline.0.set_state(target).unwrap();
            is_blocked.recv_timeout(PATIENCE).unwrap();
            pipeline.0.set_state(Ready).unwrap();
            pipeline.0.set_state(Null).unwrap();
        }
    });
}

/// Until frames are held and upstream waits.
fn until_full(pipeline: &Pipeline) {
    let detect = pipeline.by_name("detect");
    let deadline = Instant::now() + PATIENCE;
    while detect.property::<gst::Structure>("stats").get::<u32>("queue-depth") != Ok(2) {
        assert!(Instant::now() < deadline, "the queue never fills");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn ready_and_flushes_during_preroll() {
    within_patience("a state change", || {
        let pipeline = endless(&format!("model-file={}", tiny("v8")), "fakesink");
        for turn in 0..60u64 {
            pipeline.0.set_state(Paused).unwrap();
            std::thread::sleep(Duration::from_micros(turn * 50));
            if turn % 3 == 0 {
                let _ = pipeline.0.seek_simple(gst::SeekFlags::FLUSH, millis(turn));
            }
            pipeline.0.set_state(Ready).unwrap();
        }
        assert!(pipeline.bus().pop_filtered(&[gst::MessageType::Error]).is_none());
    });
}

#[test]
fn flushes_that_race_a_stop() {
    within_patience("a stop", || {
        for _ in 0..40 {
            let rig = Rig::new(&[("max-in-flight", "2")]);
            std::thread::scope(|scope| {
                let (element, src) = (&rig.element, &rig.src);
                rig.push(0, 200).unwrap();
                scope.spawn(move || {
                    for _ in 0..5 {
                        src.push_event(gst::event::FlushStart::new());
                        src.push_event(gst::event::FlushStop::new(true));
                    }
                });
                element.set_state(Ready).unwrap();
            });
            assert_eq!(rig.element.static_pad("src").unwrap().task_state(), gst::TaskState::Stopped);
            rig.element.set_state(Playing).unwrap();
        }
    });
}

/// Does `work` while no data passes `pad`.
fn while_idle(pad: &gst::Pad, work: impl FnOnce() + Send + 'static) {
    let (done, finished) = std::sync::mpsc::channel();
    // Such a probe may be called once more before it is removed.
    let work = std::sync::Mutex::new(Some(work));
    pad.add_probe(gst::PadProbeType::IDLE, move |_, _| {
        if let Some(work) = work.lock().unwrap().take() {
            work();
            let _ = done.send(());
        }
        gst::PadProbeReturn::Remove
    });
    finished.recv_timeout(PATIENCE).unwrap();
}

#[test]
fn an_element_leaves_and_joins_a_playing_pipeline() {
    within_patience("the pipeline", || {
        let pipeline =
            Pipeline::new("videotestsrc ! video/x-raw,format=RGB,width=64,height=64 ! fakesink name=sink");
        let sink = pipeline.by_name("sink");
        let pad = sink.static_pad("sink").unwrap();
        let upstream = pad.peer().unwrap();
        pipeline.0.set_state(Playing).unwrap();
        for _ in 0..5 {
            let detect = gst::ElementFactory::make("yolodetect").property("model-file", tiny("v8")).build();
            let detect = detect.unwrap();
            while_idle(&upstream, {
                let (bin, upstream, sink, detect) =
                    (pipeline.0.clone(), upstream.clone(), sink.clone(), detect.clone());
                move || {
                    bin.add(&detect).unwrap();
                    upstream.unlink(&sink.static_pad("sink").unwrap()).unwrap();
                    upstream.link(&detect.static_pad("sink").unwrap()).unwrap();
                    detect.link(&sink).unwrap();
                    detect.sync_state_with_parent().unwrap();
                }
            });
            let deadline = Instant::now() + PATIENCE;
            while detect.property::<gst::Structure>("stats").get::<u64>("frames-out").unwrap() < 3 {
                assert!(Instant::now() < deadline, "no frame passes");
                std::thread::sleep(Duration::from_millis(1));
            }
            while_idle(&upstream, {
                let (bin, upstream, sink) = (pipeline.0.clone(), upstream.clone(), sink.clone());
                move || {
                    upstream.unlink(&detect.static_pad("sink").unwrap()).unwrap();
                    detect.unlink(&sink);
                    bin.remove(&detect).unwrap();
                    detect.set_state(Null).unwrap();
                    upstream.link(&sink.static_pad("sink").unwrap()).unwrap();
                }
            });
        }
        assert!(pipeline.bus().pop_filtered(&[gst::MessageType::Error]).is_none());
    });
}

#[test]
fn two_hundred_starts_do_not_grow_the_process() {
    const TEST: &str = "two_hundred_starts_do_not_grow_the_process";
    if role().is_none() {
        // In a process of its own: other tests would count.
        let output = child(TEST, "cycles", &[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let cycle = || {
        let pipeline = Pipeline::new(&format!(
            "videotestsrc num-buffers=3 ! video/x-raw,format=RGB,width=64,height=64 ! \
             yolodetect model-file={} ! yolooverlay ! fakesink",
            tiny("v8")
        ));
        pipeline.run().unwrap();
    };
    (0..50).for_each(|_| cycle());
    gstyolodetect::memory::return_free_heap();
    let before = gstyolodetect::memory::resident_bytes();
    (0..200).for_each(|_| cycle());
    gstyolodetect::memory::return_free_heap();
    let grown = gstyolodetect::memory::resident_bytes().saturating_sub(before);
    println!("grown by {grown} bytes");
    assert!(grown < 20_000_000, "grown by {grown} bytes");
    let threads = std::fs::read_dir("/proc/self/task").unwrap().count();
    assert!(threads < 30, "{threads} threads are left");
}

#[test]
fn nothing_is_alive_at_the_end() {
    const TEST: &str = "nothing_is_alive_at_the_end";
    if role().is_none() {
        let tracer = [("GST_TRACERS", "leaks"), ("GST_DEBUG", "GST_TRACER:7"), ("GST_DEBUG_NO_COLOR", "1")];
        let output = child(TEST, "leaks", &tracer);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        // Not the lines that only describe the format.
        let is_alive = |line: &&str| line.contains("object-alive, ") && !line.contains("%s");
        let alive: Vec<_> = text.lines().filter(is_alive).collect();
        assert!(alive.is_empty(), "{}", alive.join("\n"));

        // Or it would see nothing because it looks for the wrong thing.
        let output = child(TEST, "leak one", &tracer);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            text.lines().any(|line| line.contains("object-alive") && line.contains("GstBuffer")),
            "{text}"
        );
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let lines = folder.path().join("out.jsonl");
    let detect = format!("yolodetect model-file={} max-batch=2", tiny("v8_dynamic_batch"));
    let source = "videotestsrc num-buffers=20 ! video/x-raw,format=RGB,width=64,height=64";
    let pipeline = Pipeline::new(&format!(
        "{source} ! {detect} ! yolooverlay ! yolojson ! filesink location={}",
        lines.display()
    ));
    pipeline.run().unwrap();
    drop(pipeline);
    // Frames, events and queries in flight when it stops, and flushes.
    let pipeline = endless(&format!("model-file={}", tiny("v8")), "appsink max-buffers=1 sync=false");
    for _ in 0..5 {
        pipeline.0.set_state(Playing).unwrap();
        pipeline.0.state(patience()).0.unwrap();
        pipeline.0.seek_simple(gst::SeekFlags::FLUSH, millis(0)).unwrap();
        pipeline.0.set_state(Null).unwrap();
    }
    drop(pipeline);
    let rig = Rig::new(&[]);
    rig.seen.answer(Some(gst::FlowError::NotLinked));
    assert_eq!(rig.push_until_refused(), gst::FlowError::NotLinked);
    rig.event(gst::event::Caps::new(&rig::caps(128)));
    drop(rig);
    if role().as_deref() == Some("leak one") {
        std::mem::forget(gst::Buffer::new());
    }
    // SAFETY: nothing of GStreamer is used after this.
    unsafe { gst::deinit() };
}

#[test]
fn the_process_may_exit_at_any_time() {
    const TEST: &str = "the_process_may_exit_at_any_time";
    let Some(role) = role() else {
        for role in ["null", "ready", "paused", "playing", "stopping"] {
            for _ in 0..3 {
                let output = child(TEST, role, &[]);
                let text = String::from_utf8_lossy(&output.stderr);
                assert_eq!(output.status.code(), Some(7), "{role}: {:?}\n{text}", output.status);
                assert!(!text.contains("CRITICAL") && !text.contains("panicked"), "{role}: {text}");
            }
        }
        return;
    };
    let pipeline = Pipeline::new(&format!(
        "filesrc location={} ! decodebin ! tee name=t \
         t. ! queue ! yolodetect name=detect model-file={model} ! fakesink sync=false \
         t. ! queue ! yolodetect model-file={model} ! fakesink sync=false",
        asset("clips/bikes.mp4").display(),
        model = yolo12n(),
    ));
    let state = match role.as_str() {
        "null" => Null,
        "ready" => Ready,
        "paused" => Paused,
        _ => Playing,
    };
    pipeline.0.set_state(state).unwrap();
    pipeline.0.state(patience()).0.unwrap();
    let detect = pipeline.by_name("detect");
    if state == Playing {
        let deadline = Instant::now() + PATIENCE;
        while detect.property::<gst::Structure>("stats").get::<u64>("frames-out").unwrap() < 2 {
            assert!(Instant::now() < deadline, "no frame");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let bin = pipeline.0.clone();
    std::mem::forget(pipeline);
    if role == "stopping" {
        // The engine is released on another thread meanwhile.
        std::thread::spawn(move || bin.set_state(Null));
    }
    std::thread::sleep(Duration::from_millis(30));
    std::process::exit(7);
}

/// With GStreamer's own tool, the plugin loaded as users load it.
#[test]
fn a_command_line_ends_cleanly_on_interrupt() {
    common::init();
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("gst-launch-1.0");
    command
        .args(["-e", "videotestsrc", "!", "video/x-raw,width=640,height=480", "!", "yolodetect"])
        .arg(format!("model-file={}", yolo12n()))
        .args(["!", "yolooverlay", "!", "fakesink"])
        .env("GST_PLUGIN_PATH", common::plugin_folder(folder.path()))
        .env("GST_REGISTRY", folder.path().join("registry.bin"))
        .env("ORT_DYLIB_PATH", common::library())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("PLAYING") {
        line.clear();
        let read = std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
        assert!(read > 0 && Instant::now() < deadline, "it does not play");
    }
    std::thread::sleep(Duration::from_millis(300));
    let interrupt = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(interrupt.success());
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "it does not end");
        std::thread::sleep(Duration::from_millis(10));
    };
    let mut text = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut text).unwrap();
    assert!(status.code().is_some(), "{status}: {text}");
    assert!(!text.contains("CRITICAL") && !text.contains("panicked"), "{text}");
}
