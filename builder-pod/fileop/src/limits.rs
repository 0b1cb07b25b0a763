//! Bounds of this crate.

/// How deep a tree may be nested; each level costs a file descriptor and stack.
pub const DEPTH_MAX: usize = 400;
/// How many symlinks are followed for one path, as containerd counts.
pub const SYMLINKS_MAX: usize = 255;
/// Size up to which `/etc/passwd` and `/etc/group` are read.
pub const ACCOUNT_FILE_BYTES_MAX: u64 = 4 << 20;
/// How many threads hash file contents at most.
pub const HASH_THREADS_MAX: usize = 8;
/// Memory that an xz archive may ask for (`xz -9` asks for 65 MiB).
pub const XZ_MEMORY_KIB_MAX: u32 = 512 << 10;
/// Longest path that is handed to the kernel in one piece.
pub(crate) const PATH_BYTES_MAX: usize = 4000;
/// How many threads one copy has beside the one that walks.
pub(crate) const COPY_THREADS_MAX: usize = 4;
