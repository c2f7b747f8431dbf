//! Puts entries into the cache and takes the oldest out. Several processes may do so at the same time.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::entry::{self, Entry, Readers};
use super::figures::Figures;
use super::key::{Key, is_name};
use super::system;

/// Most bytes that all entries of a cache have together; a single one may be larger.
pub const LIMIT: u64 = 2_000_000_000;
/// Of folders that are not entries yet, or no longer.
const PREFIX: &str = ".yolodetect-";
/// What a writer that is still at work is never old enough for.
const ABANDONED: Duration = Duration::from_secs(3600);
/// Behind the name of an entry that could not be written.
const FAILED: &str = ".failed";
/// When it is tried again.
const FORGOTTEN: Duration = Duration::from_secs(24 * 3600);

/// A folder for an entry that is being written; gone with this unless it was published.
pub struct Draft {
    cache: PathBuf,
    folder: PathBuf,
    readers: Readers,
}

impl Draft {
    /// Makes the cache too, where there is none.
    pub fn new(cache: &Path, readers: Readers) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(readers.folder_mode()).create(cache)?;
        let folder = spare(cache);
        // Fails where it is there already, whoever made it.
        DirBuilder::new().mode(0o700).create(&folder)?;
        let draft = Self { cache: cache.into(), folder, readers };
        if system::is_remote(&File::open(&draft.folder)?) {
            return Err(io::Error::other(entry::Rejected::Remote));
        }
        Ok(draft)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Gives it its manifest, after which it can be opened where it is.
    pub fn complete(&self, key: &Key, figures: &Figures) -> io::Result<()> {
        entry::complete(&self.folder, key, figures, self.readers)
    }

    /// Gives the entry, which is complete, its name, at once. Where another process was faster, its entry stays if it is good;
    /// whoever has one open keeps it in any case.
    pub fn publish(self, key: &Key) -> io::Result<()> {
        let _ = fs::remove_file(failure(&self.cache, key));
        let place = self.cache.join(key.name());
        // More than once only where others publish at the same time.
        for _ in 0..8 {
            match fs::rename(&self.folder, &place) {
                Ok(()) => return Ok(()),
                Err(_) if Entry::open(&self.cache, key).is_ok() => return Ok(()),
                Err(error) if fs::symlink_metadata(&place).is_err() => return Err(error),
                Err(_) => discard(&self.cache, key)?,
            }
        }
        Err(io::Error::other("others write the same entry all the time"))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Not there any more where it was published.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn spare(cache: &Path) -> PathBuf {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    cache.join(format!("{PREFIX}{}-{}", std::process::id(), now.as_nanos()))
}

/// Removes an entry of this user's, which is never half there under its name.
///
/// # Errors
/// Another user's entry stays, too.
pub fn discard(cache: &Path, key: &Key) -> io::Result<()> {
    remove(cache, &cache.join(key.name()))
}

fn remove(cache: &Path, place: &Path) -> io::Result<()> {
    let owner = match fs::symlink_metadata(place) {
        Ok(data) => data.uid(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if owner != system::user() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("it is of the user {owner}")));
    }
    let spare = spare(cache);
    match fs::rename(place, &spare) {
        Ok(()) => match fs::symlink_metadata(&spare)?.is_dir() {
            true => fs::remove_dir_all(&spare),
            false => fs::remove_file(&spare),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Where it says why the entry could not be written.
fn failure(cache: &Path, key: &Key) -> PathBuf {
    cache.join(key.name() + FAILED)
}

/// Keeps others from trying the same in vain, for a day.
pub fn note_failure(cache: &Path, key: &Key, reason: &str) -> io::Result<()> {
    let file = failure(cache, key);
    let _ = fs::remove_file(&file);
    // Whatever else has that name is not followed.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    writeln!(file, "{reason}")
}

/// The file that says why, where that was tried less than a day ago.
pub fn failed_lately(cache: &Path, key: &Key) -> Option<PathBuf> {
    let file = failure(cache, key);
    let data = fs::symlink_metadata(&file).ok()?;
    // A time to come is none that it can have been written at.
    let lately = data.modified().ok()?.elapsed().is_ok_and(|age| age < FORGOTTEN);
    (lately && data.is_file() && data.uid() == system::user()).then_some(file)
}

/// Takes entries out, those first that were not used for longest, until the others have `limit` bytes at most; `keep` stays.
/// What writers have left behind that were killed goes too. Only this user's folders are looked at. The bytes that are left.
pub fn tidy(cache: &Path, limit: u64, keep: &Key) -> io::Result<u64> {
    let mut entries = Vec::new();
    for found in fs::read_dir(cache)? {
        let Ok(found) = found else { continue };
        let (Ok(data), name) = (found.metadata(), found.file_name()) else { continue };
        let Some(name) = name.to_str().filter(|_| data.uid() == system::user()) else { continue };
        let modified = data.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let older = |than| modified.elapsed().is_ok_and(|age| age > than);
        if !data.is_dir() {
            if name.strip_suffix(FAILED).is_some_and(is_name) && older(FORGOTTEN) {
                let _ = fs::remove_file(found.path());
            }
        } else if is_name(name) {
            entries.push((name != keep.name(), modified, bytes(&found.path()), found.path()));
        } else if name.starts_with(PREFIX) && older(ABANDONED) {
            let _ = fs::remove_dir_all(found.path());
        }
    }
    // The one to keep is first.
    entries.sort();
    let mut left = entries.iter().fold(0, |sum: u64, (.., bytes, _)| sum.saturating_add(*bytes));
    for (_, _, bytes, path) in entries.iter().filter(|(can_go, ..)| *can_go) {
        if left <= limit {
            break;
        }
        if remove(cache, path).is_ok() {
            left -= bytes;
        }
    }
    Ok(left)
}

fn bytes(entry: &Path) -> u64 {
    let Ok(files) = fs::read_dir(entry) else { return 0 };
    files
        .flatten()
        .filter_map(|file| file.metadata().ok())
        .fold(0, |sum, data| sum.saturating_add(data.len()))
}

#[cfg(test)]
mod tests {
    use super::super::entry::tests::{key, write};
    use super::super::figures::tests::figures;
    use super::*;

    fn names(cache: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(cache)
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn draft(cache: &Path) -> Draft {
        let draft = Draft::new(cache, Readers::Nobody).unwrap();
        fs::write(draft.folder().join(entry::GRAPH), b"new").unwrap();
        draft
    }

    fn publish(draft: Draft, model: u128) -> io::Result<()> {
        draft.complete(&key(model), &figures())?;
        draft.publish(&key(model))
    }

    #[test]
    fn an_entry_is_there_at_once_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("not/there/yet");
        let one = draft(&cache);
        assert!(Entry::open(&cache, &key(1)).is_err());
        publish(one, 1).unwrap();
        assert!(Entry::open(&cache, &key(1)).is_ok());
        drop(draft(&cache));
        let empty = Draft::new(&cache, Readers::Nobody).unwrap();
        assert!(publish(empty, 2).is_err(), "there is no graph");
        assert_eq!(names(&cache), [key(1).name()], "nothing is left behind");
    }

    #[test]
    fn a_bad_entry_is_replaced_and_a_good_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path();
        let bad = write(cache, &key(1), 3);
        fs::write(bad.join(entry::GRAPH), b"bad").unwrap();
        publish(draft(cache), 1).unwrap();
        let used = Entry::open(cache, &key(1)).unwrap();
        assert_eq!(fs::read(used.graph()).unwrap(), b"new");
        let late = draft(cache);
        fs::write(late.folder().join(entry::GRAPH), b"late").unwrap();
        publish(late, 1).unwrap();
        assert_eq!(fs::read(Entry::open(cache, &key(1)).unwrap().graph()).unwrap(), b"new");
        // A file in the way.
        fs::write(cache.join(key(2).name()), b"").unwrap();
        publish(draft(cache), 2).unwrap();
        assert!(Entry::open(cache, &key(2)).is_ok());
        assert_eq!(names(cache).len(), 2);
    }

    #[test]
    fn the_entries_that_were_not_used_for_longest_go_first() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path();
        let old = |path: &Path, seconds| {
            File::open(path).unwrap().set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
        };
        for model in 1..=4 {
            old(&write(cache, &key(model), 100_000), 1000 * (10 - model as u64));
        }
        fs::create_dir(cache.join("mine")).unwrap();
        fs::write(cache.join("mine/file"), vec![0; 1_000_000]).unwrap();
        let abandoned = cache.join(format!("{PREFIX}1-1"));
        fs::create_dir(&abandoned).unwrap();
        let busy = draft(cache);
        assert_eq!(tidy(cache, u64::MAX, &key(1)).unwrap() / 100_000, 4);
        assert!(abandoned.exists(), "it may be at work");
        old(&abandoned, 2 * ABANDONED.as_secs());
        // Used again.
        Entry::open(cache, &key(2)).unwrap().used_now();
        assert_eq!(tidy(cache, 320_000, &key(1)).unwrap() / 100_000, 3);
        let there = |model| cache.join(key(model).name()).exists();
        assert_eq!([1, 2, 3, 4].map(there), [true, true, false, true]);
        assert!(!abandoned.exists() && busy.folder().exists() && cache.join("mine/file").exists());
        assert_eq!(tidy(cache, 0, &key(4)).unwrap() / 100_000, 1, "one may be larger than the limit");
        assert_eq!([1, 2, 3, 4].map(there), [false, false, false, true]);
    }

    #[test]
    fn what_failed_is_not_tried_again_for_a_day() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path();
        let lately = |model| failed_lately(cache, &key(model));
        assert_eq!(lately(1), None);
        note_failure(cache, &key(1), "once").unwrap();
        note_failure(cache, &key(1), "again").unwrap();
        let file = lately(1).unwrap();
        assert_eq!((fs::read_to_string(&file).unwrap().as_str(), lately(2)), ("again\n", None));
        tidy(cache, 0, &key(2)).unwrap();
        assert!(file.exists());
        let old = SystemTime::now() - FORGOTTEN - Duration::from_secs(1);
        File::open(&file).unwrap().set_modified(old).unwrap();
        assert_eq!(lately(1), None);
        tidy(cache, 0, &key(2)).unwrap();
        assert!(!file.exists());
        note_failure(cache, &key(1), "").unwrap();
        publish(draft(cache), 1).unwrap();
        assert_eq!(names(cache), [key(1).name()]);
    }
}
