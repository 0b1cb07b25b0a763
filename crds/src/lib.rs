//! What a user may write and read: the `ImageBuild` of `lapstrake.dev/v1alpha1`.
//!
//! Job: the Rust types of the API, their schema with its CEL rules, defaults, columns and list keys,
//! the words that conditions and reasons may take, and the names of labels and annotations.
//! Holds: the schema is structural; every string and list that a rule looks at is bounded; the doc
//! comment of a field is its reference (it is what `kubectl explain` shows); the committed
//! `imagebuild.yaml` is exactly [`crd`] (a test compares them).
//! Never: builds a pod, talks to a cluster, reads a clock.

mod attestations;
mod cache;
mod conditions;
mod contexts;
mod emulation;
mod follow;
mod names;
mod output;
mod pod;
mod queue;
mod schema;
mod secrets;
mod source;
mod spec;
mod status;
mod steps;
#[cfg(test)]
mod tests;
mod trust;

pub use attestations::{Attestations, Provenance, ProvenanceMode, Sbom};
pub use cache::{
    AccessMode, Cache, CacheEmptyDir, CacheExport, CacheExportMode, CacheImport, CacheNone, CacheRegistry,
    CacheVolume, Medium, UNUSED_FOR_DEFAULT, WhenBusy,
};
pub use conditions::{ConditionType, Reason, ReasonKind, UnknownReason};
pub use contexts::{BuildReference, ContextKind, NamedContext};
pub use emulation::{Emulation, EmulationPolicy};
pub use follow::Follow;
pub use names::{annotation, field_manager, label};
pub use output::{Output, SecretReference};
pub use pod::{PlatformPod, PlatformVolume, Pod, Resources, Sandbox};
pub use queue::{Queue, QueueLimit, QueueStatus, WhenChanged};
pub use schema::crd;
pub use secrets::{
    ArgKeyReference, ArgSource, BuildSecret, BuildSecretsFrom, KeyReference, SshAgent, SshSecretReference,
};
pub use source::{GitSource, HttpSource, InlineFile, InlineSource, Source, SourceKind};
pub use spec::{BuildArg, Dockerfile, History, ImageBuild, ImageBuildSpec};
pub use status::{
    BaseImageStatus, Change, ContextStatus, Failure, FollowStatus, FollowedSource, HistoryEntry,
    ImageBuildStatus, IndexStatus, PlatformStatus, RunResult, RunStatus, SourceStatus, Summary, Timings, Why,
};
pub use steps::{HostAlias, NoCache, StepNetwork, Steps, Ulimit};
pub use trust::{CertificateReference, CertificateSource, Certificates, Proxy, ProxySource};

/// The API group.
pub const GROUP: &str = "lapstrake.dev";
/// The API version.
pub const VERSION: &str = "v1alpha1";
