//! File operations of a build: copy, make, remove, and the checksum of what a copy would take.
//!
//! Job: LLB's file operation on root directories that are given as open descriptors, with BuildKit's
//! semantics to the letter where a build could tell the difference.
//! Holds: nothing outside a root is read or written, whatever symlinks, `..` or archives say; what
//! [`checksum`] covers is what [`copy`] takes.
//! Never: mounts, knows LLB's messages, looks names up in the machine's own account files.

#![forbid(unsafe_code)]

mod action;
pub mod archive;
pub mod at;
mod checksum;
mod copy;
mod data;
mod error;
mod leaf;
pub mod limits;
mod make;
mod mode;
mod names;
mod owner;
pub mod path;
mod pattern;
mod spread;
#[cfg(test)]
mod testing;
mod view;
mod walk;

pub use action::{Cancel, CopyAction, MkdirAction, MkfileAction, Owner, RmAction, SymlinkAction};
pub use checksum::{ChecksumOptions, FileStat, HashCache, Selector, checksum, remember};
pub use copy::copy;
pub use error::{Class, Error};
/// What checksums are.
pub use lapstrake_oci::Digest;
pub use make::{mkdir, mkfile, rm, set_times, symlink};
pub use mode::ModeChange;
pub use owner::lookup_user;
pub use pattern::{MatchState, PatternError, Patterns};
pub use view::{Filter, Verdict, View, open_root};
pub use walk::{Entry, EntryKind};
