//! The rules of ARCHITECTURE.md that a reader of one file cannot see, checked against the sources.

use std::fs;
use std::path::{Path, PathBuf};

fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&root, &mut files);
    assert!(files.len() > 30, "found {} files only", files.len());
    files
        .into_iter()
        .map(|file| {
            let name = file.strip_prefix(&root).unwrap().display().to_string();
            (name, fs::read_to_string(&file).unwrap())
        })
        .collect()
}

/// The lines of code without comments and without the unit tests at a file's end.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..end]
        .lines()
        .enumerate()
        .map(|(number, line)| (number + 1, line.split("//").next().unwrap_or_default()))
        .filter(|(_, line)| !line.trim().is_empty())
}

/// Whether `word` stands in `line` as a path's first part: `word::`.
fn names(line: &str, word: &str) -> bool {
    line.match_indices(&format!("{word}::")).any(|(at, _)| {
        !line[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == ':')
    })
}

fn is_test(file: &str) -> bool {
    file.ends_with("tests.rs") || file.contains("/tests/")
}

fn broken<'a>(
    files: &'a [(String, String)],
    applies: impl Fn(&str) -> bool + 'a,
    breaks: impl Fn(&str) -> bool + 'a,
) -> Vec<String> {
    files
        .iter()
        .filter(|(file, _)| applies(file) && !is_test(file))
        .flat_map(|(file, text)| code(text).map(move |(number, line)| (file, number, line)))
        .filter(|(_, _, line)| breaks(line))
        .map(|(file, number, line)| format!("{file}:{number}: {}", line.trim()))
        .collect()
}

fn assert_kept(rule: &str, broken: Vec<String>) {
    assert!(broken.is_empty(), "{rule}, but:\n{}", broken.join("\n"));
}

#[test]
fn pure_modules_know_neither_gstreamer_nor_onnx_runtime() {
    // Frame buffers are GStreamer's.
    let buffers =
        ["memory/cuda.rs", "memory/layout.rs", "memory/ledger.rs", "memory/pool.rs", "memory/reuse.rs"];
    let pure = |file: &str| {
        ["preprocess/", "decode/", "detection.rs", "tensor.rs", "batch/", "memory/", "history.rs", "metrics/"]
            .iter()
            .any(|p| file.starts_with(p))
            && !buffers.contains(&file)
    };
    let foreign =
        |line: &str| ["gst", "gst_video", "gst_base", "glib", "ort"].iter().any(|word| names(line, word));
    assert_kept("pure modules use neither gst nor ort", broken(&sources(), pure, foreign));
}

#[test]
fn only_the_engine_names_ort() {
    let elsewhere = |file: &str| !(file.starts_with("engine/onnx") || file == "engine/runtime.rs");
    assert_kept(
        "only engine/onnx and engine/runtime.rs name ort",
        broken(&sources(), elsewhere, |line| names(line, "ort")),
    );
}

#[test]
fn the_engine_and_the_batcher_know_no_element() {
    let below = |file: &str| ["engine/", "batch/", "tensor.rs"].iter().any(|place| file.starts_with(place));
    assert_kept("engine and batch use no gst", broken(&sources(), below, |line| names(line, "gst")));
    let outside = |file: &str| !file.starts_with("yolodetect/") && file != "lib.rs";
    assert_kept(
        "nothing uses yolodetect",
        broken(&sources(), outside, |line| line.contains("crate::yolodetect")),
    );
}

#[test]
fn the_metrics_server_knows_figures_and_memory_alone() {
    let server = |file: &str| file.starts_with("metrics/");
    let foreign = |line: &str| line.contains("crate::") && !line.contains("crate::memory");
    assert_kept("metrics uses memory and its own figures alone", broken(&sources(), server, foreign));
    // Nobody else waits for sockets or runs futures.
    let elsewhere = |file: &str| !file.starts_with("metrics/");
    let http = |line: &str| {
        ["hyper", "hyper_util", "tokio", "prometheus_client"].iter().any(|word| names(line, word))
    };
    assert_kept("only metrics names its libraries", broken(&sources(), elsewhere, http));
    let users = |file: &str| !file.starts_with("metrics/") && !file.starts_with("yolodetect/");
    assert_kept(
        "only yolodetect uses metrics",
        broken(&sources(), users, |line| line.contains("crate::metrics")),
    );
}

#[test]
fn reading_elements_see_only_metas_detections_and_memory() {
    let readers = |file: &str| ["yolooverlay/", "yolojson/"].iter().any(|place| file.starts_with(place));
    let allowed = ["crate::meta", "crate::detection", "crate::memory"];
    let forbidden = |line: &str| line.contains("crate::") && !allowed.iter().any(|path| line.contains(path));
    assert_kept(
        "yolooverlay and yolojson use meta, detection and memory alone",
        broken(&sources(), readers, forbidden),
    );
}

#[test]
fn the_valve_sees_only_levels_and_the_event() {
    let valve = |file: &str| file.starts_with("pressurevalve/");
    let allowed = ["crate::memory", "crate::pressure_event"];
    let forbidden = |line: &str| line.contains("crate::") && !allowed.iter().any(|path| line.contains(path));
    assert_kept("pressurevalve uses memory and pressure_event alone", broken(&sources(), valve, forbidden));
    let gate = |file: &str| file == "pressurevalve/gate.rs";
    assert_kept("the gate uses no gst", broken(&sources(), gate, |line| names(line, "gst")));
}

#[test]
fn unsafe_code_stays_where_it_is_expected_and_says_why_it_is_sound() {
    let files = sources();
    let homes = [
        "tensor.rs",
        "meta/",
        "memory/",
        "engine/onnx",
        "engine/runtime.rs",
        "engine/cache/system.rs",
        "engine/gpu/driver",
        "engine/gpu/compiler.rs",
        "engine/cuda_frames/kernel.rs",
        "engine/gpu/libraries.rs",
        "preprocess/rows/avx2.rs",
        "preprocess/rows/neon.rs",
        "decode/vectors.rs",
    ];
    let elsewhere = |file: &str| !homes.iter().any(|home| file.starts_with(home));
    let has_unsafe =
        |line: &str| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe");
    assert_kept("unsafe code has its places", broken(&files, elsewhere, has_unsafe));
    for (file, text) in files.iter().filter(|(file, _)| !elsewhere(file) && !is_test(file)) {
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in code(text) {
            let opens = line.contains("unsafe {") || line.contains("unsafe impl");
            if !opens {
                continue;
            }
            let above = &lines[number.saturating_sub(12)..number];
            let said = above.iter().any(|line| line.contains("SAFETY:"));
            assert!(said, "{file}:{number}: no SAFETY comment above `{}`", line.trim());
        }
    }
}

#[test]
fn gpus_are_asked_by_those_who_know_neither_batches_nor_onnx_runtime() {
    let asks = |file: &str| file.starts_with("engine/gpu/") && file != "engine/gpu/budget.rs";
    let foreign =
        |line: &str| ["crate::batch", "crate::tensor", "engine::onnx"].iter().any(|path| line.contains(path));
    assert_kept("engine/gpu knows no batches and no sessions", broken(&sources(), asks, foreign));
}

#[test]
fn no_file_does_too_much() {
    for (file, text) in sources() {
        let lines = code(&text).count();
        assert!(lines <= 700, "{file} has {lines} lines of code");
    }
}
