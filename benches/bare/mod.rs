//! ONNX Runtime as somebody would use it by hand: one session, run through the C API, which lets several threads call it at
//! once. Nothing here is the plugin's; what the benches compare with must not get slower when the plugin does.

use std::ffi::CString;
use std::path::Path;
use std::ptr::{self, NonNull};

use ort::AsPointer;
use ort::environment::Environment;
use ort::ep::{CPU, ExecutionProvider};
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::sys::OrtValue;
use ort::value::Tensor;

/// What a session is made with. The default is what the plugin uses (`src/engine/onnx/session.rs`).
#[derive(Clone)]
pub struct Options {
    pub threads: usize,
    pub pattern: bool,
    pub arena: bool,
    /// Several nodes at a time, with so many threads.
    pub parallel: Option<usize>,
    pub level: GraphOptimizationLevel,
    /// The configuration entries of `onnxruntime_session_options_config_keys.h`.
    pub entries: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: 2,
            pattern: false,
            arena: true,
            parallel: None,
            level: GraphOptimizationLevel::All,
            entries: [("session.use_env_allocators", "1"), ("session.intra_op.spin_duration_us", "50")]
                .map(|(key, value)| (key.into(), value.into()))
                .into(),
        }
    }
}

impl Options {
    pub fn builder(&self, environment: &Environment) -> ort::Result<SessionBuilder> {
        let mut builder = Session::builder(environment)?
            .with_intra_threads(self.threads)?
            .with_memory_pattern(self.pattern)?
            .with_log_level(LogLevel::Fatal)?
            .with_optimization_level(self.level)?;
        CPU::default().with_arena_allocator(self.arena).register(&mut builder)?;
        if let Some(threads) = self.parallel {
            builder = builder.with_parallel_execution(true)?.with_inter_threads(threads)?;
        }
        for (key, value) in &self.entries {
            builder = builder.with_config_entry(key, value)?;
        }
        Ok(builder)
    }
}

/// A session with one input and one output that is read.
pub struct Bare {
    session: Session,
    input_name: CString,
    output_name: CString,
}

impl Bare {
    pub fn open(environment: &Environment, model: &Path, options: &Options) -> ort::Result<Self> {
        let session = options.builder(environment)?.commit_from_file(model)?;
        let [input_name, output_name] = [session.inputs(), session.outputs()]
            .map(|outlets| CString::new(outlets[0].name()).expect("a name without zero bytes"));
        Ok(Self { session, input_name, output_name })
    }

    /// Runs the model and reads its output where ONNX Runtime has put it.
    pub fn run<T>(&self, input: &Tensor<f32>, read: impl FnOnce(&[f32]) -> T) -> ort::Result<T> {
        let (input, mut output): (_, *mut OrtValue) = (input.ptr(), ptr::null_mut());
        let api = ort::api();
        // SAFETY: session, names and input live during the call, and there is one of each. `Run` may be called by several
        // threads and does not change the session's own state.
        unsafe {
            ort::Error::result_from_status((api.Run)(
                self.session.ptr().cast_mut(),
                ptr::null(),
                &self.input_name.as_ptr(),
                &input,
                1,
                &self.output_name.as_ptr(),
                1,
                &mut output,
            ))?;
        }
        let output = Output(NonNull::new(output).expect("an output after a run without error"));
        let (mut info, mut len, mut data) = (ptr::null_mut(), 0, ptr::null_mut());
        // SAFETY: the value lives until the end of this function and is a tensor of floats in the host's memory; `info` is
        // released.
        let values = unsafe {
            ort::Error::result_from_status((api.GetTensorTypeAndShape)(output.0.as_ptr(), &mut info))?;
            let counted = ort::Error::result_from_status((api.GetTensorShapeElementCount)(info, &mut len));
            (api.ReleaseTensorTypeAndShapeInfo)(info);
            counted?;
            ort::Error::result_from_status((api.GetTensorMutableData)(output.0.as_ptr(), &mut data))?;
            std::slice::from_raw_parts(data.cast::<f32>(), len)
        };
        Ok(read(values))
    }
}

struct Output(NonNull<OrtValue>);

impl Drop for Output {
    fn drop(&mut self) {
        // SAFETY: ours, released once.
        unsafe { (ort::api().ReleaseValue)(self.0.as_ptr()) }
    }
}
