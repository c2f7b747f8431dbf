//! `device=openvino`, for real on the processor. In an executable of its own, since a process has one ONNX Runtime and this
//! one is another than that of the other tests.

#[path = "common/boxes.rs"]
mod boxes;
mod common;
#[path = "common/stress.rs"]
mod stress;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use boxes::{compare_all, every_layout_finds_the_same, pictures_keep_their_own_boxes, references};
use common::{
    Detect, another_process, asset, detect, is_child, own_tiny, picture, shared, skip, solid, tiny, yolo12n,
};
use gst::prelude::*;
use gstyolodetect::engine::Engine;
use gstyolodetect::engine::device::Device;
use gstyolodetect::engine::plan::Plan;
use stress::{noise, run, stress};

const COLOR: [u8; 3] = [200, 100, 150];

/// The fetched library; `None`, said as a skip of `test`, where there is none.
fn library(test: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/assets/openvino/libonnxruntime.so.1.24.1");
    if path.exists() {
        return Some(path);
    }
    skip(
        test,
        "there is no ONNX Runtime with OpenVINO (pipelines/setup.sh --openvino fetches one, for x86-64)",
    );
    None
}

/// The properties that make an element run on OpenVINO's `device`.
fn on(device: &str, test: &str) -> Option<String> {
    Some(format!("device={device} onnxruntime-library={}", library(test)?.display()))
}

fn openvino(test: &str) -> Option<String> {
    on("openvino", test)
}

#[test]
fn yolo12n_finds_what_onnxruntime_finds() {
    let test = "yolo12n_finds_what_onnxruntime_finds";
    let Some(openvino) = openvino(test) else { return };
    let Some(references) = references(test, 70, "yolo12n_coco_640_b1") else { return };
    compare_all("yolo12n", &yolo12n(), &openvino, 70, &references);
}

#[test]
fn yolov5n_and_yolox_find_what_onnxruntime_finds() {
    let test = "yolov5n_and_yolox_find_what_onnxruntime_finds";
    let Some(openvino) = openvino(test) else { return };
    for (name, file, iou) in
        [("yolov5n", "yolov5n_coco_640_b1", 45), ("yolox_nano", "yolox_nano_coco_416_b1", 70)]
    {
        let Some(model) = shared(test, &format!("models/{file}.onnx")) else { return };
        let Some(references) = references(test, iou, file) else { return };
        compare_all(name, &model.display().to_string(), &openvino, iou, &references);
    }
}

#[test]
fn every_layout_of_one_network_finds_the_same_on_openvino() {
    let Some(openvino) = openvino("every_layout_of_one_network_finds_the_same_on_openvino") else { return };
    every_layout_finds_the_same(&openvino);
}

/// Three frames, which run as four: what is in the fourth place is nobody's.
#[test]
fn pictures_that_run_together_on_openvino_keep_their_own_boxes() {
    let Some(openvino) = openvino("pictures_that_run_together_on_openvino_keep_their_own_boxes") else {
        return;
    };
    pictures_keep_their_own_boxes(&openvino);
}

#[test]
fn callers_at_the_same_time_get_what_each_gets_alone() {
    let test = "callers_at_the_same_time_get_what_each_gets_alone";
    let Some(library) = library(test) else { return };
    let device = || Device::parse("openvino").unwrap();
    let load = |model, plan| stress::load(model, Some(library.clone()), device(), plan);
    let tiny = asset("models/tiny/v8_dynamic_batch.onnx");
    stress(&load(tiny.clone(), Plan { callers: 4, threads: 1 }), 31, 4, 2_000);
    stress(&load(tiny, Plan { callers: 3, threads: 4 }), 31, 4, 2_000);
    stress(&load(asset("models/yolo12n.onnx"), Plan { callers: 2, threads: 1 }), 3, 1, 20);
}

#[test]
fn a_run_that_shrinks_finds_the_same() {
    let Some(library) = library("a_run_that_shrinks_finds_the_same") else { return };
    let device = Device::parse("openvino").unwrap();
    let model = asset("models/variants/dynamic_batch.onnx");
    let engine = stress::load(model, Some(library), device, Plan { callers: 1, threads: 2 });
    let expected = run(&engine, &mut noise(&engine, 2, 1), 0..2);
    let freed = engine.run_and_shrink(&mut noise(&engine, 2, 2), 0..2, &mut |_| ()).unwrap();
    assert!(freed.is_some(), "there is an arena, of what goes in and out");
    assert!(run(&engine, &mut noise(&engine, 2, 1), 0..2) == expected);
}

/// The property and the statistics of the one element of `detect`.
fn active_device(detect: &Detect) -> (Option<String>, String) {
    let stats = detect.element().property::<gst::Structure>("stats");
    let engine = stats.get::<gst::Structure>("engine").unwrap();
    (detect.element().property("active-device"), engine.get("device").unwrap())
}

#[test]
fn the_active_device_is_where_the_model_runs() {
    let test = "the_active_device_is_where_the_model_runs";
    for (device, active) in [
        ("openvino", "openvino:CPU"),
        ("openvino:cpu", "openvino:CPU"),
        ("openvino:AUTO:CPU", "openvino:AUTO:CPU"),
        ("openvino:HETERO:CPU", "openvino:HETERO:CPU"),
        ("cpu", "cpu"),
        // The library alone changes nothing.
        ("auto", "cpu"),
    ] {
        let Some(properties) = on(device, test) else { return };
        for hint in ["latency", "throughput"] {
            let mut detect =
                Detect::new(&format!("model-file={} performance-hint={hint} {properties}", tiny("v8")));
            assert_eq!(detect.element().property::<Option<String>>("active-device"), None);
            assert_eq!(detect.step(&solid(64, 64, COLOR)).boxes.len(), 1, "{device}");
            assert_eq!(active_device(&detect), (Some(active.into()), active.into()), "{device}");
        }
    }
}

#[test]
fn streams_share_the_engine_of_one_device() {
    let test = "streams_share_the_engine_of_one_device";
    let Some(openvino) = openvino(test) else { return };
    let model = own_tiny("v8_dynamic_batch", test);
    let properties = format!("model-file={model} max-batch=4 {openvino}");
    let cpu = format!("model-file={model} max-batch=4 {}", on("cpu", test).unwrap());
    let start = |properties: &str| {
        let mut detect = Detect::new(properties);
        detect.step(&solid(64, 64, COLOR));
        detect
    };
    let streams = [(); 3].map(|()| start(&properties));
    let other = start(&cpu);
    let streams_of = |detect: &Detect| {
        let stats = detect.element().property::<gst::Structure>("stats");
        stats.get::<gst::Structure>("engine").unwrap().get::<u32>("streams").unwrap()
    };
    assert_eq!(streams.iter().map(streams_of).collect::<Vec<_>>(), [3, 3, 3]);
    assert_eq!(streams_of(&other), 1, "the same model elsewhere is another engine");
    thread::scope(|scope| {
        for mut detect in streams {
            scope.spawn(move || {
                for _ in 0..200 {
                    assert_eq!(detect.step(&solid(64, 64, COLOR)).boxes.len(), 1);
                }
            });
        }
    });
}

/// The error that one good frame ends in.
fn error(properties: &str) -> String {
    match detect(properties, [&solid(64, 64, COLOR)]) {
        Err(error) => error,
        Ok(_) => panic!("no error: {properties}"),
    }
}

#[track_caller]
fn assert_says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

#[test]
fn devices_that_openvino_does_not_have() {
    let test = "devices_that_openvino_does_not_have";
    for device in
        ["openvino:CPU.7", "openvino:GPU.99", "openvino:AUTO:GPU.99,CPU", "openvino:HETERO:GPU.99,CPU"]
    {
        let Some(properties) = on(device, test) else { return };
        let text = error(&format!("model-file={} {properties}", tiny("v8")));
        assert_says(&text, &[&format!("device={device} is not there"), "OpenVINO", "device=cpu"]);
    }
    // And the process is none the worse for it.
    let openvino = openvino(test).unwrap();
    assert_eq!(
        detect(&format!("model-file={} {openvino}", tiny("v8")), [&solid(64, 64, COLOR)]).unwrap().len(),
        1
    );
}

/// ONNX Runtime would run the rest on its own kernels and say nothing.
#[test]
fn models_that_openvino_does_not_take_as_a_whole() {
    let Some(openvino) = openvino("models_that_openvino_does_not_take_as_a_whole") else { return };
    let text = error(&format!("model-file={} {openvino}", tiny("stamped")));
    assert_says(&text, &["stamped.onnx", "device CPU does not take all", "device=cpu"]);
    let text = error(&format!("model-file={} {openvino}", tiny("segment")));
    assert_says(&text, &["segment.onnx", "OpenVINO cannot compile it", "device=cpu"]);
    let text = error(&format!("model-file={} {openvino}", tiny("garbage")));
    assert_says(&text, &["garbage.onnx", "ONNX Runtime cannot load it"]);
}

/// Each in a process of its own, with what was copied of the library's folder.
#[test]
fn a_library_that_was_copied_in_parts() {
    let test = "a_library_that_was_copied_in_parts";
    let properties = format!("model-file={} device=openvino", tiny("v8"));
    if is_child() {
        println!("{}", error(&properties));
        return;
    }
    let Some(library) = library(test) else { return };
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join(library.file_name().unwrap());
    fs::copy(&library, &copy).unwrap();
    let error = || {
        let output = another_process(test, Some(&copy), &[]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let way_out =
        ["pipelines/setup.sh --openvino", "onnxruntime-openvino", "onnxruntime-library", "device=cpu"];
    let named = copy.display().to_string();
    for (next, words) in [
        (None, ["has no libonnxruntime_providers_shared.so beside it", "device=openvino:CPU"]),
        (
            Some("libonnxruntime_providers_shared.so"),
            ["has no libonnxruntime_providers_openvino.so beside it", "device=openvino:CPU"],
        ),
        (Some("libonnxruntime_providers_openvino.so"), ["cannot be loaded", "libopenvino"]),
    ] {
        if let Some(next) = next {
            fs::copy(library.with_file_name(next), folder.path().join(next)).unwrap();
        }
        let text = error();
        assert_says(&text, &words);
        assert_says(&text, &way_out);
        assert_says(&text, &[&named]);
    }
}

#[test]
fn boxes_of_both_devices_are_the_same_in_one_process() {
    let test = "boxes_of_both_devices_are_the_same_in_one_process";
    let (Some(cpu), Some(openvino)) = (on("cpu", test), openvino(test)) else { return };
    let bus = picture("bus");
    let found = |properties: &str| {
        detect(&format!("model-file={} {properties}", yolo12n()), [&bus]).unwrap().remove(0)
    };
    let expected: Vec<_> = found(&cpu).boxes.iter().map(boxes::Reference::from).collect();
    assert!(expected.len() >= 5, "{expected:#?}");
    boxes::compare("bus", &found(&openvino).boxes, &expected, boxes::EXACT);
}
