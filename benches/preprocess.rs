//! From pixels to tensors, by pixel format and size.
//!
//! ```sh
//! cargo bench --bench preprocess -- [FILTER]
//! ```
//! Each case with the fastest inner loops and with the scalar ones. The rate counts the bytes of the source rows that are
//! read and those of the picture that is written; padding is painted once, before. With `--paced` it is the one side of
//! `against_opencv.sh`, see [`paced`].

use std::fmt;
use std::io::{self, BufRead, Write};
use std::time::Instant;

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use gstyolodetect::preprocess::{
    ChromaSite, Colorimetry, Converter, FrameFormat, FrameTensor, InputStyle, Kernels, Margin, Matrix,
    PixelFormat, Plane, Range, TensorMut,
};
use half::f16;

fn main() {
    match std::env::args().any(|argument| argument == "--paced") {
        true => paced().expect("standard input and output are open"),
        false => divan::main(),
    }
}

const MODEL: (u32, u32) = (640, 640);
const LEN: usize = 3 * 640 * 640;
const SIZES: [(u32, u32); 4] = [(640, 640), (1280, 720), (1920, 1080), (3840, 2160)];
/// One of those that are read in the same way.
const FORMATS: [PixelFormat; 8] = [
    PixelFormat::Nv12,
    PixelFormat::I420,
    PixelFormat::Yuy2,
    PixelFormat::Y42b,
    PixelFormat::Y444,
    PixelFormat::Bgr,
    PixelFormat::Bgrx,
    PixelFormat::Gray8,
];

fn format(pixel: PixelFormat, (width, height): (u32, u32)) -> FrameFormat {
    FrameFormat {
        pixel,
        width,
        height,
        colorimetry: Colorimetry { matrix: Matrix::Bt709, range: Range::Limited },
        chroma: ChromaSite { horizontal_cosited: true, vertical_cosited: false },
    }
}

/// A frame's planes with their row strides.
struct Frame(Vec<(Vec<u8>, usize)>);

impl Frame {
    fn noise(format: &FrameFormat, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let plane = |plane| {
            let stride = format.row_bytes(plane);
            let mut bytes = vec![0; format.plane_bytes(plane, stride)];
            random.fill(&mut bytes);
            (bytes, stride)
        };
        Self((0..format.pixel.planes()).map(plane).collect())
    }

    fn planes(&self) -> Vec<Plane<'_>> {
        self.0.iter().map(|(data, row_stride)| Plane { data, row_stride: *row_stride }).collect()
    }
}

/// Bytes that one conversion reads and writes.
fn traffic(converter: &Converter, element: usize) -> (usize, usize) {
    let (width, height) = converter.letterbox().resized();
    (converter.source_bytes(), 3 * width as usize * height as usize * element)
}

struct Case {
    pixel: PixelFormat,
    size: (u32, u32),
    half: bool,
    kernels: Kernels,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pixel, size: (width, height), half, kernels } = self;
        let element = if *half { "f16" } else { "f32" };
        write!(f, "{pixel:?} {width}x{height} {element} {}", kernels.name())
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for pixel in FORMATS {
        for size in SIZES {
            for half in [false, true] {
                for kernels in [Kernels::best(), Kernels::SCALAR] {
                    cases.push(Case { pixel, size, half, kernels });
                }
            }
        }
    }
    cases
}

#[divan::bench(args = cases())]
fn convert(bencher: Bencher<'_, '_>, case: &Case) {
    let format = format(case.pixel, case.size);
    let frame = Frame::noise(&format, 1);
    let planes = frame.planes();
    let mut converter = Converter::with_kernels(format, MODEL, InputStyle::ULTRALYTICS, case.kernels);
    let element = if case.half { size_of::<f16>() } else { size_of::<f32>() };
    let (read, written) = traffic(&converter, element);
    let (mut floats, mut halves, mut margin) = (vec![0.0; LEN], vec![f16::ZERO; LEN], Margin::default());
    bencher.counter(BytesCount::new(read + written)).bench_local(|| {
        let values = if case.half { TensorMut::F16(&mut halves) } else { TensorMut::F32(&mut floats) };
        let out = FrameTensor { values, margin: &mut margin };
        converter.convert(black_box(&planes), out).expect("the frame is complete");
    });
}

/// Frames in turn, so that not the whole of what is read lies in the nearest cache.
const FRAMES: usize = 4;
/// Conversions for one answer.
const REPEATS: usize = 12;

/// For each line `NV12` or `BGR` of the standard input one line of medians, for 1920×1080 → 640×640 f32:
/// milliseconds of a conversion, milliseconds of a memory copy that reads and writes as many bytes in all, bytes read,
/// bytes written.
fn paced() -> io::Result<()> {
    let mut sides = [PixelFormat::Nv12, PixelFormat::Bgr].map(Side::new);
    for line in io::stdin().lock().lines() {
        let [nv12, bgr] = &mut sides;
        let side = if line?.trim() == "BGR" { bgr } else { nv12 };
        let (convert, copy) = side.round();
        let (read, written) = traffic(&side.converter, size_of::<f32>());
        let mut out = io::stdout().lock();
        writeln!(out, "{convert} {copy} {read} {written}")?;
        out.flush()?;
    }
    Ok(())
}

struct Side {
    converter: Converter,
    frames: Vec<Frame>,
    tensor: Vec<f32>,
    margin: Margin,
    /// What the copy reads and writes: half of what the conversion reads and writes together.
    from: Vec<u8>,
    to: Vec<u8>,
}

impl Side {
    fn new(pixel: PixelFormat) -> Self {
        let format = format(pixel, (1920, 1080));
        let converter = Converter::new(format, MODEL, InputStyle::ULTRALYTICS);
        let (read, written) = traffic(&converter, size_of::<f32>());
        let frames = (0..FRAMES).map(|seed| Frame::noise(&format, seed as u64)).collect();
        let half = vec![1; (read + written) / 2];
        Self {
            converter,
            frames,
            tensor: vec![0.0; LEN],
            margin: Margin::default(),
            from: half.clone(),
            to: half,
        }
    }

    fn round(&mut self) -> (f64, f64) {
        let (mut converting, mut copying) = (Vec::new(), Vec::new());
        for frame in self.frames.iter().cycle().take(REPEATS) {
            let planes = frame.planes();
            let out = FrameTensor { values: TensorMut::F32(&mut self.tensor), margin: &mut self.margin };
            let start = Instant::now();
            self.converter.convert(black_box(&planes), out).expect("the frame is complete");
            converting.push(start.elapsed().as_secs_f64() * 1e3);
            let start = Instant::now();
            black_box(&mut self.to).copy_from_slice(black_box(&self.from));
            copying.push(start.elapsed().as_secs_f64() * 1e3);
        }
        (median(&mut converting), median(&mut copying))
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
