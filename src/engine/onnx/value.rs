//! Calls of ONNX Runtime's C API on values: runs, views of our own memory, what a value holds.

use std::ffi::{CStr, CString, c_int, c_void};
use std::ops::Deref;
use std::ptr::{self, NonNull};

use ort::AsPointer;
use ort::session::{RunOptions, Session};
use ort::sys::{ONNXTensorElementDataType as OrtElement, OrtMemoryInfo, OrtValue};

use crate::decode::OutputRef;
use crate::engine::gpu::driver::DeviceMemory;
use crate::tensor::Element;

/// One call of `OrtApi::Run`. A null in `outputs` is allocated by ONNX Runtime and then the caller's.
pub(super) fn call(
    session: &Session,
    options: Option<&RunOptions>,
    input_name: &CString,
    input: *const OrtValue,
    output_names: &[*const std::ffi::c_char],
    outputs: &mut [*mut OrtValue],
) -> ort::Result<()> {
    debug_assert_eq!(output_names.len(), outputs.len());
    let options = options.map_or(ptr::null(), AsPointer::ptr);
    // SAFETY: the session, the options, both name lists, the input value and every non-null output value are alive during
    // the call, and the lengths are those of the lists. `Run` does not change the session's own state.
    unsafe {
        ort::Error::result_from_status((ort::api().Run)(
            session.ptr().cast_mut(),
            options,
            &input_name.as_ptr(),
            &input,
            1,
            output_names.as_ptr(),
            outputs.len(),
            outputs.as_mut_ptr(),
        ))
    }
}

/// An `OrtValue` that is ours to release.
pub(super) struct OwnedValue(pub NonNull<OrtValue>);

// SAFETY: an OrtValue is reference-counted data without ties to a thread, and this is its only handle here.
unsafe impl Send for OwnedValue {}

impl Drop for OwnedValue {
    fn drop(&mut self) {
        // SAFETY: owned, released once.
        unsafe { (ort::api().ReleaseValue)(self.0.as_ptr()) }
    }
}

/// A tensor's shape, which is asked for after every run: not on the heap.
#[derive(Default)]
pub(super) struct Dims {
    sizes: [i64; Self::MAX_RANK],
    rank: usize,
}

impl Dims {
    /// More than any model has.
    const MAX_RANK: usize = 16;

    fn of_rank(&mut self, rank: usize) -> ort::Result<&mut [i64]> {
        self.rank = rank;
        self.sizes.get_mut(..rank).ok_or_else(|| {
            ort::Error::new(format!("an output has {rank} dimensions, more than {}", Self::MAX_RANK))
        })
    }
}

impl Deref for Dims {
    type Target = [i64];

    fn deref(&self) -> &[i64] {
        &self.sizes[..self.rank.min(Self::MAX_RANK)]
    }
}

impl OwnedValue {
    pub fn element_and_dims(&self) -> ort::Result<(Option<Element>, Dims)> {
        let mut info = ptr::null_mut();
        let mut element = OrtElement::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
        let mut count = 0;
        let mut dims = Dims::default();
        // SAFETY: the value is alive; `info` is released below on every path; `dims` has room for `count`.
        unsafe {
            ort::Error::result_from_status((ort::api().GetTensorTypeAndShape)(self.0.as_ptr(), &mut info))?;
            let outcome = (|| {
                ort::Error::result_from_status((ort::api().GetTensorElementType)(info, &mut element))?;
                ort::Error::result_from_status((ort::api().GetDimensionsCount)(info, &mut count))?;
                let dims = dims.of_rank(count)?;
                ort::Error::result_from_status((ort::api().GetDimensions)(info, dims.as_mut_ptr(), count))
            })();
            (ort::api().ReleaseTensorTypeAndShapeInfo)(info);
            outcome?;
        }
        let element = match element {
            OrtElement::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT => Some(Element::F32),
            OrtElement::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 => Some(Element::F16),
            _ => None,
        };
        Ok((element, dims))
    }

    /// The tensor's first `len` values; the caller knows from its type and shape that it has as many.
    pub fn values(&self, element: Element, len: usize) -> ort::Result<OutputRef<'_>> {
        let mut data = ptr::null_mut();
        // SAFETY: the value is alive and a tensor in host memory; its type and shape were checked by the caller, so
        // `len` elements are there for as long as the value lives, aligned as ONNX Runtime aligns its tensors (beyond
        // either type's need); any bits are a valid float.
        unsafe {
            ort::Error::result_from_status((ort::api().GetTensorMutableData)(self.0.as_ptr(), &mut data))?;
            if data.is_null() {
                return Err(ort::Error::new("the output has no data"));
            }
            Ok(match element {
                Element::F32 => OutputRef::F32(std::slice::from_raw_parts(data.cast(), len)),
                Element::F16 => OutputRef::F16(std::slice::from_raw_parts(data.cast(), len)),
            })
        }
    }
}

/// ONNX Runtime's description of where tensors are.
pub(super) struct MemoryPlace(NonNull<OrtMemoryInfo>);

// SAFETY: an immutable description.
unsafe impl Send for MemoryPlace {}
// SAFETY: as above.
unsafe impl Sync for MemoryPlace {}

impl MemoryPlace {
    /// Ordinary host memory.
    pub fn host() -> ort::Result<Self> {
        Self::named(c"Cpu", 0)
    }

    /// Memory of NVIDIA's GPU with this number.
    pub fn gpu(index: u32) -> ort::Result<Self> {
        Self::named(c"Cuda", index)
    }

    fn named(name: &CStr, index: u32) -> ort::Result<Self> {
        let index = c_int::try_from(index).unwrap_or(c_int::MAX);
        let mut info = ptr::null_mut();
        // SAFETY: the name is copied; `info` is an out parameter.
        unsafe {
            ort::Error::result_from_status((ort::api().CreateMemoryInfo)(
                name.as_ptr(),
                ort::sys::OrtAllocatorType::OrtDeviceAllocator,
                index,
                ort::sys::OrtMemType::OrtMemTypeDefault,
                &mut info,
            ))?;
        }
        NonNull::new(info).map(Self).ok_or_else(|| ort::Error::new("no memory description"))
    }

    /// A tensor over `bytes` of host memory, which must outlive it: [`crate::tensor::BatchTensor`] drops its binding before its
    /// memory.
    pub fn view(&self, bytes: &mut [u8], shape: &[i64], element: Element) -> ort::Result<OwnedValue> {
        // SAFETY: the memory outlives the value (above).
        unsafe { self.tensor(bytes.as_mut_ptr().cast(), bytes.len(), shape, element) }
    }

    /// A tensor over memory of the GPU, which must outlive it.
    pub fn device_tensor(
        &self,
        memory: &DeviceMemory,
        shape: &[i64],
        element: Element,
    ) -> ort::Result<OwnedValue> {
        let address = ptr::without_provenance_mut(memory.address() as usize);
        // SAFETY: the GPU's memory is nobody's to reach from here, and outlives the value (above).
        unsafe { self.tensor(address, memory.bytes(), shape, element) }
    }

    /// # Safety
    /// So many bytes are there, for as long as the value lives.
    unsafe fn tensor(
        &self,
        start: *mut c_void,
        bytes: usize,
        shape: &[i64],
        element: Element,
    ) -> ort::Result<OwnedValue> {
        let element = match element {
            Element::F32 => OrtElement::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
            Element::F16 => OrtElement::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        };
        let mut value = ptr::null_mut();
        // SAFETY: ONNX Runtime checks the length against the shape; the memory is the caller's promise.
        unsafe {
            ort::Error::result_from_status((ort::api().CreateTensorWithDataAsOrtValue)(
                self.0.as_ptr(),
                start,
                bytes,
                shape.as_ptr(),
                shape.len(),
                element,
                &mut value,
            ))?;
        }
        NonNull::new(value).map(OwnedValue).ok_or_else(|| ort::Error::new("no tensor"))
    }
}

impl Drop for MemoryPlace {
    fn drop(&mut self) {
        // SAFETY: owned, released once.
        unsafe { (ort::api().ReleaseMemoryInfo)(self.0.as_ptr()) }
    }
}
