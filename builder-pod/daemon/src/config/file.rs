//! The shape of `buildkitd.toml`.
//!
//! Holds: keys match whatever their case, as in `buildkitd`; names that a user chooses (registries, labels) keep theirs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::size::GoDuration;
use crate::{Error, Result, Space};

/// Reads the text of the file at `path`.
///
/// # Errors
/// Names file, line and key.
pub(crate) fn parse(text: &str, path: &Path) -> Result<File> {
    let read = DeTable::parse(text).and_then(|table| {
        let (span, table) = (table.span(), table.into_inner());
        let table = Spanned::new(span, lower(table, Below::Known));
        File::deserialize(toml::de::Deserializer::from(table))
    });
    read.map_err(|error| {
        let at = error.span().unwrap_or(0..0);
        let line = text.get(..at.start).unwrap_or_default().lines().count().max(1);
        // The position after a line's end belongs to the next one.
        let line = if text.get(..at.start).is_some_and(|t| t.ends_with('\n')) { line + 1 } else { line };
        let message = error.message();
        let why = match message.strip_prefix("unknown field `") {
            Some(rest) => {
                let written = text.get(at).unwrap_or_default().trim().to_owned();
                let known = rest.split_once("`, ").map_or("", |(_, known)| known);
                format!("unknown key {written}, {known}")
            }
            None => message.lines().collect::<Vec<_>>().join(", "),
        };
        Error::File { path: path.to_owned(), line, why }
    })
}

/// What the keys of a table are.
#[derive(Clone, Copy)]
enum Below {
    /// Ours to know.
    Known,
    /// The user's, with known keys below each.
    Names,
    /// The user's, all the way down.
    Free,
}

fn lower<'i>(table: DeTable<'i>, below: Below) -> DeTable<'i> {
    let mut lowered = DeTable::new();
    for (key, value) in table {
        let (span, name) = (key.span(), key.into_inner());
        let (name, inner) = match below {
            Below::Known => {
                let name = name.to_ascii_lowercase();
                let inner = match name.as_str() {
                    "registry" => Below::Names,
                    "labels" | "options" | "stargzsnapshotter" => Below::Free,
                    _ => Below::Known,
                };
                (name.into(), inner)
            }
            Below::Names => (name, Below::Known),
            Below::Free => (name, Below::Free),
        };
        let (value_span, value) = (value.span(), value.into_inner());
        lowered.insert(Spanned::new(span, name), Spanned::new(value_span, lower_value(value, inner)));
    }
    lowered
}

fn lower_value<'i>(value: DeValue<'i>, below: Below) -> DeValue<'i> {
    match value {
        DeValue::Table(table) => DeValue::Table(lower(table, below)),
        DeValue::Array(items) => DeValue::Array(
            items
                .into_iter()
                .map(|item| {
                    let span = item.span();
                    Spanned::new(span, lower_value(item.into_inner(), below))
                })
                .collect(),
        ),
        value => value,
    }
}

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct File {
    pub(crate) debug: bool,
    pub(crate) trace: bool,
    pub(crate) root: Option<PathBuf>,
    #[serde(rename = "insecure-entitlements")]
    pub(crate) entitlements: Option<Vec<String>>,
    #[serde(rename = "proxynetwork")]
    pub(crate) proxy_network: bool,
    pub(crate) log: Log,
    pub(crate) grpc: Grpc,
    pub(crate) otel: Otel,
    pub(crate) cdi: Cdi,
    pub(crate) worker: Workers,
    pub(crate) registry: BTreeMap<String, Registry>,
    pub(crate) dns: Option<Dns>,
    pub(crate) history: Option<History>,
    pub(crate) frontend: Frontends,
    pub(crate) system: System,
    #[serde(rename = "provenanceenvdir")]
    pub(crate) provenance_env_dir: Option<PathBuf>,
    pub(crate) cache: Cache,
    pub(crate) compaction: Option<Compaction>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Log {
    pub(crate) format: Option<String>,
    pub(crate) level: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Grpc {
    pub(crate) address: Vec<String>,
    #[serde(rename = "debugaddress")]
    pub(crate) debug_address: Option<String>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    #[serde(rename = "securitydescriptor")]
    pub(crate) security_descriptor: Option<String>,
    pub(crate) tls: Tls,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Tls {
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) ca: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Otel {
    #[serde(rename = "socketpath")]
    pub(crate) socket_path: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Cdi {
    pub(crate) disabled: Option<bool>,
    #[serde(rename = "specdirs")]
    pub(crate) spec_dirs: Vec<PathBuf>,
    #[serde(rename = "autoallowed")]
    pub(crate) auto_allowed: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Workers {
    pub(crate) oci: OciWorker,
    pub(crate) containerd: ContainerdWorker,
}

/// The keys that both kinds of worker have, and those of one kind.
macro_rules! worker {
    ($name:ident { $($(#[$attribute:meta])* $field:ident: $type:ty,)* }) => {
        #[derive(Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(crate) struct $name {
            pub(crate) enabled: Option<bool>,
            pub(crate) labels: BTreeMap<String, String>,
            pub(crate) platforms: Vec<String>,
            pub(crate) snapshotter: Option<String>,
            pub(crate) rootless: Option<bool>,
            pub(crate) gc: Option<bool>,
            #[serde(rename = "gckeepstorage")]
            pub(crate) keep_storage: Space,
            #[serde(rename = "reservedspace")]
            pub(crate) reserved_space: Space,
            #[serde(rename = "maxusedspace")]
            pub(crate) max_used_space: Space,
            #[serde(rename = "minfreespace")]
            pub(crate) min_free_space: Space,
            #[serde(rename = "gcpolicy")]
            pub(crate) gc_policy: Vec<Policy>,
            #[serde(rename = "networkmode")]
            pub(crate) network_mode: Option<String>,
            #[serde(rename = "cniconfigpath")]
            pub(crate) cni_config_path: Option<String>,
            #[serde(rename = "cnibinarypath")]
            pub(crate) cni_binary_path: Option<String>,
            #[serde(rename = "cnipoolsize")]
            pub(crate) cni_pool_size: Option<i64>,
            #[serde(rename = "bridgename")]
            pub(crate) bridge_name: Option<String>,
            #[serde(rename = "bridgesubnet")]
            pub(crate) bridge_subnet: Option<String>,
            #[serde(rename = "apparmor-profile")]
            pub(crate) apparmor_profile: Option<String>,
            pub(crate) selinux: Option<bool>,
            #[serde(rename = "max-parallelism")]
            pub(crate) max_parallelism: Option<i64>,
            #[serde(rename = "defaultcgroupparent")]
            pub(crate) default_cgroup_parent: Option<String>,
            $($(#[$attribute])* pub(crate) $field: $type,)*
        }
    };
}

worker!(OciWorker {
    #[serde(rename = "noprocesssandbox")]
    no_process_sandbox: Option<bool>,
    #[serde(rename = "userremapunsupported")]
    user_remap: Option<String>,
    binary: Option<String>,
    #[serde(rename = "proxysnapshotterpath")]
    proxy_snapshotter_path: Option<String>,
    #[serde(rename = "stargzsnapshotter")]
    stargz_snapshotter: Option<BTreeMap<String, toml::Value>>,
});

worker!(ContainerdWorker {
    address: Option<String>,
    namespace: Option<String>,
    runtime: Option<Runtime>,
    #[serde(rename = "hypervisolation")]
    hyperv_isolation: Option<bool>,
});

/// Read only to know its keys.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Runtime {
    name: Option<String>,
    path: Option<String>,
    options: BTreeMap<String, toml::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Policy {
    pub(crate) all: bool,
    pub(crate) filters: Vec<String>,
    #[serde(rename = "keepduration")]
    pub(crate) keep_duration: GoDuration,
    #[serde(rename = "keepbytes")]
    pub(crate) keep_bytes: Space,
    #[serde(rename = "reservedspace")]
    pub(crate) reserved_space: Space,
    #[serde(rename = "maxusedspace")]
    pub(crate) max_used_space: Space,
    #[serde(rename = "minfreespace")]
    pub(crate) min_free_space: Space,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Registry {
    pub(crate) mirrors: Vec<String>,
    pub(crate) http: Option<bool>,
    pub(crate) insecure: Option<bool>,
    pub(crate) ca: Vec<PathBuf>,
    pub(crate) keypair: Vec<KeyPair>,
    #[serde(rename = "tlsconfigdir")]
    pub(crate) tls_config_dir: Vec<PathBuf>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyPair {
    pub(crate) key: PathBuf,
    pub(crate) cert: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Dns {
    pub(crate) nameservers: Vec<String>,
    pub(crate) options: Vec<String>,
    #[serde(rename = "searchdomains")]
    pub(crate) search_domains: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct History {
    #[serde(rename = "maxage")]
    pub(crate) max_age: Option<GoDuration>,
    #[serde(rename = "maxentries")]
    pub(crate) max_entries: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Frontends {
    #[serde(rename = "dockerfile.v0")]
    pub(crate) dockerfile: Frontend,
    #[serde(rename = "gateway.v0")]
    pub(crate) gateway: Gateway,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Frontend {
    pub(crate) enabled: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Gateway {
    pub(crate) enabled: Option<bool>,
    #[serde(rename = "allowedrepositories")]
    pub(crate) allowed_repositories: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct System {
    #[serde(rename = "platformscachemaxage")]
    pub(crate) platforms_cache_max_age: Option<GoDuration>,
    #[serde(rename = "maxregistryconcurrency")]
    pub(crate) max_registry_concurrency: Option<i64>,
    #[serde(rename = "sessionauthtimeout")]
    pub(crate) session_auth_timeout: Option<GoDuration>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Cache {
    pub(crate) gha: Option<toml::Table>,
}

/// Read only to know its keys.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "lowercase")]
pub(crate) struct Compaction {
    enabled: bool,
    #[serde(rename = "idletimeout")]
    idle_timeout: Option<GoDuration>,
    #[serde(rename = "maxretry")]
    max_retry: Option<i64>,
    #[serde(rename = "writespercheck")]
    writes_per_check: Option<u64>,
    #[serde(rename = "sizewatermark")]
    size_watermark: Option<i64>,
    #[serde(rename = "sizegrowthpercent")]
    size_growth_percent: Option<i64>,
    #[serde(rename = "minreclaimbytes")]
    min_reclaim_bytes: Option<i64>,
    #[serde(rename = "minreclaimpercent")]
    min_reclaim_percent: Option<i64>,
    #[serde(rename = "minreclaimpercentfloor")]
    min_reclaim_percent_floor: Option<i64>,
}
