//! A stand-in for ONNX Runtime with NVIDIA's providers: the real library for the processor, named by the variable
//! `ONNXRUNTIME_STAND_IN_REAL`, with some functions of its table replaced. What would be on a GPU runs on the processor, so that
//! results are exact; together with the stand-in for the driver, whose memory is malloc's, tensors "on the GPU" can be reached.
//!
//! The file that `ONNXRUNTIME_STAND_IN_CONTROL` names says, read anew for each call, how it behaves: lines of NAME=NUMBER.
//! ```text
//! frames    a run with more frames than this is out of memory
//! failing   so many more runs are out of memory; counted down in the file
//! lost      each run, and each new session, fails with this CUDA error, as after a kernel that failed
//! session   a session that is made fails: 1 out of memory, 2 for the model, 3 since cuBLAS does not start
//! provider  1: the provider's library cannot be loaded
//! held      1: runs with bound tensors stay where they are until this is gone, a minute at most
//! arena     0: there is none that could be shrunk on the GPU
//! minor     the library calls itself 1.this.0, where this is said when it is loaded; below 18 it does not know use_tf32
//! threads   1: the log tells which thread makes, runs and ends sessions on a GPU
//! spoilt    so many more runs fail in being recorded; counted down in the file
//! copies    1: what is bound as an input is copied then, as where the processor reads it first
//! ```
//! Sessions that were given no provider are the real ones, and fail by none of this.
//!
//! As the real provider, it ends the process where a session on a GPU is released after the driver's stand-in was lost; and where one is
//! made then.
//!
//! The file `ONNXRUNTIME_STAND_IN_LOG` gets a line for each option of a provider (`cuda device_id=0`), provider that a session is given
//! (`append cuda`), session (`session`, `end of a session`; `session cpu` without any provider), option of a run (`run gpu_graph_id=1`, `shrink cpu:0;gpu:0` for the run itself), and run with
//! bound tensors (`bound 8` for 8 frames; `plain 1` for others, `cpu 1` for those without a provider). With `threads=1` also `thread 123`,
//! and `thread 123 gpu_graph_id=1` for a run with that option.

use std::collections::{HashMap, HashSet};
use std::env;
use std::ffi::{CStr, CString, c_char, c_int};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::mem;
use std::process;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use ort_sys::{
    ONNXTensorElementDataType, OrtAllocatorType, OrtApi, OrtApiBase, OrtCUDAProviderOptionsV2, OrtEnv,
    OrtErrorCode, OrtIoBinding, OrtMemType, OrtMemoryInfo, OrtRunOptions, OrtSession, OrtSessionOptions,
    OrtStatusPtr, OrtTensorRTProviderOptionsV2, OrtValue,
};

/// Serialises what is read, changed and written of the control file.
static CONTROL: Mutex<()> = Mutex::new(());

fn control(name: &str) -> Option<i64> {
    let text = fs::read_to_string(env::var_os("ONNXRUNTIME_STAND_IN_CONTROL")?).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

/// Whether there was one left.
fn count_down(name: &str) -> bool {
    let _alone = CONTROL.lock().unwrap();
    let Some(left) = control(name).filter(|&left| left > 0) else { return false };
    let file = env::var_os("ONNXRUNTIME_STAND_IN_CONTROL").unwrap();
    let text = fs::read_to_string(&file).unwrap();
    let changed = text.replace(&format!("{name}={left}"), &format!("{name}={}", left - 1));
    fs::write(&file, changed).unwrap();
    true
}

fn note(line: &str) {
    let Some(file) = env::var_os("ONNXRUNTIME_STAND_IN_LOG") else { return };
    let mut log = OpenOptions::new().append(true).create(true).open(file).unwrap();
    log.write_all(format!("{line}\n").as_bytes()).unwrap();
}

fn note_thread(what: &str) {
    if control("threads") == Some(1) {
        // SAFETY: it takes nothing and cannot fail.
        note(&format!("thread {}{what}", unsafe { libc::gettid() }));
    }
}

struct Base {
    real: OrtApiBase,
    own: OrtApiBase,
}

/// The library stays open for ever, as does its table.
fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(|| {
        let file = env::var_os("ONNXRUNTIME_STAND_IN_REAL").expect("the real library");
        // SAFETY: it is ONNX Runtime, whose one entry point has this type.
        let real = unsafe {
            let library = libloading::Library::new(file).expect("the real library");
            let entry = *library
                .get::<unsafe extern "system" fn() -> *const OrtApiBase>(b"OrtGetApiBase\0")
                .expect("ONNX Runtime");
            mem::forget(library);
            *entry()
        };
        Base { real, own: OrtApiBase { GetApi: get_api, GetVersionString: version_string } }
    })
}

#[unsafe(no_mangle)]
pub extern "system" fn OrtGetApiBase() -> *const OrtApiBase {
    &base().own
}

unsafe extern "system" fn version_string() -> *const c_char {
    static OLD: OnceLock<CString> = OnceLock::new();
    match control("minor") {
        Some(minor) => OLD.get_or_init(|| CString::new(format!("1.{minor}.0")).unwrap()).as_ptr(),
        // SAFETY: it takes nothing.
        None => unsafe { (base().real.GetVersionString)() },
    }
}

/// The real table, of the version that this was built for.
fn real() -> &'static OrtApi {
    static REAL: OnceLock<&OrtApi> = OnceLock::new();
    // SAFETY: the library has this version, or there is no use in going on.
    REAL.get_or_init(|| unsafe {
        (base().real.GetApi)(ort_sys::ORT_API_VERSION).as_ref().expect("a table of this version")
    })
}

unsafe extern "system" fn get_api(version: u32) -> *const OrtApi {
    static OWN: OnceLock<OrtApi> = OnceLock::new();
    if version != ort_sys::ORT_API_VERSION {
        return ptr::null();
    }
    OWN.get_or_init(|| OrtApi {
        GetAvailableProviders: available_providers,
        ReleaseAvailableProviders: release_available_providers,
        CreateCUDAProviderOptions: create_cuda,
        UpdateCUDAProviderOptions: update_cuda,
        ReleaseCUDAProviderOptions: release_cuda,
        SessionOptionsAppendExecutionProvider_CUDA_V2: append_cuda,
        CreateTensorRTProviderOptions: create_tensorrt,
        UpdateTensorRTProviderOptions: update_tensorrt,
        ReleaseTensorRTProviderOptions: release_tensorrt,
        SessionOptionsAppendExecutionProvider_TensorRT_V2: append_tensorrt,
        ReleaseSessionOptions: release_session_options,
        CreateSession: create_session,
        ReleaseSession: release_session,
        CreateMemoryInfo: create_memory_info,
        AddRunConfigEntry: add_run_config_entry,
        ReleaseRunOptions: release_run_options,
        Run: run,
        BindInput: bind_input,
        ReleaseIoBinding: release_io_binding,
        RunWithBinding: run_with_binding,
        ..real().clone()
    })
}

fn fail(message: &str) -> OrtStatusPtr {
    let message = CString::new(message).unwrap();
    // SAFETY: the text is copied.
    unsafe { (real().CreateStatus)(OrtErrorCode::ORT_FAIL, message.as_ptr()) }
}

const OK: OrtStatusPtr = OrtStatusPtr(ptr::null_mut());

fn out_of_memory() -> OrtStatusPtr {
    fail(
        "Non-zero status code returned while running Conv node. Name:'/model.0/conv/Conv' Status Message: \
         /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, \
         bool, onnxruntime::Stream*) Available memory of 1024 is smaller than requested bytes of 135383040",
    )
}

fn lost(code: i64) -> OrtStatusPtr {
    fail(&format!(
        "CUDA failure {code}: an error that stays ; GPU=0 ; hostname=host ; \
         file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_stream_handle.cc ; line=63 ; expr=cudaStreamSynchronize();"
    ))
}

const PROVIDERS: [&CStr; 3] =
    [c"TensorrtExecutionProvider", c"CUDAExecutionProvider", c"CPUExecutionProvider"];

unsafe extern "system" fn available_providers(
    out: *mut *mut *mut c_char,
    length: *mut c_int,
) -> OrtStatusPtr {
    let names = Box::new(PROVIDERS.map(|name| name.as_ptr().cast_mut()));
    // SAFETY: both are out parameters.
    unsafe {
        *out = Box::into_raw(names).cast();
        *length = PROVIDERS.len() as c_int;
    }
    OK
}

unsafe extern "system" fn release_available_providers(
    names: *mut *mut c_char,
    _length: c_int,
) -> OrtStatusPtr {
    // SAFETY: made above.
    drop(unsafe { Box::from_raw(names.cast::<[*mut c_char; PROVIDERS.len()]>()) });
    OK
}

fn note_options(
    provider: &str,
    keys: *const *const c_char,
    values: *const *const c_char,
    count: usize,
) -> OrtStatusPtr {
    for at in 0..count {
        // SAFETY: lists of this length, of C strings.
        let [key, value] = [keys, values].map(|list| unsafe { CStr::from_ptr(*list.add(at)) });
        note(&format!("{provider} {}={}", key.to_str().unwrap(), value.to_str().unwrap()));
        if key == c"use_tf32" && control("minor").is_some_and(|minor| minor < 18) {
            return fail("provider_options_utils.h:146 Parse Unknown provider option: \"use_tf32\".");
        }
    }
    OK
}

/// Addresses of options that were given a provider, and of sessions made with such.
static ON_GPU: OnceLock<Mutex<HashSet<usize>>> = OnceLock::new();

fn on_gpu() -> MutexGuard<'static, HashSet<usize>> {
    ON_GPU.get_or_init(Mutex::default).lock().unwrap()
}

fn append(provider: &str, options: usize) -> OrtStatusPtr {
    on_gpu().insert(options);
    note(&format!("append {provider}"));
    match control("provider") {
        Some(1) => fail(
            "/onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:1778 onnxruntime::Provider& \
             onnxruntime::ProviderLibrary::Get() Failed to load library libonnxruntime_providers_cuda.so with error: \
             libcublasLt.so.13: cannot open shared object file: No such file or directory",
        ),
        _ => OK,
    }
}

/// What an options object points to: nothing looks into it.
static NOTHING: u8 = 0;

macro_rules! provider {
    ($name:literal, $options:ty, $create:ident, $update:ident, $release:ident, $append:ident) => {
        unsafe extern "system" fn $create(out: *mut *mut $options) -> OrtStatusPtr {
            // SAFETY: an out parameter.
            unsafe { *out = ptr::from_ref(&NOTHING).cast_mut().cast() };
            OK
        }

        unsafe extern "system" fn $update(
            _options: *mut $options,
            keys: *const *const c_char,
            values: *const *const c_char,
            count: usize,
        ) -> OrtStatusPtr {
            note_options($name, keys, values, count)
        }

        unsafe extern "system" fn $release(_options: *mut $options) {}

        unsafe extern "system" fn $append(
            session: *mut OrtSessionOptions,
            _options: *const $options,
        ) -> OrtStatusPtr {
            append($name, session.addr())
        }
    };
}

provider!("cuda", OrtCUDAProviderOptionsV2, create_cuda, update_cuda, release_cuda, append_cuda);
provider!(
    "tensorrt",
    OrtTensorRTProviderOptionsV2,
    create_tensorrt,
    update_tensorrt,
    release_tensorrt,
    append_tensorrt
);

unsafe extern "system" fn create_session(
    env: *const OrtEnv,
    model: *const ort_sys::os_char,
    options: *const OrtSessionOptions,
    out: *mut *mut OrtSession,
) -> OrtStatusPtr {
    // SAFETY: as the caller calls it.
    let create = || unsafe { (real().CreateSession)(env, model, options, out) };
    if !on_gpu().contains(&options.addr()) {
        note("session cpu");
        return create();
    }
    note("session");
    note_thread("");
    frees_pinned_memory();
    match (control("session"), control("lost")) {
        (Some(1), _) => out_of_memory(),
        (Some(2), _) => fail("Load model from m.onnx failed: this model has an operator of another opset"),
        (Some(3), _) => fail(
            "CUBLAS failure 1: CUBLAS_STATUS_NOT_INITIALIZED ; GPU=0 ; hostname=host ; \
             file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider.cc ; line=185 ; \
             expr=cublasCreate(&cublas_handle_);",
        ),
        (_, Some(code)) => lost(code),
        _ => {
            let status = create();
            if status.0.is_null() {
                // SAFETY: it was made.
                on_gpu().insert(unsafe { *out }.addr());
            }
            status
        }
    }
}

/// The real provider frees pinned memory in a destructor that throws where CUDA fails.
fn frees_pinned_memory() {
    let control = env::var_os("CUDA_STAND_IN").and_then(|file| fs::read_to_string(file).ok());
    let fails = |line: &str| match line.split_once('=') {
        Some(("lost" | "cuMemFreeHost" | "cuMemGetInfo_v2", code)) => code != "0",
        _ => false,
    };
    if control.unwrap_or_default().lines().any(fails) {
        eprintln!("terminate called after throwing an instance of 'onnxruntime::OnnxRuntimeException'");
        process::abort();
    }
}

unsafe extern "system" fn release_session(session: *mut OrtSession) {
    if on_gpu().remove(&session.addr()) {
        note_thread("");
        frees_pinned_memory();
    }
    note("end of a session");
    // SAFETY: as the caller calls it.
    unsafe { (real().ReleaseSession)(session) }
}

unsafe extern "system" fn release_session_options(options: *mut OrtSessionOptions) {
    on_gpu().remove(&options.addr());
    // SAFETY: as the caller calls it.
    unsafe { (real().ReleaseSessionOptions)(options) }
}

unsafe extern "system" fn create_memory_info(
    name: *const c_char,
    kind: OrtAllocatorType,
    id: c_int,
    memory: OrtMemType,
    out: *mut *mut OrtMemoryInfo,
) -> OrtStatusPtr {
    // SAFETY: a C string.
    let (name, id) = match unsafe { CStr::from_ptr(name) } {
        name if name == c"Cuda" || name == c"CudaPinned" => (c"Cpu".as_ptr(), 0),
        _ => (name, id),
    };
    // SAFETY: as the caller calls it.
    unsafe { (real().CreateMemoryInfo)(name, kind, id, memory, out) }
}

/// By options or binding: what it stands for here.
fn kept<T: Clone>(of: &'static OnceLock<Mutex<HashMap<usize, T>>>) -> &'static Mutex<HashMap<usize, T>> {
    of.get_or_init(Mutex::default)
}

static SHRINKS: OnceLock<Mutex<HashMap<usize, String>>> = OnceLock::new();
static GRAPHS: OnceLock<Mutex<HashMap<usize, String>>> = OnceLock::new();
static FRAMES: OnceLock<Mutex<HashMap<usize, i64>>> = OnceLock::new();

unsafe extern "system" fn add_run_config_entry(
    options: *mut OrtRunOptions,
    key: *const c_char,
    value: *const c_char,
) -> OrtStatusPtr {
    // SAFETY: C strings.
    let [name, text] = [key, value].map(|text| unsafe { CStr::from_ptr(text) }.to_str().unwrap());
    if name == "gpu_graph_id" {
        kept(&GRAPHS).lock().unwrap().insert(options.addr(), text.into());
        return OK;
    }
    if name != "memory.enable_memory_arena_shrinkage" || !text.contains("gpu") {
        // SAFETY: as the caller calls it.
        return unsafe { (real().AddRunConfigEntry)(options, key, value) };
    }
    kept(&SHRINKS).lock().unwrap().insert(options.addr(), text.into());
    let own: Vec<_> = text.split(';').filter(|arena| !arena.starts_with("gpu")).collect();
    let own = CString::new(own.join(";")).unwrap();
    // SAFETY: as the caller calls it, with another text.
    unsafe { (real().AddRunConfigEntry)(options, key, own.as_ptr()) }
}

unsafe extern "system" fn release_run_options(options: *mut OrtRunOptions) {
    kept(&SHRINKS).lock().unwrap().remove(&options.addr());
    kept(&GRAPHS).lock().unwrap().remove(&options.addr());
    // SAFETY: as the caller calls it.
    unsafe { (real().ReleaseRunOptions)(options) }
}

/// The first dimension of a tensor.
fn frames_of(value: *const OrtValue) -> i64 {
    let (mut info, mut count, mut dims) = (ptr::null_mut(), 0, [0; 16]);
    // SAFETY: a live tensor; what is asked for has room.
    unsafe {
        let check = |status: OrtStatusPtr| assert!(status.0.is_null());
        check((real().GetTensorTypeAndShape)(value, &mut info));
        check((real().GetDimensionsCount)(info, &mut count));
        check((real().GetDimensions)(info, dims.as_mut_ptr(), count.min(dims.len())));
        (real().ReleaseTensorTypeAndShapeInfo)(info);
    }
    dims[0]
}

/// What a run is refused with, if it is.
fn refusal(session: *mut OrtSession, options: *const OrtRunOptions, frames: i64) -> Option<OrtStatusPtr> {
    if !on_gpu().contains(&session.addr()) {
        return None;
    }
    note_thread("");
    if let Some(code) = control("lost") {
        return Some(lost(code));
    }
    if control("frames").is_some_and(|most| frames > most) || count_down("failing") {
        return Some(out_of_memory());
    }
    if let Some(graph) = kept(&GRAPHS).lock().unwrap().get(&options.addr()) {
        note(&format!("run gpu_graph_id={graph}"));
        note_thread(&format!(" gpu_graph_id={graph}"));
        if graph != "-1" && count_down("spoilt") {
            return Some(fail(
                "CUDA failure 901: operation failed due to a previous error during capture ; GPU=0 ; hostname=host ; \
                 file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_graph.cc ; line=69 ; \
                 expr=cudaStreamEndCapture(stream_, &graph);",
            ));
        }
    }
    let shrink = kept(&SHRINKS).lock().unwrap().get(&options.addr()).cloned()?;
    if control("arena") == Some(0) {
        return Some(fail(&format!(
            "Did not find an arena based allocator registered for device-id  combination in the memory arena shrink list: {shrink}"
        )));
    }
    note(&format!("shrink {shrink}"));
    None
}

unsafe extern "system" fn run(
    session: *mut OrtSession,
    options: *const OrtRunOptions,
    input_names: *const *const c_char,
    inputs: *const *const OrtValue,
    input_len: usize,
    output_names: *const *const c_char,
    output_len: usize,
    outputs: *mut *mut OrtValue,
) -> OrtStatusPtr {
    // SAFETY: there is one input at least.
    let frames = frames_of(unsafe { *inputs });
    if let Some(refused) = refusal(session, options, frames) {
        return refused;
    }
    let way = if on_gpu().contains(&session.addr()) { "plain" } else { "cpu" };
    note(&format!("{way} {frames}"));
    // SAFETY: as the caller calls it.
    unsafe {
        (real().Run)(session, options, input_names, inputs, input_len, output_names, output_len, outputs)
    }
}

unsafe extern "system" fn bind_input(
    binding: *mut OrtIoBinding,
    name: *const c_char,
    value: *const OrtValue,
) -> OrtStatusPtr {
    kept(&FRAMES).lock().unwrap().insert(binding.addr(), frames_of(value));
    if control("copies") != Some(1) {
        // SAFETY: as the caller calls it.
        return unsafe { (real().BindInput)(binding, name, value) };
    }
    let copy = copy_of(value);
    // SAFETY: as the caller calls it, with a tensor of which the binding takes a reference.
    unsafe {
        let status = (real().BindInput)(binding, name, copy);
        (real().ReleaseValue)(copy);
        status
    }
}

/// Of a tensor of floats.
fn copy_of(value: *const OrtValue) -> *mut OrtValue {
    const FLOAT: ONNXTensorElementDataType = ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    let (mut info, mut rank, mut dims, mut count) = (ptr::null_mut(), 0, [0; 16], 0);
    let (mut allocator, mut copy) = (ptr::null_mut(), ptr::null_mut());
    let (mut from, mut to) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: a live tensor, and one of the same shape; what is asked for has room.
    unsafe {
        let check = |status: OrtStatusPtr| assert!(status.0.is_null());
        check((real().GetTensorTypeAndShape)(value, &mut info));
        check((real().GetDimensionsCount)(info, &mut rank));
        check((real().GetDimensions)(info, dims.as_mut_ptr(), rank.min(dims.len())));
        check((real().GetTensorShapeElementCount)(info, &mut count));
        (real().ReleaseTensorTypeAndShapeInfo)(info);
        check((real().GetAllocatorWithDefaultOptions)(&mut allocator));
        check((real().CreateTensorAsOrtValue)(allocator, dims.as_ptr(), rank, FLOAT, &mut copy));
        check((real().GetTensorMutableData)(value.cast_mut(), &mut from));
        check((real().GetTensorMutableData)(copy, &mut to));
        ptr::copy_nonoverlapping(from.cast::<f32>(), to.cast(), count);
    }
    copy
}

unsafe extern "system" fn release_io_binding(binding: *mut OrtIoBinding) {
    kept(&FRAMES).lock().unwrap().remove(&binding.addr());
    // SAFETY: as the caller calls it.
    unsafe { (real().ReleaseIoBinding)(binding) }
}

/// Runs in progress: the engine lets one compute at a time.
static COMPUTING: AtomicUsize = AtomicUsize::new(0);

unsafe extern "system" fn run_with_binding(
    session: *mut OrtSession,
    options: *const OrtRunOptions,
    binding: *const OrtIoBinding,
) -> OrtStatusPtr {
    let frames = kept(&FRAMES).lock().unwrap()[&binding.addr()];
    if let Some(refused) = refusal(session, options, frames) {
        return refused;
    }
    note(&format!("bound {frames}"));
    if COMPUTING.fetch_add(1, Ordering::SeqCst) > 0 {
        note("two at once");
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while control("held") == Some(1) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    // SAFETY: as the caller calls it.
    let status = unsafe { (real().RunWithBinding)(session, options, binding) };
    COMPUTING.fetch_sub(1, Ordering::SeqCst);
    status
}
