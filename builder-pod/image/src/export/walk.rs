//! Goes through a root file system, parents before children, sorted by name.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use lapstrake_oci::{Digest, Hasher};
use rustix::fs::{FileType, Stat};

use crate::limits::DEPTH_MAX;
use crate::{Error, Result, fsio};

/// What is found under a name.
pub(super) struct Found<'a> {
    /// Path from the root, without a leading slash.
    pub(super) path: &'a [u8],
    /// The directory that holds it.
    pub(super) parent: BorrowedFd<'a>,
    /// Its name there.
    pub(super) name: &'a [u8],
    pub(super) stat: Stat,
    pub(super) kind: FileType,
    /// Open for reading where it is a directory or a regular file.
    pub(super) open: Option<&'a OwnedFd>,
    /// The path under which the same file came before.
    pub(super) earlier: Option<&'a [u8]>,
    /// Extended attributes that belong to the file, not to this machine or to overlay.
    pub(super) xattrs: fsio::Xattrs,
}

/// Told of everything in a root.
pub(super) trait Visitor {
    /// Of everything, directories before what is in them.
    fn enter(&mut self, found: &Found<'_>) -> Result<()>;
    /// Of a directory again, when all in it has been told.
    fn leave(&mut self, _found: &Found<'_>) -> Result<()> {
        Ok(())
    }
}

/// The first path that is a file, or anything but a directory, in two of these file systems, with their numbers. Blocking.
///
/// # Errors
/// Of the file systems.
pub fn clash<'a>(roots: impl IntoIterator<Item = BorrowedFd<'a>>) -> Result<Option<(Vec<u8>, usize, usize)>> {
    struct Seen {
        number: usize,
        paths: HashMap<Vec<u8>, usize>,
        clash: Option<(Vec<u8>, usize, usize)>,
    }
    impl Visitor for Seen {
        fn enter(&mut self, found: &Found<'_>) -> Result<()> {
            if found.kind == FileType::Directory || self.clash.is_some() {
                return Ok(());
            }
            if let Some(first) = self.paths.insert(found.path.to_vec(), self.number) {
                self.clash = Some((found.path.to_vec(), first, self.number));
            }
            Ok(())
        }
    }
    let mut seen = Seen { number: 0, paths: HashMap::new(), clash: None };
    for (number, root) in roots.into_iter().enumerate() {
        seen.number = number;
        walk(root, &mut seen)?;
    }
    Ok(seen.clash)
}

/// All regular files below `root` with the digests of what is in them, in the order of their paths. Blocking.
///
/// # Errors
/// Of the file system.
pub fn digests(root: BorrowedFd<'_>) -> Result<Vec<(Vec<u8>, Digest)>> {
    struct All(Vec<(Vec<u8>, Digest)>);
    impl Visitor for All {
        fn enter(&mut self, found: &Found<'_>) -> Result<()> {
            let (FileType::RegularFile, Some(open)) = (found.kind, found.open) else { return Ok(()) };
            let fail = |e: std::io::Error| Error::io("read", found.path, e);
            let mut file = std::fs::File::from(open.try_clone().map_err(fail)?);
            let (mut hasher, mut buffer) = (Hasher::new(), vec![0; 256 << 10]);
            loop {
                let read = std::io::Read::read(&mut file, &mut buffer).map_err(fail)?;
                let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
                hasher.update(bytes);
            }
            self.0.push((found.path.to_vec(), hasher.finish()));
            Ok(())
        }
    }
    let mut all = All(Vec::new());
    walk(root, &mut all)?;
    Ok(all.0)
}

/// Tells `visitor` of everything below `root`, the root itself left out. Sockets and overlay's whiteouts
/// (which the lowest layer of an image may have) are no part of a file system and left out too.
pub(super) fn walk(root: BorrowedFd<'_>, visitor: &mut dyn Visitor) -> Result<()> {
    let root = fsio::open_dir(root, b".").map_err(|e| Error::io("open", b"/", e))?;
    Walk { visitor, links: HashMap::new() }.directory(&root, &mut Vec::new(), 0)
}

struct Walk<'v> {
    visitor: &'v mut dyn Visitor,
    /// The first path of each file that has more than one.
    links: HashMap<(u64, u64), Vec<u8>>,
}

impl Walk<'_> {
    fn directory(&mut self, dir: &OwnedFd, path: &mut Vec<u8>, depth: usize) -> Result<()> {
        if depth > DEPTH_MAX {
            return Err(Error::Inconsistent(format!(
                "directory \"{}\" is deeper than {DEPTH_MAX} levels",
                String::from_utf8_lossy(path)
            )));
        }
        let length = path.len();
        for name in fsio::list(dir).map_err(|e| Error::io("list", path, e))? {
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name.to_bytes());
            self.child(dir, name.to_bytes(), path, depth)?;
            path.truncate(length);
        }
        Ok(())
    }

    fn child(&mut self, dir: &OwnedFd, name: &[u8], path: &mut Vec<u8>, depth: usize) -> Result<()> {
        let Some(stat) = fsio::stat(dir, name).map_err(|e| Error::io("look at", path, e))? else {
            return Ok(());
        };
        let kind = fsio::kind(&stat);
        if kind == FileType::Socket || fsio::is_whiteout(&stat) {
            return Ok(());
        }
        let open = match kind {
            FileType::Directory => Some(fsio::open_dir(dir, name)),
            FileType::RegularFile => Some(fsio::open_file(dir, name)),
            _ => None,
        };
        let open = open.transpose().map_err(|e| Error::io("open", path, e))?;
        let xattrs = match &open {
            Some(open) => fsio::xattrs_of(open),
            None => fsio::xattrs_at(dir.as_fd(), name),
        };
        let mut xattrs = xattrs.map_err(|e| Error::io("read attributes of", path, e))?;
        xattrs.retain(|name, _| fsio::belongs_in_layer(name));
        let earlier = self.earlier(kind, &stat, path);
        let whole = path.clone();
        let found = Found {
            path: &whole,
            parent: dir.as_fd(),
            name,
            stat,
            kind,
            open: open.as_ref(),
            earlier: earlier.as_deref(),
            xattrs,
        };
        self.visitor.enter(&found)?;
        if let (FileType::Directory, Some(inner)) = (kind, &open) {
            self.directory(inner, path, depth + 1)?;
            self.visitor.leave(&found)?;
        }
        Ok(())
    }

    /// The path under which the same file was told of before; remembers this one otherwise.
    fn earlier(&mut self, kind: FileType, stat: &Stat, path: &[u8]) -> Option<Vec<u8>> {
        if kind == FileType::Directory || stat.st_nlink < 2 {
            return None;
        }
        match self.links.entry((stat.st_dev, stat.st_ino)) {
            std::collections::hash_map::Entry::Occupied(known) => Some(known.get().clone()),
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(path.to_vec());
                None
            }
        }
    }
}
