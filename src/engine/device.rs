//! Where models run: the values of the `device` property.

use std::fmt;

/// A device as a user asks for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Device {
    /// The first GPU of NVIDIA's, where it and the library for it are there; else [`Device::Cpu`].
    #[default]
    Auto,
    /// ONNX Runtime's own kernels.
    Cpu,
    /// Intel's OpenVINO, on one of its devices (`CPU`, `GPU`, `GPU.1`, `NPU`, `AUTO:GPU,CPU`, …), in capitals as OpenVINO
    /// names them.
    OpenVino(String),
    /// CUDA, on the GPU with this number, as CUDA counts them.
    Cuda(u32),
    /// NVIDIA's TensorRT, likewise; CUDA runs what that does not take.
    TensorRt(u32),
}

/// OpenVINO's device where none is named.
const OPENVINO_DEVICE: &str = "CPU";
/// Bytes, more than any list of devices has.
const MAX_LIST: usize = 64;

impl Device {
    /// From the property's value.
    ///
    /// # Errors
    /// What is wrong with it, and which values there are.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, part) = match text.split_once(':') {
            Some((name, part)) => (name, Some(part)),
            None => (text, None),
        };
        match (name, part) {
            ("auto", None) => Ok(Self::Auto),
            ("cpu", None) => Ok(Self::Cpu),
            ("openvino", None) => Ok(Self::OpenVino(OPENVINO_DEVICE.into())),
            ("openvino", Some(device)) => {
                let device = device.to_ascii_uppercase();
                if is_openvino(&device) { Ok(Self::OpenVino(device)) } else { Err(no_openvino(text)) }
            }
            ("cuda", None) => Ok(Self::Cuda(0)),
            ("tensorrt", None) => Ok(Self::TensorRt(0)),
            ("cuda" | "tensorrt", Some(number)) => {
                let number = gpu_number(number).ok_or_else(|| no_gpu(text, name))?;
                Ok(if name == "cuda" { Self::Cuda(number) } else { Self::TensorRt(number) })
            }
            _ => Err(format!(
                "device={text} is not available: there are device=auto, device=cpu, and with a GPU of NVIDIA's device=cuda or \
                 device=tensorrt (device=cuda:1 for the second), and with OpenVINO device=openvino (or, for one of its \
                 devices, device=openvino:GPU)"
            )),
        }
    }

    /// What runs where this is asked for and no GPU is chosen: equal devices share engines.
    pub fn resolved(&self) -> Self {
        match self {
            Self::Auto => Self::Cpu,
            device => device.clone(),
        }
    }

    /// The number of NVIDIA's GPU that it is.
    pub fn gpu(&self) -> Option<u32> {
        match self {
            Self::Cuda(number) | Self::TensorRt(number) => Some(*number),
            _ => None,
        }
    }

    /// Frames that run together where nobody says how many: a batch makes a GPU faster, and a CPU only larger.
    pub fn usual_batch(&self) -> usize {
        if self.gpu().is_some() { GPU_BATCH } else { 1 }
    }
}

/// See [`Device::usual_batch`].
const GPU_BATCH: usize = 8;
/// More than any machine has.
const MAX_GPUS: u32 = 64;

fn gpu_number(text: &str) -> Option<u32> {
    let plain = !text.is_empty() && text.len() <= 2 && text.bytes().all(|c| c.is_ascii_digit());
    text.parse().ok().filter(|number| plain && *number < MAX_GPUS)
}

fn no_gpu(text: &str, name: &str) -> String {
    format!(
        "device={text} names no GPU: after the colon stands its number, {} at most, as CUDA counts them from 0 on (device={name}:1 for \
         the second); device=auto takes the first one, or the CPU",
        MAX_GPUS - 1
    )
}

fn no_openvino(text: &str) -> String {
    format!(
        "device={text} names no device of OpenVINO: there are CPU, GPU and NPU, with a number where there are several \
         (device=openvino:GPU.1), and AUTO, HETERO and MULTI of these (device=openvino:AUTO:GPU,CPU); device=auto runs \
         the model without OpenVINO"
    )
}

/// What ONNX Runtime's provider for OpenVINO knows; at other names it takes nothing of a model, or worse.
fn is_openvino(device: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.len() <= 3 && text.bytes().all(|c| c.is_ascii_digit());
    let single = |device: &str| {
        let mut parts = device.splitn(3, '.');
        matches!(parts.next(), Some("CPU" | "GPU" | "NPU")) && parts.all(number)
    };
    match device.split_once(':') {
        Some((choice, list)) => {
            matches!(choice, "AUTO" | "HETERO" | "MULTI")
                && list.len() <= MAX_LIST
                && list.split(',').all(single)
        }
        None => single(device),
    }
}

/// The property's value.
impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::OpenVino(device) => write!(f, "openvino:{device}"),
            Self::Cuda(gpu) => write!(f, "cuda:{gpu}"),
            Self::TensorRt(gpu) => write!(f, "tensorrt:{gpu}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_and_written() {
        for (text, device, canonical) in [
            ("auto", Device::Auto, "auto"),
            ("cpu", Device::Cpu, "cpu"),
            ("openvino", Device::OpenVino("CPU".into()), "openvino:CPU"),
            ("openvino:cpu", Device::OpenVino("CPU".into()), "openvino:CPU"),
            ("openvino:GPU.1", Device::OpenVino("GPU.1".into()), "openvino:GPU.1"),
            ("openvino:AUTO:GPU,CPU", Device::OpenVino("AUTO:GPU,CPU".into()), "openvino:AUTO:GPU,CPU"),
            ("cuda", Device::Cuda(0), "cuda:0"),
            ("cuda:1", Device::Cuda(1), "cuda:1"),
            ("cuda:01", Device::Cuda(1), "cuda:1"),
            ("tensorrt", Device::TensorRt(0), "tensorrt:0"),
            ("tensorrt:63", Device::TensorRt(63), "tensorrt:63"),
        ] {
            assert_eq!(Device::parse(text).as_ref(), Ok(&device));
            assert_eq!(device.to_string(), canonical);
        }
        for wrong in ["", "CPU", "cpu:0", "auto:cpu", "OpenVINO", "tpu", "CUDA", "gpu", "tensorrt0"] {
            let message = Device::parse(wrong).unwrap_err();
            assert!(message.contains(&format!("device={wrong} is not")), "{message}");
        }
        for wrong in
            ["cuda:", "cuda:x", "cuda:-1", "cuda:+1", "cuda: 1", "cuda:0,1", "cuda:64", "tensorrt:1.0"]
        {
            let message = Device::parse(wrong).unwrap_err();
            assert!(message.contains(&format!("device={wrong} names no GPU")), "{message}");
        }
        let long = format!("openvino:AUTO:{}CPU", "CPU,".repeat(MAX_LIST));
        for wrong in [
            "openvino:",
            "openvino:TPU",
            "openvino:AUTO",
            "openvino:AUTO:",
            "openvino:AUTO:CPU,",
            "openvino:AUTO:AUTO:CPU",
            "openvino:BATCH:CPU",
            "openvino:CPU,GPU",
            "openvino:CPU_FP32",
            "openvino:CPU;x",
            "openvino: CPU",
            "openvino:GPU.",
            "openvino:GPU.x",
            "openvino:GPU.0.1.2",
            "openvino:GPU.1234",
            "openvino:GPÜ",
            &long,
        ] {
            let message = Device::parse(wrong).unwrap_err();
            assert!(message.contains(&format!("device={wrong} names no device")), "{message}");
        }
    }

    #[test]
    fn devices_that_are_one_share_engines() {
        assert_eq!(Device::Auto.resolved(), Device::Cpu.resolved());
        let gpu = Device::OpenVino("GPU".into());
        assert_eq!(gpu.resolved(), gpu);
    }
}
