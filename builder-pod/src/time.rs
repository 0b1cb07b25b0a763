//! The clock, as text.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970 as RFC 3339 in UTC.
pub(crate) fn rfc3339(seconds: i64) -> String {
    match jiff::Timestamp::from_second(seconds) {
        Ok(time) => time.to_string(),
        Err(_) => "1970-01-01T00:00:00Z".to_owned(),
    }
}

/// Now, seconds since 1970.
pub(crate) fn now_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(0)
}

/// A point in time as RFC 3339 in UTC, with all its digits.
pub(crate) fn rfc3339_precise(at: SystemTime) -> String {
    match jiff::Timestamp::try_from(at) {
        Ok(time) => time.to_string(),
        Err(_) => "1970-01-01T00:00:00Z".to_owned(),
    }
}

/// Now as RFC 3339 in UTC, with all its digits.
pub(crate) fn now_precise() -> String {
    rfc3339_precise(SystemTime::now())
}
