//! Whether a device of NVIDIA's can be used, looked at before ONNX Runtime loads anything for it: its own errors name a file at best, and it
//! may crash.

use std::env;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::driver::{self, Description, DriverError};
use super::kernels::Kernels;
use super::libraries::{self, Missing};
use super::provider::{self, Flaw};
use crate::engine::device::Device;
use crate::engine::{EngineError, EngineErrorKind};

const FETCH: &str = "fetch one with `pipelines/setup.sh --cuda`, or unpack the PyPI package onnxruntime-gpu, and name its \
                     libonnxruntime.so.* in the property onnxruntime-library or the environment variable ORT_DYLIB_PATH";
const OR_CPU: &str = "or use device=cpu";

/// What ONNX Runtime's loaded library is.
#[derive(Clone, Copy, Debug)]
pub struct Library<'a> {
    /// As it was named; maybe only for the loader.
    pub file: &'a Path,
    /// It was built with the provider for the device.
    pub built_in: bool,
}

/// Whether `device`, a GPU, can be used. Loads what it needs, so that ONNX Runtime finds it, for as long as the process lives.
///
/// What was found of files is not looked at again, so that a repeated check only asks the driver.
///
/// # Errors
/// [`EngineErrorKind::Library`] for files and the driver, [`EngineErrorKind::Settings`] for a GPU that is not there: what is missing,
/// and how to get it.
pub fn check(device: &Device, library: Library<'_>) -> Result<(), EngineError> {
    let Some(number) = device.gpu() else { return Ok(()) };
    let visible = env::var(VISIBLE).ok();
    let says = Says {
        device,
        library: library.file,
        visible: visible.as_deref(),
        is_wsl: is_wsl(),
        has_gpu: machine_has_gpu(),
    };
    let files = files(&says, &library)?;
    let no_start = |error| says.no_start(&error, files.major);
    let version = driver::driver_version().map_err(no_start)?;
    let count = driver::device_count().map_err(no_start)?;
    says.is_there(number, count)?;
    says.driver_is_new_enough(version, files.major)?;
    let gpu = driver::describe(number).map_err(no_start)?;
    if let Some(folder) = &files.folder {
        let kernels = Kernels::find(&folder.join(provider::CUDA), gpu.compute_capability);
        says.has_kernels(&gpu, kernels.as_ref(), files.major)?;
    }
    let folder = files.folder.as_deref().unwrap_or(Path::new("/"));
    libraries::keep(&files.needed, folder).map_err(|missing| says.lacks(&missing, files.major))?;
    GOOD.lock()[slot(device)] = Some(files);
    Ok(())
}

/// Whether this machine has a GPU of NVIDIA's, as far as can be seen without the driver's library.
pub fn machine_has_gpu() -> bool {
    has_gpu(Path::new("/"))
}

fn has_gpu(root: &Path) -> bool {
    // The driver's kernel part, what containers are given of it, and the one of Windows.
    ["proc/driver/nvidia/version", "dev/nvidiactl", "dev/dxg"].iter().any(|file| root.join(file).exists())
}

/// Whether the machine is a guest of Windows, which has the driver.
fn is_wsl() -> bool {
    Path::new("/dev/dxg").exists()
}

/// The variable by which CUDA is told which GPUs there are.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// What the provider's files are.
#[derive(Clone, Debug)]
struct Files {
    /// Where they lie; `None` where only ONNX Runtime knows.
    folder: Option<PathBuf>,
    needed: Vec<String>,
    /// Of CUDA, that they were built for; `None` where it cannot be told.
    major: Option<u32>,
}

/// With which CUDA was good, and TensorRT: one process has one ONNX Runtime.
static GOOD: Mutex<[Option<Files>; 2]> = Mutex::new([None, None]);

fn slot(device: &Device) -> usize {
    usize::from(matches!(device, Device::TensorRt(_)))
}

fn files(says: &Says<'_>, library: &Library<'_>) -> Result<Files, EngineError> {
    if !library.built_in {
        return Err(says.no_provider("is one without", ""));
    }
    let folder = folder(library.file);
    let good = GOOD.lock()[slot(says.device)].clone();
    if let Some(good) = good.filter(|good| good.folder == folder) {
        return Ok(good);
    }
    let mut needed = Vec::new();
    let mut major = None;
    if let Some(folder) = &folder {
        let names = [provider::SHARED, provider::CUDA, provider::TENSORRT];
        let names = if slot(says.device) == 0 { &names[..2] } else { &names };
        if let Some(absent) = names.iter().find(|name| !folder.join(name).exists()) {
            return Err(says.no_provider(&format!("has no {absent} beside it"), ""));
        }
        for name in names {
            let of_one = provider::needed(&folder.join(name)).map_err(|flaw| says.damaged(name, &flaw))?;
            major = major.or_else(|| provider::cuda_major(&of_one));
            needed.extend(of_one);
        }
    }
    needed.extend(provider::opened_later(major).map(Into::into));
    // The driver's is looked at by itself.
    needed.retain(|name| name != driver::LIBRARY);
    needed.sort();
    needed.dedup();
    Ok(Files { folder, needed, major })
}

/// Where ONNX Runtime looks for its providers: beside itself, by the name that it was loaded by; links are not followed.
pub(in crate::engine) fn folder(library: &Path) -> Option<PathBuf> {
    let is_for_loader = library.components().count() == 1 && library.is_relative();
    let file = libraries::loaded_file(library)
        .or_else(|| if is_for_loader { None } else { Some(library.to_path_buf()) })?;
    Some(std::path::absolute(file).ok()?.parent()?.to_path_buf())
}

/// The messages. Pure.
struct Says<'a> {
    device: &'a Device,
    library: &'a Path,
    /// The variable's value, where it is set.
    visible: Option<&'a str>,
    is_wsl: bool,
    /// As far as can be seen without the driver's library.
    has_gpu: bool,
}

impl Says<'_> {
    fn provider(&self) -> &'static str {
        if slot(self.device) == 0 { "CUDA" } else { "TensorRT" }
    }

    fn no_provider(&self, what: &str, detail: &str) -> EngineError {
        let (device, library, provider) = (self.device, self.library.display(), self.provider());
        // Or it would be fetched in vain.
        let nor_driver =
            if self.has_gpu { "" } else { ", and nothing here shows a GPU of NVIDIA's or its driver" };
        let message = format!(
            "device={device} needs an ONNX Runtime with {provider}, and {library} {what}{nor_driver}: {FETCH}; {OR_CPU}"
        );
        EngineError::new(EngineErrorKind::Library, message, detail)
    }

    fn damaged(&self, name: &str, flaw: &Flaw) -> EngineError {
        let (device, library) = (self.device, self.library.display());
        let message = format!(
            "device={device} needs the file {name} beside {library}, which {flaw}: fetch it anew with \
             `pipelines/setup.sh --cuda`, {OR_CPU}"
        );
        EngineError::new(EngineErrorKind::Library, message, "")
    }

    /// The driver's library cannot be opened, or does not start.
    fn no_start(&self, error: &DriverError, major: Option<u32>) -> EngineError {
        let device = self.device;
        let driver = driver_for(major);
        let (kind, what) = match error.code {
            _ if error.is_absent() && self.is_wsl => (
                EngineErrorKind::Library,
                format!(
                    "needs NVIDIA's driver, whose library {} cannot be loaded: install {driver} in Windows, and restart \
                     the guest with `wsl --shutdown`",
                    driver::LIBRARY
                ),
            ),
            _ if error.is_absent() => (
                EngineErrorKind::Library,
                format!(
                    "needs NVIDIA's driver, whose library {} cannot be loaded: install {driver}, or give the container \
                     the GPU (docker run --gpus all)",
                    driver::LIBRARY
                ),
            ),
            0 => (
                EngineErrorKind::Library,
                format!(
                    "needs NVIDIA's driver, and {} here is none, or too old: install {driver}",
                    driver::LIBRARY
                ),
            ),
            34 => (
                EngineErrorKind::Library,
                format!(
                    "needs NVIDIA's driver, and {} here is the one that CUDA's toolkit has for linking: take its folder \
                     stubs out of LD_LIBRARY_PATH",
                    driver::LIBRARY
                ),
            ),
            100 => return self.no_gpu(&error.to_string()),
            802 => (
                EngineErrorKind::Library,
                "finds the GPUs not ready: NVIDIA's Fabric Manager must run on this machine \
                 (`systemctl status nvidia-fabricmanager`)"
                    .into(),
            ),
            803 => (
                EngineErrorKind::Library,
                format!(
                    "finds that {} and the kernel's part of NVIDIA's driver are of different versions: restart the machine, \
                     or the container with the host's driver",
                    driver::LIBRARY
                ),
            ),
            804 => (
                EngineErrorKind::Library,
                format!(
                    "finds a {} of CUDA's compatibility package that does not support this GPU: take the package \
                     (cuda-compat) out of LD_LIBRARY_PATH, or install {driver}",
                    driver::LIBRARY
                ),
            ),
            999 => (
                EngineErrorKind::Library,
                "finds that NVIDIA's driver does not start: see whether `nvidia-smi` works and /dev/nvidia-uvm is there \
                 (`nvidia-modprobe -u` makes it), or restart the machine"
                    .into(),
            ),
            _ => (
                EngineErrorKind::Library,
                "finds that NVIDIA's driver does not work: see whether `nvidia-smi` does".into(),
            ),
        };
        EngineError::new(kind, format!("device={device} {what}; {OR_CPU}"), error)
    }

    fn no_gpu(&self, detail: &str) -> EngineError {
        let (device, hidden) = (self.device, self.hidden());
        let message = format!(
            "device={device} finds no GPU of NVIDIA's that CUDA can use{hidden}: see whether `nvidia-smi` lists one; {OR_CPU}"
        );
        EngineError::new(EngineErrorKind::Settings, message, detail)
    }

    fn hidden(&self) -> String {
        self.visible.map(|list| format!(" ({VISIBLE}={list} says which it sees)")).unwrap_or_default()
    }

    fn is_there(&self, number: u32, count: u32) -> Result<(), EngineError> {
        if count == 0 {
            return Err(self.no_gpu(""));
        }
        if number < count {
            return Ok(());
        }
        let (device, hidden, provider) = (self.device, self.hidden(), self.provider().to_lowercase());
        let there = match count {
            1 => format!("1 GPU, device={provider}:0"),
            count => format!("{count} GPUs, device={provider}:0 to device={provider}:{}", count - 1),
        };
        let message = format!("device={device} is not there: CUDA sees {there}{hidden}");
        Err(EngineError::new(EngineErrorKind::Settings, message, ""))
    }

    /// A driver runs what was built for its own CUDA or an older one, whatever the second number.
    fn driver_is_new_enough(&self, version: u32, major: Option<u32>) -> Result<(), EngineError> {
        let Some(needed) = major.filter(|major| version / 1000 < *major) else { return Ok(()) };
        let (device, library, driver) = (self.device, self.library.display(), driver_for(major));
        let (has_major, has_minor) = (version / 1000, version % 1000 / 10);
        let other = if has_major == 12 { "1.24 is the last for CUDA 12; " } else { "" };
        let message = format!(
            "device={device} needs a newer driver: the one here runs CUDA {has_major}.{has_minor} at most, and {library} is built for CUDA \
             {needed}: install {driver}, or take an onnxruntime-gpu that fits the driver ({other}`pipelines/setup.sh --cuda` \
             chooses it); {OR_CPU}"
        );
        Err(EngineError::new(EngineErrorKind::Library, message, ""))
    }

    /// What has none of its own that can be found is not judged.
    fn has_kernels(
        &self,
        gpu: &Description,
        kernels: Option<&Kernels>,
        major: Option<u32>,
    ) -> Result<(), EngineError> {
        let capability @ (has_major, has_minor) = gpu.compute_capability;
        let Some(kernels) = kernels.filter(|kernels| !kernels.run_on(capability)) else { return Ok(()) };
        let (device, library, name) = (self.device, self.library.display(), &gpu.name);
        // What is pinned for CUDA 12 runs on all of these.
        let other = if major.is_some_and(|major| major > 12) && capability >= (6, 0) {
            "take an onnxruntime-gpu for CUDA 12, whose kernels run on more (1.24 is the last one; `pipelines/setup.sh --cuda=12`), "
        } else {
            ""
        };
        let message = format!(
            "device={device}, {name}, has compute capability {has_major}.{has_minor}, and {} beside {library} has kernels for {kernels}: \
             {other}{OR_CPU}",
            provider::CUDA
        );
        Err(EngineError::new(EngineErrorKind::Library, message, ""))
    }

    fn lacks(&self, missing: &[Missing], major: Option<u32>) -> EngineError {
        let (device, library) = (self.device, self.library.display());
        let names: Vec<_> = missing
            .iter()
            .map(|Missing { name, why }| {
                why.as_ref().map_or_else(|| name.clone(), |why| format!("{name} ({why})"))
            })
            .collect();
        let of_tensorrt = |library: &Missing| library.name.starts_with("libnv");
        let cu = major.map_or_else(|| "cu12".to_string(), |major| format!("cu{major}"));
        let tensorrt = if missing.iter().any(of_tensorrt) {
            format!("; TensorRT's are in the PyPI package tensorrt-{cu}-libs")
        } else {
            String::new()
        };
        let message = format!(
            "device={device} needs libraries of NVIDIA's that cannot be loaded: {}: fetch them with `pipelines/setup.sh \
             --cuda`, or put them beside {library} or where the loader looks (LD_LIBRARY_PATH){tensorrt}; {OR_CPU}",
            names.join(", ")
        );
        EngineError::new(EngineErrorKind::Library, message, "")
    }
}

/// The least driver for Linux, by NVIDIA's release notes of each CUDA.
fn driver_for(major: Option<u32>) -> String {
    match major {
        Some(11) => "NVIDIA's driver 450.80 or newer".into(),
        Some(12) => "NVIDIA's driver 525.60 or newer".into(),
        Some(13) => "NVIDIA's driver 580.65 or newer".into(),
        Some(major) => format!("a driver of NVIDIA's for CUDA {major}"),
        None => "NVIDIA's driver".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIBRARY: &str = "/opt/ort/libonnxruntime.so.1";

    fn says(device: &Device) -> Says<'_> {
        Says { device, library: Path::new(LIBRARY), visible: None, is_wsl: false, has_gpu: true }
    }

    #[test]
    fn traces_of_a_driver_are_seen() {
        let root = tempfile::tempdir().unwrap();
        assert!(!has_gpu(root.path()));
        for file in ["proc/driver/nvidia/version", "dev/nvidiactl", "dev/dxg"] {
            let file = root.path().join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, "").unwrap();
            assert!(has_gpu(root.path()));
            std::fs::remove_file(&file).unwrap();
            assert!(!has_gpu(root.path()));
        }
    }

    #[test]
    fn why_a_driver_does_not_start_is_told() {
        let device = Device::Cuda(1);
        let error = |call: &'static str, code| DriverError { call, code, text: "words".into() };
        let absent = error(driver::LIBRARY, 0);
        for (error, major, is_wsl, parts) in [
            (absent.clone(), Some(13), false, &["libcuda.so.1", "580.65", "--gpus all"][..]),
            (absent.clone(), Some(12), false, &["525.60"]),
            (absent.clone(), Some(14), false, &["CUDA 14"]),
            (absent, None, true, &["Windows", "wsl --shutdown"]),
            (error("cuMemAlloc_v2", 0), Some(13), false, &["too old", "580.65"]),
            (error("cuInit", 34), Some(13), false, &["stubs"]),
            (error("cuInit", 802), Some(13), false, &["Fabric Manager"]),
            (error("cuInit", 803), Some(13), false, &["different versions", "restart"]),
            (error("cuInit", 804), Some(13), false, &["cuda-compat", "580.65"]),
            (error("cuInit", 999), Some(13), false, &["nvidia-modprobe"]),
            (error("cuInit", 3), Some(13), false, &["nvidia-smi"]),
        ] {
            let told = Says { is_wsl, ..says(&device) }.no_start(&error, major);
            assert_eq!(told.kind, EngineErrorKind::Library);
            assert!(told.message.starts_with("device=cuda:1 "), "{}", told.message);
            assert!(told.message.ends_with("; or use device=cpu"), "{}", told.message);
            assert!(parts.iter().all(|part| told.message.contains(part)), "{}", told.message);
            assert!(told.detail.contains("words"));
        }
        assert_eq!(says(&device).no_start(&error("cuInit", 100), None).kind, EngineErrorKind::Settings);
    }

    #[test]
    fn numbers_beyond_the_gpus_are_refused() {
        let text = |device: &Device, count, visible| {
            let told = Says { visible, ..says(device) }.is_there(device.gpu().unwrap(), count);
            told.map_err(|error| {
                assert_eq!(error.kind, EngineErrorKind::Settings);
                error.message
            })
        };
        assert_eq!(text(&Device::Cuda(0), 1, None), Ok(()));
        assert_eq!(text(&Device::TensorRt(3), 4, Some("0,1,2,3")), Ok(()));
        assert_eq!(
            text(&Device::Cuda(1), 1, None),
            Err("device=cuda:1 is not there: CUDA sees 1 GPU, device=cuda:0".into())
        );
        assert_eq!(
            text(&Device::TensorRt(2), 2, Some("3,4")),
            Err("device=tensorrt:2 is not there: CUDA sees 2 GPUs, device=tensorrt:0 to device=tensorrt:1 \
                 (CUDA_VISIBLE_DEVICES=3,4 says which it sees)"
                .into())
        );
        let none = text(&Device::Cuda(0), 0, Some("")).unwrap_err();
        assert!(none.contains("finds no GPU") && none.contains("(CUDA_VISIBLE_DEVICES= says"), "{none}");
        let none = text(&Device::Cuda(0), 0, None).unwrap_err();
        assert!(!none.contains("CUDA_VISIBLE_DEVICES"), "{none}");
    }

    #[test]
    fn a_driver_older_than_the_library_is_told() {
        let device = Device::Cuda(0);
        for (version, major) in
            [(13000, Some(13)), (13020, Some(12)), (12020, Some(12)), (12080, Some(11)), (11040, None)]
        {
            assert!(says(&device).driver_is_new_enough(version, major).is_ok(), "{version} {major:?}");
        }
        for (version, major, parts) in [
            (12040, 13, &["CUDA 12.4 at most", "for CUDA 13", "580.65", "1.24 is the last for CUDA 12"][..]),
            (11080, 13, &["CUDA 11.8 at most", "for CUDA 13", "580.65"]),
            (11040, 12, &["CUDA 11.4 at most", "for CUDA 12", "525.60"]),
        ] {
            let told = says(&device).driver_is_new_enough(version, Some(major)).unwrap_err();
            assert_eq!(told.kind, EngineErrorKind::Library);
            assert!(parts.iter().all(|part| told.message.contains(part)), "{}", told.message);
            assert_eq!(told.message.contains("1.24"), version > 12000, "{}", told.message);
        }
    }

    #[test]
    fn all_that_is_missing_is_in_one_message() {
        let missing = |name: &str, why: Option<&str>| Missing { name: name.into(), why: why.map(Into::into) };
        let device = Device::TensorRt(0);
        let list = [
            missing("libcudnn.so.9", None),
            missing("libcublas.so.13", Some("is cut off: it has 1 of 2 bytes")),
            missing("libnvinfer.so.10", None),
        ];
        let told = says(&device).lacks(&list, Some(13)).message;
        for part in [
            "libcudnn.so.9, libcublas.so.13 (is cut off: it has 1 of 2 bytes), libnvinfer.so.10:",
            "tensorrt-cu13-libs",
        ] {
            assert!(told.contains(part), "{told}");
        }
        let told = says(&device).lacks(&list[..1], Some(12)).message;
        assert!(!told.contains("tensorrt-"), "{told}");
    }
}
