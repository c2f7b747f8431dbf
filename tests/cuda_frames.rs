//! Frames that lie in a GPU's memory: the kernel beside the processor's conversion, and GStreamer's own memory for CUDA from `cudaupload` to
//! boxes. Driver and compiler are stand-ins, which run the very kernel on the processor, so each test runs in a process of its own.

mod common;
#[path = "common/cuda_driver.rs"]
mod cuda_driver;
#[path = "common/foreign.rs"]
mod foreign;

use std::time::Instant;

use cuda_driver::{Balance, Folder, balance, beside, control};
use foreign::Foreign;
use gstyolodetect::engine::cuda_frames::{GpuConverter, GpuPlane, Refusal};
use gstyolodetect::engine::gpu::{budget, compiler};
use gstyolodetect::memory::budget::Consumer;
use gstyolodetect::preprocess::{
    ChromaSite, Colorimetry, Converter, FrameFormat, InputStyle, Kernels, Matrix, PixelFormat, Plane, Range,
};
use gstyolodetect::tensor::{BatchTensor, Element, FrameExtent, Part};

const MODEL: (u32, u32) = (48, 40);

fn format(pixel: PixelFormat, width: u32, height: u32) -> FrameFormat {
    FrameFormat {
        pixel,
        width,
        height,
        colorimetry: Colorimetry { matrix: Matrix::Bt709, range: Range::Limited },
        chroma: ChromaSite { horizontal_cosited: true, vertical_cosited: false },
    }
}

fn extent(element: Element) -> FrameExtent {
    FrameExtent { element, len: 3 * (MODEL.0 * MODEL.1) as usize }
}

fn machine(folder: &Folder) {
    folder.driver(&[]);
    folder.compiler();
}

/// Planes of noise, with a row stride that is larger than a row by `slack`.
fn noise(format: &FrameFormat, slack: usize, random: &mut fastrand::Rng) -> Vec<(Vec<u8>, usize)> {
    let plane = |plane| {
        let row_stride = format.row_bytes(plane) + slack;
        let bytes = format.plane_bytes(plane, row_stride);
        ((0..bytes).map(|_| random.u8(..)).collect(), row_stride)
    };
    (0..format.pixel.planes()).map(plane).collect()
}

/// The frame by the processor's plain loops.
fn expected(
    format: FrameFormat,
    style: InputStyle,
    planes: &[(Vec<u8>, usize)],
    element: Element,
) -> Vec<u8> {
    let mut batch = BatchTensor::new(1, extent(element)).unwrap();
    let planes: Vec<_> =
        planes.iter().map(|(data, row_stride)| Plane { data, row_stride: *row_stride }).collect();
    let mut slot = batch.slot(0);
    let mut converter = Converter::with_kernels(format, MODEL, style, Kernels::SCALAR);
    converter.convert(&planes, slot.tensor()).unwrap();
    drop(slot);
    batch.filled(0..1).unwrap().to_vec()
}

fn values(bytes: &[u8], element: Element) -> Vec<f32> {
    match element {
        Element::F32 => bytes.as_chunks().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect(),
        Element::F16 => {
            bytes.as_chunks().0.iter().map(|bytes| half::f16::from_ne_bytes(*bytes).to_f32()).collect()
        }
    }
}

fn mirrored(batch: &mut BatchTensor, frame: usize) -> bool {
    let mut parts = batch.parts(frame..frame + 1).unwrap();
    matches!(parts.next(), Some((_, Part::Mirrored(_))))
}

#[test]
fn the_kernel_does_what_the_processor_does() {
    if !beside("the_kernel_does_what_the_processor_does", machine) {
        return;
    }
    let application = Foreign::new();
    let mut random = fastrand::Rng::with_seed(1);
    // Wider, higher, smaller than the model, of its very size, odd, and as thin as can be.
    let sizes = [(64, 36), (33, 71), (7, 5), (48, 40), (1, 1), (640, 2)];
    for (index, pixel) in PixelFormat::ALL.into_iter().enumerate() {
        for (width, height) in sizes {
            for (style, element) in [
                (InputStyle::ULTRALYTICS, Element::F32),
                (InputStyle::ULTRALYTICS, Element::F16),
                (InputStyle::YOLOX, Element::F32),
                (InputStyle::YOLOX, Element::F16),
            ] {
                let format = format(pixel, width, height);
                let planes = noise(&format, index % 3 * 5, &mut random);
                let on_gpu: Vec<_> =
                    planes.iter().map(|(bytes, stride)| (application.put(bytes), *stride)).collect();
                let frame: Vec<_> = on_gpu
                    .iter()
                    .map(|(memory, row_stride)| GpuPlane { memory: memory.span(), row_stride: *row_stride })
                    .collect();
                let mut converter = GpuConverter::new(0, format, MODEL, &style, "test").unwrap();
                let mut batch = BatchTensor::new(2, extent(element)).unwrap();
                converter.convert(&frame, &mut batch.slot(1)).unwrap();
                assert!(!mirrored(&mut batch, 0) && mirrored(&mut batch, 1));
                batch.bring_home(0..2).unwrap();
                assert!(!mirrored(&mut batch, 1));
                let found = values(batch.filled(1..2).unwrap(), element);
                let wanted = values(&expected(format, style, &planes, element), element);
                let step = style.range.max() / 255.0;
                for (at, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
                    assert!(
                        (found - wanted).abs() <= 0.04 * step,
                        "{pixel:?} {width}x{height} {style:?} {element:?}: {found} at {at} for {wanted}"
                    );
                }
            }
        }
    }
    assert_eq!(budget::of(0).reserved(), 0, "mirrors go with their batches");
    drop(application);
    assert_eq!(balance(), Balance::default());
}

#[test]
fn frames_that_cannot_be_converted_are_refused_and_fit_the_host_s_place() {
    if !beside("frames_that_cannot_be_converted_are_refused_and_fit_the_host_s_place", machine) {
        return;
    }
    let application = Foreign::new();
    let format = format(PixelFormat::Nv12, 64, 36);
    let planes = noise(&format, 0, &mut fastrand::Rng::with_seed(2));
    let on_gpu: Vec<_> = planes.iter().map(|(bytes, _)| application.put(bytes)).collect();
    let frame: Vec<_> =
        on_gpu.iter().map(|memory| GpuPlane { memory: memory.span(), row_stride: 64 }).collect();
    let style = InputStyle::ULTRALYTICS;
    let mut converter = GpuConverter::new(0, format, MODEL, &style, "test").unwrap();
    let mut batch = BatchTensor::new(1, extent(Element::F32)).unwrap();
    let refused = |converter: &mut GpuConverter, frame: &[GpuPlane<'_>], batch: &mut BatchTensor| {
        let refusal = converter.convert(frame, &mut batch.slot(0)).unwrap_err();
        assert!(!mirrored(batch, 0));
        refusal.to_string()
    };
    let told = refused(&mut converter, &frame[..1], &mut batch);
    assert_eq!(told, "the frame has 1 planes where its format has 2");
    for row_stride in [63, 65, usize::MAX] {
        let wrong = [frame[0], GpuPlane { row_stride, ..frame[1] }];
        let told = refused(&mut converter, &wrong, &mut batch);
        assert!(told.starts_with("plane 1 has 1152 bytes where its 18 rows of "), "{told}");
    }
    control("cuLaunchKernel=700");
    assert!(refused(&mut converter, &frame, &mut batch).contains("cuLaunchKernel"));
    control("cuMemcpyPeerAsync=700");
    assert!(refused(&mut converter, &frame, &mut batch).contains("cuMemcpyPeerAsync"));
    control("");
    converter.convert(&frame, &mut batch.slot(0)).unwrap();
    assert!(mirrored(&mut batch, 0));
    // What lies on a GPU that is lost is lost with it, and said to be.
    control("lost=700");
    assert!(batch.bring_home(0..1).unwrap_err().contains("cannot be had"));
    control("");

    // No room for another batch's mirror; then there is.
    let limit = budget::of(0).limit("test", budget::of(0).reserved() + 1000).unwrap();
    let mut other = BatchTensor::new(1, extent(Element::F32)).unwrap();
    assert!(refused(&mut converter, &frame, &mut other).contains("gpu-memory-budget"));
    drop(limit);
    let loading = budget::Load::begin(0);
    assert_eq!(refused(&mut converter, &frame, &mut other), "a model is being loaded there");
    drop(loading);
    // Without a budget it is four fifths of the GPU.
    control("total=400000000");
    let mut model = budget::of(0).hold(Consumer::Model, "model");
    model.set(319_990_000);
    assert!(refused(&mut converter, &frame, &mut other).contains("beyond the 320.0 MB"));
    drop(model);
    control("limit=30000");
    assert!(refused(&mut converter, &frame, &mut other).contains("out of memory"));
    control("");
    converter.convert(&frame, &mut other.slot(0)).unwrap();

    // A slot of another model.
    let small = FrameExtent { element: Element::F32, len: 12 };
    let told = refused(&mut converter, &frame, &mut BatchTensor::new(1, small).unwrap());
    assert_eq!(told, "the tensor has room for 12 elements where one frame has 5760");
    drop((batch, other, converter));
    assert_eq!(budget::of(0).reserved(), 0);
    drop(on_gpu);
    drop(application);
    assert_eq!(balance(), Balance::default());
}

#[test]
fn without_the_compiler_it_is_said_what_is_missing() {
    if !beside("without_the_compiler_it_is_said_what_is_missing", |folder| {
        folder.driver(&[]);
    }) {
        return;
    }
    let new = || {
        GpuConverter::new(0, format(PixelFormat::Nv12, 64, 36), MODEL, &InputStyle::ULTRALYTICS, "test")
            .map(drop)
    };
    let told = new().unwrap_err().to_string();
    for part in ["libnvrtc.so.13 or libnvrtc.so.12", "setup.sh --cuda"] {
        assert!(told.contains(part), "{told}");
    }
    assert_eq!(balance(), Balance::default());
}

#[test]
fn what_the_compiler_says_is_told() {
    if !beside("what_the_compiler_says_is_told", machine) {
        return;
    }
    let new = || {
        GpuConverter::new(0, format(PixelFormat::Nv12, 64, 36), MODEL, &InputStyle::ULTRALYTICS, "test")
            .map(drop)
    };
    control("nvrtcCompileProgram=6");
    let told = new().unwrap_err();
    assert!(matches!(told, Refusal::Compiler(_)) && !told.may_pass());
    assert!(told.to_string().contains("letterbox.cu(1): error"), "{told}");
    control("cuModuleLoadData=222");
    assert!(new().unwrap_err().to_string().contains("cuModuleLoadData"));
    control("");
    let begun = Instant::now();
    new().unwrap();
    let first = begun.elapsed();
    // Compiled once; what was refused was tried again.
    control("nvrtcCompileProgram=6");
    let begun = Instant::now();
    new().unwrap();
    println!("with the compiler {first:?}, with what it has compiled {:?}", begun.elapsed());
    assert_eq!(balance(), Balance::default());
}

/// Beside a driver of this CUDA. The compiler itself is NVIDIA's, which needs no GPU.
#[test]
fn nvidia_s_compiler_takes_the_kernel_for_every_gpu() {
    let test = "nvidia_s_compiler_takes_the_kernel_for_every_gpu";
    if cfg!(not(target_arch = "x86_64")) {
        common::skip(test, "NVIDIA's compiler is fetched for x86-64 alone");
        return;
    }
    if !beside(test, |folder| {
        folder.driver(&[]);
    }) {
        return;
    }
    let folder = common::asset("nvrtc");
    let source = include_str!("../src/engine/cuda_frames/letterbox.cu");
    let compile = |gpu| compiler::compile("letterbox.cu", source, gpu, &folder);
    let is_machine_code = |image: &[u8]| image.starts_with(b"\x7fELF");
    for gpu in [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)] {
        let image = compile(gpu).unwrap();
        assert!(is_machine_code(image.bytes()), "{gpu:?}");
    }
    // No compiler knows this one yet.
    let image = compile((99, 0)).unwrap();
    let text = String::from_utf8_lossy(image.bytes());
    assert!(text.contains(".visible .entry letterbox("), "{text}");
    // Nor this one any more.
    let told = compile((5, 2)).map(drop).unwrap_err().to_string();
    assert!(told.contains("libnvrtc.so.13 does not know GPUs of compute capability 5.2"), "{told}");
    let broken = source.replace("frame.gains[i]", "frame.gain[i]");
    let told = compiler::compile("letterbox.cu", &broken, (9, 0), &folder).map(drop).unwrap_err().to_string();
    assert!(told.contains("letterbox.cu(") && told.contains("gain"), "{told}");
}
