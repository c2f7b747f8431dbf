//! A machine with one of NVIDIA's GPUs that is none: ONNX Runtime's and the driver's stand-ins, and libraries that do nothing in place of
//! those between them. Each test runs in a process of its own:
//!
//! ```ignore
//! fn a_test() {
//!     if on_gpu("a_test") { … }
//! }
//! ```
#![allow(dead_code)]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::common;
use crate::cuda_driver::Folder;

/// The variables of ONNX Runtime's stand-in.
const REAL: &str = "ONNXRUNTIME_STAND_IN_REAL";
const CONTROL: &str = "ONNXRUNTIME_STAND_IN_CONTROL";
const LOG: &str = "ONNXRUNTIME_STAND_IN_LOG";
/// Of the one of NVIDIA's management library.
const NVML: &str = "NVML_STAND_IN";

/// Of CUDA 13, which the provider is linked with or opens by itself.
const CUDA: [&str; 6] = [
    "libcublasLt.so.13",
    "libcublas.so.13",
    "libcurand.so.10",
    "libcudart.so.13",
    "libcufft.so.12",
    "libcudnn.so.9",
];
const TENSORRT: [&str; 3] = ["libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10"];

/// The libraries, in `folder`; ONNX Runtime's is returned.
fn install(folder: &Folder) -> PathBuf {
    folder.driver(&[]);
    for name in CUDA.iter().chain(&TENSORRT) {
        folder.library(name, &[]);
    }
    folder.library("libonnxruntime_providers_shared.so", &[]);
    let cuda: Vec<_> = CUDA[..4].iter().copied().chain(["libcuda.so.1"]).collect();
    folder.library("libonnxruntime_providers_cuda.so", &cuda);
    folder.library("libonnxruntime_providers_tensorrt.so", &TENSORRT);
    let library = folder.path().join("libonnxruntime.so.1.31.1");
    fs::copy(stand_in(), &library).unwrap();
    library
}

/// Cargo builds it with the tests, as an example.
fn stand_in() -> PathBuf {
    let test = env::current_exe().unwrap();
    let library = test.parent().unwrap().with_file_name("examples").join("libstand_in_onnxruntime.so");
    assert!(
        library.exists(),
        "{} is missing: run cargo build --example stand_in_onnxruntime",
        library.display()
    );
    library
}

/// Runs `test` again on such a machine; true in that process, where the test goes on.
pub fn on_gpu(test: &str) -> bool {
    on_gpu_with(test, &[], |_| ())
}

/// The same with environment variables, on a machine that `prepare` makes another one.
pub fn on_gpu_with(test: &str, more: &[(&str, &str)], prepare: impl FnOnce(&Folder)) -> bool {
    if common::is_child() {
        return true;
    }
    let folder = Folder::new();
    let library = install(&folder);
    prepare(&folder);
    let text = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let real = common::library().canonicalize().unwrap();
    fs::write(text("onnxruntime-control"), "").unwrap();
    fs::write(text("onnxruntime-log"), "").unwrap();
    let variables = [
        (REAL, real.to_str().unwrap().to_string()),
        (CONTROL, text("onnxruntime-control")),
        (LOG, text("onnxruntime-log")),
        (NVML, text("nvml-control")),
    ];
    let variables = variables.iter().map(|(name, value)| (*name, value.as_str()));
    let variables: Vec<_> = variables.chain(more.iter().copied()).collect();
    let output = folder.run(test, Some(&library), &variables);
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}\n{}", folder.log());
    print!("{text}");
    false
}

/// What NVIDIA's management library tells from now on, where the machine has it; in the child.
pub fn nvml_control(text: &str) {
    fs::write(env::var_os(NVML).unwrap(), text).unwrap();
}

/// How ONNX Runtime behaves from its next call on; in the child.
pub fn control(text: &str) {
    fs::write(env::var_os(CONTROL).unwrap(), text).unwrap();
}

/// ONNX Runtime's lines up to now; in the child.
pub fn log() -> Vec<String> {
    let text = fs::read_to_string(env::var_os(LOG).unwrap()).unwrap();
    text.lines().map(Into::into).collect()
}

/// What follows `prefix` in those of the lines that begin with it.
pub fn logged(prefix: &str) -> Vec<String> {
    log().iter().filter_map(|line| line.strip_prefix(prefix)).map(Into::into).collect()
}

/// Forgets the lines.
pub fn forget() {
    fs::write(env::var_os(LOG).unwrap(), "").unwrap();
}

/// A folder that is gone with the test.
pub fn scratch() -> PathBuf {
    Path::new(&env::var_os(LOG).unwrap()).with_file_name("scratch")
}
