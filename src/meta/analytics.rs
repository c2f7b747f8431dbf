//! Boxes as object-detection mtds of the buffer's `GstAnalyticsRelationMeta`.
//!
//! The library came with GStreamer 1.24. It is opened at run time, on first use, so that one plugin file built on 1.22
//! loads on 1.22 and serves later releases; the functions used here have kept their form from 1.24 on.
//!
//! What readers make of it: `objectdetectionoverlay` (1.26) draws every object-detection mtd with its type's quark as
//! label (as Pango markup) and the location's confidence; classification mtds are optional and we add none.

use std::ffi::{c_int, c_uint, c_void};
use std::ptr;
use std::sync::OnceLock;

use gst::glib;
use gst::glib::translate::{IntoGlib, TryFromGlib};
use libloading::Library;

use super::{Found, FrameRecord, LabelQuarks, PixelBox};
use crate::detection::Detection;

#[cfg(target_os = "macos")]
const LIBRARY: &str = "libgstanalytics-1.0.0.dylib";
#[cfg(windows)]
const LIBRARY: &str = "gstanalytics-1.0-0.dll";
#[cfg(not(any(target_os = "macos", windows)))]
const LIBRARY: &str = "libgstanalytics-1.0.so.0";

/// Room is made for detections in such steps. The relation meta keeps a square matrix over its mtds, so generous room
/// is dear; growing one by one, as it does by itself after an exact fit, is dearer.
const STEP: usize = 8;

/// Bytes that one object-detection mtd takes: 24 of header and up to 32 of data (1.26; the
/// meta grows where this is too little).
const MTD_BYTES: usize = 56;

/// `GstAnalyticsRelationMeta`, opaque.
#[repr(C)]
struct RelationMeta {
    _private: [u8; 0],
}

/// `GstAnalyticsMtd`, of which `GstAnalyticsODMtd` is another name.
#[repr(C)]
struct Mtd {
    id: c_uint,
    meta: *mut RelationMeta,
}

/// `GstAnalyticsRelationMetaInitParams`.
#[repr(C)]
struct InitParams {
    initial_relation_order: usize,
    initial_buf_size: usize,
}

/// `GstAnalyticsMtdType`.
type MtdType = usize;

type AddRelationMeta = unsafe extern "C" fn(*mut gst::ffi::GstBuffer, *mut InitParams) -> *mut RelationMeta;
type GetRelationMeta = unsafe extern "C" fn(*mut gst::ffi::GstBuffer) -> *mut RelationMeta;
type AddOdMtd = unsafe extern "C" fn(
    *mut RelationMeta,
    glib::ffi::GQuark,
    c_int,
    c_int,
    c_int,
    c_int,
    f32,
    *mut Mtd,
) -> glib::ffi::gboolean;
type Iterate =
    unsafe extern "C" fn(*mut RelationMeta, *mut *mut c_void, MtdType, *mut Mtd) -> glib::ffi::gboolean;
type OdMtdType = unsafe extern "C" fn() -> MtdType;
type OdLocation = unsafe extern "C" fn(
    *mut Mtd,
    *mut c_int,
    *mut c_int,
    *mut c_int,
    *mut c_int,
    *mut f32,
) -> glib::ffi::gboolean;
type OdObjType = unsafe extern "C" fn(*mut Mtd) -> glib::ffi::GQuark;

/// The library's functions. Valid as long as the process: the library is never closed, because it registers GTypes.
struct Api {
    add_relation_meta: AddRelationMeta,
    get_relation_meta: GetRelationMeta,
    add_od_mtd: AddOdMtd,
    iterate: Iterate,
    od_mtd_type: OdMtdType,
    od_location: OdLocation,
    od_obj_type: OdObjType,
}

impl Api {
    fn load() -> Option<Self> {
        if gst::version() < (1, 24, 0, 0) {
            return None;
        }
        match Self::open() {
            Ok(api) => Some(api),
            Err(error) => {
                gst::warning!(gst::CAT_RUST, "no analytics metadata, only regions of interest: {error}");
                None
            }
        }
    }

    fn open() -> Result<Self, libloading::Error> {
        // SAFETY: GStreamer's own library has no initialiser with side effects; the types above are those of its
        // headers, for every release that passed the version check.
        unsafe {
            let library = Library::new(LIBRARY)?;
            let api = Self {
                add_relation_meta: *library.get(b"gst_buffer_add_analytics_relation_meta_full\0")?,
                get_relation_meta: *library.get(b"gst_buffer_get_analytics_relation_meta\0")?,
                add_od_mtd: *library.get(b"gst_analytics_relation_meta_add_od_mtd\0")?,
                iterate: *library.get(b"gst_analytics_relation_meta_iterate\0")?,
                od_mtd_type: *library.get(b"gst_analytics_od_mtd_get_mtd_type\0")?,
                od_location: *library.get(b"gst_analytics_od_mtd_get_location\0")?,
                od_obj_type: *library.get(b"gst_analytics_od_mtd_get_obj_type\0")?,
            };
            std::mem::forget(library);
            Ok(api)
        }
    }
}

fn api() -> Option<&'static Api> {
    static API: OnceLock<Option<Api>> = OnceLock::new();
    API.get_or_init(Api::load).as_ref()
}

/// Whether the running GStreamer has analytics metadata. Opens the library when first asked; GStreamer must be
/// initialised.
pub fn available() -> bool {
    api().is_some()
}

/// Adds one mtd for each detection, to the buffer's relation meta or to a new one.
///
/// Returns the first one's id (the others follow), none where the library is missing or there are no detections.
pub(super) fn add(
    buffer: &mut gst::BufferRef,
    detections: &[Detection],
    labels: &LabelQuarks,
    frame_size: (u32, u32),
) -> Result<Option<u32>, glib::BoolError> {
    let Some(api) = api() else { return Ok(None) };
    let room = detections.len().max(1).div_ceil(STEP) * STEP;
    let mut params = InitParams { initial_relation_order: room, initial_buf_size: room * MTD_BYTES };
    // SAFETY: the buffer is writable (`&mut`); the parameters are only read during the call. It returns the meta that
    // is there already, if there is one.
    let meta = unsafe { (api.add_relation_meta)(buffer.as_mut_ptr(), &mut params) };
    if meta.is_null() {
        return Err(glib::bool_error!("the buffer took no analytics relation meta"));
    }
    let mut first = None;
    for detection in detections {
        let PixelBox { x, y, w, h } = PixelBox::new(&detection.rect, frame_size);
        let label = labels.get(detection.class).into_glib();
        let mut mtd = Mtd { id: 0, meta: ptr::null_mut() };
        // SAFETY: `meta` belongs to the writable buffer; `mtd` is written (1.24 insists on it) and not kept. The sides
        // fit: `PixelBox` stays within an `i32`.
        let added = unsafe {
            (api.add_od_mtd)(
                meta,
                label,
                x as c_int,
                y as c_int,
                w as c_int,
                h as c_int,
                detection.confidence,
                &mut mtd,
            )
        };
        if added == glib::ffi::GFALSE {
            return Err(glib::bool_error!("the analytics relation meta took no further detection"));
        }
        first.get_or_insert(mtd.id);
    }
    Ok(first)
}

/// Appends the buffer's object-detection mtds in the order of their ids.
pub(super) fn read(buffer: &gst::BufferRef, frames: &[FrameRecord], found: &mut Vec<Found>) {
    let Some(api) = api() else { return };
    // SAFETY: the calls only read the buffer's metas; the pointer is cast because C has no `const` there. The handle's
    // meta stays valid while the buffer is borrowed.
    unsafe {
        let meta = (api.get_relation_meta)(buffer.as_mut_ptr());
        if meta.is_null() {
            return;
        }
        let kind = (api.od_mtd_type)();
        let mut state = ptr::null_mut();
        let mut mtd = Mtd { id: 0, meta };
        while (api.iterate)(meta, &mut state, kind, &mut mtd) != glib::ffi::GFALSE {
            found.extend(object(api, &mut mtd, frames));
        }
    }
}

/// # Safety
/// `mtd` names an object-detection mtd of a living relation meta.
unsafe fn object(api: &Api, mtd: &mut Mtd, frames: &[FrameRecord]) -> Option<Found> {
    let (mut x, mut y, mut w, mut h, mut confidence) = (0, 0, 0, 0, 0.0);
    // SAFETY: the caller's promise; all places to write to are ours.
    let (located, class) = unsafe {
        (
            (api.od_location)(mtd, &mut x, &mut y, &mut w, &mut h, &mut confidence),
            glib::Quark::try_from_glib((api.od_obj_type)(mtd)).ok(),
        )
    };
    if located == glib::ffi::GFALSE {
        return None;
    }
    let owner = frames
        .iter()
        .enumerate()
        .find_map(|(element, frame)| Some((element, frame.index_of(mtd.id, frame.first_mtd?)?)));
    Some(Found {
        id: owner.map(|(element, index)| frames[element].first_id.wrapping_add(index)),
        element: owner.map(|(element, _)| element),
        mtd: Some(mtd.id),
        x,
        y,
        w,
        h,
        confidence: Some(confidence),
        class,
        class_id: owner.and_then(|(element, index)| frames[element].class_id(index)),
        normalized: None,
    })
}
