use std::fmt;
use std::future::Future;
use std::sync::Arc;

use lapstrake_oci::Reference;
use reqwest::Method;
use reqwest::header::HeaderMap;
use tokio_util::sync::CancellationToken;

use crate::error::Kind;
use crate::hosts::{Endpoint, HostsConfig};
use crate::limits::Limits;
use crate::token::Scopes;
use crate::transport::{Call, Transport};
use crate::{Class, Credentials, Error, Proxy};

/// What a client is made of.
#[derive(Debug, Clone)]
pub struct Config {
    /// Settings per registry host.
    pub hosts: HostsConfig,
    /// What may be shown to registries.
    pub credentials: Credentials,
    /// PEM text of authorities that are trusted for all registries, beside the machine's and a host's own.
    pub authorities: String,
    /// Proxies; those of the environment where there is none.
    pub proxy: Option<Proxy>,
    /// `User-Agent` of all requests.
    pub user_agent: String,
    /// Bounds of waits, retries and parallel requests.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hosts: HostsConfig::default(),
            credentials: Credentials::none(),
            authorities: String::new(),
            proxy: None,
            user_agent: concat!("lapstrake/", env!("CARGO_PKG_VERSION")).to_owned(),
            limits: Limits::default(),
        }
    }
}

/// A client of any number of registries. Clones share connections, tokens and limits.
///
/// All methods may be dropped at any time; that ends their requests.
#[derive(Clone)]
pub struct Client {
    pub(crate) transport: Arc<Transport>,
    cancel: Option<CancellationToken>,
}

impl Client {
    /// A client; files that the configuration names are read when a registry that needs them is asked.
    pub fn new(config: Config) -> Self {
        Self { transport: Arc::new(Transport::new(config)), cancel: None }
    }

    /// The same client, whose methods end with [`Class::Canceled`](crate::Class) once `token` is cancelled.
    pub fn with_cancel(&self, token: CancellationToken) -> Self {
        Self { transport: Arc::clone(&self.transport), cancel: Some(token) }
    }

    /// A client like this one that shows other credentials.
    pub fn with_credentials(&self, credentials: Credentials) -> Self {
        let config = Config { credentials, ..self.transport.config.clone() };
        Self { transport: Arc::new(self.transport.beside(config)), cancel: self.cancel.clone() }
    }

    /// A client like this one that reaches a registry without TLS, or without checking its certificate where the
    /// settings ask for TLS.
    pub fn with_insecure(&self, registry: &str) -> Self {
        let mut config = self.transport.config.clone();
        let mut host = config.hosts.get(registry);
        host.insecure = true;
        host.http.get_or_insert(true);
        config.hosts.hosts.insert(registry.to_owned(), host);
        Self { transport: Arc::new(self.transport.beside(config)), cancel: self.cancel.clone() }
    }

    /// Runs a whole method: its turn at the registry, its end by cancellation.
    pub(crate) async fn run<T>(
        &self,
        registry: &str,
        action: &str,
        subject: &str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let work = async {
            let _turn = self.transport.turn(registry).await;
            work.await
        };
        match &self.cancel {
            None => work.await,
            Some(token) => tokio::select! {
                biased;
                () = token.cancelled() => Err(Error::new(Kind::Canceled, action, subject)),
                result = work => result,
            },
        }
    }

    /// Where a name is pulled from, in order.
    pub(crate) fn pull_endpoints(&self, name: &Reference) -> Result<Vec<Endpoint>, Error> {
        self.transport.config.hosts.endpoints(name.registry(), name.repository(), true)
    }

    /// Where a name is pushed to.
    pub(crate) fn push_endpoint(&self, name: &Reference) -> Result<Endpoint, Error> {
        let endpoints = self.transport.config.hosts.endpoints(name.registry(), name.repository(), false)?;
        let none = || Error::config(name.registry(), "it has no endpoint");
        endpoints.into_iter().next().ok_or_else(none)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("registry::Client")
    }
}

/// A request about `tail` of the endpoint's repository.
pub(crate) fn call<'a>(
    endpoint: &'a Endpoint,
    method: Method,
    tail: &str,
    scopes: Scopes,
    action: &'a str,
    subject: &'a str,
) -> Result<Call<'a>, Error> {
    Ok(Call {
        endpoint,
        method,
        url: endpoint.url(tail)?,
        headers: HeaderMap::new(),
        body: bytes::Bytes::new(),
        scopes,
        action,
        subject,
    })
}

/// The mirrors that failed so far; their failures go along with the registry's own.
#[derive(Debug, Default)]
pub(crate) struct Tried(Vec<String>);

impl Tried {
    /// Takes a failure in. `Ok` means that the next endpoint is to be tried.
    pub(crate) fn failed(&mut self, endpoint: &Endpoint, error: Error) -> Result<(), Error> {
        let ours = matches!(error.class(), Class::Local | Class::Canceled);
        if endpoint.is_mirror() && !ours {
            tracing::warn!(mirror = endpoint.host, "mirror failed, trying the next: {error}");
            self.0.push(format!("mirror {} failed: {error}", endpoint.host));
            return Ok(());
        }
        Err(error.with_also(std::mem::take(&mut self.0)))
    }
}
