//! What an attached detection costs: bytes of the heap, as the C library counts them, for each kind of meta.
//!
//! One test, since the heap is the process's.

mod common;

use common::{another_process, init, is_child};
use gstyolodetect::detection::{Detection, Labels, Rect};
use gstyolodetect::memory::heap::heap;
use gstyolodetect::meta::{self, FrameInfo, Kinds, LabelQuarks, Status};

/// Of one detection's box, in either meta; the frame meta takes six bytes more.
const CEILING: f64 = 500.0;

/// Detections on buffers that are held together, so that the allocator's odd remainders even out.
const HELD: usize = 6000;

const SIZE: (u32, u32) = (1920, 1080);

fn detections(count: usize) -> Vec<Detection> {
    let at = |index: usize| {
        let (x, y) = ((index % 20) as f32 * 90.0, (index / 20) as f32 * 60.0);
        let rect = Rect::new(x + 0.5, y + 0.25, x + 80.0, y + 50.0);
        Detection { rect, confidence: 0.25 + index as f32 / 1000.0, class: (index % 80) as u32 }
    };
    (0..count).map(at).collect()
}

/// Bytes for each buffer with `count` detections, the frame meta included.
fn cost(count: usize, kinds: Kinds) -> f64 {
    let labels = LabelQuarks::new(&Labels::default(), 80);
    let detections = detections(count);
    let info = FrameInfo {
        element: "yolodetect0".into(),
        frame: 7,
        status: Status::Inferred,
        first_id: 1,
        inference_time: gst::ClockTime::from_mseconds(80),
        batch: 1,
    };
    let attach = |buffers: &mut [gst::Buffer]| {
        for buffer in buffers {
            let buffer = buffer.get_mut().unwrap();
            meta::attach(buffer, &info, &detections, &labels, SIZE, kinds).unwrap();
        }
    };
    let held = HELD / count.max(1);
    let buffers = || (0..held).map(|_| gst::Buffer::new()).collect::<Vec<_>>();
    // Types and quarks are made once per process.
    attach(&mut buffers()[..1]);
    let mut buffers = buffers();
    let before = heap().unwrap().used;
    attach(&mut buffers);
    let after = heap().unwrap().used;
    let boxes = if kinds.roi || kinds.analytics { count } else { 0 };
    assert_eq!(meta::found(&buffers[0]).len(), boxes);
    (after - before) as f64 / held as f64
}

#[test]
fn a_detection_costs_less_than_the_ceiling() {
    const TEST: &str = "a_detection_costs_less_than_the_ceiling";
    if heap().is_none() {
        common::skip(TEST, "this C library does not tell what its heap holds");
        return;
    }
    if !is_child() {
        // GLib below 2.76 keeps freed small blocks to itself, and the C library some for each thread: both would be
        // counted as in use, and be used again unseen.
        let exact = [("G_SLICE", "always-malloc"), ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0")];
        let output = another_process(TEST, None, &exact);
        print!("{}", String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    init();
    let none = Kinds { roi: false, analytics: false };
    let mut kinds = vec![("roi-meta", Kinds { roi: true, ..none })];
    if meta::analytics_available() {
        kinds.push(("analytics-meta", Kinds { analytics: true, ..none }));
    }
    let version = gst::version_string();
    let mut dear = Vec::new();
    for (name, kinds) in kinds {
        // What a frame costs without detections is the frame's, and in the frame meta they cost the same without boxes.
        let [empty, bare] = [kinds, none].map(|kinds| cost(0, kinds));
        println!("{version}: {name}, a frame without detections: {empty:.0} B");
        for count in [1, 10, 50, 100, 200, 300] {
            let each = |cost: f64| cost / count as f64;
            let figures = each(cost(count, none) - bare);
            let all = each(cost(count, kinds) - empty);
            let bytes = all - figures;
            println!(
                "{version}: {name}, {count} a frame: {bytes:.0} B each, {figures:.0} more in the frame meta"
            );
            assert!(all > 0.0 && bytes < all, "{all} B, {figures} of them in the frame meta");
            if bytes >= CEILING {
                dear.push(format!("{name} with {count}: {bytes:.0} B"));
            }
        }
    }
    assert!(dear.is_empty(), "a detection costs {CEILING} B and more: {dear:?}");
}
