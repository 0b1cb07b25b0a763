//! Threads that copy files while the walk goes on.
//!
//! Holds: what waits for them is bounded; a small copy starts none; of several failures the first one in the walk's order
//! is told.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;

use crate::data::Fast;
use crate::error::Error;
use crate::leaf::{Batch, Writer};
use crate::limits::COPY_THREADS_MAX;

/// Jobs that wait.
const WAITING: usize = 4;
/// Directories of one job: each is open at both ends until it is done, and so are those of the jobs that wait.
const FOLDERS_MAX: usize = 16;

/// How work is divided.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Division {
    /// Threads beside the one that walks.
    pub(crate) threads: usize,
    /// Files that are handed over at once. Those of one directory go together where they can: the kernel lets only one
    /// thread make names in it, and others would spin for their turn.
    pub(crate) files: usize,
    /// Bytes of them.
    pub(crate) bytes: u64,
}

impl Default for Division {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { threads: threads.min(COPY_THREADS_MAX), files: 128, bytes: 4 << 20 }
    }
}

/// What the threads of one copy share.
pub(crate) struct Shared<'a> {
    pub(crate) writer: Writer<'a>,
    failure: Mutex<Option<(usize, Error)>>,
}

impl<'a> Shared<'a> {
    pub(crate) fn new(writer: Writer<'a>) -> Self {
        Self { writer, failure: Mutex::new(None) }
    }

    fn failure(&self) -> MutexGuard<'_, Option<(usize, Error)>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something before the job of this number failed.
    fn failed_before(&self, number: usize) -> bool {
        self.failure().as_ref().is_some_and(|(at, _)| *at < number)
    }

    /// Why a thread failed. To be asked once all have ended.
    pub(crate) fn into_failure(self) -> Option<Error> {
        self.failure.into_inner().unwrap_or_else(PoisonError::into_inner).map(|(_, error)| error)
    }
}

struct Job {
    number: usize,
    batches: Vec<Batch>,
}

type Jobs = Arc<Mutex<Receiver<Job>>>;

/// Where batches are handed over.
pub(crate) struct Spread<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    shared: &'env Shared<'env>,
    division: Division,
    /// Where jobs are handed over, and taken.
    jobs: Option<(SyncSender<Job>, Jobs)>,
    threads: usize,
    number: usize,
    gathered: Vec<Batch>,
    files: usize,
    bytes: u64,
    fast: Fast,
}

impl<'scope, 'env> Spread<'scope, 'env> {
    pub(crate) fn new(
        scope: &'scope Scope<'scope, 'env>,
        shared: &'env Shared<'env>,
        division: Division,
    ) -> Self {
        Self {
            scope,
            shared,
            division,
            jobs: None,
            threads: 0,
            number: 0,
            gathered: Vec::new(),
            files: 0,
            bytes: 0,
            fast: Fast::default(),
        }
    }

    pub(crate) fn writer(&self) -> &'env Writer<'env> {
        &self.shared.writer
    }

    /// For what the walk copies itself.
    pub(crate) fn fast(&mut self) -> &mut Fast {
        &mut self.fast
    }

    /// Whether so much of one directory should be handed over.
    pub(crate) fn is_full(&self, files: usize, bytes: u64) -> bool {
        files >= self.division.files || bytes >= self.division.bytes
    }

    /// Hands a batch over; waits while too many wait already.
    pub(crate) fn push(&mut self, batch: Batch, bytes: u64) -> Result<(), Error> {
        self.files += batch.leaves.len();
        self.bytes += bytes;
        self.gathered.push(batch);
        let full = self.is_full(self.files, self.bytes) || self.gathered.len() >= FOLDERS_MAX;
        if full { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> Result<(), Error> {
        self.number += 1;
        (self.files, self.bytes) = (0, 0);
        let job = Job { number: self.number, batches: std::mem::take(&mut self.gathered) };
        // The reason is told in the end.
        if self.shared.failed_before(job.number) {
            return Err(Error::Canceled);
        }
        let (sender, receiver) = self.jobs.get_or_insert_with(|| {
            let (sender, receiver) = sync_channel(WAITING);
            (sender, Arc::new(Mutex::new(receiver)))
        });
        if self.threads < self.division.threads.max(1) {
            self.threads += 1;
            let (shared, receiver) = (self.shared, Arc::clone(receiver));
            self.scope.spawn(move || work(shared, &receiver));
        }
        sender.send(job).map_err(|_| Error::Canceled)
    }

    /// What was gathered is copied, by this thread where no other was needed so far. Then no more comes.
    pub(crate) fn end(mut self) -> Result<(), Error> {
        if self.jobs.is_some() {
            return if self.gathered.is_empty() { Ok(()) } else { self.send() };
        }
        let gathered = std::mem::take(&mut self.gathered);
        gathered.into_iter().try_for_each(|batch| self.shared.writer.batch(batch, &mut self.fast))
    }
}

fn work(shared: &Shared<'_>, jobs: &Mutex<Receiver<Job>>) {
    let mut fast = Fast::default();
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { number, batches }) = job else { return };
        if shared.failed_before(number) {
            continue;
        }
        let copied = batches.into_iter().try_for_each(|batch| shared.writer.batch(batch, &mut fast));
        if let Err(error) = copied {
            let mut failure = shared.failure();
            if failure.as_ref().is_none_or(|(at, _)| *at > number) {
                *failure = Some((number, error));
            }
        }
    }
}
