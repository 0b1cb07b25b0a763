//! Lists a view, entry by entry.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::FileType;

use crate::at::{self, Context};
use crate::error::Error;
use crate::limits::{DEPTH_MAX, SYMLINKS_MAX};
use crate::path;
use crate::view::View;

/// What a listed entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symlink and what it says.
    Symlink(Vec<u8>),
    /// A device file and its number.
    Device(u64),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// An entry of a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path relative to the root.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size of a file in bytes.
    pub size_bytes: u64,
    /// Time of the last write, in nanoseconds since 1970.
    pub modified_ns: i128,
    /// Extended attributes that belong to the content, by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// How many paths [`View::follow`] looks at before it leaves the rest to whoever reads them.
const FOLLOWED_MAX: usize = 20_000;

#[derive(Default)]
struct Trail {
    followed: std::collections::HashSet<Vec<u8>>,
    needed: std::collections::BTreeSet<Vec<u8>>,
}

impl View<'_> {
    /// Calls `visit` for each entry: a directory before what is in it, siblings by name.
    ///
    /// # Errors
    /// What reading may meet, or what `visit` returns.
    pub fn walk(&self, visit: &mut dyn FnMut(Entry) -> Result<(), Error>) -> Result<(), Error> {
        let root = self.open_dir(b"")?;
        self.walk_below(root.as_fd(), b"", 0, visit)
    }

    fn walk_below(
        &self,
        dir: BorrowedFd<'_>,
        path: &[u8],
        depth: usize,
        visit: &mut dyn FnMut(Entry) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(Error::TooDeep(path::show(path)));
        }
        for child in self.children(dir, path)? {
            let here = path::join(path, &child.name);
            let (uid, gid) = self.owner(&child.stat);
            let kind = match at::kind(&child.stat) {
                FileType::Directory => EntryKind::Directory,
                FileType::Symlink => {
                    EntryKind::Symlink(at::read_link(dir, &child.name).on("read link", &here)?)
                }
                FileType::BlockDevice | FileType::CharacterDevice => EntryKind::Device(child.stat.st_rdev),
                FileType::Fifo => EntryKind::Fifo,
                FileType::Socket => EntryKind::Socket,
                _ => EntryKind::File,
            };
            let is_dir = kind == EntryKind::Directory;
            visit(Entry {
                path: here.clone(),
                size_bytes: match kind {
                    EntryKind::File => u64::try_from(child.stat.st_size).unwrap_or(0),
                    _ => 0,
                },
                kind,
                mode: child.stat.st_mode,
                uid,
                gid,
                modified_ns: at::modified_ns(&child.stat),
                xattrs: at::xattrs(dir, &child.name).on("read attributes of", &here)?,
            })?;
            if is_dir {
                let fd = at::open_dir(dir, &child.name).on("open", &here)?;
                self.walk_below(fd.as_fd(), &here, depth + 1, visit)?;
            }
        }
        Ok(())
    }

    /// The paths that must be read so that each of `paths` (with wildcards) can be: symlinks on the way and
    /// what they lead to. `None` when that is the whole tree.
    ///
    /// # Errors
    /// What reading may meet. A missing path is none: whoever uses it will say so.
    pub fn follow(&self, paths: &[String]) -> Result<Option<Vec<String>>, Error> {
        let mut trail = Trail::default();
        for path in paths {
            self.follow_one(&path::clean(path.as_bytes()), 0, &mut trail)?;
        }
        if trail.needed.contains(&b""[..]) {
            return Ok(None);
        }
        let mut kept: Vec<Vec<u8>> = Vec::new();
        for path in trail.needed {
            // What lies below another path comes with it.
            let below = |dir: &Vec<u8>| path.starts_with(dir) && path.get(dir.len()) == Some(&b'/');
            if !kept.iter().any(below) {
                kept.push(path);
            }
        }
        Ok(Some(kept.iter().map(|path| String::from_utf8_lossy(path).into_owned()).collect()))
    }

    fn follow_one(&self, path: &[u8], links: usize, trail: &mut Trail) -> Result<(), Error> {
        // A path that was followed needs no second time, so loops end; some loops grow, though.
        if links > SYMLINKS_MAX
            || trail.followed.len() > FOLLOWED_MAX
            || !trail.followed.insert(path.to_vec())
        {
            return Ok(());
        }
        let parts: Vec<&[u8]> = path.split(|&b| b == b'/').filter(|part| !part.is_empty()).collect();
        let mut current = Vec::new();
        for (at, part) in parts.iter().enumerate() {
            let parent = current;
            current = path::join(&parent, part);
            let targets = self.link_targets(&parent, part)?;
            if targets.is_empty() {
                continue;
            }
            trail.needed.insert(current.clone());
            let rest = parts[at + 1..].join(&b'/');
            for target in targets {
                self.follow_one(&path::clean(&path::join(&target, &rest)), links + 1, trail)?;
            }
            // A wildcard may match directories beside links: their way goes on.
            if !path::has_wildcard(part) {
                return Ok(());
            }
        }
        trail.needed.insert(current);
        Ok(())
    }

    /// Where the symlinks that `name` (perhaps a wildcard) matches in `dir` lead, relative to the root.
    fn link_targets(&self, dir: &[u8], name: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        if !self.stat(dir)?.is_some_and(|stat| at::is_dir(&stat)) {
            return Ok(Vec::new());
        }
        let matched = if path::has_wildcard(name) {
            let fd = self.open_dir(dir)?;
            let children = self.children(fd.as_fd(), dir)?;
            children
                .into_iter()
                .map(|child| child.name)
                .filter(|child| path::matches(name, child) == Ok(true))
                .collect()
        } else {
            vec![name.to_vec()]
        };
        let mut targets = Vec::new();
        for name in matched {
            let here = path::join(dir, &name);
            if !self.stat(&here)?.is_some_and(|stat| at::kind(&stat) == FileType::Symlink) {
                continue;
            }
            let target = self.read_link(&here)?;
            let base = if target.first() == Some(&b'/') { b"" } else { dir };
            targets.push(path::clean(&path::join(base, &target)));
        }
        Ok(targets)
    }
}
