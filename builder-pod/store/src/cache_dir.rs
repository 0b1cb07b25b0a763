//! Directories of cache mounts: written by steps, kept between builds, never part of an image.
//!
//! In: a key and how it may be shared. Out: a [`CacheDir`], in use until it is dropped.
//! Holds: a directory is seen by name only once what it begins with is in it; two users have the same one
//! only where both said [`Sharing::Shared`]; a kill at any moment leaves each directory usable and unlocked.
//! Never: looks at what steps wrote.

use std::collections::HashMap;
use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::flush::locked;
use crate::paths::{Paths, discard, remove_all};
use crate::snapshot::{SnapshotId, read_json, set_mode, write_json};
use crate::{Error, Result, Store};

/// Which directory is meant. Other values, another directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CacheDirKey {
    /// The mount's id.
    pub id: String,
    /// What a new directory begins with, in words of its maker (a digest of the content, say). `None`:
    /// empty, mode 0755, owned by root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
}

/// Who may have a directory at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// All that say so.
    Shared,
    /// One; whoever comes while it is in use gets another.
    Private,
    /// One; whoever comes while it is in use waits.
    Locked,
}

/// A cache mount's directory, in use until this is dropped.
#[derive(Debug)]
pub struct CacheDir {
    store: Store,
    id: SnapshotId,
    path: PathBuf,
    fresh: bool,
    sharing: Sharing,
}

impl CacheDirs {
    /// All of them.
    pub(crate) fn all(&self) -> Vec<CacheDirInfo> {
        let state = locked(&self.state);
        let info = |(id, e): (&SnapshotId, &Entry)| CacheDirInfo {
            id: *id,
            key: e.key.clone(),
            in_use: e.hold != Hold::Free,
            last_used: e.last_used,
            uses: e.uses,
            bytes: e.bytes,
        };
        state.map.iter().map(info).collect()
    }

    /// Tells the size that was measured after that many uses; whether it still holds.
    pub(crate) fn set_bytes(&self, id: SnapshotId, uses: u64, bytes: u64) -> bool {
        match locked(&self.state).map.get_mut(&id) {
            Some(entry) if entry.hold == Hold::Free && entry.uses == uses => {
                entry.bytes = Some(bytes);
                true
            }
            _ => false,
        }
    }

    /// Forgets a directory unless somebody has it; whether it is free to be removed.
    pub(crate) fn take_free(&self, id: SnapshotId) -> bool {
        let mut state = locked(&self.state);
        let free = state.map.get(&id).is_some_and(|entry| entry.hold == Hold::Free);
        if free {
            state.map.remove(&id);
        }
        free
    }
}

/// How a directory is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    Free,
    Shared(usize),
    Alone,
    /// Being filled by its first user; the others of its kind wait for it.
    Filling(Sharing),
}

struct Entry {
    key: CacheDirKey,
    hold: Hold,
    last_used: SystemTime,
    uses: u64,
    /// Bytes on the disk as last measured; `None` after a use.
    bytes: Option<u64>,
    /// Nobody else gets it, and it goes with the last who has it.
    dropped: bool,
}

/// All directories of cache mounts.
#[derive(Default)]
pub(crate) struct CacheDirs {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    map: HashMap<SnapshotId, Entry>,
    waiting: Vec<Waker>,
}

/// A directory as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheDirInfo {
    /// Its folder's name.
    pub id: SnapshotId,
    /// Which it is.
    pub key: CacheDirKey,
    /// A step has it now.
    pub in_use: bool,
    /// When a step had it last.
    pub last_used: SystemTime,
    /// How often it was taken in this process.
    pub uses: u64,
    /// Bytes on the disk as last measured; unknown after a use.
    pub bytes: Option<u64>,
}

/// What is to be done for a user.
enum Choice {
    Take(SnapshotId),
    Make,
    Wait,
}

impl State {
    fn choose(&self, key: &CacheDirKey, sharing: Sharing) -> Choice {
        let same = || self.map.iter().filter(|(_, e)| e.key == *key && !e.dropped);
        if sharing == Sharing::Shared {
            if let Some((id, _)) = same().find(|(_, e)| matches!(e.hold, Hold::Shared(_))) {
                return Choice::Take(*id);
            }
            if same().any(|(_, e)| e.hold == Hold::Filling(Sharing::Shared)) {
                return Choice::Wait;
            }
        }
        // The one that was used last is the warmest.
        let free = same().filter(|(_, e)| e.hold == Hold::Free).max_by_key(|(id, e)| (e.last_used, **id));
        match free {
            Some((id, _)) => Choice::Take(*id),
            None if sharing == Sharing::Locked && same().next().is_some() => Choice::Wait,
            None => Choice::Make,
        }
    }

    fn wake(&mut self) {
        self.waiting.drain(..).for_each(Waker::wake);
    }
}

/// The `meta` file of a directory.
#[derive(Serialize, Deserialize)]
struct Meta {
    key: CacheDirKey,
}

impl Store {
    /// The directory of a cache mount, made where there is none. With [`Sharing::Locked`] it waits for its
    /// turn; dropping the future gives up. Its own file operations are few and short.
    ///
    /// A new one whose key has a `base` is this caller's alone until [`CacheDir::ready`].
    ///
    /// # Errors
    /// [`Error::NoSpace`], I/O.
    pub async fn cache_dir(&self, key: &CacheDirKey, sharing: Sharing) -> Result<CacheDir> {
        poll_fn(|context| self.poll_cache_dir(key, sharing, context)).await
    }

    fn poll_cache_dir(
        &self,
        key: &CacheDirKey,
        sharing: Sharing,
        context: &mut Context<'_>,
    ) -> Poll<Result<CacheDir>> {
        let hold = match sharing {
            Sharing::Shared => Hold::Shared(1),
            Sharing::Private | Sharing::Locked => Hold::Alone,
        };
        let mut state = locked(&self.shared.cache_dirs.state);
        let dir = |id, fresh| CacheDir {
            store: self.clone(),
            id,
            path: self.shared.paths.mount(id).join("fs"),
            fresh,
            sharing,
        };
        match state.choose(key, sharing) {
            Choice::Wait => {
                if !state.waiting.iter().any(|w| w.will_wake(context.waker())) {
                    state.waiting.push(context.waker().clone());
                }
                Poll::Pending
            }
            Choice::Take(id) => {
                if let Some(entry) = state.map.get_mut(&id) {
                    entry.hold = match entry.hold {
                        Hold::Shared(users) => Hold::Shared(users + 1),
                        _ => hold,
                    };
                    entry.uses += 1;
                    entry.last_used = SystemTime::now();
                    entry.bytes = None;
                }
                drop(state);
                // A size that was noted before this use no longer holds, also after a kill.
                touch(&self.shared.paths.mount(id));
                Poll::Ready(Ok(dir(id, false)))
            }
            Choice::Make => {
                let id = SnapshotId::random()?;
                let entry = Entry {
                    key: key.clone(),
                    hold: Hold::Filling(sharing),
                    last_used: SystemTime::now(),
                    uses: 1,
                    bytes: None,
                    dropped: false,
                };
                state.map.insert(id, entry);
                drop(state);
                // From here on a failure cleans up by the drop.
                let dir = dir(id, true);
                make(&dir)?;
                if key.base.is_none() {
                    dir.ready()?;
                }
                Poll::Ready(Ok(dir))
            }
        }
    }

    /// Drops the directories of cache mounts of this id, whatever they began with: the next step begins anew. Those that steps have
    /// now stay theirs, and go with the last of them. Blocking.
    ///
    /// # Errors
    /// I/O: what could not be removed is removed when the store is opened again.
    pub fn drop_cache_dirs(&self, id: &str) -> Result<()> {
        let free: Vec<SnapshotId> = {
            let mut state = locked(&self.shared.cache_dirs.state);
            state.map.values_mut().filter(|entry| entry.key.id == id).for_each(|entry| entry.dropped = true);
            let free = state.map.iter().filter(|(_, entry)| entry.dropped && entry.hold == Hold::Free);
            let free = free.map(|(id, _)| *id).collect();
            state.map.retain(|_, entry| !(entry.dropped && entry.hold == Hold::Free));
            // Who waits for a turn at one of them waits for nothing now.
            state.wake();
            free
        };
        free.into_iter().try_for_each(|id| discard(&self.shared.paths, &self.shared.paths.mount(id)))
    }

    /// All directories of cache mounts, by id.
    pub fn cache_dirs(&self) -> Vec<CacheDirInfo> {
        let mut all = self.shared.cache_dirs.all();
        all.sort_unstable_by_key(|dir| dir.id);
        all
    }
}

fn make(dir: &CacheDir) -> Result<()> {
    let outer = dir.store.shared.paths.mount(dir.id);
    for dir in [&outer, &dir.path] {
        std::fs::create_dir(dir).map_err(|e| Error::io("make", dir, e))?;
    }
    set_mode(&dir.path, 0o755)
}

impl CacheDir {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it was made for this user: what it begins with is to be put into it, see [`CacheDir::ready`].
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Says that a fresh directory has what it begins with. Without this word it goes when it is dropped.
    /// One without a base is ready from the start; saying it twice is fine.
    ///
    /// # Errors
    /// [`Error::NoSpace`], I/O.
    pub fn ready(&self) -> Result<()> {
        let shared = &self.store.shared;
        let key = match locked(&shared.cache_dirs.state).map.get(&self.id) {
            Some(Entry { hold: Hold::Filling(_), key, .. }) => key.clone(),
            _ => return Ok(()),
        };
        let outer = shared.paths.mount(self.id);
        write_json(&outer.join("meta.new"), &Meta { key })?;
        shared.rename_when_synced(outer.join("meta.new"), outer.join("meta"));
        let mut state = locked(&shared.cache_dirs.state);
        if let Some(entry) = state.map.get_mut(&self.id) {
            entry.hold = match self.sharing {
                Sharing::Shared => Hold::Shared(1),
                Sharing::Private | Sharing::Locked => Hold::Alone,
            };
        }
        state.wake();
        Ok(())
    }
}

impl Drop for CacheDir {
    fn drop(&mut self) {
        let shared = &self.store.shared;
        let mut state = locked(&shared.cache_dirs.state);
        let Some(entry) = state.map.get_mut(&self.id) else { return };
        let unfinished = matches!(entry.hold, Hold::Filling(_));
        entry.hold = match entry.hold {
            Hold::Shared(users) if users > 1 => Hold::Shared(users - 1),
            _ => Hold::Free,
        };
        entry.last_used = SystemTime::now();
        entry.bytes = None;
        let goes = unfinished || (entry.dropped && entry.hold == Hold::Free);
        if goes {
            state.map.remove(&self.id);
        }
        state.wake();
        drop(state);
        let outer = shared.paths.mount(self.id);
        if goes {
            discard(&shared.paths, &outer).ok(); // the next open removes what stays
        } else {
            touch(&outer);
            // What the step wrote gets to the disk with the next flush.
            shared.mark_dirty();
        }
    }
}

/// The time of the folder is when it was used last: it survives a lost index.
pub(crate) fn touch(path: &Path) {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW as _ };
    let times = Timestamps { last_access: now, last_modification: now };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).ok(); // it only counts as older than it is
}

/// Reads all `meta` files; folders without one were never ready and are removed.
pub(crate) fn load(paths: &Paths) -> Result<(CacheDirs, u64)> {
    let (mut state, mut removed) = (State::default(), 0);
    let dir = paths.mounts();
    for entry in std::fs::read_dir(&dir).map_err(|e| Error::io("list", &dir, e))? {
        let path = entry.map_err(|e| Error::io("list", &dir, e))?.path();
        let id = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse::<SnapshotId>().ok());
        let (Some(id), Some(meta)) = (id, read_json::<Meta>(&path.join("meta"))) else {
            discard(paths, &path)?;
            removed += 1;
            continue;
        };
        remove_all(&path.join("meta.new"))?;
        let last_used = path.symlink_metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        let entry =
            Entry { key: meta.key, hold: Hold::Free, last_used, uses: 0, bytes: None, dropped: false };
        state.map.insert(id, entry);
    }
    Ok((CacheDirs { state: Mutex::new(state) }, removed))
}
