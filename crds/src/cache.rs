//! Where a build keeps what the next one can use again.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::{quantity, rules};

/// Where the builder keeps what the next build can use again: at most one of `volume` and
/// `emptyDir`. Without either it is what the operator's configuration says, a volume by default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "!(has(self.volume) && has(self.emptyDir))",
    "cache takes at most one of volume and emptyDir: keep volume to build on what the last build left, \
     emptyDir to start from nothing each time",
)])))]
pub struct Cache {
    /// A volume (PersistentVolumeClaim) of this ImageBuild's own, made with the first build and
    /// deleted with the ImageBuild: one per architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<CacheVolume>,
    /// A directory that lives as long as the builder pod: each build starts from nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<CacheEmptyDir>,
}

impl Cache {
    /// Whether nothing is chosen, so that the operator's own default holds.
    pub fn is_unset(&self) -> bool {
        self == &Self::default()
    }
}

/// The volume that holds the cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    (
        "!has(oldSelf.size) || (has(self.size) && quantity(self.size).compareTo(quantity(oldSelf.size)) >= 0)",
        "cache.volume.size can only grow, since a volume cannot be shrunk: \
         to start with a smaller one, delete the ImageBuild and create it again",
    ),
    (
        "(has(self.storageClassName) == has(oldSelf.storageClassName)) && \
         (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)",
        "cache.volume.storageClassName cannot be changed, since a volume cannot move: \
         delete the ImageBuild and create it again",
    ),
])))]
pub struct CacheVolume {
    /// Size of the volume, such as `20Gi`; what the operator's configuration says by default (10Gi).
    /// It can grow later if its storage class allows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "quantity")]
    pub size: Option<Quantity>,
    /// Storage class of the volume; what the operator's configuration says by default, and the
    /// cluster's own default class if that says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub storage_class_name: Option<String>,
    /// How the volume is mounted. `ReadWriteOncePod` has the cluster itself make sure that no second
    /// pod ever writes to it, where the storage supports that.
    #[serde(default)]
    pub access_mode: AccessMode,
}

/// Access mode of a cache volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AccessMode {
    /// One node at a time.
    #[default]
    ReadWriteOnce,
    /// One pod at a time.
    ReadWriteOncePod,
}

impl AccessMode {
    /// The word that a PersistentVolumeClaim uses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ReadWriteOnce => "ReadWriteOnce",
            Self::ReadWriteOncePod => "ReadWriteOncePod",
        }
    }
}

/// A directory that lives as long as the builder pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CacheEmptyDir {
    /// Most that the directory may hold, such as `20Gi`; a build that needs more is evicted and fails.
    /// No limit by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "quantity")]
    pub size_limit: Option<Quantity>,
    /// What the directory is kept on. `Memory` is fast, and counts as memory of the builder.
    #[serde(default)]
    pub medium: Medium,
}

/// What an empty directory is kept on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Medium {
    /// The node's disk.
    #[default]
    Disk,
    /// Memory (a tmpfs).
    Memory,
}
