//! The files of ONNX Runtime's providers for NVIDIA's GPUs: whether they are there and whole, and what libraries they need.

use std::fs::File;
use std::io;
use std::path::Path;

use object::Endianness;
use object::elf::{self, FileHeader64, Machine};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::read::{ReadCache, StringTable};
use thiserror::Error;

/// What both of the others call.
pub const SHARED: &str = "libonnxruntime_providers_shared.so";
pub const CUDA: &str = "libonnxruntime_providers_cuda.so";
/// What it does not take, CUDA's runs.
pub const TENSORRT: &str = "libonnxruntime_providers_tensorrt.so";

/// Of every build for CUDA 12 and newer. Builds since 1.31 open it when the first kernel wants it, and do not name it among what they need.
const CUDNN: &str = "libcudnn.so.9";
const CUDNN_SINCE: u32 = 12;

/// Why a file cannot be loaded. The loader would end the process where one is cut off.
#[derive(Debug, Error)]
pub enum Flaw {
    #[error("cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    #[error("is no library")]
    NoLibrary,
    #[error("is made for another kind of processor")]
    OtherMachine,
    #[error("is cut off: it has {found} of {expected} bytes")]
    CutOff { found: u64, expected: u64 },
}

impl From<object::read::Error> for Flaw {
    fn from(_: object::read::Error) -> Self {
        Self::NoLibrary
    }
}

/// The libraries that the library `file` needs, by the names for the loader. A few kilobytes of it are read.
///
/// # Errors
/// Where the loader could not load it, whatever else there is.
pub fn needed(file: &Path) -> Result<Vec<String>, Flaw> {
    let opened = File::open(file)?;
    let metadata = opened.metadata()?;
    if !metadata.is_file() {
        return Err(Flaw::NoLibrary);
    }
    let found = metadata.len();
    let data = ReadCache::new(opened);
    let header = FileHeader64::<Endianness>::parse(&data)?;
    let endian = header.endian()?;
    if header.e_type(endian) != elf::ET_DYN {
        return Err(Flaw::NoLibrary);
    }
    if own_machine().is_some_and(|own| header.e_machine(endian) != own) {
        return Err(Flaw::OtherMachine);
    }
    let table = |start: u64, size: u16, count: u16| start.saturating_add(u64::from(size) * u64::from(count));
    let tables = [
        table(header.e_phoff(endian), header.e_phentsize(endian), header.e_phnum(endian)),
        // The last thing in most files.
        table(header.e_shoff(endian), header.e_shentsize(endian), header.e_shnum(endian)),
    ];
    let whole = |expected: u64| if expected > found { Err(Flaw::CutOff { found, expected }) } else { Ok(()) };
    tables.into_iter().try_for_each(whole)?;
    let segments = header.program_headers(endian, &data)?;
    let loaded = || segments.iter().filter(|segment| segment.p_type(endian) == elf::PT_LOAD);
    loaded()
        .map(|segment| segment.p_offset(endian).saturating_add(segment.p_filesz(endian)))
        .try_for_each(whole)?;
    let dynamic = segments.iter().find(|segment| segment.p_type(endian) == elf::PT_DYNAMIC);
    let dynamic = dynamic.filter(|segment| segment.p_filesz(endian) < MAX_DYNAMIC).ok_or(Flaw::NoLibrary)?;
    let entries = dynamic.dynamic(endian, &data)?.unwrap_or_default();
    let entries = entries.iter().take_while(|entry| entry.tag(endian) != elf::DT_NULL);
    let entry = |tag| entries.clone().find(|entry| entry.tag(endian) == tag).map(|entry| entry.val(endian));
    let (Some(address), Some(bytes)) = (entry(elf::DT_STRTAB), entry(elf::DT_STRSZ)) else {
        return Err(Flaw::NoLibrary);
    };
    let start = loaded()
        .find_map(|segment| {
            let into = address.checked_sub(segment.p_vaddr(endian))?;
            (into < segment.p_filesz(endian)).then(|| segment.p_offset(endian).saturating_add(into))
        })
        .ok_or(Flaw::NoLibrary)?;
    let strings = StringTable::new(&data, start, start.saturating_add(bytes));
    entries
        .clone()
        .filter(|entry| entry.tag(endian) == elf::DT_NEEDED)
        .map(|entry| Ok(String::from_utf8_lossy(entry.string(endian, strings)?).into_owned()))
        .collect()
}

/// Bytes, more than any library's: nothing of a garbled one is believed.
const MAX_DYNAMIC: u64 = 1 << 20;

/// `None` where this is not one that NVIDIA's libraries are made for.
fn own_machine() -> Option<Machine> {
    match () {
        () if cfg!(target_arch = "x86_64") => Some(elf::EM_X86_64),
        () if cfg!(target_arch = "aarch64") => Some(elf::EM_AARCH64),
        () => None,
    }
}

/// The 13 of CUDA 13, which a library that needs these was built for.
pub fn cuda_major(needed: &[String]) -> Option<u32> {
    ["libcudart.so.", "libcublas.so."]
        .iter()
        .find_map(|prefix| needed.iter().find_map(|name| name.strip_prefix(prefix)))
        .and_then(|version| version.split('.').next()?.parse().ok())
}

/// What CUDA's provider opens by itself, beside what it needs.
pub fn opened_later(major: Option<u32>) -> Option<&'static str> {
    major.filter(|major| *major >= CUDNN_SINCE).map(|_| CUDNN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_cuda_is_read_off_names() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        for (needed, major) in [
            (&["libcublasLt.so.13", "libcudart.so.13", "libcuda.so.1"][..], Some(13)),
            (&["libcudart.so.12", "libcublas.so.12"], Some(12)),
            (&["libcudart.so.11.0"], Some(11)),
            // The runtime may be linked in.
            (&["libcublas.so.12", "libc.so.6"], Some(12)),
            (&["libc.so.6", "libcuda.so.1"], None),
            (&["libcudart.so.x"], None),
            (&[], None),
        ] {
            assert_eq!(cuda_major(&names(needed)), major, "{needed:?}");
        }
        for (major, cudnn) in [(Some(13), true), (Some(12), true), (Some(11), false), (None, false)] {
            assert_eq!(opened_later(major).is_some(), cudnn);
        }
    }

    #[test]
    fn what_this_program_needs_is_found() {
        let program = std::env::current_exe().unwrap();
        assert!(needed(&program).unwrap().iter().any(|name| name.starts_with("libgstreamer-1.0")));
    }

    /// Whatever is lost of a library, nothing is read that is not there, and what the loader would map is missed.
    #[test]
    fn a_library_that_is_cut_off_or_garbled_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (source, whole, broken) =
            (folder.path().join("a.c"), folder.path().join("a.so"), folder.path().join("b.so"));
        std::fs::write(&source, "int a[20000] = {1};").unwrap();
        let mut compiler = std::process::Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-Wl,--no-as-needed", "-lm", "-o"]).arg(&whole).arg(&source);
        assert!(compiler.status().expect("cc").success());
        assert!(needed(&whole).unwrap().contains(&"libm.so.6".to_string()));
        let bytes = std::fs::read(&whole).unwrap();
        let flaw = |bytes: &[u8]| {
            std::fs::write(&broken, bytes).unwrap();
            needed(&broken)
        };
        for length in (64..bytes.len()).step_by(997).chain([bytes.len() - 1]) {
            let told = flaw(&bytes[..length]).unwrap_err();
            assert!(matches!(told, Flaw::CutOff { found, .. } if found == length as u64), "{length}: {told}");
        }
        for length in [0, 3, 16, 63] {
            assert!(matches!(flaw(&bytes[..length]), Err(Flaw::NoLibrary)), "{length}");
        }
        assert!(matches!(flaw(b"version https://git-lfs.github.com/spec/v1\n"), Err(Flaw::NoLibrary)));
        let mut other = bytes.clone();
        // The machine's number.
        other[18..20].copy_from_slice(&8u16.to_le_bytes());
        assert!(matches!(flaw(&other), Err(Flaw::OtherMachine)));
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..2000 {
            let mut bytes = bytes.clone();
            for _ in 0..random.usize(1..8) {
                let place = random.usize(..4096.min(bytes.len()));
                bytes[place] = random.u8(..);
            }
            // No matter what, but soon, and without a panic.
            let _ = flaw(&bytes);
        }
        assert!(matches!(needed(folder.path()), Err(Flaw::NoLibrary)));
        assert!(matches!(needed(&folder.path().join("absent")), Err(Flaw::Unreadable(_))));
    }
}
