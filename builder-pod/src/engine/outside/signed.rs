//! Signatures that a source must have (`git.sig.…`, `http.sig.…`): a build that asks for one gets nothing without it.

use std::path::Path;

use lapstrake_handoff::Reason;
use lapstrake_llb::pb;
use lapstrake_source::{Git, Resolved, Signed, shown_url};

use super::{attr, flag};
use crate::error::BuildError;
use crate::signature::{self, Signer};

fn refused(url: &str, why: impl std::fmt::Display) -> BuildError {
    BuildError::new(Reason::SourceDenied, format!("{}: {why}", shown_url(url)))
}

/// Whether a repository's commit must be signed.
pub(super) fn is_wanted(source: &pb::SourceOp) -> bool {
    source.attrs.keys().any(|name| name.starts_with("git.sig."))
}

/// Checks a commit that was fetched, or the tag that it was found by. A signed tag speaks for its commit, unless that is not
/// wanted.
pub(super) async fn commit(
    git: &Git,
    url: &str,
    source: &pb::SourceOp,
    commit: &Resolved,
) -> Result<(), BuildError> {
    let keys = attr(source, "git.sig.pubkey").unwrap_or_default();
    let signer = Signer { keys, rejects_expired: flag(source, "git.sig.rejectexpired") };
    let check = |object: &Signed| match &object.signature {
        Some(signature) => signature::of_git(&object.data, signature, &signer).map_err(|e| refused(url, e)),
        None => Err(refused(url, "git object is not signed")),
    };
    let objects = git.objects(url, commit).await?;
    let tag = objects.tag.filter(|_| !flag(source, "git.sig.ignoresignedtag")).map(|tag| check(&tag));
    match tag {
        Some(Ok(())) => Ok(()),
        Some(Err(error)) if flag(source, "git.sig.requiresignedtag") => Err(error),
        None if flag(source, "git.sig.requiresignedtag") => {
            Err(refused(url, "signed tag required but no signed tag found"))
        }
        _ => check(&objects.commit),
    }
}

/// Checks a file that was downloaded. Blocking.
pub(super) fn file(url: &str, source: &pb::SourceOp, path: &Path) -> Result<(), BuildError> {
    let (keys, signature) = match (attr(source, "http.sig.pubkey"), attr(source, "http.sig.signature")) {
        (None, None) => return Ok(()),
        (Some(keys), Some(signature)) => (keys, signature),
        _ => {
            let why = "http signature verification requires both pubkey and signature";
            return Err(BuildError::new(Reason::RequestInvalid, format!("{}: {why}", shown_url(url))));
        }
    };
    let signer = Signer { keys, rejects_expired: false };
    let open = || std::fs::File::open(path);
    let checked = signature::of_pgp(&open, signature, &signer);
    checked.map_err(|e| refused(url, format!("failed to verify pgp signature: {e}")))
}
