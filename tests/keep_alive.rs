//! `model-keep-alive`: how long an engine outlives its elements.
//!
//! Tests run at the same time in one process: each has a model of its own, and so engines of its own.

mod common;
#[path = "common/rig.rs"]
mod rig;

use std::time::Instant;

use common::{PATIENCE, in_own_process, own_tiny};
use gst::prelude::*;
use gstyolodetect::engine::registry;
use rig::Rig;

const HOUR: &str = "3600000000000";

fn of(model: &str, keep_alive: &str) -> Rig {
    Rig::new(&[("model-file", model), ("model-keep-alive", keep_alive)])
}

fn run_frame(rig: &Rig, frames: u64) {
    rig.push_frames(0..1);
    rig.until_stats("frame", |stats| {
        stats.get::<gst::Structure>("engine").unwrap().get::<u64>("frames") == Ok(frames)
    });
}

fn restart(rig: &Rig) {
    rig.element.set_state(gst::State::Ready).unwrap();
    rig.element.set_state(gst::State::Playing).unwrap();
    // Its pads were reset; upstream's begin anew.
    rig.src.set_active(false).unwrap();
    rig.src.set_active(true).unwrap();
    rig.begin();
}

fn frames(rig: &Rig) -> u64 {
    rig.engine().get("frames").unwrap()
}

#[test]
fn an_engine_that_is_kept_is_there_for_who_returns() {
    let rig = of(&own_tiny("v8", "kept"), HOUR);
    run_frame(&rig, 1);
    for count in 2..5 {
        restart(&rig);
        assert_eq!(frames(&rig), count - 1, "it was not loaded anew");
        run_frame(&rig, count);
    }
    // And for any other element with the same model.
    rig.element.set_state(gst::State::Null).unwrap();
    assert_eq!(frames(&of(&own_tiny("v8", "kept"), "0")), 4);
}

#[test]
fn by_default_nothing_is_kept() {
    let rig = Rig::new(&[("model-file", &own_tiny("v8", "not-kept"))]);
    run_frame(&rig, 1);
    restart(&rig);
    assert_eq!(frames(&rig), 0);
}

#[test]
fn the_longest_of_all_who_used_it_counts() {
    let model = own_tiny("v8", "longest");
    let (short, long) = (of(&model, "0"), of(&model, HOUR));
    run_frame(&short, 1);
    long.element.set_state(gst::State::Ready).unwrap();
    restart(&short);
    assert_eq!(frames(&short), 1);
}

#[test]
fn it_may_be_set_while_playing() {
    let rig = of(&own_tiny("v8", "later"), "0");
    run_frame(&rig, 1);
    rig.element.set_property_from_str("model-keep-alive", HOUR);
    restart(&rig);
    assert_eq!(frames(&rig), 1);
}

fn threads_named(name: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let named = |task: &std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
    };
    tasks.flatten().filter(named).count()
}

#[test]
fn an_engine_that_nobody_comes_back_for_ends_by_itself() {
    if !in_own_process("an_engine_that_nobody_comes_back_for_ends_by_itself") {
        return;
    }
    let (short, long) = (of(&own_tiny("v8", "short"), "100000000"), of(&own_tiny("v8", "long"), HOUR));
    run_frame(&short, 1);
    run_frame(&long, 1);
    for rig in [&long, &short] {
        rig.element.set_state(gst::State::Ready).unwrap();
    }
    let until = |what: &str, holds: &dyn Fn() -> bool| {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < deadline, "never: {what}");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    };
    until("one is left", &|| registry::idle_engines() == 1);
    until("its threads too", &|| threads_named("yolo-engine-0") == 1);
    restart(&short);
    assert_eq!(frames(&short), 0, "loaded anew");
    restart(&long);
    assert_eq!(frames(&long), 1, "the other was kept");
    // Nothing is idle any more, and nobody waits for it.
    until("no thread", &|| threads_named("yolo-keep-alive") == 0);
}

#[test]
fn a_process_that_exits_with_an_idle_engine_exits_well() {
    if !in_own_process("a_process_that_exits_with_an_idle_engine_exits_well") {
        return;
    }
    let rig = of(&own_tiny("v8", "at-exit"), HOUR);
    run_frame(&rig, 1);
    rig.element.set_state(gst::State::Null).unwrap();
    assert_eq!(registry::idle_engines(), 1);
}
