//! One entry in one open directory, written as a client describes it.
//!
//! Holds: every call names one entry of a directory that is open; none follows a symlink.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use lapstrake_fileop::at;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::mode;
use super::wire::{Stat, Xattr};

/// What an entry shall be, its contents aside.
#[derive(Debug, Clone)]
pub(crate) struct Meta {
    pub(crate) permissions: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) modified_ns: i64,
    /// Those that may be set, sorted by name.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Meta {
    pub(crate) fn of(stat: &Stat) -> Self {
        let ours = |xattr: &&Xattr| at::xattr_is_content(&xattr.key);
        let mut xattrs: Vec<_> =
            stat.xattrs.iter().filter(ours).map(|xattr| (xattr.key.clone(), xattr.value.clone())).collect();
        xattrs.sort_unstable();
        Self {
            permissions: mode::permissions(stat.mode),
            uid: stat.uid,
            gid: stat.gid,
            modified_ns: stat.mod_time,
            xattrs,
        }
    }

    /// Whether `old` has this mode, owner and attributes; `bare`: it is known to have no attributes.
    pub(crate) fn is_of(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        old: &rustix::fs::Stat,
        bare: bool,
    ) -> Result<bool, Errno> {
        let same =
            old.st_mode & 0o7777 == self.permissions && old.st_uid == self.uid && old.st_gid == self.gid;
        Ok(same && if bare { self.xattrs.is_empty() } else { at::xattrs(dir, name)? == self.xattrs })
    }
}

/// What the kernel does to a new file by itself, so that it need not be told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Creator {
    uid: u32,
    gid: u32,
    umask: u32,
}

impl Creator {
    /// This process.
    pub(crate) fn current() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
        Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            // An unknown one may take any bit.
            umask: umask.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).unwrap_or(0o777),
        }
    }

    /// Gives a new entry, opened as `fd`, its owner, mode, attributes and times. `inherits`: the directory may pass
    /// its group or an ACL on.
    fn settle(self, fd: BorrowedFd<'_>, meta: &Meta, inherits: bool) -> Result<(), Errno> {
        if inherits || meta.uid != self.uid || meta.gid != self.gid {
            rustix::fs::fchown(fd, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))?;
        }
        // After the owner, whose change takes set-id bits away.
        if inherits || meta.permissions & (self.umask | 0o7000) != 0 {
            rustix::fs::fchmod(fd, Mode::from_raw_mode(meta.permissions))?;
        }
        set_xattrs(fd, meta)
    }

    /// A new file, with nothing in it; what has its name makes room.
    pub(crate) fn create(
        self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        meta: &Meta,
        replace: bool,
    ) -> Result<OwnedFd, Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(meta.permissions & 0o777);
        if replace {
            at::remove_all(dir, name)?;
        }
        match rustix::fs::openat(dir, name, flags, mode) {
            Err(Errno::EXIST) => {
                at::remove_all(dir, name)?;
                rustix::fs::openat(dir, name, flags, mode)
            }
            result => result,
        }
    }

    /// A file's contents are all there: only now it gets the times that it shall have, so that one that was cut off
    /// is never taken for a good one. What it is then.
    pub(crate) fn finish(
        self,
        fd: BorrowedFd<'_>,
        meta: &Meta,
        inherits: bool,
    ) -> Result<rustix::fs::Stat, Errno> {
        self.settle(fd, meta, inherits)?;
        rustix::fs::futimens(fd, &times(meta.modified_ns))?;
        rustix::fs::fstat(fd)
    }

    /// A new directory, opened. Its times are set later.
    pub(crate) fn make_dir(
        self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        meta: &Meta,
        inherits: bool,
    ) -> Result<OwnedFd, Errno> {
        rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(meta.permissions & 0o777))?;
        let fd = at::open_dir(dir, name)?;
        self.settle(fd.as_fd(), meta, inherits)?;
        Ok(fd)
    }
}

/// Gives a directory that stays another owner, mode and attributes.
pub(crate) fn change_dir(fd: BorrowedFd<'_>, meta: &Meta) -> Result<(), Errno> {
    rustix::fs::fchown(fd, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(meta.permissions))?;
    for (key, _) in at::xattrs(fd, b"")? {
        if !meta.xattrs.iter().any(|(wanted, _)| *wanted == key) {
            rustix::fs::fremovexattr(fd, key.as_slice())?;
        }
    }
    set_xattrs(fd, meta)
}

fn set_xattrs(fd: BorrowedFd<'_>, meta: &Meta) -> Result<(), Errno> {
    for (key, value) in &meta.xattrs {
        match rustix::fs::fsetxattr(fd, key.as_slice(), value, XattrFlags::empty()) {
            // A file system without them, or a name space that only the machine's root may write:
            // the file is of more use without the attribute than not at all.
            Ok(()) | Err(Errno::NOTSUP | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

pub(crate) fn set_dir_times(fd: BorrowedFd<'_>, modified_ns: i64) -> Result<(), Errno> {
    rustix::fs::futimens(fd, &times(modified_ns))
}

/// A new symlink.
pub(crate) fn make_symlink(
    dir: BorrowedFd<'_>,
    name: &[u8],
    target: &[u8],
    meta: &Meta,
) -> Result<(), Errno> {
    rustix::fs::symlinkat(target, dir, name)?;
    settle_name(dir, name, meta)
}

/// A new device or pipe.
pub(crate) fn make_node(
    dir: BorrowedFd<'_>,
    name: &[u8],
    kind: FileType,
    device: u64,
    meta: &Meta,
) -> Result<(), Errno> {
    rustix::fs::mknodat(dir, name, kind, Mode::from_raw_mode(meta.permissions & 0o777), device)?;
    settle_name(dir, name, meta)?;
    // Not a symlink: it was made just now.
    rustix::fs::chmodat(dir, name, Mode::from_raw_mode(meta.permissions), AtFlags::empty())?;
    rustix::fs::utimensat(dir, name, &times(meta.modified_ns), AtFlags::SYMLINK_NOFOLLOW)
}

fn settle_name(dir: BorrowedFd<'_>, name: &[u8], meta: &Meta) -> Result<(), Errno> {
    let owner = (Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)));
    rustix::fs::chownat(dir, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
    at::set_xattrs(dir, name, &meta.xattrs)?;
    rustix::fs::utimensat(dir, name, &times(meta.modified_ns), AtFlags::SYMLINK_NOFOLLOW)
}

/// Writes all of `bytes` at the file's position.
pub(crate) fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn times(modified_ns: i64) -> Timestamps {
    let second = 1_000_000_000;
    let time =
        Timespec { tv_sec: modified_ns.div_euclid(second), tv_nsec: modified_ns.rem_euclid(second) as _ };
    Timestamps { last_access: time, last_modification: time }
}
