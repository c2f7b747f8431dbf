//! All cameras together: starts and stops them, follows commands and signals, and tells how it goes.
//!
//! Everything that is printed goes through here, by one thread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use crate::arguments::Options;
use crate::camera::{Camera, Common, News};
use crate::cameras::{Entry, List, check_name};
use crate::commands::{self, Command};
use crate::console::Console;
use crate::interrupt;
use crate::memory;
use crate::status::{Line, State};
use crate::tail::Output;

/// How soon a signal is noticed.
const TICK: Duration = Duration::from_millis(200);

/// A camera that does not stop within this is left to the process's end.
const FAREWELL: Duration = Duration::from_secs(10);

/// Frames of each camera at a time.
struct Count {
    at: Instant,
    frames: BTreeMap<String, u64>,
}

impl Count {
    /// Frames a second since then.
    fn speed(&self, name: &str, frames: u64) -> f64 {
        let before = self.frames.get(name).copied().unwrap_or(0);
        frames.saturating_sub(before) as f64 / self.at.elapsed().as_secs_f64().max(TICK.as_secs_f64())
    }
}

enum Input {
    Command(String),
    Camera(String, News),
    OutputClosed,
}

struct Fleet {
    cameras: BTreeMap<String, Camera>,
    common: Common,
    credentials: Option<crate::address::Credentials>,
    console: Console,
    inputs: Sender<Input>,
    /// At the two latest reports of those that are due; speeds are since the earlier one.
    counted: [Count; 2],
}

pub fn run(options: Options) -> Result<(), String> {
    interrupt::listen();
    let (sender, inputs) = mpsc::channel();
    let end = options.duration.map(|duration| Instant::now() + duration);
    let mut fleet = Fleet {
        cameras: BTreeMap::new(),
        common: Common {
            connection: options.connection,
            detection: options.detection,
            output: output(options.out, &sender)?,
            patience: options.patience,
        },
        credentials: options.credentials,
        console: Console::new(),
        inputs: sender.clone(),
        counted: std::array::from_fn(|_| Count { at: Instant::now(), frames: BTreeMap::new() }),
    };
    let started = options.cameras.into_iter().try_for_each(|entry| fleet.add(entry));
    let outcome = started.and_then(|()| {
        commands::listen(move |line| {
            // Fails when all is over.
            let _ = sender.send(Input::Command(line));
        });
        fleet.attend(&inputs, options.status_interval, end)
    });
    fleet.stop(&inputs);
    outcome
}

fn output(folder: Option<std::path::PathBuf>, inputs: &Sender<Input>) -> Result<Output, String> {
    let Some(folder) = folder else {
        let inputs = inputs.clone();
        return Ok(Output::Standard(Arc::new(move || {
            let _ = inputs.send(Input::OutputClosed);
        })));
    };
    std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(Output::Folder(folder))
}

impl Fleet {
    /// Until somebody or something ends it.
    fn attend(
        &mut self,
        inputs: &Receiver<Input>,
        interval: Duration,
        end: Option<Instant>,
    ) -> Result<(), String> {
        let mut due = Instant::now() + interval;
        while !interrupt::requested() && end.is_none_or(|end| Instant::now() < end) {
            match inputs.recv_timeout(TICK.min(interval)) {
                Ok(Input::Command(line)) => {
                    self.console.typed();
                    match commands::parse(&line) {
                        Ok(Command::Quit) => break,
                        Ok(command) => self.obey(command),
                        Err(reason) => self.console.say(&format!("error: {reason}")),
                    }
                }
                Ok(Input::Camera(name, news)) => self.hear(&name, news),
                Ok(Input::OutputClosed) => return Err("standard output is closed".into()),
                // We hold a sender ourselves.
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => (),
            }
            if Instant::now() >= due {
                due = Instant::now() + interval;
                self.report();
                self.count();
            }
        }
        Ok(())
    }

    fn add(&mut self, entry: Entry) -> Result<(), String> {
        let (inputs, name) = (self.inputs.clone(), entry.name.clone());
        let tell = move |news| {
            // Fails when all is over.
            let _ = inputs.send(Input::Camera(name.clone(), news));
        };
        self.console.say(&format!("{}: connecting to {}", entry.name, entry.address));
        let camera = Camera::start(entry, &self.common, tell)?;
        self.cameras.insert(camera.entry.name.clone(), camera);
        Ok(())
    }

    fn obey(&mut self, command: Command) {
        let outcome = match command {
            Command::Add { name, uri } => self.add_by_command(&name, &uri),
            Command::Remove { name } => match self.cameras.get(&name) {
                Some(camera) => {
                    camera.stop();
                    Ok(())
                }
                None => Err(format!("there is no camera {name}")),
            },
            Command::List => {
                for Camera { entry, .. } in self.cameras.values() {
                    self.console.say(&format!("{}={}", entry.name, entry.address));
                }
                Ok(())
            }
            Command::Status => {
                self.report();
                Ok(())
            }
            Command::Quit | Command::Nothing => Ok(()),
        };
        if let Err(reason) = outcome {
            self.console.say(&format!("error: {reason}"));
        }
    }

    fn add_by_command(&mut self, name: &str, uri: &str) -> Result<(), String> {
        check_name(name)?;
        match self.cameras.get(name).map(|camera| camera.status.get().state) {
            Some(State::Stopping) => return Err(format!("{name} is still stopping; try again in a moment")),
            Some(_) => return Err(format!("there is a camera {name} already")),
            None => (),
        }
        let mut list = List { credentials: self.credentials.clone(), ..List::default() };
        list.add(&format!("{name}={uri}"))?;
        list.entries.into_iter().try_for_each(|entry| self.add(entry))
    }

    fn hear(&mut self, name: &str, news: News) {
        match news {
            News::Said(text) => self.console.say(&format!("{name}: {text}")),
            News::Gone => {
                self.cameras.remove(name);
                self.console.say(&format!("{name}: removed"));
            }
        }
    }

    fn count(&mut self) {
        let cameras = self.cameras.iter();
        let frames = cameras.map(|(name, camera)| (name.clone(), camera.status.get().came)).collect();
        self.counted.swap(0, 1);
        self.counted[1] = Count { at: Instant::now(), frames };
    }

    /// A line for each camera, and one for all.
    fn report(&mut self) {
        let width = self.cameras.keys().map(String::len).max().unwrap_or(0);
        let (mut lines, mut all, mut playing) = (Vec::new(), 0.0, 0);
        for (name, camera) in &self.cameras {
            let known = camera.status.get();
            let speed = self.counted[0].speed(name, known.came);
            all += speed;
            playing += usize::from(known.state == State::Playing);
            let (counts, size) = (camera.tail.counts(), camera.tail.picture_size());
            lines.push(Line { name, known, counts, size, speed }.text(width));
        }
        let memory = memory::resident();
        lines.push(format!("{playing} of {} playing, {all:.1} fps, {memory:.1} MiB", self.cameras.len()));
        self.console.show(&lines);
    }

    /// Ends all cameras at the same time, and tells how it was.
    fn stop(&mut self, inputs: &Receiver<Input>) {
        if !self.cameras.is_empty() {
            self.report();
        }
        self.cameras.values().for_each(Camera::stop);
        let end = Instant::now() + FAREWELL;
        while !self.cameras.is_empty() {
            match inputs.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(Input::Camera(name, News::Gone)) => {
                    self.cameras.remove(&name);
                }
                Ok(_) => (),
                Err(_) => break,
            }
        }
        for name in self.cameras.keys() {
            self.console.say(&format!("{name}: does not stop; its latest records may be missing"));
        }
    }
}
