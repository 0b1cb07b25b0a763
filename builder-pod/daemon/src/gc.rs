//! Policies of garbage collection, as configured.

use std::time::Duration;

use crate::Space;

/// What may be kept, of everything or of what some filters match.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GcPolicy {
    /// Also what several others lie on and what is internal.
    pub all: bool,
    /// Filters in containerd's language; something matches when one of them does. None: everything.
    pub filters: Vec<String>,
    /// Only what was not used for this long.
    pub keep: Duration,
    /// Kept in any case.
    pub reserved: Space,
    /// Never more than this; unset: no limit.
    pub max_used: Space,
    /// Left free of the file system.
    pub min_free: Space,
}

/// A [`GcPolicy`] in bytes of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GcRule {
    /// Also what several others lie on and what is internal.
    pub all: bool,
    /// Filters in containerd's language; something matches when one of them does. None: everything.
    pub filters: Vec<String>,
    /// Only what was not used for this long.
    pub keep: Duration,
    /// Bytes kept in any case.
    pub reserved_bytes: u64,
    /// Never more bytes than this; 0: no limit.
    pub max_used_bytes: u64,
    /// Bytes left free of the file system.
    pub min_free_bytes: u64,
}

/// What is configured about garbage collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gc {
    /// Whether there is any.
    pub enabled: bool,
    /// Kept in any case, where no policies are given.
    pub reserved: Space,
    /// Never more than this, where no policies are given.
    pub max_used: Space,
    /// Left free, where no policies are given.
    pub min_free: Space,
    /// The policies; none: the usual four.
    pub policies: Vec<GcPolicy>,
}

impl Default for Gc {
    fn default() -> Self {
        let unset = Space::default();
        Self { enabled: true, reserved: unset, max_used: unset, min_free: unset, policies: Vec::new() }
    }
}

impl Gc {
    /// The rules, in order, for a file system of `total_bytes` (0: unknown). Empty where collection is off.
    pub fn rules(&self, total_bytes: u64) -> Vec<GcRule> {
        if !self.enabled {
            return Vec::new();
        }
        let usual;
        let policies = if self.policies.is_empty() {
            usual = self.usual(total_bytes);
            &usual
        } else {
            &self.policies
        };
        let rule = |policy: &GcPolicy| GcRule {
            all: policy.all,
            filters: policy.filters.clone(),
            keep: policy.keep,
            reserved_bytes: policy.reserved.bytes(total_bytes),
            max_used_bytes: policy.max_used.bytes(total_bytes),
            min_free_bytes: policy.min_free.bytes(total_bytes),
        };
        policies.iter().map(rule).collect()
    }

    /// The four policies that hold where none is given.
    fn usual(&self, total_bytes: u64) -> Vec<GcPolicy> {
        let is_unset = self.reserved.is_unset() && self.max_used.is_unset() && self.min_free.is_unset();
        let at_most = |percent, bytes| match Space::Percent(percent) {
            space if space.bytes(total_bytes) > bytes => Space::Bytes(bytes),
            space => space,
        };
        let caps = if is_unset {
            GcPolicy {
                reserved: at_most(10, 10_000_000_000),
                max_used: at_most(80, 100_000_000_000),
                min_free: Space::Percent(20),
                ..GcPolicy::default()
            }
        } else {
            GcPolicy {
                reserved: self.reserved,
                max_used: self.max_used,
                min_free: self.min_free,
                ..GcPolicy::default()
            }
        };
        let easily_made_again = ["source.local", "exec.cachemount", "source.git.checkout"];
        vec![
            GcPolicy {
                filters: easily_made_again.map(|kind| format!("type=={kind}")).to_vec(),
                keep: Duration::from_secs(48 * 3600),
                max_used: Space::Bytes(512_000_000),
                ..GcPolicy::default()
            },
            GcPolicy { keep: Duration::from_secs(60 * 24 * 3600), ..caps.clone() },
            caps.clone(),
            GcPolicy { all: true, ..caps },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_policies_the_usual_four_hold() {
        let rules = Gc::default().rules(1 << 40);
        let short: Vec<_> = rules
            .iter()
            .map(|r| (r.all, r.keep.as_secs() / 3600, r.reserved_bytes, r.max_used_bytes))
            .collect();
        let (reserved, max) = (10_000_000_000, 100_000_000_000);
        let expected = [
            (false, 48, 0, 512_000_000),
            (false, 1440, reserved, max),
            (false, 0, reserved, max),
            (true, 0, reserved, max),
        ];
        assert_eq!(short, expected);
        // A fifth of a tebibyte, rounded up.
        assert_eq!(
            rules.iter().map(|r| r.min_free_bytes).collect::<Vec<_>>(),
            [0, 205_000_000_000, 205_000_000_000, 205_000_000_000]
        );
    }

    #[test]
    fn caps_that_were_given_replace_the_usual_ones() {
        let gc = Gc { max_used: Space::Bytes(7), ..Gc::default() };
        let max: Vec<_> = gc.rules(1 << 40).iter().map(|r| (r.max_used_bytes, r.min_free_bytes)).collect();
        assert_eq!(max, [(512_000_000, 0), (7, 0), (7, 0), (7, 0)]);
    }

    #[test]
    fn collection_may_be_off() {
        assert!(Gc { enabled: false, ..Gc::default() }.rules(0).is_empty());
    }
}
