//! Which kind of head a model has and how its output tensor is laid out, from shapes and metadata.

use std::fmt;

use thiserror::Error;

use super::metadata::ModelMetadata;
use crate::preprocess::InputStyle;

/// How a model writes its candidates. `B` batch, `N` candidates, `C` classes, `K` detections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Head {
    /// YOLOv5, v7: `[B, N, 5 + C]`, rows of `cx cy w h objectness score…`, pixels of the input.
    V5,
    /// YOLOv8, v9, v11, v12: `[B, 4 + C, N]`, columns of `cx cy w h score…`, pixels of the input.
    V8,
    /// YOLOv10, YOLO26, and exports with NMS inside: `[B, K, 6]`, rows of `x1 y1 x2 y2 confidence class`,
    /// pixels of the input.
    End2End,
    /// YOLOX: `[B, N, 5 + C]` as V5, but boxes relative to their grid cell, in units of its head stride,
    /// sizes as logarithms.
    Yolox,
}

impl Head {
    pub const ALL: [Self; 4] = [Self::V5, Self::V8, Self::End2End, Self::Yolox];

    /// The value of the `head` property.
    pub fn nick(self) -> &'static str {
        match self {
            Self::V5 => "v5",
            Self::V8 => "v8",
            Self::End2End => "end2end",
            Self::Yolox => "yolox",
        }
    }

    /// Values before the class scores; for `End2End`, values before the extra columns.
    fn fixed_values(self) -> usize {
        match self {
            Self::V8 => 4,
            Self::V5 | Self::Yolox => 5,
            Self::End2End => 6,
        }
    }

    fn shortest_row(self) -> usize {
        match self {
            Self::V8 => 5,
            Self::V5 | Self::Yolox | Self::End2End => 6,
        }
    }
}

/// The head strides of the models in use: three levels (most), four with P6 (1280-pixel variants), four
/// with P2 (small objects), two (tiny YOLOv3 and v4).
const HEAD_STRIDES: [&[usize]; 4] = [&[8, 16, 32], &[8, 16, 32, 64], &[4, 8, 16, 32], &[16, 32]];

/// Anchors per grid cell of the anchor-based heads (v5, v7).
const V5_ANCHORS: usize = 3;

/// Columns behind the class scores where a model without names says no more than its task: 32 mask
/// coefficients; 17 COCO keypoints of x, y, visibility.
const MASK_COLUMNS: usize = 32;
const KEYPOINT_COLUMNS: usize = 51;

/// One output of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputShape {
    pub name: String,
    /// As a run gave them, batch first.
    pub dims: Vec<usize>,
    /// f32 or f16.
    pub float: bool,
}

impl OutputShape {
    /// The two dimensions behind the batch, where this could be a head's output.
    fn matrix(&self) -> Option<(usize, usize)> {
        match self.dims.as_slice() {
            &[_, first, last] if self.float => Some((first, last)),
            _ => None,
        }
    }
}

impl fmt::Display for OutputShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.float { "" } else { " (not float)" };
        write!(f, "`{}` {:?}{kind}", self.name, self.dims)
    }
}

#[derive(Clone, Debug, PartialEq, Error)]
pub enum LayoutError {
    #[error("the model's task is `{task}`; supported are detect, and the boxes of pose and segment")]
    Task { task: String },

    #[error(
        "no output of the model looks like that of a YOLO head: it gives {shapes}; known are v8 [B, 4+C, N], \
         v5 and yolox [B, N, 5+C], end2end [B, K, 6] in f32 or f16. If it is one of these, set the property \
         `head` to v5, v8, end2end or yolox"
    )]
    Shapes { shapes: String },

    #[error(
        "the model's metadata names {names} classes, but the rows of its output {output}, read as {head}, \
         hold the scores of {room}"
    )]
    Names { names: usize, room: usize, output: String, head: &'static str },

    #[error("head `{head}` does not fit what the model gives, {shapes}: {reason}")]
    Requested { head: &'static str, shapes: String, reason: &'static str },
}

/// How to read the candidates out of a model's output. Made by [`Layout::find`] only, so that the numbers
/// agree with one another.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Layout {
    pub head: Head,
    /// Index of the output to read.
    pub output: usize,
    /// Number of classes; `None` only for an end-to-end model without names, whose output does not tell.
    pub classes: Option<usize>,
    /// Candidates per frame, above 0.
    pub candidates: usize,
    /// Values per candidate, extra columns (masks, keypoints) included.
    pub row: usize,
    /// (height, width) of the model's input in pixels.
    pub input: (usize, usize),
    /// The levels of the grid in the order of the candidates; known where the head needs it (`Yolox`),
    /// else empty.
    pub head_strides: &'static [usize],
}

impl Layout {
    /// Decides from `requested` (the `head` property), metadata, input size (height, width), and the
    /// outputs' shapes. The first float output of rank 3 that fits is taken.
    ///
    /// Which dimension counts the candidates: the one that equals the number of grid cells of such an
    /// input (`cells`, or `3 × cells` with anchors); else the one that fits the number of names; else the
    /// larger. `[B, cells, 5+C]` is YOLOX where no Ultralytics metadata is there and v5 where it is.
    /// Rows of 6 values whose number is not that of a grid are end-to-end, as is what the metadata calls
    /// so. The names, where there are any, decide the number of classes, and further columns are ignored;
    /// but a model whose task is `detect` has no further columns, so there the numbers must agree.
    ///
    /// # Errors
    /// An unsupported task (even with `requested`), shapes of no known head, names that cannot fit the
    /// rows, a requested head that fits no output.
    pub fn find(
        requested: Option<Head>,
        metadata: &ModelMetadata,
        input: (usize, usize),
        outputs: &[OutputShape],
    ) -> Result<Self, LayoutError> {
        let task = Task::of(metadata)?;
        let model = Model { metadata, task, input, outputs };
        let unknown = || LayoutError::Shapes { shapes: model.shapes() };

        // Boxes in an output of their own (DETR and its kin, raw exports): the scores beside them would
        // pass for a whole head.
        let boxes_apart = outputs.iter().filter_map(OutputShape::matrix).any(|(a, b)| a == 4 || b == 4);
        if requested.is_none() && boxes_apart {
            return Err(unknown());
        }

        let mut misfit = None;
        for (index, output) in outputs.iter().enumerate() {
            let Some((first, last)) = output.matrix() else { continue };
            let head = requested.unwrap_or_else(|| model.head(first, last));
            match model.layout(head, index, first, last) {
                Ok(layout) => return Ok(layout),
                Err(Misfit::Names { names, room }) => {
                    misfit.get_or_insert(LayoutError::Names {
                        names,
                        room,
                        output: output.to_string(),
                        head: head.nick(),
                    });
                }
                Err(Misfit::Shape(reason)) => {
                    if let Some(head) = requested {
                        let (head, shapes) = (head.nick(), model.shapes());
                        misfit.get_or_insert(LayoutError::Requested { head, shapes, reason });
                    }
                }
            }
        }
        Err(misfit.unwrap_or_else(unknown))
    }

    /// How the pixels of the model's input are to be prepared.
    pub fn input_style(&self) -> InputStyle {
        match self.head {
            Head::Yolox => InputStyle::YOLOX,
            Head::V5 | Head::V8 | Head::End2End => InputStyle::ULTRALYTICS,
        }
    }

    /// Values per frame in the output.
    pub fn frame_len(&self) -> usize {
        self.candidates.saturating_mul(self.row)
    }

    /// Index of the first class score in a candidate's row.
    pub(super) fn first_score(&self) -> usize {
        self.head.fixed_values()
    }

    /// Whether the numbers agree, so that decoding cannot step out of a row.
    pub(super) fn is_sound(&self) -> bool {
        let scores = match self.head {
            Head::End2End => 0,
            Head::V5 | Head::V8 | Head::Yolox => self.classes.unwrap_or(0).max(1),
        };
        self.candidates > 0 && self.row >= self.first_score().saturating_add(scores)
    }
}

/// The tasks whose models give boxes.
#[derive(Clone, Copy, PartialEq)]
enum Task {
    Unknown,
    Detect,
    Pose,
    Segment,
}

impl Task {
    fn of(metadata: &ModelMetadata) -> Result<Self, LayoutError> {
        match metadata.task.as_deref() {
            None | Some("") => Ok(Self::Unknown),
            Some("detect") => Ok(Self::Detect),
            Some("pose") => Ok(Self::Pose),
            Some("segment") => Ok(Self::Segment),
            Some(task) => Err(LayoutError::Task { task: task.to_string() }),
        }
    }
}

/// Why an output cannot be read as a head.
enum Misfit {
    Names { names: usize, room: usize },
    Shape(&'static str),
}

/// All that is known about a model.
struct Model<'a> {
    metadata: &'a ModelMetadata,
    task: Task,
    input: (usize, usize),
    outputs: &'a [OutputShape],
}

impl Model<'_> {
    fn shapes(&self) -> String {
        let shapes: Vec<String> = self.outputs.iter().map(OutputShape::to_string).collect();
        if shapes.is_empty() { "no output".to_string() } else { shapes.join(", ") }
    }

    fn names(&self) -> Option<usize> {
        self.metadata.names.as_ref().map(Vec::len).filter(|&names| names > 0)
    }

    /// The head strides whose grid has so many candidates.
    fn grid(&self, candidates: usize, anchors: usize) -> Option<&'static [usize]> {
        HEAD_STRIDES.into_iter().find(|strides| {
            let cells = strides.iter().try_fold(0_usize, |cells, stride| {
                let (rows, columns) = grid_size(self.input, *stride);
                cells.checked_add(rows.checked_mul(columns)?)
            });
            cells.and_then(|cells| cells.checked_mul(anchors)) == Some(candidates)
        })
    }

    fn is_v5_grid(&self, candidates: usize) -> bool {
        self.grid(candidates, 1).or_else(|| self.grid(candidates, V5_ANCHORS)).is_some()
    }

    /// The head that an output of `[B, first, last]` most likely comes from.
    fn head(&self, first: usize, last: usize) -> Head {
        let first_is_grid = self.is_v5_grid(first);
        let last_is_grid = self.grid(last, 1).is_some();
        // An export that dropped the selection may have kept the flag; its shape tells.
        if self.metadata.end2end && !(last_is_grid && last > first) {
            return Head::End2End;
        }
        let candidates_last = if first_is_grid != last_is_grid {
            last_is_grid
        } else if !first_is_grid && last == Head::End2End.fixed_values() {
            false
        } else {
            let names_fill = |row: usize, head: Head| {
                self.names().is_some_and(|names| names.checked_add(head.fixed_values()) == Some(row))
            };
            let (v8, v5) = (names_fill(first, Head::V8), names_fill(last, Head::V5));
            if v8 != v5 { v8 } else { last >= first }
        };
        if candidates_last {
            return Head::V8;
        }

        let no_grid_of_rows = !first_is_grid
            && (last == Head::End2End.fixed_values() || matches!(self.task, Task::Pose | Task::Segment));
        // Six values leave a v5 row room for one class.
        let too_many_names =
            last == Head::End2End.fixed_values() && self.names().is_some_and(|names| names > 1);
        if no_grid_of_rows || too_many_names {
            Head::End2End
        } else if self.grid(first, 1).is_some() && !self.metadata.is_ultralytics() {
            Head::Yolox
        } else {
            Head::V5
        }
    }

    /// Output `index`, `[B, first, last]`, read as `head`.
    fn layout(&self, head: Head, index: usize, first: usize, last: usize) -> Result<Layout, Misfit> {
        let (row, candidates) = if head == Head::V8 { (first, last) } else { (last, first) };
        if candidates == 0 || row < head.shortest_row() || candidates.checked_mul(row).is_none() {
            return Err(Misfit::Shape("its rows are too short, or there are none"));
        }
        let first_is_grid = self.is_v5_grid(first);
        let last_is_grid = self.grid(last, 1).is_some();
        let turned = match head {
            Head::V8 => first_is_grid && !last_is_grid,
            Head::V5 | Head::Yolox => last_is_grid && !first_is_grid,
            // Its rows are short enough to equal the cells of a tiny input.
            Head::End2End => last_is_grid && !first_is_grid && last > first,
        };
        if turned {
            return Err(Misfit::Shape(
                "its candidates stand in the other dimension, last for v8 and first for the other heads; head=auto finds the right one",
            ));
        }
        let head_strides = match head {
            Head::Yolox => self
                .grid(candidates, 1)
                .ok_or(Misfit::Shape("the number of candidates is not that of the grid's cells"))?,
            Head::V5 | Head::V8 | Head::End2End => &[],
        };
        let classes = match head {
            Head::End2End => self.names(),
            Head::V5 | Head::V8 | Head::Yolox => Some(self.classes(row - head.fixed_values())?),
        };
        Ok(Layout { head, output: index, classes, candidates, row, input: self.input, head_strides })
    }

    /// Number of classes of rows with so many values behind the box and the objectness.
    fn classes(&self, room: usize) -> Result<usize, Misfit> {
        match self.names() {
            Some(names) if names > room || (self.task == Task::Detect && names < room) => {
                Err(Misfit::Names { names, room })
            }
            Some(names) => Ok(names),
            None => match room.checked_sub(self.extra_columns()) {
                Some(classes) if classes > 0 => Ok(classes),
                _ => Err(Misfit::Shape("its rows have no room for class scores")),
            },
        }
    }

    /// Columns behind the class scores, where no names tell how many scores there are.
    fn extra_columns(&self) -> usize {
        // Prototype masks, `[B, coefficients, h / 4, w / 4]`, come with segmentation only.
        let (rows, columns) = grid_size(self.input, 4);
        let coefficients = self.outputs.iter().find_map(|output| match output.dims.as_slice() {
            &[_, coefficients, h, w] if output.float && (h, w) == (rows, columns) => Some(coefficients),
            _ => None,
        });
        match (coefficients, self.task) {
            (Some(coefficients), _) => coefficients,
            (None, Task::Segment) => MASK_COLUMNS,
            (None, Task::Pose) => KEYPOINT_COLUMNS,
            (None, Task::Detect | Task::Unknown) => 0,
        }
    }
}

/// (rows, columns) of one level. Strided convolutions with padding round up.
pub(super) fn grid_size(input: (usize, usize), head_stride: usize) -> (usize, usize) {
    (input.0.div_ceil(head_stride), input.1.div_ceil(head_stride))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SQUARE: (usize, usize) = (640, 640);

    fn outputs(dims: &[&[usize]]) -> Vec<OutputShape> {
        let shape = |(index, dims): (usize, &&[usize])| OutputShape {
            name: format!("output{index}"),
            dims: dims.to_vec(),
            float: true,
        };
        dims.iter().enumerate().map(shape).collect()
    }

    fn bare() -> ModelMetadata {
        ModelMetadata::default()
    }

    fn names(count: usize) -> ModelMetadata {
        let names = (0..count).map(|class| format!("c{class}")).collect();
        ModelMetadata { names: Some(names), stride: Some(32), ..bare() }
    }

    fn task(count: usize, task: &str) -> ModelMetadata {
        ModelMetadata { task: Some(task.into()), ..names(count) }
    }

    fn end2end(metadata: ModelMetadata) -> ModelMetadata {
        ModelMetadata { end2end: true, ..metadata }
    }

    /// Shapes of a model's outputs.
    type Dims = &'static [&'static [usize]];

    struct Row {
        metadata: ModelMetadata,
        input: (usize, usize),
        dims: Dims,
        expected: (Head, Option<usize>, usize),
    }

    fn row(
        metadata: ModelMetadata,
        input: (usize, usize),
        dims: Dims,
        expected: (Head, Option<usize>, usize),
    ) -> Row {
        Row { metadata, input, dims, expected }
    }

    #[test]
    fn every_decision() {
        use Head::*;
        let masks: Dims = &[&[1, 116, 8400], &[1, 32, 160, 160]];
        let table = [
            // v8: with metadata, without, one class, small, not square, many classes.
            row(task(80, "detect"), SQUARE, &[&[1, 84, 8400]], (V8, Some(80), 8400)),
            row(bare(), SQUARE, &[&[1, 84, 8400]], (V8, Some(80), 8400)),
            row(bare(), SQUARE, &[&[1, 5, 8400]], (V8, Some(1), 8400)),
            row(task(1, "detect"), SQUARE, &[&[1, 5, 8400]], (V8, Some(1), 8400)),
            row(bare(), SQUARE, &[&[1, 6, 8400]], (V8, Some(2), 8400)),
            row(bare(), (416, 416), &[&[1, 84, 3549]], (V8, Some(80), 3549)),
            row(bare(), (320, 256), &[&[1, 84, 1680]], (V8, Some(80), 1680)),
            row(bare(), (100, 100), &[&[1, 84, 169 + 49 + 16]], (V8, Some(80), 234)),
            row(bare(), (64, 64), &[&[1, 1207, 84]], (V8, Some(1203), 84)),
            row(names(80), (64, 64), &[&[1, 84, 84]], (V8, Some(80), 84)),
            row(bare(), (64, 64), &[&[4, 84, 84]], (V8, Some(80), 84)),
            row(bare(), SQUARE, &[&[1, 84, 34_000]], (V8, Some(80), 34_000)),
            row(names(80), SQUARE, &[&[1, 84, 50]], (V8, Some(80), 50)),
            row(bare(), SQUARE, &[&[1, 84, 999]], (V8, Some(80), 999)),
            // Pose and segmentation: the further columns are no classes.
            row(task(80, "pose"), SQUARE, &[&[1, 135, 8400]], (V8, Some(80), 8400)),
            row(task(1, "pose"), SQUARE, &[&[1, 56, 8400]], (V8, Some(1), 8400)),
            row(
                ModelMetadata { task: Some("pose".into()), ..bare() },
                SQUARE,
                &[&[1, 56, 8400]],
                (V8, Some(1), 8400),
            ),
            row(task(80, "segment"), SQUARE, masks, (V8, Some(80), 8400)),
            row(names(80), SQUARE, masks, (V8, Some(80), 8400)),
            row(bare(), SQUARE, masks, (V8, Some(80), 8400)),
            row(names(80), SQUARE, &[&[1, 25200, 117], &[1, 32, 160, 160]], (V5, Some(80), 25200)),
            // v5.
            row(names(80), SQUARE, &[&[1, 25200, 85]], (V5, Some(80), 25200)),
            row(bare(), SQUARE, &[&[1, 25200, 85]], (V5, Some(80), 25200)),
            row(bare(), (416, 416), &[&[1, 10_647, 85]], (V5, Some(80), 10_647)),
            row(names(80), SQUARE, &[&[1, 8400, 85]], (V5, Some(80), 8400)),
            row(names(1), SQUARE, &[&[1, 25200, 6]], (V5, Some(1), 25200)),
            row(bare(), SQUARE, &[&[1, 25200, 6]], (V5, Some(1), 25200)),
            row(names(1), SQUARE, &[&[1, 8400, 6]], (V5, Some(1), 8400)),
            row(bare(), (1280, 1280), &[&[1, 102_000, 85]], (V5, Some(80), 102_000)),
            row(names(80), SQUARE, &[&[1, 70, 85]], (V5, Some(80), 70)),
            row(bare(), SQUARE, &[&[1, 999, 85]], (V5, Some(80), 999)),
            row(
                names(80),
                SQUARE,
                &[&[1, 3, 80, 80, 85], &[1, 25200, 85], &[1, 84, 8400]],
                (V5, Some(80), 25200),
            ),
            // YOLOX.
            row(bare(), SQUARE, &[&[1, 8400, 85]], (Yolox, Some(80), 8400)),
            row(bare(), (416, 416), &[&[1, 3549, 85]], (Yolox, Some(80), 3549)),
            row(bare(), SQUARE, &[&[1, 8400, 6]], (Yolox, Some(1), 8400)),
            row(bare(), (320, 256), &[&[8, 1680, 85]], (Yolox, Some(80), 1680)),
            row(bare(), (1280, 1280), &[&[1, 34_000, 85]], (Yolox, Some(80), 34_000)),
            // End to end.
            row(bare(), SQUARE, &[&[1, 300, 6]], (End2End, None, 300)),
            row(names(80), SQUARE, &[&[1, 300, 6]], (End2End, Some(80), 300)),
            row(names(1), SQUARE, &[&[1, 300, 6]], (End2End, Some(1), 300)),
            row(end2end(task(80, "detect")), SQUARE, &[&[1, 300, 6]], (End2End, Some(80), 300)),
            row(end2end(names(1)), SQUARE, &[&[1, 8400, 6]], (End2End, Some(1), 8400)),
            row(names(2), SQUARE, &[&[1, 8400, 6]], (End2End, Some(2), 8400)),
            row(bare(), SQUARE, &[&[1, 5, 6]], (End2End, None, 5)),
            row(end2end(task(1, "pose")), SQUARE, &[&[1, 300, 57]], (End2End, Some(1), 300)),
            row(task(1, "pose"), SQUARE, &[&[1, 300, 57]], (End2End, Some(1), 300)),
            row(
                end2end(task(80, "segment")),
                SQUARE,
                &[&[1, 300, 38], &[1, 32, 160, 160]],
                (End2End, Some(80), 300),
            ),
            // 16 × 16 pixels have six cells.
            row(end2end(names(80)), (16, 16), &[&[1, 300, 6]], (End2End, Some(80), 300)),
            // The flag alone does not turn a grid into detections.
            row(end2end(names(80)), SQUARE, &[&[1, 84, 8400]], (V8, Some(80), 8400)),
        ];
        for Row { metadata, input, dims, expected } in table {
            let found = Layout::find(None, &metadata, input, &outputs(dims));
            let found = found.unwrap_or_else(|error| panic!("{dims:?}: {error}"));
            assert_eq!((found.head, found.classes, found.candidates), expected, "{dims:?} {metadata:?}");
            assert_eq!(found.frame_len(), dims[found.output][1] * dims[found.output][2]);
            assert!(found.is_sound());
            assert_eq!(found.head == Yolox, !found.head_strides.is_empty());
            assert_eq!(found.input_style() == InputStyle::YOLOX, found.head == Yolox);
        }
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        let table: [(ModelMetadata, Dims, &[&str]); 12] = [
            (task(20, "obb"), &[&[1, 85, 8400]], &["`obb`", "detect", "pose", "segment"]),
            (task(1000, "classify"), &[&[1, 1000]], &["`classify`"]),
            (bare(), &[&[1, 1000]], &["[1, 1000]", "output0", "`head`"]),
            (bare(), &[], &["no output", "`head`"]),
            (bare(), &[&[1, 3, 80, 80, 85], &[1, 4]], &["[1, 3, 80, 80, 85], `output1` [1, 4]"]),
            (names(80), &[&[1, 20, 8400]], &["80 classes", "of 16", "[1, 20, 8400]"]),
            (names(80), &[&[1, 25200, 20]], &["80 classes", "of 15"]),
            (task(3, "detect"), &[&[1, 84, 8400]], &["3 classes", "of 80"]),
            (task(80, "detect"), &[&[1, 300, 84]], &["80 classes", "of 79"]),
            // Boxes and scores apart.
            (bare(), &[&[1, 300, 91], &[1, 300, 4]], &["[1, 300, 91]", "[1, 300, 4]"]),
            (bare(), &[&[1, 4, 8400], &[1, 80, 8400]], &["[1, 4, 8400]"]),
            (bare(), &[&[1, 0, 85]], &["[1, 0, 85]"]),
        ];
        for (metadata, dims, words) in table {
            let error = Layout::find(None, &metadata, SQUARE, &outputs(dims)).unwrap_err().to_string();
            for word in words {
                assert!(error.contains(word), "{error:?} lacks {word:?}");
            }
        }
        let mut integers = outputs(&[&[1, 84, 8400]]);
        integers[0].float = false;
        let error = Layout::find(None, &bare(), SQUARE, &integers).unwrap_err().to_string();
        assert!(error.contains("not float"), "{error}");
    }

    #[test]
    fn a_requested_head_must_fit() {
        use Head::*;
        let fits: [(Head, ModelMetadata, Dims, Head); 6] = [
            (V5, bare(), &[&[1, 8400, 85]], V5),
            (Yolox, names(80), &[&[1, 8400, 85]], Yolox),
            (End2End, names(1), &[&[1, 8400, 6]], End2End),
            (V5, bare(), &[&[1, 300, 6]], V5),
            (V8, bare(), &[&[1, 300, 84]], V8),
            // The first output that fits, not the first.
            (V8, bare(), &[&[1, 25200, 85], &[1, 84, 8400]], V8),
        ];
        for (requested, metadata, dims, expected) in fits {
            let found = Layout::find(Some(requested), &metadata, SQUARE, &outputs(dims)).unwrap();
            assert_eq!(found.head, expected, "{dims:?}");
        }

        let misfits: [(Head, ModelMetadata, Dims, &str); 8] = [
            (V8, bare(), &[&[1, 8400, 85]], "`v8`"),
            (V5, bare(), &[&[1, 84, 8400]], "`v5`"),
            (End2End, bare(), &[&[1, 84, 8400]], "`end2end`"),
            (End2End, bare(), &[&[1, 300, 5]], "`end2end`"),
            (Yolox, bare(), &[&[1, 25200, 85]], "`yolox`"),
            (Yolox, names(90), &[&[1, 8400, 85]], "90 classes"),
            (V5, bare(), &[&[1, 1000]], "[1, 1000]"),
            (V8, task(15, "obb"), &[&[1, 20, 8400]], "obb"),
        ];
        for (requested, metadata, dims, word) in misfits {
            let error =
                Layout::find(Some(requested), &metadata, SQUARE, &outputs(dims)).unwrap_err().to_string();
            assert!(error.contains(word), "{error:?} lacks {word:?}");
        }
    }

    fn any_dim() -> impl Strategy<Value = usize> {
        prop_oneof![0..200_usize, Just(8400), Just(25200), Just(usize::MAX), any::<usize>()]
    }

    proptest! {
        #[test]
        fn any_shape_is_harmless(
            dims in prop::collection::vec(prop::collection::vec(any_dim(), 0..5), 0..3),
            input in (any_dim(), any_dim()),
            requested in prop::option::of(prop::sample::select(Head::ALL.to_vec())),
            named in prop::option::of(0..100_usize),
            flag: bool,
        ) {
            let metadata = ModelMetadata {
                names: named.map(|count| vec![String::new(); count]),
                end2end: flag,
                ..bare()
            };
            let dims: Vec<&[usize]> = dims.iter().map(Vec::as_slice).collect();
            if let Ok(layout) = Layout::find(requested, &metadata, input, &outputs(&dims)) {
                prop_assert!(layout.is_sound());
                prop_assert!(requested.is_none_or(|head| head == layout.head));
                let dims = dims[layout.output];
                prop_assert_eq!(layout.frame_len(), dims[1] * dims[2]);
            }
        }
    }
}
