//! Threads that write small files, whose contents are all there.
//!
//! Holds: what waits for them is bounded; the first error stops the transfer. Files of one directory are written by
//! one thread: the kernel lets only one make names in it, and others would spin for their turn.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use lapstrake_fileop::{HashCache, remember};
use rustix::io::Errno;

use super::account::Account;
use super::disk::{self, Creator, Meta};
use crate::error::Error;

/// Threads of one transfer at most.
const THREADS_MAX: usize = 4;
/// Files, and bytes, that are handed over at once.
const BATCH_FILES: usize = 32;
const BATCH_BYTES: usize = 1 << 20;
/// Batches that wait.
const QUEUE_BATCHES: usize = 4;

/// A file to be written.
pub(crate) struct Job {
    pub(crate) dir: Arc<OwnedFd>,
    pub(crate) name: Vec<u8>,
    /// Relative to the transfer's directory.
    pub(crate) path: Vec<u8>,
    pub(crate) meta: Meta,
    pub(crate) content: Content,
    /// Whether something may have the name.
    pub(crate) replace: bool,
    /// Whether the directory passes its group or an ACL on.
    pub(crate) inherits: bool,
}

/// The bytes of a small file, gathered.
#[derive(Default)]
pub(crate) enum Content {
    #[default]
    Empty,
    /// As it came, which most are.
    One(Bytes),
    Many(Vec<u8>),
}

impl Content {
    pub(crate) fn push(&mut self, chunk: Bytes) {
        *self = match std::mem::take(self) {
            Self::Empty => Self::One(chunk),
            Self::One(first) => Self::Many([first.as_ref(), chunk.as_ref()].concat()),
            Self::Many(mut all) => {
                all.extend_from_slice(&chunk);
                Self::Many(all)
            }
        }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Empty => &[],
            Self::One(bytes) => bytes,
            Self::Many(bytes) => bytes,
        }
    }
}

impl Job {
    fn run(&self, by: &By) -> Result<(), Errno> {
        let file = by.creator.create(self.dir.as_fd(), &self.name, &self.meta, self.replace)?;
        let content = self.content.as_bytes();
        disk::write_all(file.as_fd(), content)?;
        let stat = by.creator.finish(file.as_fd(), &self.meta, self.inherits)?;
        by.account.came(&stat);
        // Attributes may not be what was asked for: the file system decides.
        if let Some(hashes) = by.hashes.as_deref().filter(|_| self.meta.xattrs.is_empty() && !self.inherits) {
            remember(hashes, &self.path, &stat, content);
        }
        Ok(())
    }
}

/// What all jobs of a transfer have in common.
#[derive(Clone)]
pub(crate) struct By {
    pub(crate) creator: Creator,
    pub(crate) account: Arc<Account>,
    pub(crate) hashes: Option<Arc<dyn HashCache + Send + Sync>>,
}

/// Where jobs are handed over. The threads end when it is dropped.
pub(crate) struct Pool {
    threads: Vec<Thread>,
    failure: Arc<Mutex<Option<Error>>>,
}

struct Thread {
    batches: SyncSender<Vec<Job>>,
    batch: Vec<Job>,
    bytes: usize,
}

impl Thread {
    fn flush(&mut self) -> Result<(), Error> {
        self.bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        if !batch.is_empty() && self.batches.send(batch).is_err() {
            return Err(Error::Io { action: "write", path: "file".to_owned(), errno: Errno::CANCELED });
        }
        Ok(())
    }
}

impl Pool {
    /// Starts the threads in `scope`.
    pub(crate) fn start<'scope>(scope: &'scope std::thread::Scope<'scope, '_>, by: &By) -> Self {
        let failure = Arc::new(Mutex::new(None));
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        let start = |_| {
            let (batches, receiver) = sync_channel(QUEUE_BATCHES);
            let (failure, by) = (Arc::clone(&failure), by.clone());
            scope.spawn(move || work(&receiver, &failure, &by));
            Thread { batches, batch: Vec::new(), bytes: 0 }
        };
        Self { threads: (0..threads).map(start).collect(), failure }
    }

    /// Hands a file over; waits while too many wait already.
    pub(crate) fn push(&mut self, job: Job) -> Result<(), Error> {
        // Directories that are open at the same time have numbers next to each other.
        let directory = usize::try_from(job.dir.as_raw_fd()).unwrap_or(0);
        let number = directory % self.threads.len().max(1);
        let Some(thread) = self.threads.get_mut(number) else { return Ok(()) };
        thread.bytes += job.content.as_bytes().len();
        thread.batch.push(job);
        if thread.batch.len() >= BATCH_FILES || thread.bytes >= BATCH_BYTES {
            return thread.flush();
        }
        Ok(())
    }

    /// Hands over what was gathered.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        if let Some(error) = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
        self.threads.iter_mut().try_for_each(Thread::flush)
    }

    /// What is asked once the threads were told that no more comes.
    pub(crate) fn close(mut self) -> Result<Closed, Error> {
        self.flush()?;
        Ok(Closed(Arc::clone(&self.failure)))
    }
}

/// A pool that gets no more. Its threads have ended when their scope has.
pub(crate) struct Closed(Arc<Mutex<Option<Error>>>);

impl Closed {
    /// Whether all was written. To be asked after the scope.
    pub(crate) fn result(self) -> Result<(), Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }
}

fn work(receiver: &Receiver<Vec<Job>>, failure: &Mutex<Option<Error>>, by: &By) {
    while let Ok(batch) = receiver.recv() {
        for job in batch {
            if let Err(errno) = job.run(by) {
                let path = String::from_utf8_lossy(&job.path).into_owned();
                let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                failure.get_or_insert(Error::Io { action: "write", path, errno });
            }
        }
    }
}
