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
    /// Of the GPU with this number; why it cannot be had.
    pinned: Result<i32, String>,
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
        let pinned = match provider {
            "cpu" => Err("on a processor".to_string()),
            _ => pinned(&session, gpu).map(|_| gpu).map_err(|error| error.to_string().replace('\n', " ")),
        };
        Ok(Self { session, batch, pinned })
    }

    /// Why the frames do not lie in pinned memory; `None` where they do.
    pub fn not_pinned(&self) -> Option<&str> {
        self.pinned.as_ref().err().map(String::as_str)
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
                Ok(gpu) => &pinned(&self.session, gpu)?,
                Err(_) => &Allocator::default(),
            };
            let tensor = |shape: &[i64]| Tensor::<f32>::new(allocator, shape.to_vec());
            (tensor(&shapes[0])?, tensor(&shapes[1])?)
        };
        let values = shapes[0].iter().product::<i64>() as usize;
        // `ort` gives no slice of pinned memory, which ONNX Runtime says is the GPU's from 1.23 on.
        let first = input.data_ptr_mut().cast::<f32>();
        // SAFETY: so many numbers have room there, in memory of the host whether it is pinned or not, and nobody else knows of it.
        (0..values).for_each(|at| unsafe { first.add(at).write(0.5) });
        let found = output.data_ptr().cast::<f32>();
        binding.bind_output(&*names[1], output)?;
        let start = Instant::now();
        for _ in 0..runs {
            // This is when the input is copied.
            binding.bind_input(&*names[0], &input)?;
            self.session.run_binding(&binding)?;
            // SAFETY: as for the input; the binding keeps it, and the run that writes there is over.
            assert!(unsafe { found.read_volatile() }.is_finite());
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
