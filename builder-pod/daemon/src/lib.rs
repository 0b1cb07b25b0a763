//! The outside of the daemon: its flags, its `buildkitd.toml`, its listeners, its log, its end.
//!
//! Job: be started, found, talked to and stopped exactly as `buildkitd` is.
//! Holds: an option without a meaning here is accepted and told once; an unknown one is an error; flags win over
//! the file; a port that was to be encrypted never speaks in clear.
//! Never: knows what a build is.

#![forbid(unsafe_code)]

mod config;
mod error;
mod flags;
mod gc;
mod help;
mod listen;
mod lock;
pub mod log;
mod notify;
mod size;
mod stop;
mod tls;

pub use config::{
    Cdi, Config, Dns, Entitlement, Frontends, Grpc, History, LogConfig, LogFormat, NetworkMode, Note,
    TlsFiles, Worker,
};
pub use error::{Error, Result};
pub use flags::{Flags, Usage};
pub use gc::{Gc, GcPolicy, GcRule};
pub use listen::{Conn, Listeners, Peer};
pub use lock::RootLock;
pub use size::{Space, parse_bytes, parse_duration};
pub use stop::Stop;
pub use tls::client as tls_client;
