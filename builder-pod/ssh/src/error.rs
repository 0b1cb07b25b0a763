use std::path::PathBuf;

/// Why there is no agent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read.
    #[error("SSH key {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is too large to be a key.
    #[error("SSH key {}: it is larger than a key ({} KiB)", path.display(), crate::limits::KEY_FILE_BYTES_MAX >> 10)]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// A key is locked by a passphrase.
    #[error("SSH key {}: it has a passphrase, which a build can't ask for; add it to an agent (ssh-add) and give \
             the agent's socket, or use a key without one", path.display())]
    Passphrase {
        /// Which.
        path: PathBuf,
    },
    /// What the file holds is no private key that can be used.
    #[error("SSH key {}: {why}", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What is wrong, without anything of its contents.
        why: String,
    },
    /// There are more keys than an agent takes.
    #[error("more than {} SSH keys for one agent", crate::limits::KEYS_MAX)]
    TooMany,
    /// No key was found in the folders that were named.
    #[error("no SSH key in {}", path.display())]
    Empty {
        /// The first of them.
        path: PathBuf,
    },
    /// The socket for a step could not be made.
    #[error("the SSH agent's socket for the step: {0}")]
    Socket(std::io::Error),
}
