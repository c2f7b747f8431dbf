//! Frames that lie in the card's memory.

use std::time::Instant;

use gstyolodetect::engine::cuda_frames::{GpuConverter, GpuPlane};
use gstyolodetect::preprocess::{
    ChromaSite, Colorimetry, Converter, FrameFormat, InputStyle, Kernels, Matrix, PixelFormat, Plane, Range,
};
use gstyolodetect::tensor::{BatchTensor, Element, FrameExtent};

use crate::boxes::Difference;
use crate::foreign::Foreign;
use crate::streams::{Film, stop};
use crate::{Arguments, judge, median, row};

/// Has the pads offer such frames.
pub const VARIABLE: &str = "YOLODETECT_CUDA_FRAMES";

const MODEL: (u32, u32) = (640, 640);

/// The kernel beside the processor, and GStreamer's own memory for CUDA where its elements are there.
pub fn on_card(arguments: &Arguments) {
    let (what, goal) = ("frames on the card: values beside the processor's", "within 0.04 of a byte's step");
    match arguments.gpu() {
        // The other context is on the first one.
        Some(0) => kernel(&arguments.film(), what, goal),
        Some(_) => row(what, "only on cuda:0", goal, "not measured"),
        None => row(what, "no GPU", goal, "not measured"),
    }
    let (what, goal) = ("frames on the card: boxes beside the CPU's", "IoU ≥ 0.98, confidence within 0.01");
    if arguments.gpu().is_none() || gst::ElementFactory::find("cudaupload").is_none() {
        return row(what, "no GPU, or GStreamer has no cudaupload here", goal, "not measured");
    }
    let film = arguments.film();
    let properties = |device: &str| format!("device={device} model-file={} max-batch=8", arguments.model());
    let expected = film.detect(&properties("cpu")).unwrap_or_else(|error| stop(error));
    let found = film.detect_behind("cudaupload", &properties(&arguments.device()));
    let difference = Difference::of(&expected, &found.unwrap_or_else(|error| stop(error)));
    judge(what, &difference.to_string(), goal, difference.is_within(0.98, 0.01));
}

/// Frames in a context that is not ONNX Runtime's, as a decoder has them.
fn kernel(film: &Film, what: &str, goal: &str) {
    const TIMES: usize = 50;
    let info = film.info();
    let format = FrameFormat {
        pixel: PixelFormat::I420,
        width: info.width(),
        height: info.height(),
        colorimetry: Colorimetry { matrix: Matrix::Bt601, range: Range::Limited },
        chroma: ChromaSite { horizontal_cosited: true, vertical_cosited: false },
    };
    let style = InputStyle::ULTRALYTICS;
    let extent = FrameExtent { element: Element::F32, len: 3 * (MODEL.0 * MODEL.1) as usize };
    let mut on_gpu = GpuConverter::new(0, format, MODEL, &style, "bench").unwrap_or_else(|error| stop(error));
    let mut on_host = Converter::with_kernels(format, MODEL, style, Kernels::SCALAR);
    let batch = || BatchTensor::new(1, extent).unwrap_or_else(|error| stop(error));
    let (mut found, mut expected) = (batch(), batch());
    let application = Foreign::new();
    let (mut farthest, mut times) = (0.0_f32, Vec::new());
    for frame in film.frames() {
        let bytes = frame.map_readable().unwrap_or_else(|error| stop(error));
        let strides: Vec<_> = info.stride()[..3].iter().map(|stride| *stride as usize).collect();
        let plane = |index: usize| {
            let start = info.offset()[index];
            &bytes[start..start + format.plane_bytes(index, strides[index])]
        };
        let memories: Vec<_> = (0..3).map(|index| application.put(plane(index))).collect();
        let planes: Vec<_> = memories
            .iter()
            .zip(&strides)
            .map(|(memory, &row_stride)| GpuPlane { memory: memory.span(), row_stride })
            .collect();
        for _ in 0..TIMES {
            let mut slot = found.slot(0);
            let begun = Instant::now();
            on_gpu.convert(&planes, &mut slot).unwrap_or_else(|error| stop(error));
            times.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        found.bring_home(0..1).unwrap_or_else(|error| stop(error));
        let planes: Vec<_> =
            (0..3).map(|index| Plane { data: plane(index), row_stride: strides[index] }).collect();
        on_host.convert(&planes, expected.slot(0).tensor()).unwrap_or_else(|error| stop(error));
        let values = |batch: &mut BatchTensor| -> Vec<f32> {
            let bytes = batch.filled(0..1).unwrap_or_else(|| stop("a slot is out"));
            bytes.as_chunks().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect()
        };
        for (found, expected) in values(&mut found).into_iter().zip(values(&mut expected)) {
            let difference = (found - expected).abs() * 255.0;
            farthest = if difference.is_nan() { f32::INFINITY } else { farthest.max(difference) };
        }
    }
    let figure = format!(
        "{farthest:.4} of a step at most; {:.0} µs a frame of {}x{}, copy included",
        median(times),
        format.width,
        format.height
    );
    judge(what, &figure, goal, farthest <= 0.04);
}
