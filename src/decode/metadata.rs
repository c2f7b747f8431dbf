//! What Ultralytics' exporter writes into a model about the model.

use super::literal::Literal;

/// Class numbers from here on are taken for garbage; the largest vocabularies in use have about 22 000
/// classes. Bounds what a hostile `names` can make us allocate.
const MAX_CLASSES: usize = 65_536;

/// The entries that bear on decoding. Each is `None` (or `false`) where the model does not say or says
/// something that cannot be understood.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelMetadata {
    /// Name of each class, in the order of the class numbers; never empty when read from a model.
    pub names: Option<Vec<String>>,
    /// The largest head stride, 32 for most models.
    pub stride: Option<u32>,
    /// (height, width) of the input in pixels, both above 0.
    pub image_size: Option<(u32, u32)>,
    /// `detect`, `pose`, `segment`, `obb`, `classify`, in lower case.
    pub task: Option<String>,
    /// The model selects its detections itself: NMS-free training, or NMS exported as part of the graph.
    pub end2end: bool,
}

impl ModelMetadata {
    /// Reads the entries `names`, `stride`, `imgsz`, `task`, `end2end` and `args` through `get`, which
    /// gives the value of a custom metadata key. Never fails: see the type.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Self {
        Self {
            names: get("names").and_then(|text| names(&text)),
            stride: get("stride").and_then(|text| positive(&text)),
            image_size: get("imgsz").and_then(|text| image_size(&text)),
            task: get("task").map(|text| text.trim().to_lowercase()).filter(|task| !task.is_empty()),
            end2end: get("end2end").is_some_and(|text| truth(&text))
                || get("args").is_some_and(|text| has_nms(&text)),
        }
    }

    /// Whether the model says anything that an Ultralytics exporter (or YOLOv5's) would have written.
    pub(super) fn is_ultralytics(&self) -> bool {
        self.names.is_some()
            || self.stride.is_some()
            || self.image_size.is_some()
            || self.task.is_some()
            || self.end2end
    }
}

fn names(text: &str) -> Option<Vec<String>> {
    let names = match Literal::parse(text)? {
        Literal::List(names) => names,
        Literal::Dict(entries) => by_number(entries)?,
    };
    (!names.is_empty() && names.len() <= MAX_CLASSES).then_some(names)
}

/// Names in the order of their numbers; a number without a name is its own name.
fn by_number(entries: Vec<(String, String)>) -> Option<Vec<String>> {
    let entries = entries
        .into_iter()
        .map(|(number, name)| Some((number.parse().ok().filter(|&number| number < MAX_CLASSES)?, name)))
        .collect::<Option<Vec<(usize, String)>>>()?;
    let count = entries.iter().map(|(number, _)| number + 1).max()?;
    let mut names: Vec<String> = (0..count).map(|number| number.to_string()).collect();
    for (number, name) in entries {
        names[number] = name;
    }
    Some(names)
}

/// `[h, w]`, `[n]` or `n`.
fn image_size(text: &str) -> Option<(u32, u32)> {
    match Literal::parse(text) {
        Some(Literal::List(sizes)) => match sizes.as_slice() {
            [side] => positive(side).map(|side| (side, side)),
            [height, width] => Some((positive(height)?, positive(width)?)),
            _ => None,
        },
        Some(Literal::Dict(_)) => None,
        None => positive(text).map(|side| (side, side)),
    }
}

/// A whole number above 0; `32.0` is one.
fn positive(text: &str) -> Option<u32> {
    let number: f64 = text.trim().parse().ok()?;
    (number.fract() == 0.0 && number >= 1.0 && number <= f64::from(u32::MAX)).then_some(number as u32)
}

fn truth(text: &str) -> bool {
    let text = text.trim();
    text.eq_ignore_ascii_case("true") || text == "1"
}

/// Whether the export arguments, a dict as text, hold `'nms': True`. They may nest, so they are searched
/// rather than parsed; the key is compared whole because `agnostic_nms` is another one.
fn has_nms(args: &str) -> bool {
    args.split([',', '{', '}']).filter_map(|entry| entry.split_once(':')).any(|(key, value)| {
        let key = key.trim().trim_matches(['\'', '"']);
        key == "nms" && truth(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(entries: &[(&str, &str)]) -> ModelMetadata {
        ModelMetadata::read(|key| {
            entries.iter().find(|(known, _)| *known == key).map(|(_, value)| value.to_string())
        })
    }

    #[test]
    fn an_ultralytics_export() {
        let metadata = read(&[
            ("author", "Ultralytics"),
            ("stride", "32"),
            ("task", "detect"),
            ("batch", "1"),
            ("imgsz", "[480, 640]"),
            ("names", "{0: 'person', 1: 'it\\'s', 2: \"x\"}"),
            ("args", "{'batch': 1, 'half': False, 'nms': False}"),
        ]);
        let expected = ModelMetadata {
            names: Some(vec!["person".into(), "it's".into(), "x".into()]),
            stride: Some(32),
            image_size: Some((480, 640)),
            task: Some("detect".into()),
            end2end: false,
        };
        assert_eq!(metadata, expected);
        assert!(metadata.is_ultralytics());
        assert!(!read(&[]).is_ultralytics());
    }

    #[test]
    fn names_in_every_form() {
        let table: &[(&str, Option<&[&str]>)] = &[
            ("{0: 'a', 1: 'b'}", Some(&["a", "b"])),
            ("{1: 'b', 0: 'a'}", Some(&["a", "b"])),
            ("{\"0\": \"a\", \"1\": \"b\"}", Some(&["a", "b"])),
            ("['a', 'b']", Some(&["a", "b"])),
            ("[\"a\", \"b\"]", Some(&["a", "b"])),
            ("{0: 'a', 2: 'c'}", Some(&["a", "1", "c"])),
            ("{0: 'a', 0: 'b'}", Some(&["b"])),
            ("{0: 7}", Some(&["7"])),
            ("{}", None),
            ("[]", None),
            ("{4000000000: 'a'}", None),
            ("{99999999999999999999999: 'a'}", None),
            ("{-1: 'a'}", None),
            ("{'x': 'a'}", None),
            ("{0: 'a'", None),
            ("person", None),
            ("", None),
        ];
        for (text, expected) in table {
            let names = read(&[("names", text)]).names;
            let names = names.as_ref().map(|names| names.iter().map(String::as_str).collect::<Vec<_>>());
            assert_eq!(names.as_deref(), *expected, "{text}");
        }
    }

    #[test]
    fn sizes_and_strides() {
        let table = [
            ("[640, 480]", Some((640, 480))),
            ("(640, 480)", Some((640, 480))),
            ("[640]", Some((640, 640))),
            ("640", Some((640, 640))),
            (" 640.0 ", Some((640, 640))),
            ("[0, 640]", None),
            ("[640, 640, 3]", None),
            ("[-640, 640]", None),
            ("[4294967296, 640]", None),
            ("nan", None),
            ("inf", None),
            ("640.5", None),
            ("{0: 640}", None),
            ("large", None),
        ];
        for (text, expected) in table {
            assert_eq!(read(&[("imgsz", text)]).image_size, expected, "{text}");
        }
        assert_eq!(read(&[("stride", "64.0")]).stride, Some(64));
        assert_eq!(read(&[("stride", "0")]).stride, None);
    }

    #[test]
    fn tasks_and_selection_inside_the_model() {
        assert_eq!(read(&[("task", " Pose\n")]).task.as_deref(), Some("pose"));
        assert_eq!(read(&[("task", " ")]).task, None);
        for text in ["True", "true", "1"] {
            assert!(read(&[("end2end", text)]).end2end, "{text}");
        }
        for text in ["False", "", "0", "yes"] {
            assert!(!read(&[("end2end", text)]).end2end, "{text}");
        }
        assert!(read(&[("args", "{'half': False, 'nms': True}")]).end2end);
        assert!(read(&[("args", "{\"nms\":true,\"half\":false}")]).end2end);
        assert!(!read(&[("args", "{'agnostic_nms': True, 'nms': False}")]).end2end);
    }

    proptest! {
        #[test]
        fn any_text_is_harmless(text in ".{0,60}") {
            let metadata = ModelMetadata::read(|_| Some(text.clone()));
            prop_assert!(metadata.names.is_none_or(|names| !names.is_empty() && names.len() <= MAX_CLASSES));
        }
    }
}
