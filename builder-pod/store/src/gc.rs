//! What goes when there is too much, and in which order.
//!
//! In: what the store has ([`crate::Usage`]), a [`Rule`], the time. Out: names in the order in which they go.
//! Holds: nothing in use is chosen, nor anything that something in use or something kept lies on; no more is
//! chosen than the rule needs.
//! Never: touches the disk (that is `collect.rs`), reads a clock.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::{Duration, SystemTime};

use crate::{ItemId, Kind, SnapshotId, UsageItem};

/// A cache mount or a source counts as unused this much longer than a layer that was used at the same time:
/// layers stand for the work of steps, the others for downloads.
const HANDICAP: Duration = Duration::from_secs(48 * 3600);
/// What nobody used for this long goes, however much room there is.
pub const UNUSED_MAX: Duration = Duration::from_secs(60 * 24 * 3600);

/// How much room the store may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Bytes that it may take; `None`: as many as there are.
    pub max_bytes: Option<u64>,
    /// Bytes of the file system that it leaves free for others.
    pub min_free_bytes: u64,
    /// Bytes that it may keep even where that leaves less free.
    pub reserved_bytes: u64,
}

impl Limits {
    /// Bytes that the store may take now, where it takes `used` and the file system has `free` left;
    /// as BuildKit reckons.
    pub fn budget_bytes(&self, used: u64, free: u64) -> u64 {
        let lacking = self.min_free_bytes.saturating_sub(free);
        let by_free = if lacking > 0 { used.saturating_sub(lacking) } else { u64::MAX };
        self.max_bytes.unwrap_or(u64::MAX).min(by_free).max(self.reserved_bytes)
    }
}

/// What may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Only these kinds; all where absent.
    pub kinds: Option<Vec<Kind>>,
    /// Only what is named like this; all where absent.
    pub ids: Option<Vec<String>>,
    /// Only what was not used for this long.
    pub unused_for: Duration,
    /// Also what several others lie on.
    pub shared: bool,
    /// Stop when the store takes no more than this; `None`: all that may go.
    pub until_bytes: Option<u64>,
}

impl Rule {
    /// All that was not used for [`UNUSED_MAX`].
    pub fn expired() -> Self {
        Self { kinds: None, ids: None, unused_for: UNUSED_MAX, shared: true, until_bytes: None }
    }

    /// Whatever is needed least, until no more than `bytes` are taken.
    pub fn down_to(bytes: u64) -> Self {
        Self { kinds: None, ids: None, unused_for: Duration::ZERO, shared: true, until_bytes: Some(bytes) }
    }
}

/// When it counts as used last, for the order: the oldest goes first.
fn age_order(item: &UsageItem) -> (SystemTime, Kind, Reverse<u64>) {
    let handicap = match item.kind {
        Kind::GitCheckout | Kind::Source | Kind::CacheMount => HANDICAP,
        Kind::Blob | Kind::Layer => Duration::ZERO,
    };
    (item.last_used.checked_sub(handicap).unwrap_or(SystemTime::UNIX_EPOCH), item.kind, Reverse(item.bytes))
}

/// The items that go, by their place in `items`, in the order in which they go: what lies on another one
/// before it. `total_bytes` is what the store takes now.
pub(crate) fn choose(items: &[UsageItem], rule: &Rule, total_bytes: u64, now: SystemTime) -> Vec<usize> {
    let mut children: HashMap<SnapshotId, usize> = HashMap::new();
    let mut layers: HashMap<SnapshotId, usize> = HashMap::new();
    for (at, item) in items.iter().enumerate() {
        if let ItemId::Layer(id) = item.id {
            layers.insert(id, at);
        }
        if let Some(parent) = item.parent {
            *children.entry(parent).or_default() += 1;
        }
    }
    let is_free = |at: usize| match items[at].id {
        ItemId::Layer(id) => !children.contains_key(&id),
        _ => true,
    };
    let first = (0..items.len()).filter(|at| is_free(*at) && may_go(&items[*at], rule, now));
    let mut next: BinaryHeap<_> = first.map(|at| Reverse((age_order(&items[at]), at))).collect();
    let (mut left, mut chosen) = (total_bytes, Vec::new());
    while rule.until_bytes.is_none_or(|until| left > until) {
        let Some(Reverse((_, at))) = next.pop() else { break };
        left = left.saturating_sub(items[at].bytes);
        chosen.push(at);
        let Some(parent) = items[at].parent else { continue };
        let Some(count) = children.get_mut(&parent) else { continue };
        *count -= 1;
        // Nothing lies on it any more.
        if *count == 0
            && let Some(parent_at) = layers.get(&parent)
            && may_go(&items[*parent_at], rule, now)
        {
            next.push(Reverse((age_order(&items[*parent_at]), *parent_at)));
        }
    }
    chosen
}

/// Whether the rule lets an item go on which nothing lies.
fn may_go(item: &UsageItem, rule: &Rule, now: SystemTime) -> bool {
    let age = now.duration_since(item.last_used).unwrap_or_default();
    !item.in_use
        && (rule.shared || !item.shared)
        && age >= rule.unused_for
        && rule.kinds.as_ref().is_none_or(|kinds| kinds.contains(&item.kind))
        && rule.ids.as_ref().is_none_or(|ids| ids.contains(&item.id.to_string()))
}

#[cfg(test)]
mod tests;
