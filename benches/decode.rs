//! From a model's output to detections, by layout, number type and number of candidates; the suppression by what the
//! candidates have in common.
//!
//! ```sh
//! cargo bench --bench decode                      # everything here
//! cargo bench --bench decode -- --raw FILE SIZE   # a v8 output of 80 classes in raw f32, decoded for a frame of WxH
//! ```
//!
//! The second prints one line, `MEDIAN_NS DETECTIONS`, for `against_numpy.sh`.

use std::time::{Duration, Instant};
use std::{env, fs};

use divan::{Bencher, black_box};
use gstyolodetect::decode::{
    Head, Layout, ModelMetadata, OutputRef, OutputShape, Scratch, Thresholds, decode,
};
use gstyolodetect::detection::Detection;
use gstyolodetect::preprocess::letterbox::{Letterbox, Placement};
use half::f16;

/// Candidates above the threshold: an empty street, a busy one, a crowd, and everything at once.
const COUNTS: [usize; 4] = [20, 200, 1000, 8400];
const CLASSES: usize = 80;
/// Candidates of an input of 640 × 640, and of the anchors that a v5 head has three of in each cell.
const CELLS: usize = 8400;
const ANCHORED: usize = 3 * CELLS;
const SIDE: usize = 640;

fn main() {
    let arguments: Vec<String> = env::args().collect();
    match arguments.iter().position(|argument| argument == "--raw") {
        Some(at) => raw(&arguments[at + 1], &arguments[at + 2]),
        None => divan::main(),
    }
}

fn layout(head: Head, dims: [usize; 3]) -> Layout {
    let output = OutputShape { name: "output0".into(), dims: dims.to_vec(), float: true };
    Layout::find(Some(head), &ModelMetadata::default(), (SIDE, SIDE), &[output])
        .expect("a layout of known dimensions")
}

/// One frame's output and how to read it.
struct Case {
    layout: Layout,
    values: Vec<f32>,
}

/// A row per candidate: box, objectness (for heads that have one), class scores.
type Row = ([f32; 4], Option<(u32, f32)>);

impl Case {
    fn new(head: Head, candidates: usize, classes: usize, rows: &[Row]) -> Self {
        let row = match head {
            Head::V8 => 4 + classes,
            Head::V5 | Head::Yolox => 5 + classes,
            Head::End2End => 6,
        };
        let dims = if head == Head::V8 { [1, row, candidates] } else { [1, candidates, row] };
        let mut noise = fastrand::Rng::with_seed(7);
        let mut values = vec![0.0; candidates * row];
        for (index, (rect, object)) in rows.iter().enumerate() {
            let mut put = |column: usize, value: f32| {
                let at = if head == Head::V8 { column * candidates + index } else { index * row + column };
                values[at] = value;
            };
            let (class, confidence) = object.unwrap_or((0, 0.0));
            rect.iter().enumerate().for_each(|(column, value)| put(column, *value));
            match head {
                Head::End2End => {
                    put(4, confidence);
                    put(5, class as f32);
                    continue;
                }
                // As trained models write it: near 0 where there is nothing.
                Head::V5 | Head::Yolox => put(4, object.map_or(noise.f32() * 0.05, |_| 0.96)),
                Head::V8 => {}
            }
            let first = if head == Head::V8 { 4 } else { 5 };
            (0..classes).for_each(|class| put(first + class, noise.f32() * 0.05));
            if object.is_some() {
                put(first + class as usize, confidence);
            }
        }
        Self { layout: layout(head, dims), values }
    }

    fn halves(&self) -> Vec<f16> {
        self.values.iter().copied().map(f16::from_f32).collect()
    }
}

/// Objects of ten candidates each, as a head gives them: neighbours in the grid with nearly the same box.
fn street(head: Head, count: usize) -> Case {
    let candidates = match head {
        Head::V5 => ANCHORED,
        Head::V8 | Head::Yolox => CELLS,
        Head::End2End => 300,
    };
    let count = count.min(candidates);
    let mut random = fastrand::Rng::with_seed(3);
    let mut rows: Vec<Row> = vec![([320.0, 320.0, 20.0, 20.0], None); candidates];
    let mut left = count;
    while left > 0 {
        let (cx, cy) = (random.f32() * 600.0 + 20.0, random.f32() * 600.0 + 20.0);
        let (w, h) = (random.f32() * 100.0 + 10.0, random.f32() * 100.0 + 10.0);
        let (class, start) = (random.u32(..CLASSES as u32), random.usize(..candidates));
        for neighbour in (0..5).flat_map(|step| [step, step + 80]) {
            let row = &mut rows[(start + neighbour) % candidates];
            if row.1.is_none() && left > 0 {
                let mut near = || random.f32() * 6.0;
                let rect = [cx + near(), cy + near(), w + near(), h + near()];
                *row = (rect, Some((class, 0.3 + random.f32() * 0.65)));
                left -= 1;
            }
        }
    }
    if head == Head::Yolox {
        // Within their cells and as logarithms of a few pixels.
        rows.iter_mut().for_each(|(rect, _)| *rect = rect.map(|value| value % 1.0));
    }
    Case::new(head, candidates, CLASSES, &rows)
}

fn bench(bencher: Bencher, layout: &Layout, output: OutputRef, thresholds: &Thresholds) {
    let letterbox = Letterbox::new((1280, 720), (SIDE as u32, SIDE as u32), Placement::Center);
    let (mut scratch, mut out) = (Scratch::default(), Vec::new());
    bencher.bench_local(|| {
        decode(black_box(layout), black_box(output), thresholds, &letterbox, &mut scratch, &mut out);
        out.len()
    });
}

macro_rules! layouts {
    ($($name:ident: $head:expr;)*) => {$(
        mod $name {
            use super::*;

            #[divan::bench(args = COUNTS)]
            fn f32(bencher: Bencher, count: usize) {
                let case = street($head, count);
                bench(bencher, &case.layout, OutputRef::F32(&case.values), &Thresholds::default());
            }

            #[divan::bench(args = COUNTS)]
            fn f16(bencher: Bencher, count: usize) {
                let case = street($head, count);
                bench(bencher, &case.layout, OutputRef::F16(&case.halves()), &Thresholds::default());
            }
        }
    )*};
}

layouts! {
    v8: Head::V8;
    v5: Head::V5;
    yolox: Head::Yolox;
    // 300 rows, whatever the number asked for.
    end2end: Head::End2End;
}

/// Rows of one class and six numbers: reading them is next to nothing, so this is what sorting and suppressing cost.
mod suppression {
    use super::*;

    fn suppress(
        bencher: Bencher,
        count: usize,
        classes: usize,
        rect: impl Fn(usize) -> [f32; 4],
        thresholds: Thresholds,
    ) {
        let mut random = fastrand::Rng::with_seed(5);
        let rows: Vec<Row> = (0..count)
            .map(|index| (rect(index), Some(((index % classes) as u32, 0.3 + random.f32() * 0.65))))
            .collect();
        let case = Case::new(Head::V5, count, classes, &rows);
        bench(bencher, &case.layout, OutputRef::F32(&case.values), &thresholds);
    }

    /// No two meet: 120 × 70 places.
    fn apart(index: usize) -> [f32; 4] {
        [(index % 120) as f32 * 5.0 + 2.5, (index / 120) as f32 * 5.0 + 2.5, 4.0, 4.0]
    }

    /// All in one place, each nearly over the others.
    fn heaped(index: usize) -> [f32; 4] {
        let by = |step: usize| (index * step % 97) as f32 / 10.0;
        [300.0 + by(7), 300.0 + by(11), 200.0 + by(13), 200.0 + by(17)]
    }

    /// Twenty pixels wide at 5-pixel steps: each meets dozens, few by more than the threshold.
    fn crowded(index: usize) -> [f32; 4] {
        let [x, y, ..] = apart(index);
        [x, y, 20.0, 20.0]
    }

    fn unlimited() -> Thresholds {
        Thresholds { max_detections: usize::MAX, ..Default::default() }
    }

    #[divan::bench(args = COUNTS)]
    fn apart_to_300(bencher: Bencher, count: usize) {
        suppress(bencher, count, 1, apart, Thresholds::default());
    }

    #[divan::bench(args = COUNTS)]
    fn apart_unlimited(bencher: Bencher, count: usize) {
        suppress(bencher, count, 1, apart, unlimited());
    }

    #[divan::bench(args = COUNTS)]
    fn apart_of_four_classes(bencher: Bencher, count: usize) {
        suppress(bencher, count, 4, apart, unlimited());
    }

    #[divan::bench(args = COUNTS)]
    fn apart_of_four_classes_agnostic(bencher: Bencher, count: usize) {
        suppress(bencher, count, 4, apart, Thresholds { class_agnostic: true, ..unlimited() });
    }

    #[divan::bench(args = COUNTS)]
    fn heaped_to_300(bencher: Bencher, count: usize) {
        suppress(bencher, count, 1, heaped, Thresholds::default());
    }

    #[divan::bench(args = COUNTS)]
    fn crowded_to_300(bencher: Bencher, count: usize) {
        suppress(bencher, count, 1, crowded, Thresholds::default());
    }

    #[divan::bench(args = COUNTS)]
    fn crowded_unlimited(bencher: Bencher, count: usize) {
        suppress(bencher, count, 1, crowded, unlimited());
    }
}

/// `file`: `[84, 8400]` in the machine's own byte order. `size`: `WIDTHxHEIGHT` of the frame that the model saw.
fn raw(file: &str, size: &str) {
    const TIME: Duration = Duration::from_millis(300);
    let bytes = fs::read(file).expect("the file of --raw");
    let values: Vec<f32> = bytes.as_chunks().0.iter().map(|value| f32::from_ne_bytes(*value)).collect();
    let layout = layout(Head::V8, [1, 4 + CLASSES, values.len() / (4 + CLASSES)]);
    let (width, height) = size.split_once('x').expect("a size as WIDTHxHEIGHT");
    let side = |text: &str| text.parse().expect("a number of pixels");
    let letterbox =
        Letterbox::new((side(width), side(height)), (SIDE as u32, SIDE as u32), Placement::Center);
    let (mut scratch, mut out): (_, Vec<Detection>) = (Scratch::default(), Vec::new());
    let (start, mut times) = (Instant::now(), Vec::new());
    while start.elapsed() < TIME {
        let before = Instant::now();
        let output = OutputRef::F32(black_box(&values));
        decode(&layout, output, &Thresholds::default(), &letterbox, &mut scratch, &mut out);
        times.push(before.elapsed());
    }
    times.sort_unstable();
    println!("{} {}", times[times.len() / 2].as_nanos(), out.len());
}
