//! NVIDIA's driver through its library, which a stand-in takes the place of: `tests/data/cuda_stand_in.c`. That ends a process that
//! misuses it: where a test passes, no copy went beyond its memory, nothing was freed twice, and no call was without a context.

mod common;
#[path = "common/cuda_driver.rs"]
mod cuda_driver;

use std::ffi::c_void;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::ptr;
use std::sync::Arc;
use std::thread;

use cuda_driver::{Balance, balance, beside, beside_with, control, folder, log};
use gstyolodetect::engine::gpu::driver::{
    Card, CardMemory, Description, DriverError, describe, device_count, driver_version, loads_lazily,
};
use libloading::os::unix::{Library, RTLD_NOW, Symbol};
use proptest::prelude::*;

const OUT_OF_MEMORY: i32 = 2;
const ILLEGAL_ADDRESS: i32 = 700;

fn is_loaded() -> bool {
    fs::read_to_string("/proc/self/maps").unwrap().contains("libcuda")
}

fn error<T>(result: Result<T, DriverError>) -> DriverError {
    result.map(|_| ()).unwrap_err()
}

/// The stand-in as an application that links it sees it.
struct Application {
    library: Library,
}

impl Application {
    fn new() -> Self {
        // SAFETY: it is the stand-in, which only notes that it was loaded.
        Self { library: unsafe { Library::open(Some("libcuda.so.1"), RTLD_NOW) }.unwrap() }
    }

    fn call<F: Copy>(&self, name: &str) -> F {
        // SAFETY: whoever calls gives the type of the stand-in's function.
        let function: Symbol<F> = unsafe { self.library.get(name.as_bytes()) }.unwrap();
        *function
    }

    fn current(&self) -> *mut c_void {
        let mut context = ptr::null_mut();
        let function = self.call::<unsafe extern "C" fn(*mut *mut c_void) -> i32>("cuCtxGetCurrent");
        // SAFETY: as the stand-in declares it.
        assert_eq!(unsafe { function(&mut context) }, 0);
        context
    }

    /// Has a GPU's primary context, and makes it current.
    fn enter(&self, gpu: i32) -> *mut c_void {
        let mut context = ptr::null_mut();
        let retain =
            self.call::<unsafe extern "C" fn(*mut *mut c_void, i32) -> i32>("cuDevicePrimaryCtxRetain");
        let push = self.call::<unsafe extern "C" fn(*mut c_void) -> i32>("cuCtxPushCurrent_v2");
        // SAFETY: as the stand-in declares them.
        unsafe {
            assert_eq!(retain(&mut context, 100 + gpu), 0);
            assert_eq!(push(context), 0);
        }
        context
    }

    /// Destroys a GPU's primary context, whoever uses it.
    fn reset(&self, gpu: i32) {
        let reset = self.call::<unsafe extern "C" fn(i32) -> i32>("cuDevicePrimaryCtxReset_v2");
        // SAFETY: as the stand-in declares it.
        assert_eq!(unsafe { reset(100 + gpu) }, 0);
    }
}

#[test]
fn without_a_driver_each_call_says_so_until_there_is_one() {
    if !beside("without_a_driver_each_call_says_so_until_there_is_one", |folder| {
        let library = folder.driver(&[]);
        fs::rename(library, folder.path().join("aside")).unwrap();
    }) {
        return;
    }
    for error in [error(driver_version()), error(device_count()), error(describe(0)), error(Card::open(0))] {
        assert!(error.is_absent() && !error.is_lost() && !error.is_out_of_memory(), "{error}");
        assert!(error.to_string().contains("libcuda.so.1: cannot open shared object file"), "{error}");
    }
    assert_eq!(loads_lazily(), None);
    fs::rename(folder().join("aside"), folder().join("libcuda.so.1")).unwrap();
    assert_eq!(device_count().unwrap(), 1);
}

#[test]
fn a_library_that_lacks_functions_is_refused() {
    if beside("a_library_that_lacks_functions_is_refused", |folder| {
        folder.driver(&["-DWITHOUT_EVENTS"]);
    }) {
        let error = error(Card::open(0));
        assert_eq!((error.call, error.code), ("cuEventCreate", 0));
        assert!(error.to_string().contains("too old"), "{error}");
    }
}

#[test]
fn a_driver_without_functions_of_later_ones_does_no_harm() {
    if beside("a_driver_without_functions_of_later_ones_does_no_harm", |folder| {
        folder.driver(&["-DWITHOUT_LATER_FUNCTIONS"]);
    }) {
        assert_eq!(loads_lazily(), None);
        assert_eq!(device_count().unwrap(), 1);
        Card::open(0).unwrap().alloc(8).unwrap();
    }
}

#[test]
fn who_waits_for_a_gpu_sleeps_unless_an_application_has_said_otherwise() {
    if !beside("who_waits_for_a_gpu_sleeps_unless_an_application_has_said_otherwise", |folder| {
        folder.driver(&[]);
    }) {
        return;
    }
    // It maps host memory; it spins; it has a context already; and the driver refuses.
    control("count=4\nflags@0=8\nflags@1=1\ncuDevicePrimaryCtxSetFlags_v2@3=1");
    assert_eq!(device_count().unwrap(), 4);
    Application::new().enter(2);
    for gpu in 0..4 {
        Card::open(gpu).unwrap();
    }
    let flags: Vec<_> = log().into_iter().filter(|line| line.starts_with("flags")).collect();
    assert_eq!(flags, ["flags@0=12", "flags@3=4"]);
}

#[test]
fn gpus_are_described_without_a_context() {
    if !beside("gpus_are_described_without_a_context", |folder| {
        folder.driver(&[]);
    }) {
        return;
    }
    assert!(!is_loaded(), "not before somebody wants to know");
    control("count=2\nversion=12040\nmajor@1=7\nminor@1=5\nloading=1");
    assert_eq!(driver_version().unwrap(), 12040);
    assert!(is_loaded());
    assert_eq!(device_count().unwrap(), 2);
    let described = |name: &str, compute_capability, bus_id: &str| Description {
        name: name.into(),
        compute_capability,
        bus_id: bus_id.into(),
    };
    assert_eq!(describe(0).unwrap(), described("Stand-in 0", (9, 0), "0000:01:00.0"));
    assert_eq!(describe(1).unwrap(), described("Stand-in 1", (7, 5), "0000:02:00.0"));
    assert_eq!(loads_lazily(), Some(false));
    control("count=2");
    assert_eq!(loads_lazily(), Some(true));
    for index in [2, 63, u32::MAX] {
        assert_eq!(error(describe(index)).code, 101);
        assert_eq!(error(Card::open(index)).call, "cuDeviceGet");
    }
    assert!(balance().is_empty());
    assert_eq!(log().iter().filter(|line| *line == "load").count(), 1);
}

/// Each call that can fail while a GPU is opened.
#[test]
fn what_fails_is_named_and_leaves_nothing() {
    if !beside("what_fails_is_named_and_leaves_nothing", |folder| {
        folder.driver(&[]);
    }) {
        return;
    }
    for call in [
        "cuInit",
        "cuDeviceGet",
        "cuDeviceGetName",
        "cuDeviceGetAttribute",
        "cuDeviceGetPCIBusId",
        "cuDevicePrimaryCtxGetState",
        "cuDevicePrimaryCtxRetain",
    ] {
        control(&format!("{call}=999"));
        let error = error(Card::open(0));
        assert_eq!((error.call, error.code), (call, 999));
        assert_eq!(error.to_string(), format!("{call}: CUDA_ERROR_UNKNOWN (999)"));
        assert!(error.is_lost() && !error.is_out_of_memory() && !error.is_absent());
        assert!(balance().is_empty(), "{call}");
    }
    for call in ["cuDriverGetVersion", "cuDeviceGetCount"] {
        control(&format!("{call}=3"));
        let error = driver_version().and(device_count()).unwrap_err();
        assert_eq!((error.call, error.code), (call, 3));
        assert!(error.to_string().contains("no name"), "{error}");
    }
    control("");
    let card = Card::open(0).unwrap();
    let memory = card.alloc(8).unwrap();
    let copies = card.copies().unwrap();
    let held = balance();
    for call in [
        "cuCtxPushCurrent_v2",
        "cuMemGetInfo_v2",
        "cuMemAlloc_v2",
        "cuMemHostAlloc",
        "cuMemHostRegister_v2",
        "cuStreamCreate",
        "cuEventCreate",
        "cuEventRecord",
        "cuEventSynchronize",
        "cuMemcpyHtoDAsync_v2",
        "cuMemcpyDtoHAsync_v2",
    ] {
        control(&format!("{call}=1"));
        let mut there = [0; 8];
        let outcomes = [
            card.memory().err(),
            card.alloc(1).err(),
            card.alloc_pinned(1).err(),
            // SAFETY: the memory outlives the guard, which is dropped at once.
            unsafe { card.pin(there.as_mut_ptr(), 8) }.err(),
            card.copies().err(),
            copies.upload(&there, &memory).err(),
            copies.download(&memory, &mut there).err(),
        ];
        let first = outcomes.into_iter().flatten().next().unwrap_or_else(|| panic!("{call} did not matter"));
        assert_eq!((first.call, first.code), (call, 1));
        control("");
        assert_eq!(balance(), held, "{call}");
    }
    drop((memory, copies, card));
    assert!(balance().is_empty());
}

#[test]
fn a_card_has_its_context_and_the_thread_keeps_its_own() {
    if !beside("a_card_has_its_context_and_the_thread_keeps_its_own", |folder| {
        folder.driver(&[]);
    }) {
        return;
    }
    control("count=2\ntotal=1000000\ncontext=1000\nothers=300");
    let application = Application::new();
    let card = Card::open(1).unwrap();
    assert_eq!((card.index(), card.name(), card.compute_capability()), (1, "Stand-in 1", (9, 0)));
    assert_eq!(card.bus_id(), "0000:02:00.0");
    assert_eq!(application.current(), ptr::null_mut());
    let own = application.enter(0);
    let memory = card.alloc(700).unwrap();
    assert_eq!(card.memory().unwrap(), CardMemory { free: 998_000, total: 1_000_000 });
    let copies = card.copies().unwrap();
    copies.upload(&[1; 700], &memory).unwrap();
    let second = Card::open(1).unwrap();
    drop(card);
    assert_eq!(application.current(), own);
    // The memory keeps the card, and so the context.
    let mut back = [0; 700];
    copies.download(&memory, &mut back).unwrap();
    assert_eq!(back, [1; 700]);
    let elsewhere = thread::spawn(move || drop((copies, memory)));
    elsewhere.join().unwrap();
    assert_eq!(balance(), Balance { contexts: 2, ..Balance::default() });
    assert_eq!(second.memory().unwrap().free, 998_700);
    drop(second);
    assert_eq!(balance(), Balance { contexts: 1, ..Balance::default() });
    assert_eq!(application.current(), own);
}

#[test]
fn what_a_context_takes_is_measured_where_it_is_new() {
    if !beside("what_a_context_takes_is_measured_where_it_is_new", |folder| {
        folder.driver(&[]);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/nvml_stand_in.c");
        let library = folder.path().join("libnvidia-ml.so.1");
        let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(library).arg(source).status();
        assert!(built.expect("cc").success());
        fs::write(folder.path().join("nvml"), "growth=300").unwrap();
    }) {
        return;
    }
    // SAFETY: no other thread of this process reads the environment now.
    unsafe { std::env::set_var("NVML_STAND_IN", folder().join("nvml")) };
    // It would else begin anew with each question.
    // SAFETY: it is the stand-in, which only notes that it was loaded.
    let _open = unsafe { Library::open(Some("libnvidia-ml.so.1"), RTLD_NOW) }.unwrap();
    let nvml = |text: &str| fs::write(folder().join("nvml"), text).unwrap();
    control("count=2");
    let card = Card::open(1).unwrap();
    assert_eq!(card.context_bytes(), 300);
    // It was there already.
    assert_eq!(Card::open(1).unwrap().context_bytes(), 0);
    drop(card);
    // What the process has where it is listed, whatever others take meanwhile: nothing here.
    nvml(&format!("growth=300\npid={}\nown_compute=120", std::process::id()));
    assert_eq!(Card::open(0).unwrap().context_bytes(), 0);
    nvml("growth=300\nhandle@1=3");
    assert_eq!(Card::open(1).unwrap().context_bytes(), 0);
    assert_eq!(Card::open(0).unwrap().context_bytes(), 300);
    nvml("growth=-400");
    assert_eq!(Card::open(0).unwrap().context_bytes(), 0);
    assert!(balance().is_empty());
}

#[test]
fn out_of_memory_is_told_from_other_failures() {
    if !beside("out_of_memory_is_told_from_other_failures", |folder| {
        folder.driver(&[]);
    }) {
        return;
    }
    control("limit=1000\npinnable=100");
    let card = Card::open(0).unwrap();
    let first = card.alloc(600).unwrap();
    let refused = error(card.alloc(401));
    assert!(refused.is_out_of_memory() && !refused.is_lost());
    assert_eq!(refused.to_string(), "cuMemAlloc_v2: CUDA_ERROR_OUT_OF_MEMORY, out of memory (2)");
    let second = card.alloc(400).unwrap();
    drop(first);
    drop(card.alloc(600).unwrap());
    let pinned = card.alloc_pinned(100).unwrap();
    assert!(error(card.alloc_pinned(1)).is_out_of_memory());
    for nothing in [card.alloc(0).err(), card.alloc_pinned(0).err()] {
        assert_eq!(nothing.unwrap().code, 0);
    }
    assert_eq!(card.alloc(usize::MAX).err().map(|error| error.code), Some(OUT_OF_MEMORY));
    drop((second, pinned, card));
    assert!(balance().is_empty());
}

#[test]
fn copies_that_do_not_fit_are_refused() {
    if !beside("copies_that_do_not_fit_are_refused", |folder| {
        folder.driver(&[]);
    }) {
        return;
    }
    control("count=2");
    let (card, other) = (Card::open(0).unwrap(), Card::open(1).unwrap());
    let (memory, copies, others) = (card.alloc(8).unwrap(), card.copies().unwrap(), other.copies().unwrap());
    for refused in [
        copies.upload(&[0; 9], &memory),
        copies.upload(&[], &memory),
        copies.download(&memory, &mut [0; 9]),
        copies.download(&memory, &mut []),
        others.upload(&[0; 8], &memory),
        others.download(&memory, &mut [0; 8]),
    ] {
        assert_eq!(refused.unwrap_err().code, 0);
    }
    copies.upload(&[0; 8], &memory).unwrap();
    // Another hold of the same GPU has the same context.
    Card::open(0).unwrap().copies().unwrap().upload(&[0; 8], &memory).unwrap();
}

#[test]
fn memory_is_pinned_while_the_guard_lives() {
    if !beside("memory_is_pinned_while_the_guard_lives", |folder| {
        folder.driver(&[]);
    }) {
        return;
    }
    let card = Card::open(0).unwrap();
    let mut there = vec![0u8; 4096];
    let start = there.as_mut_ptr();
    // SAFETY: the memory outlives each of the guards.
    let pin = |start, bytes| unsafe { card.pin(start, bytes) };
    let first = pin(start, 2048).unwrap();
    assert_eq!(error(pin(start, 4096)).code, 712);
    // SAFETY: within the memory.
    let second = pin(unsafe { start.add(2048) }, 2048).unwrap();
    assert_eq!(balance().pins, 2);
    drop(first);
    assert_eq!(balance().pins, 1);
    assert_eq!(error(pin(start, 0)).code, 0);
    assert_eq!(error(pin(ptr::null_mut(), 1)).code, 1);
    drop(second);
    drop(pin(start, 4096).unwrap());
    let mut pinned = card.alloc_pinned(4096).unwrap();
    assert_eq!(pinned.bytes(), [0; 4096]);
    pinned.bytes_mut().fill(3);
    assert_eq!(pinned.bytes(), [3; 4096]);
    thread::scope(|scope| scope.spawn(|| assert_eq!(pinned.bytes()[4095], 3)).join().unwrap());
    drop(pinned);
    drop(card);
    assert!(balance().is_empty());
}

#[test]
fn many_threads_copy_through_one_queue() {
    if !beside("many_threads_copy_through_one_queue", |folder| {
        folder.driver(&[]);
    }) {
        return;
    }
    let card = Card::open(0).unwrap();
    let copies = Arc::new(card.copies().unwrap());
    thread::scope(|scope| {
        for seed in 0..4u8 {
            let (card, copies) = (&card, &copies);
            scope.spawn(move || {
                let memory = card.alloc(1000).unwrap();
                for round in 0..50u8 {
                    let value = seed.wrapping_mul(50).wrapping_add(round);
                    copies.upload(&[value; 1000], &memory).unwrap();
                    let mut back = [0; 1000];
                    copies.download(&memory, &mut back).unwrap();
                    assert_eq!(back, [value; 1000]);
                }
            });
        }
    });
    drop((copies, card));
    assert!(balance().is_empty());
}

#[test]
fn after_a_failure_nothing_works_and_a_new_context_does() {
    if !beside("after_a_failure_nothing_works_and_a_new_context_does", |folder| {
        folder.driver(&[]);
    }) {
        return;
    }
    let card = Card::open(0).unwrap();
    let (memory, copies, pinned) =
        (card.alloc(8).unwrap(), card.copies().unwrap(), card.alloc_pinned(8).unwrap());
    control(&format!("lost={ILLEGAL_ADDRESS}"));
    for error in [
        error(copies.upload(&[0; 8], &memory)),
        error(copies.download(&memory, &mut [0; 8])),
        error(card.memory()),
        error(card.alloc(8)),
        error(card.copies()),
    ] {
        assert_eq!(error.code, ILLEGAL_ADDRESS);
        assert!(error.is_lost() && !error.is_out_of_memory());
    }
    drop((memory, copies, card));
    // What is still held keeps the context.
    assert_eq!(balance().contexts, 1);
    drop(pinned);
    assert!(balance().is_empty(), "all of it went with the context");
    control("");
    assert_eq!(Card::open(0).unwrap().alloc(8).unwrap().bytes(), 8);
}

#[test]
fn a_gpu_that_is_reset_under_us_is_lost() {
    if !beside("a_gpu_that_is_reset_under_us_is_lost", |folder| {
        folder.driver(&[]);
    }) {
        return;
    }
    let application = Application::new();
    let card = Card::open(0).unwrap();
    let (memory, copies, pinned) =
        (card.alloc(8).unwrap(), card.copies().unwrap(), card.alloc_pinned(8).unwrap());
    application.reset(0);
    assert!(error(copies.upload(&[0; 8], &memory)).is_lost());
    assert!(error(card.memory()).is_lost());
    drop((memory, copies, pinned, card));
    let card = Card::open(0).unwrap();
    card.copies().unwrap().upload(&[0; 8], &card.alloc(8).unwrap()).unwrap();
    drop(card);
    assert!(balance().is_empty());
}

/// What is not dropped goes with the process.
#[test]
fn a_process_may_end_with_memory_on_a_gpu() {
    let test = "a_process_may_end_with_memory_on_a_gpu";
    if beside_with(test, &[], |folder| {
        folder.driver(&[]);
    }) {
        static KEPT: std::sync::OnceLock<Arc<Card>> = std::sync::OnceLock::new();
        let card = KEPT.get_or_init(|| Card::open(0).unwrap());
        std::mem::forget((card.alloc(8).unwrap(), card.alloc_pinned(8).unwrap(), card.copies().unwrap()));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Alloc(usize),
    Free(usize),
    Upload { memory: usize, bytes: usize, value: u8 },
    Download { memory: usize, bytes: usize },
    Pin(usize),
    Unpin(usize),
    Fail(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0usize..400).prop_map(Step::Alloc),
        2 => (0usize..8).prop_map(Step::Free),
        6 => (0usize..8, 0usize..500, any::<u8>())
            .prop_map(|(memory, bytes, value)| Step::Upload { memory, bytes, value }),
        6 => (0usize..8, 0usize..500).prop_map(|(memory, bytes)| Step::Download { memory, bytes }),
        2 => (0usize..400).prop_map(Step::Pin),
        1 => (0usize..8).prop_map(Step::Unpin),
        1 => any::<bool>().prop_map(Step::Fail),
    ]
}

/// Whatever is done in whatever order: copies bring what was sent, what cannot be is refused, and nothing stays.
#[test]
fn any_order_of_calls_is_sound() {
    if !beside("any_order_of_calls_is_sound", |folder| {
        folder.driver(&[]);
    }) {
        return;
    }
    const LIMIT: usize = 1000;
    let config = ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(steps in prop::collection::vec(step(), 1..40))| {
        control(&format!("limit={LIMIT}"));
        let card = Card::open(0).unwrap();
        let copies = card.copies().unwrap();
        let (mut memories, mut pinned, mut is_failing) = (Vec::new(), Vec::new(), false);
        for step in steps {
            match step {
                Step::Alloc(bytes) => {
                    let held: usize = memories.iter().map(|(_, content): &(_, Vec<_>)| content.len()).sum();
                    let fits = bytes > 0 && held + bytes <= LIMIT && !is_failing;
                    match card.alloc(bytes) {
                        Ok(memory) => {
                            prop_assert!(fits);
                            prop_assert_eq!(memory.bytes(), bytes);
                            memories.push((memory, vec![None; bytes]));
                        }
                        Err(error) => {
                            prop_assert!(!fits);
                            prop_assert_eq!(error.is_out_of_memory(), bytes > 0 && !is_failing);
                        }
                    }
                }
                Step::Free(which) => {
                    if which < memories.len() && !is_failing {
                        memories.remove(which);
                    }
                }
                Step::Upload { memory, bytes, value } => {
                    if let Some((memory, content)) = memories.get_mut(memory) {
                        let done = copies.upload(&vec![value; bytes], memory).is_ok();
                        prop_assert_eq!(done, bytes > 0 && bytes <= content.len() && !is_failing);
                        if done {
                            content[..bytes].fill(Some(value));
                        }
                    }
                }
                Step::Download { memory, bytes } => {
                    if let Some((memory, content)) = memories.get(memory) {
                        let mut back = vec![0; bytes];
                        let done = copies.download(memory, &mut back).is_ok();
                        prop_assert_eq!(done, bytes > 0 && bytes <= content.len() && !is_failing);
                        let same = |(back, sent): (&u8, &Option<u8>)| sent.is_none_or(|sent| sent == *back);
                        prop_assert!(!done || back.iter().zip(content).all(same));
                    }
                }
                Step::Pin(bytes) => {
                    let made = card.alloc_pinned(bytes);
                    prop_assert_eq!(made.is_ok(), bytes > 0 && !is_failing);
                    pinned.extend(made.ok());
                }
                Step::Unpin(which) => {
                    if which < pinned.len() && !is_failing {
                        pinned.remove(which);
                    }
                }
                Step::Fail(fails) => {
                    is_failing = fails;
                    control(&format!("limit={LIMIT}\nlost={}", if fails { ILLEGAL_ADDRESS } else { 0 }));
                }
            }
            if !is_failing {
                let now = balance();
                prop_assert_eq!((now.allocations, now.pinned), (memories.len(), pinned.len()));
            }
        }
        drop((memories, pinned, copies, card));
        prop_assert!(balance().is_empty());
    });
}
