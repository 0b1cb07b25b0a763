//! Bytes that survive a kill: blobs, snapshots, and an index over both.
//!
//! Job: one state directory of one builder process.
//! ```text
//! ROOT/lock                   held (flock) while a process has the store open; names that process
//! ROOT/blobs/sha256/<hex>     finished blobs, named by their digest
//! ROOT/ingest/                blobs in the making
//! ROOT/snapshots/<id>/fs      overlay layer (an "upper" directory); `work` beside it while active
//! ROOT/snapshots/<id>/meta    written last: parent, layer facts, records. No `meta`, no snapshot
//! ROOT/snapshots/<id>/layer   layer facts that were learnt after the commit
//! ROOT/mounts/<id>/fs         directory of a cache mount; `meta` beside it says which one it is
//! ROOT/trash/                 removed things on their way out
//! ROOT/index.redb             key-value records; may be lost, is rebuilt from the `meta` files
//! ```
//!
//! Holds: a blob's bytes match its name (checked when it is committed and when it is first read); a
//! committed snapshot never changes; after a kill or a power cut at any instruction the next
//! [`Store::open`] gives a usable store, in which no record names data that was not on the disk before
//! the record was (how: see [`Store::flush`]).
//! Never: shows a name before its data is there; runs a step, mounts, speaks to a registry.
//!
//! All calls block; asynchronous callers move them off their executor.

mod blob;
mod cache_dir;
mod collect;
mod error;
mod flush;
mod gc;
pub mod index;
mod keeper;
mod layer;
pub mod limits;
mod lock;
mod paths;
mod pins;
mod side;
mod snapshot;
mod usage;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use blob::{BlobWriter, Durability};
pub use cache_dir::{CacheDir, CacheDirInfo, CacheDirKey, Sharing};
pub use collect::{Collected, Disk};
pub use error::{Error, Result};
pub use gc::{Limits, Rule, UNUSED_MAX};
pub use index::Table;
pub use layer::{LayerFacts, chain_id, chain_of};
pub use pins::Job;
pub use side::SideChange;
pub use snapshot::{Active, CommitOptions, Record, SnapshotId, SnapshotInfo};
pub use usage::{ItemId, Kind, Usage, UsageItem, measure};

use flush::{Flusher, Shared};
use keeper::Keeper;

/// An open store. Clones share it; the last one to go flushes and gives the lock back.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    _keeper: Arc<Keeper>,
    // Declared after `shared` for reading only: its drop ends the flushing thread, whichever goes first.
    _flusher: Arc<Flusher>,
}

/// What [`Store::open`] found and put right.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Why the index was made anew, if it was.
    pub index_rebuilt: Option<String>,
    /// Blobs that were being written when the last process ended.
    pub ingests_removed: u64,
    /// Snapshots that were never committed, or not yet on the disk.
    pub snapshots_removed: u64,
    /// Directories of cache mounts that were still being filled.
    pub cache_dirs_removed: u64,
}

impl Recovered {
    /// True where the last process left nothing to put right.
    pub fn is_clean(&self) -> bool {
        *self == Self::default()
    }
}

impl Store {
    /// Opens the store at `root`, making it if it is not there, and cleans up after a killed process.
    ///
    /// # Errors
    /// [`Error::Busy`] where another process holds it, [`Error::Version`] where a newer version wrote
    /// it, else I/O. A broken index is no error (see [`Store::recovered`]).
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        let shared = Arc::new(Shared::open(root.as_ref())?);
        let flusher = Arc::new(Flusher::start(Arc::clone(&shared))?);
        let keeper = Arc::new(Keeper::start(Arc::clone(&shared))?);
        Ok(Self { shared, _keeper: keeper, _flusher: flusher })
    }

    /// A store in a fresh temporary directory, for tests; needs no privileges.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn temporary() -> Result<(Self, tempfile::TempDir)> {
        let dir = tempfile::tempdir().map_err(|e| Error::io("make a temporary directory in", "/tmp", e))?;
        Ok((Self::open(dir.path())?, dir))
    }

    /// The state directory.
    pub fn root(&self) -> &Path {
        self.shared.paths.root()
    }

    /// A directory on the store's file system for other parts' files (checked-out sources, unpacked
    /// archives). The store never looks inside; it survives a restart.
    ///
    /// # Errors
    /// I/O.
    pub fn side_dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.shared.paths.root().join("side").join(name);
        std::fs::create_dir_all(&path).map_err(|e| Error::io("make", &path, e))?;
        Ok(path)
    }

    /// What the opening put right.
    pub fn recovered(&self) -> &Recovered {
        &self.shared.recovered
    }

    /// Makes everything committed and put so far survive a power cut, and says whether that worked.
    ///
    /// The ordering that a batch goes through, and why it holds:
    /// 1. A snapshot's commit writes `meta.new`; `put` keeps records in memory. Neither waits.
    /// 2. A flush takes all that is pending as one batch. Whoever puts a record that names a snapshot or
    ///    blob did so after committing it, so what the batch names was written before this point.
    /// 3. `syncfs`: all of that data, and `meta.new`, is on the disk.
    /// 4. `meta.new` is renamed to `meta`. Seen after a crash, it proves that step 3 had happened.
    /// 5. One durable index transaction makes the batch's records visible to later processes.
    ///
    /// A crash before 4 loses the batch's snapshots and records together; between 4 and 5, or with the
    /// rename lost but the records there, a record may name a snapshot that is gone, which reads as a
    /// miss, and an id is never given twice. Flushes run by themselves, at most
    /// [`limits::FLUSH_INTERVAL`] after something became pending.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Index`] or I/O. The batch stays pending and is tried again.
    pub fn flush(&self) -> Result<()> {
        self.shared.flush()
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("root", &self.root()).finish_non_exhaustive()
    }
}
