//! Snapshots to layers and back, image documents, exporters.
//!
//! Job: [`apply_layer`] unpacks a layer into an overlay upper directory, [`write_diff`] turns such a
//! directory into a layer again, [`stack_layer`] does both at once by hard links, [`compress`] packs it ([`estargz`] so that it can be read in parts), [`assemble`] makes config, manifest and index,
//! [`export`] writes OCI layouts, docker archives and root file systems.
//! Holds: the same input gives the same bytes, on any machine and with any number of threads; unpacking
//! never leaves its root, whatever the archive says.
//! Never: reads the clock, the environment or the network; lets hash-map order reach an output; mounts.
//!
//! The tar codec is our own: layers need negative and sub-second times, xattrs as bytes, every sparse
//! form, and the bounds and sizes of Go's reader, whose view of a layer is the one that counts.

pub mod apply;
pub mod assemble;
pub mod compress;
pub mod diff;
mod error;
pub mod estargz;
pub mod export;
mod fsio;
pub mod limits;
mod lower;
pub mod media;
pub mod tar;
#[cfg(test)]
mod testing;

pub use apply::{Applied, ApplyOptions, apply_layer, stack_changes, stack_layer};
pub use compress::{Compressed, Compressor};
pub use diff::{DiffFacts, DiffOptions, write_changes, write_diff};
pub use error::{Error, Result};
