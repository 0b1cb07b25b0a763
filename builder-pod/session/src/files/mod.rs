//! Directories of a client: what it lends, and what it takes.

mod account;
mod disk;
mod metadata;
mod mode;
mod order;
mod pool;
mod read;
mod receive;
mod send;
mod stream;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lapstrake_fileop::{HashCache, Patterns};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::metadata::MetadataOnly;
use self::receive::{Task, WINDOW};
pub use self::send::Outgoing;
use self::stream::Packets;
use self::wire::Packet;
use crate::error::Error;
use crate::session::{Session, method};
use crate::sink::EXPORTER;

/// Batches of packets that wait for the disk.
const BATCHES_WAITING: usize = 4;
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// How long the other side has to read why a transfer failed.
const GOODBYE: Duration = Duration::from_secs(1);

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

/// Where a client's directory goes.
#[derive(Clone, Default)]
pub struct Target {
    /// The previous copy, or an empty directory.
    pub path: PathBuf,
    /// Nothing in it has extended attributes ([`Synced::bare`] of the transfer before), so nobody has to look.
    pub bare: bool,
    /// Is told the digests of files that are written.
    pub hashes: Option<Arc<dyn HashCache + Send + Sync>>,
}

impl From<&Path> for Target {
    fn from(path: &Path) -> Self {
        Self { path: path.to_owned(), bare: false, hashes: None }
    }
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
    /// By how many bytes on the disk it grew, as far as that is known without a walk.
    pub grown: Option<i64>,
    /// Whether it is known that nothing in it has extended attributes.
    pub bare: bool,
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
        into: impl Into<Target>,
        progress: &mut (dyn FnMut(SyncProgress) + Send),
        cancel: &CancellationToken,
    ) -> Result<Synced, Error> {
        const ACTION: &str = "sync files";
        let metadata_only = request.metadata_only.as_ref().map(|patterns| {
            let patterns = Patterns::new(patterns);
            let invalid = |error: lapstrake_fileop::PatternError| Error::Protocol {
                name: request.dir_name.clone(),
                problem: error.to_string(),
            };
            patterns.map(MetadataOnly::new).map_err(invalid)
        });
        let metadata_only = metadata_only.transpose()?;
        let (requests, outgoing) = mpsc::channel(WINDOW + 8);
        let mut incoming = self.transfer(ACTION, method::SYNC, &request.headers(), outgoing)?;
        let (watched, mut watching) = watch::channel(SyncProgress::default());
        let name = request.dir_name.clone();
        let task = Task {
            name: request.dir_name,
            differ: request.differ,
            metadata_only,
            requests: requests.clone(),
            progress: watched,
        };
        let (batches, waiting) = mpsc::channel(BATCHES_WAITING);
        let into = into.into();
        let receiving = tokio::task::spawn_blocking(move || receive::receive(&into, task, waiting));
        let fed = {
            let feeding = feed(&mut incoming, batches, &name);
            tokio::pin!(feeding);
            loop {
                tokio::select! {
                    fed = &mut feeding => break fed,
                    () = cancel.cancelled() => break Err(Error::Canceled),
                    Some(now) = next_progress(&mut watching) => progress(now),
                }
            }
        };
        // Without more packets it ends, if it did not already; nothing is written behind the caller's back.
        match (joined(receiving.await), fed) {
            (Ok(done), _) => {
                progress(SyncProgress { files: done.files_sent, bytes: done.bytes });
                drop(requests);
                // The sender's own end: it has sent everything, whatever it may still say.
                let _ = cancel.run_until_cancelled(incoming.drain()).await;
                Ok(done)
            }
            // It says so when the packets end, for which there was a reason.
            (Err(Error::Canceled), Err(reason)) | (Err(reason), _) => {
                tell(requests, incoming, &reason);
                Err(reason)
            }
        }
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
        let request = SyncRequest {
            dir_name: dir_name.to_owned(),
            follow_paths: paths.iter().map(|path| (*path).to_owned()).collect(),
            ..SyncRequest::default()
        };
        let (requests, outgoing) = mpsc::channel(WINDOW + 8);
        let mut incoming = self.transfer("read files", method::SYNC, &request.headers(), outgoing)?;
        match read::read(&mut incoming, &requests, dir_name, paths, bytes_max).await {
            Ok(files) => {
                drop(requests);
                let _ = incoming.drain().await;
                Ok(files)
            }
            Err(reason) => {
                tell(requests, incoming, &reason);
                Err(reason)
            }
        }
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
        let from = from.to_owned();
        let from = tokio::task::spawn_blocking(move || Outgoing::of(&from));
        let from = joined(from.await)?;
        self.send_trees(from, exporter, headers, progress, cancel).await
    }

    /// Sends several directories as one.
    ///
    /// # Errors
    /// As [`Self::send_tree`].
    pub async fn send_trees(
        self: &Arc<Self>,
        from: Outgoing,
        exporter: usize,
        headers: &[(String, String)],
        progress: &mut (dyn FnMut(SyncProgress) + Send),
        cancel: &CancellationToken,
    ) -> Result<Sent, Error> {
        const ACTION: &str = "send files";
        let mut all = vec![(EXPORTER.to_owned(), vec![exporter.to_string()])];
        all.extend(headers.iter().map(|(key, value)| (key.clone(), vec![value.clone()])));
        let (packets, outgoing) = mpsc::channel(send::PACKETS_WAITING);
        let mut incoming = self.transfer(ACTION, method::SEND, &all, outgoing)?;
        let result = send::send(from, packets.clone(), &mut incoming, progress, cancel).await;
        match result {
            Ok(sent) => {
                drop(packets);
                match cancel.run_until_cancelled(incoming.drain()).await {
                    Some(ended) => ended.map(|()| sent),
                    None => Err(Error::Canceled),
                }
            }
            Err(reason) => {
                tell(packets, incoming, &reason);
                Err(reason)
            }
        }
    }
}

impl SyncRequest {
    fn headers(&self) -> Vec<(String, Vec<String>)> {
        let lists = [
            ("include-patterns", &self.include),
            ("exclude-patterns", &self.exclude),
            ("followpaths", &self.follow_paths),
        ];
        let lists = lists.into_iter().filter(|(_, values)| !values.is_empty());
        let mut headers: Vec<_> = lists.map(|(key, values)| (key.to_owned(), values.clone())).collect();
        headers.push(("dir-name".to_owned(), vec![self.dir_name.clone()]));
        headers
    }
}

/// How far it is, when that is other than what was told; not too often.
async fn next_progress(watching: &mut watch::Receiver<SyncProgress>) -> Option<SyncProgress> {
    tokio::time::sleep(PROGRESS_EVERY).await;
    watching.changed().await.ok()?;
    Some(*watching.borrow_and_update())
}

/// Hands packets on until nobody wants more.
async fn feed(incoming: &mut Packets, batches: mpsc::Sender<Vec<Packet>>, name: &str) -> Result<(), Error> {
    loop {
        let batch = tokio::select! {
            batch = incoming.batch() => batch,
            () = batches.closed() => return Ok(()),
        };
        let Some(batch) = batch else {
            let problem = "the sender closed the stream before everything was sent".to_owned();
            return Err(Error::Protocol { name: name.to_owned(), problem });
        };
        if batches.send(batch?).await.is_err() {
            return Ok(());
        }
    }
}

/// What a blocking part came to; its panic is ours.
fn joined<T>(joined: Result<Result<T, Error>, tokio::task::JoinError>) -> Result<T, Error> {
    match joined {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Error::Canceled),
        },
    }
}

/// Tells the other side why it ends, if it still listens.
fn tell(packets: mpsc::Sender<Packet>, mut incoming: Packets, reason: &Error) {
    if packets.try_send(Packet::error(&reason.to_string())).is_err() {
        return;
    }
    drop(packets);
    tokio::spawn(async move { tokio::time::timeout(GOODBYE, incoming.drain()).await });
}

#[cfg(test)]
mod fake;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod sync_tests;
