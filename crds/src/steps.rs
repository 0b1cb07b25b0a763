//! What steps find around them beside their files.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::{each, quantity, rules};

/// What `RUN` steps find around them beside their files.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Steps {
    /// Further lines of `/etc/hosts` in steps, as a Pod's `hostAliases`. Nothing of them is left in the image. A changed
    /// address makes no step run again, a changed name does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["ip"])
    )]
    pub hosts: Vec<HostAlias>,
    /// Limits of a step's processes, as `docker buildx build --ulimit` has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 15),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub ulimits: Vec<Ulimit>,
    /// Size of `/dev/shm` in steps, such as `256Mi`; 64Mi by default. What is in it counts as the builder pod's memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "quantity")]
    pub shm_size: Option<Quantity>,
    /// Host name that steps see; `buildkitsandbox` by default, as with BuildKit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), extend("x-kubernetes-validations" = rules(&[(
        "self.matches('^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$')",
        "steps.hostname must be a host name: letters, digits, dashes and dots, as in build-box",
    )])))]
    pub hostname: Option<String>,
    /// Network of steps that ask for none by `RUN --network`.
    #[serde(default, skip_serializing_if = "StepNetwork::is_default")]
    pub network: StepNetwork,
}

impl Steps {
    /// Whether nothing differs from the default.
    pub fn is_default(&self) -> bool {
        self == &Self::default()
    }
}

/// Names that stand for an address in steps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostAlias {
    /// The address, IPv4 or IPv6.
    #[schemars(length(max = 45), extend("x-kubernetes-validations" = rules(&[(
        "isIP(self)",
        "steps.hosts[].ip must be an IP address, such as 10.0.0.7 or fd00::7",
    )])))]
    pub ip: String,
    /// Names for it.
    #[schemars(
        length(min = 1, max = 16),
        inner(length(max = 253)),
        extend("x-kubernetes-list-type" = "set", "x-kubernetes-validations" = each(
            "x.matches('^[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9])?$')",
            "steps.hosts[].hostnames holds what is not a host name",
            "; a host name has letters, digits, dashes and dots, as in db.example",
        ))
    )]
    pub hostnames: Vec<String>,
}

/// A limit of a step's processes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "!has(self.hard) || self.hard == -1 || (self.soft != -1 && self.soft <= self.hard)",
    "steps.ulimits has a soft limit above its hard one: lower soft, or raise hard (-1 is no limit)",
)])))]
pub struct Ulimit {
    /// Which limit, by its name in `ulimit` of Docker.
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = rules(&[(
        "self in ['core', 'cpu', 'data', 'fsize', 'locks', 'memlock', 'msgqueue', 'nice', 'nofile', 'nproc', 'rss', \
         'rtprio', 'rttime', 'sigpending', 'stack']",
        "steps.ulimits[].name must be one of core, cpu, data, fsize, locks, memlock, msgqueue, nice, nofile, nproc, rss, \
         rtprio, rttime, sigpending and stack",
    )])))]
    pub name: String,
    /// The limit that holds; -1 is none.
    #[schemars(range(min = -1))]
    pub soft: i64,
    /// How far a process may raise it, `soft` by default; -1 is without end. More than the builder pod may have itself
    /// cannot be given: the step fails, and says how much that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1))]
    pub hard: Option<i64>,
}

/// The network of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StepNetwork {
    /// The builder pod's.
    #[default]
    Default,
    /// A loopback device and nothing else: what a step needs has to come by `COPY` and `ADD`. A step that says
    /// `RUN --network=default` has one nevertheless.
    None,
}

impl StepNetwork {
    /// Whether it is what a step has when nothing is said.
    pub fn is_default(&self) -> bool {
        *self == Self::Default
    }
}

/// Which steps run whatever the cache has: `all` of them, or those of `stages`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "!(has(self.all) && self.all && has(self.stages) && self.stages.size() > 0)",
    "noCache takes at most one of all and stages: keep stages for some of them",
)])))]
pub struct NoCache {
    /// Whether no step takes its result from a cache.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// Names of stages, as in `FROM … AS test`, of which no step does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(max = 128)),
        extend("x-kubernetes-list-type" = "set", "x-kubernetes-validations" = each(
            "x.matches('^[A-Za-z0-9][A-Za-z0-9_.-]*$')",
            "noCache.stages holds what is not the name of a stage",
            "; write it as in FROM … AS name",
        ))
    )]
    pub stages: Vec<String>,
}

impl NoCache {
    /// Whether every step may take its result from a cache.
    pub fn is_default(&self) -> bool {
        self == &Self::default()
    }
}
