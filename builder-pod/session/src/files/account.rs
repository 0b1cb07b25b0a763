//! By how much a directory grows while it is changed.
//!
//! Holds: what it says is what walks before and after would say, or it says that it does not know: as soon as a file with
//! several names comes or goes, since that counts once.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use lapstrake_fileop::at;
use rustix::fs::Stat;

/// Directories in each other that are added up before they are removed.
const DEPTH_MAX: usize = 64;

/// A sum that several threads add to.
#[derive(Debug, Default)]
pub(crate) struct Account {
    bytes: AtomicI64,
    unknown: AtomicBool,
}

fn bytes(stat: &Stat) -> i64 {
    stat.st_blocks.saturating_mul(512)
}

impl Account {
    /// Something is there that was not.
    pub(crate) fn came(&self, stat: &Stat) {
        self.bytes.fetch_add(bytes(stat), Ordering::Relaxed);
    }

    /// A directory is another size than it was; none: it was not there.
    pub(crate) fn became(&self, before: Option<&Stat>, now: &Stat) {
        self.bytes.fetch_add(bytes(now) - before.map_or(0, bytes), Ordering::Relaxed);
    }

    /// Something that is no directory goes.
    pub(crate) fn goes(&self, stat: &Stat) {
        if stat.st_nlink > 1 {
            self.lose();
        }
        self.bytes.fetch_sub(bytes(stat), Ordering::Relaxed);
    }

    /// A name goes, with all that is below it.
    pub(crate) fn goes_below(&self, dir: BorrowedFd<'_>, name: &[u8]) {
        if !self.unknown.load(Ordering::Relaxed) && self.add_up(dir, name, 0).is_none() {
            self.lose();
        }
    }

    fn add_up(&self, dir: BorrowedFd<'_>, name: &[u8], depth: usize) -> Option<()> {
        let Some(stat) = at::stat(dir, name).ok()? else { return Some(()) };
        if !at::is_dir(&stat) {
            self.goes(&stat);
            return Some(());
        }
        if depth > DEPTH_MAX {
            return None;
        }
        self.bytes.fetch_sub(bytes(&stat), Ordering::Relaxed);
        let fd = at::open_dir(dir, name).ok()?;
        at::list(fd.as_fd()).ok()?.iter().try_for_each(|name| self.add_up(fd.as_fd(), name, depth + 1))
    }

    /// Something happened whose size is not known.
    pub(crate) fn lose(&self) {
        self.unknown.store(true, Ordering::Relaxed);
    }

    /// The sum; none where something is not known.
    pub(crate) fn grown(&self) -> Option<i64> {
        (!self.unknown.load(Ordering::Relaxed)).then(|| self.bytes.load(Ordering::Relaxed))
    }
}
