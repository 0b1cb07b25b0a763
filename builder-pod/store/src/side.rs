//! Directories of other parts whose changes are told, so that nobody has to walk them to know their size.
//!
//! Holds: a size that was told holds until the next change begins; while one is made, whoever asks has to walk. It is kept in
//! memory only: a kill may leave a change half made.

use std::path::{Path, PathBuf};

use crate::flush::{Shared, locked};
use crate::pins::SideName;
use crate::usage::measure;
use crate::{Error, Result, Store};

/// The size of a directory that changes only while it is needed.
#[derive(Debug)]
pub(crate) struct SideSize {
    /// The mark of who needed it last when it was measured; the changes of one without it are told.
    touched: Option<Option<u64>>,
    bytes: u64,
}

/// A directory of another part that is being changed. Dropped without a word, it is measured by the next who asks.
#[must_use = "what is not told has to be measured"]
pub struct SideChange {
    store: Store,
    name: SideName,
    /// Its bytes before, as far as they are known.
    bytes: Option<u64>,
}

impl Store {
    /// Begins to change `name` in the directory `group` of [`Store::side_dir`], which is there and needed
    /// ([`Store::touch_side`]). One at a time, and each change of it like this.
    ///
    /// # Errors
    /// I/O.
    pub fn change_side(&self, group: &str, name: &str) -> Result<SideChange> {
        let path: PathBuf = self.side_dir(group)?.join(name);
        let name = (group.to_owned(), name.to_owned());
        let known = locked(&self.shared.side_sizes).remove(&name);
        let bytes = match known {
            Some(known) => Some(known.bytes),
            // One without anything in it takes no walk.
            None => {
                let mut entries = std::fs::read_dir(&path).map_err(|e| Error::io("list", &path, e))?;
                entries.next().is_none().then(|| measure(&path))
            }
        };
        Ok(SideChange { store: self.clone(), name, bytes })
    }
}

impl SideChange {
    /// All changes were made; by how many bytes it grew, where that is known.
    pub fn done(self, grown: Option<i64>) {
        let bytes = self.bytes.zip(grown).and_then(|(bytes, grown)| bytes.checked_add_signed(grown));
        if let Some(bytes) = bytes {
            let size = SideSize { touched: None, bytes };
            locked(&self.store.shared.side_sizes).insert(self.name, size);
        }
    }
}

impl Shared {
    /// Bytes of a directory that changes only while it is needed. They are known if the last change was told, else until it is
    /// needed again.
    pub(crate) fn side_measured(&self, name: &SideName, path: &Path) -> u64 {
        let touched = || locked(&self.pins.sides).get(name).copied();
        let before = touched();
        let free = !self.side_in_use(name);
        if let Some(known) = locked(&self.side_sizes).get(name)
            && known.touched.is_none_or(|mark| free && mark == before)
        {
            return known.bytes;
        }
        let bytes = measure(path);
        if free && !self.side_in_use(name) && touched() == before {
            locked(&self.side_sizes).insert(name.clone(), SideSize { touched: Some(before), bytes });
        }
        bytes
    }
}
