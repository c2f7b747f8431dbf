//! What a failure of ONNX Runtime or the driver is. ONNX Runtime has an error code for none of this: its words have to do.

use std::fmt::{self, Display};
use std::path::Path;
use std::str::FromStr;

use crate::engine::gpu::driver::{Card, DriverError};
use crate::engine::{EngineError, EngineErrorKind};

/// Why a run did not go well.
#[derive(Debug)]
pub(super) enum Failure {
    Onnx(ort::Error),
    Driver(DriverError),
    /// More frames at once than TensorRT was told of when it compiled the model: it would do so anew, for a minute or more.
    Beyond {
        compiled: usize,
    },
}

impl From<ort::Error> for Failure {
    fn from(error: ort::Error) -> Self {
        Self::Onnx(error)
    }
}

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Self {
        Self::Driver(error)
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Onnx(error) => error.fmt(f),
            Self::Driver(error) => error.fmt(f),
            Self::Beyond { compiled } => {
                write!(
                    f,
                    "TensorRT compiled the model for batches of up to {compiled}, the max-batch of its first element"
                )
            }
        }
    }
}

impl Failure {
    /// [`EngineErrorKind::OutOfMemory`], [`EngineErrorKind::DeviceLost`], or [`EngineErrorKind::Run`] for all else.
    pub fn kind(&self) -> EngineErrorKind {
        match self {
            Self::Onnx(error) => kind(&error.to_string()),
            // Fewer frames go well.
            Self::Beyond { .. } => EngineErrorKind::OutOfMemory,
            Self::Driver(error) if error.is_out_of_memory() => EngineErrorKind::OutOfMemory,
            Self::Driver(error) if error.is_lost() => EngineErrorKind::DeviceLost,
            Self::Driver(_) => EngineErrorKind::Run,
        }
    }
}

pub(super) fn run_failed(file: &Path, error: impl Into<Failure>) -> EngineError {
    let error = error.into();
    let kind = error.kind();
    let what = match kind {
        EngineErrorKind::OutOfMemory => "ran out of memory",
        EngineErrorKind::DeviceLost => "lost the GPU",
        _ => "failed",
    };
    EngineError::new(kind, format!("running the model {} {what}", file.display()), error)
}

/// As [`Failure::kind`], by ONNX Runtime's words, and by how full the GPU is where these tell of a library that does not start.
pub(super) fn kind(message: &str) -> EngineErrorKind {
    let free = |gpu| Some(Card::open(gpu).ok()?.memory().ok()?.free);
    kind_with(message, free)
}

/// `free` tells the bytes that a GPU has.
fn kind_with(message: &str, free: impl Fn(u32) -> Option<u64>) -> EngineErrorKind {
    let has_no_room = |gpu| free(gpu).is_some_and(|bytes| bytes < ROOM_OF_LIBRARIES);
    if holds_any(message, &OUT_OF_MEMORY) || starts_not(message).is_some_and(has_no_room) {
        EngineErrorKind::OutOfMemory
    } else if cuda_code(message).is_some_and(is_lost) || holds_any(message, &DEVICE_LOST) {
        EngineErrorKind::DeviceLost
    } else {
        EngineErrorKind::Run
    }
}

fn holds_any(message: &str, words: &[&str]) -> bool {
    words.iter().any(|words| message.contains(words))
}

/// Of its arena (at its limit; the system refuses more), of the C++ library, and of CUDA and its libraries.
const OUT_OF_MEMORY: [&str; 9] = [
    "Failed to allocate memory",
    "is smaller than requested bytes",
    "bad_alloc",
    "bad allocation",
    "out of memory",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "cudaErrorMemoryAllocation",
    // CUDNN_STATUS_, CUBLAS_STATUS_, CUFFT_
    "ALLOC_FAILED",
    // CUDNN_STATUS_INTERNAL_ERROR_HOST_, _DEVICE_
    "ALLOCATION_FAILED",
];

/// What cuBLAS and cuDNN may want of a GPU when they start, and more.
const ROOM_OF_LIBRARIES: u64 = 512 << 20;

/// The GPU on which cuBLAS or cuDNN did not start. For a GPU that is full they have no words but those for one that does not work.
fn starts_not(message: &str) -> Option<u32> {
    let words = ["CUBLAS_STATUS_NOT_INITIALIZED", "CUDNN_STATUS_NOT_INITIALIZED"];
    let calls = ["cublasCreate(", "cublasLtCreate(", "cudnnCreate("];
    (holds_any(message, &words) && holds_any(message, &calls)).then(|| number_after(message, "GPU="))?
}

/// Of kernels that failed while they ran, which leaves the context of no use, whatever library had started them.
const DEVICE_LOST: [&str; 9] = [
    "cudaErrorIllegalAddress",
    "cudaErrorLaunchFailure",
    "cudaErrorECCUncorrectable",
    "an illegal memory access was encountered",
    "unspecified launch failure",
    "uncorrectable ECC error",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUFFT_EXEC_FAILED",
];

/// The 700 of `CUDA failure 700: an illegal memory access was encountered ; GPU=0`.
fn cuda_code(message: &str) -> Option<i32> {
    number_after(message, "CUDA failure ")
}

fn number_after<T: FromStr>(message: &str, words: &str) -> Option<T> {
    let (_, number) = message.split_once(words)?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// `cudaError_t` numbers these as the driver does.
fn is_lost(code: i32) -> bool {
    DriverError { call: "", code, text: String::new() }.is_lost()
}

#[cfg(test)]
mod tests {
    use super::*;
    use EngineErrorKind::{DeviceLost, OutOfMemory, Run};

    /// As ONNX Runtime 1.9 to 1.25 have written them.
    #[test]
    fn failures_are_told_apart_by_their_words() {
        for (message, expected) in [
            (
                "Non-zero status code returned while running Conv node. Name:'/model.0/conv/Conv' Status Message: \
                 /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(\
                 size_t, bool, onnxruntime::Stream*, bool, onnxruntime::WaitNotificationFn) Available memory of 0 is smaller \
                 than requested bytes of 135383040",
                OutOfMemory,
            ),
            (
                "Non-zero status code returned while running FusedMatMul node. Name:'MatMul_92_FusedMatMulAndScale' Status \
                 Message: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:331 void* \
                 onnxruntime::BFCArena::AllocateRawInternal(size_t, bool) Failed to allocate memory for requested buffer of \
                 size 8388608000",
                OutOfMemory,
            ),
            (
                "CUDA failure 2: out of memory ; GPU=0 ; hostname=host ; \
                 file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider.cc ; line=172 ; \
                 expr=cudaMalloc((void**)&p, size);",
                OutOfMemory,
            ),
            (
                "CUDNN failure 4000: CUDNN_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=host ; expr=cudnnCreate(&cudnn_handle_);",
                OutOfMemory,
            ),
            (
                "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=host ; expr=cublasCreate(&cublas_handle_);",
                OutOfMemory,
            ),
            (
                "CUDNN_FE failure 11: CUDNN_BACKEND_API_FAILED ; GPU=0 ; hostname=host ; expr=plan.execute(); \
                 CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
                OutOfMemory,
            ),
            ("CUFFT failure 2: CUFFT_ALLOC_FAILED ; GPU=0 ; hostname=host", OutOfMemory),
            ("std::bad_alloc", OutOfMemory),
            (
                "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=host ; \
                 file=/onnxruntime_src/onnxruntime/core/providers/cuda/gpu_data_transfer.cc ; line=63 ; \
                 expr=cudaMemcpyAsync(dst_data, src_data, bytes, cudaMemcpyHostToDevice);",
                DeviceLost,
            ),
            ("CUDA failure 719: unspecified launch failure ; GPU=1 ; hostname=host ; expr=x;", DeviceLost),
            ("CUDA failure 214: uncorrectable ECC error encountered ; GPU=0 ; hostname=host", DeviceLost),
            ("CUDA failure 999: unknown error ; GPU=0 ; hostname=host ; expr=x;", DeviceLost),
            ("CUDA error cudaErrorIllegalAddress:an illegal memory access was encountered", DeviceLost),
            (
                "Non-zero status code returned while running Conv node. Name:'/conv1/Conv' Status Message: CUDNN failure 5000: \
                 CUDNN_STATUS_EXECUTION_FAILED ; GPU=0 ; hostname=host ; expr=cudnnAddTensor(cudnn_handle, &alpha);",
                DeviceLost,
            ),
            ("CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED ; GPU=0 ; hostname=host", DeviceLost),
            // One call was wrong, the next need not be.
            ("CUDA failure 1: invalid argument ; GPU=0 ; hostname=host ; expr=cudaMemcpy();", Run),
            (
                "CUDA failure 98: invalid device function ; GPU=0 ; hostname=host ; expr=cudaGetLastError();",
                Run,
            ),
            ("CUDNN_FE failure 11: CUDNN_BACKEND_API_FAILED ; GPU=0 ; hostname=host", Run),
            ("CUDNN failure 3: CUDNN_STATUS_BAD_PARAM ; GPU=0 ; hostname=host", Run),
            ("CUDA failure : ", Run),
            ("Non-zero status code returned while running Reshape node.", Run),
        ] {
            assert_eq!(kind_with(message, |_| panic!("nobody asks for that")), expected, "{message}");
        }
    }

    #[test]
    fn a_library_that_does_not_start_on_a_full_gpu_is_out_of_memory() {
        let blas = "CUBLAS failure 1: CUBLAS_STATUS_NOT_INITIALIZED ; GPU=1 ; hostname=host ; \
                    file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider.cc ; line=185 ; \
                    expr=cublasCreate(&cublas_handle_);";
        let light = blas.replace("cublasCreate(&cublas", "cublasLtCreate(&cublas_lt");
        let dnn = "CUDNN failure 1001: CUDNN_STATUS_NOT_INITIALIZED ; GPU=1 ; hostname=host ; expr=cudnnCreate(&cudnn_handle_);";
        let free = |bytes| {
            move |gpu| {
                assert_eq!(gpu, 1);
                bytes
            }
        };
        for message in [blas, &light, dnn] {
            for (bytes, expected) in
                [(Some(0), OutOfMemory), (Some(511 << 20), OutOfMemory), (Some(512 << 20), Run), (None, Run)]
            {
                assert_eq!(kind_with(message, free(bytes)), expected, "{bytes:?}: {message}");
            }
        }
        for message in [
            blas.replace("cublasCreate(&cublas_handle_)", "cublasSgemm()"),
            blas.replace("NOT_INITIALIZED", "ARCH_MISMATCH"),
            blas.replace("GPU=1", "GPU=-1"),
            blas.replace("GPU=1", ""),
        ] {
            assert_eq!(kind_with(&message, free(Some(0))), Run, "{message}");
        }
    }

    #[test]
    fn the_driver_s_failures_are_told_apart_by_their_codes() {
        for (code, expected) in [(2, OutOfMemory), (700, DeviceLost), (719, DeviceLost), (1, Run), (0, Run)] {
            let error = DriverError { call: "cuMemAlloc_v2", code, text: "words".into() };
            let error = run_failed(Path::new("m.onnx"), error);
            assert_eq!(error.kind, expected);
            assert!(error.message.contains("m.onnx") && error.detail.contains("cuMemAlloc_v2"), "{error}");
        }
    }
}
