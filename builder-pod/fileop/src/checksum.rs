//! The content digest of what a copy would take.
//!
//! [`checksum`] lists the entries that a [`Selector`] picks, has the contents of the files hashed (in
//! parallel, and only those that a [`HashCache`] does not know), and hashes the list.
//! An entry counts with its name relative to the selected path, its type, mode, owner (0 in a context), size,
//! link target, device number, extended attributes and data; never with its times, inode or link count.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lapstrake_oci::{Digest, Hasher};
use rustix::fs::{FileType, OFlags, Stat};

use crate::action::{Cancel, CopyAction};
use crate::at::{self, Context};
use crate::error::Error;
use crate::limits::{DEPTH_MAX, HASH_THREADS_MAX};
use crate::path;
use crate::pattern::{MatchState, Patterns};
use crate::view::View;

/// What of a tree counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    /// A path below the root, with wildcards if `wildcard` says so; empty is the root.
    pub path: String,
    /// `path` may hold wildcards.
    pub wildcard: bool,
    /// A selected symlink stands for what it points to.
    pub follow_links: bool,
    /// A selected directory's own mode and owner do not count, since only its contents are copied.
    pub contents_only: bool,
    /// Only what matches, relative to the selected path; empty means all.
    pub include_patterns: Vec<String>,
    /// Not what matches, relative to the selected path.
    pub exclude_patterns: Vec<String>,
    /// Paths below the root that must be among what is selected.
    pub required_paths: Vec<String>,
}

impl Selector {
    /// What `action` takes from its source.
    pub fn of(action: &CopyAction) -> Self {
        Self {
            path: action.src.clone(),
            wildcard: action.allow_wildcard,
            follow_links: action.follow_symlink,
            contents_only: action.dir_copy_contents,
            include_patterns: action.include_patterns.clone(),
            exclude_patterns: action.exclude_patterns.clone(),
            required_paths: action.required_paths.clone(),
        }
    }
}

/// What tells one state of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileStat {
    /// Device of the file system.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Time of the last write, in nanoseconds since 1970.
    pub modified_ns: i128,
    /// Time of the last change of the inode, in nanoseconds since 1970.
    pub changed_ns: i128,
}

/// Remembers the digests of file contents.
pub trait HashCache: Sync {
    /// The digest of the content of the file at `path` (relative to the root), if it was stored for the same `stat`.
    fn lookup(&self, path: &[u8], stat: &FileStat) -> Option<Digest>;
    /// Remembers a digest. Called from several threads at once, never for a file that changed just now.
    fn store(&self, path: &[u8], stat: &FileStat, digest: &Digest);
}

/// How a checksum is made.
#[derive(Clone, Copy)]
pub struct ChecksumOptions<'a> {
    /// Digests of files that were hashed before.
    pub cache: Option<&'a dyn HashCache>,
    /// How many files are hashed at once.
    pub threads: usize,
    /// A file that changed less than this before it was hashed is not remembered: it could change again within
    /// the resolution of its time stamps.
    pub settle: Duration,
}

impl Default for ChecksumOptions<'_> {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { cache: None, threads: threads.min(HASH_THREADS_MAX), settle: Duration::from_secs(2) }
    }
}

/// The digest of what `selector` picks from `view`.
///
/// A wildcard that matches nothing has a digest too: that of nothing.
///
/// # Errors
/// [`Error::NotFound`] when a literal or required path is missing; else what reading may meet.
pub fn checksum(
    view: &View<'_>,
    selector: &Selector,
    options: &ChecksumOptions<'_>,
    cancel: &Cancel,
) -> Result<Digest, Error> {
    let mut listing = Listing::new(view, selector, cancel)?;
    let clean = path::clean(selector.path.as_bytes());
    // The name of a literal source is part of the operation, not of its content.
    let wild = selector.wildcard && path::has_wildcard(&clean);
    let matched = if selector.wildcard { view.glob(&clean, selector.follow_links)? } else { vec![clean] };
    for spelled in &matched {
        let followed = view.resolve(spelled, selector.follow_links)?;
        let stat = view.stat(&followed)?.ok_or_else(|| Error::NotFound(path::show(spelled)))?;
        let name = match path::split(spelled) {
            Some((_, name)) if wild => name,
            _ => b"",
        };
        listing.top(&followed, spelled, name, &stat)?;
    }
    if let Some(path) = listing.missing.first() {
        return Err(Error::NotFound(path::show(path)));
    }
    let mut entries = listing.entries;
    hash_files(view, &mut entries, options, cancel)?;
    let mut hasher = Hasher::new();
    hasher.update(b"lapstrake tree 1\n");
    for entry in &entries {
        field(&mut hasher, &entry.name);
        hasher.update(entry.header.as_bytes());
        if let Some(file) = &entry.file {
            hasher.update(file.data.unwrap_or_else(|| Digest::of(b"")).as_bytes());
        }
    }
    Ok(hasher.finish())
}

/// One entry of the list that is hashed.
struct Entry {
    name: Vec<u8>,
    header: Digest,
    file: Option<FileEntry>,
}

struct FileEntry {
    path: Vec<u8>,
    stat: FileStat,
    data: Option<Digest>,
}

/// A directory that is listed once something in it is.
struct Pending {
    name: Vec<u8>,
    header: Option<Digest>,
}

/// Where the listing is; see the copy action's counterpart.
struct Here<'a> {
    dir: BorrowedFd<'a>,
    name: &'a [u8],
    path: &'a [u8],
    inside: &'a [u8],
    spelled: &'a [u8],
    shown: &'a [u8],
    stat: &'a Stat,
}

#[derive(Default)]
struct States {
    include: MatchState,
    exclude: MatchState,
}

struct Listing<'a> {
    view: &'a View<'a>,
    cancel: &'a Cancel,
    contents_only: bool,
    include: Option<Patterns>,
    exclude: Option<Patterns>,
    missing: Vec<Vec<u8>>,
    pending: Vec<Pending>,
    entries: Vec<Entry>,
}

impl<'a> Listing<'a> {
    fn new(view: &'a View<'a>, selector: &Selector, cancel: &'a Cancel) -> Result<Self, Error> {
        let patterns = |list: &[String]| match list {
            [] => Ok(None),
            list => Patterns::new(list).map(Some),
        };
        Ok(Self {
            view,
            cancel,
            contents_only: selector.contents_only,
            include: patterns(&selector.include_patterns)?,
            exclude: patterns(&selector.exclude_patterns)?,
            missing: selector.required_paths.iter().map(|path| path::clean(path.as_bytes())).collect(),
            pending: Vec::new(),
            entries: Vec::new(),
        })
    }

    fn top(&mut self, path: &[u8], spelled: &[u8], shown: &[u8], stat: &Stat) -> Result<(), Error> {
        let (parent, name) = path::split(path).unwrap_or((b"", b""));
        let dir = self.view.open_dir(parent)?;
        let here = Here { dir: dir.as_fd(), name, path, inside: b"", spelled, shown, stat };
        if !at::is_dir(stat) {
            return self.leaf(&here);
        }
        // A directory's contents keep their place below nothing, whatever the directory's name is.
        let shown = if self.contents_only { b"" } else { shown };
        self.directory(&Here { shown, ..here }, true, true, &States::default())
    }

    fn entry(&mut self, here: &Here<'_>, parent: &States) -> Result<(), Error> {
        self.cancel.check()?;
        let text = String::from_utf8_lossy(here.inside);
        let (mut include, mut states) = (true, States::default());
        if let Some(patterns) = &self.include {
            (include, states.include) = patterns.matches_below(&text, &parent.include);
        }
        if let Some(patterns) = &self.exclude {
            let (excluded, state) = patterns.matches_below(&text, &parent.exclude);
            states.exclude = state;
            include &= !excluded;
            if excluded && !patterns.has_negations() {
                return Ok(());
            }
        }
        match (at::is_dir(here.stat), include) {
            (true, _) => self.directory(here, include, false, &states),
            (false, true) => self.leaf(here),
            (false, false) => Ok(()),
        }
    }

    fn directory(&mut self, here: &Here<'_>, include: bool, top: bool, states: &States) -> Result<(), Error> {
        if self.pending.len() > DEPTH_MAX {
            return Err(Error::TooDeep(path::show(here.path)));
        }
        let header = if top && self.contents_only {
            // That there is a directory at all counts: its place is made even if nothing is in it.
            Some(Digest::of(b"contents"))
        } else {
            Some(self.header(here.dir, here.name, here.path, here.stat, None)?)
        };
        self.pending.push(Pending { name: here.shown.to_vec(), header });
        if include {
            self.found(here.spelled);
            self.flush();
        }
        let fd = at::open_dir(here.dir, here.name).on("open", here.path)?;
        for child in self.view.children(fd.as_fd(), here.path)? {
            let below = Here {
                dir: fd.as_fd(),
                name: &child.name,
                path: &path::join(here.path, &child.name),
                inside: &path::join(here.inside, &child.name),
                spelled: &path::join(here.spelled, &child.name),
                shown: &path::join(here.shown, &child.name),
                stat: &child.stat,
            };
            self.entry(&below, states)?;
        }
        self.pending.pop();
        Ok(())
    }

    /// Lists the directories that the walk is in, as far as they are not.
    fn flush(&mut self) {
        for pending in &mut self.pending {
            if let Some(header) = pending.header.take() {
                self.entries.push(Entry { name: pending.name.clone(), header, file: None });
            }
        }
    }

    fn leaf(&mut self, here: &Here<'_>) -> Result<(), Error> {
        self.found(here.spelled);
        self.flush();
        let kind = at::kind(here.stat);
        let target = match kind {
            FileType::Symlink => Some(at::read_link(here.dir, here.name).on("read link", here.path)?),
            _ => None,
        };
        let header = self.header(here.dir, here.name, here.path, here.stat, target.as_deref())?;
        let file = (kind == FileType::RegularFile).then(|| FileEntry {
            path: here.path.to_vec(),
            stat: file_stat(here.stat),
            data: None,
        });
        self.entries.push(Entry { name: here.shown.to_vec(), header, file });
        Ok(())
    }

    fn header(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        stat: &Stat,
        target: Option<&[u8]>,
    ) -> Result<Digest, Error> {
        let kind = at::kind(stat);
        let (uid, gid) = self.view.owner(stat);
        let device = match kind {
            FileType::BlockDevice | FileType::CharacterDevice => stat.st_rdev,
            _ => 0,
        };
        let size = if kind == FileType::RegularFile { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 };
        // The mode of a symlink says nothing.
        let mode = if kind == FileType::Symlink { stat.st_mode | 0o777 } else { stat.st_mode };
        let mut hasher = Hasher::new();
        for number in [u64::from(mode), uid.into(), gid.into(), size, device] {
            hasher.update(&number.to_be_bytes());
        }
        field(&mut hasher, target.unwrap_or_default());
        for (key, value) in at::xattrs(dir, name).on("read attributes of", path)? {
            field(&mut hasher, &key);
            field(&mut hasher, &value);
        }
        Ok(hasher.finish())
    }

    fn found(&mut self, path: &[u8]) {
        self.missing.retain(|required| !path::is_at_or_below(path, required));
    }
}

/// Length first, so that no two lists of fields look alike.
fn field(hasher: &mut Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_be_bytes());
    hasher.update(bytes);
}

/// Fills in the digests of all file contents.
fn hash_files(
    view: &View<'_>,
    entries: &mut [Entry],
    options: &ChecksumOptions<'_>,
    cancel: &Cancel,
) -> Result<(), Error> {
    let mut todo: Vec<&mut FileEntry> = Vec::new();
    for file in entries.iter_mut().filter_map(|entry| entry.file.as_mut()) {
        if file.stat.size_bytes == 0 {
            continue;
        }
        file.data = options.cache.and_then(|cache| cache.lookup(&file.path, &file.stat));
        if file.data.is_none() {
            todo.push(file);
        }
    }
    // A thread costs more than a few small files.
    let bytes: u64 = todo.iter().map(|file| file.stat.size_bytes).sum();
    let worth = todo.len().min(1 + usize::try_from(bytes >> 18).unwrap_or(usize::MAX));
    let threads = options.threads.clamp(1, HASH_THREADS_MAX).min(worth);
    if threads <= 1 {
        return todo.into_iter().try_for_each(|file| hash_one(view, file, options, cancel));
    }
    let root = view.root();
    let next = AtomicUsize::new(0);
    let slots: Vec<Mutex<&mut FileEntry>> = todo.into_iter().map(Mutex::new).collect();
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let view = View::snapshot(root);
                while let Some(slot) = slots.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let mut file = slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    if let Err(error) = hash_one(&view, &mut file, options, cancel) {
                        failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
                        next.store(slots.len(), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    match failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn hash_one(
    view: &View<'_>,
    file: &mut FileEntry,
    options: &ChecksumOptions<'_>,
    cancel: &Cancel,
) -> Result<(), Error> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let fd = at::beneath(view.root(), &file.path, flags).on("open", &file.path)?;
    let mut hasher = Hasher::new();
    let mut buf = vec![0; 256 << 10];
    loop {
        cancel.check()?;
        match rustix::io::read(&fd, &mut buf[..]) {
            Ok(0) => break,
            Ok(got) => hasher.update(&buf[..got]),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno).on("read", &file.path),
        }
    }
    let digest = hasher.finish();
    file.data = Some(digest);
    if let Some(cache) = options.cache
        && settled(&file.stat, options.settle)
        // Not what changed while it was read.
        && rustix::fs::fstat(&fd).is_ok_and(|now| file_stat(&now) == file.stat)
    {
        cache.store(&file.path, &file.stat, &digest);
    }
    Ok(())
}

fn file_stat(stat: &Stat) -> FileStat {
    FileStat {
        dev: stat.st_dev,
        ino: stat.st_ino,
        size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
        modified_ns: at::modified_ns(stat),
        changed_ns: at::changed_ns(stat),
    }
}

fn settled(stat: &FileStat, settle: Duration) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let now = i128::try_from(now).unwrap_or(i128::MAX);
    let settle = i128::try_from(settle.as_nanos()).unwrap_or(i128::MAX);
    stat.changed_ns.saturating_add(settle) <= now
}

#[cfg(test)]
#[path = "checksum_tests.rs"]
mod tests;
