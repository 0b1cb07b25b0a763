//! What is written into the files of a group for its limits.

use super::Limits;
use super::tree::{Kind, Tree};

/// The kernel's period where none is given, microseconds.
const PERIOD_DEFAULT_US: u64 = 100_000;

/// Each limit with the controller that keeps it.
fn controllers(limits: &Limits) -> Vec<(&'static str, &'static str)> {
    let asked = [
        ("memory", "memory", limits.memory_bytes.is_some()),
        ("memory-swap", "memory", limits.memory_swap_bytes.is_some()),
        ("cpu-shares", "cpu", limits.cpu_shares.is_some()),
        ("cpu-period", "cpu", limits.cpu_period_us.is_some()),
        ("cpu-quota", "cpu", limits.cpu_quota_us.is_some()),
        ("cpuset-cpus", "cpuset", limits.cpuset_cpus.is_some()),
        ("cpuset-mems", "cpuset", limits.cpuset_mems.is_some()),
    ];
    asked.into_iter().filter_map(|(limit, by, given)| given.then_some((limit, by))).collect()
}

/// A limit that nobody keeps is an error: it would be one in name only.
pub(super) fn all_have_a_place(limits: &Limits, trees: &[Tree]) -> Result<(), String> {
    for (limit, by) in controllers(limits) {
        if !trees.iter().any(|tree| tree.has(by)) {
            return Err(format!(
                "the limit {limit} needs the controller {by}, which the builder was not given"
            ));
        }
    }
    Ok(())
}

/// A file of a group, the controller that it is of, and what is written there.
pub(super) type Write = (&'static str, &'static str, String);

/// The files of a group of this kind and their contents, in the order in which they are written. A tree that lacks the controller of
/// one has no such file.
pub(super) fn of(limits: &Limits, kind: &Kind) -> Result<Vec<Write>, String> {
    let text = |number: Option<u64>| number.map(|number| number.to_string());
    let all = match kind {
        Kind::Unified => vec![
            ("memory", "memory.max", text(limits.memory_bytes)),
            ("memory", "memory.swap.max", swap(limits)?),
            ("cpu", "cpu.weight", text(limits.cpu_shares.map(weight))),
            ("cpu", "cpu.max", bandwidth(limits)),
            ("cpuset", "cpuset.cpus", limits.cpuset_cpus.clone()),
            ("cpuset", "cpuset.mems", limits.cpuset_mems.clone()),
        ],
        Kind::Legacy(_) => vec![
            ("memory", "memory.limit_in_bytes", text(limits.memory_bytes)),
            (
                "memory",
                "memory.memsw.limit_in_bytes",
                limits.memory_swap_bytes.map(|bytes| bytes.to_string()),
            ),
            ("cpu", "cpu.shares", text(limits.cpu_shares)),
            ("cpu", "cpu.cfs_period_us", text(limits.cpu_period_us)),
            ("cpu", "cpu.cfs_quota_us", text(limits.cpu_quota_us)),
            ("cpuset", "cpuset.cpus", limits.cpuset_cpus.clone()),
            ("cpuset", "cpuset.mems", limits.cpuset_mems.clone()),
        ],
    };
    Ok(all.into_iter().filter_map(|(by, file, value)| Some((by, file, value?))).collect())
}

/// v2 counts swap alone.
fn swap(limits: &Limits) -> Result<Option<String>, String> {
    match (limits.memory_swap_bytes, limits.memory_bytes) {
        (None, _) => Ok(None),
        (Some(-1), _) => Ok(Some("max".to_owned())),
        (Some(both), Some(memory)) => {
            match u64::try_from(both).ok().and_then(|both| both.checked_sub(memory)) {
                Some(swap) => Ok(Some(swap.to_string())),
                None => Err("the limit memory-swap is below the limit memory, which it includes".to_owned()),
            }
        }
        (Some(_), None) => Err("the limit memory-swap needs the limit memory beside it".to_owned()),
    }
}

/// Shares of 2 to 262144 as weights of 1 to 10000, as container runtimes convert them.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn bandwidth(limits: &Limits) -> Option<String> {
    if limits.cpu_quota_us.is_none() && limits.cpu_period_us.is_none() {
        return None;
    }
    let quota = limits.cpu_quota_us.map_or("max".to_owned(), |quota| quota.to_string());
    Some(format!("{quota} {}", limits.cpu_period_us.unwrap_or(PERIOD_DEFAULT_US)))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn limits() -> Limits {
        Limits {
            memory_bytes: Some(100),
            memory_swap_bytes: Some(150),
            cpu_shares: Some(1024),
            cpu_period_us: None,
            cpu_quota_us: Some(50_000),
            cpuset_cpus: Some("0-1".to_owned()),
            cpuset_mems: None,
        }
    }

    fn files(kind: &Kind) -> Vec<(&'static str, String)> {
        of(&limits(), kind).unwrap().into_iter().map(|(_, file, value)| (file, value)).collect()
    }

    #[test]
    fn v2_has_all_in_one_group() {
        let seen = files(&Kind::Unified);
        let seen: Vec<_> = seen.iter().map(|(file, value)| (*file, value.as_str())).collect();
        assert_eq!(
            seen,
            [
                ("memory.max", "100"),
                ("memory.swap.max", "50"),
                ("cpu.weight", "39"),
                ("cpu.max", "50000 100000"),
                ("cpuset.cpus", "0-1"),
            ]
        );
        assert_eq!([weight(2), weight(262_144)], [1, 10_000]);
    }

    #[test]
    fn v1_has_other_names_and_counts_swap_with_memory() {
        let seen = files(&Kind::Legacy(Vec::new()));
        let seen: Vec<_> = seen.iter().map(|(file, value)| (*file, value.as_str())).collect();
        assert_eq!(
            seen,
            [
                ("memory.limit_in_bytes", "100"),
                ("memory.memsw.limit_in_bytes", "150"),
                ("cpu.shares", "1024"),
                ("cpu.cfs_quota_us", "50000"),
                ("cpuset.cpus", "0-1"),
            ]
        );
    }

    #[test]
    fn limits_of_swap_include_those_of_memory() {
        let with = |memory, swap| {
            let limits = Limits { memory_bytes: memory, memory_swap_bytes: Some(swap), ..Limits::default() };
            of(&limits, &Kind::Unified)
        };
        assert_eq!(with(None, -1).unwrap(), [("memory", "memory.swap.max", "max".to_owned())]);
        assert!(with(Some(10), 5).unwrap_err().contains("is below"));
        assert!(with(None, 5).unwrap_err().contains("beside it"));
    }

    #[test]
    fn a_limit_that_nobody_keeps_is_refused() {
        let at = PathBuf::from("/nowhere");
        let tree = Tree { kind: Kind::Legacy(vec!["memory".to_owned()]), at: at.clone(), own: at };
        let memory = Limits { memory_bytes: Some(1), ..Limits::default() };
        assert_eq!(all_have_a_place(&memory, std::slice::from_ref(&tree)), Ok(()));
        let why = all_have_a_place(&limits(), &[tree]).unwrap_err();
        assert!(why.contains("cpu-shares needs the controller cpu"), "{why}");
    }
}
