//! Removing what [`crate::gc`] chose, while everything else goes on.
//!
//! Each thing is looked at once more under the lock that its users take, moved to `trash` in one rename, and
//! deleted after that. A kill in between leaves whole things and trash, which the next opening deletes. A
//! record that names what is gone reads as a miss, and is swept here.

use std::collections::HashSet;
use std::path::Path;
use std::time::SystemTime;

use crate::flush::{Shared, locked};
use crate::gc::{Limits, Rule, choose};
use crate::paths::{Paths, remove_all, to_trash};
use crate::{Error, ItemId, Result, SnapshotId, Store, Usage, UsageItem, limits};

/// What a collection did.
#[derive(Debug, Clone, Default)]
pub struct Collected {
    /// What was removed, in that order.
    pub removed: Vec<UsageItem>,
    /// Bytes that it took.
    pub freed_bytes: u64,
    /// Bytes that the store takes after it.
    pub total_bytes: u64,
}

/// How often it is looked again whether more has to go: what was chosen may just have been taken by somebody,
/// and the index may have grown by what was noted.
const ROUNDS_MAX: usize = 6;
/// Of a limit that was passed, this part is freed beyond it, so that the next step does not pass it again.
const SLACK: u64 = 16;

impl Store {
    /// Removes what `rule` names and nobody uses, and says what. Others go on working meanwhile.
    ///
    /// # Errors
    /// I/O. What was removed before stays removed.
    pub fn collect(&self, rule: &Rule) -> Result<Collected> {
        self.shared.collect(rule, &|| false)
    }

    /// Removes what has to go for the limits to hold: what nobody used for long, then what was used least
    /// recently, until the store takes no more than it may.
    ///
    /// # Errors
    /// As [`Store::collect`].
    pub fn collect_to(&self, limits: &Limits) -> Result<Collected> {
        self.shared.collect_to(limits, 0, &|| false)
    }

    /// As [`Store::collect_to`], but costs little where nothing has to go; the bytes that the store takes then.
    ///
    /// # Errors
    /// As [`Store::collect`].
    pub fn settle(&self, limits: &Limits) -> Result<u64> {
        let usage = self.usage()?;
        let total = usage.total_bytes();
        let budget = limits.budget_bytes(total, self.disk()?.free_bytes);
        let now = SystemTime::now();
        if total <= budget && choose(&usage.items, &Rule::expired(), total, now).is_empty() {
            return Ok(total);
        }
        Ok(self.collect_to(limits)?.total_bytes)
    }

    /// Makes room on a disk that is full, as far as there is something that nobody uses; the bytes freed.
    /// Blocking.
    ///
    /// # Errors
    /// As [`Store::collect`].
    pub fn make_room(&self) -> Result<u64> {
        self.shared.make_room()
    }

    /// Free and all bytes of the file system that the store is on, for whom it is asked.
    ///
    /// # Errors
    /// I/O.
    pub fn disk(&self) -> Result<Disk> {
        Disk::of(self.root())
    }
}

/// The file system's own account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Bytes that may still be written.
    pub free_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
}

impl Disk {
    /// Asks about the file system of `path`.
    ///
    /// # Errors
    /// I/O.
    pub fn of(path: &Path) -> Result<Self> {
        let disk = rustix::fs::statvfs(path).map_err(|e| Error::io("look at the disk of", path, e.into()))?;
        Ok(Self {
            free_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
            total_bytes: disk.f_blocks.saturating_mul(disk.f_frsize),
        })
    }
}

/// How much more than now is made free at least on a disk that says it has room and is full all the same.
const ROOM_BYTES: u64 = 1 << 30;

impl Shared {
    pub(crate) fn collect_to(
        &self,
        limits: &Limits,
        slack: u64,
        stop: &dyn Fn() -> bool,
    ) -> Result<Collected> {
        let expired = self.collect(&Rule::expired(), stop)?;
        let disk = Disk::of(self.paths.root())?;
        let budget = limits.budget_bytes(expired.total_bytes, disk.free_bytes);
        if expired.total_bytes <= budget {
            return Ok(expired);
        }
        let wanted = match slack {
            0 => budget,
            part => (budget - budget / part).max(limits.reserved_bytes),
        };
        let mut done = self.collect(&Rule::down_to(wanted), stop)?;
        done.freed_bytes += expired.freed_bytes;
        done.removed.splice(0..0, expired.removed);
        Ok(done)
    }

    /// As [`Shared::collect_to`], with room beyond.
    pub(crate) fn collect_beyond(&self, limits: &Limits, stop: &dyn Fn() -> bool) -> Result<Collected> {
        self.collect_to(limits, SLACK, stop)
    }

    pub(crate) fn make_room(&self) -> Result<u64> {
        self.empty_trash(&|| false);
        let disk = Disk::of(self.paths.root())?;
        // A tenth of the disk, since what was to be written is not known; where that much is free, something else
        // is full (a quota, inodes), and others may free some meanwhile.
        let wanted = (disk.total_bytes / 10).max(disk.free_bytes.saturating_add(ROOM_BYTES));
        let limits = Limits { max_bytes: None, min_free_bytes: wanted, reserved_bytes: 0 };
        Ok(self.collect_to(&limits, 0, &|| false)?.freed_bytes)
    }

    pub(crate) fn collect(&self, rule: &Rule, stop: &dyn Fn() -> bool) -> Result<Collected> {
        let _one_at_a_time = locked(&self.collecting);
        let mut done = Collected::default();
        for round in 0..ROUNDS_MAX {
            let mut usage = self.usage()?;
            done.total_bytes = usage.total_bytes();
            let is_fine =
                |usage: &Usage| choose(&usage.items, rule, usage.total_bytes(), SystemTime::now()).is_empty();
            // As a rule nothing has to go, and nothing is written for that.
            if round == 0 && is_fine(&usage) {
                break;
            }
            usage = self.settled_usage()?;
            done.total_bytes = usage.total_bytes();
            let chosen = choose(&usage.items, rule, done.total_bytes, SystemTime::now());
            if chosen.is_empty() || stop() {
                break;
            }
            let layers = self.remove(&usage, &chosen, &mut done, stop)?;
            self.sweep_records(&layers);
        }
        Ok(done)
    }

    /// What the store takes once the sizes that were just measured are noted: the index may grow by that.
    fn settled_usage(&self) -> Result<Usage> {
        self.flush().ok(); // on a full disk it is tried again
        self.usage()
    }

    /// Removes the chosen ones, but those that somebody took meanwhile; the layers among them.
    fn remove(
        &self,
        usage: &Usage,
        chosen: &[usize],
        done: &mut Collected,
        stop: &dyn Fn() -> bool,
    ) -> Result<HashSet<SnapshotId>> {
        let mut layers = HashSet::new();
        for item in chosen.iter().filter_map(|at| usage.items.get(*at)) {
            if stop() {
                break;
            }
            if !self.remove_item(&item.id)? {
                continue;
            }
            if let ItemId::Layer(id) = item.id {
                layers.insert(id);
            }
            done.freed_bytes += item.bytes;
            done.total_bytes = done.total_bytes.saturating_sub(item.bytes);
            done.removed.push(item.clone());
        }
        Ok(layers)
    }

    /// Removes one thing unless somebody has taken it; whether it went.
    fn remove_item(&self, id: &ItemId) -> Result<bool> {
        let trash = match id {
            ItemId::Layer(id) => {
                if !self.state().snapshots.take_free(*id, &self.pins) {
                    return Ok(false);
                }
                to_trash(&self.paths, &self.paths.snapshot(*id))?
            }
            ItemId::CacheMount(id) => {
                if !self.cache_dirs.take_free(*id) {
                    return Ok(false);
                }
                to_trash(&self.paths, &self.paths.mount(*id))?
            }
            ItemId::Blob(digest) => {
                let blobs = locked(&self.pins.blobs);
                if blobs.get(digest).is_some_and(|touched| self.pins.holds(*touched)) {
                    return Ok(false);
                }
                to_trash(&self.paths, &self.paths.blob(digest))?
            }
            ItemId::Side { group, name } => {
                let key = (group.clone(), name.clone());
                let sides = locked(&self.pins.sides);
                if self.pins.holds_side(&sides, &key) {
                    return Ok(false);
                }
                let trash = to_trash(&self.paths, &self.paths.root().join("side").join(group).join(name))?;
                drop(sides);
                self.forget_side(&key);
                trash
            }
        };
        if let Some(trash) = trash {
            remove_all(&trash)?;
        }
        Ok(true)
    }

    /// Deletes records that name removed snapshots: an id is never given again, so they are dead.
    fn sweep_records(&self, gone: &HashSet<SnapshotId>) {
        if gone.is_empty() {
            return;
        }
        for table in self.tables() {
            for (key, value) in self.scan(table, b"") {
                if names(&key, gone) || names(&value, gone) {
                    self.forget(table, &key, &value);
                }
            }
        }
    }

    /// Deletes what was moved out of the way.
    pub(crate) fn empty_trash(&self, stop: &dyn Fn() -> bool) {
        let Ok(entries) = std::fs::read_dir(self.paths.trash()) else { return };
        for entry in entries.flatten() {
            if stop() {
                return;
            }
            // What cannot be deleted now (files of another user's namespace) is tried again next time.
            remove_all(&entry.path()).ok();
        }
    }
}

/// Whether a text names one of the snapshots.
fn names(text: &[u8], gone: &HashSet<SnapshotId>) -> bool {
    text.split(|b| !b.is_ascii_alphanumeric()).any(|word| {
        let id = std::str::from_utf8(word).ok().and_then(|word| word.parse().ok());
        id.is_some_and(|id| gone.contains(&id))
    })
}

/// Makes room on a full disk before the store is open: the index needs some. What is in the trash goes, then
/// blobs, the oldest first: each can be made or fetched again. Whether there is room now.
pub(crate) fn make_room_unopened(paths: &Paths) -> bool {
    let has_room = || Disk::of(paths.root()).is_ok_and(|disk| disk.free_bytes >= limits::OPEN_FREE_BYTES);
    let entries = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    for path in entries(&paths.trash()) {
        remove_all(&path).ok(); // the next ones may do
    }
    let time = |path: &Path| path.symlink_metadata().and_then(|m| m.modified()).ok();
    let mut blobs: Vec<_> = entries(&paths.blobs()).map(|path| (time(&path), path)).collect();
    blobs.sort();
    for (_, path) in blobs {
        if has_room() {
            return true;
        }
        remove_all(&path).ok(); // as above
    }
    has_room()
}
