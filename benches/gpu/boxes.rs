//! How far boxes are from those that the CPU finds on the same frames.

use std::fmt;

use crate::common::{Out, Seen};

/// From here on a box must be found on both sides: what is less certain may be at home beyond the threshold of 0.25.
const SURE: f64 = 0.32;

#[derive(Debug)]
pub struct Difference {
    compared: usize,
    iou: f64,
    confidence: f64,
    /// Sure boxes of one side that the other side does not have.
    alone: usize,
    /// Frames without a result.
    lost: usize,
}

impl Difference {
    pub fn of(expected: &[Out], found: &[Out]) -> Self {
        let lost = expected.len().abs_diff(found.len())
            + expected.iter().chain(found).filter(|frame| frame.status != "inferred").count();
        let mut difference = Self { compared: 0, iou: 1.0, confidence: 0.0, alone: 0, lost };
        for (expected, found) in expected.iter().zip(found) {
            difference.add(&expected.boxes, &found.boxes);
            // The other way round only what nobody answers to counts.
            difference.alone +=
                sure(&found.boxes).filter(|one| partner(one, &expected.boxes).is_none()).count();
        }
        difference
    }

    fn add(&mut self, expected: &[Seen], found: &[Seen]) {
        for one in sure(expected) {
            match partner(one, found) {
                Some((iou, other)) => {
                    self.compared += 1;
                    self.iou = self.iou.min(iou);
                    self.confidence = self.confidence.max((one.confidence - other.confidence).abs());
                }
                None => self.alone += 1,
            }
        }
    }

    /// Something was compared, too: frames on which nothing is found agree with anything.
    pub fn is_within(&self, iou: f64, confidence: f64) -> bool {
        self.compared > 0 && self.alone + self.lost == 0 && self.iou >= iou && self.confidence <= confidence
    }
}

fn sure(boxes: &[Seen]) -> impl Iterator<Item = &Seen> {
    boxes.iter().filter(|one| one.confidence >= SURE)
}

/// The box of the same class that covers it best, half of it at least.
fn partner<'a>(one: &Seen, boxes: &'a [Seen]) -> Option<(f64, &'a Seen)> {
    boxes
        .iter()
        .filter(|other| other.class == one.class && other.label == one.label)
        .map(|other| (other.iou(&one.xyxy), other))
        .filter(|(iou, _)| *iou >= 0.5)
        .max_by(|a, b| a.0.total_cmp(&b.0))
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { compared, iou, confidence, alone, lost } = self;
        write!(f, "{compared} boxes, IoU ≥ {iou:.4}, confidence within {confidence:.4}")?;
        if alone + lost > 0 {
            write!(f, ", {alone} on one side only, {lost} frames without a result")?;
        }
        Ok(())
    }
}
