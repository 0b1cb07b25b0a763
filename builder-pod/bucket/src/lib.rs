//! Caches in object stores: Amazon S3 and what speaks like it, Azure Blob Storage, and the cache of GitHub Actions.
//!
//! Job: the blobs of a cache by digest and its documents by name, where BuildKit has them, so that either reads what the other wrote.
//! Holds: an object is whole or not there; documents are written last, so what they name is there. Never: shows a credential, whatever
//! a server answers; keeps more than a few parts of a blob in memory.

mod actions;
mod error;
mod objects;
mod settings;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use error::Error;
use futures::TryStreamExt as _;
use jiff::Timestamp;
use lapstrake_oci::Digest;
use lapstrake_registry::BlobReader;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, WriteMultipart};
pub use settings::{Attributes, Kind, SECRETS, Settings};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Bytes of one part of an upload. What is not larger is sent at once.
const PART_BYTES: u64 = 8 << 20;
/// S3 takes 10,000 parts.
const PARTS_MAX: u64 = 9_000;
/// Parts of one upload that travel at the same time.
const PARTS_PARALLEL: usize = 2;
/// The largest document that is read, bytes.
const DOCUMENT_BYTES_MAX: u64 = 16 << 20;

/// The caches of one prefix.
#[derive(Clone)]
pub struct Bucket(Arc<Inner>);

struct Inner {
    settings: Settings,
    store: Store,
}

enum Store {
    Objects {
        objects: Arc<dyn ObjectStore>,
        /// Copies an object onto itself, which makes it young again.
        touch: Option<Arc<dyn ObjectStore>>,
    },
    Actions(actions::Actions),
}

impl Bucket {
    /// Reaches a store. Nothing is asked of it yet, but Azure's container is made where it is not there.
    ///
    /// # Errors
    /// [`Error::Settings`] of what can't be; [`Error::Store`] where the container can't be made.
    pub async fn open(settings: Settings) -> Result<Self, Error> {
        let store = match &settings.kind {
            Kind::S3(s3) => {
                let (objects, touch) = objects::s3(s3).map_err(|e| settings.failed("configure", &e))?;
                Store::Objects { objects, touch: Some(touch) }
            }
            Kind::Azure(azure) => {
                let objects = objects::azure(azure).await.map_err(|e| settings.failed("reach", &e))?;
                Store::Objects { objects, touch: None }
            }
            Kind::Actions(actions) => {
                let actions =
                    actions::Actions::open(actions).map_err(|e| settings.failed("configure", &e))?;
                Store::Actions(actions)
            }
        };
        Ok(Self(Arc::new(Inner { settings, store })))
    }

    /// How many blobs may be sent at the same time.
    pub fn parallelism(&self) -> usize {
        self.0.settings.parallelism
    }

    fn failed(&self, what: &str, error: &dyn std::error::Error) -> Error {
        self.0.settings.failed(what, error)
    }

    fn path(&self, key: &str) -> Result<Path, Error> {
        Path::parse(key).map_err(|e| Error::Settings(format!("{key} can't be the name of an object: {e}")))
    }

    fn blob_path(&self, digest: Digest) -> Result<Path, Error> {
        self.path(&self.0.settings.blob(&digest.to_string()))
    }

    /// The documents of all names that are read: what each of them holds, without those that are not there.
    ///
    /// # Errors
    /// [`Error::Store`], and [`Error::TooLarge`].
    pub async fn documents(&self) -> Result<Vec<Vec<u8>>, Error> {
        let store = match &self.0.store {
            Store::Objects { objects, .. } => objects,
            Store::Actions(actions) => {
                let read = actions.documents(DOCUMENT_BYTES_MAX).await;
                return read.map_err(|e| self.failed("read", &e));
            }
        };
        let mut all = Vec::new();
        for name in self.0.settings.names_read() {
            let path = self.path(&self.0.settings.manifest(name))?;
            let found = match store.get(&path).await {
                Ok(found) => found,
                Err(object_store::Error::NotFound { .. }) => continue,
                Err(error) => return Err(self.failed("read", &error)),
            };
            if found.meta.size > DOCUMENT_BYTES_MAX {
                return Err(Error::TooLarge { name: path.to_string(), size_bytes: found.meta.size });
            }
            all.push(found.bytes().await.map_err(|e| self.failed("read", &e))?.to_vec());
        }
        Ok(all)
    }

    /// Writes the document under all of its names.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn write_document(&self, document: &[u8]) -> Result<(), Error> {
        let store = match &self.0.store {
            Store::Objects { objects, .. } => objects,
            Store::Actions(actions) => {
                return actions.write_document(document).await.map_err(|e| self.failed("write", &e));
            }
        };
        for name in &self.0.settings.names {
            let path = self.path(&self.0.settings.manifest(name))?;
            let sent = store.put(&path, document.to_vec().into()).await;
            sent.map_err(|e| self.failed("write", &e))?;
        }
        Ok(())
    }

    /// Whether a blob is there. One that is old is made young, so that what removes old objects leaves it.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn keep(&self, digest: Digest) -> Result<bool, Error> {
        let (store, touch) = match &self.0.store {
            Store::Objects { objects, touch } => (objects, touch),
            Store::Actions(actions) => {
                return actions.has(digest).await.map_err(|e| self.failed("look into", &e));
            }
        };
        let path = self.blob_path(digest)?;
        let found = match store.head(&path).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(false),
            Err(error) => return Err(self.failed("look into", &error)),
        };
        let age = Timestamp::now().as_second().saturating_sub(found.last_modified.timestamp());
        let age = Duration::from_secs(u64::try_from(age).unwrap_or_default());
        if let Some(touch) = touch.as_ref().filter(|_| age > self.0.settings.touch_refresh) {
            touch.copy_if_not_exists(&path, &path).await.map_err(|e| self.failed("touch a blob of", &e))?;
        }
        Ok(true)
    }

    /// Opens a blob. Nobody has checked its bytes.
    ///
    /// # Errors
    /// [`Error::Missing`], and [`Error::Store`].
    pub async fn read(&self, digest: Digest) -> Result<BlobReader, Error> {
        let missing = || Error::Missing { store: self.to_string(), digest: digest.to_string() };
        let store = match &self.0.store {
            Store::Objects { objects, .. } => objects,
            Store::Actions(actions) => {
                return actions.read(digest).await.map_err(|e| self.failed("read", &e))?.ok_or_else(missing);
            }
        };
        let path = self.blob_path(digest)?;
        let found = match store.get(&path).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => {
                return Err(missing());
            }
            Err(error) => return Err(self.failed("read", &error)),
        };
        let bucket = self.clone();
        let pieces = found.into_stream().map_err(move |e| std::io::Error::other(bucket.failed("read", &e)));
        Ok(Box::pin(tokio_util::io::StreamReader::new(pieces)))
    }

    /// Writes a blob of a known size, bytes.
    ///
    /// # Errors
    /// [`Error::Store`], and [`Error::Read`] where it has more or fewer bytes.
    pub async fn write(
        &self,
        digest: Digest,
        size_bytes: u64,
        from: impl AsyncRead + Send + Unpin,
    ) -> Result<(), Error> {
        let store = match &self.0.store {
            Store::Objects { objects, .. } => objects,
            Store::Actions(actions) => {
                return actions.write(digest, size_bytes, from).await.map_err(|e| self.failed("write", &e));
            }
        };
        let path = self.blob_path(digest)?;
        let mut from = from.take(size_bytes);
        let unread = |e: std::io::Error| Error::Read { digest: digest.to_string(), source: e };
        let short =
            || unread(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "it is shorter than was said"));
        if size_bytes <= PART_BYTES {
            let mut bytes = Vec::with_capacity(usize::try_from(size_bytes).unwrap_or_default());
            from.read_to_end(&mut bytes).await.map_err(unread)?;
            if bytes.len() as u64 != size_bytes {
                return Err(short());
            }
            let sent = store.put(&path, bytes.into()).await;
            return sent.map(drop).map_err(|e| self.failed("write", &e));
        }
        let part = usize::try_from(PART_BYTES.max(size_bytes.div_ceil(PARTS_MAX))).unwrap_or(usize::MAX);
        let upload = store.put_multipart(&path).await.map_err(|e| self.failed("write", &e))?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, part);
        let copied = self.copy(&mut upload, &mut from, size_bytes).await;
        match copied {
            Ok(true) => upload.finish().await.map(drop).map_err(|e| self.failed("write", &e)),
            Ok(false) => {
                upload.abort().await.ok(); // The store forgets it after a while as well.
                Err(short())
            }
            Err(error) => {
                upload.abort().await.ok(); // As above.
                Err(error.map_read(unread))
            }
        }
    }

    /// Whether all bytes were there.
    async fn copy(
        &self,
        upload: &mut WriteMultipart,
        from: &mut (impl AsyncRead + Send + Unpin),
        size_bytes: u64,
    ) -> Result<bool, Failure> {
        let mut left = size_bytes;
        while left > 0 {
            upload
                .wait_for_capacity(PARTS_PARALLEL)
                .await
                .map_err(|e| Failure::Store(self.failed("write", &e)))?;
            let mut piece = bytes::BytesMut::with_capacity(256 << 10);
            let read = from.read_buf(&mut piece).await.map_err(Failure::Read)?;
            if read == 0 {
                return Ok(false);
            }
            left = left.saturating_sub(read as u64);
            upload.put(piece.freeze());
        }
        Ok(true)
    }
}

enum Failure {
    Read(std::io::Error),
    Store(Error),
}

impl Failure {
    fn map_read(self, read: impl FnOnce(std::io::Error) -> Error) -> Error {
        match self {
            Self::Read(error) => read(error),
            Self::Store(error) => error,
        }
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.settings.fmt(f)
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bucket({self})")
    }
}
