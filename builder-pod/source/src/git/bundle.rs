//! A repository as one file.

use std::path::Path;

use super::{Git, Resolved, check_commit, error, is_commit};
use crate::error::Error;

impl Git {
    /// Writes the repository up to a commit into a file that `git` reads as a repository. In it the commit is the tip of the
    /// branch or tag `reference`; of `main` where that is empty or a commit.
    ///
    /// # Errors
    /// [`Error::Git`].
    pub async fn bundle(
        &self,
        url: &str,
        resolved: &Resolved,
        reference: &str,
        file: &Path,
    ) -> Result<(), Error> {
        self.check_url(url)?;
        check_commit(&resolved.commit)?;
        let failed = |failure| error(url, &resolved.commit, failure);
        let scratch = tempfile::tempdir_in(&self.cache).map_err(Error::io("make a git repository"))?;
        let dir = scratch.path();
        let format = if resolved.commit.len() == 64 { "sha256" } else { "sha1" };
        let format = format!("--object-format={format}");
        let at = dir.display().to_string();
        let init = ["init", "--bare", "--quiet", "--template=", &format, "--", &at];
        self.runner.run(None, &init).await.map_err(failed)?;
        // Whole: what is cut can't be read by others.
        let tip = resolved.reference.as_deref().unwrap_or(&resolved.commit);
        let access = self.access(url)?;
        let fetch = ["fetch", "--no-tags", "--no-write-fetch-head", "--quiet", "--", url, tip];
        if self.runner.remote(Some(dir), &fetch, &access).await.is_err() {
            let all = "+refs/*:refs/theirs/*";
            let fetch = ["fetch", "--no-tags", "--no-write-fetch-head", "--quiet", "--", url, all];
            self.runner.remote(Some(dir), &fetch, &access).await.map_err(failed)?;
        }
        let target = target(reference);
        let update = ["update-ref", &target, &resolved.commit];
        self.runner.run(Some(dir), &update).await.map_err(failed)?;
        let file = file.display().to_string();
        let create = ["bundle", "create", "--quiet", &file, &target];
        self.runner.run(Some(dir), &create).await.map_err(failed)?;
        Ok(())
    }
}

/// What the tip of a bundle is called.
fn target(reference: &str) -> String {
    if reference.is_empty() || is_commit(reference) {
        return "refs/heads/main".to_owned();
    }
    if reference.starts_with("refs/tags/") {
        return reference.to_owned();
    }
    let name = reference.strip_prefix("refs/").unwrap_or(reference);
    format!("refs/heads/{}", name.strip_prefix("heads/").unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tip_is_a_branch_unless_it_is_named_as_a_tag() {
        let names = [
            ("", "refs/heads/main"),
            ("v1", "refs/heads/v1"),
            ("refs/tags/v1", "refs/tags/v1"),
            ("refs/heads/x", "refs/heads/x"),
            ("0123456789012345678901234567890123456789", "refs/heads/main"),
        ];
        for (name, wanted) in names {
            assert_eq!(target(name), wanted);
        }
    }
}
