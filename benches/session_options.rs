//! What one set of ONNX Runtime's session options costs in time, processor time and memory, in a process of its own, since
//! a process's peak cannot be taken back. `benches/session_options.sh` runs it for many sets and makes the table of
//! `docs/runtime-options.md`.
//!
//! ```sh
//! cargo bench --bench session_options -- MODEL [NAME=VALUE]...
//! ```
//! Without any `NAME=VALUE` the session is the plugin's own on two threads. Names:
//! - `callers`, `threads`: so many threads call `Run`, each run on so many threads;
//! - `pattern`, `arena`: 0 or 1; `level`: disable, basic, extended, layout or all; `parallel`: nodes at a time;
//! - `growth=requested`: the arena grows by what is asked for, not by powers of two;
//! - any name with a dot: a configuration entry of the session; without a value as ONNX Runtime has it;
//! - `runs`, `warm`: of each caller; `pause`: milliseconds between two runs, as with a live stream;
//! - `beside=1`: another thread does what a decoder does to memory, as fast as it can;
//! - `write`: only write the optimised model there, in the format that its ending (`.onnx`, `.ort`) says.
//!
//! Prints one line, fields separated by tabs: load ms, median ms of a run, frames/s, processor ms of a frame (with the
//! threads that only wait for work), resident MB after the runs, peak MB, and how much of its speed the thread beside kept.

#[path = "bare/mod.rs"]
mod bare;

use std::env;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bare::{Bare, Options};
use gstyolodetect::engine::runtime;
use gstyolodetect::memory;
use ort::AsPointer;
use ort::environment::Environment;
use ort::memory::MemoryInfo;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::Tensor;

const SIZE: usize = 640;

struct Case {
    model: PathBuf,
    options: Options,
    callers: usize,
    runs: usize,
    warm: usize,
    pause: Duration,
    beside: bool,
    growth: bool,
    write: Option<PathBuf>,
}

impl Case {
    fn from_arguments() -> Self {
        let mut arguments = env::args().skip(1).filter(|argument| argument != "--bench");
        let mut case = Self {
            model: arguments.next().expect("a model file").into(),
            options: Options::default(),
            callers: 1,
            runs: 10,
            warm: 3,
            pause: Duration::ZERO,
            beside: false,
            growth: false,
            write: None,
        };
        for argument in arguments {
            let (name, value) = argument.split_once('=').expect("NAME=VALUE");
            let number = || value.parse::<usize>().expect("a number");
            match name {
                "callers" => case.callers = number(),
                "threads" => case.options.threads = number(),
                "pattern" => case.options.pattern = number() == 1,
                "arena" => case.options.arena = number() == 1,
                "parallel" => case.options.parallel = Some(number()),
                "level" => case.options.level = level(value),
                "growth" => case.growth = value == "requested",
                "runs" => case.runs = number(),
                "warm" => case.warm = number(),
                "pause" => case.pause = Duration::from_millis(number() as u64),
                "beside" => case.beside = number() == 1,
                "write" => case.write = Some(value.into()),
                entry if entry.contains('.') => set(&mut case.options, entry, value),
                _ => panic!("what is {name}?"),
            }
        }
        case
    }
}

fn set(options: &mut Options, key: &str, value: &str) {
    options.entries.retain(|(known, _)| known != key);
    if !value.is_empty() {
        options.entries.push((key.into(), value.into()));
    }
}

fn level(name: &str) -> GraphOptimizationLevel {
    match name {
        "disable" => GraphOptimizationLevel::Disable,
        "basic" => GraphOptimizationLevel::Level1,
        "extended" => GraphOptimizationLevel::Level2,
        "layout" => GraphOptimizationLevel::Level3,
        "all" => GraphOptimizationLevel::All,
        _ => panic!("what is the level {name}?"),
    }
}

fn write(environment: &Environment, case: &Case, path: &Path) {
    let builder = case.options.builder(environment).unwrap();
    let format = if path.extension().is_some_and(|ending| ending == "ort") { "ORT" } else { "ONNX" };
    builder
        .with_optimized_model_path(path)
        .unwrap()
        .with_config_entry("session.save_model_format", format)
        .unwrap()
        .commit_from_file(&case.model)
        .unwrap();
}

/// An arena of the environment, which sessions use that ask for it, and that grows by what is asked for.
fn register_arena(environment: &Environment) {
    let (keys, values) = ([c"arena_extend_strategy".as_ptr()], [1]);
    let mut arena = std::ptr::null_mut();
    let api = ort::api();
    let memory = MemoryInfo::default();
    // SAFETY: all pointers are alive during the calls; the description of the arena is copied, and released here.
    unsafe {
        ort::Error::result_from_status((api.CreateArenaCfgV2)(keys.as_ptr(), values.as_ptr(), 1, &mut arena))
            .unwrap();
        let registered = (api.CreateAndRegisterAllocator)(environment.ptr().cast_mut(), memory.ptr(), arena);
        ort::Error::result_from_status(registered).unwrap();
        (api.ReleaseArenaCfg)(arena);
    }
}

/// As smooth and as noisy as a picture: no denormal numbers, no constant areas.
fn picture() -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(12);
    let value = |index: usize| {
        let (x, y) = ((index % SIZE) as f32, (index / SIZE % SIZE) as f32);
        0.5 + 0.3 * (x / 53.0).sin() * (y / 37.0).cos() + 0.1 * random.f32()
    };
    (0..3 * SIZE * SIZE).map(value).collect()
}

/// What a decoder does to memory: blocks of the last frame, with something added, become blocks of the next one. Goes on
/// until it is told to stop, and gives the blocks that it made, the seconds by the clock and of the processor.
fn decode_like(stop: &AtomicBool) -> (f64, f64, f64) {
    const BLOCK: usize = 16 * 1024;
    let mut frames = [vec![1_u8; 1920 * 1088], vec![2_u8; 1920 * 1088]];
    let (start, time) = (Instant::now(), clock(libc::CLOCK_THREAD_CPUTIME_ID));
    let mut blocks = 0.0;
    while !stop.load(Ordering::Relaxed) {
        let [from, to] = &mut frames;
        for (to, from) in to.chunks_exact_mut(BLOCK).zip(from.chunks_exact(BLOCK)) {
            for _ in 0..8 {
                for (to, from) in to.iter_mut().zip(from) {
                    *to = to.saturating_add(from / 2) ^ 3;
                }
            }
            blocks += 1.0;
        }
        frames.swap(0, 1);
    }
    std::hint::black_box(&frames);
    (blocks, start.elapsed().as_secs_f64(), clock(libc::CLOCK_THREAD_CPUTIME_ID) - time)
}

/// Seconds.
fn clock(which: libc::clockid_t) -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the place to write to is ours, and the clock is one that every Linux has.
    unsafe { libc::clock_gettime(which, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Seconds of each run.
fn call(session: &Bare, runs: usize, pause: Duration) -> Vec<f64> {
    let input = Tensor::from_array(([1, 3, SIZE, SIZE], picture())).unwrap();
    (0..runs)
        .map(|_| {
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
            let start = Instant::now();
            let finite = session.run(&input, |values| values.iter().step_by(997).all(|v| v.is_finite()));
            assert!(finite.unwrap());
            start.elapsed().as_secs_f64()
        })
        .collect()
}

/// Runs of all callers together.
fn call_all(session: &Bare, case: &Case, runs: usize) -> Vec<f64> {
    std::thread::scope(|scope| {
        let callers: Vec<_> =
            (1..case.callers).map(|_| scope.spawn(|| call(session, runs, case.pause))).collect();
        let mut times = call(session, runs, case.pause);
        callers.into_iter().for_each(|caller| times.extend(caller.join().unwrap()));
        times
    })
}

/// In MB.
fn status(name: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0 / 1e6
}

fn main() {
    // `cargo test --benches` gives no model.
    if env::args().len() < 2 {
        return;
    }
    let case = Case::from_arguments();
    let environment = runtime::environment(None).unwrap();
    if let Some(path) = &case.write {
        return write(environment, &case, path);
    }
    if case.growth {
        register_arena(environment);
    }
    let alone = case.beside.then(|| {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| decode_like(&stop));
            std::thread::sleep(Duration::from_millis(300));
            stop.store(true, Ordering::Relaxed);
            let (blocks, seconds, _) = thread.join().unwrap();
            blocks / seconds
        })
    });
    let start = Instant::now();
    let session = Bare::open(environment, &case.model, &case.options).unwrap();
    let load = start.elapsed().as_secs_f64();
    // As the plugin does.
    memory::return_free_heap();
    call_all(&session, &case, case.warm);
    memory::return_free_heap();

    let stop = AtomicBool::new(false);
    let (times, elapsed, processor, kept) = std::thread::scope(|scope| {
        let beside = alone.map(|alone| (alone, scope.spawn(|| decode_like(&stop))));
        let (start, time) = (Instant::now(), clock(libc::CLOCK_PROCESS_CPUTIME_ID));
        let times = call_all(&session, &case, case.runs);
        let (elapsed, all) = (start.elapsed(), clock(libc::CLOCK_PROCESS_CPUTIME_ID) - time);
        stop.store(true, Ordering::Relaxed);
        let Some((alone, thread)) = beside else { return (times, elapsed, all, None) };
        let (blocks, seconds, own) = thread.join().unwrap();
        (times, elapsed, all - own, Some(blocks / seconds / alone))
    });
    let mut sorted = times;
    sorted.sort_by(f64::total_cmp);
    let frames = sorted.len() as f64;
    let kept = kept.map_or("-".into(), |kept: f64| format!("{:.1}", kept * 100.0));
    println!(
        "{:.1}\t{:.2}\t{:.3}\t{:.2}\t{:.1}\t{:.1}\t{kept}",
        load * 1000.0,
        sorted[sorted.len() / 2] * 1000.0,
        frames / elapsed.as_secs_f64(),
        processor / frames * 1000.0,
        status("VmRSS"),
        status("VmHWM"),
    );
}
