//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

pub const USAGE: &str = "\
Usage: demo --model FILE.onnx [OPTION]... SOURCE
       demo contact-sheet VIDEO PICTURE.png

Detects objects on SOURCE: a file (video or picture), a URI, or a camera's rtsp:// address. Ctrl-C ends it
early with complete files.

  --model FILE     the ONNX model
  --out DIR        where annotated.mp4 and detections.jsonl go (target/demo)
  --threads N      threads of one inference (0: one per processor)
  --seconds N      stop after N seconds; for sources that never end
  --detect-only    write nothing: decode, detect, and say what that takes
  -h, --help       this text

contact-sheet puts frames of VIDEO, evenly spread, into one PICTURE.";

#[derive(Debug, PartialEq)]
pub enum Command {
    Help,
    Detect(Job),
    ContactSheet { video: String, picture: PathBuf },
}

/// What to detect on, and how.
#[derive(Debug, PartialEq)]
pub struct Job {
    /// Path or URI.
    pub source: String,
    pub model: PathBuf,
    pub out: PathBuf,
    /// 0: one per processor.
    pub threads: u32,
    pub limit: Option<Duration>,
    pub detect_only: bool,
}

/// Reads the arguments, those after the program's name.
pub fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Command, String> {
    let mut source = None;
    let mut model = None;
    let mut out = PathBuf::from("target/demo");
    let mut threads = 0;
    let mut limit = None;
    let mut detect_only = false;

    let mut arguments = arguments.peekable();
    if arguments.next_if(|first| first == "contact-sheet").is_some() {
        return contact_sheet(arguments.collect());
    }
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{} needs a value", argument.display()));
        match argument.to_str() {
            Some("-h" | "--help") => return Ok(Command::Help),
            Some("--model") => model = Some(value()?.into()),
            Some("--out") => out = value()?.into(),
            Some("--threads") => threads = number("--threads", &value()?)?,
            Some("--seconds") => limit = Some(Duration::from_secs(number("--seconds", &value()?)?.into())),
            Some("--detect-only") => detect_only = true,
            Some(option) if option.starts_with('-') => return Err(format!("unknown option {option}")),
            _ if source.is_some() => return Err(format!("more than one source: {}", argument.display())),
            _ => source = Some(text(argument)?),
        }
    }
    Ok(Command::Detect(Job {
        source: source.ok_or("there is no source")?,
        model: model.ok_or("there is no --model")?,
        out,
        threads,
        limit,
        detect_only,
    }))
}

fn contact_sheet(arguments: Vec<OsString>) -> Result<Command, String> {
    match <[OsString; 2]>::try_from(arguments) {
        Ok([video, picture]) => Ok(Command::ContactSheet { video: text(video)?, picture: picture.into() }),
        Err(_) => Err("contact-sheet takes a video and a picture's name".into()),
    }
}

fn number(option: &str, value: &OsString) -> Result<u32, String> {
    let parsed = value.to_str().and_then(|value| value.parse().ok());
    parsed.ok_or_else(|| format!("{option} takes a whole number, not {}", value.display()))
}

fn text(argument: OsString) -> Result<String, String> {
    argument.into_string().map_err(|argument| format!("{} is not UTF-8", argument.display()))
}
