//! What a model file declares about its input, checked and completed; no library in sight.

use std::path::Path;

use super::{BatchSize, EngineError, EngineErrorKind};
use crate::decode::ModelMetadata;
use crate::tensor::{Element, FrameExtent};

/// An input as the file declares it.
#[derive(Clone, Debug)]
pub struct DeclaredInput {
    pub name: String,
    /// -1 (or any other value below 0) where the size is left open.
    pub dims: Vec<i64>,
    /// `None` for a type that no picture can be given in; its name then stands in `type_name`.
    pub element: Option<Element>,
    pub type_name: String,
}

/// The input as it will be fed: `[batch, 3, height, width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputPlan {
    pub batch: BatchSize,
    pub width: u32,
    pub height: u32,
    pub element: Element,
}

/// Used where neither the shape nor the metadata says a size: what YOLO models are trained on.
pub const DEFAULT_SIZE: u32 = 640;
/// Largest side and batch that are believed; beyond it the file is damaged or hostile.
pub const MAX_SIDE: i64 = 8192;
pub const MAX_FIXED_BATCH: i64 = 256;

impl InputPlan {
    pub fn frame(&self) -> FrameExtent {
        FrameExtent { element: self.element, len: 3 * self.width as usize * self.height as usize }
    }

    /// # Errors
    /// [`EngineErrorKind::ModelUnsupported`], naming the file, the shape seen and what is expected.
    pub fn find(
        file: &Path,
        inputs: &[DeclaredInput],
        metadata: &ModelMetadata,
    ) -> Result<Self, EngineError> {
        let unsupported = |what: String| {
            EngineError::new(
                EngineErrorKind::ModelUnsupported,
                format!(
                    "{} is not a model that yolodetect can run: {what}; expected is one input [batch, 3, height, width] \
                     of 32- or 16-bit floats, as YOLO exports have it",
                    file.display()
                ),
                "",
            )
        };
        let [input] = inputs else {
            let names: Vec<_> = inputs.iter().map(|input| input.name.as_str()).collect();
            return Err(unsupported(format!("it has {} inputs ({})", inputs.len(), names.join(", "))));
        };
        let name = &input.name;
        let Some(element) = input.element else {
            return Err(unsupported(format!("its input {name} takes {}", input.type_name)));
        };
        let [batch, channels, height, width] = input.dims[..] else {
            return Err(unsupported(format!("its input {name} has the shape {:?}", input.dims)));
        };
        if channels >= 0 && channels != 3 {
            return Err(unsupported(format!(
                "its input {name} has the shape {:?}, that is {channels} channels instead of 3",
                input.dims
            )));
        }
        let (meta_height, meta_width) = metadata.image_size.unwrap_or((DEFAULT_SIZE, DEFAULT_SIZE));
        let side = |declared: i64, known: u32| match declared {
            open if open < 0 => Some(known),
            0 => None,
            size if size <= MAX_SIDE => Some(size as u32),
            _ => None,
        };
        let (Some(height), Some(width)) = (side(height, meta_height), side(width, meta_width)) else {
            return Err(unsupported(format!("its input {name} has the shape {:?}", input.dims)));
        };
        if i64::from(height.max(width)) > MAX_SIDE || height == 0 || width == 0 {
            return Err(unsupported(format!("its metadata asks for {width}x{height} pixels")));
        }
        let batch = match batch {
            open if open < 0 => BatchSize::Any,
            size @ 1..=MAX_FIXED_BATCH => BatchSize::Fixed(size as usize),
            _ => return Err(unsupported(format!("its input {name} has the shape {:?}", input.dims))),
        };
        Ok(Self { batch, width, height, element })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(dims: &[i64], element: Option<Element>) -> DeclaredInput {
        DeclaredInput { name: "images".into(), dims: dims.to_vec(), element, type_name: "Uint8".into() }
    }

    fn find(dims: &[i64], image_size: Option<(u32, u32)>) -> Result<InputPlan, String> {
        let metadata = ModelMetadata { image_size, ..Default::default() };
        InputPlan::find(Path::new("m.onnx"), &[input(dims, Some(Element::F32))], &metadata)
            .map_err(|e| e.message)
    }

    #[test]
    fn shapes_are_completed_from_metadata() {
        let plan = |batch, width, height| InputPlan { batch, width, height, element: Element::F32 };
        assert_eq!(find(&[1, 3, 480, 640], None), Ok(plan(BatchSize::Fixed(1), 640, 480)));
        assert_eq!(find(&[-1, 3, 640, 640], None), Ok(plan(BatchSize::Any, 640, 640)));
        assert_eq!(find(&[-1, 3, -1, -1], Some((96, 128))), Ok(plan(BatchSize::Any, 128, 96)));
        assert_eq!(find(&[4, -1, -1, -1], None), Ok(plan(BatchSize::Fixed(4), 640, 640)));
    }

    #[test]
    fn other_models_are_refused_by_what_they_are() {
        for (dims, word) in [
            (&[1, 1, 64, 64][..], "1 channels"),
            (&[1, 640, 640, 3], "640 channels"),
            (&[1, 1000], "[1, 1000]"),
            (&[1, 3, 0, 64], "[1, 3, 0, 64]"),
            (&[0, 3, 64, 64], "[0, 3, 64, 64]"),
            (&[1, 3, 1 << 40, 64], "1099511627776"),
        ] {
            let message = find(dims, None).unwrap_err();
            assert!(message.contains("m.onnx") && message.contains(word), "{message}");
        }
        assert!(find(&[1, 3, -1, -1], Some((4_000_000_000, 1))).unwrap_err().contains("4000000000"));
        let metadata = ModelMetadata::default();
        let error =
            InputPlan::find(Path::new("m.onnx"), &[input(&[1, 3, 64, 64], None)], &metadata).unwrap_err();
        assert!(error.message.contains("Uint8"), "{}", error.message);
        let none = InputPlan::find(Path::new("m.onnx"), &[], &metadata).unwrap_err();
        assert!(none.message.contains("0 inputs"));
    }
}
