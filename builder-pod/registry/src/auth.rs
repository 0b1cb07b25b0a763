//! What to show to a registry: remembered challenges, cached tokens, the credential that works.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};

use crate::challenge::{self, Challenge};
use crate::credentials::{Credential, Secret};
use crate::error::{Kind, Said, chain};
use crate::hosts::Endpoint;
use crate::keeper::{Kept, TokenWanted};
use crate::limits::{ERROR_BODY_BYTES_MAX, TOKEN_BODY_BYTES_MAX};
use crate::token::{Scopes, Token};
use crate::transport::{Failure, Transport, is_retryable_status, read_some};
use crate::{Error, Redacted, retry};

/// Cached tokens at most; the oldest make room.
const TOKENS_MAX: usize = 256;

/// What was learnt about registries so far.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    challenges: Mutex<HashMap<String, Challenge>>,
    picks: Mutex<HashMap<(String, String), usize>>,
    tokens: Mutex<Vec<Slot>>,
}

#[derive(Debug, Clone)]
struct Slot {
    origin: String,
    credential: Option<Arc<Credential>>,
    scopes: Scopes,
    /// Locked while the token is fetched, so that many requests wait for one fetch.
    token: Arc<tokio::sync::Mutex<Option<Token>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    fn challenge(&self, origin: &str) -> Option<Challenge> {
        lock(&self.challenges).get(origin).cloned()
    }

    /// Remembers how an origin wants to be asked; of several ways the strongest.
    fn learn(&self, origin: &str, headers: &HeaderMap) -> bool {
        let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let mut found: Vec<Challenge> = texts.flat_map(challenge::parse).collect();
        found.sort_by_key(|challenge| matches!(challenge, Challenge::Basic));
        match found.into_iter().next() {
            Some(challenge) => {
                lock(&self.challenges).insert(origin.to_owned(), challenge);
                true
            }
            None => false,
        }
    }

    fn slot(&self, origin: &str, credential: Option<&Arc<Credential>>, scopes: &Scopes) -> Slot {
        let mut slots = lock(&self.tokens);
        let found = slots.iter().find(|slot| {
            slot.origin == origin && slot.credential.as_ref() == credential && slot.scopes.covers(scopes)
        });
        if let Some(slot) = found {
            return slot.clone();
        }
        if slots.len() >= TOKENS_MAX {
            slots.remove(0);
        }
        let slot = Slot {
            origin: origin.to_owned(),
            credential: credential.cloned(),
            scopes: scopes.clone(),
            token: Arc::default(),
        };
        slots.push(slot.clone());
        slot
    }
}

/// What one request shows, and whether it may be stale.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) header: Option<HeaderValue>,
    /// The slot of a token that was fetched for an earlier request.
    cached: Option<Slot>,
}

/// The way of one request through challenges and credentials.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    transport: &'a Transport,
    endpoint: &'a Endpoint,
    scopes: Scopes,
    candidates: Option<Vec<Arc<Credential>>>,
    pick: usize,
    tried: usize,
}

impl<'a> Session<'a> {
    pub(crate) fn new(transport: &'a Transport, endpoint: &'a Endpoint, scopes: Scopes) -> Self {
        let pick = lock(&transport.memory.picks).get(&Self::key(endpoint)).copied().unwrap_or(0);
        Self { transport, endpoint, scopes, candidates: None, pick, tried: 0 }
    }

    fn key(endpoint: &Endpoint) -> (String, String) {
        (endpoint.origin(), endpoint.repository.clone())
    }

    async fn candidates(&mut self) -> &[Arc<Credential>] {
        if self.candidates.is_none() {
            let credentials = &self.transport.config.credentials;
            let found = credentials.candidates(&self.endpoint.registry, &self.endpoint.repository).await;
            self.candidates = Some(found);
        }
        self.candidates.as_deref().unwrap_or_default()
    }

    async fn current(&mut self) -> Option<Arc<Credential>> {
        let pick = self.pick;
        let candidates = self.candidates().await;
        candidates.get(pick % candidates.len().max(1)).cloned()
    }

    /// What to show with the next attempt. Fails where no token can be had with any credential.
    pub(crate) async fn grant(&mut self) -> Result<Grant, Failure> {
        let origin = self.endpoint.origin();
        let Some(challenge) = self.transport.memory.challenge(&origin) else {
            return Ok(Grant { header: None, cached: None });
        };
        loop {
            let credential = self.current().await;
            let refused = match (&challenge, credential.as_deref().map(|c| &c.secret)) {
                (_, Some(Secret::Registry { token })) => {
                    return Ok(Grant { header: bearer(token), cached: None });
                }
                (Challenge::Basic, Some(Secret::Basic { username, password })) => {
                    return Ok(Grant { header: basic(username, password), cached: None });
                }
                (Challenge::Basic, None) => return Ok(Grant { header: None, cached: None }),
                (Challenge::Basic, Some(Secret::Kept(keeper))) => {
                    match keeper.0.credentials(&self.endpoint.registry).await {
                        Ok(Some((username, password))) => {
                            return Ok(Grant { header: basic(&username, &password), cached: None });
                        }
                        Ok(None) => {
                            let host = &self.endpoint.registry;
                            let why = format!(
                                "no basic auth credentials for {host}; log in with docker login {host}"
                            );
                            Some(self.denied(Kind::Kept(why), "authenticate to"))
                        }
                        Err(why) => Some(self.denied(Kind::Kept(why), "authenticate to")),
                    }
                }
                (Challenge::Basic, Some(Secret::Identity { .. })) => None,
                (Challenge::Bearer { realm, service, .. }, _) => {
                    match self.token(realm, service.as_deref(), credential.as_ref()).await {
                        Ok(grant) => return Ok(grant),
                        Err(Failure::Final(error)) if error.class() == crate::Class::Denied => Some(error),
                        Err(failure) => return Err(failure),
                    }
                }
            };
            if !self.advance().await {
                let error = match refused {
                    Some(error) => error,
                    None => self.denied(Kind::Unauthorized, "authenticate to"),
                };
                return Err(Failure::Final(self.explain(error)));
            }
        }
    }

    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        credential: Option<&Arc<Credential>>,
    ) -> Result<Grant, Failure> {
        let slot = self.transport.memory.slot(&self.endpoint.origin(), credential, &self.scopes);
        let mut kept = slot.token.lock().await;
        if let Some(token) = kept.as_ref().filter(|token| token.is_fresh()) {
            let header = bearer(&token.value);
            drop(kept);
            return Ok(Grant { header, cached: Some(slot) });
        }
        let secret = credential.map(|credential| &credential.secret);
        let token = match secret {
            Some(Secret::Kept(keeper)) => self.kept_token(keeper, realm, service, &slot.scopes).await?,
            secret => self.transport.fetch_token(self.endpoint, realm, service, &slot.scopes, secret).await?,
        };
        let header = bearer(&token.value);
        *kept = Some(token);
        Ok(Grant { header, cached: None })
    }

    /// A token by the credentials that somebody else keeps: he fetches it, or lends them.
    async fn kept_token(
        &self,
        keeper: &Kept,
        realm: &str,
        service: Option<&str>,
        scopes: &Scopes,
    ) -> Result<Token, Failure> {
        let failed = |why| Failure::Final(self.explain(self.denied(Kind::Kept(why), "authenticate to")));
        let wanted = TokenWanted {
            registry: self.endpoint.registry.clone(),
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scopes: scopes.texts().collect(),
        };
        if let Some(token) = keeper.0.token(&wanted).await.map_err(failed)? {
            return Ok(Token::of(token.value, token.expires_in));
        }
        let lent = keeper.0.credentials(&self.endpoint.registry).await.map_err(failed)?;
        let secret = lent.map(|(username, password)| Secret::Basic { username, password });
        self.transport.fetch_token(self.endpoint, realm, service, scopes, secret.as_ref()).await
    }

    /// Takes a 401 or 403 in; says whether the request may be sent again with something better.
    pub(crate) async fn refused(&mut self, grant: Grant, headers: &HeaderMap, status: u16) -> bool {
        let learnt = self.transport.memory.learn(&self.endpoint.origin(), headers);
        if let Some(slot) = grant.cached {
            // It may have ended early, or lack a right that was given since.
            *slot.token.lock().await = None;
            return true;
        }
        if grant.header.is_none() && status == 401 {
            if learnt {
                // Under Basic without credentials nothing better can be sent.
                let basic =
                    self.transport.memory.challenge(&self.endpoint.origin()) == Some(Challenge::Basic);
                return !basic || !self.candidates().await.is_empty();
            }
            return false;
        }
        grant.header.is_some() && self.advance().await
    }

    /// Goes on to the next credential; false when all were tried.
    async fn advance(&mut self) -> bool {
        self.tried += 1;
        self.pick += 1;
        let tried = self.tried;
        tried < self.candidates().await.len()
    }

    /// Remembers the credential that was accepted.
    pub(crate) fn accepted(&self) {
        if self.tried > 0
            && let Some(candidates) = &self.candidates
        {
            let pick = self.pick % candidates.len().max(1);
            lock(&self.transport.memory.picks).insert(Self::key(self.endpoint), pick);
        }
    }

    fn denied(&self, kind: Kind, action: &str) -> Error {
        Error::new(kind, action, format!("{}/{}", self.endpoint.registry, self.endpoint.repository))
    }

    /// Adds what a person can do about a refusal.
    pub(crate) fn explain(&self, error: Error) -> Error {
        let registry = &self.endpoint.registry;
        let repository = &self.endpoint.repository;
        let keys: Vec<String> = self.candidates.iter().flatten().map(|c| format!("\"{}\"", c.key)).collect();
        let hint = match (keys.is_empty(), error.kind()) {
            (true, _) => format!(
                "no credentials for {registry} are configured; log in or attach a registry secret, \
                 or check the name: many registries deny what does not exist"
            ),
            (false, Kind::Kept(_)) => return error,
            (false, Kind::Forbidden) => format!(
                "the credentials under {} are known but may not do this in {repository}; \
                 give them the right or use others",
                keys.join(", ")
            ),
            (false, _) => format!(
                "the credentials under {} were refused; check user name and password",
                keys.join(", ")
            ),
        };
        error.with_hint(hint)
    }
}

fn bearer(token: &Redacted) -> Option<HeaderValue> {
    sensitive(format!("Bearer {}", token.reveal()))
}

fn basic(username: &str, password: &Redacted) -> Option<HeaderValue> {
    let pair = format!("{username}:{}", password.reveal());
    sensitive(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)))
}

fn sensitive(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

impl Transport {
    /// Asks a token server: by GET, or by OAuth2 POST for an identity token.
    async fn fetch_token(
        &self,
        endpoint: &Endpoint,
        realm: &str,
        service: Option<&str>,
        scopes: &Scopes,
        secret: Option<&Secret>,
    ) -> Result<Token, Failure> {
        let subject = format!("{}/{}", endpoint.registry, endpoint.repository);
        let protocol = |why: &str| {
            let why = format!("its token server's {why}");
            Failure::Final(Error::new(Kind::Protocol(why), "authenticate to", &subject))
        };
        let mut url = reqwest::Url::parse(realm).map_err(|_| protocol("address is not valid"))?;
        let Some(host) = url.host_str().map(str::to_owned) else {
            return Err(protocol("address has no host"));
        };
        let host = url.port().map_or(host.clone(), |port| format!("{host}:{port}"));
        if !(url.scheme() == "https" || (url.scheme() == "http" && (endpoint.http || secret.is_none()))) {
            return Err(protocol("address is plain http, which credentials are not sent over"));
        }
        let client = self.client_for_token(endpoint, &host)?;
        let mut secrets: Vec<&str> = Vec::new();
        let request = match secret {
            Some(Secret::Identity { token }) => {
                secrets.push(token.reveal());
                let scope = scopes.texts().collect::<Vec<_>>().join(" ");
                let mut form = vec![
                    ("grant_type", "refresh_token"),
                    ("refresh_token", token.reveal()),
                    ("client_id", "lapstrake"),
                    ("scope", &scope),
                ];
                form.extend(service.map(|service| ("service", service)));
                client
                    .post(url)
                    .header("content-type", "application/x-www-form-urlencoded")
                    .body(form_urlencoded(&form))
            }
            _ => {
                {
                    let mut query = url.query_pairs_mut();
                    query.extend_pairs(service.map(|service| ("service", service)));
                    query.extend_pairs(scopes.texts().map(|scope| ("scope", scope)));
                }
                let request = client.get(url);
                match secret {
                    Some(Secret::Basic { username, password }) => {
                        secrets.push(password.reveal());
                        match basic(username, password) {
                            Some(header) => request.header(AUTHORIZATION, header),
                            None => request,
                        }
                    }
                    _ => request,
                }
            }
        };
        let connect = |why| {
            let error = Error::new(Kind::Connect(why), "authenticate to", &subject);
            Failure::Retry { error: error.with_hint(format!("the token server is {host}")), after: None }
        };
        let sent = tokio::time::timeout(self.config.limits.stall_timeout, request.send()).await;
        let mut response = match sent {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(connect(chain(error))),
            Err(_) => return Err(connect("no answer from the token server".to_owned())),
        };
        let status = response.status().as_u16();
        if response.status().is_success() {
            let body = read_some(&mut response, TOKEN_BODY_BYTES_MAX).await;
            tracing::debug!(registry = endpoint.registry, server = host, "got a token");
            return Token::parse(&body, jiff::Timestamp::now()).map_err(protocol);
        }
        let after = retry::retry_after(response.headers());
        let kind =
            response.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
        let body = read_some(&mut response, ERROR_BODY_BYTES_MAX).await;
        let said = Said::parse(&body, &kind).without(&secrets);
        let retryable = is_retryable_status(status);
        let refused = matches!(status, 400 | 401 | 403);
        let error = Error::new(Kind::Token { host, refused, retryable }, "authenticate to", &subject)
            .with_status(status)
            .with_said(said);
        Err(if retryable { Failure::Retry { error, after } } else { Failure::Final(error) })
    }
}

fn form_urlencoded(pairs: &[(&str, &str)]) -> String {
    // The query encoding of an address is the form encoding.
    let mut url = reqwest::Url::parse("http://form").expect("a constant address is valid");
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
}
