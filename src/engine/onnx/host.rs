//! Runs on host memory: the input is a view, made once, of a [`BatchTensor`]'s own memory, and the output is read where ONNX
//! Runtime has put it, so that a run copies no tensor and allocates nothing on our side.

use std::ops::Range;
use std::ptr::{self, NonNull};

use ort::session::{RunOptions, Session};

use super::ports::Ports;
use super::value::{MemoryPlace, OwnedValue, call};
use crate::engine::Output;
use crate::tensor::BatchTensor;

/// Views of one [`BatchTensor`], by the frames that they show.
#[derive(Default)]
struct Views(Vec<(Range<usize>, OwnedValue)>);

impl Views {
    fn of(&self, frames: &Range<usize>) -> Option<&OwnedValue> {
        self.0.iter().find(|(of, _)| of == frames).map(|(_, view)| view)
    }
}

fn views(batch: &BatchTensor) -> Option<&Views> {
    batch.binding.as_ref()?.downcast_ref()
}

/// The view of these frames of `batch`, made at the first run of them.
fn view<'a>(
    place: &MemoryPlace,
    ports: &Ports,
    batch: &'a mut BatchTensor,
    frames: &Range<usize>,
) -> ort::Result<&'a OwnedValue> {
    if views(batch).and_then(|views| views.of(frames)).is_none() {
        let Some(bytes) = batch.input_bytes() else { return Err(slot_is_out()) };
        let frame = ports.input.bytes();
        let bytes = &mut bytes[frames.start * frame..frames.end * frame];
        let view = place.view(bytes, &ports.input_shape(frames.len()), ports.input.element)?;
        if !batch.binding.as_ref().is_some_and(|binding| binding.is::<Views>()) {
            batch.binding = Some(Box::new(Views::default()));
        }
        if let Some(views) = batch.binding.as_mut().and_then(|binding| binding.downcast_mut::<Views>()) {
            views.0.push((frames.clone(), view));
        }
    }
    views(batch).and_then(|views| views.of(frames)).ok_or_else(|| ort::Error::new("the batch has no view"))
}

pub(super) fn slot_is_out() -> ort::Error {
    ort::Error::new("a slot of the batch is still out")
}

/// Runs these frames of `batch` and shows `read` what came out.
pub(super) fn run(
    session: &Session,
    place: &MemoryPlace,
    ports: &Ports,
    batch: &mut BatchTensor,
    frames: &Range<usize>,
    options: Option<&RunOptions>,
    read: &mut dyn FnMut(Output<'_>),
) -> ort::Result<()> {
    if !batch.all_slots_returned() {
        return Err(slot_is_out());
    }
    let input = view(place, ports, batch, frames)?.0.as_ptr().cast_const();
    let mut output = ptr::null_mut();
    call(
        session,
        options,
        &ports.input_name,
        input,
        &[ports.output_name.as_ptr()],
        std::slice::from_mut(&mut output),
    )?;
    let Some(value) = NonNull::new(output).map(OwnedValue) else {
        return Err(ort::Error::new("the run gave no output"));
    };
    let (element, dims) = value.element_and_dims()?;
    let same = dims.first() == Some(&(frames.len() as i64)) && dims[1..] == ports.output_dims[..];
    if !same || element != Some(ports.output.element) {
        return Err(ort::Error::new(format!(
            "the output's shape changed from {:?} to {:?} between runs",
            ports.output_dims,
            &dims[..]
        )));
    }
    let values = value.values(ports.output.element, frames.len() * ports.output.len)?;
    read(Output { values, frame_len: ports.output.len });
    Ok(())
}
