use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lapstrake_llb::Resources;
use lapstrake_oci::{Platform, Reference};

/// What a build asks for beside the Dockerfile.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Stage to build; the last where absent.
    pub target: Option<String>,
    /// `--build-arg`.
    pub build_args: BTreeMap<String, String>,
    /// Labels of the image, over those of the Dockerfile.
    pub labels: BTreeMap<String, String>,
    /// The platform to build for; absent, it is the build platform, and a base image of another one
    /// is taken as it is.
    pub target_platform: Option<Platform>,
    /// The platform that steps run on.
    pub build_platform: Platform,
    /// One of several platforms in one go: step names say which.
    pub multi_platform: bool,
    /// Steps that take nothing from the cache.
    pub no_cache: NoCache,
    /// How base images are looked up.
    pub resolve_mode: ResolveMode,
    /// Creation time of history entries and made directories, seconds since 1970. The build arg
    /// `SOURCE_DATE_EPOCH` says the same and wins.
    pub source_date_epoch: Option<i64>,
    /// Where `COPY` without `--from` copies from.
    pub context: MainContext,
    /// When contexts were made, seconds since 1970, for `SOURCE_DATE_EPOCH=context` and the names of others; one that
    /// is not here has no time. Under a stage's name, lower case, the time of what [`crate::epoch_source`] says.
    pub context_times: BTreeMap<String, i64>,
    /// What stands for a stage or an image of this name, lower case; behind `::` a name may have the platform that it
    /// is for, as `base::linux/arm64`, and wins on that platform.
    pub named_contexts: BTreeMap<String, NamedContext>,
    /// Network of steps that ask for none.
    pub network: Network,
    /// Whether `RUN --network=host` is allowed here, where the engine can do it.
    pub allow_host_network: bool,
    /// Whether `RUN --security=insecure` is allowed.
    pub allow_insecure: bool,
    /// Devices that `RUN --device` may ask for.
    pub allow_devices: AllowedDevices,
    /// Host name in steps; empty for the runner's own.
    pub hostname: String,
    /// Further lines of `/etc/hosts` in steps.
    pub extra_hosts: Vec<ExtraHost>,
    /// Limits of processes in steps.
    pub ulimits: Vec<Ulimit>,
    /// Size of `/dev/shm` in steps, bytes; 0 for the runner's own.
    pub shm_size_bytes: i64,
    /// cgroup parent of steps.
    pub cgroup_parent: String,
    /// What each step may take of the machine.
    pub resources: Resources,
    /// Prefix of cache mount ids (`BUILDKIT_CACHE_MOUNT_NS`).
    pub cache_namespace: String,
    /// The lines of the context's ignore file, for the rule about copies of what it leaves out.
    pub ignore_patterns: Vec<String>,
    /// Files and directories of the context, relative to its root, for the rule about copies of what is not there.
    pub context_files: Option<BTreeSet<String>>,
    /// What is known of a context in a directory, for the rule about large ones.
    pub context_facts: Option<ContextFacts>,
    /// What the engine can run.
    pub capabilities: Capabilities,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            target: None,
            build_args: BTreeMap::new(),
            labels: BTreeMap::new(),
            target_platform: None,
            build_platform: Platform::new("linux", "amd64", None),
            multi_platform: false,
            no_cache: NoCache::default(),
            resolve_mode: ResolveMode::default(),
            source_date_epoch: None,
            context: MainContext::default(),
            context_times: BTreeMap::new(),
            named_contexts: BTreeMap::new(),
            network: Network::default(),
            allow_host_network: true,
            allow_insecure: true,
            allow_devices: AllowedDevices::All,
            hostname: String::new(),
            extra_hosts: Vec::new(),
            ulimits: Vec::new(),
            shm_size_bytes: 0,
            cgroup_parent: String::new(),
            resources: Resources::default(),
            cache_namespace: String::new(),
            ignore_patterns: Vec::new(),
            context_files: None,
            context_facts: None,
            capabilities: Capabilities::default(),
        }
    }
}

/// Steps that take nothing from the cache.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum NoCache {
    /// None: the cache is used.
    #[default]
    Nothing,
    /// All.
    All,
    /// Those of the named stages.
    Stages(Vec<String>),
}

impl NoCache {
    /// As BuildKit's clients say it (the attribute `no-cache`): names of stages with commas between them, or nothing
    /// for all.
    pub fn from_attribute(text: &str) -> Self {
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        let names: Vec<String> = names.map(str::to_owned).collect();
        if names.is_empty() { Self::All } else { Self::Stages(names) }
    }

    pub(crate) fn holds(&self, stage: &str) -> bool {
        match self {
            Self::Nothing => false,
            Self::All => true,
            Self::Stages(names) => names.iter().any(|name| name.eq_ignore_ascii_case(stage)),
        }
    }
}

/// How base images are looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ResolveMode {
    /// As the engine likes.
    #[default]
    Default,
    /// Always at the registry.
    Pull,
    /// A local one first.
    Local,
}

/// Devices that steps may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedDevices {
    /// Every one.
    All,
    /// Those of these names, or of these kinds (`vendor.example/class`).
    Named(BTreeSet<String>),
}

/// Network of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    /// The sandbox' own.
    #[default]
    Default,
    /// None.
    None,
    /// That of the host.
    Host,
}

/// Where the build context comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MainContext {
    /// A directory that the caller or its client has.
    Local {
        /// Its name (`context`).
        name: String,
        /// The session that it belongs to, where there is one.
        session: Option<String>,
        /// `.dockerignore`, line by line.
        exclude_patterns: Vec<String>,
    },
    /// Any other source (git, http), as LLB names it.
    Source {
        /// Identifier, as `git://github.com/a/b.git#main`.
        identifier: String,
        /// Attributes.
        attrs: BTreeMap<String, String>,
        /// The name that progress shows.
        name: String,
    },
}

/// What is known of a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextFacts {
    /// Bytes of all files.
    pub bytes: u64,
    /// Whether there is an ignore file.
    pub has_ignore_file: bool,
}

/// What a name stands for in place of a stage or an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedContext {
    /// Another image.
    Image(Reference),
    /// A stage of the file.
    Stage(String),
    /// A directory that the engine has under this name.
    Local(String),
    /// A directory of a client.
    Lent {
        /// The client's name for it.
        name: String,
        /// The session that it belongs to.
        session: String,
        /// Its `.dockerignore`, line by line.
        exclude_patterns: Vec<String>,
    },
    /// The empty file system.
    Scratch,
}

impl Default for MainContext {
    fn default() -> Self {
        Self::Local { name: "context".to_owned(), session: None, exclude_patterns: Vec::new() }
    }
}

/// A line of `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraHost {
    /// Name.
    pub host: String,
    /// Address.
    pub address: IpAddr,
}

/// A limit of processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    /// Name, as `nofile`.
    pub name: String,
    /// Soft limit.
    pub soft: i64,
    /// Hard limit.
    pub hard: i64,
}

/// What the engine can run of all that the language has. What it can't is an error with a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// `RUN --mount=type=cache`.
    pub cache_mounts: bool,
    /// `RUN --mount=type=secret`.
    pub secret_mounts: bool,
    /// `RUN --mount=type=ssh`.
    pub ssh_mounts: bool,
    /// `RUN --security=insecure`.
    pub insecure: bool,
    /// `RUN --device`.
    pub devices: bool,
    /// `RUN --network=host`.
    pub host_network: bool,
    /// `ADD https://…`.
    pub http_sources: bool,
    /// `ADD` of a Git repository.
    pub git_sources: bool,
    /// Merge operations, for `COPY --link`; without them it is a plain copy of the same outcome.
    pub merge: bool,
}

impl Capabilities {
    /// Everything.
    pub const ALL: Self = Self {
        cache_mounts: true,
        secret_mounts: true,
        ssh_mounts: true,
        insecure: true,
        devices: true,
        host_network: true,
        http_sources: true,
        git_sources: true,
        merge: true,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_attribute_of_clients_names_stages_or_means_all() {
        assert_eq!(NoCache::from_attribute(""), NoCache::All);
        let some = NoCache::from_attribute("one, Two");
        assert!(
            some.holds("one") && some.holds("two") && !some.holds("") && !some.holds("three"),
            "{some:?}"
        );
    }
}
