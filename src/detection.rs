//! What a model finds: boxes in pixels, a confidence, a class number; and the names of the classes.
//!
//! Pure data, shared by decoding, metas and the elements that read them.

use std::borrow::Cow;
use std::sync::Arc;

/// A class as the model counts it, from 0.
pub type ClassId = u32;

/// An axis-aligned box by its corners (`xyxy`), in pixels of whichever image the context names.
///
/// `x1 <= x2` and `y1 <= y2` hold for every box that leaves [`crate::decode`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rect {
    pub x1: f32,
    pub y1: f32,
    pub x2: f32,
    pub y2: f32,
}

impl Rect {
    pub fn new(x1: f32, y1: f32, x2: f32, y2: f32) -> Self {
        Self { x1, y1, x2, y2 }
    }

    /// From centre and size, the form most heads use (`cxcywh`).
    pub fn from_center(cx: f32, cy: f32, width: f32, height: f32) -> Self {
        let (half_w, half_h) = (width / 2.0, height / 2.0);
        Self::new(cx - half_w, cy - half_h, cx + half_w, cy + half_h)
    }

    pub fn width(&self) -> f32 {
        self.x2 - self.x1
    }

    pub fn height(&self) -> f32 {
        self.y2 - self.y1
    }

    pub fn area(&self) -> f32 {
        self.width() * self.height()
    }

    /// Area of the overlap, 0 where the boxes do not meet. Each axis is clamped by itself, or two
    /// boxes apart on both axes would overlap by a positive product of negatives.
    pub fn intersection(&self, other: &Rect) -> f32 {
        let width = (self.x2.min(other.x2) - self.x1.max(other.x1)).max(0.0);
        let height = (self.y2.min(other.y2) - self.y1.max(other.y1)).max(0.0);
        width * height
    }

    /// Intersection over union, 0..=1; 0 for two empty boxes.
    pub fn iou(&self, other: &Rect) -> f32 {
        let intersection = self.intersection(other);
        let union = self.area() + other.area() - intersection;
        if union > 0.0 { intersection / union } else { 0.0 }
    }

    /// Cut to `0..=width`, `0..=height`.
    pub fn clip(&self, width: f32, height: f32) -> Self {
        Self::new(
            self.x1.clamp(0.0, width),
            self.y1.clamp(0.0, height),
            self.x2.clamp(0.0, width),
            self.y2.clamp(0.0, height),
        )
    }

    pub fn is_finite(&self) -> bool {
        [self.x1, self.y1, self.x2, self.y2].iter().all(|v| v.is_finite())
    }
}

/// One object that a model found. 24 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Detection {
    pub rect: Rect,
    /// 0..=1
    pub confidence: f32,
    pub class: ClassId,
}

/// The names of a model's classes. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Labels(Arc<[String]>);

impl Labels {
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        Self(names.into_iter().collect())
    }

    /// The 80 classes of COCO, in the order in which YOLO models count them.
    pub fn coco() -> Self {
        Self::new(COCO.iter().map(|name| name.to_string()))
    }

    /// `class 0` … where nothing better is known.
    pub fn numbered(classes: usize) -> Self {
        Self::new((0..classes).map(|class| class.to_string()))
    }

    /// One name a line; blank lines at the end do not count, `\r\n` is understood.
    pub fn from_lines(text: &str) -> Self {
        let mut names: Vec<String> =
            text.trim_start_matches('\u{feff}').lines().map(|line| line.trim().to_string()).collect();
        while names.last().is_some_and(String::is_empty) {
            names.pop();
        }
        Self::new(names)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// The class's name, or its number where there is none.
    pub fn name(&self, class: ClassId) -> Cow<'_, str> {
        match self.0.get(class as usize) {
            Some(name) => Cow::Borrowed(name),
            None => Cow::Owned(class.to_string()),
        }
    }

    pub fn position(&self, name: &str) -> Option<ClassId> {
        self.0.iter().position(|known| known == name).map(|class| class as ClassId)
    }
}

#[rustfmt::skip]
const COCO: [&str; 80] = [
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_apart_on_both_axes_do_not_overlap() {
        let a = Rect::new(0.0, 0.0, 10.0, 10.0);
        assert_eq!(a.intersection(&Rect::new(20.0, 20.0, 30.0, 30.0)), 0.0);
        assert_eq!(a.iou(&a), 1.0);
        assert_eq!(a.iou(&Rect::new(5.0, 0.0, 15.0, 10.0)), 1.0 / 3.0);
        assert_eq!(Rect::default().iou(&Rect::default()), 0.0);
    }

    #[test]
    fn labels_are_read_from_lines_and_fall_back_to_numbers() {
        let labels = Labels::from_lines("\u{feff}cat\r\ndog \n\nbird\n\n");
        assert_eq!(labels.iter().collect::<Vec<_>>(), ["cat", "dog", "", "bird"]);
        assert_eq!(labels.name(1), "dog");
        assert_eq!(labels.name(9), "9");
        assert_eq!(labels.position("bird"), Some(3));
        assert_eq!(Labels::coco().len(), 80);
        assert_eq!(Labels::coco().position("toothbrush"), Some(79));
    }
}
