//! What keeps a daemon from starting.

use std::path::PathBuf;

/// Results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag's value.
    #[error("--{flag}: {why}")]
    Flag {
        /// Its name, without dashes.
        flag: &'static str,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// Something in `buildkitd.toml`.
    #[error("{path}:{line}: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// A setting that may come from flag or file.
    #[error("{0}")]
    Setting(String),
    /// A file or directory.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// An address to listen on.
    #[error("cannot listen on {address}: {why}")]
    Listen {
        /// As it was given.
        address: String,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// The state directory has another owner.
    #[error("could not lock {path}, another instance running?", path = .0.display())]
    Locked(PathBuf),
    /// Keys and certificates.
    #[error("{what} {path}: {why}")]
    Tls {
        /// What was to be read.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn listen(address: &str, why: impl ToString) -> Self {
        Self::Listen { address: address.to_owned(), why: why.to_string() }
    }
}
