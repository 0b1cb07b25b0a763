//! Limits of what a step may take of the machine, BuildKit's `LinuxResources`.
//!
//! They are no part of what a step is: the same step with other limits has the same cache key. BuildKit keeps them in the operation's
//! metadata, in a field that our message types do not have; here they stand there as text, under [`crate::description::RESOURCES`]
//! ([`crate::newer`] is the way in and out).

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// Limits of one step; what is `None` is not limited by it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Memory, bytes.
    pub memory: Option<u64>,
    /// Memory and swap together, bytes; -1 is as much swap as there is.
    pub memory_swap: Option<i64>,
    /// Weight among those that want the processors, 1024 being the usual one.
    pub cpu_shares: Option<u64>,
    /// Length of the period that the quota is of, microseconds.
    pub cpu_period: Option<u64>,
    /// Processor time in a period, microseconds.
    pub cpu_quota: Option<u64>,
    /// Processors, as `0-3,5`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes, as `0,1`.
    pub cpuset_mems: Option<String>,
}

/// Names that BuildKit's frontend has for them.
pub const RESOURCE_NAMES: [&str; 7] =
    ["memory", "memswap", "cpushares", "cpuperiod", "cpuquota", "cpusetcpus", "cpusetmems"];

impl Resources {
    /// Sets one of [`RESOURCE_NAMES`]; an empty value is no limit.
    ///
    /// # Errors
    /// A name that is none of these, a value that is not of its form: the text says which form that is.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let given = Some(value).filter(|value| !value.is_empty());
        match name {
            "memory" => self.memory = given.map(above_zero).transpose()?,
            "memswap" => self.memory_swap = given.map(swap).transpose()?,
            "cpushares" => self.cpu_shares = given.map(above_zero).transpose()?,
            "cpuperiod" => self.cpu_period = given.map(above_zero).transpose()?,
            "cpuquota" => self.cpu_quota = given.map(above_zero).transpose()?,
            "cpusetcpus" => self.cpuset_cpus = given.map(set_of_numbers).transpose()?,
            "cpusetmems" => self.cpuset_mems = given.map(set_of_numbers).transpose()?,
            _ => return Err(format!("there is no limit \"{name}\", only {}", RESOURCE_NAMES.join(", "))),
        }
        Ok(())
    }

    /// What is limited, by [`RESOURCE_NAMES`].
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, String)> {
        let number = |of: Option<u64>| of.map(|number| number.to_string());
        let all = [
            number(self.memory),
            self.memory_swap.map(|number| number.to_string()),
            number(self.cpu_shares),
            number(self.cpu_period),
            number(self.cpu_quota),
            self.cpuset_cpus.clone(),
            self.cpuset_mems.clone(),
        ];
        RESOURCE_NAMES.into_iter().zip(all).filter_map(|(name, value)| Some((name, value?)))
    }

    /// The laxer of two, limit by limit, as BuildKit has it: of a step that two builds share, neither waits for the other's limits.
    /// No limit is the laxest of memory, of a quota and of sets; of swap and weight, which have defaults of their own, it is no wish.
    pub fn laxer(&self, other: &Self) -> Self {
        let (cpu_period, cpu_quota) =
            laxer_quota((self.cpu_period, self.cpu_quota), (other.cpu_period, other.cpu_quota));
        Self {
            memory: self.memory.zip(other.memory).map(|(a, b)| a.max(b)),
            memory_swap: match (self.memory_swap, other.memory_swap) {
                (Some(-1), Some(_)) | (Some(_), Some(-1)) => Some(-1),
                (a, b) => a.max(b), // none is below all
            },
            cpu_shares: self.cpu_shares.max(other.cpu_shares),
            cpu_period,
            cpu_quota,
            cpuset_cpus: either(self.cpuset_cpus.as_deref(), other.cpuset_cpus.as_deref()),
            cpuset_mems: either(self.cpuset_mems.as_deref(), other.cpuset_mems.as_deref()),
        }
    }

    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

type Quota = (Option<u64>, Option<u64>);

/// Of two periods and quotas the pair that lets more run; where both let the same run, the shorter period.
fn laxer_quota(a: Quota, b: Quota) -> Quota {
    let (more, fewer) = match (a, b) {
        ((_, None), (_, None)) => return (None, None),
        ((_, None), _) => return a,
        (_, (_, None)) => return b,
        ((Some(period_a), Some(quota_a)), (Some(period_b), Some(quota_b))) => {
            (u128::from(quota_a) * u128::from(period_b), u128::from(quota_b) * u128::from(period_a))
        }
        // A period that nobody has named can't be compared.
        ((_, Some(quota_a)), (_, Some(quota_b))) => (u128::from(quota_a), u128::from(quota_b)),
    };
    match more.cmp(&fewer) {
        Ordering::Greater => a,
        Ordering::Less => b,
        Ordering::Equal if a.0.is_none() => b,
        Ordering::Equal if b.0.is_none() || a.0 <= b.0 => a,
        Ordering::Equal => b,
    }
}

/// What is in either of two sets, in the kernel's form. Ranges are joined, never counted through: a client writes as many as it likes.
fn either(a: Option<&str>, b: Option<&str>) -> Option<String> {
    let (a, b) = (a?, b?);
    let mut all: Vec<(u16, u16)> = ranges(a).chain(ranges(b)).collect();
    all.sort_unstable();
    let mut joined: Vec<(u16, u16)> = Vec::new();
    for (first, last) in all {
        match joined.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => joined.push((first, last)),
        }
    }
    let text = |(first, last): (u16, u16)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    Some(joined.into_iter().map(text).collect::<Vec<_>>().join(","))
}

fn ranges(set: &str) -> impl Iterator<Item = (u16, u16)> {
    set.split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.parse().ok()?, last.parse().ok()?))
    })
}

fn above_zero(value: &str) -> Result<u64, String> {
    // The kernel's numbers are signed.
    let number = value.parse().ok().filter(|number| (1..=i64::MAX as u64).contains(number));
    number.ok_or_else(|| format!("\"{value}\" is no number above 0"))
}

fn swap(value: &str) -> Result<i64, String> {
    let number = value.parse().ok().filter(|number| *number == -1 || *number > 0);
    number.ok_or_else(|| format!("\"{value}\" is neither a number of bytes above 0 nor -1 (unlimited)"))
}

/// The kernel's lists of numbers: `0-3,5`.
fn set_of_numbers(value: &str) -> Result<String, String> {
    let number = |text: &str| text.parse::<u16>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
    let is_part = |part: &str| match part.split_once('-') {
        Some((first, last)) => matches!((number(first), number(last)), (Some(a), Some(b)) if a <= b),
        None => number(part).is_some(),
    };
    match value.split(',').all(is_part) {
        true => Ok(value.to_owned()),
        false => Err(format!("\"{value}\" is no list of numbers, as in 0-3,5")),
    }
}

/// As [`FromStr`] reads them: `memory=1048576;cpusetcpus=0-1`.
impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (name, value)) in self.iter().enumerate() {
            write!(f, "{}{name}={value}", if at > 0 { ";" } else { "" })?;
        }
        Ok(())
    }
}

impl FromStr for Resources {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = Self::default();
        for one in text.split(';').filter(|one| !one.is_empty()) {
            let (name, value) = one.split_once('=').unwrap_or((one, ""));
            all.set(name, value).map_err(|why| format!("{name}: {why}"))?;
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let text = "memory=1048576;memswap=-1;cpushares=512;cpuperiod=100000;cpuquota=50000;cpusetcpus=0-3,5;cpusetmems=0";
        let read: Resources = text.parse().unwrap();
        assert_eq!((read.memory, read.memory_swap), (Some(1 << 20), Some(-1)));
        assert_eq!(read.to_string(), text);
        assert!(Resources::default().is_empty() && Resources::default().to_string().is_empty());
        assert_eq!("".parse(), Ok(Resources::default()));
    }

    #[test]
    fn of_two_limits_the_laxer_counts() {
        for (a, b, both) in [
            ("memory=4096", "memory=8192", "memory=8192"),
            ("memory=4096", "", ""),
            ("memswap=4096", "", "memswap=4096"),
            ("memswap=4096", "memswap=-1", "memswap=-1"),
            ("memswap=4096", "memswap=8192", "memswap=8192"),
            ("cpushares=2", "", "cpushares=2"),
            ("cpushares=2", "cpushares=9", "cpushares=9"),
            ("cpuperiod=100;cpuquota=50", "cpuperiod=200;cpuquota=80", "cpuperiod=100;cpuquota=50"),
            ("cpuperiod=100;cpuquota=50", "cpuperiod=200;cpuquota=100", "cpuperiod=100;cpuquota=50"),
            ("cpuperiod=100;cpuquota=50", "cpuperiod=300", "cpuperiod=300"),
            ("cpuperiod=100", "cpuperiod=300", ""),
            ("cpuquota=50", "cpuperiod=300;cpuquota=50", "cpuperiod=300;cpuquota=50"),
            ("cpuquota=60", "cpuperiod=300;cpuquota=50", "cpuquota=60"),
            ("cpusetcpus=0-2", "cpusetcpus=3,7", "cpusetcpus=0-3,7"),
            ("cpusetcpus=0-2,0", "cpusetcpus=65535", "cpusetcpus=0-2,65535"),
            ("cpusetcpus=0-9,2-3", "cpusetcpus=4,11-65535,5-7", "cpusetcpus=0-9,11-65535"),
            ("cpusetmems=0", "", ""),
        ] {
            let [one, other]: [Resources; 2] = [a, b].map(|text| text.parse().unwrap());
            assert_eq!(one.laxer(&other).to_string(), both, "{a} and {b}");
            assert_eq!(other.laxer(&one).to_string(), both, "{b} and {a}");
        }
    }

    #[test]
    fn long_sets_are_joined_without_counting_through_them() {
        // As much of it as a message holds would else take hours.
        let set = vec!["0-65535"; 1 << 20].join(",");
        let limits: Resources = format!("cpusetcpus={set}").parse().unwrap();
        assert_eq!(limits.laxer(&limits).to_string(), "cpusetcpus=0-65535");
    }

    #[test]
    fn an_empty_value_takes_a_limit_away() {
        let mut resources: Resources = "memory=4096".parse().unwrap();
        resources.set("memory", "").unwrap();
        assert!(resources.is_empty());
    }

    #[test]
    fn values_of_another_form_say_what_the_form_is() {
        for (text, why) in [
            ("memory=0", "memory: \"0\" is no number above 0"),
            ("memory=1g", "no number above 0"),
            ("memory=18446744073709551615", "no number above 0"),
            ("memswap=-2", "nor -1 (unlimited)"),
            ("memswap=0", "nor -1 (unlimited)"),
            ("cpuquota=-1", "no number above 0"),
            ("cpusetcpus=3-1", "no list of numbers, as in 0-3,5"),
            ("cpusetcpus=+1", "no list of numbers"),
            ("cpusetmems=0,", "no list of numbers"),
            ("pids=3", "there is no limit \"pids\", only memory, memswap"),
        ] {
            let error = text.parse::<Resources>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
