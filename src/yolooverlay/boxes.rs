//! The boxes to draw: what the buffer carries, and for each detector that passed this frame over, what it found last.

use crate::meta::{self, Found, FrameRecord, Status};

/// Keeps its lists from frame to frame, so that they are not allocated anew.
#[derive(Debug, Default)]
pub struct Boxes {
    records: Vec<FrameRecord>,
    objects: Vec<Found>,
    held: Vec<Held>,
}

/// What one element found on the last frame that it inferred.
#[derive(Debug, Default)]
struct Held {
    element: String,
    objects: Vec<Found>,
}

impl Boxes {
    /// The objects to draw on this frame, in its pixels; any value may come from other elements. With `hold`, an
    /// element that did not infer the frame has its last ones there again.
    pub fn read(&mut self, buffer: &gst::BufferRef, hold: bool) -> &[Found] {
        meta::frames_into(buffer, &mut self.records);
        meta::found_into(buffer, &self.records, &mut self.objects);
        if !hold {
            self.clear();
            return &self.objects;
        }
        let records = &self.records;
        self.held.retain(|held| records.iter().any(|record| record.element == held.element));
        let on_buffer = self.objects.len();
        for (index, record) in records.iter().enumerate() {
            let known = self.held.iter().position(|held| held.element == record.element);
            if record.status != Status::Inferred {
                if let Some(at) = known {
                    self.objects.extend_from_slice(&self.held[at].objects);
                }
                continue;
            }
            let at = known.unwrap_or_else(|| {
                self.held.push(Held { element: record.element.clone(), objects: Vec::new() });
                self.held.len() - 1
            });
            let own = self.objects[..on_buffer].iter().filter(|object| object.element == Some(index));
            self.held[at].objects.clear();
            self.held[at].objects.extend(own.cloned());
        }
        &self.objects
    }

    /// Forgets what is held.
    pub fn clear(&mut self) {
        self.held.clear();
    }
}
