//! A stream whose way out is blocked holds nobody up who shares its engine, and can be stopped.

mod common;
#[path = "common/rig.rs"]
mod rig;

use std::sync::mpsc;

use common::{PATIENCE, Pipeline, asset, own_tiny, within_patience};
use gst::State::{Null, Paused, Playing, Ready};
use gst::prelude::*;
use rig::Rig;

const OTHERS: usize = 15;

/// Ways for a stream to come to a halt behind `yolodetect`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Halt {
    /// The sink's chain function does not return.
    Sink,
    /// A queue in between is full.
    Queue,
    /// The sink waits for a time that is far away.
    Clock,
    /// The sink has its first frame and is not told to play.
    Preroll,
    /// A probe blocks the source pad when the first frame comes.
    Probe,
    /// A probe blocks it from the start, so that the first event does not leave.
    ProbeOnEvents,
    /// Nothing is linked: no halt, but the end.
    Unlinked,
}

const HALTS: [Halt; 7] =
    [Halt::Sink, Halt::Queue, Halt::Clock, Halt::Preroll, Halt::Probe, Halt::ProbeOnEvents, Halt::Unlinked];

struct Stuck {
    halt: Halt,
    pipeline: Pipeline,
}

impl Stuck {
    /// A stream that has come to its halt, with as many frames in flight as it may have.
    fn new(halt: Halt, properties: &str, in_flight: u32) -> Self {
        let sink = match halt {
            Halt::Sink => "! appsink sync=false max-buffers=1",
            Halt::Queue => "! queue max-size-buffers=1 ! appsink sync=false max-buffers=1",
            Halt::Clock => "! fakesink sync=true ts-offset=3600000000000",
            Halt::Preroll => "! fakesink sync=false",
            Halt::Probe | Halt::ProbeOnEvents => "! fakesink sync=false async=false",
            Halt::Unlinked => "",
        };
        let pipeline = Pipeline::new(&format!(
            "videotestsrc ! video/x-raw,format=RGB,width=64,height=64 ! \
             yolodetect name=detect max-in-flight={in_flight} {properties} {sink}"
        ));
        let stuck = Self { halt, pipeline };
        let (blocked, is_blocked) = mpsc::channel();
        let probe = match halt {
            Halt::Probe => gst::PadProbeType::BLOCK | gst::PadProbeType::BUFFER,
            Halt::ProbeOnEvents => gst::PadProbeType::BLOCK_DOWNSTREAM,
            _ => gst::PadProbeType::empty(),
        };
        if !probe.is_empty() {
            stuck.detect().static_pad("src").unwrap().add_probe(probe, move |_, _| {
                let _ = blocked.send(());
                gst::PadProbeReturn::Ok
            });
        }
        let state = if halt == Halt::Preroll { Paused } else { Playing };
        stuck.pipeline.0.set_state(state).unwrap();
        match halt {
            Halt::ProbeOnEvents => is_blocked.recv_timeout(PATIENCE).unwrap(),
            Halt::Unlinked => drop(stuck.pipeline.wait(gst::MessageType::Error)),
            _ => rig::until_stats(&stuck.detect(), "full queue", |stats| depth(stats) == in_flight),
        }
        stuck
    }

    fn detect(&self) -> gst::Element {
        self.pipeline.by_name("detect")
    }

    /// It did not move meanwhile.
    fn assert_stuck(&self, in_flight: u32) {
        let stats = self.detect().property::<gst::Structure>("stats");
        let expected = if matches!(self.halt, Halt::Unlinked | Halt::ProbeOnEvents) { 0 } else { in_flight };
        assert_eq!(depth(&stats), expected, "{:?}: {stats}", self.halt);
        // One in the sink, one on its way, one in the queue, one behind it.
        assert!(stats.get::<u64>("frames-out").unwrap() <= 4, "{:?}: {stats}", self.halt);
    }

    fn stop(self) {
        let Self { halt, pipeline } = self;
        within_patience(&format!("stopping at {halt:?}"), move || {
            // A blocked pad is freed by its own element's stop, a sink that blocks only by the sink's.
            if matches!(halt, Halt::Probe | Halt::ProbeOnEvents | Halt::Unlinked) {
                pipeline.by_name("detect").set_state(Null).unwrap();
            }
            pipeline.0.set_state(Ready).unwrap();
            pipeline.0.set_state(Null).unwrap();
        });
    }
}

fn depth(stats: &gst::StructureRef) -> u32 {
    stats.get("queue-depth").unwrap()
}

/// Fifteen streams that push so many frames each, and get them.
struct Others(Vec<Rig>);

impl Others {
    fn new(properties: &[(&str, &str)]) -> Self {
        Self((0..OTHERS).map(|_| Rig::new(properties)).collect())
    }

    fn pass(self, frames: u64) -> Self {
        let rigs = self.0;
        let (done, passed) = mpsc::channel();
        within_patience("a stream beside one that is stuck", move || {
            std::thread::scope(|scope| {
                for rig in &rigs {
                    scope.spawn(move || {
                        rig.seen.forget();
                        rig.push_frames(0..frames);
                        let seen = rig.seen.frames(frames as usize);
                        assert!(seen.iter().all(|seen| seen.status == "inferred"));
                    });
                }
            });
            done.send(rigs).unwrap();
        });
        Self(passed.recv().unwrap())
    }

    fn streams(&self) -> u32 {
        self.0[0].engine().get("streams").unwrap()
    }
}

/// One that is stuck, in every way; then all of them at once.
fn halts(owner: &str, stuck: &str, others: &[(&str, &str)], frames: u64) {
    const IN_FLIGHT: u32 = 9;
    common::init();
    let model = own_tiny("v8_dynamic_batch", owner);
    let stuck = format!("model-file={model} max-batch=4 {stuck}");
    let mut properties = vec![("model-file", model.as_str()), ("max-batch", "4")];
    properties.extend(others);
    let new = |halt| Stuck::new(halt, &stuck, IN_FLIGHT);

    let mut others = Others::new(&properties);
    for halt in HALTS {
        let stuck = new(halt);
        others = others.pass(frames);
        stuck.assert_stuck(IN_FLIGHT);
        stuck.stop();
        assert_eq!(others.streams() as usize, OTHERS, "{halt:?} has left");
    }
    let stuck = HALTS.map(new);
    others = others.pass(frames);
    for stuck in stuck {
        stuck.assert_stuck(IN_FLIGHT);
        stuck.stop();
    }
    others.pass(frames);
}

#[test]
fn others_go_on_whatever_one_stands_before() {
    halts("stuck", "", &[], 200);
}

#[test]
fn others_go_on_where_batches_wait_for_company() {
    let delay = ("batch-delay", "2000000");
    halts("stuck-delayed", "batch-delay=1000000000", &[delay], 50);
}

#[test]
fn the_real_network_goes_on_beside_a_stuck_stream() {
    common::init();
    let model = asset("models/variants/dynamic_batch.onnx").display().to_string();
    for (delay, frames) in [("0", 6), ("50000000", 2)] {
        // As many frames as a stream of this batch holds by itself.
        let stuck = Stuck::new(Halt::Sink, &format!("model-file={model} max-batch=4 batch-delay={delay}"), 9);
        let others = Others::new(&[("model-file", &model), ("max-batch", "4"), ("batch-delay", delay)]);
        assert_eq!(others.streams() as usize, OTHERS + 1);
        let others = others.pass(frames);
        stuck.assert_stuck(9);
        stuck.stop();
        assert_eq!(others.streams() as usize, OTHERS);
    }
}
