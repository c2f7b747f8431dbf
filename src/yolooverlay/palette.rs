//! One stable colour per class.

use xxhash_rust::xxh3::xxh3_64;

/// A colour as people name it: full-range, gamma-coded R, G, B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rgb(pub u8, pub u8, pub u8);

pub const BLACK: Rgb = Rgb(0, 0, 0);
pub const WHITE: Rgb = Rgb(255, 255, 255);

pub const COLOURS: usize = 20;

/// Picked greedily: each colour is the one farthest from all before it in CIELAB, among those neither too dark,
/// too pale nor too grey to be seen on a picture. So the first few classes of a model differ the most.
pub const PALETTE: [Rgb; COLOURS] = [
    Rgb(255, 75, 60),
    Rgb(0, 255, 0),
    Rgb(30, 75, 255),
    Rgb(0, 120, 60),
    Rgb(255, 165, 240),
    Rgb(240, 195, 0),
    Rgb(45, 240, 225),
    Rgb(0, 165, 240),
    Rgb(195, 0, 135),
    Rgb(135, 105, 0),
    Rgb(150, 210, 120),
    Rgb(240, 0, 255),
    Rgb(150, 105, 195),
    Rgb(225, 150, 90),
    Rgb(255, 105, 150),
    Rgb(15, 165, 0),
    Rgb(180, 60, 75),
    Rgb(0, 180, 135),
    Rgb(150, 165, 0),
    Rgb(180, 225, 0),
];

/// Which of [`PALETTE`] a class has: by its number where it is known, else by its name, so that it keeps its
/// colour from frame to frame and from run to run.
pub fn index(class_id: Option<u32>, label: &str) -> usize {
    let key = class_id.map_or_else(|| xxh3_64(label.as_bytes()), u64::from);
    (key % COLOURS as u64) as usize
}

/// Black or white, whichever stands out more on `background`: the larger WCAG 2 contrast ratio.
pub fn text_on(background: Rgb) -> Rgb {
    let luminance = relative_luminance(background);
    let on_white = 1.05 / (luminance + 0.05);
    let on_black = (luminance + 0.05) / 0.05;
    if on_white > on_black { WHITE } else { BLACK }
}

/// WCAG 2 relative luminance, 0..=1.
fn relative_luminance(Rgb(r, g, b): Rgb) -> f64 {
    let linear = |value: u8| {
        let value = f64::from(value) / 255.0;
        if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
    };
    0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_keeps_its_colour() {
        assert_eq!(index(Some(0), "person"), 0);
        assert_eq!(index(Some(0), "anything"), 0);
        assert_eq!(index(Some(27), ""), 7);
        assert_eq!(index(Some(u32::MAX), ""), (u32::MAX as usize) % COLOURS);
        // By name alone: written down here, so that no update may quietly repaint people's recordings.
        assert_eq!(["person", "car", "", "狗"].map(|label| index(None, label)), BY_NAME);
    }

    const BY_NAME: [usize; 4] = [2, 8, 18, 12];

    #[test]
    fn colours_are_told_apart() {
        for (i, a) in PALETTE.iter().enumerate() {
            for b in &PALETTE[i + 1..] {
                let apart = a.0.abs_diff(b.0) as u32 + a.1.abs_diff(b.1) as u32 + a.2.abs_diff(b.2) as u32;
                assert!(apart >= 75, "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn text_is_readable_on_every_colour() {
        assert_eq!(text_on(BLACK), WHITE);
        assert_eq!(text_on(WHITE), BLACK);
        for colour in PALETTE {
            let (a, b) = (relative_luminance(colour), relative_luminance(text_on(colour)));
            // 4.5 is what WCAG asks of body text.
            assert!((a.max(b) + 0.05) / (a.min(b) + 0.05) >= 4.5, "{colour:?}");
        }
    }
}
