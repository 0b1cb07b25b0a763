//! One name in one open directory: the calls that everything here is made of.
//!
//! Holds: no call follows a symlink in the name that it is given, and [`beneath`] follows none at all.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
};
use rustix::io::Errno;

use crate::error::Error;
use crate::limits::PATH_BYTES_MAX;
use crate::path;

/// Attaches what was tried, and on what, to a kernel's answer.
pub(crate) trait Context<T> {
    fn on(self, action: &'static str, path: &[u8]) -> Result<T, Error>;
}

impl<T> Context<T> for Result<T, Errno> {
    fn on(self, action: &'static str, path: &[u8]) -> Result<T, Error> {
        self.map_err(|errno| Error::Io { action, path: path::show(path), errno })
    }
}

/// Also for what the standard library did on our behalf.
impl<T> Context<T> for std::io::Result<T> {
    fn on(self, action: &'static str, path: &[u8]) -> Result<T, Error> {
        self.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)).on(action, path)
    }
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// `lstat`; `None` when there is no such name. The empty name is the directory itself.
pub fn stat(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Stat>, Errno> {
    let flags = if name.is_empty() { AtFlags::EMPTY_PATH } else { AtFlags::SYMLINK_NOFOLLOW };
    match rustix::fs::statat(dir, name, flags) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// What kind of file it is.
pub fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Whether it is a directory.
pub fn is_dir(stat: &Stat) -> bool {
    kind(stat) == FileType::Directory
}

/// Whether it is overlay's mark of a deleted file. The lowest layer of an image may have some, and where no layer
/// lies below a directory the kernel shows them.
pub fn is_whiteout(stat: &Stat) -> bool {
    kind(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Opens the directory `name`; the empty name is `dir` itself.
pub fn open_dir(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir, if name.is_empty() { b"." } else { name }, DIRECTORY, Mode::empty())
}

/// Opens a path that is known to hold no symlink; fails with `ELOOP` when it does.
pub fn beneath(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    if path.len() > PATH_BYTES_MAX {
        let at = path[..PATH_BYTES_MAX].iter().rposition(|&b| b == b'/').ok_or(Errno::NAMETOOLONG)?;
        let dir = beneath(root, &path[..at], DIRECTORY)?;
        return beneath(dir.as_fd(), &path[at + 1..], flags);
    }
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let path = if path.is_empty() { b"." } else { path };
    loop {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty(), how)
        {
            // A rename went on meanwhile: the kernel asks to try again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Opens the directory at a path that is known to hold no symlink.
pub fn beneath_dir(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    beneath(root, path, DIRECTORY)
}

/// The names in a directory, sorted.
pub fn list(dir: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// What the symlink `name` says.
pub fn read_link(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>, Errno> {
    rustix::fs::readlinkat(dir, name, Vec::new()).map(CString::into_bytes)
}

pub(crate) fn chown(dir: BorrowedFd<'_>, name: &[u8], uid: u32, gid: u32) -> Result<(), Errno> {
    let flags = if name.is_empty() { AtFlags::EMPTY_PATH } else { AtFlags::SYMLINK_NOFOLLOW };
    rustix::fs::chownat(dir, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), flags)
}

/// Sets the permission bits of what is not a symlink.
pub(crate) fn chmod(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> Result<(), Errno> {
    let name = if name.is_empty() { b"." } else { name };
    rustix::fs::chmodat(dir, name, Mode::from_raw_mode(mode & 0o7777), AtFlags::empty())
}

/// Sets both times; nanoseconds since 1970.
pub(crate) fn set_times(
    dir: BorrowedFd<'_>,
    name: &[u8],
    access_ns: i128,
    modify_ns: i128,
) -> Result<(), Errno> {
    let times = Timestamps { last_access: timespec(access_ns), last_modification: timespec(modify_ns) };
    let name = if name.is_empty() { b"." } else { name };
    rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

/// [`set_times`] of what is open.
pub(crate) fn set_times_of(fd: BorrowedFd<'_>, access_ns: i128, modify_ns: i128) -> Result<(), Errno> {
    let times = Timestamps { last_access: timespec(access_ns), last_modification: timespec(modify_ns) };
    rustix::fs::futimens(fd, &times)
}

fn timespec(ns: i128) -> Timespec {
    let second = 1_000_000_000;
    Timespec {
        tv_sec: i64::try_from(ns.div_euclid(second)).unwrap_or(0),
        // The remainder is below a second.
        tv_nsec: ns.rem_euclid(second) as _,
    }
}

/// Time of the last write, in nanoseconds since 1970.
pub fn modified_ns(stat: &Stat) -> i128 {
    i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec)
}

pub(crate) fn accessed_ns(stat: &Stat) -> i128 {
    i128::from(stat.st_atime) * 1_000_000_000 + i128::from(stat.st_atime_nsec)
}

pub(crate) fn changed_ns(stat: &Stat) -> i128 {
    i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec)
}

/// A name for the calls that only take paths; its last component is not followed by their `l` forms.
fn proc_path(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let name = if name.is_empty() { b"." } else { name };
    [format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes(), name].concat()
}

/// Extended attributes: name and value.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// The extended attributes that belong to the content of a tree, sorted by name.
///
/// Left out are those that a security module, the kernel's overlay or a network file system keeps for itself.
pub fn xattrs(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Xattrs, Errno> {
    let path = proc_path(dir, name);
    content_xattrs(
        |buf| rustix::fs::llistxattr(path.as_slice(), buf),
        |key, buf| rustix::fs::lgetxattr(path.as_slice(), key, buf),
    )
}

/// [`xattrs`] of a file or directory that is open for reading.
pub fn xattrs_of(fd: BorrowedFd<'_>) -> Result<Xattrs, Errno> {
    content_xattrs(|buf| rustix::fs::flistxattr(fd, buf), |key, buf| rustix::fs::fgetxattr(fd, key, buf))
}

fn content_xattrs(
    list: impl Fn(&mut [u8]) -> Result<usize, Errno>,
    get: impl Fn(&[u8], &mut [u8]) -> Result<usize, Errno>,
) -> Result<Xattrs, Errno> {
    let names = match read_growing(list) {
        Ok(names) => names,
        Err(Errno::NOTSUP | Errno::PERM | Errno::ACCESS) => return Ok(Vec::new()),
        Err(errno) => return Err(errno),
    };
    let mut found = Vec::new();
    for key in names.split(|&b| b == 0).filter(|key| xattr_is_content(key)) {
        match read_growing(|buf| get(key, buf)) {
            Ok(value) => found.push((key.to_vec(), value)),
            Err(Errno::NODATA | Errno::PERM | Errno::ACCESS | Errno::NOTSUP) => {}
            Err(errno) => return Err(errno),
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Whether [`xattrs`] lists an attribute of this name.
pub fn xattr_is_content(key: &[u8]) -> bool {
    if key == b"security.capability" {
        return true;
    }
    let ours =
        key.starts_with(b"user.") || key.starts_with(b"trusted.") || key.starts_with(b"system.posix_acl_");
    ours && !key.starts_with(b"user.overlay.") && !key.starts_with(b"trusted.overlay.")
}

fn read_growing(read: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    // Most files have none, or few.
    let mut first = [0; 256];
    match read(&mut first) {
        Ok(len) => return Ok(first.get(..len).unwrap_or_default().to_vec()),
        Err(Errno::RANGE) => {}
        Err(errno) => return Err(errno),
    }
    let mut buf = vec![0; 2048];
    loop {
        match read(&mut buf) {
            Ok(len) => {
                buf.truncate(len);
                return Ok(buf);
            }
            Err(Errno::RANGE) if buf.len() < 1 << 20 => buf.resize(buf.len() * 8, 0),
            Err(errno) => return Err(errno),
        }
    }
}

/// Sets extended attributes as far as the file system and our rights go.
pub fn set_xattrs(dir: BorrowedFd<'_>, name: &[u8], xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<(), Errno> {
    if xattrs.is_empty() {
        return Ok(());
    }
    let path = proc_path(dir, name);
    let flags = rustix::fs::XattrFlags::empty();
    set_each(xattrs, |key, value| rustix::fs::lsetxattr(path.as_slice(), key, value, flags))
}

/// [`set_xattrs`] of what is open.
pub(crate) fn set_xattrs_of(fd: BorrowedFd<'_>, xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<(), Errno> {
    let flags = rustix::fs::XattrFlags::empty();
    set_each(xattrs, |key, value| rustix::fs::fsetxattr(fd, key, value, flags))
}

fn set_each(
    xattrs: &[(Vec<u8>, Vec<u8>)],
    set: impl Fn(&[u8], &[u8]) -> Result<(), Errno>,
) -> Result<(), Errno> {
    for (key, value) in xattrs {
        match set(key, value) {
            // A file system without them, or a name space that only the machine's root may write:
            // the file is of more use without the attribute than not at all.
            Ok(()) | Err(Errno::NOTSUP | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Removes `name` and all below it; a missing name is fine.
pub fn remove_all(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    // Depth first with an explicit stack: a step may have nested directories without end.
    // Only the deepest directory is held open; the way back up is `..`, checked by device and inode.
    let mut current = open_dir(dir, name)?;
    let mut above: Vec<(Vec<u8>, u64, u64)> = Vec::new();
    let mut doomed = name.to_vec();
    loop {
        match remove_files(current.as_fd())? {
            Some(child) => {
                let stat = rustix::fs::fstat(&current)?;
                above.push((doomed, stat.st_dev, stat.st_ino));
                current = open_dir(current.as_fd(), &child)?;
                doomed = child;
            }
            None => match above.pop() {
                Some((name, dev, ino)) => {
                    let parent = rustix::fs::openat(&current, "..", DIRECTORY, Mode::empty())?;
                    let stat = rustix::fs::fstat(&parent)?;
                    if (stat.st_dev, stat.st_ino) != (dev, ino) {
                        return Err(Errno::STALE);
                    }
                    rustix::fs::unlinkat(&parent, doomed.as_slice(), AtFlags::REMOVEDIR)?;
                    current = parent;
                    doomed = name;
                }
                None => return rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR),
            },
        }
    }
}

/// Removes what is not a directory; returns a directory that is left, if any.
fn remove_files(dir: BorrowedFd<'_>) -> Result<Option<Vec<u8>>, Errno> {
    for name in list(dir)? {
        match rustix::fs::unlinkat(dir, name.as_slice(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => {
                if stat(dir, &name)?.is_some_and(|stat| is_dir(&stat)) {
                    return Ok(Some(name));
                }
                return Err(Errno::PERM);
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(None)
}

/// Opens `path` of the machine itself as a root.
pub(crate) fn open_root(path: &std::path::Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}
