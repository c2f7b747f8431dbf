//! What a model's input and outputs are: from its declarations, and from a run on black frames.

use std::ffi::CString;
use std::path::Path;
use std::ptr::{self, NonNull};

use ort::session::{RunOptions, Session};
use ort::value::{Outlet, TensorElementType, ValueType};

use super::failure::{kind, run_failed};
use super::unsupported;
use super::value::{MemoryPlace, OwnedValue, call};
use crate::batch::{Ledger, Need, ceiling};
use crate::decode::{ModelMetadata, OutputShape};
use crate::engine::model::{DeclaredInput, InputPlan};
use crate::engine::{EngineError, EngineErrorKind};
use crate::tensor::{BatchTensor, Element};

/// Calls `probe` with `max_batch` frames, or with as many as there is room for, which are then in the ledger. How many that
/// was, and what it found.
pub(super) fn lay_out<T>(
    max_batch: usize,
    plan: &InputPlan,
    ledger: &mut Ledger,
    file: &Path,
    probe: impl Fn(usize) -> Result<T, EngineError>,
) -> Result<(usize, T), EngineError> {
    let mut frames = plan.batch.capacity(max_batch.max(1));
    let can_be_fewer = |frames: usize| frames > 1 && !plan.batch.is_fixed();
    loop {
        let tensor = (frames - plan.batch.capacity(1)) as u64 * plan.frame().bytes() as u64;
        let outcome = match ledger.admit(frames, tensor) {
            Ok(()) => {
                let outcome = probe(frames);
                ledger.release(tensor);
                outcome
            }
            Err(exceeded) => {
                let held = ledger.held();
                let need = Need { arena: held.arena.saturating_add(exceeded.wanted), ..held };
                Err(EngineError::no_budget(file, need, &exceeded))
            }
        };
        match outcome {
            Ok(found) => return Ok((frames, found)),
            Err(EngineError { kind: EngineErrorKind::OutOfMemory | EngineErrorKind::NoBudget, .. })
                if can_be_fewer(frames) =>
            {
                frames = ceiling::part(frames);
            }
            Err(error) => return Err(error),
        }
    }
}

pub(super) fn read_metadata(session: &Session) -> ModelMetadata {
    match session.metadata() {
        Ok(metadata) => ModelMetadata::read(|key| metadata.custom(key)),
        Err(_) => ModelMetadata::default(),
    }
}

pub(super) fn c_name(file: &Path, name: &str) -> Result<CString, EngineError> {
    CString::new(name)
        .map_err(|error| unsupported(file, format!("the name {name:?} holds a zero byte"), error))
}

pub(super) fn declared(input: &Outlet) -> DeclaredInput {
    let (element, dims) = tensor_type(input.dtype());
    DeclaredInput { name: input.name().to_string(), dims, element, type_name: input.dtype().to_string() }
}

/// The element, where it is a float that we know, and the dimensions; open ones are -1.
pub(super) fn tensor_type(dtype: &ValueType) -> (Option<Element>, Vec<i64>) {
    let element = match dtype.tensor_type() {
        Some(TensorElementType::Float32) => Some(Element::F32),
        Some(TensorElementType::Float16) => Some(Element::F16),
        _ => None,
    };
    (element, dtype.tensor_shape().map(|shape| shape.to_vec()).unwrap_or_default())
}

/// Runs the model once on black frames and reports every output's real shape.
pub(super) fn probe(
    session: &Session,
    options: Option<&RunOptions>,
    plan: &InputPlan,
    frames: usize,
    file: &Path,
) -> Result<Vec<OutputShape>, EngineError> {
    let mut batch =
        BatchTensor::new(frames, plan.frame()).map_err(|error| EngineError::no_room(file, error))?;
    let shape = [frames as i64, 3, i64::from(plan.height), i64::from(plan.width)];
    let names: Vec<CString> =
        session.outputs().iter().map(|output| c_name(file, output.name())).collect::<Result<_, _>>()?;
    let input_name = c_name(file, session.inputs()[0].name())?;
    let name_pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
    let mut values = vec![ptr::null_mut(); names.len()];
    let outcome = (|| {
        let bytes = batch.input_bytes().ok_or_else(|| ort::Error::new("a slot of the batch is still out"))?;
        let input = MemoryPlace::host()?.view(bytes, &shape, plan.element)?;
        call(session, options, &input_name, input.0.as_ptr(), &name_pointers, &mut values)
    })();
    let values: Vec<_> = values.into_iter().map(|value| NonNull::new(value).map(OwnedValue)).collect();
    outcome.map_err(|error| {
        if kind(&error.to_string()) != EngineErrorKind::Run {
            return run_failed(file, error);
        }
        unsupported(
            file,
            format!("it cannot run on a picture of {}x{} pixels", plan.width, plan.height),
            error,
        )
    })?;
    let shape_of = |(output, value): (&Outlet, &Option<OwnedValue>)| {
        // Sequences and maps have no shape; the layout passes over them.
        let is_tensor = output.dtype().is_tensor();
        let known = value.as_ref().filter(|_| is_tensor).and_then(|value| value.element_and_dims().ok());
        let (element, dims) = known.unwrap_or_default();
        OutputShape {
            name: output.name().to_string(),
            dims: dims.iter().map(|&dim| dim.max(0) as usize).collect(),
            float: element.is_some(),
        }
    };
    Ok(session.outputs().iter().zip(&values).map(shape_of).collect())
}
