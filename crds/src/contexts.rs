//! What stands for a stage or an image of the Dockerfile.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::rules;
use crate::source::{GitSource, HttpSource};

/// What a name stands for in the Dockerfile, in `FROM` and `COPY --from`: exactly one of `image`, `git`, `http` and
/// `build`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "[has(self.image), has(self.git), has(self.http), has(self.build)].filter(x, x).size() == 1",
    "a context needs exactly one of image, git, http and build: keep the one that its name shall stand for",
)])))]
pub struct NamedContext {
    /// The name: that of an image, such as `golang` or `docker.io/library/alpine:3.20`, which this context takes the place
    /// of, or one of its own for `COPY --from=NAME`. In lower case.
    #[schemars(length(max = 256), extend("x-kubernetes-validations" = rules(&[(
        "self.matches('^[a-z0-9][a-zA-Z0-9._:/-]*$') && !(self in ['scratch', 'context'])",
        "contexts[].name must be what FROM or COPY --from says, in lower case, as in assets or golang:1.26; \
         scratch and context are taken",
    )])))]
    pub name: String,
    /// An image of a registry, by tag or digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512), extend("x-kubernetes-validations" = rules(&[(
        "self.matches('^[A-Za-z0-9][A-Za-z0-9._:/-]*(@sha256:[0-9a-f]{64})?$') && !self.contains('://')",
        "contexts[].image must be the name of an image without a scheme, such as registry.example/shop/assets:1.2",
    )])))]
    pub image: Option<String>,
    /// Files of a Git repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<GitSource>,
    /// Files of an archive, or one file, downloaded by HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSource>,
    /// The image of another ImageBuild in the same namespace. The build waits until that one is Ready, and takes
    /// exactly the image that it pushed; whenever it pushes another one, a new run of this one starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<BuildReference>,
}

/// Names an ImageBuild of the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuildReference {
    /// Its name. It may be created after this one.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// The one thing that a valid [`NamedContext`] stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextKind<'a> {
    /// An image.
    Image(&'a str),
    /// Files of a repository.
    Git(&'a GitSource),
    /// Files of a download.
    Http(&'a HttpSource),
    /// The image of another ImageBuild, by its name.
    Build(&'a str),
}

impl NamedContext {
    /// The one that is set; `None` if none or more than one is, which the schema refuses.
    pub fn kind(&self) -> Option<ContextKind<'_>> {
        match (&self.image, &self.git, &self.http, &self.build) {
            (Some(image), None, None, None) => Some(ContextKind::Image(image)),
            (None, Some(git), None, None) => Some(ContextKind::Git(git)),
            (None, None, Some(http), None) => Some(ContextKind::Http(http)),
            (None, None, None, Some(build)) => Some(ContextKind::Build(&build.name)),
            _ => None,
        }
    }
}
