//! When a place is asked again. Pure.

use std::time::Duration;

use crate::names::short_hash;

/// Longest wait after failures.
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(3600);
/// Share of an interval by which places are spread: they are asked between 90 and 110 % of it.
const JITTER_PERCENT: u64 = 10;

/// The wait before the next question to `place`, after `asked` questions, of which the last `failures` in a
/// row failed.
///
/// The jitter comes from a hash of place and count: no chance, and no two places keep in step.
pub(super) fn wait(place: &str, interval: Duration, asked: u64, failures: u32) -> Duration {
    let longest = BACKOFF_MAX.max(interval);
    let grown = interval.saturating_mul(1_u32 << failures.min(12)).min(longest);
    let millis = u64::try_from(grown.as_millis()).unwrap_or(u64::MAX);
    let spread = millis / 100 * JITTER_PERCENT;
    let hash = short_hash(format!("{place}\n{asked}").as_bytes(), 8);
    let dice = u64::from_str_radix(&hash, 16).unwrap_or_default();
    let millis = millis.saturating_sub(spread).saturating_add(dice % (2 * spread).max(1));
    Duration::from_millis(millis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn two_places_and_two_rounds_are_spread() {
        let minute = Duration::from_secs(60);
        let waits = [wait("a", minute, 0, 0), wait("b", minute, 0, 0), wait("a", minute, 1, 0)];
        assert!(waits[0] != waits[1] && waits[0] != waits[2], "{waits:?}");
        assert_eq!(waits[0], wait("a", minute, 0, 0), "no chance in it");
    }

    proptest! {
        #[test]
        fn a_wait_is_within_a_tenth_of_its_interval(
            place in ".{0,20}", seconds in 1_u64..100_000, asked in any::<u64>(),
        ) {
            let interval = Duration::from_secs(seconds);
            let wait = wait(&place, interval, asked, 0);
            prop_assert!(wait >= interval * 9 / 10 - Duration::from_millis(100) && wait <= interval * 11 / 10);
        }

        #[test]
        fn failures_never_shorten_a_wait_and_never_stop_it(
            seconds in 1_u64..7_200, asked in any::<u64>(), failures in 0_u32..1_000,
        ) {
            let interval = Duration::from_secs(seconds);
            let bounds = (interval * 9 / 10 - Duration::from_millis(100), BACKOFF_MAX.max(interval) * 11 / 10);
            let wait = wait("x", interval, asked, failures);
            prop_assert!(wait >= bounds.0 && wait <= bounds.1, "{wait:?} {bounds:?}");
        }
    }
}
