//! What is wrong is said: an element error that names the thing and the way out, and nothing hangs.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Detect, Pipeline, another_process, detect, is_child, library, shared, solid, tiny};
use gst::prelude::*;
use gst_video::{VideoFormat, VideoFrameFlags, VideoMeta};

const COLOR: [u8; 3] = [200, 100, 150];

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
fn a_model_file_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    assert_says(&error(""), &["no model is set", "model-file"]);
    assert_says(
        &error("model-file=/nowhere/yolo.onnx"),
        &["/nowhere/yolo.onnx", "cannot be read", "model-file"],
    );
    let folder = folder.path().display().to_string();
    assert_says(&error(&format!("model-file={folder}")), &[&folder, "cannot be read", "model-file"]);
}

#[test]
fn files_that_are_no_models() {
    for name in ["garbage", "truncated", "empty"] {
        let text = error(&format!("model-file={}", tiny(name)));
        assert_says(&text, &[&format!("{name}.onnx"), "cannot be used", "ONNX Runtime cannot load it"]);
    }
}

#[test]
fn models_that_are_no_detectors() {
    for (name, words) in [
        ("classifier", &["classify", "supported are detect"][..]),
        ("obb", &["obb", "supported are detect"]),
        ("one_channel", &["1 channels instead of 3", "[batch, 3, height, width]"]),
        ("five_channel", &["5 channels instead of 3", "[batch, 3, height, width]"]),
        ("int_input", &["images", "floats"]),
        ("two_inputs", &["2 inputs (images, scale)", "one input"]),
        ("empty_batch", &["[0, 3, 64, 64]", "[batch, 3, height, width]"]),
        ("names_mismatch", &["names 3 classes", "scores of 1"]),
        ("no_outputs_rank3", &["[1, 6, 84, 1]", "property `head`"]),
        ("int_output", &["[1, 6, 84] (not float)", "property `head`"]),
    ] {
        let text = error(&format!("model-file={}", tiny(name)));
        assert_says(&text, &[&format!("{name}.onnx")]);
        assert_says(&text, words);
    }
}

#[test]
fn classes_that_the_model_does_not_have() {
    let v8 = tiny("v8");
    for (classes, word) in
        [("rot", "rot"), ("2", "2"), ("red,-1", "-1"), ("\"other,  , Red\"", "Red"), ("\",\"", ",")]
    {
        let text = error(&format!("model-file={v8} classes={classes}"));
        assert_says(&text, &["classes=", word]);
        assert!(text.contains("from 0 (red) to 1 (other)") || text.contains("leave it unset"), "{text}");
    }
}

#[test]
fn label_files_that_do_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("short.txt"), "red\n").unwrap();
    std::fs::write(path("empty.txt"), "").unwrap();
    std::fs::write(path("binary.txt"), [0xff, 0xfe, 0, 1, 0x80]).unwrap();
    let with = |name: &str| error(&format!("model-file={} label-file={}", tiny("v8"), path(name).display()));
    assert_says(&with("short.txt"), &["short.txt", "1 lines", "v8.onnx", "2 classes", "each class a line"]);
    assert_says(&with("empty.txt"), &["empty.txt", "0 lines", "2 classes"]);
    assert_says(
        &with("binary.txt"),
        &["binary.txt", "cannot be read", "label-file", "one class name a line"],
    );
    assert_says(&with("missing.txt"), &["missing.txt", "cannot be read", "label-file"]);
    let directory = error(&format!("model-file={} label-file={}", tiny("v8"), folder.path().display()));
    assert_says(&directory, &["cannot be read", "label-file"]);
}

#[test]
fn devices_that_are_not_there() {
    for device in ["toaster", "CPU", "cpu:0"] {
        let text = error(&format!("model-file={} device={device}", tiny("v8")));
        assert_says(&text, &[&format!("device={device}"), "device=auto"]);
    }
    for device in ["openvino:", "openvino:TPU", "openvino:CPU_FP32", "openvino:AUTO"] {
        let text = error(&format!("model-file={} device={device}", tiny("v8")));
        assert_says(&text, &[&format!("device={device} names no device"), "openvino:GPU.1", "device=auto"]);
    }
    for device in ["cuda:", "cuda:x", "tensorrt:64"] {
        let text = error(&format!("model-file={} device={device}", tiny("v8")));
        assert_says(&text, &[&format!("device={device} names no GPU"), "from 0 on", "device=auto"]);
    }
    // The ordinary library has none of these.
    for (device, named) in [("cuda", "cuda:0"), ("cuda:3", "cuda:3"), ("tensorrt:1", "tensorrt:1")] {
        let text = error(&format!("model-file={} device={device}", tiny("v8")));
        assert_says(
            &text,
            &[&format!("device={named} needs an ONNX Runtime with"), "setup.sh --cuda", "device=cpu"],
        );
        assert_says(&text, &[&library().display().to_string(), "onnxruntime-gpu", "onnxruntime-library"]);
    }
    let text = error(&format!("model-file={} device=openvino:gpu", tiny("v8")));
    assert_says(
        &text,
        &["device=openvino:GPU", &library().display().to_string(), "pipelines/setup.sh --openvino"],
    );
    assert_says(&text, &["onnxruntime-openvino", "onnxruntime-library", "device=cpu"]);
    for device in ["auto", "cpu"] {
        assert!(
            detect(&format!("model-file={} device={device}", tiny("v8")), [&solid(64, 64, COLOR)]).is_ok()
        );
    }
}

#[test]
fn metas_that_this_gstreamer_does_not_have() {
    let outcome = detect(&format!("model-file={} analytics-meta=on", tiny("v8")), [&solid(64, 64, COLOR)]);
    if gstyolodetect::meta::analytics_available() {
        assert_eq!(outcome.unwrap()[0].boxes.len(), 1);
    } else {
        assert_says(&outcome.unwrap_err(), &["analytics-meta=on", "1.24", "roi-meta"]);
    }
}

/// A 64x64 frame in this format whose bytes the test makes up.
fn frame(format: VideoFormat, buffer: gst::Buffer) -> gst::Sample {
    common::init();
    let info = gst_video::VideoInfo::builder(format, 64, 64).fps(gst::Fraction::new(25, 1)).build().unwrap();
    gst::Sample::builder().caps(&info.to_caps().unwrap()).buffer(&buffer).build()
}

#[test]
fn buffers_smaller_than_their_caps_say() {
    let model = format!("model-file={}", tiny("v8"));
    for (format, size, needed) in [
        (VideoFormat::Rgb, 64 * 64 * 3 - 1, "12288"),
        (VideoFormat::Rgb, 1, "12288"),
        (VideoFormat::Nv12, 64 * 64, "6144"),
        (VideoFormat::Gray8, 4095, "4096"),
    ] {
        let sample = frame(format, gst::Buffer::from_mut_slice(vec![0u8; size]));
        let text = detect(&model, [&sample]).unwrap_err();
        assert_says(&text, &["frame 0", &format!("{size} bytes"), needed, "the element before"]);
    }
    let empty = frame(VideoFormat::Rgb, gst::Buffer::new());
    assert_says(&detect(&model, [&empty]).unwrap_err(), &["frame 0", "0 bytes"]);
}

/// What a video meta may claim of a buffer of `size` bytes.
struct Claim {
    format: VideoFormat,
    width: u32,
    size: usize,
    offset: &'static [usize],
    stride: &'static [i32],
}

#[test]
fn video_metas_that_lie() {
    let (rgb, nv12) = (VideoFormat::Rgb, VideoFormat::Nv12);
    const RGB_SIZE: usize = 64 * 64 * 3;
    let claim = |format, width, size, offset, stride| Claim { format, width, size, offset, stride };
    for (claim, words) in [
        (claim(rgb, 64, RGB_SIZE, &[0], &[193]), &["plane 0", "12288"][..]),
        (claim(rgb, 64, RGB_SIZE, &[1], &[192]), &["plane 0", "12288"]),
        (claim(rgb, 64, RGB_SIZE, &[usize::MAX], &[192]), &["plane 0"]),
        (claim(rgb, 64, RGB_SIZE, &[usize::MAX - 10], &[i32::MAX]), &["plane 0"]),
        (claim(rgb, 64, RGB_SIZE, &[0], &[i32::MAX]), &["plane 0"]),
        (claim(rgb, 64, RGB_SIZE, &[0], &[-192]), &["plane 0", "-192"]),
        (claim(rgb, 64, RGB_SIZE, &[0], &[i32::MIN]), &["plane 0"]),
        // Rows that overlap would be read as something, but are nothing that anybody means.
        (claim(rgb, 64, RGB_SIZE, &[0], &[191]), &["plane 0", "row stride", "192"]),
        (claim(rgb, 64, RGB_SIZE, &[0], &[0]), &["plane 0", "row stride"]),
        (claim(rgb, 65, 2 * RGB_SIZE, &[0], &[196]), &["65x64", "64x64"]),
        (claim(VideoFormat::Bgr, 64, RGB_SIZE, &[0], &[192]), &["Bgr", "Rgb"]),
        (claim(nv12, 64, 6144, &[0, 4097], &[64, 64]), &["plane 1", "6144"]),
        (claim(nv12, 64, 6144, &[0, 4096], &[64, 65]), &["plane 1", "6144"]),
        (claim(nv12, 64, 6144, &[0, 6144], &[64, 64]), &["plane 1", "6144"]),
    ] {
        let Claim { format, width, size, offset, stride } = claim;
        common::init();
        let mut buffer = gst::Buffer::from_mut_slice(vec![0u8; size]);
        let flags = VideoFrameFlags::empty();
        let meta = VideoMeta::add_full(buffer.make_mut(), flags, format, width, 64, offset, stride);
        if meta.is_err() {
            // GStreamer itself refuses some from 1.24 on.
            continue;
        }
        let caps_format = if format == VideoFormat::Bgr { rgb } else { format };
        let text = detect(&format!("model-file={}", tiny("v8")), [&frame(caps_format, buffer)]).unwrap_err();
        assert_says(&text, &["frame 0", "the element before"]);
        for word in words {
            let (text, word) = (text.to_lowercase(), word.to_lowercase());
            assert!(
                text.contains(&word),
                "`{word}` is not in: {text} (offset {offset:?}, stride {stride:?})"
            );
        }
    }
}

/// After good frames the bad one still is found, and the good ones came out.
#[test]
fn a_bad_frame_in_a_good_stream() {
    let good = solid(64, 64, COLOR);
    let mut detect = Detect::new(&format!("model-file={}", tiny("v8")));
    for _ in 0..3 {
        detect.step(&good);
    }
    detect.push(&frame(VideoFormat::Rgb, gst::Buffer::from_mut_slice(vec![0u8; 7])));
    assert_says(&detect.finish().unwrap_err(), &["frame 3", "7 bytes"]);
}

#[test]
fn a_stream_without_frames_ends_well() {
    let detect = Detect::new(&format!("model-file={}", tiny("v8")));
    assert_eq!(detect.finish().unwrap().len(), 0);
    // The same with caps.
    let caps = solid(64, 64, COLOR).caps_owned().unwrap();
    let detect = Detect::new(&format!("model-file={}", tiny("v8")));
    detect.source.set_caps(Some(&caps));
    assert_eq!(detect.finish().unwrap().len(), 0);
}

#[test]
fn frames_without_caps() {
    let detect = Detect::new(&format!("model-file={}", tiny("v8")));
    detect.source.push_buffer(gst::Buffer::from_mut_slice(vec![0u8; 64])).unwrap();
    assert_says(&detect.finish().unwrap_err(), &["before any caps", "decoder"]);
}

#[test]
fn frames_of_any_size_are_run() {
    let sizes = [(1, 1), (1, 2), (16383, 1), (1, 16383), (16383, 3), (3, 1000), (64, 64)];
    let frames: Vec<_> = sizes.map(|(width, height)| solid(width, height, [255; 3])).into();
    for name in ["v8", "yolox"] {
        let properties = format!("model-file={} confidence-threshold=0", tiny(name));
        let out = detect(&properties, &frames).unwrap();
        for (out, (width, height)) in out.iter().zip(sizes) {
            assert_eq!(out.status, "inferred");
            for found in &out.boxes {
                let [x1, y1, x2, y2] = found.xyxy;
                let inside = 0.0 <= x1 && x1 < x2 && x2 <= f64::from(width);
                assert!(inside && 0.0 <= y1 && y1 < y2 && y2 <= f64::from(height), "{found:?}");
            }
        }
        assert_eq!(out[0].boxes.len(), 1, "{name}");
    }
    // Subsampled planes of a single column or row.
    let yuv: Vec<_> =
        frames[..4].iter().map(|frame| common::converted(frame, "video/x-raw,format=I420")).collect();
    assert_eq!(detect(&format!("model-file={}", tiny("v8")), &yuv).unwrap().len(), 4);
}

/// An element that failed can be mended and started again.
#[test]
fn after_an_error_the_same_element_runs() {
    let mut detect = Detect::new(&format!("model-file={}", tiny("garbage")));
    assert!(detect.pipeline.run().is_err());
    detect.pipeline.0.set_state(gst::State::Null).unwrap();
    detect.element().set_property("model-file", tiny("v8"));
    assert_eq!(detect.step(&solid(64, 64, COLOR)).boxes.len(), 1);
}

/// A real model where ONNX Runtime's own loader has to tell what is missing.
#[test]
fn a_model_cut_short() {
    let Some(path) = shared("a_model_cut_short", "models/yolox_nano_coco_416_b1.onnx") else { return };
    let bytes = std::fs::read(path).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let cut = folder.path().join("cut.onnx");
    for length in [bytes.len() / 2, bytes.len() - 1, 100, 1] {
        std::fs::write(&cut, &bytes[..length]).unwrap();
        assert_says(&error(&format!("model-file={}", cut.display())), &["cut.onnx", "cannot be used"]);
    }
}

// --- libraries: one process each ---------------------------------------------------------------------------

/// Where the child finds what to load.
const LIBRARY: &str = "YOLODETECT_TEST_LIBRARY";

/// In the child: the library is refused, with these words; the right one loads afterwards.
fn refused_then_right(words: &[&str]) {
    let wrong = std::env::var(LIBRARY).unwrap();
    let model = format!("model-file={}", tiny("v8"));
    for _ in 0..2 {
        let text = error(&format!("{model} onnxruntime-library={wrong}"));
        assert_says(&text, &[&wrong, "onnxruntime-library", "ORT_DYLIB_PATH"]);
        assert_says(&text, words);
    }
    let right = format!("{model} onnxruntime-library={}", library().display());
    assert_eq!(detect(&right, [&solid(64, 64, COLOR)]).unwrap()[0].boxes.len(), 1);
}

/// Runs `test` in a child with that library; the child's failure is this test's.
#[track_caller]
fn in_a_process(test: &str, library: &Path) {
    let output = another_process(test, None, &[(LIBRARY, library.to_str().unwrap())]);
    assert!(output.status.success(), "{}{}", utf8(&output.stdout), utf8(&output.stderr));
    assert!(utf8(&output.stdout).contains("1 passed"), "{}", utf8(&output.stdout));
}

fn utf8(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A library with this C source.
fn compiled(folder: &Path, source: &str) -> PathBuf {
    let (code, library) = (folder.join("stub.c"), folder.join("libstub.so"));
    std::fs::write(&code, source).unwrap();
    let status =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&code).status().unwrap();
    assert!(status.success());
    library
}

/// A library that says it is ONNX Runtime of this version but has no API to give.
fn stub(folder: &Path, version: &str) -> PathBuf {
    let source = format!(
        "static const void *get_api(unsigned version) {{ (void)version; return 0; }}
         static const char *get_version(void) {{ return {version}; }}
         static const struct {{ const void *(*api)(unsigned); const char *(*version)(void); }} base =
             {{ get_api, get_version }};
         const void *OrtGetApiBase(void) {{ return &base; }}"
    );
    compiled(folder, &source)
}

#[test]
fn a_missing_library() {
    if is_child() {
        return refused_then_right(&["there is no"]);
    }
    in_a_process("a_missing_library", Path::new("/nowhere/libonnxruntime.so"));
}

#[test]
fn a_text_file_for_a_library() {
    if is_child() {
        return refused_then_right(&["cannot be loaded"]);
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("libonnxruntime.so");
    std::fs::write(&file, "not a library\n").unwrap();
    in_a_process("a_text_file_for_a_library", &file);
}

#[test]
fn another_library() {
    if is_child() {
        return refused_then_right(&["not ONNX Runtime"]);
    }
    let folder = tempfile::tempdir().unwrap();
    in_a_process("another_library", &compiled(folder.path(), "int answer(void) { return 42; }"));
}

#[test]
fn an_old_library() {
    if is_child() {
        return refused_then_right(&["version 1.10.0", "too old", "1.17"]);
    }
    let folder = tempfile::tempdir().unwrap();
    in_a_process("an_old_library", &stub(folder.path(), "\"1.10.0\""));
}

#[test]
fn a_library_without_an_api() {
    if is_child() {
        return refused_then_right(&["not a working ONNX Runtime"]);
    }
    let folder = tempfile::tempdir().unwrap();
    in_a_process("a_library_without_an_api", &stub(folder.path(), "\"1.99.0\""));
}

#[test]
fn a_library_of_no_version() {
    if is_child() {
        return refused_then_right(&[]);
    }
    for version in ["0", "\"\"", "\"latest\"", "\"\\xff\\xfe\""] {
        let folder = tempfile::tempdir().unwrap();
        in_a_process("a_library_of_no_version", &stub(folder.path(), version));
    }
}

#[test]
fn a_library_without_a_base() {
    if is_child() {
        return refused_then_right(&["not a working ONNX Runtime"]);
    }
    let folder = tempfile::tempdir().unwrap();
    in_a_process(
        "a_library_without_a_base",
        &compiled(folder.path(), "void *OrtGetApiBase(void) { return 0; }"),
    );
}

#[test]
fn the_environment_variable_names_the_library() {
    let test = "the_environment_variable_names_the_library";
    if is_child() {
        let text = error(&format!("model-file={}", tiny("v8")));
        return assert_says(&text, &["/nowhere/else.so", "onnxruntime-library", "ORT_DYLIB_PATH"]);
    }
    let output = another_process(test, Some(Path::new("/nowhere/else.so")), &[]);
    assert!(output.status.success(), "{}{}", utf8(&output.stdout), utf8(&output.stderr));
}

#[test]
fn a_second_library_is_refused() {
    if is_child() {
        let other = std::env::var(LIBRARY).unwrap();
        let model = format!("model-file={}", tiny("v8"));
        let frame = solid(64, 64, COLOR);
        let right = format!("{model} onnxruntime-library={}", library().display());
        assert!(detect(&right, [&frame]).is_ok());
        let text = error(&format!("{model} onnxruntime-library={other}"));
        assert_says(&text, &[&other, library().to_str().unwrap(), "give all elements the same"]);
        // Nothing is broken by it, and another name of the same file is the same library.
        assert!(detect(&model, [&frame]).is_ok());
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link.so");
        std::os::unix::fs::symlink(library(), &link).unwrap();
        assert!(detect(&format!("{model} onnxruntime-library={}", link.display()), [&frame]).is_ok());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    in_a_process("a_second_library_is_refused", &stub(folder.path(), "\"1.30.0\""));
}

/// Several mistakes at once still give one error, and the first thing to mend.
#[test]
fn one_mistake_at_a_time_is_told() {
    let pipeline =
        Pipeline::new("videotestsrc num-buffers=1 ! yolodetect device=cuda:0 classes=x ! fakesink");
    assert_says(&pipeline.run().unwrap_err(), &["no model is set"]);
}
