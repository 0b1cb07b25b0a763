//! One request to a registry: connection settings, authorisation, classification, retries.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap};
use reqwest::{Method, Response, Url};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::auth::{Memory, Session};
use crate::client::Config;
use crate::error::{Kind, Said, chain};
use crate::hosts::{Endpoint, HostConfig, is_loopback};
use crate::limits::{AUTH_ROUNDS_MAX, ERROR_BODY_BYTES_MAX, REDIRECTS_MAX};
use crate::retry::{self, Backoff};
use crate::token::Scopes;
use crate::{Class, Error, body};

/// What all clones of a client share.
#[derive(Debug)]
pub(crate) struct Transport {
    pub(crate) config: Config,
    pub(crate) memory: Memory,
    /// Connections, which say nothing of who uses them: each request brings its own authorisation.
    clients: Arc<Mutex<HashMap<Tls, reqwest::Client>>>,
    permits: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// Settings that make a connection pool of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Tls {
    insecure: bool,
    ca: Vec<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    direct: bool,
}

/// A request that can be sent any number of times.
#[derive(Debug, Clone)]
pub(crate) struct Call<'a> {
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) scopes: Scopes,
    /// A verb phrase for errors.
    pub(crate) action: &'a str,
    /// What it is about, for errors.
    pub(crate) subject: &'a str,
}

/// Why an attempt failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It would fail again.
    Final(Error),
    /// It may work later, not before `after` if the registry said so.
    Retry { error: Error, after: Option<Duration> },
    /// Other authorisation is ready, but the body was used up.
    Reauthorised(Error),
}

impl Failure {
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::Final(error) | Self::Retry { error, .. } | Self::Reauthorised(error) => error,
        }
    }
}

/// Statuses that tell of a passing state.
pub(crate) fn is_retryable_status(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500 | 502..=599)
}

/// Up to `max` bytes of a body; what cannot be read is left out.
pub(crate) async fn read_some(response: &mut Response, max: usize) -> Vec<u8> {
    let mut body = Vec::new();
    let read = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            body.extend_from_slice(&chunk[..chunk.len().min(max - body.len())]);
            if body.len() >= max {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), read).await.ok(); // the text of an error is optional
    body
}

impl Transport {
    pub(crate) fn new(config: Config) -> Self {
        Self { config, memory: Memory::default(), clients: Arc::default(), permits: Mutex::default() }
    }

    /// One with other settings over the same connections. Turns are its own: who waits for somebody's credentials keeps
    /// nobody else from a registry.
    pub(crate) fn beside(&self, config: Config) -> Self {
        Self { clients: Arc::clone(&self.clients), ..Self::new(config) }
    }

    /// A turn at a registry; at most `limits.concurrency` are given out at a time.
    pub(crate) async fn turn(&self, registry: &str) -> Option<OwnedSemaphorePermit> {
        let semaphore = {
            let mut permits = self.permits.lock().unwrap_or_else(PoisonError::into_inner);
            let new = || Arc::new(Semaphore::new(self.config.limits.concurrency.max(1)));
            Arc::clone(permits.entry(registry.to_owned()).or_insert_with(new))
        };
        semaphore.acquire_owned().await.ok() // never closed
    }

    /// Sends until an answer with a success status comes, attempts run out or it is clear that it
    /// never will.
    pub(crate) async fn call(&self, call: &Call<'_>) -> Result<Response, Error> {
        let limits = &self.config.limits;
        let attempts =
            if call.endpoint.is_mirror() { limits.mirror_attempts_max } else { limits.attempts_max };
        let mut backoff = Backoff::new(limits, attempts);
        loop {
            let (error, after) = match self.attempt(call, None).await {
                Ok(response) => return Ok(response),
                Err(Failure::Retry { error, after }) => (error, after),
                Err(failure) => return Err(failure.into_error()),
            };
            match backoff.next(after) {
                Some(wait) => {
                    tracing::debug!(wait_ms = wait.as_millis() as u64, "will try again: {error}");
                    tokio::time::sleep(wait).await;
                }
                None => return Err(error),
            }
        }
    }

    /// One attempt, with as many rounds as its authorisation needs. A `stream` can be sent only once.
    pub(crate) async fn attempt(
        &self,
        call: &Call<'_>,
        mut stream: Option<(reqwest::Body, Arc<body::Activity>)>,
    ) -> Result<Response, Failure> {
        let client = self.client(&call.endpoint.registry, &call.endpoint.host).map_err(Failure::Final)?;
        let mut session = Session::new(self, call.endpoint, call.scopes.clone());
        let streamed = stream.is_some();
        for _ in 0..AUTH_ROUNDS_MAX {
            let same_origin = is_own(call.endpoint, &call.url);
            let grant = session.grant().await?;
            let mut request =
                client.request(call.method.clone(), call.url.clone()).headers(call.headers.clone());
            if same_origin && let Some(header) = &grant.header {
                request = request.header(AUTHORIZATION, header.clone());
            }
            let mut response = match stream.take() {
                Some((body, activity)) => self.watch(call, request.body(body), &activity).await?,
                None => self.send(call, request.body(call.body.clone())).await?,
            };
            let status = response.status().as_u16();
            tracing::debug!(method = %call.method, host = call.url.host_str(), path = call.url.path(), status);
            if response.status().is_success() {
                session.accepted();
                return Ok(response);
            }
            if !matches!(status, 401 | 403) || !same_origin {
                return Err(self.classify(call, response).await);
            }
            let headers = response.headers().clone();
            let said = said(&mut response).await;
            let again = session.refused(grant, &headers, status).await;
            let kind = if status == 401 { Kind::Unauthorized } else { Kind::Forbidden };
            let error = Error::new(kind, call.action, call.subject).with_status(status).with_said(said);
            let error = session.explain(error);
            match again {
                true if streamed => return Err(Failure::Reauthorised(error)),
                true => {}
                false => return Err(Failure::Final(error)),
            }
        }
        let why = "it keeps asking for other authorisation".to_owned();
        Err(Failure::Final(Error::new(Kind::Protocol(why), call.action, call.subject)))
    }

    async fn send(&self, call: &Call<'_>, request: reqwest::RequestBuilder) -> Result<Response, Failure> {
        // A pushed manifest may be checked against many blobs before the answer comes.
        let limits = &self.config.limits;
        let limit = if call.method == Method::PUT { limits.commit_timeout } else { limits.stall_timeout };
        match tokio::time::timeout(limit, request.send()).await {
            Ok(result) => result.map_err(|error| self.broken(call, error)),
            Err(_) => Err(self.stalled(call, limit)),
        }
    }

    /// Sends a streamed body and gives up when it stands still.
    async fn watch(
        &self,
        call: &Call<'_>,
        request: reqwest::RequestBuilder,
        activity: &body::Activity,
    ) -> Result<Response, Failure> {
        let limits = &self.config.limits;
        let mut sending = Box::pin(request.send());
        let result = loop {
            let limit = if activity.is_complete() { limits.commit_timeout } else { limits.stall_timeout };
            let Some(left) = limit.checked_sub(activity.idle()).filter(|left| !left.is_zero()) else {
                return Err(self.stalled(call, limit));
            };
            if let Ok(result) = tokio::time::timeout(left, &mut sending).await {
                break result;
            }
        };
        if let Some(why) = activity.failure() {
            return Err(Failure::Final(Error::new(Kind::Local(why), call.action, call.subject)));
        }
        result.map_err(|error| self.broken(call, error))
    }

    fn stalled(&self, call: &Call<'_>, limit: Duration) -> Failure {
        let why = format!("no answer within {} s", limit.as_secs());
        let error = Error::new(Kind::Connect(why), call.action, call.subject);
        Failure::Retry { error, after: None }
    }

    /// Sorts out a request without an answer.
    fn broken(&self, call: &Call<'_>, error: reqwest::Error) -> Failure {
        let registry = &call.endpoint.registry;
        if error.is_redirect() || error.is_builder() {
            let kind = Kind::Protocol(chain(error));
            return Failure::Final(Error::new(kind, call.action, call.subject));
        }
        let why = chain(error);
        let hint = if why.contains("InvalidContentType") || why.contains("corrupt message") {
            Some(format!(
                "the server speaks plain http: configure \"http: true\" for {registry} if that is intended"
            ))
        } else if why.contains("UnknownIssuer") || why.contains("CaUsedAsEndEntity") {
            Some(format!(
                "the certificate's issuer is not trusted: configure the CA certificate under \"ca\" for {registry}"
            ))
        } else if why.contains("invalid peer certificate") || why.contains("certificate") {
            Some(format!(
                "check the server's certificate for {registry}, or the client's under \"clientCert\""
            ))
        } else {
            None
        };
        if let Some(hint) = hint {
            return Failure::Final(Error::new(Kind::Tls(why), call.action, call.subject).with_hint(hint));
        }
        let speaks_tls =
            call.endpoint.http && (why.contains("invalid HTTP version") || why.contains("parsed"));
        let error = Error::new(Kind::Connect(why), call.action, call.subject);
        let error = if speaks_tls { error.with_hint(tls_hint(registry)) } else { error };
        Failure::Retry { error, after: None }
    }

    /// Sorts out an answer that is neither success nor about authorisation.
    async fn classify(&self, call: &Call<'_>, mut response: Response) -> Failure {
        let status = response.status().as_u16();
        let after = retry::retry_after(response.headers());
        let said = said(&mut response).await;
        let kind = match status {
            404 => Kind::NotFound,
            401 => Kind::Unauthorized,
            403 => Kind::Forbidden,
            _ if is_retryable_status(status) => Kind::Server,
            _ => Kind::Refused,
        };
        let message = said.message.clone().unwrap_or_default();
        let hint = match status {
            400 if call.endpoint.http && message.contains("HTTPS") => Some(tls_hint(&call.endpoint.registry)),
            413 => Some("a proxy before the registry limits the size of requests".to_owned()),
            429 => Some("the registry limits the rate of requests; logging in often raises it".to_owned()),
            _ => None,
        };
        let mut error = Error::new(kind, call.action, call.subject).with_status(status).with_said(said);
        if let Some(hint) = hint {
            error = error.with_hint(hint);
        }
        match error.class() {
            Class::Unavailable => Failure::Retry { error, after },
            _ => Failure::Final(error),
        }
    }

    /// The client for a token server: its own settings, else those of the registry that names it.
    pub(crate) fn client_for_token(
        &self,
        endpoint: &Endpoint,
        host: &str,
    ) -> Result<reqwest::Client, Failure> {
        let own = self.config.hosts.hosts.contains_key(host);
        let settings = if own { host } else { &endpoint.registry };
        self.client(settings, host).map_err(Failure::Final)
    }

    fn client(&self, settings: &str, host: &str) -> Result<reqwest::Client, Error> {
        let HostConfig { insecure, ca, client_cert, client_key, .. } = self.config.hosts.get(settings);
        let tls = Tls { insecure, ca, cert: client_cert, key: client_key, direct: is_loopback(host) };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&tls) {
            return Ok(client.clone());
        }
        let client = self.build(settings, &tls)?;
        clients.insert(tls, client.clone());
        Ok(client)
    }

    fn build(&self, registry: &str, tls: &Tls) -> Result<reqwest::Client, Error> {
        let read = |path: &PathBuf| {
            let why = |error| format!("cannot read {}: {error}", path.display());
            std::fs::read(path).map_err(|error| Error::config(registry, why(error)))
        };
        let mut roots = crate::net::certificates(&self.config.authorities)?;
        for path in &tls.ca {
            // Where settings come as one document, such as a Helm value, the certificates stand in it.
            let inline = path.to_str().filter(|text| text.trim_start().starts_with("-----BEGIN"));
            let shown =
                if inline.is_some() { "the PEM text of `ca`".to_owned() } else { path.display().to_string() };
            let bad = |what: &str| Error::config(registry, format!("{shown} {what}"));
            let pem = inline.map_or_else(|| read(path), |text| Ok(text.as_bytes().to_vec()))?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem)
                .map_err(|_| bad("is not a PEM file of certificates"))?;
            if certificates.is_empty() {
                return Err(bad("has no certificate"));
            }
            roots.extend(certificates);
        }
        let identity = match (&tls.cert, &tls.key) {
            (None, None) => None,
            (Some(cert), Some(key)) => {
                let pem = [read(cert)?, b"\n".to_vec(), read(key)?].concat();
                let why = "clientCert and clientKey are not a PEM certificate and its private key";
                let identity = reqwest::Identity::from_pem(&pem);
                Some(identity.map_err(|_| Error::config(registry, why))?)
            }
            _ => return Err(Error::config(registry, "clientCert and clientKey must be given together")),
        };
        let builder = || {
            let mut builder = reqwest::Client::builder()
                .user_agent(&self.config.user_agent)
                .connect_timeout(self.config.limits.connect_timeout)
                .tls_danger_accept_invalid_certs(tls.insecure)
                .redirect(reqwest::redirect::Policy::custom(redirect));
            if tls.direct {
                // Loopback means this machine, whatever proxy is set.
                builder = builder.no_proxy();
            } else if let Some(proxy) = &self.config.proxy {
                builder = proxy.apply(builder)?;
            }
            if let Some(identity) = &identity {
                builder = builder.identity(identity.clone());
            }
            Ok::<_, Error>(builder)
        };
        // A machine without any CA certificates can still reach what it needs none of the platform's for.
        let client = match builder()?.tls_certs_merge(roots.clone()).build() {
            Ok(client) => Ok(client),
            Err(error) => {
                tracing::debug!("without the platform's CA certificates: {}", chain(error));
                builder()?.tls_certs_only(roots).build()
            }
        };
        client.map_err(|error| Error::config(registry, format!("cannot set up TLS: {}", chain(error))))
    }
}

fn tls_hint(registry: &str) -> String {
    format!("the server may speak TLS: configure \"http: false\" for {registry}")
}

/// Whether `url` is the registry itself, and not a place that it sends to.
fn is_own(endpoint: &Endpoint, url: &Url) -> bool {
    Url::parse(&endpoint.origin()).is_ok_and(|own| own.origin() == url.origin())
}

async fn said(response: &mut Response) -> Said {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    Said::parse(&read_some(response, ERROR_BODY_BYTES_MAX).await, &kind)
}

/// Follows redirects (registries send blob readers to object stores), never from TLS to plain http.
fn redirect(attempt: reqwest::redirect::Attempt<'_>) -> reqwest::redirect::Action {
    let downgrade = attempt.previous().last().is_some_and(|from| from.scheme() == "https")
        && attempt.url().scheme() != "https";
    if downgrade {
        return attempt.error("it redirects from https to plain http");
    }
    if attempt.previous().len() > REDIRECTS_MAX {
        return attempt.error("it redirects too often");
    }
    attempt.follow()
}
