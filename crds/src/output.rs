//! Where the image goes.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::attestations::Attestations;
use crate::schema::{each, rules, text};

/// What may stand for a part of a tag.
macro_rules! placeholder {
    () => {
        "[{](commit|shortCommit|date|time|branch|tag|semver|major|minor|patch)[}]"
    };
}
/// Name of the image and of the tags that it is pushed under.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// Repository that the image is pushed to, such as `registry.example/shop/web`. A tag may follow
    /// (`registry.example/shop/web:1.2`); with neither this one nor `tags`, the tag is `latest`.
    #[schemars(length(max = 512), extend("x-kubernetes-validations" = rules(&[
        (
            "!self.contains('@')",
            "output.image must not hold a digest, since the digest is what the build finds out: write it up to the @",
        ),
        (
            IMAGE_RULE,
            "output.image is not an image name: write registry/repository[:tag] with the repository in lower case, \
             such as registry.example/shop/web",
        ),
    ])))]
    pub image: String,
    /// Tags that the image is pushed under, each once. More of them cost one small request each. A tag may be filled
    /// from the source: `{commit}`, `{shortCommit}` (7 digits), `{date}` (20260131) and `{time}` (133700) of the commit in
    /// UTC, `{branch}`, `{tag}`, and of a tag such as `v1.2.3` `{semver}` (1.2.3), `{major}`, `{minor}` and `{patch}`. A tag
    /// for which the source has no value, as `{semver}` on a branch, is left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        inner(length(max = 128)),
        extend("x-kubernetes-list-type" = "set", "x-kubernetes-validations" = each(
            concat!(
                "x.matches('^([A-Za-z0-9_]|", placeholder!(), ")([A-Za-z0-9_.-]|", placeholder!(), ")*$')",
            ),
            "output.tags holds what is not a tag",
            "; a tag has letters, digits, dots, dashes and underscores, as in 1.2.3-rc.1, or placeholders such as {semver}, \
             and no repository in front of it",
        ))
    )]
    pub tags: Vec<String>,
    /// Further names of the same image, in this or other registries. One with a tag (`mirror.example/web:1.2`) is pushed
    /// under that tag, one without under all tags that `image` has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 8),
        inner(length(max = 512)),
        extend("x-kubernetes-list-type" = "set", "x-kubernetes-validations" = each(
            concat!(
                "x.matches('^(",
                r"(localhost|[A-Za-z0-9-]+([.][A-Za-z0-9-]+)+|\\[[0-9a-fA-F:]+\\])(:[0-9]{1,5})?/|[A-Za-z0-9-]+:[0-9]{1,5}/",
                ")?[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*)*",
                "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$')",
            ),
            "output.additionalImages holds what is not an image name",
            "; write registry/repository[:tag] with the repository in lower case, such as mirror.example/shop/web",
        ))
    )]
    pub additional_images: Vec<String>,
    /// Whether OCI's standard annotations and labels (`org.opencontainers.image.source`, `.revision`, `.version` and
    /// `.created`) are filled from the source, where `annotations` and `labels` do not say otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub source_metadata: bool,
    /// The time in the image's config, in its layers' files and in `SOURCE_DATE_EPOCH`, so that the same source gives the
    /// same image: `Commit` (that of the commit), or seconds since 1970. By default the time of the build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = rules(&[(
        "self.matches('^(Commit|0|[1-9][0-9]{0,10})$')",
        "output.timestamp must be Commit or a number of seconds since 1970, in quotes",
    )])))]
    pub timestamp: Option<String>,
    /// Secret of type `kubernetes.io/dockerconfigjson`, in the ImageBuild's namespace, with the
    /// credentials for the registries that the build pulls from and pushes to. It is mounted into
    /// the builder pod; the operator never reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretReference>,
    /// Annotations of the image's manifest (and of its index, for several platforms), such as
    /// `org.opencontainers.image.source`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64, "additionalProperties" = text(4096)))]
    pub annotations: BTreeMap<String, String>,
    /// Labels of the image's config, added to those that the Dockerfile's LABEL sets and stronger
    /// than they are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64, "additionalProperties" = text(4096)))]
    pub labels: BTreeMap<String, String>,
    /// What is attested of the image: how it was made, and what is in it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub attestations: Attestations,
}

fn is_default(attestations: &Attestations) -> bool {
    attestations == &Attestations::default()
}

const IMAGE_RULE: &str = concat!(
    "self.matches('^(",
    // A host has a dot, a port, or is localhost; else the first part belongs to the repository.
    r"(localhost|[A-Za-z0-9-]+([.][A-Za-z0-9-]+)+|\\[[0-9a-fA-F:]+\\])(:[0-9]{1,5})?/|[A-Za-z0-9-]+:[0-9]{1,5}/",
    ")?",
    "[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*)*",
    "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$') || self.contains('@')"
);

impl Output {
    /// The repository without its tag: what precedes `@sha256:…` in `status.image`.
    pub fn repository(&self) -> &str {
        self.split().0
    }

    /// All tags to push, sorted, each once: the one behind `image`, those of `tags`, or `latest`.
    pub fn all_tags(&self) -> BTreeSet<&str> {
        let mut tags: BTreeSet<&str> = self.tags.iter().map(String::as_str).collect();
        tags.extend(self.split().1);
        if tags.is_empty() {
            tags.insert("latest");
        }
        tags
    }

    /// All full names to push, those of `image` first.
    pub fn names(&self) -> Vec<String> {
        let tags = self.all_tags();
        let all = |repository: &str| -> Vec<String> {
            tags.iter().map(|tag| format!("{repository}:{tag}")).collect()
        };
        let mut names = all(self.repository());
        for image in &self.additional_images {
            let more = match split(image) {
                (_, Some(_)) => vec![image.clone()],
                (repository, None) => all(repository),
            };
            names.extend(more);
        }
        let mut seen = BTreeSet::new();
        names.retain(|name| seen.insert(name.clone()));
        names
    }

    fn split(&self) -> (&str, Option<&str>) {
        split(&self.image)
    }
}

/// A name's repository and tag.
fn split(image: &str) -> (&str, Option<&str>) {
    match image.rsplit_once(':') {
        // A colon before a slash starts a port, not a tag.
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (image, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_repository_has_the_tags_of_the_first_unless_it_has_one_itself() {
        let output = Output {
            image: "a.example/web".into(),
            tags: vec!["1".into(), "{semver}".into()],
            additional_images: vec![
                "b.example:5000/web".into(),
                "c.example/web:x".into(),
                "a.example/web:1".into(),
            ],
            ..Output::default()
        };
        let names = [
            "a.example/web:1",
            "a.example/web:{semver}",
            "b.example:5000/web:1",
            "b.example:5000/web:{semver}",
            "c.example/web:x",
        ];
        assert_eq!(output.names(), names);
    }
}

/// A Secret, or where it is said a ConfigMap, in the ImageBuild's own namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretReference {
    /// Name of the Secret. It may be created after the ImageBuild; the build waits for it.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}
