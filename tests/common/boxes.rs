//! What boxes are compared with: those that ONNX Runtime alone finds, and those of the same weights in other layouts.
#![allow(dead_code)]

use std::collections::HashMap;

use serde_json::Value;

use crate::common::{Seen, asset, converted, detect, picture, shared, yolo12n};

const PICTURES: [&str; 6] = ["bus", "zidane", "chelsea", "coffee", "astronaut", "motorcycle_left"];

/// How far apart two results may be.
#[derive(Clone, Copy)]
pub struct Tolerance {
    iou: f64,
    confidence: f64,
}

/// Both saw the same pixels.
pub const EXACT: Tolerance = Tolerance { iou: 0.98, confidence: 0.01 };
/// The range has 219 steps, and of the chroma one half or three quarters are gone.
const YUV: Tolerance = Tolerance { iou: 0.95, confidence: 0.03 };
/// Where the missing chroma shows, see [`CHROMA_COUNTS`].
const WEAK: Tolerance = Tolerance { iou: 0.95, confidence: 0.05 };
/// Weights and arithmetic have 11 bits.
pub const HALF_PRECISION: Tolerance = Tolerance { iou: 0.98, confidence: 0.02 };

/// From here on a box of the reference must be found.
const SURE: f64 = 0.30;
/// From here on a found box must be one of the reference. What is below may be at home on the other side of the
/// threshold of 0.25.
const UNEXPECTED: f64 = 0.32;

/// The (model, picture) where a weak box hangs on the chroma that 4:2:0 drops, whoever reads it: with all of the
/// chroma (Y444) they are within the tolerance, and they are not where videoconvert makes RGB of the same NV12
/// first. There, 4:2:0 may move a confidence by 0.05 and lift a box from below the threshold to 0.40.
const CHROMA_COUNTS: [(&str, &str); 2] = [("yolo12n", "motorcycle_left"), ("yolov5n", "astronaut")];
const WEAK_UNEXPECTED: f64 = 0.40;

/// A box that a plain ONNX Runtime script found.
#[derive(Clone, Debug)]
pub struct Reference {
    class: i32,
    label: String,
    confidence: f64,
    xyxy: [f64; 4],
}

impl From<&Seen> for Reference {
    fn from(seen: &Seen) -> Self {
        Self { class: seen.class, label: seen.label.clone(), confidence: seen.confidence, xyxy: seen.xyxy }
    }
}

/// By picture, without its file's ending.
pub type References = HashMap<String, Vec<Reference>>;

pub fn references(test: &str, iou: u32, model: &str) -> Option<References> {
    let path = shared(test, &format!("reference/detections_iou{iou}.json"))?;
    let all: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let reference = |value: &Value| Reference {
        class: value["class_id"].as_i64().unwrap() as i32,
        label: value["class"].as_str().unwrap().into(),
        confidence: value["conf"].as_f64().unwrap(),
        xyxy: std::array::from_fn(|side| value["xyxy"][side].as_f64().unwrap()),
    };
    let images = all[model]["images"].as_object().unwrap_or_else(|| panic!("no results of {model}"));
    let stem = |file: &str| file.split('.').next().unwrap().to_string();
    Some(
        images
            .iter()
            .map(|(file, boxes)| (stem(file), boxes.as_array().unwrap().iter().map(reference).collect()))
            .collect(),
    )
}

/// Every sure box is found once, and nothing else that is as sure.
pub fn compare(what: &str, found: &[Seen], expected: &[Reference], tolerance: Tolerance) {
    compare_above(UNEXPECTED, what, found, expected, tolerance);
}

fn compare_above(unexpected: f64, what: &str, found: &[Seen], expected: &[Reference], tolerance: Tolerance) {
    let same = |found: &Seen, expected: &Reference| {
        found.class == expected.class
            && found.label == expected.label
            && found.iou(&expected.xyxy) >= tolerance.iou
            && (found.confidence - expected.confidence).abs() <= tolerance.confidence
    };
    for expected in expected.iter().filter(|expected| expected.confidence >= SURE) {
        let matches = found.iter().filter(|found| same(found, expected)).count();
        assert_eq!(matches, 1, "{what}: {expected:?} among {found:#?}");
    }
    for found in found.iter().filter(|found| found.confidence >= unexpected) {
        assert!(
            expected.iter().any(|expected| same(found, expected)),
            "{what}: {found:?} is not in {expected:#?}"
        );
    }
    assert!(
        found.is_sorted_by(|a, b| a.confidence >= b.confidence),
        "{what}: not by falling confidence: {found:#?}"
    );
}

/// GStreamer's own conversions of the pictures, with more and more chroma missing.
const RGB: &str = "video/x-raw,format=RGB";
const Y444: &str = "video/x-raw,format=Y444,colorimetry=bt601";
const NV12: &str = "video/x-raw,format=NV12,colorimetry=bt601";
const I420: &str = "video/x-raw,format=I420,colorimetry=1:4:0:0,chroma-site=jpeg";

/// All pictures in all formats through one element, with `further` properties. `name` is the model's in [`CHROMA_COUNTS`].
pub fn compare_all(name: &str, model: &str, further: &str, iou: u32, references: &References) {
    let mut cases = Vec::new();
    for file in PICTURES {
        let picture = picture(file);
        cases.extend([RGB, Y444, NV12, I420].map(|caps| (file, caps, converted(&picture, caps))));
    }
    let properties = format!("model-file={model} iou-threshold=0.{iou} {further}");
    let out = detect(&properties, cases.iter().map(|(.., sample)| sample)).unwrap();
    for ((file, caps, _), out) in cases.iter().zip(&out) {
        assert_eq!(out.status, "inferred");
        let what = format!("{name}, {file} as {caps}, IoU {iou}");
        let chroma_counts = CHROMA_COUNTS.contains(&(name, *file));
        let (unexpected, tolerance) = match *caps {
            RGB => (UNEXPECTED, EXACT),
            NV12 | I420 if chroma_counts => (WEAK_UNEXPECTED, WEAK),
            _ => (UNEXPECTED, YUV),
        };
        compare_above(unexpected, &what, &out.boxes, &references[*file], tolerance);
    }
}

/// The one set of weights, written out in each of the layouts that exports have.
pub fn every_layout_finds_the_same(further: &str) {
    let bus = picture("bus");
    let original = detect(&format!("model-file={} {further}", yolo12n()), [&bus]).unwrap();
    let expected: Vec<Reference> = original[0].boxes.iter().map(Reference::from).collect();
    assert!(expected.len() >= 5, "{expected:#?}");
    for (variant, tolerance) in [
        ("v5", EXACT),
        ("end2end", EXACT),
        ("dynamic", EXACT),
        ("dynamic_batch", EXACT),
        ("batch4", EXACT),
        ("f16", HALF_PRECISION),
    ] {
        let model = asset(&format!("models/variants/{variant}.onnx"));
        let out = detect(&format!("model-file={} {further}", model.display()), [&bus]).unwrap();
        compare(variant, &out[0].boxes, &expected, tolerance);
    }
}

/// A batch's frames each keep their own boxes.
pub fn pictures_keep_their_own_boxes(further: &str) {
    let pictures: Vec<_> = ["bus", "zidane", "chelsea"].map(picture).into();
    let alone = detect(&format!("model-file={} {further}", yolo12n()), &pictures).unwrap();
    let model = asset("models/variants/dynamic_batch.onnx");
    // The fourth place stays empty until the stream's end, which waits for nobody. The number of threads is nobody
    // else's, and so the engine: another test's frame would take the place.
    let properties =
        format!("model-file={} threads=3 max-batch=4 batch-delay=10000000000 {further}", model.display());
    let together = detect(&properties, &pictures).unwrap();
    for (alone, together) in alone.iter().zip(&together) {
        assert_eq!(together.batch, 3);
        let expected: Vec<Reference> = alone.boxes.iter().map(Reference::from).collect();
        compare("together", &together.boxes, &expected, EXACT);
    }
}
