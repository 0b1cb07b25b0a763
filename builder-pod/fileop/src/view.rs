//! A tree as a build sees it: a root directory, perhaps with parts of it hidden.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, OFlags, Stat};

use crate::at::{self, Context};
use crate::error::Error;
use crate::limits::{DEPTH_MAX, SYMLINKS_MAX};
use crate::path;

/// What a [`Filter`] says of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is part of the tree.
    Show,
    /// It is not, but something below it may be; then it is there after all, as the way to that.
    Descend,
    /// Neither it nor anything below it is part of the tree.
    Hide,
}

/// Hides parts of a tree.
pub trait Filter: Sync {
    /// The verdict on `path`, relative to the root and never empty.
    fn verdict(&self, path: &str, is_dir: bool) -> Verdict;
}

/// A tree to read from.
#[derive(Clone, Copy)]
pub struct View<'a> {
    root: BorrowedFd<'a>,
    filter: Option<&'a dyn Filter>,
    owner_reset: bool,
    /// Nothing in it has extended attributes, so nobody has to look.
    bare: bool,
}

/// A name in a directory and what it is.
pub(crate) struct Child {
    pub(crate) name: Vec<u8>,
    pub(crate) stat: Stat,
}

impl<'a> View<'a> {
    /// The whole tree below `root`, owners as they are: a snapshot.
    pub fn snapshot(root: BorrowedFd<'a>) -> Self {
        Self { root, filter: None, owner_reset: false, bare: false }
    }

    /// A build context: `filter` hides parts of it, and everything belongs to uid and gid 0,
    /// whoever checked it out.
    pub fn context(root: BorrowedFd<'a>, filter: Option<&'a dyn Filter>) -> Self {
        Self { root, filter, owner_reset: true, bare: false }
    }

    /// The same of a tree of which it is known that nothing in it has extended attributes.
    #[must_use]
    pub fn without_attributes(self) -> Self {
        Self { bare: true, ..self }
    }

    /// The extended attributes of what is open.
    pub(crate) fn attributes_of(&self, fd: BorrowedFd<'_>) -> Result<at::Xattrs, rustix::io::Errno> {
        if self.bare { Ok(Vec::new()) } else { at::xattrs_of(fd) }
    }

    /// The extended attributes of a name.
    pub(crate) fn attributes(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<at::Xattrs, rustix::io::Errno> {
        if self.bare { Ok(Vec::new()) } else { at::xattrs(dir, name) }
    }

    /// The root directory.
    pub fn root(&self) -> BorrowedFd<'a> {
        self.root
    }

    fn verdict(&self, path: &[u8], is_dir: bool) -> Verdict {
        match self.filter {
            Some(filter) if !path.is_empty() => filter.verdict(&String::from_utf8_lossy(path), is_dir),
            _ => Verdict::Show,
        }
    }

    /// Whether this is a build context.
    pub(crate) fn is_context(&self) -> bool {
        self.owner_reset
    }

    /// The owner that a build sees.
    pub(crate) fn owner(&self, stat: &Stat) -> (u32, u32) {
        if self.owner_reset { (0, 0) } else { (stat.st_uid, stat.st_gid) }
    }

    /// `lstat` of a path that holds no symlink but perhaps its last component; `None` when hidden or missing.
    pub(crate) fn stat(&self, path: &[u8]) -> Result<Option<Stat>, Error> {
        let Some((parent, name)) = path::split(path) else {
            return at::stat(self.root, b"").on("stat", path);
        };
        let parent_fd = match at::beneath(self.root, parent, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
            Err(errno) => return Err(errno).on("open", parent),
        };
        let stat = at::stat(parent_fd.as_fd(), name).on("stat", path)?;
        let Some(stat) = stat.filter(|stat| !at::is_whiteout(stat)) else { return Ok(None) };
        Ok(self.shows(parent_fd.as_fd(), name, path, &stat)?.then_some(stat))
    }

    /// Whether `name` in `dir`, whose path is `path`, is part of the tree.
    fn shows(&self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8], stat: &Stat) -> Result<bool, Error> {
        match self.verdict(path, at::is_dir(stat)) {
            Verdict::Show => Ok(true),
            Verdict::Hide => Ok(false),
            Verdict::Descend if !at::is_dir(stat) => Ok(false),
            Verdict::Descend => {
                let below = at::open_dir(dir, name).on("open", path)?;
                self.shows_any(below.as_fd(), path, 0)
            }
        }
    }

    fn shows_any(&self, dir: BorrowedFd<'_>, path: &[u8], depth: usize) -> Result<bool, Error> {
        if depth > DEPTH_MAX {
            return Err(Error::TooDeep(path::show(path)));
        }
        let mut later = Vec::new();
        for name in at::list(dir).on("read directory", path)? {
            let below = path::join(path, &name);
            let Some(stat) = at::stat(dir, &name).on("stat", &below)? else { continue };
            match self.verdict(&below, at::is_dir(&stat)) {
                Verdict::Show => return Ok(true),
                Verdict::Descend if at::is_dir(&stat) => later.push((name, below)),
                _ => {}
            }
        }
        for (name, below) in later {
            let fd = at::open_dir(dir, &name).on("open", &below)?;
            if self.shows_any(fd.as_fd(), &below, depth + 1)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What the directory `dir`, whose path is `path`, shows, sorted by name.
    pub(crate) fn children(&self, dir: BorrowedFd<'_>, path: &[u8]) -> Result<Vec<Child>, Error> {
        let mut children = Vec::new();
        for name in at::list(dir).on("read directory", path)? {
            let below = path::join(path, &name);
            // A name that went away since it was listed is not there.
            let Some(stat) = at::stat(dir, &name).on("stat", &below)? else { continue };
            if at::is_whiteout(&stat) {
                continue;
            }
            if self.filter.is_none() || self.shows(dir, &name, &below, &stat)? {
                children.push(Child { name, stat });
            }
        }
        Ok(children)
    }

    /// Opens the directory at a path that holds no symlink.
    pub(crate) fn open_dir(&self, path: &[u8]) -> Result<OwnedFd, Error> {
        at::beneath_dir(self.root, path).on("open", path)
    }

    /// Opens the directory that `path` leads to.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none (or it is hidden); else what opening may meet.
    pub fn open_resolved_dir(&self, path: &str) -> Result<OwnedFd, Error> {
        let resolved = self.resolve(path.as_bytes(), true)?;
        if self.stat(&resolved)?.is_none() {
            return Err(Error::NotFound(path::show(&path::clean(path.as_bytes()))));
        }
        self.open_dir(&resolved)
    }

    /// Where `path` leads: symlinks are followed inside the root, `..` stops there.
    ///
    /// What does not exist is kept as it is written. The last component is followed only if asked.
    pub(crate) fn resolve(&self, path: &[u8], follow_last: bool) -> Result<Vec<u8>, Error> {
        let mut todo: VecDeque<Vec<u8>> = components(&path::clean(path));
        let mut done: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        while let Some(part) = todo.pop_front() {
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    done.pop();
                    continue;
                }
                _ => done.push(part),
            }
            if todo.is_empty() && !follow_last {
                break;
            }
            let here = done.join(&b'/');
            let Some(stat) = self.stat(&here)? else { continue };
            if at::kind(&stat) != FileType::Symlink {
                continue;
            }
            links += 1;
            if links > SYMLINKS_MAX {
                return Err(Error::SymlinkLoop(path::show(&path::clean(path))));
            }
            let target = self.read_link(&here)?;
            done.pop();
            if target.first() == Some(&b'/') {
                done.clear();
            }
            for part in components(&target).into_iter().rev() {
                todo.push_front(part);
            }
        }
        Ok(done.join(&b'/'))
    }

    /// The target of the symlink at `path`, which holds no other symlink.
    pub(crate) fn read_link(&self, path: &[u8]) -> Result<Vec<u8>, Error> {
        let fd = at::beneath(self.root, path, OFlags::PATH).on("read link", path)?;
        at::read_link(fd.as_fd(), b"").on("read link", path)
    }

    /// Reads the file that `path` leads to, at most `bytes_max` of it; `None` when there is none.
    ///
    /// # Errors
    /// When it is not a regular file, is longer, or cannot be read.
    pub fn read(&self, path: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, Error> {
        use std::io::Read as _;
        let path = self.resolve(path.as_bytes(), true)?;
        let Some(stat) = self.stat(&path)? else { return Ok(None) };
        match at::kind(&stat) {
            FileType::RegularFile => {}
            FileType::Directory => return Err(rustix::io::Errno::ISDIR).on("read", &path),
            _ => return Err(rustix::io::Errno::INVAL).on("read", &path),
        }
        let file = std::fs::File::from(at::beneath(self.root, &path, OFlags::RDONLY).on("open", &path)?);
        let mut content = Vec::new();
        file.take(bytes_max.saturating_add(1)).read_to_end(&mut content).on("read", &path)?;
        if content.len() as u64 > bytes_max {
            return Err(rustix::io::Errno::FBIG).on("read", &path);
        }
        Ok(Some(content))
    }

    /// The paths that `pattern` matches, in order; symlinks are followed before the first wildcard.
    ///
    /// A pattern without wildcards is returned as it is. Nothing below a match is looked at.
    pub(crate) fn glob(&self, pattern: &[u8], follow: bool) -> Result<Vec<Vec<u8>>, Error> {
        let (literal, wild) = path::split_wildcard(&path::clean(pattern));
        if wild.is_empty() {
            return Ok(vec![literal]);
        }
        path::matches(&wild, b"").map_err(|_| {
            Error::Pattern(crate::PatternError {
                index: 0,
                pattern: String::from_utf8_lossy(pattern).into_owned(),
                reason: "is malformed",
            })
        })?;
        let base = self.resolve(&literal, follow)?;
        let mut found = Vec::new();
        if self.stat(&base)?.is_some_and(|stat| at::is_dir(&stat)) {
            let dir = self.open_dir(&base)?;
            let parts: Vec<&[u8]> = wild.split(|&b| b == b'/').collect();
            self.glob_below(dir.as_fd(), &base, &parts, &mut found)?;
        }
        Ok(found)
    }

    /// A wildcard never crosses a slash, so each level of the pattern meets one level of the tree.
    fn glob_below(
        &self,
        dir: BorrowedFd<'_>,
        path: &[u8],
        parts: &[&[u8]],
        found: &mut Vec<Vec<u8>>,
    ) -> Result<(), Error> {
        let Some((part, rest)) = parts.split_first() else { return Ok(()) };
        for child in self.children(dir, path)? {
            if path::matches(part, &child.name) != Ok(true) {
                continue;
            }
            let below = path::join(path, &child.name);
            if rest.is_empty() {
                found.push(below);
            } else if at::is_dir(&child.stat) {
                let fd = at::open_dir(dir, &child.name).on("open", &below)?;
                self.glob_below(fd.as_fd(), &below, rest, found)?;
            }
        }
        Ok(())
    }
}

fn components(path: &[u8]) -> VecDeque<Vec<u8>> {
    path.split(|&b| b == b'/').map(<[u8]>::to_vec).collect()
}

/// Opens the directory `path` of the machine as a root, following symlinks.
///
/// # Errors
/// When it is not there or not a directory.
pub fn open_root(path: &std::path::Path) -> Result<OwnedFd, Error> {
    at::open_root(path).map_err(|errno| Error::Io { action: "open", path: path.display().to_string(), errno })
}
