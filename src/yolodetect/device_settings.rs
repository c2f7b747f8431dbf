//! The properties of `yolodetect` that say where the model runs, and how on a GPU.

use gst::glib;
use gst::prelude::*;

use crate::engine::gpu;

#[derive(Clone, Debug)]
pub struct DeviceSettings {
    pub device: String,
    fallback: DeviceFallback,
    conv_search: ConvSearch,
    max_workspace: bool,
    tf32: bool,
    graph: bool,
}

impl Default for DeviceSettings {
    fn default() -> Self {
        Self {
            device: "auto".into(),
            fallback: DeviceFallback::Auto,
            conv_search: ConvSearch::Heuristic,
            max_workspace: false,
            tf32: true,
            graph: false,
        }
    }
}

/// `device-fallback`: whether the CPU runs the model where the GPU cannot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstYoloDetectDeviceFallback")]
#[repr(i32)]
pub enum DeviceFallback {
    #[default]
    #[enum_value(name = "With device=auto only", nick = "auto")]
    Auto,
    #[enum_value(name = "Always, with a warning", nick = "on")]
    On,
    #[enum_value(name = "Never: it is an error", nick = "off")]
    Off,
}

/// `cudnn-conv-search`: how cuDNN's algorithm is chosen for each convolution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstYoloDetectConvSearch")]
#[repr(i32)]
pub enum ConvSearch {
    #[default]
    #[enum_value(name = "By a guess, without running any", nick = "heuristic")]
    Heuristic,
    #[enum_value(name = "By trying all: slow to start, takes more memory", nick = "exhaustive")]
    Exhaustive,
    #[enum_value(name = "Always the same", nick = "default")]
    Default,
}

/// In the order in which a reader needs them.
pub fn param_specs() -> Vec<glib::ParamSpec> {
    let default = DeviceSettings::default();
    vec![
        glib::ParamSpecString::builder("device")
            .nick("Device")
            .blurb("Where the model runs: auto (a GPU of NVIDIA's, else the CPU), cpu, cuda[:N], tensorrt[:N] or openvino[:DEVICE]")
            .default_value(Some(default.device.as_str()))
            .mutable_ready()
            .build(),
        glib::ParamSpecString::builder("active-device")
            .nick("Active device")
            .blurb("Where the model really runs (unset while stopped)")
            .read_only()
            .build(),
        glib::ParamSpecEnum::builder_with_default("device-fallback", default.fallback)
            .nick("Device fallback")
            .blurb("Whether the CPU runs the model where the GPU cannot, from the start or any more")
            .mutable_ready()
            .build(),
        glib::ParamSpecEnum::builder_with_default("cudnn-conv-search", default.conv_search)
            .nick("cuDNN convolution search")
            .blurb("On a GPU: how cuDNN's algorithm is chosen for each convolution")
            .mutable_ready()
            .build(),
        glib::ParamSpecBoolean::builder("cudnn-max-workspace")
            .nick("cuDNN maximum workspace")
            .blurb("On a GPU: let convolutions take as much memory as makes them fastest")
            .default_value(default.max_workspace)
            .mutable_ready()
            .build(),
        glib::ParamSpecBoolean::builder("cuda-tf32")
            .nick("CUDA TF32")
            .blurb("On a GPU: multiply numbers of 32 bits with 10 bits of their fractions, which is faster where the GPU can (from Ampere on)")
            .default_value(default.tf32)
            .mutable_ready()
            .build(),
        glib::ParamSpecBoolean::builder("cuda-graph")
            .nick("CUDA graph")
            .blurb("On a GPU: record the run of each batch size once and replay it")
            .default_value(default.graph)
            .mutable_ready()
            .build(),
    ]
}

fn read<'a, T: glib::value::FromValue<'a>>(value: &'a glib::Value) -> T
where
    <T::Checker as glib::value::ValueTypeChecker>::Error: std::fmt::Debug,
{
    value.get().expect("type checked by GObject")
}

impl DeviceSettings {
    /// Takes over a property of this group; false for any other.
    pub fn set(&mut self, name: &str, value: &glib::Value) -> bool {
        match name {
            "device" => {
                let text = read::<Option<String>>(value).filter(|text| !text.is_empty());
                self.device = text.unwrap_or_else(|| Self::default().device);
            }
            "device-fallback" => self.fallback = read(value),
            "cudnn-conv-search" => self.conv_search = read(value),
            "cudnn-max-workspace" => self.max_workspace = read(value),
            "cuda-tf32" => self.tf32 = read(value),
            "cuda-graph" => self.graph = read(value),
            _ => return false,
        }
        true
    }

    pub fn get(&self, name: &str) -> Option<glib::Value> {
        Some(match name {
            "device" => self.device.to_value(),
            "device-fallback" => self.fallback.to_value(),
            "cudnn-conv-search" => self.conv_search.to_value(),
            "cudnn-max-workspace" => self.max_workspace.to_value(),
            "cuda-tf32" => self.tf32.to_value(),
            "cuda-graph" => self.graph.to_value(),
            _ => return None,
        })
    }

    /// `None` where the device decides.
    pub fn fallback(&self) -> Option<bool> {
        match self.fallback {
            DeviceFallback::Auto => None,
            DeviceFallback::On => Some(true),
            DeviceFallback::Off => Some(false),
        }
    }

    pub fn gpu(&self) -> gpu::Options {
        gpu::Options {
            conv_search: match self.conv_search {
                ConvSearch::Heuristic => gpu::ConvSearch::Heuristic,
                ConvSearch::Exhaustive => gpu::ConvSearch::Exhaustive,
                ConvSearch::Default => gpu::ConvSearch::Default,
            },
            max_workspace: self.max_workspace,
            tf32: self.tf32,
            graph: self.graph,
        }
    }
}
