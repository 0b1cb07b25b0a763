//! Sources that are one file: blobs of registries and of a client's layouts (`docker-image+blob://`, `oci-layout+blob://`),
//! and downloads that somebody is to own.

use std::fs::{File, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use lapstrake_handoff::Reason;
use lapstrake_llb::pb;
use lapstrake_oci::{Descriptor, Digest, Reference};
use lapstrake_solver::{OpKey, OpName, Step};
use tokio_util::sync::CancellationToken;

use super::outside::{attr, number};
use super::{Engine, Res};
use crate::error::{Asked, BuildError};

/// A blob of a registry.
const REGISTRY: &str = "docker-image+blob://";
/// A blob of a layout of the client.
pub(crate) const LAYOUT: &str = "oci-layout+blob://";
/// Mode of a file where nothing else is said.
const MODE: u32 = 0o600;

/// Whether a source is a blob.
pub(super) fn is_blob(source: &pb::SourceOp) -> bool {
    [REGISTRY, LAYOUT].iter().any(|scheme| source.identifier.starts_with(scheme))
}

/// Which blob an address is about.
///
/// # Errors
/// It has no digest.
pub(crate) fn digest(address: &str) -> Result<Digest, BuildError> {
    let digest = address.rsplit_once('@').and_then(|(_, digest)| digest.parse().ok());
    let why =
        || BuildError::new(Reason::RequestInvalid, format!("source {address}: invalid reference digest"));
    digest.ok_or_else(why)
}

/// How a file is to be.
struct Dress {
    name: String,
    mode: u32,
    owner: (u32, u32),
}

/// What a source says of its file; numbers are those of the operation, 0 where it says nothing.
fn asked(source: &pb::SourceOp) -> Result<(String, [u32; 3]), BuildError> {
    let one = |name: &str| match attr(source, name) {
        Some(text) => number(text).ok_or_else(|| {
            BuildError::new(Reason::RequestInvalid, format!("{}: {name} is no number", source.identifier))
        }),
        None => Ok(0),
    };
    let name = attr(source, "http.filename").map(safe_name).unwrap_or_default();
    Ok((name, [one("http.perm")?, one("http.uid")?, one("http.gid")?]))
}

/// The last part of a path, as long as it is a name.
fn safe_name(text: &str) -> String {
    match text.trim_end_matches('/').rsplit('/').next() {
        Some(name) if !matches!(name, "" | "." | "..") && !name.contains('\0') => name.to_owned(),
        _ => "download".to_owned(),
    }
}

/// What identifies a blob: itself, and how its file is to be.
pub(super) fn key(source: &pb::SourceOp) -> Result<OpKey, BuildError> {
    let (name, facts) = asked(source)?;
    let digest = digest(&source.identifier)?;
    let [mode, uid, gid] = facts;
    let parts = ["blob".to_owned(), digest.to_string(), name.clone(), format!("{mode:o} {uid}:{gid}")];
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let own = crate::context::digest_of(&parts);
    let known_as = lapstrake_cache::op::blob(&digest, &name, facts);
    let name = OpName { digest: known_as, selectors: Vec::new(), outputs: 1 };
    Ok(OpKey { digest: own, inputs: Vec::new(), ephemeral: false, name: Some(name) })
}

impl Engine {
    /// Brings a blob into the store; one of a layout was brought before, by who knows the client.
    pub(super) async fn bring_blob(
        &self,
        address: &str,
        cancel: &CancellationToken,
    ) -> Result<Digest, BuildError> {
        let digest = digest(address)?;
        let Some(name) = address.strip_prefix(REGISTRY) else { return Ok(digest) };
        if self.store.open_blob(&digest).is_ok() {
            return Ok(digest);
        }
        let wrong = |e| BuildError::new(Reason::RequestInvalid, format!("source {address}: {e}"));
        let name: Reference = name.parse().map_err(wrong)?;
        let client = self.images.client();
        let size =
            client.blob_size(&name, &digest).await.map_err(|e| BuildError::registry(&e, Asked::Pull))?;
        let blob = Descriptor::new("", digest, size);
        self.images.fetch(&name, &blob, &lapstrake_registry::Progress::none(), cancel).await?;
        Ok(digest)
    }

    /// Brings the bundle that a repository's commits are in.
    pub(super) async fn bring_bundle(&self, source: &pb::SourceOp) -> Result<(), BuildError> {
        match attr(source, "git.bundle") {
            Some(address) => self.bring_blob(address, &CancellationToken::new()).await.map(drop),
            None => Ok(()),
        }
    }

    /// The file system with the file that a blob is.
    pub(super) async fn blob(&self, source: &pb::SourceOp, step: &Step) -> Result<Res, BuildError> {
        let digest = self.bring_blob(&source.identifier, &step.cancel).await?;
        let (name, [mode, uid, gid]) = asked(source)?;
        let dress = Dress {
            name: if name.is_empty() { digest.hex() } else { name },
            mode: if mode == 0 { MODE } else { mode },
            owner: (uid, gid),
        };
        let store = self.store.clone();
        let open = move || store.open_blob(&digest).map_err(BuildError::from);
        self.file_system(open, dress, 0).await
    }

    /// The file system with a download that is owned by somebody.
    pub(super) async fn owned(&self, path: &Path, owner: (u32, u32)) -> Result<Res, BuildError> {
        let about = std::fs::metadata(path).map_err(BuildError::internal)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let dress = Dress { name, mode: about.permissions().mode() & 0o7777, owner };
        let modified = about.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let path = path.to_owned();
        let open = move || File::open(&path).map_err(BuildError::internal);
        self.file_system(open, dress, modified.unwrap_or_default().as_secs()).await
    }

    async fn file_system(
        &self,
        open: impl FnOnce() -> Result<File, BuildError> + Send + 'static,
        dress: Dress,
        modified: u64,
    ) -> Result<Res, BuildError> {
        let store = self.store.clone();
        let work = move || {
            let active = store.prepare(None)?;
            let at = active.upper().join(&dress.name);
            write(open()?, &at, &dress, modified).map_err(|e| {
                BuildError::of_file(&e).with(|failure| failure.message = format!("{}: {e}", at.display()))
            })?;
            super::commit(&store, active).map(|id| Res::Snapshot(Some(id)))
        };
        tokio::task::spawn_blocking(work).await.map_err(BuildError::internal)?
    }
}

fn write(mut from: impl Read, at: &Path, dress: &Dress, modified: u64) -> std::io::Result<()> {
    let mut file = File::options().write(true).create_new(true).open(at)?;
    std::io::copy(&mut from, &mut file)?;
    let (uid, gid) = dress.owner;
    std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
    file.set_permissions(Permissions::from_mode(dress.mode & 0o7777))?;
    file.set_modified(UNIX_EPOCH + Duration::from_secs(modified))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_named_by_its_digest_and_its_file_by_a_name() {
        let named = format!("{REGISTRY}h.example/a@sha256:{}", "a".repeat(64));
        assert!(digest(&named).is_ok());
        assert!(digest("docker-image+blob://h.example/a:1").is_err());
        for (text, name) in [("a", "a"), ("/x/../b/", "b"), ("..", "download"), ("/", "download")] {
            assert_eq!(safe_name(text), name);
        }
    }
}
