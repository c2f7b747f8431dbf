//! Which device runs a model that is wanted on a GPU, as an application sees it: without any piece that is needed, when the GPU fails
//! while it runs, and that nothing of it is left. All of NVIDIA's is stand-ins, so each test runs in a process of its own.

mod common;
#[path = "common/cuda_driver.rs"]
mod cuda_driver;
#[path = "common/gpu.rs"]
mod gpu;
#[path = "common/streams.rs"]
mod streams;

use std::env;
use std::fs::{self, File};

use common::tiny;
use cuda_driver::{Balance, Folder, balance};
use gpu::{control, on_gpu, on_gpu_with};
use streams::{Posted, Streams};

fn model() -> String {
    tiny("v8_dynamic_batch")
}

/// Sessions made so far, on GPUs.
fn sessions() -> usize {
    gpu::log().iter().filter(|line| *line == "session").count()
}

fn all_is_given_back() {
    assert_eq!(balance(), Balance::default());
}

/// All elements say that they are on the CPU, one of them in a warning too, which has these `words`.
fn moved_to_cpu(posted: &Posted, elements: usize, words: &[&str]) {
    let warning = posted.warning();
    for word in words {
        assert!(warning.contains(word), "no `{word}` in: {warning}");
    }
    let mut names: Vec<_> = posted.moved.iter().map(|(name, ..)| name.clone()).collect();
    names.sort();
    assert_eq!(names, (0..elements).map(|at| format!("detect{at}")).collect::<Vec<_>>());
    for (_, device, reason) in &posted.moved {
        assert_eq!((device.as_str(), reason.as_str()), ("cpu", warning));
    }
    let on_cpu = |(_, device): &(String, Option<String>)| device.as_deref() == Some("cpu");
    assert!(posted.notified.len() == elements && posted.notified.iter().all(on_cpu), "{:?}", posted.notified);
    assert!(posted.errors.is_empty(), "{:?}", posted.errors);
}

#[test]
fn with_everything_there_the_gpu_runs_batches_of_eight() {
    if !on_gpu("with_everything_there_the_gpu_runs_batches_of_eight") {
        return;
    }
    let mut streams = Streams::playing(&model(), &["", "device=auto", "device=cuda"]);
    streams.infer(20);
    for stream in 0..3 {
        assert_eq!(streams.active(stream), "cuda:0");
        let engine = streams.engine(stream);
        assert_eq!(engine.get("streams"), Ok(3u32), "one engine");
        assert_eq!(engine.get("batch-limit"), Ok(8u32));
        // Two run or are copied, one is being filled.
        assert_eq!(engine.get("slots"), Ok(24u32));
        assert_eq!(engine.get::<String>("device").unwrap(), "cuda:0");
    }
    streams.finish();
    let posted = streams.posted();
    assert!(
        posted.warnings.is_empty() && posted.moved.is_empty(),
        "{:?} {:?}",
        posted.warnings,
        posted.moved
    );
    drop(streams);
    all_is_given_back();
}

/// Something that is missing of what a GPU needs.
struct Piece {
    name: &'static str,
    /// Takes it away.
    without: fn(&Folder),
    /// What driver and ONNX Runtime are told instead.
    driver: &'static str,
    runtime: &'static str,
    /// What is said of it, and what is to be done.
    words: &'static [&'static str],
}

const CUDA_PROVIDER: &str = "libonnxruntime_providers_cuda.so";
const PIECE: Piece = Piece { name: "", without: |_| (), driver: "", runtime: "", words: &[] };

const PIECES: [Piece; 10] = [
    Piece {
        name: "driver",
        without: |folder| fs::remove_file(folder.path().join("libcuda.so.1")).unwrap(),
        words: &["libcuda.so.1", "install NVIDIA's driver 580"],
        ..PIECE
    },
    Piece { name: "GPU", driver: "count=0", words: &["finds no GPU", "nvidia-smi"], ..PIECE },
    Piece {
        name: "newer driver",
        driver: "version=12040",
        words: &["newer driver", "CUDA 12.4", "580"],
        ..PIECE
    },
    Piece {
        name: "GPU that it has kernels for",
        without: |folder| {
            let kernels = folder.kernels(&[75, 90]);
            folder.library_with(CUDA_PROVIDER, &["libcuda.so.1"], &[kernels.to_str().unwrap()]);
        },
        driver: "major=6",
        words: &["compute capability 6.0", "7.5 and 9.0"],
        ..PIECE
    },
    Piece {
        name: "provider",
        without: |folder| fs::remove_file(folder.path().join(CUDA_PROVIDER)).unwrap(),
        words: &[CUDA_PROVIDER, "setup.sh --cuda"],
        ..PIECE
    },
    Piece {
        name: "whole provider",
        without: |folder| {
            let file = File::options().write(true).open(folder.path().join(CUDA_PROVIDER)).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        },
        words: &[CUDA_PROVIDER, "is cut off", "fetch it anew"],
        ..PIECE
    },
    Piece {
        name: "cuDNN",
        without: |folder| fs::remove_file(folder.path().join("libcudnn.so.9")).unwrap(),
        words: &["libcudnn.so.9", "setup.sh --cuda"],
        ..PIECE
    },
    Piece {
        name: "session",
        runtime: "session=2",
        words: &["cannot be used", "an operator of another opset"],
        ..PIECE
    },
    Piece {
        name: "memory for one frame",
        runtime: "frames=0",
        words: &["gpu-memory-budget", "a single frame"],
        ..PIECE
    },
    Piece { name: "working GPU", runtime: "lost=700", words: &["CUDA failure 700"], ..PIECE },
];

/// Which one a child is without.
const MISSING: &str = "GPU_FALLBACK_MISSING";

/// Runs `test` in a process for each piece that is missing there. In the child: which.
fn each_piece_missing(test: &str) -> Option<&'static Piece> {
    if common::is_child() {
        let name = env::var(MISSING).unwrap();
        let piece = PIECES.iter().find(|piece| piece.name == name).unwrap();
        cuda_driver::control(piece.driver);
        control(piece.runtime);
        return Some(piece);
    }
    for piece in &PIECES {
        println!("without {}", piece.name);
        on_gpu_with(test, &[(MISSING, piece.name)], piece.without);
    }
    None
}

#[test]
fn without_a_piece_the_cpu_runs_the_model_after_one_warning() {
    let test = "without_a_piece_the_cpu_runs_the_model_after_one_warning";
    let Some(piece) = each_piece_missing(test) else { return };
    let mut streams = Streams::playing(&model(), &["", "device=auto", "device=cuda:0 device-fallback=on"]);
    // In another pipeline, with an engine of the same model.
    let mut other = Streams::playing(&model(), &["device=cpu"]);
    streams.infer(20);
    other.infer(20);
    let words = [piece.words, &["cuda:0 cannot be used", "device=cpu does without this warning"]].concat();
    moved_to_cpu(&streams.posted(), 3, &words);
    for stream in 0..3 {
        assert_eq!(streams.active(stream), "cpu");
        assert_eq!(streams.engine(stream).get("streams"), Ok(4u32), "one engine");
        assert!(!streams.engine(stream).has_field("gpu-bytes"));
    }
    let posted = other.posted();
    assert!(
        posted.warnings.is_empty() && posted.moved.is_empty(),
        "{:?} {:?}",
        posted.warnings,
        posted.moved
    );
    streams.finish();
    other.finish();
    // While the CPU runs, too.
    all_is_given_back();
}

#[test]
fn without_a_piece_a_gpu_that_must_be_used_is_an_error_with_the_way_out() {
    let test = "without_a_piece_a_gpu_that_must_be_used_is_an_error_with_the_way_out";
    let Some(piece) = each_piece_missing(test) else { return };
    for properties in ["device=cuda:0", "device=auto device-fallback=off"] {
        let streams = Streams::new(&model(), &[properties]);
        let error = streams.start().expect_err(properties);
        for word in piece.words {
            assert!(error.contains(word), "no `{word}` in: {error}");
        }
        let posted = streams.posted();
        assert!(posted.warnings.is_empty() && posted.moved.is_empty(), "{:?}", posted.warnings);
        all_is_given_back();
    }
    // The way out that all of them name.
    let mut streams = Streams::playing(&model(), &["device=cpu"]);
    streams.infer(3);
    streams.finish();
}

#[test]
fn a_gpu_that_is_not_there_is_told_with_those_that_are() {
    if !on_gpu("a_gpu_that_is_not_there_is_told_with_those_that_are") {
        return;
    }
    let error = Streams::new(&model(), &["device=cuda:5"]).start().unwrap_err();
    for word in ["device=cuda:5 is not there", "1 GPU, device=cuda:0"] {
        assert!(error.contains(word), "no `{word}` in: {error}");
    }
    let mut streams = Streams::playing(&model(), &["device=cuda:5 device-fallback=on"]);
    streams.infer(3);
    moved_to_cpu(&streams.posted(), 1, &["cuda:5 cannot be used", "1 GPU, device=cuda:0"]);
    drop(streams);
    all_is_given_back();
}

#[test]
fn tensorrt_is_followed_by_cuda_and_that_by_the_cpu() {
    let test = "tensorrt_is_followed_by_cuda_and_that_by_the_cpu";
    if !on_gpu_with(test, &[], |folder| fs::remove_file(folder.path().join("libnvinfer.so.10")).unwrap()) {
        return;
    }
    let error = Streams::new(&model(), &["device=tensorrt"]).start().unwrap_err();
    assert!(error.contains("libnvinfer.so.10") && error.contains("device=cpu"), "{error}");
    let properties = "device=tensorrt device-fallback=on";
    let mut streams = Streams::playing(&model(), &[properties, properties]);
    streams.infer(10);
    let posted = streams.posted();
    assert!(posted.warning().contains("libnvinfer.so.10"), "{}", posted.warning());
    assert!(posted.moved.len() == 2 && posted.moved.iter().all(|(_, device, _)| device == "cuda:0"));
    assert_eq!([streams.active(0), streams.active(1)], ["cuda:0", "cuda:0"]);
    assert_eq!(streams.engine(0).get("batch-limit"), Ok(8u32));
    // Who asked for that in the first place has nothing to be told of.
    let mut other = Streams::playing(&model(), &["device=cuda"]);
    other.infer(3);
    assert!(other.posted().warnings.is_empty() && other.posted().moved.is_empty());
    drop((streams, other));
    all_is_given_back();
    control("session=2");
    let mut streams = Streams::playing(&model(), &[properties]);
    streams.infer(3);
    moved_to_cpu(&streams.posted(), 1, &["tensorrt:0 cannot be used", "cuda:0 cannot be used"]);
    drop(streams);
    all_is_given_back();
}

/// ONNX Runtime would run them on the processor, and say nothing.
#[test]
fn a_model_with_operators_that_no_gpu_has_goes_to_the_cpu() {
    if !on_gpu("a_model_with_operators_that_no_gpu_has_goes_to_the_cpu") {
        return;
    }
    for (model, operators) in
        [("int8_dynamic", "DynamicQuantizeLinear, ConvInteger:"), ("int8_operators", "QLinearConv:")]
    {
        let words = [operators, "quantised", "device=cpu", "QDQ"];
        for device in ["cuda", "tensorrt"] {
            let error = Streams::new(&tiny(model), &[&format!("device={device}")]).start().unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
        let mut streams = Streams::playing(&tiny(model), &["", "device=tensorrt device-fallback=on"]);
        streams.infer(5);
        let posted = streams.posted();
        let told = |word: &&str| posted.warnings.iter().any(|(_, text)| text.contains(*word));
        assert!(words.iter().all(told), "{:?}", posted.warnings);
        assert_eq!([streams.active(0), streams.active(1)], ["cpu", "cpu"]);
        drop(streams);
        all_is_given_back();
    }
    assert_eq!(sessions(), 0);
    let mut streams = Streams::playing(&tiny("int8_qdq"), &["device=cuda"]);
    streams.infer(5);
    assert_eq!(streams.active(0), "cuda:0");
    assert!(streams.posted().warnings.is_empty());
}

#[test]
fn a_session_that_has_no_memory_for_one_frame_is_made_anew_and_no_frame_fails() {
    if !on_gpu("a_session_that_has_no_memory_for_one_frame_is_made_anew_and_no_frame_fails") {
        return;
    }
    for (batch, failing) in [(1, 1), (8, 4)] {
        let all = format!("device=cuda max-batch={batch}");
        let mut streams = Streams::playing(&model(), &[&all, &all]);
        streams.infer(3);
        let before = sessions();
        // Batches of eight fail, of four, of two, and then single frames.
        control(&format!("failing={failing}"));
        streams.infer(40);
        streams.finish();
        if batch == 1 {
            assert_eq!(sessions(), before + 1);
        }
        let posted = streams.posted();
        assert!(posted.warnings.is_empty() && posted.moved.is_empty(), "{:?}", posted.warnings);
        assert_eq!(streams.active(0), "cuda:0");
        drop(streams);
        all_is_given_back();
    }
}

/// It sets the current GPU of threads that call it, and keeps graphs by thread.
#[test]
fn onnxruntime_uses_a_gpu_from_our_threads_alone_each_with_its_own_graphs() {
    if !on_gpu("onnxruntime_uses_a_gpu_from_our_threads_alone_each_with_its_own_graphs") {
        return;
    }
    // SAFETY: it takes nothing and cannot fail.
    let own = unsafe { libc::gettid() }.to_string();
    control("threads=1");
    for properties in ["device=cuda cuda-graph=true max-batch=2", "device=cuda", "device=tensorrt"] {
        let mut streams = Streams::playing(&model(), &[properties, properties]);
        streams.infer(40);
        streams.finish();
        drop(streams);
        let threads = gpu::logged("thread ");
        assert!(threads.iter().all(|thread| thread.split(' ').next() != Some(&own)), "{own}: {threads:?}");
        let recorded = |thread: &&String| thread.contains("gpu_graph_id=") && !thread.ends_with("=-1");
        let mut recorded: Vec<_> = threads.iter().filter(recorded).collect();
        assert_eq!(recorded.is_empty(), !properties.contains("graph"), "{threads:?}");
        recorded.sort();
        recorded.dedup();
        let mut graphs: Vec<_> = recorded.iter().map(|thread| thread.split_once('=').unwrap().1).collect();
        graphs.sort();
        assert!(graphs.windows(2).all(|pair| pair[0] != pair[1]), "{recorded:?}");
        gpu::forget();
    }
    // Nor where the load fails after all.
    control("threads=1\nframes=0");
    assert!(Streams::new(&model(), &["device=cuda"]).start().is_err());
    let threads = gpu::logged("thread ");
    assert!(!threads.is_empty() && !threads.contains(&own), "{own}: {threads:?}");
}

#[test]
fn a_gpu_that_is_lost_leaves_its_frames_to_the_cpu() {
    if !on_gpu("a_gpu_that_is_lost_leaves_its_frames_to_the_cpu") {
        return;
    }
    for (properties, driver) in [
        (["device=auto", "device=auto"], ""),
        (["device=auto", "device=cuda:0 device-fallback=on"], "lost=700"),
    ] {
        let mut streams = Streams::playing(&model(), &properties);
        streams.infer(10);
        assert_eq!(streams.active(0), "cuda:0");
        control("lost=700");
        cuda_driver::control(driver);
        // So few that no larger batches are tried again.
        streams.infer(25);
        streams.finish();
        moved_to_cpu(
            &streams.posted(),
            2,
            &["cuda:0 failed while it ran", "So cpu runs", "restart the process"],
        );
        for stream in 0..2 {
            assert_eq!(streams.active(stream), "cpu");
            let engine = streams.engine(stream);
            assert_eq!(engine.get("batch-limit"), Ok(1u32));
            assert!(!engine.has_field("gpu-bytes") && !engine.has_field("gpu"), "{engine}");
        }
        drop(streams);
        all_is_given_back();
        // The next one has a GPU again.
        control("");
        cuda_driver::control("");
        let mut streams = Streams::playing(&model(), &["device=auto"]);
        streams.infer(3);
        assert_eq!(streams.active(0), "cuda:0");
        assert!(streams.posted().warnings.is_empty());
        drop(streams);
        all_is_given_back();
    }
}

#[test]
fn a_gpu_that_is_lost_and_must_be_used_fails_frames_and_then_the_stream() {
    if !on_gpu("a_gpu_that_is_lost_and_must_be_used_fails_frames_and_then_the_stream") {
        return;
    }
    let mut streams = Streams::playing(&model(), &["device=cuda:0 max-batch=1"]);
    streams.infer(10);
    control("lost=700");
    streams.push(29);
    assert!(streams.pull(29).iter().all(|out| out.status == "failed" && out.boxes.is_empty()));
    assert!(streams.posted().warning().contains("passes with the status failed"));
    streams.push(1);
    let posted = streams.until("error", |posted| !posted.errors.is_empty());
    assert!(posted.error().contains("30 times in a row"), "{}", posted.error());
    assert!(posted.moved.is_empty() && posted.warnings.len() == 1);
    drop(streams);
    all_is_given_back();
}

#[test]
fn a_lost_gpu_that_comes_back_goes_on() {
    if !on_gpu("a_lost_gpu_that_comes_back_goes_on") {
        return;
    }
    let mut streams = Streams::playing(&model(), &["device=cuda:0"]);
    streams.infer(10);
    control("lost=719");
    streams.push(5);
    assert!(streams.pull(5).iter().all(|out| out.status == "failed"));
    control("");
    // At the latest when a session is made anew, after as many failures as there were.
    let mut left = 20;
    while streams.posted().errors.is_empty() && {
        streams.push(1);
        streams.pull(1)[0].status == "failed"
    } {
        left -= 1;
        assert!(left > 0, "it does not come back");
    }
    streams.infer(20);
    streams.finish();
    assert_eq!(streams.active(0), "cuda:0");
    drop(streams);
    all_is_given_back();
}

#[test]
fn one_stream_that_forbids_the_cpu_keeps_the_others_from_it_until_it_leaves() {
    if !on_gpu("one_stream_that_forbids_the_cpu_keeps_the_others_from_it_until_it_leaves") {
        return;
    }
    let mut willing = Streams::playing(&model(), &["device=auto max-batch=1"]);
    let mut strict = Streams::playing(&model(), &["device=cuda:0 max-batch=1"]);
    willing.infer(5);
    strict.infer(5);
    assert_eq!(willing.engine(0).get("streams"), Ok(2u32), "one engine");
    control("lost=700");
    for streams in [&mut willing, &mut strict] {
        streams.push(5);
        assert!(streams.pull(5).iter().all(|out| out.status == "failed"));
        assert_eq!(streams.active(0), "cuda:0");
        assert!(streams.posted().warning().contains("failed"));
    }
    drop(strict);
    // A session is made first now and then, which fails; then nothing keeps it from the CPU.
    willing.infer(20);
    willing.finish();
    assert_eq!(willing.active(0), "cpu");
    let posted = willing.posted();
    assert_eq!((posted.moved.len(), posted.warnings.len(), posted.errors.len()), (1, 2, 0));
    assert!(posted.warnings[1].1.contains("So cpu runs"), "{:?}", posted.warnings);
    drop(willing);
    all_is_given_back();
}
