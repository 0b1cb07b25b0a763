//! Where the image goes.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::{each, rules, text};

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
    /// Tags that the image is pushed under, each once. More of them cost one small request each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        inner(length(max = 128)),
        extend("x-kubernetes-list-type" = "set", "x-kubernetes-validations" = each(
            "x.matches('^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$')",
            "output.tags holds what is not a tag",
            "; a tag has letters, digits, dots, dashes and underscores, as in 1.2.3-rc.1, and no repository in front of it",
        ))
    )]
    pub tags: Vec<String>,
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

    fn split(&self) -> (&str, Option<&str>) {
        match self.image.rsplit_once(':') {
            // A colon before a slash starts a port, not a tag.
            Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
            _ => (&self.image, None),
        }
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
