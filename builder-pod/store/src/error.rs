use std::io;
use std::path::{Path, PathBuf};

use lapstrake_oci::Digest;

use crate::SnapshotId;

/// The store's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another process has the store open.
    #[error("state directory {} is in use by {holder}", root.display())]
    Busy {
        /// The state directory.
        root: PathBuf,
        /// `process 123 on host name`, or that it is unknown.
        holder: String,
    },
    /// The file system is full, or a quota is used up. Nothing half-written is left.
    #[error("no space left for {}", path.display())]
    NoSpace {
        /// What could not be written.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Any other failure of the file system.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Bytes that were to be stored are not what they should be.
    #[error("blob {expected} was expected, but the bytes have digest {actual}")]
    DigestMismatch {
        /// What was asked for.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// A stored blob's bytes no longer match its name. It was removed.
    #[error("blob {0} was damaged on the disk; it was removed")]
    BlobCorrupt(Digest),
    /// The blob is not there.
    #[error("blob {0} is not in the store")]
    BlobMissing(Digest),
    /// The blob is longer than the caller wants in memory.
    #[error("blob {digest} has {size_bytes} bytes, more than the {max_bytes} that may be read at once")]
    BlobTooLarge {
        /// Which.
        digest: Digest,
        /// Its size.
        size_bytes: u64,
        /// The bound.
        max_bytes: u64,
    },
    /// The snapshot is not there.
    #[error("snapshot {0} is not in the store")]
    SnapshotMissing(SnapshotId),
    /// Something is built on the snapshot.
    #[error("snapshot {0} is in use")]
    SnapshotInUse(SnapshotId),
    /// A record that is too long.
    #[error(
        "record of table {table} has a key of {key_bytes} and a value of {value_bytes} bytes, which is too long"
    )]
    RecordTooLarge {
        /// The table.
        table: &'static str,
        /// Length of the key.
        key_bytes: usize,
        /// Length of the value.
        value_bytes: usize,
    },
    /// The index could not be written or read; the data itself is not affected.
    #[error("index {}: {message}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What the database says.
        message: String,
    },
    /// The directory was written by a newer version.
    #[error("state directory {} has layout {found}, this version knows {known}", root.display())]
    Version {
        /// The state directory.
        root: PathBuf,
        /// What stands there.
        found: String,
        /// What we write.
        known: u32,
    },
}

impl Error {
    /// An I/O error with what was tried; a full disk becomes [`Error::NoSpace`].
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        let path = path.as_ref().to_owned();
        if is_no_space(&source) { Self::NoSpace { path, source } } else { Self::Io { action, path, source } }
    }

    /// True where the disk or a quota is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::NoSpace { .. })
    }

    /// True where the thing asked for is not there, or no longer.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::BlobMissing(_) | Self::BlobCorrupt(_) | Self::SnapshotMissing(_))
    }
}

/// Whether an I/O error means that the disk or a quota is full.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
