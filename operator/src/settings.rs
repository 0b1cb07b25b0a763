//! What the operator was told at its start: the defaults of builder pods.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::Deserialize;

use crate::schedule::queue::Limits;

/// All that planning needs to know beside what is in the cluster.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Image of the builder.
    pub builder_image: String,
    /// Architecture of the nodes that platforms are emulated on where nothing else is known: as
    /// `kubernetes.io/arch` has it.
    pub architecture: String,
    /// What builder pods get where an ImageBuild does not say otherwise.
    pub defaults: BuilderDefaults,
    /// What the builder knows of registries, as JSON text; empty: nothing.
    pub registries: String,
    /// What becomes of pods that have ended.
    pub keep_pods: KeepPods,
    /// How long those stay that are kept; none: until the next run.
    pub keep_pods_for: Option<Duration>,
    /// Whether pods that mount in their own user namespace ask for no AppArmor profile.
    pub app_armor: AppArmor,
    /// How many builds run at once.
    pub queue: Limits,
    /// How often slots of shared caches are looked through; zero: never.
    pub cache_sweep: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            builder_image: String::new(),
            architecture: own_architecture().to_owned(),
            defaults: BuilderDefaults::default(),
            registries: String::new(),
            keep_pods: KeepPods::default(),
            keep_pods_for: None,
            app_armor: AppArmor::default(),
            queue: Limits::default(),
            cache_sweep: Duration::ZERO,
        }
    }
}

/// The architecture that the operator itself runs on, as `kubernetes.io/arch` has it.
pub fn own_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

/// What builder pods get where an ImageBuild does not say otherwise: `builder.json` of the chart.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BuilderDefaults {
    /// Pull policy of the builder's image.
    pub image_pull_policy: Option<String>,
    /// Secrets for pulling it, by name, in the ImageBuild's namespace.
    pub image_pull_secrets: Vec<String>,
    /// Requests and limits.
    pub resources: DefaultResources,
    /// Labels that a node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Taints that are tolerated.
    pub tolerations: Vec<Toleration>,
    /// Where builds keep their cache.
    pub cache: DefaultCache,
    /// Authorities that every build trusts.
    pub certificates: DefaultCertificates,
    /// Proxies of builds that name none.
    pub proxy: lapstrake_crds::Proxy,
    /// Architecture of the nodes that platforms are emulated on where nothing else is known; empty: the
    /// operator's own.
    pub emulate_on: String,
}

/// Authorities that every build trusts.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DefaultCertificates {
    /// Their certificates, in PEM form.
    pub pem: String,
    /// Whether RUN steps trust them too.
    pub in_steps: bool,
}

/// Requests and limits of a builder pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DefaultResources {
    /// What a node must have free.
    pub requests: BTreeMap<String, Quantity>,
    /// What may be used at most.
    pub limits: BTreeMap<String, Quantity>,
}

/// Where builds keep their cache.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DefaultCache {
    /// On a volume of their own, or nowhere.
    #[serde(rename = "type")]
    pub kind: CacheKind,
    /// Size of such a volume.
    pub size: Quantity,
    /// Its storage class; empty: the cluster's default.
    pub storage_class_name: String,
}

impl Default for DefaultCache {
    fn default() -> Self {
        Self { kind: CacheKind::Volume, size: Quantity("10Gi".into()), storage_class_name: String::new() }
    }
}

/// Kind of cache that an ImageBuild gets when it says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum CacheKind {
    /// A PersistentVolumeClaim for each ImageBuild.
    #[default]
    Volume,
    /// A directory that lives as long as the pod.
    EmptyDir,
}

/// What becomes of the pods of a run that has ended; those of older runs always go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum KeepPods {
    /// They stay, for their logs, until the next run or the end of the ImageBuild.
    #[default]
    All,
    /// Only those of failed runs stay.
    Failed,
    /// They go at once.
    None,
}

/// AppArmor profile of pods that mount in their own user namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum AppArmor {
    /// `Unconfined`: the usual profile denies every mount. Nodes without AppArmor take it too.
    #[default]
    Unconfined,
    /// The field is left out, for policies that forbid it.
    Unset,
}

/// Bounds and waits of the operator.
pub mod limits {
    use super::Duration;

    /// Attempts that are free beyond `spec.retries`, for pods whose builder never started.
    pub const FREE_ATTEMPTS_MAX: u32 = 5;
    /// Wait before the second attempt; doubles with each further one.
    pub const BACKOFF_MIN: Duration = Duration::from_secs(10);
    /// Longest wait between attempts.
    pub const BACKOFF_MAX: Duration = Duration::from_secs(300);
    /// How long the builder's image may fail to be pulled before the run fails.
    pub const PULL_GRACE: Duration = Duration::from_secs(300);
    /// How long a pod on its node may fail to start for another reason.
    pub const START_GRACE: Duration = Duration::from_secs(300);
    /// When to look at a pending pod again, since its Events are not watched.
    pub const PENDING_RECHECK: Duration = Duration::from_secs(10);
    /// How long a pod's node may say nothing of it before that is told.
    pub const SILENT_GRACE: Duration = Duration::from_secs(20);
    /// When to try again after a quota said no.
    pub const QUOTA_RECHECK: Duration = Duration::from_secs(15);
    /// When to look again at what the cluster, not the spec, stands in the way of.
    pub const STALLED_RECHECK: Duration = Duration::from_secs(60);
    /// When to look again for what an older ImageBuild of the same name leaves behind.
    pub const LEAVING_RECHECK: Duration = Duration::from_secs(1);
    /// When to look again at a pod that has yet to come into its cache slot, or at a cache all of whose slots are
    /// taken: a claim that its volume's controller wrote onto at the same moment tells nobody.
    pub const SLOT_RECHECK: Duration = Duration::from_secs(2);
    /// When to look again for the first answer of a place that is followed, should it go unnoticed.
    pub const FOLLOW_RECHECK: Duration = Duration::from_secs(30);
    /// Time for the builder to clean up after SIGTERM.
    pub const TERMINATION_GRACE: Duration = Duration::from_secs(30);
    /// The kubelet ends the pod this much after the builder should have ended itself.
    pub const DEADLINE_MARGIN: Duration = Duration::from_secs(120);
    /// Largest request that fits into a ConfigMap beside the registries' settings.
    pub const REQUEST_BYTES_MAX: usize = 900 * 1024;
}
