use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, makedev};
use rustix::io::Errno;

use super::tar::{Content, Entry, Kind, Reader};
use crate::action::{Cancel, Owner};
use crate::at::{self, Context};
use crate::error::Error;
use crate::make::{clear_for_file, mkdir_all};
use crate::path;
use crate::view::View;

/// How an archive is unpacked.
#[derive(Debug, Clone)]
pub struct UnpackOptions {
    /// Owner of everything; else as the archive says.
    pub owner: Option<Owner>,
    /// The archive's name, for errors.
    pub name: String,
    /// How many bytes of content are unpacked at most.
    pub bytes_max: u64,
    /// Device files are left out instead of made: for trees that no container gets.
    pub skip_devices: bool,
}

impl Default for UnpackOptions {
    fn default() -> Self {
        Self { owner: None, name: "archive".to_owned(), bytes_max: u64::MAX, skip_devices: false }
    }
}

/// Unpacks the archive that `reader` gives into the directory `dir`.
///
/// What is in the way is replaced, except that directories merge. Nothing is kept out by name: `.wh.` files
/// are files like others.
///
/// # Errors
/// [`Error::Archive`] when the archive is damaged or over a limit; what was unpacked before stays.
pub fn unpack(
    reader: impl Read,
    dir: BorrowedFd<'_>,
    options: &UnpackOptions,
    cancel: &Cancel,
) -> Result<(), Error> {
    let damaged = |error: io::Error| damaged(options, &error);
    let mut tar = Reader::new(super::open(reader).map_err(damaged)?);
    let mut unpacker = Unpacker { dir, options, cancel, directories: Vec::new(), parent: None, bytes: 0 };
    while let Some(entry) = tar.next().map_err(damaged)? {
        cancel.check()?;
        unpacker.entry(&entry, &mut tar)?;
    }
    // Last, and the inner before the outer, since each entry made in a directory changes its time.
    let directories = std::mem::take(&mut unpacker.directories);
    for (path, modified_ns) in directories.iter().rev() {
        match at::beneath_dir(dir, path) {
            Ok(fd) => {
                at::set_times(fd.as_fd(), b"", *modified_ns, *modified_ns).on("set times of", path)?;
            }
            // A later entry took its place.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(errno) => return Err(errno).on("open", path),
        }
    }
    Ok(())
}

fn damaged(options: &UnpackOptions, error: &io::Error) -> Error {
    Error::Archive { path: options.name.clone(), reason: error.to_string() }
}

struct Unpacker<'a> {
    dir: BorrowedFd<'a>,
    options: &'a UnpackOptions,
    cancel: &'a Cancel,
    directories: Vec<(Vec<u8>, i128)>,
    /// The directory of the last entry: neighbours mostly follow each other.
    parent: Option<(Vec<u8>, OwnedFd)>,
    bytes: u64,
}

impl Unpacker<'_> {
    fn entry(&mut self, entry: &Entry, content: &mut impl Read) -> Result<(), Error> {
        let given = path::clean(&entry.path);
        let Some((parent, name)) = path::split(&given) else {
            // The top itself: its owner, mode and time are not the archive's to set.
            return Ok(());
        };
        let (parent_path, parent) = self.parent(parent)?;
        let path = path::join(&parent_path, name);
        let result = self.place(entry, parent.as_fd(), name, &path, content);
        self.parent = Some((parent_path, parent));
        result
    }

    /// The directory that `given` leads to inside the top; made when missing.
    fn parent(&mut self, given: &[u8]) -> Result<(Vec<u8>, OwnedFd), Error> {
        let resolved = View::snapshot(self.dir).resolve(given, true)?;
        match self.parent.take() {
            Some((path, fd)) if path == resolved => Ok((path, fd)),
            _ => {
                mkdir_all(self.dir, &resolved, 0o755, self.options.owner, None)?;
                let fd = at::beneath_dir(self.dir, &resolved).on("open", &resolved)?;
                Ok((resolved, fd))
            }
        }
    }

    fn place(
        &mut self,
        entry: &Entry,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        content: &mut impl Read,
    ) -> Result<(), Error> {
        match &entry.kind {
            Kind::Directory => {
                let existing = at::stat(dir, name).on("stat", path)?;
                if !existing.as_ref().is_some_and(at::is_dir) {
                    at::remove_all(dir, name).on("remove", path)?;
                    rustix::fs::mkdirat(dir, name, Mode::RWXU).on("make directory", path)?;
                }
                self.directories.push((path.to_vec(), entry.modified_ns));
                return self.metadata(entry, dir, name, path);
            }
            Kind::Hardlink(target) => return self.hardlink(target, dir, name, path),
            Kind::Other => return Ok(()),
            Kind::Character { .. } | Kind::Block { .. } if self.options.skip_devices => return Ok(()),
            _ => {}
        }
        clear_for_file(dir, name, path, true)?;
        let node = |kind, major, minor| {
            rustix::fs::mknodat(dir, name, kind, Mode::RUSR | Mode::WUSR, makedev(major, minor))
                .on("make special file", path)
        };
        match &entry.kind {
            Kind::File(shape) => self.file(shape, dir, name, path, content)?,
            Kind::Symlink(target) => {
                rustix::fs::symlinkat(target.as_slice(), dir, name).on("make symlink", path)?;
            }
            Kind::Character { major, minor } => node(FileType::CharacterDevice, *major, *minor)?,
            Kind::Block { major, minor } => node(FileType::BlockDevice, *major, *minor)?,
            Kind::Fifo => node(FileType::Fifo, 0, 0)?,
            Kind::Directory | Kind::Hardlink(_) | Kind::Other => {}
        }
        self.metadata(entry, dir, name, path)?;
        at::set_times(dir, name, entry.modified_ns, entry.modified_ns).on("set times of", path)
    }

    fn hardlink(&self, target: &[u8], dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<(), Error> {
        let from = View::snapshot(self.dir).resolve(target, false)?;
        if from == path {
            return Ok(());
        }
        let failed = |errno: Errno| Error::Archive {
            path: self.options.name.clone(),
            reason: format!("cannot link \"{}\" to \"{}\": {errno}", path::show(path), path::show(&from)),
        };
        let Some((parent, base)) = path::split(&from) else { return Err(failed(Errno::ISDIR)) };
        let source = at::beneath_dir(self.dir, parent).map_err(failed)?;
        clear_for_file(dir, name, path, true)?;
        rustix::fs::linkat(&source, base, dir, name, AtFlags::empty()).map_err(failed)
    }

    fn file(
        &mut self,
        shape: &Content,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        content: &mut impl Read,
    ) -> Result<(), Error> {
        let refuse = |reason: &str| Error::Archive {
            path: self.options.name.clone(),
            reason: format!("\"{}\" {reason}", path::show(path)),
        };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR).on("create", path)?;
        let mut file = File::from(fd);
        let mut buf = vec![0; 64 << 10];
        for &(offset, len) in &shape.pieces {
            if len == 0 {
                continue;
            }
            if offset.checked_add(len).is_none_or(|end| end > shape.len) {
                return Err(refuse("has a piece beyond its end"));
            }
            file.seek(SeekFrom::Start(offset)).on("write", path)?;
            let mut left = len;
            while left > 0 {
                self.cancel.check()?;
                let want = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
                let got = content.read(&mut buf[..want]).map_err(|error| damaged(self.options, &error))?;
                if got == 0 {
                    return Err(refuse("is cut off"));
                }
                self.bytes = self.bytes.saturating_add(got as u64);
                if self.bytes > self.options.bytes_max {
                    return Err(refuse("makes it larger than allowed"));
                }
                file.write_all(&buf[..got]).on("write", path)?;
                left -= got as u64;
            }
        }
        // A hole at the end; some archivers mark it with an empty piece there.
        let written = shape.pieces.iter().filter(|(_, len)| *len > 0).map(|(offset, len)| offset + len).max();
        if written.unwrap_or(0) < shape.len {
            rustix::fs::ftruncate(file.as_fd(), shape.len).on("write", path)?;
        }
        Ok(())
    }

    fn metadata(&self, entry: &Entry, dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<(), Error> {
        let id = |id: u64| u32::try_from(id).unwrap_or(0);
        let owner = self.options.owner.unwrap_or(Owner { uid: id(entry.uid), gid: id(entry.gid) });
        at::chown(dir, name, owner.uid, owner.gid).on("change owner of", path)?;
        if !matches!(entry.kind, Kind::Symlink(_)) {
            at::chmod(dir, name, entry.mode).on("change mode of", path)?;
        }
        at::set_xattrs(dir, name, &entry.xattrs).on("set attributes of", path)
    }
}
