//! ONNX Runtime on a GPU as somebody would use it by hand: one session, frames that are ready in pinned memory, and an IoBinding that takes
//! them to the GPU and the output back. It converts and decodes nothing, and has the provider's options of the plugin.

use std::time::Instant;

use ort::environment::Environment;
use ort::ep::{ArenaExtendStrategy, CUDA, ExecutionProvider, TensorRT, cuda::ConvAlgorithmSearch};
use ort::logging::LogLevel;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::Tensor;

pub struct BareLoop {
    session: Session,
    batch: usize,
    pinned: Option<i32>,
}

impl BareLoop {
    /// On `device`, as `yolodetect` names it.
    pub fn open(environment: &Environment, model: &str, device: &str, batch: usize) -> ort::Result<Self> {
        let (provider, gpu) = device.split_once(':').unwrap_or((device, "0"));
        let gpu: i32 = gpu.parse().unwrap_or_default();
        let mut builder = Session::builder(environment)?
            .with_log_level(LogLevel::Fatal)?
            .with_memory_pattern(false)?
            .with_optimization_level(GraphOptimizationLevel::All)?;
        if provider == "tensorrt" {
            TensorRT::default().with_device_id(gpu).register(&mut builder)?;
        }
        if provider != "cpu" {
            CUDA::default()
                .with_device_id(gpu)
                .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
                .with_conv_algorithm_search(ConvAlgorithmSearch::Heuristic)
                .with_conv_max_workspace(false)
                .register(&mut builder)?;
        }
        let session = builder.commit_from_file(model)?;
        let pinned = (provider != "cpu" && pinned(&session, gpu).is_ok()).then_some(gpu);
        Ok(Self { session, batch, pinned })
    }

    /// What the frames lie in.
    pub fn memory(&self) -> &'static str {
        if self.pinned.is_some() { "pinned" } else { "not pinned" }
    }

    /// Frames a second.
    pub fn rate(&mut self, runs: usize) -> ort::Result<f64> {
        let names =
            [self.session.inputs(), self.session.outputs()].map(|outlets| outlets[0].name().to_string());
        let shapes = [self.session.inputs(), self.session.outputs()].map(|outlets| {
            let shape = outlets[0].dtype().tensor_shape().cloned().unwrap_or_default();
            shape.iter().map(|side| if *side < 0 { self.batch as i64 } else { *side }).collect::<Vec<i64>>()
        });
        let mut binding = self.session.create_binding()?;
        let (mut input, output) = {
            let allocator = match self.pinned {
                Some(gpu) => &pinned(&self.session, gpu)?,
                None => &Allocator::default(),
            };
            let tensor = |shape: &[i64]| Tensor::<f32>::new(allocator, shape.to_vec());
            (tensor(&shapes[0])?, tensor(&shapes[1])?)
        };
        input.extract_tensor_mut().1.fill(0.5);
        binding.bind_output(&*names[1], output)?;
        let start = Instant::now();
        for _ in 0..runs {
            // This is when the input is copied.
            binding.bind_input(&*names[0], &input)?;
            let outputs = self.session.run_binding(&binding)?;
            assert!(outputs[0].try_extract_tensor::<f32>()?.1[0].is_finite());
        }
        Ok((runs * self.batch) as f64 / start.elapsed().as_secs_f64())
    }
}

/// Host memory that the GPU reads without a copy in between.
fn pinned(session: &Session, gpu: i32) -> ort::Result<Allocator> {
    let memory =
        MemoryInfo::new(AllocationDevice::CUDA_PINNED, gpu, AllocatorType::Device, MemoryType::CPUOutput)?;
    Allocator::new(session, memory)
}
