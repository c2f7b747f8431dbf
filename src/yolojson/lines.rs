//! One frame as one line of JSON.
//!
//! Fields, always in this order: `frame`, `time` (stream time in seconds, null where the buffer has no timestamp),
//! `element` (null where no `yolodetect` saw the frame), `status`, `batch`, `rss_mb` (resident set of this process in
//! MiB; left out where it cannot be read), `progress` (percent of the stream's duration; left out where that is not
//! known), `detections`. Of a detection: `id` (8 hex digits), `class`, `class_id`, `conf`, `box` (`[x, y, w, h]` in
//! pixels of this frame); `id`, `class_id` and `conf` are null where another element did not tell them.

use std::fmt;
use std::io::Write;

use crate::meta::Found;

/// What one line says of the frame as a whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line<'a> {
    pub frame: u64,
    /// Seconds.
    pub time: Option<f64>,
    pub element: Option<&'a str>,
    pub status: &'a str,
    pub batch: u32,
    /// MiB
    pub rss: Option<f64>,
    /// 0..=100
    pub progress: Option<f64>,
}

/// Appends the line, newline included.
pub fn write<'a>(text: &mut Vec<u8>, line: &Line, detections: impl Iterator<Item = &'a Found>) {
    put(text, format_args!("{{\"frame\":{},\"time\":{},\"element\":", line.frame, Number(line.time, 3)));
    match line.element {
        Some(element) => string(text, element),
        None => text.extend_from_slice(b"null"),
    }
    text.extend_from_slice(b",\"status\":");
    string(text, line.status);
    put(text, format_args!(",\"batch\":{}", line.batch));
    if line.rss.is_some() {
        put(text, format_args!(",\"rss_mb\":{}", Number(line.rss, 1)));
    }
    if line.progress.is_some() {
        put(text, format_args!(",\"progress\":{}", Number(line.progress, 1)));
    }
    text.extend_from_slice(b",\"detections\":[");
    for (index, detection) in detections.enumerate() {
        if index > 0 {
            text.push(b',');
        }
        write_detection(text, detection);
    }
    text.extend_from_slice(b"]}\n");
}

fn write_detection(text: &mut Vec<u8>, detection: &Found) {
    match detection.id {
        Some(id) => put(text, format_args!("{{\"id\":\"{id:08x}\",\"class\":")),
        None => text.extend_from_slice(b"{\"id\":null,\"class\":"),
    }
    string(text, &detection.label());
    match detection.class_id {
        Some(class) => put(text, format_args!(",\"class_id\":{class}")),
        None => text.extend_from_slice(b",\"class_id\":null"),
    }
    let Found { x, y, w, h, confidence, .. } = detection;
    let confidence = Number(confidence.map(f64::from), 3);
    put(text, format_args!(",\"conf\":{confidence},\"box\":[{x},{y},{w},{h}]}}"));
}

/// A JSON number with so many decimals; null for none and for what JSON cannot say.
struct Number(Option<f64>, usize);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.0 {
            Some(value) if value.is_finite() => write!(f, "{value:.*}", self.1),
            _ => f.write_str("null"),
        }
    }
}

fn string(text: &mut Vec<u8>, value: &str) {
    // Writing into a Vec does not fail, nor does a string's serialisation.
    let _ = serde_json::to_writer(text, value);
}

fn put(text: &mut Vec<u8>, arguments: fmt::Arguments) {
    let _ = text.write_fmt(arguments);
}

#[cfg(test)]
mod tests {
    use super::*;
    use gst::glib;
    use proptest::prelude::*;

    const LINE: Line = Line {
        frame: 7,
        time: Some(0.28),
        element: Some("yolodetect0"),
        status: "inferred",
        batch: 2,
        rss: Some(148.23),
        progress: Some(2.84),
    };

    fn detection(label: &str) -> Found {
        Found {
            id: Some(42),
            element: Some(0),
            mtd: None,
            x: 12,
            y: 30,
            w: 88,
            h: 41,
            confidence: Some(0.8734),
            class: Some(glib::Quark::from_str(label)),
            class_id: Some(2),
            normalized: None,
        }
    }

    fn written(line: &Line, detections: &[Found]) -> String {
        let mut text = Vec::new();
        write(&mut text, line, detections.iter());
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn a_line_has_its_fields_in_order() {
        let foreign =
            Found { id: None, element: None, confidence: None, class: None, class_id: None, ..detection("") };
        assert_eq!(
            written(&LINE, &[detection("car"), foreign]),
            concat!(
                r#"{"frame":7,"time":0.280,"element":"yolodetect0","status":"inferred","batch":2,"rss_mb":148.2,"#,
                r#""progress":2.8,"detections":["#,
                r#"{"id":"0000002a","class":"car","class_id":2,"conf":0.873,"box":[12,30,88,41]},"#,
                r#"{"id":null,"class":"","class_id":null,"conf":null,"box":[12,30,88,41]}]}"#,
                "\n"
            )
        );
    }

    #[test]
    fn what_is_not_known_is_null_or_left_out() {
        let line = Line { time: None, element: None, status: "none", rss: None, progress: None, ..LINE };
        let expected = "{\"frame\":7,\"time\":null,\"element\":null,\"status\":\"none\",\"batch\":2,\"detections\":[]}\n";
        assert_eq!(written(&line, &[]), expected);
        let nan = Found { confidence: Some(f32::NAN), ..detection("car") };
        assert!(written(&line, &[nan]).contains("\"conf\":null"));
    }

    proptest! {
        #[test]
        fn any_names_make_one_valid_line(element in "\\PC*|.*", label in "[^\0]*", confidence: f32) {
            let line = Line { element: Some(&element), ..LINE };
            let text = written(&line, &[Found { confidence: Some(confidence), ..detection(&label) }]);
            prop_assert_eq!(text.matches('\n').count(), 1);
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(value["element"].as_str(), Some(element.as_str()));
            prop_assert_eq!(value["detections"][0]["class"].as_str(), Some(label.as_str()));
        }
    }
}
