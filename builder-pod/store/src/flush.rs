use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use lapstrake_oci::Digest;

use crate::cache_dir::{self, CacheDirs};
use crate::collect;
use crate::index::{Changes, Index};
use crate::keeper::Orders;
use crate::lock::Lock;
use crate::paths::{Paths, remove_all};
use crate::pins::{Pins, SideName};
use crate::side::SideSize;
use crate::snapshot::{Snapshots, load_snapshots, table_of};
use crate::{Error, Recovered, Result, Table, limits};

/// What all clones of a store share.
pub(crate) struct Shared {
    pub(crate) paths: Paths,
    pub(crate) recovered: Recovered,
    state: Mutex<State>,
    wake: Condvar,
    /// One flush at a time.
    gate: Mutex<()>,
    index: Index,
    verified: Mutex<HashSet<Digest>>,
    chains: Mutex<HashMap<Digest, Weak<Mutex<()>>>>,
    pub(crate) cache_dirs: CacheDirs,
    pub(crate) pins: Pins,
    pub(crate) side_sizes: Mutex<HashMap<SideName, SideSize>>,
    pub(crate) keeper: Orders,
    /// One collection at a time.
    pub(crate) collecting: Mutex<()>,
    root_dir: File,
    _lock: Lock,
}

/// What changes under the store's one short lock; no I/O is done while it is held.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) snapshots: Snapshots,
    /// Records put since the last flush began.
    pending: Changes,
    /// Records that are worth a flush of somebody else's, but none of their own.
    notes: Changes,
    /// Records that a flush is writing, or failed to write.
    flushing: Arc<Changes>,
    /// `*.new` files to be named once their data is on the disk.
    renames: Vec<(PathBuf, PathBuf)>,
    /// Something else was written that a flush should put on the disk.
    dirty: bool,
    stop: bool,
}

impl State {
    fn is_pending(&self) -> bool {
        self.dirty || !self.renames.is_empty() || !self.pending.is_empty() || !self.flushing.is_empty()
    }
}

/// A lock whose holder panicked is still good: each critical section leaves a valid state.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let paths = Paths::create(root)?;
        let lock = Lock::take(&paths)?;
        paths.make_dirs()?;
        let ingests_removed = empty_dir(&paths.ingest())?;
        let mut recovered = Recovered { ingests_removed, ..Recovered::default() };
        let first = !paths.index().exists() && is_empty(&paths.snapshots())?;
        let (index, rebuilt) = match Index::open(&paths.index()) {
            Err(error) if error.is_no_space() && collect::make_room_unopened(&paths) => {
                Index::open(&paths.index())
            }
            opened => opened,
        }?;
        recovered.index_rebuilt = rebuilt.filter(|_| !first);
        let loaded = load_snapshots(&paths)?;
        recovered.snapshots_removed = loaded.removed;
        let mut state = State { snapshots: loaded.snapshots, ..State::default() };
        if recovered.index_rebuilt.is_some() {
            state.pending = loaded.records.into_iter().map(|r| ((r.table, r.key), Some(r.value))).collect();
        }
        let (cache_dirs, removed) = cache_dir::load(&paths)?;
        recovered.cache_dirs_removed = removed;
        let root_dir = File::open(paths.root()).map_err(|e| Error::io("open", paths.root(), e))?;
        Ok(Self {
            paths,
            recovered,
            state: Mutex::new(state),
            wake: Condvar::new(),
            gate: Mutex::new(()),
            index,
            verified: Mutex::default(),
            chains: Mutex::default(),
            cache_dirs,
            pins: Pins::default(),
            side_sizes: Mutex::default(),
            keeper: Orders::default(),
            collecting: Mutex::default(),
            root_dir,
            _lock: lock,
        })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    pub(crate) fn is_verified(&self, digest: &Digest) -> bool {
        locked(&self.verified).contains(digest)
    }

    pub(crate) fn set_verified(&self, digest: Digest) {
        locked(&self.verified).insert(digest);
    }

    /// The lock of a chain id, shared by all who want it unpacked.
    pub(crate) fn chain_turn(&self, chain: Digest) -> Arc<Mutex<()>> {
        let mut chains = locked(&self.chains);
        if let Some(turn) = chains.get(&chain).and_then(Weak::upgrade) {
            return turn;
        }
        chains.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(Mutex::new(()));
        chains.insert(chain, Arc::downgrade(&turn));
        turn
    }

    pub(crate) fn mark_dirty(&self) {
        self.state().dirty = true;
        self.wake.notify_all();
    }

    /// Names `new` as `target` once its data is on the disk.
    pub(crate) fn rename_when_synced(&self, new: PathBuf, target: PathBuf) {
        self.state().renames.push((new, target));
        self.wake.notify_all();
    }

    pub(crate) fn change(&self, table: Table, key: &[u8], value: Option<Vec<u8>>) {
        self.change_all(table, std::iter::once((key.to_vec(), value)));
    }

    pub(crate) fn change_all(&self, table: Table, changes: impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)>) {
        let mut state = self.state();
        // Who waits for the first change looks again by himself.
        let first = !state.is_pending();
        state.pending.extend(changes.map(|(key, value)| ((table, key), value)));
        drop(state);
        if first {
            self.wake.notify_all();
        }
    }

    /// Puts a record that goes to the disk with the next flush, and may be lost until then.
    pub(crate) fn note(&self, table: Table, key: &[u8], value: Vec<u8>) {
        self.state().notes.insert((table, key.to_vec()), Some(value));
    }

    /// Deletes a record that was read with that value, unless another was put since.
    pub(crate) fn forget(&self, table: Table, key: &[u8], value: &[u8]) {
        let mut state = self.state();
        let at = (table, key.to_vec());
        let put = state.pending.get(&at).or_else(|| state.flushing.get(&at));
        let put = put.or_else(|| state.notes.get(&at));
        if put.is_none_or(|put| put.as_deref() == Some(value)) {
            state.pending.insert(at, None);
            self.wake.notify_all();
        }
    }

    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Option<Vec<u8>> {
        let state = self.state();
        let at = (table, key.to_vec());
        let put = state.pending.get(&at).or_else(|| state.flushing.get(&at));
        if let Some(change) = put.or_else(|| state.notes.get(&at)) {
            return change.clone();
        }
        drop(state);
        // A flush may end here: then the record is in the file, which is read after.
        self.index.get(table, key)
    }

    /// [`Self::get`] of many, in one look at the file.
    pub(crate) fn get_all(&self, table: Table, keys: &[Vec<u8>]) -> Vec<Option<Vec<u8>>> {
        let mut found: Vec<Option<Vec<u8>>> = vec![None; keys.len()];
        let mut left = Vec::new();
        let state = self.state();
        for (at, key) in keys.iter().enumerate() {
            let place = (table, key.clone());
            let put = state.pending.get(&place).or_else(|| state.flushing.get(&place));
            match put.or_else(|| state.notes.get(&place)) {
                Some(change) => found[at].clone_from(change),
                None => left.push(at),
            }
        }
        drop(state);
        // As in `get`: a flush may end here.
        let read = self.index.get_all(table, left.iter().map(|at| keys[*at].as_slice()));
        left.into_iter().zip(read).for_each(|(at, value)| found[at] = value);
        found
    }

    pub(crate) fn scan(&self, table: Table, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let state = self.state();
        let layers = [&state.notes, &*state.flushing, &state.pending].map(|changes| {
            changes
                .range((table, prefix.to_vec())..)
                .take_while(|((t, key), _)| *t == table && key.starts_with(prefix))
                .map(|((_, key), value)| (key.clone(), value.clone()))
                .collect::<Vec<_>>()
        });
        drop(state);
        let mut rows: BTreeMap<_, _> = self.index.scan(table, prefix);
        for (key, value) in layers.into_iter().flatten() {
            match value {
                Some(value) => drop(rows.insert(key, value)),
                None => drop(rows.remove(&key)),
            }
        }
        rows.into_iter().collect()
    }

    /// All tables that have or had records, but the schema's.
    pub(crate) fn tables(&self) -> Vec<Table> {
        let mut tables: Vec<Table> = self.index.tables().into_iter().map(table_of).collect();
        let state = self.state();
        tables.extend(
            state
                .pending
                .keys()
                .chain(state.flushing.keys())
                .chain(state.notes.keys())
                .map(|(table, _)| *table),
        );
        drop(state);
        tables.sort_unstable();
        tables.dedup();
        tables.retain(|table| *table != crate::index::SCHEMA_TABLE);
        tables
    }

    /// The batch's way to the disk; the ordering is told at [`crate::Store::flush`].
    pub(crate) fn flush(&self) -> Result<()> {
        let _gate = locked(&self.gate);
        let (changes, renames) = {
            let mut state = self.state();
            if !state.is_pending() && state.notes.is_empty() {
                return Ok(());
            }
            let mut changes = (*state.flushing).clone(); // not empty only after a failure
            changes.append(&mut state.notes);
            changes.append(&mut state.pending);
            state.flushing = Arc::new(changes);
            state.dirty = false;
            (Arc::clone(&state.flushing), std::mem::take(&mut state.renames))
        };
        if let Err(e) = rustix::fs::syncfs(&self.root_dir) {
            let mut state = self.state();
            state.renames.splice(0..0, renames);
            state.dirty = true;
            return Err(Error::io("sync", self.paths.root(), e.into()));
        }
        for (at, (new, target)) in renames.iter().enumerate() {
            match std::fs::rename(new, target) {
                // The snapshot was removed meanwhile, or its facts were written again.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Ok(()) => {}
                Err(e) => {
                    self.state().renames.splice(0..0, renames[at..].iter().cloned());
                    return Err(Error::io("name", target, e));
                }
            }
        }
        if !changes.is_empty() {
            self.index.write(&changes)?;
        }
        self.state().flushing = Arc::default();
        Ok(())
    }
}

/// The thread that flushes; its drop flushes what is left.
pub(crate) struct Flusher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    pub(crate) fn start(shared: Arc<Shared>) -> Result<Self> {
        let mine = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("store-flush".to_owned())
            .spawn(move || run(&mine))
            .map_err(|e| Error::io("start a thread for", shared.paths.root(), e))?;
        Ok(Self { shared, thread: Some(thread) })
    }
}

fn run(shared: &Shared) {
    let wait = |guard, until: &dyn Fn(&State) -> bool| {
        shared.wake.wait_while(guard, |s: &mut State| !until(s)).unwrap_or_else(PoisonError::into_inner)
    };
    let mut failures = 0u32;
    loop {
        let state = wait(shared.state(), &|s| s.stop || s.is_pending());
        // Let a batch gather; after failures (a full disk) longer and longer.
        let pause = limits::FLUSH_INTERVAL * 2u32.pow(failures.min(5));
        let (state, _) =
            shared.wake.wait_timeout_while(state, pause, |s| !s.stop).unwrap_or_else(PoisonError::into_inner);
        let stop = state.stop;
        drop(state);
        // The error comes again at `Store::flush`, whose caller can tell somebody.
        failures = if shared.flush().is_ok() { 0 } else { failures + 1 };
        if stop {
            return;
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.shared.state().stop = true;
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            thread.join().ok(); // a panic there was reported when it happened
        }
    }
}

fn is_empty(dir: &Path) -> Result<bool> {
    let mut entries = std::fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))?;
    Ok(entries.next().is_none())
}

/// Removes what is in `dir`, and counts.
fn empty_dir(dir: &Path) -> Result<u64> {
    let mut removed = 0;
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))? {
        let entry = entry.map_err(|e| Error::io("list", dir, e))?;
        remove_all(&entry.path())?;
        removed += 1;
    }
    Ok(removed)
}
