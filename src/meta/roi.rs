//! Boxes as `GstVideoRegionOfInterestMeta`, one for each detection.
//!
//! `roi_type` is the label; `x y w h` are whole pixels; `id` is the id of the object-detection mtd that holds the same
//! object where there is one, else the detection's own; `parent_id` is -1 (none). A parameter structure `detection`
//! holds `x_min x_max y_min y_max` (doubles, parts of the frame's width and height, 0..=1), `confidence` (double, 0..=1)
//! and `label_id` (int, the class number). Elements that scale drop that structure, so what matters of it is in the
//! frame meta as well.

use gst::glib;
use gst::glib::translate::{IntoGlib, TryFromGlib};
use gst::meta::MetaAPIExt;
use gst_video::VideoRegionOfInterestMeta as Region;

use super::fields::Field;
use super::{Found, FrameRecord, PixelBox};
use crate::detection::Detection;

/// `parent_id` of a region without parent; also tells ours from those that leave the field at 0.
const NO_PARENT: i32 = -1;

/// How far apart, in pixels, two copies of one box may be after scaling rounded each in its own way.
const SAME_BOX: i64 = 2;

static X_MIN: Field = Field::new(glib::gstr!("x_min"));
static X_MAX: Field = Field::new(glib::gstr!("x_max"));
static Y_MIN: Field = Field::new(glib::gstr!("y_min"));
static Y_MAX: Field = Field::new(glib::gstr!("y_max"));
static CONFIDENCE: Field = Field::new(glib::gstr!("confidence"));
static LABEL_ID: Field = Field::new(glib::gstr!("label_id"));

pub(super) fn add(
    buffer: &mut gst::BufferRef,
    detection: &Detection,
    id: u32,
    label: glib::Quark,
    frame_size: (u32, u32),
) {
    let PixelBox { x, y, w, h } = PixelBox::new(&detection.rect, frame_size);
    // SAFETY: the buffer is writable (`&mut`) and the quark exists. The bindings' own `add` takes a string, which it
    // would copy and look up for each detection. Adding this meta cannot fail, and it belongs to the buffer, which
    // outlives the reference.
    let mut region = unsafe {
        let meta = gst_video::ffi::gst_buffer_add_video_region_of_interest_meta_id(
            buffer.as_mut_ptr(),
            label.into_glib(),
            x,
            y,
            w,
            h,
        );
        Region::from_mut_ptr::<gst::meta::Standalone>(buffer, meta)
    };
    // The field is signed, the number is not: the same bits.
    region.set_id(id as i32);
    region.set_parent_id(NO_PARENT);
    region.add_param(parameters(detection, frame_size));
}

fn parameters(detection: &Detection, frame_size: (u32, u32)) -> gst::Structure {
    let (width, height) = (frame_size.0.max(1) as f64, frame_size.1.max(1) as f64);
    let part = |at: f32, of: f64| if at.is_nan() { 0.0 } else { (at as f64 / of).clamp(0.0, 1.0) };
    let rect = &detection.rect;
    let mut fields = gst::Structure::new_empty_from_static(glib::gstr!("detection"));
    X_MIN.set(&mut fields, part(rect.x1, width));
    X_MAX.set(&mut fields, part(rect.x2, width));
    Y_MIN.set(&mut fields, part(rect.y1, height));
    Y_MAX.set(&mut fields, part(rect.y2, height));
    CONFIDENCE.set(&mut fields, detection.confidence as f64);
    LABEL_ID.set(&mut fields, i32::try_from(detection.class).unwrap_or(-1));
    fields
}

/// Appends the regions to `found`, which holds the relation meta's objects in the order of their numbers. A region that
/// repeats one of those only adds what the relation meta cannot hold.
pub(super) fn read(buffer: &gst::BufferRef, frames: &[FrameRecord], found: &mut Vec<Found>) {
    let mtds = found.len();
    let mut last = None;
    for region in buffer.iter_meta::<Region>() {
        let mut object = object(&region);
        let id = region.id() as u32;
        let mtd = found[..mtds].binary_search_by_key(&Some(id), |other| other.mtd).ok();
        // Ours come in order and repeat the mtd's label; else the number is another element's.
        let owner = owner(&region, frames, id).filter(|(element, index)| {
            let is_mtd = frames[*element].first_mtd.is_some();
            let fits = !is_mtd || mtd.is_none_or(|at| found[at].class == object.class);
            fits && Some((*element, *index)) > last
        });
        last = owner.or(last);
        let same = match owner {
            // Its id is the detection's own; a mtd with the same number is another object.
            Some((element, _)) if frames[element].first_mtd.is_none() => None,
            Some(_) => mtd,
            // Other elements number regions as they like, so an equal number alone says nothing.
            None => mtd.filter(|at| is_same(&found[*at], &object)),
        };
        if let Some(at) = same {
            found[at].normalized = found[at].normalized.or(object.normalized);
            found[at].class_id = found[at].class_id.or(object.class_id);
            continue;
        }
        if let Some((element, index)) = owner {
            object.element = Some(element);
            object.id = Some(frames[element].first_id.wrapping_add(index));
            object.class_id = frames[element].class_id(index).or(object.class_id);
            object.confidence = object.confidence.or(frames[element].confidence(index));
        }
        found.push(object);
    }
}

/// The element's frame meta and the detection's place in it, for regions that [`add`] made: the id's range names the
/// frame meta. Two elements may count through the same ids; an element's regions follow its own frame meta, so the
/// latest before the region is the right one.
fn owner(region: &gst::MetaRef<Region>, frames: &[FrameRecord], id: u32) -> Option<(usize, u32)> {
    if region.parent_id() != NO_PARENT {
        return None;
    }
    let earlier = frames.iter().enumerate().rev().filter(|(_, frame)| frame.is_before(region.seqnum()));
    earlier
        .filter_map(|(at, frame)| Some((at, frame.index_of(id, frame.first_mtd.unwrap_or(frame.first_id))?)))
        .next()
}

/// What the region says by itself.
fn object(region: &gst::MetaRef<Region>) -> Found {
    let (x, y, w, h) = region.rect();
    let [x, y, w, h] = [x, y, w, h].map(|value| i32::try_from(value).unwrap_or(i32::MAX));
    // SAFETY: the pointer is the meta's that `region` borrows. `roi_type()` would take a missing or a non-UTF-8 label
    // for granted.
    let class = unsafe { glib::Quark::try_from_glib((*region.as_ptr()).roi_type).ok() };
    let detection = region.param("detection");
    let number = |field: &Field| detection.and_then(|fields| field.get::<f64>(fields));
    let sides = [&X_MIN, &Y_MIN, &X_MAX, &Y_MAX].map(number);
    let normalized = match sides {
        [Some(x_min), Some(y_min), Some(x_max), Some(y_max)] => Some([x_min, y_min, x_max, y_max]),
        _ => None,
    };
    let class_id = detection.and_then(|fields| LABEL_ID.get::<i32>(fields));
    Found {
        id: None,
        element: None,
        mtd: None,
        x,
        y,
        w,
        h,
        confidence: number(&CONFIDENCE).map(|value| value as f32),
        class,
        class_id: class_id.and_then(|class| u32::try_from(class).ok()),
        normalized,
    }
}

fn is_same(one: &Found, other: &Found) -> bool {
    let near = |a: i32, b: i32| (a as i64 - b as i64).abs() <= SAME_BOX;
    one.class == other.class
        && near(one.x, other.x)
        && near(one.y, other.y)
        && near(one.w, other.w)
        && near(one.h, other.h)
}
