//! The control groups that a step sees: its own, or the builder's where it has none, and those below, as it has a namespace of
//! them.

use std::os::fd::OwnedFd;
use std::path::Path;

use lapstrake_sys::fs::locate;
use lapstrake_sys::mount::{FsOption, MountAttrFlags, add_attrs, attach, new_filesystem};
use lapstrake_sys::{Context, Result};
use rustix::fs::Mode;

use super::rootfs::inert;

/// Mounts the trees that the builder has at `target`: the one of v2, else a directory with one for each of v1.
pub(super) fn mount(target: &OwnedFd, attrs: MountAttrFlags) -> Result<()> {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return attach(new_filesystem("cgroup2", &[], attrs)?, target);
    }
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut trees = Vec::new();
    for controllers in legacy(&groups) {
        // A tree that nobody has mounted cannot be made from within a namespace.
        if let Ok(tree) = new_filesystem("cgroup", &options(controllers), attrs) {
            trees.push((controllers.strip_prefix(NAMED).unwrap_or(controllers), tree));
        }
    }
    if trees.is_empty() {
        return Ok(());
    }
    let room = new_filesystem("tmpfs", &[FsOption::Value("mode", "755")], inert())?;
    attach(&room, target)?;
    let placed = trees.into_iter().try_for_each(|(name, tree)| place(&room, name, tree));
    // Also where not all found a place, it is not the step's to write.
    add_attrs(&room, attrs, false)?;
    placed
}

/// Puts a tree of v1 under its name, and under the name of each of its controllers.
fn place(room: &OwnedFd, name: &str, tree: OwnedFd) -> Result<()> {
    rustix::fs::mkdirat(room, name, Mode::from_raw_mode(0o755)).about("mkdirat", name)?;
    attach(tree, locate(room, name, true)?)?;
    let aliases = name.split(',').filter(|alias| *alias != name);
    aliases
        .into_iter()
        .try_for_each(|alias| rustix::fs::symlinkat(name, room, alias).about("symlinkat", alias))
}

/// What a tree without controllers has in place of them.
const NAMED: &str = "name=";

/// The trees of v1 that `/proc/self/cgroup` tells of, by their controllers.
fn legacy(groups: &str) -> impl Iterator<Item = &str> {
    let controllers = |line| str::splitn(line, 3, ':').nth(1);
    groups.lines().filter_map(controllers).filter(|controllers| !controllers.is_empty())
}

fn options(controllers: &str) -> Vec<FsOption<'_>> {
    match controllers.strip_prefix(NAMED) {
        Some(name) => vec![FsOption::Value("name", name)],
        None => controllers.split(',').map(FsOption::Flag).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_of_v1_are_named_as_their_controllers() {
        let groups = "9:name=systemd:/a:b\n2:cpu,cpuacct:/\n0::/\n";
        assert_eq!(legacy(groups).collect::<Vec<_>>(), ["name=systemd", "cpu,cpuacct"]);
        assert!(matches!(options("name=systemd")[..], [FsOption::Value("name", "systemd")]));
        assert!(matches!(options("cpu,cpuacct")[..], [FsOption::Flag("cpu"), FsOption::Flag("cpuacct")]));
    }
}
