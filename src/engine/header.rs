//! What an ONNX file says of its first input and its operators, read without loading it: everything else is skipped over.
//!
//! Whatever is not as expected is `None`, or not there, and ONNX Runtime has the last word.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor};
use std::path::Path;

use crate::tensor::Element;

/// `[batch, 3, height, width]`; `None` where a size is left open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputHeader {
    pub element: Option<Element>,
    pub dims: [Option<u64>; 4],
}

/// Protocol buffer fields on the way: `ModelProto.graph`, `GraphProto.input`, `ValueInfoProto.type`,
/// `TypeProto.tensor_type`.
const INPUT: [u64; 4] = [7, 11, 2, 1];
const TENSOR_ELEMENT: u64 = 1;
const TENSOR_SHAPE: u64 = 2;
const SHAPE_DIM: u64 = 1;
const DIM_VALUE: u64 = 1;
/// `TensorProto.DataType`.
const FLOAT: u64 = 1;
const FLOAT16: u64 = 10;

/// The first input of rank 4.
pub fn read(file: &Path) -> Option<InputHeader> {
    let file = File::open(file).ok()?;
    let length = file.metadata().ok()?.len();
    let mut reader = Reader { from: BufReader::new(file), at: 0 };
    find(&mut reader, length, &INPUT)
}

/// Goes down `path` from a message that ends at `end`, trying each place where it leads.
fn find<R: BufRead + io::Seek>(reader: &mut Reader<R>, end: u64, path: &[u64]) -> Option<InputHeader> {
    let Some((&wanted, rest)) = path.split_first() else { return tensor(reader, end) };
    while let Some(field) = reader.field(end)? {
        if let (number, Value::Message(end)) = field
            && number == wanted
            && let Some(found) = find(reader, end, rest)
        {
            return Some(found);
        }
        reader.finish(&field.1)?;
    }
    None
}

/// Fields on the way to tensors: `ModelProto.graph`, then `GraphProto.initializer`, or `GraphProto.node`,
/// `NodeProto.attribute`, `AttributeProto.t`.
const TENSORS: [&[u64]; 2] = [&[7, 5], &[7, 1, 5, 5]];
const EXTERNAL_DATA: u64 = 13;
const DATA_LOCATION: u64 = 14;
const EXTERNAL: u64 = 1;

/// Whether values of the model, an ONNX file's content, are in further files. `None` for what is no ONNX file.
pub fn has_external_data(model: &[u8]) -> Option<bool> {
    let mut is_external = |_: &mut _, number, value: &Value| {
        Some(match value {
            Value::Number(value) => number == DATA_LOCATION && *value == EXTERNAL,
            Value::Message(_) => number == EXTERNAL_DATA,
        })
    };
    for path in TENSORS {
        let mut reader = Reader { from: Cursor::new(model), at: 0 };
        if any(&mut reader, model.len() as u64, path, &mut is_external)? {
            return Some(true);
        }
    }
    Some(false)
}

/// `ModelProto.graph`, `GraphProto.node`.
const NODES: [u64; 2] = [7, 1];
const OPERATOR: u64 = 4;

/// Those of `wanted` that the model's graph has nodes of.
pub fn operators<'a>(file: &Path, wanted: &[&'a str]) -> Vec<&'a str> {
    let Ok(file) = File::open(file) else { return Vec::new() };
    let length = file.metadata().map_or(0, |data| data.len());
    operators_in(Reader { from: BufReader::new(file), at: 0 }, length, wanted)
}

fn operators_in<'a, R: BufRead + io::Seek>(
    mut reader: Reader<R>,
    length: u64,
    wanted: &[&'a str],
) -> Vec<&'a str> {
    let mut found = Vec::new();
    let mut look = |reader: &mut Reader<R>, number, value: &Value| {
        if let (OPERATOR, Value::Message(end)) = (number, value) {
            let name = reader.name(*end)?;
            let known = wanted.iter().copied().find(|wanted| wanted.as_bytes() == name);
            found.extend(known.filter(|known| !found.contains(known)));
        }
        Some(false)
    };
    // As far as it makes sense.
    let _ = any(&mut reader, length, &NODES, &mut look);
    found
}

/// Whether a field is `wanted` of any of the messages that `path` leads to from one that ends at `end`.
fn any<R: BufRead + io::Seek>(
    reader: &mut Reader<R>,
    end: u64,
    path: &[u64],
    wanted: &mut impl FnMut(&mut Reader<R>, u64, &Value) -> Option<bool>,
) -> Option<bool> {
    while let Some((number, value)) = reader.field(end)? {
        let found = match (path.split_first(), &value) {
            (None, value) => wanted(reader, number, value)?,
            (Some((first, rest)), Value::Message(end)) if number == *first => {
                any(reader, *end, rest, wanted)?
            }
            _ => false,
        };
        if found {
            return Some(true);
        }
        reader.finish(&value)?;
    }
    Some(false)
}

fn tensor<R: BufRead + io::Seek>(reader: &mut Reader<R>, end: u64) -> Option<InputHeader> {
    let (mut element, mut dims) = (None, Vec::new());
    while let Some((number, value)) = reader.field(end)? {
        match value {
            Value::Number(FLOAT) if number == TENSOR_ELEMENT => element = Some(Element::F32),
            Value::Number(FLOAT16) if number == TENSOR_ELEMENT => element = Some(Element::F16),
            Value::Message(end) if number == TENSOR_SHAPE => {
                while let Some((number, value)) = reader.field(end)? {
                    let Value::Message(end) = value else { continue };
                    let mut size = None;
                    while let Some((number, value)) = reader.field(end)? {
                        match value {
                            Value::Number(value) if number == DIM_VALUE => size = Some(value),
                            value => reader.finish(&value)?,
                        }
                    }
                    if number == SHAPE_DIM && dims.len() <= 4 {
                        dims.push(size);
                    }
                }
            }
            value => reader.finish(&value)?,
        }
    }
    Some(InputHeader { element, dims: dims.try_into().ok()? })
}

enum Value {
    Number(u64),
    /// Where it ends; the reader stands at its beginning.
    Message(u64),
}

struct Reader<R> {
    from: R,
    at: u64,
}

impl<R: BufRead + io::Seek> Reader<R> {
    /// The next field of a message that ends at `end`; `Some(None)` at its end, `None` where nothing makes sense.
    fn field(&mut self, end: u64) -> Option<Option<(u64, Value)>> {
        if self.at == end {
            return Some(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.fixed(8)?,
            2 => {
                let length = self.varint()?;
                Value::Message(self.at.checked_add(length)?)
            }
            5 => self.fixed(4)?,
            _ => return None,
        };
        let reaches = if let Value::Message(end) = value { end } else { self.at };
        (reaches <= end).then_some(Some((key >> 3, value)))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.from.fill_buf().ok()?.first()?;
            self.from.consume(1);
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    /// Skips a number that no field wanted here is written as.
    fn fixed(&mut self, length: u64) -> Option<Value> {
        self.finish(&Value::Message(self.at + length))?;
        Some(Value::Number(0))
    }

    /// The bytes up to `end`; none where there are more than a name has.
    fn name(&mut self, end: u64) -> Option<Vec<u8>> {
        const LONGEST: u64 = 100;
        let length = end.checked_sub(self.at)?;
        let mut bytes = vec![0; if length > LONGEST { 0 } else { length as usize }];
        self.from.read_exact(&mut bytes).ok()?;
        self.at += bytes.len() as u64;
        Some(bytes)
    }

    /// Goes to the end of what was not read.
    fn finish(&mut self, value: &Value) -> Option<()> {
        let Value::Message(end) = value else { return Some(()) };
        let rest = i64::try_from(end.checked_sub(self.at)?).ok()?;
        self.from.seek_relative(rest).ok()?;
        self.at = *end;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(number: u8, content: &[u8]) -> Vec<u8> {
        let (low, high) = (content.len() as u8 & 0x7f, (content.len() >> 7) as u8);
        let length = if high == 0 { vec![low] } else { vec![low | 0x80, high] };
        [vec![number << 3 | 2], length, content.to_vec()].concat()
    }

    fn input(element: u8, dims: &[Option<u8>]) -> Vec<u8> {
        let dim = |size: &Option<u8>| match size {
            Some(size) => message(1, &[1 << 3, *size]),
            None => message(1, &message(2, b"n")),
        };
        let shape: Vec<u8> = dims.iter().flat_map(dim).collect();
        let tensor = [vec![1 << 3, element], message(2, &shape)].concat();
        [message(1, b"name"), message(2, &message(1, &tensor))].concat()
    }

    fn parse(bytes: &[u8]) -> Option<InputHeader> {
        let mut reader = Reader { from: Cursor::new(bytes), at: 0 };
        find(&mut reader, bytes.len() as u64, &INPUT)
    }

    #[test]
    fn the_first_picture_is_found_behind_all_else() {
        let scale = message(11, &input(1, &[Some(4)]));
        let picture = message(11, &input(1, &[None, Some(3), Some(64), Some(96)]));
        let graph = [message(5, &[7; 40]), vec![9 << 3 | 5, 1, 2, 3, 4], scale, picture].concat();
        let model = [vec![1 << 3, 8], message(2, b"maker"), message(7, &graph)].concat();
        let expected = InputHeader { element: Some(Element::F32), dims: [None, Some(3), Some(64), Some(96)] };
        assert_eq!(parse(&model), Some(expected));
        for length in 0..model.len() {
            assert_eq!(parse(&model[..length]), None, "cut off after {length}");
        }
        let half = message(7, &message(11, &input(10, &[Some(1); 4])));
        assert_eq!(parse(&half).and_then(|header| header.element), Some(Element::F16));
        assert_eq!(parse(&message(7, &message(11, &input(2, &[Some(1); 4])))).unwrap().element, None);
    }

    #[test]
    fn values_in_further_files_are_found() {
        let small = message(5, &[message(8, b"w"), message(9, &[1; 8])].concat());
        let located = message(13, &[message(1, b"location"), message(2, b"/w.bin")].concat());
        let model = |graph: &[&[u8]]| [vec![1 << 3, 8], message(7, &graph.concat())].concat();
        let constant =
            |tensor: &[u8]| message(1, &message(5, &[message(1, b"value"), tensor.to_vec()].concat()));
        for (graph, external) in [
            (model(&[&small, &small]), Some(false)),
            (model(&[&small, &message(5, &located)]), Some(true)),
            (model(&[&message(5, &[14 << 3, 1])]), Some(true)),
            (model(&[&message(5, &[14 << 3, 0])]), Some(false)),
            (model(&[&constant(&small)]), Some(false)),
            (model(&[&constant(&message(5, &located))]), Some(true)),
            (b"garbage".to_vec(), None),
        ] {
            assert_eq!(has_external_data(&graph), external, "{graph:?}");
        }
    }

    #[test]
    fn operators_are_found_by_their_names() {
        let node = |operator: &[u8]| {
            let weights = message(5, &message(5, &message(9, &[1; 8])));
            message(1, &[message(1, b"QLinearConv"), weights, message(4, operator)].concat())
        };
        let model = |nodes: &[&[u8]]| {
            let nodes: Vec<u8> = nodes.iter().flat_map(|operator| node(operator)).collect();
            [vec![1 << 3, 8], message(7, &[message(5, &[7; 40]), nodes].concat())].concat()
        };
        let find = |model: &[u8]| {
            let reader = Reader { from: Cursor::new(model), at: 0 };
            operators_in(reader, model.len() as u64, &["ConvInteger", "QLinearConv"])
        };
        for (nodes, found) in [
            (&[b"Conv".as_slice(), b"ConvInteger2", b"QLinear"][..], &[][..]),
            (&[b"QLinearConv", b"Relu"], &["QLinearConv"]),
            (&[b"ConvInteger"], &["ConvInteger"]),
            (&[b"QLinearConv", b"ConvInteger", b"QLinearConv"], &["QLinearConv", "ConvInteger"]),
            (&[&[b'x'; 105]], &[]),
        ] {
            assert_eq!(find(&model(nodes)), found, "{nodes:?}");
        }
        assert!(find(b"garbage").is_empty());
        assert!(operators(Path::new("/nowhere"), &["Conv"]).is_empty());
    }

    #[test]
    fn any_bytes_are_borne() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..random.usize(..40))
                .map(|_| *random.choice(&[58, 90, 18, 10, 8, 2, 0, 255, 200]).unwrap())
                .collect();
            parse(&bytes);
            has_external_data(&bytes);
            operators_in(Reader { from: Cursor::new(&bytes), at: 0 }, bytes.len() as u64, &["Conv"]);
        }
        assert_eq!(read(Path::new("/nowhere")), None);
    }
}
