//! Repositories as one file: commits that come from a bundle (`git.bundle`), and bundles that are made of commits
//! (`git.checkoutbundle`).

use std::path::PathBuf;

use lapstrake_handoff::Reason;
use lapstrake_llb::pb;
use lapstrake_source::Git;
use lapstrake_store::Store;

use super::{attr, flag, fragment};
use crate::engine::blob_digest;
use crate::error::BuildError;

/// Directory of bundles that were brought.
const BUNDLES: &str = "bundles";

/// Refuses what contradicts itself.
pub(super) fn check(source: &pb::SourceOp) -> Result<(), BuildError> {
    let invalid = |why: &str| Err(BuildError::new(Reason::RequestInvalid, why.to_owned()));
    if let Some(address) = attr(source, "git.bundle") {
        if !["docker-image+blob://", "oci-layout+blob://"].iter().any(|scheme| address.starts_with(scheme)) {
            return invalid(&format!("git.bundle locator {address:?} is not supported"));
        }
        if attr(source, "git.checksum").is_none() {
            return invalid("git.bundle requires git.checksum to be set");
        }
    }
    if flag(source, "git.checkoutbundle") {
        if flag(source, "git.keepgitdir") {
            return invalid("git.checkoutbundle is incompatible with git.keepgitdir");
        }
        if !fragment(source).1.is_empty() {
            return invalid("git.checkoutbundle is incompatible with git.subdir");
        }
    }
    Ok(())
}

/// The bundle of a source as a file, which git reads as a repository; none where it has none. Its blob is in the store.
pub(super) async fn path(store: &Store, source: &pb::SourceOp) -> Result<Option<PathBuf>, BuildError> {
    let Some(address) = attr(source, "git.bundle") else { return Ok(None) };
    let digest = blob_digest(address)?;
    let store = store.clone();
    let work = move || {
        let dir = store.side_dir(BUNDLES)?;
        let name = digest.hex();
        store.touch_side(BUNDLES, &name);
        let path = dir.join(&name);
        if !path.exists() {
            let mut blob = store.open_blob(&digest)?;
            let mut made = tempfile::NamedTempFile::new_in(&dir).map_err(|e| BuildError::of_file(&e))?;
            std::io::copy(&mut blob, &mut made).map_err(|e| BuildError::of_file(&e))?;
            made.persist(&path).map_err(|e| BuildError::of_file(&e.error))?;
        }
        Ok(Some(path))
    };
    tokio::task::spawn_blocking(work).await.map_err(BuildError::internal)?
}

/// How the bundle is read: as a file of this machine, and nothing of a server.
pub(super) fn reader(store: &Store) -> Result<Git, BuildError> {
    Ok(Git::new(store.side_dir("git")?).allow_local())
}
