//! Places for mounts, without a trace in the layer.
//!
//! A mount point that the image lacks comes from a layer of empty files and directories that lies
//! below all others, in memory. Where a layer of the image hides it (a deletion, a symlink on the
//! way), the place is made in the upper directory instead, and [removed](Stubs::remove) when the step is over.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use lapstrake_sys::fs::{locate, open_in_root};
use lapstrake_sys::{Context, Errno, Error, Result};
use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};
use serde::{Deserialize, Serialize};

const DIR_MODE: Mode = Mode::from_raw_mode(0o755);
const FILE_MODE: Mode = Mode::from_raw_mode(0o644);

/// What was made in the upper directory for the length of a step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stubs {
    /// In the order of making: parents first.
    made: Vec<Made>,
    /// The directories above, which the kernel may have copied up for the stubs' sake.
    above: BTreeMap<PathBuf, Parent>,
    /// Files of the image that something was put behind.
    #[serde(default)]
    longer: Vec<Longer>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Longer {
    path: PathBuf,
    /// Change time afterwards: the same at the end means that the step left it alone.
    ctime_after: (i64, i64),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Made {
    path: PathBuf,
    file: bool,
}

/// A directory that was there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Parent {
    mtime: (i64, i64),
    /// Change time when the last stub was made: the same at the end means that the step itself
    /// left the directory alone.
    ctime_after: (i64, i64),
}

/// `path` without `.`, `..` and the leading slash.
pub(crate) fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => normal.push(name),
            Component::ParentDir => drop(normal.pop()),
            _ => {}
        }
    }
    normal
}

/// Puts an empty directory or file for `target` into the stub layer at `layer`.
///
/// A target below one that is a file is left out: mounting there fails by itself, with its name.
pub(crate) fn plant(layer: &Path, target: &Path, file: bool) -> Result<()> {
    let place = layer.join(normal(target));
    let dir = if file { place.parent().unwrap_or(layer) } else { &place };
    if let Err(error) = std::fs::create_dir_all(dir) {
        return match Errno::from_io_error(&error) {
            Some(Errno::NOTDIR | Errno::EXIST) => Ok(()),
            _ => Err(error).about("mkdir", dir),
        };
    }
    if file && !place.exists() {
        std::fs::File::create(&place).about("open", &place)?;
    }
    Ok(())
}

/// Finds and makes mount points below one root.
pub(crate) struct Places<'a> {
    root: BorrowedFd<'a>,
    /// The path of the root itself, to learn where symlinks lead.
    base: &'a Path,
    stubs: Stubs,
}

impl<'a> Places<'a> {
    pub(crate) fn new(root: BorrowedFd<'a>, base: &'a Path) -> Self {
        Self { root, base, stubs: Stubs::default() }
    }

    /// The root that places are in.
    pub(crate) fn root(&self) -> BorrowedFd<'a> {
        self.root
    }

    /// Opens the place of `target`, and makes it when it is missing.
    pub(crate) fn place(&mut self, target: &Path, file: bool) -> Result<OwnedFd> {
        let target = normal(target);
        match locate(self.root, &target, true) {
            Err(error) if error.is_not_found() => self.make(&target, file),
            result => result,
        }
    }

    fn make(&mut self, target: &Path, file: bool) -> Result<OwnedFd> {
        let (mut dir, missing) = deepest(self.root, target)?;
        let mut reached = path_below(&dir, self.base)?;
        // Stubs in another file system (a volume of the step's own) are that one's business.
        let ours = device(self.root)? == device(dir.as_fd())?;
        if ours {
            self.remember(&reached)?;
        }
        let last = missing.len().saturating_sub(1);
        for (position, name) in missing.iter().enumerate() {
            reached.push(name);
            let file = file && position == last;
            dir = create(&dir, name, file)?;
            if ours {
                self.stubs.made.push(Made { path: reached.clone(), file });
            }
        }
        Ok(dir)
    }

    /// Puts `block` behind the file at `path`, where there is one; what it had before.
    ///
    /// A file of another file system, or one that has the block already (another name of it), stays as it is.
    pub(crate) fn append(&mut self, path: &Path, block: &[u8]) -> Result<Option<Vec<u8>>> {
        let Some(before) = super::rootfs::read_own(self.root, path)? else { return Ok(None) };
        let place = locate(self.root, normal(path), true)?;
        let reached = path_below(&place, self.base)?;
        let dir = reached.parent().unwrap_or(Path::new(""));
        // Of a file, overlay tells the device of its layer.
        if device(self.root)? != device(locate(self.root, dir, true)?.as_fd())? {
            return Ok(None);
        }
        if before.ends_with(block) {
            return Ok(Some(before));
        }
        self.remember(dir)?;
        let stat = rustix::fs::fstat(&place).about("fstat", &reached)?;
        self.write_behind(&reached, block, Some((stat.st_mtime, stat.st_mtime_nsec as i64)))?;
        Ok(Some(before))
    }

    /// Makes a file of nothing but `block`, where none is.
    pub(crate) fn make_filled(&mut self, path: &Path, block: &[u8]) -> Result<()> {
        let place = match locate(self.root, normal(path), false) {
            Err(error) if error.is_not_found() => self.make(&normal(path), true)?,
            found => return found.map(drop),
        };
        self.write_behind(&path_below(&place, self.base)?, block, None)
    }

    fn write_behind(&mut self, path: &Path, block: &[u8], mtime: Option<(i64, i64)>) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::APPEND;
        let mut file = std::fs::File::from(open_in_root(self.root, path, flags, Mode::empty())?);
        file.write_all(block).about("write", path)?;
        if let Some(mtime) = mtime {
            rustix::fs::futimens(&file, &times(mtime)).about("utimensat", path)?;
        }
        self.stubs.longer.push(Longer { path: path.to_owned(), ctime_after: (0, 0) });
        Ok(())
    }

    /// Keeps the times of the directory at `path` and of those above it.
    fn remember(&mut self, path: &Path) -> Result<()> {
        for ancestor in path.ancestors() {
            let known = self.stubs.above.contains_key(ancestor)
                || self.stubs.made.iter().any(|made| made.path == ancestor);
            if !known {
                let stat = self.stat(ancestor)?;
                let mtime = (stat.st_mtime, stat.st_mtime_nsec as i64);
                self.stubs.above.insert(ancestor.to_owned(), Parent { mtime, ctime_after: (0, 0) });
            }
        }
        Ok(())
    }

    fn stat(&self, path: &Path) -> Result<rustix::fs::Stat> {
        rustix::fs::fstat(locate(self.root, path, false)?).about("fstat", path)
    }

    /// All is placed: what has to be removed later, if anything.
    pub(crate) fn finish(mut self) -> Result<Option<Stubs>> {
        let mut above = std::mem::take(&mut self.stubs.above);
        for (path, parent) in &mut above {
            let stat = self.stat(path)?;
            parent.ctime_after = (stat.st_ctime, stat.st_ctime_nsec as i64);
        }
        self.stubs.above = above;
        let mut longer = std::mem::take(&mut self.stubs.longer);
        for file in &mut longer {
            let stat = self.stat(&file.path)?;
            file.ctime_after = (stat.st_ctime, stat.st_ctime_nsec as i64);
        }
        self.stubs.longer = longer;
        Ok((!self.stubs.made.is_empty() || !self.stubs.longer.is_empty()).then_some(self.stubs))
    }
}

/// The deepest directory on the way to `target` that exists, and the names that do not.
fn deepest(root: BorrowedFd<'_>, target: &Path) -> Result<(OwnedFd, Vec<OsString>)> {
    let mut missing = Vec::new();
    let mut at = target.to_owned();
    loop {
        match open_in_root(root, &at, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()) {
            Ok(dir) => {
                missing.reverse();
                return Ok((dir, missing));
            }
            Err(error) if error.is_not_found() => {
                let Some(name) = at.file_name().map(OsStr::to_owned) else { return Err(error) };
                missing.push(name);
                at.pop();
            }
            Err(error) => return Err(error),
        }
    }
}

fn create(parent: &OwnedFd, name: &OsStr, file: bool) -> Result<OwnedFd> {
    if file {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        drop(rustix::fs::openat(parent, name, flags, FILE_MODE).about("open", name)?);
    } else {
        rustix::fs::mkdirat(parent, name, DIR_MODE).about("mkdir", name)?;
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty()).about("open", name)
}

fn path_below(dir: &OwnedFd, base: &Path) -> Result<PathBuf> {
    use std::os::fd::AsRawFd;
    let link = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    let path = std::fs::read_link(&link).about("readlink", &link)?;
    path.strip_prefix(base)
        .map(Path::to_owned)
        .map_err(|_| Error::new("readlink", path.to_string_lossy(), Errno::XDEV))
}

fn device(fd: BorrowedFd<'_>) -> Result<u64> {
    Ok(rustix::fs::fstat(fd).about("fstat", "mount point")?.st_dev)
}

impl Stubs {
    /// Takes stubs out of the upper directory again, with what was copied up for them.
    ///
    /// What the step itself put there or changed stays. `texts` is what does not belong into the files that
    /// something was put behind.
    pub(crate) fn remove(&self, upper: &Path, texts: &[Vec<u8>]) {
        let untouched: Vec<_> = self
            .above
            .iter()
            .filter(|(path, parent)| {
                std::fs::symlink_metadata(upper.join(path))
                    .is_ok_and(|now| now.is_dir() && (now.ctime(), now.ctime_nsec()) == parent.ctime_after)
            })
            .collect();
        for file in &self.longer {
            let made = self.made.iter().any(|made| made.path == file.path);
            file.shorten(&upper.join(&file.path), texts, made).ok(); // As with stubs, see below.
        }
        for made in self.made.iter().rev() {
            let path = upper.join(&made.path);
            if !made.file {
                std::fs::remove_dir(&path).ok(); // Not empty: the step has used it.
            } else if std::fs::symlink_metadata(&path).is_ok_and(|file| file.is_file() && file.len() == 0) {
                std::fs::remove_file(&path).ok(); // A stub left over is a blemish, not a failure.
            }
        }
        // Children sort behind their parents: the other way round, so that what is empty goes.
        for (path, parent) in untouched.into_iter().rev() {
            restore(upper, path, *parent);
        }
    }
}

impl Longer {
    /// Takes `texts` out of the file again, wherever in it the step has moved them or, where it has written the file
    /// anew, put them itself. A file that the step left alone goes from the upper directory, so that the image's own
    /// is seen again.
    fn shorten(&self, path: &Path, texts: &[Vec<u8>], made: bool) -> std::io::Result<()> {
        let before = std::fs::symlink_metadata(path)?;
        if !before.is_file() {
            return Ok(());
        }
        if !made && (before.ctime(), before.ctime_nsec()) == self.ctime_after {
            return std::fs::remove_file(path);
        }
        let contents = std::fs::read(path)?;
        let rest = texts.iter().fold(contents.clone(), |rest, text| without(&rest, text));
        if rest.len() == contents.len() {
            return Ok(());
        }
        // In place: its other names, owner and attributes are the step's affair.
        std::fs::write(path, &rest)?;
        rustix::fs::utimensat(
            rustix::fs::CWD,
            path,
            &times((before.mtime(), before.mtime_nsec())),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        Ok(())
    }
}

/// `bytes` without `block`, however often it is in there.
fn without(bytes: &[u8], block: &[u8]) -> Vec<u8> {
    if block.trim_ascii().is_empty() {
        return bytes.to_vec();
    }
    let mut rest = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(tail) = bytes.get(at..).filter(|tail| !tail.is_empty()) {
        // What does not begin as the block does can be passed at once.
        if tail.starts_with(block) {
            at += block.len();
            continue;
        }
        let next = tail.iter().skip(1).position(|byte| Some(byte) == block.first());
        let end = next.map_or(tail.len(), |next| next + 1);
        rest.extend_from_slice(&tail[..end]);
        at += end;
    }
    rest
}

/// A modification time alone, in seconds and nanoseconds.
fn times(mtime: (i64, i64)) -> Timestamps {
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    Timestamps { last_access: omit, last_modification: Timespec { tv_sec: mtime.0, tv_nsec: mtime.1 } }
}

fn restore(upper: &Path, path: &Path, parent: Parent) {
    let inside = !path.as_os_str().is_empty();
    let path = upper.join(path);
    if inside && std::fs::remove_dir(&path).is_ok() {
        return;
    }
    let times = times(parent.mtime);
    rustix::fs::utimensat(rustix::fs::CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).ok(); // As above.
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_found_wherever_it_is() {
        let block = b"\n# ours\nXX\n";
        assert_eq!(without(b"a\nb\n\n# ours\nXX\n", block), b"a\nb\n");
        assert_eq!(without(b"\n# ours\nXX\na\n\n# ours\nXX\nb", block), b"a\nb");
        assert_eq!(without(b"\n# ours\nXX", block), b"\n# ours\nXX");
        assert_eq!(without(b"", block), b"");
    }
}
