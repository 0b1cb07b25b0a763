//! An SSH agent for steps: signs with keys that the step never sees. Beside it signatures of SSH keys are checked.
//!
//! In: files with private keys, or the socket of another agent. Out: a socket of its own for each step.
//! Holds: two requests are answered, "which keys are there" and "sign this"; everything else (adding,
//! removing, locking, extensions, constraints) is refused, also when the agent behind us would allow it.
//! Never: hands out a private key, asks for a passphrase, keeps a key on a disk.

mod agent;
mod der;
mod error;
mod key;
mod openssh;
mod signature;
mod wire;

pub use agent::{Agent, Connect, Connecting, Connection, Socket};
pub use error::Error;
pub use key::Key;
pub use signature::{SignatureError, is_signature, verify};

/// Bounds of this crate.
pub mod limits {
    /// Longest message of either side; OpenSSH's own limit.
    pub const MESSAGE_BYTES_MAX: usize = 256 * 1024;
    /// Longest file with a key.
    pub const KEY_FILE_BYTES_MAX: u64 = 64 * 1024;
    /// Keys that one agent has.
    pub const KEYS_MAX: usize = 64;
    /// Connections that one step may have open at the same time.
    pub const CONNECTIONS_MAX: usize = 64;
}
