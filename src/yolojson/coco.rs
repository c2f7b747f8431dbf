//! COCO results: the array of records that the COCO evaluation tools read.
//!
//! `[`, then `{"image_id","category_id","bbox","score"}` for each detection, then `]` at the end of the stream, so that
//! the whole is one valid JSON document, empty streams included.
//!
//! - `image_id`: the frame's number in the detecting element's stream, from 0.
//! - `category_id`: COCO numbers its 80 classes from 1 to 90 with gaps. A detection whose label stands at its class's
//!   place in COCO's list gets that number. Any other class gets `class + 1`. What another element found is judged by
//!   its label alone, and left out where COCO has no such label and no class is told.
//! - `bbox`: `[x, y, w, h]` in pixels with two decimals; exact to those where the detection has a region of interest
//!   (`yolodetect roi-meta=true`), else whole pixels.
//! - `score`: the confidence; 1 where none is told.

use std::collections::HashMap;
use std::io::Write;
use std::sync::LazyLock;

use crate::detection::Labels;
use crate::meta::Found;

/// Categories that COCO numbered and dropped before release; the 80 classes have the other numbers of 1..=90, in order.
/// From the category list of the COCO 2017 annotations.
const UNUSED: [u32; 10] = [12, 26, 29, 30, 45, 66, 68, 69, 71, 83];

/// COCO's category of each of its labels, with the class that YOLO models give it.
static CATEGORIES: LazyLock<HashMap<String, (u32, u32)>> = LazyLock::new(|| {
    let numbers = (1..=90).filter(|number| !UNUSED.contains(number));
    let labels = Labels::coco();
    labels.iter().map(String::from).zip((0..).zip(numbers)).collect()
});

/// The stream's array as far as it is written.
#[derive(Debug, Default)]
pub struct Array {
    open: bool,
}

impl Array {
    /// Appends the frame's records. `frame_size`: width and height of the video.
    pub fn write<'a>(
        &mut self,
        text: &mut Vec<u8>,
        image_id: u64,
        detections: impl Iterator<Item = &'a Found>,
        frame_size: (u32, u32),
    ) {
        for detection in detections {
            let Some(category) = category(detection) else { continue };
            let score = detection.confidence.filter(|value| value.is_finite()).unwrap_or(1.0);
            let [x, y, w, h] = bbox(detection, frame_size);
            text.extend_from_slice(if self.open { b",\n" } else { b"[\n" });
            self.open = true;
            // Writing into a Vec does not fail.
            let _ = write!(
                text,
                "{{\"image_id\":{image_id},\"category_id\":{category},\
                 \"bbox\":[{x:.2},{y:.2},{w:.2},{h:.2}],\"score\":{score:.5}}}"
            );
        }
    }

    /// Appends the end; what follows is a new array.
    pub fn finish(&mut self, text: &mut Vec<u8>) {
        text.extend_from_slice(if self.open { b"\n]\n" } else { b"[]\n" });
        self.open = false;
    }
}

fn category(detection: &Found) -> Option<u32> {
    let coco = CATEGORIES.get(detection.label().as_ref());
    match (detection.class_id, coco) {
        (Some(class), Some((place, number))) if class == *place => Some(*number),
        (Some(class), _) => class.checked_add(1),
        (None, Some((_, number))) => Some(*number),
        (None, None) => None,
    }
}

fn bbox(detection: &Found, frame_size: (u32, u32)) -> [f64; 4] {
    let (width, height) = (frame_size.0 as f64, frame_size.1 as f64);
    match detection.normalized {
        Some(sides) if sides.iter().all(|side| side.is_finite()) => {
            let [x_min, y_min, x_max, y_max] = sides;
            [x_min * width, y_min * height, (x_max - x_min) * width, (y_max - y_min) * height]
        }
        _ => [detection.x, detection.y, detection.w, detection.h].map(f64::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gst::glib;

    fn detection(label: &str, class_id: Option<u32>) -> Found {
        Found {
            id: None,
            element: None,
            mtd: None,
            x: 1,
            y: 2,
            w: 3,
            h: 4,
            confidence: Some(0.5),
            class: Some(glib::Quark::from_str(label)),
            class_id,
            normalized: None,
        }
    }

    #[test]
    fn the_official_numbers() {
        let number = |label: &str| CATEGORIES.get(label).map(|(_, number)| *number);
        let known = [
            ("person", 1),
            ("fire hydrant", 11),
            ("stop sign", 13),
            ("backpack", 27),
            ("wine glass", 46),
            ("bed", 65),
            ("dining table", 67),
            ("toilet", 70),
            ("tv", 72),
            ("book", 84),
            ("toothbrush", 90),
        ];
        for (label, expected) in known {
            assert_eq!(number(label), Some(expected), "{label}");
        }
        assert_eq!(CATEGORIES.len(), 80);
    }

    #[test]
    fn categories_follow_label_and_class() {
        assert_eq!(category(&detection("stop sign", Some(11))), Some(13));
        assert_eq!(category(&detection("stop sign", Some(0))), Some(1));
        assert_eq!(category(&detection("helmet", Some(1))), Some(2));
        assert_eq!(category(&detection("stop sign", None)), Some(13));
        assert_eq!(category(&detection("helmet", None)), None);
        assert_eq!(category(&detection("helmet", Some(u32::MAX))), None);
    }

    #[test]
    fn the_array_is_valid_and_starts_anew() {
        let mut array = Array::default();
        let mut text = Vec::new();
        array.finish(&mut text);
        assert_eq!(text, b"[]\n");

        text.clear();
        let fine = Found { normalized: Some([0.25, 0.5, 0.2512, 1.0]), ..detection("person", Some(0)) };
        array.write(&mut text, 0, [].iter(), (100, 50));
        array.write(&mut text, 3, [fine, detection("helmet", None)].iter(), (1000, 50));
        array.write(&mut text, 4, [detection("person", Some(0))].iter(), (1000, 50));
        array.finish(&mut text);
        assert_eq!(
            String::from_utf8(text.clone()).unwrap(),
            concat!(
                "[\n",
                r#"{"image_id":3,"category_id":1,"bbox":[250.00,25.00,1.20,25.00],"score":0.50000},"#,
                "\n",
                r#"{"image_id":4,"category_id":1,"bbox":[1.00,2.00,3.00,4.00],"score":0.50000}"#,
                "\n]\n"
            )
        );
        serde_json::from_slice::<serde_json::Value>(&text).unwrap();
    }
}
