//! Where the bytes of a blob come from, and how a transfer is watched.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncSeekExt as _};

use crate::limits::CHUNK_BYTES;

/// The bytes of a blob from some offset on.
pub type BlobReader = Pin<Box<dyn AsyncRead + Send>>;

type Open = dyn Fn(u64) -> BoxFuture<'static, io::Result<BlobReader>> + Send + Sync;

/// A blob on this side that can be opened again when a transfer has to go on.
#[derive(Clone)]
pub struct BlobSource(Arc<Open>);

impl BlobSource {
    /// A source by a function that opens the blob at an offset in bytes.
    pub fn new(
        open: impl Fn(u64) -> BoxFuture<'static, io::Result<BlobReader>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(open))
    }

    /// A file.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self::new(move |offset| {
            let path = path.clone();
            Box::pin(async move {
                let mut file = tokio::fs::File::open(path).await?;
                file.seek(io::SeekFrom::Start(offset)).await?;
                Ok(Box::pin(file) as BlobReader)
            })
        })
    }

    /// Bytes in memory: configs and other small things.
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self::new(move |offset| {
            let mut cursor = io::Cursor::new(bytes.clone());
            cursor.set_position(offset);
            Box::pin(async move { Ok(Box::pin(cursor) as BlobReader) })
        })
    }

    /// Opens it at an offset in bytes.
    ///
    /// # Errors
    /// Whatever keeps the blob from being read.
    pub async fn open(&self, offset: u64) -> io::Result<BlobReader> {
        (self.0)(offset).await
    }
}

impl fmt::Debug for BlobSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlobSource")
    }
}

type Report = dyn Fn(u64, u64) + Send + Sync;

/// Is told the bytes done so far and the bytes in total while a blob moves.
/// The figure can fall when an upload has to start again.
#[derive(Clone, Default)]
pub struct Progress(Option<Arc<Report>>);

impl Progress {
    /// Reports to `report(done_bytes, total_bytes)`, which must not block.
    pub fn new(report: impl Fn(u64, u64) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(report)))
    }

    /// Reports to nobody.
    pub fn none() -> Self {
        Self(None)
    }

    pub(crate) fn report(&self, done: u64, total: u64) {
        if let Some(report) = &self.0 {
            report(done, total);
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Progress({})", if self.0.is_some() { "reported" } else { "none" })
    }
}

/// What an upload's body has done so far, seen from beside it.
#[derive(Debug)]
pub(crate) struct Activity {
    started: Instant,
    last_millis: AtomicU64,
    complete: AtomicBool,
    failure: Mutex<Option<String>>,
}

impl Activity {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            last_millis: AtomicU64::new(0),
            complete: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
    }

    fn touch(&self) {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_millis.store(millis, Ordering::Relaxed);
    }

    fn fail(&self, why: String) -> io::Error {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.clone());
        io::Error::other(why)
    }

    /// Time since the last byte was taken.
    pub(crate) fn idle(&self) -> Duration {
        let last = Duration::from_millis(self.last_millis.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(last)
    }

    /// Whether all bytes were taken.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Relaxed)
    }

    /// Why the source failed, if that is what ended the body.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The bytes `offset..total` of a blob as a request body. A source of another size than `total` is a
/// failure of this side.
pub(crate) async fn upload(
    source: &BlobSource,
    offset: u64,
    total: u64,
    progress: &Progress,
) -> io::Result<(reqwest::Body, Arc<Activity>)> {
    let activity = Arc::new(Activity::new());
    let state = State {
        reader: source.open(offset).await?,
        done: offset,
        total,
        progress: progress.clone(),
        activity: Arc::clone(&activity),
    };
    Ok((reqwest::Body::wrap_stream(chunks(state)), activity))
}

struct State {
    reader: BlobReader,
    done: u64,
    total: u64,
    progress: Progress,
    activity: Arc<Activity>,
}

fn chunks(state: State) -> impl Stream<Item = io::Result<Bytes>> + Send {
    futures::stream::try_unfold(state, |mut state| async move {
        let left = state.total - state.done;
        // Room for one byte too many, which is how a source that is too long shows.
        let room = usize::try_from(left + 1).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        let mut chunk = BytesMut::with_capacity(room);
        let read = state.reader.read_buf(&mut chunk).await;
        let read = read.map_err(|error| state.activity.fail(format!("cannot read the blob: {error}")))?;
        let read = read as u64;
        if read > left {
            return Err(state.activity.fail(format!("the blob is longer than {} bytes", state.total)));
        }
        if read == 0 && left > 0 {
            let why = format!("the blob ends after {} of {} bytes", state.done, state.total);
            return Err(state.activity.fail(why));
        }
        state.done += read;
        state.activity.touch();
        state.progress.report(state.done, state.total);
        if state.done == state.total {
            state.activity.complete.store(true, Ordering::Relaxed);
        }
        Ok((read > 0).then(|| (chunk.freeze(), state)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::TryStreamExt as _;

    async fn read(bytes: &'static [u8], offset: u64, total: u64) -> Result<Vec<u8>, String> {
        let activity = Arc::new(Activity::new());
        let reader = BlobSource::bytes(bytes).open(offset).await.expect("in memory");
        let state = State {
            reader,
            done: offset,
            total,
            progress: Progress::none(),
            activity: Arc::clone(&activity),
        };
        let chunks: Result<Vec<Bytes>, _> = chunks(state).try_collect().await;
        chunks.map(|c| c.concat()).map_err(|_| activity.failure().expect("the failure is noted"))
    }

    #[tokio::test]
    async fn a_source_of_the_wrong_size_is_told_from_a_broken_connection() {
        assert_eq!(read(b"hello", 0, 5).await.as_deref(), Ok(&b"hello"[..]));
        assert_eq!(read(b"hello", 3, 5).await.as_deref(), Ok(&b"lo"[..]));
        assert_eq!(read(b"", 0, 0).await.as_deref(), Ok(&b""[..]));
        assert_eq!(read(b"hello", 0, 6).await, Err("the blob ends after 5 of 6 bytes".to_owned()));
        assert!(read(b"hello", 0, 4).await.is_err());
    }
}
