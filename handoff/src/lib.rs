//! What crosses the builder pod's edge: the request going in, the outcome and
//! the progress coming out.
//!
//! Holds: a request of another version or with an unknown field is refused,
//! never half understood (`request`); an encoded outcome fits a termination
//! message and always carries its digest or its reason (`outcome`); a progress
//! line that was written reads back as the same line (`progress`).
//! Never: kube, async, a clock, a file.

pub mod attestations;
pub mod cache;
mod error;
pub mod inputs;
pub mod outcome;
pub mod platforms;
pub mod progress;
pub mod request;
pub mod steps;

pub use attestations::{AttestationManifest, Attestations, Provenance, ProvenanceMode, Sbom};
pub use cache::{CacheExport, CacheImport, CacheMode, CacheStore, CacheTarget};
pub use error::Error;
pub use inputs::{Allow, ArgInput, Certificates, Proxy, SecretInput, SshInput, StepNetwork};
pub use outcome::{BaseImage, Class, Failure, Outcome, Reason, Success, Timings};
pub use platforms::{PLATFORMS_MAX, PlatformManifest, PlatformResult, SourceFacts};
pub use progress::{ProgressLine, StepEvent, StepId, Tracker, Writer};
pub use request::{
    BuildRef, Compression, Dockerfile, GitRef, GitSource, HttpSource, InlineFile, Output, ProgressFormat,
    Request, SandboxMode, Source,
};
pub use steps::{ContextFrom, ContextInput, Host, Steps, Ulimit};

/// Bounds of what crosses the pod's edge.
pub mod limits {
    /// What the kubelet keeps of a container's termination message.
    pub const OUTCOME_BYTES_MAX: usize = 4096;
    /// Longest request that is read; a ConfigMap holds no more than this.
    pub const REQUEST_BYTES_MAX: usize = 1024 * 1024;
    /// Longest text of one progress line; longer output is cut into several.
    pub const PROGRESS_TEXT_BYTES_MAX: usize = 8 * 1024;
    /// Steps a [`crate::Tracker`] remembers; a build with more is still counted.
    pub const TRACKED_STEPS_MAX: usize = 4096;
}

/// Places in the builder pod that both sides must name the same way.
pub mod paths {
    /// Folder the request is mounted at.
    pub const REQUEST_DIR: &str = "/etc/lapstrake";
    /// The request itself.
    pub const REQUEST_FILE: &str = "/etc/lapstrake/request.json";
    /// Blobs, snapshots and index: the cache volume.
    pub const STATE_DIR: &str = "/var/lib/lapstrake";
    /// What the builder knows of registries (mirrors, plain http, CAs), beside the request.
    pub const REGISTRIES_FILE: &str = "/etc/lapstrake/registries.json";
    /// Folder under which docker configs are mounted, one folder per Secret.
    pub const DOCKER_CONFIGS_DIR: &str = "/run/lapstrake/docker";
    /// Folder under which build secrets are mounted, one folder per Secret.
    pub const SECRETS_DIR: &str = "/run/lapstrake/secrets";
    /// Folder under which SSH keys and their `known_hosts` are mounted, one folder per agent.
    pub const SSH_DIR: &str = "/run/lapstrake/ssh";
    /// Folder under which the credentials of the source are mounted.
    pub const SOURCE_CREDENTIALS_DIR: &str = "/run/lapstrake/source";
    /// Folder under which the credentials of named contexts are mounted, one folder per context.
    pub const CONTEXT_CREDENTIALS_DIR: &str = "/run/lapstrake/contexts";
    /// Folder under which values of build arguments are mounted, one folder per argument.
    pub const ARGS_DIR: &str = "/run/lapstrake/args";
    /// Folder at which proxies are mounted.
    pub const PROXY_DIR: &str = "/run/lapstrake/proxy";
    /// Folder under which certificates of authorities are mounted, one folder per ConfigMap or Secret.
    pub const CERTIFICATES_DIR: &str = "/run/lapstrake/certificates";
    /// Where the outcome is written for the kubelet to pick up.
    pub const TERMINATION_MESSAGE: &str = "/dev/termination-log";
}
