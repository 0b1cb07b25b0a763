//! The upper directory while a layer is unpacked into it.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::ApplyOptions;
use super::attributes::Attributes;
use crate::fsio::{self, Xattrs};
use crate::lower::{LowerChild, LowerDir};
use crate::tar::{Entry, Kind, TarReader, Time};
use crate::{Error, Result, limits};

/// Data is written in pieces of this size; pieces of zeros become holes.
const PIECE_BYTES: usize = 64 << 10;

/// A directory in the upper directory, with the path that it really has.
#[derive(Clone)]
struct Dir {
    fd: Rc<OwnedFd>,
    path: Vec<u8>,
}

impl Dir {
    fn child_path(&self, name: &[u8]) -> Vec<u8> {
        if self.path.is_empty() { name.to_vec() } else { [&self.path, &b"/"[..], name].concat() }
    }
}

/// All changes go through directory handles that start at the root and are opened name by name without
/// following symlinks; a symlink on the way is resolved here, inside the root.
pub(super) struct Tree<'a> {
    root: Dir,
    options: &'a ApplyOptions,
    /// The directory of the last entry, by its names: archives list a directory's files together.
    last: Option<(Vec<u8>, Dir)>,
    /// Times of directories, set at the end since every new entry changes them.
    times: BTreeMap<Vec<u8>, Time>,
    skipped: Vec<String>,
}

impl<'a> Tree<'a> {
    pub(super) fn open(upper: &Path, options: &'a ApplyOptions) -> Result<Self> {
        let fd = fsio::open_root(upper).map_err(|e| Error::io_at("open", upper, e))?;
        let stat = rustix::fs::fstat(&fd).map_err(|e| Error::io_at("look at", upper, e))?;
        let root = Dir { fd: Rc::new(fd), path: Vec::new() };
        let times = BTreeMap::from([(Vec::new(), fsio::mtime(&stat))]);
        Ok(Self { root, options, last: None, times, skipped: Vec::new() })
    }

    /// Sets the directories' times; returns what was left out.
    pub(super) fn finish(mut self) -> Result<Vec<String>> {
        for (path, time) in std::mem::take(&mut self.times) {
            let fd = path.split(|b| *b == b'/').filter(|n| !n.is_empty()).try_fold(None, |at, name| {
                let at: &OwnedFd = at.as_ref().unwrap_or(&self.root.fd);
                fsio::open_dir(at, name).map(Some)
            });
            match fd {
                Ok(fd) => fsio::set_times(fd.as_ref().unwrap_or(&self.root.fd), time)
                    .map_err(|e| Error::io("set the times of", &path, e))?,
                // A later entry replaced it by something else.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(e) => return Err(Error::io("open", &path, e)),
            }
        }
        Ok(self.skipped)
    }

    /// An entry for the root directory itself.
    pub(super) fn root_attributes(&mut self, entry: &Entry) -> Result<()> {
        Attributes::of(entry)?.set(&self.root.fd, &mut self.skipped)?;
        self.times.insert(Vec::new(), entry.mtime);
        Ok(())
    }

    pub(super) fn dir(&mut self, parent: &[&[u8]], name: &[u8], entry: &Entry) -> Result<()> {
        let parent = self.resolve(parent)?;
        let path = parent.child_path(name);
        let there = self.stat(&parent, name)?;
        let fd = match there {
            Some(stat) if fsio::kind(&stat) == FileType::Directory => {
                let fd = open_dir(&parent, name)?;
                clear_xattrs(&fd, &entry.xattrs);
                fd
            }
            there => self.make_dir(&parent, name, there)?,
        };
        Attributes::of(entry)?.set(&fd, &mut self.skipped)?;
        self.times.insert(path, entry.mtime);
        Ok(())
    }

    pub(super) fn file<R: Read>(
        &mut self,
        parent: &[&[u8]],
        name: &[u8],
        entry: &Entry,
        data: &mut TarReader<R>,
    ) -> Result<()> {
        let parent = self.resolve(parent)?;
        self.make_room(&parent, name)?;
        let file = create(&parent, name)?;
        let fail = |e: Errno| Error::io("write", &entry.path, e);
        match &entry.sparse {
            None => write_piece(&file, 0, entry.size, data).map_err(|e| e.of(&entry.path))?,
            Some(pieces) => {
                for (offset, length) in pieces {
                    write_piece(&file, *offset, *length, data).map_err(|e| e.of(&entry.path))?;
                }
            }
        }
        rustix::fs::ftruncate(&file, entry.size).map_err(fail)?;
        Attributes::of(entry)?.set(&file, &mut self.skipped)
    }

    pub(super) fn symlink(&mut self, parent: &[&[u8]], name: &[u8], entry: &Entry) -> Result<()> {
        let parent = self.resolve(parent)?;
        self.make_room(&parent, name)?;
        if entry.link.is_empty() {
            return Err(Error::malformed(&entry.path, "symlink to nothing"));
        }
        rustix::fs::symlinkat(entry.link.as_slice(), &parent.fd, name)
            .map_err(|e| Error::io("make symlink", &entry.path, e))?;
        Attributes::of(entry)?.set_at(parent.fd.as_fd(), name, true, &mut self.skipped)
    }

    /// A device or pipe.
    pub(super) fn node(&mut self, parent: &[&[u8]], name: &[u8], entry: &Entry) -> Result<()> {
        let parent = self.resolve(parent)?;
        self.make_room(&parent, name)?;
        let (kind, device) = match entry.kind {
            Kind::Char(major, minor) => (FileType::CharacterDevice, rustix::fs::makedev(major, minor)),
            Kind::Block(major, minor) => (FileType::BlockDevice, rustix::fs::makedev(major, minor)),
            _ => (FileType::Fifo, 0),
        };
        match rustix::fs::mknodat(&parent.fd, name, kind, Mode::from_raw_mode(entry.mode & 0o777), device) {
            Ok(()) => {}
            // No device but a whiteout may be made in a user namespace.
            Err(Errno::PERM) if kind != FileType::Fifo => {
                let path = String::from_utf8_lossy(&entry.path);
                self.skipped.push(format!("device {path}: not permitted here"));
                return Ok(());
            }
            Err(e) => return Err(Error::io("make device", &entry.path, e)),
        }
        Attributes::of(entry)?.set_at(parent.fd.as_fd(), name, false, &mut self.skipped)
    }

    /// Another name for a file of this layer, or of one below, which is copied up first.
    pub(super) fn hardlink(
        &mut self,
        parent: &[&[u8]],
        name: &[u8],
        entry: &Entry,
        target: &[&[u8]],
        target_name: &[u8],
    ) -> Result<()> {
        let target = self.resolve(target)?;
        let parent = self.resolve(parent)?;
        if (&target.path, target_name) == (&parent.path, name) {
            return Ok(());
        }
        match self.stat(&target, target_name)? {
            None => self.copy_up(&target, target_name, entry)?,
            Some(stat) if fsio::kind(&stat) == FileType::Directory || fsio::is_whiteout(&stat) => {
                return Err(Error::malformed(&entry.path, "hard link to what is no file"));
            }
            Some(_) => {}
        }
        self.make_room(&parent, name)?;
        rustix::fs::linkat(&target.fd, target_name, &parent.fd, name, AtFlags::empty())
            .map_err(|e| Error::io("make hard link", &entry.path, e))
    }

    /// Another name for a file that another snapshot has as `at`; a copy where the file system has no room for one
    /// more name.
    pub(super) fn link(
        &mut self,
        parent: &[&[u8]],
        name: &[u8],
        entry: &Entry,
        at: (&OwnedFd, &[u8]),
    ) -> Result<()> {
        let parent = self.resolve(parent)?;
        self.make_room(&parent, name)?;
        match rustix::fs::linkat(at.0, at.1, &parent.fd, name, AtFlags::empty()) {
            Ok(()) => Ok(()),
            Err(Errno::MLINK | Errno::PERM | Errno::XDEV) if matches!(entry.kind, Kind::File) => {
                let fail = |e: Errno| Error::io("copy", &entry.path, e);
                let from = fsio::open_file(at.0, at.1).map_err(fail)?;
                let stat = rustix::fs::fstat(&from).map_err(fail)?;
                let mut to = std::fs::File::from(create(&parent, name)?);
                std::io::copy(&mut std::fs::File::from(from), &mut to)
                    .map_err(|e| Error::io("copy", &entry.path, e))?;
                let attributes = Attributes::of_stat(&entry.path, &stat, &entry.xattrs);
                attributes.set(&OwnedFd::from(to), &mut self.skipped)
            }
            Err(e) => Err(Error::io("make hard link", &entry.path, e)),
        }
    }

    /// Hides `name` of the layers below. What this layer itself has there stays.
    pub(super) fn whiteout(&mut self, parent: &[&[u8]], name: &[u8]) -> Result<()> {
        let parent = self.resolve(parent)?;
        match self.stat(&parent, name)? {
            Some(stat) if fsio::kind(&stat) == FileType::Directory => {
                let fd = open_dir(&parent, name)?;
                self.mark_opaque(&fd, &parent.child_path(name))
            }
            Some(_) => Ok(()),
            None => make_whiteout(&parent, name),
        }
    }

    /// Hides all that the layers below have in a directory.
    pub(super) fn opaque(&mut self, dir: &[&[u8]]) -> Result<()> {
        let dir = self.resolve(dir)?;
        if !dir.path.is_empty() {
            return self.mark_opaque(&dir.fd, &dir.path);
        }
        // Overlay does not look for the mark on the root.
        let lowers = self.below()?;
        for name in lowers.names().map_err(|e| Error::io("list", b"/", e))? {
            self.whiteout(&[], name.to_bytes())?;
        }
        Ok(())
    }

    fn mark_opaque(&self, fd: &OwnedFd, path: &[u8]) -> Result<()> {
        fsio::set_xattr(fd, &fsio::overlay_xattr(b"opaque", self.options.userxattr), b"y")
            .map_err(|e| Error::io("make opaque", path, e))
    }

    /// Opens the directory of these names; what is missing is made to look like the layers below.
    fn resolve(&mut self, names: &[&[u8]]) -> Result<Dir> {
        let key = names.join(&b'/');
        if let Some((last, dir)) = &self.last
            && *last == key
        {
            return Ok(dir.clone());
        }
        let mut todo: Vec<Vec<u8>> = names.iter().rev().map(|n| n.to_vec()).collect();
        let mut stack = vec![self.root.clone()];
        let mut symlinks = 0;
        while let Some(name) = todo.pop() {
            let at = stack.last().unwrap_or(&self.root).clone();
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    // Above the root is the root, as for a process inside.
                    if stack.len() > 1 {
                        stack.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let path = at.child_path(&name);
            let fd = match fsio::open_dir(&at.fd, &name) {
                Ok(fd) => fd,
                Err(Errno::NOENT) => self.make_implicit(&at, &name, None)?,
                Err(Errno::NOTDIR | Errno::LOOP) => match self.stat(&at, &name)? {
                    Some(stat) if fsio::kind(&stat) == FileType::Symlink => {
                        symlinks += 1;
                        if symlinks > limits::SYMLINKS_MAX {
                            return Err(Error::hostile(&path, "it leads through too many symlinks"));
                        }
                        let target = rustix::fs::readlinkat(&at.fd, name.as_slice(), Vec::new())
                            .map_err(|e| Error::io("read symlink", &path, e))?;
                        let target = target.to_bytes();
                        if target.starts_with(b"/") {
                            stack.truncate(1);
                        }
                        todo.extend(target.split(|b| *b == b'/').rev().map(<[u8]>::to_vec));
                        continue;
                    }
                    Some(stat) if fsio::is_whiteout(&stat) => self.make_implicit(&at, &name, Some(stat))?,
                    _ => return Err(Error::malformed(&path, "it is a file, but another entry is in it")),
                },
                Err(e) => return Err(Error::io("open", &path, e)),
            };
            if stack.len() > limits::DEPTH_MAX {
                return Err(Error::malformed(&path, "path is too deep"));
            }
            stack.push(Dir { fd: Rc::new(fd), path });
        }
        let dir = stack.pop().unwrap_or_else(|| self.root.clone());
        self.last = Some((key, dir.clone()));
        Ok(dir)
    }

    /// Makes a directory that the layer does not list: as below, else plain.
    fn make_implicit(&mut self, parent: &Dir, name: &[u8], there: Option<Stat>) -> Result<OwnedFd> {
        let path = parent.child_path(name);
        let below = if there.is_some() { None } else { self.dir_below(&path)? };
        let fd = self.make_dir(parent, name, there)?;
        let none = Xattrs::new();
        let attributes = match &below {
            Some((stat, xattrs)) => Attributes::of_stat(&path, stat, xattrs),
            None => {
                Attributes { path: &path, uid: 0, gid: 0, mode: 0o755, mtime: Time::default(), xattrs: &none }
            }
        };
        attributes.set(&fd, &mut self.skipped)?;
        self.times.insert(path.clone(), attributes.mtime);
        Ok(fd)
    }

    /// Makes a directory in place of `there`. Over a whiteout it must hide what is below.
    fn make_dir(&mut self, parent: &Dir, name: &[u8], there: Option<Stat>) -> Result<OwnedFd> {
        let path = parent.child_path(name);
        if there.is_some() {
            self.make_room(parent, name)?;
        }
        rustix::fs::mkdirat(&parent.fd, name, Mode::RWXU)
            .map_err(|e| Error::io("make directory", &path, e))?;
        let fd = open_dir(parent, name)?;
        if there.is_some_and(|stat| fsio::is_whiteout(&stat)) {
            self.mark_opaque(&fd, &path)?;
        }
        Ok(fd)
    }

    /// Removes what an earlier entry of this layer put there.
    fn make_room(&mut self, parent: &Dir, name: &[u8]) -> Result<()> {
        if self.stat(parent, name)?.is_none() {
            return Ok(());
        }
        // The handle may be of a directory that goes, or may have come through a symlink that goes.
        self.last = None;
        fsio::remove_all(parent.fd.as_fd(), name)
            .map_err(|e| Error::io("replace", &parent.child_path(name), e))
    }

    fn stat(&self, parent: &Dir, name: &[u8]) -> Result<Option<Stat>> {
        fsio::stat(&parent.fd, name).map_err(|e| Error::io("look at", &parent.child_path(name), e))
    }

    fn below(&self) -> Result<LowerDir> {
        LowerDir::root(&self.options.lowers_top_first, self.options.userxattr)
    }

    /// The directory at `path` in the layers below.
    fn dir_below(&self, path: &[u8]) -> Result<Option<(Stat, Xattrs)>> {
        let fail = |e| Error::io("look below at", path, e);
        let mut at = self.below()?;
        let mut found = None;
        for name in path.split(|b| *b == b'/') {
            match at.child(name).map_err(fail)? {
                LowerChild::Dir(dir, stat) => {
                    at = dir;
                    found = Some(stat);
                }
                _ => return Ok(None),
            }
        }
        let Some((stat, top)) = found.zip(at.top()) else { return Ok(None) };
        let mut xattrs = fsio::xattrs_of(top).map_err(fail)?;
        xattrs.retain(|name, _| fsio::belongs_in_layer(name));
        Ok(Some((stat, xattrs)))
    }

    /// Copies a file of the layers below into the upper directory, for a hard link to it.
    fn copy_up(&mut self, parent: &Dir, name: &[u8], entry: &Entry) -> Result<()> {
        let path = parent.child_path(name);
        let fail = |e: Errno| Error::io("copy up", &path, e);
        let missing = || Error::malformed(&entry.path, "hard link to a file that is not there");
        let mut at = self.below()?;
        for name in parent.path.split(|b| *b == b'/').filter(|n| !n.is_empty()) {
            match at.child(name).map_err(fail)? {
                LowerChild::Dir(dir, _) => at = dir,
                _ => return Err(missing()),
            }
        }
        let LowerChild::Other { part, stat } = at.child(name).map_err(fail)? else { return Err(missing()) };
        if fsio::kind(&stat) != FileType::RegularFile {
            return Err(missing());
        }
        let from = fsio::open_file(at.part(part), name).map_err(fail)?;
        let xattrs = fsio::xattrs_of(&from).map_err(fail)?;
        let to = create(parent, name)?;
        let mut to = std::fs::File::from(to);
        std::io::copy(&mut std::fs::File::from(from), &mut to).map_err(|e| Error::io("copy up", &path, e))?;
        Attributes::of_stat(&path, &stat, &xattrs).set(&OwnedFd::from(to), &mut self.skipped)
    }
}

fn open_dir(parent: &Dir, name: &[u8]) -> Result<OwnedFd> {
    fsio::open_dir(&parent.fd, name).map_err(|e| Error::io("open", &parent.child_path(name), e))
}

fn create(parent: &Dir, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&parent.fd, name, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|e| Error::io("make", &parent.child_path(name), e))
}

fn make_whiteout(parent: &Dir, name: &[u8]) -> Result<()> {
    rustix::fs::mknodat(&parent.fd, name, FileType::CharacterDevice, Mode::empty(), 0)
        .map_err(|e| Error::io("make whiteout", &parent.child_path(name), e))
}

/// Removes attributes that an implicit directory took from below and its own entry does not have.
fn clear_xattrs(fd: &OwnedFd, wanted: &Xattrs) {
    let Ok(there) = fsio::xattrs_of(fd) else { return };
    for name in there.keys().filter(|n| fsio::belongs_in_layer(n) && !wanted.contains_key(*n)) {
        // What may not be removed was not set by us.
        rustix::fs::fremovexattr(fd, name.as_slice()).ok();
    }
}

/// Why a piece of data was not written.
enum PieceError {
    Read(Error),
    Write(Errno),
}

impl PieceError {
    fn of(self, path: &[u8]) -> Error {
        match self {
            Self::Read(error) => error,
            Self::Write(errno) => Error::io("write", path, errno),
        }
    }
}

/// Writes `length` bytes of the entry's data at `offset`; aligned runs of zeros are left as holes.
fn write_piece<R: Read>(
    file: &OwnedFd,
    offset: u64,
    length: u64,
    data: &mut TarReader<R>,
) -> Result<(), PieceError> {
    rustix::fs::seek(file, SeekFrom::Start(offset)).map_err(PieceError::Write)?;
    let mut buffer = [0; PIECE_BYTES];
    let mut left = length;
    while left > 0 {
        let want = PIECE_BYTES.min(usize::try_from(left).unwrap_or(PIECE_BYTES));
        let mut filled = 0;
        while filled < want {
            match data.read_data(&mut buffer[filled..want]).map_err(PieceError::Read)? {
                0 => {
                    let short = "file has less data than its header says";
                    return Err(PieceError::Read(Error::malformed(b"", short)));
                }
                n => filled += n,
            }
        }
        if want == PIECE_BYTES && buffer.iter().all(|b| *b == 0) {
            rustix::fs::seek(file, SeekFrom::Current(PIECE_BYTES as i64)).map_err(PieceError::Write)?;
        } else {
            let mut rest = &buffer[..want];
            while !rest.is_empty() {
                match rustix::io::write(file, rest) {
                    Ok(n) => rest = &rest[n..],
                    Err(Errno::INTR) => {}
                    Err(e) => return Err(PieceError::Write(e)),
                }
            }
        }
        left -= want as u64;
    }
    Ok(())
}
