//! What `yolodetect` agrees on with its neighbours: formats, frames' layout in memory, buffers, latency.

use std::env;
use std::sync::Arc;

use gst_video::prelude::*;
use gst_video::{VideoColorMatrix, VideoColorRange, VideoFormat, VideoInfo};
use once_cell::sync::Lazy;

use crate::memory::cuda;
use crate::memory::pool::{FramePool, Ledger, Rules};
use crate::preprocess::{ChromaSite, Colorimetry, FrameFormat, Matrix, PixelFormat, Plane, Range};

/// GStreamer's format and ours, in the order of preference: no format is converted, so the cheapest come first.
const FORMATS: [(VideoFormat, PixelFormat); 19] = [
    (VideoFormat::I420, PixelFormat::I420),
    (VideoFormat::Nv12, PixelFormat::Nv12),
    (VideoFormat::Yv12, PixelFormat::Yv12),
    (VideoFormat::Nv21, PixelFormat::Nv21),
    (VideoFormat::Y42b, PixelFormat::Y42b),
    (VideoFormat::Y444, PixelFormat::Y444),
    (VideoFormat::Yuy2, PixelFormat::Yuy2),
    (VideoFormat::Uyvy, PixelFormat::Uyvy),
    (VideoFormat::Rgb, PixelFormat::Rgb),
    (VideoFormat::Bgr, PixelFormat::Bgr),
    (VideoFormat::Rgbx, PixelFormat::Rgbx),
    (VideoFormat::Bgrx, PixelFormat::Bgrx),
    (VideoFormat::Xrgb, PixelFormat::Xrgb),
    (VideoFormat::Xbgr, PixelFormat::Xbgr),
    (VideoFormat::Rgba, PixelFormat::Rgba),
    (VideoFormat::Bgra, PixelFormat::Bgra),
    (VideoFormat::Argb, PixelFormat::Argb),
    (VideoFormat::Abgr, PixelFormat::Abgr),
    (VideoFormat::Gray8, PixelFormat::Gray8),
];

/// Frames in a GPU's memory are taken where this is 1 when the plugin is loaded: what was never tried on hardware is nobody's default.
pub const CUDA_FRAMES: &str = "YOLODETECT_CUDA_FRAMES";

/// Caps of both pads.
pub fn template_caps() -> &'static gst::Caps {
    static CAPS: Lazy<gst::Caps> = Lazy::new(|| {
        let formats = || FORMATS.iter().map(|(format, _)| *format);
        let mut caps = gst::Caps::new_empty();
        let all = caps.make_mut();
        if env::var_os(CUDA_FRAMES).is_some_and(|value| value == "1") {
            // The decoder's own choice then, as it stands first.
            let of_gpu = gst_video::VideoCapsBuilder::new().features([cuda::FEATURE]);
            all.append(of_gpu.format_list(formats()).build());
        }
        all.append(gst_video::VideoCapsBuilder::new().format_list(formats()).build());
        caps
    });
    &CAPS
}

/// Whether frames of these caps lie in a GPU's memory.
pub fn on_gpu(caps: &gst::CapsRef) -> bool {
    caps.features(0).is_some_and(|features| features.contains(cuda::FEATURE))
}

/// The frame's layout in our own terms; `None` for a format that the template does not have.
pub fn frame_format(info: &VideoInfo) -> Option<FrameFormat> {
    let pixel = FORMATS.iter().find(|(format, _)| *format == info.format())?.1;
    let colorimetry = info.colorimetry();
    let matrix = match colorimetry.matrix() {
        VideoColorMatrix::Bt709 => Matrix::Bt709,
        VideoColorMatrix::Bt2020 => Matrix::Bt2020,
        VideoColorMatrix::Smpte240m => Matrix::Smpte240m,
        VideoColorMatrix::Fcc => Matrix::Fcc,
        _ => Matrix::Bt601,
    };
    let range = match colorimetry.range() {
        VideoColorRange::Range16_235 => Range::Limited,
        VideoColorRange::Range0_255 => Range::Full,
        // GStreamer's own reading of caps without colorimetry.
        _ if info.is_yuv() => Range::Limited,
        _ => Range::Full,
    };
    let site = info.chroma_site();
    // Unknown sites have none of the flags; videoconvert also reads and writes them as cosited on neither axis.
    let chroma = ChromaSite {
        horizontal_cosited: site.contains(gst_video::VideoChromaSite::H_COSITED),
        vertical_cosited: site.contains(gst_video::VideoChromaSite::V_COSITED),
    };
    Some(FrameFormat {
        pixel,
        width: info.width(),
        height: info.height(),
        colorimetry: Colorimetry { matrix, range },
        chroma,
    })
}

/// Most planes of a format in [`FORMATS`].
pub const MAX_PLANES: usize = 3;

/// The planes of a mapped frame and how many there are.
pub fn planes<'a>(
    frame: &'a gst_video::VideoFrameRef<&gst::BufferRef>,
) -> Result<([Plane<'a>; MAX_PLANES], usize), gst::glib::BoolError> {
    let mut planes = [const { Plane { data: &[], row_stride: 0 } }; MAX_PLANES];
    let count = (frame.n_planes() as usize).min(MAX_PLANES);
    for (index, plane) in planes.iter_mut().enumerate().take(count) {
        let row_stride = frame.plane_stride()[index];
        let Ok(row_stride) = usize::try_from(row_stride) else {
            return Err(gst::glib::bool_error!("plane {} has the row stride {}", index, row_stride));
        };
        *plane = Plane { data: frame.plane_data(index as u32)?, row_stride };
    }
    Ok((planes, count))
}

/// Where a plane begins in the buffer and how long its rows are, by the buffer's own video meta where it has one; `None` for rows that run
/// backwards.
pub fn plane_place(buffer: &gst::BufferRef, info: &VideoInfo, plane: usize) -> Option<(usize, usize)> {
    let (offset, stride) = match buffer.meta::<gst_video::VideoMeta>() {
        Some(meta) => (*meta.offset().get(plane)?, *meta.stride().get(plane)?),
        None => (*info.offset().get(plane)?, *info.stride().get(plane)?),
    };
    Some((offset, usize::try_from(stride).ok()?))
}

/// Whether the buffer holds what the caps, or its own video meta, say; mapping trusts a meta blindly.
pub fn check_size(buffer: &gst::BufferRef, info: &VideoInfo) -> Result<(), String> {
    let Some(meta) = buffer.meta::<gst_video::VideoMeta>() else {
        if buffer.size() < info.size() {
            return Err(format!("it has {} bytes, but its caps need {}", buffer.size(), info.size()));
        }
        return Ok(());
    };
    if (meta.width(), meta.height(), meta.format()) != (info.width(), info.height(), info.format()) {
        return Err(format!(
            "its video meta says {} {}x{}, but its caps {} {}x{}",
            meta.format(),
            meta.width(),
            meta.height(),
            info.format(),
            info.width(),
            info.height()
        ));
    }
    let format = info.format_info();
    for plane in 0..meta.n_planes() as usize {
        let (Some(&offset), Some(&stride)) = (meta.offset().get(plane), meta.stride().get(plane)) else {
            return Err(format!("its video meta has no plane {plane}"));
        };
        // Rows of the plane: of any component that lives in it.
        let component = format.plane().iter().position(|&of| of as usize == plane).unwrap_or(0);
        let rows = format.scale_height(component as u8, info.height()) as usize;
        let needed = usize::try_from(stride).ok().and_then(|stride| stride.checked_mul(rows));
        let Some(needed) = needed else {
            return Err(format!("plane {plane} of its video meta has the row stride {stride}"));
        };
        // A plane is mapped from the one memory in which it begins.
        let fits = buffer.find_memory(offset..offset.saturating_add(1)).is_some_and(|(memories, skip)| {
            buffer.peek_memory(memories.start).size().saturating_sub(skip) >= needed
        });
        if !fits {
            return Err(format!(
                "plane {plane} of its video meta needs {needed} bytes from {offset}, more than the buffer of {} has there",
                buffer.size()
            ));
        }
    }
    Ok(())
}

/// Adds to downstream's answer the buffers that are `held` here, so that no pool runs dry because of us. A pool of
/// downstream's wins; where there is none, upstream gets one of ours. Whether rows may be padded is downstream's to say:
/// it gets the same buffers.
pub fn answer_allocation(query: &mut gst::query::Allocation, held: u32, rules: Rules, ledger: &Arc<Ledger>) {
    let mut pools: Vec<_> = query.allocation_pools().collect();
    for (_, _, min, max) in &mut pools {
        *min = min.saturating_add(held);
        // 0 is no limit.
        *max = if *max == 0 { 0 } else { max.saturating_add(held) };
    }
    // Ours has host memory.
    let on_gpu = query.caps().is_some_and(on_gpu);
    let needs_pool = !on_gpu && query.need_pool() && pools.iter().all(|(pool, ..)| pool.is_none());
    let info = query.caps().and_then(|caps| VideoInfo::from_caps(caps).ok());
    let size = info.and_then(|info| u32::try_from(info.size()).ok()).filter(|&size| size > 0);
    match (size, pools.first_mut()) {
        (Some(own), Some((pool, size, min, max))) if needs_pool => {
            *pool = Some(FramePool::new(rules, ledger.clone()).upcast());
            *size = own.max(*size);
            *min = (*min - held).saturating_add(FramePool::minimum(rules, held));
            // A decoder may need more than anyone here knows of, and stands still where it gets none.
            *max = 0;
        }
        (Some(size), None) => {
            let pool = needs_pool.then(|| FramePool::new(rules, ledger.clone()));
            let min = if pool.is_some() { FramePool::minimum(rules, held) } else { held };
            query.add_allocation_pool(pool.as_ref(), size, min, 0);
        }
        _ => (),
    }
    for (index, (pool, size, min, max)) in pools.into_iter().enumerate() {
        query.set_nth_allocation_pool(index as u32, pool.as_ref(), size, min, max);
    }
}

/// Adds our own latency to upstream's answer.
pub fn add_latency(query: &mut gst::query::Latency, own: gst::ClockTime) {
    let (live, min, max) = query.result();
    query.set(live, min.saturating_add(own), max.map(|max| max.saturating_add(own)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps() -> gst::Caps {
        gst::init().unwrap();
        VideoInfo::builder(VideoFormat::I420, 64, 48).build().unwrap().to_caps().unwrap()
    }

    const SIZE: u32 = 64 * 48 * 3 / 2;

    /// Each pool of the answer: whether it is ours, and its figures.
    fn answer(query: &mut gst::query::Allocation, size: Option<u32>) -> Vec<(bool, u32, u32, u32)> {
        answer_allocation(query, 4, Rules { size, clear: false }, &Arc::default());
        let ours = |pool: Option<gst::BufferPool>| pool.is_some_and(|pool| pool.is::<FramePool>());
        query.allocation_pools().map(|(pool, size, min, max)| (ours(pool), size, min, max)).collect()
    }

    #[test]
    fn our_pool_is_offered_where_there_is_none() {
        let new = || gst::query::Allocation::new(Some(&caps()), true);
        assert_eq!(answer(&mut new(), None), [(true, SIZE, 4, 0)]);
        assert_eq!(answer(&mut new(), Some(9)), [(true, SIZE, 9, 0)]);

        // Such as a tee's answer.
        let mut query = new();
        query.add_allocation_pool(gst::BufferPool::NONE, SIZE + 100, 2, 7);
        query.add_allocation_pool(gst::BufferPool::NONE, 100, 2, 5);
        assert_eq!(answer(&mut query, None), [(true, SIZE + 100, 6, 0), (false, 100, 6, 9)]);
    }

    #[test]
    fn held_buffers_are_added_to_pools_of_others() {
        let mut query = gst::query::Allocation::new(Some(&caps()), true);
        let theirs = gst::BufferPool::new();
        query.add_allocation_pool(gst::BufferPool::NONE, 100, 2, 0);
        query.add_allocation_pool(Some(&theirs), 100, 2, 5);
        assert_eq!(answer(&mut query, Some(9)), [(false, 100, 6, 0), (false, 100, 6, 9)]);
        assert_eq!(query.allocation_pools().nth(1).unwrap().0, Some(theirs));
    }

    #[test]
    fn who_wants_no_pool_hears_of_the_count_alone() {
        let mut query = gst::query::Allocation::new(Some(&caps()), false);
        assert_eq!(answer(&mut query, Some(9)), [(false, SIZE, 4, 0)]);
        assert_eq!(answer(&mut gst::query::Allocation::new(None, true), None), []);
        let encoded = gst::Caps::new_empty_simple("video/x-h264");
        assert_eq!(answer(&mut gst::query::Allocation::new(Some(&encoded), true), None), []);
    }
}
