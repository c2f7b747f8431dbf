//! What the standard library has no call for.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr;
use std::time::Duration;

/// The user as whom this process acts.
pub fn user() -> u32 {
    // SAFETY: the call cannot fail and touches no memory.
    unsafe { libc::geteuid() }
}

/// The file, a library or the executable, that has what is at `address`.
pub fn object_file(address: usize) -> Option<PathBuf> {
    // SAFETY: all zeros, null pointers among them, is a `Dl_info`.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: any address may be asked for; the name is the loader's own and stays while the object is loaded, which is
    // longer than this copies it.
    let name = unsafe {
        if libc::dladdr(ptr::without_provenance(address), &mut info) == 0 || info.dli_fname.is_null() {
            return None;
        }
        CStr::from_ptr(info.dli_fname)
    };
    Some(PathBuf::from(OsStr::from_bytes(name.to_bytes())))
}

/// Whether the file's content comes from another machine or process, as far as the file system's kind tells: pages of it that
/// are mapped may not come for long, and end this process where they cannot come at all.
pub fn is_remote(file: &File) -> bool {
    // SAFETY: all zeros is a `statfs`.
    let mut data: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open for as long as the call takes, and `data` is as large as it must be.
    let told = unsafe { libc::fstatfs(file.as_raw_fd(), &mut data) } == 0;
    // 32 bits of a type that has another size on each platform.
    told && is_remote_kind(data.f_type as u32)
}

/// Numbers of `linux/magic.h` and of the file systems' own sources.
fn is_remote_kind(kind: u32) -> bool {
    const NFS: u32 = 0x6969;
    const SMB: u32 = 0x517b;
    const CIFS: u32 = 0xff53_4d42;
    const SMB2: u32 = 0xfe53_4d42;
    const FUSE: u32 = 0x6573_5546;
    const PLAN9: u32 = 0x0102_1997;
    const CEPH: u32 = 0x00c3_6400;
    [NFS, SMB, CIFS, SMB2, FUSE, PLAN9, CEPH].contains(&kind)
}

/// Makes the rest of this process a matter of the background: others' computing and memory come first, files that were
/// left open by whoever started it are closed, and it ends by itself after so long.
pub fn go_to_background(patience: Duration) {
    const NICE: libc::c_int = 10;
    // SAFETY: plain numbers; called before this process has opened a file that it wants to keep.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, NICE);
        // Not as a function, which older C libraries do not have; an older kernel refuses, and files stay open.
        libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32);
        libc::alarm(patience.as_secs().try_into().unwrap_or(u32::MAX));
    }
    // Where memory runs out all the same, this goes and not the pipeline.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_code_is_in_this_executable() {
        let here = object_file(user as *const () as usize).unwrap();
        assert_eq!(here.canonicalize().unwrap(), std::env::current_exe().unwrap().canonicalize().unwrap());
        assert_eq!(object_file(0), None);
    }

    #[test]
    fn a_file_of_this_machine_is_told_from_one_of_another() {
        assert!(!is_remote(&File::open("/proc/self/status").unwrap()));
        for (kind, remote) in [(0x6969, true), (0x6573_5546, true), (0xff53_4d42, true), (0xef53, false)] {
            assert_eq!(is_remote_kind(kind), remote, "{kind:x}");
        }
    }
}
