use lapstrake_oci::Digest;

/// Why a source could not be had. No text holds credentials.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A source is described in a way that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// A pattern in an ignore file is malformed.
    #[error(transparent)]
    Ignore(#[from] crate::IgnoreError),
    /// `git` failed.
    #[error("git repository {url}{}: {reason}", at(.reference))]
    Git {
        /// What to make of it.
        class: Class,
        /// The repository, without credentials.
        url: String,
        /// Which branch, tag or commit was wanted; may be empty.
        reference: String,
        /// What is wrong, with git's own last line where there is one.
        reason: String,
    },
    /// A download failed.
    #[error("{url}: {reason}")]
    Http {
        /// What to make of it.
        class: Class,
        /// The address, without credentials and query.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// A download is not what was asked for.
    #[error("{url}: digest mismatch: checksum is {actual}, not {expected}")]
    Checksum {
        /// The address, without credentials and query.
        url: String,
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// A tree could not be read or written.
    #[error(transparent)]
    Files(#[from] lapstrake_fileop::Error),
    /// The machine failed.
    #[error("{action}: {source}")]
    Io {
        /// What was tried, and on what.
        action: String,
        /// What the machine answered.
        source: std::io::Error,
    },
}

fn at(reference: &str) -> String {
    if reference.is_empty() { String::new() } else { format!(" at {reference}") }
}

/// What to make of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The source is described wrongly: a retry will not help.
    User,
    /// There is no such repository, ref, path or address: a retry will not help.
    NotFound,
    /// Access was denied: other credentials are needed.
    Denied,
    /// The other side or the machine failed: a retry may help.
    Unavailable,
}

/// What git says of objects that a power cut damaged.
const DAMAGE: [&str; 8] = [
    "is corrupt",
    "object file",
    "bad object",
    "unable to read",
    "missing blob",
    "could not parse",
    "invalid object",
    "inflate:",
];

impl Error {
    /// Whether what is kept of a repository is damaged: once it is gone, the same may work.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Git { reason, .. } => DAMAGE.iter().any(|words| reason.contains(words)),
            _ => false,
        }
    }

    /// The class of this error.
    pub fn class(&self) -> Class {
        match self {
            Self::Invalid(_) | Self::Ignore(_) | Self::Checksum { .. } => Class::User,
            Self::Git { class, .. } | Self::Http { class, .. } => *class,
            Self::Files(error) => match error.class() {
                lapstrake_fileop::Class::NotFound => Class::NotFound,
                lapstrake_fileop::Class::User => Class::User,
                lapstrake_fileop::Class::Unavailable | lapstrake_fileop::Class::Canceled => {
                    Class::Unavailable
                }
            },
            Self::Io { .. } => Class::Unavailable,
        }
    }

    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
}

/// An address as it may be shown: no user, password, query or fragment.
pub fn shown_url(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (host, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let host = host.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_without_secrets() {
        for (url, shown) in [
            ("https://me:pa@ss@git.example/a/b.git?token=x#y", "https://git.example/a/b.git"),
            ("https://git.example", "https://git.example"),
            ("git@git.example:a/b.git", "git@git.example:a/b.git"),
            ("https://token@h/x@y", "https://h/x@y"),
        ] {
            assert_eq!(shown_url(url), shown, "{url}");
        }
    }
}
