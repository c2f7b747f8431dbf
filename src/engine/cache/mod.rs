//! Models as ONNX Runtime has optimised them, on disk, so that later starts need neither the optimisation nor a run to
//! learn what a model's outputs are.
//!
//! ```text
//!  start ── find ── good ──> the session maps the entry's weights; its figures stand in for the warm-up
//!             └─── none ──> the session comes from the model's own file, as ever
//!                             └── afterwards, with room: a process apart writes the entry (`writer`)
//! ```
//!
//! An entry is a folder that is named after its key and never changed once it is there. It is used only where it is ours or
//! root's, nobody else may write to it, and every byte has the checksum that its manifest says ([`entry`]).
//! Entries that were not used for longest go when there are too many ([`store`]).

pub mod entry;
pub mod figures;
pub mod key;
pub mod place;
pub mod store;
pub mod system;
pub mod writer;

use std::path::PathBuf;
use std::sync::Arc;

pub use entry::{Entry, Readers, Rejected};
pub use figures::Figures;
pub use key::Key;

/// What is told of the cache on the way; never an error, since everything works without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// What went as it should.
    Fine(String),
    /// The next start will not be fast, for this reason.
    Failed(String),
}

/// Where an element wants entries to be kept, and whom to tell.
#[derive(Clone)]
pub struct Cache {
    pub folder: PathBuf,
    /// Not to be called with a lock held: it may start elements.
    pub tell: Arc<dyn Fn(Note) + Send + Sync>,
}

impl Cache {
    /// The entry of this key, where there is a good one. What is to be told comes after the other notes.
    pub fn find(&self, key: &Key, notes: &mut Vec<Note>) -> Option<Entry> {
        match Entry::open(&self.folder, key) {
            Ok(entry) => {
                notes.push(Note::Fine(format!("{} is in the cache", entry.folder().display())));
                Some(entry)
            }
            Err(Rejected::Missing) => None,
            Err(rejected) => {
                let folder = self.folder.join(key.name());
                notes.push(Note::Fine(format!("the cached {} is not used: {rejected}", folder.display())));
                None
            }
        }
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("folder", &self.folder).finish_non_exhaustive()
    }
}
