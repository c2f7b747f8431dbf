//! How thick and how large: lines and text sized to the frame.

use embedded_graphics::mono_font::MonoFont;
use embedded_graphics::mono_font::iso_8859_1::{
    FONT_5X8, FONT_6X10, FONT_7X13_BOLD, FONT_9X15_BOLD, FONT_10X20,
};

use super::canvas::Grid;

/// Sizes in luma pixels.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Thickness of a box's lines, a multiple of the grid.
    pub line: i64,
    pub font: &'static MonoFont<'static>,
    /// Frame pixels per pixel of the font.
    pub scale: i64,
    /// Between the text and the label's sides.
    pub pad_x: i64,
    pub pad_y: i64,
    pub grid: Grid,
}

impl Style {
    /// `line_width` and `font_scale` as the properties give them, 0 meaning by the frame's size.
    pub fn new(width: u32, height: u32, grid: Grid, line_width: u32, font_scale: u32) -> Self {
        let short = width.min(height);
        let (font, auto_scale) = font_for(short);
        let scale = i64::from(if font_scale == 0 { auto_scale } else { font_scale });
        let line = i64::from(if line_width == 0 { line_for(short) } else { line_width });
        let step = grid.x.max(grid.y);
        let char_width = i64::from(font.character_size.width);
        Self {
            line: (line + step - 1) / step * step,
            font,
            scale,
            pad_x: scale * (char_width + 2) / 3,
            pad_y: scale,
            grid,
        }
    }

    /// One character, spacing included.
    pub fn char_width(&self) -> i64 {
        let font = self.font;
        i64::from(font.character_size.width + font.character_spacing) * self.scale
    }

    /// A label's size around `chars` characters, grown to the grid.
    pub fn label_size(&self, chars: usize) -> (i64, i64) {
        let text_height = i64::from(self.font.character_size.height) * self.scale;
        (
            self.grid.up_x(chars as i64 * self.char_width() + 2 * self.pad_x),
            self.grid.up_y(text_height + 2 * self.pad_y),
        )
    }

    /// How many characters fit into a label `width` wide.
    pub fn chars_within(&self, width: i64) -> usize {
        let room = self.grid.down_x(width) - 2 * self.pad_x;
        usize::try_from(room / self.char_width()).unwrap_or(0)
    }
}

/// 1 pixel on QCIF, 2 on 480p, 3 on 720p, 9 on 2160p.
fn line_for(short_side: u32) -> u32 {
    ((short_side + 120) / 240).max(1)
}

/// The font and its magnification: text a little under a thirtieth of the height where the fonts allow.
fn font_for(short_side: u32) -> (&'static MonoFont<'static>, u32) {
    match short_side {
        0..120 => (&FONT_5X8, 1),
        120..320 => (&FONT_6X10, 1),
        320..540 => (&FONT_7X13_BOLD, 1),
        540..720 => (&FONT_9X15_BOLD, 1),
        720..1440 => (&FONT_10X20, 1),
        _ => (&FONT_10X20, ((short_side + 360) / 720).clamp(2, 16)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRIDS: [Grid; 3] = [Grid { x: 1, y: 1 }, Grid { x: 2, y: 1 }, Grid { x: 2, y: 2 }];

    #[test]
    fn grows_with_the_frame() {
        for grid in GRIDS {
            let mut before = (0, 0);
            for (width, height) in [
                (1, 1),
                (176, 144),
                (320, 240),
                (640, 480),
                (1280, 720),
                (1920, 1080),
                (3840, 2160),
                (7680, 4320),
            ] {
                let style = Style::new(width, height, grid, 0, 0);
                let now = (style.line, style.label_size(10).1);
                assert!(now.0 >= before.0 && now.1 >= before.1, "{width}x{height}: {before:?} {now:?}");
                before = now;
            }
        }
        assert_eq!(Style::new(176, 144, GRIDS[0], 0, 0).line, 1);
        assert_eq!(Style::new(176, 144, GRIDS[2], 0, 0).line, 2);
        assert_eq!(Style::new(3840, 2160, GRIDS[2], 0, 0).scale, 3);
    }

    #[test]
    fn properties_override() {
        let style = Style::new(1280, 720, GRIDS[2], 5, 4);
        assert_eq!((style.line, style.scale), (6, 4));
        assert_eq!(Style::new(1280, 720, GRIDS[0], 5, 4).line, 5);
    }

    #[test]
    fn what_fits_fits() {
        for grid in GRIDS {
            for width in 0..200 {
                let style = Style::new(176, 144, grid, 0, 0);
                let chars = style.chars_within(width);
                assert!(chars == 0 || style.label_size(chars).0 <= width, "{width}: {chars}");
                assert!(style.label_size(chars + 1).0 > width, "{width}: {chars}");
            }
        }
    }
}
