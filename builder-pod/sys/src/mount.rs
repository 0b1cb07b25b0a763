//! Mounts as descriptors: made detached, configured, then placed.
//!
//! A detached mount lives as long as its descriptor and can be walked with `openat2`; it appears
//! nowhere until [`attach`] puts it into the caller's mount namespace.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

pub use rustix::mount::MountAttrFlags;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

use crate::{Context, Errno, Error, Result};

/// One option of a new file system.
#[derive(Debug, Clone, Copy)]
pub enum FsOption<'a> {
    /// `key`
    Flag(&'a str),
    /// `key=value`; the kernel takes at most 255 bytes of value.
    Value(&'a str, &'a str),
}

/// Makes a file system of `kind` and returns it as a detached mount.
pub fn new_filesystem(kind: &str, options: &[FsOption<'_>], attrs: MountAttrFlags) -> Result<OwnedFd> {
    let context = open_filesystem(kind)?;
    for option in options {
        match *option {
            FsOption::Flag(key) => rustix::mount::fsconfig_set_flag(&context, key).about("fsconfig", key)?,
            FsOption::Value(key, value) => {
                rustix::mount::fsconfig_set_string(&context, key, value).about("fsconfig", key)?;
            }
        }
    }
    create_mount(&context, kind, attrs)
}

/// Opens a configuration context for a file system of `kind`.
pub(crate) fn open_filesystem(kind: &str) -> Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).about("fsopen", kind)?;
    // What `df` and `mount` show as the device.
    rustix::mount::fsconfig_set_string(&context, "source", kind).about("fsconfig", "source")?;
    Ok(context)
}

/// Creates the configured file system and its detached mount.
pub(crate) fn create_mount(context: &OwnedFd, kind: &str, attrs: MountAttrFlags) -> Result<OwnedFd> {
    rustix::mount::fsconfig_create(context).about("fsconfig", kind)?;
    rustix::mount::fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attrs).about("fsmount", kind)
}

/// A detached copy of what is mounted at `path`, with everything below when `recursive`.
pub fn clone_tree(path: &Path, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    rustix::mount::open_tree(rustix::fs::CWD, path, flags).about("open_tree", path)
}

/// A detached copy of the mount that `fd` lies on, with `fd` as its root.
pub fn clone_tree_at(fd: impl AsFd, recursive: bool) -> Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    let fd = fd.as_fd();
    rustix::mount::open_tree(fd, c"", flags).about("open_tree", fd_name(fd))
}

/// Places a detached mount on the file or directory that `target` is open on.
pub fn attach(mount: impl AsFd, target: impl AsFd) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    let target = target.as_fd();
    rustix::mount::move_mount(mount, c"", target, c"", flags).about("move_mount", fd_name(target))
}

/// Places a detached mount on `path`.
pub fn attach_path(mount: impl AsFd, path: &Path) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount, c"", rustix::fs::CWD, path, flags).about("move_mount", path)
}

#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Adds attributes to a mount, and to all below it when `recursive`.
pub fn add_attrs(mount: impl AsFd, attrs: MountAttrFlags, recursive: bool) -> Result<()> {
    let fd = mount.as_fd();
    set_attr(fd, c"", u64::from(attrs.bits()), 0, recursive)
}

fn set_attr(dir: BorrowedFd<'_>, path: &CStr, set: u64, propagation: u64, recursive: bool) -> Result<()> {
    let attr = MountAttr { attr_set: set, attr_clr: 0, propagation, userns_fd: 0 };
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: `path` is nul-terminated and `attr` is a live `struct mount_attr` of the size given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir.as_raw_fd(),
            path.as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(Error::last("mount_setattr", fd_name(dir))) }
}

/// Cuts the mount namespace's ties: nothing mounted from now on is seen elsewhere.
///
/// `receive` lets mounts and unmounts of the parent namespace still arrive.
pub fn isolate_propagation(receive: bool) -> Result<()> {
    let kind = if receive { MountPropagationFlags::DOWNSTREAM } else { MountPropagationFlags::PRIVATE };
    rustix::mount::mount_change(c"/", kind | MountPropagationFlags::REC).about("mount", "/")
}

/// Makes the mount that `root` is open on the root of the caller's mount namespace.
///
/// By `pivot_root` the old root is dropped. Container runtimes' default seccomp profiles refuse
/// that call while they allow mounts: then the new root is moved over the old one, which nothing
/// inside can reach as long as it may not unmount or make mount namespaces.
pub fn change_root(root: impl AsFd) -> Result<()> {
    let root = root.as_fd();
    rustix::process::fchdir(root).about("fchdir", "new root")?;
    match rustix::process::pivot_root(c".", c".") {
        // The old root is now stacked on the new one at "/": this takes it off.
        Ok(()) => rustix::mount::unmount(c".", UnmountFlags::DETACH).about("umount", "old root")?,
        Err(Errno::PERM | Errno::NOSYS) => {
            attach_path(root, Path::new("/"))?;
            rustix::process::chroot(c".").about("chroot", "new root")?;
        }
        Err(errno) => return Err(Error::new("pivot_root", ".", errno)),
    }
    rustix::process::chdir(c"/").about("chdir", "/")
}

/// Takes a mount off its place; it dies with its last user.
pub fn detach_path(path: &Path) -> Result<()> {
    rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).about("umount", path)
}

/// How messages name a descriptor whose path is not known.
pub(crate) fn fd_name(fd: BorrowedFd<'_>) -> String {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    std::fs::read_link(&link).map_or(link, |path| path.to_string_lossy().into_owned())
}
