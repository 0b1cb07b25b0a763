mod id;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use lapstrake_oci::{Descriptor, Digest};
use serde::{Deserialize, Serialize};

use crate::flush::locked;
use crate::index::check_size;
use crate::paths::{Paths, discard, remove_all};
use crate::pins::Pins;
use crate::{Error, LayerFacts, Result, Store, Table, limits};

pub use id::SnapshotId;

/// A record that is kept with its snapshot, so that a lost index gets it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where it belongs.
    pub table: Table,
    /// Its key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
}

/// What goes with a commit.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    /// What is known of it as a layer. Where a snapshot of the same chain id is there already, that one
    /// is the answer and the new one is dropped.
    pub layer: Option<LayerFacts>,
    /// Records to put, kept with the snapshot as well.
    pub records: Vec<Record>,
}

/// A committed snapshot as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its name.
    pub id: SnapshotId,
    /// What it lies on.
    pub parent: Option<SnapshotId>,
    /// What is known of it as a layer.
    pub layer: Option<LayerFacts>,
}

/// A snapshot that may be written. Dropped without a commit, its folder goes.
#[derive(Debug)]
pub struct Active {
    store: Store,
    id: SnapshotId,
    parent: Option<SnapshotId>,
    lowers: Vec<PathBuf>,
    done: bool,
}

impl Active {
    /// The name that it will have once committed; a record's value may hold it.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// What it lies on.
    pub fn parent(&self) -> Option<SnapshotId> {
        self.parent
    }

    /// The layer's own files ("upperdir").
    pub fn upper(&self) -> PathBuf {
        self.store.shared.paths.fs(self.id)
    }

    /// The overlay's scratch directory ("workdir").
    pub fn work(&self) -> PathBuf {
        self.store.shared.paths.snapshot(self.id).join("work")
    }

    /// The layers below, nearest first; empty where there is no parent.
    pub fn lowers_top_first(&self) -> Vec<PathBuf> {
        self.lowers.clone()
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let mut state = self.store.shared.state();
        if let Some(entry) = self.parent.and_then(|p| state.snapshots.map.get_mut(&p)) {
            entry.users -= 1;
        }
        drop(state);
        if !self.done {
            let paths = &self.store.shared.paths;
            discard(paths, &paths.snapshot(self.id)).ok(); // the next open removes what stays
        }
    }
}

/// The committed snapshots.
#[derive(Default)]
pub(crate) struct Snapshots {
    map: HashMap<SnapshotId, Entry>,
    by_chain: HashMap<Digest, SnapshotId>,
}

struct Entry {
    parent: Option<SnapshotId>,
    layer: Option<LayerFacts>,
    /// Snapshots and active ones on top of it.
    users: usize,
    /// Committed ones among them.
    children: usize,
    /// Mark of the last use (see `pins.rs`); 0: none in this process.
    touched: u64,
    last_used: SystemTime,
    /// Bytes of its files on the disk, once measured.
    fs_bytes: Option<u64>,
}

/// A snapshot as its use and size are reckoned.
pub(crate) struct Account {
    pub(crate) id: SnapshotId,
    pub(crate) parent: Option<SnapshotId>,
    pub(crate) diff_id: Option<Digest>,
    /// Something is being made on it.
    pub(crate) in_use: bool,
    pub(crate) children: usize,
    pub(crate) touched: u64,
    pub(crate) last_used: SystemTime,
    pub(crate) fs_bytes: Option<u64>,
}

impl Snapshots {
    /// `id` and all below it; `None` where one is missing.
    fn chain(&self, id: SnapshotId) -> Option<Vec<SnapshotId>> {
        let mut chain = vec![id];
        let mut at = self.map.get(&id)?;
        while let Some(parent) = at.parent {
            chain.push(parent);
            at = self.map.get(&parent)?;
            if chain.len() > limits::CHAIN_MAX {
                return None;
            }
        }
        Some(chain)
    }

    /// Notes a use; `None` where it is not there, else whether it is the first with this mark.
    pub(crate) fn touch(&mut self, id: SnapshotId, mark: u64) -> Option<bool> {
        let entry = self.map.get_mut(&id)?;
        let first = entry.touched != mark;
        if first {
            entry.touched = mark;
            entry.last_used = SystemTime::now();
        }
        Some(first)
    }

    /// Forgets a snapshot unless something needs it; whether it is free to be removed.
    pub(crate) fn take_free(&mut self, id: SnapshotId, pins: &Pins) -> bool {
        let free = self.map.get(&id).is_some_and(|e| e.users == 0 && !pins.holds(e.touched));
        if free {
            self.remove(id);
        }
        free
    }

    fn remove(&mut self, id: SnapshotId) {
        let Some(entry) = self.map.remove(&id) else { return };
        if let Some(parent) = entry.parent.and_then(|p| self.map.get_mut(&p)) {
            parent.users -= 1;
            parent.children -= 1;
        }
        if let Some(chain) = entry.layer.map(|layer| layer.chain_id)
            && self.by_chain.get(&chain) == Some(&id)
        {
            self.by_chain.remove(&chain);
        }
    }

    /// Says what a snapshot is as a layer, in place of what was said before: then it is not that any more.
    fn name(&mut self, id: SnapshotId, layer: LayerFacts) {
        let Some(entry) = self.map.get_mut(&id) else { return };
        let chain = layer.chain_id;
        let before = entry.layer.replace(layer).map(|layer| layer.chain_id).filter(|before| *before != chain);
        if let Some(before) = before.filter(|before| self.by_chain.get(before) == Some(&id)) {
            self.by_chain.remove(&before);
        }
        self.by_chain.entry(chain).or_insert(id);
    }

    pub(crate) fn all(&self) -> Vec<Account> {
        let account = |(id, e): (&SnapshotId, &Entry)| Account {
            id: *id,
            parent: e.parent,
            diff_id: e.layer.as_ref().map(|layer| layer.diff_id),
            in_use: e.users > e.children,
            children: e.children,
            touched: e.touched,
            last_used: e.last_used,
            fs_bytes: e.fs_bytes,
        };
        self.map.iter().map(account).collect()
    }

    /// Those whose size is not known.
    pub(crate) fn unmeasured(&self) -> Vec<SnapshotId> {
        self.map.iter().filter(|(_, e)| e.fs_bytes.is_none()).map(|(id, _)| *id).collect()
    }

    pub(crate) fn set_fs_bytes(&mut self, id: SnapshotId, bytes: u64) {
        if let Some(entry) = self.map.get_mut(&id) {
            entry.fs_bytes = Some(bytes);
        }
    }

    pub(crate) fn forget_fs_bytes(&mut self, id: SnapshotId) {
        if let Some(entry) = self.map.get_mut(&id) {
            entry.fs_bytes = None;
        }
    }

    fn insert(
        &mut self,
        id: SnapshotId,
        parent: Option<SnapshotId>,
        layer: Option<LayerFacts>,
        touched: u64,
        last_used: SystemTime,
    ) {
        if let Some(layer) = &layer {
            self.by_chain.entry(layer.chain_id).or_insert(id);
        }
        if let Some(entry) = parent.and_then(|p| self.map.get_mut(&p)) {
            entry.users += 1;
            entry.children += 1;
        }
        let entry = Entry { parent, layer, users: 0, children: 0, touched, last_used, fs_bytes: None };
        self.map.insert(id, entry);
    }
}

/// The `meta` file.
#[derive(Serialize, Deserialize)]
struct Meta {
    parent: Option<SnapshotId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    layer: Option<LayerFacts>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    records: Vec<(String, Vec<u8>, Vec<u8>)>,
}

impl Store {
    /// Starts a snapshot on `parent`, or on nothing. Its root directory looks like the parent's, since
    /// the topmost layer's is the one that is seen.
    ///
    /// # Errors
    /// [`Error::SnapshotMissing`], [`Error::NoSpace`], I/O.
    pub fn prepare(&self, parent: Option<SnapshotId>) -> Result<Active> {
        let paths = &self.shared.paths;
        let lowers = match parent {
            None => Vec::new(),
            Some(id) => {
                self.shared.touch_snapshot(id);
                let mut state = self.shared.state();
                let chain = state.snapshots.chain(id).ok_or(Error::SnapshotMissing(id))?;
                if let Some(entry) = state.snapshots.map.get_mut(&id) {
                    entry.users += 1;
                }
                chain.into_iter().map(|id| paths.fs(id)).collect()
            }
        };
        let id = SnapshotId::random()?;
        // From here on a failure cleans up by the drop.
        let active = Active { store: self.clone(), id, parent, lowers, done: false };
        let dir = paths.snapshot(id);
        for dir in [&dir, &active.upper(), &active.work()] {
            std::fs::create_dir(dir).map_err(|e| Error::io("make", dir, e))?;
        }
        match active.lowers.first() {
            Some(below) => copy_attributes(below, &active.upper())?,
            None => set_mode(&active.upper(), 0o755)?,
        }
        Ok(active)
    }

    /// Makes a snapshot immutable and gives it its name. The caller has unmounted it. It survives a kill
    /// once flushed (see [`Store::flush`]).
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::RecordTooLarge`], I/O; the snapshot is gone then.
    pub fn commit(&self, mut active: Active, options: CommitOptions) -> Result<SnapshotId> {
        for record in &options.records {
            check_size(record.table, &record.key, &record.value)?;
        }
        let dir = self.shared.paths.snapshot(active.id);
        remove_all(&active.work())?;
        let meta = Meta {
            parent: active.parent,
            layer: options.layer.clone(),
            records: options
                .records
                .iter()
                .map(|r| (r.table.name().to_owned(), r.key.clone(), r.value.clone()))
                .collect(),
        };
        write_json(&dir.join("meta.new"), &meta)?;
        let mut state = self.shared.state();
        let chain = options.layer.as_ref().map(|l| l.chain_id);
        if let Some(there) = chain.and_then(|c| state.snapshots.by_chain.get(&c).copied()) {
            drop(state); // `active` takes the lock when it goes
            self.shared.touch_snapshot(there);
            return Ok(there);
        }
        active.done = true;
        let now = self.shared.pins.now();
        state.snapshots.insert(active.id, active.parent, options.layer, now, SystemTime::now());
        drop(state);
        self.shared.rename_when_synced(dir.join("meta.new"), dir.join("meta"));
        for record in options.records {
            self.shared.change(record.table, &record.key, Some(record.value));
        }
        Ok(active.id)
    }

    /// The snapshot of an image chain, unpacked by `job` if it is not there. Whoever else asks for the
    /// same chain at the same time waits and gets the same answer; when `job` fails, the next one tries.
    ///
    /// # Errors
    /// Those of `job` and of [`Store::prepare`] and [`Store::commit`].
    pub fn unpack_once<E: From<Error>>(
        &self,
        chain: Digest,
        parent: Option<SnapshotId>,
        job: impl FnOnce(&Active) -> Result<LayerFacts, E>,
    ) -> Result<SnapshotId, E> {
        let turn = self.shared.chain_turn(chain);
        let _mine = locked(&turn);
        if let Some(id) = self.snapshot_of_chain(&chain) {
            return Ok(id);
        }
        let active = self.prepare(parent)?;
        let layer = job(&active)?;
        Ok(self.commit(active, CommitOptions { layer: Some(layer), records: Vec::new() })?)
    }

    /// Whether the snapshot is there.
    pub fn has_snapshot(&self, id: SnapshotId) -> bool {
        self.shared.touch_snapshot(id)
    }

    /// What the store knows of a snapshot.
    pub fn snapshot(&self, id: SnapshotId) -> Option<SnapshotInfo> {
        let state = self.shared.state();
        let entry = state.snapshots.map.get(&id)?;
        Some(SnapshotInfo { id, parent: entry.parent, layer: entry.layer.clone() })
    }

    /// The snapshot that holds an image chain.
    pub fn snapshot_of_chain(&self, chain: &Digest) -> Option<SnapshotId> {
        let id = self.shared.state().snapshots.by_chain.get(chain).copied()?;
        // It may have gone in between.
        self.shared.touch_snapshot(id).then_some(id)
    }

    /// The directories of a snapshot and all below it, topmost first, as overlay wants its lowers.
    ///
    /// # Errors
    /// [`Error::SnapshotMissing`].
    pub fn lowers_top_first(&self, id: SnapshotId) -> Result<Vec<PathBuf>> {
        self.shared.touch_snapshot(id);
        let chain = self.shared.state().snapshots.chain(id).ok_or(Error::SnapshotMissing(id))?;
        Ok(chain.into_iter().map(|id| self.shared.paths.fs(id)).collect())
    }

    /// The snapshot and all below it, lowest first: the layers of an image.
    ///
    /// # Errors
    /// [`Error::SnapshotMissing`].
    pub fn chain_bottom_first(&self, id: SnapshotId) -> Result<Vec<SnapshotInfo>> {
        self.shared.touch_snapshot(id);
        let chain = self.shared.state().snapshots.chain(id).ok_or(Error::SnapshotMissing(id))?;
        chain.into_iter().rev().map(|id| self.snapshot(id).ok_or(Error::SnapshotMissing(id))).collect()
    }

    /// What a snapshot is on.
    ///
    /// # Errors
    /// [`Error::SnapshotMissing`].
    pub fn parent(&self, id: SnapshotId) -> Result<Option<SnapshotId>> {
        self.snapshot(id).map(|info| info.parent).ok_or(Error::SnapshotMissing(id))
    }

    /// The snapshot's own files.
    pub fn snapshot_dir(&self, id: SnapshotId) -> PathBuf {
        self.shared.paths.fs(id)
    }

    /// Tells what was learnt of a snapshot as a layer; replaces what was known.
    ///
    /// # Errors
    /// [`Error::SnapshotMissing`], I/O.
    pub fn set_layer(&self, id: SnapshotId, layer: LayerFacts) -> Result<()> {
        if !self.has_snapshot(id) {
            return Err(Error::SnapshotMissing(id));
        }
        let dir = self.shared.paths.snapshot(id);
        write_json(&dir.join("layer.new"), &layer)?;
        self.shared.rename_when_synced(dir.join("layer.new"), dir.join("layer"));
        let mut state = self.shared.state();
        state.snapshots.name(id, layer);
        Ok(())
    }

    /// Adds a blob to the facts of a snapshot that has them; one that is known is not added twice.
    ///
    /// # Errors
    /// [`Error::SnapshotMissing`] also where no facts are known yet; I/O.
    pub fn add_layer_blob(&self, id: SnapshotId, blob: Descriptor) -> Result<()> {
        let mut layer = self.snapshot(id).and_then(|s| s.layer).ok_or(Error::SnapshotMissing(id))?;
        if layer.blobs.contains(&blob) {
            return Ok(());
        }
        layer.blobs.push(blob);
        self.set_layer(id, layer)
    }

    /// All committed snapshots, by id.
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        let state = self.shared.state();
        let mut all: Vec<_> = state
            .snapshots
            .map
            .iter()
            .map(|(id, e)| SnapshotInfo { id: *id, parent: e.parent, layer: e.layer.clone() })
            .collect();
        all.sort_unstable_by_key(|s| s.id);
        all
    }

    /// Removes a snapshot that nothing lies on. Records that name it stay and read as a miss.
    ///
    /// # Errors
    /// [`Error::SnapshotInUse`], [`Error::SnapshotMissing`], I/O.
    pub fn remove_snapshot(&self, id: SnapshotId) -> Result<()> {
        let mut state = self.shared.state();
        match state.snapshots.map.get(&id) {
            None => return Err(Error::SnapshotMissing(id)),
            Some(entry) if entry.users > 0 => return Err(Error::SnapshotInUse(id)),
            Some(_) => state.snapshots.remove(id),
        }
        drop(state);
        discard(&self.shared.paths, &self.shared.paths.snapshot(id))
    }
}

/// What an opening finds in the folders.
pub(crate) struct Loaded {
    pub(crate) snapshots: Snapshots,
    pub(crate) records: Vec<Record>,
    pub(crate) removed: u64,
}

/// Reads all `meta` files; folders without one, or on a missing parent, are removed.
pub(crate) fn load_snapshots(paths: &Paths) -> Result<Loaded> {
    let mut metas = HashMap::new();
    let mut removed = 0;
    let dir = paths.snapshots();
    for entry in std::fs::read_dir(&dir).map_err(|e| Error::io("list", &dir, e))? {
        let path = entry.map_err(|e| Error::io("list", &dir, e))?.path();
        let id = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse::<SnapshotId>().ok());
        match (id, read_json::<Meta>(&path.join("meta"))) {
            (Some(id), Some(meta)) => drop(metas.insert(id, meta)),
            _ => {
                discard(paths, &path)?;
                removed += 1;
            }
        }
    }
    // Parents first, so that what lies on a missing one (or on itself, by damage) is never inserted.
    let mut loaded = Loaded { snapshots: Snapshots::default(), records: Vec::new(), removed };
    let mut above: HashMap<Option<SnapshotId>, Vec<SnapshotId>> = HashMap::new();
    for (id, meta) in &metas {
        above.entry(meta.parent).or_default().push(*id);
    }
    let mut ready = above.remove(&None).unwrap_or_default();
    while let Some(id) = ready.pop() {
        ready.extend(above.remove(&Some(id)).unwrap_or_default());
        let Some(meta) = metas.remove(&id) else { continue };
        let dir = paths.snapshot(id);
        let last_used = dir.symlink_metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        for rest in ["meta.new", "layer.new", "work"] {
            remove_all(&dir.join(rest))?;
        }
        let layer = read_json(&dir.join("layer")).or(meta.layer);
        loaded.snapshots.insert(id, meta.parent, layer, 0, last_used);
        loaded.records.extend(meta.records.into_iter().map(|(t, key, value)| Record {
            table: table_of(t),
            key,
            value,
        }));
    }
    for id in metas.into_keys() {
        discard(paths, &paths.snapshot(id))?;
        loaded.removed += 1;
    }
    Ok(loaded)
}

/// The table of a name that was read. Few names exist, so a leaked one is no leak to speak of.
pub(crate) fn table_of(name: String) -> Table {
    static NAMES: std::sync::Mutex<Vec<&'static str>> = std::sync::Mutex::new(Vec::new());
    let mut names = locked(&NAMES);
    let name = names.iter().copied().find(|n| *n == name).unwrap_or_else(|| {
        let leaked: &'static str = Box::leak(name.into_boxed_str());
        names.push(leaked);
        leaked
    });
    Table::named(name)
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let bytes = serde_json::to_vec(value).map_err(|e| Error::io("encode", path, e.into()))?;
    std::fs::write(path, bytes).map_err(|e| {
        std::fs::remove_file(path).ok(); // the first error is the one to tell
        Error::io("write", path, e)
    })
}

/// A small JSON file; `None` where it is not there or damaged.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    let file = File::open(path).ok()?;
    serde_json::from_reader(io::BufReader::new(file.take(limits::META_BYTES_MAX))).ok()
}

pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(|e| Error::io("set the mode of", path, e))
}

/// Gives the directory `to` the owner, mode, extended attributes and times of `from`.
fn copy_attributes(from: &Path, to: &Path) -> Result<()> {
    use rustix::fs::{Timespec, Timestamps, XattrFlags};
    use std::os::unix::fs::MetadataExt as _;
    let fail = |action| move |e: rustix::io::Errno| Error::io(action, to, e.into());
    let meta = std::fs::symlink_metadata(from).map_err(|e| Error::io("look at", from, e))?;
    let mine = std::fs::symlink_metadata(to).map_err(|e| Error::io("look at", to, e))?;
    if (meta.uid(), meta.gid()) != (mine.uid(), mine.gid()) {
        std::os::unix::fs::chown(to, Some(meta.uid()), Some(meta.gid()))
            .map_err(|e| Error::io("set the owner of", to, e))?;
    }
    set_mode(to, meta.mode() & 0o7777)?;
    let dir = File::open(from).map_err(|e| Error::io("open", from, e))?;
    let mut names = vec![0; 64 << 10];
    // A file system without extended attributes has none to copy.
    let len = rustix::fs::flistxattr(&dir, &mut names[..]).unwrap_or(0);
    for name in names[..len].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
            continue;
        }
        let mut value = vec![0; 64 << 10];
        if let Ok(len) = rustix::fs::fgetxattr(&dir, name, &mut value[..]) {
            // Labels that we may not set are the system's to set.
            rustix::fs::setxattr(to, name, &value[..len], XattrFlags::empty()).ok();
        }
    }
    let at = |s, ns| Timespec { tv_sec: s, tv_nsec: ns };
    let times = Timestamps {
        last_access: at(meta.atime(), meta.atime_nsec() as _),
        last_modification: at(meta.mtime(), meta.mtime_nsec() as _),
    };
    rustix::fs::utimensat(rustix::fs::CWD, to, &times, rustix::fs::AtFlags::empty())
        .map_err(fail("set the times of"))
}
