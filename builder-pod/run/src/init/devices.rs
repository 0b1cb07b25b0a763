//! `/dev`: six devices, terminals, shared memory, message queues.
//!
//! The directory itself allows no devices (`nodev`), so that a node that a step makes there opens
//! nothing; each of the six is a mount of its own.

use std::os::fd::OwnedFd;
use std::path::Path;

use lapstrake_sys::fs::{locate, make_device, open_root};
use lapstrake_sys::mount::{FsOption, MountAttrFlags, attach, attach_path, clone_tree, new_filesystem};
use lapstrake_sys::{Context, Errno};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};

use super::rootfs::{Scratch, inert};
use super::stubs::Places;
use super::{Failure, kernel};
use crate::protocol::Stage;
use crate::spec::SHM_BYTES_DEFAULT;

/// Name, major, minor.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Makes `/dev` with all that belongs there.
pub(super) fn mount_dev(
    places: &mut Places<'_>,
    scratch: &Scratch,
    shm_bytes: Option<u64>,
) -> Result<(), Failure> {
    let fail = kernel(Stage::Dev);
    make_nodes(scratch).map_err(&fail)?;
    let quiet = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    let options = [FsOption::Value("mode", "755"), FsOption::Value("size", "65536k")];
    let dev = new_filesystem("tmpfs", &options, quiet).map_err(&fail)?;
    let target = places.place(Path::new("dev"), false).map_err(&fail)?;
    attach(&dev, &target).map_err(&fail)?;
    show_nodes(&dev, scratch).map_err(&fail)?;
    for (name, to) in LINKS {
        rustix::fs::symlinkat(to, &dev, name).about("symlink", name).map_err(&fail)?;
    }

    attach_dir(&dev, "pts", &terminals().map_err(&fail)?).map_err(&fail)?;
    let size = shm_bytes.unwrap_or(SHM_BYTES_DEFAULT).to_string();
    let options = [FsOption::Value("mode", "1777"), FsOption::Value("size", &size)];
    let shm = new_filesystem("tmpfs", &options, inert()).map_err(&fail)?;
    attach_dir(&dev, "shm", &shm).map_err(&fail)?;
    let queues = new_filesystem("mqueue", &[], inert()).map_err(&fail)?;
    attach_dir(&dev, "mqueue", &queues).map_err(&fail)
}

/// The devices in a place of our own: made where that is allowed, else the builder's, shown again.
fn make_nodes(scratch: &Scratch) -> lapstrake_sys::Result<()> {
    let attrs = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let tmpfs = new_filesystem("tmpfs", &[FsOption::Value("mode", "755")], attrs)?;
    attach_path(&tmpfs, &scratch.nodes)?;
    let dir = open_root(&scratch.nodes)?;
    for (name, major, minor) in DEVICES {
        let mode = Mode::from_raw_mode(0o666);
        match make_device(&dir, name, FileType::CharacterDevice, mode, major, minor) {
            // The umask has cut the mode.
            Ok(()) => rustix::fs::chmodat(&dir, name, mode, AtFlags::empty()).about("chmod", name)?,
            // A user namespace: its root makes no devices.
            Err(error) if error.errno == Errno::PERM => {
                let node = clone_tree(&Path::new("/dev").join(name), false)?;
                attach(&node, &empty_file(&dir, name)?)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn show_nodes(dev: &OwnedFd, scratch: &Scratch) -> lapstrake_sys::Result<()> {
    for (name, ..) in DEVICES {
        let node = clone_tree(&scratch.nodes.join(name), false)?;
        attach(&node, &empty_file(dev, name)?)?;
    }
    Ok(())
}

fn empty_file(dir: &OwnedFd, name: &str) -> lapstrake_sys::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    drop(rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o666)).about("open", name)?);
    locate(dir, name, false)
}

fn attach_dir(dev: &OwnedFd, name: &str, mount: &OwnedFd) -> lapstrake_sys::Result<()> {
    rustix::fs::mkdirat(dev, name, Mode::from_raw_mode(0o755)).about("mkdir", name)?;
    attach(mount, &locate(dev, name, false)?)
}

/// Terminals; group 5 owns them by custom, where it exists.
fn terminals() -> lapstrake_sys::Result<OwnedFd> {
    let attrs = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let options = [FsOption::Value("ptmxmode", "0666"), FsOption::Value("mode", "0620")];
    let with_group = [&options[..], &[FsOption::Value("gid", "5")]].concat();
    match new_filesystem("devpts", &with_group, attrs) {
        Err(error) if error.errno == Errno::INVAL => new_filesystem("devpts", &options, attrs),
        result => result,
    }
}
