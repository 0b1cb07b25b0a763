//! Bounds of what is read.

/// Longest config or manifest of a cache. BuildKit itself refuses to read more than 1 MiB; what it writes may be
/// longer, and that is read here.
pub const DOCUMENT_BYTES_MAX: u64 = 16 << 20;
/// What BuildKit reads at most: longer ones are written with a warning.
pub const BUILDKIT_BYTES_MAX: u64 = 1 << 20;
/// Most layers of one result.
pub const CHAIN_LAYERS_MAX: usize = 4096;
/// Most records of one config.
pub const RECORDS_MAX: usize = 200_000;
