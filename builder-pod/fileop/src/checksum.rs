//! The content digest of what a copy would take: BuildKit's own, byte for byte, so that cache records of
//! one are cache records of the other.
//!
//! [`checksum`] lists what a [`Selector`] picks, has the files hashed (in parallel, and only those that a
//! [`HashCache`] does not know), and puts the digests together. An entry's digest is over a header as
//! Docker's tarsum has it (mode, owner, size, type, link target, device, extended attributes; never times,
//! inode or link count) and the file's data. A directory that is taken whole is the digest over its own
//! header and its entries; what is picked by wildcards or patterns is a flat list of paths and digests.

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
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Selector {
    /// A path below the root, with wildcards if `wildcard` says so; empty is the root.
    pub path: String,
    /// `path` may hold wildcards.
    pub wildcard: bool,
    /// A selected symlink stands for what it points to.
    pub follow_links: bool,
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

/// Remembers the digests of files, header and data together: of one kind of [`View`] only, since contexts and
/// snapshots show owners differently.
pub trait HashCache: Sync {
    /// The digest of the file at `path` (relative to the root), if it was stored for the same `stat`.
    fn lookup(&self, path: &[u8], stat: &FileStat) -> Option<Digest>;
    /// [`lookup`](Self::lookup) of many.
    fn lookup_all(&self, files: &[(&[u8], FileStat)]) -> Vec<Option<Digest>> {
        files.iter().map(|(path, stat)| self.lookup(path, stat)).collect()
    }
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
    let wild = selector.wildcard && path::has_wildcard(&clean);
    if !wild && selector.include_patterns.is_empty() && selector.exclude_patterns.is_empty() {
        let followed = view.resolve(&clean, selector.follow_links)?;
        let stat = view.stat(&followed)?.ok_or_else(|| Error::NotFound(path::show(&clean)))?;
        let tree = listing.whole(&followed, &stat)?;
        listing.require(&clean, &tree);
        listing.all_found()?;
        hash_files(view, &mut listing.files, options, cancel)?;
        return Ok(tree.digest(&listing.files));
    }
    let matched = if wild { view.glob(&clean, selector.follow_links)? } else { vec![clean.clone()] };
    // What a wildcard matches is listed from where its fixed part leads.
    let fixed = match wild {
        true => view.resolve(&path::split_wildcard(&clean).0, selector.follow_links)?,
        false => clean.clone(),
    };
    for spelled in &matched {
        // A matched link is looked at as a link first: it may stand for its target as a whole.
        let place = view.resolve(spelled, false)?;
        let stat = view.stat(&place)?.ok_or_else(|| Error::NotFound(path::show(spelled)))?;
        let shown = if wild { shown_below(spelled, &fixed) } else { Vec::new() };
        listing.top(&place, spelled, shown, &stat, selector.follow_links)?;
    }
    listing.all_found()?;
    hash_files(view, &mut listing.files, options, cancel)?;
    let digests = listing.entries.iter().map(|entry| (entry, entry.node.digest(&listing.files)));
    let base = |path: &[u8]| path::split(path).map_or(Vec::new(), |(_, name)| name.to_vec());
    let mut list = Hasher::new();
    for (entry, digest) in digests {
        if listing.entries.len() == 1 && base(&entry.spelled) == base(&clean) {
            return Ok(digest);
        }
        list.update(&entry.shown);
        list.update(digest.to_string().as_bytes());
    }
    Ok(list.finish())
}

/// A path below `fixed` as it stands in a list: each component behind a zero byte, the top itself is one.
fn shown_below(spelled: &[u8], fixed: &[u8]) -> Vec<u8> {
    let rest = spelled.strip_prefix(fixed).unwrap_or(spelled);
    let rest = rest.strip_prefix(b"/").unwrap_or(rest);
    let mut shown = Vec::with_capacity(rest.len() + 1);
    if !rest.is_empty() {
        shown.push(0);
        shown.extend(rest.iter().map(|byte| if *byte == b'/' { 0 } else { *byte }));
    }
    shown
}

/// Something that has a digest, perhaps once its files are hashed.
#[derive(Clone)]
enum Node {
    /// Known already.
    Known(Digest),
    /// A file with data, by its number.
    File(usize),
    /// A directory as a whole: its header, and its entries by name.
    Dir(Digest, Vec<(Vec<u8>, Node)>),
}

impl Node {
    fn digest(&self, files: &[FileEntry]) -> Digest {
        match self {
            Self::Known(digest) => *digest,
            // All were hashed, or hashing failed.
            Self::File(number) => {
                files.get(*number).and_then(|file| file.digest).unwrap_or_else(|| Digest::of(b""))
            }
            Self::Dir(header, children) => {
                let mut hasher = Hasher::new();
                hasher.update(&[0]);
                hasher.update(header.to_string().as_bytes());
                for (name, child) in children {
                    hasher.update(&[0]);
                    hasher.update(name);
                    hasher.update(child.digest(files).to_string().as_bytes());
                }
                hasher.finish()
            }
        }
    }
}

/// One entry of a list.
struct Entry {
    shown: Vec<u8>,
    spelled: Vec<u8>,
    node: Node,
}

struct FileEntry {
    path: Vec<u8>,
    stat: Stat,
    digest: Option<Digest>,
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
    include: Option<Patterns>,
    exclude: Option<Patterns>,
    missing: Vec<Vec<u8>>,
    /// Directories that are listed once something in them is.
    pending: Vec<Option<Entry>>,
    entries: Vec<Entry>,
    files: Vec<FileEntry>,
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
            include: patterns(&selector.include_patterns)?,
            exclude: patterns(&selector.exclude_patterns)?,
            missing: selector.required_paths.iter().map(|path| path::clean(path.as_bytes())).collect(),
            pending: Vec::new(),
            entries: Vec::new(),
            files: Vec::new(),
        })
    }

    fn all_found(&self) -> Result<(), Error> {
        match self.missing.first() {
            None => Ok(()),
            Some(path) => Err(Error::NotFound(path::show(path))),
        }
    }

    /// All at and below a path.
    fn whole(&mut self, path: &[u8], stat: &Stat) -> Result<Node, Error> {
        let (parent, name) = path::split(path).unwrap_or((b"", b""));
        let dir = self.view.open_dir(parent)?;
        self.node(dir.as_fd(), name, path, stat, 0)
    }

    fn node(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        stat: &Stat,
        depth: usize,
    ) -> Result<Node, Error> {
        self.cancel.check()?;
        if !at::is_dir(stat) {
            return self.leaf_node(dir, name, path, stat);
        }
        if depth > DEPTH_MAX {
            return Err(Error::TooDeep(path::show(path)));
        }
        let header = self.dir_header(dir, name, path, stat)?;
        let fd = at::open_dir(dir, name).on("open", path)?;
        let mut children = Vec::new();
        for child in self.view.children(fd.as_fd(), path)? {
            let below = path::join(path, &child.name);
            let node = self.node(fd.as_fd(), &child.name, &below, &child.stat, depth + 1)?;
            children.push((child.name, node));
        }
        Ok(Node::Dir(header, children))
    }

    /// Something that is no directory.
    fn leaf_node(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        stat: &Stat,
    ) -> Result<Node, Error> {
        if at::kind(stat) != FileType::RegularFile || stat.st_size == 0 {
            return Ok(Node::Known(Digest::of(&self.header(dir, name, path, stat)?)));
        }
        // Its header is made where its data is read: of a file that is known neither is needed.
        self.files.push(FileEntry { path: path.to_vec(), stat: *stat, digest: None });
        Ok(Node::File(self.files.len() - 1))
    }

    fn dir_header(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        stat: &Stat,
    ) -> Result<Digest, Error> {
        // Of a context's root BuildKit knows nothing.
        if path.is_empty() && self.view.is_context() {
            return Ok(Digest::of(b""));
        }
        Ok(Digest::of(&self.header(dir, name, path, stat)?))
    }

    /// Something that a pattern or literal path names.
    fn top(
        &mut self,
        path: &[u8],
        spelled: &[u8],
        shown: Vec<u8>,
        stat: &Stat,
        follow: bool,
    ) -> Result<(), Error> {
        let (include, _, states) = self.picks(b"", &States::default());
        if follow && at::kind(stat) == FileType::Symlink {
            let followed = self.view.resolve(spelled, true)?;
            let stat = self.view.stat(&followed)?.ok_or_else(|| Error::NotFound(path::show(spelled)))?;
            if include {
                let node = self.whole(&followed, &stat)?;
                self.require(spelled, &node);
                self.entries.push(Entry { shown, spelled: spelled.to_vec(), node });
            }
            return Ok(());
        }
        let (parent, name) = path::split(path).unwrap_or((b"", b""));
        let dir = self.view.open_dir(parent)?;
        let here = Here { dir: dir.as_fd(), name, path, inside: b"", spelled, shown: &shown, stat };
        match (at::is_dir(stat), include) {
            (true, _) => self.directory(&here, include, &states),
            (false, true) => self.leaf(&here),
            (false, false) => Ok(()),
        }
    }

    /// Whether the patterns pick a path, and whether nothing below it can be.
    fn picks(&self, inside: &[u8], parent: &States) -> (bool, bool, States) {
        let text = String::from_utf8_lossy(inside);
        let (mut include, mut barren, mut states) = (true, false, States::default());
        if let Some(patterns) = &self.include {
            (include, states.include) = patterns.matches_below(&text, &parent.include);
        }
        if let Some(patterns) = &self.exclude {
            let (excluded, state) = patterns.matches_below(&text, &parent.exclude);
            states.exclude = state;
            include &= !excluded;
            barren = excluded && !patterns.has_negations();
        }
        (include, barren, states)
    }

    fn entry(&mut self, here: &Here<'_>, parent: &States) -> Result<(), Error> {
        self.cancel.check()?;
        let (include, barren, states) = self.picks(here.inside, parent);
        if barren {
            return Ok(());
        }
        match (at::is_dir(here.stat), include) {
            (true, _) => self.directory(here, include, &states),
            (false, true) => self.leaf(here),
            (false, false) => Ok(()),
        }
    }

    fn directory(&mut self, here: &Here<'_>, include: bool, states: &States) -> Result<(), Error> {
        if self.pending.len() > DEPTH_MAX {
            return Err(Error::TooDeep(path::show(here.path)));
        }
        // The root's own header is in no list.
        let own = if here.path.is_empty() {
            None
        } else {
            let node = Node::Known(self.dir_header(here.dir, here.name, here.path, here.stat)?);
            Some(Entry { shown: key_of(here.shown), spelled: here.spelled.to_vec(), node })
        };
        self.pending.push(own);
        if include {
            self.found(here.spelled);
            self.flush();
        }
        let fd = at::open_dir(here.dir, here.name).on("open", here.path)?;
        for child in self.view.children(fd.as_fd(), here.path)? {
            let shown = [here.shown, &[0], &child.name].concat();
            let below = Here {
                dir: fd.as_fd(),
                name: &child.name,
                path: &path::join(here.path, &child.name),
                inside: &path::join(here.inside, &child.name),
                spelled: &path::join(here.spelled, &child.name),
                shown: &shown,
                stat: &child.stat,
            };
            self.entry(&below, states)?;
        }
        self.pending.pop();
        Ok(())
    }

    /// Lists the directories that the walk is in, as far as they are not.
    fn flush(&mut self) {
        self.entries.extend(self.pending.iter_mut().filter_map(Option::take));
    }

    fn leaf(&mut self, here: &Here<'_>) -> Result<(), Error> {
        self.found(here.spelled);
        self.flush();
        let node = self.leaf_node(here.dir, here.name, here.path, here.stat)?;
        self.entries.push(Entry { shown: key_of(here.shown), spelled: here.spelled.to_vec(), node });
        Ok(())
    }

    /// What is hashed of an entry, before its data if it has any.
    fn header(&self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8], stat: &Stat) -> Result<Vec<u8>, Error> {
        let target = match at::kind(stat) {
            FileType::Symlink => at::read_link(dir, name).on("read link", path)?,
            _ => Vec::new(),
        };
        let xattrs = self.view.attributes(dir, name).on("read attributes of", path)?;
        Ok(header(stat, self.view.owner(stat), &target, &xattrs))
    }

    fn found(&mut self, path: &[u8]) {
        self.missing.retain(|required| !path::is_at_or_below(path, required));
    }

    /// Notes that a whole tree was found.
    fn require(&mut self, path: &[u8], node: &Node) {
        if self.missing.is_empty() {
            return;
        }
        self.found(path);
        if let Node::Dir(_, children) = node {
            for (name, child) in children {
                self.require(&path::join(path, name), child);
            }
        }
    }
}

/// How a path stands in a list: the selected one itself is a zero byte.
fn key_of(shown: &[u8]) -> Vec<u8> {
    if shown.is_empty() { vec![0] } else { shown.to_vec() }
}

/// Docker's tarsum, version 1, of an entry without its name and data.
fn header(stat: &Stat, (uid, gid): (u32, u32), target: &[u8], xattrs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let kind = at::kind(stat);
    let typeflag = match kind {
        FileType::Symlink => b'2',
        FileType::CharacterDevice => b'3',
        FileType::BlockDevice => b'4',
        FileType::Directory => b'5',
        FileType::Fifo => b'6',
        _ => b'0',
    };
    let size = if typeflag == b'0' { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 };
    // The mode of a symlink says nothing.
    let mode = if kind == FileType::Symlink { 0o777 } else { stat.st_mode & 0o7777 };
    let (major, minor) = match kind {
        FileType::BlockDevice | FileType::CharacterDevice => {
            (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev))
        }
        _ => (0, 0),
    };
    let mut header = format!("namemode{mode}uid{uid}gid{gid}size{size}typeflag").into_bytes();
    header.push(typeflag);
    header.extend(b"linkname");
    header.extend(target);
    header.extend(format!("unamegnamedevmajor{major}devminor{minor}").into_bytes());
    for (key, value) in xattrs {
        header.extend(key);
        header.extend(value);
    }
    header
}

/// Remembers the digest of a file of a context that was just written: `stat` is the file's as it now is, `content`
/// all that is in it. The file has no extended attributes, and nobody else writes to it.
pub fn remember(cache: &dyn HashCache, path: &[u8], stat: &Stat, content: &[u8]) {
    // Of an empty file there is nothing to remember, see `leaf_node`; one of another size is not what was written.
    if content.is_empty() || u64::try_from(stat.st_size).ok() != u64::try_from(content.len()).ok() {
        return;
    }
    let mut hasher = Hasher::new();
    hasher.update(&header(stat, (0, 0), b"", &[]));
    hasher.update(content);
    cache.store(path, &file_stat(stat), &hasher.finish());
}

/// Fills in the digests of all file contents.
fn hash_files(
    view: &View<'_>,
    files: &mut [FileEntry],
    options: &ChecksumOptions<'_>,
    cancel: &Cancel,
) -> Result<(), Error> {
    if let Some(cache) = options.cache {
        let asked: Vec<_> = files.iter().map(|file| (file.path.as_slice(), file_stat(&file.stat))).collect();
        let known = cache.lookup_all(&asked);
        files.iter_mut().zip(known).for_each(|(file, digest)| file.digest = digest);
    }
    let todo: Vec<&mut FileEntry> = files.iter_mut().filter(|file| file.digest.is_none()).collect();
    // A thread costs more than a few small files.
    let bytes: u64 = todo.iter().map(|file| u64::try_from(file.stat.st_size).unwrap_or(0)).sum();
    let worth = todo.len().min(1 + usize::try_from(bytes >> 18).unwrap_or(usize::MAX));
    let threads = options.threads.clamp(1, HASH_THREADS_MAX).min(worth);
    if threads <= 1 {
        let mut buffer = Vec::new();
        return todo.into_iter().try_for_each(|file| hash_one(view, file, options, cancel, &mut buffer));
    }
    let next = AtomicUsize::new(0);
    let slots: Vec<Mutex<&mut FileEntry>> = todo.into_iter().map(Mutex::new).collect();
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut buffer = Vec::new();
                while let Some(slot) = slots.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let mut file = slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    if let Err(error) = hash_one(view, &mut file, options, cancel, &mut buffer) {
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

const BUFFER_BYTES: usize = 256 << 10;

fn hash_one(
    view: &View<'_>,
    file: &mut FileEntry,
    options: &ChecksumOptions<'_>,
    cancel: &Cancel,
    buffer: &mut Vec<u8>,
) -> Result<(), Error> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let fd = at::beneath(view.root(), &file.path, flags).on("open", &file.path)?;
    let xattrs = view.attributes_of(fd.as_fd()).on("read attributes of", &file.path)?;
    let mut hasher = Hasher::new();
    hasher.update(&header(&file.stat, view.owner(&file.stat), b"", &xattrs));
    buffer.resize(BUFFER_BYTES, 0);
    loop {
        cancel.check()?;
        match rustix::io::read(&fd, &mut buffer[..]) {
            Ok(0) => break,
            Ok(got) => hasher.update(&buffer[..got]),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno).on("read", &file.path),
        }
    }
    let digest = hasher.finish();
    file.digest = Some(digest);
    let stat = file_stat(&file.stat);
    if let Some(cache) = options.cache
        && settled(&stat, options.settle)
        // Not what changed while it was read.
        && rustix::fs::fstat(&fd).is_ok_and(|now| file_stat(&now) == stat)
    {
        cache.store(&file.path, &stat, &digest);
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
