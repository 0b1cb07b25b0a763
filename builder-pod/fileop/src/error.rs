use rustix::io::Errno;

use crate::pattern::PatternError;

/// Why a file operation or a checksum failed. Paths are absolute below their root.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A source path or user that does not exist.
    #[error("\"{0}\": not found")]
    NotFound(String),
    /// A system call failed.
    #[error("{action} {path}: {}", reason(.errno))]
    Io {
        /// What was tried, such as `open`.
        action: &'static str,
        /// On which path.
        path: String,
        /// What the kernel answered.
        errno: Errno,
    },
    /// The directory that a copy goes to does not exist, and is not to be made.
    #[error("failed to stat {destination}: lstat {parent}: no such file or directory")]
    NoDestination {
        /// Where the copy goes.
        destination: String,
        /// The directory.
        parent: String,
    },
    /// A file would take a directory's place.
    #[error("cannot replace directory \"{0}\" with a file")]
    FileOverDirectory(String),
    /// A directory would take a file's place.
    #[error("cannot copy a directory to \"{0}\": it exists and is not a directory")]
    DirectoryOverFile(String),
    /// The operation has no meaning on the root itself.
    #[error("cannot {0} the root directory")]
    Root(&'static str),
    /// More symlinks in a row than the kernel would follow, or a loop.
    #[error("\"{0}\": too many levels of symbolic links")]
    SymlinkLoop(String),
    /// A tree deeper than [`crate::limits::DEPTH_MAX`].
    #[error("\"{0}\": directories are nested too deeply")]
    TooDeep(String),
    /// A name that needs `/etc/passwd` or `/etc/group` is not there.
    #[error("{kind} \"{name}\" is not in {file}")]
    UnknownOwner {
        /// `user` or `group`.
        kind: &'static str,
        /// The name that was looked up.
        name: String,
        /// The file that it was looked up in.
        file: &'static str,
    },
    /// A mode that is neither octal nor symbolic.
    #[error(
        "invalid mode \"{0}\": it should be octal, between 0 and 07777, or symbolic as in \"u=rwX,go=rX\""
    )]
    Mode(String),
    /// An include, exclude or wildcard pattern is malformed.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// An archive that began well is damaged or asks for what cannot be done.
    #[error("unpack \"{path}\": {reason}")]
    Archive {
        /// The archive.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The caller canceled.
    #[error("canceled")]
    Canceled,
}

fn reason(errno: &Errno) -> String {
    let text = std::io::Error::from(*errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => errno.raw_os_error().to_string(),
    }
}

/// What kind of failure an [`Error`] is, for retries and exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The build asks for what cannot be: a retry will not help.
    User,
    /// A path or name is missing: a retry will not help.
    NotFound,
    /// The machine failed: a full disk, an I/O error.
    Unavailable,
    /// The caller canceled.
    Canceled,
}

impl Error {
    /// That a source does not exist, as who has looked for it tells it: without that, it is known from what was asked before.
    pub fn looked_for(self) -> Self {
        match self {
            Self::NotFound(path) => Self::Io { action: "lstat", path, errno: Errno::NOENT },
            other => other,
        }
    }

    /// The destination's disk, or the quota on it, is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { errno: Errno::NOSPC | Errno::DQUOT, .. })
    }

    /// The class of this error.
    pub fn class(&self) -> Class {
        match self {
            Self::NotFound(_) | Self::NoDestination { .. } | Self::UnknownOwner { .. } => Class::NotFound,
            Self::Io { errno, .. } => match *errno {
                Errno::NOENT => Class::NotFound,
                Errno::NOTDIR
                | Errno::ISDIR
                | Errno::EXIST
                | Errno::NAMETOOLONG
                | Errno::LOOP
                | Errno::PERM => Class::User,
                _ => Class::Unavailable,
            },
            Self::Canceled => Class::Canceled,
            _ => Class::User,
        }
    }
}
