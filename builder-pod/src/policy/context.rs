//! Policies applied to what a build is made from, which is fetched without an operation.

use lapstrake_api::pb::SourceOp;
use lapstrake_handoff::Reason;
use lapstrake_source::GitRef;

use super::Policies;
use crate::error::BuildError;
use crate::options::Context;

/// The attribute with the checksum of a download.
const HTTP_CHECKSUM: &str = "http.checksum";
/// The attribute with the whole address of a repository.
const GIT_URL: &str = "git.fullurl";

/// The context that counts in place of one; none where it is the same.
///
/// # Errors
/// It is denied, or converted into something that a context can't be.
pub(crate) fn context(policies: &Policies, context: &Context) -> Result<Option<Context>, BuildError> {
    let (Some(mut op), false) = (operation(context), policies.is_empty()) else { return Ok(None) };
    let before = op.clone();
    policies.source(&mut op, None)?;
    if op == before {
        return Ok(None);
    }
    let other = |why: &str| {
        let text = format!(
            "context {} can't be replaced by {} through a policy: {why}",
            before.identifier, op.identifier
        );
        Err(BuildError::new(Reason::NotSupported, text))
    };
    match context {
        Context::Http { path, .. } if op.identifier.starts_with("http") => {
            let checksum =
                op.attrs.get(HTTP_CHECKSUM).map(|text| text.strip_prefix("sha256:").unwrap_or(text));
            Ok(Some(Context::Http {
                url: op.identifier.clone(),
                sha256: checksum.map(str::to_owned),
                path: path.clone(),
            }))
        }
        Context::Http { .. } => other("it is no download"),
        _ => other("repositories that are contexts can be allowed and denied only"),
    }
}

/// A context as an operation that would bring it.
fn operation(context: &Context) -> Option<SourceOp> {
    let mut op = SourceOp::default();
    match context {
        Context::Git { url, reference, path, .. } => {
            let bare = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
            let bare = bare.rsplit_once('@').map_or(bare, |(_, rest)| rest);
            op.identifier = format!("git://{bare}");
            let path = path.as_deref().unwrap_or_default();
            let reference = match reference {
                GitRef::Default => "",
                GitRef::Branch(name) | GitRef::Tag(name) | GitRef::Commit(name) | GitRef::Any(name) => name,
            };
            if !reference.is_empty() || !path.is_empty() {
                op.identifier.push_str(&format!("#{reference}"));
            }
            if !path.is_empty() {
                op.identifier.push_str(&format!(":{path}"));
            }
            op.attrs.insert(GIT_URL.to_owned(), url.clone());
        }
        Context::Http { url, sha256, .. } => {
            op.identifier.clone_from(url);
            op.attrs.extend(sha256.iter().map(|sum| (HTTP_CHECKSUM.to_owned(), format!("sha256:{sum}"))));
        }
        Context::Directory(_) | Context::Client(_) | Context::Inline(_) => return None,
    }
    Some(op)
}
