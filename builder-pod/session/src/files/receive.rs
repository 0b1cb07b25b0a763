//! The receiving end of a transfer: packets in, requests out, a directory changed.
//!
//! Holds: nothing outside the directory is touched; each entry is written through the open directory that it is in,
//! whatever the client listed before; what waits in memory is bounded. A file that was cut off never looks whole.
//!
//! The previous copy is walked along with the listing, directory by directory: what comes before the next listed name
//! is gone at the client, and removed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::iter::Peekable;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use lapstrake_fileop::at;
use rustix::io::Errno;
use tokio::sync::{mpsc, watch};

use super::disk::{self, Creator, Meta};
use super::metadata::MetadataOnly;
use super::mode::Kind;
use super::order::{self, Order, show};
use super::pool::{Content, Job, Pool};
use super::wire::{Packet, Stat, kind};
use super::{Differ, SyncProgress, Synced};
use crate::error::Error;

/// Files that are asked for at once: more than a sender works on, so that it never waits for us.
pub(super) const WINDOW: usize = 256;
/// Entries of one listing.
const ENTRIES_MAX: u64 = 4_000_000;
/// Names and attributes that wait for their turn.
const QUEUE_BYTES_MAX: usize = 512 << 20;
/// A file up to this size is gathered in memory and written at once, as long as all of them are not more.
const SMALL_BYTES: usize = 256 << 10;
const GATHERED_BYTES_MAX: usize = 16 << 20;
/// By how much a file may grow after it was listed.
const GROWTH_BYTES_MAX: u64 = 64 << 20;
const LINK_BYTES_MAX: usize = 4095;

/// What is to be done, and by whose rules.
pub(super) struct Task {
    pub(super) name: String,
    pub(super) differ: Differ,
    pub(super) metadata_only: Option<MetadataOnly>,
    pub(super) requests: mpsc::Sender<Packet>,
    pub(super) progress: watch::Sender<SyncProgress>,
}

/// A directory of the tree.
struct Folder {
    path: Vec<u8>,
    modified_ns: i64,
    /// New entries get its group, or an ACL.
    inherits: bool,
    /// Whether its times are set at the end.
    touched: AtomicBool,
    /// Open while it is worked in.
    fd: Mutex<Weak<OwnedFd>>,
}

/// A directory that the listing is in.
struct Level {
    folder: Arc<Folder>,
    fd: Arc<OwnedFd>,
    /// Names of the previous copy that the listing did not reach yet.
    old: Peekable<std::vec::IntoIter<Vec<u8>>>,
}

/// A file whose contents are needed.
struct Wanted {
    id: u32,
    folder: Arc<Folder>,
    name: Vec<u8>,
    meta: Meta,
    size: u64,
    replace: bool,
}

/// A file whose contents were asked for.
struct Arriving {
    wanted: Wanted,
    dir: Arc<OwnedFd>,
    received: u64,
    gathered: Content,
    /// Once it is too large to gather.
    file: Option<OwnedFd>,
}

/// A name that is the same file as another one.
struct Link {
    folder: Arc<Folder>,
    name: Vec<u8>,
    target: Vec<u8>,
}

struct Receiver {
    task: Task,
    root: Arc<OwnedFd>,
    creator: Creator,
    order: Order,
    stack: Vec<Level>,
    listed: bool,
    queue: VecDeque<Wanted>,
    queue_bytes: usize,
    arriving: HashMap<u32, Arriving>,
    gathered_bytes: usize,
    links: Vec<Link>,
    /// Files of the previous copy with several names that were met already.
    old_links: HashSet<(u64, u64)>,
    touched: Vec<Arc<Folder>>,
    /// Whether an ACL may be passed on to new entries.
    acls: bool,
    next_id: u32,
    done: Synced,
}

/// Runs a transfer to its end. Blocking.
pub(super) fn receive(
    into: &Path,
    task: Task,
    mut packets: mpsc::Receiver<Vec<Packet>>,
) -> Result<Synced, Error> {
    let mut receiver = Receiver::open(into, task)?;
    let creator = receiver.creator;
    let closed = std::thread::scope(|scope| {
        let mut pool = Pool::start(scope, creator);
        receiver.run(&mut packets, &mut pool)?;
        pool.close()
    })?;
    closed.result()?;
    receiver.finish()
}

/// Attaches what was tried on which path.
fn io(action: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> Error {
    move |errno| Error::Io { action, path: String::from_utf8_lossy(path).into_owned(), errno }
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

impl Folder {
    fn new(path: Vec<u8>, modified_ns: i64, inherits: bool, fd: &Arc<OwnedFd>) -> Arc<Self> {
        let fd = Mutex::new(Arc::downgrade(fd));
        Arc::new(Self { path, modified_ns, inherits, touched: AtomicBool::new(false), fd })
    }

    fn open(&self, root: &OwnedFd) -> Result<Arc<OwnedFd>, Error> {
        let mut known = self.fd.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fd) = known.upgrade() {
            return Ok(fd);
        }
        let fd = at::beneath_dir(root.as_fd(), &self.path).map_err(io("open", &self.path))?;
        let fd = Arc::new(fd);
        *known = Arc::downgrade(&fd);
        Ok(fd)
    }
}

impl Receiver {
    fn open(into: &Path, task: Task) -> Result<Self, Error> {
        let path = into.to_string_lossy();
        let root = rustix::fs::open(
            into,
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        );
        let root = Arc::new(root.map_err(io("open", path.as_bytes()))?);
        let stat = rustix::fs::fstat(&root).map_err(io("stat", path.as_bytes()))?;
        let acls = at::xattrs(root.as_fd(), b"").map_err(io("read attributes of", path.as_bytes()))?;
        let names = at::list(root.as_fd()).map_err(io("list", path.as_bytes()))?;
        let folder = Folder::new(Vec::new(), 0, stat.st_mode & 0o2000 != 0, &root);
        // The root is not part of the listing: its times stay what they become.
        folder.touched.store(true, Ordering::Relaxed);
        let level = Level { folder, fd: Arc::clone(&root), old: names.into_iter().peekable() };
        Ok(Self {
            task,
            root,
            creator: Creator::current(),
            order: Order::default(),
            stack: vec![level],
            listed: false,
            queue: VecDeque::new(),
            queue_bytes: 0,
            arriving: HashMap::new(),
            gathered_bytes: 0,
            links: Vec::new(),
            old_links: HashSet::new(),
            touched: Vec::new(),
            acls: acls.iter().any(|(name, _)| name == ACL_DEFAULT),
            next_id: 0,
            done: Synced::default(),
        })
    }

    fn protocol(&self, problem: impl Into<String>) -> Error {
        Error::Protocol { name: self.task.name.clone(), problem: problem.into() }
    }

    fn run(&mut self, packets: &mut mpsc::Receiver<Vec<Packet>>, pool: &mut Pool) -> Result<(), Error> {
        while let Some(batch) = packets.blocking_recv() {
            for packet in batch {
                self.packet(packet, pool)?;
            }
            // What came together is written while the next is on its way.
            pool.flush()?;
            self.report();
            if self.listed && self.queue.is_empty() && self.arriving.is_empty() {
                return Ok(());
            }
        }
        Err(Error::Canceled)
    }

    fn report(&self) {
        let now = SyncProgress { files: self.done.files_sent, bytes: self.done.bytes };
        self.task.progress.send_if_modified(|progress| std::mem::replace(progress, now) != now);
    }

    fn packet(&mut self, packet: Packet, pool: &mut Pool) -> Result<(), Error> {
        match packet.kind {
            kind::STAT if self.listed => Err(self.protocol("an entry after the end of the listing")),
            kind::STAT => match packet.stat {
                Some(stat) => self.entry(stat),
                None => self.end_of_listing(),
            },
            kind::DATA => self.data(packet.id, packet.data, pool),
            kind::ERR => {
                let text = packet.data.get(..4096).unwrap_or(&packet.data);
                Err(Error::Sender(String::from_utf8_lossy(text).into_owned()))
            }
            kind::FIN => Err(self.protocol("the sender ended it before everything was sent")),
            kind::REQ => Err(self.protocol("the sender asked for a file, which is the receiver's part")),
            other => Err(self.protocol(format!("a packet of the unknown kind {other}"))),
        }
    }

    fn entry(&mut self, stat: Stat) -> Result<(), Error> {
        let id = self.next_id;
        self.done.entries += 1;
        if self.done.entries > ENTRIES_MAX {
            return Err(self.protocol(format!("more than {ENTRIES_MAX} entries")));
        }
        self.next_id += 1;
        let what = Kind::of(stat.mode);
        self.order.next(&stat.path, what == Kind::Directory).map_err(|problem| self.protocol(problem))?;
        match &mut self.task.metadata_only {
            None => self.place(id, &stat, what),
            Some(metadata) => match metadata.entry(&stat, id).map_err(|problem| self.protocol(problem))? {
                None => Ok(()),
                Some(parents) => {
                    for (id, parent) in parents {
                        self.place(id, &parent, Kind::Directory)?;
                    }
                    self.place(id, &stat, what)
                }
            },
        }
    }

    /// Makes an entry what it shall be, or notes what is missing for that.
    fn place(&mut self, id: u32, stat: &Stat, what: Kind) -> Result<(), Error> {
        let (parent, name) = order::split(&stat.path);
        while self.stack.last().is_some_and(|level| level.folder.path != parent) {
            self.leave()?;
        }
        let old = self.advance(name)?;
        match what {
            Kind::Directory => self.directory(stat, name, old),
            Kind::File if stat.linkname.is_empty() => self.file(id, stat, name, old),
            Kind::File => self.link(stat, name),
            Kind::Symlink => self.symlink(stat, name, old),
            Kind::BlockDevice | Kind::CharDevice | Kind::Fifo => self.node(stat, name, what, old),
            // As if it were not there.
            Kind::Other => self.remove(name, old),
        }
    }

    fn top(&mut self) -> Result<&mut Level, Error> {
        let name = &self.task.name;
        self.stack.last_mut().ok_or_else(|| Error::Protocol {
            name: name.clone(),
            problem: "an entry outside of the directory".to_owned(),
        })
    }

    /// Removes what the listing passed over, and tells what has the name now.
    fn advance(&mut self, name: &[u8]) -> Result<Option<rustix::fs::Stat>, Error> {
        let keep = self.kept_name();
        let level = self.top()?;
        let mut passed = Vec::new();
        while let Some(old) = level.old.next_if(|old| old.as_slice() < name) {
            passed.push(old);
        }
        let known = level.old.next_if(|old| old == name).is_some();
        let path = |level: &Level| join(&level.folder.path, name);
        let stat = match known {
            true => at::stat(level.fd.as_fd(), name).map_err(|errno| io("stat", &path(level))(errno))?,
            false => None,
        };
        self.remove_passed(passed, keep)?;
        Ok(stat)
    }

    /// A name at the top that is ours.
    fn kept_name(&self) -> Option<&'static [u8]> {
        (self.stack.len() == 1 && self.task.metadata_only.is_some()).then_some(super::metadata::NAME)
    }

    fn remove_passed(&mut self, passed: Vec<Vec<u8>>, keep: Option<&[u8]>) -> Result<(), Error> {
        for old in passed {
            if keep != Some(old.as_slice()) {
                self.clear(&old)?;
            }
        }
        Ok(())
    }

    /// Removes what has the name, whatever it is.
    fn clear(&mut self, name: &[u8]) -> Result<(), Error> {
        let level = self.top()?;
        at::remove_all(level.fd.as_fd(), name).map_err(io("remove", &join(&level.folder.path, name)))?;
        let folder = Arc::clone(&level.folder);
        self.touch(&folder);
        self.done.changed = true;
        Ok(())
    }

    fn remove(&mut self, name: &[u8], old: Option<rustix::fs::Stat>) -> Result<(), Error> {
        if old.is_some() { self.clear(name) } else { Ok(()) }
    }

    /// Notes that a directory's times are to be set at the end.
    fn touch(&mut self, folder: &Arc<Folder>) {
        if !folder.touched.swap(true, Ordering::Relaxed) {
            self.touched.push(Arc::clone(folder));
        }
    }

    /// The listing has left the innermost directory.
    fn leave(&mut self) -> Result<(), Error> {
        let keep = self.kept_name();
        let level = self.top()?;
        let passed: Vec<_> = level.old.by_ref().collect();
        self.remove_passed(passed, keep)?;
        self.stack.pop();
        Ok(())
    }

    fn end_of_listing(&mut self) -> Result<(), Error> {
        while !self.stack.is_empty() {
            self.leave()?;
        }
        self.listed = true;
        Ok(())
    }

    fn directory(&mut self, stat: &Stat, name: &[u8], old: Option<rustix::fs::Stat>) -> Result<(), Error> {
        let meta = Meta::of(stat);
        self.acls |= meta.xattrs.iter().any(|(name, _)| name == ACL_DEFAULT);
        let (creator, acls, differ) = (self.creator, self.acls, self.task.differ);
        let old_dir = old.filter(at::is_dir);
        if old_dir.is_none() {
            self.remove(name, old)?;
        }
        let level = self.top()?;
        let (dir, inherits) = (Arc::clone(&level.fd), level.folder.inherits || acls);
        let mut changed = true;
        let mut names = Vec::new();
        let fd = match old_dir {
            None => creator
                .make_dir(dir.as_fd(), name, &meta, inherits)
                .map_err(io("make directory", &stat.path))?,
            Some(old) => {
                let fd = at::open_dir(dir.as_fd(), name).map_err(io("open", &stat.path))?;
                names = at::list(fd.as_fd()).map_err(io("list", &stat.path))?;
                let same =
                    meta.is_of(dir.as_fd(), name, &old).map_err(io("read attributes of", &stat.path))?;
                changed = !same || differ == Differ::None;
                if changed {
                    disk::change_dir(fd.as_fd(), &meta).map_err(io("change", &stat.path))?;
                }
                fd
            }
        };
        let fd = Arc::new(fd);
        let setgid = meta.permissions & 0o2000 != 0;
        let folder = Folder::new(stat.path.clone(), stat.mod_time, setgid, &fd);
        let times = old_dir.is_some_and(|old| at::modified_ns(&old) == i128::from(stat.mod_time));
        if changed || !times {
            self.touch(&folder);
        }
        if old_dir.is_none() {
            let parent = Arc::clone(&self.top()?.folder);
            self.touch(&parent);
        }
        self.done.changed |= changed;
        self.stack.push(Level { folder, fd, old: names.into_iter().peekable() });
        Ok(())
    }

    fn file(
        &mut self,
        id: u32,
        stat: &Stat,
        name: &[u8],
        old: Option<rustix::fs::Stat>,
    ) -> Result<(), Error> {
        let Ok(size) = u64::try_from(stat.size) else {
            return Err(self.protocol(format!("{}: a size below zero", show(&stat.path))));
        };
        let meta = Meta::of(stat);
        if let Some(old) = old {
            if self.is_same_file(stat, &meta, name, &old)? {
                return Ok(());
            }
            // Files give way when their successor is there, a directory at once.
            if at::is_dir(&old) {
                self.clear(name)?;
            }
        }
        let folder = Arc::clone(&self.top()?.folder);
        self.touch(&folder);
        self.done.changed = true;
        let wanted = Wanted { id, folder, name: name.to_vec(), meta, size, replace: old.is_some() };
        self.queue_bytes += wanted.bytes();
        if self.queue_bytes > QUEUE_BYTES_MAX {
            return Err(self.protocol("names and attributes that do not fit into memory"));
        }
        self.queue.push_back(wanted);
        self.ask()
    }

    fn is_same_file(
        &mut self,
        stat: &Stat,
        meta: &Meta,
        name: &[u8],
        old: &rustix::fs::Stat,
    ) -> Result<bool, Error> {
        // Its first name keeps a file of several; the others must become files of their own.
        let is_link =
            old.st_nlink > 1 && !at::is_dir(old) && !self.old_links.insert((old.st_dev, old.st_ino));
        let same = self.task.differ == Differ::Metadata
            && !is_link
            && at::kind(old) == rustix::fs::FileType::RegularFile
            && i128::from(old.st_size) == i128::from(stat.size)
            && at::modified_ns(old) == i128::from(stat.mod_time);
        if !same {
            return Ok(false);
        }
        let level = self.top()?;
        meta.is_of(level.fd.as_fd(), name, old).map_err(io("read attributes of", &stat.path))
    }

    /// Asks for as many files as may be on their way.
    fn ask(&mut self) -> Result<(), Error> {
        while self.arriving.len() < WINDOW {
            let Some(wanted) = self.queue.pop_front() else { return Ok(()) };
            self.queue_bytes -= wanted.bytes();
            let dir = wanted.folder.open(&self.root)?;
            let id = wanted.id;
            // There is room for as many as may be on their way: only a lost stream refuses.
            self.task.requests.try_send(Packet::request(id)).map_err(|_| Error::Canceled)?;
            let arriving = Arriving { wanted, dir, received: 0, gathered: Content::Empty, file: None };
            self.arriving.insert(id, arriving);
        }
        Ok(())
    }

    fn data(&mut self, id: u32, data: Bytes, pool: &mut Pool) -> Result<(), Error> {
        let Some(arriving) = self.arriving.get_mut(&id) else {
            return Err(self.protocol(format!("data of entry {id}, which was not asked for")));
        };
        if data.is_empty() {
            return self.end_of_file(id, pool);
        }
        let bytes = data.len();
        arriving.received = arriving.received.saturating_add(bytes as u64);
        self.done.bytes = self.done.bytes.saturating_add(bytes as u64);
        let stated = arriving.wanted.size;
        if arriving.received > stated.saturating_add(GROWTH_BYTES_MAX) {
            let path = join(&arriving.wanted.folder.path, &arriving.wanted.name);
            let problem =
                format!("{} was listed with {stated} bytes, and does not end after that", show(&path));
            return Err(self.protocol(problem));
        }
        let small = arriving.received.max(stated) <= SMALL_BYTES as u64
            && self.gathered_bytes + bytes <= GATHERED_BYTES_MAX;
        let path = || join(&arriving.wanted.folder.path, &arriving.wanted.name);
        match &arriving.file {
            Some(file) => disk::write_all(file.as_fd(), &data).map_err(io("write", &path())),
            None if small => {
                self.gathered_bytes += bytes;
                arriving.gathered.push(data);
                Ok(())
            }
            None => {
                let wanted = &arriving.wanted;
                let file = self
                    .creator
                    .create(arriving.dir.as_fd(), &wanted.name, &wanted.meta, wanted.replace)
                    .map_err(io("create", &path()))?;
                let gathered = std::mem::take(&mut arriving.gathered);
                self.gathered_bytes -= gathered.as_bytes().len();
                disk::write_all(file.as_fd(), gathered.as_bytes())
                    .and_then(|()| disk::write_all(file.as_fd(), &data))
                    .map_err(io("write", &path()))?;
                arriving.file = Some(file);
                Ok(())
            }
        }
    }

    fn end_of_file(&mut self, id: u32, pool: &mut Pool) -> Result<(), Error> {
        let Some(Arriving { wanted, dir, gathered, file, .. }) = self.arriving.remove(&id) else {
            return Ok(());
        };
        self.done.files_sent += 1;
        self.gathered_bytes -= gathered.as_bytes().len();
        let inherits = wanted.folder.inherits || self.acls;
        match file {
            Some(file) => {
                let path = join(&wanted.folder.path, &wanted.name);
                self.creator.finish(file.as_fd(), &wanted.meta, inherits).map_err(io("change", &path))?;
            }
            None => {
                let Wanted { name, meta, replace, .. } = wanted;
                pool.push(Job { dir, name, meta, content: gathered, replace, inherits })?;
            }
        }
        self.ask()
    }

    fn symlink(&mut self, stat: &Stat, name: &[u8], old: Option<rustix::fs::Stat>) -> Result<(), Error> {
        if stat.linkname.is_empty() || stat.linkname.contains(&0) || stat.linkname.len() > LINK_BYTES_MAX {
            return Err(self.protocol(format!("{}: a symlink to what cannot be a path", show(&stat.path))));
        }
        let differ = self.task.differ;
        let meta = Meta::of(stat);
        let level = self.top()?;
        if let Some(old) = old {
            let same = differ == Differ::Metadata
                && at::kind(&old) == rustix::fs::FileType::Symlink
                && (old.st_uid, old.st_gid) == (meta.uid, meta.gid)
                && at::modified_ns(&old) == i128::from(meta.modified_ns)
                && at::read_link(level.fd.as_fd(), name).map_err(io("read link", &stat.path))?
                    == stat.linkname;
            if same {
                return Ok(());
            }
        }
        self.clear(name)?;
        let level = self.top()?;
        disk::make_symlink(level.fd.as_fd(), name, &stat.linkname, &meta).map_err(io("make link", &stat.path))
    }

    fn node(
        &mut self,
        stat: &Stat,
        name: &[u8],
        what: Kind,
        old: Option<rustix::fs::Stat>,
    ) -> Result<(), Error> {
        let (Ok(major), Ok(minor)) = (u32::try_from(stat.devmajor), u32::try_from(stat.devminor)) else {
            return Err(self.protocol(format!("{}: no device has such numbers", show(&stat.path))));
        };
        let device = if what == Kind::Fifo { 0 } else { rustix::fs::makedev(major, minor) };
        // In an overlay this would hide what is below, and itself: nobody would see it.
        if what == Kind::CharDevice && device == 0 {
            return self.remove(name, old);
        }
        let Some(kind) = what.file_type() else { return Ok(()) };
        let differ = self.task.differ;
        let meta = Meta::of(stat);
        if let Some(old) = old {
            let same = differ == Differ::Metadata
                && at::kind(&old) == kind
                && (what == Kind::Fifo || old.st_rdev == device)
                && at::modified_ns(&old) == i128::from(meta.modified_ns)
                && old.st_mode & 0o7777 == meta.permissions
                && (old.st_uid, old.st_gid) == (meta.uid, meta.gid);
            if same {
                return Ok(());
            }
        }
        self.clear(name)?;
        let level = self.top()?;
        disk::make_node(level.fd.as_fd(), name, kind, device, &meta).map_err(io("make node", &stat.path))
    }

    /// Links are made at the end, when what they are to is there.
    fn link(&mut self, stat: &Stat, name: &[u8]) -> Result<(), Error> {
        let known = order::check(&stat.linkname).is_ok()
            && stat.linkname.split(|&b| b == b'/').lt(stat.path.split(|&b| b == b'/'));
        if !known {
            return Err(self.unknown_target(&stat.path, &stat.linkname));
        }
        let folder = Arc::clone(&self.top()?.folder);
        self.queue_bytes += name.len() + stat.linkname.len();
        if self.queue_bytes > QUEUE_BYTES_MAX {
            return Err(self.protocol("names and attributes that do not fit into memory"));
        }
        self.links.push(Link { folder, name: name.to_vec(), target: stat.linkname.clone() });
        Ok(())
    }

    fn unknown_target(&self, path: &[u8], target: &[u8]) -> Error {
        self.protocol(format!("invalid link {} to unknown path: {}", show(path), show(target)))
    }

    fn make_link(&mut self, link: &Link) -> Result<(), Error> {
        let path = join(&link.folder.path, &link.name);
        let (parent, target) = order::split(&link.target);
        let from = at::beneath_dir(self.root.as_fd(), parent);
        let stat = from.as_ref().ok().map(|from| at::stat(from.as_fd(), target)).transpose();
        let stat = stat.map_err(io("stat", &link.target))?.flatten();
        let (Ok(from), Some(stat)) = (from, stat) else {
            return Err(self.unknown_target(&path, &link.target));
        };
        if at::kind(&stat) != rustix::fs::FileType::RegularFile {
            return Err(self.unknown_target(&path, &link.target));
        }
        let dir = link.folder.open(&self.root)?;
        let old = at::stat(dir.as_fd(), &link.name).map_err(io("stat", &path))?;
        if let Some(old) = old {
            if (old.st_dev, old.st_ino) == (stat.st_dev, stat.st_ino) {
                return Ok(());
            }
            at::remove_all(dir.as_fd(), &link.name).map_err(io("remove", &path))?;
        }
        rustix::fs::linkat(&from, target, &dir, link.name.as_slice(), rustix::fs::AtFlags::empty())
            .map_err(io("link", &path))?;
        self.touch(&link.folder);
        self.done.changed = true;
        Ok(())
    }

    /// All contents are there: links, times of directories, and the word that it is done.
    fn finish(mut self) -> Result<Synced, Error> {
        for link in std::mem::take(&mut self.links) {
            self.make_link(&link)?;
        }
        for folder in std::mem::take(&mut self.touched) {
            let fd = folder.open(&self.root)?;
            disk::set_dir_times(fd.as_fd(), folder.modified_ns).map_err(io("set times of", &folder.path))?;
        }
        if let Some(metadata) = self.task.metadata_only.take() {
            self.done.changed |=
                metadata.write(self.root.as_fd()).map_err(io("write", super::metadata::NAME))?;
        }
        self.report();
        self.task.requests.try_send(Packet::of(kind::FIN)).map_err(|_| Error::Canceled)?;
        Ok(self.done)
    }
}

/// The attribute that passes an ACL on.
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

impl Wanted {
    /// Memory that it takes, roughly.
    fn bytes(&self) -> usize {
        let attributes = self.meta.xattrs.iter().map(|(name, value)| name.len() + value.len());
        128 + self.name.len() + attributes.sum::<usize>()
    }
}
