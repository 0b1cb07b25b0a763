//! How the builder pod is run.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::{quantities, quantity, rules, text};

/// How the builder pod is run: where, with how much, and in which sandbox.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// How the steps are kept from the node. Both ways are unprivileged: root in the builder pod is
    /// an ordinary user on the node, without access to its files.
    ///
    /// `UserNamespace` needs a namespace that does not enforce a Pod Security level; `Baseline` also
    /// runs where `baseline` is enforced, on nodes that do not force a seccomp or AppArmor profile.
    /// `Auto` reads the label `pod-security.kubernetes.io/enforce` of the namespace and takes
    /// `Baseline` where it says `baseline`, else `UserNamespace`; `status.sandbox` says which.
    #[serde(default, skip_serializing_if = "Sandbox::is_auto")]
    #[schemars(extend("default" = "Auto"))]
    pub sandbox: Sandbox,
    /// What the builder pod requests and may use. The steps of the build run within it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Labels that a node must have to be built on. The architecture is not chosen here but by
    /// `platforms`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = text(63), "x-kubernetes-validations" = rules(&[(
        "!('kubernetes.io/arch' in self) && !('kubernetes.io/os' in self)",
        "pod.nodeSelector must not choose kubernetes.io/arch or kubernetes.io/os: list the platforms to build for in platforms",
    )])))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that the builder pod tolerates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub tolerations: Vec<Toleration>,
    /// Affinity of the builder pod, as in a Pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// ServiceAccount of the builder pod; `default` by default. Its token is never mounted: it only
    /// matters for policies and image pull secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,
    /// PriorityClass of the builder pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// Labels that the builder pod gets beside Lapstrake's own, for example for cost allocation, a
    /// queue or a network policy. The ImageBuild's own labels are not copied.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = text(63), "x-kubernetes-validations" = rules(&[(
        "self.all(k, !k.startsWith('lapstrake.dev/') && !k.startsWith('app.kubernetes.io/'))",
        "pod.labels must not start with lapstrake.dev/ or app.kubernetes.io/, which Lapstrake sets itself: use a prefix of your own",
    )])))]
    pub labels: BTreeMap<String, String>,
    /// Annotations that the builder pod gets beside Lapstrake's own. The ImageBuild's own
    /// annotations are not copied.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = text(4096), "x-kubernetes-validations" = rules(&[(
        "self.all(k, !k.startsWith('lapstrake.dev/'))",
        "pod.annotations must not start with lapstrake.dev/, which Lapstrake sets itself: use a prefix of your own",
    )])))]
    pub annotations: BTreeMap<String, String>,
    /// What differs for single platforms. A platform with an entry here has a pod of its own, unless
    /// another one has the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["platform"])
    )]
    pub per_platform: Vec<PlatformPod>,
}

/// What differs for the builder pod of one platform.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlatformPod {
    /// The platform, as `platforms` has it.
    #[schemars(length(max = 64))]
    pub platform: String,
    /// Labels that a node must have, beside those of `pod.nodeSelector` and stronger than they are. Here
    /// `kubernetes.io/arch` may be chosen, to build the platform on nodes of another architecture:
    /// `linux/arm/v7` on `arm` rather than `arm64`, or emulated on `amd64`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = text(63), "x-kubernetes-validations" = rules(&[(
        "!('kubernetes.io/os' in self)",
        "pod.perPlatform[].nodeSelector must not choose kubernetes.io/os: every builder runs on Linux",
    )])))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that are tolerated, beside those of `pod.tolerations`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub tolerations: Vec<Toleration>,
    /// What the builder pod requests and may use, in place of `pod.resources`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Cache volume of this platform, where it differs from `cache.volume`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_volume: Option<PlatformVolume>,
}

/// The cache volume of one platform.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlatformVolume {
    /// Size of the volume, such as `20Gi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "quantity")]
    pub size: Option<Quantity>,
    /// Storage class of the volume. A change holds for volumes that are made from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub storage_class_name: Option<String>,
}

impl Pod {
    /// What differs for this platform, if anything does.
    pub fn for_platform(&self, platform: &str) -> Option<&PlatformPod> {
        self.per_platform.iter().find(|one| one.platform == platform)
    }

    /// Whether nothing differs from the default.
    pub fn is_default(&self) -> bool {
        self == &Self::default()
    }
}

/// How the steps of a build are kept from the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Sandbox {
    /// Picked by the Pod Security level that the namespace enforces.
    #[default]
    Auto,
    /// A user namespace made by the container runtime, with the capability to mount inside it.
    UserNamespace,
    /// The same without that capability: the builder nests a user namespace of its own.
    Baseline,
}

impl Sandbox {
    /// Whether the operator is to pick.
    pub fn is_auto(&self) -> bool {
        *self == Self::Auto
    }

    /// The word as written in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "Auto",
            Self::UserNamespace => "UserNamespace",
            Self::Baseline => "Baseline",
        }
    }
}

/// What the builder pod requests and may use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What a node must have free for the builder pod, such as `cpu: "2"` and `memory: 4Gi`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub requests: BTreeMap<String, Quantity>,
    /// What the builder pod may use at most. A step that needs more memory is killed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub limits: BTreeMap<String, Quantity>,
}
