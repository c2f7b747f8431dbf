//! For which GPUs a library of CUDA's has kernels.
//!
//! A kernel is there once for each kind of GPU, as machine code or as text (PTX) that the driver compiles for later ones. Machine code runs
//! on GPUs of the same major number and at least its minor one (CUDA C++ Programming Guide, "Compute Capabilities").
//!
//! They lie in a section of the library that NVIDIA does not describe, laid out as its tool `cuobjdump --list-elf --list-ptx` and others
//! read it: containers one after another, each a head of 16 bytes (magic number, version, length of the head, length of the entries) and
//! entries, each a head (kind at 0, its length at 4, length of what follows at 8, kind of GPU at 28) and a kernel. What looks otherwise is
//! not judged.

use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::fs::File;
use std::path::Path;

use object::Endianness;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader, SectionHeader};
use object::read::{ReadCache, ReadRef};

/// Major and minor number of what a GPU's processors can do.
pub type Capability = (u32, u32);

/// What GPUs there are kernels for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernels {
    machine: BTreeSet<Capability>,
    text: BTreeSet<Capability>,
}

const SECTION: &[u8] = b".nv_fatbin";
const MAGIC: u32 = 0xba55_ed50;
const TEXT: u16 = 1;
const MACHINE: u16 = 2;
/// Of a container, and what is read of an entry's.
const HEAD: u64 = 16;
const ENTRY_HEAD: u64 = 32;
/// Bytes on whose multiples containers begin; there may be zeros before one.
const PADDING: u64 = 8;
/// No file has more: what is garbled ends some time.
const MAX_ENTRIES: usize = 1 << 16;

impl Kernels {
    /// The kernels of the library `file`, as far as it must be read to find some for `wanted`: those are in its first kilobytes, or nowhere.
    /// `None` where none can be found in it, or not all of it can be read.
    pub fn find(file: &Path, wanted: Capability) -> Option<Self> {
        let data = ReadCache::new(File::open(file).ok()?);
        let header = FileHeader64::<Endianness>::parse(&data).ok()?;
        let endian = header.endian().ok()?;
        let (_, section) = header.sections(endian, &data).ok()?.section_by_name(endian, SECTION)?;
        let (start, length) = section.file_range(endian)?;
        Self::read(&data, start, start.checked_add(length)?, wanted)
    }

    fn read<'a>(data: impl ReadRef<'a>, mut at: u64, end: u64, wanted: Capability) -> Option<Self> {
        let (mut found, mut entries) = (Self::default(), 0);
        while at < end && !found.run_on(wanted) {
            entries += 1;
            (entries < MAX_ENTRIES).then_some(())?;
            if data.read_bytes_at(at, PADDING).ok()? == [0; PADDING as usize] {
                at = at.checked_add(PADDING)?;
                continue;
            }
            let head = data.read_bytes_at(at, HEAD).ok()?;
            (number(head, 0) == MAGIC).then_some(())?;
            let mut entry = at.checked_add(u64::from(short(head, 6)))?;
            at = entry.checked_add(long(head, 8)).filter(|next| *next <= end)?;
            while entry < at {
                let head = data.read_bytes_at(entry, ENTRY_HEAD).ok()?;
                let kind = number(head, 28);
                let capability = (kind / 10, kind % 10);
                match short(head, 0) {
                    MACHINE => found.machine.insert(capability),
                    TEXT => found.text.insert(capability),
                    _ => false,
                };
                entries += 1;
                (entries < MAX_ENTRIES).then_some(())?;
                entry = entry.checked_add(u64::from(number(head, 4)))?.checked_add(long(head, 8))?;
            }
        }
        (!found.machine.is_empty() || !found.text.is_empty()).then_some(found)
    }

    /// Whether one of them runs on GPUs of this kind.
    pub fn run_on(&self, gpu: Capability) -> bool {
        let is_like = |made_for: &Capability| made_for.0 == gpu.0 && made_for.1 <= gpu.1;
        self.machine.iter().any(is_like) || self.text.iter().any(|made_for| *made_for <= gpu)
    }
}

/// `7.5, 8.0 and 9.0, and later than 9.0`
impl Display for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (major, minor)) in self.machine.iter().enumerate() {
            let separator = match index {
                0 => "",
                _ if index + 1 == self.machine.len() => " and ",
                _ => ", ",
            };
            write!(f, "{separator}{major}.{minor}")?;
        }
        match self.text.first() {
            Some((major, minor)) if self.machine.is_empty() => write!(f, "{major}.{minor} and later"),
            Some((major, minor)) => write!(f, ", and {major}.{minor} and later"),
            None => Ok(()),
        }
    }
}

fn short(bytes: &[u8], at: usize) -> u16 {
    bytes[at..].first_chunk().map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(entries: &[(u16, u32)]) -> Vec<u8> {
        const CODE: [u8; 24] = [7; 24];
        let entry = |&(kind, made_for): &(u16, u32)| {
            let mut head = vec![0; 64];
            head[..2].copy_from_slice(&kind.to_le_bytes());
            head[4..8].copy_from_slice(&64u32.to_le_bytes());
            head[8..16].copy_from_slice(&(CODE.len() as u64).to_le_bytes());
            head[28..32].copy_from_slice(&made_for.to_le_bytes());
            [head, CODE.to_vec()].concat()
        };
        let entries: Vec<u8> = entries.iter().flat_map(entry).collect();
        let mut head = MAGIC.to_le_bytes().to_vec();
        head.extend([1, 0, 16, 0]);
        head.extend((entries.len() as u64).to_le_bytes());
        [head, entries].concat()
    }

    fn read(bytes: &[u8], wanted: Capability) -> Option<Kernels> {
        Kernels::read(bytes, 0, bytes.len() as u64, wanted)
    }

    #[test]
    fn kernels_run_on_gpus_of_their_kind_and_text_on_later_ones() {
        // As in onnxruntime-gpu 1.31.1 for CUDA 13 and 1.24.4 for CUDA 12.
        let of_13 = [75, 80, 86, 89, 90, 120].map(|made_for| (MACHINE, made_for));
        let of_13 = [container(&[(MACHINE, 90)]), vec![0; 8], container(&of_13), vec![0; 24]].concat();
        let of_12 = [60, 70, 75, 80, 86, 90].map(|made_for| (MACHINE, made_for));
        let of_12 = container(&[&of_12[..], &[(TEXT, 90)]].concat());
        for (gpu, by_13, by_12) in [
            ((5, 2), false, false),
            ((6, 1), false, true),
            ((7, 0), false, true),
            ((7, 5), true, true),
            ((8, 0), true, true),
            ((8, 9), true, true),
            ((9, 0), true, true),
            ((10, 0), false, true),
            ((10, 3), false, true),
            ((12, 0), true, true),
            ((12, 1), true, true),
        ] {
            assert_eq!(read(&of_13, gpu).unwrap().run_on(gpu), by_13, "{gpu:?}");
            assert_eq!(read(&of_12, gpu).unwrap().run_on(gpu), by_12, "{gpu:?}");
        }
        let told = |bytes: &[u8], gpu| read(bytes, gpu).unwrap().to_string();
        assert_eq!(told(&of_13, (10, 0)), "7.5, 8.0, 8.6, 8.9, 9.0 and 12.0");
        assert_eq!(told(&of_12, (5, 0)), "6.0, 7.0, 7.5, 8.0, 8.6 and 9.0, and 9.0 and later");
        assert_eq!(told(&container(&[(TEXT, 52)]), (5, 0)), "5.2 and later");
    }

    #[test]
    fn no_more_is_read_than_is_needed() {
        let both = [container(&[(MACHINE, 75)]), container(&[(MACHINE, 90), (3, 99)])].concat();
        assert_eq!(read(&both, (7, 5)), read(&container(&[(MACHINE, 75)]), (7, 5)));
        assert_eq!(read(&both, (10, 0)).unwrap().to_string(), "7.5 and 9.0");
    }

    /// What cannot be read may be what is wanted.
    #[test]
    fn what_cannot_be_read_to_its_end_is_not_judged() {
        let known = container(&[(MACHINE, 75)]);
        let both = [known.clone(), b"no container, of no matter what length".to_vec()].concat();
        assert!(read(&both, (7, 5)).unwrap().run_on((7, 5)));
        assert_eq!(read(&both, (10, 0)), None);
        assert_eq!(read(&known[..known.len() - 1], (10, 0)), None);
        assert_eq!(read(&[0; 32], (10, 0)), None);
    }

    #[test]
    fn what_is_garbled_is_read_to_an_end() {
        let whole = [container(&[(MACHINE, 75), (TEXT, 90)]), container(&[(MACHINE, 120)])].concat();
        for length in 0..whole.len() {
            read(&whole[..length], (1, 0));
        }
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..20_000 {
            let mut bytes = whole.clone();
            for _ in 0..random.usize(1..8) {
                let place = random.usize(..bytes.len());
                bytes[place] = if random.bool() { random.u8(..) } else { 0 };
            }
            read(&bytes, (1, 0));
        }
        // Entries of no length at all.
        let mut bytes = whole;
        bytes[16..].fill(0);
        read(&bytes, (1, 0));
    }
}
