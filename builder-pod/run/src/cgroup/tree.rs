//! The trees of control groups: one of v2, or one for each controller of v1.

use std::path::{Path, PathBuf};

/// The file that names a group's processes.
pub(super) const MEMBERS: &str = "cgroup.procs";
/// Where processes of a v2 root go that is to have groups with limits below it.
pub(super) const INIT: &str = "init";
/// The controllers of v2 that limits need.
const CONTROLLERS: [&str; 4] = ["memory", "cpu", "cpuset", "pids"];
/// How often processes are moved out of a root: more may start meanwhile.
const MOVES_MAX: usize = 20;

/// Of which kind a tree is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// v2: all controllers that are handed down to it.
    Unified,
    /// v1: these controllers.
    Legacy(Vec<String>),
}

/// A tree that is mounted here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tree {
    pub(super) kind: Kind,
    /// Its root, as far up as it is seen from here.
    pub(super) at: PathBuf,
    /// The group of this process.
    pub(super) own: PathBuf,
}

/// The trees that `/proc/self/cgroup` and `/proc/self/mountinfo` tell of.
pub(super) fn of(groups: &str, mounts: &str) -> Vec<Tree> {
    let tree = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next()?, fields.next()?);
        let kind = match controllers {
            "" => Kind::Unified,
            // A tree without controllers is the service manager's.
            named if named.starts_with("name=") => return None,
            list => Kind::Legacy(list.split(',').map(str::to_owned).collect()),
        };
        let (at, own) =
            lapstrake_sys::cgroup::mounted_at(mounts, group, |file_system, options| match &kind {
                Kind::Unified => file_system == "cgroup2",
                Kind::Legacy(controllers) => {
                    file_system == "cgroup"
                        && controllers.iter().all(|one| options.split(',').any(|option| option == one))
                }
            })?;
        Some(Tree { kind, at, own })
    };
    groups.lines().filter_map(tree).collect()
}

/// The parts of a path in a tree, none of which leads out of it. A slice of the service manager's, as `build.slice:`, is a path too.
pub(super) fn parts(path: &str) -> impl Iterator<Item = &str> {
    let path = path.trim_end_matches(':');
    path.split('/').filter(|part| !matches!(*part, "" | "." | ".."))
}

impl Tree {
    /// Whether a controller works in it.
    pub(super) fn has(&self, controller: &str) -> bool {
        match &self.kind {
            Kind::Legacy(controllers) => controllers.iter().any(|one| one == controller),
            Kind::Unified => listed(&self.at, "cgroup.controllers").iter().any(|one| one == controller),
        }
    }

    /// The file that counts kills for want of memory.
    pub(super) fn oom_file(&self) -> Option<&'static str> {
        match &self.kind {
            Kind::Unified => Some("memory.events"),
            Kind::Legacy(_) => self.has("memory").then_some("memory.oom_control"),
        }
    }

    /// v2: lets groups below `group` have the controllers that it has itself. What cannot be handed down is missed where a limit
    /// needs it.
    pub(super) fn hand_down(&self, group: &Path) {
        if self.kind != Kind::Unified {
            return;
        }
        let (has, gives) = (listed(group, "cgroup.controllers"), listed(group, "cgroup.subtree_control"));
        for controller in CONTROLLERS {
            let name = || controller.to_owned();
            if !has.contains(&name()) || gives.contains(&name()) {
                continue;
            }
            let give = || std::fs::write(group.join("cgroup.subtree_control"), format!("+{controller}"));
            // A group hands nothing down while it has processes; that the machine's root may is known by what it lacks.
            for _ in 0..MOVES_MAX {
                match give() {
                    Err(error)
                        if error.kind() == std::io::ErrorKind::ResourceBusy && self.may_empty(group) =>
                    {
                        empty(group);
                    }
                    _ => break,
                }
            }
        }
    }

    /// Whether the processes of a group are ours to move: it is the root of what was given to us.
    fn may_empty(&self, group: &Path) -> bool {
        group == self.at && group == self.own && group.join("cgroup.type").exists()
    }

    /// v1: a new group has no processors and no memory until it is told some: those of the group above.
    pub(super) fn fill_cpuset(&self, group: &Path) -> std::io::Result<()> {
        let Kind::Legacy(controllers) = &self.kind else { return Ok(()) };
        if !controllers.iter().any(|one| one == "cpuset") {
            return Ok(());
        }
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let (of_group, above) = (group.join(file), group.parent().unwrap_or(group).join(file));
            if std::fs::read_to_string(&of_group)?.trim().is_empty() {
                std::fs::write(&of_group, std::fs::read_to_string(above)?.trim())?;
            }
        }
        Ok(())
    }
}

/// The words of a file, none where it cannot be read.
fn listed(group: &Path, file: &str) -> Vec<String> {
    let text = std::fs::read_to_string(group.join(file)).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Moves the processes of a group into one below it; those that end meanwhile need not be.
fn empty(group: &Path) {
    let init = group.join(INIT);
    std::fs::create_dir(&init).ok(); // It may be there.
    for process in listed(group, MEMBERS) {
        std::fs::write(init.join(MEMBERS), process).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_of_v1_are_found_with_their_controllers() {
        let groups = "9:name=systemd:/\n4:memory:/kubepods/pod1\n2:cpu,cpuacct:/\n0::/\n";
        let mounts = "30 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpuacct,cpu\n\
                      31 25 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      32 25 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n";
        let found = of(groups, mounts);
        assert_eq!(found.len(), 2, "no v2 is mounted: {found:?}");
        assert_eq!(found[0].at, Path::new("/sys/fs/cgroup/memory"));
        assert_eq!(found[0].own, Path::new("/sys/fs/cgroup/memory/kubepods/pod1"));
        assert!(found[0].has("memory") && !found[0].has("cpu"));
        assert!(found[1].has("cpu") && found[1].has("cpuacct"));
        assert_eq!((found[0].oom_file(), found[1].oom_file()), (Some("memory.oom_control"), None));
    }

    #[test]
    fn in_a_container_the_root_is_its_own_group() {
        let mounts = "41 31 0:38 /kubepods/pod1/c1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let found = of("0::/kubepods/pod1/c1\n", mounts);
        let at = PathBuf::from("/sys/fs/cgroup");
        assert_eq!(found, [Tree { kind: Kind::Unified, at: at.clone(), own: at }]);
    }

    #[test]
    fn a_parent_stays_below_the_root() {
        assert_eq!(parts("/a//b/../../../c/").collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(parts("build.slice:").collect::<Vec<_>>(), ["build.slice"]);
        assert_eq!(parts("").count(), 0);
    }
}
