//! Decoding as a whole: each head by hand, then any floats at all.

use half::f16;
use proptest::prelude::*;

use super::scan::best_class;
use super::vectors::Kernel;
use super::*;
use crate::detection::Rect;
use crate::preprocess::letterbox::Placement;

/// A layout for an input of `side` × `side` pixels.
fn layout(head: Head, side: usize, dims: [usize; 3]) -> Layout {
    let output = OutputShape { name: "output0".into(), dims: dims.to_vec(), float: true };
    Layout::find(Some(head), &ModelMetadata::default(), (side, side), &[output]).unwrap()
}

/// A frame of the model's own size: nothing to undo.
fn identity(side: u32) -> Letterbox {
    Letterbox::new((side, side), (side, side), Placement::Center)
}

fn run(layout: &Layout, values: &[f32], thresholds: &Thresholds, letterbox: &Letterbox) -> Vec<Detection> {
    let mut out = vec![Detection::default(); 3];
    decode(layout, OutputRef::F32(values), thresholds, letterbox, &mut Scratch::default(), &mut out);
    out
}

fn detection(rect: [f32; 4], confidence: f32, class: ClassId) -> Detection {
    let [x1, y1, x2, y2] = rect;
    Detection { rect: Rect::new(x1, y1, x2, y2), confidence, class }
}

/// Rows of values per candidate, turned into the columns of a v8 output.
fn columns(rows: &[Vec<f32>]) -> Vec<f32> {
    (0..rows[0].len()).flat_map(|value| rows.iter().map(move |row| row[value])).collect()
}

#[test]
fn v8_takes_the_first_best_class_above_the_threshold() {
    let rows = [
        vec![10.0, 10.0, 4.0, 4.0, 0.25, 0.1, 0.0],
        vec![30.0, 30.0, 4.0, 8.0, 0.1, 0.5, 0.5],
        vec![50.0, 50.0, 4.0, 4.0, 0.1, 0.2, 0.75],
        vec![50.0, 10.0, 4.0, 4.0, 1.5, 0.2, 0.75],
    ];
    let layout = layout(Head::V8, 64, [1, 7, 4]);
    let expected = [
        detection([48.0, 8.0, 52.0, 12.0], 1.0, 0),
        detection([48.0, 48.0, 52.0, 52.0], 0.75, 2),
        detection([28.0, 26.0, 32.0, 34.0], 0.5, 1),
    ];
    assert_eq!(run(&layout, &columns(&rows), &Thresholds::default(), &identity(64)), expected);
    let only = Thresholds { classes: Some(ClassFilter::from_ids([2, 4_000_000_000])), ..Default::default() };
    assert_eq!(run(&layout, &columns(&rows), &only, &identity(64)), expected[1..2]);
    let two = Thresholds { max_detections: 2, ..Default::default() };
    assert_eq!(run(&layout, &columns(&rows), &two, &identity(64)), expected[..2]);
    let none = Thresholds { classes: Some(ClassFilter::from_ids([])), ..Default::default() };
    assert_eq!(run(&layout, &columns(&rows), &none, &identity(64)), []);
}

#[test]
fn v8_finds_candidates_in_every_block() {
    let n = 1300;
    // Every tenth is one, with three confidences in turn.
    let score = |index: usize| if index % 10 == 9 { [0.5, 0.9, 0.7][index / 10 % 3] } else { 0.1 };
    let center = |index: usize| index as f32 * 4.0 + 2.0;
    let rows: Vec<Vec<f32>> =
        (0..n).map(|index| vec![center(index), 2.0, 3.0, 3.0, 0.2, score(index)]).collect();
    let layout = layout(Head::V8, 6000, [1, 6, n]);
    let found = run(&layout, &columns(&rows), &Thresholds::default(), &identity(6000));

    let mut expected: Vec<Detection> = (9..n)
        .step_by(10)
        .map(|index| {
            let cx = center(index);
            detection([cx - 1.5, 0.5, cx + 1.5, 3.5], score(index), 1)
        })
        .collect();
    expected.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
    assert_eq!(found, expected, "equal confidences stay in the output's order");
}

#[test]
fn classes_are_filtered_before_suppression() {
    // The same object as class 0, most confident, and as class 1.
    let rows = [vec![10.0, 10.0, 8.0, 8.0, 0.9, 0.1], vec![10.0, 10.0, 8.0, 8.0, 0.1, 0.8]];
    let layout = layout(Head::V8, 64, [1, 6, 2]);
    let mut thresholds = Thresholds { class_agnostic: true, ..Default::default() };
    assert_eq!(run(&layout, &columns(&rows), &thresholds, &identity(64))[0].class, 0);
    thresholds.classes = Some(ClassFilter::from_ids([1]));
    assert_eq!(run(&layout, &columns(&rows), &thresholds, &identity(64))[0].class, 1);
}

#[test]
fn v5_needs_objectness_and_multiplies() {
    let rows = [
        [10.0, 10.0, 4.0, 4.0, 0.5, 0.25, 1.0],
        [30.0, 10.0, 4.0, 4.0, 0.25, 1.0, 1.0],
        [30.0, 30.0, 4.0, 4.0, 0.5, 0.5, 0.25],
        // Above only because its class score is beyond 1: the objectness decides.
        [50.0, 30.0, 4.0, 4.0, 0.2, 4.0, 0.0],
    ];
    let layout = layout(Head::V5, 64, [1, 4, 7]);
    let found = run(&layout, rows.as_flattened(), &Thresholds::default(), &identity(64));
    assert_eq!(found, [detection([8.0, 8.0, 12.0, 12.0], 0.5, 1)]);
}

#[test]
fn extra_columns_are_not_classes() {
    let names = Some(vec!["a".to_string()]);
    let metadata = ModelMetadata { names, task: Some("pose".into()), ..Default::default() };
    let output = OutputShape { name: "output0".into(), dims: vec![1, 7, 84], float: true };
    let layout = Layout::find(None, &metadata, (64, 64), &[output]).unwrap();
    let mut rows = vec![vec![0.0; 7]; 84];
    rows[5] = vec![10.0, 10.0, 4.0, 4.0, 0.5, 40.0, f32::NAN];
    let found = run(&layout, &columns(&rows), &Thresholds::default(), &identity(64));
    assert_eq!(found, [detection([8.0, 8.0, 12.0, 12.0], 0.5, 0)]);
}

#[test]
fn yolox_boxes_are_put_on_their_grid() {
    // 64 × 64: 8 × 8 cells of 8 pixels, 4 × 4 of 16, 2 × 2 of 32.
    let layout = layout(Head::Yolox, 64, [1, 84, 6]);
    let mut rows = vec![[0.0; 6]; 84];
    let at = |x: f32, y: f32, confidence: f32| [x, y, 0.0, 2.0_f32.ln(), confidence, 1.0];
    rows[8 + 3] = at(0.5, 0.25, 0.9); // level 0, cell (3, 1)
    rows[64 + 2 * 4 + 1] = at(0.0, 0.0, 0.8); // level 1, cell (1, 2)
    rows[64 + 16 + 3] = at(-0.5, -0.5, 0.7); // level 2, cell (1, 1)
    let found = run(&layout, rows.as_flattened(), &Thresholds::default(), &identity(64));
    let expected = [
        // centre (3.5, 1.25) × 8, size (1, 2) × 8
        detection([24.0, 2.0, 32.0, 18.0], 0.9, 0),
        // centre (1, 2) × 16, size (1, 2) × 16
        detection([8.0, 16.0, 24.0, 48.0], 0.8, 0),
        // centre (0.5, 0.5) × 32, size (1, 2) × 32, cut at the top
        detection([0.0, 0.0, 32.0, 48.0], 0.7, 0),
    ];
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        let (a, b) = (found.rect, expected.rect);
        let off = [a.x1 - b.x1, a.y1 - b.y1, a.x2 - b.x2, a.y2 - b.y2];
        assert!(off.iter().all(|off| off.abs() < 1e-4), "{found:?} {expected:?}");
        assert_eq!((found.confidence, found.class), (expected.confidence, expected.class));
    }
}

#[test]
fn yolox_grid_of_a_wide_input() {
    // 32 × 64 (h × w): 4 × 8, 2 × 4, 1 × 2 cells.
    let output = OutputShape { name: "output0".into(), dims: vec![1, 42, 6], float: true };
    let layout = Layout::find(None, &ModelMetadata::default(), (32, 64), &[output]).unwrap();
    assert_eq!(layout.head, Head::Yolox);
    let mut rows = vec![[0.0; 6]; 42];
    rows[2 * 8 + 7] = [0.5, 0.5, 0.0, 0.0, 0.9, 1.0]; // cell (7, 2)
    rows[41] = [0.5, 0.5, 0.0, 0.0, 0.8, 1.0]; // level 2, cell (1, 0)
    let letterbox = Letterbox::new((64, 32), (64, 32), Placement::TopLeft);
    let found = run(&layout, rows.as_flattened(), &Thresholds::default(), &letterbox);
    let expected = [detection([56.0, 16.0, 64.0, 24.0], 0.9, 0), detection([32.0, 0.0, 64.0, 32.0], 0.8, 0)];
    assert_eq!(found, expected);
}

#[test]
fn end2end_is_filtered_but_not_suppressed() {
    let rows = [
        [8.0, 8.0, 12.0, 12.0, 0.5, 3.0],
        [8.0, 8.0, 12.0, 12.0, 0.75, 3.0],
        [8.0, 8.0, 12.0, 12.0, 0.25, 3.0],
        [8.0, 8.0, 12.0, 12.0, 0.9, 5.0],
        [8.0, 8.0, 12.0, 12.0, 0.9, -1.0],
        [8.0, 8.0, 12.0, 12.0, 0.9, f32::NAN],
        [8.0, 8.0, 12.0, 12.0, 0.9, f32::INFINITY],
        [12.0, 8.0, 8.0, 12.0, 0.9, 1.0],
    ];
    let mut layout = layout(Head::End2End, 64, [1, 8, 6]);
    layout.classes = Some(5);
    let found = run(&layout, rows.as_flattened(), &Thresholds::default(), &identity(64));
    let rect = [8.0, 8.0, 12.0, 12.0];
    assert_eq!(found, [detection(rect, 0.75, 3), detection(rect, 0.5, 3)]);
    layout.classes = None;
    let found = run(&layout, rows.as_flattened(), &Thresholds::default(), &identity(64));
    assert_eq!(found[0], detection(rect, 0.9, 5));
    assert_eq!(found.len(), 3);
}

#[test]
fn the_letterbox_is_undone() {
    // 128 × 64 into 64 × 64: half the size, 16 pixels of margin above and below.
    let letterbox = Letterbox::new((128, 64), (64, 64), Placement::Center);
    let rows = [
        vec![20.0, 32.0, 8.0, 8.0, 0.9],
        // In the margin: nothing of it is in the frame.
        vec![20.0, 8.0, 8.0, 8.0, 0.8],
        // Half in the margin.
        vec![50.0, 16.0, 8.0, 8.0, 0.7],
    ];
    let layout = layout(Head::V8, 64, [1, 5, 3]);
    let found = run(&layout, &columns(&rows), &Thresholds::default(), &letterbox);
    let expected = [detection([32.0, 24.0, 48.0, 40.0], 0.9, 0), detection([92.0, 0.0, 108.0, 8.0], 0.7, 0)];
    assert_eq!(found, expected);
}

#[test]
fn broken_values_drop_their_candidate_alone() {
    let good = vec![10.0, 10.0, 4.0, 4.0, 0.5, 0.4];
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for value in 0..good.len() {
            let mut broken = vec![30.0, 30.0, 4.0, 4.0, 0.9, 0.8];
            broken[value] = bad;
            let layout = layout(Head::V8, 64, [1, 6, 2]);
            let values = columns(&[broken, good.clone()]);
            let found = run(&layout, &values, &Thresholds::default(), &identity(64));
            assert_eq!(found, [detection([8.0, 8.0, 12.0, 12.0], 0.5, 0)], "{bad} at {value}");
        }
    }
    let nan = Thresholds { confidence: f32::NAN, ..Default::default() };
    assert_eq!(run(&layout(Head::V8, 64, [1, 6, 1]), &good, &nan, &identity(64)), []);
}

#[test]
fn a_wrong_length_decodes_to_nothing() {
    for head in Head::ALL {
        let layout = layout(head, 64, if head == Head::V8 { [1, 6, 84] } else { [1, 84, 6] });
        for len in [0, 1, 6 * 83, 6 * 84 - 1, 6 * 84 + 1, 6 * 84 * 2] {
            assert_eq!(run(&layout, &vec![0.9; len], &Thresholds::default(), &identity(64)), []);
        }
    }
}

#[test]
fn no_more_than_the_maximum_goes_into_suppression() {
    // 30 001 boxes of one place; the least confident alone is somewhere else.
    let n = MAX_CANDIDATES + 1;
    let rows: Vec<Vec<f32>> = (0..n)
        .map(|index| {
            let cx = if index == 7 { 50.0 } else { 10.0 };
            vec![cx, 10.0, 4.0, 4.0, if index == 7 { 0.3 } else { 0.6 }]
        })
        .collect();
    let layout = layout(Head::V8, 64, [1, 5, n]);
    let found = run(&layout, &columns(&rows), &Thresholds::default(), &identity(64));
    assert_eq!(found, [detection([8.0, 8.0, 12.0, 12.0], 0.6, 0)]);
}

/// The worst case of a full grid: everything above the threshold, nothing overlaps, no limit.
#[test]
fn a_full_grid_stays_within_reason() {
    let n = 8400;
    let rows: Vec<Vec<f32>> = (0..n)
        .map(|index| {
            let (x, y) = ((index % 100) as f32, (index / 100) as f32);
            let mut row = vec![x * 6.0 + 3.0, y * 6.0 + 3.0, 4.0, 4.0];
            row.extend((0..80).map(|class| if class == index % 80 { 0.9 } else { 0.3 }));
            row
        })
        .collect();
    let thresholds = Thresholds { max_detections: n, ..Default::default() };
    let found = run(&layout(Head::V8, 640, [1, 84, n]), &columns(&rows), &thresholds, &identity(640));
    assert_eq!(found.len(), n);
}

#[test]
fn scratch_is_reused_without_growing() {
    let layout = layout(Head::V8, 64, [1, 6, 84]);
    let values: Vec<f32> = (0..layout.frame_len()).map(|index| (index * 37 % 101) as f32 / 3.0).collect();
    let (mut scratch, mut out) = (Scratch::default(), Vec::new());
    let mut once = || {
        let output = OutputRef::F32(&values);
        decode(&layout, output, &Thresholds::default(), &identity(64), &mut scratch, &mut out);
        (out.clone(), out.capacity(), scratch.candidates.capacity(), out.as_ptr())
    };
    let first = once();
    assert!(!first.0.is_empty());
    assert_eq!(once(), first);
}

/// Coordinates, scores and things that no model should write.
fn hostile() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => 0.0..1.0_f32,
        3 => -20.0..700.0_f32,
        1 => any::<f32>(),
        1 => prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, -0.0]),
    ]
}

const LAYOUT_DIMS: [(Head, [usize; 3]); 6] = [
    (Head::V8, [1, 9, 84]),
    (Head::V8, [1, 5, 84]),
    (Head::V5, [1, 84, 8]),
    (Head::V5, [1, 252, 6]),
    (Head::Yolox, [1, 84, 7]),
    (Head::End2End, [1, 84, 6]),
];

/// The candidates by their definition: one after another, each number looked up where the layout puts it.
fn by_definition(layout: &Layout, values: &[f32], thresholds: &Thresholds) -> Vec<Candidate> {
    let classes = layout.classes.unwrap_or(usize::MAX);
    let cells: Vec<(f32, f32, f32)> = layout
        .head_strides
        .iter()
        .flat_map(|&stride| {
            let (rows, columns) = head::grid_size(layout.input, stride);
            (0..rows).flat_map(move |y| (0..columns).map(move |x| (x as f32, y as f32, stride as f32)))
        })
        .collect();
    let candidate = |index: usize| {
        let value = |column: usize| match layout.head {
            Head::V8 => values[column * layout.candidates + index],
            _ => values[index * layout.row + column],
        };
        let [a, b, c, d, objectness] = [0, 1, 2, 3, 4].map(value);
        let (rect, best) = match layout.head {
            Head::End2End => {
                let class = value(5);
                let known = class >= 0.0 && class < classes.min(65_536) as f32;
                (Rect::new(a, b, c, d), known.then_some((class as ClassId, objectness)))
            }
            Head::V8 => {
                (Rect::from_center(a, b, c, d), best_class((0..classes).map(|class| value(4 + class))))
            }
            Head::V5 | Head::Yolox => {
                let best =
                    best_class((0..layout.classes.unwrap_or(0)).map(|class| value(5 + class) * objectness));
                let best = best.filter(|_| objectness > thresholds.confidence);
                if layout.head == Head::Yolox {
                    let (x, y, stride) = cells.get(index)?;
                    let (w, h) = (c.exp() * stride, d.exp() * stride);
                    (Rect::from_center((a + x) * stride, (b + y) * stride, w, h), best)
                } else {
                    (Rect::from_center(a, b, c, d), best)
                }
            }
        };
        let (class, confidence) = best?;
        let wanted = thresholds.classes.as_ref().is_none_or(|classes| classes.contains(class));
        let sound = confidence.is_finite() && rect.is_finite() && rect.x2 > rect.x1 && rect.y2 > rect.y1;
        let is = sound && wanted && confidence > thresholds.confidence;
        is.then_some(Candidate { rect, confidence: confidence.clamp(0.0, 1.0), class })
    };
    (0..layout.candidates).filter_map(candidate).collect()
}

/// The candidates as collected for this processor, after a look that those of the others are the same.
fn collected<T: scan::Value>(layout: &Layout, output: &[T], thresholds: &Thresholds) -> Vec<Candidate> {
    let collect = |wide: bool| {
        let (mut candidates, mut marks) = (Vec::new(), Marks::default());
        // What an earlier frame left.
        marks.mark_all(1000);
        let work = Collect { layout, output, thresholds, marks: &mut marks, candidates: &mut candidates };
        if wide {
            vectorised(work)
        } else {
            work.run()
        }
        candidates
    };
    let candidates = collect(true);
    assert_eq!(candidates, collect(false));
    candidates
}

proptest! {
    #[test]
    fn candidates_are_those_of_the_definition(
        (head, candidates, row, values) in (prop::sample::select(Head::ALL.to_vec()), 1..150_usize, 6..26_usize)
            .prop_flat_map(|(head, candidates, row)| {
                let hostile = prop_oneof![40 => 0.0..0.5_f32, 1 => hostile()];
                (Just(head), Just(candidates), Just(row), prop::collection::vec(hostile, candidates * row))
            }),
        confidence in prop_oneof![4 => 0.2..0.6_f32, 1 => hostile()],
        classes in prop::option::of(prop::collection::vec(0..25_u32, 0..4)),
    ) {
        let mut layout = layout(head, 64, if head == Head::V8 { [1, 6, 84] } else { [1, 84, 6] });
        (layout.candidates, layout.row) = (candidates, row);
        // Long rows end with something else than scores.
        layout.classes = (head != Head::End2End).then_some((row - layout.first_score()).clamp(1, 15));
        let classes = classes.map(ClassFilter::from_ids);
        let thresholds = Thresholds { confidence, classes, ..Default::default() };
        prop_assert_eq!(collected(&layout, &values, &thresholds), by_definition(&layout, &values, &thresholds));
        let halves: Vec<f16> = values.iter().copied().map(f16::from_f32).collect();
        let wide: Vec<f32> = halves.iter().copied().map(f16::to_f32).collect();
        prop_assert_eq!(collected(&layout, &halves, &thresholds), by_definition(&layout, &wide, &thresholds));
    }

    #[test]
    fn any_floats_give_sane_detections(
        (index, values) in (0..LAYOUT_DIMS.len()).prop_flat_map(|index| {
            let [_, a, b] = LAYOUT_DIMS[index].1;
            (Just(index), prop::collection::vec(hostile(), a * b))
        }),
        as_f16: bool,
        thresholds in (hostile(), hostile(), any::<bool>(), 0..50_usize, prop::option::of(0..3_u32)),
        frame in (1..5000_u32, 1..5000_u32),
        top_left: bool,
    ) {
        let (head, dims) = LAYOUT_DIMS[index];
        let layout = layout(head, 64, dims);
        let (confidence, iou, class_agnostic, max_detections, class) = thresholds;
        let classes = class.map(|class| ClassFilter::from_ids([class]));
        let thresholds = Thresholds { confidence, iou, class_agnostic, max_detections, classes };
        let placement = if top_left { Placement::TopLeft } else { Placement::Center };
        let letterbox = Letterbox::new(frame, (64, 64), placement);
        let halves: Vec<f16> = values.iter().copied().map(f16::from_f32).collect();
        let output = if as_f16 { OutputRef::F16(&halves) } else { OutputRef::F32(&values) };
        let mut out = Vec::new();
        decode(&layout, output, &thresholds, &letterbox, &mut Scratch::default(), &mut out);

        prop_assert!(out.len() <= max_detections);
        prop_assert!(out.is_sorted_by(|a, b| a.confidence >= b.confidence));
        for Detection { rect, confidence: found, class } in out {
            prop_assert!((0.0..=1.0).contains(&found) && (found > confidence || found == 1.0 || confidence < 0.0));
            prop_assert!(rect.is_finite());
            prop_assert!(0.0 <= rect.x1 && rect.x1 < rect.x2 && rect.x2 <= frame.0 as f32);
            prop_assert!(0.0 <= rect.y1 && rect.y1 < rect.y2 && rect.y2 <= frame.1 as f32);
            prop_assert!(layout.classes.is_none_or(|classes| (class as usize) < classes));
            prop_assert!(thresholds.classes.as_ref().is_none_or(|classes| classes.contains(class)));
        }
    }

    /// Halves give what the same numbers as f32 give, bit for bit.
    #[test]
    fn halves_are_read_as_their_values(
        (index, values) in (0..LAYOUT_DIMS.len()).prop_flat_map(|index| {
            let [_, a, b] = LAYOUT_DIMS[index].1;
            (Just(index), prop::collection::vec(hostile(), a * b))
        }),
    ) {
        let (head, dims) = LAYOUT_DIMS[index];
        let layout = layout(head, 64, dims);
        let halves: Vec<f16> = values.iter().copied().map(f16::from_f32).collect();
        let wide: Vec<f32> = halves.iter().copied().map(f16::to_f32).collect();
        let (mut a, mut b, mut scratch) = (Vec::new(), Vec::new(), Scratch::default());
        let (thresholds, letterbox) = (Thresholds::default(), identity(64));
        decode(&layout, OutputRef::F16(&halves), &thresholds, &letterbox, &mut scratch, &mut a);
        decode(&layout, OutputRef::F32(&wide), &thresholds, &letterbox, &mut scratch, &mut b);
        prop_assert_eq!(a, b);
    }
}
