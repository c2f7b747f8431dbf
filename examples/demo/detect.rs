//! The pipeline, from the source to the files.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use gst::glib;
use gst::prelude::*;

use crate::arguments::Job;
use crate::interrupt;
use crate::memory::Watch;
use crate::progress::{Counter, Display};
use crate::tally::Tally;
use crate::uri;

/// Pads are linked as they appear ([`set_up_source`]).
const SOURCE: &str = "uridecodebin name=source";

/// `videoconvert` passes on what `yolodetect` reads as it is; it is there for the rest, such as pictures of 16 bits a
/// channel.
const DETECTION: &str = "videoconvert name=entry ! yolodetect name=detector";

/// The overlay stands before the tee: behind it, every frame would be in use by the other branch, and drawing would
/// have to copy it. The queues hold few frames, or a slow disk would fill the memory; the encoder looks at one frame
/// at a time for the same reason. H.264 in 4:2:0 plays everywhere, but has even sides only.
const FILES: &str = "yolooverlay ! tee name=frames \
    frames. ! queue max-size-buffers=2 max-size-bytes=0 max-size-time=0 \
        ! videoconvert ! videoscale ! video/x-raw,format=I420,width=[2,16384,2],height=[2,16384,2] \
        ! x264enc tune=zerolatency speed-preset=superfast pass=qual quantizer=22 key-int-max=50 threads=1 \
        ! h264parse ! mp4mux ! filesink name=video \
    frames. ! queue max-size-buffers=2 max-size-bytes=0 max-size-time=0 \
        ! yolojson name=lines ! filesink name=text";

/// A camera's jitter buffer. GStreamer's two seconds are much memory and a late picture.
const CAMERA_LATENCY_MS: u32 = 200;

/// Every thread of the software decoders holds frames of its own; detection is slower than two of them.
const DECODER_THREADS: i32 = 2;

const DISPLAY_INTERVAL: Duration = Duration::from_millis(200);

pub fn run(job: &Job) -> Result<(), String> {
    interrupt::listen();
    let memory = Watch::start();
    let start = Instant::now();
    let pipeline = build(job)?;
    let (counter, tally) = (Counter::default(), Tally::default());
    counter.watch(&pad(&pipeline, "detector", "src")?);
    if !job.detect_only {
        tally.watch(&pad(&pipeline, "lines", "src")?);
    }

    let played = play(&pipeline, &counter, job.limit);
    let elapsed = start.elapsed().as_secs_f64();
    // Before the state changes: what stopping takes is nobody's peak.
    let peak = memory.peak();
    let _ = pipeline.set_state(gst::State::Null);
    let counted = counter.get();
    let outcome = played.and_then(|()| match counted.frames {
        0 => Err(format!("{} has no frames", job.source)),
        _ => Ok(()),
    });
    if !job.detect_only {
        settle_files(job, outcome.is_ok())?;
    }
    outcome?;

    let speed = counted.frames_per_second().map_or(String::new(), |speed| format!(", {speed:.1} frames/s"));
    let frames = plural(counted.frames, "frame");
    if job.detect_only {
        println!("decoding and detection alone, {}: {frames}{speed}, {peak}", threads(job.threads));
    } else {
        println!("{frames} in {elapsed:.1} s{speed}\n\n{}\n{peak}", tally.get());
    }
    Ok(())
}

/// What the files are called until they are complete: a run that fails leaves the results of an earlier one alone.
fn unfinished(job: &Job, name: &str) -> PathBuf {
    job.out.join(format!(".{name}.part"))
}

fn settle_files(job: &Job, complete: bool) -> Result<(), String> {
    for name in ["annotated.mp4", "detections.jsonl"] {
        let part = unfinished(job, name);
        let settled = match complete {
            true => std::fs::rename(&part, job.out.join(name)),
            false => std::fs::remove_file(&part),
        };
        if complete {
            settled.map_err(|error| format!("{}: {error}", part.display()))?;
        }
    }
    Ok(())
}

fn threads(count: u32) -> String {
    if count == 0 { "all processors".into() } else { plural(count.into(), "thread") }
}

fn plural(count: u64, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

fn build(job: &Job) -> Result<gst::Pipeline, String> {
    let description = match job.detect_only {
        true => format!("{SOURCE} {DETECTION} ! fakesink"),
        false => format!("{SOURCE} {DETECTION} ! {FILES}"),
    };
    let pipeline =
        gst::parse::launch(&description).map_err(|error| match error.kind::<gst::ParseError>() {
            Some(gst::ParseError::NoSuchElement) => {
                format!(
                    "{}; set GST_PLUGIN_PATH: eval \"$(pipelines/setup.sh --print-env)\"",
                    error.message()
                )
            }
            _ => error.message().to_string(),
        })?;
    let pipeline = pipeline.downcast::<gst::Pipeline>().map_err(|_| "not a pipeline")?;

    let detector = element(&pipeline, "detector")?;
    detector.set_property("model-file", path(&job.model));
    detector.set_property("threads", job.threads);
    if !job.detect_only {
        std::fs::create_dir_all(&job.out).map_err(|error| format!("{}: {error}", job.out.display()))?;
        element(&pipeline, "video")?.set_property("location", path(&unfinished(job, "annotated.mp4")));
        element(&pipeline, "text")?.set_property("location", path(&unfinished(job, "detections.jsonl")));
    }
    set_up_source(&pipeline, &job.source)?;
    Ok(pipeline)
}

fn set_up_source(pipeline: &gst::Pipeline, name: &str) -> Result<(), String> {
    let source = element(pipeline, "source")?;
    source.set_property("uri", uri(name)?);
    source.connect("source-setup", false, |values| {
        let inner = values.get(1)?.get::<gst::Element>().ok()?;
        if inner.has_property_with_type("latency", u32::static_type()) {
            inner.set_property("latency", CAMERA_LATENCY_MS);
        }
        None
    });
    pipeline.connect_deep_element_added(|_, _, element| {
        if element.has_property_with_type("max-threads", i32::static_type()) {
            element.set_property("max-threads", DECODER_THREADS);
        }
    });
    source.connect("autoplug-continue", false, |values| {
        Some(values.get(2)?.get::<gst::Caps>().is_ok_and(|caps| !is_no_picture(&caps)).to_value())
    });

    let entry = pad(pipeline, "entry", "sink")?;
    source.connect_pad_added({
        let entry = entry.downgrade();
        move |_, new| {
            let video = new.current_caps().or_else(|| Some(new.query_caps(None))).is_some_and(|caps| {
                caps.structure(0).is_some_and(|structure| structure.name().starts_with("video/x-raw"))
            });
            if let Some(entry) = entry.upgrade().filter(|entry| video && !entry.is_linked())
                && let Err(error) = new.link(&entry)
            {
                gst::warning!(gst::CAT_RUST, obj = new, "not linked: {error}");
            }
        }
    });
    source.connect_no_more_pads({
        let (entry, name) = (entry.downgrade(), name.to_string());
        move |source| {
            if entry.upgrade().is_some_and(|entry| !entry.is_linked()) {
                gst::element_error!(source, gst::StreamError::WrongType, ("there is no video in {name}"));
            }
        }
    });
    Ok(())
}

/// Sound and subtitles: not worth decoding here.
fn is_no_picture(caps: &gst::Caps) -> bool {
    let name = caps.structure(0).map_or("", |structure| structure.name().as_str());
    ["audio/", "text/", "subpicture/"].iter().any(|kind| name.starts_with(kind))
}

/// Runs until the end, an error, Ctrl-C or the limit.
fn play(pipeline: &gst::Pipeline, counter: &Counter, limit: Option<Duration>) -> Result<(), String> {
    let main_loop = glib::MainLoop::new(None, false);
    let failure = Rc::new(RefCell::new(None));
    let display = Rc::new(RefCell::new(Display::new()));
    let bus = pipeline.bus().ok_or("the pipeline has no bus")?;
    let watch = bus.add_watch_local({
        let (main_loop, failure, display) = (main_loop.clone(), failure.clone(), display.clone());
        move |_, message| {
            match message.view() {
                gst::MessageView::Eos(_) => main_loop.quit(),
                gst::MessageView::Error(error) => {
                    failure.borrow_mut().get_or_insert_with(|| explain(error));
                    main_loop.quit();
                }
                gst::MessageView::Warning(warning) => {
                    display.borrow().clear();
                    eprintln!("warning: {}", warning.error());
                }
                _ => (),
            }
            glib::ControlFlow::Continue
        }
    });
    let _watch = watch.map_err(|error| error.to_string())?;

    let timer = glib::timeout_add_local(DISPLAY_INTERVAL, {
        let (pipeline, counter) = (pipeline.clone(), counter.clone());
        let (main_loop, display) = (main_loop.clone(), display.clone());
        let start = Instant::now();
        let mut stopping = false;
        move || {
            let due = interrupt::requested() || limit.is_some_and(|limit| start.elapsed() >= limit);
            if due && !stopping {
                stopping = true;
                stop(&pipeline, &counter, &main_loop);
            }
            display.borrow_mut().show(&counter.get(), pipeline.query_duration());
            glib::ControlFlow::Continue
        }
    });

    // A failure to start is told on the bus, with its reason.
    if pipeline.set_state(gst::State::Playing).is_err() && bus.peek().is_none() {
        return Err("the pipeline does not start".into());
    }
    main_loop.run();
    timer.remove();
    display.borrow().clear();
    failure.take().map_or(Ok(()), Err)
}

/// The element's own message, and the details that it may have given, without the place in its source code.
fn explain(error: &gst::message::Error) -> String {
    let debug = error.debug().unwrap_or_default();
    let details = debug.lines().skip(1).map(|line| format!("\n  {line}"));
    std::iter::once(error.error().to_string()).chain(details).collect()
}

/// Ends the stream at the detector, so that what is in flight still gets into the files and these their ends. The
/// frames that the decoder has in stock are not waited for.
fn stop(pipeline: &gst::Pipeline, counter: &Counter, main_loop: &glib::MainLoop) {
    match pad(pipeline, "detector", "sink") {
        // In a thread: the event waits for the frame that is on its way in.
        Ok(sink) if counter.get().frames > 0 => {
            std::thread::spawn(move || sink.send_event(gst::event::Eos::new()));
        }
        // Nothing was detected yet, so there is nothing to finish.
        _ => main_loop.quit(),
    }
}

fn element(pipeline: &gst::Pipeline, name: &str) -> Result<gst::Element, String> {
    pipeline.by_name(name).ok_or_else(|| format!("there is no element {name}"))
}

fn pad(pipeline: &gst::Pipeline, name: &str, pad: &str) -> Result<gst::Pad, String> {
    element(pipeline, name)?.static_pad(pad).ok_or_else(|| format!("{name} has no pad {pad}"))
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
