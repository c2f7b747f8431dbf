//! What loading a model taught, kept with it: a start that has these need not run the model to learn them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::decode::OutputShape;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Frames of the run that these are of.
    pub frames: usize,
    /// Threads of that run.
    pub threads: usize,
    /// Every output of the model.
    pub outputs: Vec<OutputShape>,
    /// Bytes that the process grew by for the session with its weights.
    pub model: u64,
    /// And for what one run needs between layers.
    pub arena: u64,
    /// Of the second run, with the least number of frames.
    pub warm_run: Duration,
}

impl Figures {
    pub fn to_json(&self) -> Value {
        let output =
            |output: &OutputShape| json!({ "name": output.name, "dims": output.dims, "float": output.float });
        json!({
            "frames": self.frames,
            "threads": self.threads,
            "outputs": self.outputs.iter().map(output).collect::<Vec<_>>(),
            "model-bytes": self.model,
            "arena-bytes": self.arena,
            "warm-run-ns": u64::try_from(self.warm_run.as_nanos()).unwrap_or(u64::MAX),
        })
    }

    /// `None` where anything is missing.
    pub fn from_json(value: &Value) -> Option<Self> {
        let number = |name: &str| value.get(name)?.as_u64();
        let output = |value: &Value| {
            let dims = value.get("dims")?.as_array()?;
            Some(OutputShape {
                name: value.get("name")?.as_str()?.into(),
                dims: dims.iter().map(|dim| dim.as_u64()?.try_into().ok()).collect::<Option<_>>()?,
                float: value.get("float")?.as_bool()?,
            })
        };
        Some(Self {
            frames: number("frames")?.try_into().ok().filter(|&frames| frames > 0)?,
            threads: number("threads")?.try_into().ok()?,
            outputs: value.get("outputs")?.as_array()?.iter().map(output).collect::<Option<_>>()?,
            model: number("model-bytes")?,
            arena: number("arena-bytes")?,
            warm_run: Duration::from_nanos(number("warm-run-ns")?),
        })
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn figures() -> Figures {
        let output =
            |name: &str, dims: &[usize]| OutputShape { name: name.into(), dims: dims.into(), float: true };
        Figures {
            frames: 1,
            threads: 2,
            outputs: vec![output("a", &[1, 84, 8400]), output("b", &[])],
            model: 24_000_000,
            arena: u64::MAX,
            warm_run: Duration::from_micros(123_456),
        }
    }

    #[test]
    fn figures_are_read_as_they_were_written() {
        let written = figures().to_json();
        let text = written.to_string();
        assert_eq!(Figures::from_json(&serde_json::from_str(&text).unwrap()), Some(figures()));
        for name in ["frames", "threads", "outputs", "model-bytes", "arena-bytes", "warm-run-ns"] {
            for wrong in [Value::Null, json!(-1), json!("1"), json!([{ "name": "a", "float": true }])] {
                let mut damaged = written.clone();
                damaged[name] = wrong;
                assert_eq!(Figures::from_json(&damaged), None, "{damaged}");
            }
        }
    }
}
