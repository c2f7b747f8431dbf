//! What the tests of `rtsp_ingest` are made of: cameras (tests/data/rtsp_server.py) and the program as a user
//! has it.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Instant;

use crate::common::{PATIENCE, asset, library, plugin_folder};

/// A camera in a process of its own; gone when dropped.
pub struct Camera {
    child: Child,
    commands: Option<ChildStdin>,
    answers: Receiver<String>,
    pub port: u16,
}

impl Camera {
    /// With `street`, a clip in an endless loop.
    pub fn street() -> Self {
        Self::start(&[&format!("street={}", clip("bikes"))])
    }

    pub fn start(arguments: &[&str]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/rtsp_server.py");
        // Debian's own Python: it has GStreamer's bindings.
        let mut child = Command::new("/usr/bin/python3")
            .arg(script)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("/usr/bin/python3 runs");
        let answers = lines(child.stdout.take().unwrap());
        let commands = child.stdin.take();
        let mut camera = Self { child, commands, answers, port: 0 };
        let said = camera.answer();
        let port = said.strip_prefix("port ").and_then(|port| port.parse().ok());
        camera.port = port.unwrap_or_else(|| panic!("the camera says {said}"));
        camera
    }

    fn answer(&mut self) -> String {
        self.answers.recv_timeout(PATIENCE).unwrap_or_else(|error| {
            panic!("the camera does not answer ({error}); is everything of tests/setup.sh installed?")
        })
    }

    /// Has it do something and waits until that is done; what it says besides `ok`.
    pub fn tell(&mut self, command: &str) -> String {
        writeln!(self.commands.as_mut().unwrap(), "{command}").unwrap();
        let said = self.answer();
        let told = said.strip_prefix("ok").unwrap_or_else(|| panic!("{command}: the camera says {said}"));
        told.trim().into()
    }

    pub fn uri(&self, path: &str) -> String {
        format!("rtsp://127.0.0.1:{}/{path}", self.port)
    }

    pub fn signal(&self, signal: libc::c_int) {
        signal_process(&self.child, signal);
    }

    /// As a power cut: without a word to anybody. The port it had is free again afterwards.
    pub fn kill(mut self) -> u16 {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.port
    }
}

impl Drop for Camera {
    fn drop(&mut self) {
        // Fails only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn clip(name: &str) -> String {
    asset(&format!("clips/{name}.mp4")).display().to_string()
}

fn signal_process(child: &Child, signal: libc::c_int) {
    // SAFETY: a plain system call; the child is not waited for yet, so its id is its own.
    let sent = unsafe { libc::kill(child.id() as libc::pid_t, signal) };
    assert_eq!(sent, 0, "{}", std::io::Error::last_os_error());
}

/// Reads lines in a thread, so that waiting for one can end; it goes when the receiver does.
pub fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        BufReader::new(from).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    receiver
}

/// A camera's line of the status.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub state: String,
    pub size: String,
    pub frames: u64,
    pub dropped: u64,
    pub inferred: u64,
    pub detections: u64,
    pub reconnects: u64,
}

impl Report {
    fn parse(line: &str) -> Option<(String, Self)> {
        let words: Vec<_> = line.split_whitespace().collect();
        let fps = words.iter().position(|word| *word == "fps")?;
        let number = |unit: &str| {
            let at = words.iter().position(|word| *word == unit)?;
            words[at - 1].parse().ok()
        };
        let report = Self {
            reconnects: number("reconnects")?,
            state: words[1..fps - 2].join(" "),
            size: words[fps - 2].into(),
            frames: number("frames")?,
            dropped: number("dropped")?,
            inferred: number("inferred")?,
            detections: number("detections")?,
        };
        Some((words[0].into(), report))
    }
}

/// The program at work; ended when dropped.
pub struct Ingest {
    child: Child,
    commands: Option<ChildStdin>,
    said: Receiver<String>,
    pub records: Option<Receiver<String>>,
    folder: tempfile::TempDir,
    /// Each camera's latest line.
    pub reports: HashMap<String, Report>,
    /// All that it said.
    pub log: Vec<String>,
}

fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("examples/rtsp_ingest");
    assert!(program.exists(), "{} is missing: cargo build --example rtsp_ingest", program.display());
    program
}

/// One for all: GStreamer looks at all of its plugins where there is no registry yet. Named after GStreamer's
/// version, as other versions run the same executable.
fn plugins() -> &'static Path {
    static PLUGINS: OnceLock<PathBuf> = OnceLock::new();
    PLUGINS.get_or_init(|| {
        let (major, minor, ..) = gst::version();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("rtsp-{major}.{minor}"));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        plugin_folder(&folder);
        folder
    })
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command
        .args(arguments)
        .env("GST_PLUGIN_PATH", plugins().join("plugins"))
        .env("GST_REGISTRY", plugins().join("registry.bin"))
        .env("ORT_DYLIB_PATH", library())
        .envs([crate::common::NO_CACHE]);
    command
}

/// A call that ends by itself.
pub fn call(arguments: &[&str]) -> Output {
    command(arguments).stdin(Stdio::null()).output().unwrap()
}

impl Ingest {
    /// Records go to files. Impatient, so that tests are quick: what they say later wins.
    pub fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().display().to_string();
        Self::spawn(folder, &[&["--out", &out], arguments].concat())
    }

    /// Records go to standard output.
    pub fn to_standard_output(arguments: &[&str]) -> Self {
        let mut ingest = Self::spawn(tempfile::tempdir().unwrap(), arguments);
        ingest.records = Some(lines(ingest.child.stdout.take().unwrap()));
        ingest
    }

    /// In a folder that was prepared.
    pub fn spawn(folder: tempfile::TempDir, arguments: &[&str]) -> Self {
        let quick =
            ["--status-interval", "0.2", "--min-backoff", "0.1", "--max-backoff", "0.5", "--latency", "50"];
        let mut child = command(&[&quick, arguments].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = lines(child.stderr.take().unwrap());
        let commands = child.stdin.take();
        Self { child, commands, said, records: None, folder, reports: HashMap::new(), log: Vec::new() }
    }

    /// Listens until `reached` holds after a line; everything in between must pass `allowed`, which asserts.
    pub fn watch(&mut self, what: &str, allowed: impl Fn(&Self), reached: impl Fn(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !reached(self) {
            match self.said.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => self.hear(line),
                Err(RecvTimeoutError::Timeout) => panic!("not reached: {what}\n{}", self.log.join("\n")),
                Err(RecvTimeoutError::Disconnected) => panic!("over before: {what}\n{}", self.log.join("\n")),
            }
            allowed(self);
        }
    }

    pub fn until(&mut self, what: &str, reached: impl Fn(&Self) -> bool) {
        self.watch(what, |_| (), reached);
    }

    /// Until a line contains `text`, from here on.
    pub fn until_said(&mut self, text: &str) {
        let from = self.log.len();
        self.until(text, |ingest| ingest.log[from..].iter().any(|line| line.contains(text)));
    }

    /// Until so many more frames of a camera came.
    pub fn until_frames(&mut self, name: &str, more: u64) {
        let wanted = self.report(name).frames + more;
        self.until(&format!("{more} frames of {name}"), |ingest| ingest.report(name).frames >= wanted);
    }

    fn hear(&mut self, line: String) {
        if let Some((name, report)) = Report::parse(&line) {
            self.reports.insert(name, report);
        }
        self.log.push(line);
    }

    pub fn report(&self, name: &str) -> Report {
        self.reports.get(name).cloned().unwrap_or_default()
    }

    pub fn type_in(&mut self, line: &str) {
        writeln!(self.commands.as_mut().unwrap(), "{line}").unwrap();
    }

    /// What somebody does who has a terminal no longer.
    pub fn close_input(&mut self) {
        self.commands = None;
    }

    pub fn signal(&self, signal: libc::c_int) {
        signal_process(&self.child, signal);
    }

    /// Resident memory, MiB.
    pub fn resident(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<f64>().unwrap() / 1024.0
    }

    /// Standard output, unread so far.
    pub fn standard_output(&mut self) -> std::process::ChildStdout {
        self.child.stdout.take().unwrap()
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.said.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => self.hear(line),
                // It closes its standard error when it ends.
                Err(RecvTimeoutError::Disconnected) => return self.child.wait().unwrap(),
                Err(RecvTimeoutError::Timeout) => panic!("it does not end\n{}", self.log.join("\n")),
            }
        }
    }

    /// Ends it as its user does.
    pub fn quit(&mut self) {
        self.type_in("quit");
        let status = self.wait();
        assert!(status.success(), "{status}\n{}", self.log.join("\n"));
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.jsonl"))
    }

    /// A camera's records from its file.
    pub fn records(&self, name: &str) -> Vec<serde_json::Value> {
        parse_records(std::fs::read_to_string(self.file(name)).unwrap().lines())
    }

    /// Frames are counted on and time never goes back, whatever happened to the connection.
    pub fn assert_continuous(&self, name: &str) {
        let mut last = f64::MIN;
        for (number, record) in self.records(name).iter().enumerate() {
            assert_eq!(record["frame"], number, "{record}");
            assert_eq!(record["element"], name, "{record}");
            let time = record["time"].as_f64().unwrap();
            // The jitter buffer evens times out and gives the same to two frames now and then.
            assert!(time >= last, "{record} comes after {last}");
            last = time;
        }
        assert!(last > 0.0, "{name} has no records");
    }

    /// Everything that it left, to look for what must not be in it.
    pub fn everything(&self) -> String {
        let mut all = self.log.join("\n");
        for entry in std::fs::read_dir(self.folder.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "jsonl") {
                all += &std::fs::read_to_string(path).unwrap();
            }
        }
        all
    }
}

pub fn parse_records<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<serde_json::Value> {
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

impl Drop for Ingest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asserts that a camera has played without a break all the time, and goes on doing so.
pub struct Undisturbed {
    name: &'static str,
    frames: std::cell::Cell<u64>,
}

impl Undisturbed {
    pub fn new(ingest: &Ingest, name: &'static str) -> Self {
        Self { name, frames: ingest.report(name).frames.into() }
    }

    pub fn check(&self, ingest: &Ingest) {
        let report = ingest.report(self.name);
        assert_eq!((report.state.as_str(), report.reconnects), ("playing", 0), "{}", ingest.log.join("\n"));
        assert!(report.frames >= self.frames.get());
        self.frames.set(report.frames);
    }
}
