//! What leaves the builder as files: OCI layouts, docker archives, root file systems.
//!
//! Archives are byte-stable: entries are sorted, owned by root, and dated 1970.

mod archive;
mod blobs;
mod layout;
mod rootfs_dir;
mod rootfs_tar;
mod walk;

pub use archive::{docker_archive, oci_layout_tar};
pub use blobs::BlobSource;
pub use layout::{oci_layout_artifact, oci_layout_dir};
pub use rootfs_dir::rootfs_dir;
pub use rootfs_tar::{rootfs_tar, rootfs_tar_of};
pub use walk::{clash, digests};

#[cfg(test)]
mod tests;
