/// Why a cache can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not the JSON that it should be.
    #[error("its {what} can't be read: {source}")]
    Malformed {
        /// What it is.
        what: &'static str,
        /// The parser's words.
        source: serde_json::Error,
    },
    /// JSON that makes no sense.
    #[error("its config is damaged: {0}")]
    Damaged(String),
    /// Larger than the limit.
    #[error("its {what} has {size_bytes} bytes, more than the {limit_bytes} that are read")]
    TooLarge {
        /// What it is.
        what: &'static str,
        /// Its size.
        size_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// A document that is no cache.
    #[error("it is neither a cache nor an image with an inline cache")]
    NoCache,
    /// A combination that the format does not have.
    #[error(
        "a cache as image manifest needs OCI media types: give image-manifest=false or oci-mediatypes=true"
    )]
    Form,
}
