//! The receiving end of a transfer: packets in, requests out, a directory changed.
//!
//! Holds: nothing outside the directory is touched; each entry is written through the open directory that it is in,
//! whatever the client listed before; what waits in memory is bounded. A file that was cut off never looks whole.
//!
//! The previous copy is walked along with the listing, directory by directory: what comes before the next listed name
//! is gone at the client, and removed.

mod place;

use std::collections::{HashMap, HashSet, VecDeque};
use std::iter::Peekable;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use lapstrake_fileop::at;
use rustix::io::Errno;
use tokio::sync::{mpsc, watch};

use super::account::Account;
use super::disk::{self, Creator, Meta};
use super::metadata::{self, MetadataOnly};
use super::mode::Kind;
use super::order::{Order, show};
use super::pool::{By, Content, Job, Pool};
use super::wire::{Packet, Stat, kind};
use super::{Differ, SyncProgress, Synced, Target};
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
    /// What it was before, if it was there.
    before: Option<rustix::fs::Stat>,
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
    account: Arc<Account>,
    root_before: rustix::fs::Stat,
    /// What is there already has no extended attributes.
    bare: bool,
    done: Synced,
}

/// Runs a transfer to its end. Blocking.
pub(super) fn receive(
    into: &Target,
    task: Task,
    mut packets: mpsc::Receiver<Vec<Packet>>,
) -> Result<Synced, Error> {
    let mut receiver = Receiver::open(into, task)?;
    let account = Arc::clone(&receiver.account);
    let by = By { creator: receiver.creator, account, hashes: into.hashes.clone() };
    let closed = std::thread::scope(|scope| {
        let mut pool = Pool::start(scope, &by);
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
    fn new(
        path: Vec<u8>,
        modified_ns: i64,
        inherits: bool,
        before: Option<rustix::fs::Stat>,
        fd: &Arc<OwnedFd>,
    ) -> Arc<Self> {
        let fd = Mutex::new(Arc::downgrade(fd));
        Arc::new(Self { path, modified_ns, inherits, touched: AtomicBool::new(false), before, fd })
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
    fn open(into: &Target, task: Task) -> Result<Self, Error> {
        let path = into.path.to_string_lossy();
        let root = rustix::fs::open(
            &into.path,
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        );
        let root = Arc::new(root.map_err(io("open", path.as_bytes()))?);
        let stat = rustix::fs::fstat(&root).map_err(io("stat", path.as_bytes()))?;
        let acls = at::xattrs(root.as_fd(), b"").map_err(io("read attributes of", path.as_bytes()))?;
        let names = at::list(root.as_fd()).map_err(io("list", path.as_bytes()))?;
        let bare = acls.is_empty() && (into.bare || names.is_empty());
        let folder = Folder::new(Vec::new(), 0, stat.st_mode & 0o2000 != 0, Some(stat), &root);
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
            account: Arc::default(),
            root_before: stat,
            bare,
            // As far as nothing is met that has some.
            done: Synced { bare: acls.is_empty(), ..Synced::default() },
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

    fn end_of_listing(&mut self) -> Result<(), Error> {
        while !self.stack.is_empty() {
            self.leave()?;
        }
        self.listed = true;
        Ok(())
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
                let finished = self.creator.finish(file.as_fd(), &wanted.meta, inherits);
                self.account.came(&finished.map_err(io("change", &path))?);
            }
            None => {
                let Wanted { name, meta, replace, folder, .. } = wanted;
                let path = join(&folder.path, &name);
                pool.push(Job { dir, name, path, meta, content: gathered, replace, inherits })?;
            }
        }
        self.ask()
    }

    /// All contents are there: links, times of directories, and the word that it is done.
    fn finish(mut self) -> Result<Synced, Error> {
        for link in std::mem::take(&mut self.links) {
            self.make_link(&link)?;
        }
        for folder in std::mem::take(&mut self.touched) {
            let fd = folder.open(&self.root)?;
            disk::set_dir_times(fd.as_fd(), folder.modified_ns).map_err(io("set times of", &folder.path))?;
            self.weigh(&fd, folder.before.as_ref(), &folder.path)?;
        }
        self.weigh(&self.root, Some(&self.root_before), b"")?;
        if let Some(metadata) = self.task.metadata_only.take() {
            self.done.changed |= metadata.write(self.root.as_fd()).map_err(io("write", metadata::NAME))?;
            self.account.lose();
        }
        self.report();
        self.task.requests.try_send(Packet::of(kind::FIN)).map_err(|_| Error::Canceled)?;
        self.done.grown = self.account.grown();
        Ok(self.done)
    }

    /// Notes by how much a directory itself grew.
    fn weigh(&self, fd: &OwnedFd, before: Option<&rustix::fs::Stat>, path: &[u8]) -> Result<(), Error> {
        let now = rustix::fs::fstat(fd).map_err(io("stat", path))?;
        self.account.became(before, &now);
        Ok(())
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
