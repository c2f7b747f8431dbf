//! Memory pressure as a stream and its application are told of it: one structure, named [`NAME`], as an element message
//! on the bus, as a sticky custom event downstream and as a custom event upstream.
//!
//! | field | type | meaning |
//! | --- | --- | --- |
//! | `level` | string | `nominal`, `warning`, `critical` or `emergency` |
//! | `previous-level` | string | the level that was told before |
//! | `source` | string | what is shortest: `process`, `cgroup`, `budget`, `system` or `gpu:N` |
//! | `used-bytes` | uint64 | of that source |
//! | `limit-bytes` | uint64 | of that source; 0 where it has none |
//! | `threshold-bytes` | uint64 | from which on `level` holds; for a level that was left, of the one before |
//! | `actions` | structure | a uint64 for each thing that was done, by its name: the bytes that it freed |
//! | `freed-bytes` | uint64 | the sum of `actions` |
//! | `process` | uint64 | a number that tells the process that says it from others; left out by whoever else makes one |

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

use crate::memory::monitor::Action;
use crate::memory::pressure::{Change, Level};

/// Of the structure.
pub const NAME: &str = "yolodetect-memory-pressure";

const LEVEL: &str = "level";
const PROCESS: &str = "process";

/// A process's number may be another's in another container: this is chance.
static THIS_PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(PROCESS));

/// What is told of `change`. Several actions of the same name are summed up.
pub fn structure<'a>(change: &Change, actions: impl IntoIterator<Item = &'a Action>) -> gst::Structure {
    let mut done = gst::Structure::new_empty("actions");
    let mut freed = 0u64;
    for action in actions {
        freed = freed.saturating_add(action.freed);
        let before = done.get::<u64>(action.name).unwrap_or(0);
        done.set(action.name, before.saturating_add(action.freed));
    }
    gst::Structure::builder(NAME)
        .field(LEVEL, change.level.name())
        .field("previous-level", change.previous.name())
        .field("source", change.source.to_string())
        .field("used-bytes", change.used)
        .field("limit-bytes", change.limit)
        .field("threshold-bytes", change.threshold)
        .field("actions", done)
        .field("freed-bytes", freed)
        .field(PROCESS, *THIS_PROCESS)
        .build()
}

/// The level that `event` tells of another process, or that an application tells; `None` for any other event.
///
/// This process's own levels are known better from the monitor: an event stays on its pads when whoever sent it is gone.
pub fn level_from_elsewhere(event: &gst::EventRef) -> Option<Level> {
    let fields = event.structure().filter(|fields| fields.name() == NAME)?;
    if fields.get::<u64>(PROCESS) == Ok(*THIS_PROCESS) {
        return None;
    }
    let name = fields.get::<&str>(LEVEL).ok()?;
    Level::ALL.into_iter().find(|level| level.name() == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::pressure::Source;

    #[test]
    fn a_level_is_read_back_and_actions_are_summed_by_name() {
        gst::init().unwrap();
        for level in Level::ALL {
            let change = Change {
                level,
                previous: Level::Warning,
                source: Source::Gpu(3),
                used: 5,
                limit: 7,
                threshold: u64::MAX,
            };
            let actions = [("trim-pools", 4), ("double-interval", 0), ("trim-pools", 3)]
                .map(|(name, freed)| Action { name, freed });
            let fields = structure(&change, &actions);
            let done = fields.get::<gst::Structure>("actions").unwrap();
            assert_eq!((done.get("trim-pools"), done.get("double-interval")), (Ok(7u64), Ok(0u64)));
            assert_eq!(done.n_fields(), 2);
            assert_eq!(fields.get("freed-bytes"), Ok(7u64));
            assert_eq!(fields.get("source"), Ok("gpu:3"));
            let own = gst::event::CustomUpstream::new(fields.clone());
            assert_eq!(level_from_elsewhere(&own), None);
            let mut others = fields.clone();
            others.set(PROCESS, *THIS_PROCESS ^ 1);
            let mut nobodys = fields;
            nobodys.remove_field(PROCESS);
            for foreign in [others, nobodys] {
                assert_eq!(level_from_elsewhere(&gst::event::CustomUpstream::new(foreign)), Some(level));
            }
        }
        let foreign = gst::Structure::builder("else").field(LEVEL, "critical").build();
        assert_eq!(level_from_elsewhere(&gst::event::CustomUpstream::new(foreign)), None);
        let unknown = gst::Structure::builder(NAME).field(LEVEL, "fatal").build();
        assert_eq!(level_from_elsewhere(&gst::event::CustomUpstream::new(unknown)), None);
    }
}
