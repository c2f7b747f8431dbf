//! NVIDIA's GPUs, as far as they are asked without ONNX Runtime: whether one can be used ([`check`]), its memory ([`driver`]), and how
//! much of that an engine may take ([`budget`]).

pub mod budget;
pub mod check;
pub mod compiler;
pub mod driver;
pub mod kernels;
mod libraries;
pub mod provider;

/// How cuDNN's algorithm is chosen for each convolution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ConvSearch {
    /// By a guess that runs nothing and takes no memory.
    #[default]
    Heuristic,
    /// By trying all of them, which takes time and memory at the load.
    Exhaustive,
    /// The one that cuDNN has for everything.
    Default,
}

/// How sessions on a GPU are set up; equal options share engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Options {
    pub conv_search: ConvSearch,
    /// Convolutions may take as much memory as makes them fastest.
    pub max_workspace: bool,
    /// Numbers of 32 bits may be multiplied with 10 bits of their fractions, which GPUs have fast units for (TF32, from Ampere on).
    pub tf32: bool,
    /// Each run is recorded once and replayed, which spares the launches of its kernels.
    pub graph: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { conv_search: ConvSearch::default(), max_workspace: false, tf32: true, graph: false }
    }
}
