//! One entry: an optimised graph, its weights in a file of their own, which ONNX Runtime maps, and a manifest.
//!
//! What is trusted: the folder and each file belong to this user or to root, and nobody else may write to them; the
//! manifest's last line is the checksum of what stands above it; it names the key that was asked for; each file has the length
//! and the checksum (XXH3, 128 bits) that it says. What was looked at is what is loaded: everything goes through one
//! descriptor of the folder, whatever its name leads to meanwhile.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Value, json};
use thiserror::Error;

use super::figures::Figures;
use super::key::Key;
use super::system;
use crate::engine::hash;

pub const GRAPH: &str = "graph.onnx";
/// Not there where a model has next to none.
pub const WEIGHTS: &str = "weights.bin";
const MANIFEST: &str = "manifest";
/// In messages.
const FOLDER: &str = "the folder";
/// Far more than any has.
const LONGEST_MANIFEST: u64 = 1 << 20;

/// Why an entry is not used.
#[derive(Debug, Error)]
pub enum Rejected {
    #[error("there is none")]
    Missing,
    #[error("{0} cannot be read: {1}")]
    Unreadable(&'static str, io::Error),
    #[error("{0} belongs to the user {1}, who is neither this process's nor root")]
    Owner(&'static str, u32),
    #[error("{0} may be written to by others (mode {1:o})")]
    Mode(&'static str, u32),
    #[error("{0} is not as it was written")]
    Damaged(&'static str),
    #[error("it is on a network or FUSE file system, from where pages may not come")]
    Remote,
    #[error("it is another model's, or of another ONNX Runtime or processor")]
    OtherKey,
}

/// Who may read an entry besides its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    Nobody,
    /// Everybody: it is prepared for other users' processes, which trust it where it is root's.
    Everybody,
}

impl Readers {
    /// Of folders.
    pub fn folder_mode(self) -> u32 {
        match self {
            Self::Nobody => 0o700,
            Self::Everybody => 0o755,
        }
    }

    fn file_mode(self) -> u32 {
        self.folder_mode() & 0o666
    }
}

/// A good entry.
#[derive(Debug)]
pub struct Entry {
    /// For messages: what it is called now.
    folder: PathBuf,
    /// Keeps the content reachable, also where the entry is replaced or removed.
    opened: File,
    figures: Figures,
}

impl Entry {
    /// Looks at every byte.
    ///
    /// # Errors
    /// Why it cannot be trusted.
    pub fn open(cache: &Path, key: &Key) -> Result<Self, Rejected> {
        Self::at(cache.join(key.name()), key)
    }

    /// As [`Self::open`], of an entry that has another name, such as one that is not published yet.
    ///
    /// # Errors
    /// Why it cannot be trusted.
    pub fn at(folder: PathBuf, key: &Key) -> Result<Self, Rejected> {
        let opened = open(FOLDER, &folder)?;
        if !trusted(FOLDER, &opened)?.is_dir() {
            return Err(Rejected::Damaged(FOLDER));
        }
        if system::is_remote(&opened) {
            return Err(Rejected::Remote);
        }
        let manifest = manifest(&opened)?;
        if manifest.get("key").and_then(Value::as_str) != Some(key.text()) {
            return Err(Rejected::OtherKey);
        }
        let files = manifest.get("files").ok_or(Rejected::Damaged(MANIFEST))?;
        for name in [GRAPH, WEIGHTS] {
            match files.get(name) {
                Some(said) => check(&opened, name, said)?,
                None if name == WEIGHTS => (),
                None => return Err(Rejected::Damaged(MANIFEST)),
            }
        }
        let figures =
            manifest.get("figures").and_then(Figures::from_json).ok_or(Rejected::Damaged(MANIFEST))?;
        Ok(Self { folder, opened, figures })
    }

    /// What it is called, or was when it was opened.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Of the very files that were looked at, for as long as this lives.
    pub fn graph(&self) -> PathBuf {
        within(&self.opened, GRAPH)
    }

    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// Puts it behind all others in the line of those that go when there are too many.
    pub fn used_now(&self) {
        // Root's is left as it is.
        let _ = self.opened.set_modified(SystemTime::now());
    }
}

/// Leads to the folder that was opened, whatever has its name by now.
fn within(folder: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))
}

fn manifest(folder: &File) -> Result<Value, Rejected> {
    let file = open(MANIFEST, &within(folder, MANIFEST))?;
    let mut text = String::new();
    if !trusted(MANIFEST, &file)?.is_file() || file.take(LONGEST_MANIFEST).read_to_string(&mut text).is_err()
    {
        return Err(Rejected::Damaged(MANIFEST));
    }
    let content = text.split_once('\n').filter(|(content, sum)| *sum == checksum_line(content));
    content.and_then(|(content, _)| serde_json::from_str(content).ok()).ok_or(Rejected::Damaged(MANIFEST))
}

fn check(folder: &File, name: &'static str, said: &Value) -> Result<(), Rejected> {
    let mut file = open(name, &within(folder, name))?;
    let data = trusted(name, &file)?;
    if !data.is_file() || said.get("bytes").and_then(Value::as_u64) != Some(data.len()) {
        return Err(Rejected::Damaged(name));
    }
    let sum = hash::checksum(&mut file).map_err(|error| Rejected::Unreadable(name, error))?;
    match said.get("xxh3").and_then(Value::as_str) {
        Some(said) if said == hex(sum) => Ok(()),
        _ => Err(Rejected::Damaged(name)),
    }
}

/// Makes a folder that ONNX Runtime has written graph and weights to an entry that [`Entry::open`] takes.
pub fn complete(folder: &Path, key: &Key, figures: &Figures, readers: Readers) -> io::Result<()> {
    let mut files = serde_json::Map::new();
    for name in [GRAPH, WEIGHTS] {
        let path = folder.join(name);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if name == WEIGHTS && error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        // Whatever the process's mask is.
        fs::set_permissions(&path, Permissions::from_mode(readers.file_mode()))?;
        let sum = hash::checksum(&mut file)?;
        files.insert(name.into(), json!({ "bytes": file.metadata()?.len(), "xxh3": hex(sum) }));
    }
    let content = json!({ "key": key.text(), "files": files, "figures": figures.to_json() }).to_string();
    let mut options = OpenOptions::new();
    let mut manifest = options.write(true).create_new(true).mode(0o600).open(folder.join(MANIFEST))?;
    write!(manifest, "{content}\n{}", checksum_line(&content))?;
    manifest.set_permissions(Permissions::from_mode(readers.file_mode()))?;
    fs::set_permissions(folder, Permissions::from_mode(readers.folder_mode()))
}

fn checksum_line(content: &str) -> String {
    hex(hash::of(content.as_bytes())) + "\n"
}

fn hex(sum: u128) -> String {
    format!("{sum:032x}")
}

fn open(what: &'static str, path: &Path) -> Result<File, Rejected> {
    // Something else than a file, such as a pipe, must not keep us waiting.
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(|error| {
        match error.kind() {
            io::ErrorKind::NotFound if what == FOLDER => Rejected::Missing,
            _ => Rejected::Unreadable(what, error),
        }
    })
}

fn trusted(what: &'static str, file: &File) -> Result<fs::Metadata, Rejected> {
    let data = file.metadata().map_err(|error| Rejected::Unreadable(what, error))?;
    trust(what, data.uid(), data.mode(), system::user())?;
    Ok(data)
}

fn trust(what: &'static str, owner: u32, mode: u32, user: u32) -> Result<(), Rejected> {
    const BY_OTHERS: u32 = 0o022;
    const ROOT: u32 = 0;
    if owner != user && owner != ROOT {
        return Err(Rejected::Owner(what, owner));
    }
    if mode & BY_OTHERS != 0 {
        return Err(Rejected::Mode(what, mode & 0o7777));
    }
    Ok(())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::engine::cache::figures::tests::figures;
    use std::os::unix::fs::symlink;

    pub fn key(model: u128) -> Key {
        Key::new(model, "1.31.1", "x86_64")
    }

    /// An entry of this key with so many bytes of weights.
    pub fn write(cache: &Path, key: &Key, weights: usize) -> PathBuf {
        let folder = cache.join(key.name());
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(GRAPH), b"graph").unwrap();
        if weights > 0 {
            fs::write(folder.join(WEIGHTS), vec![7; weights]).unwrap();
        }
        complete(&folder, key, &figures(), Readers::Nobody).unwrap();
        folder
    }

    #[test]
    fn a_sound_entry_is_read_as_it_was_written() {
        for weights in [0, 1, 1 << 20] {
            let cache = tempfile::tempdir().unwrap();
            assert!(matches!(Entry::open(cache.path(), &key(1)), Err(Rejected::Missing)));
            let folder = write(cache.path(), &key(1), weights);
            let entry = Entry::open(cache.path(), &key(1)).unwrap();
            assert_eq!((entry.figures(), entry.folder()), (&figures(), folder.as_path()));
            assert!(matches!(Entry::open(cache.path(), &key(2)), Err(Rejected::Missing)));
            // What was looked at stays in reach, and it alone.
            fs::rename(&folder, cache.path().join("moved")).unwrap();
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join(GRAPH), b"other").unwrap();
            assert_eq!(fs::read(entry.graph()).unwrap(), b"graph");
        }
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        let cache = tempfile::tempdir().unwrap();
        let folder = write(cache.path(), &key(1), 3);
        for name in [GRAPH, WEIGHTS, MANIFEST] {
            let file = folder.join(name);
            let sound = fs::read(&file).unwrap();
            let rejected = |bytes: &[u8]| {
                fs::write(&file, bytes).unwrap();
                assert!(matches!(Entry::open(cache.path(), &key(1)), Err(Rejected::Damaged(_))), "{name}");
            };
            for at in 0..sound.len() {
                for bit in [1, 0x20, 0x80] {
                    let mut bytes = sound.clone();
                    bytes[at] ^= bit;
                    rejected(&bytes);
                }
                rejected(&sound[..at]);
            }
            rejected(&[&sound[..], b"\n"].concat());
            fs::write(&file, &sound).unwrap();
            assert!(Entry::open(cache.path(), &key(1)).is_ok());
            fs::remove_file(&file).unwrap();
            assert!(matches!(Entry::open(cache.path(), &key(1)), Err(Rejected::Unreadable(..))), "{name}");
            // Neither of these is a file; the one would be waited for.
            fs::create_dir(&file).unwrap();
            assert!(Entry::open(cache.path(), &key(1)).is_err());
            fs::remove_dir(&file).unwrap();
            let made = std::process::Command::new("mkfifo").arg("-m600").arg(&file).status().unwrap();
            assert!(made.success() && Entry::open(cache.path(), &key(1)).is_err());
            fs::remove_file(&file).unwrap();
            fs::write(&file, &sound).unwrap();
            fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        }
        assert!(Entry::open(cache.path(), &key(1)).is_ok());
    }

    #[test]
    fn a_sound_entry_under_another_s_name_is_refused() {
        let cache = tempfile::tempdir().unwrap();
        let folder = write(cache.path(), &key(1), 3);
        symlink(&folder, cache.path().join(key(2).name())).unwrap();
        assert!(matches!(Entry::open(cache.path(), &key(2)), Err(Rejected::OtherKey)));
        fs::write(cache.path().join(key(3).name()), b"").unwrap();
        assert!(matches!(Entry::open(cache.path(), &key(3)), Err(Rejected::Damaged(_) | Rejected::Mode(..))));
        assert!(Entry::open(&folder.join(GRAPH), &key(1)).is_err(), "the cache is a file");
    }

    #[test]
    fn what_others_may_write_to_is_refused() {
        let cache = tempfile::tempdir().unwrap();
        let folder = write(cache.path(), &key(1), 3);
        for path in [folder.clone(), folder.join(GRAPH), folder.join(WEIGHTS), folder.join(MANIFEST)] {
            let sound = fs::metadata(&path).unwrap().permissions();
            for mode in [0o720, 0o702] {
                fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
                let rejected = Entry::open(cache.path(), &key(1)).unwrap_err();
                assert!(matches!(rejected, Rejected::Mode(_, is) if is == mode), "{rejected}");
            }
            fs::set_permissions(&path, sound).unwrap();
        }
        assert!(Entry::open(cache.path(), &key(1)).is_ok());
        // To give a file away takes more rights than a test has.
        for (owner, mode, user, good) in [
            (1000, 0o700, 1000, true),
            (0, 0o755, 1000, true),
            (1001, 0o700, 1000, false),
            (1000, 0o700, 0, false),
            (1000, 0o770, 1000, false),
        ] {
            assert_eq!(trust(GRAPH, owner, mode, user).is_ok(), good, "{owner} {mode:o} {user}");
        }
    }
}
