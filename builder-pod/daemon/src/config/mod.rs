//! All settings of the daemon, from flags, file and what holds without them.

mod file;
mod load;
mod registries;
mod unused;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use lapstrake_registry::HostsConfig;
use tracing::level_filters::LevelFilter;

use crate::Gc;

/// All settings, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// State directory, absolute.
    pub root: PathBuf,
    /// Where clients come in.
    pub grpc: Grpc,
    /// Address (`host:port`) of metrics and health; none: not served.
    pub debug_address: Option<String>,
    /// The log.
    pub log: LogConfig,
    /// What builds may ask for.
    pub entitlements: BTreeSet<Entitlement>,
    /// Socket for traces of steps, where one was asked for.
    pub otel_socket: Option<PathBuf>,
    /// Devices by the Container Device Interface.
    pub cdi: Cdi,
    /// The worker.
    pub worker: Worker,
    /// Mirrors, CAs, plain http, per registry.
    pub registries: HostsConfig,
    /// Name resolution of steps; none: the daemon's own.
    pub dns: Option<Dns>,
    /// Retention of build records.
    pub history: History,
    /// Frontends.
    pub frontends: Frontends,
    /// Connections to one registry at the same time; none: the client's own limit.
    pub registry_connections_max: Option<NonZeroUsize>,
    /// How long a client may take to answer a question for credentials; none: for ever.
    pub session_auth_timeout: Option<Duration>,
    /// Directory of JSON files whose values go into provenance.
    pub provenance_env_dir: PathBuf,
    /// How long running builds may go on after the first signal to end.
    pub drain: Duration,
    /// To be logged once, when the log is set up: [`Config::tell`].
    pub notes: Vec<Note>,
}

/// Listeners and their encryption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grpc {
    /// `unix://`, `tcp://` or `fd://`; at least one.
    pub addresses: Vec<String>,
    /// Owner of unix sockets.
    pub uid: u32,
    /// Group of unix sockets.
    pub gid: u32,
    /// Encryption of TCP.
    pub tls: Option<TlsFiles>,
}

/// PEM files of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// CA that clients' certificates must come from; none: clients need no certificate.
    pub ca: Option<PathBuf>,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// `time="…" level=info msg="…"`.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogConfig {
    /// Its form.
    pub format: LogFormat,
    /// The least level that is shown.
    pub level: LevelFilter,
}

/// What a build may do only where daemon and client both allow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entitlement {
    /// Steps in the daemon's network.
    NetworkHost,
    /// Steps without a sandbox.
    SecurityInsecure,
    /// Devices by CDI.
    Device,
}

impl Entitlement {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::NetworkHost, Self::SecurityInsecure, Self::Device];

    /// The name in flags, files and requests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NetworkHost => "network.host",
            Self::SecurityInsecure => "security.insecure",
            Self::Device => "device",
        }
    }
}

/// Devices by the Container Device Interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cdi {
    /// Whether steps may have such devices.
    pub enabled: bool,
    /// Directories of device descriptions.
    pub spec_dirs: Vec<PathBuf>,
    /// Devices that need no entitlement.
    pub auto_allowed: Vec<String>,
}

/// The network of steps that ask for none in particular.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NetworkMode {
    /// As the daemon finds it best.
    #[default]
    Auto,
    /// The daemon's own.
    Host,
}

/// The worker: there is one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Worker {
    /// Labels beside the worker's own.
    pub labels: BTreeMap<String, String>,
    /// Platforms that it says it builds for; empty: found out.
    pub platforms: Vec<String>,
    /// Steps at the same time; none: no limit.
    pub parallelism_max: Option<NonZeroUsize>,
    /// Network of steps.
    pub network: NetworkMode,
    /// Parent of steps' cgroups where the build names none.
    pub cgroup_parent: Option<String>,
    /// Garbage collection.
    pub gc: Gc,
}

/// Name resolution of steps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dns {
    /// Servers; empty: the daemon's.
    pub nameservers: Vec<IpAddr>,
    /// Lines of `options`.
    pub options: Vec<String>,
    /// Domains that are searched.
    pub search: Vec<String>,
}

/// Retention of build records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct History {
    /// Whether records are kept at all.
    pub enabled: bool,
    /// A record older than this goes, where more than `entries_min` are left.
    pub age_max: Duration,
    /// So many are kept whatever their age.
    pub entries_min: usize,
}

impl Default for History {
    fn default() -> Self {
        Self { enabled: true, age_max: Duration::from_secs(48 * 3600), entries_min: 50 }
    }
}

/// Frontends that may be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frontends {
    /// `dockerfile.v0`.
    pub dockerfile: bool,
    /// `gateway.v0`.
    pub gateway: bool,
    /// Repositories that gateway frontends may come from; empty: any.
    pub gateway_repositories: Vec<String>,
}

impl Frontends {
    /// Whether a frontend may come from the repository `name`, such as `docker.io/docker/dockerfile`.
    pub fn allows_gateway_from(&self, name: &str) -> bool {
        self.gateway_repositories.is_empty()
            || self.gateway_repositories.iter().any(|allowed| full(allowed) == name)
    }
}

/// The full form of a repository's name.
fn full(repository: &str) -> String {
    let (first, rest) = repository.split_once('/').unwrap_or(("", repository));
    let is_host = first.contains(['.', ':']) || first == "localhost";
    match (is_host, first) {
        (true, _) => repository.to_owned(),
        (false, "") => format!("docker.io/library/{rest}"),
        (false, _) => format!("docker.io/{repository}"),
    }
}

/// Something about the settings that a person should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Whether something that was asked for is missing; otherwise it only has no meaning.
    pub warning: bool,
    /// The text.
    pub text: String,
}

impl Config {
    /// Logs what should be known of the settings.
    pub fn tell(&self) {
        for note in &self.notes {
            if note.warning {
                tracing::warn!("{}", note.text);
            } else {
                tracing::info!("{}", note.text);
            }
        }
    }
}
