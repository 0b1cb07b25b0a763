//! Sessions: what a client lends to its builds.
//!
//! Job: keep the clients that are connected, and call the services that they serve backwards over
//! `Control.Session`: files, secrets, agents, credentials, outputs.
//! Holds: a method that a client did not name is not called; what a client sends stays below the
//! directory that it is for; what waits for a client, or for the disk, is bounded.
//! Never: decides what a build needs.

#![forbid(unsafe_code)]

mod agent;
mod auth;
mod content;
mod error;
mod exporter;
mod files;
mod header;
mod health;
mod policy;
mod secret;
mod session;
mod sessions;
mod sink;
mod tunnel;
mod upload;

pub use agent::AgentConnection;
pub use auth::{Credentials, Token, TokenRequest};
pub use error::Error;
pub use files::{Differ, MULTI_PLATFORM, Outgoing, Sent, SyncProgress, SyncRequest, Synced, Target};
pub use secret::SECRET_BYTES_MAX;
pub use session::{Session, method};
pub use sessions::{Outbound, Sessions};
pub use sink::FileSink;
pub use tokio_util::sync::CancellationToken;

#[cfg(test)]
mod calls_tests;
#[cfg(test)]
mod sessions_tests;
#[cfg(test)]
mod testing;
