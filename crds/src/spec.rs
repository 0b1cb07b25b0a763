//! The `ImageBuild` itself and its spec.
#![expect(clippy::duplicated_attributes, reason = "each column has its own type and priority")]

use std::collections::BTreeMap;
use std::time::Duration;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cache::Cache;
use crate::contexts::NamedContext;
use crate::emulation::Emulation;
use crate::follow::Follow;
use crate::output::{Output, SecretReference};
use crate::pod::Pod;
use crate::queue::Queue;
use crate::schema::{each, rules, text};
use crate::secrets::{ArgSource, BuildSecret, BuildSecretsFrom, SshAgent};
use crate::source::Source;
use crate::status::ImageBuildStatus;
use crate::steps::{NoCache, Steps};
use crate::trust::{Certificates, Proxy};

/// What to build, from what, and where the image goes.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "lapstrake.dev",
    version = "v1alpha1",
    kind = "ImageBuild",
    plural = "imagebuilds",
    singular = "imagebuild",
    shortname = "ib",
    category = "lapstrake",
    namespaced,
    status = "ImageBuildStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "An ImageBuild is a container image that shall exist: built from a source and a Dockerfile, pushed to a registry, and built again when its spec changes or when asked to.",
    label("app.kubernetes.io/name", "lapstrake"),
    selectable = ".spec.output.image",
    selectable = ".status.reason",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status",
        description = "Whether the image that the spec asks for is in the registry."
    ),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason",
        description = "What the build is doing, or why it ended as it did."
    ),
    printcolumn(
        name = "Image",
        type_ = "string",
        json_path = ".spec.output.image",
        description = "Name that the image is pushed under."
    ),
    printcolumn(
        name = "Digest",
        type_ = "string",
        json_path = ".status.summary.digest",
        description = "Digest of the last image that was pushed, shortened."
    ),
    printcolumn(
        name = "Platforms",
        type_ = "string",
        json_path = ".status.summary.platforms",
        description = "Platforms that the image runs on."
    ),
    printcolumn(
        name = "Duration",
        type_ = "string",
        json_path = ".status.summary.duration",
        description = "How long the last run took, from its start to its end."
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Time since the ImageBuild was created."
    ),
    printcolumn(
        name = "Revision",
        type_ = "string",
        json_path = ".status.source.revision",
        priority = 1,
        description = "What the source resolved to, such as a commit."
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].message",
        priority = 1,
        description = "The status in a sentence."
    )
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "!has(self.follow) || !has(self.follow.source) || !self.follow.source || \
     (has(self.source.git) && !has(self.source.git.commit) && self.source.git.url.startsWith('http'))",
    "follow.source needs a source that can move: source.git with an http or https url, and without commit",
), (
    "!has(self.source.inline) || (has(self.dockerfile) && has(self.dockerfile.inline)) || \
     (has(self.source.inline.files) && self.source.inline.files.exists(f, f.path == \
     (has(self.dockerfile) && has(self.dockerfile.path) ? self.dockerfile.path : 'Dockerfile')))",
    "source.inline.files has no Dockerfile: add a file with the path Dockerfile (or the one that dockerfile.path names), \
     or write it into dockerfile.inline",
), (
    "!has(self.pod) || !has(self.pod.perPlatform) || self.pod.perPlatform.all(p, has(self.platforms) && \
     self.platforms.exists(x, x == p.platform))",
    "pod.perPlatform speaks of a platform that platforms does not list: add it to platforms, or take the entry out",
)])))]
pub struct ImageBuildSpec {
    /// Where the files of the build come from: exactly one of `git`, `http` and `inline`.
    pub source: Source,
    /// Which Dockerfile is built, and which of its stages: `Dockerfile` at the root of the source and
    /// its last stage by default.
    #[serde(default, skip_serializing_if = "Dockerfile::is_default")]
    pub dockerfile: Dockerfile,
    /// Values for the Dockerfile's ARG instructions. Never put a secret here: build arguments end up
    /// in the image's history.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 128),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub args: Vec<BuildArg>,
    /// What names of the Dockerfile stand for, in place of a stage or an image: another image, files of a repository or of
    /// a download, or the image of another ImageBuild.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub contexts: Vec<NamedContext>,
    /// What steps find around them: hosts, limits, shared memory, network.
    #[serde(default, skip_serializing_if = "Steps::is_default")]
    pub steps: Steps,
    /// Which steps run whatever the cache has. What they yield goes into the cache nevertheless. It holds for the runs
    /// of this spec; it starts none by itself but that of its change.
    #[serde(default, skip_serializing_if = "NoCache::is_default")]
    pub no_cache: NoCache,
    /// Secrets that steps may ask for by their id, each one key of a Secret: a file or an environment
    /// variable of the step, as in `RUN --mount=type=secret,id=npm`. They leave no trace in the image, its
    /// history, the cache or the logs. A new value counts from the next run on; it starts none by itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["id"])
    )]
    pub secrets: Vec<BuildSecret>,
    /// Secrets of which every key is a build secret, under the key's name. Where an id is there twice,
    /// `secrets` wins, then the first Secret of this list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub secrets_from: Vec<BuildSecretsFrom>,
    /// SSH agents that steps may ask for by their id, as in `RUN --mount=type=ssh`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["id"])
    )]
    pub ssh: Vec<SshAgent>,
    /// Secrets with credentials of registries, beside that of `output.secretRef` and those that the
    /// ServiceAccount of the builder pod names. All are merged: of the entries that match a repository,
    /// the most specific one is tried first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub image_pull_secrets: Vec<SecretReference>,
    /// Certificates of authorities that are trusted beside the usual ones.
    #[serde(default, skip_serializing_if = "Certificates::is_default")]
    pub certificates: Certificates,
    /// Proxies by which the world outside is reached.
    #[serde(default, skip_serializing_if = "Proxy::is_default")]
    pub proxy: Proxy,
    /// Platforms to build for, such as `linux/arm64`, each on a node of its architecture; those that one
    /// kind of node serves (`linux/amd64` and `linux/386`, `linux/arm64` and `linux/arm/v7`) share a pod.
    /// Several of them become one image: an index, pushed when every platform is there. By default the
    /// platform of the node that the build lands on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(length(max = 64)),
        extend("x-kubernetes-list-type" = "set", "x-kubernetes-validations" = each(
            "x.matches('^linux/(386|amd64(/v[1-4])?|arm(/v[5-8])?|arm64(/v[89])?|loong64|mips64le|ppc64le|riscv64|s390x)$')",
            "platforms holds what cannot be built for",
            "; write linux/ARCH[/VARIANT], as in linux/amd64, linux/arm64 or linux/arm/v7",
        ))
    )]
    pub platforms: Vec<String>,
    /// What is done for platforms that no node has.
    #[serde(default, skip_serializing_if = "Emulation::is_default")]
    pub emulation: Emulation,
    /// Where the image goes.
    pub output: Output,
    /// Where the builder keeps what the next build can use again: at most one of `volume`, `emptyDir`
    /// and `none`, and `registry` beside them. Without any it is what the operator's configuration
    /// says, a volume by default.
    #[serde(default, skip_serializing_if = "Cache::is_unset")]
    pub cache: Cache,
    /// How the build stands in the operator's queue.
    #[serde(default, skip_serializing_if = "Queue::is_default")]
    pub queue: Queue,
    /// How the builder pod is run.
    #[serde(default, skip_serializing_if = "Pod::is_default")]
    pub pod: Pod,
    /// How long a run may take from the moment its pod is on a node, such as `90s`, `30m` or `1h30m`.
    /// A run that takes longer is stopped and counts as failed.
    #[serde(default = "default_timeout")]
    #[schemars(
        length(max = 32),
        extend("default" = "1h", "x-kubernetes-validations" = rules(&[(
            "self.matches('^([0-9]{1,7}([.][0-9]{1,3})?(ms|s|m|h)){1,4}$') && duration(self) > duration('0s')",
            "timeout must be a length of time above zero, such as 90s, 30m or 1h30m",
        )]))
    )]
    pub timeout: kube::core::Duration,
    /// How often a run is tried again when something other than the build broke it: an evicted or
    /// preempted pod, a lost node, a registry that is down. What the build itself got wrong (a step's
    /// exit code, an error in the Dockerfile) is never tried again by itself.
    #[serde(default = "default_retries")]
    #[schemars(range(min = 0, max = 10))]
    pub retries: u32,
    /// Whether to start no new run for now. A run that is under way goes on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspend: bool,
    /// Whether to stop the run that is under way, and to start none until this is taken back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancel: bool,
    /// What starts a new run by itself when it moves: the source's branch or tag, and base images.
    #[serde(default, skip_serializing_if = "Follow::is_default")]
    pub follow: Follow,
    /// How much is remembered of past runs.
    #[serde(default, skip_serializing_if = "History::is_default")]
    pub history: History,
}

/// The longest run that is allowed when the spec says nothing.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(3600);
/// Retries when the spec says nothing.
const RETRIES_DEFAULT: u32 = 2;
/// Runs remembered when the spec says nothing.
const HISTORY_LIMIT_DEFAULT: u32 = 5;

fn default_timeout() -> kube::core::Duration {
    TIMEOUT_DEFAULT.into()
}

fn default_retries() -> u32 {
    RETRIES_DEFAULT
}

impl Default for ImageBuildSpec {
    /// No source and no output, and for the rest what a spec means that does not mention it.
    fn default() -> Self {
        Self {
            source: Source::default(),
            dockerfile: Dockerfile::default(),
            args: Vec::new(),
            contexts: Vec::new(),
            steps: Steps::default(),
            no_cache: NoCache::default(),
            secrets: Vec::new(),
            secrets_from: Vec::new(),
            ssh: Vec::new(),
            image_pull_secrets: Vec::new(),
            certificates: Certificates::default(),
            proxy: Proxy::default(),
            platforms: Vec::new(),
            emulation: Emulation::default(),
            output: Output::default(),
            cache: Cache::default(),
            queue: Queue::default(),
            pod: Pod::default(),
            timeout: default_timeout(),
            retries: RETRIES_DEFAULT,
            suspend: false,
            cancel: false,
            follow: Follow::default(),
            history: History::default(),
        }
    }
}

impl ImageBuildSpec {
    /// How long a run may take.
    pub fn timeout(&self) -> Duration {
        self.timeout.into()
    }
}

/// Which Dockerfile is built, and which of its stages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "!(has(self.path) && has(self.inline))",
    "dockerfile takes at most one of path and inline: keep path for a file of the source, inline for a text written here",
)])))]
pub struct Dockerfile {
    /// Path of the Dockerfile in the source; `Dockerfile` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), extend("x-kubernetes-validations" = rules(&[(
        "self.matches('^[^/]') && !self.matches('(^|/)[.][.](/|$)')",
        "dockerfile.path must be a path inside the source, such as build/Dockerfile: without a / in front and without ..",
    )])))]
    pub path: Option<String>,
    /// The Dockerfile's text itself, instead of a file of the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 131072))]
    pub inline: Option<String>,
    /// Stage to build; the last one by default. Stages that it does not need are not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128), extend("x-kubernetes-validations" = rules(&[(
        "self.matches('^[A-Za-z0-9][A-Za-z0-9_.-]*$')",
        "dockerfile.target must be the name of a stage, as in `FROM … AS name`, or its number",
    )])))]
    pub target: Option<String>,
    /// Options of the frontend that have no field here, by the names that BuildKit has for them, such as
    /// `image-resolve-mode: pull`. One that the frontend does not know fails the build.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = text(4096), "x-kubernetes-validations" = option_rules()))]
    pub options: BTreeMap<String, String>,
}

/// Options that have a field, and that field.
const FIELD_OF_OPTION: [(&str, &str); 14] = [
    ("target", "dockerfile.target"),
    ("filename", "dockerfile.path"),
    ("dockerfilekey", "source"),
    ("contextkey", "source"),
    ("context", "source"),
    ("contextsubdir", "source"),
    ("platform", "platforms"),
    ("add-hosts", "steps.hosts"),
    ("ulimit", "steps.ulimits"),
    ("shm-size", "steps.shmSize"),
    ("hostname", "steps.hostname"),
    ("force-network-mode", "steps.network"),
    ("no-cache", "noCache"),
    ("source", "a # syntax= line of the Dockerfile"),
];

/// Kinds of options that have a field, and that field.
const FIELD_OF_PREFIX: [(&str, &str); 5] = [
    ("build-arg:", "args"),
    ("label:", "output.labels"),
    ("context:", "contexts"),
    ("cache-from", "cache.registry.from"),
    ("cache-imports", "cache.registry.from"),
];

fn option_rules() -> serde_json::Value {
    let exact = FIELD_OF_OPTION.iter().map(|(name, field)| {
        (
            format!("!('{name}' in self)"),
            format!("dockerfile.options must not hold {name}, which has a place of its own: {field}"),
        )
    });
    let prefixes = FIELD_OF_PREFIX.iter().map(|(prefix, field)| {
        let message =
            format!("dockerfile.options must not hold {prefix}, which has a place of its own: {field}");
        (format!("!self.exists(k, k.startsWith('{prefix}'))"), message)
    });
    let all: Vec<(String, String)> = exact.chain(prefixes).collect();
    rules(&all.iter().map(|(rule, message)| (rule.as_str(), message.as_str())).collect::<Vec<_>>())
}

impl Dockerfile {
    /// Path of the Dockerfile in the source, with its default.
    pub fn path(&self) -> &str {
        self.path.as_deref().unwrap_or("Dockerfile")
    }

    /// Whether nothing differs from the default.
    pub fn is_default(&self) -> bool {
        self == &Self::default()
    }
}

/// A value for one of the Dockerfile's ARG instructions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "!(has(self.value) && has(self.valueFrom))",
    "a build argument takes at most one of value and valueFrom",
)])))]
pub struct BuildArg {
    /// Name of the ARG.
    #[schemars(length(max = 256), extend("x-kubernetes-validations" = rules(&[(
        "self.matches('^[A-Za-z_][A-Za-z0-9_]*$')",
        "the name of a build argument has letters, digits and underscores and does not start with a digit, as in GO_VERSION",
    )])))]
    pub name: String,
    /// Its value; empty by default.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 32768))]
    pub value: String,
    /// Where its value comes from, instead of `value`: a key of a ConfigMap or a Secret, byte for byte.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<ArgSource>,
}

/// How much is remembered of past runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct History {
    /// How many past runs `status.history` remembers.
    #[serde(default = "default_history_limit")]
    #[schemars(range(min = 0, max = 50))]
    pub limit: u32,
    /// How old a past run in `status.history` may get, counted from its end, such as `720h`; without a bound by
    /// default. The last run stays in the rest of the status however old it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 32),
        extend("x-kubernetes-validations" = rules(&[(
            "self.matches('^([0-9]{1,7}([.][0-9]{1,3})?(ms|s|m|h)){1,4}$') && duration(self) >= duration('1m')",
            "history.maxAge must be a length of time of at least a minute, such as 90m or 720h",
        )]))
    )]
    pub max_age: Option<kube::core::Duration>,
}

fn default_history_limit() -> u32 {
    HISTORY_LIMIT_DEFAULT
}

impl Default for History {
    fn default() -> Self {
        Self { limit: HISTORY_LIMIT_DEFAULT, max_age: None }
    }
}

impl History {
    /// How old a past run may get.
    pub fn max_age(&self) -> Option<Duration> {
        self.max_age.map(Into::into)
    }

    /// Whether nothing differs from the default.
    pub fn is_default(&self) -> bool {
        self == &Self::default()
    }
}
