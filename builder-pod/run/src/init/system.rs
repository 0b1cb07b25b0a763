//! `/proc` and `/sys`, and what of them no step sees or writes.

use std::os::fd::BorrowedFd;
use std::path::Path;

use lapstrake_sys::fs::locate;
use lapstrake_sys::mount::{MountAttrFlags, add_attrs, attach, clone_tree, clone_tree_at, new_filesystem};
use rustix::fs::FileType;

use super::rootfs::{Scratch, inert};
use super::stubs::Places;
use super::{Failure, control_groups, kernel};
use crate::protocol::Stage;

/// Hidden: files read as empty, directories have nothing in them.
const MASKED: &[&str] = &[
    "proc/acpi",
    "proc/asound",
    "proc/interrupts",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/sched_debug",
    "proc/scsi",
    "proc/timer_list",
    "proc/timer_stats",
    "sys/devices/virtual/powercap",
    "sys/firmware",
    "sys/kernel/debug",
    "sys/kernel/security",
    "sys/kernel/tracing",
];

/// Readable at most.
const READ_ONLY: &[&str] = &["proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"];

/// A `/proc` of the step's own processes.
pub(super) fn mount_proc(places: &mut Places<'_>) -> Result<(), Failure> {
    let proc = new_filesystem("proc", &[], inert()).map_err(kernel(Stage::Proc))?;
    let target = places.place(Path::new("proc"), false).map_err(kernel(Stage::Proc))?;
    attach(&proc, &target).map_err(kernel(Stage::Proc))
}

/// `/sys`, read-only unless `writable`: fresh where the network namespace is ours, else the builder's.
///
/// A step's own view of the control groups comes with it: programs read their memory limit there.
pub(super) fn mount_sys(places: &mut Places<'_>, writable: bool) -> Result<(), Failure> {
    let mut attrs = inert();
    attrs.set(MountAttrFlags::MOUNT_ATTR_RDONLY, !writable);
    let target = places.place(Path::new("sys"), false).map_err(kernel(Stage::Sys))?;
    let sys = match new_filesystem("sysfs", &[], attrs) {
        Ok(sys) => sys,
        Err(error) if error.is_denied() => match clone_tree(Path::new("/sys"), true) {
            Ok(sys) => {
                add_attrs(&sys, attrs, true).map_err(kernel(Stage::Sys))?;
                sys
            }
            // A builder without a /sys has none to show.
            Err(_) => return Ok(()),
        },
        Err(error) => return Err(kernel(Stage::Sys)(error)),
    };
    attach(&sys, &target).map_err(kernel(Stage::Sys))?;
    let Ok(target) = locate(&sys, "fs/cgroup", true) else { return Ok(()) };
    // A view of limits is a comfort, not a need.
    control_groups::mount(&target, attrs).ok();
    Ok(())
}

/// Hides and write-protects what the default lists name, where it exists.
pub(super) fn mask(root: BorrowedFd<'_>, scratch: &Scratch) -> Result<(), Failure> {
    let stage = Stage::Mask;
    let null = scratch.nodes.join("null");
    for path in MASKED {
        let Ok(target) = locate(root, path, false) else { continue };
        let stat = rustix::fs::fstat(&target)
            .map_err(|errno| Failure::new(stage, format!("masking /{path}"), errno))?;
        let directory = FileType::from_raw_mode(stat.st_mode).is_dir();
        let cover =
            clone_tree(if directory { &scratch.empty } else { &null }, false).map_err(kernel(stage))?;
        if directory {
            let attrs = inert() | MountAttrFlags::MOUNT_ATTR_RDONLY;
            add_attrs(&cover, attrs, false).map_err(kernel(stage))?;
        }
        attach(&cover, &target).map_err(kernel(stage))?;
    }
    for path in READ_ONLY {
        let Ok(target) = locate(root, path, false) else { continue };
        let same = clone_tree_at(&target, false).map_err(kernel(stage))?;
        add_attrs(&same, inert() | MountAttrFlags::MOUNT_ATTR_RDONLY, false).map_err(kernel(stage))?;
        attach(&same, &target).map_err(kernel(stage))?;
    }
    Ok(())
}
