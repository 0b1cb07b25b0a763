//! Owner, mode, attributes and times of what was unpacked.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, Stat, Uid};
use rustix::io::Errno;

use crate::fsio::{self, Xattrs};
use crate::tar::{Entry, Time};
use crate::{Error, Result};

/// What a file or directory shall look like.
pub(super) struct Attributes<'a> {
    pub(super) path: &'a [u8],
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: u32,
    pub(super) mtime: Time,
    pub(super) xattrs: &'a Xattrs,
}

impl<'a> Attributes<'a> {
    pub(super) fn of(entry: &'a Entry) -> Result<Self> {
        let id = |id: u64| {
            // The highest id means "leave as it is" to the kernel.
            let id = u32::try_from(id).ok().filter(|id| *id != u32::MAX);
            id.ok_or_else(|| Error::malformed(&entry.path, "owner is out of range"))
        };
        Ok(Self {
            path: &entry.path,
            uid: id(entry.uid)?,
            gid: id(entry.gid)?,
            mode: entry.mode,
            mtime: entry.mtime,
            xattrs: &entry.xattrs,
        })
    }

    pub(super) fn of_stat(path: &'a [u8], stat: &Stat, xattrs: &'a Xattrs) -> Self {
        Self {
            path,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mode: stat.st_mode & 0o7777,
            mtime: fsio::mtime(stat),
            xattrs,
        }
    }

    /// Sets all on an open file or directory. The order matters: a change of owner drops setuid bits and
    /// capabilities.
    pub(super) fn set(&self, fd: &OwnedFd, skipped: &mut Vec<String>) -> Result<()> {
        let owner = rustix::fs::fchown(fd, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)));
        owner.map_err(|e| self.owner_error(e))?;
        self.set_xattrs(skipped, |name, value| fsio::set_xattr(fd, name, value))?;
        rustix::fs::fchmod(fd, Mode::from_raw_mode(self.mode))
            .map_err(|e| Error::io("set the mode of", self.path, e))?;
        fsio::set_times(fd, self.mtime).map_err(|e| Error::io("set the times of", self.path, e))
    }

    /// Sets all on `name`, which is no file and no directory.
    pub(super) fn set_at(
        &self,
        at: BorrowedFd<'_>,
        name: &[u8],
        is_symlink: bool,
        skipped: &mut Vec<String>,
    ) -> Result<()> {
        let (uid, gid) = (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)));
        rustix::fs::chownat(at, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| self.owner_error(e))?;
        self.set_xattrs(skipped, |attribute, value| fsio::set_xattr_at(at, name, attribute, value))?;
        if !is_symlink {
            rustix::fs::chmodat(at.as_fd(), name, Mode::from_raw_mode(self.mode), AtFlags::empty())
                .map_err(|e| Error::io("set the mode of", self.path, e))?;
        }
        fsio::set_times_at(at, name, self.mtime).map_err(|e| Error::io("set the times of", self.path, e))
    }

    fn set_xattrs(
        &self,
        skipped: &mut Vec<String>,
        set: impl Fn(&[u8], &[u8]) -> rustix::io::Result<()>,
    ) -> Result<()> {
        for (name, value) in self.xattrs {
            let mut skip = |why: &str| {
                let (path, name) = (String::from_utf8_lossy(self.path), String::from_utf8_lossy(name));
                skipped.push(format!("attribute {name} of {path}: {why}"));
            };
            if fsio::is_overlay_xattr(name) {
                // It would open a way into overlay's own bookkeeping.
                skip("belongs to overlay");
                continue;
            }
            match set(name, value) {
                Ok(()) => {}
                Err(Errno::NOTSUP) => skip("the file system has none such"),
                // `trusted.*` and labels are the system's; capabilities must not get lost in silence.
                Err(Errno::PERM) if name != b"security.capability" => skip("not permitted here"),
                Err(e) => return Err(Error::io("set an attribute of", self.path, e)),
            }
        }
        Ok(())
    }

    fn owner_error(&self, error: Errno) -> Error {
        match error {
            Errno::INVAL => Error::Owner {
                path: String::from_utf8_lossy(self.path).into_owned(),
                uid: self.uid,
                gid: self.gid,
            },
            error => Error::io("set the owner of", self.path, error),
        }
    }
}
