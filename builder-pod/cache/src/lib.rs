//! BuildKit's cache format: what it calls the steps of a build, and the documents that carry their results.
//!
//! Job: say how BuildKit names an operation ([`op`]), read caches ([`Records`]) and write them ([`Draft`]), as a
//! manifest, an index ([`manifest`]) or within an image's config ([`inline`]).
//! Holds: a config that was read has no loop and points at nothing that is not there; what is written is the same
//! bytes for the same records, in whatever order they came.
//! Never: speaks to a registry, touches a file, runs or decides anything.

pub mod doc;
mod draft;
mod error;
mod gojson;
pub mod inline;
pub mod limits;
pub mod manifest;
pub mod object;
pub mod op;
mod records;

pub use draft::{Draft, RecordId};
pub use error::Error;
pub use records::{Alternatives, Found, NodeId, Origin, Records};

use lapstrake_oci::Digest;

/// The name of one output of an operation over whatever inputs: what a record's `digest` is.
pub fn record_digest(operation: &Digest, output: u32) -> Digest {
    Digest::of(format!("{operation}@{output}").as_bytes())
}

/// The name of contents that an operation reads of an input, as a record.
pub fn content_record(contents: &Digest) -> Digest {
    Digest::of(format!("{contents}@-1").as_bytes())
}
