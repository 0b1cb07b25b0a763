//! What steps find around them, and what names of the Dockerfile stand for.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::request::{GitSource, HttpSource};

/// What steps find around them beside their files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Steps {
    /// Further lines of `/etc/hosts`, one for each name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<Host>,
    /// Limits of a step's processes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ulimits: Vec<Ulimit>,
    /// Size of `/dev/shm` in bytes; unset: the builder's rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm_bytes: Option<u64>,
    /// Host name; unset: the builder's rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
}

/// A name and its address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Host {
    /// The name.
    pub name: String,
    /// Its address.
    pub ip: IpAddr,
}

/// A limit; -1 is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ulimit {
    /// Which, as `nofile`.
    pub name: String,
    /// The limit that holds.
    pub soft: i64,
    /// How far it may be raised.
    pub hard: i64,
}

/// What a name of the Dockerfile stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ContextInput {
    /// The name, lower case.
    pub name: String,
    /// What it stands for.
    pub from: ContextFrom,
}

/// What a name stands for. Exactly one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ContextFrom {
    /// An image, by tag or digest.
    Image(String),
    /// Files of a repository.
    Git(GitSource),
    /// Files of a download.
    Http(HttpSource),
}
