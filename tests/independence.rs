//! Whatever befalls one stream, another that shares its engine never waits for more than what was in the
//! engine already and one inference of each stream before it, or a few where that one's thread slept over its turns. Counted
//! in the engine's runs.

mod common;
#[path = "common/rig.rs"]
mod rig;
#[path = "common/service.rs"]
mod service;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

use common::{PATIENCE, Pipeline, own_tiny, within_patience};
use gst::State::{Null, Paused, Playing, Ready};
use gst::prelude::*;
use rig::{Rig, millis};
use service::{run_of, until, until_served, while_pushing};

/// Turns that the other stream may have to catch up on: its thread was woken for a free slot and did not get a core while the
/// watched one, on which the engine does not wait for it, got several.
const OWED: u64 = 4;

/// A moment at which every stream stood in line for the engine.
struct Moment {
    /// Runs that had ended.
    ended: u64,
    /// Slots that were given away at most.
    given: u64,
    /// Streams in line.
    line: u64,
    /// The frame with which the watched stream stood there.
    frame: u64,
}

/// The stream that is watched, and that always wants more.
struct Watched {
    rig: Rig,
    /// Frames that it has handed in.
    taken: AtomicU64,
}

impl Watched {
    fn push(&self, frame: u64) {
        service::push(&self.rig, frame);
        self.taken.store(frame + 1, Ordering::SeqCst);
    }

    /// Looks once; not every look finds all of `line` waiting.
    fn look(&self, line: u32) -> Option<Moment> {
        let frame = self.taken.load(Ordering::SeqCst);
        let engine = self.rig.engine();
        // All figures of the engine are of one moment. Its frame is the same before and after, so it was
        // then.
        let in_line = engine.get::<u32>("waiting") == Ok(line);
        (in_line && self.taken.load(Ordering::SeqCst) == frame).then(|| Moment {
            ended: engine.get("batches").unwrap(),
            given: u64::from(engine.get::<u32>("slots").unwrap()),
            line: line.into(),
            frame,
        })
    }

    /// Ends the stream: every frame was inferred in its turn.
    fn check(&self, moments: &[Moment]) {
        self.rig.event(gst::event::Eos::new());
        let seen = rig::frames_of(&self.rig.seen.eos());
        assert_eq!(seen.len() as u64, self.taken.load(Ordering::SeqCst));
        assert!(seen.iter().all(|seen| seen.status == "inferred"));
        assert!(moments.len() > 20, "seen in line {} times only", moments.len());
        for Moment { ended, given, line, frame } in moments {
            let waited =
                run_of(&seen[*frame as usize]).checked_sub(*ended).expect("a run that is still to come");
            assert!(
                waited < given + line + OWED,
                "frame {frame} ran as number {waited}, {given} slots, {line} in line"
            );
        }
    }
}

/// A stream that may be disturbed: frames as fast as they are taken.
fn disturbed(model: &str) -> Pipeline {
    let pipeline = Pipeline::new(&format!(
        "videotestsrc name=source ! capsfilter name=caps caps=video/x-raw,format=RGB,width=64,height=64 ! \
         yolodetect name=detect threads=1 max-in-flight=3 model-file={model} ! identity name=breaks silent=true ! \
         fakesink name=sink sync=false"
    ));
    play(&pipeline);
    pipeline
}

fn play(pipeline: &Pipeline) {
    pipeline.0.set_state(Playing).unwrap();
    until_frames(pipeline);
}

/// Until some more frames have come through.
fn until_frames(pipeline: &Pipeline) {
    let (passed, passes) = mpsc::channel();
    let pad = pipeline.by_name("sink").static_pad("sink").unwrap();
    let probe = pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
        let _ = passed.send(());
        gst::PadProbeReturn::Ok
    });
    (0..3).for_each(|_| passes.recv_timeout(PATIENCE).expect("a frame of the disturbed stream"));
    pad.remove_probe(probe.unwrap());
}

/// Has one stream watched while `disturb` is done to another, five times.
fn undisturbed_by(owner: &'static str, disturb: impl Fn(&mut Pipeline, &Watched, u64) + Send + 'static) {
    common::init();
    let model = own_tiny("slow", owner);
    within_patience(&format!("a stream beside {owner}"), move || {
        let rig = service::rig(&model, &[]);
        let watched = Watched { rig, taken: AtomicU64::new(0) };
        let mut other = disturbed(&model);
        let mut moments = Vec::new();
        let finished = std::sync::atomic::AtomicBool::new(false);
        while_pushing(
            1,
            |_, frame| watched.push(frame),
            || {
                std::thread::scope(|scope| {
                    let looking = scope.spawn(|| {
                        let mut moments = Vec::new();
                        until("end of the disturbances", || {
                            moments.extend(watched.look(2));
                            finished.load(Ordering::SeqCst)
                        });
                        moments
                    });
                    for turn in 0..5 {
                        disturb(&mut other, &watched, turn);
                        go_on(&watched);
                    }
                    finished.store(true, Ordering::SeqCst);
                    moments = looking.join().unwrap();
                });
            },
        );
        println!("{owner}: seen in line {} times", moments.len());
        watched.check(&moments);
    });
}

/// Until the watched stream has got some more.
fn go_on(watched: &Watched) {
    until_served(&watched.rig, watched.rig.engine().get::<u64>("frames").unwrap() + 10);
    let before = watched.rig.count("inferred");
    watched.rig.until_stats("more inferences", |stats| stats.get::<u64>("inferred").unwrap() >= before + 5);
}

fn seek(pipeline: &Pipeline, flags: gst::SeekFlags, turn: u64) {
    pipeline.0.seek_simple(flags, millis(100 * turn)).unwrap();
}

#[test]
fn by_a_blocked_sink() {
    undisturbed_by("blocked-sink", |other, watched, _| {
        let (blocked, is_blocked) = mpsc::channel();
        let pad = other.by_name("sink").static_pad("sink").unwrap();
        let probe = pad.add_probe(gst::PadProbeType::BLOCK | gst::PadProbeType::BUFFER, move |_, _| {
            let _ = blocked.send(());
            gst::PadProbeReturn::Ok
        });
        is_blocked.recv_timeout(PATIENCE).unwrap();
        let detect = other.by_name("detect");
        rig::until_stats(&detect, "full queue", |stats| stats.get::<u32>("queue-depth") == Ok(3));
        let before = detect.property::<gst::Structure>("stats").get::<u64>("frames-out");
        go_on(watched);
        // It was stuck all the while.
        assert_eq!(detect.property::<gst::Structure>("stats").get::<u64>("frames-out"), before);
        pad.remove_probe(probe.unwrap());
        until_frames(other);
    });
}

#[test]
fn by_a_flush() {
    undisturbed_by("flush", |other, _, turn| {
        seek(other, gst::SeekFlags::FLUSH | gst::SeekFlags::ACCURATE, turn);
        until_frames(other);
    });
}

#[test]
fn by_a_seek_without_a_flush() {
    undisturbed_by("seek", |other, _, turn| {
        seek(other, gst::SeekFlags::ACCURATE, turn);
        until_frames(other);
    });
}

#[test]
fn by_an_end_of_stream() {
    undisturbed_by("end-of-stream", |other, watched, turn| {
        assert!(other.0.send_event(gst::event::Eos::new()));
        other.wait(gst::MessageType::Eos);
        go_on(watched);
        seek(other, gst::SeekFlags::FLUSH, turn);
        until_frames(other);
    });
}

#[test]
fn by_an_error() {
    undisturbed_by("error", |other, watched, _| {
        other.0.set_state(Ready).unwrap();
        other.by_name("breaks").set_property("error-after", 10i32);
        other.0.set_state(Playing).unwrap();
        other.wait(gst::MessageType::Error);
        go_on(watched);
        other.0.set_state(Ready).unwrap();
        other.by_name("breaks").set_property("error-after", -1i32);
        play(other);
    });
}

#[test]
fn by_changes_of_caps() {
    undisturbed_by("caps", |other, _, turn| {
        for size in [32, 96 + turn as i32, 64] {
            let caps = gst::Caps::builder("video/x-raw").field("format", "RGB");
            let caps = caps.field("width", size).field("height", size).build();
            other.by_name("caps").set_property("caps", caps);
            until_frames(other);
        }
    });
}

#[test]
fn by_a_removal() {
    let model = own_tiny("slow", "removal");
    undisturbed_by("removal", move |other, watched, _| {
        other.0.set_state(Null).unwrap();
        go_on(watched);
        *other = disturbed(&model);
        assert_eq!(watched.rig.engine().get::<u32>("streams"), Ok(2));
    });
}

#[test]
fn by_changes_of_state() {
    undisturbed_by("states", |other, _, _| {
        for state in [Paused, Playing, Ready, Playing, Null, Paused, Null] {
            other.0.set_state(state).unwrap();
        }
        play(other);
    });
}
