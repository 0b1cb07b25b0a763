//! Bounds and intervals of the store.

use std::time::Duration;

/// How long something may be pending until a flush starts.
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(250);
/// Memory that the index may use for cached pages.
pub const INDEX_CACHE_BYTES: usize = 16 << 20;
/// A longer index loses the digests of files when it is opened.
pub const INDEX_BYTES_MAX: u64 = 64 << 20;
/// Longest value of a record.
pub const VALUE_BYTES_MAX: usize = 16 << 20;
/// Longest key of a record.
pub const KEY_BYTES_MAX: usize = 64 << 10;
/// Longest `meta` or `layer` file that is read.
pub const META_BYTES_MAX: u64 = 64 << 20;
/// Deepest chain of snapshots; a longer one in the `meta` files is damage.
pub const CHAIN_MAX: usize = 4096;
/// How often the disk is looked at while a job runs.
pub const KEEP_INTERVAL: Duration = Duration::from_secs(1);
/// After measuring and removing, this many times as long passes until the next time.
pub const KEEP_REST: u32 = 20;
/// Room that an opening makes for the index on a full disk.
pub const OPEN_FREE_BYTES: u64 = 4 << 20;
