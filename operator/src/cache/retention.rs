//! Which slots have been unused for too long.
//!
//! Never: the cluster, a clock.

use std::time::Duration;

use jiff::Timestamp;

use crate::cache::slots::{Holder, Slot, is_free};

/// Whether a slot that is kept unused for this long may go.
///
/// `created` counts as a use, so that one which was never taken goes too. What is used is not decided by the
/// clock: a slot whose holder lives stays, however long that takes.
pub fn expired(
    slot: &Slot,
    living: &[Holder],
    created: Option<Timestamp>,
    unused_for: Duration,
    now: Timestamp,
) -> bool {
    let Some(since) = slot.last_used.max(created) else {
        return false;
    };
    let unused = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    is_free(slot, living) && unused >= unused_for
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_goes_when_nobody_used_it_for_long_enough() {
        let at = |second| Timestamp::from_second(second).ok();
        let slot =
            Slot { claim: "c0".into(), last_used: at(100), leased_to: Some("p".into()), ..Slot::default() };
        let hour = Duration::from_secs(3600);
        let late = at(100 + 3600).unwrap();
        let gone = |living: &[Holder], created, now| expired(&slot, living, created, hour, now);
        assert!(gone(&[], at(1), late));
        assert!(!gone(&[], at(1), at(100 + 3599).unwrap()));
        assert!(!gone(&[], at(3000), late), "it was made just now");
        let holder = Holder { uid: "p".into(), claim: "c0".into(), gated: false };
        assert!(!gone(&[holder], at(1), late), "its holder lives");
        let unknown = Slot { last_used: None, ..slot.clone() };
        assert!(!expired(&unknown, &[], None, hour, late), "nobody knows since when");
    }
}
