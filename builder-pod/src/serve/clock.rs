//! Points in time, as messages have them.

use std::time::{Duration, SystemTime};

use lapstrake_api::Timestamp;
pub(crate) use lapstrake_api::timestamp as stamp;

/// Now.
pub(crate) fn now() -> Timestamp {
    stamp(SystemTime::now())
}

/// The time of a message; what is no time is 1970.
pub(crate) fn system(stamp: Timestamp) -> SystemTime {
    let nanos = u32::try_from(stamp.nanos).unwrap_or(0).min(999_999_999);
    let since = Duration::new(u64::try_from(stamp.seconds).unwrap_or(0), nanos);
    SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH)
}
