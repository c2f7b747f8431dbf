//! Frames in GStreamer's own memory for CUDA, from `cudaupload` to boxes. All of NVIDIA's is stand-ins, so each test runs in a process of its
//! own; the driver's runs the kernel on the processor, and refuses to copy a frame to the host where a test says so.

#[path = "common/boxes.rs"]
mod boxes;
mod common;
#[path = "common/cuda_driver.rs"]
mod cuda_driver;
#[path = "common/gpu.rs"]
mod gpu;

use std::sync::Arc;

use boxes::{EXACT, Reference, compare};
use common::{Detect, Out, PATIENCE, Pipeline, Posted, converted, picture, skip, watch};
use cuda_driver::{Balance, Folder, balance};
use gst::prelude::*;
use gst_app::{AppSink, AppSrc};
use gstyolodetect::memory::cuda;
use parking_lot::Mutex;

const CUDA_FRAMES: &str = "YOLODETECT_CUDA_FRAMES";
/// No frame comes to the host.
const NO_DOWNLOAD: &str = "download=801";

/// Whether `test` goes on here, on a machine whose GStreamer has elements for CUDA.
fn on_gpu(test: &str, prepare: impl FnOnce(&Folder)) -> bool {
    // The system's registry is of a machine without a GPU.
    let folder = tempfile::tempdir().unwrap();
    let registry = folder.path().join("registry.bin");
    let more = [(CUDA_FRAMES, "1"), ("GST_REGISTRY", registry.to_str().unwrap())];
    let goes_on = gpu::on_gpu_with(test, &more, |folder| {
        folder.for_gstreamer();
        folder.compiler();
        prepare(folder);
    });
    if !goes_on {
        return false;
    }
    common::init();
    let there = gst::ElementFactory::find("cudaupload").is_some();
    if !there {
        skip(
            test,
            "this GStreamer has no element cudaupload, or one that wants more than the driver's stand-in has",
        );
    }
    there
}

/// Pictures that are pushed to `cudaupload`, and what comes of them.
struct Uploaded {
    detect: Detect,
    posted: Arc<Mutex<Posted>>,
}

impl Uploaded {
    fn new(properties: &str) -> Self {
        let properties = format!("max-batch=1 model-file={} {properties}", common::yolo12n());
        let detect = Detect::behind("cudaupload", &properties);
        let posted = watch(&detect.pipeline);
        Self { detect, posted }
    }

    fn step(&mut self, picture: &gst::Sample) -> Out {
        let out = self.detect.step(picture);
        let caps = self.detect.element().static_pad("src").unwrap().current_caps().unwrap();
        assert!(caps.features(0).unwrap().contains(cuda::FEATURE), "{caps}");
        out
    }

    fn warnings(&self) -> Vec<String> {
        self.posted.lock().warnings.clone()
    }

    /// The one warning.
    fn warning(&self) -> String {
        let warnings = self.warnings();
        let [warning] = &warnings[..] else { panic!("not one warning: {warnings:?}") };
        warning.clone()
    }
}

fn nv12(name: &str) -> gst::Sample {
    converted(&picture(name), "video/x-raw,format=NV12")
}

/// What is found in it where it lies on the host and the CPU runs the model.
fn expected(picture: &gst::Sample) -> Vec<Reference> {
    let mut detect = Detect::new(&format!("device=cpu model-file={}", common::yolo12n()));
    let found = detect.step(picture).boxes;
    assert!(!found.is_empty());
    found.iter().map(Reference::from).collect()
}

#[test]
fn frames_on_the_gpu_are_no_one_s_default() {
    if !common::in_own_process("frames_on_the_gpu_are_no_one_s_default") {
        return;
    }
    common::init();
    let element = gst::ElementFactory::make("yolodetect").build().unwrap();
    for template in element.pad_template_list() {
        assert!(!template.caps().to_string().contains("memory:"), "{}", template.caps());
    }
}

#[test]
fn boxes_are_those_of_frames_on_the_host() {
    if !on_gpu("boxes_are_those_of_frames_on_the_host", |_| ()) {
        return;
    }
    let mut uploaded = Uploaded::new("device=cuda");
    for name in ["bus", "zidane"] {
        let picture = nv12(name);
        let wanted = expected(&picture);
        cuda_driver::control(NO_DOWNLOAD);
        let out = uploaded.step(&picture);
        assert_eq!(out.status, "inferred");
        compare(name, &out.boxes, &wanted, EXACT);
        cuda_driver::control("");
    }
    assert_eq!(uploaded.warnings(), [""; 0]);
    drop(uploaded);
    // GStreamer keeps a context by its element's factory.
    assert_eq!(Balance { contexts: 0, ..balance() }, Balance::default());
}

/// Of a stream whose frames lie on the GPU, and of one whose frames do not.
#[test]
fn frames_of_both_kinds_run_in_one_batch() {
    if !on_gpu("frames_of_both_kinds_run_in_one_batch", |_| ()) {
        return;
    }
    let model = common::asset("models/variants/dynamic_batch.onnx").display().to_string();
    let names = ["bus", "zidane"];
    let pictures = names.map(nv12);
    let wanted = pictures.each_ref().map(expected);
    let branch = |name: &str, upload: &str| {
        format!(
            "appsrc name=source-{name} format=time {upload} ! yolodetect roi-meta=on device=cuda max-batch=2 batch-delay=5000000000 \
             model-file={model} ! appsink name=sink-{name} sync=false "
        )
    };
    let pipeline = Pipeline::new(&(branch("bus", "! cudaupload") + &branch("zidane", "")));
    pipeline.0.set_state(gst::State::Playing).unwrap();
    // Queries at a stream's beginning have what is there run at once.
    for expects_both in [false, true] {
        for (name, picture) in names.iter().zip(&pictures) {
            let source = pipeline.by_name(&format!("source-{name}")).downcast::<AppSrc>().unwrap();
            source.push_sample(picture).unwrap();
        }
        for (name, wanted) in names.iter().zip(&wanted) {
            let sink = pipeline.by_name(&format!("sink-{name}")).downcast::<AppSink>().unwrap();
            let sample = sink.try_pull_sample(gst::ClockTime::try_from(PATIENCE).unwrap()).unwrap();
            let on_gpu = sample.caps().unwrap().features(0).unwrap().contains(cuda::FEATURE);
            assert_eq!(on_gpu, *name == "bus");
            let out = Out::new(&sample);
            assert!(out.batch == 2 || !expects_both, "{out:?}");
            compare(name, &out.boxes, wanted, EXACT);
        }
    }
}

#[test]
fn without_the_compiler_the_host_reads_the_frames_after_one_warning() {
    let test = "without_the_compiler_the_host_reads_the_frames_after_one_warning";
    if !on_gpu(test, |folder| std::fs::remove_file(folder.path().join("libnvrtc.so.13")).unwrap()) {
        return;
    }
    let mut uploaded = Uploaded::new("device=cuda");
    let picture = nv12("bus");
    let wanted = expected(&picture);
    for _ in 0..2 {
        compare("bus", &uploaded.step(&picture).boxes, &wanted, EXACT);
    }
    let warning = uploaded.warning();
    for words in ["copied to the host", "libnvrtc.so.13", "setup.sh --cuda"] {
        assert!(warning.contains(words), "no {words:?} in: {warning}");
    }
}

#[test]
fn where_the_kernel_fails_the_host_reads_the_frames_from_then_on() {
    if !on_gpu("where_the_kernel_fails_the_host_reads_the_frames_from_then_on", |_| ()) {
        return;
    }
    let mut uploaded = Uploaded::new("device=cuda");
    let picture = nv12("bus");
    let wanted = expected(&picture);
    for control in ["", "cuLaunchKernel=1", ""] {
        cuda_driver::control(control);
        compare("bus", &uploaded.step(&picture).boxes, &wanted, EXACT);
    }
    let warning = uploaded.warning();
    assert!(warning.contains("cuLaunchKernel"), "{warning}");
    // It was meant.
    cuda_driver::control(NO_DOWNLOAD);
    uploaded.detect.push(&picture);
    let error = uploaded.detect.pipeline.wait(gst::MessageType::Error);
    let gst::MessageView::Error(error) = error.view() else { unreachable!() };
    assert!(error.error().to_string().contains("frame 3 cannot be read"), "{error:?}");
}

#[test]
fn an_engine_that_moves_to_the_cpu_takes_its_frames_along() {
    if !on_gpu("an_engine_that_moves_to_the_cpu_takes_its_frames_along", |_| ()) {
        return;
    }
    let mut uploaded = Uploaded::new("device=cuda device-fallback=on");
    let picture = nv12("bus");
    let wanted = expected(&picture);
    compare("bus", &uploaded.step(&picture).boxes, &wanted, EXACT);
    // The frame lies on the GPU whose sessions fail.
    gpu::control("lost=700");
    let out = uploaded.step(&picture);
    assert_eq!(out.status, "inferred");
    compare("bus", &out.boxes, &wanted, EXACT);
    assert_eq!(uploaded.detect.element().property::<Option<String>>("active-device").as_deref(), Some("cpu"));
    compare("bus", &uploaded.step(&picture).boxes, &wanted, EXACT);
    let warning = uploaded.warning();
    assert!(warning.contains("cpu runs the model"), "{warning}");
}

#[test]
fn an_engine_on_the_cpu_reads_them_on_the_host() {
    if !on_gpu("an_engine_on_the_cpu_reads_them_on_the_host", |_| ()) {
        return;
    }
    let mut uploaded = Uploaded::new("device=cpu");
    let picture = nv12("bus");
    compare("bus", &uploaded.step(&picture).boxes, &expected(&picture), EXACT);
    assert_eq!(uploaded.warnings(), [""; 0]);
}
