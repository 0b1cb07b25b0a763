//! When to try again.

use std::hash::{BuildHasher as _, Hasher as _};
use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};

use crate::limits::Limits;

/// Counts attempts without progress and spaces them out.
#[derive(Debug)]
pub(crate) struct Backoff<'a> {
    limits: &'a Limits,
    attempts_max: u32,
    attempts: u32,
}

impl<'a> Backoff<'a> {
    pub(crate) fn new(limits: &'a Limits, attempts_max: u32) -> Self {
        Self { limits, attempts_max, attempts: 0 }
    }

    /// Something got through: the registry is alive, counting starts anew.
    pub(crate) fn progress(&mut self) {
        self.attempts = 0;
    }

    /// How long to wait before the next attempt, or `None` if this one was the last.
    /// `after` is what the registry asked for.
    pub(crate) fn next(&mut self, after: Option<Duration>) -> Option<Duration> {
        self.attempts += 1;
        if self.attempts >= self.attempts_max {
            return None;
        }
        if let Some(after) = after {
            return (after <= self.limits.retry_after_max).then_some(after);
        }
        let doubled = self.limits.backoff_first.saturating_mul(1 << (self.attempts - 1).min(20));
        let wait = doubled.min(self.limits.backoff_max);
        // Half fixed, half by chance: many builders must not come back at the same moment.
        let half = wait / 2;
        let chance = std::hash::RandomState::new().build_hasher().finish() % 1024;
        Some(half + half.mul_f64(chance as f64 / 1023.0))
    }
}

/// The wait that a response asks for: seconds or an HTTP date.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let when = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    let when = SystemTime::from(when);
    Some(when.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(text: &str) -> HeaderMap {
        HeaderMap::from_iter([(RETRY_AFTER, text.parse().expect("header"))])
    }

    #[test]
    fn waits_double_and_end() {
        let limits = Limits {
            attempts_max: 4,
            backoff_first: Duration::from_secs(1),
            backoff_max: Duration::from_secs(3),
            ..Limits::default()
        };
        let mut backoff = Backoff::new(&limits, limits.attempts_max);
        for most in [1, 2, 3] {
            let wait = backoff.next(None).expect("one more");
            assert!(wait <= Duration::from_secs(most) && wait >= Duration::from_secs(most) / 2, "{wait:?}");
        }
        assert_eq!(backoff.next(None), None);
        backoff.progress();
        assert!(backoff.next(None).is_some());
    }

    #[test]
    fn a_wait_that_is_asked_for_is_kept_unless_it_is_too_long() {
        let limits = Limits::default();
        let mut backoff = Backoff::new(&limits, 5);
        assert_eq!(backoff.next(Some(Duration::from_secs(7))), Some(Duration::from_secs(7)));
        assert_eq!(backoff.next(Some(Duration::from_secs(3600))), None);
    }

    #[test]
    fn both_forms_of_retry_after_are_read() {
        assert_eq!(retry_after(&header("120")), Some(Duration::from_secs(120)));
        assert_eq!(retry_after(&header("Fri, 31 Dec 1999 23:59:59 GMT")), Some(Duration::ZERO));
        let far = retry_after(&header("Fri, 31 Dec 2100 23:59:59 GMT")).expect("a date");
        assert!(far > Duration::from_secs(86400));
        assert_eq!(retry_after(&header("soon")), None);
    }
}
