//! One `OrtIoBinding`: tensors that a session reads and writes in place.

use std::ffi::CString;
use std::ptr::{self, NonNull};

use ort::AsPointer;
use ort::session::{RunOptions, Session};
use ort::sys::OrtIoBinding;

use super::value::OwnedValue;

/// Goes before the session, and before the tensors' memory.
pub(super) struct Binding {
    binding: Handle,
    input_name: CString,
    input: OwnedValue,
    /// Bound, and so alive as long.
    _output: OwnedValue,
}

struct Handle(NonNull<OrtIoBinding>);

// SAFETY: data without ties to a thread, and this is its only handle here.
unsafe impl Send for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: owned, released once.
        unsafe { (ort::api().ReleaseIoBinding)(self.0.as_ptr()) }
    }
}

impl Binding {
    /// Both are names of the session's.
    pub fn new(
        session: &Session,
        (input_name, input): (&CString, OwnedValue),
        (output_name, output): (&CString, OwnedValue),
    ) -> ort::Result<Self> {
        let mut binding = ptr::null_mut();
        // SAFETY: the session is alive; `binding` is an out parameter.
        unsafe {
            ort::Error::result_from_status((ort::api().CreateIoBinding)(
                session.ptr().cast_mut(),
                &mut binding,
            ))?;
        }
        let binding = NonNull::new(binding).map(Handle).ok_or_else(|| ort::Error::new("no binding"))?;
        // SAFETY: all are alive; ONNX Runtime takes a reference to the value and a copy of the name.
        unsafe {
            ort::Error::result_from_status((ort::api().BindOutput)(
                binding.0.as_ptr(),
                output_name.as_ptr(),
                output.0.as_ptr(),
            ))?;
        }
        Ok(Self { binding, input_name: input_name.clone(), input, _output: output })
    }

    /// A run of the session that it was made for.
    ///
    /// The input is bound each time: where what reads it first runs on the processor, which the GPU has no kernel for, ONNX Runtime binds
    /// a copy of what the tensor holds at that moment. Else it takes one more reference.
    pub fn run(&self, session: &Session, options: Option<&RunOptions>) -> ort::Result<()> {
        let options = options.map_or(ptr::null(), AsPointer::ptr);
        // SAFETY: all are alive during the calls, as is the memory of the bound tensors; `Run` does not change the session's own
        // state. That nobody else runs or binds this binding meanwhile is seen to by the lane that owns it.
        unsafe {
            ort::Error::result_from_status((ort::api().BindInput)(
                self.binding.0.as_ptr(),
                self.input_name.as_ptr(),
                self.input.0.as_ptr(),
            ))?;
            ort::Error::result_from_status((ort::api().RunWithBinding)(
                session.ptr().cast_mut(),
                options,
                self.binding.0.as_ptr(),
            ))
        }
    }
}
