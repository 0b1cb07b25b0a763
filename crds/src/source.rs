//! Where the build context comes from.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::output::SecretReference;
use crate::schema::rules;

/// Where the files of the build come from: exactly one of `git`, `http` and `inline`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "[has(self.git), has(self.http), has(self.inline)].filter(x, x).size() == 1",
    "source needs exactly one of git, http and inline: add the one to build from and remove the others",
)])))]
pub struct Source {
    /// A commit of a Git repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<GitSource>,
    /// An archive (tar, optionally compressed) or a single file, downloaded by HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSource>,
    /// Files written right here in the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inline: Option<InlineSource>,
}

/// The one source that a valid [`Source`] has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind<'a> {
    /// A commit of a Git repository.
    Git(&'a GitSource),
    /// A download.
    Http(&'a HttpSource),
    /// Files in the manifest.
    Inline(&'a InlineSource),
}

impl Source {
    /// The one source that is set; `None` if none or more than one is, which the schema refuses.
    pub fn kind(&self) -> Option<SourceKind<'_>> {
        match (&self.git, &self.http, &self.inline) {
            (Some(git), None, None) => Some(SourceKind::Git(git)),
            (None, Some(http), None) => Some(SourceKind::Http(http)),
            (None, None, Some(inline)) => Some(SourceKind::Inline(inline)),
            _ => None,
        }
    }
}

/// A commit of a Git repository: the head of `branch`, the commit of `tag`, exactly `commit`, or
/// without any of them the head of the repository's default branch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "[has(self.branch), has(self.tag), has(self.commit)].filter(x, x).size() <= 1",
    "source.git takes at most one of branch, tag and commit: keep the one to build",
), (
    "!self.url.startsWith('ssh://') && !self.url.matches('^[^/]+@') || has(self.secretRef)",
    "source.git.url is one by SSH, which needs a key: name a Secret with ssh-privatekey and known_hosts in source.git.secretRef",
)])))]
pub struct GitSource {
    /// Address of the repository, such as `https://git.example/shop/web.git`,
    /// `ssh://git@git.example/shop/web.git` or `git@git.example:shop/web.git`. Only what one commit
    /// needs is fetched.
    #[schemars(length(max = 2048), extend("x-kubernetes-validations" = rules(&[
        (
            "self.matches('^(https?|git|ssh)://[^/ ]+(/[^ ]*)?$') || self.matches('^[A-Za-z0-9_][A-Za-z0-9._-]*@[A-Za-z0-9][A-Za-z0-9.-]*:[^ ]+$')",
            "source.git.url must be an http, https, ssh or git URL, such as https://git.example/shop/web.git, or user@host:path",
        ),
        (
            "!self.matches('^(https?|git)://[^/ ]*@') && !self.matches('^ssh://[^/@ ]*:[^/ ]*@')",
            "source.git.url must not hold a user name or password: everybody who may read the ImageBuild would read it; \
             write the URL without the part before the @, and name a Secret in source.git.secretRef",
        ),
    ])))]
    pub url: String,
    /// Branch to build the head of, such as `main` or `release/1.2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 244), extend("x-kubernetes-validations" = rules(&[(
        "self.matches('^[^- ~^:?*\\\\[\\\\\\\\][^ ~^:?*\\\\[\\\\\\\\]*$') && !self.contains('..')",
        "source.git.branch is not a branch name: write it without refs/heads/, as in main or release/1.2",
    )])))]
    pub branch: Option<String>,
    /// Tag to build, such as `v1.2.3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 244), extend("x-kubernetes-validations" = rules(&[(
        "self.matches('^[^- ~^:?*\\\\[\\\\\\\\][^ ~^:?*\\\\[\\\\\\\\]*$') && !self.contains('..')",
        "source.git.tag is not a tag name: write it without refs/tags/, as in v1.2.3",
    )])))]
    pub tag: Option<String>,
    /// Commit to build, by its full hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), extend("x-kubernetes-validations" = rules(&[(
        "self.matches('^([0-9a-f]{40}|[0-9a-f]{64})$')",
        "source.git.commit must be the full hash of a commit, 40 (or 64) hexadecimal digits in lower case: \
         `git rev-parse HEAD` prints it",
    )])))]
    pub commit: Option<String>,
    /// Directory of the repository that is the build context; the repository's root by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), extend("x-kubernetes-validations" = rules(&[(
        "self.matches('^[^/]') && !self.matches('(^|/)[.][.](/|$)')",
        "source.git.path must be a path inside the repository, such as services/web: without a / in front and without ..",
    )])))]
    pub path: Option<String>,
    /// Whether the repository's submodules are fetched too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub submodules: bool,
    /// Secret with the credentials for the host of `url`: `username` and `password` (type
    /// `kubernetes.io/basic-auth`), `token` (as a password) or `bearerToken`; by SSH `ssh-privatekey`
    /// (type `kubernetes.io/ssh-auth`) and `known_hosts`. No other host is shown them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretReference>,
}

/// An archive or a single file, downloaded by HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpSource {
    /// Address of the download. A tar archive, plain or compressed, is unpacked; any other file is the context's only file, under the name `Dockerfile`.
    #[schemars(length(max = 2048), extend("x-kubernetes-validations" = rules(&[
        (
            "self.matches('^https?://[^/ ]+(/[^ ]*)?$')",
            "source.http.url must be an http or https URL, such as https://files.example/web-1.2.tar.gz",
        ),
        (
            "!self.matches('^[a-z]+://[^/ ]*@')",
            "source.http.url must not hold a user name or password: everybody who may read the ImageBuild would read it; \
             write the URL without the part before the @",
        ),
    ])))]
    pub url: String,
    /// SHA-256 of the download, 64 hexadecimal digits. The build fails if what the server sends is
    /// something else. Without it, whatever the server sends is built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 71), extend("x-kubernetes-validations" = rules(&[(
        "self.matches('^(sha256:)?[0-9a-f]{64}$')",
        "source.http.sha256 must be 64 hexadecimal digits in lower case: `sha256sum FILE` prints them",
    )])))]
    pub sha256: Option<String>,
    /// Directory of the archive that is the build context; the archive's root by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), extend("x-kubernetes-validations" = rules(&[(
        "self.matches('^[^/]') && !self.matches('(^|/)[.][.](/|$)')",
        "source.http.path must be a path inside the archive, such as web-1.2: without a / in front and without ..",
    )])))]
    pub path: Option<String>,
    /// Secret with the credentials for the host of `url`: `username` and `password` (type
    /// `kubernetes.io/basic-auth`), `token` or `bearerToken`. No other host is shown them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretReference>,
}

/// Files written right here in the manifest, 512 KiB in all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "!has(self.files) || self.files.map(f, has(f.content) ? f.content.size() : 0).sum() <= 524288",
    "source.inline.files hold more than 512 KiB in all: keep large files in Git or in an archive, and use source.git or source.http",
)])))]
pub struct InlineSource {
    /// The files of the build context, each under a path of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["path"])
    )]
    pub files: Vec<InlineFile>,
}

/// One file of an inline source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InlineFile {
    /// Path in the build context, such as `Dockerfile` or `src/main.rs`.
    #[schemars(length(max = 512), extend("x-kubernetes-validations" = rules(&[(
        "self.matches('^[^/]') && !self.matches('(^|/)[.]{0,2}(/|$)')",
        "a path in source.inline.files must be relative, such as src/main.rs: without a / in front or at the end, \
         and without . or .. between slashes",
    )])))]
    pub path: String,
    /// The file's text; an empty file by default.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 524288))]
    pub content: String,
    /// Whether the file may be executed (mode 0755 instead of 0644).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub executable: bool,
}
