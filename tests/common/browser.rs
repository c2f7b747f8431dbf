//! A headless browser: what a page becomes once its script has run, and what it looks like.
#![allow(dead_code)]

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Of the page's own clock, which stands still while it waits for an answer.
const BUDGET: &str = "--virtual-time-budget=6000";
const PATIENCE: Duration = Duration::from_secs(90);

fn program() -> Option<&'static str> {
    let runs = |program: &&str| {
        let version = Command::new(program).arg("--version").stdin(Stdio::null()).output();
        version.is_ok_and(|output| output.status.success())
    };
    ["chromium", "chromium-browser", "google-chrome"].into_iter().find(runs)
}

/// `None` where there is no browser.
pub struct Browser {
    program: &'static str,
}

impl Browser {
    pub fn find() -> Option<Self> {
        program().map(|program| Self { program })
    }

    fn run(&self, arguments: &[&str], url: &str) -> String {
        let scratch = tempfile::tempdir().unwrap();
        let (out, log) = (scratch.path().join("out"), scratch.path().join("log"));
        let mut child = Command::new(self.program)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--no-first-run",
                BUDGET,
            ])
            // Nothing is to be asked of anybody but of the page's server.
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .arg(format!("--user-data-dir={}", scratch.path().join("profile").display()))
            .args(arguments)
            .arg(url)
            .stdin(Stdio::null())
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if Instant::now() >= deadline {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let log = std::fs::read_to_string(log).unwrap_or_default();
        assert!(status.is_some_and(|status| status.success()), "{url}: {status:?}: {log}");
        String::from_utf8_lossy(&std::fs::read(out).unwrap()).into_owned()
    }

    /// The document after some seconds of its own time.
    pub fn document(&self, url: &str) -> String {
        self.run(&["--dump-dom"], url)
    }

    pub fn screenshot(&self, url: &str, (width, height): (u32, u32), dark: bool, file: &Path) {
        let _ = std::fs::remove_file(file);
        let mut arguments =
            vec![format!("--window-size={width},{height}"), format!("--screenshot={}", file.display())];
        if dark {
            arguments.push("--blink-settings=preferredColorScheme=0".into());
        }
        self.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), url);
        // The signature, the header chunk's length and name, then the size.
        let picture = std::fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let number = |at: usize| u32::from_be_bytes(picture[at..at + 4].try_into().unwrap());
        assert_eq!((number(16), number(20)), (width, height), "{}", file.display());
    }
}
