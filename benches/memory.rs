//! What it costs to look at memory: one sample of everything, by itself and with a fragmented heap, and the share of a core
//! that is at one sample a second.
//!
//! ```sh
//! cargo bench --bench memory
//! ```

use std::time::{Duration, Instant};

use gstyolodetect::memory;
use gstyolodetect::memory::sample::{Sample, Sampler, SystemSampler};

const SAMPLES: u32 = 2000;

/// The processor time of this thread: others on the machine do not count.
fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the place to write to is ours, and the clock is one that every Linux has.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn measure(what: &str, mut work: impl FnMut()) {
    work();
    let (clock, time) = (Instant::now(), thread_time());
    (0..SAMPLES).for_each(|_| work());
    let (clock, time) = (clock.elapsed() / SAMPLES, (thread_time() - time) / SAMPLES);
    let share = time.as_secs_f64() * 100.0;
    println!(
        "{what:40} {time:>10.1?} of a core, {clock:>10.1?} by the clock: {share:.4} % of a core at one a second"
    );
}

fn main() {
    let (mut sampler, mut sample) = (SystemSampler::default(), Sample::default());
    measure("a sample", || sampler.sample(&mut sample));
    println!("{sample:?}");
    let mut kept: Vec<Vec<u8>> = (0..100_000).map(|index| vec![1; 100 + index % 1000]).collect();
    let mut index = 0;
    kept.retain(|_| {
        index += 1;
        index % 2 == 0
    });
    measure("with 50,000 holes in the heap", || sampler.sample(&mut sample));
    println!(
        "{:?}, {:.2} free of what is used",
        sample.heap,
        sample.heap.map_or(0.0, |heap| heap.fragmentation())
    );
    drop(kept);
    measure("the resident set alone", || {
        memory::resident_bytes();
    });
    measure("an overview", || {
        memory::overview();
    });
    measure("the level, as for a buffer", || {
        std::hint::black_box(memory::monitor::level());
    });
}
