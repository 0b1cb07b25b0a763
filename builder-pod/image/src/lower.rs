//! The merged view of lower layers, as overlay shows it: the topmost entry of a name counts, whiteouts
//! and opaque directories hide what is below, directories merge.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{FileType, Stat};
use rustix::io::{Errno, Result};

use crate::fsio;

/// One directory of the merged view: the layers' directories that take part, topmost first.
#[derive(Debug)]
pub(crate) struct LowerDir {
    parts: Vec<OwnedFd>,
    userxattr: bool,
}

/// What the merged view has under a name.
#[derive(Debug)]
pub(crate) enum LowerChild {
    /// Nothing.
    Nothing,
    /// A directory, and the status of its topmost part.
    Dir(LowerDir, Stat),
    /// Anything else; the index tells which part holds it.
    Other { part: usize, stat: Stat },
}

impl LowerDir {
    /// The root of the view; `userxattr` as in the overlay's mount.
    pub(crate) fn root(lowers_top_first: &[PathBuf], userxattr: bool) -> crate::Result<Self> {
        let open = |path: &PathBuf| {
            fsio::open_root(path).map_err(|e| crate::Error::io_at("open lower layer", path, e))
        };
        Ok(Self { parts: lowers_top_first.iter().map(open).collect::<crate::Result<_>>()?, userxattr })
    }

    /// A view of nothing.
    pub(crate) fn empty() -> Self {
        Self { parts: Vec::new(), userxattr: false }
    }

    /// The directory whose attributes are seen.
    pub(crate) fn top(&self) -> Option<&OwnedFd> {
        self.parts.first()
    }

    /// The directory that holds an [`LowerChild::Other`].
    pub(crate) fn part(&self, index: usize) -> &OwnedFd {
        &self.parts[index]
    }

    /// What lies under `name`.
    pub(crate) fn child(&self, name: &[u8]) -> Result<LowerChild> {
        let mut parts = Vec::new();
        let mut top = None;
        for (index, part) in self.parts.iter().enumerate() {
            let stat = match fsio::stat(part, name) {
                Ok(None) => continue,
                Ok(Some(stat)) => stat,
                Err(Errno::NAMETOOLONG) => return Ok(LowerChild::Nothing),
                Err(e) => return Err(e),
            };
            if fsio::kind(&stat) != FileType::Directory {
                if parts.is_empty() && !fsio::is_whiteout(&stat) {
                    return Ok(LowerChild::Other { part: index, stat });
                }
                break;
            }
            let dir = fsio::open_dir(part, name)?;
            // The lowest part hides nothing.
            let opaque =
                index + 1 < self.parts.len() && fsio::is_opaque(&fsio::xattrs_of(&dir)?, self.userxattr);
            top.get_or_insert(stat);
            parts.push(dir);
            if opaque {
                break;
            }
        }
        Ok(match top {
            Some(stat) => LowerChild::Dir(Self { parts, userxattr: self.userxattr }, stat),
            None => LowerChild::Nothing,
        })
    }

    /// All names that the view shows here.
    pub(crate) fn names(&self) -> Result<Vec<CString>> {
        let mut seen = BTreeSet::new();
        for part in &self.parts {
            seen.extend(fsio::list(part)?);
        }
        let mut shown = Vec::new();
        for name in seen {
            if !matches!(self.child(name.to_bytes())?, LowerChild::Nothing) {
                shown.push(name);
            }
        }
        Ok(shown)
    }
}
