//! Where models run: the values of the `device` property.

use std::fmt;

/// A device as a user asks for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Device {
    /// The best that is there.
    #[default]
    Auto,
    /// ONNX Runtime's own kernels.
    Cpu,
    /// Intel's OpenVINO, on one of its devices (`CPU`, `GPU`, `GPU.1`, `NPU`, `AUTO:GPU,CPU`, …).
    OpenVino(String),
}

/// OpenVINO's device where none is named.
const OPENVINO_DEVICE: &str = "CPU";

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
            ("openvino", Some(device)) if !device.is_empty() => Ok(Self::OpenVino(device.into())),
            _ => Err(format!(
                "device={text} is not available: this version runs models on the CPU (device=auto or device=cpu) and with \
                 OpenVINO (device=openvino or, for one of its devices, device=openvino:GPU)"
            )),
        }
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
            ("openvino:GPU.1", Device::OpenVino("GPU.1".into()), "openvino:GPU.1"),
            ("openvino:AUTO:GPU,CPU", Device::OpenVino("AUTO:GPU,CPU".into()), "openvino:AUTO:GPU,CPU"),
        ] {
            assert_eq!(Device::parse(text).as_ref(), Ok(&device));
            assert_eq!(device.to_string(), canonical);
        }
        for wrong in ["", "CPU", "cpu:0", "auto:cpu", "openvino:", "tpu"] {
            let message = Device::parse(wrong).unwrap_err();
            assert!(message.contains(&format!("device={wrong} is not")), "{message}");
        }
    }
}
