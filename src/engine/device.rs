//! Where models run: the values of the `device` property.

use std::fmt;

/// A device as a user asks for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Device {
    /// [`Device::Cpu`], whatever else the library has.
    #[default]
    Auto,
    /// ONNX Runtime's own kernels.
    Cpu,
    /// Intel's OpenVINO, on one of its devices (`CPU`, `GPU`, `GPU.1`, `NPU`, `AUTO:GPU,CPU`, …), in capitals as OpenVINO
    /// names them.
    OpenVino(String),
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
            _ => Err(format!(
                "device={text} is not available: this version runs models on the CPU (device=auto or device=cpu) and with \
                 OpenVINO (device=openvino or, for one of its devices, device=openvino:GPU)"
            )),
        }
    }

    /// What runs where this is asked for: equal devices share engines.
    pub fn resolved(&self) -> Self {
        match self {
            Self::Auto => Self::Cpu,
            device => device.clone(),
        }
    }
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
        ] {
            assert_eq!(Device::parse(text).as_ref(), Ok(&device));
            assert_eq!(device.to_string(), canonical);
        }
        for wrong in ["", "CPU", "cpu:0", "auto:cpu", "OpenVINO", "tpu"] {
            let message = Device::parse(wrong).unwrap_err();
            assert!(message.contains(&format!("device={wrong} is not")), "{message}");
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
