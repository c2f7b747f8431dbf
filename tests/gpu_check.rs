//! What is said where a device of NVIDIA's cannot be used. The driver, ONNX Runtime's providers and what they need are stand-ins, so each
//! test runs in a process of its own.

mod common;
#[path = "common/cuda_driver.rs"]
mod cuda_driver;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use cuda_driver::{Folder, balance, beside, beside_with, control, folder, log};
use gstyolodetect::engine::device::Device;
use gstyolodetect::engine::gpu::check::{Library, check, machine_has_gpu};
use gstyolodetect::engine::{EngineError, EngineErrorKind};

const ORT: &str = "ort/libonnxruntime.so.1";
const SHARED: &str = "ort/libonnxruntime_providers_shared.so";
const CUDA: &str = "ort/libonnxruntime_providers_cuda.so";
const TENSORRT: &str = "ort/libonnxruntime_providers_tensorrt.so";
/// As the providers of 1.31 need them, in another order than they can be loaded in.
const OF_CUDA: [&str; 4] = ["libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10", "libcudart.so.13"];
const OF_TENSORRT: [&str; 3] = ["libnvinfer.so.10", "libnvonnxparser.so.10", "libcudnn.so.9"];

/// ONNX Runtime with its providers, in a folder that the loader does not know.
fn providers(folder: &Folder) {
    folder.library(ORT, &[]);
    folder.library(SHARED, &[]);
    folder.library(CUDA, &[&OF_CUDA[..], &["libcuda.so.1"]].concat());
    folder.library(TENSORRT, &[&OF_TENSORRT[..], &["libcublas.so.13", "libcudart.so.13"]].concat());
}

/// What they need, all in `place`.
fn needed(folder: &Folder, place: &str) {
    let library = |name: &str, needed: &[&str]| folder.library(&format!("{place}{name}"), needed);
    library("libcublas.so.13", &["libcublasLt.so.13"]);
    library("libcublasLt.so.13", &[]);
    library("libcurand.so.10", &[]);
    library("libcudart.so.13", &[]);
    library("libcudnn.so.9", &[]);
    library("libnvinfer.so.10", &[]);
    library("libnvonnxparser.so.10", &["libnvinfer.so.10"]);
}

fn complete(folder: &Folder) {
    folder.driver(&[]);
    providers(folder);
    needed(folder, "ort/");
}

fn tried(device: &Device) -> Result<(), EngineError> {
    check(device, Library { file: &folder().join(ORT), built_in: true })
}

/// Why the device cannot be used, which has all `parts` in it.
fn refused(device: &Device, kind: EngineErrorKind, parts: &[&str]) -> String {
    let error = tried(device).unwrap_err();
    assert_eq!(error.kind, kind, "{error:?}");
    for part in parts {
        assert!(error.message.contains(part), "no {part:?} in: {}", error.message);
    }
    assert!(error.message.starts_with(&format!("device={device}")), "{}", error.message);
    error.message
}

fn is_loaded(name: &str) -> bool {
    fs::read_to_string("/proc/self/maps").unwrap().contains(name)
}

#[test]
fn a_library_without_the_provider_is_told_first() {
    if !beside("a_library_without_the_provider_is_told_first", |_| ()) {
        return;
    }
    for (device, provider) in [(Device::Cuda(0), "CUDA"), (Device::TensorRt(1), "TensorRT")] {
        let file = Path::new("/some/libonnxruntime.so.1");
        let error = check(&device, Library { file, built_in: false }).unwrap_err();
        assert_eq!(error.kind, EngineErrorKind::Library);
        let (needs, without) = (
            format!("device={device} needs an ONNX Runtime with {provider}"),
            format!("{} is one without", file.display()),
        );
        for part in [&needs, &without, "pipelines/setup.sh --cuda", "ORT_DYLIB_PATH", "device=cpu"] {
            assert!(error.message.contains(part), "no {part:?} in: {}", error.message);
        }
    }
    for device in [Device::Auto, Device::Cpu, Device::OpenVino("GPU".into())] {
        check(&device, Library { file: Path::new(""), built_in: false }).unwrap();
    }
    // Whatever the answer is on this machine.
    machine_has_gpu();
    assert!(!is_loaded("libcuda"));
}

#[test]
fn absent_files_of_the_provider_are_named() {
    if !beside("absent_files_of_the_provider_are_named", complete) {
        return;
    }
    for (file, device) in [
        (SHARED, Device::Cuda(0)),
        (CUDA, Device::Cuda(0)),
        (CUDA, Device::TensorRt(0)),
        (TENSORRT, Device::TensorRt(0)),
    ] {
        let (there, aside) = (folder().join(file), folder().join("aside"));
        fs::rename(&there, &aside).unwrap();
        let name = there.file_name().unwrap().to_str().unwrap();
        let message = refused(&device, EngineErrorKind::Library, &[name, "setup.sh --cuda", "device=cpu"]);
        assert!(message.contains(&format!("has no {name} beside it")), "{message}");
        fs::rename(&aside, &there).unwrap();
    }
    assert!(!log().contains(&"load".to_string()), "the driver is not opened before the files are there");
    tried(&Device::Cuda(0)).unwrap();
    tried(&Device::TensorRt(0)).unwrap();
}

#[test]
fn damaged_files_of_the_provider_are_told_and_not_loaded() {
    if !beside("damaged_files_of_the_provider_are_told_and_not_loaded", complete) {
        return;
    }
    for file in [SHARED, CUDA] {
        let file = folder().join(file);
        let name = file.file_name().unwrap().to_str().unwrap();
        let whole = fs::read(&file).unwrap();
        let half = format!("is cut off: it has {} of", whole.len() / 2);
        let mut foreign = whole.clone();
        foreign[18] ^= 1;
        for (content, what) in [
            (&whole[..whole.len() / 2], half.as_str()),
            (&whole[..whole.len() - 1], "is cut off"),
            (&[], "is no library"),
            (b"version https://git-lfs.github.com/spec/v1\n", "is no library"),
            (&foreign, "is made for another kind of processor"),
        ] {
            fs::write(&file, content).unwrap();
            refused(&Device::Cuda(0), EngineErrorKind::Library, &[name, what, "setup.sh --cuda"]);
        }
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        refused(&Device::Cuda(0), EngineErrorKind::Library, &[name, "is no library"]);
        fs::remove_dir(&file).unwrap();
        fs::write(&file, whole).unwrap();
    }
    tried(&Device::Cuda(0)).unwrap();
}

#[test]
fn a_machine_without_a_driver_is_told() {
    if !beside("a_machine_without_a_driver_is_told", |folder| {
        complete(folder);
        fs::remove_file(folder.path().join(cuda_driver::DRIVER)).unwrap();
    }) {
        return;
    }
    refused(&Device::Cuda(0), EngineErrorKind::Library, &["libcuda.so.1 cannot be loaded", "device=cpu"]);
    let error = tried(&Device::Cuda(0)).unwrap_err();
    assert!(error.detail.contains("libcuda.so.1: cannot open shared object file"), "{}", error.detail);
    assert!(!is_loaded("libcublas"), "nothing is loaded for a GPU that nobody can use");
}

#[test]
fn a_file_that_is_no_driver_is_told() {
    if !beside("a_file_that_is_no_driver_is_told", |folder| {
        complete(folder);
        folder.library(cuda_driver::DRIVER, &[]);
    }) {
        return;
    }
    refused(&Device::Cuda(0), EngineErrorKind::Library, &["libcuda.so.1 here is none, or too old", "580"]);
}

#[test]
fn a_driver_that_does_not_start_is_told() {
    if !beside("a_driver_that_does_not_start_is_told", complete) {
        return;
    }
    for (code, part) in [
        (3, "nvidia-smi"),
        (34, "stubs"),
        (802, "Fabric Manager"),
        (803, "different versions"),
        (804, "compatibility package"),
        (999, "nvidia-uvm"),
    ] {
        control(&format!("cuInit={code}"));
        refused(&Device::Cuda(0), EngineErrorKind::Library, &[part, "; or use device=cpu"]);
        let detail = tried(&Device::Cuda(0)).unwrap_err().detail;
        assert!(detail.contains("cuInit") && detail.contains(&format!("({code})")), "{detail}");
    }
    control("cuDeviceGetAttribute=999");
    refused(&Device::Cuda(0), EngineErrorKind::Library, &["does not start"]);
    control("");
    tried(&Device::Cuda(0)).unwrap();
}

#[test]
fn gpus_that_are_not_there_are_told() {
    if !beside_with("gpus_that_are_not_there_are_told", &[("CUDA_VISIBLE_DEVICES", "5,6")], complete) {
        return;
    }
    control("count=0");
    let hidden = "CUDA_VISIBLE_DEVICES=5,6";
    refused(&Device::Cuda(0), EngineErrorKind::Settings, &["no GPU", hidden]);
    control("count=2");
    refused(&Device::Cuda(2), EngineErrorKind::Settings, &["CUDA sees 2 GPUs", "device=cuda:1", hidden]);
    refused(&Device::TensorRt(63), EngineErrorKind::Settings, &["device=tensorrt:1", hidden]);
    tried(&Device::Cuda(1)).unwrap();
    tried(&Device::TensorRt(1)).unwrap();
    // Also when the files are known.
    control("count=1");
    refused(&Device::Cuda(1), EngineErrorKind::Settings, &["CUDA sees 1 GPU"]);
    assert!(balance().is_empty(), "nobody needs a context for that");
}

#[test]
fn a_driver_older_than_the_provider_is_told() {
    if !beside("a_driver_older_than_the_provider_is_told", complete) {
        return;
    }
    control("version=12080");
    let parts = ["CUDA 12.8 at most", "built for CUDA 13", "580", "setup.sh --cuda"];
    refused(&Device::Cuda(0), EngineErrorKind::Library, &parts);
    assert!(!is_loaded("libcublas"));
    for version in [13000, 13020, 14000] {
        control(&format!("version={version}"));
        tried(&Device::Cuda(0)).unwrap();
    }
}

#[test]
fn a_gpu_that_the_provider_has_no_kernels_for_is_told() {
    if !beside("a_gpu_that_the_provider_has_no_kernels_for_is_told", |folder| {
        complete(folder);
        let kernels = folder.kernels(&[75, 80, 90, 120]);
        folder.library_with(CUDA, &[&OF_CUDA[..], &["libcuda.so.1"]].concat(), &[kernels.to_str().unwrap()]);
    }) {
        return;
    }
    for (major, minor) in [(7, 0), (10, 0)] {
        control(&format!("count=2\nmajor={major}\nminor@0={minor}\nmajor@1=8\nminor@1=9"));
        let capability = format!("compute capability {major}.{minor}");
        let parts = ["Stand-in 0", &capability, "has kernels for 7.5, 8.0, 9.0 and 12.0:", "--cuda=12"];
        refused(&Device::Cuda(0), EngineErrorKind::Library, &parts);
        assert!(!is_loaded("libcublas"));
    }
    control("major=5\nminor=2");
    let message = refused(&Device::Cuda(0), EngineErrorKind::Library, &["compute capability 5.2"]);
    assert!(!message.contains("--cuda=12"), "{message}");
    control("count=2\nmajor=7\nminor=0\nmajor@1=8\nminor@1=9");
    tried(&Device::Cuda(1)).unwrap();
}

#[test]
fn all_missing_libraries_are_in_one_message() {
    if !beside("all_missing_libraries_are_in_one_message", |folder| {
        folder.driver(&[]);
        providers(folder);
        folder.library("ort/libcudart.so.13", &[]);
        // Of these, the loader finds one, which needs what is not there.
        folder.library("libcublas.so.13", &["libcublasLt.so.13"]);
    }) {
        return;
    }
    let message = refused(
        &Device::Cuda(0),
        EngineErrorKind::Library,
        &[
            "libcublasLt.so.13, libcudnn.so.9, libcurand.so.10",
            "libcublas.so.13 (libcublasLt.so.13: cannot open",
        ],
    );
    assert!(!message.contains("libcudart") && !message.contains("tensorrt"), "{message}");
    let message =
        refused(&Device::TensorRt(0), EngineErrorKind::Library, &["tensorrt-cu13-libs", "libcudnn.so.9"]);
    assert!(message.contains("libnvinfer.so.10, libnvonnxparser.so.10:"), "{message}");
}

/// Once what was missing is there, the same process uses it.
#[test]
fn libraries_may_come_later() {
    if !beside("libraries_may_come_later", |folder| {
        complete(folder);
        for name in OF_CUDA {
            let file = folder.path().join("ort").join(name);
            fs::rename(file, folder.path().join(format!("aside-{name}"))).unwrap();
        }
    }) {
        return;
    }
    let bring = |name: &str| {
        fs::rename(folder().join(format!("aside-{name}")), folder().join("ort").join(name)).unwrap();
    };
    for (place, name) in OF_CUDA.iter().enumerate() {
        let message = refused(&Device::Cuda(0), EngineErrorKind::Library, &OF_CUDA[place..]);
        assert!(!message.contains("libcudnn"), "{message}");
        bring(name);
    }
    tried(&Device::Cuda(0)).unwrap();
    // They stay loaded; nobody looks for them again.
    assert!(OF_CUDA.iter().all(|name| is_loaded(name)));
    for name in OF_CUDA {
        fs::remove_file(folder().join("ort").join(name)).unwrap();
    }
    fs::remove_file(folder().join(CUDA)).unwrap();
    tried(&Device::Cuda(0)).unwrap();
}

#[test]
fn damaged_libraries_are_told_and_not_loaded() {
    if !beside("damaged_libraries_are_told_and_not_loaded", |folder| {
        complete(folder);
        folder.library("libcurand.so.10", &[]);
        fs::remove_file(folder.path().join("ort/libcurand.so.10")).unwrap();
    }) {
        return;
    }
    // Beside ONNX Runtime, and where the loader looks.
    let places = ["ort/libcublas.so.13", "libcurand.so.10"].map(|name| folder().join(name));
    let cut_off = places.map(|file| {
        let whole = fs::read(&file).unwrap();
        fs::write(&file, &whole[..whole.len() - 1]).unwrap();
        (file, whole)
    });
    let parts = ["libcublas.so.13 (is cut off", "libcurand.so.10 (is cut off"];
    refused(&Device::Cuda(0), EngineErrorKind::Library, &parts);
    assert!(!is_loaded("libcublas.so") && !is_loaded("libcurand"));
    for (file, whole) in cut_off {
        fs::write(&file, whole).unwrap();
    }
    tried(&Device::Cuda(0)).unwrap();
}

/// NVIDIA's have the loader look beside themselves.
#[test]
fn a_damaged_library_is_not_loaded_by_way_of_others() {
    if !beside("a_damaged_library_is_not_loaded_by_way_of_others", |folder| {
        complete(folder);
        let beside_itself = ["-Wl,-rpath,$ORIGIN"];
        folder.library_with("ort/libcublas.so.13", &["libcublasLt.so.13"], &beside_itself);
        folder.library_with("ort/libcudart.so.13", &["libcublas.so.13"], &beside_itself);
        fs::remove_file(folder.path().join("ort/libcurand.so.10")).unwrap();
    }) {
        return;
    }
    let file = folder().join("ort/libcublasLt.so.13");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    let message = refused(&Device::Cuda(0), EngineErrorKind::Library, &["libcublasLt.so.13 (is cut off"]);
    assert!(message.contains("libcurand.so.10") && !message.contains("libcublas.so.13"), "{message}");
    assert!(!is_loaded("libcublas") && !is_loaded("libcudart") && is_loaded("libcudnn"));
    fs::write(&file, whole).unwrap();
    assert!(!refused(&Device::Cuda(0), EngineErrorKind::Library, &["libcurand.so.10"]).contains("libcublas"));
    assert!(is_loaded("libcublas.so.13") && is_loaded("libcudart"));
}

#[test]
fn libraries_are_found_beside_onnx_runtime() {
    if !beside("libraries_are_found_beside_onnx_runtime", complete) {
        return;
    }
    tried(&Device::TensorRt(0)).unwrap();
    // By their names alone, as ONNX Runtime will have the loader look for what its providers need.
    for name in [CUDA, TENSORRT] {
        // SAFETY: it is an empty library.
        let loaded = unsafe { libloading::Library::new(folder().join(name)) };
        loaded.unwrap();
    }
}

#[test]
fn libraries_are_found_where_the_loader_looks() {
    if !beside("libraries_are_found_where_the_loader_looks", |folder| {
        folder.driver(&[]);
        providers(folder);
        needed(folder, "");
    }) {
        return;
    }
    tried(&Device::Cuda(0)).unwrap();
    assert!(is_loaded("libcudnn.so.9") && !is_loaded("libnvinfer"));
    assert_eq!(log().iter().filter(|line| *line == "load").count(), 1);
}

/// One that the loader finds needs, by way of another, one that it does not find: that is loaded by then.
#[test]
fn libraries_may_lie_in_several_places() {
    if !beside("libraries_may_lie_in_several_places", |folder| {
        complete(folder);
        fs::remove_file(folder.path().join("ort/libcublas.so.13")).unwrap();
        folder.library("libcublas.so.13", &["libother.so.1"]);
        folder.library("libother.so.1", &["libcurand.so.10"]);
    }) {
        return;
    }
    tried(&Device::Cuda(0)).unwrap();
    assert!(is_loaded("libother.so.1"));
}

/// A library that the process has is used, wherever others of its name lie.
#[test]
fn libraries_that_an_application_has_are_used() {
    if !beside("libraries_that_an_application_has_are_used", |folder| {
        complete(folder);
        folder.library("libcudart.so.13", &[]);
    }) {
        return;
    }
    // SAFETY: it is an empty library.
    let _own = unsafe { libloading::Library::new("libcudart.so.13") }.unwrap();
    tried(&Device::Cuda(0)).unwrap();
    assert!(is_loaded("ort/libcublas.so.13") && !is_loaded("ort/libcudart.so.13"));
}

/// ONNX Runtime looks beside the name that it was loaded by, be that a link's, or one for the loader alone.
#[test]
fn the_providers_are_looked_for_where_onnx_runtime_does() {
    if !beside("the_providers_are_looked_for_where_onnx_runtime_does", |folder| {
        folder.driver(&[]);
        providers(folder);
        needed(folder, "");
        // One that exports what ONNX Runtime does, where the loader finds it.
        let source = folder.path().join("ort.c");
        fs::write(&source, "void OrtGetApiBase(void) {}").unwrap();
        let library = folder.path().join("libonnxruntime.so.1");
        let mut compiler = Command::new("cc");
        let built = compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
        assert!(built.expect("cc").success());
        fs::create_dir(folder.path().join("links")).unwrap();
        symlink(&library, folder.path().join("links/own.so")).unwrap();
        symlink(folder.path().join(ORT), folder.path().join("links/ort.so")).unwrap();
    }) {
        return;
    }
    let by_name = |file: &Path| check(&Device::Cuda(0), Library { file, built_in: true });
    let absent = |file: &Path| {
        let message = by_name(file).unwrap_err().message;
        assert!(message.contains("has no libonnxruntime_providers_shared.so beside it"), "{message}");
    };
    absent(&folder().join("links/ort.so"));
    let (name, link) = (Path::new("libonnxruntime.so.1"), folder().join("links/own.so"));
    // SAFETY: it does nothing.
    let _loaded = unsafe { libloading::Library::new(name) }.unwrap();
    absent(name);
    absent(&link);
    for file in [SHARED, CUDA] {
        fs::copy(folder().join(file), folder().join(Path::new(file).file_name().unwrap())).unwrap();
    }
    by_name(name).unwrap();
    // It is loaded by the other name already.
    by_name(&link).unwrap();
    absent(&folder().join("links/ort.so"));
    for file in [SHARED, CUDA] {
        let link = folder().join("links").join(Path::new(file).file_name().unwrap());
        symlink(folder().join(file), link).unwrap();
    }
    by_name(&folder().join("links/ort.so")).unwrap();
}
