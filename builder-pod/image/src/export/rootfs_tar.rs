//! A root file system as a tar file.

use std::io::Write;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{FileType, SeekFrom};
use rustix::io::Errno;

use super::walk::{Found, Visitor, walk};
use crate::tar::{Entry, Kind, TarWriter, Time};
use crate::{Error, Result, fsio};

/// Writes everything below `root` as a plain tar file: sorted, with numeric owners, no whiteouts. Blocking.
///
/// # Errors
/// Of the file system and of the output.
pub fn rootfs_tar(root: BorrowedFd<'_>, out: impl Write) -> Result<()> {
    rootfs_tar_of(&[(String::new(), root)], None, out)
}

/// The same of several file systems, each below a directory of its name (none where that is empty); neighbours of one
/// name share theirs. Everything has the
/// time `mtime`, seconds since 1970, where that is given.
///
/// # Errors
/// Of the file systems and of the output.
pub fn rootfs_tar_of(roots: &[(String, BorrowedFd<'_>)], mtime: Option<i64>, out: impl Write) -> Result<()> {
    let tar = TarWriter::new(out);
    let mut writer = Writer { tar, buffer: vec![0; BUFFER_BYTES], below: Vec::new(), mtime };
    for (at, (name, root)) in roots.iter().enumerate() {
        let begun = at.checked_sub(1).and_then(|before| roots.get(before)).is_some_and(|(of, _)| of == name);
        writer.below = match name.as_str() {
            "" => Vec::new(),
            name => format!("{name}/").into_bytes(),
        };
        if !name.is_empty() && !begun {
            let mut entry = Entry::new(writer.below.clone(), Kind::Dir);
            entry.mode = 0o755;
            writer.date(&mut entry);
            writer.tar.start(&entry).map_err(Error::output)?;
        }
        walk(*root, &mut writer)?;
    }
    writer.tar.finish().map_err(Error::output)?;
    Ok(())
}

const BUFFER_BYTES: usize = 256 << 10;

struct Writer<W> {
    tar: TarWriter<W>,
    buffer: Vec<u8>,
    /// What stands before every path.
    below: Vec<u8>,
    mtime: Option<i64>,
}

impl<W: Write> Visitor for Writer<W> {
    fn enter(&mut self, found: &Found<'_>) -> Result<()> {
        let mut entry = describe(found)?;
        self.date(&mut entry);
        entry.path.splice(0..0, self.below.iter().copied());
        if let Some(earlier) = found.earlier {
            entry.kind = Kind::Hardlink;
            entry.link = [self.below.as_slice(), earlier].concat();
            entry.size = 0;
            entry.xattrs.clear();
        }
        self.tar.start(&entry).map_err(Error::output)?;
        match (entry.kind, found.open) {
            (Kind::File, Some(file)) => self.contents(found, file, entry.size),
            _ => Ok(()),
        }
    }
}

impl<W: Write> Writer<W> {
    fn date(&self, entry: &mut Entry) {
        if let Some(seconds) = self.mtime {
            entry.mtime = Time { seconds, nanoseconds: 0 };
        }
    }

    /// Writes a file's data; holes are not read.
    fn contents(&mut self, found: &Found<'_>, file: &OwnedFd, size: u64) -> Result<()> {
        let fail = |e| Error::io("read", found.path, e);
        let mut at = 0;
        while at < size {
            let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
                Ok(data) => data.min(size),
                Err(Errno::NXIO) => size,
                Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
                Err(e) => return Err(fail(e)),
            };
            self.tar.write_zeros(data - at).map_err(Error::output)?;
            let end = match rustix::fs::seek(file, SeekFrom::Hole(data)) {
                Ok(end) => end.min(size),
                Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => size,
                Err(e) => return Err(fail(e)),
            };
            at = data;
            while at < end {
                let want = self.buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
                let n = match rustix::io::pread(file, &mut self.buffer[..want], at) {
                    // It has shrunk; the tar writer says so.
                    Ok(0) => return Ok(()),
                    Ok(n) => n,
                    Err(Errno::INTR) => continue,
                    Err(e) => return Err(fail(e)),
                };
                self.tar.write_data(&self.buffer[..n]).map_err(Error::output)?;
                at += n as u64;
            }
        }
        Ok(())
    }
}

fn describe(found: &Found<'_>) -> Result<Entry> {
    let stat = &found.stat;
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let kind = match found.kind {
        FileType::Directory => Kind::Dir,
        FileType::RegularFile => Kind::File,
        FileType::Symlink => Kind::Symlink,
        FileType::CharacterDevice => Kind::Char(major, minor),
        FileType::BlockDevice => Kind::Block(major, minor),
        FileType::Fifo => Kind::Fifo,
        _ => {
            let name = String::from_utf8_lossy(found.path);
            return Err(Error::Inconsistent(format!("\"{name}\" has a type that no archive can hold")));
        }
    };
    let mut path = found.path.to_vec();
    if kind == Kind::Dir {
        path.push(b'/');
    }
    let mut entry = Entry::new(path, kind);
    entry.mode = stat.st_mode & 0o7777;
    entry.uid = u64::from(stat.st_uid);
    entry.gid = u64::from(stat.st_gid);
    entry.mtime = fsio::mtime(stat);
    entry.xattrs = found.xattrs.clone();
    match kind {
        Kind::File => entry.size = u64::try_from(stat.st_size).unwrap_or(0),
        Kind::Symlink => {
            let target = rustix::fs::readlinkat(found.parent, found.name, Vec::new())
                .map_err(|e| Error::io("read link", found.path, e))?;
            entry.link = target.into_bytes();
        }
        _ => {}
    }
    Ok(entry)
}
