//! A root file system as a directory on the disk.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::walk::{Found, Visitor, walk};
use crate::{Error, Result, fsio};

/// Copies everything below `root` into the directory `dest`, which is made where it is missing. Blocking.
///
/// Owners, modes, attributes, hardlinks, devices, holes and times are kept. What `dest` holds beside stays;
/// a file or symlink that is in the way is replaced, never written through. `dest` itself keeps its owner
/// and mode.
///
/// # Errors
/// Of the file system, with the path; also where a directory that is not empty would become a file, and
/// where devices or owners need rights that the caller lacks.
pub fn rootfs_dir(root: BorrowedFd<'_>, dest: &Path) -> Result<()> {
    std::fs::create_dir_all(dest).map_err(|e| Error::io_at("create", dest, e))?;
    let top = fsio::open_root(dest).map_err(|e| Error::io_at("open", dest, e))?;
    walk(root, &mut Copier { dirs: vec![top] })
}

struct Copier {
    /// The directories of the copy from `dest` to where we are.
    dirs: Vec<OwnedFd>,
}

impl Visitor for Copier {
    fn enter(&mut self, found: &Found<'_>) -> Result<()> {
        if found.kind == FileType::Directory {
            let dir = self.directory(found)?;
            self.dirs.push(dir);
            return Ok(());
        }
        let here = self.here();
        clear(here, found)?;
        if let Some(earlier) = found.earlier {
            return self.link(here, earlier, found);
        }
        match (found.kind, found.open) {
            (FileType::RegularFile, Some(source)) => copy_file(here, source, found),
            (FileType::Symlink, _) => {
                let target = rustix::fs::readlinkat(found.parent, found.name, Vec::new());
                let target = target.map_err(|e| Error::io("read link", found.path, e))?;
                rustix::fs::symlinkat(target.as_c_str(), here, found.name)
                    .map_err(|e| Error::io("make symlink", found.path, e))?;
                attributes_at(here, found)
            }
            _ => {
                rustix::fs::mknodat(here, found.name, found.kind, Mode::RUSR, found.stat.st_rdev)
                    .map_err(|e| Error::io("make device", found.path, e))?;
                attributes_at(here, found)
            }
        }
    }

    fn leave(&mut self, found: &Found<'_>) -> Result<()> {
        let Some(dir) = self.dirs.pop() else { return Ok(()) };
        // Last, since what was made inside has changed the times and may have needed the rights.
        attributes_of(&dir, found)
    }
}

impl Copier {
    fn here(&self) -> BorrowedFd<'_> {
        self.dirs.last().expect("dest itself is never popped").as_fd()
    }

    fn directory(&self, found: &Found<'_>) -> Result<OwnedFd> {
        let here = self.here();
        let there = fsio::stat(here, found.name).map_err(|e| Error::io("look at", found.path, e))?;
        if there.is_none_or(|stat| fsio::kind(&stat) != FileType::Directory) {
            clear(here, found)?;
            rustix::fs::mkdirat(here, found.name, Mode::RWXU)
                .map_err(|e| Error::io("make directory", found.path, e))?;
        }
        fsio::open_dir(here, found.name).map_err(|e| Error::io("open", found.path, e))
    }

    /// Makes another name of a file that was copied before.
    fn link(&self, here: BorrowedFd<'_>, earlier: &[u8], found: &Found<'_>) -> Result<()> {
        let fail = |e| Error::io("make link", found.path, e);
        let mut names = earlier.split(|b| *b == b'/');
        let last = names.next_back().unwrap_or(earlier);
        // Step by step: a symlink that somebody puts there meanwhile is not followed.
        let mut dir: Option<OwnedFd> = None;
        for name in names {
            let from = dir.as_ref().map_or(self.dirs[0].as_fd(), |d| d.as_fd());
            dir = Some(fsio::open_dir(from, name).map_err(fail)?);
        }
        let from = dir.as_ref().map_or(self.dirs[0].as_fd(), |d| d.as_fd());
        rustix::fs::linkat(from, last, here, found.name, AtFlags::empty()).map_err(fail)
    }
}

/// Removes what stands in the way of something that is no directory.
fn clear(here: BorrowedFd<'_>, found: &Found<'_>) -> Result<()> {
    let removed = match rustix::fs::unlinkat(here, found.name, AtFlags::empty()) {
        // A directory, which only goes where it is empty.
        Err(Errno::ISDIR | Errno::PERM) => rustix::fs::unlinkat(here, found.name, AtFlags::REMOVEDIR),
        other => other,
    };
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(Error::io("replace", found.path, e)),
    }
}

fn copy_file(here: BorrowedFd<'_>, source: &OwnedFd, found: &Found<'_>) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(here, found.name, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|e| Error::io("create", found.path, e))?;
    lapstrake_sys::fs::copy_contents(source, &file).map_err(|e| Error::io("copy", found.path, e.errno))?;
    attributes_of(&file, found)
}

/// Owner, mode, attributes and times of an open file or directory, in the order in which none undoes
/// another: a change of owner takes setuid and capabilities away.
fn attributes_of(file: &OwnedFd, found: &Found<'_>) -> Result<()> {
    let stat = &found.stat;
    let owner = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    rustix::fs::fchown(file, owner.0, owner.1).map_err(|e| Error::io("set owner of", found.path, e))?;
    rustix::fs::fchmod(file, Mode::from_raw_mode(stat.st_mode & 0o7777))
        .map_err(|e| Error::io("set mode of", found.path, e))?;
    for (name, value) in &found.xattrs {
        fsio::set_xattr(file, name, value).map_err(|e| Error::io("set attributes of", found.path, e))?;
    }
    fsio::set_times(file, fsio::mtime(stat)).map_err(|e| Error::io("set times of", found.path, e))
}

/// The same for what cannot be opened.
fn attributes_at(here: BorrowedFd<'_>, found: &Found<'_>) -> Result<()> {
    let stat = &found.stat;
    let owner = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    rustix::fs::chownat(here, found.name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|e| Error::io("set owner of", found.path, e))?;
    if found.kind != FileType::Symlink {
        rustix::fs::chmodat(here, found.name, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())
            .map_err(|e| Error::io("set mode of", found.path, e))?;
    }
    for (name, value) in &found.xattrs {
        fsio::set_xattr_at(here, found.name, name, value)
            .map_err(|e| Error::io("set attributes of", found.path, e))?;
    }
    fsio::set_times_at(here, found.name, fsio::mtime(stat))
        .map_err(|e| Error::io("set times of", found.path, e))
}
