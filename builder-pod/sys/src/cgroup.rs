//! Readings of the cgroup that this process lives in.

use std::path::{Path, PathBuf};

/// Where this process's memory cgroup tells of out-of-memory kills.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OomCounter {
    file: PathBuf,
}

impl OomCounter {
    /// Finds the counter of this process's own cgroup (v2 `memory.events`, v1
    /// `memory.oom_control`); `None` where there is none to read.
    pub fn of_self() -> Option<Self> {
        let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
        let file = counter_file(&groups, &mounts)?;
        let counter = Self { file };
        counter.kills().map(|_| counter)
    }

    /// How many processes of this cgroup the kernel has killed for want of memory, ever.
    pub fn kills(&self) -> Option<u64> {
        parse_kills(&std::fs::read_to_string(&self.file).ok()?)
    }
}

/// The memory limit of this process's own cgroup in bytes; `None` without one.
pub fn memory_limit_bytes() -> Option<u64> {
    let directory = OomCounter::of_self()?.file.parent()?.to_owned();
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).ok();
    let text = read("memory.max").or_else(|| read("memory.limit_in_bytes"))?;
    // v1 says "no limit" by a number near the largest one.
    text.trim().parse().ok().filter(|limit| *limit < 1 << 60)
}

/// How many kills for want of memory a group's file tells of (v2 `memory.events`, v1 `memory.oom_control`).
pub fn parse_kills(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")).and_then(|count| count.trim().parse().ok())
}

fn counter_file(groups: &str, mounts: &str) -> Option<PathBuf> {
    let v1 = groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?;
        controllers.split(',').any(|name| name == "memory").then(|| fields.next())?
    });
    if let Some(group) = v1 {
        let directory = group_directory(mounts, group, |kind, options| {
            kind == "cgroup" && options.split(',').any(|option| option == "memory")
        })?;
        return Some(directory.join("memory.oom_control"));
    }
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(group_directory(mounts, group, |kind, _| kind == "cgroup2")?.join("memory.events"))
}

/// Where the cgroup `group` lies in the file system, by the mounts of this process.
fn group_directory(mounts: &str, group: &str, wanted: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
    mounted_at(mounts, group, wanted).map(|(_, own)| own)
}

/// The mount (of `/proc/self/mountinfo`) that shows the cgroup `group`, and where this lies there; `wanted` is asked for its type and the
/// options of its file system.
pub fn mounted_at(
    mounts: &str,
    group: &str,
    wanted: impl Fn(&str, &str) -> bool,
) -> Option<(PathBuf, PathBuf)> {
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let (kind, options) = (right.next()?, right.nth(1)?);
        if !wanted(kind, options) {
            return None;
        }
        let mut left = left.split(' ').skip(3);
        let (root, place) = (left.next()?, left.next()?);
        // The mount shows the tree from `root` on; inside a container that is its own cgroup.
        let below = Path::new(group).strip_prefix(root).ok()?;
        Some((PathBuf::from(place), Path::new(place).join(below)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "5:devices:/\n4:memory:/kubepods/pod1/c1\n0::/\n";
    const V2: &str = "0::/kubepods/c1\n";

    #[test]
    fn v1_container_finds_its_own_group_behind_a_bind() {
        let mounts = "35 31 0:31 /kubepods/pod1/c1 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        assert_eq!(counter_file(V1, mounts), Some("/sys/fs/cgroup/memory/memory.oom_control".into()));
    }

    #[test]
    fn v1_host_finds_the_group_below_the_mount() {
        let mounts = "35 31 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let expected = "/sys/fs/cgroup/memory/kubepods/pod1/c1/memory.oom_control";
        assert_eq!(counter_file(V1, mounts), Some(expected.into()));
    }

    #[test]
    fn v2_reads_memory_events() {
        let mounts = "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(counter_file(V2, mounts), Some("/sys/fs/cgroup/kubepods/c1/memory.events".into()));
    }

    #[test]
    fn both_formats_tell_the_kills() {
        assert_eq!(parse_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), Some(3));
        assert_eq!(parse_kills("low 0\nmax 12\noom 1\noom_kill 2\noom_group_kill 0\n"), Some(2));
    }
}
