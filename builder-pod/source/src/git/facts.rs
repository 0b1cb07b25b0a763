//! What a repository says of a commit beside its files.

use super::{Git, GitRef, Resolved, check_commit, error, is_commit};
use crate::error::Error;

/// What is known of a commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The committer's time, seconds since 1970.
    pub time: Option<i64>,
    /// The branch that was asked for; of a repository's default branch its name.
    pub branch: Option<String>,
    /// Tags: the one that was asked for, else all that the repository has on the commit.
    pub tags: Vec<String>,
}

impl Git {
    /// Looks at a commit that was fetched. `ask`: the repository is asked for its default branch's name and
    /// for the commit's tags; else they are known only as far as they were asked for.
    ///
    /// # Errors
    /// [`Error::Git`].
    pub async fn facts(
        &self,
        url: &str,
        resolved: &Resolved,
        want: &GitRef,
        ask: bool,
    ) -> Result<Facts, Error> {
        self.check_url(url)?;
        check_commit(&resolved.commit)?;
        let show = ["show", "--no-patch", "--format=%ct", &resolved.commit];
        let dir = self.repository(url);
        let shown = self.runner.run(Some(&dir), &show).await;
        let time = shown.map_err(|failure| error(url, &resolved.commit, failure))?;
        let mut facts = Facts { time: time.trim().parse().ok(), ..Facts::default() };
        let reference = resolved.reference.as_deref().unwrap_or_default();
        facts.branch = reference.strip_prefix("refs/heads/").map(str::to_owned);
        facts.tags.extend(reference.strip_prefix("refs/tags/").map(str::to_owned));
        if !ask || (facts.branch.is_some() && !facts.tags.is_empty()) {
            return Ok(facts);
        }
        let args = ["ls-remote", "--symref", "--", url, "HEAD", "refs/tags/*"].map(str::to_owned);
        let access = self.access(url)?;
        let output = self.runner.remote(None, &args, &access).await;
        let output = output.map_err(|failure| error(url, reference, failure))?;
        let is_default = matches!(want, GitRef::Default) || reference == "HEAD";
        if is_default && facts.branch.is_none() {
            facts.branch = default_branch(&output);
        }
        if facts.tags.is_empty() {
            facts.tags = tags_of(&output, &resolved.commit);
        }
        Ok(facts)
    }
}

pub(super) fn default_branch(listed: &str) -> Option<String> {
    let head = listed.lines().find_map(|line| line.strip_prefix("ref: ")?.strip_suffix("\tHEAD"))?;
    head.strip_prefix("refs/heads/").map(str::to_owned)
}

/// Tags that stand for a commit, annotated ones too, sorted.
fn tags_of(listed: &str, commit: &str) -> Vec<String> {
    let named = listed.lines().filter_map(|line| {
        let (id, name) = line.split_once('\t')?;
        let name = name.strip_prefix("refs/tags/")?;
        (is_commit(id) && id == commit).then(|| name.strip_suffix("^{}").unwrap_or(name).to_owned())
    });
    let mut tags: Vec<String> = named.collect();
    tags.sort();
    tags.dedup();
    tags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_tells_the_default_branch_and_the_tags_of_a_commit() {
        let (here, there, tag) = ("a".repeat(40), "b".repeat(40), "c".repeat(40));
        let listed = format!(
            "ref: refs/heads/trunk\tHEAD\n{here}\tHEAD\n{there}\trefs/tags/old\n{tag}\trefs/tags/v2\n\
             {here}\trefs/tags/v2^{{}}\n{here}\trefs/tags/plain\n"
        );
        assert_eq!(default_branch(&listed).as_deref(), Some("trunk"));
        assert_eq!(tags_of(&listed, &here), ["plain", "v2"]);
    }
}
