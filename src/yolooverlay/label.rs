//! The words of a label and its place.

use std::fmt::Write;

use super::canvas::{Area, Grid};

/// No class name needs more; what a stranger's name costs stays bounded.
const MAX_NAME_CHARS: usize = 48;

/// Stands for what was cut off. The fonts have no ellipsis.
const CUT: &str = "..";

/// Writes `name` and `confidence` into `text`, at most `room` characters, all of which the Latin-1 fonts have:
/// others become `?`. A name that is too long is cut, the confidence never is; it is left out where even that
/// does not fit, or where it is no number near 0..=1.
pub fn compose(text: &mut String, name: Option<&str>, confidence: Option<f32>, room: usize) {
    text.clear();
    // Other elements' scales may be anything, percent for one.
    let confidence = confidence.filter(|value| value.abs() <= 100.0);
    // Written once to know its length, which the name must leave free. Writing to a String cannot fail.
    let _ = confidence.map_or(Ok(()), |value| write!(text, "{value:.2}"));
    let confidence = confidence.filter(|_| text.len() <= room);
    let reserved = confidence.map_or(0, |_| text.len());
    text.clear();

    if let Some(name) = name.map(str::trim).filter(|name| !name.is_empty()) {
        let separator = usize::from(confidence.is_some());
        push_name(text, name, room.saturating_sub(reserved + separator).min(MAX_NAME_CHARS));
    }
    if let Some(value) = confidence {
        let separator = if text.is_empty() { "" } else { " " };
        let _ = write!(text, "{separator}{value:.2}");
    }
}

/// At most `room` characters of `name`; nothing where the cut would leave no character of it.
fn push_name(text: &mut String, name: &str, room: usize) {
    let fits = name.chars().nth(room).is_none();
    let kept = if fits { room } else { room.saturating_sub(CUT.len()) };
    if kept == 0 {
        return;
    }
    text.extend(name.chars().take(kept).map(|c| if is_drawable(c) { c } else { '?' }));
    if !fits {
        text.push_str(CUT);
    }
}

/// ISO 8859-1 without its control characters.
fn is_drawable(c: char) -> bool {
    matches!(c, ' '..='~' | '\u{a0}'..='\u{ff}')
}

/// Where a label of `size` goes: on top of the box, inside it where there is no room above, always within the
/// frame; `None` where it is larger than the frame. All in luma pixels.
pub fn place(target: &Area, size: (i64, i64), frame: (i64, i64), grid: Grid) -> Option<Area> {
    let (width, height) = size;
    let max_x = grid.down_x(frame.0 - width);
    let max_y = grid.down_y(frame.1 - height);
    if max_x < 0 || max_y < 0 {
        return None;
    }
    let above = target.y0 - height;
    let y = if above >= 0 { above } else { target.y0 };
    let x = grid.down_x(target.x0).clamp(0, max_x);
    let y = grid.down_y(y).clamp(0, max_y);
    Some(Area::new(x, y, x + width, y + height))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn composed(name: Option<&str>, confidence: Option<f32>, room: usize) -> String {
        let mut text = "left over".to_string();
        compose(&mut text, name, confidence, room);
        text
    }

    #[test]
    fn words() {
        assert_eq!(composed(Some("person"), Some(0.874), 40), "person 0.87");
        assert_eq!(composed(Some("person"), None, 40), "person");
        assert_eq!(composed(None, Some(1.0), 40), "1.00");
        assert_eq!(composed(None, None, 40), "");
        assert_eq!(composed(Some("Fußgänger"), None, 40), "Fußgänger");
        assert_eq!(composed(Some("人 a\nb\0"), None, 40), "? a?b?");
        assert_eq!(composed(Some("  "), Some(0.5), 40), "0.50");
        for broken in [f32::NAN, f32::INFINITY, f32::MIN] {
            assert_eq!(composed(Some("cat"), Some(broken), 40), "cat");
        }
    }

    #[test]
    fn the_name_yields_to_the_confidence() {
        assert_eq!(composed(Some("traffic light"), Some(0.5), 18), "traffic light 0.50");
        assert_eq!(composed(Some("traffic light"), Some(0.5), 17), "traffic li.. 0.50");
        assert_eq!(composed(Some("traffic light"), Some(0.5), 8), "t.. 0.50");
        assert_eq!(composed(Some("traffic light"), Some(0.5), 7), "0.50");
        assert_eq!(composed(Some("cat"), Some(0.5), 3), "cat");
        assert_eq!(composed(Some("cat"), Some(0.5), 0), "");
    }

    #[test]
    fn places() {
        let fine = Grid { x: 1, y: 1 };
        let frame = (100, 80);
        let at = |x, y| {
            let area = place(&Area::new(x, y, x + 30, y + 30), (40, 10), frame, fine).expect("it fits");
            (area.x0, area.y0)
        };
        assert_eq!(at(20, 30), (20, 20), "above");
        assert_eq!(at(20, 10), (20, 0), "just above");
        assert_eq!(at(20, 9), (20, 9), "inside");
        assert_eq!(at(20, -25), (20, 0), "inside what is seen of it");
        assert_eq!(at(80, 30), (60, 20), "kept from leaving on the right");
        assert_eq!(at(-15, 30), (0, 20), "and on the left");
        assert_eq!(place(&Area::new(0, 0, 5, 5), (101, 10), frame, fine), None);
        assert_eq!(place(&Area::new(0, 0, 5, 5), (100, 81), frame, fine), None);
    }

    proptest! {
        #[test]
        fn composed_text_fits_and_can_be_drawn(
            name in proptest::option::of("\\PC{0,80}"),
            confidence in proptest::option::of(proptest::num::f32::ANY),
            room in 0usize..80,
        ) {
            let text = composed(name.as_deref(), confidence, room);
            prop_assert!(text.chars().count() <= room);
            prop_assert!(text.chars().all(is_drawable));
        }

        #[test]
        fn placed_labels_are_within_the_frame_and_on_the_grid(
            x in any::<i32>(), y in any::<i32>(), w in any::<i32>(), h in any::<i32>(),
            frame in (1i64..5000, 1i64..5000),
            size in (1i64..100, 1i64..30),
            grid in (1i64..=2, 1i64..=2),
        ) {
            let grid = Grid { x: grid.0, y: grid.1 };
            let size = (grid.up_x(size.0), grid.up_y(size.1));
            let (x, y) = (i64::from(x), i64::from(y));
            let target = Area::new(x, y, x + i64::from(w), y + i64::from(h));
            match place(&target, size, frame, grid) {
                None => prop_assert!(size.0 > frame.0 || size.1 > frame.1),
                Some(area) => {
                    prop_assert_eq!((area.width(), area.height()), size);
                    prop_assert!(area.x0 >= 0 && area.y0 >= 0 && area.x1 <= frame.0 && area.y1 <= frame.1);
                    prop_assert_eq!(grid.down_x(area.x0), area.x0);
                    prop_assert_eq!(grid.down_y(area.y0), area.y0);
                }
            }
        }
    }
}
