//! The demo application as a user meets it: what it says, and what it leaves.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{NO_CACHE, Pipeline, asset, library, plugin_folder, tiny, yolo12n};

/// Cargo builds the examples with the tests, but tells their places only of binaries.
fn target_folder() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(2).unwrap().to_path_buf()
}

fn demo(arguments: &[&str]) -> Output {
    let target = target_folder();
    let program = target.join("examples/demo");
    assert!(program.exists(), "{} is missing: cargo build --example demo", program.display());
    let scratch = tempfile::tempdir().unwrap();
    Command::new(program)
        .args(arguments)
        .env("GST_PLUGIN_PATH", plugin_folder(scratch.path()))
        .env("GST_REGISTRY", scratch.path().join("registry.bin"))
        .env("ORT_DYLIB_PATH", library())
        .envs([NO_CACHE])
        .output()
        .unwrap()
}

/// Runs it in vain; what it says on standard error.
fn refused(status: i32, arguments: &[&str]) -> String {
    let output = demo(arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{arguments:?} says {said}");
    assert!(said.starts_with("error: "), "{arguments:?} says {said}");
    said
}

fn succeeds(arguments: &[&str]) -> String {
    let output = demo(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?} says {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn wrong_calls_are_told_with_the_usage() {
    let calls: [(&[&str], &str); 7] = [
        (&[], "no source"),
        (&["clip.mp4"], "no --model"),
        (&["clip.mp4", "--model"], "--model needs a value"),
        (&["clip.mp4", "more.mp4"], "more than one source"),
        (&["clip.mp4", "--seconds", "soon"], "--seconds takes a whole number"),
        (&["clip.mp4", "--frames"], "unknown option --frames"),
        (&["contact-sheet", "clip.mp4"], "contact-sheet takes"),
    ];
    for (arguments, expected) in calls {
        let said = refused(2, arguments);
        assert!(said.contains(expected) && said.contains("Usage:"), "{arguments:?} says {said}");
    }
    assert!(succeeds(&["--help"]).starts_with("Usage:"));
}

#[test]
fn a_picture_gives_a_video_lines_and_a_sheet() {
    let folder = tempfile::tempdir().unwrap();
    let (picture, sheet) = (asset("pictures/bus.png"), folder.path().join("sheet.png"));
    let said = succeeds(&["--model", &yolo12n(), "--out", text(folder.path()), text(&picture)]);
    for expected in
        ["1 frame in", "\nperson           4       1", "\nbus              1       1", "peak memory"]
    {
        assert!(said.contains(expected), "{expected:?} is not in {said}");
    }

    let lines = std::fs::read_to_string(folder.path().join("detections.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 1);
    let line: serde_json::Value = serde_json::from_str(&lines).unwrap();
    assert_eq!(line["status"], "inferred");
    assert_eq!(line["detections"].as_array().unwrap().len(), 5);

    succeeds(&["contact-sheet", text(&folder.path().join("annotated.mp4")), text(&sheet)]);
    let png = std::fs::read(sheet).unwrap();
    let side = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    assert_eq!(&png[1..4], b"PNG");
    // One tile: 810x1080, scaled to fit, and the margin around it.
    assert_eq!((side(16), side(20)), (480 + 16, 640 + 16));
}

#[test]
fn videos_with_odd_sides_and_sound_pass() {
    let folder = tempfile::tempdir().unwrap();
    let video = folder.path().join("odd.mkv");
    Pipeline::new(&format!(
        "videotestsrc num-buffers=5 ! video/x-raw,format=BGR,width=65,height=47 ! mux. \
         audiotestsrc num-buffers=5 ! mux. matroskamux name=mux ! filesink location={}",
        video.display()
    ))
    .run()
    .unwrap();
    let model = tiny_model();
    let said = succeeds(&["--model", &model, "--out", text(folder.path()), text(&video)]);
    assert!(said.starts_with("5 frames in"), "{said}");
    let said = succeeds(&["--model", &model, "--threads", "1", "--detect-only", text(&video)]);
    assert!(said.contains("alone, 1 thread: 5 frames") && said.contains("anonymous"), "{said}");
}

#[test]
fn what_cannot_be_played_is_told_plainly() {
    let folder = tempfile::tempdir().unwrap();
    let sound = folder.path().join("sound.wav");
    Pipeline::new(&format!("audiotestsrc num-buffers=5 ! wavenc ! filesink location={}", sound.display()))
        .run()
        .unwrap();
    let (model, out) = (tiny_model(), text(folder.path()));
    let picture = asset("pictures/bus.png");
    let calls = [
        (&model[..], text(&sound), "there is no video in"),
        (&model, "missing.mp4", "No such file"),
        (&model, "nowhere://clip", "No URI handler"),
        ("missing.onnx", text(&picture), "the model missing.onnx cannot be read"),
    ];
    for (model, source, expected) in calls {
        let said = refused(1, &["--model", model, "--out", out, source]);
        assert!(said.contains(expected), "{source} with {model}: {said}");
    }
    refused(1, &["contact-sheet", text(&sound), text(&folder.path().join("sheet.png"))]);
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["sound.wav"], "nothing unfinished is left");
}

fn tiny_model() -> String {
    tiny("v8")
}
