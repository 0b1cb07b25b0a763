//! Bounds of what the client asks, waits for and keeps.

use std::time::Duration;

/// Largest manifest or index that is read; the distribution spec asks for at least 4 MiB.
pub const MANIFEST_BYTES_MAX: u64 = 8 << 20;
/// Largest error body that is read to learn what the registry says.
pub const ERROR_BODY_BYTES_MAX: usize = 64 << 10;
/// Largest answer of a token server.
pub const TOKEN_BODY_BYTES_MAX: usize = 1 << 20;
/// Longest text of a registry that an error repeats, in characters.
pub const MESSAGE_CHARS_MAX: usize = 300;
/// Blobs up to this size are pushed with one PUT; larger ones are streamed with PATCH, which can be resumed.
pub const MONOLITHIC_BYTES_MAX: u64 = 1 << 20;
/// Repositories that a blob is tried to be mounted from, at most.
pub const MOUNT_CANDIDATES_MAX: usize = 3;
/// Redirects of one request that are followed.
pub const REDIRECTS_MAX: usize = 10;
/// Times that one request may be answered with 401 or 403 and be sent again with other authorisation.
pub const AUTH_ROUNDS_MAX: usize = 8;
/// Life of a token whose server does not say how long it lives (distribution token spec).
pub const TOKEN_LIFE_DEFAULT: Duration = Duration::from_secs(60);
/// A token is renewed this long before it ends.
pub const TOKEN_MARGIN: Duration = Duration::from_secs(5);
/// Bytes of a blob that are read from its source at a time.
pub const CHUNK_BYTES: usize = 128 << 10;
/// Pages of a tag list that are followed.
pub const TAG_PAGES_MAX: usize = 1000;

/// Bounds that a caller may choose.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Requests and transfers at a time per registry.
    pub concurrency: usize,
    /// Attempts without any progress before giving up on an unreachable or failing registry.
    pub attempts_max: u32,
    /// Attempts of a mirror; the next one is tried instead of waiting.
    pub mirror_attempts_max: u32,
    /// Wait before the second attempt; doubles with each.
    pub backoff_first: Duration,
    /// Longest wait between attempts that the client chooses.
    pub backoff_max: Duration,
    /// Longest wait that a `Retry-After` may ask for; a longer one is an error at once.
    pub retry_after_max: Duration,
    /// Time for a connection to be made.
    pub connect_timeout: Duration,
    /// Time without a byte after which a transfer counts as broken.
    pub stall_timeout: Duration,
    /// Time that a registry may take to check a pushed blob before it answers.
    pub commit_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            concurrency: 4,
            attempts_max: 5,
            mirror_attempts_max: 2,
            backoff_first: Duration::from_millis(250),
            backoff_max: Duration::from_secs(10),
            retry_after_max: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(60),
            commit_timeout: Duration::from_secs(300),
        }
    }
}
