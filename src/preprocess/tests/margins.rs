//! Padding is painted once for each place and geometry, and is right for whoever uses the place.

use super::*;
use crate::tensor::{BatchTensor, Element, FrameExtent, TensorSlot};

const MODEL: (u32, u32) = (24, 24);
const LEN: usize = 3 * 24 * 24;
/// Unlike any grey or pixel.
const MARK: f32 = -7.0;

fn batch(element: Element) -> BatchTensor {
    BatchTensor::new(2, FrameExtent { element, len: LEN }).expect("a few kilobytes")
}

fn stream(size: (u32, u32), style: InputStyle) -> (Frame, Converter) {
    let frame = Frame::noise(format(PixelFormat::Bgr, size, FULL), 0, 0);
    let converter = Converter::new(frame.format, MODEL, style);
    (frame, converter)
}

fn convert((frame, converter): &mut (Frame, Converter), slot: &mut TensorSlot) {
    converter.convert(&frame.planes(), slot.tensor()).expect("the frame is complete");
}

fn values(slot: &mut TensorSlot) -> Vec<f32> {
    match slot.tensor().values {
        TensorMut::F32(values) => values.to_vec(),
        TensorMut::F16(values) => values.iter().map(|value| value.to_f32()).collect(),
    }
}

/// Writes a mark where the streams of these tests have padding, in the last row or column, and leaves the margin's
/// own mark alone.
fn spoil(slot: &mut TensorSlot) {
    match slot.tensor().values {
        TensorMut::F32(values) => values[LEN - 1] = MARK,
        TensorMut::F16(values) => values[LEN - 1] = f16::from_f32(MARK),
    }
}

fn is_spoilt(slot: &mut TensorSlot) -> bool {
    values(slot)[LEN - 1] == MARK
}

fn expected((frame, converter): &mut (Frame, Converter), element: Element) -> Vec<f32> {
    let mut batch = batch(element);
    let mut slot = batch.slot(0);
    converter.convert(&frame.planes(), slot.tensor()).expect("the frame is complete");
    values(&mut slot)
}

#[test]
fn padding_is_written_once_for_each_place() {
    for element in [Element::F32, Element::F16] {
        let mut batch = batch(element);
        let mut stream = stream((48, 20), InputStyle::ULTRALYTICS);
        let (mut first, mut second) = (batch.slot(0), batch.slot(1));
        for slot in [&mut first, &mut second] {
            convert(&mut stream, slot);
            assert_eq!(values(slot), expected(&mut stream, element));
            spoil(slot);
            convert(&mut stream, slot);
            assert!(is_spoilt(slot), "painted again");
        }
        // A place keeps its margin from batch to batch.
        drop((first, second));
        let mut again = batch.slot(0);
        convert(&mut stream, &mut again);
        assert!(is_spoilt(&mut again), "painted again");
    }
}

#[test]
fn another_stream_in_the_same_place_paints_what_it_needs() {
    let bgr_in_the_centre = InputStyle { order: ChannelOrder::Bgr, ..InputStyle::ULTRALYTICS };
    let bytes_in_the_centre = InputStyle { range: ValueRange::Byte, ..InputStyle::ULTRALYTICS };
    for element in [Element::F32, Element::F16] {
        for others in [
            // Wide and high, in the centre and in the corner.
            stream((20, 48), InputStyle::ULTRALYTICS),
            stream((20, 48), InputStyle::YOLOX),
            stream((48, 20), InputStyle::YOLOX),
            stream((48, 24), InputStyle::ULTRALYTICS),
            // The same geometry, another grey.
            stream((48, 20), bytes_in_the_centre),
        ] {
            let (mut batch, mut other) = (batch(element), others);
            let mut one = stream((48, 20), InputStyle::ULTRALYTICS);
            let mut slot = batch.slot(0);
            for _ in 0..3 {
                for stream in [&mut one, &mut other] {
                    convert(stream, &mut slot);
                    assert_eq!(values(&mut slot), expected(stream, element));
                    spoil(&mut slot);
                }
            }
        }
        // What does not differ in its margin is not painted again.
        let mut batch = batch(element);
        let mut slot = batch.slot(0);
        convert(&mut stream((48, 20), InputStyle::ULTRALYTICS), &mut slot);
        spoil(&mut slot);
        convert(&mut stream((48, 20), bgr_in_the_centre), &mut slot);
        assert!(is_spoilt(&mut slot), "painted again");
    }
}

#[test]
fn whoever_gets_all_bytes_may_write_over_the_padding() {
    let mut batch = batch(Element::F32);
    let mut stream = stream((48, 20), InputStyle::ULTRALYTICS);
    convert(&mut stream, &mut batch.slot(0));
    batch.input_bytes().expect("no slot is out").fill(0xff);
    let mut slot = batch.slot(0);
    convert(&mut stream, &mut slot);
    assert_eq!(values(&mut slot), expected(&mut stream, Element::F32));
}

#[test]
fn a_frame_that_is_refused_leaves_the_margin_as_it_was() {
    let mut batch = batch(Element::F32);
    let mut slot = batch.slot(0);
    let (frame, mut converter) = stream((48, 20), InputStyle::ULTRALYTICS);
    converter.convert(&[], slot.tensor()).expect_err("the frame is incomplete");
    assert!(values(&mut slot).iter().all(|&value| value == 0.0));
    let mut stream = (frame, converter);
    convert(&mut stream, &mut slot);
    assert_eq!(values(&mut slot), expected(&mut stream, Element::F32));
}
