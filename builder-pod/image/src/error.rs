use std::io;
use std::path::Path;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong between snapshots and images.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The archive is not a tar file that we understand.
    #[error("layer entry \"{entry}\" is malformed: {why}")]
    Malformed {
        /// The entry's path, or where in the archive it stands.
        entry: String,
        /// What is wrong.
        why: String,
    },
    /// The archive tries to reach outside its root, or to speak to the overlay file system.
    #[error("layer entry \"{entry}\" is refused: {why}")]
    Hostile {
        /// The entry's path.
        entry: String,
        /// What it tries.
        why: &'static str,
    },
    /// Not a layer that can be unpacked.
    #[error("media type \"{0}\" is not a layer that can be unpacked")]
    MediaType(String),
    /// The layer's bytes could not be read or decompressed.
    #[error("layer cannot be read")]
    Stream(#[source] io::Error),
    /// The output could not be written.
    #[error("output cannot be written")]
    Output(#[source] io::Error),
    /// The disk or a quota is full.
    #[error("no space left for \"{path}\"")]
    NoSpace {
        /// What could not be written.
        path: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// An owner that this user namespace cannot express.
    #[error("owner {uid}:{gid} of \"{path}\" has no mapping in this user namespace")]
    Owner {
        /// The file.
        path: String,
        /// User id in the layer.
        uid: u32,
        /// Group id in the layer.
        gid: u32,
    },
    /// Any other failure of the file system.
    #[error("cannot {action} \"{path}\"")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A snapshot that was not made by us: it holds overlay's metacopy or redirect.
    #[error("\"{0}\" carries overlay's metacopy or redirect attribute and cannot be made a layer")]
    ForeignOverlay(String),
    /// An image that does not fit together.
    #[error("image is inconsistent: {0}")]
    Inconsistent(String),
    /// A document could not be encoded or read.
    #[error("image document is not valid")]
    Json(#[from] serde_json::Error),
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &[u8], source: impl Into<io::Error>) -> Self {
        let (path, source) = (String::from_utf8_lossy(path).into_owned(), source.into());
        if no_space(&source) { Self::NoSpace { path, source } } else { Self::Io { action, path, source } }
    }

    pub(crate) fn io_at(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        use std::os::unix::ffi::OsStrExt as _;
        Self::io(action, path.as_os_str().as_bytes(), source)
    }

    pub(crate) fn output(source: io::Error) -> Self {
        if no_space(&source) {
            Self::NoSpace { path: "output".to_owned(), source }
        } else {
            Self::Output(source)
        }
    }

    pub(crate) fn malformed(entry: &[u8], why: impl Into<String>) -> Self {
        Self::Malformed { entry: String::from_utf8_lossy(entry).into_owned(), why: why.into() }
    }

    pub(crate) fn hostile(entry: &[u8], why: &'static str) -> Self {
        Self::Hostile { entry: String::from_utf8_lossy(entry).into_owned(), why }
    }

    /// True where the disk or a quota is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::NoSpace { .. })
    }

    /// True where the input is at fault: a layer that is damaged, malformed or hostile.
    pub fn is_corrupt(&self) -> bool {
        matches!(
            self,
            Self::Malformed { .. }
                | Self::Hostile { .. }
                | Self::MediaType(_)
                | Self::Stream(_)
                | Self::Json(_)
        )
    }
}

fn no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
