//! Models of every kind that is read, and what each property about them changes. The tiny models and what they
//! find are described in `tests/data/make_tiny.py`.

mod common;

use common::{Detect, Out, Seen, detect, shared, solid, tiny};
use gst::prelude::*;

/// 0.784 in the red channel, 0.392 in green, 0.588 in blue.
const COLOR: [u8; 3] = [200, 100, 150];
const RED: f64 = 200.0 / 255.0;
const BLUE: f64 = 150.0 / 255.0;
/// What the markers find in a square of 64 pixels.
const BOX: [f64; 4] = [16.0, 24.0, 48.0, 40.0];

fn square() -> gst::Sample {
    solid(64, 64, COLOR)
}

fn red(level: u8) -> gst::Sample {
    solid(64, 64, [level, 0, 0])
}

fn model(name: &str) -> String {
    format!("model-file={}", tiny(name))
}

/// One picture through one model.
fn one(properties: &str, sample: &gst::Sample) -> Out {
    detect(properties, [sample]).unwrap().pop().unwrap()
}

#[track_caller]
fn assert_marker(found: &Seen, class: i32, label: &str, confidence: f64, xyxy: [f64; 4]) {
    assert_eq!((found.class, found.label.as_str()), (class, label));
    assert!((found.confidence - confidence).abs() < 0.002, "{} is not {confidence}", found.confidence);
    let off = found.xyxy.iter().zip(xyxy).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(off < 0.05, "{:?} is not {xyxy:?}", found.xyxy);
}

fn confidences(out: &Out) -> Vec<f64> {
    out.boxes.iter().map(|found| found.confidence).collect()
}

#[test]
fn every_kind_of_model_finds_its_marker() {
    for (name, class, label, confidence, xyxy) in [
        ("v8", 0, "red", RED, BOX),
        ("v8_one_class", 0, "red", RED, BOX),
        ("v8_dynamic_batch", 0, "red", RED, BOX),
        ("fixed_batch4", 0, "red", RED, BOX),
        ("f16", 0, "red", RED, BOX),
        ("v5", 1, "other", 0.9 * RED, BOX),
        // Blue comes first, and there are no names.
        ("yolox", 1, "1", 0.9 * BLUE, [12.0, 12.0, 44.0, 28.0]),
        ("fails_at_run", 0, "red", RED, BOX),
    ] {
        let out = detect(&model(name), &[square(), solid(128, 128, COLOR)]).unwrap();
        assert_eq!(out[0].status, "inferred", "{name}");
        assert_marker(out[0].only(), class, label, confidence, xyxy);
        // A picture of twice the size has its box twice as far out.
        assert_marker(out[1].only(), class, label, confidence, xyxy.map(|side| 2.0 * side));
    }
}

#[test]
fn an_end_to_end_model_has_its_detections_passed_on() {
    let out = one(&model("end2end"), &square());
    assert_eq!(out.boxes.len(), 2);
    assert_marker(&out.boxes[0], 1, "other", RED, BOX);
    assert_marker(&out.boxes[1], 0, "red", 0.3, [0.0, 0.0, 8.0, 8.0]);
}

/// The size comes from the metadata: 128 wide, 96 high.
#[test]
fn a_model_of_any_size_runs_at_that_of_its_metadata() {
    let out = one(&model("v8_dynamic_size"), &solid(256, 192, COLOR));
    assert_marker(out.only(), 0, "red", RED, [64.0, 72.0, 192.0, 120.0]);
}

/// Padding is grey, 114: a picture of half the height fills half of the input.
#[test]
fn boxes_are_in_pixels_of_the_frame_whatever_its_shape() {
    let out = one(&model("v8"), &solid(128, 64, COLOR));
    let mean = (RED + 114.0 / 255.0) / 2.0;
    assert_marker(out.only(), 0, "red", mean, [32.0, 16.0, 96.0, 48.0]);
    let out = one(&model("v8"), &solid(64, 128, COLOR));
    assert_marker(out.only(), 0, "red", mean, [0.0, 48.0, 64.0, 80.0]);
}

#[test]
fn frames_of_a_batch_keep_their_own_results() {
    let levels = [80, 250, 120, 200, 90, 160, 230, 100];
    let frames: Vec<_> = levels.map(red).into();
    for (name, batch) in [("v8_dynamic_batch", 4), ("fixed_batch4", 4), ("v8", 1)] {
        // Full batches do not wait for their time to pass. The number of threads is nobody else's, and so the
        // engine: other tests' frames would join the batches.
        let properties = format!("{} threads=5 max-batch=4 batch-delay=10000000000", model(name));
        let out = detect(&properties, &frames).unwrap();
        for (out, level) in out.iter().zip(levels) {
            assert_eq!(out.batch, batch, "{name}");
            assert_marker(out.only(), 0, "red", f64::from(level) / 255.0, BOX);
        }
    }
}

#[test]
fn a_batch_that_stays_short_gives_what_there_is() {
    for name in ["v8_dynamic_batch", "fixed_batch4"] {
        let frames: Vec<_> = [80, 120, 160, 200, 240, 90].map(red).into();
        let properties = format!("{} threads=6 max-batch=4 batch-delay=10000000000", model(name));
        let out = detect(&properties, &frames).unwrap();
        let batches: Vec<_> = out.iter().map(|out| out.batch).collect();
        assert_eq!(batches, [4, 4, 4, 4, 2, 2], "{name}");
        assert_marker(out[5].only(), 0, "red", 90.0 / 255.0, BOX);
    }
}

/// The element's warning, as text.
fn warning(detect: &Detect) -> Option<String> {
    let message = detect.pipeline.bus().pop_filtered(&[gst::MessageType::Warning])?;
    let gst::MessageView::Warning(warning) = message.view() else { unreachable!() };
    Some(warning.error().to_string())
}

#[test]
fn a_fixed_batch_other_than_asked_for_is_warned_about_once() {
    // Engines of its own: another test's element might have said it.
    let with = |name: &str, properties: &str| Detect::new(&format!("{} {properties}", model(name)));
    for (name, properties, words) in [
        ("fixed_batch4", "threads=11", "max-batch=4"),
        ("fixed_batch4", "threads=12 max-batch=8", "always runs 4 frames"),
        ("v8", "threads=13 max-batch=8", "one frame at a time"),
    ] {
        let [mut first, mut second] = [with(name, properties), with(name, properties)];
        first.step(&square());
        second.step(&square());
        let text = warning(&first).expect("a warning");
        assert!(text.contains(&format!("{name}.onnx")) && text.contains(words), "{text}");
        assert_eq!(warning(&second), None, "it was said");
    }
    for (name, properties) in [("fixed_batch4", "threads=14 max-batch=4"), ("v8", "threads=15")] {
        let mut fitting = with(name, properties);
        fitting.step(&square());
        assert_eq!(warning(&fitting), None);
    }
}

#[test]
fn poses_and_masks_are_accepted_for_their_boxes() {
    // They find nothing, but their layout is read: pose has one class, segment two.
    for (name, last) in [("pose", "0 (person)"), ("segment", "1 (other)")] {
        assert_eq!(one(&model(name), &square()).boxes, []);
        let refused = detect(&format!("{} classes=none-such", model(name)), [&square()]).unwrap_err();
        assert!(refused.contains(last), "{refused}");
    }
}

#[test]
fn exports_of_full_size_are_told_apart() {
    let test = "exports_of_full_size_are_told_apart";
    for kind in ["pose", "seg", "obb", "cls"] {
        let Some(path) = shared(test, &format!("models/yolo11n-{kind}_shape.onnx")) else { return };
        let properties = format!("model-file={}", path.display());
        match kind {
            "pose" | "seg" => {
                // Their metadata name the classes by number.
                assert_eq!(one(&properties, &square()).status, "inferred");
                let refused = detect(&format!("{properties} classes=80"), [&square()]).unwrap_err();
                assert!(refused.contains("to 79 (79)"), "{refused}");
            }
            _ => {
                let task = if kind == "obb" { "obb" } else { "classify" };
                let refused = detect(&properties, [&square()]).unwrap_err();
                assert!(
                    refused.contains(task) && refused.contains(&format!("yolo11n-{kind}_shape.onnx")),
                    "{refused}"
                );
            }
        }
    }
}

#[test]
fn broken_numbers_are_no_detections() {
    for name in ["zero", "nan", "inf", "huge"] {
        let out = one(&format!("{} confidence-threshold=0", model(name)), &square());
        assert_eq!(out.status, "inferred", "{name}");
        assert_eq!(out.boxes, [], "{name}");
    }
    let out = one(&model("odd_boxes"), &square());
    assert_eq!(out.boxes.len(), 2, "{out:?}");
    // A score of 2 counts as certain.
    assert_marker(&out.boxes[0], 0, "red", 1.0, [4.0, 4.0, 12.0, 12.0]);
    assert_marker(&out.boxes[1], 0, "red", 0.9, BOX);
}

/// 8400 boxes, all above the threshold, none of a class overlapping another's by more than 0.7.
fn crowd(properties: &str) -> Out {
    one(&format!("{} {properties}", model("all")), &solid(640, 640, COLOR))
}

#[test]
fn max_detections_bounds_a_crowd_to_its_most_certain() {
    let certain = |rank: usize| 0.5 + 0.4 * (8399 - rank) as f64 / 8399.0;
    let everything = crowd("max-detections=30000");
    assert_eq!(everything.boxes.len(), 8400);
    for (properties, limit) in [("", 300), ("max-detections=7", 7), ("max-detections=1", 1)] {
        let out = crowd(properties);
        assert_eq!(out.boxes.len(), limit);
        for (rank, found) in out.boxes.iter().enumerate() {
            assert!((found.confidence - certain(rank)).abs() < 1e-4, "{rank}: {found:?}");
        }
        assert_eq!(out.boxes, everything.boxes[..limit]);
    }
}

#[test]
fn confidence_threshold_drops_what_is_less_certain() {
    let out = crowd("max-detections=30000 confidence-threshold=0.7");
    assert!((4100..=4300).contains(&out.boxes.len()), "{}", out.boxes.len());
    assert!(out.boxes.iter().all(|found| found.confidence > 0.7));
    assert_eq!(crowd("confidence-threshold=0.95").boxes, []);
}

/// No two of these boxes overlap by more than `limit`, within their class or over all.
fn assert_apart(out: &Out, limit: f64, across_classes: bool) {
    for (index, one) in out.boxes.iter().enumerate() {
        for other in &out.boxes[..index] {
            if across_classes || one.class == other.class {
                assert!(one.iou(&other.xyxy) <= limit + 1e-4, "{one:?} {other:?}");
            }
        }
    }
}

#[test]
fn iou_threshold_and_class_agnostic_nms_thin_a_crowd() {
    let within = crowd("max-detections=30000 iou-threshold=0.03");
    assert!(within.boxes.len() < 8400);
    assert_apart(&within, 0.03, false);
    let overlapping = (0..within.boxes.len())
        .any(|at| within.boxes[..at].iter().any(|other| within.boxes[at].iou(&other.xyxy) > 0.03));
    assert!(overlapping, "boxes of two classes may overlap");
    // The largest boxes are the most certain and lie over all others.
    let across = crowd("max-detections=30000 iou-threshold=0.03 class-agnostic-nms=true");
    assert_eq!(across.boxes.len(), 400);
    assert_apart(&across, 0.03, true);
}

#[test]
fn classes_are_kept_by_name_and_by_number() {
    let kept = |name: &str, classes: &str| -> Vec<i32> {
        let out = one(&format!("{} classes={classes}", model(name)), &square());
        out.boxes.iter().map(|found| found.class).collect()
    };
    assert_eq!(kept("end2end", "red"), [0]);
    assert_eq!(kept("end2end", "other"), [1]);
    assert_eq!(kept("end2end", "1"), [1]);
    assert_eq!(kept("end2end", "\"other, 0\""), [1, 0]);
    assert!(kept("v5", "red").is_empty());
    assert_eq!(kept("v5", "other"), [1]);
    let crowd = crowd("classes=other");
    assert_eq!(crowd.boxes.len(), 300);
    assert!(crowd.boxes.iter().all(|found| found.class == 1));
}

#[test]
fn labels_come_from_the_file_then_the_model_then_coco_then_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("names.txt");
    std::fs::write(&file, "rouge\r\nvert clair\n").unwrap();
    let label = |properties: &str| one(properties, &square()).boxes[0].label.clone();
    assert_eq!(label(&model("v5")), "other");
    assert_eq!(label(&format!("{} label-file={}", model("v5"), file.display())), "vert clair");
    assert_eq!(label(&model("yolox")), "1");
    assert_eq!(label(&format!("{} label-file={}", model("yolox"), file.display())), "vert clair");
    // And classes are asked for by the names that are shown.
    let properties = format!("{} label-file={} classes=\"vert clair\"", model("v5"), file.display());
    assert_eq!(label(&properties), "vert clair");
}

#[test]
fn eighty_classes_without_names_are_those_of_coco() {
    let test = "eighty_classes_without_names_are_those_of_coco";
    let Some(path) = shared(test, "models/yolox_nano_coco_416_b1.onnx") else { return };
    let out = one(&format!("model-file={}", path.display()), &common::picture("chelsea"));
    assert_eq!(out.only().label, "cat");
}

#[test]
fn head_overrides_what_the_model_looks_like() {
    // Read as v5, the box of cell (3,2) stays where the grid has it, and the input is RGB up to 1, not BGR up to 255.
    let forced = one(&format!("{} head=v5 confidence-threshold=0.001", model("yolox")), &square());
    let (w, h) = (4f64.ln(), 2f64.ln());
    let corner = [0.0, 0.5 - h / 2.0, 0.5 + w / 2.0, 0.5 + h / 2.0];
    assert_marker(forced.only(), 1, "1", 0.9 * RED / 255.0, corner);
    // To say what is found anyway changes nothing.
    for (name, head) in [("v8", "v8"), ("v5", "v5"), ("end2end", "end2end"), ("yolox", "yolox")] {
        let found = one(&model(name), &square());
        assert_eq!(one(&format!("{} head={head}", model(name)), &square()).boxes, found.boxes, "{name}");
    }
    // What cannot be is refused.
    for (name, head) in [("v8", "v5"), ("v8", "yolox"), ("v5", "v8"), ("v5", "yolox")] {
        let refused = detect(&format!("{} head={head}", model(name)), [&square()]).unwrap_err();
        let named = refused.contains(&format!("{name}.onnx")) && refused.contains(&format!("`{head}`"));
        assert!(named, "{name} read as {head}: {refused}");
    }
}

#[test]
fn what_is_kept_can_change_while_playing() {
    let mut detect = Detect::new(&model("end2end"));
    let element = detect.element();
    let square = square();
    assert_eq!(detect.step(&square).boxes.len(), 2);
    element.set_property("confidence-threshold", 0.5f32);
    assert_eq!(detect.step(&square).boxes.len(), 1);
    element.set_property("confidence-threshold", 0.25f32);
    element.set_property("classes", "red");
    assert_eq!(detect.step(&square).only().class, 0);
    element.set_property("classes", None::<&str>);
    assert_eq!(detect.step(&square).boxes.len(), 2);
    element.set_property("max-detections", 1u32);
    assert_eq!(detect.step(&square).only().class, 1);
}

#[test]
fn a_class_that_is_not_there_is_told_while_playing_and_all_are_kept() {
    let mut detect = Detect::new(&model("end2end"));
    detect.step(&square());
    detect.element().set_property("classes", "red,blue");
    assert_eq!(detect.step(&square()).boxes.len(), 2);
    let text = warning(&detect).expect("a warning");
    assert!(text.contains("\"blue\"") && text.contains("1 (other)"), "{text}");
    // Told once, not for each frame.
    detect.step(&square());
    assert_eq!(warning(&detect), None);
}

#[test]
fn suppression_can_change_while_playing() {
    let mut detect = Detect::new(&format!("{} max-detections=30000", model("all")));
    let (element, picture) = (detect.element(), solid(640, 640, COLOR));
    let everything = detect.step(&picture).boxes.len();
    element.set_property("iou-threshold", 0.03f32);
    let within = detect.step(&picture).boxes.len();
    element.set_property("class-agnostic-nms", true);
    let across = detect.step(&picture).boxes.len();
    assert!(across < within && within < everything, "{everything} {within} {across}");
}

/// A white picture makes the run fail.
fn white() -> gst::Sample {
    solid(64, 64, [255; 3])
}

#[test]
fn a_failed_run_costs_detections_and_no_frame() {
    let (good, bad) = (square(), white());
    let mut detect = Detect::new(&model("fails_at_run"));
    let out: Vec<_> =
        [&good, &bad, &bad, &good, &bad, &good].into_iter().map(|frame| detect.step(frame)).collect();
    let statuses: Vec<_> = out.iter().map(|out| out.status.as_str()).collect();
    assert_eq!(statuses, ["inferred", "failed", "failed", "inferred", "failed", "inferred"]);
    let counts: Vec<_> = out.iter().map(|out| confidences(out).len()).collect();
    assert_eq!(counts, [1, 0, 0, 1, 0, 1]);
    // One for each time that it began to fail.
    for _ in 0..2 {
        let text = warning(&detect).expect("a warning");
        assert!(text.contains("fails_at_run.onnx") && text.contains("failed"), "{text}");
    }
    assert_eq!(warning(&detect), None);
    let stats: gst::Structure = detect.element().property("stats");
    assert_eq!(stats.get::<u64>("failed"), Ok(3));
    assert_eq!(stats.get::<u64>("inferred"), Ok(3));
}

#[test]
fn a_model_that_only_fails_ends_the_stream() {
    let bad = white();
    let mut detect = Detect::new(&model("fails_at_run"));
    for _ in 0..40 {
        detect.push(&bad);
    }
    let text = detect.finish().unwrap_err();
    assert!(text.contains("fails_at_run.onnx") && text.contains("30 times in a row"), "{text}");
    let mut passed = 0;
    while let Some(sample) = detect.sink.try_pull_sample(gst::ClockTime::ZERO) {
        assert_eq!(Out::new(&sample).status, "failed");
        passed += 1;
    }
    assert_eq!(passed, 29);
}

/// Thirty failures that are not in a row are survived.
#[test]
fn a_success_in_between_starts_the_count_again() {
    let (good, bad) = (square(), white());
    let frames = (0..64).map(|index| if index % 16 == 15 { &good } else { &bad });
    let out = detect(&model("fails_at_run"), frames).unwrap();
    assert_eq!(out.iter().filter(|out| out.status == "failed").count(), 60);
}

/// What the bus says of a short stream, up to its end.
fn messages(properties: &str) -> Vec<gst::Message> {
    let pipeline = common::Pipeline::new(&format!(
        "videotestsrc num-buffers=3 ! video/x-raw,width=64,height=64 ! yolodetect model-file={} {properties} ! fakesink",
        tiny("v8")
    ));
    pipeline.0.set_state(gst::State::Playing).unwrap();
    let patience = gst::ClockTime::try_from(common::PATIENCE).unwrap();
    let mut messages = Vec::new();
    while let Some(message) = pipeline.bus().timed_pop(patience) {
        let end = [gst::MessageType::Eos, gst::MessageType::Error].contains(&message.type_());
        messages.push(message);
        if end {
            return messages;
        }
    }
    panic!("no end");
}

#[test]
fn the_last_statistics_come_at_the_end() {
    let frames: Vec<u64> = messages("stats-interval=3600000000000")
        .iter()
        .filter_map(|message| message.structure())
        .filter(|structure| structure.name() == "yolodetect-stats")
        .map(|structure| structure.get("frames-out").unwrap())
        .collect();
    assert_eq!(frames, [1, 3]);
    assert!(!messages("").iter().any(|message| message.has_name("yolodetect-stats")));
}

#[test]
fn no_box_meta_at_all_is_warned_of() {
    let warned =
        |properties| messages(properties).iter().any(|message| message.type_() == gst::MessageType::Warning);
    assert!(warned("analytics-meta=off roi-meta=off"));
    assert!(!warned("analytics-meta=off roi-meta=on"));
}
