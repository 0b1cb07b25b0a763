/// What can go wrong with a cache in an object store. No text holds a credential.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An attribute is missing or is none.
    #[error("{0}")]
    Settings(String),
    /// The store refused, or can't be reached.
    #[error("failed to {what} {store}: {told}")]
    Store {
        /// What was tried.
        what: String,
        /// The cache.
        store: String,
        /// What was told of it, without credentials.
        told: String,
    },
    /// A blob that a document names is not there.
    #[error("{store} has no blob {digest}")]
    Missing {
        /// The cache.
        store: String,
        /// The blob.
        digest: String,
    },
    /// A document is larger than any that is read.
    #[error("{name} has {size_bytes} bytes, more than is read of a cache")]
    TooLarge {
        /// The object.
        name: String,
        /// Its size.
        size_bytes: u64,
    },
    /// A blob can't be read here.
    #[error("blob {digest} can't be read: {source}")]
    Read {
        /// The blob.
        digest: String,
        /// Why.
        source: std::io::Error,
    },
}
