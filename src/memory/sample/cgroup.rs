//! The memory limit of this process's container: control groups of version 1 and 2.
//!
//! `/proc/self/cgroup` names the group of each hierarchy, `/proc/self/mountinfo` where these are mounted. In a container the
//! named group may not lie under the mount, which shows the container's own group as its root: then that root counts. A
//! group's ancestors limit it too.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use super::Cgroup;
use super::procfs::{self, Text};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

impl Version {
    /// Both say `max` or a number beyond all memory where there is no limit.
    fn limit(self) -> &'static str {
        match self {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        }
    }

    fn usage(self) -> &'static str {
        match self {
            Version::V1 => "memory.usage_in_bytes",
            Version::V2 => "memory.current",
        }
    }

    /// In `memory.stat`, file cache of the group and those below it that has not been used for long.
    fn reclaimable(self) -> &'static str {
        match self {
            Version::V1 => "total_inactive_file ",
            Version::V2 => "inactive_file ",
        }
    }
}

/// A group that may have a limit.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    version: Version,
    folder: PathBuf,
}

/// This process's groups and their ancestors, as far as they are mounted.
#[derive(Default)]
pub struct Cgroups {
    /// `/proc/self/cgroup` as `groups` was made from it: a process may be moved.
    named: String,
    groups: Vec<Group>,
}

impl Cgroups {
    /// The fullest of the groups that are limited below `machine` bytes.
    pub fn sample(&mut self, text: &mut Text, proc: &Path, machine: Option<u64>) -> Option<Cgroup> {
        let named = text.read(&proc.join("self/cgroup"))?;
        if named != self.named {
            self.named = named.to_string();
            let mounts = text.read(&proc.join("self/mountinfo")).unwrap_or_default();
            self.groups = groups(&self.named, mounts);
        }
        let limited = self.groups.iter().filter_map(|group| {
            let limit =
                group.limit(text).filter(|&limit| limit > 0 && machine.is_none_or(|all| limit < all))?;
            Some((group, Cgroup { used: group.used(text)?, limit, stall: None }))
        });
        let share = |cgroup: &Cgroup| cgroup.used as f64 / cgroup.limit as f64;
        let (group, fullest) = limited.max_by(|(_, one), (_, other)| share(one).total_cmp(&share(other)))?;
        Some(Cgroup { stall: procfs::stall(text, &group.folder.join("memory.pressure")), ..fullest })
    }
}

impl Group {
    fn limit(&self, text: &mut Text) -> Option<u64> {
        // Without knowledge of the machine: beyond any address space there is no limit.
        text.number(&self.folder.join(self.version.limit())).filter(|&limit| limit < 1 << 60)
    }

    fn used(&self, text: &mut Text) -> Option<u64> {
        let usage = text.number(&self.folder.join(self.version.usage()))?;
        let stat = text.read(&self.folder.join("memory.stat")).unwrap_or_default();
        let cache = stat.lines().find_map(|line| line.strip_prefix(self.version.reclaimable())?.parse().ok());
        Some(usage.saturating_sub(cache.unwrap_or(0)))
    }
}

/// Each hierarchy's group, innermost first, up to the root of its mount.
fn groups(named: &str, mountinfo: &str) -> Vec<Group> {
    let mut groups = Vec::new();
    for (version, name) in named.lines().filter_map(hierarchy) {
        let mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::parse).collect();
        let mounts = || mounts.iter().filter(|mount| mount.version == version);
        let below = mounts().find_map(|mount| Some((mount, mount.folder(name)?)));
        let Some((mount, folder)) =
            below.or_else(|| mounts().next().map(|mount| (mount, mount.point.clone())))
        else {
            continue;
        };
        let folders = folder.ancestors().take_while(|folder| folder.starts_with(&mount.point));
        groups.extend(folders.map(|folder| Group { version, folder: folder.to_path_buf() }));
    }
    groups
}

/// Version and group of a line of `/proc/self/cgroup` that may concern memory: `ID:CONTROLLERS:GROUP`.
fn hierarchy(line: &str) -> Option<(Version, &str)> {
    let mut fields = line.splitn(3, ':');
    let (id, controllers, group) = (fields.next()?, fields.next()?, fields.next()?);
    if id == "0" && controllers.is_empty() {
        return Some((Version::V2, group));
    }
    controllers.split(',').any(|controller| controller == "memory").then_some((Version::V1, group))
}

/// Where a part of a hierarchy can be seen.
struct Mount {
    version: Version,
    /// The group that is seen as `point`.
    root: PathBuf,
    point: PathBuf,
}

impl Mount {
    /// A line of `mountinfo`: `ID PARENT DEVICE ROOT POINT OPTIONS [TAG]… - TYPE SOURCE OPTIONS`.
    fn parse(line: &str) -> Option<Self> {
        let (mount, system) = line.split_once(" - ")?;
        let mut system = system.split(' ');
        let version = match (system.next()?, system.nth(1)) {
            ("cgroup2", _) => Version::V2,
            ("cgroup", Some(options)) if options.split(',').any(|option| option == "memory") => Version::V1,
            _ => return None,
        };
        let mut paths = mount.split(' ').skip(3).map(unescaped);
        Some(Self { version, root: paths.next()?, point: paths.next()? })
    }

    /// Where `group` is seen; `None` where it is not.
    fn folder(&self, group: &str) -> Option<PathBuf> {
        let below = Path::new(group).strip_prefix(&self.root).ok()?;
        let is_below = below.components().all(|part| matches!(part, Component::Normal(_)));
        let folder = self.point.join(below);
        (is_below && folder.is_dir()).then_some(folder)
    }
}

/// A path in which blanks, tabs, newlines and backslashes are written as three octal digits.
fn unescaped(path: &str) -> PathBuf {
    let (mut bytes, mut rest) = (Vec::new(), path.as_bytes());
    while let Some((&first, after)) = rest.split_first() {
        let octal =
            after.get(..3).filter(|_| first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}
