//! Where a frame lies in the model's input: scaled to fit, the rest padded. Pure geometry, both ways.

use crate::detection::Rect;

/// Which side of the model's input gets the padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Placement {
    /// Padding all around: Ultralytics.
    Center,
    /// Padding to the right and below: YOLOX.
    TopLeft,
}

/// The map between a frame and the model's input. Sizes and offsets are in pixels, `(width, height)` and
/// `(left, top)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Letterbox {
    frame: (u32, u32),
    model: (u32, u32),
    gain: f64,
    resized: (u32, u32),
    pad: (u32, u32),
    placement: Placement,
}

impl Letterbox {
    /// Fits `frame` into `model` with its proportions kept, scaled up too where it is smaller.
    ///
    /// A size of 0 counts as 1. However thin the frame, one row and one column of it remain; OpenCV, and so
    /// Ultralytics and YOLOX, refuses such frames.
    ///
    /// `Center` computes what Ultralytics' `LetterBox(auto=False, scaleup=True, center=True)` does, in double
    /// precision as Python does and with Python's `round`, so that not a pixel differs. `TopLeft` rounds in the
    /// same way. YOLOX's `preproc` cuts instead, which shrinks the picture by up to a pixel that nobody gives back
    /// when the boxes are divided by the gain.
    pub fn new(frame: (u32, u32), model: (u32, u32), placement: Placement) -> Self {
        let frame = (frame.0.max(1), frame.1.max(1));
        let model = (model.0.max(1), model.1.max(1));
        let gain = (f64::from(model.1) / f64::from(frame.1)).min(f64::from(model.0) / f64::from(frame.0));
        let resize = |frame: u32, model: u32| {
            let size = (f64::from(frame) * gain).round_ties_even();
            (size as u32).clamp(1, model)
        };
        let resized = (resize(frame.0, model.0), resize(frame.1, model.1));
        let pad = |resized: u32, model: u32| match placement {
            // The 0.1 is Ultralytics' way to give the odd pixel to the right and the bottom.
            Placement::Center => (f64::from(model - resized) / 2.0 - 0.1).round_ties_even() as u32,
            Placement::TopLeft => 0,
        };
        let pad = (pad(resized.0, model.0), pad(resized.1, model.1));
        Self { frame, model, gain, resized, pad, placement }
    }

    /// From the model's pixels to the frame's, clipped to the frame: Ultralytics' `scale_boxes`, in single
    /// precision as there. A coordinate that is not a number stays one.
    pub fn to_frame(&self, r: Rect) -> Rect {
        let gain = self.gain as f32;
        let (left, top) = (self.pad.0 as f32, self.pad.1 as f32);
        Rect::new((r.x1 - left) / gain, (r.y1 - top) / gain, (r.x2 - left) / gain, (r.y2 - top) / gain)
            .clip(self.frame.0 as f32, self.frame.1 as f32)
    }

    /// From the frame's pixels to the model's. Not clipped.
    pub fn to_model(&self, r: Rect) -> Rect {
        let gain = self.gain as f32;
        let (left, top) = (self.pad.0 as f32, self.pad.1 as f32);
        Rect::new(r.x1 * gain + left, r.y1 * gain + top, r.x2 * gain + left, r.y2 * gain + top)
    }

    /// The frame's size.
    pub fn frame(&self) -> (u32, u32) {
        self.frame
    }

    /// The size of the model's input.
    pub fn model(&self) -> (u32, u32) {
        self.model
    }

    /// The picture's size within the model's input.
    pub fn resized(&self) -> (u32, u32) {
        self.resized
    }

    /// The picture's left upper corner within the model's input.
    pub fn pad(&self) -> (u32, u32) {
        self.pad
    }

    /// Model pixels per frame pixel. Boxes scale by it on both axes, as in Ultralytics, even where the rounded
    /// size of the picture is a little off.
    pub fn gain(&self) -> f64 {
        self.gain
    }

    pub fn placement(&self) -> Placement {
        self.placement
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Size = (u32, u32);

    /// Computed with Python from Ultralytics' formula: frame, model, resized, pad.
    #[rustfmt::skip]
    const ULTRALYTICS: [(Size, Size, Size, Size); 19] = [
        ((1920, 1080), (640, 640), (640, 360), (0, 140)),
        ((1280, 720), (640, 640), (640, 360), (0, 140)),
        ((640, 480), (640, 640), (640, 480), (0, 80)),
        ((810, 1080), (640, 640), (480, 640), (80, 0)),
        ((768, 576), (640, 640), (640, 480), (0, 80)),
        ((640, 272), (640, 640), (640, 272), (0, 184)),
        ((1279, 717), (640, 640), (640, 359), (0, 140)),
        ((333, 500), (640, 640), (426, 640), (107, 0)),
        ((500, 333), (416, 416), (416, 277), (0, 69)),
        ((100, 37), (640, 384), (640, 237), (0, 73)),
        ((640, 640), (640, 640), (640, 640), (0, 0)),
        ((1, 1), (640, 640), (640, 640), (0, 0)),
        ((3840, 2160), (1280, 736), (1280, 720), (0, 8)),
        ((1920, 1081), (640, 640), (640, 360), (0, 140)),
        ((1023, 577), (640, 640), (640, 361), (0, 139)),
        // Halves go to the even side: 127.5 up, 125.5 up, 3.5 up, 1.5 up, 2.5 down.
        ((256, 255), (128, 128), (128, 128), (0, 0)),
        ((256, 251), (128, 128), (128, 126), (0, 1)),
        ((49, 98), (98, 7), (4, 7), (47, 0)),
        ((5, 128), (64, 64), (2, 64), (31, 0)),
    ];

    #[test]
    fn centers_as_ultralytics_does() {
        for (frame, model, resized, pad) in ULTRALYTICS {
            let letterbox = Letterbox::new(frame, model, Placement::Center);
            assert_eq!((letterbox.resized(), letterbox.pad()), (resized, pad), "{frame:?} in {model:?}");
        }
    }

    #[test]
    fn the_corner_changes_the_padding_alone() {
        for (frame, model, resized, _) in ULTRALYTICS {
            let letterbox = Letterbox::new(frame, model, Placement::TopLeft);
            assert_eq!((letterbox.resized(), letterbox.pad()), (resized, (0, 0)), "{frame:?} in {model:?}");
        }
    }

    #[test]
    fn keeps_a_row_and_a_column_of_the_thinnest_frames() {
        for placement in [Placement::Center, Placement::TopLeft] {
            assert_eq!(Letterbox::new((16383, 1), (640, 640), placement).resized(), (640, 1));
            assert_eq!(Letterbox::new((1, 16383), (640, 640), placement).resized(), (1, 640));
            assert_eq!(Letterbox::new((0, 0), (0, 0), placement).resized(), (1, 1));
            let huge = Letterbox::new((u32::MAX, u32::MAX), (u32::MAX, 1), placement);
            assert_eq!(huge.resized(), (1, 1));
        }
    }

    #[test]
    fn boxes_return_to_the_frame_and_are_clipped_to_it() {
        let letterbox = Letterbox::new((1280, 720), (640, 640), Placement::Center);
        let found = letterbox.to_frame(Rect::new(10.0, 150.0, 110.0, 250.0));
        assert_eq!(found, Rect::new(20.0, 20.0, 220.0, 220.0));
        let outside = letterbox.to_frame(Rect::new(-5.0, 0.0, f32::INFINITY, 639.0));
        assert_eq!(outside, Rect::new(0.0, 0.0, 1280.0, 720.0));
        // The odd pixel of padding lies below: 281 rows of it, 140 of them above.
        let odd = Letterbox::new((1279, 717), (640, 640), Placement::Center);
        assert_eq!(odd.to_frame(Rect::new(0.0, 140.0, 0.0, 140.0)).y1, 0.0);
    }

    proptest! {
        #[test]
        fn there_and_back_is_the_same_box(
            frame in (1u32..5000, 1u32..5000),
            model in (32u32..1500, 32u32..1500),
            corners in (0.0f32..=1.0, 0.0f32..=1.0, 0.0f32..=1.0, 0.0f32..=1.0),
            center: bool,
        ) {
            let placement = if center { Placement::Center } else { Placement::TopLeft };
            let letterbox = Letterbox::new(frame, model, placement);
            let (w, h) = (frame.0 as f32, frame.1 as f32);
            let r = Rect::new(corners.0 * w, corners.1 * h, corners.2 * w, corners.3 * h);
            let back = letterbox.to_frame(letterbox.to_model(r));
            // The model's coordinates are good to about 1e-4 pixels; a small gain stretches that error.
            let tolerance = 1e-3 + 3e-4 / letterbox.gain() as f32;
            for (a, b) in [(r.x1, back.x1), (r.y1, back.y1), (r.x2, back.x2), (r.y2, back.y2)] {
                prop_assert!((a - b).abs() <= tolerance, "{r:?} became {back:?}");
            }
        }

        #[test]
        fn the_picture_fits_whatever_the_sizes(frame: (u32, u32), model: (u32, u32), center: bool) {
            let placement = if center { Placement::Center } else { Placement::TopLeft };
            let letterbox = Letterbox::new(frame, model, placement);
            let (resized, pad) = (letterbox.resized(), letterbox.pad());
            prop_assert!(resized.0 >= 1 && resized.1 >= 1);
            prop_assert!(u64::from(resized.0) + u64::from(pad.0) <= u64::from(model.0.max(1)));
            prop_assert!(u64::from(resized.1) + u64::from(pad.1) <= u64::from(model.1.max(1)));
        }
    }
}
