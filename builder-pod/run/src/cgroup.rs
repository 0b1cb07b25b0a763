//! Control groups of steps, where the builder was given a part of the tree to make some in (cgroup v1 and v2, also side by side).
//!
//! A group is made by the helper, which moves into it before it splits off the step, so that the step's own view of the tree begins
//! there; it leaves and removes it when nothing of the step is left, also when the builder is gone by then. As with BuildKit a
//! group lies at `PARENT/buildkit/NAME` below the root of the tree as the builder sees it.

mod tree;
mod writes;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lapstrake_sys::Errno;
use rustix::fs::Access;
use serde::{Deserialize, Serialize};

use crate::init::Failure;
use crate::protocol::Stage;
use tree::Tree;

/// A control group that a step gets of its own. What neither is at a place of its own nor limits anything is a wish.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlGroup {
    /// The group above it, by its path in the tree that the builder sees; empty for the root.
    pub parent: String,
    /// What the step may take.
    pub limits: Limits,
}

impl ControlGroup {
    /// Whether a step that cannot have it is run without.
    pub(crate) fn is_wish(&self) -> bool {
        *self == Self::default()
    }
}

/// Limits by control group; `None` limits nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory, bytes.
    pub memory_bytes: Option<u64>,
    /// Memory and swap together, bytes; -1 is no limit.
    pub memory_swap_bytes: Option<i64>,
    /// Weight among those that want the processors, 1024 being the usual one.
    pub cpu_shares: Option<u64>,
    /// Length of the period that the quota is of, microseconds.
    pub cpu_period_us: Option<u64>,
    /// Processor time in a period, microseconds.
    pub cpu_quota_us: Option<u64>,
    /// Processors, as `0-3,5`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes, as `0,1`.
    pub cpuset_mems: Option<String>,
}

/// What stands between the parent and a step's own group, as with BuildKit.
const FAMILY: &str = "buildkit";
/// How long the kernel may take to let go of a group whose processes have ended.
const LETS_GO: Duration = Duration::from_secs(1);
const LETS_GO_STEP: Duration = Duration::from_millis(10);

/// Whether the builder may make control groups here.
pub fn delegated() -> bool {
    trees().is_ok_and(|trees| !trees.is_empty())
}

/// The trees in which groups can be made.
fn trees() -> std::io::Result<Vec<Tree>> {
    let groups = std::fs::read_to_string("/proc/self/cgroup")?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut trees = tree::of(&groups, &mounts);
    trees.retain(|tree| rustix::fs::access(&tree.at, Access::WRITE_OK).is_ok());
    Ok(trees)
}

/// Groups that this process is in for a step: one in each tree.
#[derive(Debug, Default)]
pub(crate) struct Joined {
    groups: Vec<(Tree, PathBuf)>,
}

fn fail(what: &str, path: &Path) -> impl Fn(std::io::Error) -> Failure {
    let text = format!("control group: {what} {}", path.display());
    move |error| {
        let errno = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
        Failure::new(Stage::ControlGroup, format!("{text}: {error}"), errno)
    }
}

/// Moves this process back to where it was; who was at a root that may have no members any more stays beside it.
fn go_home(tree: &Tree) {
    let homes = [tree.own.clone(), tree.at.join(tree::INIT)];
    homes.iter().any(|home| std::fs::write(home.join(tree::MEMBERS), "0").is_ok());
}

/// A process is in a step's groups for as long as it starts a program there.
#[derive(Debug, Default)]
pub(crate) struct Visit {
    trees: Vec<Tree>,
}

impl Visit {
    /// Moves this process into the groups that the process `of` is in.
    pub(crate) fn begin(of: i32) -> Result<Self, Failure> {
        let trees = trees().map_err(fail("looking for", Path::new("/proc/self/cgroup")))?;
        let file = format!("/proc/{of}/cgroup");
        let failed = fail("reading", Path::new(&file));
        let groups = std::fs::read_to_string(&file).map_err(&failed)?;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").map_err(&failed)?;
        let theirs = tree::of(&groups, &mounts);
        let mut visit = Self::default();
        for tree in trees {
            let Some(at) = theirs.iter().find(|one| one.kind == tree.kind).map(|one| &one.own) else {
                continue;
            };
            let members = at.join(tree::MEMBERS);
            visit.trees.push(tree);
            if let Err(error) = std::fs::write(&members, "0") {
                visit.end();
                return Err(fail("joining", &members)(error));
            }
        }
        Ok(visit)
    }

    /// Goes back; what was started stays.
    pub(crate) fn end(self) {
        self.trees.iter().for_each(go_home);
    }
}

impl Joined {
    /// Makes the groups with their limits and moves this process into them; nothing is left of them after an error.
    pub(crate) fn join(wanted: &ControlGroup) -> Result<Self, Failure> {
        let trees = trees().map_err(fail("looking for", Path::new("/proc/self/cgroup")))?;
        writes::all_have_a_place(&wanted.limits, &trees)
            .map_err(|why| Failure::new(Stage::ControlGroup, why, Errno::NOTSUP))?;
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        let name = format!("{}-{}", std::process::id(), now.as_nanos());
        let mut joined = Self::default();
        for tree in trees {
            if let Err(failure) = joined.join_one(tree, wanted, &name) {
                joined.leave();
                return Err(failure);
            }
        }
        Ok(joined)
    }

    fn join_one(&mut self, tree: Tree, wanted: &ControlGroup, name: &str) -> Result<(), Failure> {
        let mut at = tree.at.clone();
        for part in tree::parts(&wanted.parent).chain([FAMILY, name]) {
            tree.hand_down(&at);
            at.push(part);
            match std::fs::create_dir(&at) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(fail("making", &at)(error));
                }
                _ => tree.fill_cpuset(&at).map_err(fail("its processors,", &at))?,
            }
        }
        let writes = writes::of(&wanted.limits, &tree.kind)
            .map_err(|why| Failure::new(Stage::ControlGroup, why, Errno::INVAL))?;
        let files = writes.into_iter().filter(|(by, ..)| tree.has(by)).map(|(_, file, value)| (file, value));
        let files: Vec<_> = files.collect();
        self.groups.push((tree, at.clone()));
        for (file, value) in files {
            let file = at.join(file);
            std::fs::write(&file, &value).map_err(fail(&format!("writing {value} to"), &file))?;
        }
        let members = at.join(tree::MEMBERS);
        std::fs::write(&members, "0").map_err(fail("joining", &members))
    }

    /// Whether the kernel has killed something in them for want of memory.
    pub(crate) fn saw_oom(&self) -> bool {
        self.groups.iter().any(|(tree, at)| {
            tree.oom_file()
                .and_then(|file| std::fs::read_to_string(at.join(file)).ok())
                .and_then(|text| lapstrake_sys::cgroup::parse_kills(&text))
                .is_some_and(|kills| kills > 0)
        })
    }

    /// Goes back to where this process was, and removes the groups with what the step has made in them; its processes have
    /// ended.
    pub(crate) fn leave(self) {
        for (tree, at) in &self.groups {
            go_home(tree);
            remove(at, Instant::now() + LETS_GO);
        }
    }
}

/// Removes a group with those in it.
fn remove(group: &Path, until: Instant) {
    loop {
        match std::fs::remove_dir(group) {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy && Instant::now() < until => {}
            _ => return, // Gone; or another has it, who removes it.
        }
        for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove(&entry.path(), until);
            }
        }
        std::thread::sleep(LETS_GO_STEP);
    }
}
