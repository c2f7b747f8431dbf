//! Has an entry written by a process apart: what that takes of memory is gone with it, and is not this process's.
//!
//! The program is `yolodetect-optimize`, beside this plugin's own file or else in `PATH`. It runs after the load that it
//! spares the next start, at a low priority, one at a time, only where memory stays nominal with it there, and not for
//! ever. Nobody waits for it but a thread of its own.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Cache, Entry, Figures, Key, Note, Readers, store, system};
use crate::decode::Head;
use crate::engine::estimate::Estimate;
use crate::memory::budget::HOST;
use crate::memory::pressure::{Level, Levels, Thresholds};
use crate::memory::sample::{Sample, SystemSampler};

pub const PROGRAM: &str = "yolodetect-optimize";
/// The longest that it may take.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// After the load: by then there are the decoders and pools that belong to it, so that room is judged beside them.
const DELAY: Duration = Duration::from_secs(3);
/// Of its answers, so many are passed on.
const MOST_LINES: usize = 20;
/// And of the last, in a message, so many characters.
const LONGEST_LINE: usize = 300;

/// An entry that is missing.
pub struct Order {
    pub model: PathBuf,
    pub library: PathBuf,
    pub key: Key,
    pub head: Option<Head>,
    /// Of the load that it is ordered after. What that took of memory was measured beside all else that this process did, and
    /// is not handed on.
    pub figures: Figures,
}

/// Has it written some time soon, or tells why not.
pub fn start(cache: &Cache, order: Order) {
    let told = cache.clone();
    let thread = thread::Builder::new().name("yolo-cache".into());
    if let Err(error) = thread.spawn(move || {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        thread::sleep(DELAY);
        let turn = ONE_AT_A_TIME.lock();
        let outcome = write(&told, &order, PATIENCE);
        drop(turn);
        (told.tell)(match outcome {
            Ok(()) => Note::Fine(format!("{} was written to {}", order.model.display(), told.folder.display())),
            Err(reason) => Note::Failed(format!(
                "the optimised form of {} is not kept in {}, so that the next start will take as long: {reason}",
                order.model.display(),
                told.folder.display()
            )),
        });
    }) {
        (cache.tell)(Note::Failed(format!("there is no thread to have the cache written: {error}")));
    }
}

fn write(cache: &Cache, order: &Order, patience: Duration) -> Result<(), String> {
    let program = find().ok_or_else(|| {
        format!("the program {PROGRAM} is neither beside the plugin nor in PATH; install it with the plugin")
    })?;
    // Entries are opened by it.
    if !Path::new("/proc/self/fd").is_dir() {
        return Err("there is no /proc/self/fd".into());
    }
    let absolute = |path: &Path| std::path::absolute(path).map_err(|error| error.to_string());
    let folder = absolute(&cache.folder)?;
    if let Some(file) = store::failed_lately(&folder, &order.key) {
        return Err(format!(
            "it was tried less than a day ago, and {} says what happened; without that file it is tried again",
            file.display()
        ));
    }
    let length = fs::metadata(&order.model).map_err(|error| error.to_string())?.len();
    let frames = order.figures.frames as u64;
    room(need(length).max(Estimate::of_file(&order.model).need(frames, 1).total()), look())?;
    // Here, so that nothing is loaded in vain.
    store::Draft::new(&folder, Readers::Nobody).map_err(|error| format!("it cannot be written: {error}"))?;
    match run(&program, cache, order, patience) {
        Ok(true) => Ok(()),
        // How it ended is not known, or not its own fault.
        Ok(false) => Entry::open(&folder, &order.key)
            .map(drop)
            .map_err(|rejected| format!("{PROGRAM} has ended, but of an entry, {rejected}")),
        Err(reason) => {
            // Where that cannot be kept, it is tried again.
            let _ = store::note_failure(&folder, &order.key, &reason);
            Err(reason)
        }
    }
}

/// Until the program has ended. Whether that it went well is known.
fn run(program: &Path, cache: &Cache, order: &Order, patience: Duration) -> Result<bool, String> {
    let absolute = |path: &Path| std::path::absolute(path).map_err(|error| error.to_string());
    let known = &order.figures;
    let mut command = Command::new(program);
    command
        .arg("--background")
        .arg("--cache")
        .arg(absolute(&cache.folder)?)
        .arg("--onnxruntime-library")
        .arg(absolute(&order.library)?)
        .args(["--key", &order.key.name()])
        .args(["--threads", &known.threads.to_string(), "--max-batch", &known.frames.to_string()])
        .args(["--warm-run", &known.warm_run.as_nanos().to_string()])
        .args(order.head.iter().flat_map(|head| ["--head", head.nick()]))
        .arg("--")
        .arg(absolute(&order.model)?)
        .env_clear()
        // Without it the program may not find the libraries that this process has.
        .envs(env::var_os("LD_LIBRARY_PATH").map(|path| ("LD_LIBRARY_PATH", path)))
        .current_dir("/")
        // An interrupt of the terminal is meant for the pipeline.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child =
        command.spawn().map_err(|error| format!("{} does not start: {error}", program.display()))?;
    let (sender, last_line) = mpsc::channel();
    if let Some(stderr) = child.stderr.take() {
        let cache = cache.clone();
        let thread = thread::Builder::new().name("yolo-cache-log".into());
        // Without it, what the program says is lost. Not waited for long: whoever has the pipe may keep it.
        let _ = thread.spawn(move || sender.send(pass_on(stderr, &cache)));
    }
    wait(&mut child, patience).map_err(|reason| match last_line.recv_timeout(Duration::from_secs(1)) {
        Ok(Some(line)) => format!("{reason}: {line}"),
        _ => reason,
    })
}

/// Bytes that writing takes: the model as it is read, as it is parsed and as it is optimised, and ONNX Runtime's own. A
/// model of YOLO11l's size, 101 MB, takes 300, YOLO12n's 11 take 60.
fn need(length: u64) -> u64 {
    length.saturating_mul(4).saturating_add(50_000_000)
}

fn look() -> Sample {
    let mut sampler = SystemSampler::default();
    Sample { cgroup: sampler.container(), system: sampler.system(), ..Default::default() }
}

/// Whether memory stays nominal with so much more taken of it. What this process holds does not count, but for a budget.
fn room(need: u64, mut sample: Sample) -> Result<(), String> {
    let beyond =
        |whose: &str| Err(format!("writing it takes {} MB, which {whose} has no room for", need / 1_000_000));
    if HOST.room().is_some_and(|room| room < need) {
        return beyond("memory-budget");
    }
    let mut levels = Levels::default();
    let mut nominal = |sample: &Sample| {
        levels.observe(sample, &Thresholds::default(), Instant::now());
        levels.level() == Level::Nominal
    };
    if !nominal(&sample) {
        return Err("memory is short".into());
    }
    if let Some(container) = &mut sample.cgroup {
        container.used = container.used.saturating_add(need);
    }
    if let Some(system) = &mut sample.system {
        system.available = system.available.saturating_sub(need);
    }
    if nominal(&sample) { Ok(()) } else { beyond("the container or the machine") }
}

/// The program to run.
fn find() -> Option<PathBuf> {
    let own = system::object_file(find as *const () as usize);
    let real = own.as_ref().and_then(|own| own.canonicalize().ok());
    let beside = [own, real].into_iter().flatten().filter_map(|file| Some(file.parent()?.to_path_buf()));
    let path = env::var_os("PATH").unwrap_or_default();
    beside.chain(env::split_paths(&path)).find_map(|folder| program_in(&folder))
}

/// A relative folder is another one in each place, and not looked into.
fn program_in(folder: &Path) -> Option<PathBuf> {
    let program = folder.join(PROGRAM);
    let data = fs::metadata(&program).ok().filter(|_| folder.is_absolute())?;
    (data.is_file() && data.permissions().mode() & 0o111 != 0).then_some(program)
}

/// Until it has ended, by itself or because it took too long. Whether that it went well is known.
fn wait(child: &mut Child, patience: Duration) -> Result<bool, String> {
    const STEP: Duration = Duration::from_millis(20);
    let deadline = Instant::now() + patience;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(true),
            // Somebody wants it to end, which says nothing about the next time.
            Ok(Some(status))
                if matches!(status.signal(), Some(libc::SIGHUP | libc::SIGINT | libc::SIGTERM)) =>
            {
                return Ok(false);
            }
            Ok(Some(status)) => return Err(format!("{PROGRAM} failed ({status})")),
            Ok(None) if Instant::now() < deadline => thread::sleep(STEP),
            Ok(None) => {
                // It cannot refuse.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{PROGRAM} took longer than {patience:?} and was ended"));
            }
            // The application waits for whatever ends, or has the system do so: how it ended is not to be known.
            Err(_) => return Ok(false),
        }
    }
}

/// Reads to the end, so that it is never held up, and tells the first lines. The last one.
fn pass_on(stderr: impl Read, cache: &Cache) -> Option<String> {
    let lines = BufReader::new(stderr.take(1 << 20)).split(b'\n').map_while(Result::ok);
    let mut last = None;
    for (count, line) in lines.enumerate() {
        if count < MOST_LINES {
            (cache.tell)(Note::Fine(format!("{PROGRAM}: {}", String::from_utf8_lossy(&line))));
        }
        last = Some(line);
    }
    last.map(|line| String::from_utf8_lossy(&line).chars().take(LONGEST_LINE).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::sample::{Cgroup, System};

    #[test]
    fn it_is_written_where_memory_stays_nominal_with_it() {
        let need = need(101_000_000);
        assert!((300_000_000..600_000_000).contains(&need));
        assert_eq!(super::need(u64::MAX), u64::MAX);
        let sample = |used: u64, available: u64| Sample {
            cgroup: Some(Cgroup { used, limit: 1_000_000_000, stall: None }),
            system: Some(System { total: 16_000_000_000, available, stall: None }),
            ..Default::default()
        };
        assert_eq!(room(need, Sample::default()), Ok(()), "nothing is known");
        assert_eq!(room(need, sample(200_000_000, 12_000_000_000)), Ok(()));
        for (used, available, reason) in [
            (400_000_000, 12_000_000_000, "no room"),
            (200_000_000, 3_400_000_000, "no room"),
            (800_000_000, 12_000_000_000, "memory is short"),
        ] {
            let why = room(need, sample(used, available)).unwrap_err();
            assert!(why.contains(reason), "{used} {available}: {why}");
        }
    }

    #[test]
    fn what_takes_too_long_is_ended_and_leaves_nothing() {
        let mut child = Command::new("sleep").arg("3600").spawn().unwrap();
        let process = PathBuf::from(format!("/proc/{}", child.id()));
        assert!(process.exists());
        let why = wait(&mut child, Duration::from_millis(50)).unwrap_err();
        assert!(why.contains("longer than 50ms") && !process.exists(), "{why}");
    }

    #[test]
    fn the_program_is_a_file_that_can_be_run_in_a_folder_that_is_no_matter_of_place() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join(PROGRAM);
        let found = || program_in(folder.path());
        assert_eq!(found(), None);
        fs::write(&program, "").unwrap();
        assert_eq!(found(), None, "it cannot be run");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(found(), Some(program));
        assert_eq!(program_in(Path::new("")), None);
    }
}
