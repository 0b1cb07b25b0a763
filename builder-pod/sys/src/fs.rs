//! Files below a root that is not trusted, and cheap copies.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, SeekFrom};

use crate::{Context, Errno, Error, Result};

/// Bytes that one call moves at most.
const CHUNK_BYTES: usize = 1 << 30;

/// Opens a directory by path as a root for the calls below.
pub fn open_root(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).about("open", path)
}

/// A copy of the descriptor `number` that this program was started with; none where that is not open. From now on
/// neither is passed on to programs that this one starts.
pub fn inherited(number: i32) -> Option<OwnedFd> {
    // SAFETY: the number is only used for the calls below, which refuse one that is not open (or -1, checked here);
    // whoever owns the descriptor keeps it.
    let descriptor = (number >= 0).then(|| unsafe { std::os::fd::BorrowedFd::borrow_raw(number) })?;
    rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::CLOEXEC).ok()?;
    rustix::io::fcntl_dupfd_cloexec(descriptor, 0).ok()
}

/// Opens `path` as if `root` were `/`: symlinks and `..` never lead out of it.
///
/// `mode` is of use with `O_CREAT` only. Mounts below the root are entered.
pub fn open_in_root(root: impl AsFd, path: impl AsRef<Path>, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let path = path.as_ref();
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let root = root.as_fd();
    // EAGAIN: a rename or mount elsewhere raced with a `..`; the kernel asks to try again.
    for _ in 0..RACES_MAX {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, mode, resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result.about("openat2", path),
        }
    }
    Err(Error::new("openat2", path.to_string_lossy(), Errno::AGAIN))
}

const RACES_MAX: usize = 64;

/// Opens `path` below `root` only to name it, following a last symlink or not.
pub fn locate(root: impl AsFd, path: impl AsRef<Path>, follow: bool) -> Result<OwnedFd> {
    let mut flags = OFlags::PATH;
    flags.set(OFlags::NOFOLLOW, !follow);
    open_in_root(root, path, flags, Mode::empty())
}

/// Makes the directory `path` below `root` with its parents, symlinks resolved inside the root.
///
/// Those that are missing get `mode`; the innermost is returned.
pub fn create_dirs(root: impl AsFd, path: impl AsRef<Path>, mode: Mode) -> Result<OwnedFd> {
    let (root, path) = (root.as_fd(), path.as_ref());
    let mut reached = std::path::PathBuf::new();
    let mut dir = locate(root, ".", true)?;
    for component in path.components() {
        let Component::Normal(name) = component else {
            match component {
                // `..` of a path that is resolved in a root: reached is shortened, not followed.
                Component::ParentDir => drop(reached.pop()),
                _ => continue,
            }
            dir = locate(root, &reached, true)?;
            continue;
        };
        reached.push(name);
        dir = match open_in_root(root, &reached, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()) {
            Ok(found) => found,
            Err(error) if error.is_not_found() => {
                make_dir(&dir, name, mode)?;
                open_in_root(root, &reached, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?
            }
            Err(error) => return Err(error),
        };
    }
    Ok(dir)
}

fn make_dir(parent: &OwnedFd, name: &OsStr, mode: Mode) -> Result<()> {
    match rustix::fs::mkdirat(parent, name, mode) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(Error::new("mkdir", name.to_string_lossy(), errno)),
    }
}

/// Makes a device node `major:minor`.
pub fn make_device(
    parent: impl AsFd,
    name: impl AsRef<Path>,
    kind: FileType,
    mode: Mode,
    major: u32,
    minor: u32,
) -> Result<()> {
    let name = name.as_ref();
    rustix::fs::mknodat(parent, name, kind, mode, rustix::fs::makedev(major, minor)).about("mknod", name)
}

/// How a copy was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// The file system shares the blocks.
    Shared,
    /// The kernel moved the data; holes stayed holes.
    Moved,
}

/// Copies the contents of `from` into the empty file `to`: by sharing blocks where the file
/// system can, else data only, with holes kept. Blocking.
pub fn copy_contents(from: impl AsFd, to: impl AsFd) -> Result<Copied> {
    let (from, to) = (from.as_fd(), to.as_fd());
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(Copied::Shared);
    }
    let length = u64::try_from(rustix::fs::fstat(from).about("fstat", "source")?.st_size).unwrap_or(0);
    let mut position = 0;
    while position < length {
        let data = match rustix::fs::seek(from, SeekFrom::Data(position)) {
            Ok(data) => data,
            // Nothing but a hole to the end.
            Err(Errno::NXIO) => break,
            // No holes known to this file system: all is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => position,
            Err(errno) => return Err(Error::new("lseek", "source", errno)),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(data)).unwrap_or(length).min(length);
        copy_range(from, to, data, end.max(data))?;
        position = end.max(data + 1);
    }
    rustix::fs::ftruncate(to, length).about("ftruncate", "target")?;
    Ok(Copied::Moved)
}

fn copy_range(
    from: std::os::fd::BorrowedFd<'_>,
    to: std::os::fd::BorrowedFd<'_>,
    start: u64,
    end: u64,
) -> Result<()> {
    let (mut source, mut target) = (start, start);
    while source < end {
        let wanted = usize::try_from(end - source).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        match rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), wanted) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                return copy_by_hand(from, to, source, end);
            }
            Err(errno) => return Err(Error::new("copy_file_range", "file", errno)),
        }
    }
    Ok(())
}

fn copy_by_hand(
    from: std::os::fd::BorrowedFd<'_>,
    to: std::os::fd::BorrowedFd<'_>,
    mut position: u64,
    end: u64,
) -> Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    while position < end {
        let wanted = buffer.len().min(usize::try_from(end - position).unwrap_or(usize::MAX));
        let read = crate::process::retry(|| rustix::io::pread(from, &mut buffer[..wanted], position))
            .about("read", "source")?;
        if read == 0 {
            return Ok(());
        }
        let mut written = 0;
        while written < read {
            let at = position + written as u64;
            written += crate::process::retry(|| rustix::io::pwrite(to, &buffer[written..read], at))
                .about("write", "target")?;
        }
        position += read as u64;
    }
    Ok(())
}

/// Sets access and modification time of the file that `fd` is open on (`O_PATH` too).
pub fn set_times(fd: impl AsFd, times: &rustix::fs::Timestamps) -> Result<()> {
    use std::os::fd::AsRawFd;
    let fd = fd.as_fd();
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::utimensat(CWD, link.as_str(), times, rustix::fs::AtFlags::empty())
        .about("utimensat", crate::mount::fd_name(fd))
}

/// Flushes the file system that `fd` lies on to its device. Blocking.
pub fn sync_filesystem(fd: impl AsFd) -> Result<()> {
    rustix::fs::syncfs(fd).about("syncfs", "file system")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Seek, Write};
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn symlinks_and_dots_stay_inside_the_root() {
        let dir = tempfile::tempdir().expect("temp dir");
        fs::create_dir_all(dir.path().join("root/etc")).expect("mkdir");
        fs::write(dir.path().join("root/etc/passwd"), "inside").expect("write");
        symlink("/etc", dir.path().join("root/link")).expect("symlink");
        symlink("../../../etc", dir.path().join("root/up")).expect("symlink");
        let root = open_root(&dir.path().join("root")).expect("root");
        for path in ["link/passwd", "up/passwd", "../../etc/passwd", "/etc/passwd"] {
            let file = open_in_root(&root, path, OFlags::RDONLY, Mode::empty()).expect(path);
            let mut text = String::new();
            std::io::Read::read_to_string(&mut fs::File::from(file), &mut text).expect("read");
            assert_eq!(text, "inside", "{path}");
        }
    }

    #[test]
    fn create_dirs_follows_symlinks_within_the_root_only() {
        let dir = tempfile::tempdir().expect("temp dir");
        fs::create_dir_all(dir.path().join("root/run")).expect("mkdir");
        symlink("/run", dir.path().join("root/var")).expect("symlink");
        let root = open_root(&dir.path().join("root")).expect("root");
        create_dirs(&root, "/var/a/../b/c", Mode::from_raw_mode(0o755)).expect("dirs");
        assert!(dir.path().join("root/run/b/c").is_dir());
    }

    #[test]
    fn copies_keep_holes_and_contents() {
        let mut from = tempfile::tempfile().expect("temp file");
        from.write_all(b"start").expect("write");
        from.seek(std::io::SeekFrom::Start(8 << 20)).expect("seek");
        from.write_all(b"end").expect("write");
        from.set_len(16 << 20).expect("truncate");
        let to = tempfile::NamedTempFile::new().expect("temp file");
        copy_contents(&from, to.as_file()).expect("copy");
        let copied = fs::read(to.path()).expect("read");
        assert_eq!(copied.len(), 16 << 20);
        assert_eq!(&copied[..5], b"start");
        assert_eq!(&copied[8 << 20..(8 << 20) + 3], b"end");
        assert!(to.as_file().metadata().expect("stat").blocks() * 512 < 1 << 20, "holes were filled");
    }
}
