//! Puts a snapshot's own files over other layers without reading them: each is one more name of the same file.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use super::tree::Tree;
use super::{ApplyOptions, place};
use crate::diff::{self, DiffOptions, Sink, entry_of, kind_of, layer_xattrs, same_as_below, same_status};
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
    let mut links = Links { tree: Tree::open(upper, options)? };
    differences(&mut links, &to, &from, &[])?;
    links.tree.finish()
}

/// Gives what differs below one directory.
fn differences(links: &mut Links<'_>, to: &LowerDir, from: &LowerDir, path: &[u8]) -> Result<()> {
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
                links.entry(&Entry::new(at(&[b".wh.", name].concat()), Kind::File), None)?;
            }
            LowerChild::Dir(dir, stat) => {
                let xattrs = |dir: &LowerDir| {
                    let raw = dir.top().map(fsio::xattrs_of).transpose().map_err(fail)?;
                    layer_xattrs(raw.unwrap_or_default(), &full)
                };
                let (own, nothing) = (xattrs(&dir)?, LowerDir::empty());
                let (lower, same) = match &below {
                    LowerChild::Dir(lower, theirs) => {
                        (lower, same_status(&stat, theirs) && xattrs(lower)? == own)
                    }
                    _ => (&nothing, false),
                };
                if !same {
                    let path = [&full, &b"/"[..]].concat();
                    links.entry(&entry_of(path, Kind::Dir, &stat, own, None), None)?;
                }
                differences(links, &dir, lower, &full)?;
            }
            LowerChild::Other { part, stat } => {
                let (dir, Some(kind)) = (to.part(part), kind_of(&stat)) else { continue };
                let raw = fsio::xattrs_at(dir.as_fd(), name).map_err(fail)?;
                let mut entry = entry_of(full.clone(), kind, &stat, layer_xattrs(raw, &full)?, None);
                let mut file = None;
                match entry.kind {
                    Kind::File => file = Some(fsio::open_file(dir, name).map_err(fail)?),
                    Kind::Symlink => {
                        let target = rustix::fs::readlinkat(dir, name, Vec::new()).map_err(fail)?;
                        entry.link = target.into_bytes();
                    }
                    _ => {}
                }
                if !same_as_below(&entry, file.as_ref(), name, &stat, &below, from)? {
                    links.entry(&entry, Some((dir, name)))?;
                }
            }
        }
    }
    Ok(())
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
