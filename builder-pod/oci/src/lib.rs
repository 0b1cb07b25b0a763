//! Names and documents of container images.
//!
//! Job: the values that the OCI image and distribution specifications define (digests, references,
//! platforms, descriptors, manifests, indexes, image configs), parsed, checked and printed.
//! Holds: a [`Digest`] is always well formed; a document that came from outside keeps its raw bytes
//! with whoever fetched it, since its digest is over those bytes and never over a re-encoding.
//! Never: reads a file, opens a socket, looks at the machine that it runs on.

mod config;
mod digest;
mod json;
mod manifest;
mod platform;
mod reference;

pub use config::{ContainerConfig, Empty, Healthcheck, History, ImageConfig, RootFs};
pub use digest::{Digest, DigestError, Hasher};
pub use json::to_json;
pub use manifest::{Descriptor, Document, DocumentError, Index, Manifest, media_type};
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError};
