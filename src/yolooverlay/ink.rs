//! Colours as the component values of a stream's format and colorimetry.

use embedded_graphics::pixelcolor::PixelColor;

use super::palette::{BLACK, COLOURS, PALETTE, Rgb, WHITE, text_on};

/// The value of each component (Y, U, V, A or R, G, B, A) that paints one colour, opaque.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ink(pub [u8; 4]);

impl PixelColor for Ink {
    type Raw = ();
}

/// The inks of one class: its own colour and that of the text upon it.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClassInk {
    pub colour: Ink,
    pub text: Ink,
}

/// The whole palette in the stream's format.
#[derive(Debug)]
pub struct Inks([ClassInk; COLOURS]);

impl Inks {
    pub fn new(info: &gst_video::VideoInfo) -> Self {
        let mix = Mix::new(info);
        let (black, white) = (mix.ink(BLACK), mix.ink(WHITE));
        Self(PALETTE.map(|colour| ClassInk {
            colour: mix.ink(colour),
            text: if text_on(colour) == BLACK { black } else { white },
        }))
    }

    /// `index` as [`super::palette::index`] gives it.
    pub fn class(&self, index: usize) -> ClassInk {
        self.0[index % COLOURS]
    }
}

/// How RGB becomes component values: `offset + scale * component`, the components being R, G, B in 0..=1 or
/// Y in 0..=1 and U, V in -0.5..=0.5 (ITU-R BT.601, BT.709, BT.2020: the same formula with their own Kr and Kb).
struct Mix {
    /// Kr and Kb, `None` for RGB.
    matrix: Option<(f64, f64)>,
    offset: [i32; 4],
    scale: [i32; 4],
}

impl Mix {
    fn new(info: &gst_video::VideoInfo) -> Self {
        let colorimetry = info.colorimetry();
        let rgb = info.is_rgb();
        let range = match colorimetry.range() {
            gst_video::VideoColorRange::Unknown if !rgb => gst_video::VideoColorRange::Range16_235,
            known => known,
        };
        let (offset, scale) = info.range_offsets(range);
        let matrix = (!rgb).then(|| {
            // Without a matrix, what GStreamer assumes: BT.601 for standard definition, BT.709 above.
            let assumed = if info.height() > 576 {
                gst_video::VideoColorMatrix::Bt709
            } else {
                gst_video::VideoColorMatrix::Bt601
            };
            colorimetry.matrix().kr_kb().or_else(|_| assumed.kr_kb()).unwrap_or((0.299, 0.114))
        });
        Self { matrix, offset, scale }
    }

    fn ink(&self, Rgb(r, g, b): Rgb) -> Ink {
        let [r, g, b] = [r, g, b].map(|value| f64::from(value) / 255.0);
        let components = match self.matrix {
            None => [r, g, b],
            Some((kr, kb)) => {
                let y = kr * r + (1.0 - kr - kb) * g + kb * b;
                [y, (b - y) / (2.0 * (1.0 - kb)), (r - y) / (2.0 * (1.0 - kr))]
            }
        };
        let mut values = [u8::MAX; 4];
        for (i, component) in components.into_iter().enumerate() {
            let value = f64::from(self.offset[i]) + f64::from(self.scale[i]) * component;
            // A float-to-integer cast saturates.
            values[i] = value.round() as u8;
        }
        Ink(values)
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use gst_video::{VideoColorimetry, VideoFormat, VideoInfo};

    use super::*;

    fn ink(format: VideoFormat, colorimetry: &str, colour: Rgb) -> [u8; 3] {
        gst::init().expect("GStreamer starts");
        let colorimetry = VideoColorimetry::from_str(colorimetry).expect("a known colorimetry");
        let info =
            VideoInfo::builder(format, 64, 64).colorimetry(&colorimetry).build().expect("a valid format");
        let Ink([a, b, c, _]) = Mix::new(&info).ink(colour);
        [a, b, c]
    }

    #[test]
    fn colorimetry_is_honoured() {
        let red = Rgb(255, 0, 0);
        // The standards' own values for 100 % red.
        assert_eq!(ink(VideoFormat::I420, "bt601", red), [81, 90, 240]);
        assert_eq!(ink(VideoFormat::I420, "bt709", red), [63, 102, 240]);
        assert_eq!(ink(VideoFormat::Nv12, "bt2020", red), [74, 97, 240]);
        // JPEG: BT.601, full range.
        assert_eq!(ink(VideoFormat::Y42b, "1:4:0:0", red), [76, 85, 255]);
        assert_eq!(ink(VideoFormat::Rgb, "sRGB", Rgb(1, 2, 3)), [1, 2, 3]);
        assert_eq!(ink(VideoFormat::Rgb, "2:1:7:1", WHITE), [235; 3]);
        assert_eq!(ink(VideoFormat::I420, "bt601", WHITE), [235, 128, 128]);
        assert_eq!(ink(VideoFormat::I420, "bt709", BLACK), [16, 128, 128]);
    }

    #[test]
    fn unknown_colorimetry_is_no_obstacle() {
        assert_eq!(ink(VideoFormat::I420, "0:0:0:0", WHITE), [235, 128, 128]);
        assert_eq!(ink(VideoFormat::Gray8, "1:4:0:0", WHITE)[0], 255);
    }
}
