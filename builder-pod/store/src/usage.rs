//! What the store takes on the disk, to the byte, and when each part of it was used last.
//!
//! Holds: [`Usage::total_bytes`] is what a walk over the whole directory finds (allocated blocks, a file
//! with several names once), as long as nobody writes meanwhile.
//! Never: walks what cannot have changed since it was measured (what shares files with others may, when those go); holds a
//! lock while it walks.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use lapstrake_oci::Digest;
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, Stat, openat, statat};
use serde::{Deserialize, Serialize};

use crate::flush::{Shared, locked};
use crate::pins::SideName;
use crate::{Error, Result, SnapshotId, Store, Table};

/// Sizes that were measured, by what they are of.
const SIZES: Table = Table::named("sizes");
/// Directories of other parts: their size and last use.
const SIDES: Table = Table::named("sides");
/// A use is noted again only after this: notes cost a write.
const SIDE_USE_STEP: Duration = Duration::from_secs(60);

/// Kinds of what the store keeps, in the order in which they go where all else is equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Repositories and what was checked out of them.
    GitCheckout,
    /// Downloads and inline files.
    Source,
    /// Directory of a cache mount.
    CacheMount,
    /// A blob: a packed layer, a document of an image.
    Blob,
    /// A layer of an image or a step, unpacked.
    Layer,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::GitCheckout, Self::Source, Self::CacheMount, Self::Blob, Self::Layer];

    /// The name, BuildKit's where it has one.
    pub const fn name(self) -> &'static str {
        match self {
            Self::GitCheckout => "source.git.checkout",
            Self::Source => "source.local",
            Self::CacheMount => "exec.cachemount",
            Self::Blob => "blob",
            Self::Layer => "regular",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Names one thing that may be removed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ItemId {
    /// A committed snapshot.
    Layer(SnapshotId),
    /// A blob.
    Blob(Digest),
    /// A cache mount's directory.
    CacheMount(SnapshotId),
    /// A directory of another part.
    Side {
        /// Its group, the name that [`Store::side_dir`] was asked for.
        group: String,
        /// Its own name.
        name: String,
    },
}

impl fmt::Display for ItemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layer(id) | Self::CacheMount(id) => write!(f, "{id}"),
            Self::Blob(digest) => write!(f, "{digest}"),
            Self::Side { group, name } => write!(f, "{group}/{name}"),
        }
    }
}

/// One thing that takes room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageItem {
    /// Its name.
    pub id: ItemId,
    /// What it is.
    pub kind: Kind,
    /// Bytes on the disk.
    pub bytes: u64,
    /// When it was used last.
    pub last_used: SystemTime,
    /// A running job, a step or a reader has it.
    pub in_use: bool,
    /// Several others lie on it.
    pub shared: bool,
    /// What it lies on.
    pub parent: Option<SnapshotId>,
    /// More about it, for people; may be empty.
    pub description: String,
}

/// All that the store takes.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    /// What may be removed when nobody uses it.
    pub items: Vec<UsageItem>,
    /// Bytes of the rest: the index, what is being made, what is on its way out.
    pub other_bytes: u64,
}

impl Usage {
    /// Bytes on the disk, all together.
    pub fn total_bytes(&self) -> u64 {
        self.other_bytes + self.items.iter().map(|item| item.bytes).sum::<u64>()
    }

    /// Bytes of what nobody uses now.
    pub fn reclaimable_bytes(&self) -> u64 {
        self.items.iter().filter(|item| !item.in_use).map(|item| item.bytes).sum()
    }
}

/// What is kept of a directory of another part.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Side {
    /// Bytes, with the time of the directory when they were counted.
    #[serde(default)]
    bytes: Option<(u64, u128)>,
    /// Seconds since 1970.
    #[serde(default)]
    last_used: u64,
}

/// When a directory of another part has another size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Changes {
    /// It comes and goes as a whole: its own time tells.
    AsAWhole,
    /// Deep inside, by who says that it is needed, or tells of his changes (`side.rs`).
    InUse,
    /// By whom nobody knows.
    Anytime,
}

/// Groups whose members may be removed. Others' files are theirs to remove.
const SIDE_KINDS: [(&str, Kind, Changes); 5] = [
    ("git", Kind::GitCheckout, Changes::Anytime),
    ("checkouts", Kind::GitCheckout, Changes::AsAWhole),
    ("http", Kind::Source, Changes::AsAWhole),
    ("inline", Kind::Source, Changes::AsAWhole),
    ("local", Kind::Source, Changes::InUse),
];

impl Store {
    /// What the store takes. Measures what changed since it was last measured.
    ///
    /// # Errors
    /// I/O. What goes away meanwhile is no error.
    pub fn usage(&self) -> Result<Usage> {
        self.shared.usage()
    }

    /// To be told when files of a snapshot were given further names in another: from then on each counts once.
    pub fn shares_files(&self, id: SnapshotId) {
        self.shared.remeasure(id);
    }
}

impl Shared {
    pub(crate) fn usage(&self) -> Result<Usage> {
        let mut usage = Usage::default();
        self.layers(&mut usage)?;
        self.blobs(&mut usage)?;
        self.cache_mounts(&mut usage)?;
        self.sides(&mut usage)?;
        let paths = &self.paths;
        let mut rest = Walk::default();
        for entry in list(paths.root())? {
            let parts =
                [paths.snapshots(), paths.mounts(), paths.root().join("side"), paths.root().join("blobs")];
            if !parts.contains(&entry) {
                rest.add(&entry);
            }
        }
        for dir in [paths.root(), &paths.root().join("blobs")] {
            rest.add_one(dir);
        }
        usage.other_bytes += rest.bytes;
        Ok(usage)
    }

    fn layers(&self, usage: &mut Usage) -> Result<()> {
        let known = self.state().snapshots.all();
        let mut walk = Walk::default();
        let dir = self.paths.snapshots();
        walk.add_one(&dir);
        let mut left: HashSet<PathBuf> = list(&dir)?.into_iter().collect();
        let mut counted = HashSet::new();
        for mut snapshot in known {
            let path = self.paths.snapshot(snapshot.id);
            // One that is not in the listing was committed after it.
            left.remove(&path);
            let fs_bytes = self.fs_bytes(snapshot.id, snapshot.fs_bytes, &mut counted);
            let mut own = Walk::default();
            own.add_one(&path);
            for name in ["meta", "meta.new", "layer", "layer.new"] {
                own.add_one(&path.join(name));
            }
            snapshot.in_use |= self.pins.holds(snapshot.touched);
            usage.items.push(UsageItem {
                id: ItemId::Layer(snapshot.id),
                kind: Kind::Layer,
                bytes: fs_bytes + own.bytes,
                last_used: snapshot.last_used,
                in_use: snapshot.in_use,
                shared: snapshot.children > 1,
                parent: snapshot.parent,
                description: snapshot.diff_id.map(|d| format!("layer {d}")).unwrap_or_default(),
            });
        }
        left.iter().for_each(|path| walk.add(path));
        usage.other_bytes += walk.bytes;
        Ok(())
    }

    /// Measures snapshots that were not measured yet, so that nobody waits for that later.
    pub(crate) fn measure_new(&self, stop: &dyn Fn() -> bool) {
        let unknown = self.state().snapshots.unmeasured();
        for id in unknown {
            if stop() {
                return;
            }
            self.fs_bytes(id, None, &mut HashSet::new());
        }
    }

    /// Bytes of a snapshot's files: as known, as noted, or measured now. Files that other snapshots have too count for
    /// the first that is asked for, by what was `counted` so far; that is not noted, since it changes when those go.
    fn fs_bytes(&self, id: SnapshotId, known: Option<u64>, counted: &mut HashSet<Inode>) -> u64 {
        if let Some(bytes) = known {
            return bytes;
        }
        if let Some(bytes) = self.known_size(id, 0) {
            self.state().snapshots.set_fs_bytes(id, bytes);
            return bytes;
        }
        let mut walk = Walk::default();
        walk.add(&self.paths.fs(id));
        let shared: Vec<_> = walk.links.iter().filter(|(_, link)| link.names < link.all_names).collect();
        if shared.is_empty() {
            self.remember_size(id, 0, walk.bytes);
            self.state().snapshots.set_fs_bytes(id, walk.bytes);
            return walk.bytes;
        }
        let again = shared.into_iter().filter(|(inode, _)| !counted.insert(**inode));
        let twice: u64 = again.map(|(_, link)| link.bytes).sum();
        walk.bytes - twice
    }

    /// Forgets the size of a snapshot whose files have further names now.
    pub(crate) fn remeasure(&self, id: SnapshotId) {
        self.note(SIZES, id.to_string().as_bytes(), Vec::new());
        self.state().snapshots.forget_fs_bytes(id);
    }

    fn blobs(&self, usage: &mut Usage) -> Result<()> {
        let dir = self.paths.blobs();
        let mut walk = Walk::default();
        walk.add_one(&dir);
        let touched = locked(&self.pins.blobs).clone();
        for path in list(&dir)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let (Ok(digest), Ok(meta)) =
                (format!("sha256:{name}").parse::<Digest>(), path.symlink_metadata())
            else {
                walk.add(&path);
                continue;
            };
            usage.items.push(UsageItem {
                id: ItemId::Blob(digest),
                kind: Kind::Blob,
                bytes: meta.blocks() * 512,
                last_used: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                in_use: touched.get(&digest).is_some_and(|t| self.pins.holds(*t)),
                shared: false,
                parent: None,
                description: String::new(),
            });
        }
        usage.other_bytes += walk.bytes;
        Ok(())
    }

    fn cache_mounts(&self, usage: &mut Usage) -> Result<()> {
        let dir = self.paths.mounts();
        let mut walk = Walk::default();
        walk.add_one(&dir);
        let known = self.cache_dirs.all();
        let mut left: HashSet<PathBuf> = list(&dir)?.into_iter().collect();
        for mount in known {
            let outer = self.paths.mount(mount.id);
            left.remove(&outer);
            // The time tells a use that a kill kept from being noted.
            let time = modified(&outer);
            let bytes = match mount.bytes.or_else(|| self.known_size(mount.id, time)) {
                Some(bytes) if !mount.in_use => bytes,
                _ => {
                    let bytes = measure(&outer.join("fs"));
                    if self.cache_dirs.set_bytes(mount.id, mount.uses, bytes) {
                        self.remember_size(mount.id, time, bytes);
                    }
                    bytes
                }
            };
            let mut own = Walk::default();
            [&outer, &outer.join("meta"), &outer.join("meta.new")].into_iter().for_each(|p| own.add_one(p));
            usage.items.push(UsageItem {
                id: ItemId::CacheMount(mount.id),
                kind: Kind::CacheMount,
                bytes: bytes + own.bytes,
                last_used: mount.last_used,
                in_use: mount.in_use,
                shared: false,
                parent: None,
                description: format!("cache mount {}", mount.key.id),
            });
        }
        left.iter().for_each(|path| walk.add(path));
        usage.other_bytes += walk.bytes;
        Ok(())
    }

    fn sides(&self, usage: &mut Usage) -> Result<()> {
        let side = self.paths.root().join("side");
        let mut walk = Walk::default();
        walk.add_one(&side);
        for group_dir in if side.is_dir() { list(&side)? } else { Vec::new() } {
            let group = group_dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some((_, kind, changes)) = SIDE_KINDS.iter().find(|(name, ..)| *name == group) else {
                walk.add(&group_dir);
                continue;
            };
            walk.add_one(&group_dir);
            for path in list(&group_dir)? {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let key = (group.clone(), name);
                let (bytes, last_used) = self.side(&key, &path, *changes);
                usage.items.push(UsageItem {
                    in_use: self.side_in_use(&key),
                    id: ItemId::Side { group: key.0, name: key.1 },
                    kind: *kind,
                    bytes,
                    last_used,
                    shared: false,
                    parent: None,
                    description: String::new(),
                });
            }
        }
        usage.other_bytes += walk.bytes;
        Ok(())
    }

    /// Whether somebody said that they need it, or all of its group.
    pub(crate) fn side_in_use(&self, name: &SideName) -> bool {
        self.pins.holds_side(&locked(&self.pins.sides), name)
    }

    fn side(&self, name: &SideName, path: &Path, changes: Changes) -> (u64, SystemTime) {
        let record = side_key(name);
        let mut side = self.side_record(&record);
        let time = modified(path);
        let bytes = match changes {
            Changes::Anytime => measure(path),
            Changes::InUse => self.side_measured(name, path),
            Changes::AsAWhole => match side.bytes {
                Some((bytes, at)) if at == time && !self.side_in_use(name) => bytes,
                _ => {
                    let bytes = measure(path);
                    // What is being made is larger soon.
                    if !self.side_in_use(name) && side.bytes != Some((bytes, time)) {
                        side.bytes = Some((bytes, time));
                        self.put_side(&record, &side);
                    }
                    bytes
                }
            },
        };
        let noted = SystemTime::UNIX_EPOCH + Duration::from_secs(side.last_used);
        let made = SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(time).unwrap_or(0));
        (bytes, if side.last_used == 0 { made } else { noted })
    }

    /// Notes that a directory of another part was used.
    pub(crate) fn side_used(&self, name: &SideName) {
        let record = side_key(name);
        let mut side = self.side_record(&record);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if now.saturating_sub(Duration::from_secs(side.last_used)) >= SIDE_USE_STEP {
            side.last_used = now.as_secs();
            self.put_side(&record, &side);
        }
    }

    /// Forgets what is kept of a directory that was removed.
    pub(crate) fn forget_side(&self, name: &SideName) {
        locked(&self.side_sizes).remove(name);
        self.change(SIDES, &side_key(name), None);
    }

    fn side_record(&self, key: &[u8]) -> Side {
        self.get(SIDES, key).and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    fn put_side(&self, key: &[u8], side: &Side) {
        if let Ok(bytes) = serde_json::to_vec(side) {
            self.note(SIDES, key, bytes);
        }
    }

    /// The size that was measured when `time` was the folder's.
    fn known_size(&self, id: SnapshotId, time: u128) -> Option<u64> {
        let (bytes, at): (u64, u128) =
            serde_json::from_slice(&self.get(SIZES, id.to_string().as_bytes())?).ok()?;
        (at == time).then_some(bytes)
    }

    fn remember_size(&self, id: SnapshotId, time: u128, bytes: u64) {
        if let Ok(value) = serde_json::to_vec(&(bytes, time)) {
            self.note(SIZES, id.to_string().as_bytes(), value);
        }
    }
}

fn side_key(name: &SideName) -> Vec<u8> {
    format!("{}/{}", name.0, name.1).into_bytes()
}

/// Nanoseconds since 1970; 0 of what is not there.
fn modified(path: &Path) -> u128 {
    let time = path.symlink_metadata().and_then(|meta| meta.modified());
    time.ok().and_then(|t| t.duration_since(SystemTime::UNIX_EPOCH).ok()).map_or(0, |d| d.as_nanos())
}

fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))?;
    // What cannot be read any more went meanwhile.
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

/// Bytes on the disk of a file or a tree: allocated blocks, each file once.
///
/// What cannot be read counts as nothing: it goes away, or is not ours.
pub fn measure(path: &Path) -> u64 {
    let mut walk = Walk::default();
    walk.add(path);
    walk.bytes
}

/// Device and number of a file.
type Inode = (u64, u64);

/// A file with several names.
struct Link {
    bytes: u64,
    /// Names that were met.
    names: u64,
    /// Names that it has.
    all_names: u64,
}

/// A sum over files; those with several names count once.
#[derive(Default)]
struct Walk {
    bytes: u64,
    links: HashMap<Inode, Link>,
}

impl Walk {
    fn count(&mut self, stat: &Stat) {
        let is_dir = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir();
        let bytes = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        if !is_dir && stat.st_nlink > 1 {
            let new = || Link { bytes, names: 0, all_names: stat.st_nlink };
            let link = self.links.entry((stat.st_dev, stat.st_ino)).or_insert_with(new);
            link.names += 1;
            if link.names > 1 {
                return;
            }
        }
        self.bytes += bytes;
    }

    /// The file or directory itself.
    fn add_one(&mut self, path: &Path) {
        if let Ok(stat) = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
            self.count(&stat);
        }
    }

    /// The file or directory and all below.
    fn add(&mut self, path: &Path) {
        self.add_one(path);
        // By descriptors: what steps made may have longer paths than the kernel takes.
        if let Ok(dir) = openat(CWD, path, directory(), Mode::empty()) {
            self.below(dir);
        }
    }

    fn below(&mut self, dir: rustix::fd::OwnedFd) {
        let Ok(entries) = Dir::read_from(&dir) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let Ok(stat) = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            self.count(&stat);
            if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir()
                && let Ok(inner) = openat(&dir, name, directory(), Mode::empty())
            {
                self.below(inner);
            }
        }
    }
}

fn directory() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}
