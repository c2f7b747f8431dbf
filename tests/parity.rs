//! The same boxes as ONNX Runtime alone gives on the same pictures, with every layout of a model's output.

#[path = "common/boxes.rs"]
mod boxes;
mod common;

use boxes::{
    EXACT, compare, compare_all, every_layout_finds_the_same, pictures_keep_their_own_boxes, references,
};
use common::{Out, Pipeline, asset, shared, yolo12n};
use gst::prelude::*;
use gst_app::AppSink;

#[test]
fn yolo12n_finds_what_onnxruntime_finds() {
    let Some(references) = references("yolo12n_finds_what_onnxruntime_finds", 70, "yolo12n_coco_640_b1")
    else {
        return;
    };
    compare_all("yolo12n", &yolo12n(), "", 70, &references);
}

#[test]
fn yolov5n_finds_what_onnxruntime_finds() {
    let test = "yolov5n_finds_what_onnxruntime_finds";
    let (Some(model), Some(references)) =
        (shared(test, "models/yolov5n_coco_640_b1.onnx"), references(test, 45, "yolov5n_coco_640_b1"))
    else {
        return;
    };
    compare_all("yolov5n", &model.display().to_string(), "", 45, &references);
}

#[test]
fn yolox_nano_finds_what_onnxruntime_finds() {
    let test = "yolox_nano_finds_what_onnxruntime_finds";
    let Some(model) = shared(test, "models/yolox_nano_coco_416_b1.onnx") else { return };
    for iou in [70, 45] {
        let Some(references) = references(test, iou, "yolox_nano_coco_416_b1") else { return };
        compare_all("yolox_nano", &model.display().to_string(), "", iou, &references);
    }
}

/// As a person would type it, decoder and all.
#[test]
fn a_launch_line_finds_what_onnxruntime_finds() {
    let Some(references) =
        references("a_launch_line_finds_what_onnxruntime_finds", 70, "yolo12n_coco_640_b1")
    else {
        return;
    };
    let pipeline = Pipeline::new(&format!(
        "filesrc location={} ! pngdec ! videoconvert ! video/x-raw,format=RGB ! \
         yolodetect model-file={} roi-meta=on ! appsink name=sink sync=false wait-on-eos=false",
        asset("pictures/zidane.png").display(),
        yolo12n()
    ));
    pipeline.run().unwrap();
    let sink = pipeline.by_name("sink").downcast::<AppSink>().unwrap();
    let out = Out::new(&sink.pull_sample().unwrap());
    compare("zidane", &out.boxes, &references["zidane"], EXACT);
    assert!(sink.try_pull_sample(gst::ClockTime::ZERO).is_none(), "one picture, one frame");
}

/// The one set of weights, written out in each of the layouts that exports have.
#[test]
fn every_layout_of_one_network_finds_the_same() {
    every_layout_finds_the_same("");
}

/// A batch's frames each keep their own boxes.
#[test]
fn pictures_that_run_together_keep_their_own_boxes() {
    pictures_keep_their_own_boxes("");
}
