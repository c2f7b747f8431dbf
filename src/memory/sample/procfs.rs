//! Files of `/proc`: short texts that the kernel writes anew for each read.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// A buffer that files are read into.
#[derive(Default)]
pub struct Text(Vec<u8>);

/// Longer ones are none that is read here.
const LONGEST: u64 = 1 << 20;

impl Text {
    /// The file's text; `None` where it cannot be read or is no UTF-8.
    pub fn read(&mut self, file: &Path) -> Option<&str> {
        self.0.clear();
        File::open(file).ok()?.take(LONGEST).read_to_end(&mut self.0).ok()?;
        std::str::from_utf8(&self.0).ok()
    }

    /// A file with one number.
    pub fn number(&mut self, file: &Path) -> Option<u64> {
        self.read(file)?.trim().parse().ok()
    }
}

/// What the process holds, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Process {
    pub resident: u64,
    /// Of `resident`, what is no file's page and not shared memory.
    pub anonymous: u64,
}

impl Process {
    /// This process; zeros where procfs does not tell.
    pub fn now() -> Self {
        Self::read(&mut Text::default(), Path::new("/proc/self/statm")).unwrap_or_default()
    }

    /// `statm` counts pages: all that is mapped, the resident ones, of these those of files and shared memory, and more.
    pub(super) fn read(text: &mut Text, statm: &Path) -> Option<Self> {
        let mut pages =
            text.read(statm)?.split_ascii_whitespace().skip(1).map(|pages| pages.parse::<u64>().ok());
        let (resident, shared) = (pages.next()??, pages.next()??);
        let bytes = |pages: u64| pages.saturating_mul(page_size());
        Some(Self { resident: bytes(resident), anonymous: bytes(resident.saturating_sub(shared)) })
    }
}

fn page_size() -> u64 {
    // SAFETY: sysconf has no preconditions.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}

/// `some avg10` of a pressure file: per cent of the last 10 s in which some task waited for memory.
pub fn stall(text: &mut Text, file: &Path) -> Option<f32> {
    let some = text.read(file)?.lines().find_map(|line| line.strip_prefix("some "))?;
    let share: f32 = some.split(' ').find_map(|field| field.strip_prefix("avg10="))?.parse().ok()?;
    (0.0..=100.0).contains(&share).then_some(share)
}
