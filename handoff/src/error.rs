//! Why something that crossed the edge could not be read.

/// What is wrong with a request or an outcome.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Longer than the edge allows.
    #[error("{what} has {bytes} bytes, more than the {bytes_max} allowed")]
    TooLong {
        /// `request` or `outcome`.
        what: &'static str,
        /// Bytes found.
        bytes: usize,
        /// Bytes allowed.
        bytes_max: usize,
    },
    /// Not JSON of the expected shape; the text names line and column.
    #[error("{what} is not readable: {source}")]
    Malformed {
        /// `request` or `outcome`.
        what: &'static str,
        /// What the JSON reader says.
        source: serde_json::Error,
    },
    /// Written by an operator or builder of another version.
    #[error("{what} has version {found:?}, but this side speaks {known:?}")]
    Version {
        /// `request` or `outcome`.
        what: &'static str,
        /// Version found.
        found: String,
        /// Version known here.
        known: &'static str,
    },
    /// No outcome was written.
    #[error("outcome is empty")]
    Empty,
    /// A field holds a value that makes no sense; names the field.
    #[error("request field {field}: {problem}")]
    Field {
        /// JSON path of the field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}
