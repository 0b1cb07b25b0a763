//! File-system calls that applying and diffing share; all relative to directory handles, none follows a
//! symlink in the last component.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::{Errno, Result};

use crate::limits::XATTR_BYTES_MAX;
use crate::tar::Time;

/// Extended attributes by name.
pub(crate) type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// Opens a directory that is no symlink, readable.
pub(crate) fn open_dir(at: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

/// Opens a regular file that is no symlink for reading.
pub(crate) fn open_file(at: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

/// Opens a path that the caller trusts (a snapshot's own directory).
pub(crate) fn open_root(path: &std::path::Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Status of `name`; `None` where it is not there.
pub(crate) fn stat(at: impl AsFd, name: &[u8]) -> Result<Option<Stat>> {
    match rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The file type in a status.
pub(crate) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Overlay's mark of a deleted name: a character device 0:0.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    kind(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Time of last modification.
pub(crate) fn mtime(stat: &Stat) -> Time {
    Time {
        seconds: stat.st_mtime as _,
        nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0), // below 10⁹ by definition
    }
}

/// Names in a directory, sorted by bytes, without `.` and `..`.
pub(crate) fn list(dir: impl AsFd) -> Result<Vec<CString>> {
    // A handle of its own, so that nobody's position is disturbed.
    let dir = open_dir(dir, b".")?;
    let mut buffer = Vec::with_capacity(64 << 10);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Sets access and modification time of an open file or directory.
pub(crate) fn set_times(fd: impl AsFd, time: Time) -> Result<()> {
    rustix::fs::futimens(fd, &timestamps(time))
}

/// Sets the times of `name` itself.
pub(crate) fn set_times_at(at: impl AsFd, name: &[u8], time: Time) -> Result<()> {
    rustix::fs::utimensat(at, name, &timestamps(time), AtFlags::SYMLINK_NOFOLLOW)
}

fn timestamps(time: Time) -> Timestamps {
    let time = Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanoseconds) };
    Timestamps { last_access: time, last_modification: time }
}

/// Removes `name` and all in it.
pub(crate) fn remove_all(at: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    match rustix::fs::unlinkat(at, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    let dir = open_dir(at, name)?;
    for child in list(&dir)? {
        remove_all(dir.as_fd(), child.to_bytes())?;
    }
    drop(dir);
    rustix::fs::unlinkat(at, name, AtFlags::REMOVEDIR)
}

/// A path that names an entry without following it, for calls that take no directory handle.
fn proc_path(at: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    [format!("/proc/self/fd/{}/", at.as_raw_fd()).as_bytes(), name].concat()
}

/// Extended attributes of an open file or directory. None where the file system has none.
pub(crate) fn xattrs_of(fd: impl AsFd) -> Result<Xattrs> {
    collect(
        |buffer| rustix::fs::flistxattr(&fd, buffer),
        |name, buffer| rustix::fs::fgetxattr(&fd, name, buffer),
    )
}

/// Extended attributes of `name` itself, for what cannot be opened (symlinks, devices).
pub(crate) fn xattrs_at(at: BorrowedFd<'_>, name: &[u8]) -> Result<Xattrs> {
    let path = proc_path(at, name);
    let path = path.as_slice();
    collect(
        |buffer| rustix::fs::llistxattr(path, buffer),
        |name, buffer| rustix::fs::lgetxattr(path, name, buffer),
    )
}

fn collect(
    list: impl Fn(&mut [u8]) -> Result<usize>,
    get: impl Fn(&[u8], &mut [u8]) -> Result<usize>,
) -> Result<Xattrs> {
    let mut found = Xattrs::new();
    let mut small = [0; 512];
    let mut large;
    let names = match list(&mut small) {
        Ok(n) => &small[..n],
        Err(Errno::RANGE) => {
            large = vec![0; XATTR_BYTES_MAX];
            let n = list(&mut large)?;
            &large[..n]
        }
        Err(Errno::NOTSUP) => return Ok(found),
        Err(e) => return Err(e),
    };
    if names.is_empty() {
        return Ok(found);
    }
    let mut value = vec![0; XATTR_BYTES_MAX];
    for name in names.split(|b| *b == 0).filter(|n| !n.is_empty()) {
        match get(name, &mut value) {
            Ok(n) => drop(found.insert(name.to_vec(), value[..n].to_vec())),
            // Listed, but not ours to read (`trusted.*` in a user namespace).
            Err(Errno::NODATA | Errno::PERM | Errno::NOTSUP) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

/// Sets an attribute of an open file or directory.
pub(crate) fn set_xattr(fd: impl AsFd, name: &[u8], value: &[u8]) -> Result<()> {
    rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty())
}

/// Sets an attribute of `name` itself.
pub(crate) fn set_xattr_at(at: BorrowedFd<'_>, name: &[u8], attribute: &[u8], value: &[u8]) -> Result<()> {
    rustix::fs::lsetxattr(proc_path(at, name).as_slice(), attribute, value, XattrFlags::empty())
}

/// Whether an attribute belongs to the overlay file system, which hides it from users.
pub(crate) fn is_overlay_xattr(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// Whether an attribute belongs in a layer: not overlay's, not a label of this machine's policy.
pub(crate) fn belongs_in_layer(name: &[u8]) -> bool {
    !is_overlay_xattr(name) && !matches!(name, b"security.selinux" | b"security.evm" | b"security.apparmor")
}

/// Name of one of overlay's own attributes.
pub(crate) fn overlay_xattr(name: &[u8], userxattr: bool) -> Vec<u8> {
    [if userxattr { &b"user.overlay."[..] } else { b"trusted.overlay." }, name].concat()
}

/// Whether overlay treats a directory as hiding what is below.
pub(crate) fn is_opaque(xattrs: &Xattrs, userxattr: bool) -> bool {
    xattrs.get(&overlay_xattr(b"opaque", userxattr)).is_some_and(|value| value == b"y")
}
