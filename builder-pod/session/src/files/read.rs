//! A few files of a client's directory, read into memory.

use std::collections::HashMap;

use tokio::sync::mpsc;

use super::mode::Kind;
use super::order::Order;
use super::stream::Packets;
use super::wire::{Packet, Stat, kind};
use crate::error::Error;

/// Entries that a client may list for a few files: the files, directories around them, links on the way.
const ENTRIES_MAX: usize = 100_000;
const LINKS_MAX: usize = 255;

/// What a client listed.
#[derive(Default)]
struct Listing {
    /// By path: its place in the listing, what it is, what it links to.
    entries: HashMap<Vec<u8>, (u32, Kind, Vec<u8>)>,
}

/// The contents of `paths`, in their order.
pub(super) async fn read(
    incoming: &mut Packets,
    requests: &mpsc::Sender<Packet>,
    name: &str,
    paths: &[&str],
    bytes_max: usize,
) -> Result<Vec<Option<Vec<u8>>>, Error> {
    let listing = list(incoming, name).await?;
    let mut found = HashMap::new();
    let mut contents = Vec::new();
    for path in paths {
        let id = listing.file(path.as_bytes());
        if let Some(id) = id
            && !found.contains_key(&id)
        {
            let content = fetch(incoming, requests, name, (id, path), bytes_max).await?;
            found.insert(id, content);
        }
        contents.push(id.and_then(|id| found.get(&id).cloned()));
    }
    let _ = requests.send(Packet::of(kind::FIN)).await;
    Ok(contents)
}

fn protocol(name: &str, problem: impl Into<String>) -> Error {
    Error::Protocol { name: name.to_owned(), problem: problem.into() }
}

/// The next packet that is no error.
async fn next(incoming: &mut Packets, name: &str) -> Result<Packet, Error> {
    match incoming.next().await {
        None => Err(protocol(name, "the sender closed the stream before everything was sent")),
        Some(Ok(packet)) if packet.kind == kind::ERR => {
            Err(Error::Sender(String::from_utf8_lossy(&packet.data).into_owned()))
        }
        Some(packet) => packet,
    }
}

async fn list(incoming: &mut Packets, name: &str) -> Result<Listing, Error> {
    let mut listing = Listing::default();
    let mut order = Order::default();
    for id in 0..=u32::MAX {
        let packet = next(incoming, name).await?;
        if packet.kind != kind::STAT {
            return Err(protocol(name, format!("a packet of kind {} in the listing", packet.kind)));
        }
        let Some(Stat { path, mode, linkname, .. }) = packet.stat else { return Ok(listing) };
        let kind = Kind::of(mode);
        order.next(&path, kind == Kind::Directory).map_err(|problem| protocol(name, problem))?;
        if listing.entries.len() >= ENTRIES_MAX {
            break;
        }
        listing.entries.insert(path, (id, kind, linkname));
    }
    Err(protocol(name, format!("more than {ENTRIES_MAX} entries for a few files")))
}

async fn fetch(
    incoming: &mut Packets,
    requests: &mpsc::Sender<Packet>,
    name: &str,
    (id, path): (u32, &str),
    bytes_max: usize,
) -> Result<Vec<u8>, Error> {
    requests.send(Packet::request(id)).await.map_err(|_| Error::Canceled)?;
    let mut content = Vec::new();
    loop {
        let packet = next(incoming, name).await?;
        if packet.kind != kind::DATA || packet.id != id {
            return Err(protocol(name, format!("a packet that does not belong to {path:?}")));
        }
        if packet.data.is_empty() {
            return Ok(content);
        }
        content.extend_from_slice(&packet.data);
        if content.len() > bytes_max {
            return Err(Error::FileTooLarge { path: path.to_owned(), bytes_max });
        }
    }
}

impl Listing {
    /// The place of the file that `path` leads to, symlinks followed; `None` when there is none.
    fn file(&self, path: &[u8]) -> Option<u32> {
        let mut rest: Vec<Vec<u8>> = components(path);
        let mut reached: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        let mut last = None;
        while let Some(part) = rest.pop() {
            if part == b".." {
                reached.pop();
                continue;
            }
            reached.push(part);
            let (id, kind, linkname) = self.entries.get(&reached.join(&b'/'))?;
            match kind {
                Kind::Symlink => {
                    links += 1;
                    if links > LINKS_MAX {
                        return None;
                    }
                    reached.pop();
                    if linkname.first() == Some(&b'/') {
                        reached.clear();
                    }
                    rest.extend(components(linkname));
                }
                Kind::File if !linkname.is_empty() => {
                    // Another name of a file that was listed before.
                    let (target, kind, _) = self.entries.get(linkname)?;
                    last = (*kind == Kind::File).then_some(*target);
                }
                Kind::File => last = Some(*id),
                _ => last = None,
            }
        }
        last
    }
}

/// The parts of a path, the last first.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.rev().map(<[u8]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(entries: &[(&str, Kind, &str)]) -> Listing {
        let entries = entries.iter().zip(0..).map(|((path, kind, link), id)| {
            (path.as_bytes().to_vec(), (id, *kind, link.as_bytes().to_vec()))
        });
        Listing { entries: entries.collect() }
    }

    #[test]
    fn symlinks_are_followed_inside_the_directory_and_loops_end() {
        let listing = listing(&[
            ("a", Kind::Directory, ""),
            ("a/file", Kind::File, ""),
            ("absolute", Kind::Symlink, "/a/file"),
            ("dir", Kind::Symlink, "a"),
            ("loop", Kind::Symlink, "loop"),
            ("up", Kind::Symlink, "../../a/./file"),
            ("z", Kind::File, "a/file"),
        ]);
        for path in ["a/file", "absolute", "dir/file", "up", "z", "/dir/../a/file"] {
            assert_eq!(listing.file(path.as_bytes()), Some(1), "{path}");
        }
        for path in ["a", "dir", "loop", "none", "a/file2"] {
            assert_eq!(listing.file(path.as_bytes()), None, "{path}");
        }
    }
}
