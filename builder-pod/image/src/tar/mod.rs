//! The tar format as layers use it: ustar, PAX, GNU.
//!
//! Reading takes what Go's `archive/tar` takes (its view of a layer is the one that others have);
//! writing gives what containerd's differ gives: ustar headers, PAX records where a value does not fit.

mod header;
mod pax;
mod reader;
mod sparse;
mod writer;

use std::collections::BTreeMap;

pub use reader::TarReader;
pub use writer::TarWriter;

/// Size of a block; everything in a tar file is padded to it.
pub const BLOCK_BYTES: usize = 512;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Regular file.
    File,
    /// Another name of an earlier file.
    Hardlink,
    /// Symbolic link.
    Symlink,
    /// Character device, major and minor.
    Char(u32, u32),
    /// Block device, major and minor.
    Block(u32, u32),
    /// Directory.
    Dir,
    /// Named pipe.
    Fifo,
}

/// A time with nanoseconds, which may lie before 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Time {
    /// Whole seconds since 1970, rounded down.
    pub seconds: i64,
    /// Nanoseconds after that, below 10⁹.
    pub nanoseconds: u32,
}

impl Time {
    /// A whole second.
    pub fn seconds(seconds: i64) -> Self {
        Self { seconds, nanoseconds: 0 }
    }
}

/// One entry of an archive, without its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path as written, bytes.
    pub path: Vec<u8>,
    /// Target of a link.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, setuid, setgid, sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Time of last modification.
    pub mtime: Time,
    /// Length of the file's content in bytes, holes included.
    pub size: u64,
    /// Offset and length of the pieces that have data, if the file is stored sparse.
    pub sparse: Option<Vec<(u64, u64)>>,
    /// Extended attributes (`SCHILY.xattr.*`).
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Entry {
    /// An entry of `path` with nothing else set.
    pub fn new(path: impl Into<Vec<u8>>, kind: Kind) -> Self {
        Self {
            path: path.into(),
            link: Vec::new(),
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            size: 0,
            sparse: None,
            xattrs: BTreeMap::new(),
        }
    }
}

/// Bytes that pad `size` to a whole block.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK_BYTES as u64
}

#[cfg(test)]
mod tests;
