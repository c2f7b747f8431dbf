//! `yolodetect` as a `queue` that also detects: order, events, queries, flushes, errors, thinning.

mod common;
#[path = "common/rig.rs"]
mod rig;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{PATIENCE, Pipeline, asset, tiny, yolo12n};
use gst::prelude::*;
use parking_lot::Mutex;
use rig::{Rig, Seen, caps, frames_of, millis, picture, segment};

fn custom(name: &str) -> gst::Structure {
    gst::Structure::new_empty(name)
}

/// The timestamps of what passes a pad.
fn record(pad: &gst::Pad) -> Arc<Mutex<Vec<Seen>>> {
    let log = Arc::new(Mutex::new(Vec::new()));
    pad.add_probe(gst::PadProbeType::BUFFER, {
        let log = log.clone();
        move |pad, info| {
            if let Some(buffer) = info.buffer() {
                log.lock().push(Seen::new(buffer, pad.current_caps()));
            }
            gst::PadProbeReturn::Ok
        }
    });
    log
}

/// A clip's timestamps as its decoder gives them.
fn decoded(clip: &str) -> Vec<Option<gst::ClockTime>> {
    let location = asset(clip).display().to_string();
    let pipeline = Pipeline::new(&format!("filesrc location={location} ! decodebin ! fakesink name=sink"));
    let log = Arc::new(Mutex::new(Vec::new()));
    let pad = pipeline.by_name("sink").static_pad("sink").unwrap();
    pad.add_probe(gst::PadProbeType::BUFFER, {
        let log = log.clone();
        move |_, info| {
            log.lock().extend(info.buffer().map(|buffer| buffer.pts()));
            gst::PadProbeReturn::Ok
        }
    });
    pipeline.run().unwrap();
    drop(pipeline);
    std::mem::take(&mut *log.lock())
}

fn run_clip(properties: &str) -> Vec<Seen> {
    let location = asset("clips/bikes.mp4").display().to_string();
    let pipeline = Pipeline::new(&format!(
        "filesrc location={location} ! decodebin ! yolodetect name=detect {properties} ! fakesink"
    ));
    let log = record(&pipeline.by_name("detect").static_pad("src").unwrap());
    pipeline.run().unwrap();
    drop(pipeline);
    std::mem::take(&mut *log.lock())
}

fn assert_whole(seen: &[Seen], expected: &[Option<gst::ClockTime>]) {
    assert_eq!(seen.len(), 250);
    assert_eq!(seen.iter().map(|seen| seen.pts).collect::<Vec<_>>(), expected);
    assert_eq!(seen.iter().map(|seen| seen.number).collect::<Vec<_>>(), (0..250).collect::<Vec<_>>());
}

#[test]
fn every_frame_of_a_clip_comes_out_once_in_order() {
    let expected = decoded("clips/bikes.mp4");
    let model = yolo12n();
    let all = run_clip(&format!("model-file={model}"));
    assert_whole(&all, &expected);
    assert!(all.iter().all(|seen| seen.status == "inferred"));
    assert!(all.iter().filter(|seen| !seen.boxes.is_empty()).count() > 200, "a street is never empty");

    let some = run_clip(&format!("model-file={model} inference-interval=25"));
    assert_whole(&some, &expected);
    for (number, seen) in some.iter().enumerate() {
        assert_eq!(seen.status, if number % 25 == 0 { "inferred" } else { "interval" }, "frame {number}");
        assert!(seen.status == "inferred" || seen.boxes.is_empty());
        if number % 25 == 0 {
            assert_eq!(seen.boxes, all[number].boxes, "frame {number}");
        }
    }
}

#[test]
fn serialized_events_keep_their_place() {
    let rig = Rig::new(&[]);
    rig.seen.close();
    let tags = |title: &str| {
        let mut tags = gst::TagList::new();
        tags.get_mut().unwrap().add::<gst::tags::Title>(&title, gst::TagMergeMode::Append);
        gst::event::Tag::new(tags)
    };
    rig.push_frames(0..1);
    rig.event(tags("one"));
    rig.event(gst::event::CustomDownstream::new(custom("mine")));
    rig.event(gst::event::Gap::builder(millis(40)).duration(millis(40)).build());
    rig.push_frames(2..3);
    rig.event(gst::event::Caps::new(&caps(128)));
    rig.event(segment());
    rig.event(gst::event::CustomDownstreamSticky::new(custom("sticky")));
    rig.src.push(picture(128, 200, millis(120))).unwrap();
    rig.event(gst::event::Eos::new());
    rig.seen.open();
    rig.seen.eos();
    assert_eq!(
        rig.seen.briefs(),
        [
            "stream-start",
            "caps",
            "segment",
            "frame 0",
            "tag",
            "custom-downstream",
            "gap",
            "frame 80",
            "caps",
            "segment",
            "custom-downstream-sticky",
            "frame 120",
            "eos"
        ]
    );
}

#[test]
fn out_of_band_events_overtake() {
    let rig = Rig::new(&[]);
    rig.seen.close();
    rig.push_frames(0..2);
    rig.seen.until_blocked();
    rig.event(gst::event::CustomDownstreamOob::new(custom("urgent")));
    let items = rig.seen.until("event", |items| items.len() == 4);
    assert_eq!(items[3].brief(), "custom-downstream-oob");
    rig.seen.open();
    rig.seen.frames(2);
}

#[test]
fn end_of_stream_waits_for_every_frame_and_for_no_delay() {
    let rig = Rig::new(&[("max-batch", "8"), ("batch-delay", "10000000000"), ("threads", "3")]);
    rig.push_frames(0..3);
    rig.event(gst::event::Eos::new());
    let items = rig.seen.eos();
    assert_eq!(items.last().unwrap().brief(), "eos");
    assert_eq!(frames_of(&items).iter().map(|seen| seen.batch).collect::<Vec<_>>(), [3, 3, 3]);
    assert_eq!(rig.src.push(picture(64, 0, millis(0))), Err(gst::FlowError::Eos));
}

#[test]
fn serialized_queries_are_answered_in_their_place() {
    let rig = Rig::new(&[("max-in-flight", "3")]);
    rig.seen.close();
    rig.push_frames(0..2);
    rig.seen.until_blocked();
    let queried = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut allocation = gst::query::Allocation::new(Some(&caps(64)), true);
            assert!(rig.src.peer_query(&mut allocation));
            queried.store(true, Ordering::Relaxed);
            assert!(rig.src.peer_query(&mut gst::query::Drain::new()));
            allocation.allocation_pools().map(|(_, _, min, max)| (min, max)).collect::<Vec<_>>()
        });
        std::thread::sleep(Duration::from_millis(20));
        assert!(!queried.load(Ordering::Relaxed), "two frames are before it");
        rig.seen.open();
        // Three in flight and one in the push; 0 is no limit. The first is of our own pool, where there was none.
        assert_eq!(asking.join().unwrap(), [(2 + 4, 0), (1 + 4, 0)]);
    });
    rig.push_frames(2..3);
    rig.seen.frames(3);
    let briefs = rig.seen.briefs();
    assert_eq!(briefs[3..], ["frame 0", "frame 40", "query allocation", "query drain", "frame 80"]);
}

#[test]
fn a_flush_drops_what_is_in_flight_and_starts_anew() {
    let rig = Rig::new(&[("max-in-flight", "2")]);
    rig.seen.close();
    std::thread::scope(|scope| {
        let pushing = scope.spawn(|| (0..9).map(|index| rig.push(index, 200)).find_map(Result::err));
        rig.seen.until_blocked();
        rig.until_stats("queue", |stats| stats.get::<u32>("queue-depth") == Ok(2));
        rig.src.push_event(gst::event::FlushStart::new());
        assert_eq!(pushing.join().unwrap(), Some(gst::FlowError::Flushing));
    });
    assert_eq!(rig.push(0, 200), Err(gst::FlowError::Flushing));
    rig.src.push_event(gst::event::FlushStop::new(true));
    rig.seen.open();
    rig.event(segment());
    rig.push(100, 150).unwrap();
    let seen = rig.seen.frames(1);
    assert_eq!((seen[0].pts, seen.len()), (Some(millis(4000)), 1));
    assert!((seen[0].confidence.unwrap() - 150.0 / 255.0).abs() < 0.01);
    assert_eq!(rig.stats().get::<u32>("queue-depth"), Ok(0));
}

#[test]
fn caps_that_were_in_flight_are_not_lost_in_a_flush() {
    let rig = Rig::new(&[]);
    rig.seen.close();
    rig.push_frames(0..1);
    rig.seen.until_blocked();
    rig.event(gst::event::Caps::new(&caps(128)));
    rig.flush();
    rig.seen.open();
    rig.event(segment());
    rig.src.push(picture(128, 200, millis(0))).unwrap();
    let seen = rig.seen.frames(1);
    assert_eq!(seen[0].width, Some(128));
    assert_eq!(seen[0].boxes, [(32, 48, 64, 32)]);
}

#[test]
fn flushes_at_any_time_leave_nobody_waiting() {
    let rig = Rig::new(&[("max-in-flight", "2"), ("max-batch", "2")]);
    let done = AtomicBool::new(false);
    let pushed = AtomicU64::new(0);
    // No data between a flush and the segment that follows it, as upstream elements see to.
    let streaming = Mutex::new(());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for index in 0.. {
                let _streaming = streaming.lock();
                if done.load(Ordering::Relaxed) {
                    break;
                }
                if rig.push(index, 200).is_ok() {
                    pushed.fetch_add(1, Ordering::Relaxed);
                }
                match index % 3 {
                    0 => _ = rig.src.peer_query(&mut gst::query::Drain::new()),
                    1 => _ = rig.src.push_event(gst::event::Caps::new(&caps(64))),
                    _ => (),
                }
            }
        });
        for round in 0..300 {
            rig.src.push_event(gst::event::FlushStart::new());
            if round % 3 == 0 {
                std::thread::yield_now();
            }
            let paused = streaming.lock();
            rig.src.push_event(gst::event::FlushStop::new(true));
            rig.event(segment());
            drop(paused);
            let before = pushed.load(Ordering::Relaxed);
            let deadline = Instant::now() + PATIENCE;
            while round % 5 == 0 && pushed.load(Ordering::Relaxed) < before + 2 {
                assert!(Instant::now() < deadline, "round {round}: the flow stands still");
                std::thread::yield_now();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    rig.flush();
    rig.event(segment());
    rig.seen.forget();
    rig.push_frames(0..3);
    assert_eq!(rig.seen.frames(3).len(), 3);
}

#[test]
fn seeking_in_a_file() {
    let all: Vec<_> = decoded("clips/bikes.mp4").into_iter().flatten().collect();
    let location = asset("clips/bikes.mp4").display().to_string();
    let pipeline = Pipeline::new(&format!(
        "filesrc location={location} ! decodebin ! yolodetect model-file={} ! \
         appsink name=sink sync=false max-buffers=1",
        tiny("v8_dynamic_batch")
    ));
    let sink = pipeline.by_name("sink").downcast::<gst_app::AppSink>().unwrap();
    let patience = gst::ClockTime::try_from(PATIENCE).unwrap();
    pipeline.0.set_state(gst::State::Paused).unwrap();
    pipeline.0.state(patience).0.unwrap();
    let flags = gst::SeekFlags::FLUSH | gst::SeekFlags::ACCURATE;
    for turn in 0..20u64 {
        let target = millis((turn * 3_701) % 9_000);
        pipeline.0.seek_simple(flags, target).unwrap();
        assert_eq!(pipeline.0.state(patience).0, Ok(gst::StateChangeSuccess::Success), "seek {turn}");
        let sample = sink.try_pull_preroll(patience).expect("a frame");
        let seen = Seen::new(sample.buffer().unwrap(), sample.caps().map(|caps| caps.to_owned()));
        let segment = sample.segment().unwrap().downcast_ref::<gst::ClockTime>().unwrap();
        let time = segment.to_stream_time(seen.pts).unwrap();
        assert!(time <= target && target < time + millis(41), "{target} gives {time}");
        assert_eq!(seen.width, Some(640));
    }
    // While it plays, without waiting for anything.
    pipeline.0.set_state(gst::State::Playing).unwrap();
    for turn in 0..30u64 {
        let _ = pipeline.0.seek_simple(flags, millis((turn * 2_003) % 9_000));
        if turn % 4 == 0 {
            sink.try_pull_sample(patience).expect("a frame");
        }
    }
    pipeline.0.seek_simple(flags, millis(9_000)).unwrap();
    let mut last = None;
    while let Some(sample) = sink.try_pull_sample(patience) {
        let pts = sample.buffer().unwrap().pts();
        assert!(last <= pts, "{last:?} before {pts:?}");
        last = pts;
    }
    assert!(sink.is_eos());
    assert_eq!(last, all.last().copied());
}

#[test]
fn caps_that_change_mid_stream_give_each_frame_its_own_geometry() {
    let rig = Rig::new(&[("max-in-flight", "16")]);
    rig.seen.close();
    for (index, size) in [64, 128, 32, 64].into_iter().enumerate() {
        rig.event(gst::event::Caps::new(&caps(size)));
        rig.src.push(picture(size, 200, millis(index as u64))).unwrap();
    }
    // Another format, of full range, so that grey is what it says.
    let gray = gst_video::VideoCapsBuilder::new()
        .format(gst_video::VideoFormat::Gray8)
        .width(64)
        .height(64)
        .framerate(gst::Fraction::new(25, 1))
        .field("colorimetry", "1:0:0:0")
        .build();
    rig.event(gst::event::Caps::new(&gray));
    let mut picture = gst::Buffer::from_mut_slice(vec![180u8; 64 * 64]);
    picture.get_mut().unwrap().set_pts(millis(4));
    rig.src.push(picture).unwrap();
    rig.seen.open();
    let seen = rig.seen.frames(5);
    let geometry: Vec<_> = seen.iter().map(|seen| (seen.width.unwrap(), seen.boxes.clone())).collect();
    let expected =
        [64, 128, 32, 64, 64].map(|size| (size, vec![(size / 4, size * 3 / 8, size / 2, size / 4)]));
    assert_eq!(geometry, expected);
    assert!((seen[4].confidence.unwrap() - 180.0 / 255.0).abs() < 0.01, "{:?}", seen[4]);
}

#[test]
fn an_empty_stream_ends_and_another_follows() {
    let rig = Rig::new(&[]);
    rig.event(gst::event::Eos::new());
    rig.seen.eos();
    rig.seen.forget();
    rig.begin();
    rig.push_frames(0..2);
    rig.event(gst::event::Eos::new());
    rig.seen.eos();
    assert_eq!(rig.seen.briefs(), ["stream-start", "caps", "segment", "frame 0", "frame 40", "eos"]);
    assert!(!rig.has_message(gst::MessageType::Error));
}

#[test]
fn streams_one_after_the_other() {
    let source = "videotestsrc num-buffers=4 ! video/x-raw,format=RGB,width=64,height=64 ! c.";
    let pipeline = Pipeline::new(&format!(
        "concat name=c ! yolodetect name=detect model-file={} ! fakesink {source} {source} {source}",
        tiny("v8")
    ));
    let log = record(&pipeline.by_name("detect").static_pad("src").unwrap());
    pipeline.run().unwrap();
    assert_eq!(log.lock().iter().map(|seen| seen.number).collect::<Vec<_>>(), (0..12).collect::<Vec<_>>());
}

#[test]
fn what_downstream_answers_is_handed_to_upstream() {
    use gst::FlowError::{Eos, Error, Flushing, NotLinked, NotNegotiated};
    for answer in [Eos, Error, Flushing, NotLinked, NotNegotiated] {
        let rig = Rig::new(&[]);
        rig.push_frames(0..1);
        rig.seen.frames(1);
        rig.seen.answer(Some(answer));
        assert_eq!(rig.push_until_refused(), answer);
        assert_eq!(rig.push(0, 200), Err(answer));
        // A sticky event must not turn the answer into an error.
        let mut tags = gst::TagList::new();
        tags.get_mut().unwrap().add::<gst::tags::Title>(&"new", gst::TagMergeMode::Append);
        rig.event(gst::event::Tag::new(tags));
        assert_eq!(rig.push(0, 200), Err(answer));
        assert_eq!(rig.stats().get::<u32>("queue-depth"), Ok(0), "nothing is kept");

        rig.seen.answer(None);
        rig.seen.forget();
        rig.flush();
        rig.event(segment());
        rig.push_frames(5..7);
        let frames = rig.seen.frames(2);
        assert_eq!(frames[0].pts, Some(millis(200)), "{answer:?}");
        let briefs = rig.seen.briefs();
        // After end of stream events are passed on at once.
        assert!(answer == Eos || briefs.contains(&"tag".to_string()), "{answer:?}: {briefs:?}");
    }
}

#[test]
fn a_new_segment_follows_downstreams_end_of_stream() {
    let rig = Rig::new(&[]);
    rig.seen.answer(Some(gst::FlowError::Eos));
    assert_eq!(rig.push_until_refused(), gst::FlowError::Eos);
    rig.seen.answer(None);
    assert_eq!(rig.push(0, 200), Err(gst::FlowError::Eos));
    rig.event(segment());
    rig.push_frames(0..1);
    rig.seen.frames(1);
    // And its end is passed on.
    rig.seen.answer(Some(gst::FlowError::Eos));
    assert_eq!(rig.push_until_refused(), gst::FlowError::Eos);
    rig.event(gst::event::Eos::new());
    rig.seen.eos();
    assert!(!rig.has_message(gst::MessageType::Error));
}

#[test]
fn an_unlinked_source_pad_goes_on_once_it_is_linked() {
    let rig = Rig::unlinked(&[], true);
    rig.begin();
    assert_eq!(rig.push_until_refused(), gst::FlowError::NotLinked);
    rig.event(gst::event::Caps::new(&caps(128)));
    rig.link();
    for index in 0..3 {
        rig.src.push(picture(128, 200, millis(index))).unwrap();
    }
    let seen = rig.seen.frames(3);
    assert_eq!(seen[0].width, Some(128));
    assert!(rig.seen.briefs()[..3].contains(&"segment".to_string()), "{:?}", rig.seen.briefs());
}

#[test]
fn who_has_said_end_of_stream_is_told_by_a_message() {
    // End of stream first, the error after.
    let rig = Rig::new(&[]);
    rig.seen.close();
    rig.push_frames(0..1);
    rig.seen.until_blocked();
    rig.event(gst::event::Eos::new());
    rig.seen.answer(Some(gst::FlowError::Error));
    rig.seen.open();
    rig.message(gst::MessageType::Error);
    rig.seen.eos();
    assert!(!rig.has_message(gst::MessageType::Error), "once");
    // A new stream mends it.
    rig.seen.answer(None);
    rig.begin();
    rig.push_frames(0..1);
    rig.seen.frames(1);

    // The error first.
    let rig = Rig::new(&[]);
    rig.seen.answer(Some(gst::FlowError::NotNegotiated));
    assert_eq!(rig.push_until_refused(), gst::FlowError::NotNegotiated);
    assert!(!rig.has_message(gst::MessageType::Error), "upstream knows and will tell");
    assert!(!rig.src.push_event(gst::event::Eos::new()));
    rig.message(gst::MessageType::Error);

    // A flush in the way is no error.
    let rig = Rig::new(&[]);
    rig.seen.answer(Some(gst::FlowError::Flushing));
    assert_eq!(rig.push_until_refused(), gst::FlowError::Flushing);
    assert!(!rig.src.push_event(gst::event::Eos::new()));
    assert!(!rig.has_message(gst::MessageType::Error));
}

/// What the statistics say of a finished stream.
fn assert_adds_up(rig: &Rig, frames: u64) {
    let skipped = rig.count("skipped-interval") + rig.count("skipped-overload");
    assert_eq!((rig.count("frames-in"), rig.count("frames-out")), (frames, frames));
    assert_eq!(rig.count("inferred") + skipped + rig.count("failed"), frames);
}

fn statuses(rig: &Rig, frames: u64) -> Vec<&'static str> {
    rig.push_frames(0..frames);
    rig.event(gst::event::Eos::new());
    rig.seen.eos();
    assert_adds_up(rig, frames);
    rig.seen.frames(frames as usize).iter().map(|seen| seen.status).collect()
}

#[test]
fn thinning_says_so_and_adds_up() {
    let rig = Rig::new(&[("inference-interval", "3")]);
    let expected = ["inferred", "interval", "interval"];
    assert_eq!(statuses(&rig, 9), [expected, expected, expected].concat());
    assert_eq!((rig.count("inferred"), rig.count("skipped-interval")), (3, 6));

    let rig = Rig::new(&[("max-fps", "5")]);
    let chosen: Vec<_> = statuses(&rig, 25)
        .iter()
        .enumerate()
        .filter(|(_, status)| **status == "inferred")
        .map(|(n, _)| n)
        .collect();
    assert_eq!(chosen, [0, 5, 10, 15, 20]);
}

#[test]
fn a_change_while_playing_is_followed() {
    let rig = Rig::new(&[]);
    rig.push_frames(0..1);
    rig.element.set_property("confidence-threshold", 0.9f32);
    rig.push_frames(1..2);
    rig.element.set_property("inference-interval", 2u32);
    rig.push_frames(2..4);
    let seen = rig.seen.frames(4);
    assert_eq!(seen.iter().map(|seen| seen.boxes.len()).collect::<Vec<_>>(), [1, 0, 0, 0]);
    assert_eq!(seen.iter().filter(|seen| seen.status == "interval").count(), 1);
}

#[test]
fn overload_skips_or_blocks() {
    let model = yolo12n();
    let run = |overload: &str, live: bool| {
        // An engine of its own: others of this process would fill the one that they share.
        let properties = [
            ("model-file", model.as_str()),
            ("threads", "1"),
            ("overload", overload),
            ("max-in-flight", "64"),
        ];
        let rig = Rig::unlinked(&properties, live);
        rig.link();
        rig.begin();
        statuses(&rig, 8)
    };
    for (overload, live, skips) in
        [("skip", false, true), ("auto", true, true), ("auto", false, false), ("block", true, false)]
    {
        let statuses = run(overload, live);
        assert_eq!(statuses[0], "inferred", "{overload}, live {live}");
        let skipped = statuses.iter().filter(|status| **status == "overload").count();
        assert_eq!(skipped > 0, skips, "{overload}, live {live}: {statuses:?}");
        assert!(statuses.iter().all(|status| ["inferred", "overload"].contains(status)));
    }
}

#[test]
fn a_failing_run_costs_detections_not_frames() {
    let model = tiny("fails_at_run");
    let rig = Rig::new(&[("model-file", model.as_str())]);
    let white = |index: u64| {
        let mut buffer = gst::Buffer::from_mut_slice(vec![255u8; 64 * 64 * 3]);
        buffer.get_mut().unwrap().set_pts(millis(40 * index));
        buffer
    };
    rig.push_frames(0..1);
    rig.src.push(white(1)).unwrap();
    rig.push_frames(2..3);
    rig.event(gst::event::Eos::new());
    rig.seen.eos();
    let seen = rig.seen.frames(3);
    assert_eq!(seen.iter().map(|seen| seen.status).collect::<Vec<_>>(), ["inferred", "failed", "inferred"]);
    assert!(seen[1].boxes.is_empty());
    rig.message(gst::MessageType::Warning);
    assert_eq!(rig.count("failed"), 1);
    assert_adds_up(&rig, 3);

    // For ever is too long, and whoever said end of stream learns it too.
    let rig = Rig::new(&[("model-file", model.as_str()), ("max-in-flight", "64")]);
    rig.seen.close();
    for index in 0..40 {
        rig.src.push(white(index)).unwrap();
    }
    rig.event(gst::event::Eos::new());
    rig.seen.open();
    rig.message(gst::MessageType::Error);
    rig.seen.eos();
}

#[test]
fn statistics_are_posted() {
    let rig = Rig::new(&[("stats-interval", "1")]);
    rig.push_frames(0..2);
    let message = rig.message(gst::MessageType::Element);
    let structure = message.structure().unwrap();
    assert_eq!(structure.name(), "yolodetect-stats");
    assert!(structure.get::<u64>("frames-out").unwrap() >= 1);
    assert_eq!(structure.get::<gst::Structure>("engine").unwrap().get::<&str>("device"), Ok("cpu"));

    let rig = Rig::new(&[]);
    rig.push_frames(0..2);
    rig.seen.frames(2);
    assert!(!rig.has_message(gst::MessageType::Element), "0 is never");
}

#[test]
fn batches_form_where_a_delay_is_asked_for() {
    let rig = Rig::new(&[("max-batch", "4"), ("batch-delay", "10000000000"), ("threads", "4")]);
    for red in [100, 150, 200, 250] {
        rig.push(0, red).unwrap();
    }
    let seen = rig.seen.frames(4);
    assert_eq!(seen.iter().map(|seen| seen.batch).collect::<Vec<_>>(), [4; 4]);
    let reds: Vec<_> = seen.iter().map(|seen| (seen.confidence.unwrap() * 255.0).round() as u8).collect();
    assert_eq!(reds, [100, 150, 200, 250]);
    drop(rig);

    // Without one a lone frame runs at once, however large the batch may be.
    let rig = Rig::new(&[("max-batch", "8"), ("threads", "4")]);
    for index in 0..3 {
        rig.push(index, 200).unwrap();
        assert_eq!(rig.seen.frames(index as usize + 1)[index as usize].batch, 1);
    }
}

#[test]
fn no_more_frames_are_held_than_allowed() {
    let rig = Rig::new(&[("max-in-flight", "2"), ("inference-interval", "1000")]);
    rig.seen.close();
    let pushed = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for index in 0..6 {
                rig.push(index, 200).unwrap();
                pushed.fetch_add(1, Ordering::Relaxed);
            }
        });
        rig.seen.until_blocked();
        rig.until_stats("full queue", |stats| stats.get::<u32>("queue-depth") == Ok(2));
        std::thread::sleep(Duration::from_millis(50));
        // One in the sink, two held; the fourth push waits.
        assert_eq!(pushed.load(Ordering::Relaxed), 3);
        rig.seen.open();
    });
    rig.seen.frames(6);
}

#[test]
fn only_a_live_pipeline_is_told_of_our_latency() {
    for live in [true, false] {
        let rig = Rig::unlinked(&[("batch-delay", "1000000")], live);
        rig.link();
        let mut query = gst::query::Latency::new();
        assert!(rig.sink.peer_query(&mut query));
        let (is_live, min, max) = query.result();
        assert_eq!(is_live, live);
        if live {
            assert!(min > millis(8), "{min}");
            assert_eq!(max.unwrap() - min, millis(63));
        } else {
            assert_eq!((min, max), (millis(7), Some(millis(70))));
        }
    }
}

#[test]
fn a_frame_before_any_caps_is_refused_clearly() {
    let rig = Rig::unlinked(&[], true);
    rig.link();
    rig.event(gst::event::StreamStart::new("test"));
    rig.event(segment());
    assert!(rig.push(0, 200).is_err());
    rig.begin();
    rig.push_frames(1..2);
    assert_eq!(rig.seen.frames(1)[0].pts, Some(millis(40)));
    rig.message(gst::MessageType::Error);
}

#[test]
fn a_source_that_comes_later_is_asked_whether_it_is_live() {
    let slow = common::own_tiny("slow", "comes-later");
    let rig = Rig::unlinked(&[("model-file", &slow), ("overload", "auto")], false);
    rig.link();
    // A sink asks when the pipeline plays. A queue without a source says then that nobody is live.
    let mut latency = gst::query::Latency::new();
    assert!(rig.element.static_pad("src").unwrap().query(&mut latency) && !latency.result().0);
    rig.live.store(true, std::sync::atomic::Ordering::SeqCst);
    rig.begin();
    rig.push_frames(0..40);
    let statuses: Vec<_> = rig.seen.frames(40).iter().map(|seen| seen.status).collect();
    assert!(statuses.contains(&"overload") && statuses.contains(&"inferred"), "{statuses:?}");
    // Another one takes its place, and is not live.
    rig.live.store(false, std::sync::atomic::Ordering::SeqCst);
    rig.seen.forget();
    rig.begin();
    rig.push_frames(40..60);
    assert!(rig.seen.frames(20).iter().all(|seen| seen.status == "inferred"));
}
