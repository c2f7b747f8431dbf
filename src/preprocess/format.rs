//! What a frame's bytes mean: pixel format, colorimetry, chroma siting, planes.

/// The 8-bit layouts that can be read, by GStreamer's names. Alpha and filler bytes are ignored.
///
/// Planes are counted as `GstVideoFrame` counts them, which is their order in memory. So plane 1 of
/// [`Yv12`](Self::Yv12) holds V and plane 2 holds U (`gst_video_frame_plane_data`, not `..._comp_data`), and
/// the one chroma plane of [`Nv21`](Self::Nv21) holds V before U.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PixelFormat {
    Rgb,
    Bgr,
    Rgbx,
    Bgrx,
    Xrgb,
    Xbgr,
    Rgba,
    Bgra,
    Argb,
    Abgr,
    Gray8,
    I420,
    Yv12,
    Nv12,
    Nv21,
    /// Packed 4:2:2, `Y0 U Y1 V`.
    Yuy2,
    /// Packed 4:2:2, `U Y0 V Y1`.
    Uyvy,
    /// Planar 4:2:2.
    Y42b,
    /// Planar 4:4:4.
    Y444,
}

/// What a format's components are, in the order in which its [`Samples`] list them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ColorModel {
    /// R, G, B
    Rgb,
    /// Y, Cb, Cr
    Yuv,
    /// Y alone
    Gray,
}

/// Components that lie in the same plane on the same grid and are read together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Samples {
    pub plane: usize,
    /// Bytes from one sample to the next, 1..=4.
    pub pixel_stride: usize,
    /// Where each component's byte lies within the sample; its length is the number of components.
    pub offsets: &'static [usize],
    /// Half as many samples as luma, rounded up, on each axis.
    pub subsampled: Subsampled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subsampled {
    pub horizontal: bool,
    pub vertical: bool,
}

const FULL: Subsampled = Subsampled { horizontal: false, vertical: false };
const C420: Subsampled = Subsampled { horizontal: true, vertical: true };
const C422: Subsampled = Subsampled { horizontal: true, vertical: false };

const fn samples(
    plane: usize,
    pixel_stride: usize,
    offsets: &'static [usize],
    subsampled: Subsampled,
) -> Samples {
    Samples { plane, pixel_stride, offsets, subsampled }
}

const LUMA: Samples = samples(0, 1, &[0], FULL);

impl PixelFormat {
    pub const ALL: [Self; 19] = [
        Self::Rgb,
        Self::Bgr,
        Self::Rgbx,
        Self::Bgrx,
        Self::Xrgb,
        Self::Xbgr,
        Self::Rgba,
        Self::Bgra,
        Self::Argb,
        Self::Abgr,
        Self::Gray8,
        Self::I420,
        Self::Yv12,
        Self::Nv12,
        Self::Nv21,
        Self::Yuy2,
        Self::Uyvy,
        Self::Y42b,
        Self::Y444,
    ];

    /// How many planes a frame of this format has.
    pub fn planes(self) -> usize {
        match self {
            Self::I420 | Self::Yv12 | Self::Y42b | Self::Y444 => 3,
            Self::Nv12 | Self::Nv21 => 2,
            _ => 1,
        }
    }

    pub(super) fn color_model(self) -> ColorModel {
        match self {
            Self::Gray8 => ColorModel::Gray,
            Self::I420 | Self::Yv12 | Self::Nv12 | Self::Nv21 => ColorModel::Yuv,
            Self::Yuy2 | Self::Uyvy | Self::Y42b | Self::Y444 => ColorModel::Yuv,
            _ => ColorModel::Rgb,
        }
    }

    /// Where the components lie, in the order of [`ColorModel`]. From GStreamer's table of video formats.
    pub(super) fn samples(self) -> &'static [Samples] {
        match self {
            Self::Rgb => const { &[samples(0, 3, &[0, 1, 2], FULL)] },
            Self::Bgr => const { &[samples(0, 3, &[2, 1, 0], FULL)] },
            Self::Rgbx | Self::Rgba => const { &[samples(0, 4, &[0, 1, 2], FULL)] },
            Self::Bgrx | Self::Bgra => const { &[samples(0, 4, &[2, 1, 0], FULL)] },
            Self::Xrgb | Self::Argb => const { &[samples(0, 4, &[1, 2, 3], FULL)] },
            Self::Xbgr | Self::Abgr => const { &[samples(0, 4, &[3, 2, 1], FULL)] },
            Self::Gray8 => const { &[LUMA] },
            Self::I420 => const { &[LUMA, samples(1, 1, &[0], C420), samples(2, 1, &[0], C420)] },
            Self::Yv12 => const { &[LUMA, samples(2, 1, &[0], C420), samples(1, 1, &[0], C420)] },
            Self::Nv12 => const { &[LUMA, samples(1, 2, &[0, 1], C420)] },
            Self::Nv21 => const { &[LUMA, samples(1, 2, &[1, 0], C420)] },
            Self::Yuy2 => const { &[samples(0, 2, &[0], FULL), samples(0, 4, &[1, 3], C422)] },
            Self::Uyvy => const { &[samples(0, 2, &[1], FULL), samples(0, 4, &[0, 2], C422)] },
            Self::Y42b => const { &[LUMA, samples(1, 1, &[0], C422), samples(2, 1, &[0], C422)] },
            Self::Y444 => const { &[LUMA, samples(1, 1, &[0], FULL), samples(2, 1, &[0], FULL)] },
        }
    }
}

/// Which weights of red and blue make up luma.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Matrix {
    Bt601,
    Bt709,
    /// Non-constant luminance.
    Bt2020,
    Smpte240m,
    Fcc,
}

impl Matrix {
    /// `(Kr, Kb)` of ITU-R BT.601, BT.709, BT.2020, SMPTE 240M and FCC 47 CFR 73.682, the values that ITU-T
    /// H.273 lists as matrix coefficients 6, 1, 9, 7 and 4.
    pub(super) fn kr_kb(self) -> (f64, f64) {
        match self {
            Self::Bt601 => (0.299, 0.114),
            Self::Bt709 => (0.2126, 0.0722),
            Self::Bt2020 => (0.2627, 0.0593),
            Self::Smpte240m => (0.212, 0.087),
            Self::Fcc => (0.30, 0.11),
        }
    }
}

/// Which bytes are black and white.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Range {
    /// 0..=255; chroma 128 ± 127.5.
    Full,
    /// 16..=235; chroma 128 ± 112.
    Limited,
}

/// How component bytes become red, green and blue. The range counts for RGB and gray frames too, the matrix
/// for YUV alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Colorimetry {
    pub matrix: Matrix,
    pub range: Range,
}

/// Where subsampled chroma lies, on the axes on which it is subsampled: sample `i` at luma position `2 i`
/// where cosited, else at `2 i + 0.5`. MPEG-2 and H.264 by default are cosited horizontally only, JPEG on
/// neither axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChromaSite {
    pub horizontal_cosited: bool,
    pub vertical_cosited: bool,
}

/// A stream's format. A width or height of 0 counts as 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrameFormat {
    pub pixel: PixelFormat,
    pub width: u32,
    pub height: u32,
    pub colorimetry: Colorimetry,
    pub chroma: ChromaSite,
}

impl FrameFormat {
    /// Bytes of `plane` that one row of pixels uses; the row stride is at least that. Packed 4:2:2 stores
    /// whole pairs of pixels, so an odd width uses the last pair's bytes too.
    pub fn row_bytes(&self, plane: usize) -> usize {
        let width = self.width.max(1) as usize;
        let half = width.div_ceil(2);
        match self.pixel {
            PixelFormat::Rgb | PixelFormat::Bgr => 3 * width,
            PixelFormat::Yuy2 | PixelFormat::Uyvy => 4 * half,
            PixelFormat::Gray8 | PixelFormat::Y444 => width,
            PixelFormat::Nv12 | PixelFormat::Nv21 if plane > 0 => 2 * half,
            PixelFormat::I420 | PixelFormat::Yv12 | PixelFormat::Y42b if plane > 0 => half,
            PixelFormat::I420 | PixelFormat::Yv12 | PixelFormat::Y42b => width,
            PixelFormat::Nv12 | PixelFormat::Nv21 => width,
            _ => 4 * width,
        }
    }

    /// Rows of `plane`.
    pub fn rows(&self, plane: usize) -> usize {
        let height = self.height.max(1) as usize;
        match self.pixel {
            PixelFormat::I420 | PixelFormat::Yv12 | PixelFormat::Nv12 | PixelFormat::Nv21 if plane > 0 => {
                height.div_ceil(2)
            }
            _ => height,
        }
    }

    /// Bytes that `plane` must have at this row stride; the last row need not be padded.
    pub fn plane_bytes(&self, plane: usize, row_stride: usize) -> usize {
        // Saturates, so that no plane is ever large enough for an absurd stride.
        (self.rows(plane) - 1).saturating_mul(row_stride).saturating_add(self.row_bytes(plane))
    }
}

/// One plane of a mapped frame.
#[derive(Clone, Copy, Debug)]
pub struct Plane<'a> {
    pub data: &'a [u8],
    /// Bytes from one row to the next.
    pub row_stride: usize,
}
