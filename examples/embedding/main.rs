//! Embedding `yolodetect` in Rust: the graph as `gst-launch-1.0` would write it, the metas in an appsink.
//!
//! ```sh
//! cargo run --example embedding MODEL FRAMES VIDEO...
//! ```
//!
//! Prints what `embed.c` beside this file does. It uses GStreamer alone; the plugin is found through
//! `GST_PLUGIN_PATH`, as by any application.

use std::process::ExitCode;

use gst::glib;
use gst::prelude::*;
use gst_video::VideoRegionOfInterestMeta;

/// Exit status of a wrong call, as of other command-line tools.
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((model, frames, videos)) = parse(&arguments) else {
        eprintln!("usage: embedding MODEL FRAMES VIDEO...");
        return ExitCode::from(WRONG_USAGE);
    };
    match run(model, frames, videos) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("error: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn parse(arguments: &[String]) -> Option<(&str, u64, &[String])> {
    let [model, frames, videos @ ..] = arguments else { return None };
    let frames = frames.parse().ok()?;
    (!videos.is_empty()).then_some((model, frames, videos))
}

fn run(model: &str, frames: u64, videos: &[String]) -> Result<(), String> {
    gst::init().map_err(|error| error.to_string())?;
    let pipeline = build(model, frames, videos)?;
    let played = play(&pipeline);
    // Ends all threads, and must come before the last reference goes.
    let _ = pipeline.set_state(gst::State::Null);
    played
}

/// Regions alone: every GStreamer has them, and their ids are the detections'.
fn stream(number: usize) -> String {
    format!(
        "filesrc name=source{number} ! decodebin \
         ! yolodetect name=stream{number} analytics-meta=off roi-meta=on stats-interval=1000000000 \
         ! appsink name=sink{number} sync=false "
    )
}

fn build(model: &str, frames: u64, videos: &[String]) -> Result<gst::Pipeline, String> {
    let description: String = (0..videos.len()).map(stream).collect();
    let pipeline = gst::parse::launch(&description)
        .map_err(|error| format!("{}; is the plugin's folder in GST_PLUGIN_PATH?", error.message()))?;
    let pipeline = pipeline.downcast::<gst::Pipeline>().map_err(|_| "not a pipeline")?;
    let element = |name: String| pipeline.by_name(&name).ok_or(format!("there is no {name}"));
    for (number, video) in videos.iter().enumerate() {
        // Not in the text above: paths would have to be quoted there.
        element(format!("source{number}"))?.set_property("location", video);
        element(format!("stream{number}"))?.set_property("model-file", model);
        let sink = element(format!("sink{number}"))?;
        print_frames(&sink.downcast().map_err(|_| "not an appsink")?, frames);
    }
    Ok(pipeline)
}

// README: begin appsink
/// Prints so many frames, 0 is all of them. The callback runs in the detector's thread of this stream.
fn print_frames(sink: &gst_app::AppSink, frames: u64) {
    let mut seen = 0;
    let new_sample = move |sink: &gst_app::AppSink| {
        let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
        if let Some(line) = sample.buffer().and_then(describe) {
            println!("{line}");
        }
        seen += 1;
        if seen == frames { Err(gst::FlowError::Eos) } else { Ok(gst::FlowSuccess::Ok) }
    };
    sink.set_callbacks(gst_app::AppSinkCallbacks::builder().new_sample(new_sample).build());
}

fn describe(buffer: &gst::BufferRef) -> Option<String> {
    let meta = gst::meta::CustomMeta::from_buffer(buffer, "YoloDetectFrameMeta").ok()?;
    let frame = meta.structure();
    let (element, status): (&str, &str) = (frame.get("element").ok()?, frame.get("status").ok()?);
    let (number, first_id): (u64, u32) = (frame.get("frame").ok()?, frame.get("first-id").ok()?);
    let (classes, confidences): (glib::Bytes, glib::Bytes) =
        (frame.get("class-ids").ok()?, frame.get("confidences").ok()?);

    let mut line = format!("{element} {number} {status}");
    let (classes, confidences) = (classes.as_chunks().0, confidences.as_chunks().0);
    for (index, (class, confidence)) in classes.iter().zip(confidences).enumerate() {
        let id = first_id.wrapping_add(index as u32);
        let mut regions = buffer.iter_meta::<VideoRegionOfInterestMeta>();
        // An element that cuts the picture drops those that lie outside.
        let Some(region) = regions.find(|region| region.id() as u32 == id) else { continue };
        let (label, (x, y, w, h)) = (region.roi_type(), region.rect());
        let (class, confidence) = (u16::from_le_bytes(*class), f32::from_le_bytes(*confidence));
        line += &format!(" #{id} {label}({class}) {confidence:.2} [{x},{y},{w},{h}]");
    }
    Some(line)
}
// README: end appsink

/// Plays to the end, or to the first error.
fn play(pipeline: &gst::Pipeline) -> Result<(), String> {
    let bus = pipeline.bus().ok_or("the pipeline has no bus")?;
    // Waits while the model loads: an application with windows does this in a thread of its own.
    let started = pipeline.set_state(gst::State::Playing).is_ok();
    // Why it did not start is on the bus already.
    for message in bus.iter_timed((!started).then_some(gst::ClockTime::ZERO)) {
        let source = message.src().map(|source| source.name()).unwrap_or_default();
        match message.view() {
            gst::MessageView::Eos(_) => return Ok(()),
            gst::MessageView::Error(problem) => {
                return Err(describe_problem(&source, &problem.error(), problem.debug()));
            }
            gst::MessageView::Warning(problem) => {
                eprintln!("warning: {}", describe_problem(&source, &problem.error(), problem.debug()));
            }
            gst::MessageView::Element(_) => report_element(&source, message.structure()),
            gst::MessageView::Latency(_) => {
                let _ = pipeline.recalculate_latency();
            }
            _ => (),
        }
    }
    Err("the pipeline does not start".into())
}

fn describe_problem(source: &str, error: &glib::Error, debug: Option<glib::GString>) -> String {
    format!("{source}: {}\n{}", error.message(), debug.unwrap_or_default())
}

fn report_element(source: &str, fields: Option<&gst::StructureRef>) {
    let Some(fields) = fields else { return };
    let report = match fields.name().as_str() {
        "yolodetect-stats" => describe_stats(source, fields),
        "yolodetect-batch-reduced" => describe_reduced_batch(fields),
        "yolodetect-memory-pressure" => describe_memory_pressure(fields),
        _ => None,
    };
    if let Some(report) = report {
        eprintln!("{report}");
    }
}

fn describe_stats(source: &str, stats: &gst::StructureRef) -> Option<String> {
    let (inferred, out): (u64, u64) = (stats.get("inferred").ok()?, stats.get("frames-out").ok()?);
    let streams = stats.get::<gst::Structure>("engine").ok()?.get::<u32>("streams").ok()?;
    Some(format!("stats: {source}: {inferred} of {out} frames inferred, {streams} streams on the engine"))
}

fn describe_reduced_batch(fields: &gst::StructureRef) -> Option<String> {
    let model = fields.get::<&str>("model").ok()?;
    let (batch, limit): (u32, u32) = (fields.get("batch").ok()?, fields.get("limit").ok()?);
    Some(format!(
        "batch reduced: {model} had no memory for {batch} frames at once, takes {limit} from now on"
    ))
}

fn describe_memory_pressure(fields: &gst::StructureRef) -> Option<String> {
    let (level, source): (&str, &str) = (fields.get("level").ok()?, fields.get("source").ok()?);
    let freed = fields.get::<u64>("freed-bytes").ok()?;
    let actions = fields.get::<gst::Structure>("actions").ok()?;
    let names: Vec<_> = actions.fields().map(|name| name.as_str()).collect();
    let names = names.join(" ");
    Some(format!("memory pressure: {level}, by the {source}; {freed} bytes given back: {names}"))
}
