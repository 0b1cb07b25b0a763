//! What the operator asks of one builder pod.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::attestations::Attestations;
use crate::cache::{CacheExport, CacheImport};
use crate::inputs::{Allow, ArgInput, Certificates, Proxy, SecretInput, SshInput, StepNetwork, is_default};
use crate::limits::REQUEST_BYTES_MAX;
use crate::platforms::{PLATFORMS_MAX, PlatformManifest, SourceFacts};
use crate::steps::{ContextInput, Steps};

/// Version of the request's shape. An operator and a builder that disagree say so.
pub const REQUEST_VERSION: &str = "handoff.lapstrake.dev/v1";

/// One build run, complete: everything that decides its result is in here.
///
/// Unknown fields are refused: a builder that does not know a field would
/// otherwise build something else than was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Request {
    /// Always [`REQUEST_VERSION`].
    pub api_version: String,
    /// The ImageBuild this run belongs to.
    pub build: BuildRef,
    /// The run's identity; goes into logs, never into the image.
    pub run: String,
    /// Platforms to build, `os/arch[/variant]`; empty: the builder's own. Several become one index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<String>,
    /// When not empty, nothing is built and no source is fetched: these manifests, which are in all
    /// repositories of `output.names` already, become one index, which is pushed under its digest and then under all names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub index: Vec<PlatformManifest>,
    /// What the source was resolved to by those who built the manifests of `index`: for names with
    /// placeholders and for annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<SourceFacts>,
    /// Where the context comes from.
    pub source: Source,
    /// Which Dockerfile.
    #[serde(default)]
    pub dockerfile: Dockerfile,
    /// Build arguments, in a fixed order.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub args: BTreeMap<String, String>,
    /// Further arguments, whose values are in files; they win over `args`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args_from: Vec<ArgInput>,
    /// Where the image goes and what it carries.
    pub output: Output,
    /// What is attested of the image.
    #[serde(default, skip_serializing_if = "is_default")]
    pub attestations: Attestations,
    /// `SOURCE_DATE_EPOCH`: seconds since 1970; unset: the builder's rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_date_epoch: Option<i64>,
    /// True: where neither `source_date_epoch` nor an argument of that name says otherwise, the commit's
    /// time is `SOURCE_DATE_EPOCH`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub source_date_epoch_from_source: bool,
    /// True: nothing is taken from the cache (results still go into it).
    #[serde(default, skip_serializing_if = "is_false")]
    pub no_cache: bool,
    /// Stages of which no step takes anything from the cache.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub no_cache_stages: Vec<String>,
    /// Options of the frontend, by BuildKit's names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub frontend_options: BTreeMap<String, String>,
    /// What names of the Dockerfile stand for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contexts: Vec<ContextInput>,
    /// What steps find around them.
    #[serde(default, skip_serializing_if = "is_default")]
    pub steps: Steps,
    /// Secrets for `RUN --mount=type=secret`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretInput>,
    /// Agents for `RUN --mount=type=ssh`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh: Vec<SshInput>,
    /// Authorities that are trusted beside the usual ones.
    #[serde(default, skip_serializing_if = "is_default")]
    pub certificates: Certificates,
    /// Proxies of the builder, and by choice of its steps.
    #[serde(default, skip_serializing_if = "is_default")]
    pub proxy: Proxy,
    /// The network of steps that ask for none.
    #[serde(default, skip_serializing_if = "is_default")]
    pub network: StepNetwork,
    /// What the Dockerfile may ask for beyond the usual.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Allow>,
    /// Caches of other builds that are looked into, the first that knows a step wins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cache_from: Vec<CacheImport>,
    /// Caches that are written after the build succeeded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cache_to: Vec<CacheExport>,
    /// State folder; holds blobs, snapshots and index.
    pub state_dir: String,
    /// Bytes that the state folder may take; what is needed least goes when it is more. Unset: a share
    /// of the file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_max_bytes: Option<u64>,
    /// Registries' configuration (mirrors, plain http, CAs), when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registries_config: Option<String>,
    /// Docker `config.json` files, or folders with the keys of a Secret for registries. All are merged, and
    /// read anew when they changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub docker_configs: Vec<String>,
    /// More of them, which may be absent or malformed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub docker_configs_optional: Vec<String>,
    /// The builder ends itself with [`crate::Reason::TimedOut`] after this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
    /// What the builder must find itself in; anything else is
    /// [`crate::Reason::SandboxUnavailable`].
    pub sandbox: SandboxMode,
    /// How progress is written to standard error.
    #[serde(default)]
    pub progress: ProgressFormat,
}

/// Names one ImageBuild.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BuildRef {
    /// Name of the object.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its uid.
    pub uid: String,
}

/// Where a build context comes from. Exactly one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// A Git repository.
    Git(GitSource),
    /// An archive or a single file by http.
    Http(HttpSource),
    /// Files written out in the request.
    Inline(Vec<InlineFile>),
}

/// A Git repository at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GitSource {
    /// Anything that `git clone` takes, without credentials.
    pub url: String,
    /// What to check out; unset: the remote's default branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<GitRef>,
    /// Full id of the commit that `reference` stood for when the run was asked for: this one is built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Folder inside the repository that is the context; unset: its root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// True: submodules are checked out too.
    #[serde(default, skip_serializing_if = "is_false")]
    pub submodules: bool,
    /// Folder with the keys of a Secret, for the host of `url` alone: `username` and `password`, `token` or
    /// `bearerToken`, `ssh-privatekey` with `known_hosts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<String>,
}

/// One revision of a Git repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum GitRef {
    /// Head of a branch.
    Branch(String),
    /// A tag.
    Tag(String),
    /// A full commit id.
    Commit(String),
}

/// A file or archive by http or https.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpSource {
    /// Its address, without credentials.
    pub url: String,
    /// Checksum that the bytes must have: 64 hex digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Folder inside the archive that is the context; unset: its root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Folder with the keys of a Secret, for the host of `url` alone: `username` and `password`, `token` or
    /// `bearerToken`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<String>,
}

/// One file of an inline context.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InlineFile {
    /// Path inside the context, relative, without `..`.
    pub path: String,
    /// Its text.
    pub content: String,
    /// Permission bits; unset: 0644.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
}

/// Which Dockerfile, and how far it is built.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dockerfile {
    /// Path inside the context; unset: `Dockerfile`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Its text; wins over `path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inline: Option<String>,
    /// Stage to build; unset: the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// Where the image goes and what it carries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Output {
    /// Full references with tags, `registry.example/shop/web:1.2`. A tag may have the placeholders
    /// `{commit}`, `{shortCommit}`, `{date}`, `{time}`, `{branch}`, `{tag}`, `{semver}`, `{major}`,
    /// `{minor}` and `{patch}`; a name whose placeholder has no value is left out.
    pub names: Vec<String>,
    /// True: pushed under its digest only; tags are set by somebody else, and those of `names` are
    /// only reported with their placeholders filled in.
    #[serde(default, skip_serializing_if = "is_false")]
    pub push_by_digest: bool,
    /// Labels added to the image's config.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations added to each manifest, and to the index where there is one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// True: OCI's standard annotations (`org.opencontainers.image.source`, `.revision`, `.version`,
    /// `.created`) are filled from the source where `annotations` has none.
    #[serde(default, skip_serializing_if = "is_false")]
    pub annotations_from_source: bool,
    /// True: the same as labels, where `labels` has none.
    #[serde(default, skip_serializing_if = "is_false")]
    pub labels_from_source: bool,
    /// How layers are compressed.
    #[serde(default)]
    pub compression: Compression,
    /// Level of that compression; unset: the builder's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression_level: Option<i32>,
    /// True: Docker's media types in place of OCI's.
    #[serde(default, skip_serializing_if = "is_false")]
    pub docker_media_types: bool,
}

/// How layers are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Compression {
    /// What every registry and runtime takes.
    #[default]
    Gzip,
    /// Smaller and faster to unpack.
    Zstd,
    /// None.
    Uncompressed,
}

/// The sandbox that the pod was given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxMode {
    /// `hostUsers: false` with SYS_ADMIN inside the pod's user namespace.
    #[default]
    UserNamespace,
    /// `hostUsers: false` without SYS_ADMIN; the builder nests a namespace.
    Baseline,
    /// A privileged pod, by explicit wish only.
    Privileged,
}

/// How progress is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProgressFormat {
    /// BuildKit's plain grammar, see [`crate::progress`].
    #[default]
    Plain,
    /// One JSON object per line.
    Json,
}

impl Request {
    /// A request of this version for nothing: a start for one that is filled in.
    pub fn empty() -> Self {
        let text = format!(
            r#"{{"apiVersion":"{REQUEST_VERSION}","build":{{"name":"","namespace":"","uid":""}},"run":"","source":{{"inline":[]}},
            "output":{{"names":[]}},"stateDir":"","sandbox":"UserNamespace"}}"#
        );
        serde_json::from_str(&text).expect("what has a default may be left out")
    }

    /// Reads a request and checks that it can be served.
    ///
    /// Errors: another version, an unknown field, an empty output or source.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        const WHAT: &str = "request";
        if bytes.len() > REQUEST_BYTES_MAX {
            return Err(Error::TooLong { what: WHAT, bytes: bytes.len(), bytes_max: REQUEST_BYTES_MAX });
        }
        // The version goes first: a newer request may have fields that would
        // otherwise be reported as unknown.
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Version {
            #[serde(default)]
            api_version: String,
        }
        let malformed = |source| Error::Malformed { what: WHAT, source };
        let version: Version = serde_json::from_slice(bytes).map_err(malformed)?;
        if version.api_version != REQUEST_VERSION {
            return Err(Error::Version { what: WHAT, found: version.api_version, known: REQUEST_VERSION });
        }
        let request: Self = serde_json::from_slice(bytes).map_err(malformed)?;
        request.check()?;
        Ok(request)
    }

    /// The request as it is mounted: readable, in a fixed order.
    pub fn encode(&self) -> String {
        serde_json::to_string_pretty(self).expect("a request has string keys only")
    }

    fn check(&self) -> Result<(), Error> {
        let field = |field, problem: &str| Err(Error::Field { field, problem: problem.to_owned() });
        if self.output.names.is_empty() {
            return field("output.names", "names no image");
        }
        if self.state_dir.is_empty() {
            return field("stateDir", "is empty");
        }
        if self.timeout_seconds == Some(0) {
            return field("timeoutSeconds", "is zero");
        }
        if self.platforms.len().max(self.index.len()) > PLATFORMS_MAX {
            let at = if self.index.is_empty() { "platforms" } else { "index" };
            return field(at, &format!("has more than {PLATFORMS_MAX} entries"));
        }
        if !self.index.is_empty() && !self.platforms.is_empty() {
            return field("index", "joins what is built already: platforms must be empty");
        }
        match &self.source {
            Source::Git(git) if git.url.is_empty() => field("source.git.url", "is empty"),
            Source::Http(http) if http.url.is_empty() => field("source.http.url", "is empty"),
            _ => Ok(()),
        }
    }
}

/// For serde: a flag that is off is not written.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it by reference")]
pub(crate) fn is_false(flag: &bool) -> bool {
    !flag
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attestations::AttestationManifest;

    fn sample() -> Request {
        Request {
            api_version: REQUEST_VERSION.to_owned(),
            build: BuildRef { name: "web".to_owned(), namespace: "shop".to_owned(), uid: "1-2-3".to_owned() },
            run: "a1b2c3".to_owned(),
            platforms: vec!["linux/amd64".to_owned()],
            index: Vec::new(),
            secrets: Vec::new(),
            ssh: Vec::new(),
            certificates: Certificates::default(),
            proxy: Proxy::default(),
            network: StepNetwork::default(),
            allow: Vec::new(),
            facts: None,
            source: Source::Git(GitSource {
                url: "https://git.example/shop/web.git".to_owned(),
                reference: Some(GitRef::Branch("main".to_owned())),
                commit: None,
                path: None,
                submodules: false,
                credentials: Some("/run/lapstrake/source".to_owned()),
            }),
            dockerfile: Dockerfile::default(),
            args: BTreeMap::from([("VERSION".to_owned(), "1".to_owned())]),
            args_from: Vec::new(),
            output: Output {
                names: vec!["registry.example/shop/web:latest".to_owned()],
                ..Output::default()
            },
            attestations: Attestations::default(),
            source_date_epoch: None,
            source_date_epoch_from_source: false,
            no_cache: false,
            no_cache_stages: Vec::new(),
            frontend_options: BTreeMap::new(),
            contexts: Vec::new(),
            steps: Steps::default(),
            cache_from: Vec::new(),
            cache_to: Vec::new(),
            state_dir: "/var/lib/lapstrake".to_owned(),
            cache_max_bytes: None,
            registries_config: None,
            docker_configs: Vec::new(),
            docker_configs_optional: Vec::new(),
            timeout_seconds: Some(3600),
            sandbox: SandboxMode::Baseline,
            progress: ProgressFormat::Plain,
        }
    }

    #[test]
    fn a_request_reads_back_as_it_was_written() {
        let mut request = sample();
        assert_eq!(Request::parse(request.encode().as_bytes()).unwrap(), request);
        for source in [
            Source::Http(HttpSource {
                url: "https://example.com/a.tgz".to_owned(),
                sha256: Some("0".repeat(64)),
                path: Some("sub".to_owned()),
                credentials: None,
            }),
            Source::Inline(vec![InlineFile {
                path: "Dockerfile".to_owned(),
                content: "FROM scratch\n".to_owned(),
                mode: Some(0o755),
            }]),
        ] {
            request.source = source;
            assert_eq!(Request::parse(request.encode().as_bytes()).unwrap(), request);
        }
    }

    #[test]
    fn another_version_is_named_before_its_unknown_fields() {
        let text = r#"{"apiVersion":"handoff.lapstrake.dev/v9","novelty":1}"#;
        let error = Request::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("handoff.lapstrake.dev/v9"), "{error}");
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let mut json = serde_json::to_value(sample()).unwrap();
        json["squash"] = true.into();
        let error = Request::parse(json.to_string().as_bytes()).unwrap_err();
        assert!(error.to_string().contains("squash"), "{error}");
    }

    #[test]
    fn an_index_is_joined_from_what_is_built_and_from_nothing_else() {
        let mut request = sample();
        request.platforms.clear();
        request.index = vec![PlatformManifest {
            platform: "linux/arm64".to_owned(),
            digest: format!("sha256:{}", "a".repeat(64)),
            manifest_bytes: 500,
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            attestation: Some(AttestationManifest { digest: format!("sha256:{}", "b".repeat(64)), bytes: 9 }),
        }];
        request.facts = Some(SourceFacts { commit: Some("c".repeat(40)), ..SourceFacts::default() });
        assert_eq!(Request::parse(request.encode().as_bytes()).unwrap(), request);
        request.platforms.push("linux/amd64".to_owned());
        let error = Request::parse(request.encode().as_bytes()).unwrap_err();
        assert!(error.to_string().contains("platforms must be empty"), "{error}");
    }

    #[test]
    fn a_request_without_output_is_refused() {
        let mut request = sample();
        request.output.names.clear();
        let error = Request::parse(request.encode().as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), "request field output.names: names no image");
    }
}
