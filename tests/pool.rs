//! The pool that `yolodetect` offers upstream, and reuse as it is measured: by real pipelines, and by hand as an element
//! upstream would use it.

mod common;
#[path = "common/rig.rs"]
mod rig;

use std::collections::HashSet;
use std::sync::{Arc, mpsc};

use common::{PATIENCE, Pipeline, another_process, asset, is_child, tiny, within_patience};
use gst::State::{Null, Playing};
use gst::prelude::*;
use gst_video::VideoBufferPoolConfig;
use gst_video::{VideoAlignment, VideoFormat, VideoInfo, VideoMeta};
use gstyolodetect::memory::budget::{self, Consumer};
use gstyolodetect::memory::monitor::React;
use gstyolodetect::memory::pool::{self, FramePool, Ledger, PoolStats, Rules};
use gstyolodetect::memory::pressure::Level;
use parking_lot::Mutex;
use rig::{Rig, until_stats};

fn pool_stats(detect: &gst::Element) -> gst::Structure {
    detect.property::<gst::Structure>("stats").get("pool").expect("figures of the pool")
}

fn figure(detect: &gst::Element, name: &str) -> u64 {
    pool_stats(detect).get(name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn own(detect: &gst::Element) -> bool {
    pool_stats(detect).get("own").unwrap()
}

/// A source of small pictures into `sink`.
fn small(frames: u32, properties: &str, sink: &str) -> Pipeline {
    Pipeline::new(&format!(
        "videotestsrc num-buffers={frames} ! capsfilter name=filter caps=video/x-raw,format=RGB,width=64,height=64 \
         ! yolodetect name=detect model-file={} {properties} ! {sink}",
        tiny("v8")
    ))
}

const SMALL: u64 = 64 * 64 * 3;

/// Has the pad answer allocation queries by itself.
fn answer(pad: &gst::Pad, answer: impl Fn(&mut gst::query::Allocation) + Send + Sync + 'static) {
    pad.add_probe(gst::PadProbeType::QUERY_DOWNSTREAM | gst::PadProbeType::PUSH, move |_, info| {
        let Some(gst::PadProbeData::Query(query)) = &mut info.data else { return gst::PadProbeReturn::Ok };
        let gst::QueryViewMut::Allocation(query) = query.view_mut() else { return gst::PadProbeReturn::Ok };
        answer(query);
        gst::PadProbeReturn::Handled
    });
}

/// The first memory of each buffer that passes.
fn memories(pad: &gst::Pad) -> Arc<Mutex<Vec<usize>>> {
    let seen = Arc::<Mutex<Vec<usize>>>::default();
    let list = seen.clone();
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        let buffer = info.buffer().unwrap();
        list.lock().push(buffer.peek_memory(0).as_ptr() as usize);
        gst::PadProbeReturn::Ok
    });
    seen
}

#[test]
fn a_source_draws_from_our_pool() {
    let pipeline = small(200, "", "fakesink");
    let detect = pipeline.by_name("detect");
    assert!(!pool_stats(&detect).has_field("efficiency"), "nothing came yet");
    let arrived = memories(&detect.static_pad("sink").unwrap());
    pipeline.run().unwrap();
    let distinct = arrived.lock().iter().collect::<HashSet<_>>().len() as u64;
    let (allocated, available, out) =
        (figure(&detect, "allocated"), figure(&detect, "available"), figure(&detect, "in-use"));
    assert!(own(&detect) && allocated >= distinct, "{}", pool_stats(&detect));
    assert_eq!((figure(&detect, "requests"), figure(&detect, "hits")), (200, 200 - distinct));
    assert_eq!(pool_stats(&detect).get::<f64>("efficiency"), Ok((200 - distinct) as f64 / 200.0));
    assert_eq!(figure(&detect, "bytes"), (available + out) * SMALL);
    assert_eq!((available + out, figure(&detect, "misses")), (allocated, 0));
    assert!((1..=allocated).contains(&figure(&detect, "peak")));
    pipeline.0.set_state(Null).unwrap();
    let left = ["in-use", "available", "bytes"].map(|name| figure(&detect, name));
    assert_eq!((left, figure(&detect, "allocated")), ([0; 3], allocated));
}

#[test]
fn every_start_counts_anew() {
    let pipeline = small(20, "", "fakesink");
    let detect = pipeline.by_name("detect");
    for _ in 0..3 {
        pipeline.run().unwrap();
        assert_eq!(figure(&detect, "requests"), 20);
        assert!(own(&detect) && figure(&detect, "hits") >= 10 && figure(&detect, "allocated") < 10);
        pipeline.0.set_state(Null).unwrap();
        assert_eq!(figure(&detect, "in-use") + figure(&detect, "bytes"), 0);
    }
}

#[test]
fn a_pool_of_downstream_wins() {
    let pipeline = small(50, "pool-size=7", "fakesink name=sink");
    let theirs = gst::BufferPool::new();
    let offered = theirs.clone();
    let asked = Arc::<Mutex<Vec<(u32, u32)>>>::default();
    let told = asked.clone();
    answer(&pipeline.by_name("sink").static_pad("sink").unwrap(), move |query| {
        query.add_allocation_pool(Some(&offered), SMALL as u32, 2, 0);
    });
    let detect = pipeline.by_name("detect");
    let drawn = Arc::<Mutex<Vec<bool>>>::default();
    let (list, pool) = (drawn.clone(), theirs.clone());
    detect.static_pad("sink").unwrap().add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        // SAFETY: only compared.
        let from = unsafe { (*info.buffer().unwrap().as_ptr()).pool };
        list.lock().push(from == pool.as_ptr());
        let (_, _, min, max) = pool.config().params().unwrap();
        told.lock().push((min, max));
        gst::PadProbeReturn::Ok
    });
    pipeline.run().unwrap();
    assert_eq!(*drawn.lock(), [true; 50]);
    // What we hold comes on top of what they want, whatever the size of a pool of ours would be.
    let (min, max) = asked.lock()[0];
    assert!((3..7).contains(&min) && max == 0, "{min} {max}");
    assert_eq!((own(&detect), figure(&detect, "allocated")), (false, 0));
    assert!(figure(&detect, "hits") >= 40, "{}", pool_stats(&detect));
}

/// A clip through a decoder.
fn decoded(properties: &str) -> Pipeline {
    Pipeline::new(&format!(
        "filesrc location={} ! qtdemux ! h264parse ! avdec_h264 \
         ! yolodetect name=detect model-file={} {properties} ! fakesink name=sink sync=false",
        asset("clips/bikes.mp4").display(),
        tiny("v8")
    ))
}

/// Plays to the end; every frame leaves in the memory that it came in.
fn nobody_copies(pipeline: &Pipeline) {
    let arrived = memories(&pipeline.by_name("detect").static_pad("sink").unwrap());
    let left = memories(&pipeline.by_name("sink").static_pad("sink").unwrap());
    pipeline.run().unwrap();
    assert_eq!(*arrived.lock(), *left.lock());
    assert_eq!(arrived.lock().len(), 250);
}

#[test]
fn a_decoder_draws_from_our_pool() {
    let pipeline = decoded("");
    let detect = pipeline.by_name("detect");
    nobody_copies(&pipeline);
    println!("bikes.mp4 by avdec_h264: {}", pool_stats(&detect));
    assert!(own(&detect) && pool_stats(&detect).get::<f64>("efficiency").unwrap() > 0.95);
    assert_eq!((figure(&detect, "requests"), figure(&detect, "misses")), (250, 0));
    pipeline.0.set_state(Null).unwrap();
    assert_eq!(figure(&detect, "in-use") + figure(&detect, "bytes"), 0);
}

#[test]
fn a_decoder_renders_into_our_pool_where_downstream_understands_strides() {
    let pipeline = decoded("");
    let (detect, sink) = (pipeline.by_name("detect"), pipeline.by_name("sink"));
    let sink = sink.static_pad("sink").unwrap();
    answer(&sink, |query| query.add_allocation_meta::<VideoMeta>(None));
    let padded = Arc::<Mutex<usize>>::default();
    let seen = padded.clone();
    sink.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        let meta = info.buffer().unwrap().meta::<VideoMeta>().expect("a video meta");
        *seen.lock() += usize::from(meta.alignment().padding_bottom() > 0);
        gst::PadProbeReturn::Ok
    });
    nobody_copies(&pipeline);
    println!("bikes.mp4 rendered by avdec_h264: {}", pool_stats(&detect));
    // It keeps frames for reference: all of them are the pool's. Whether it sends them on as they are, or copies of those
    // that it keeps (1.22), is its own business.
    assert!(figure(&detect, "allocated") < 40 && figure(&detect, "peak") > 0, "{}", pool_stats(&detect));
    assert_eq!((*padded.lock(), figure(&detect, "misses")), (250, 0));
    pipeline.0.set_state(Null).unwrap();
    assert_eq!(figure(&detect, "in-use") + figure(&detect, "bytes"), 0);
}

#[test]
fn a_pool_that_is_too_small_costs_misses_and_no_frame() {
    let pipeline = decoded("pool-size=1 max-in-flight=8");
    let detect = pipeline.by_name("detect");
    nobody_copies(&pipeline);
    println!("with pool-size=1: {}", pool_stats(&detect));
    let (requests, misses, kept) =
        (figure(&detect, "requests"), figure(&detect, "misses"), figure(&detect, "available"));
    assert!(own(&detect) && requests == 250 && misses > 0 && kept <= 2, "{}", pool_stats(&detect));
}

#[test]
fn strides_are_for_downstream_to_allow() {
    let rig = Rig::new(&[("max-in-flight", "3")]);
    let ask = |rig: &Rig| {
        let mut query = gst::query::Allocation::new(Some(&rig::caps(64)), true);
        assert!(rig.src.peer_query(&mut query));
        query
    };
    assert!(ask(&rig).find_allocation_meta::<VideoMeta>().is_none());
    answer(&rig.sink, |query| query.add_allocation_meta::<VideoMeta>(None));
    let query = ask(&rig);
    assert!(query.find_allocation_meta::<VideoMeta>().is_some());
    // Three in flight and one that is being pushed.
    let (pool, size, min, max) = query.allocation_pools().next().unwrap();
    assert_eq!((size, min, max), (SMALL as u32, 4, 0));
    assert!(pool.is_some_and(|pool| pool.is::<FramePool>()));

    let rig = Rig::new(&[("pool-size", "9")]);
    answer(&rig.sink, |_| ());
    let query = ask(&rig);
    let (_, _, min, max) = query.allocation_pools().next().unwrap();
    assert_eq!((min, max), (9, 0));
}

#[test]
fn new_caps_bring_a_new_pool() {
    let pipeline = small(1_000_000, "", "fakesink");
    let (detect, filter) = (pipeline.by_name("detect"), pipeline.by_name("filter"));
    pipeline.0.set_state(Playing).unwrap();
    let mut frames = 0;
    for size in [64u64, 96, 32, 64] {
        filter.set_property_from_str("caps", &format!("video/x-raw,format=RGB,width={size},height={size}"));
        let bytes = size * size * 3;
        // When the last of the pool before is back.
        until_stats(&detect, "buffers of the new size alone", |stats| {
            let pool: gst::Structure = stats.get("pool").unwrap();
            let read = |name| pool.get::<u64>(name).unwrap();
            read("requests") > frames + 20
                && read("bytes") == (read("available") + read("in-use")) * bytes
                && read("available") + read("in-use") > 0
        });
        assert!(own(&detect));
        frames = figure(&detect, "requests");
    }
    pipeline.0.set_state(Null).unwrap();
    assert_eq!(figure(&detect, "in-use") + figure(&detect, "bytes"), 0);
}

#[test]
fn frames_outlive_the_element_and_its_pool() {
    let pipeline = small(3, "", "appsink name=sink sync=false wait-on-eos=false");
    pipeline.run().unwrap();
    let (detect, sink) = (pipeline.by_name("detect"), pipeline.by_name("sink"));
    let sink = sink.downcast::<gst_app::AppSink>().unwrap();
    let sample = sink.try_pull_sample(gst::ClockTime::ZERO).unwrap();
    drop(sink);
    drop(pipeline);
    assert_eq!(figure(&detect, "in-use"), 1);
    let size = sample.buffer().unwrap().map_readable().unwrap().len() as u64;
    assert_eq!(size, SMALL);
    drop(sample);
    assert_eq!((figure(&detect, "in-use"), figure(&detect, "bytes")), (0, 0));
}

// By hand.

fn i420() -> gst::Caps {
    common::init();
    VideoInfo::builder(VideoFormat::I420, 66, 48).build().unwrap().to_caps().unwrap()
}

/// Buffers as GStreamer lays them out, so that each has rows of 68 and 36 bytes.
fn i420_size() -> u32 {
    VideoInfo::from_caps(&i420()).unwrap().size() as u32
}

struct ByHand {
    pool: FramePool,
    ledger: Arc<Ledger>,
}

impl ByHand {
    /// Active, with the video meta.
    fn new(size: u32, min: u32, max: u32) -> Self {
        Self::with(Rules { size: Some(size), clear: false }, min, max)
    }

    fn with(rules: Rules, min: u32, max: u32) -> Self {
        let by_hand = Self::idle(rules);
        by_hand.configure(min, max, |_| ()).unwrap();
        by_hand.pool.set_active(true).unwrap();
        by_hand
    }

    fn idle(rules: Rules) -> Self {
        common::init();
        let ledger = Arc::<Ledger>::default();
        Self { pool: FramePool::new(rules, ledger.clone()), ledger }
    }

    fn configure(
        &self,
        min: u32,
        max: u32,
        more: impl Fn(&mut gst::BufferPoolConfigRef),
    ) -> Result<(), gst::glib::BoolError> {
        let mut config = self.pool.config();
        config.set_params(Some(&i420()), i420_size(), min, max);
        config.add_option(gst_video::BUFFER_POOL_OPTION_VIDEO_META);
        more(&mut config);
        self.pool.set_config(config)
    }

    fn get(&self) -> gst::Buffer {
        self.pool.acquire_buffer(None).unwrap()
    }

    fn figures(&self) -> PoolStats {
        self.ledger.figures()
    }

    /// Allocated, at rest, out.
    fn counts(&self) -> (u64, u64, u64) {
        let PoolStats { allocated, available, in_use, .. } = self.figures();
        (allocated, available, in_use)
    }
}

#[test]
fn buffers_are_made_in_advance_and_used_again() {
    let hand = ByHand::new(4, 2, 0);
    assert_eq!(hand.counts(), (4, 4, 0));
    let memory = |buffer: &gst::Buffer| buffer.peek_memory(0).as_ptr() as usize;
    let first = hand.get();
    let used = memory(&first);
    assert_eq!(hand.counts(), (4, 3, 1));
    drop(first);
    assert_eq!(memory(&hand.get()), used);
    assert_eq!((hand.counts(), hand.figures().peak, hand.figures().misses), ((4, 4, 0), 1, 0));

    // Upstream's own wish, where the user has none.
    assert_eq!(ByHand::with(Rules::default(), 3, 0).counts(), (3, 3, 0));
    assert_eq!(ByHand::with(Rules::default(), 0, 0).counts(), (0, 0, 0));
    // Upstream needs more than the user thinks, or can take less.
    assert_eq!(ByHand::new(2, 5, 0).counts(), (5, 5, 0));
    assert_eq!(ByHand::new(9, 2, 3).counts(), (3, 3, 0));
}

#[test]
fn what_a_burst_needs_beyond_the_bound_is_freed_on_return() {
    let hand = ByHand::new(4, 0, 0);
    let size = u64::from(i420_size());
    let mut pile: Vec<_> = (0..10).map(|_| hand.get()).collect();
    let PoolStats { allocated, peak, misses, bytes, .. } = hand.figures();
    assert_eq!((allocated, peak, misses, bytes), (10, 10, 4, 10 * size));
    for left in (6..10).rev() {
        pile.pop();
        assert_eq!((hand.counts(), hand.figures().bytes), ((10, 0, left), left * size));
    }
    drop(pile);
    assert_eq!((hand.counts(), hand.figures().bytes), ((10, 6, 0), 6 * size));
    drop((0..6).map(|_| hand.get()).collect::<Vec<_>>());
    assert_eq!((hand.counts(), hand.figures().misses), ((10, 6, 0), 4));
}

#[test]
fn what_comes_back_changed_is_discarded() {
    type Change = fn(gst::Buffer) -> Option<Box<dyn std::any::Any>>;
    #[derive(PartialEq)]
    enum Fate {
        Used,
        Discarded,
        /// Its place is kept until that is needed.
        DiscardedLater,
    }
    use Fate::*;
    let changes: [(&str, Fate, Change); 9] = [
        ("untouched", Used, |_| None),
        ("cut to a part", Used, |mut buffer| {
            buffer.make_mut().set_size(10);
            None
        }),
        ("with metas and times", Used, |mut buffer| {
            let buffer = buffer.make_mut();
            buffer.set_pts(gst::ClockTime::SECOND);
            buffer.set_flags(gst::BufferFlags::DISCONT);
            gst_video::VideoRegionOfInterestMeta::add(buffer, "x", (0, 0, 1, 1));
            None
        }),
        ("a memory more", Discarded, |mut buffer| {
            buffer.make_mut().append_memory(gst::Memory::with_size(1));
            None
        }),
        ("no memory", Discarded, |mut buffer| {
            buffer.make_mut().remove_all_memory();
            None
        }),
        ("another memory", Discarded, |mut buffer| {
            buffer.make_mut().replace_all_memory(gst::Memory::with_size(i420_size() as usize));
            None
        }),
        ("its memory held by another", DiscardedLater, |buffer| Some(Box::new(buffer.memory(0).unwrap()))),
        ("a part of its memory held by another", DiscardedLater, |buffer| {
            let part = buffer.peek_memory(0).share(0..10);
            Some(Box::new(part))
        }),
        ("its meta changed", Discarded, |mut buffer| {
            let buffer = buffer.make_mut();
            let meta = buffer.meta_mut::<VideoMeta>().unwrap();
            // SAFETY: the buffer is this test's alone.
            unsafe { (*(meta.as_ptr() as *mut gst_video::ffi::GstVideoMeta)).stride[0] += 4 };
            None
        }),
    ];
    for (what, fate, change) in changes {
        let hand = ByHand::new(1, 0, 0);
        assert_eq!(hand.counts(), (1, 1, 0));
        let held = change(hand.get());
        let rests = u64::from(fate != Fate::Discarded);
        assert_eq!(hand.counts(), (1, rests, 0), "{what}");
        assert_eq!(hand.figures().bytes, rests * u64::from(i420_size()), "{what}");
        // The next one is as good as new.
        let buffer = hand.get();
        assert_eq!(buffer.size(), i420_size() as usize, "{what}");
        assert_eq!((buffer.pts(), buffer.flags()), (None, gst::BufferFlags::empty()), "{what}");
        assert_eq!(buffer.iter_meta::<gst::Meta>().count(), 1, "{what}");
        assert_eq!(buffer.meta::<VideoMeta>().unwrap().stride()[0], 68, "{what}");
        let more = u64::from(fate != Fate::Used);
        assert_eq!(hand.counts(), (1 + more, u64::from(fate == Fate::DiscardedLater), 1), "{what}");
        // One and a half times one is two: the next takes its place.
        let another = hand.get();
        assert_eq!(hand.counts(), (2 + more, 0, 2), "{what}");
        assert_eq!(hand.figures().bytes, 2 * u64::from(i420_size()), "{what}");
        drop((buffer, another, held));
        assert_eq!((hand.counts(), hand.figures().misses), ((2 + more, 2, 0), 0), "{what}");
    }
}

#[test]
fn a_buffer_is_used_again_when_a_copy_of_its_head_lets_go_of_the_memory() {
    let hand = ByHand::with(Rules { size: Some(2), clear: true }, 0, 0);
    let mut kept = Vec::new();
    // As of a decoder that keeps each frame while the next comes.
    for _ in 0..100 {
        let made = hand.counts().0;
        let mut buffer = hand.get();
        if hand.counts().0 == made && kept.len() > 1 {
            assert!(buffer.map_readable().unwrap().iter().all(|&byte| byte == 0), "wiped");
        }
        buffer.make_mut().map_writable().unwrap().fill(0xAB);
        let copy = buffer.copy();
        drop(buffer);
        assert!(copy.map_readable().unwrap().iter().all(|&byte| byte == 0xAB), "not under a reader's eyes");
        kept.push(copy);
        kept.drain(..kept.len().saturating_sub(2));
    }
    drop(kept);
    assert_eq!((hand.counts(), hand.figures().misses), ((3, 3, 0), 0));
}

#[test]
fn pictures_are_wiped_on_request() {
    for clear in [false, true] {
        let hand = ByHand::with(Rules { size: Some(1), clear }, 0, 0);
        let mut buffer = hand.get();
        buffer.make_mut().map_writable().unwrap().fill(0xAB);
        // However small it was made, all of its memory held a picture.
        buffer.make_mut().set_size(10);
        drop(buffer);
        let left = if clear { 0 } else { 0xAB };
        assert!(hand.get().map_readable().unwrap().iter().all(|&byte| byte == left), "clear={clear}");

        // What somebody else still reads is not wiped under his eyes.
        let mut buffer = hand.get();
        buffer.make_mut().map_writable().unwrap().fill(0xAB);
        let reader = buffer.memory(0).unwrap();
        drop(buffer);
        assert!(reader.map_readable().unwrap().iter().all(|&byte| byte == 0xAB));
    }
}

#[test]
fn the_property_has_pictures_wiped() {
    for clear in [false, true] {
        let rig = Rig::new(&[("pool-clear", if clear { "true" } else { "false" })]);
        answer(&rig.sink, |_| ());
        let mut query = gst::query::Allocation::new(Some(&rig::caps(64)), true);
        assert!(rig.src.peer_query(&mut query));
        let (pool, size, ..) = query.allocation_pools().next().unwrap();
        let pool = pool.unwrap();
        let mut config = pool.config();
        config.set_params(Some(&rig::caps(64)), size, 1, 1);
        pool.set_config(config).unwrap();
        pool.set_active(true).unwrap();
        let mut buffer = pool.acquire_buffer(None).unwrap();
        buffer.make_mut().map_writable().unwrap().fill(0xAB);
        rig.src.push(buffer).unwrap();
        rig.seen.frames(1);
        // Waits until the frame is back: there is no other.
        let buffer = pool.acquire_buffer(None).unwrap();
        let left = if clear { 0 } else { 0xAB };
        assert!(buffer.map_readable().unwrap().iter().all(|&byte| byte == left), "clear={clear}");
        drop(buffer);
        pool.set_active(false).unwrap();
    }
}

#[test]
fn pressure_trims_the_pool_and_it_grows_again() {
    let hand = ByHand::new(8, 0, 0);
    let size = u64::from(i420_size());
    let pile = |count| (0..count).map(|_| hand.get()).collect::<Vec<_>>();
    drop(pile(12));
    assert_eq!(hand.counts(), (12, 12, 0));
    let out = pile(2);
    // Half of what is kept otherwise.
    assert_eq!(hand.pool.set_pressed(true), 6 * size);
    assert_eq!((hand.counts(), hand.figures().bytes), ((12, 4, 2), 6 * size));
    // Nobody needs them any more.
    hand.pool.set_pressed(true);
    assert_eq!(hand.pool.set_pressed(true), 4 * size);
    assert_eq!(hand.counts(), (12, 0, 2));
    drop(out);
    // While it lasts six are kept.
    drop(pile(12));
    assert_eq!((hand.counts().1, hand.figures().misses), (6, 6));
    assert_eq!(hand.pool.set_pressed(false), 0);
    drop(pile(12));
    assert_eq!((hand.counts().1, hand.figures().misses), (12, 6));
}

#[test]
fn a_level_reaches_every_pool_of_the_process() {
    const TEST: &str = "a_level_reaches_every_pool_of_the_process";
    if !is_child() {
        // Or it would trim other tests' pools.
        let output = another_process(TEST, Some(&common::library()), &[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let react = |level| {
        let mut did = Vec::new();
        pool::trimmer().react(level, Level::Nominal, &mut did);
        did.iter().map(|action| (action.name, action.freed)).collect::<Vec<_>>()
    };
    assert_eq!(react(Level::Emergency), []);
    assert_eq!(react(Level::Nominal), []);
    let pools = [ByHand::new(4, 0, 0), ByHand::new(2, 0, 0)];
    let size = u64::from(i420_size());
    // Nothing of them is in use.
    assert_eq!(react(Level::Warning), [("trim-pools", 6 * size)]);
    assert_eq!(react(Level::Critical), []);
    let late = ByHand::new(4, 0, 0);
    drop((0..6).map(|_| late.get()).collect::<Vec<_>>());
    // Four were made in advance.
    assert_eq!((late.counts().1, late.figures().misses), (3, 2));
    assert_eq!(react(Level::Nominal), []);
    for hand in pools.iter().chain([&late]) {
        assert_eq!(hand.pool.set_pressed(false), 0);
        drop((0..3).map(|_| hand.get()).collect::<Vec<_>>());
        assert_eq!(hand.counts().1, 3);
    }
}

#[test]
fn padding_and_strides_are_as_they_were_asked_for() {
    let hand = ByHand::idle(Rules::default());
    let wanted = VideoAlignment::new(8, 16, 24, 32, &[31, 15, 15, 0]);
    hand.configure(1, 0, |config| {
        config.add_option(gst_video::BUFFER_POOL_OPTION_VIDEO_ALIGNMENT);
        config.set_video_alignment(&wanted);
    })
    .unwrap();
    let (_, size, ..) = hand.pool.config().params().unwrap();
    assert!(size > i420_size());
    hand.pool.set_active(true).unwrap();
    let buffer = hand.get();
    let meta = buffer.meta::<VideoMeta>().unwrap();
    assert_eq!((meta.width(), meta.height(), buffer.size()), (66, 48, size as usize));
    assert!(meta.alignment().padding_bottom() == 16 && meta.alignment().padding_left() >= 24);
    assert!(meta.stride().iter().all(|stride| stride % 32 == 0), "{:?}", meta.stride());
    assert!(meta.stride()[0] >= 66 + 24 + 32 && meta.offset()[0] >= 8 * meta.stride()[0] as usize + 24);
    let address = buffer.map_readable().unwrap().as_ptr() as usize;
    assert_eq!(address % 32, 0);
    // As GStreamer's own pool does it.
    let reference = gst_video::VideoBufferPool::new();
    let mut config = reference.config();
    config.set_params(Some(&i420()), i420_size(), 1, 0);
    config.add_option(gst_video::BUFFER_POOL_OPTION_VIDEO_META);
    config.add_option(gst_video::BUFFER_POOL_OPTION_VIDEO_ALIGNMENT);
    config.set_video_alignment(&wanted);
    reference.set_config(config).unwrap();
    reference.set_active(true).unwrap();
    let theirs = reference.acquire_buffer(None).unwrap();
    let their_meta = theirs.meta::<VideoMeta>().unwrap();
    assert_eq!(theirs.size(), buffer.size());
    assert_eq!((their_meta.stride(), their_meta.offset()), (meta.stride(), meta.offset()));
    drop(theirs);
    reference.set_active(false).unwrap();
    drop(buffer);
    assert_eq!(hand.counts().1, 1);

    // Nobody would know of the padding without the meta.
    let plain = ByHand::idle(Rules::default());
    let mut config = plain.pool.config();
    config.set_params(Some(&i420()), i420_size(), 1, 0);
    config.add_option(gst_video::BUFFER_POOL_OPTION_VIDEO_ALIGNMENT);
    config.set_video_alignment(&wanted);
    plain.pool.set_config(config).unwrap();
    plain.pool.set_active(true).unwrap();
    let buffer = plain.get();
    assert!(buffer.meta::<VideoMeta>().is_none() && buffer.size() == i420_size() as usize);
}

#[test]
fn configurations_that_make_no_sense_are_refused() {
    let size = i420_size();
    let encoded = gst::Caps::new_empty_simple("video/x-h264");
    let audio = gst::Caps::new_empty_simple("audio/x-raw");
    let refused = |caps: Option<&gst::Caps>, size, min, more: &dyn Fn(&mut gst::BufferPoolConfigRef)| {
        // A refused configuration stays in the pool, to be looked at.
        let pool = ByHand::idle(Rules::default()).pool;
        let mut config = pool.config();
        config.set_params(caps, size, min, 0);
        config.add_option(gst_video::BUFFER_POOL_OPTION_VIDEO_META);
        more(&mut config);
        assert!(pool.set_config(config).is_err(), "{caps:?} {size} {min}");
        assert!(pool.set_active(true).is_err() && pool.acquire_buffer(None).is_err());
    };
    refused(Some(&i420()), 0, 1, &|_| ());
    refused(Some(&i420()), size - 1, 1, &|_| ());
    refused(Some(&i420()), size, u32::MAX, &|_| ());
    refused(None, size, 1, &|_| ());
    refused(Some(&encoded), size, 1, &|_| ());
    refused(Some(&audio), size, 1, &|_| ());
    // What the interface does not let pass may stand in the structure all the same.
    let structure = |config: &mut gst::BufferPoolConfigRef| {
        // SAFETY: a configuration is a structure, which is this test's alone.
        unsafe { gst::StructureRef::from_glib_borrow_mut(config.as_mut_ptr()) as *mut gst::StructureRef }
    };
    refused(Some(&i420()), size, 5, &|config| {
        // SAFETY: as above.
        unsafe { (*structure(config)).set("max-buffers", 4u32) }
    });
    refused(Some(&i420()), size, 1, &|config| {
        // SAFETY: as above.
        unsafe { (*structure(config)).remove_field("size") }
    });
    for (stride, padding) in [(31, u32::MAX), (u32::MAX, 0), (30, 0), (31, 1 << 20)] {
        refused(Some(&i420()), size, 1, &|config| {
            config.add_option(gst_video::BUFFER_POOL_OPTION_VIDEO_ALIGNMENT);
            config.set_video_alignment(&VideoAlignment::new(0, padding, 0, padding, &[stride; 4]));
        });
    }
    let hand = ByHand::idle(Rules::default());
    assert!(hand.pool.set_active(true).is_err(), "not configured");
    hand.configure(1, 0, |_| ()).unwrap();
    hand.pool.set_active(true).unwrap();
    // Not while it is active, not while a buffer is out; then it starts anew.
    let buffer = hand.get();
    assert!(hand.configure(2, 0, |_| ()).is_err());
    hand.pool.set_active(false).unwrap();
    assert!(hand.configure(2, 0, |_| ()).is_err());
    assert_eq!(hand.pool.acquire_buffer(None).err(), Some(gst::FlowError::Flushing));
    drop(buffer);
    assert_eq!(hand.counts(), (1, 0, 0));
    hand.configure(2, 0, |_| ()).unwrap();
    hand.pool.set_active(true).unwrap();
    assert_eq!(hand.counts(), (3, 2, 0));
}

#[test]
fn a_pool_starts_again_while_buffers_of_before_are_out() {
    let hand = ByHand::new(2, 0, 0);
    let out = [hand.get(), hand.get()];
    hand.pool.set_active(false).unwrap();
    hand.pool.set_active(true).unwrap();
    drop(out);
    assert_eq!(hand.counts(), (2, 2, 0));
    let out = hand.get();
    hand.pool.set_active(false).unwrap();
    assert_eq!(hand.counts().2, 1);
    drop(out);
    assert_eq!((hand.counts(), hand.figures().bytes), ((2, 0, 0), 0));
}

#[test]
fn who_waits_for_a_buffer_gets_one_or_hears_of_the_end() {
    within_patience("a wait for a buffer", || {
        let hand = ByHand::new(1, 1, 1);
        let first = hand.get();
        let dont_wait = gst::BufferPoolAcquireParams::with_flags(gst::BufferPoolAcquireFlags::DONTWAIT);
        assert_eq!(hand.pool.acquire_buffer(Some(&dont_wait)).err(), Some(gst::FlowError::Eos));
        std::thread::scope(|scope| {
            let (got, gets) = mpsc::channel();
            let hand = &hand;
            let waiter = scope.spawn(move || {
                let second = hand.pool.acquire_buffer(None);
                got.send(()).unwrap();
                second
            });
            assert!(gets.recv_timeout(std::time::Duration::from_millis(20)).is_err());
            drop(first);
            gets.recv_timeout(PATIENCE).unwrap();
            let second = waiter.join().unwrap().unwrap();
            let waiter = scope.spawn(|| hand.pool.acquire_buffer(None).err());
            std::thread::sleep(std::time::Duration::from_millis(20));
            hand.pool.set_active(false).unwrap();
            assert_eq!(waiter.join().unwrap(), Some(gst::FlowError::Flushing));
            drop(second);
        });
        assert_eq!((hand.counts(), hand.figures().bytes), ((1, 0, 0), 0));
    });
}

#[test]
fn many_threads_at_a_time() {
    within_patience("a pool", || {
        let hand = ByHand::new(3, 0, 5);
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let hand = &hand;
                scope.spawn(move || {
                    for round in 0..3000u64 {
                        let mut buffer = hand.get();
                        match (thread + round) % 97 {
                            0 => buffer.make_mut().append_memory(gst::Memory::with_size(1)),
                            1 => drop(hand.pool.set_pressed(round % 2 == 0)),
                            _ => (),
                        }
                    }
                });
            }
        });
        let PoolStats { available, in_use, bytes, peak, .. } = hand.figures();
        assert_eq!((in_use, bytes), (0, available * u64::from(i420_size())));
        assert!((1..=5).contains(&peak) && available <= 5);
        hand.pool.set_active(false).unwrap();
        assert_eq!((hand.figures().available, hand.figures().bytes), (0, 0));
    });
}

#[test]
fn a_budget_bounds_the_frames_in_flight() {
    const TEST: &str = "a_budget_bounds_the_frames_in_flight";
    if !is_child() {
        // A budget is the process's.
        let output = another_process(TEST, Some(&common::library()), &[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    const FRAME: u64 = 1280 * 720 * 3;
    let pipeline = Pipeline::new(&format!(
        "videotestsrc num-buffers=30 ! video/x-raw,format=RGB,width=1280,height=720 \
         ! yolodetect name=detect model-file={} max-in-flight=1000 ! fakesink",
        tiny("v8")
    ));
    let warnings = Arc::<Mutex<Vec<String>>>::default();
    let told = warnings.clone();
    pipeline.bus().set_sync_handler(move |_, message| {
        if let gst::MessageView::Warning(warning) = message.view() {
            told.lock().push(warning.error().to_string());
        }
        gst::BusSyncReply::Pass
    });
    let _limit = budget::HOST.limit("detect", gstyolodetect::memory::resident_bytes() + 200_000_000).unwrap();
    pipeline.run().unwrap();
    let reserved = budget::HOST.reserved_for(Consumer::Frames);
    assert!(reserved.is_multiple_of(FRAME) && (1..80).contains(&(reserved / FRAME)), "{reserved}");
    let told = warnings.lock().clone();
    let [warning] = &told[..] else { panic!("{} warnings: {told:?}", told.len()) };
    for part in ["frames of detect do not fit into memory-budget=", "instead of 1000"] {
        assert!(warning.contains(part), "{warning}");
    }
    assert_eq!(figure(&pipeline.by_name("detect"), "requests"), 30);
    pipeline.0.set_state(Null).unwrap();
    assert_eq!(budget::HOST.reserved_for(Consumer::Frames), 0);
}

#[test]
fn nothing_of_a_pool_is_alive_at_the_end() {
    const TEST: &str = "nothing_of_a_pool_is_alive_at_the_end";
    if !is_child() {
        let tracer = [("GST_TRACERS", "leaks"), ("GST_DEBUG", "GST_TRACER:7"), ("GST_DEBUG_NO_COLOR", "1")];
        for leak in [false, true] {
            let more = [("YOLODETECT_LEAK", if leak { "1" } else { "" })];
            let variables: Vec<_> = tracer.iter().chain(&more).copied().collect();
            let output = another_process(TEST, Some(&common::library()), &variables);
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{text}");
            // Not the lines that only describe the format.
            let alive = |line: &&str| line.contains("object-alive, ") && !line.contains("%s");
            let alive: Vec<_> = text.lines().filter(alive).collect();
            assert_eq!(alive.iter().any(|line| line.contains("GstYoloDetectFramePool")), leak, "{alive:?}");
            assert_eq!(alive.is_empty(), !leak, "{alive:?}");
        }
        return;
    }
    let pipeline = decoded("");
    pipeline.0.set_state(Playing).unwrap();
    until_stats(&pipeline.by_name("detect"), "frames", |stats| stats.get::<u64>("frames-in").unwrap() > 20);
    drop(pipeline);
    let hand = ByHand::new(2, 0, 0);
    drop((0..5).map(|_| hand.get()).collect::<Vec<_>>());
    // While active, with a buffer out.
    let last = hand.get();
    drop(hand);
    if std::env::var("YOLODETECT_LEAK").as_deref() == Ok("1") {
        std::mem::forget(last);
    } else {
        drop(last);
    }
    // SAFETY: nothing of GStreamer is used after this.
    unsafe { gst::deinit() };
}
