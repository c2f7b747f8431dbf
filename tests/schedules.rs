//! Hundreds of random schedules of play, pause, seek, caps change, stop, removal and end of stream, over four
//! streams that share an engine: nothing hangs, nothing is lost but by a flush or a stop, nothing is left
//! behind.
//!
//! A failure prints seed and schedule; `YOLODETECT_SEED` and `YOLODETECT_SCHEDULE` play that one alone.

#[path = "common/branch.rs"]
mod branch;
mod common;
#[path = "common/random.rs"]
mod random;
#[path = "common/rig.rs"]
mod rig;

use std::sync::mpsc;
use std::time::Duration;

use branch::Branch;
use common::{another_process, is_child, own_tiny, within};
use gst::prelude::*;
use random::Random;

const SCHEDULES: u64 = 500;
const STREAMS: usize = 4;
const STEPS: u64 = 24;

/// Much longer than any step takes.
const STEP_PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
enum Step {
    Play,
    Pause,
    /// To READY or NULL.
    Stop(gst::State),
    /// With a flush, to so many ms.
    Flush(u64),
    /// Without one.
    Seek(u64),
    /// To pictures of this size.
    Caps(u32),
    /// Taken out of the pipeline and let go of, or added anew.
    Remove,
    Add,
    End,
    /// Until so many more frames have come out.
    Frames(usize),
    /// So many µs.
    Wait(u64),
}

fn any_step(random: &mut Random) -> Step {
    match random.within(0..24) {
        0..4 => Step::Play,
        4 | 5 => Step::Pause,
        6 => Step::Stop(*random.pick(&[gst::State::Ready, gst::State::Null])),
        7..10 => Step::Flush(random.within(0..5000)),
        10 => Step::Seek(random.within(0..5000)),
        11..14 => Step::Caps(*random.pick(&[32, 64, 96, 128])),
        14 => Step::Remove,
        15 | 16 => Step::Add,
        17 => Step::End,
        18..22 => Step::Frames(random.within(1..12) as usize),
        _ => Step::Wait(random.within(0..2000)),
    }
}

/// One schedule: which stream does what.
fn schedule(seed: u64, number: u64) -> Vec<(usize, Step)> {
    let mut random = Random::new(seed, number);
    let mut any = || (random.within(0..STREAMS as u64) as usize, any_step(&mut random));
    (0..STEPS).map(|_| any()).collect()
}

/// The settings of a stream; the same for each schedule of this number.
fn properties(seed: u64, number: u64, stream: u64) -> String {
    let mut random = Random::new(seed, SCHEDULES + STREAMS as u64 * number + stream);
    format!(
        "max-batch={} batch-delay={} max-in-flight={} overload={}",
        random.pick(&[1, 1, 2, 4]),
        random.pick(&[0, 0, 1_000_000]),
        random.pick(&[0, 0, 1, 5]),
        random.pick(&["block", "block", "skip"]),
    )
}

struct Play {
    pipeline: gst::Pipeline,
    seed: u64,
    number: u64,
    model: String,
    branches: [Option<Branch>; STREAMS],
    /// Frames that came out, and runs of frames that were cut off.
    frames: usize,
    cuts: usize,
}

impl Play {
    fn new(seed: u64, number: u64, model: &str) -> Self {
        let pipeline = gst::Pipeline::new();
        // Its branches go their own ways.
        pipeline.set_state(gst::State::Playing).unwrap();
        let mut play = Self {
            pipeline,
            seed,
            number,
            model: model.into(),
            branches: [const { None }; STREAMS],
            frames: 0,
            cuts: 0,
        };
        (0..STREAMS).for_each(|stream| play.add(stream));
        play
    }

    fn add(&mut self, stream: usize) {
        let properties = properties(self.seed, self.number, stream as u64);
        let description = format!("model-file={} threads=1 {properties}", self.model);
        self.branches[stream] = Some(Branch::new(&self.pipeline, &description));
    }

    fn remove(&mut self, stream: usize) {
        if let Some(branch) = self.branches[stream].take() {
            let (frames, cuts) = branch.remove(&self.pipeline);
            self.frames += frames;
            self.cuts += cuts;
        }
    }

    fn step(&mut self, stream: usize, step: Step) {
        match (&mut self.branches[stream], step) {
            (None, Step::Add) => self.add(stream),
            (Some(_), Step::Remove) => self.remove(stream),
            (_, Step::Wait(time)) => std::thread::sleep(Duration::from_micros(time)),
            (Some(branch), Step::Play) => branch.set_state(gst::State::Playing),
            (Some(branch), Step::Pause) => branch.set_state(gst::State::Paused),
            (Some(branch), Step::Stop(state)) => branch.set_state(state),
            (Some(branch), Step::Flush(to)) => branch.flush_to(to),
            (Some(branch), Step::Seek(to)) => branch.seek_to(to),
            (Some(branch), Step::Caps(size)) => branch.set_size(size),
            (Some(branch), Step::End) => branch.end(),
            (Some(branch), Step::Frames(count)) => branch.until_frames(count),
            (Some(_), Step::Add) | (None, _) => (),
        }
    }

    /// Every stream is well: frames come, then its end.
    fn finish(mut self) -> (usize, usize) {
        for branch in self.branches.iter_mut().flatten() {
            branch.revive();
            branch.until_frames(3);
            branch.end();
        }
        (0..STREAMS).for_each(|stream| self.remove(stream));
        self.pipeline.set_state(gst::State::Null).unwrap();
        let bus = self.pipeline.bus().unwrap();
        let bad = bus.pop_filtered(&[gst::MessageType::Error, gst::MessageType::Warning]);
        assert!(bad.is_none(), "{bad:?}");
        bus.set_flushing(true);
        let (weak, counts) = (self.pipeline.downgrade(), (self.frames, self.cuts));
        drop((self, bus));
        assert!(weak.upgrade().is_none(), "the pipeline is still held");
        counts
    }
}

/// Plays one schedule on a thread of its own, and fails where a step takes for ever. Frames and cuts are
/// counted.
fn play(seed: u64, number: u64, model: &str) -> (usize, usize) {
    let steps = schedule(seed, number);
    let context = format!("YOLODETECT_SEED={seed} YOLODETECT_SCHEDULE={number}");
    let (begin, begun) = mpsc::channel();
    let thread = std::thread::spawn({
        let (steps, model) = (steps.clone(), model.to_string());
        move || {
            let mut play = Play::new(seed, number, &model);
            for (index, (stream, step)) in steps.into_iter().enumerate() {
                begin.send(index).unwrap();
                play.step(stream, step);
            }
            play.finish()
        }
    });
    let mut at = 0;
    loop {
        match begun.recv_timeout(STEP_PATIENCE) {
            Ok(index) => at = index,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                panic!("{context} hangs at step {at} or its end: {steps:?}")
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    let outcome = thread.join();
    outcome.unwrap_or_else(|_| panic!("{context} failed at step {at} or its end: {steps:?}"))
}

/// Threads and open files, once GLib has let go of the threads that it keeps for later.
fn belongings() -> (usize, usize) {
    gst::glib::ThreadPool::stop_unused_threads();
    let count = |what| std::fs::read_dir(format!("/proc/self/{what}")).unwrap().count();
    (count("task"), count("fd"))
}

#[test]
fn hundreds_of_schedules_lose_nothing_and_leave_nothing() {
    const TEST: &str = "hundreds_of_schedules_lose_nothing_and_leave_nothing";
    if !is_child() {
        // In a process of its own, where GStreamer counts all that is alive at the end.
        let library = common::library();
        let tracer = [("GST_TRACERS", "leaks"), ("GST_DEBUG", "GST_TRACER:7"), ("GST_DEBUG_NO_COLOR", "1")];
        let output = another_process(TEST, Some(&library), &tracer);
        print!("{}", String::from_utf8_lossy(&output.stdout));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        // Not the lines that only describe the format.
        let is_alive = |line: &&str| line.contains("object-alive, ") && !line.contains("%s");
        let alive: Vec<_> = text.lines().filter(is_alive).collect();
        assert!(alive.is_empty(), "{}", alive.join("\n"));
        return;
    }
    common::init();
    let seed = random::seed();
    let only = std::env::var("YOLODETECT_SCHEDULE").ok().map(|text| text.parse::<u64>().unwrap());
    within(Duration::from_secs(550), "the schedules", move || {
        let model = own_tiny("v8_dynamic_batch", "schedules");
        // What is made once in a process is made.
        play(seed, 0, &model);
        let before = belongings();
        let numbers = only.map_or(0..SCHEDULES, |number| number..number + 1);
        let counts = numbers.map(|number| play(seed, number, &model));
        let (frames, cuts) = counts.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        println!("{frames} frames came out, {cuts} runs of frames were cut off");
        assert!(only.is_some() || (frames > 10_000 && cuts > 200), "the schedules do little");
        let same = |now: (usize, usize)| now.0 <= before.0 && now.1 <= before.1;
        branch::until("end of all threads and files", || same(belongings()));
    });
    // SAFETY: nothing of GStreamer is used after this.
    unsafe { gst::deinit() };
}
