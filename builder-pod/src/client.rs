//! What a build hands over to a client where its outputs and caches have no path on this machine.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use async_trait::async_trait;
use lapstrake_oci::{Descriptor, Digest};
use lapstrake_registry::BlobReader;

use crate::error::BuildError;

/// A client that takes what a build made.
#[async_trait]
pub(crate) trait Receiver: Debug + Send + Sync {
    /// Begins the file of an exporter, which the client tells from others by `exporter`; `about` goes along with it.
    /// `None`: the client has the file already, and nothing is to be sent.
    ///
    /// # Errors
    /// Where the client is gone, or wants no file.
    async fn file(
        &self,
        exporter: usize,
        about: &BTreeMap<String, String>,
    ) -> Result<Option<Box<dyn OutputFile>>, BuildError>;

    /// Sends directories; returns when the client has written them.
    ///
    /// # Errors
    /// Where the client is gone or can't write, or a directory can't be read.
    async fn tree(&self, exporter: usize, tree: Tree) -> Result<(), BuildError>;

    /// Writes a blob into a content store of the client; returns when it is there. One that was there is not sent.
    ///
    /// # Errors
    /// Where the client is gone, has no such store or can't write, or the blob can't be read.
    async fn blob(
        &self,
        store: &str,
        blob: &Descriptor,
        source: &lapstrake_registry::BlobSource,
    ) -> Result<(), BuildError>;

    /// Opens a blob of a content store of the client. Nobody has checked its bytes.
    ///
    /// # Errors
    /// Where the client is gone, or has no such store.
    async fn content(&self, store: &str, digest: Digest) -> Result<BlobReader, BuildError> {
        Err(no_store(store, digest))
    }

    /// The size of such a blob in bytes; `None` where there is none of this digest.
    ///
    /// # Errors
    /// As of [`Self::content`].
    async fn content_bytes(&self, store: &str, digest: Digest) -> Result<Option<u64>, BuildError> {
        Err(no_store(store, digest))
    }
}

fn no_store(store: &str, digest: Digest) -> BuildError {
    let text = format!("{digest} is in {store} of the client, which lends no content");
    BuildError::new(lapstrake_handoff::Reason::RequestInvalid, text)
}

/// The content store that a client has for a directory with a cache.
pub(crate) fn cache_store(dir: &str) -> String {
    format!("local:{dir}")
}

/// A file on its way to a client. Writes block. Dropped without [`OutputFile::finish`], the client is told that the file
/// is not whole.
pub(crate) trait OutputFile: Write + Send {
    /// Ends the file and waits until the client has it. Blocking.
    ///
    /// # Errors
    /// Where the client could not write all of it.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// Directories as a client gets them.
#[derive(Debug)]
pub(crate) struct Tree {
    /// Each below a directory of its name; what has none is the destination itself.
    pub(crate) roots: Vec<(String, OwnedFd)>,
    /// The time that everything gets, seconds since 1970.
    pub(crate) mtime: Option<i64>,
    /// What the destination has beside it is removed there.
    pub(crate) delete: bool,
    /// Mounts that the roots lie in, and that must not end before they are sent.
    pub(crate) held: Vec<OwnedFd>,
}

/// One exporter's place at a client.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    /// Who it is.
    pub(crate) receiver: Arc<dyn Receiver>,
    /// By what it tells its exporters apart.
    pub(crate) exporter: usize,
}
