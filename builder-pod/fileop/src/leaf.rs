//! What a copy makes: files, links and special files in open directories, and the directories' own metadata.
//!
//! Holds: what the kernel already gave a new file (owner, mode) is not set again; no name is looked at that is known
//! to be free. All of it may be done by several threads, each with a [`Fast`] of its own.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use crate::action::{Cancel, CopyAction};
use crate::at::{self, Context};
use crate::data::{Fast, Stop};
use crate::error::Error;
use crate::make::clear_for_file;
use crate::path;
use crate::view::View;

/// A directory of the destination that files are copied to. Whoever lets go of it last finishes it: each name that is
/// made in it changes its time.
pub(crate) struct Folder {
    pub(crate) fd: OwnedFd,
    /// Relative to the destination's root.
    pub(crate) path: Vec<u8>,
    pub(crate) finish: Option<Finish>,
}

/// What a directory gets when all is in it.
pub(crate) struct Finish {
    pub(crate) src: Arc<OwnedFd>,
    pub(crate) stat: Stat,
    /// All of its metadata, or only its times.
    pub(crate) whole: bool,
}

/// Something that is no directory.
pub(crate) struct Leaf {
    pub(crate) name: Vec<u8>,
    pub(crate) stat: Stat,
    /// Its name in the destination, where that is another one.
    pub(crate) renamed: Option<Vec<u8>>,
}

impl Leaf {
    pub(crate) fn dst_name(&self) -> &[u8] {
        self.renamed.as_deref().unwrap_or(&self.name)
    }
}

/// Leaves of one directory.
pub(crate) struct Batch {
    pub(crate) src: Arc<OwnedFd>,
    /// Relative to the source's root.
    pub(crate) src_path: Vec<u8>,
    pub(crate) folder: Arc<Folder>,
    pub(crate) leaves: Vec<Leaf>,
}

/// Makes copies by one action.
pub(crate) struct Writer<'a> {
    pub(crate) src: View<'a>,
    pub(crate) action: &'a CopyAction,
    pub(crate) cancel: &'a Cancel,
}

impl Writer<'_> {
    pub(crate) fn batch(&self, batch: Batch, fast: &mut Fast) -> Result<(), Error> {
        let Batch { src, src_path, folder, leaves } = batch;
        for leaf in &leaves {
            self.cancel.check()?;
            self.leaf(src.as_fd(), &src_path, &folder, leaf, fast)?;
        }
        self.release(folder)
    }

    /// Lets go of a directory.
    pub(crate) fn release(&self, folder: Arc<Folder>) -> Result<(), Error> {
        let Some(Folder { fd, path, finish: Some(finish) }) = Arc::into_inner(folder) else { return Ok(()) };
        if finish.whole {
            let xattrs = self.src.attributes_of(finish.src.as_fd()).on("read attributes of", &path)?;
            self.settle(fd.as_fd(), &path, &finish.stat, &xattrs)
        } else {
            self.times(fd.as_fd(), &path, &finish.stat)
        }
    }

    /// Makes one copy.
    pub(crate) fn leaf(
        &self,
        src: BorrowedFd<'_>,
        src_path: &[u8],
        folder: &Folder,
        leaf: &Leaf,
        fast: &mut Fast,
    ) -> Result<(), Error> {
        let (dir, name) = (folder.fd.as_fd(), leaf.dst_name());
        let path = path::join(&folder.path, name);
        let here = || path::join(src_path, &leaf.name);
        match at::kind(&leaf.stat) {
            FileType::RegularFile => return self.file(src, &here, dir, &path, leaf, fast),
            FileType::Symlink => {
                let target = at::read_link(src, &leaf.name).on("read link", &here())?;
                let make = || rustix::fs::symlinkat(target.as_slice(), dir, name);
                self.in_place(dir, name, &path, make)?.on("make symlink", &path)?;
            }
            kind => {
                let device = matches!(kind, FileType::BlockDevice | FileType::CharacterDevice);
                let device = if device { leaf.stat.st_rdev } else { 0 };
                let make = || rustix::fs::mknodat(dir, name, kind, Mode::RUSR | Mode::WUSR, device);
                self.in_place(dir, name, &path, make)?.on("make special file", &path)?;
            }
        }
        let xattrs = self.src.attributes(src, &leaf.name).on("read attributes of", &here())?;
        self.settle_name(dir, name, &path, &leaf.stat, &xattrs)
    }

    /// Makes something under a name, which is made free only where it turns out not to be.
    pub(crate) fn in_place<T>(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<Result<T, Errno>, Error> {
        match make() {
            Err(Errno::EXIST) => {
                clear_for_file(dir, name, path, self.action.always_replace_existing_dest_paths)?;
                Ok(make())
            }
            made => Ok(made),
        }
    }

    fn file(
        &self,
        src: BorrowedFd<'_>,
        here: &dyn Fn() -> Vec<u8>,
        dir: BorrowedFd<'_>,
        path: &[u8],
        leaf: &Leaf,
        fast: &mut Fast,
    ) -> Result<(), Error> {
        let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let from = rustix::fs::openat(src, leaf.name.as_slice(), read, Mode::empty());
        let from = match from {
            Ok(from) => from,
            Err(errno) => return Err(errno).on("open", &here()),
        };
        let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(self.mode(&leaf.stat) & 0o777);
        let create = || rustix::fs::openat(dir, leaf.dst_name(), write, mode);
        let to = self.in_place(dir, leaf.dst_name(), path, create)?.on("create", path)?;
        fast.copy(from.as_fd(), to.as_fd(), &leaf.stat, self.cancel).map_err(|stop| match stop {
            Stop::Errno(errno) => Error::Io { action: "copy to", path: path::show(path), errno },
            Stop::Canceled => Error::Canceled,
        })?;
        let xattrs = self.src.attributes_of(from.as_fd()).on("read attributes of", path)?;
        self.settle(to.as_fd(), path, &leaf.stat, &xattrs)
    }

    fn owner(&self, stat: &Stat) -> (u32, u32) {
        match self.action.owner {
            Some(owner) => (owner.uid, owner.gid),
            None => self.src.owner(stat),
        }
    }

    /// The permission bits that a copy gets.
    fn mode(&self, stat: &Stat) -> u32 {
        let mode = match &self.action.mode {
            Some(change) => change.apply(stat.st_mode, at::is_dir(stat)),
            None => stat.st_mode,
        };
        mode & 0o7777
    }

    /// Gives what is open the metadata of its source.
    fn settle(&self, fd: BorrowedFd<'_>, path: &[u8], stat: &Stat, xattrs: &at::Xattrs) -> Result<(), Error> {
        let now = rustix::fs::fstat(fd).on("stat", path)?;
        let (uid, gid) = self.owner(stat);
        if (now.st_uid, now.st_gid) != (uid, gid) {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            rustix::fs::fchown(fd, uid, gid).on("change owner of", path)?;
        }
        // After the owner, whose change takes set-id bits away: where those are wanted, they were not there before.
        let mode = self.mode(stat);
        if now.st_mode & 0o7777 != mode || mode & 0o6000 != 0 {
            rustix::fs::fchmod(fd, Mode::from_raw_mode(mode)).on("change mode of", path)?;
        }
        at::set_xattrs_of(fd, xattrs).on("set attributes of", path)?;
        self.times(fd, path, stat)
    }

    /// The same of a name that cannot be opened, or not without effects.
    fn settle_name(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        stat: &Stat,
        xattrs: &at::Xattrs,
    ) -> Result<(), Error> {
        let (uid, gid) = self.owner(stat);
        at::chown(dir, name, uid, gid).on("change owner of", path)?;
        if at::kind(stat) != FileType::Symlink {
            at::chmod(dir, name, self.mode(stat)).on("change mode of", path)?;
        }
        at::set_xattrs(dir, name, xattrs).on("set attributes of", path)?;
        let (access, modify) = self.wanted_times(stat);
        at::set_times(dir, name, access, modify).on("set times of", path)
    }

    fn wanted_times(&self, stat: &Stat) -> (i128, i128) {
        match self.action.timestamp_ns {
            Some(ns) => (i128::from(ns), i128::from(ns)),
            None => (at::accessed_ns(stat), at::modified_ns(stat)),
        }
    }

    fn times(&self, fd: BorrowedFd<'_>, path: &[u8], stat: &Stat) -> Result<(), Error> {
        let (access, modify) = self.wanted_times(stat);
        at::set_times_of(fd, access, modify).on("set times of", path)
    }
}
