//! Per-registry settings and what follows from them: which addresses serve a name.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Error;

/// Settings per registry host (`host` or `host:port`, as in image names).
///
/// Read from JSON or YAML by the caller; the same keys as BuildKit's `[registry."host"]` tables.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HostsConfig {
    /// The settings, by host.
    pub hosts: BTreeMap<String, HostConfig>,
}

/// Settings of one registry host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HostConfig {
    /// Asked first for pulls, in order: `host[:port][/path]`, with or without `http://` or `https://`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<String>,
    /// Plain http (`true`) or TLS (`false`); without it, loopback hosts speak plain http, others TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<bool>,
    /// Do not check the server's certificate.
    #[serde(skip_serializing_if = "is_false")]
    pub insecure: bool,
    /// CA certificates that are trusted beside the platform's: PEM files, or PEM texts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ca: Vec<PathBuf>,
    /// PEM file with the client's certificate chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cert: Option<PathBuf>,
    /// PEM file with the client's private key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<PathBuf>,
}

fn is_false(value: &bool) -> bool {
    !*value
}

impl HostsConfig {
    /// Sets the settings of a host; returns `self` for chaining.
    pub fn with(mut self, host: impl Into<String>, config: HostConfig) -> Self {
        self.hosts.insert(host.into(), config);
        self
    }

    /// The settings of a host; Docker Hub's many names are one.
    pub fn get(&self, host: &str) -> HostConfig {
        let found = self.hosts.get(host).or_else(|| match is_docker_hub(host) {
            true => self.hosts.iter().find(|(name, _)| is_docker_hub(name)).map(|(_, config)| config),
            false => None,
        });
        found.cloned().unwrap_or_default()
    }

    /// The endpoints that serve `registry/repository`: mirrors first where `pull`, the registry last.
    pub(crate) fn endpoints(
        &self,
        registry: &str,
        repository: &str,
        pull: bool,
    ) -> Result<Vec<Endpoint>, Error> {
        let mut endpoints = Vec::new();
        if pull {
            for mirror in &self.get(registry).mirrors {
                endpoints.push(self.mirror(mirror, registry, repository)?);
            }
        }
        let config = self.get(registry);
        let host = if is_docker_hub(registry) { "registry-1.docker.io" } else { registry };
        let http = config.http.unwrap_or_else(|| is_loopback(registry));
        endpoints.push(Endpoint {
            registry: registry.to_owned(),
            host: host.to_owned(),
            http,
            repository: repository.to_owned(),
            namespace: None,
        });
        Ok(endpoints)
    }

    fn mirror(&self, text: &str, registry: &str, repository: &str) -> Result<Endpoint, Error> {
        let (http, rest) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
            (Some(rest), _) => (Some(true), rest),
            (_, Some(rest)) => (Some(false), rest),
            _ => (None, text),
        };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.trim_matches('/');
        let path = path.strip_prefix("v2/").unwrap_or(if path == "v2" { "" } else { path });
        let bad = host.is_empty() || rest.contains(['?', '#', '@', ' ', '\\']) || path.contains("..");
        if bad {
            let why = "it must be host[:port][/path], with or without http:// or https://";
            return Err(Error::config(format!("mirror \"{text}\" of {registry}"), why));
        }
        let http = http.or(self.get(host).http).unwrap_or_else(|| is_loopback(host));
        let repository = match path {
            "" => repository.to_owned(),
            path => format!("{path}/{repository}"),
        };
        Ok(Endpoint {
            registry: host.to_owned(),
            host: host.to_owned(),
            http,
            repository,
            namespace: Some(registry.to_owned()),
        })
    }
}

/// A place that serves a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// The name that settings and credentials are kept under.
    pub(crate) registry: String,
    /// Where to connect to.
    pub(crate) host: String,
    /// Plain http.
    pub(crate) http: bool,
    /// The repository's name there.
    pub(crate) repository: String,
    /// For a mirror: the registry that it stands for.
    pub(crate) namespace: Option<String>,
}

impl Endpoint {
    /// `https://host`.
    pub(crate) fn origin(&self) -> String {
        format!("{}://{}", if self.http { "http" } else { "https" }, self.host)
    }

    /// The address of `tail` (such as `manifests/latest`) in the repository.
    pub(crate) fn url(&self, tail: &str) -> Result<reqwest::Url, Error> {
        let text = format!("{}/v2/{}/{tail}", self.origin(), self.repository);
        let mut url = reqwest::Url::parse(&text)
            .map_err(|error| Error::config(&self.registry, format!("its address is not valid: {error}")))?;
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    pub(crate) fn is_mirror(&self) -> bool {
        self.namespace.is_some()
    }
}

/// Whether a host (with or without port) is Docker Hub under any of its names.
pub(crate) fn is_docker_hub(host: &str) -> bool {
    matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io")
}

/// Whether a host (with or without port) is this machine, which BuildKit and Docker speak plain http to.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(""),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> HostsConfig {
        serde_json::from_str(text).expect("valid config")
    }

    fn urls(config: &HostsConfig, registry: &str, pull: bool) -> Vec<String> {
        let endpoints = config.endpoints(registry, "a/b", pull).expect("valid");
        endpoints.iter().map(|e| e.url("tags/list").expect("valid").to_string()).collect()
    }

    #[test]
    fn loopback_is_plain_http_and_the_rest_tls_unless_told() {
        let config = config(r#"{"plain.example":{"http":true},"localhost:1":{"http":false}}"#);
        for (host, wanted) in [
            ("localhost", "http://localhost/v2/a/b/tags/list"),
            ("localhost:5000", "http://localhost:5000/v2/a/b/tags/list"),
            ("127.3.2.1:5000", "http://127.3.2.1:5000/v2/a/b/tags/list"),
            ("[::1]:5000", "http://[::1]:5000/v2/a/b/tags/list"),
            ("localhost:1", "https://localhost:1/v2/a/b/tags/list"),
            ("localhost.example", "https://localhost.example/v2/a/b/tags/list"),
            ("10.0.0.1:5000", "https://10.0.0.1:5000/v2/a/b/tags/list"),
            ("plain.example", "http://plain.example/v2/a/b/tags/list"),
            ("docker.io", "https://registry-1.docker.io/v2/a/b/tags/list"),
        ] {
            assert_eq!(urls(&config, host, true), [wanted], "{host}");
        }
    }

    #[test]
    fn mirrors_come_first_for_pulls_only() {
        let config = config(
            r#"{"docker.io":{"mirrors":["http://m.example:5000","h.example/proxy/hub/","https://x.example/v2"]}}"#,
        );
        assert_eq!(
            urls(&config, "docker.io", true),
            [
                "http://m.example:5000/v2/a/b/tags/list?ns=docker.io",
                "https://h.example/v2/proxy/hub/a/b/tags/list?ns=docker.io",
                "https://x.example/v2/a/b/tags/list?ns=docker.io",
                "https://registry-1.docker.io/v2/a/b/tags/list",
            ]
        );
        assert_eq!(urls(&config, "docker.io", false), ["https://registry-1.docker.io/v2/a/b/tags/list"]);
    }

    #[test]
    fn a_malformed_mirror_is_named() {
        for mirror in ["", "http://", "user@host", "host?x", "host/../x"] {
            let config = HostsConfig::default()
                .with("r.example", HostConfig { mirrors: vec![mirror.into()], ..HostConfig::default() });
            let error = config.endpoints("r.example", "a", true).expect_err(mirror).to_string();
            assert!(error.contains(&format!("mirror \"{mirror}\" of r.example")), "{error}");
        }
    }

    #[test]
    fn an_unknown_key_is_refused() {
        assert!(serde_json::from_str::<HostsConfig>(r#"{"a":{"mirors":[]}}"#).is_err());
    }
}
