//! Sending the bytes of one blob: sessions, streams, going on after a break.

use lapstrake_oci::Descriptor;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE};
use reqwest::{Method, Response, Url};

use crate::client::call;
use crate::error::Kind;
use crate::hosts::Endpoint;
use crate::limits::MONOLITHIC_BYTES_MAX;
use crate::push::location;
use crate::retry::Backoff;
use crate::token::Scopes;
use crate::transport::{Call, Failure, Transport};
use crate::{BlobSource, Class, Error, Progress, body};

/// A blob on its way out.
pub(crate) struct Upload<'a> {
    pub(crate) transport: &'a Transport,
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) blob: &'a Descriptor,
    pub(crate) source: &'a BlobSource,
    pub(crate) progress: &'a Progress,
    pub(crate) action: &'a str,
    pub(crate) subject: &'a str,
    /// Where the open session goes on; `None` before it is opened and after it was lost.
    pub(crate) session: Option<Url>,
    /// Bytes that the session has.
    pub(crate) from: u64,
}

impl Upload<'_> {
    fn error(&self, kind: Kind) -> Error {
        Error::new(kind, self.action, self.subject)
    }

    fn call(&self, method: Method, url: Url) -> Result<Call<'_>, Error> {
        let scopes = Scopes::push(&self.endpoint.repository);
        let mut call = call(self.endpoint, method, "blobs/uploads/", scopes, self.action, self.subject)?;
        call.url = url;
        Ok(call)
    }

    /// Sends everything, with as many sessions and attempts as it takes within the limits.
    pub(crate) async fn run(&mut self) -> Result<(), Error> {
        let limits = &self.transport.config.limits;
        let mut backoff = Backoff::new(limits, limits.attempts_max);
        let mut resumed = false;
        loop {
            let before = self.from;
            let failure = match self.step().await {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            let (error, after) = match failure {
                Failure::Retry { error, after } => (error, after),
                Failure::Reauthorised(error) => (error, None),
                // A session that went on after a break may hold bytes twice: once more from the start.
                Failure::Final(error) if error.code() == Some("DIGEST_INVALID") && resumed => {
                    resumed = false;
                    self.restart().await;
                    continue;
                }
                Failure::Final(error) => return Err(self.explain(error)),
            };
            self.find_position().await?;
            resumed = resumed || self.from > 0;
            if self.from > before {
                backoff.progress();
            }
            match backoff.next(after) {
                Some(wait) => {
                    tracing::debug!(from = self.from, "upload will go on: {error}");
                    tokio::time::sleep(wait).await;
                }
                None => return Err(error),
            }
            if self.exists().await? {
                // The broken answer was the last one: the blob had been accepted.
                return Ok(());
            }
        }
    }

    /// One session, or what is left of it.
    async fn step(&mut self) -> Result<(), Failure> {
        let session = match self.session.clone() {
            Some(session) => session,
            None => self.open().await.map_err(Failure::Final)?,
        };
        let total = self.blob.size;
        let mut commit = session.clone();
        if self.from == 0 && total <= MONOLITHIC_BYTES_MAX {
            commit.query_pairs_mut().append_pair("digest", &self.blob.digest.to_string());
            self.send(Method::PUT, commit).await?;
            return Ok(());
        }
        if self.from < total {
            let response = self.send(Method::PATCH, session).await?;
            self.from = received(&response).unwrap_or(total);
            if let Some(next) = location(&response) {
                self.session = Some(next.clone());
                commit = next;
            }
            if self.from != total {
                let why = "the registry took only a part".to_owned();
                let kind = Kind::Broken { done: self.from, total, why };
                return Err(Failure::Retry { error: self.error(kind), after: None });
            }
        }
        commit.query_pairs_mut().append_pair("digest", &self.blob.digest.to_string());
        let call = self.call(Method::PUT, commit).map_err(Failure::Final)?;
        // An attempt, not a call: after a break it must first be known what the registry has.
        self.transport.attempt(&call, None).await.map(|_| ())
    }

    async fn open(&mut self) -> Result<Url, Error> {
        let scopes = Scopes::push(&self.endpoint.repository);
        let call = call(self.endpoint, Method::POST, "blobs/uploads/", scopes, self.action, self.subject)?;
        let response = self.transport.call(&call).await?;
        let none = || self.error(Kind::Protocol("an upload was opened without a Location".to_owned()));
        let session = location(&response).ok_or_else(none)?;
        self.session = Some(session.clone());
        self.from = 0;
        Ok(session)
    }

    /// Streams the bytes that are missing.
    async fn send(&self, method: Method, url: Url) -> Result<Response, Failure> {
        let total = self.blob.size;
        let mut call = self.call(method, url).map_err(Failure::Final)?;
        let mut header = |name, text: String| {
            call.headers.extend(HeaderValue::from_str(&text).ok().map(|value| (name, value)));
        };
        header(CONTENT_TYPE, "application/octet-stream".to_owned());
        header(CONTENT_LENGTH, (total - self.from).to_string());
        if self.from > 0 {
            header(CONTENT_RANGE, format!("{}-{}", self.from, total - 1));
        }
        let opened = body::upload(self.source, self.from, total, self.progress).await;
        let local = |error| self.error(Kind::Local(format!("cannot open the blob: {error}")));
        let opened = opened.map_err(|error| Failure::Final(local(error)))?;
        self.transport.attempt(&call, Some(opened)).await
    }

    /// Asks how much of the session arrived; a session that is gone is opened anew.
    async fn find_position(&mut self) -> Result<(), Error> {
        let Some(session) = self.session.clone() else { return Ok(()) };
        let call = self.call(Method::GET, session)?;
        match self.transport.call(&call).await {
            Ok(response) => {
                self.from = received(&response).unwrap_or(0).min(self.blob.size);
                self.session = location(&response).or(self.session.take());
                Ok(())
            }
            Err(error) if matches!(error.class(), Class::NotFound | Class::Invalid) => {
                self.session = None;
                self.from = 0;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the registry has the blob although it did not say so. Asked only when no session is left.
    async fn exists(&self) -> Result<bool, Error> {
        if self.session.is_some() {
            return Ok(false);
        }
        let scopes = Scopes::push(&self.endpoint.repository);
        let tail = format!("blobs/{}", self.blob.digest);
        let call = call(self.endpoint, Method::HEAD, &tail, scopes, self.action, self.subject)?;
        match self.transport.call(&call).await {
            Ok(_) => Ok(true),
            Err(error) if error.class() == Class::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn restart(&mut self) {
        if let Some(session) = self.session.take() {
            self.cancel(session).await;
        }
        self.from = 0;
    }

    /// Gives a session back. The registry also does it by itself after a while.
    pub(crate) async fn cancel(&self, session: Url) {
        if let Ok(call) = self.call(Method::DELETE, session) {
            self.transport.attempt(&call, None).await.ok(); // best effort
        }
    }

    /// A refused digest means that the bytes of this side are not what their descriptor says.
    fn explain(&self, error: Error) -> Error {
        match error.code() {
            Some("DIGEST_INVALID") => {
                let kind = Kind::Digest {
                    expected: self.blob.digest.to_string(),
                    got: "another digest, says the registry".to_owned(),
                };
                self.error(kind).with_status(error.status().unwrap_or(400))
            }
            Some("SIZE_INVALID") => error.with_hint("the blob's bytes do not fit its descriptor"),
            _ => error,
        }
    }
}

/// The bytes that a session has by its `Range: 0-N` header (N is the last one's offset).
fn received(response: &Response) -> Option<u64> {
    let text = response.headers().get(RANGE)?.to_str().ok()?;
    let text = text.trim().strip_prefix("bytes=").unwrap_or(text.trim());
    let (start, last) = text.split_once('-')?;
    let (start, last) = (start.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
    // `0-0` is one byte by the letter and none at all in the answer of a registry to a fresh session.
    (start == 0).then(|| if last == 0 { 0 } else { last + 1 })
}
