//! Bounds on what a layer may contain.

/// Longest extended header (PAX records, GNU long names); the same bound as Go's reader.
pub const EXTENDED_HEADER_BYTES_MAX: u64 = 1 << 20;
/// Longest path of an entry.
pub const PATH_BYTES_MAX: usize = 64 << 10;
/// Most pieces of a sparse file.
pub const SPARSE_PIECES_MAX: usize = 1 << 20;
/// Most symlinks that one path may lead through.
pub const SYMLINKS_MAX: usize = 40;
/// Longest extended attribute (the kernel's own bound).
pub const XATTR_BYTES_MAX: usize = 64 << 10;
/// Deepest directory that is unpacked or packed; each level costs an open file.
pub const DEPTH_MAX: usize = 400;
/// Largest window of a zstd layer, as a power of two (128 MiB, as `zstd -d` allows).
pub const ZSTD_WINDOW_LOG_MAX: u32 = 27;
