//! What the tests of several crates need.
//!
//! Job: a small but real image registry with faults on demand, tiny images, a busybox root, Debian roots of other
//! architectures, the builder that ours is compared with.
//! Holds: each instance owns its folder and its port; nothing waits for a length of time.
//! Never: part of the builder; decides what the code under test should do.

pub mod debian;
pub mod image;
pub mod peer;
pub mod registry;
pub mod rootfs;
pub mod stores;

pub use tempfile::{TempDir, tempdir};
