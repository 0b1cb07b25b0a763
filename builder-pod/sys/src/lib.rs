//! The kernel, safely: the one crate of the workspace that may hold `unsafe`.
//!
//! In: file descriptors, names, numbers. Out: owned descriptors, plain values, or an [`Error`]
//! that names the call and the object it was about.
//!
//! Holds: each descriptor handed out is owned and close-on-exec; paths of untrusted trees are
//! resolved inside a root that the caller names ([`fs::open_in_root`]); process-splitting calls
//! ([`process::fork`], [`process::clone_into_namespaces`]) refuse a threaded process, since a
//! fork of one may hang on a lock that another thread held.
//!
//! Never: policy (what a step may do is `run`'s business), async, logging.

pub mod caps;
pub mod cgroup;
mod error;
pub mod fs;
pub mod idmap;
pub mod mount;
pub mod net;
pub mod overlay;
pub mod pass;
pub mod process;
pub mod seccomp;
pub mod signal;
pub mod terminal;
pub mod xattr;

pub use error::{Context, Error, Result};
pub use rustix::io::Errno;
