//! What goes into a model, and the one output that is read.

use std::ffi::CString;
use std::path::Path;

use ort::session::Session;

use super::probe::{c_name, tensor_type};
use super::unsupported;
use crate::decode::{Head, Layout, ModelMetadata, OutputShape};
use crate::engine::EngineError;
use crate::engine::model::InputPlan;
use crate::tensor::FrameExtent;

pub(super) struct Ports {
    pub input_name: CString,
    /// Of one frame.
    pub input: FrameExtent,
    /// Height and width.
    sides: [i64; 2],
    /// Other outputs are not asked for and so not computed where that is possible.
    pub output_name: CString,
    /// Of one frame.
    pub output: FrameExtent,
    /// `[frames, …]` without the first.
    pub output_dims: Vec<i64>,
}

impl Ports {
    /// # Errors
    /// [`crate::engine::EngineErrorKind::ModelUnsupported`] where none of the outputs, which have these `shapes`, has detections.
    pub fn find(
        file: &Path,
        session: &Session,
        head: Option<Head>,
        metadata: &ModelMetadata,
        plan: &InputPlan,
        shapes: &[OutputShape],
    ) -> Result<(Self, Layout), EngineError> {
        let layout = Layout::find(head, metadata, (plan.height as usize, plan.width as usize), shapes)
            .map_err(|error| unsupported(file, error.to_string(), ""))?;
        let chosen = &session.outputs()[layout.output];
        let Some(element) = tensor_type(chosen.dtype()).0 else {
            return Err(unsupported(file, format!("its output {} is not of floats", chosen.name()), ""));
        };
        let ports = Self {
            input_name: c_name(file, session.inputs()[0].name())?,
            input: plan.frame(),
            sides: [i64::from(plan.height), i64::from(plan.width)],
            output_name: c_name(file, chosen.name())?,
            output: FrameExtent { element, len: layout.frame_len() },
            output_dims: shapes[layout.output].dims.iter().skip(1).map(|&dim| dim as i64).collect(),
        };
        Ok((ports, layout))
    }

    pub fn input_shape(&self, frames: usize) -> [i64; 4] {
        let [height, width] = self.sides;
        [frames as i64, 3, height, width]
    }

    pub fn output_shape(&self, frames: usize) -> Vec<i64> {
        std::iter::once(frames as i64).chain(self.output_dims.iter().copied()).collect()
    }
}
