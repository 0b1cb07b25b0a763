use tonic::Code;

/// Why a client could not be asked, or what was wrong with its answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No client of this id came within the time that was given.
    #[error("no active session for {id}: its client is gone, or never opened Control.Session")]
    NoSession {
        /// The id that was asked for.
        id: String,
    },
    /// The client did not say that it serves this method.
    #[error("method {method} is not served by the client of session {session}")]
    NotServed {
        /// Path of the gRPC method.
        method: &'static str,
        /// Id of the session.
        session: String,
    },
    /// The client went away, or stopped answering, while it was asked.
    #[error("session {session} ended during \"{action}\": its client is gone or no longer answers")]
    Ended {
        /// Id of the session.
        session: String,
        /// What was asked of the client.
        action: &'static str,
    },
    /// The client refused, or failed.
    #[error("{action}: {}", .status.message())]
    Call {
        /// What was asked of the client.
        action: &'static str,
        /// What it answered.
        status: Box<tonic::Status>,
    },
    /// A secret above the limit.
    #[error("secret {id} has {bytes} bytes; at most {} are taken", crate::SECRET_BYTES_MAX)]
    SecretTooLarge {
        /// The secret's id.
        id: String,
        /// Its size.
        bytes: usize,
    },
    /// The sender of files gave up, in its own words.
    #[error("error from sender: {0}")]
    Sender(String),
    /// The receiver of files gave up, in its own words.
    #[error("error from receiver: {0}")]
    Receiver(String),
    /// The client broke the rules of the transfer.
    #[error("transfer of {name:?}: {problem}")]
    Protocol {
        /// The directory that is transferred.
        name: String,
        /// What it sent, and why that cannot be.
        problem: String,
    },
    /// A system call on the daemon's side failed.
    #[error("{action} {path:?}: {}", std::io::Error::from(*.errno))]
    Io {
        /// What was tried, such as `create`.
        action: &'static str,
        /// On which path, relative to the directory of the transfer.
        path: String,
        /// What the kernel answered.
        errno: rustix::io::Errno,
    },
    /// More than the caller wants to have in memory.
    #[error("{path:?} has more than {bytes_max} bytes")]
    FileTooLarge {
        /// The file.
        path: String,
        /// What is taken at most.
        bytes_max: usize,
    },
    /// The caller canceled.
    #[error("canceled")]
    Canceled,
}

impl Error {
    /// What the client answered, if it is its answer that this error tells.
    pub fn status(&self) -> Option<&tonic::Status> {
        match self {
            Self::Call { status, .. } => Some(status),
            _ => None,
        }
    }

    /// The gRPC code that tells a client of the daemon the same.
    pub fn code(&self) -> Code {
        match self {
            Self::NoSession { .. } | Self::Ended { .. } => Code::Unavailable,
            Self::NotServed { .. } => Code::Unimplemented,
            Self::Call { status, .. } => status.code(),
            Self::SecretTooLarge { .. } | Self::FileTooLarge { .. } => Code::ResourceExhausted,
            Self::Sender(_) | Self::Receiver(_) => Code::Unknown,
            Self::Protocol { .. } => Code::InvalidArgument,
            Self::Io { .. } => Code::Internal,
            Self::Canceled => Code::Cancelled,
        }
    }

    /// The disk, or the quota on it, is full.
    pub fn is_no_space(&self) -> bool {
        use rustix::io::Errno;
        matches!(self, Self::Io { errno: Errno::NOSPC | Errno::DQUOT, .. })
    }
}
