//! What attaching a frame's status and detections to a buffer costs, until the buffer is freed, and what reading them back
//! does; by kind of meta and number of detections.
//!
//! ```sh
//! cargo bench --bench meta
//! ```

use divan::{Bencher, black_box};
use gstyolodetect::detection::{Detection, Labels, Rect};
use gstyolodetect::meta::{self, FrameInfo, Kinds, LabelQuarks, Status};

const COUNTS: [usize; 3] = [0, 5, 50];
const SIZE: (u32, u32) = (1920, 1080);

fn main() {
    gst::init().expect("GStreamer");
    println!("{}, analytics metadata: {}", gst::version_string(), meta::analytics_available());
    divan::main();
}

/// What is attached to a frame.
struct Frame {
    info: FrameInfo,
    detections: Vec<Detection>,
    labels: LabelQuarks,
    kinds: Kinds,
}

impl Frame {
    fn new(count: usize, analytics: bool, roi: bool) -> Self {
        let at = |index: usize| {
            let (x, y) = ((index % 10) as f32 * 180.0, (index / 10) as f32 * 120.0);
            let rect = Rect::new(x + 0.5, y + 0.25, x + 80.0, y + 50.0);
            Detection { rect, confidence: 0.25 + index as f32 / 100.0, class: index as u32 }
        };
        let info = FrameInfo {
            element: "yolodetect0".into(),
            frame: 7,
            status: Status::Inferred,
            first_id: 1,
            inference_time: gst::ClockTime::from_mseconds(80),
            batch: 1,
        };
        let labels = LabelQuarks::new(&Labels::coco(), 80);
        Self { info, detections: (0..count).map(at).collect(), labels, kinds: Kinds { analytics, roi } }
    }

    fn attach(&self, buffer: &mut gst::Buffer) {
        let Self { info, detections, labels, kinds } = self;
        let buffer = buffer.get_mut().expect("a buffer of our own");
        meta::attach(buffer, info, detections, labels, SIZE, *kinds).expect("metas on a plain buffer");
    }
}

fn write(bencher: Bencher, frame: &Frame) {
    bencher
        .with_inputs(gst::Buffer::new)
        .bench_local_values(|mut buffer| frame.attach(black_box(&mut buffer)));
}

fn read(bencher: Bencher, frame: &Frame) {
    let mut buffer = gst::Buffer::new();
    frame.attach(&mut buffer);
    let (mut frames, mut found) = (Vec::new(), Vec::new());
    bencher.bench_local(|| {
        meta::frames_into(black_box(&buffer), &mut frames);
        meta::found_into(&buffer, &frames, &mut found);
        found.len()
    });
}

#[divan::bench(args = COUNTS)]
fn attach_status_alone(bencher: Bencher, count: usize) {
    write(bencher, &Frame::new(count, false, false));
}

#[divan::bench(args = COUNTS)]
fn attach_regions(bencher: Bencher, count: usize) {
    write(bencher, &Frame::new(count, false, true));
}

/// As `attach_status_alone` where GStreamer has no analytics metadata.
#[divan::bench(args = COUNTS)]
fn attach_analytics(bencher: Bencher, count: usize) {
    write(bencher, &Frame::new(count, true, false));
}

#[divan::bench(args = COUNTS)]
fn read_status_alone(bencher: Bencher, count: usize) {
    read(bencher, &Frame::new(count, false, false));
}

#[divan::bench(args = COUNTS)]
fn read_regions(bencher: Bencher, count: usize) {
    read(bencher, &Frame::new(count, false, true));
}

#[divan::bench(args = COUNTS)]
fn read_analytics(bencher: Bencher, count: usize) {
    read(bencher, &Frame::new(count, true, false));
}
