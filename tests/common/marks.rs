//! Pictures that say which stream and which frame they are, for the model `quarters`.
//!
//! Each quarter of a picture is of one grey; grey survives every pixel format, and sixteen steps of it are
//! far enough apart for rounding. Four quarters are sixteen bits: four of the stream, twelve of the frame.
#![allow(dead_code)]

use gst_video::{VideoColorRange, VideoInfo};

use super::rig::Seen;

pub const STREAMS: u64 = 1 << 4;
pub const FRAMES: u64 = 1 << 12;

/// Below every grey that is used.
pub const THRESHOLD: &str = "0.01";

const STEP: u64 = 16;

/// Numbers beyond [`STREAMS`] and [`FRAMES`] begin anew.
pub fn mark(stream: u64, frame: u64) -> u64 {
    (stream % STREAMS) * FRAMES + frame % FRAMES
}

/// A picture from 16x16 on and up to 2:1.
pub fn picture(info: &VideoInfo, mark: u64, pts: gst::ClockTime) -> gst::Buffer {
    let mut bytes = vec![0u8; info.size()];
    let format = info.format_info();
    let limited = info.colorimetry().range() == VideoColorRange::Range16_235;
    for component in 0..info.n_components() as u8 {
        let (width, height) = (info.comp_width(component) as usize, info.comp_height(component) as usize);
        let (stride, step) = (info.comp_stride(component) as usize, info.comp_pstride(component) as usize);
        let is_grey = !format.is_yuv() || component == 0;
        let is_alpha = format.has_alpha() && component == 3;
        for y in 0..height {
            let row = info.comp_offset(component) + y * stride;
            for x in 0..width {
                let quarter = usize::from(2 * y >= height) * 2 + usize::from(2 * x >= width);
                let level = STEP / 2 + STEP * (mark >> (4 * (3 - quarter)) & 15);
                bytes[row + x * step] = match (is_alpha, is_grey) {
                    (true, _) => 255,
                    (_, false) => 128,
                    _ if limited => 16 + ((level * 219 + 127) / 255) as u8,
                    _ => level as u8,
                };
            }
        }
    }
    let mut buffer = gst::Buffer::from_mut_slice(bytes);
    buffer.get_mut().unwrap().set_pts(pts);
    buffer
}

/// The mark of the picture that a frame's detections were made from; `None` without detections.
pub fn read(seen: &Seen) -> Option<u64> {
    if seen.scores.is_empty() {
        return None;
    }
    assert_eq!(seen.scores.len(), 4, "four quarters: {seen:?}");
    let quarter = |class: u32| {
        let of_class = |score: &&(u32, f32)| score.0 == class;
        let (_, grey) =
            seen.scores.iter().find(of_class).unwrap_or_else(|| panic!("no class {class}: {seen:?}"));
        (grey * 255.0) as u64 / STEP
    };
    Some((0..4).fold(0, |mark, class| mark * 16 + quarter(class)))
}
