//! Where a build keeps what the next one can use again.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::output::SecretReference;
use crate::schema::{quantity, rules};

/// Where the builder keeps what the next build can use again: at most one of `volume`, `emptyDir` and
/// `none`. Without any it is what the operator's configuration says, a volume by default. Beside it,
/// `registry` carries the cache between volumes, nodes and clusters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    (
        "[has(self.volume), has(self.emptyDir), has(self.none)].filter(x, x).size() <= 1",
        "cache takes at most one of volume, emptyDir and none: keep volume to build on what the last build left, \
         emptyDir or none to start from nothing each time",
    ),
    (
        "!(has(self.none) && has(self.registry))",
        "cache.none and cache.registry exclude each other, since none means that nothing is taken from another build: \
         take none away to use the registry's cache",
    ),
])))]
pub struct Cache {
    /// Volumes (PersistentVolumeClaims) that the cache lives on. Without a `name` it is one of this
    /// ImageBuild's own for each architecture, made with the first build and deleted with the
    /// ImageBuild; with a `name`, one that several ImageBuilds of the namespace share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<CacheVolume>,
    /// A directory that lives as long as the builder pod: each build starts from nothing but what
    /// `registry` has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<CacheEmptyDir>,
    /// No cache at all, written as `none: {}`: each build starts from nothing, in a directory of the
    /// node's disk that goes with the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub none: Option<CacheNone>,
    /// Caches in registries, in BuildKit's format: what buildx exports is read, and the other way round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<CacheRegistry>,
}

/// No cache: an object without fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CacheNone {}

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
        "has(self.name) || !(has(self.slots) || has(self.whenBusy) || has(self.unusedFor))",
        "cache.volume.slots, whenBusy and unusedFor are for a cache that is shared: name it by cache.volume.name, \
         or take them away, since an ImageBuild's own cache has one slot, which is kept as long as the ImageBuild",
    ),
    (
        "!has(self.maxSize) || !has(self.size) || quantity(self.maxSize).compareTo(quantity(self.size)) <= 0",
        "cache.volume.maxSize is more than cache.volume.size: leave it out to use most of the volume",
    ),
    (
        "has(self.name) != has(oldSelf.name) || (has(self.name) && self.name != oldSelf.name) || \
         !has(oldSelf.size) || (has(self.size) && quantity(self.size).compareTo(quantity(oldSelf.size)) >= 0)",
        "cache.volume.size can only grow, since a volume cannot be shrunk: \
         to start with a smaller one, delete the ImageBuild and create it again",
    ),
    (
        "has(self.name) != has(oldSelf.name) || (has(self.name) && self.name != oldSelf.name) || \
         (has(self.storageClassName) == has(oldSelf.storageClassName)) && \
         (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)",
        "cache.volume.storageClassName cannot be changed, since a volume cannot move: \
         delete the ImageBuild and create it again",
    ),
])))]
pub struct CacheVolume {
    /// Name of a cache that ImageBuilds of this namespace share: all that name it take turns on its
    /// slots. Without a name the cache is this ImageBuild's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 40), extend("x-kubernetes-validations" = rules(&[(
        "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        "cache.volume.name must have only small letters, digits and dashes, and none at its ends, as in node-modules",
    )])))]
    pub name: Option<String>,
    /// How many slots (volumes) a shared cache may have for each architecture; 3 by default. One
    /// builder pod has a slot at a time; a further slot is made only when all others are taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub slots: Option<u32>,
    /// What a build does while all slots of a shared cache are taken; `Queue` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when_busy: Option<WhenBusy>,
    /// How long a slot of a shared cache is kept after its last use, such as `72h`; a week (`168h`) by
    /// default. An ImageBuild's own cache is kept as long as the ImageBuild.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("x-kubernetes-validations" = rules(&[(
        "self.matches('^([0-9]{1,7}([.][0-9]{1,3})?(ms|s|m|h)){1,4}$') && duration(self) > duration('0s')",
        "cache.volume.unusedFor must be a length of time above zero, such as 12h or 168h",
    )])))]
    pub unused_for: Option<kube::core::Duration>,
    /// Most that the cache may take of the volume, such as `15Gi`: what is needed least is removed when
    /// it is more. Nine tenths of the volume's size by default; the rest is room for a build under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "quantity")]
    pub max_size: Option<Quantity>,
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

/// Slots of a shared cache when the spec says nothing.
const SLOTS_DEFAULT: u32 = 3;
/// How long a slot of a shared cache is kept unused when the spec says nothing.
pub const UNUSED_FOR_DEFAULT: Duration = Duration::from_secs(7 * 24 * 3600);

impl CacheVolume {
    /// How many slots there may be for each architecture.
    pub fn slots(&self) -> u32 {
        if self.name.is_none() { 1 } else { self.slots.unwrap_or(SLOTS_DEFAULT).max(1) }
    }

    /// How long a slot is kept after its last use; none: as long as the ImageBuild, whose own it is.
    pub fn unused_for(&self) -> Option<Duration> {
        self.name.as_ref()?;
        Some(self.unused_for.map_or(UNUSED_FOR_DEFAULT, Duration::from))
    }

    /// What a build does while all slots are taken.
    pub fn when_busy(&self) -> WhenBusy {
        self.when_busy.unwrap_or_default()
    }
}

/// What a build does while all slots of its cache are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WhenBusy {
    /// It waits until one is free.
    #[default]
    Queue,
    /// It starts from nothing, in a directory that goes with its pod.
    NoCache,
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

/// Caches in registries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "(has(self.from) && self.from.size() > 0) || has(self.to) || (has(self.inline) && self.inline)",
    "cache.registry says nothing: name what is read in cache.registry.from, what is written in cache.registry.to, \
     or set cache.registry.inline",
)])))]
pub struct CacheRegistry {
    /// Caches that are looked into, in this order. One that is missing or cannot be read fails no build.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["image"])
    )]
    pub from: Vec<CacheImport>,
    /// Where the cache is written to after the build succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<CacheExport>,
    /// Whether the image itself carries what is needed to use its layers as a cache, so that it can be
    /// named in `from`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inline: bool,
}

/// A cache in a registry that is read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CacheImport {
    /// Name of the cache, or of an image that carries one, such as `registry.example/shop/web:cache`.
    #[schemars(length(min = 1, max = 512), extend("x-kubernetes-validations" = rules(&[(
        CACHE_IMAGE_RULE,
        "an image of cache.registry is not an image name: write registry/repository[:tag], \
         such as registry.example/shop/web:cache",
    )])))]
    pub image: String,
    /// Secret of type `kubernetes.io/dockerconfigjson` with the credentials for reading it; by default
    /// those of the build's other images are used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretReference>,
}

/// A cache in a registry that is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CacheExport {
    /// Name that the cache is written under, such as `registry.example/shop/web:cache`. With several
    /// platforms that different pods build, each writes one of its own: the architecture is appended
    /// to the tag, as in `cache-arm64`, and reading looks for that first.
    #[schemars(length(min = 1, max = 512), extend("x-kubernetes-validations" = rules(&[(
        CACHE_IMAGE_RULE,
        "an image of cache.registry is not an image name: write registry/repository[:tag], \
         such as registry.example/shop/web:cache",
    )])))]
    pub image: String,
    /// How much is written: `Min` what the image consists of, `Max` all steps, also those of other stages.
    #[serde(default)]
    pub mode: CacheExportMode,
    /// Whether a cache that cannot be written fails no build.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ignore_error: bool,
    /// Secret of type `kubernetes.io/dockerconfigjson` with the credentials for writing it; by default
    /// those of the build's other images are used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretReference>,
}

/// How much of a build is written to a registry's cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CacheExportMode {
    /// What the image consists of.
    #[default]
    Min,
    /// All steps, those of other stages too.
    Max,
}

const CACHE_IMAGE_RULE: &str =
    "self.matches('^[^ /@:]+(:[0-9]{1,5}/[^ @:]+|/[^ @:]+)?(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$')";
