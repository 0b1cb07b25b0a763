//! The actions, as plain data: what LLB's file operation says, with owners already looked up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Error;
use crate::mode::ModeChange;

/// Numeric owner of what an action makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// Copies files and trees from one root to another.
#[derive(Debug, Clone, Default)]
pub struct CopyAction {
    /// Source path below the source's root; may hold wildcards when they are allowed.
    pub src: String,
    /// Destination below the destination's root; a trailing slash says that it is a directory.
    pub dst: String,
    /// Owner of all that is made; else the source's own.
    pub owner: Option<Owner>,
    /// Permission bits of all that is made; else the source's own.
    pub mode: Option<ModeChange>,
    /// A source that is a symlink stands for what it points to.
    pub follow_symlink: bool,
    /// A source directory stands for what is in it.
    pub dir_copy_contents: bool,
    /// A source file that is a tar archive (plain, gzip, bzip2, xz, zstd) is unpacked instead.
    pub attempt_unpack: bool,
    /// The destination's parents are made; else it is an error when they are missing.
    pub create_dest_path: bool,
    /// `src` may hold wildcards.
    pub allow_wildcard: bool,
    /// A wildcard that matches nothing copies nothing; else it is an error.
    pub allow_empty_wildcard: bool,
    /// Both times of all that is made, in nanoseconds since 1970; else the source's own.
    pub timestamp_ns: Option<i64>,
    /// Only what matches, relative to the source; empty means all.
    pub include_patterns: Vec<String>,
    /// Not what matches, relative to the source.
    pub exclude_patterns: Vec<String>,
    /// Paths below the source's root that must be among what is copied.
    pub required_paths: Vec<String>,
    /// What is in the way of a source is removed, whatever its type (directories still merge).
    pub always_replace_existing_dest_paths: bool,
}

/// Makes a directory.
#[derive(Debug, Clone, Default)]
pub struct MkdirAction {
    /// Where, below the root.
    pub path: String,
    /// Permission bits; only `0777` of them count.
    pub mode: u32,
    /// Missing parents are made alike.
    pub make_parents: bool,
    /// Owner; else the builder's own.
    pub owner: Option<Owner>,
    /// Both times, in nanoseconds since 1970.
    pub timestamp_ns: Option<i64>,
}

/// Writes a file.
#[derive(Debug, Clone, Default)]
pub struct MkfileAction {
    /// Where, below the root.
    pub path: String,
    /// Permission bits; only `0777` of them count, and only if the file is new.
    pub mode: u32,
    /// The content.
    pub data: Vec<u8>,
    /// Owner; else the builder's own.
    pub owner: Option<Owner>,
    /// Both times, in nanoseconds since 1970.
    pub timestamp_ns: Option<i64>,
}

/// Removes a file or a tree; a symlink itself, never what it points to.
#[derive(Debug, Clone, Default)]
pub struct RmAction {
    /// What, below the root.
    pub path: String,
    /// A missing path is no error.
    pub allow_not_found: bool,
    /// `path` may hold wildcards.
    pub allow_wildcard: bool,
}

/// Makes a symlink.
#[derive(Debug, Clone, Default)]
pub struct SymlinkAction {
    /// What it says.
    pub target: String,
    /// Where it is, below the root.
    pub path: String,
    /// Owner; else the builder's own.
    pub owner: Option<Owner>,
    /// Both times, in nanoseconds since 1970.
    pub timestamp_ns: Option<i64>,
}

/// Tells a long action to stop.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Not canceled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the action end with [`Error::Canceled`] soon.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Fails once canceled.
    ///
    /// # Errors
    /// [`Error::Canceled`].
    pub fn check(&self) -> Result<(), Error> {
        if self.0.load(Ordering::Relaxed) { Err(Error::Canceled) } else { Ok(()) }
    }
}
