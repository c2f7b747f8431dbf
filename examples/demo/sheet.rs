//! The contact sheet: frames of a video, evenly spread, in a grid.

use std::path::Path;

use gst::prelude::*;
use gst_video::prelude::*;

use crate::uri;

/// Of landscape video: two columns of three.
const TILES: u64 = 6;

/// Largest tile; a smaller video keeps its size.
const TILE: (u32, u32) = (640, 640);

/// Between the tiles and around them, pixels.
const GAP: usize = 8;

/// RGB, around the tiles.
const PAPER: [u8; 3] = [24, 26, 30];

const PATIENCE: gst::ClockTime = gst::ClockTime::from_seconds(30);

/// RGB without padding.
struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

pub fn run(video: &str, picture: &Path) -> Result<(), String> {
    let tiles = frames(video)?;
    let sheet = arrange(&tiles).ok_or_else(|| format!("{video} has no frames"))?;
    save(sheet, picture)
}

/// Evenly spread frames, each once.
fn frames(video: &str) -> Result<Vec<Picture>, String> {
    let (width, height) = TILE;
    let pipeline = launch(&format!(
        "uridecodebin name=source ! videoconvert ! videoscale method=lanczos \
         ! video/x-raw,format=RGB,pixel-aspect-ratio=1/1,width=[1,{width}],height=[1,{height}] \
         ! appsink name=frames sync=false max-buffers=1"
    ))?;
    if let Some(source) = pipeline.by_name("source") {
        source.set_property("uri", uri(video)?);
    }
    let sink = pipeline.by_name("frames").and_then(|sink| sink.downcast::<gst_app::AppSink>().ok());
    let sink = sink.ok_or("there is no appsink")?;
    let frames = collect(&pipeline, &sink);
    let _ = pipeline.set_state(gst::State::Null);
    frames
}

fn collect(pipeline: &gst::Pipeline, sink: &gst_app::AppSink) -> Result<Vec<Picture>, String> {
    let _ = pipeline.set_state(gst::State::Paused);
    let mut samples = vec![shown(pipeline, sink)?];
    // Without a duration it is a single picture, or nothing that can be sought.
    if let Some(duration) = pipeline.query_duration::<gst::ClockTime>() {
        for tile in 0..TILES {
            let middle = duration.nseconds() / (2 * TILES) * (2 * tile + 1);
            let flags = gst::SeekFlags::FLUSH | gst::SeekFlags::ACCURATE;
            if pipeline.seek_simple(flags, gst::ClockTime::from_nseconds(middle)).is_ok()
                && let Ok(sample) = shown(pipeline, sink)
            {
                samples.push(sample);
            }
        }
        if samples.len() > 1 {
            samples.remove(0);
        }
        samples.dedup_by_key(|sample| sample.buffer().and_then(|buffer| buffer.pts()));
    }
    samples.iter().map(read).collect()
}

/// The frame at which the paused pipeline stands.
fn shown(pipeline: &gst::Pipeline, sink: &gst_app::AppSink) -> Result<gst::Sample, String> {
    let (state, ..) = pipeline.state(PATIENCE);
    match sink.try_pull_preroll(if state.is_ok() { PATIENCE } else { gst::ClockTime::ZERO }) {
        Some(sample) => Ok(sample),
        None => Err(failure(pipeline).unwrap_or_else(|| "there is no frame".into())),
    }
}

fn read(sample: &gst::Sample) -> Result<Picture, String> {
    let info = sample.caps().and_then(|caps| gst_video::VideoInfo::from_caps(caps).ok()).ok_or("no video")?;
    let buffer = sample.buffer().ok_or("no frame")?;
    let frame =
        gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, &info).map_err(|e| e.to_string())?;
    let (width, height) = (info.width() as usize, info.height() as usize);
    let stride = frame.plane_stride()[0] as usize;
    let rows = frame.plane_data(0).map_err(|error| error.to_string())?.chunks(stride);
    let pixels = rows.take(height).flat_map(|row| &row[..3 * width]).copied().collect();
    Ok(Picture { width, height, pixels })
}

/// All tiles have the first one's size; `None` for none.
fn arrange(tiles: &[Picture]) -> Option<Picture> {
    let Picture { width, height, .. } = *tiles.first()?;
    let columns = tiles.len().min(if width > height { 2 } else { 3 });
    let rows = tiles.len().div_ceil(columns);
    let mut sheet = Picture {
        width: columns * (width + GAP) + GAP,
        height: rows * (height + GAP) + GAP,
        pixels: Vec::new(),
    };
    sheet.pixels = PAPER.repeat(sheet.width * sheet.height);
    for (index, tile) in tiles.iter().filter(|tile| (tile.width, tile.height) == (width, height)).enumerate()
    {
        let left = index % columns * (width + GAP) + GAP;
        let top = index / columns * (height + GAP) + GAP;
        for (y, row) in tile.pixels.chunks(3 * width).enumerate() {
            let start = 3 * ((top + y) * sheet.width + left);
            sheet.pixels[start..start + row.len()].copy_from_slice(row);
        }
    }
    Some(sheet)
}

fn save(picture: Picture, path: &Path) -> Result<(), String> {
    let pipeline = launch("appsrc name=picture ! videoconvert ! pngenc snapshot=true ! filesink name=file")?;
    if let Some(file) = pipeline.by_name("file") {
        file.set_property("location", path.to_string_lossy().into_owned());
    }
    let source = pipeline.by_name("picture").and_then(|source| source.downcast::<gst_app::AppSrc>().ok());
    let source = source.ok_or("there is no appsrc")?;
    source.set_format(gst::Format::Time);
    let caps = gst_video::VideoCapsBuilder::new()
        .format(gst_video::VideoFormat::Rgb)
        .width(picture.width as i32)
        .height(picture.height as i32)
        .framerate(gst::Fraction::new(0, 1))
        .build();
    source.set_caps(Some(&caps));
    let _ = pipeline.set_state(gst::State::Playing);
    let info = gst_video::VideoInfo::from_caps(&caps).map_err(|error| error.to_string())?;
    // A refusal has its reason on the bus.
    let _ = source.push_buffer(padded(&picture, info.stride()[0] as usize));
    let _ = source.end_of_stream();
    let bus = pipeline.bus().ok_or("no bus")?;
    let message = bus.timed_pop_filtered(PATIENCE, &[gst::MessageType::Eos, gst::MessageType::Error]);
    let _ = pipeline.set_state(gst::State::Null);
    match message.as_ref().map(|message| message.view()) {
        Some(gst::MessageView::Eos(_)) => Ok(()),
        Some(gst::MessageView::Error(error)) => Err(error.error().to_string()),
        _ => Err(format!("{} is not written after {PATIENCE}", path.display())),
    }
}

/// With the row stride that GStreamer expects: a multiple of four bytes.
fn padded(picture: &Picture, stride: usize) -> gst::Buffer {
    let mut bytes = vec![0; stride * picture.height];
    for (row, pixels) in bytes.chunks_mut(stride).zip(picture.pixels.chunks(3 * picture.width)) {
        row[..pixels.len()].copy_from_slice(pixels);
    }
    let mut buffer = gst::Buffer::from_slice(bytes);
    if let Some(buffer) = buffer.get_mut() {
        buffer.set_pts(gst::ClockTime::ZERO);
    }
    buffer
}

fn launch(description: &str) -> Result<gst::Pipeline, String> {
    let element = gst::parse::launch(description).map_err(|error| error.message().to_string())?;
    element.downcast().map_err(|_| "not a pipeline".into())
}

fn failure(pipeline: &gst::Pipeline) -> Option<String> {
    let message = pipeline.bus()?.pop_filtered(&[gst::MessageType::Error])?;
    match message.view() {
        gst::MessageView::Error(error) => Some(error.error().to_string()),
        _ => None,
    }
}
