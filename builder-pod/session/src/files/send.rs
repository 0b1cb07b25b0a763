//! The sending end of a transfer: a directory is listed, and files of it are sent when they are asked for.
//!
//! Holds: a few packets wait, however slow the other side is; a file is sent at most once.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use lapstrake_fileop::at;
use lapstrake_fileop::limits::DEPTH_MAX;
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::mode;
use super::stream::Packets;
use super::wire::{Packet, Stat, Xattr, kind};
use super::{Sent, SyncProgress, joined, next_progress};
use crate::error::Error;

/// Packets that wait for the other side.
pub(super) const PACKETS_WAITING: usize = 32;
/// Bytes of one packet, as other senders have them.
const CHUNK_BYTES: usize = 32 << 10;

/// Files that can be asked for, by their place in the listing: the number of their root, and their path in it.
type Files = Arc<Mutex<HashMap<u32, (usize, Vec<u8>)>>>;

/// Directories that are sent as one.
#[derive(Debug)]
pub struct Outgoing {
    /// Each below a directory of its name, sorted by that; what has none is the destination itself, and then the only one.
    pub roots: Vec<(String, OwnedFd)>,
    /// The time that everything is said to have, seconds since 1970, in place of its own.
    pub modified: Option<i64>,
}

impl Outgoing {
    /// One directory as it is.
    pub(super) fn of(from: &Path) -> Result<Self, Error> {
        Ok(Self { roots: vec![(String::new(), open(from)?)], modified: None })
    }
}

/// Sends directories, until the receiver says that it has what it wants.
pub(super) async fn send(
    from: Outgoing,
    packets: mpsc::Sender<Packet>,
    incoming: &mut Packets,
    progress: &mut (dyn FnMut(SyncProgress) + Send),
    cancel: &CancellationToken,
) -> Result<Sent, Error> {
    let files = Files::default();
    let (watched, mut watching) = watch::channel(SyncProgress::default());
    // Each file is asked for at most once, so there are no more than there are files.
    let (wanted, asked) = mpsc::unbounded_channel();
    let roots = Arc::new(from.roots);
    let walk = Walk {
        packets: packets.clone(),
        files: Arc::clone(&files),
        next_id: 0,
        links: HashMap::new(),
        root: 0,
        below: Vec::new(),
        modified: from.modified,
    };
    let walked = Arc::clone(&roots);
    let walking = tokio::task::spawn_blocking(move || walk.run(&walked));
    let sender = packets.clone();
    let sending = tokio::task::spawn_blocking(move || send_files(&roots, asked, &sender, &watched));
    let listening = listen(incoming, &files, wanted);
    let work = async {
        let (walking, sending) = (async { joined(walking.await) }, async { joined(sending.await) });
        let ((), sent, ()) = tokio::try_join!(walking, sending, listening)?;
        packets.send(Packet::of(kind::FIN)).await.map_err(|_| closed())?;
        Ok(sent)
    };
    tokio::pin!(work);
    loop {
        tokio::select! {
            result = &mut work => {
                if let Ok(Sent { files, bytes }) = result {
                    progress(SyncProgress { files, bytes });
                }
                return result;
            }
            () = cancel.cancelled() => return Err(Error::Canceled),
            Some(now) = next_progress(&mut watching) => progress(now),
        }
    }
}

fn closed() -> Error {
    Error::Receiver("the stream was closed before everything was sent".to_owned())
}

fn open(from: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(from, flags, rustix::fs::Mode::empty())
        .map_err(io("open", from.to_string_lossy().as_bytes()))
}

fn io(action: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> Error {
    move |errno| Error::Io { action, path: String::from_utf8_lossy(path).into_owned(), errno }
}

/// Takes requests until the receiver has all.
async fn listen(
    incoming: &mut Packets,
    files: &Files,
    wanted: mpsc::UnboundedSender<(u32, (usize, Vec<u8>))>,
) -> Result<(), Error> {
    while let Some(packet) = incoming.next().await {
        let packet = packet?;
        match packet.kind {
            kind::REQ => {
                let path = files.lock().unwrap_or_else(PoisonError::into_inner).remove(&packet.id);
                let Some(path) = path else {
                    return Err(Error::Receiver(format!("invalid file id {}", packet.id)));
                };
                wanted.send((packet.id, path)).map_err(|_| closed())?;
            }
            kind::FIN => return Ok(()),
            kind::ERR => return Err(Error::Receiver(String::from_utf8_lossy(&packet.data).into_owned())),
            other => return Err(Error::Receiver(format!("a packet of kind {other} is not for a sender"))),
        }
    }
    Err(closed())
}

/// A directory that no file system has: `drwxr-xr-x`.
const DIRECTORY_MODE: u32 = 0o040_755;

fn nanoseconds(seconds: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000)
}

/// Lists a directory in the order that receivers expect.
struct Walk {
    packets: mpsc::Sender<Packet>,
    files: Files,
    next_id: u32,
    /// The first path of each file with several.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// The number of the root that is listed, and what stands before paths in it.
    root: usize,
    below: Vec<u8>,
    modified: Option<i64>,
}

impl Walk {
    fn run(mut self, roots: &[(String, OwnedFd)]) -> Result<(), Error> {
        for (number, (name, root)) in roots.iter().enumerate() {
            (self.root, self.below) = (number, Vec::new());
            // What is a hard link in one of them is a file of its own in another.
            self.links.clear();
            if !name.is_empty() {
                self.below = format!("{name}/").into_bytes();
                let stat = Stat {
                    path: name.clone().into_bytes(),
                    mode: mode::to_go(DIRECTORY_MODE),
                    mod_time: self.modified.map_or(0, nanoseconds),
                    ..Stat::default()
                };
                self.say(stat)?;
            }
            // A root may be open for its path alone, as mounts are.
            let root = at::open_dir(root.as_fd(), b".").map_err(io("open", b"."))?;
            self.directory(root.as_fd(), b"", 0)?;
        }
        self.packets.blocking_send(Packet::of(kind::STAT)).map_err(|_| closed())
    }

    /// Tells of an entry.
    fn say(&mut self, stat: Stat) -> Result<(), Error> {
        self.next_id = self.next_id.wrapping_add(1);
        let packet = Packet { stat: Some(stat), ..Packet::of(kind::STAT) };
        self.packets.blocking_send(packet).map_err(|_| closed())
    }

    fn directory(&mut self, dir: BorrowedFd<'_>, path: &[u8], depth: usize) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(io("list", path)(Errno::NAMETOOLONG));
        }
        for name in at::list(dir).map_err(io("list", path))? {
            let here = if path.is_empty() { name.clone() } else { [path, b"/", &name].concat() };
            let Some(found) = at::stat(dir, &name).map_err(io("stat", &here))? else { continue };
            if at::is_whiteout(&found) {
                continue;
            }
            let stat = self.describe(dir, &name, &here, &found)?;
            if mode::Kind::of(stat.mode) == mode::Kind::File {
                let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
                files.insert(self.next_id, (self.root, here.clone()));
            }
            self.say(stat)?;
            if at::is_dir(&found) {
                let fd = at::open_dir(dir, &name).map_err(io("open", &here))?;
                self.directory(fd.as_fd(), &here, depth + 1)?;
            }
        }
        Ok(())
    }

    fn describe(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        found: &rustix::fs::Stat,
    ) -> Result<Stat, Error> {
        let file_type = at::kind(found);
        let mut stat = Stat {
            path: [&self.below, path].concat(),
            mode: mode::to_go(found.st_mode),
            uid: found.st_uid,
            gid: found.st_gid,
            mod_time: match self.modified {
                Some(seconds) => nanoseconds(seconds),
                None => i64::try_from(at::modified_ns(found)).unwrap_or(0),
            },
            ..Stat::default()
        };
        match file_type {
            FileType::Directory => {}
            FileType::Symlink => {
                stat.linkname = at::read_link(dir, name).map_err(io("read link", path))?;
                stat.size = found.st_size;
            }
            FileType::BlockDevice | FileType::CharacterDevice => {
                stat.devmajor = rustix::fs::major(found.st_rdev).into();
                stat.devminor = rustix::fs::minor(found.st_rdev).into();
            }
            _ => {
                stat.size = found.st_size;
                if found.st_nlink > 1 {
                    let first =
                        self.links.entry((found.st_dev, found.st_ino)).or_insert_with(|| path.to_vec());
                    if first != path {
                        stat.linkname = [&self.below, first.as_slice()].concat();
                        stat.size = 0;
                    }
                }
            }
        }
        let xattrs = at::xattrs(dir, name).map_err(io("read attributes of", path))?;
        stat.xattrs = xattrs.into_iter().map(|(key, value)| Xattr { key, value }).collect();
        Ok(stat)
    }
}

/// Sends contents in the order in which they are asked for.
fn send_files(
    roots: &[(String, OwnedFd)],
    mut asked: mpsc::UnboundedReceiver<(u32, (usize, Vec<u8>))>,
    packets: &mpsc::Sender<Packet>,
    progress: &watch::Sender<SyncProgress>,
) -> Result<Sent, Error> {
    let mut sent = Sent::default();
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Some((id, (number, path))) = asked.blocking_recv() {
        let Some((_, root)) = roots.get(number) else { return Err(closed()) };
        let file = match at::beneath(root.as_fd(), &path, OFlags::RDONLY) {
            // A socket, which is listed as an empty file.
            Err(Errno::NXIO) => None,
            file => Some(file.map_err(io("open", &path))?),
        };
        loop {
            let read = match file.as_ref().map(|file| rustix::io::read(file, buffer.as_mut_slice())) {
                None => 0,
                Some(Err(Errno::INTR)) => continue,
                Some(read) => read.map_err(io("read", &path))?,
            };
            let data = Bytes::copy_from_slice(buffer.get(..read).unwrap_or_default());
            let packet = Packet { id, data, ..Packet::of(kind::DATA) };
            packets.blocking_send(packet).map_err(|_| closed())?;
            if read == 0 {
                break;
            }
            sent.bytes += read as u64;
        }
        sent.files += 1;
        progress.send_replace(SyncProgress { files: sent.files, bytes: sent.bytes });
    }
    Ok(sent)
}
