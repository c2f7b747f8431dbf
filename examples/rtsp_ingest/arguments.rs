//! The command line.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::address::Credentials;
use crate::camera::Patience;
use crate::cameras::{Entry, List};
use crate::source::Connection;
use crate::tail::Detection;

pub const USAGE: &str = "\
Usage: rtsp_ingest [OPTION]... [NAME=]rtsp://[USER:PASSWORD@]HOST[:PORT]/PATH...

Detects objects on any number of cameras through one engine. A camera that breaks off or freezes is connected
again, for as long as it takes; the others never notice. Ctrl-C ends it.

  --cameras FILE         more cameras, NAME=URI, one a line; lines that begin with # are comments
  --user NAME            for cameras whose address has no credentials
  --password-file FILE   that user's password
  --protocols WHICH      tcp, udp, or auto: UDP, then TCP (tcp)
  --latency MS           jitter buffer (200)

  --model FILE           the ONNX model (target/assets/models/yolo12n.onnx)
  --set PROPERTY=VALUE   of yolodetect; may be repeated
  --out FOLDER           append JSON lines to FOLDER/NAME.jsonl; without it all go to standard output

  --stall-timeout S      without a frame for so long a camera counts as frozen (10)
  --min-backoff S        wait before the second attempt; doubled for each further one (1)
  --max-backoff S        longest wait (60)
  --status-interval S    between reports on standard error (5)
  --duration S           end after that long
  -h, --help             this text

Standard input takes commands: add NAME URI, remove NAME, list, status, quit.";

pub enum Command {
    Help,
    Ingest(Box<Options>),
}

pub struct Options {
    pub cameras: Vec<Entry>,
    /// For cameras that are added later as well.
    pub credentials: Option<Credentials>,
    pub connection: Connection,
    pub detection: Detection,
    /// Folder of the JSON lines; `None` is standard output.
    pub out: Option<PathBuf>,
    pub patience: Patience,
    pub status_interval: Duration,
    pub duration: Option<Duration>,
}

/// Reads the arguments, those after the program's name.
pub fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Command, String> {
    let mut options = Options {
        cameras: Vec::new(),
        credentials: None,
        connection: Connection { protocols: "tcp", latency_ms: 200 },
        detection: Detection {
            element: "yolodetect".into(),
            model: "target/assets/models/yolo12n.onnx".into(),
            properties: Vec::new(),
        },
        out: None,
        patience: Patience {
            stall: Duration::from_secs(10),
            min_backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(60),
        },
        status_interval: Duration::from_secs(5),
        duration: None,
    };
    let (mut addresses, mut files) = (Vec::new(), Vec::new());
    let (mut user, mut password_file) = (None, None);

    while let Some(argument) = arguments.next() {
        let argument = text(argument)?;
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "-h" | "--help" => return Ok(Command::Help),
            "--cameras" => files.push(PathBuf::from(value()?)),
            "--user" => user = Some(text(value()?)?),
            "--password-file" => password_file = Some(PathBuf::from(value()?)),
            "--protocols" => options.connection.protocols = protocols(&text(value()?)?)?,
            "--latency" => options.connection.latency_ms = milliseconds(&argument, &text(value()?)?)?,
            "--model" => options.detection.model = value()?.into(),
            "--set" => options.detection.properties.push(assignment(&text(value()?)?)?),
            // Another element in yolodetect's place, to measure what is not its doing.
            "--detector" => options.detection.element = text(value()?)?,
            "--out" => options.out = Some(value()?.into()),
            "--stall-timeout" => options.patience.stall = seconds(&argument, &text(value()?)?)?,
            "--min-backoff" => options.patience.min_backoff = seconds(&argument, &text(value()?)?)?,
            "--max-backoff" => options.patience.max_backoff = seconds(&argument, &text(value()?)?)?,
            "--status-interval" => options.status_interval = seconds(&argument, &text(value()?)?)?,
            "--duration" => options.duration = Some(seconds(&argument, &text(value()?)?)?),
            option if option.starts_with('-') => return Err(format!("unknown option {option}")),
            _ => addresses.push(argument),
        }
    }
    if addresses.is_empty() && files.is_empty() {
        return Err("there is no camera: give NAME=URI or --cameras FILE".into());
    }
    if options.patience.max_backoff < options.patience.min_backoff {
        return Err("--max-backoff is shorter than --min-backoff".into());
    }
    options.credentials = credentials(user, password_file.as_deref())?;
    let mut list = List { credentials: options.credentials.clone(), ..List::default() };
    addresses.iter().try_for_each(|address| list.add(address))?;
    files.iter().try_for_each(|file| list.add_file(file))?;
    options.cameras = list.entries;
    Ok(Command::Ingest(Box::new(options)))
}

/// The password comes from a file: arguments can be read by everyone on the machine.
fn credentials(user: Option<String>, file: Option<&Path>) -> Result<Option<Credentials>, String> {
    match (user, file) {
        (None, None) => Ok(None),
        (Some(user), None) => Ok(Some(Credentials { user, password: String::new() })),
        (None, Some(_)) => Err("--password-file needs --user".into()),
        (Some(user), Some(file)) => match std::fs::read_to_string(file) {
            Ok(text) => {
                Ok(Some(Credentials { user, password: text.lines().next().unwrap_or_default().into() }))
            }
            Err(error) => Err(format!("the password file {} cannot be read: {error}", file.display())),
        },
    }
}

/// In the words of `rtspsrc`.
fn protocols(value: &str) -> Result<&'static str, String> {
    match value {
        "tcp" => Ok("tcp"),
        "udp" => Ok("udp-mcast+udp"),
        "auto" => Ok("udp-mcast+udp+tcp"),
        _ => Err(format!("--protocols is tcp, udp or auto, not {value}")),
    }
}

fn assignment(value: &str) -> Result<(String, String), String> {
    let parts = value.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, value) = parts.ok_or_else(|| format!("--set takes PROPERTY=VALUE, not {value}"))?;
    Ok((name.into(), value.into()))
}

fn milliseconds(option: &str, value: &str) -> Result<u32, String> {
    value.parse().map_err(|_| format!("{option} takes milliseconds, a whole number, not {value}"))
}

fn seconds(option: &str, value: &str) -> Result<Duration, String> {
    let parsed = value.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    // Thirty years: what is added to a time must not overflow it.
    let sensible = parsed.filter(|duration| !duration.is_zero() && duration.as_secs() <= 1_000_000_000);
    sensible.ok_or_else(|| format!("{option} takes seconds, more than 0, not {value}"))
}

fn text(argument: OsString) -> Result<String, String> {
    argument.into_string().map_err(|argument| format!("{} is not UTF-8", argument.display()))
}
