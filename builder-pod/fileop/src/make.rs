//! The actions that make or remove one path.

use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::action::{MkdirAction, MkfileAction, Owner, RmAction, SymlinkAction};
use crate::at::{self, Context};
use crate::error::Error;
use crate::path;
use crate::view::View;

/// Makes a directory; an existing one is left as it is.
///
/// # Errors
/// When a parent is missing (and not asked for) or something else is in the way.
pub fn mkdir(root: BorrowedFd<'_>, action: &MkdirAction) -> Result<(), Error> {
    let target = View::snapshot(root).resolve(action.path.as_bytes(), true)?;
    if action.make_parents {
        return mkdir_all(root, &target, action.mode, action.owner, action.timestamp_ns).map(drop);
    }
    let Some((parent, name)) = path::split(&target) else { return Ok(()) };
    let dir = at::beneath_dir(root, parent).on("mkdir", &target)?;
    match make_one(dir.as_fd(), name, &target, action.mode, action.owner, action.timestamp_ns) {
        Err(Error::Io { errno: Errno::EXIST, .. }) => Ok(()),
        result => result,
    }
}

/// Makes `target`, which holds no symlink, and its parents; returns what was missing, parents first.
pub(crate) fn mkdir_all(
    root: BorrowedFd<'_>,
    target: &[u8],
    mode: u32,
    owner: Option<Owner>,
    timestamp_ns: Option<i64>,
) -> Result<Vec<Vec<u8>>, Error> {
    let mut dir = at::open_dir(root, b"").on("open", b"")?;
    let mut here = Vec::new();
    let mut made = Vec::new();
    for name in target.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
        here = path::join(&here, name);
        dir = match at::open_dir(dir.as_fd(), name) {
            Ok(next) => next,
            Err(Errno::NOENT) => {
                make_one(dir.as_fd(), name, &here, mode, owner, timestamp_ns)?;
                made.push(here.clone());
                at::open_dir(dir.as_fd(), name).on("open", &here)?
            }
            Err(errno) => return Err(errno).on("make directory", &here),
        };
    }
    Ok(made)
}

fn make_one(
    dir: BorrowedFd<'_>,
    name: &[u8],
    path: &[u8],
    mode: u32,
    owner: Option<Owner>,
    timestamp_ns: Option<i64>,
) -> Result<(), Error> {
    rustix::fs::mkdirat(dir, name, Mode::RWXU).on("make directory", path)?;
    settle(dir, name, path, Some(mode & 0o777), owner, timestamp_ns)
}

/// Owner, then mode (a change of owner drops setuid), then times.
fn settle(
    dir: BorrowedFd<'_>,
    name: &[u8],
    path: &[u8],
    mode: Option<u32>,
    owner: Option<Owner>,
    timestamp_ns: Option<i64>,
) -> Result<(), Error> {
    if let Some(owner) = owner {
        at::chown(dir, name, owner.uid, owner.gid).on("change owner of", path)?;
    }
    if let Some(mode) = mode {
        at::chmod(dir, name, mode).on("change mode of", path)?;
    }
    if let Some(ns) = timestamp_ns {
        at::set_times(dir, name, i128::from(ns), i128::from(ns)).on("set times of", path)?;
    }
    Ok(())
}

/// Writes a file, over an existing one if need be.
///
/// # Errors
/// When its directory is missing or a directory is in its place.
pub fn mkfile(root: BorrowedFd<'_>, action: &MkfileAction) -> Result<(), Error> {
    let target = View::snapshot(root).resolve(action.path.as_bytes(), true)?;
    let Some((parent, name)) = path::split(&target) else { return Err(Error::Root("write a file over")) };
    let dir = at::beneath_dir(root, parent).on("open", &target)?;
    let existing = at::stat(dir.as_fd(), name).on("stat", &target)?;
    match existing.as_ref().map(at::kind) {
        None | Some(FileType::RegularFile) => {}
        Some(FileType::Directory) => return Err(Error::FileOverDirectory(path::show(&target))),
        // Opening a pipe would wait for a reader, and a device is no place for a build to write to.
        Some(_) => return Err(Errno::INVAL).on("write", &target),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(&dir, name, flags, Mode::RUSR | Mode::WUSR).on("write", &target)?;
    std::fs::File::from(fd).write_all(&action.data).on("write", &target)?;
    let mode = existing.is_none().then_some(action.mode & 0o777);
    settle(dir.as_fd(), name, &target, mode, action.owner, action.timestamp_ns)
}

/// Makes a symlink.
///
/// # Errors
/// When its directory is missing or its place is taken.
pub fn symlink(root: BorrowedFd<'_>, action: &SymlinkAction) -> Result<(), Error> {
    let target = View::snapshot(root).resolve(action.path.as_bytes(), true)?;
    let Some((parent, name)) = path::split(&target) else { return Err(Error::Root("replace")) };
    let dir = at::beneath_dir(root, parent).on("symlink", &target)?;
    rustix::fs::symlinkat(action.target.as_str(), &dir, name).on("make symlink", &target)?;
    settle(dir.as_fd(), name, &target, None, action.owner, action.timestamp_ns)
}

/// Sets both times of what is at `path`; a symlink is not followed.
///
/// # Errors
/// When it is missing.
pub fn set_times(root: BorrowedFd<'_>, path: &str, seconds: i64) -> Result<(), Error> {
    let target = View::snapshot(root).resolve(path.as_bytes(), false)?;
    let (parent, name) = path::split(&target).unwrap_or((b"", b""));
    let dir = at::beneath_dir(root, parent).on("open", parent)?;
    let ns = i128::from(seconds) * 1_000_000_000;
    at::set_times(dir.as_fd(), name, ns, ns).on("set times of", &target)
}

/// Removes a path and all below it.
///
/// # Errors
/// When it is missing (and that is not allowed) or is the root.
pub fn rm(root: BorrowedFd<'_>, action: &RmAction) -> Result<(), Error> {
    let view = View::snapshot(root);
    if !action.allow_wildcard {
        return rm_one(view, action.path.as_bytes(), action.allow_not_found);
    }
    for found in view.glob(action.path.as_bytes(), false)? {
        rm_one(view, &found, action.allow_not_found)?;
    }
    Ok(())
}

fn rm_one(view: View<'_>, given: &[u8], allow_not_found: bool) -> Result<(), Error> {
    let target = view.resolve(given, false)?;
    let Some((parent, name)) = path::split(&target) else { return Err(Error::Root("remove")) };
    if view.stat(&target)?.is_none() {
        return if allow_not_found { Ok(()) } else { Err(Errno::NOENT).on("stat", &target) };
    }
    let dir = at::beneath(view.root(), parent, OFlags::RDONLY | OFlags::DIRECTORY).on("open", parent)?;
    at::remove_all(dir.as_fd(), name).on("remove", &target)
}

/// Makes the name free: removes a file, and a directory only if `replace`.
pub(crate) fn clear_for_file(
    dir: BorrowedFd<'_>,
    name: &[u8],
    path: &[u8],
    replace: bool,
) -> Result<(), Error> {
    match at::stat(dir, name).on("stat", path)? {
        None => Ok(()),
        Some(stat) if at::is_dir(&stat) && !replace => Err(Error::FileOverDirectory(path::show(path))),
        Some(stat) if at::is_dir(&stat) => at::remove_all(dir, name).on("remove", path),
        Some(_) => rustix::fs::unlinkat(dir, name, AtFlags::empty()).on("remove", path),
    }
}

#[cfg(test)]
#[path = "make_tests.rs"]
mod tests;
