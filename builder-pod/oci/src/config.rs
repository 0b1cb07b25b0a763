use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::{Digest, Platform};

/// Go writes an empty list or map as `null`; both mean the same here.
fn null_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

fn none<T>(value: &Option<T>) -> bool {
    value.is_none()
}

/// An image config (OCI image spec, `config.md`) with Docker's extensions, as clients read it. Fields stand in the order in which
/// BuildKit writes them (its outer keys are sorted), so that what is the same has the same digest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageConfig {
    /// CPU architecture.
    #[serde(default)]
    pub architecture: String,
    /// Who made it (`MAINTAINER`).
    #[serde(default, skip_serializing_if = "none")]
    pub author: Option<String>,
    /// What a container of the image starts with.
    #[serde(default, deserialize_with = "null_default")]
    pub config: ContainerConfig,
    /// Creation time, RFC 3339.
    #[serde(default, skip_serializing_if = "none")]
    pub created: Option<String>,
    /// One entry per instruction.
    #[serde(default, deserialize_with = "null_default")]
    pub history: Vec<History>,
    /// An inline build cache. That of an image which is read is nothing to what is made of it.
    #[serde(rename = "moby.buildkit.cache.v0", skip_deserializing, skip_serializing_if = "none")]
    pub build_cache: Option<String>,
    /// Operating system.
    #[serde(default)]
    pub os: String,
    /// Windows build.
    #[serde(rename = "os.version", default, skip_serializing_if = "none")]
    pub os_version: Option<String>,
    /// The layers' uncompressed digests.
    #[serde(default, deserialize_with = "null_default")]
    pub rootfs: RootFs,
    /// CPU variant.
    #[serde(default, skip_serializing_if = "none")]
    pub variant: Option<String>,
}

impl ImageConfig {
    /// An empty config of a platform, as `FROM scratch` starts.
    pub fn of_platform(platform: &Platform) -> Self {
        Self {
            architecture: platform.architecture.clone(),
            variant: platform.variant.clone(),
            os: platform.os.clone(),
            os_version: platform.os_version.clone(),
            ..Self::default()
        }
    }

    /// The document, byte for byte as BuildKit would write it.
    ///
    /// # Errors
    /// None that a config can cause.
    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        crate::to_json(self, false)
    }

    /// The platform that the config names.
    pub fn platform(&self) -> Platform {
        Platform::new(&self.os, &self.architecture, self.variant.as_deref())
    }
}

/// The `config` object of an image config; field names are Docker's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerConfig {
    /// User and group that the entry point runs as.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Ports as `80/tcp`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_default")]
    pub exposed_ports: BTreeMap<String, Empty>,
    /// Environment as `NAME=value`, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_default")]
    pub env: Vec<String>,
    /// Entry point.
    #[serde(default, skip_serializing_if = "none")]
    pub entrypoint: Option<Vec<String>>,
    /// Default arguments.
    #[serde(default, skip_serializing_if = "none")]
    pub cmd: Option<Vec<String>>,
    /// Anonymous volumes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_default")]
    pub volumes: BTreeMap<String, Empty>,
    /// Working directory.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_default")]
    pub labels: BTreeMap<String, String>,
    /// Signal that stops the container.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Windows: `Cmd` is already escaped.
    #[serde(default, skip_serializing_if = "none")]
    pub args_escaped: Option<bool>,
    /// Health check.
    #[serde(default, skip_serializing_if = "none")]
    pub healthcheck: Option<Healthcheck>,
    /// Triggers for images built from this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_default")]
    pub on_build: Vec<String>,
    /// Shell of the shell form.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_default")]
    pub shell: Vec<String>,
}

/// The value of a set that JSON writes as a map to `{}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Empty {}

/// `HEALTHCHECK`; durations in nanoseconds, 0 is "not given".
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", text]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_default")]
    pub test: Vec<String>,
    /// Time between checks.
    #[serde(default, skip_serializing_if = "zero")]
    pub interval: i64,
    /// Time after which a check has failed.
    #[serde(default, skip_serializing_if = "zero")]
    pub timeout: i64,
    /// Grace at the start.
    #[serde(default, skip_serializing_if = "zero")]
    pub start_period: i64,
    /// Time between checks during the grace.
    #[serde(default, skip_serializing_if = "zero")]
    pub start_interval: i64,
    /// Failures in a row until unhealthy.
    #[serde(default, skip_serializing_if = "zero")]
    pub retries: i64,
}

fn zero(value: &i64) -> bool {
    *value == 0
}

/// The layers of an image by uncompressed digest, lowest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Uncompressed digests ("diff IDs").
    #[serde(deserialize_with = "null_default")]
    pub diff_ids: Vec<Digest>,
}

impl Default for RootFs {
    fn default() -> Self {
        Self { kind: "layers".to_owned(), diff_ids: Vec::new() }
    }
}

/// What made a layer, or changed the config without one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct History {
    /// Creation time, RFC 3339.
    #[serde(default, skip_serializing_if = "none")]
    pub created: Option<String>,
    /// The instruction.
    #[serde(default, skip_serializing_if = "none")]
    pub created_by: Option<String>,
    /// Author.
    #[serde(default, skip_serializing_if = "none")]
    pub author: Option<String>,
    /// Comment.
    #[serde(default, skip_serializing_if = "none")]
    pub comment: Option<String>,
    /// True where no layer belongs to the entry.
    #[serde(default, skip_serializing_if = "is_false")]
    pub empty_layer: bool,
}

fn is_false(value: &bool) -> bool {
    !*value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_of_go_read_as_empty() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Cmd":["sh"],"Volumes":{"/d":{}}},
            "rootfs":{"type":"layers","diff_ids":null},"history":null}"#;
        let config: ImageConfig = serde_json::from_str(text).expect("valid config");
        assert!(
            config.config.env.is_empty() && config.history.is_empty() && config.rootfs.diff_ids.is_empty()
        );
        assert_eq!(config.config.cmd, Some(vec!["sh".to_owned()]));
        assert!(config.config.volumes.contains_key("/d"));
    }
}
