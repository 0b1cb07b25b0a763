//! Puts a snapshot's own files over other layers without reading them: each is one more name of the same file.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::Stat;

use super::tree::Tree;
use super::{ApplyOptions, place};
use crate::diff::{
    self, DiffOptions, Sink, entry_of, kind_of, layer_xattrs, same_as_below, same_owner_and_mode,
};
use crate::fsio;
use crate::lower::{LowerChild, LowerDir};
use crate::tar::{Entry, Kind};
use crate::{Error, Result, limits};

/// Makes `upper`, an empty directory that nobody else writes to, what unpacking the layer of the snapshot `from` over
/// `options.lowers_top_first` would make it. `from_lowers_top_first` are the layers below `from`; `None` where they are
/// not known, so that all its marks of deletion hold.
///
/// Returns what this user namespace may not make, and was left out.
///
/// # Errors
/// As [`super::apply_layer`] and [`crate::write_changes`].
pub fn stack_layer(
    from: &Path,
    from_lowers_top_first: Option<&[PathBuf]>,
    upper: &Path,
    options: &ApplyOptions,
) -> Result<Vec<String>> {
    let lower = from_lowers_top_first.map(|lowers| LowerDir::root(lowers, options.userxattr)).transpose()?;
    let changes = DiffOptions { userxattr: options.userxattr, mtime_max: None };
    let links = Links { tree: Tree::open(upper, options)? };
    let (links, _) = diff::walk(from, lower.as_ref(), &changes, links)?;
    links.tree.finish()
}

/// Makes `upper`, an empty directory that nobody else writes to, the layer that turns the file system `from` into the
/// file system `to`; both are layers, topmost first.
///
/// Returns what this user namespace may not make, and was left out.
///
/// # Errors
/// As [`stack_layer`].
pub fn stack_changes(
    to: &[PathBuf],
    from: &[PathBuf],
    upper: &Path,
    options: &ApplyOptions,
) -> Result<Vec<String>> {
    let (to, from) = (LowerDir::root(to, options.userxattr)?, LowerDir::root(from, options.userxattr)?);
    let mut differences =
        Differences { links: Links { tree: Tree::open(upper, options)? }, waiting: Vec::new() };
    differences.below(&to, &from, &[])?;
    differences.links.tree.finish()
}

/// Gives what differs between two file systems.
struct Differences<'a> {
    links: Links<'a>,
    /// Directories on the way down that are the same, given once something in them differs.
    waiting: Vec<Entry>,
}

impl Differences<'_> {
    /// What differs below one directory.
    fn below(&mut self, to: &LowerDir, from: &LowerDir, path: &[u8]) -> Result<()> {
        if path.iter().filter(|b| **b == b'/').count() > limits::DEPTH_MAX {
            return Err(Error::malformed(path, "directory is too deep"));
        }
        let list = |dir: &LowerDir| dir.names().map_err(|e| Error::io("list", path, e));
        let names: BTreeSet<_> = list(to)?.into_iter().chain(list(from)?).collect();
        for name in names {
            let name = name.to_bytes();
            let at = |name: &[u8]| if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() };
            let full = at(name);
            let fail = |e| Error::io("look at", &full, e);
            let below = from.child(name).map_err(fail)?;
            match to.child(name).map_err(fail)? {
                LowerChild::Nothing => {
                    self.give(&Entry::new(at(&[b".wh.", name].concat()), Kind::File), None)?;
                }
                LowerChild::Dir(dir, stat) => self.dir(&full, &dir, &stat, below)?,
                LowerChild::Other { part, stat } => {
                    self.leaf(&full, (to.part(part), name), &stat, &below, from)?;
                }
            }
        }
        Ok(())
    }

    fn dir(&mut self, full: &[u8], dir: &LowerDir, stat: &Stat, below: LowerChild) -> Result<()> {
        let xattrs = |dir: &LowerDir| {
            let raw = dir.top().map(fsio::xattrs_of).transpose();
            layer_xattrs(raw.map_err(|e| Error::io("look at", full, e))?.unwrap_or_default(), full)
        };
        let own = xattrs(dir)?;
        let (lower, same) = match below {
            LowerChild::Dir(lower, theirs) => {
                let same = same_owner_and_mode(stat, &theirs) && xattrs(&lower)? == own;
                (lower, same)
            }
            _ => (LowerDir::empty(), false),
        };
        let entry = entry_of([full, b"/"].concat(), Kind::Dir, stat, own, None);
        let level = self.waiting.len();
        match same {
            true => self.waiting.push(entry),
            false => self.give(&entry, None)?,
        }
        self.below(dir, &lower, full)?;
        self.waiting.truncate(level);
        Ok(())
    }

    fn leaf(
        &mut self,
        full: &[u8],
        (dir, name): (&OwnedFd, &[u8]),
        stat: &Stat,
        below: &LowerChild,
        from: &LowerDir,
    ) -> Result<()> {
        let fail = |e| Error::io("look at", full, e);
        let Some(kind) = kind_of(stat) else { return Ok(()) };
        let raw = fsio::xattrs_at(dir.as_fd(), name).map_err(fail)?;
        let mut entry = entry_of(full.to_vec(), kind, stat, layer_xattrs(raw, full)?, None);
        let mut file = None;
        match entry.kind {
            Kind::File => file = Some(fsio::open_file(dir, name).map_err(fail)?),
            Kind::Symlink => {
                let target = rustix::fs::readlinkat(dir, name, Vec::new()).map_err(fail)?;
                entry.link = target.into_bytes();
            }
            _ => {}
        }
        match same_as_below(&entry, file.as_ref(), name, stat, below, from)? {
            true => Ok(()),
            false => self.give(&entry, Some((dir, name))),
        }
    }

    fn give(&mut self, entry: &Entry, at: Option<(&OwnedFd, &[u8])>) -> Result<()> {
        for waiting in std::mem::take(&mut self.waiting) {
            self.links.entry(&waiting, None)?;
        }
        self.links.entry(entry, at)
    }
}

/// Makes names in place of an archive.
struct Links<'a> {
    tree: Tree<'a>,
}

impl Sink for Links<'_> {
    fn entry(&mut self, entry: &Entry, at: Option<(&OwnedFd, &[u8])>) -> Result<()> {
        place(&mut self.tree, entry, |tree, path, name| match (&entry.kind, at) {
            (Kind::Dir, _) => tree.dir(path, name, entry),
            (_, Some(at)) => tree.link(path, name, entry, at),
            (_, None) => Err(Error::malformed(&entry.path, "it is nowhere")),
        })
    }

    fn data(&mut self, _file: OwnedFd, _size: u64, _path: &[u8]) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
