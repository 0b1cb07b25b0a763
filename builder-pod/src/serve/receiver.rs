//! A client's session as the receiver of what its build made.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;

use async_trait::async_trait;
use lapstrake_oci::{Descriptor, Digest};
use lapstrake_registry::{BlobReader, BlobSource};
use lapstrake_session::{Error, FileSink, MULTI_PLATFORM, Outgoing, Session};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::values::refused;
use crate::client::{OutputFile, Receiver, Tree};
use crate::error::BuildError;

/// The session that a request names.
pub(crate) struct SessionReceiver {
    session: Arc<Session>,
    cancel: CancellationToken,
}

impl SessionReceiver {
    /// Sends to this session until the build is canceled.
    pub(crate) fn new(session: Arc<Session>, cancel: CancellationToken) -> Self {
        Self { session, cancel }
    }
}

impl fmt::Debug for SessionReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SessionReceiver").field(&self.session.id()).finish()
    }
}

/// Whether the client said that it has what it was offered.
fn has_it(error: &Error) -> bool {
    matches!(error, Error::Call { status, .. } if status.code() == tonic::Code::AlreadyExists)
}

#[async_trait]
impl Receiver for SessionReceiver {
    async fn file(
        &self,
        exporter: usize,
        about: &BTreeMap<String, String>,
    ) -> Result<Option<Box<dyn OutputFile>>, BuildError> {
        let about: Vec<_> = about.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        let sink = self.session.send_file(exporter, &about).await.map_err(|e| refused(e.to_string()))?;
        Ok(Some(Box::new(File { sink: Some(sink), had: false, runtime: Handle::current() })))
    }

    async fn tree(&self, exporter: usize, tree: Tree) -> Result<(), BuildError> {
        let Tree { roots, mtime: modified, delete, held } = tree;
        let mut progress = |_| {};
        let mut send = async |roots, headers: &[(String, String)]| {
            let from = Outgoing { roots, modified };
            let sent = self.session.send_trees(from, exporter, headers, &mut progress, &self.cancel).await;
            sent.map(drop).map_err(|e| refused(e.to_string()))
        };
        if delete {
            send(roots, &[(MULTI_PLATFORM.to_owned(), "1".to_owned())]).await?;
        } else {
            for root in roots {
                send(vec![root], &[]).await?;
            }
        }
        drop(held);
        Ok(())
    }

    async fn blob(&self, store: &str, blob: &Descriptor, source: &BlobSource) -> Result<(), BuildError> {
        let from = source.open(0).await.map_err(|e| BuildError::internal(e.to_string()))?;
        let digest = blob.digest.to_string();
        let written = self.session.write_content(store, &digest, blob.size, from);
        match self.cancel.run_until_cancelled(written).await {
            Some(written) => written.map_err(|e| refused(e.to_string())),
            None => Err(refused("canceled")),
        }
    }

    async fn content(&self, store: &str, digest: Digest) -> Result<BlobReader, BuildError> {
        let from = self.session.read_content(store, &digest.to_string(), 0);
        from.map(|from| Box::pin(from) as BlobReader).map_err(|e| refused(e.to_string()))
    }

    async fn content_bytes(&self, store: &str, digest: Digest) -> Result<Option<u64>, BuildError> {
        self.session.content_bytes(store, &digest.to_string()).await.map_err(|e| refused(e.to_string()))
    }
}

/// A file at the client; writes block, so they are made outside of the runtime's own threads.
struct File {
    sink: Option<FileSink>,
    had: bool,
    runtime: Handle,
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.had {
            return Ok(bytes.len());
        }
        let sink = self.sink.as_mut().ok_or_else(|| io::Error::other("the client took no more"))?;
        match self.runtime.block_on(sink.write(bytes)) {
            Ok(()) => Ok(bytes.len()),
            Err(error) if has_it(&error) => {
                self.had = true;
                Ok(bytes.len())
            }
            Err(error) => Err(io::Error::other(error.to_string())),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl OutputFile for File {
    fn finish(mut self: Box<Self>) -> io::Result<()> {
        let Some(sink) = self.sink.take().filter(|_| !self.had) else { return Ok(()) };
        match self.runtime.block_on(sink.finish()) {
            Ok(()) => Ok(()),
            Err(error) if has_it(&error) => Ok(()),
            Err(error) => Err(io::Error::other(error.to_string())),
        }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // A sink that is dropped tells the client so from within the runtime.
        let _inside = self.runtime.enter();
        drop(self.sink.take());
    }
}
