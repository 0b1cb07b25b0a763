//! The real binary on real state: real steps, a real registry in this process.
//!
//! Needs root (steps are namespaces and overlays), busybox, git, tar, skopeo, sshd and ssh. What is missing fails
//! the test, with the way to get it.
#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

mod added;
mod advice;
mod attested;
mod cache;
mod dockerfile;
mod engine;
mod errors;
mod faults;
mod frontends;
mod images;
mod lab;
mod manifests;
mod mounts;
mod options;
mod outputs;
mod parallel;
mod peer;
mod platforms;
mod pod;
mod private_source;
mod privileges;
mod registry;
mod results;
mod room;
mod secrets;
mod shared_cache;
mod sources;
mod ssh;
mod stores;
mod userns;
