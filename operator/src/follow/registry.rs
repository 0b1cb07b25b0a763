//! One question to a registry: for what digest a name stands. Nothing is pulled.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{ACCEPT, WWW_AUTHENTICATE};
use serde::Deserialize;

use super::git::unreachable;

/// How long a server may take to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(20);
/// Everything that a name may stand for.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";
/// Names of Docker Hub.
const HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// What is set for one registry, as far as it matters for a question.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Host {
    http: Option<bool>,
    insecure: bool,
    ca: Vec<String>,
}

/// The registries' settings, and a client for each way of TLS.
pub struct Registries {
    hosts: BTreeMap<String, Host>,
    plain: reqwest::Client,
    special: Mutex<HashMap<String, reqwest::Client>>,
}

#[derive(Deserialize)]
struct Token {
    #[serde(alias = "access_token")]
    token: String,
}

impl Registries {
    /// Reads the settings that builders get too (JSON by host; empty: none).
    pub fn new(settings: &str) -> Result<Self, String> {
        let hosts = match settings {
            "" => BTreeMap::new(),
            text => {
                serde_json::from_str(text).map_err(|error| format!("the registries' settings: {error}"))?
            }
        };
        let plain = client().build().map_err(|error| format!("cannot make an HTTP client: {error}"))?;
        Ok(Self { hosts, plain, special: Mutex::default() })
    }

    /// A client for servers that nothing is set for.
    pub(super) fn plain(&self) -> &reqwest::Client {
        &self.plain
    }

    fn client(&self, host: &str) -> Result<reqwest::Client, String> {
        let Some(settings) = self.hosts.get(host).filter(|one| one.insecure || !one.ca.is_empty()) else {
            return Ok(self.plain.clone());
        };
        let mut special = self.special.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = special.get(host) {
            return Ok(client.clone());
        }
        let mut builder = client().tls_danger_accept_invalid_certs(settings.insecure);
        for pem in &settings.ca {
            let bytes = if pem.contains("-----BEGIN") {
                pem.clone().into_bytes()
            } else {
                std::fs::read(pem).map_err(|error| format!("{pem}, a certificate of {host}: {error}"))?
            };
            let certificates = reqwest::Certificate::from_pem_bundle(&bytes)
                .map_err(|error| format!("a certificate of {host}: {error}"))?;
            builder = builder.tls_certs_merge(certificates);
        }
        let client = builder.build().map_err(|error| format!("cannot make an HTTP client: {error}"))?;
        special.insert(host.to_owned(), client.clone());
        Ok(client)
    }

    /// Asks for the digest of a name (`host/repository:tag`), or says why there is none.
    pub(super) async fn ask(&self, name: &str) -> Result<String, String> {
        let place =
            Place::of(name).ok_or_else(|| format!("{name} is not the name of an image with a tag"))?;
        let client = self.client(place.host)?;
        let loopback = place.host.starts_with("localhost") || place.host.starts_with("127.");
        let http = self.hosts.get(place.host).and_then(|one| one.http).unwrap_or(loopback);
        let scheme = if http { "http" } else { "https" };
        let server = if HUB.contains(&place.host) { "registry-1.docker.io" } else { place.host };
        let url = format!("{scheme}://{server}/v2/{}/manifests/{}", place.repository, place.tag);
        let ask = |token: Option<String>| {
            let request = client.head(&url).header(ACCEPT, MANIFESTS);
            let request = match token {
                Some(token) => request.bearer_auth(token),
                None => request,
            };
            request.send()
        };
        let mut response = ask(None).await.map_err(|error| unreachable(name, &error))?;
        if response.status() == StatusCode::UNAUTHORIZED
            && let Some(challenge) =
                response.headers().get(WWW_AUTHENTICATE).and_then(|text| text.to_str().ok())
            && let Some(token) = self.token(&client, challenge, place.repository).await
        {
            response = ask(Some(token)).await.map_err(|error| unreachable(name, &error))?;
        }
        let status = response.status();
        match status.as_u16() {
            200 => {}
            401 | 403 => {
                return Err(format!(
                    "the registry of {name} answered {status}: following needs an image that can be read without \
                     credentials, since the operator has none"
                ));
            }
            404 => return Err(format!("{name} does not exist, or cannot be read without credentials")),
            _ => return Err(format!("the registry of {name} answered {status}")),
        }
        let digest = response.headers().get("docker-content-digest").and_then(|text| text.to_str().ok());
        let digest = digest.filter(|digest| digest.starts_with("sha256:") || digest.starts_with("sha512:"));
        digest.map(str::to_owned).ok_or_else(|| format!("the registry of {name} tells no digest"))
    }

    /// A token for everybody, if the registry hands one out.
    async fn token(&self, client: &reqwest::Client, challenge: &str, repository: &str) -> Option<String> {
        let parameters = bearer(challenge)?;
        let mut url = reqwest::Url::parse(parameters.get("realm")?).ok()?;
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = parameters.get("service") {
                query.append_pair("service", service);
            }
            query.append_pair("scope", &format!("repository:{repository}:pull"));
        }
        let response = client.get(url).send().await.ok()?;
        response.json::<Token>().await.ok().map(|token| token.token)
    }
}

fn client() -> reqwest::ClientBuilder {
    let agent = concat!("lapstrake/", env!("CARGO_PKG_VERSION"));
    // Idle connections would only cost memory until the next question.
    reqwest::Client::builder().user_agent(agent).timeout(ANSWER_WAIT).pool_max_idle_per_host(0)
}

/// A name's parts.
#[derive(Debug, PartialEq, Eq)]
struct Place<'a> {
    host: &'a str,
    repository: &'a str,
    tag: &'a str,
}

impl<'a> Place<'a> {
    /// The parts of a full name with tag; a name without one means `latest`.
    fn of(name: &'a str) -> Option<Self> {
        let (host, rest) = name.split_once('/')?;
        let (repository, tag) = rest.rsplit_once(':').unwrap_or((rest, "latest"));
        let plain = |text: &str| {
            !text.is_empty() && !text.contains(['@', '?', '#', ' ', '\\']) && !text.contains("..")
        };
        (plain(host) && plain(repository) && plain(tag)).then_some(Self { host, repository, tag })
    }
}

/// The parameters of a `Bearer` challenge.
fn bearer(challenge: &str) -> Option<BTreeMap<String, String>> {
    let (scheme, mut rest) = challenge.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut found = BTreeMap::new();
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim_matches([' ', ',']).to_ascii_lowercase();
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        found.insert(name, value.to_owned());
        rest = next;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_host_repository_and_tag() {
        let place = Place::of("registry.example:5000/shop/web:1.2").unwrap();
        assert_eq!(place, Place { host: "registry.example:5000", repository: "shop/web", tag: "1.2" });
        assert_eq!(Place::of("docker.io/library/busybox").unwrap().tag, "latest");
        assert_eq!(Place::of("docker.io/library/busybox@sha256:00"), None);
        assert_eq!(Place::of("busybox"), None);
    }

    #[test]
    fn a_challenge_is_read_with_commas_in_its_values() {
        let found =
            bearer(r#"Bearer realm="https://auth.example/token",service="r",scope="repository:a:pull,push""#);
        let found = found.unwrap();
        assert_eq!(found["realm"], "https://auth.example/token");
        assert_eq!(found["service"], "r");
        assert_eq!(found["scope"], "repository:a:pull,push");
        assert_eq!(bearer("Basic realm=x"), None);
    }
}
