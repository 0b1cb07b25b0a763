//! Whose turn it is.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::rules;

/// How the ImageBuild stands in the operator's queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Queue {
    /// Group of ImageBuilds of this namespace of which only so many run at once as the operator's
    /// configuration says for groups (one by default). In no group by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), extend("x-kubernetes-validations" = rules(&[(
        "self.matches('^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$')",
        "queue.group must have only letters, digits, dashes, dots and underscores, as in release",
    )])))]
    pub group: Option<String>,
    /// What becomes of a run that is under way when the spec changes; one that still waits for its turn
    /// is always replaced, and the new one has its place in the queue.
    #[serde(default)]
    pub when_changed: WhenChanged,
}

impl Queue {
    /// Whether nothing differs from the default.
    pub fn is_default(&self) -> bool {
        self == &Self::default()
    }
}

/// What becomes of a run that is under way when something newer is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WhenChanged {
    /// It is stopped, and the new one takes its place at once.
    #[default]
    Replace,
    /// Its pods may end what they build; then the new one follows.
    Finish,
}

/// How a run got through the queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueueStatus {
    /// When the ImageBuild came into the queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<MicroTime>,
    /// When it was its turn; absent while it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admitted: Option<MicroTime>,
    /// Place among those of the namespace that wait, from 1; above 10 rounded up to 20, 50, 100, 200 and
    /// so on, so that a long queue is not written anew at every step. Absent once it is its turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u32>,
    /// The limit that is reached: `Cluster`, `Namespace`, `Group` or `Cache`. Absent once it is its turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limited_by: Option<QueueLimit>,
}

/// A limit of what runs at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum QueueLimit {
    /// Builds of all namespaces together.
    Cluster,
    /// Builds of the namespace.
    Namespace,
    /// Builds of the group.
    Group,
    /// Slots of the cache.
    Cache,
}
