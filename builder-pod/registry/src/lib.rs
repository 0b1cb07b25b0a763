//! A client of the OCI distribution protocol.
//!
//! Job: resolves names, pulls manifests and blobs, pushes blobs and manifests, with Docker's
//! credentials and token servers, mirrors, own CAs, retries and resumed transfers.
//! Holds: bytes handed out have the digest that was asked for; a blob is never held whole in memory;
//! credentials go only to the registry that they are for and to the token server that it names, never
//! over plain http where the registry itself speaks TLS; waits and retries are bounded by [`Limits`].
//! Never: shows a credential or token in an error, a log line or `Debug` output; starts a transfer that
//! nobody awaits (dropping a future ends its requests).

mod auth;
mod body;
mod challenge;
mod client;
mod credentials;
mod error;
mod helper;
mod hosts;
mod keeper;
pub mod limits;
mod net;
mod pull;
mod push;
mod redacted;
mod retry;
mod tags;
mod token;
mod transport;
mod upload;
mod watched;

pub use body::{BlobReader, BlobSource, Progress};
pub use client::{Client, Config};
pub use credentials::Credentials;
pub use error::{Class, Error, Kind, told_as_go};
pub use hosts::{HostConfig, HostsConfig};
pub use keeper::{Answer as KeeperAnswer, Keeper, KeptToken, TokenWanted};
pub use limits::Limits;
pub use net::{Proxy, certificates, read_authorities};
pub use pull::Fetched;
pub use push::Pushed;
pub use redacted::Redacted;
