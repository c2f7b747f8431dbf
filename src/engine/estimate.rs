//! How much memory a model will take, before it is loaded.
//!
//! Calibrated with `cargo test --test budget estimates -- --nocapture`, which prints and checks the estimate beside what was
//! measured for each model that is there (MB, ONNX Runtime 1.31, two threads, first model of its process):
//!
//! ```text
//!                           file  model  arena   both   estimate    peak
//!  tiny v8, 64x64            0.0    8.3    0.5    8.8       10.3     8.9
//!  yolox nano, 416x416       3.7   15.6    9.8   25.4       28.2    27.3
//!  yolov5n, 640x640          7.9   18.4   26.7   45.1       56.8    49.9
//!  yolo12n, 640x640         10.7   23.9   38.7   62.6       62.8    62.7
//!  yolo12n f16, 640x640      5.4   27.2   49.1   76.3       62.9    76.4
//!  yolo11n-pose, 640x640    11.9   23.6   41.8   65.4       65.4    70.3
//!  yolo11n-seg, 640x640     11.7   24.6   59.8   84.4       64.9    89.2
//!  yolo11l, 640x640        101.5  115.4  135.5  250.9      257.2   255.7
//! ```
//!
//! The peak while loading is no higher than what stays, since the free heap is returned before the first run. What a model
//! turned out to take is held against the budget after the load, and remembered for the next one.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use parking_lot::Mutex;

use super::cache::Figures;
use super::device::Device;
use super::gpu::budget::Wish;
use super::header::{self, InputHeader};
use super::model::{DEFAULT_SIZE, MAX_FIXED_BATCH, MAX_SIDE};
use crate::batch::Need;
use crate::tensor::Element;

/// Bytes of one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    pub model: u64,
    /// For each frame of each run in progress.
    pub frame_arena: u64,
    /// Input of one frame.
    pub frame_tensor: u64,
    /// Frames that a run has at the least.
    pub least: u64,
}

/// ONNX Runtime's own for the first model, and a graph's without weights.
const SESSION: u64 = 10_000_000;
/// Weights in memory for those in the file, of 32 bits; in parts of a hundred.
const WEIGHTS: u64 = 106;
/// OpenVINO's libraries, beside all of the above, and of the weights in memory once more so many parts of a hundred.
const OPENVINO: u64 = 65_000_000;
const OPENVINO_WEIGHTS: u64 = 45;
/// Between layers, for each pixel of the input, and for weights of 32 bits at [`DEFAULT_SIZE`].
const ARENA_PIXEL: u64 = 73;
const ARENA_WEIGHTS: u64 = 108;

impl Estimate {
    /// From what can be read of `file` in a moment.
    pub fn of_file(file: &Path) -> Self {
        let length = fs::metadata(file).map_or(0, |data| data.len());
        Self::new(length, header::read(file))
    }

    /// What is wanted of a GPU for batches of `frames`. Weights are as they are in the `file`; the output is hardly ever larger than
    /// the input (8400 candidates of 80 classes: three fifths), and is known after the load.
    pub fn on_gpu(&self, file: &Path, frames: usize) -> Wish {
        let least = (self.least as usize).max(1);
        Wish {
            weights: fs::metadata(file).map_or(0, |data| data.len()),
            frame_tensors: self.frame_tensor.saturating_mul(2),
            frames: frames.max(least),
            least,
        }
    }

    /// On `device`; as it is, it is for ONNX Runtime's own kernels.
    fn on(self, device: &Device) -> Self {
        match device {
            Device::Auto | Device::Cpu => self,
            // What is between layers is on the GPU.
            Device::Cuda(_) | Device::TensorRt(_) => Self { frame_arena: 0, ..self },
            Device::OpenVino(_) => {
                let weights = self.model.saturating_sub(SESSION).saturating_mul(OPENVINO_WEIGHTS) / 100;
                Self { model: self.model.saturating_add(OPENVINO).saturating_add(weights), ..self }
            }
        }
    }

    fn new(length: u64, header: Option<InputHeader>) -> Self {
        let element = header.and_then(|header| header.element).unwrap_or(Element::F32);
        let [batch, _, height, width] = header.map_or([None; 4], |header| header.dims);
        let side = |side: Option<u64>| side.unwrap_or(DEFAULT_SIZE.into()).min(MAX_SIDE as u64);
        let pixels = side(height).saturating_mul(side(width));
        // A processor computes with 32 bits.
        let weights = length.saturating_mul(size_of::<f32>() as u64) / element.size() as u64;
        let wide = u128::from(weights) * u128::from(pixels) * u128::from(ARENA_WEIGHTS)
            / (100 * u128::from(DEFAULT_SIZE).pow(2));
        Self {
            model: SESSION.saturating_add(weights.saturating_mul(WEIGHTS) / 100),
            frame_arena: pixels
                .saturating_mul(ARENA_PIXEL)
                .saturating_add(wide.try_into().unwrap_or(u64::MAX)),
            frame_tensor: pixels.saturating_mul(3 * element.size() as u64),
            least: batch.unwrap_or(1).clamp(1, MAX_FIXED_BATCH as u64),
        }
    }

    /// For batches of `frames`, of which there are two or one for each of `callers`.
    pub fn need(&self, frames: u64, callers: usize) -> Need {
        let frames = frames.max(self.least);
        let callers = callers.max(1) as u64;
        Need {
            model: self.model,
            arena: self.frame_arena.saturating_mul(frames).saturating_mul(callers),
            tensors: self.frame_tensor.saturating_mul(frames).saturating_mul(callers.max(2)),
        }
    }
}

/// A model by the hash of its file, on a device.
type Placed = (u128, Device);

/// What models took that were loaded before.
static KNOWN: Mutex<Option<HashMap<Placed, Estimate>>> = Mutex::new(None);

/// What was measured, or else told from `file`.
pub fn estimate(placed: &Placed, file: &Path) -> Estimate {
    let known = KNOWN.lock().as_ref().and_then(|known| known.get(placed).copied());
    known.unwrap_or_else(|| Estimate::of_file(file).on(&placed.1))
}

/// It took this in another process; what was measured in this one counts more.
pub fn expect(placed: Placed, file: &Path, figures: &Figures) {
    let expected = Estimate {
        model: figures.model,
        frame_arena: figures.arena / figures.frames.max(1) as u64,
        ..Estimate::of_file(file)
    };
    KNOWN.lock().get_or_insert_default().entry(placed).or_insert(expected);
}

/// The model took this.
pub fn learn(placed: Placed, measured: Estimate) {
    KNOWN.lock().get_or_insert_default().insert(placed, measured);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_follows_file_and_picture() {
        let header =
            |element, dims: [u64; 4]| Some(InputHeader { element: Some(element), dims: dims.map(Some) });
        let of = |length, side, element| Estimate::new(length, header(element, [1, 3, side, side]));
        let nano = of(10_600_000, 640, Element::F32);
        assert_eq!(nano, Estimate::new(10_600_000, None), "the size is what most models have");
        assert!((55..70).contains(&(nano.need(1, 1).total() / 1_000_000 - 10)), "{nano:?}");
        assert_eq!(nano.need(1, 1).tensors, 2 * 3 * 640 * 640 * 4);
        let (four, two) = (nano.need(4, 1), nano.need(1, 3));
        assert_eq!((four.model, four.arena), (nano.model, 4 * nano.frame_arena));
        assert_eq!((two.arena, two.tensors), (3 * nano.frame_arena, 3 * nano.frame_tensor));
        let large = of(10_600_000, 1280, Element::F32);
        assert!(large.frame_arena.abs_diff(4 * nano.frame_arena) < 8 && large.model == nano.model);
        let half = of(5_300_000, 640, Element::F16);
        assert_eq!((half.model, half.frame_arena), (nano.model, nano.frame_arena));
        let fixed = Estimate::new(1, header(Element::F32, [4, 3, 64, 64]));
        assert_eq!(fixed.need(1, 1).tensors, 2 * 4 * fixed.frame_tensor);
        let absurd = Estimate::new(u64::MAX, header(Element::F32, [u64::MAX; 4]));
        assert_eq!(absurd.need(u64::MAX, usize::MAX).total(), u64::MAX);
    }

    /// Measured with `onnxruntime-openvino` 1.24.1, one caller, first model of its process: YOLO12n, YOLO11l.
    #[test]
    fn openvino_takes_more_for_a_model_and_no_more_for_a_frame() {
        let openvino = Device::OpenVino("CPU".into());
        for (length, measured) in [(10_700_000, 130), (101_500_000, 361)] {
            let bare = Estimate::new(length, None);
            let there = bare.on(&openvino);
            let both = there.model + there.frame_arena;
            assert!((95..110).contains(&(both / measured / 10_000)), "{length}: {both}");
            assert_eq!((there.frame_arena, bare.on(&Device::Cpu)), (bare.frame_arena, bare));
        }
    }

    #[test]
    fn a_gpu_has_what_is_between_layers_and_the_host_the_rest() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, [0; 1000]).unwrap();
        let bare = Estimate::of_file(file.path());
        let host = bare.on(&Device::Cuda(1));
        assert_eq!(host, Estimate { frame_arena: 0, ..bare });
        assert_eq!(host, bare.on(&Device::TensorRt(0)));
        let input = 3 * 640 * 640 * 4;
        assert_eq!(
            host.on_gpu(file.path(), 8),
            Wish { weights: 1000, frame_tensors: 2 * input, frames: 8, least: 1 }
        );
        let fixed = Estimate { least: 4, ..host }.on_gpu(file.path(), 1);
        assert_eq!((fixed.frames, fixed.least), (4, 4));
    }

    #[test]
    fn what_was_measured_counts_the_next_time() {
        let measured = Estimate { model: 1, frame_arena: 2, frame_tensor: 3, least: 1 };
        let file = Path::new("/nowhere.onnx");
        let on = |device: &str| (11, Device::parse(device).unwrap());
        assert_ne!(estimate(&on("cpu"), file), measured);
        learn(on("cpu"), measured);
        assert_eq!(estimate(&on("cpu"), file), measured);
        assert_eq!(
            estimate(&on("openvino"), file),
            Estimate::of_file(file).on(&Device::OpenVino("CPU".into()))
        );
    }
}
