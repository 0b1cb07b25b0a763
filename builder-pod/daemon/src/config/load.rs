//! Flags over file over what holds without them.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::level_filters::LevelFilter;

use super::file::{self, File};
use super::{
    Cdi, Config, Dns, Entitlement, Frontends, Grpc, History, LogConfig, LogFormat, NetworkMode, Note,
    TlsFiles, Worker, registries, unused,
};
use crate::{Error, Flags, Gc, GcPolicy, Result, Space, parse_duration};

/// The file is small; one that is not is something else.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// How long builds may go on after the first signal; less than Kubernetes' grace period.
const DRAIN: Duration = Duration::from_secs(25);
/// How long a client may take for credentials.
const SESSION_AUTH: Duration = Duration::from_secs(60);

/// What the settings depend on beside flags and file.
#[derive(Debug, Clone)]
pub(crate) struct Around {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Not the machine's root: state, socket and file are the user's.
    pub(crate) rootless: bool,
    /// `XDG_CONFIG_HOME`, `XDG_DATA_HOME`, `XDG_RUNTIME_DIR`, `HOME`.
    pub(crate) env: BTreeMap<&'static str, PathBuf>,
    /// Directory that a relative root is below.
    pub(crate) current_dir: PathBuf,
    /// Text of `/etc/group`.
    pub(crate) groups: String,
}

impl Around {
    fn now() -> Self {
        let names = ["XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "HOME"];
        let env = names.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        let env =
            env.filter(|(_, value)| !value.is_empty()).map(|(name, value)| (name, value.into())).collect();
        // Nothing of this need be readable.
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let in_user_namespace = map.split_whitespace().ne(["0", "0", "4294967295"]);
        let user = std::env::var("USER").unwrap_or_default();
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Self {
            uid,
            gid,
            rootless: uid != 0 || (in_user_namespace && !user.is_empty() && user != "root"),
            env,
            current_dir: std::env::current_dir().unwrap_or_else(|_| "/".into()),
            groups: std::fs::read_to_string("/etc/group").unwrap_or_default(),
        }
    }

    fn dir(&self, name: &str, below_home: &str) -> Option<PathBuf> {
        let home = || self.env.get("HOME").map(|home| home.join(below_home));
        self.env.get(name).cloned().or_else(home).map(|dir| dir.join("buildkit")).filter(|_| self.rootless)
    }

    fn config_path(&self) -> PathBuf {
        let dir = self.dir("XDG_CONFIG_HOME", ".config").unwrap_or_else(|| "/etc/buildkit".into());
        dir.join("buildkitd.toml")
    }

    fn root(&self) -> PathBuf {
        self.dir("XDG_DATA_HOME", ".local/share").unwrap_or_else(|| "/var/lib/buildkit".into())
    }

    fn address(&self) -> String {
        let runtime = self.env.get("XDG_RUNTIME_DIR").filter(|_| self.rootless);
        let dir = runtime.map_or_else(|| "/run/buildkit".into(), |dir| dir.join("buildkit"));
        format!("unix://{}", dir.join("buildkitd.sock").display())
    }
}

impl Config {
    /// Reads the file that `flags` name (or the default one, which may be missing) and puts all together.
    ///
    /// # Errors
    /// Names the flag, or file, line and key, that is wrong.
    pub fn load(flags: &Flags) -> Result<Self> {
        let around = Around::now();
        let path = flags.config.clone().unwrap_or_else(|| around.config_path());
        let file = match read(&path) {
            Ok(text) => file::parse(&text, &path)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && flags.config.is_none() => {
                File::default()
            }
            Err(error) => return Err(Error::io("read", path)(error)),
        };
        Self::merge(flags, file, &around)
    }

    /// As [`Config::load`], without a look at the system.
    pub(crate) fn merge(flags: &Flags, file: File, around: &Around) -> Result<Self> {
        let mut notes = unused::notes(flags, &file);
        let root = flags.root.clone().or(file.root).unwrap_or_else(|| around.root());
        let cdi = Cdi {
            enabled: !flags.cdi_disabled.or(file.cdi.disabled).unwrap_or(false),
            spec_dirs: first([flags.cdi_spec_dir.clone(), file.cdi.spec_dirs], || {
                ["/etc/cdi", "/var/run/cdi", "/etc/buildkit/cdi"].map(Into::into).to_vec()
            }),
            auto_allowed: file.cdi.auto_allowed,
        };
        if flags.proxy_network.unwrap_or(file.proxy_network) {
            return Err(Error::Setting(
                "proxyNetwork: traffic of builds is not enforced through a proxy here; leave it out".into(),
            ));
        }
        if file.cache.gha.as_ref().is_some_and(requires_signatures) {
            return Err(Error::Setting(
                "cache.gha.verify.required: signatures of cache entries are not checked here; leave it out"
                    .into(),
            ));
        }
        let connections = file.system.max_registry_concurrency.map(|number| {
            let number = usize::try_from(number).ok().and_then(NonZeroUsize::new);
            number.ok_or_else(|| Error::Setting("maxRegistryConcurrency must be greater than zero".into()))
        });
        let provenance = || around.config_path().with_file_name("provenance.d");
        Ok(Self {
            root: around.current_dir.join(root),
            debug_address: flags
                .debugaddr
                .clone()
                .or(file.grpc.debug_address.clone())
                .filter(|a| !a.is_empty()),
            log: log(flags, &file.log, file.debug, file.trace)?,
            entitlements: entitlements(flags, file.entitlements.as_deref(), cdi.enabled)?,
            otel_socket: flags.otel_socket_path.clone().or(file.otel.socket_path),
            cdi,
            worker: worker(flags, file.worker)?,
            registries: registries::hosts(file.registry, &mut notes)?,
            dns: file.dns.map(dns).transpose()?,
            history: file.history.map(history).unwrap_or_default(),
            frontends: Frontends {
                dockerfile: file.frontend.dockerfile.enabled.unwrap_or(true),
                gateway: file.frontend.gateway.enabled.unwrap_or(true),
                gateway_repositories: file.frontend.gateway.allowed_repositories,
            },
            registry_connections_max: connections.transpose()?,
            session_auth_timeout: match file.system.session_auth_timeout {
                None => Some(SESSION_AUTH),
                Some(time) => Some(time.0).filter(|time| !time.is_zero()),
            },
            provenance_env_dir: file.provenance_env_dir.unwrap_or_else(provenance),
            drain: match &flags.drain {
                None => DRAIN,
                Some(text) => parse_duration(text).ok_or_else(|| Error::Flag {
                    flag: "drain",
                    why: format!("{text}: give such as 25s or 2m"),
                })?,
            },
            grpc: grpc(flags, file.grpc, around)?,
            notes,
        })
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    let bytes = std::fs::metadata(path)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(std::io::Error::other(format!("it has {bytes} bytes, more than {FILE_BYTES_MAX}")));
    }
    std::fs::read_to_string(path)
}

fn first<T>(given: [Vec<T>; 2], usual: impl FnOnce() -> Vec<T>) -> Vec<T> {
    given.into_iter().find(|list| !list.is_empty()).unwrap_or_else(usual)
}

fn requires_signatures(gha: &toml::Table) -> bool {
    gha.get("verify").and_then(|verify| verify.get("required")).and_then(toml::Value::as_bool) == Some(true)
}

fn grpc(flags: &Flags, file: file::Grpc, around: &Around) -> Result<Grpc> {
    let gid = match flags.group.as_deref() {
        None | Some("") => file.gid.unwrap_or(around.gid),
        Some(group) => group_id(group, &around.groups)?,
    };
    let cert = flags.tlscert.clone().or(file.tls.cert).filter(|p| !p.as_os_str().is_empty());
    let key = flags.tlskey.clone().or(file.tls.key).filter(|p| !p.as_os_str().is_empty());
    let ca = flags.tlscacert.clone().or(file.tls.ca).filter(|p| !p.as_os_str().is_empty());
    let tls = match (cert, key, ca) {
        (Some(cert), Some(key), ca) => Some(TlsFiles { cert, key, ca }),
        (None, None, None) => None,
        (None, None, Some(ca)) => {
            let why = "clients cannot be checked without TLS: give the server's certificate and key too";
            return Err(Error::Setting(format!("CA {}: {why}", ca.display())));
        }
        _ => return Err(Error::Setting("you must specify key and cert file if one is specified".into())),
    };
    Ok(Grpc {
        addresses: first([flags.addr.clone(), file.address], || vec![around.address()]),
        uid: file.uid.unwrap_or(around.uid),
        gid,
        tls,
    })
}

fn group_id(group: &str, groups: &str) -> Result<u32> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let id = groups.lines().find_map(|line| {
        let mut parts = line.split(':');
        (parts.next() == Some(group)).then(|| parts.nth(1)?.parse().ok())?
    });
    id.ok_or_else(|| Error::Flag {
        flag: "group",
        why: format!("unknown group {group}: give its name or number"),
    })
}

fn log(flags: &Flags, file: &file::Log, debug: bool, trace: bool) -> Result<LogConfig> {
    let format = match flags.log_format.as_deref().or(file.format.as_deref()).unwrap_or_default() {
        "json" => LogFormat::Json,
        "text" | "" => LogFormat::Text,
        other => {
            return Err(Error::Setting(format!("unsupported log type {other:?}, known are text and json")));
        }
    };
    let by_switch = match (flags.trace, flags.debug) {
        (Some(true), _) => Some("trace"),
        (_, Some(true)) => Some("debug"),
        _ => None,
    };
    let by_file = || match (trace, debug) {
        (true, _) => "trace",
        (_, true) => "debug",
        _ => "info",
    };
    let level = flags.log_level.as_deref().or(by_switch).or(file.level.as_deref()).filter(|l| !l.is_empty());
    let level = match level.unwrap_or_else(by_file).to_ascii_lowercase().as_str() {
        "panic" | "fatal" | "error" => LevelFilter::ERROR,
        "warn" | "warning" => LevelFilter::WARN,
        "info" => LevelFilter::INFO,
        "debug" => LevelFilter::DEBUG,
        "trace" => LevelFilter::TRACE,
        other => {
            let known = "known are trace, debug, info, warn, error, fatal and panic";
            return Err(Error::Setting(format!("unsupported log level {other:?}, {known}")));
        }
    };
    Ok(LogConfig { format, level })
}

fn entitlements(flags: &Flags, file: Option<&[String]>, cdi: bool) -> Result<BTreeSet<Entitlement>> {
    let given = match flags.allow_insecure_entitlement.as_slice() {
        [] => file.unwrap_or_default(),
        given => given,
    };
    let mut all: BTreeSet<_> = cdi.then_some(Entitlement::Device).into_iter().collect();
    for name in given {
        let known = Entitlement::ALL.into_iter().find(|known| known.name() == name);
        all.insert(known.ok_or_else(|| {
            Error::Setting(format!(
                "invalid entitlement : {name}, known are network.host, security.insecure and device"
            ))
        })?);
    }
    Ok(all)
}

/// The settings of the worker that is wanted: the OCI one's, or containerd's where only that is.
struct Wanted {
    labels: BTreeMap<String, String>,
    label_flags: Vec<String>,
    platforms: Vec<String>,
    parallelism: Option<i64>,
    network: Option<String>,
    cgroup_parent: Option<String>,
    gc: Option<bool>,
    keep_storage: Option<String>,
    caps: [Space; 4],
    policies: Vec<file::Policy>,
}

macro_rules! wanted {
    ($flags:expr, $file:expr) => {
        Wanted {
            labels: $file.labels,
            label_flags: $flags.worker_labels.clone(),
            platforms: first([$flags.worker_platform.clone(), $file.platforms], Vec::new),
            parallelism: $flags.max_parallelism.or($file.max_parallelism),
            network: $flags.worker_net.clone().or($file.network_mode),
            cgroup_parent: $file.default_cgroup_parent.filter(|parent| !parent.is_empty()),
            gc: $flags.worker_gc.or($file.gc),
            keep_storage: $flags.worker_gc_keepstorage.clone(),
            caps: [$file.reserved_space, $file.min_free_space, $file.max_used_space, $file.keep_storage],
            policies: $file.gc_policy,
        }
    };
}

fn worker(flags: &Flags, file: file::Workers) -> Result<Worker> {
    let oci = enabled("oci-worker", flags.oci.worker.as_deref())?.or(file.oci.enabled);
    let containerd =
        enabled("containerd-worker", flags.containerd.worker.as_deref())?.or(file.containerd.enabled);
    let wanted = match (oci, containerd) {
        (Some(false), Some(true)) => wanted!(flags.containerd, file.containerd),
        (Some(false), _) => {
            let why = "no worker found: the OCI worker is switched off, and it is the one that there is";
            return Err(Error::Setting(why.into()));
        }
        _ => wanted!(flags.oci, file.oci),
    };
    let mut labels = wanted.labels;
    for label in wanted.label_flags {
        let (name, value) = label.split_once('=').ok_or_else(|| Error::Flag {
            flag: "oci-worker-labels",
            why: format!("invalid value {label}: give name=value"),
        })?;
        labels.insert(name.to_owned(), value.to_owned());
    }
    let network = match wanted.network.as_deref() {
        None | Some("" | "auto" | "bridge" | "cni") => NetworkMode::Auto,
        Some("host") => NetworkMode::Host,
        Some(other) => {
            return Err(Error::Setting(format!(
                "invalid network mode: {other:?}, known are auto, bridge, cni and host"
            )));
        }
    };
    let parallelism = match wanted.parallelism {
        None => None,
        Some(number) => usize::try_from(number).ok().and_then(NonZeroUsize::new),
    };
    let [reserved, min_free, max_used, keep] = wanted.caps;
    let mut gc =
        Gc { enabled: wanted.gc.unwrap_or(true), reserved, min_free, max_used, policies: Vec::new() };
    if let Some(text) = wanted.keep_storage {
        (gc.reserved, gc.min_free, gc.max_used) = keep_storage(&text)?;
    }
    if gc.reserved.is_unset() && gc.min_free.is_unset() && gc.max_used.is_unset() {
        gc.reserved = keep;
    }
    gc.policies = wanted.policies.into_iter().map(policy).collect();
    Ok(Worker {
        labels,
        platforms: wanted.platforms,
        parallelism_max: parallelism,
        network,
        cgroup_parent: wanted.cgroup_parent,
        gc,
    })
}

fn enabled(flag: &'static str, text: Option<&str>) -> Result<Option<bool>> {
    match text.map(str::to_ascii_lowercase).as_deref() {
        None | Some("" | "auto") => Ok(None),
        Some("true" | "1" | "t") => Ok(Some(true)),
        Some("false" | "0" | "f") => Ok(Some(false)),
        Some(other) => Err(Error::Flag { flag, why: format!("{other}: give true, false or auto") }),
    }
}

fn policy(file: file::Policy) -> GcPolicy {
    GcPolicy {
        all: file.all,
        filters: file.filters,
        keep: file.keep_duration.0,
        reserved: if file.reserved_space.is_unset() { file.keep_bytes } else { file.reserved_space },
        max_used: file.max_used_space,
        min_free: file.min_free_space,
    }
}

/// `Reserved[,Free[,Maximum]]` in millions of bytes.
fn keep_storage(text: &str) -> Result<(Space, Space, Space)> {
    let why = || Error::Flag {
        flag: "oci-worker-gc-keepstorage",
        why: format!(
            "failed to parse storage {text:?}: give Reserved[,Free[,Maximum]] in MB, such as 2000,2000,8000"
        ),
    };
    let mut parts = text.splitn(3, ',').map(|part| {
        let megabytes = part.parse::<u64>().ok().and_then(|number| number.checked_mul(1_000_000));
        megabytes.map(Space::Bytes).ok_or_else(why)
    });
    let mut next = || parts.next().unwrap_or(Ok(Space::default()));
    if text.is_empty() { Ok(Default::default()) } else { Ok((next()?, next()?, next()?)) }
}

fn dns(file: file::Dns) -> Result<Dns> {
    let servers = file.nameservers.iter().map(|text| {
        text.parse().map_err(|_| {
            Error::Setting(format!("dns.nameservers: {text:?} is no address, give such as 1.1.1.1"))
        })
    });
    Ok(Dns {
        nameservers: servers.collect::<Result<_>>()?,
        options: file.options,
        search: file.search_domains,
    })
}

/// An absent number keeps none beyond their age; nought switches all off.
fn history(file: file::History) -> History {
    History {
        enabled: file.max_entries != Some(0),
        age_max: file.max_age.unwrap_or_default().0,
        entries_min: file.max_entries.and_then(|number| usize::try_from(number).ok()).unwrap_or(0),
    }
}

impl Note {
    pub(crate) fn info(text: String) -> Self {
        Self { warning: false, text }
    }

    pub(crate) fn warning(text: String) -> Self {
        Self { warning: true, text }
    }
}

#[cfg(test)]
mod tests;
