//! Directories of a client: what it lends, and what it takes.

use std::path::Path;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::session::Session;

/// Header that tells a client that a tree may hold one directory per platform; its value is `1`.
pub const MULTI_PLATFORM: &str = "buildkit-exporter-multi-platform";

/// How the previous copy is compared with what the client has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Differ {
    /// By what can be told without reading: size, times, mode, owner, links, attributes.
    #[default]
    Metadata,
    /// Not at all: everything is sent.
    None,
}

/// What is wanted of a client's directory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SyncRequest {
    /// Name that the client has for the directory.
    pub dir_name: String,
    /// Patterns of what is sent; empty for all.
    pub include: Vec<String>,
    /// Patterns of what is not sent, as in a `.dockerignore`.
    pub exclude: Vec<String>,
    /// Paths that are sent with all that symlinks on the way lead to.
    pub follow_paths: Vec<String>,
    /// How the previous copy is compared.
    pub differ: Differ,
    /// When set, the list of all entries is written to `.fsutil-metadata`, and only what these patterns match is
    /// sent besides.
    pub metadata_only: Option<Vec<String>>,
}

/// How far a transfer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SyncProgress {
    /// Files whose contents were sent.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// What a transfer did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Synced {
    /// Entries that the client listed.
    pub entries: u64,
    /// Files whose contents were sent.
    pub files_sent: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Whether anything in the directory is other than before, times of directories aside.
    pub changed: bool,
}

/// What was sent to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// Files whose contents the client asked for.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
}

impl Session {
    /// Makes `into` what the client's directory is, as far as it is asked for: only what is new or other than in the
    /// previous copy travels, and what the client does not list is removed.
    ///
    /// When it fails the directory is partly the old and partly the new; the next transfer repairs that.
    ///
    /// # Errors
    /// The client is gone, refuses or breaks the rules; the disk fails; `cancel` fired.
    pub async fn sync(
        self: &Arc<Self>,
        request: SyncRequest,
        into: &Path,
        progress: &mut (dyn FnMut(SyncProgress) + Send),
        cancel: &CancellationToken,
    ) -> Result<Synced, Error> {
        let _ = (request, into, progress, cancel);
        Err(Error::Sender("not yet".to_owned()))
    }

    /// A few files of a client's directory, each `None` when it is not there; symlinks are followed inside the directory.
    ///
    /// # Errors
    /// The client is gone or refuses; a file is larger than `bytes_max`.
    pub async fn read_files(
        self: &Arc<Self>,
        dir_name: &str,
        paths: &[&str],
        bytes_max: usize,
    ) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let _ = (dir_name, paths, bytes_max);
        Err(Error::Sender("not yet".to_owned()))
    }

    /// [`Session::read_files`] of one.
    ///
    /// # Errors
    /// The same.
    pub async fn read_file(
        self: &Arc<Self>,
        dir_name: &str,
        path: &str,
        bytes_max: usize,
    ) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.read_files(dir_name, &[path], bytes_max).await?.pop().flatten())
    }

    /// Sends the directory `from` to the client's output `exporter` (its place among the request's exporters).
    ///
    /// # Errors
    /// The client is gone or refuses; `from` cannot be read; `cancel` fired.
    pub async fn send_tree(
        self: &Arc<Self>,
        from: &Path,
        exporter: usize,
        headers: &[(String, String)],
        progress: &mut (dyn FnMut(SyncProgress) + Send),
        cancel: &CancellationToken,
    ) -> Result<Sent, Error> {
        let _ = (from, exporter, headers, progress, cancel);
        Err(Error::Receiver("not yet".to_owned()))
    }
}
