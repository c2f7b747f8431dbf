//! Puts boxes and labels onto a canvas.

use embedded_graphics::geometry::Point;
use embedded_graphics::mono_font::MonoTextStyle;
use embedded_graphics::text::Baseline;
use embedded_graphics::text::renderer::TextRenderer;

use super::canvas::{Area, Canvas, Magnified};
use super::ink::{ClassInk, Ink, Inks};
use super::label;
use super::palette;
use super::style::Style;
use crate::meta::Found;

/// Which parts of a label are drawn.
#[derive(Clone, Copy, Debug)]
pub struct Words {
    pub name: bool,
    pub confidence: bool,
}

/// Draws all boxes, then all labels, so that no line crosses a text. The first detections, commonly the most
/// certain ones, come last and thus on top. `text` is working space.
pub fn paint(
    canvas: &mut Canvas,
    objects: &[Found],
    style: &Style,
    inks: &Inks,
    words: Words,
    text: &mut String,
) {
    let seen = |object: &Found, bounds: &Area| {
        let area = area_of(object);
        (!area.intersection(bounds).is_empty()).then(|| area.snapped(style.grid))
    };
    let bounds = canvas.bounds();
    for object in objects.iter().rev() {
        if let Some(area) = seen(object, &bounds) {
            outline(canvas, &area, style.line, ink_of(object, inks).colour);
        }
    }
    if !words.name && !words.confidence {
        return;
    }
    let room = style.chars_within(bounds.width());
    for object in objects.iter().rev() {
        let Some(area) = seen(object, &bounds) else { continue };
        let name = words.name.then(|| object.label());
        label::compose(text, name.as_deref(), object.confidence.filter(|_| words.confidence), room);
        if !text.is_empty() {
            tag(canvas, &area, style, ink_of(object, inks), text);
        }
    }
}

fn ink_of(object: &Found, inks: &Inks) -> ClassInk {
    inks.class(palette::index(object.class_id, &object.label()))
}

/// Empty where the size is not positive.
fn area_of(object: &Found) -> Area {
    let [x, y, w, h] = [object.x, object.y, object.w, object.h].map(i64::from);
    Area::new(x, y, x + w, y + h)
}

/// Four lines just within `area`, which they fill where it is small.
fn outline(canvas: &mut Canvas, area: &Area, line: i64, ink: Ink) {
    let Area { x0, y0, x1, y1 } = *area;
    if area.width() <= 2 * line || area.height() <= 2 * line {
        return canvas.fill_rect(area, ink);
    }
    for side in [
        Area::new(x0, y0, x1, y0 + line),
        Area::new(x0, y1 - line, x1, y1),
        Area::new(x0, y0 + line, x0 + line, y1 - line),
        Area::new(x1 - line, y0 + line, x1, y1 - line),
    ] {
        canvas.fill_rect(&side, ink);
    }
}

/// The label of the box `target`: its class's colour with the text upon it.
fn tag(canvas: &mut Canvas, target: &Area, style: &Style, ink: ClassInk, text: &str) {
    let size = style.label_size(text.chars().count());
    let bounds = canvas.bounds();
    let Some(area) = label::place(target, size, (bounds.width(), bounds.height()), style.grid) else {
        return;
    };
    canvas.fill_rect(&area, ink.colour);
    let mut target =
        Magnified { canvas, origin: (area.x0 + style.pad_x, area.y0 + style.pad_y), scale: style.scale };
    // The canvas cannot fail.
    let _ =
        MonoTextStyle::new(style.font, ink.text).draw_string(text, Point::zero(), Baseline::Top, &mut target);
}
