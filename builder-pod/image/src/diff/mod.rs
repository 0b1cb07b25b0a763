//! Turns an overlay upper directory into a layer.
//!
//! The tar is the one that containerd's differ writes: sorted by name, directories before what is in
//! them, parents of whatever changed, PAX where ustar does not reach, whole seconds. Two things are
//! kept that it drops: extended attributes other than capabilities, and a changed root directory.

use std::collections::HashMap;
use std::io::{self, Read as _, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, SeekFrom, Stat};
use rustix::io::Errno;

use crate::fsio::{self, Xattrs};
use crate::lower::{LowerChild, LowerDir};
use crate::tar::{Entry, Kind, TarWriter, Time};
use crate::{Error, Result, limits};

/// How a layer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiffOptions {
    /// The snapshot was mounted with `userxattr`: overlay's marks are `user.overlay.*`, else
    /// `trusted.overlay.*`.
    pub userxattr: bool,
    /// `SOURCE_DATE_EPOCH`: no time in the layer is later than this second.
    pub mtime_max: Option<i64>,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiffFacts {
    /// Size of the tar in bytes.
    pub tar_bytes: u64,
    /// Entries in it; 0 is a layer that changes nothing.
    pub entries: u64,
}

/// Writes all that `upper`, a committed snapshot's directory, has, not knowing what lies below: what
/// was copied up without a change is in the layer, and every new directory hides what may be below it, by a mark.
/// Where the layers below are at hand, [`write_changes`] writes less.
///
/// # Errors
/// [`Error::ForeignOverlay`], [`Error::Output`] where `output` fails, I/O.
pub fn write_diff(upper: &Path, options: &DiffOptions, output: &mut dyn Write) -> Result<DiffFacts> {
    write(upper, None, options, output)
}

/// Writes what `upper`, a committed snapshot's directory, changes over the layers below it.
///
/// # Errors
/// As [`write_diff`].
pub fn write_changes(
    upper: &Path,
    lowers_top_first: &[PathBuf],
    options: &DiffOptions,
    output: &mut dyn Write,
) -> Result<DiffFacts> {
    let lower = LowerDir::root(lowers_top_first, options.userxattr)?;
    write(upper, Some(&lower), options, output)
}

fn write(
    upper: &Path,
    lower: Option<&LowerDir>,
    options: &DiffOptions,
    output: &mut dyn Write,
) -> Result<DiffFacts> {
    let tar = TarWriter::new(io::BufWriter::with_capacity(128 << 10, output));
    let (sink, entries) = walk(upper, lower, options, TarSink { tar, buffer: vec![0; 128 << 10] })?;
    let (mut output, tar_bytes) = sink.tar.finish().map_err(Error::output)?;
    output.flush().map_err(Error::output)?;
    Ok(DiffFacts { tar_bytes, entries })
}

/// Takes the entries of a layer in their order.
pub(crate) trait Sink {
    /// An entry, and where it is: directory and name. What only says something is nowhere.
    fn entry(&mut self, entry: &Entry, at: Option<(&OwnedFd, &[u8])>) -> Result<()>;
    /// The data of the file that came last.
    fn data(&mut self, file: OwnedFd, size: u64, path: &[u8]) -> Result<()>;
}

/// Gives all that makes `upper` a layer over `lower` to `sink`; also how many entries that were.
pub(crate) fn walk<S: Sink>(
    upper: &Path,
    lower: Option<&LowerDir>,
    options: &DiffOptions,
    sink: S,
) -> Result<(S, u64)> {
    let root = fsio::open_root(upper).map_err(|e| Error::io_at("open", upper, e))?;
    let mut walk = Walk { sink, options, entries: 0, names: HashMap::new(), waiting: Vec::new() };
    walk.root(&root, lower)?;
    walk.children(&root, lower, &[], 0, false)?;
    Ok((walk.sink, walk.entries))
}

struct Walk<'a, S> {
    sink: S,
    options: &'a DiffOptions,
    entries: u64,
    /// First name of each file with several.
    names: HashMap<(u64, u64), Vec<u8>>,
    /// Unchanged directories on the way down, written once something in them changed.
    waiting: Vec<Entry>,
}

impl<S: Sink> Walk<'_, S> {
    /// The root directory is written only where it changed: others' differs never list it.
    fn root(&mut self, root: &OwnedFd, lower: Option<&LowerDir>) -> Result<()> {
        let fail = |e| Error::io("look at", b"/", e);
        let stat = rustix::fs::fstat(root).map_err(fail)?;
        let xattrs = layer_xattrs(fsio::xattrs_of(root).map_err(fail)?, b"/")?;
        let changed = match lower.and_then(LowerDir::top) {
            Some(below) => {
                let theirs = rustix::fs::fstat(below).map_err(fail)?;
                let their_xattrs = layer_xattrs(fsio::xattrs_of(below).map_err(fail)?, b"/")?;
                !same_owner_and_mode(&stat, &theirs) || xattrs != their_xattrs
            }
            None => (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid) != (0o755, 0, 0) || !xattrs.is_empty(),
        };
        if changed {
            let entry = self.entry(b"./".to_vec(), Kind::Dir, &stat, xattrs);
            self.start(&entry, None)?;
        }
        Ok(())
    }

    /// What is in a directory; of an opaque one also what of the layers below is not seen any more.
    fn children(
        &mut self,
        dir: &OwnedFd,
        lower: Option<&LowerDir>,
        path: &[u8],
        depth: usize,
        opaque: bool,
    ) -> Result<()> {
        if depth > limits::DEPTH_MAX {
            return Err(Error::malformed(path, "directory is too deep"));
        }
        let fail = |e| Error::io("list", path, e);
        let mut names = fsio::list(dir).map_err(fail)?;
        if let (true, Some(lower)) = (opaque, lower) {
            names.extend(lower.names().map_err(fail)?);
            names.sort_unstable();
            names.dedup();
        }
        for name in names {
            let name = name.to_bytes();
            let full = if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() };
            let fail = |e| Error::io("look at", &full, e);
            let below = lower.map(|lower| lower.child(name)).transpose().map_err(fail)?;
            let Some(stat) = fsio::stat(dir, name).map_err(fail)? else {
                if !opaque {
                    return Err(Error::io("look at", &full, Errno::NOENT));
                }
                self.whiteout(path, name, below.as_ref())?;
                continue;
            };
            if fsio::is_whiteout(&stat) {
                self.whiteout(path, name, below.as_ref())?;
            } else if fsio::kind(&stat) == FileType::Directory {
                self.dir((dir, name), &full, &stat, below, depth, opaque)?;
            } else if !self.is_whiteout_file(dir, name, &full, &stat)? {
                self.leaf(dir, name, &full, &stat, lower.zip(below.as_ref()))?;
            } else {
                self.whiteout(path, name, below.as_ref())?;
            }
        }
        Ok(())
    }

    /// A directory. One that is opaque hides what it was made over, name by name: as a mark it would also hide what
    /// another layer has there that this one is laid over later.
    fn dir(
        &mut self,
        (parent, name): (&OwnedFd, &[u8]),
        full: &[u8],
        stat: &Stat,
        below: Option<LowerChild>,
        depth: usize,
        in_opaque: bool,
    ) -> Result<()> {
        let fail = |e| Error::io("open", full, e);
        let fd = fsio::open_dir(parent, name).map_err(fail)?;
        let raw = fsio::xattrs_of(&fd).map_err(fail)?;
        let opaque = in_opaque || fsio::is_opaque(&raw, self.options.userxattr);
        let xattrs = layer_xattrs(raw, full)?;
        let (lower, unchanged) = match below {
            None => (None, false),
            Some(LowerChild::Dir(dir, theirs)) => {
                let their_xattrs = dir.top().map(fsio::xattrs_of).transpose().map_err(fail)?;
                // As others' differs: a time alone is no change of a directory.
                let same = same_owner_and_mode(stat, &theirs)
                    && layer_xattrs(their_xattrs.unwrap_or_default(), full)? == xattrs;
                (Some(dir), same)
            }
            Some(_) => (Some(LowerDir::empty()), false),
        };
        let entry = self.entry([full, b"/"].concat(), Kind::Dir, stat, xattrs);
        let level = self.waiting.len();
        if unchanged {
            self.waiting.push(entry);
        } else {
            self.start(&entry, None)?;
        }
        if opaque && lower.is_none() {
            self.mark([full, b"/.wh..wh..opq"].concat())?;
        }
        self.children(&fd, lower.as_ref(), full, depth + 1, opaque)?;
        self.waiting.truncate(level);
        Ok(())
    }

    fn leaf(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        full: &[u8],
        stat: &Stat,
        below: Option<(&LowerDir, &LowerChild)>,
    ) -> Result<()> {
        let fail = |e| Error::io("read", full, e);
        let inode = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1 {
            if let Some(first) = self.names.get(&inode) {
                let mut entry = self.entry(full.to_vec(), Kind::Hardlink, stat, Xattrs::new());
                entry.link = first.clone();
                return self.start(&entry, Some((dir, name)));
            }
            self.names.insert(inode, full.to_vec());
        }
        // Sockets have no place in a layer, and no meaning without their process.
        let Some(kind) = kind_of(stat) else { return Ok(()) };
        let file = if kind == Kind::File { Some(fsio::open_file(dir, name).map_err(fail)?) } else { None };
        let raw = match &file {
            Some(file) => fsio::xattrs_of(file),
            None => fsio::xattrs_at(dir.as_fd(), name),
        };
        let raw = raw.map_err(fail)?;
        let mut entry = self.entry(full.to_vec(), kind, stat, layer_xattrs(raw, full)?);
        if kind == Kind::Symlink {
            let target = rustix::fs::readlinkat(dir, name, Vec::new()).map_err(fail)?;
            entry.link = target.into_bytes();
        }
        if let Some((lower, below)) = below.filter(|_| stat.st_nlink == 1)
            && same_as_below(&entry, file.as_ref(), name, stat, below, lower)?
        {
            return Ok(());
        }
        self.start(&entry, Some((dir, name)))?;
        match file {
            Some(file) => self.sink.data(file, entry.size, full),
            None => Ok(()),
        }
    }

    fn entry(&self, path: Vec<u8>, kind: Kind, stat: &Stat, xattrs: Xattrs) -> Entry {
        entry_of(path, kind, stat, xattrs, self.options.mtime_max)
    }

    /// A whiteout, where there is something below, or may be.
    fn whiteout(&mut self, dir: &[u8], name: &[u8], below: Option<&LowerChild>) -> Result<()> {
        if matches!(below, Some(LowerChild::Nothing)) {
            return Ok(());
        }
        let parts: &[&[u8]] = if dir.is_empty() { &[b".wh.", name] } else { &[dir, b"/.wh.", name] };
        self.mark(parts.concat())
    }

    /// An entry that only says something. It has no time of its own, or the layer would differ from one
    /// run to the next.
    fn mark(&mut self, path: Vec<u8>) -> Result<()> {
        self.start(&Entry::new(path, Kind::File), None)
    }

    /// Overlay's other form of a whiteout: an empty file with an attribute.
    fn is_whiteout_file(&self, dir: &OwnedFd, name: &[u8], full: &[u8], stat: &Stat) -> Result<bool> {
        if fsio::kind(stat) != FileType::RegularFile || stat.st_size != 0 {
            return Ok(false);
        }
        let xattrs = fsio::xattrs_at(dir.as_fd(), name).map_err(|e| Error::io("read", full, e))?;
        Ok(xattrs.contains_key(fsio::overlay_xattr(b"whiteout", self.options.userxattr).as_slice()))
    }

    fn start(&mut self, entry: &Entry, at: Option<(&OwnedFd, &[u8])>) -> Result<()> {
        for waiting in std::mem::take(&mut self.waiting) {
            self.entries += 1;
            self.sink.entry(&waiting, None)?;
        }
        self.entries += 1;
        self.sink.entry(entry, at)
    }
}

/// An entry for what a status tells of.
pub(crate) fn entry_of(
    path: Vec<u8>,
    kind: Kind,
    stat: &Stat,
    xattrs: Xattrs,
    mtime_max: Option<i64>,
) -> Entry {
    let mut seconds = fsio::mtime(stat).seconds;
    if let Some(latest) = mtime_max {
        seconds = seconds.min(latest);
    }
    let mut entry = Entry::new(path, kind);
    entry.mode = stat.st_mode & 0o7777;
    entry.uid = u64::from(stat.st_uid);
    entry.gid = u64::from(stat.st_gid);
    entry.mtime = Time::seconds(seconds);
    entry.size = if kind == Kind::File { stat.st_size as u64 } else { 0 };
    entry.xattrs = xattrs;
    entry
}

/// What something is in a layer that is no directory; a socket is nothing.
pub(crate) fn kind_of(stat: &Stat) -> Option<Kind> {
    let device = || (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    Some(match fsio::kind(stat) {
        FileType::RegularFile => Kind::File,
        FileType::Symlink => Kind::Symlink,
        FileType::CharacterDevice => Kind::Char(device().0, device().1),
        FileType::BlockDevice => Kind::Block(device().0, device().1),
        FileType::Fifo => Kind::Fifo,
        _ => return None,
    })
}

/// Writes a tar file.
struct TarSink<'a> {
    tar: TarWriter<io::BufWriter<&'a mut dyn Write>>,
    buffer: Vec<u8>,
}

impl Sink for TarSink<'_> {
    fn entry(&mut self, entry: &Entry, _at: Option<(&OwnedFd, &[u8])>) -> Result<()> {
        self.tar.start(entry).map_err(Error::output)
    }

    /// Copies a file's data; holes are written as zeros without being read.
    fn data(&mut self, file: OwnedFd, size: u64, path: &[u8]) -> Result<()> {
        let mut file = std::fs::File::from(file);
        let mut at = 0u64;
        while at < size {
            let (start, end) = next_data(&file, at, size).map_err(|e| Error::io("read", path, e))?;
            self.tar.write_zeros(start - at).map_err(Error::output)?;
            if start < size {
                rustix::fs::seek(&file, SeekFrom::Start(start)).map_err(|e| Error::io("read", path, e))?;
            }
            at = start;
            while at < end {
                let want = self.buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
                match file.read(&mut self.buffer[..want]) {
                    Ok(0) => {
                        return Err(Error::io("read", path, io::Error::from(io::ErrorKind::UnexpectedEof)));
                    }
                    Ok(n) => {
                        self.tar.write_data(&self.buffer[..n]).map_err(Error::output)?;
                        at += n as u64;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(Error::io("read", path, e)),
                }
            }
        }
        Ok(())
    }
}

/// The next piece of a file that has data, from `at` on; at the end an empty one.
pub(crate) fn next_data(file: &std::fs::File, at: u64, size: u64) -> rustix::io::Result<(u64, u64)> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start.min(size),
        Err(Errno::NXIO) => return Ok((size, size)),
        // The file system knows no holes.
        Err(Errno::INVAL | Errno::NOTSUP) => return Ok((at, size)),
        Err(e) => return Err(e),
    };
    match rustix::fs::seek(file, SeekFrom::Hole(start)) {
        Ok(end) => Ok((start, end.min(size))),
        Err(Errno::NXIO) => Ok((size, size)),
        Err(e) => Err(e),
    }
}

/// Whether a file was copied up without a change (a `chown` to the owner that it had).
pub(crate) fn same_as_below(
    entry: &Entry,
    file: Option<&OwnedFd>,
    name: &[u8],
    stat: &Stat,
    below: &LowerChild,
    lower: &LowerDir,
) -> Result<bool> {
    let LowerChild::Other { part, stat: theirs } = below else { return Ok(false) };
    if !same_status(stat, theirs) || stat.st_size != theirs.st_size || stat.st_rdev != theirs.st_rdev {
        return Ok(false);
    }
    let fail = |e| Error::io("compare", &entry.path, e);
    let at = lower.part(*part);
    let Some(mine) = file else {
        let xattrs = fsio::xattrs_at(at.as_fd(), name).map_err(fail)?;
        return Ok(layer_xattrs(xattrs, &entry.path)? == entry.xattrs
            && (entry.kind != Kind::Symlink
                || rustix::fs::readlinkat(at, name, Vec::new()).map_err(fail)?.as_bytes() == entry.link));
    };
    let theirs = fsio::open_file(at, name).map_err(fail)?;
    if layer_xattrs(fsio::xattrs_of(&theirs).map_err(fail)?, &entry.path)? != entry.xattrs {
        return Ok(false);
    }
    let mine = mine.try_clone().map_err(|e| Error::io("compare", &entry.path, e))?;
    let same = same_content(mine.into(), theirs.into());
    same.map_err(|e| Error::io("compare", &entry.path, e))
}

pub(crate) fn same_owner_and_mode(a: &Stat, b: &Stat) -> bool {
    (a.st_mode, a.st_uid, a.st_gid) == (b.st_mode, b.st_uid, b.st_gid)
}

fn same_status(a: &Stat, b: &Stat) -> bool {
    same_owner_and_mode(a, b) && fsio::mtime(a) == fsio::mtime(b)
}

/// Compares two files; moves their positions, which the copying of data does not rely on.
fn same_content(mut a: std::fs::File, mut b: std::fs::File) -> io::Result<bool> {
    let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let n = a.read(&mut left)?;
        if n == 0 {
            return Ok(b.read(&mut right[..1])? == 0);
        }
        match b.read_exact(&mut right[..n]) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            other => other?,
        }
        if left[..n] != right[..n] {
            return Ok(false);
        }
    }
}

/// The attributes that belong in the layer.
pub(crate) fn layer_xattrs(mut xattrs: Xattrs, path: &[u8]) -> Result<Xattrs> {
    let foreign = |name: &Vec<u8>| {
        let name = name.strip_prefix(b"trusted.").or_else(|| name.strip_prefix(b"user.")).unwrap_or_default();
        matches!(name, b"overlay.metacopy" | b"overlay.redirect")
    };
    if xattrs.keys().any(foreign) {
        return Err(Error::ForeignOverlay(String::from_utf8_lossy(path).into_owned()));
    }
    xattrs.retain(|name, _| fsio::belongs_in_layer(name));
    Ok(xattrs)
}

#[cfg(test)]
mod tests;
