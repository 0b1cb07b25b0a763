//! User namespaces' maps: reading one's own, writing a child's.

use std::path::Path;

use rustix::process::Pid;

use crate::{Context, Errno, Error, Result};

/// One line of a map: ids from `inside` on mean ids from `outside` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First id in the namespace.
    pub inside: u32,
    /// First id that it means in the parent namespace.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// A user or group map.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdMap(pub Vec<Extent>);

impl IdMap {
    /// Reads the text form of `/proc/PID/uid_map`.
    pub fn parse(text: &str) -> Option<Self> {
        let extents = text.lines().filter(|line| !line.trim().is_empty()).map(|line| {
            let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
            Some(Extent { inside: numbers.next()??, outside: numbers.next()??, count: numbers.next()?? })
        });
        extents.collect::<Option<Vec<_>>>().map(Self)
    }

    /// The user map of this process.
    pub fn of_users() -> Result<Self> {
        Self::read("/proc/self/uid_map")
    }

    /// The group map of this process.
    pub fn of_groups() -> Result<Self> {
        Self::read("/proc/self/gid_map")
    }

    fn read(path: &str) -> Result<Self> {
        let text = std::fs::read_to_string(path).about("read", path)?;
        Self::parse(&text).ok_or_else(|| Error::new("read", path, Errno::INVAL))
    }

    /// What `id` means outside; `None` when it is not mapped.
    pub fn outside(&self, id: u32) -> Option<u32> {
        self.0.iter().find_map(|extent| {
            let offset = id.checked_sub(extent.inside)?;
            (offset < extent.count).then(|| extent.outside.wrapping_add(offset))
        })
    }

    /// Every id means itself: the initial namespace, or a copy of it.
    pub fn is_identity(&self) -> bool {
        self.0 == [Extent { inside: 0, outside: 0, count: u32::MAX }]
    }

    /// How many ids there are.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|extent| u64::from(extent.count)).sum()
    }

    /// There are no ids at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The map of a nested namespace that has all the ids of this one, each meaning itself.
    #[must_use]
    pub fn nested(&self) -> Self {
        Self(self.0.iter().map(|extent| Extent { outside: extent.inside, ..*extent }).collect())
    }

    fn to_text(&self) -> String {
        self.0.iter().map(|e| format!("{} {} {}\n", e.inside, e.outside, e.count)).collect()
    }
}

/// Gives the new user namespace of `child` its maps.
pub fn write_maps(child: Pid, users: &IdMap, groups: &IdMap) -> Result<()> {
    for (name, map) in [("uid_map", users), ("gid_map", groups)] {
        let path = format!("/proc/{}/{name}", child.as_raw_nonzero());
        let path = Path::new(&path);
        std::fs::write(path, map.to_text()).about("write", path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_map_tells_its_root_outside_and_nests_whole() {
        let map = IdMap::parse("         0 3926654976      65536\n").expect("map");
        assert_eq!(map.outside(0), Some(3_926_654_976));
        assert_eq!(map.outside(65_536), None);
        assert!(!map.is_identity());
        assert_eq!(map.nested().to_text(), "0 0 65536\n");
    }

    #[test]
    fn the_initial_namespace_is_identity() {
        assert!(IdMap::parse("         0          0 4294967295\n").expect("map").is_identity());
        assert_eq!(IdMap::parse("0 0\n"), None);
    }
}
