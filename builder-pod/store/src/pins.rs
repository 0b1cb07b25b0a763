//! What a collection must leave alone.
//!
//! A job (a build) holds all that was asked for, made or read since it began, whoever did it: so nobody has
//! to say of each blob and snapshot that it is needed, and nobody can forget to.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use lapstrake_oci::Digest;

use crate::cache_dir::touch;
use crate::flush::{Shared, locked};
use crate::{SnapshotId, Store};

/// Names a directory of another part: its group and its own name.
pub(crate) type SideName = (String, String);

/// Who needs what.
pub(crate) struct Pins {
    /// Counts jobs; what is touched gets the number of the newest one.
    clock: AtomicU64,
    /// Number of the oldest job that runs; `u64::MAX` of none.
    oldest: AtomicU64,
    open: Mutex<BTreeMap<u64, ()>>,
    /// When blobs were touched. Held while a blob is removed, so that none goes that was just seen.
    pub(crate) blobs: Mutex<HashMap<Digest, u64>>,
    /// When directories of other parts were touched; held as `blobs` is.
    pub(crate) sides: Mutex<HashMap<SideName, u64>>,
}

impl Default for Pins {
    fn default() -> Self {
        Self {
            clock: AtomicU64::new(1),
            oldest: AtomicU64::new(u64::MAX),
            open: Mutex::default(),
            blobs: Mutex::default(),
            sides: Mutex::default(),
        }
    }
}

impl Pins {
    /// The mark for what is touched now.
    pub(crate) fn now(&self) -> u64 {
        self.clock.load(Ordering::SeqCst)
    }

    /// Whether a running job may need what was touched then.
    pub(crate) fn holds(&self, touched: u64) -> bool {
        touched >= self.oldest.load(Ordering::SeqCst)
    }

    /// Whether a running job may need a directory of another part, or all of its group.
    pub(crate) fn holds_side(&self, sides: &HashMap<SideName, u64>, name: &SideName) -> bool {
        let held = |name: &SideName| sides.get(name).is_some_and(|touched| self.holds(*touched));
        held(name) || held(&(name.0.clone(), String::new()))
    }

    /// Whether any job runs.
    pub(crate) fn is_busy(&self) -> bool {
        self.oldest.load(Ordering::SeqCst) != u64::MAX
    }

    fn set_oldest(&self, open: &BTreeMap<u64, ()>) {
        self.oldest.store(open.keys().next().copied().unwrap_or(u64::MAX), Ordering::SeqCst);
    }
}

/// A build that runs. What it touches stays until this is dropped.
#[must_use = "it protects as long as it lives"]
pub struct Job {
    store: Store,
    number: u64,
}

impl Drop for Job {
    fn drop(&mut self) {
        let pins = &self.store.shared.pins;
        let mut open = locked(&pins.open);
        open.remove(&self.number);
        pins.set_oldest(&open);
    }
}

impl Store {
    /// Begins a job: until it is dropped, no collection removes what is asked for, made or read from now on.
    pub fn job(&self) -> Job {
        let pins = &self.shared.pins;
        let mut open = locked(&pins.open);
        let number = pins.clock.fetch_add(1, Ordering::SeqCst) + 1;
        open.insert(number, ());
        pins.set_oldest(&open);
        drop(open);
        self.shared.wake_keeper();
        Job { store: self.clone(), number }
    }

    /// Says that `name` in the directory `group` of [`Store::side_dir`] is needed, as long as the jobs that
    /// run now; say it before looking whether it is there. An empty name stands for the whole group.
    pub fn touch_side(&self, group: &str, name: &str) {
        let key = (group.to_owned(), name.to_owned());
        let now = self.shared.pins.now();
        let before = locked(&self.shared.pins.sides).insert(key.clone(), now);
        if before != Some(now) && !name.is_empty() {
            self.shared.side_used(&key);
        }
    }

    /// Whether a running job needs a directory of another part.
    pub fn is_side_needed(&self, group: &str, name: &str) -> bool {
        self.shared.pins.holds_side(&locked(&self.shared.pins.sides), &(group.to_owned(), name.to_owned()))
    }
}

impl Shared {
    /// Notes that a snapshot is needed; whether it is there.
    pub(crate) fn touch_snapshot(&self, id: SnapshotId) -> bool {
        let now = self.pins.now();
        let mut state = self.state();
        let Some(first) = state.snapshots.touch(id, now) else { return false };
        drop(state);
        if first {
            touch(&self.paths.snapshot(id));
        }
        true
    }

    /// Notes that a blob is needed, there or not: look only after this whether it is.
    pub(crate) fn touch_blob(&self, digest: &Digest) {
        let now = self.pins.now();
        let before = locked(&self.pins.blobs).insert(*digest, now);
        if before != Some(now) {
            touch(&self.paths.blob(digest));
        }
    }
}
