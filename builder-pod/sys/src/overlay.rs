//! Overlay mounts, always detached, always with the options that keep upper directories plain:
//! `redirect_dir=off`, `metacopy=off`, `index=off` (an upper directory must mean the same when it
//! becomes somebody's lower, or a layer in a registry).

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::mount::{FsOption, MountAttrFlags, clone_tree, create_mount, new_filesystem, open_filesystem};
use crate::{Context, Errno, Error, Result};

/// Layers in one mount; the kernel's own bound.
pub const LOWERS_MAX: usize = 500;

/// The kernel takes at most this many bytes in one option's value.
const VALUE_BYTES_MAX: usize = 255;

/// What an overlay is made of.
#[derive(Debug, Clone, Copy)]
pub struct Overlay<'a> {
    /// Layers, the topmost first.
    pub lowers_top_first: &'a [PathBuf],
    /// Where changes go, and a directory on the same file system that the kernel uses to make
    /// them atomic. `None` is a read-only mount.
    pub upper_work: Option<(&'a Path, &'a Path)>,
    /// Keep overlay's own marks in `user.overlay.*`: needed, and only possible to do without in
    /// the initial user namespace, where `trusted.*` may be written.
    pub userxattr: bool,
    /// Do not sync the upper directory on unmount or at the steps' `fsync`: who keeps the result
    /// syncs it once, at the end.
    pub volatile: bool,
    /// Attributes of the mount.
    pub attrs: MountAttrFlags,
}

/// Mounts layers (and an upper directory) without placing the mount anywhere.
///
/// The descriptor works with `openat2`; the mount is gone when it closes.
pub fn mount_detached(
    lowers_top_first: &[PathBuf],
    upper_work: Option<(&Path, &Path)>,
    userxattr: bool,
) -> Result<OwnedFd> {
    Overlay { lowers_top_first, upper_work, userxattr, volatile: false, attrs: MountAttrFlags::empty() }
        .mount_detached()
}

impl Overlay<'_> {
    /// Mounts it without placing it anywhere.
    ///
    /// No layer and no upper is an empty tree, one layer alone is that directory, read-only: the
    /// kernel wants two layers, and an overlay of one would hide nothing but whiteouts.
    pub fn mount_detached(&self) -> Result<OwnedFd> {
        if self.lowers_top_first.len() > LOWERS_MAX {
            return Err(Error::new(
                "overlay",
                format!("{} layers", self.lowers_top_first.len()),
                Errno::TOOBIG,
            ));
        }
        if self.upper_work.is_none() && self.lowers_top_first.len() < 2 {
            return self.mount_padded();
        }
        match self.mount_by_fsconfig() {
            Err(error)
                if error.call == "fsconfig" && error.object == "lowerdir+" && error.is_unsupported() =>
            {
                self.mount_by_option_string()
            }
            result => result,
        }
    }

    /// Read-only with fewer than two layers: an empty one is put below.
    fn mount_padded(&self) -> Result<OwnedFd> {
        let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY | self.attrs;
        let empty = new_filesystem("tmpfs", &[FsOption::Value("mode", "755")], read_only)?;
        let Some(only) = self.lowers_top_first.first() else { return Ok(empty) };
        // A private copy of the one layer: marks of deleted files in it stay visible as they are,
        // which the bottom layer of a chain does not have.
        let tree = clone_tree(only, false)?;
        crate::mount::add_attrs(&tree, read_only, false)?;
        Ok(tree)
    }

    fn mount_by_fsconfig(&self) -> Result<OwnedFd> {
        let context = open_filesystem("overlay")?;
        // Directories whose names are too long for an option are named by descriptor.
        let mut held = Vec::new();
        for lower in self.lowers_top_first {
            set_dir(&context, "lowerdir+", lower, &mut held)?;
        }
        if let Some((upper, work)) = self.upper_work {
            set_dir(&context, "upperdir", upper, &mut held)?;
            set_dir(&context, "workdir", work, &mut held)?;
        }
        for option in self.flags() {
            match option {
                FsOption::Flag(key) => {
                    rustix::mount::fsconfig_set_flag(&context, key).about("fsconfig", key)?;
                }
                FsOption::Value(key, value) => {
                    rustix::mount::fsconfig_set_string(&context, key, value).about("fsconfig", key)?;
                }
            }
        }
        create_mount(&context, "overlay", self.attrs)
    }

    fn flags(&self) -> Vec<FsOption<'static>> {
        let mut options = vec![FsOption::Value("metacopy", "off"), FsOption::Value("index", "off")];
        if self.userxattr {
            // `userxattr` fixes redirect_dir and metacopy itself and refuses to be told.
            options = vec![FsOption::Flag("userxattr"), FsOption::Value("index", "off")];
        } else {
            options.push(FsOption::Value("redirect_dir", "off"));
        }
        if self.volatile && self.upper_work.is_some() {
            options.push(FsOption::Flag("volatile"));
        }
        options
    }

    /// Kernels before 6.7: one option string of at most a page.
    ///
    /// The mount is placed for a moment on a directory of its own, then taken as a detached copy.
    fn mount_by_option_string(&self) -> Result<OwnedFd> {
        let mut held = Vec::new();
        let mut options = OsString::from("lowerdir=");
        for (position, lower) in self.lowers_top_first.iter().enumerate() {
            if position > 0 {
                options.push(":");
            }
            options.push(short_name(lower, &mut held)?);
        }
        if let Some((upper, work)) = self.upper_work {
            options.push(",upperdir=");
            options.push(short_name(upper, &mut held)?);
            options.push(",workdir=");
            options.push(short_name(work, &mut held)?);
        }
        for option in self.flags() {
            options.push(",");
            match option {
                FsOption::Flag(key) => options.push(key),
                FsOption::Value(key, value) => options.push(format!("{key}={value}")),
            }
        }
        let options = std::ffi::CString::new(options.as_bytes())
            .map_err(|_| Error::new("mount", "overlay", Errno::INVAL))?;
        let place = TempPlace::new()?;
        rustix::mount::mount(c"overlay", &place.0, c"overlay", MountFlags::empty(), options.as_c_str())
            .about("mount", "overlay")?;
        let tree = clone_tree(&place.0, false);
        rustix::mount::unmount(&place.0, UnmountFlags::DETACH).about("umount", &place.0)?;
        let tree = tree?;
        crate::mount::add_attrs(&tree, self.attrs, false)?;
        Ok(tree)
    }
}

/// A directory that exists for the moment of one mount.
struct TempPlace(PathBuf);

impl TempPlace {
    fn new() -> Result<Self> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!(".lapstrake-mount-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).about("mkdir", &path)?;
        Ok(Self(path))
    }
}

impl Drop for TempPlace {
    fn drop(&mut self) {
        std::fs::remove_dir(&self.0).ok(); // An empty directory is left at worst.
    }
}

fn set_dir(context: &OwnedFd, key: &'static str, path: &Path, held: &mut Vec<OwnedFd>) -> Result<()> {
    let name = if path.as_os_str().len() > VALUE_BYTES_MAX || path.as_os_str().as_bytes().contains(&b'\\') {
        by_descriptor(path, held)?
    } else {
        path.to_owned()
    };
    match rustix::mount::fsconfig_set_string(context, key, &name) {
        Ok(()) => Ok(()),
        // EINVAL without a path problem is "no such option": the caller falls back.
        Err(errno) if errno == Errno::INVAL && key == "lowerdir+" => Err(Error::new("fsconfig", key, errno)),
        Err(errno) => Err(Error::new("fsconfig", format!("{key}={}", path.display()), errno)),
    }
}

fn short_name(path: &Path, held: &mut Vec<OwnedFd>) -> Result<PathBuf> {
    let awkward = path.as_os_str().as_bytes().iter().any(|byte| matches!(byte, b':' | b',' | b'\\'));
    if awkward || path.as_os_str().len() > 24 { by_descriptor(path, held) } else { Ok(path.to_owned()) }
}

fn by_descriptor(path: &Path, held: &mut Vec<OwnedFd>) -> Result<PathBuf> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).about("open", path)?;
    let name = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    held.push(fd);
    Ok(name)
}

#[cfg(test)]
mod tests;
