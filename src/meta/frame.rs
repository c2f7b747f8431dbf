//! The frame's status as a custom meta named [`NAME`], one for each `yolodetect` that saw the buffer.
//!
//! C and Python read it with `gst_buffer_get_custom_meta(buffer, "YoloDetectFrameMeta")` (the first one) or by iterating
//! the buffer's metas. Its structure's fields:
//!
//! | field | type | meaning |
//! | --- | --- | --- |
//! | `element` | string | the element's name |
//! | `frame` | uint64 | the frame's number in the element's stream, from 0 |
//! | `status` | string | `inferred`, `interval`, `overload`, `pressure` or `failed` |
//! | `first-id` | uint | the id of the first detection; detection `i` has `first-id + i` |
//! | `count` | uint | detections attached |
//! | `first-mtd` | uint | the first detection's id in the relation meta; 4294967295 where they are not in one |
//! | `inference-time` | uint64 | ns that the model took over the batch |
//! | `batch` | uint | frames in the batch |
//! | `class-ids` | bytes | one little-endian `u16` for each detection; 65535 for a class beyond that range |
//! | `confidences` | bytes | one little-endian `f32` for each detection, 0..=1 |
//!
//! Elements that change pixels keep it, since it carries no tag that would bind it to the frame's size or format. It
//! repeats the confidences because scaling strips a region of interest of its parameters.

use std::cell::RefCell;
use std::ffi::CStr;
use std::sync::Once;

use gst::glib;
use gst::meta::{CustomMeta, MetaSeqnum};

use super::fields::Field;
use super::{FrameInfo, Status};
use crate::detection::{ClassId, Detection};

/// The meta's name and its structure's.
pub const NAME: &str = "YoloDetectFrameMeta";
const C_NAME: &CStr = c"YoloDetectFrameMeta";

static ELEMENT: Field = Field::new(glib::gstr!("element"));
static FRAME: Field = Field::new(glib::gstr!("frame"));
static STATUS: Field = Field::new(glib::gstr!("status"));
static FIRST_ID: Field = Field::new(glib::gstr!("first-id"));
static COUNT: Field = Field::new(glib::gstr!("count"));
static FIRST_MTD: Field = Field::new(glib::gstr!("first-mtd"));
static INFERENCE_TIME: Field = Field::new(glib::gstr!("inference-time"));
static BATCH: Field = Field::new(glib::gstr!("batch"));
static CLASS_IDS: Field = Field::new(glib::gstr!("class-ids"));
static CONFIDENCES: Field = Field::new(glib::gstr!("confidences"));

/// `first-mtd` where the detections are in no relation meta.
const NO_MTD: u32 = u32::MAX;

/// A class number that does not fit into the meta's `u16`.
const NO_CLASS: u16 = u16::MAX;

thread_local! {
    /// The detections' figures on their way into a `GBytes`, so that no frame allocates them anew.
    static FIGURES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Registering a name twice is refused loudly, also where another copy of this library did it.
fn register() {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        if !CustomMeta::is_registered(NAME) {
            CustomMeta::register_simple(NAME);
        }
    });
}

/// Attaches the meta. `first_mtd`: the first detection's id in the relation meta, where they are in it.
pub(super) fn add(
    buffer: &mut gst::BufferRef,
    info: &FrameInfo,
    detections: &[Detection],
    first_mtd: Option<u32>,
) -> Result<(), glib::BoolError> {
    register();
    // The bindings' own `add` copies the name to the heap for each call.
    // SAFETY: the buffer is writable (`&mut`), the name is NUL-terminated. The meta and its structure belong to the
    // buffer and nothing else refers to them while this function runs.
    let fields = unsafe {
        let meta = gst::ffi::gst_buffer_add_custom_meta(buffer.as_mut_ptr(), C_NAME.as_ptr());
        if meta.is_null() {
            return Err(glib::bool_error!("the buffer took no {NAME}"));
        }
        gst::StructureRef::from_glib_borrow_mut(gst::ffi::gst_custom_meta_get_structure(meta))
    };
    // GLib's strings end at a NUL and the bindings insist that there is none before.
    let element = info.element.split('\0').next().unwrap_or_default();
    ELEMENT.set(fields, element);
    FRAME.set(fields, info.frame);
    STATUS.set_static(fields, info.status.text());
    FIRST_ID.set(fields, info.first_id);
    COUNT.set(fields, detections.len() as u32);
    FIRST_MTD.set(fields, first_mtd.unwrap_or(NO_MTD));
    INFERENCE_TIME.set(fields, info.inference_time.nseconds());
    BATCH.set(fields, info.batch);
    let class = |one: &Detection| u16::try_from(one.class).unwrap_or(NO_CLASS).to_le_bytes();
    CLASS_IDS.set(fields, packed(detections, class));
    CONFIDENCES.set(fields, packed(detections, |one| one.confidence.to_le_bytes()));
    Ok(())
}

/// One figure of each detection, one after the other.
fn packed<const N: usize>(detections: &[Detection], figure: impl Fn(&Detection) -> [u8; N]) -> glib::Bytes {
    FIGURES.with_borrow_mut(|bytes| {
        bytes.clear();
        bytes.extend(detections.iter().flat_map(figure));
        glib::Bytes::from(bytes.as_slice())
    })
}

/// Figure `index` of those that [`packed`] put together.
fn unpacked<const N: usize>(bytes: &[u8], index: u32) -> Option<[u8; N]> {
    bytes.chunks_exact(N).nth(index as usize)?.try_into().ok()
}

/// One frame meta, read back. Fields as in [`FrameInfo`].
#[derive(Clone, Debug)]
pub struct FrameRecord {
    pub element: String,
    pub frame: u64,
    pub status: Status,
    pub first_id: u32,
    /// Detections that were attached. Elements that cut or turn the picture may have dropped their boxes since.
    pub count: u32,
    /// The first detection's id in the relation meta, where they are in it.
    pub first_mtd: Option<u32>,
    pub inference_time: gst::ClockTime,
    pub batch: u32,
    class_ids: glib::Bytes,
    confidences: glib::Bytes,
    seqnum: MetaSeqnum,
}

impl FrameRecord {
    /// The class of detection `index` (from 0).
    pub fn class_id(&self, index: u32) -> Option<ClassId> {
        let class = u16::from_le_bytes(unpacked(&self.class_ids, index)?);
        (class != NO_CLASS).then_some(class as ClassId)
    }

    /// The confidence of detection `index` (from 0), 0..=1.
    pub fn confidence(&self, index: u32) -> Option<f32> {
        Some(f32::from_le_bytes(unpacked(&self.confidences, index)?))
    }

    /// Which of this frame's detections has the id `id`; `first` is the first one's. Ids wrap around.
    pub(super) fn index_of(&self, id: u32, first: u32) -> Option<u32> {
        Some(id.wrapping_sub(first)).filter(|index| *index < self.count)
    }

    /// Whether this meta was attached before the one with this number. Copies keep the order.
    pub(super) fn is_before(&self, seqnum: MetaSeqnum) -> bool {
        self.seqnum < seqnum
    }
}

/// The buffer's frame metas in the order in which they were attached, upstream's first. One that lacks a field is
/// passed over.
pub fn frames(buffer: &gst::BufferRef) -> Vec<FrameRecord> {
    let mut records = Vec::new();
    frames_into(buffer, &mut records);
    records
}

/// [`frames`] into a reused `Vec`, which is cleared first.
pub fn frames_into(buffer: &gst::BufferRef, records: &mut Vec<FrameRecord>) {
    records.clear();
    let metas = buffer.iter_meta::<gst::Meta>();
    records.extend(metas.filter_map(|meta| parse(meta.try_as_custom_meta()?.structure(), meta.seqnum())));
}

fn parse(fields: &gst::StructureRef, seqnum: MetaSeqnum) -> Option<FrameRecord> {
    if fields.name() != NAME {
        return None;
    }
    let first_mtd = FIRST_MTD.get::<u32>(fields)?;
    Some(FrameRecord {
        element: ELEMENT.get::<&str>(fields)?.to_string(),
        frame: FRAME.get(fields)?,
        status: Status::from_nick(STATUS.get(fields)?)?,
        first_id: FIRST_ID.get(fields)?,
        count: COUNT.get(fields)?,
        first_mtd: (first_mtd != NO_MTD).then_some(first_mtd),
        inference_time: gst::ClockTime::from_nseconds(INFERENCE_TIME.get(fields)?),
        batch: BATCH.get(fields)?,
        class_ids: CLASS_IDS.get(fields)?,
        confidences: CONFIDENCES.get(fields)?,
        seqnum,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn info(element: &str, frame: u64) -> FrameInfo {
        FrameInfo {
            element: Arc::from(element),
            frame,
            status: Status::Inferred,
            first_id: u32::MAX,
            inference_time: gst::ClockTime::from_mseconds(81),
            batch: 4,
        }
    }

    fn of_class(class: ClassId) -> Detection {
        Detection { class, confidence: 0.25, ..Default::default() }
    }

    #[test]
    fn a_buffer_carries_one_for_each_element_and_copies_keep_them() {
        gst::init().unwrap();
        let mut buffer = gst::Buffer::new();
        let classes = [of_class(3), of_class(70_000)];
        add(buffer.make_mut(), &info("first", 7), &classes, Some(0)).unwrap();
        add(buffer.make_mut(), &info("second\0tail", 8), &[], None).unwrap();

        let records = frames(&buffer.copy());
        let names: Vec<_> = records.iter().map(|record| (record.element.as_str(), record.frame)).collect();
        assert_eq!(names, [("first", 7), ("second", 8)]);
        let first = &records[0];
        assert_eq!((first.count, first.batch, first.first_mtd), (2, 4, Some(0)));
        assert_eq!(first.inference_time, gst::ClockTime::from_mseconds(81));
        assert_eq!([0, 1, 2, u32::MAX].map(|index| first.class_id(index)), [Some(3), None, None, None]);
        assert_eq!(
            [0, 1, 2, u32::MAX].map(|index| first.confidence(index)),
            [Some(0.25), Some(0.25), None, None]
        );
        assert_eq!(first.index_of(u32::MAX, first.first_id), Some(0));
        assert_eq!(first.index_of(0, first.first_id), Some(1));
        assert_eq!(first.index_of(1, first.first_id), None);
        assert_eq!(records[1].first_mtd, None);
    }

    #[test]
    fn a_meta_that_lacks_a_field_is_passed_over() {
        gst::init().unwrap();
        register();
        let mut buffer = gst::Buffer::new();
        CustomMeta::add(buffer.make_mut(), NAME).unwrap().mut_structure().set("element", "broken");
        add(buffer.make_mut(), &info("whole", 0), &[], None).unwrap();
        let mut wrong = CustomMeta::from_mut_buffer(buffer.make_mut(), NAME).unwrap();
        wrong.mut_structure().set("frame", "not a number");
        assert_eq!(frames(&buffer).len(), 1);
    }
}
