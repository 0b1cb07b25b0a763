//! Resolving names and reading manifests and blobs.

use std::io;

use bytes::Bytes;
use lapstrake_oci::{Descriptor, Digest, Hasher, Reference, media_type};
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE,
};
use reqwest::{Method, Response};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use crate::client::{Client, Tried, call};
use crate::error::{Kind, chain};
use crate::hosts::Endpoint;
use crate::limits::MANIFEST_BYTES_MAX;
use crate::retry::Backoff;
use crate::token::Scopes;
use crate::{Class, Error, Progress};

/// Everything that is understood, best first.
const ACCEPTED: [&str; 4] =
    [media_type::OCI_INDEX, media_type::OCI_MANIFEST, media_type::DOCKER_INDEX, media_type::DOCKER_MANIFEST];

/// A manifest or index as a registry keeps it. Its digest is over exactly these bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The document.
    pub bytes: Bytes,
    /// What the registry says it is.
    pub media_type: String,
    /// The digest of `bytes`.
    pub digest: Digest,
}

impl Fetched {
    /// The descriptor of the document.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::new(&self.media_type, self.digest, self.bytes.len() as u64)
    }
}

impl Client {
    /// Finds out what a name stands for now, without reading it where the registry can say so.
    ///
    /// A reference with a digest is looked up by it. Mirrors are asked first.
    pub async fn resolve(&self, name: &Reference) -> Result<Descriptor, Error> {
        let (action, subject) = ("resolve", name.to_string());
        let work = async {
            let mut tried = Tried::default();
            for endpoint in self.pull_endpoints(name)? {
                match self.resolve_at(&endpoint, name, action, &subject).await {
                    Ok(found) => return Ok(found),
                    Err(error) => tried.failed(&endpoint, error)?,
                }
            }
            Err(Error::config(name.registry(), "it has no endpoint"))
        };
        self.run(name.registry(), action, &subject, work).await
    }

    /// Finds out how many bytes a blob of `name`'s repository has. Mirrors are asked first.
    pub async fn blob_size(&self, name: &Reference, digest: &Digest) -> Result<u64, Error> {
        let (action, subject) = ("look for blob", format!("{}@{digest}", name.name()));
        let work = async {
            let mut tried = Tried::default();
            for endpoint in self.pull_endpoints(name)? {
                let scopes = Scopes::pull(&endpoint.repository);
                let call =
                    call(&endpoint, Method::HEAD, &format!("blobs/{digest}"), scopes, action, &subject)?;
                match self.transport.call(&call).await {
                    Ok(response) => {
                        let length = response.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok());
                        let untold = || Kind::Protocol("it does not say how long the blob is".to_owned());
                        let length = length.and_then(|text| text.parse().ok());
                        return length.ok_or_else(|| Error::new(untold(), action, subject.clone()));
                    }
                    Err(error) => tried.failed(&endpoint, error)?,
                }
            }
            Err(Error::config(name.registry(), "it has no endpoint"))
        };
        self.run(name.registry(), action, &subject, work).await
    }

    /// Reads a manifest or index, by digest where the reference has one, and checks its digest.
    pub async fn manifest(&self, name: &Reference) -> Result<Fetched, Error> {
        let (action, subject) = ("pull manifest", name.to_string());
        let work = async {
            let mut tried = Tried::default();
            for endpoint in self.pull_endpoints(name)? {
                match self.manifest_at(&endpoint, name, action, &subject).await {
                    Ok(found) => return Ok(found),
                    Err(error) => tried.failed(&endpoint, error)?,
                }
            }
            Err(Error::config(name.registry(), "it has no endpoint"))
        };
        self.run(name.registry(), action, &subject, work).await
    }

    /// Reads a blob of `name`'s repository into `sink`, in order, and flushes it.
    ///
    /// A broken transfer goes on where it broke. The digest is known to be right only when this
    /// returns `Ok`; until then the sink holds unchecked bytes.
    pub async fn pull_blob(
        &self,
        name: &Reference,
        blob: &Descriptor,
        sink: &mut (dyn AsyncWrite + Unpin + Send),
        progress: &Progress,
    ) -> Result<(), Error> {
        self.pull(name, blob, Sink::Async(sink), progress).await
    }

    /// As [`pull_blob`](Self::pull_blob), giving each piece to `write`, which should not block for long.
    pub async fn pull_blob_with(
        &self,
        name: &Reference,
        blob: &Descriptor,
        mut write: impl FnMut(&[u8]) -> io::Result<()> + Send,
        progress: &Progress,
    ) -> Result<(), Error> {
        self.pull(name, blob, Sink::Call(&mut write), progress).await
    }

    async fn pull(
        &self,
        name: &Reference,
        blob: &Descriptor,
        sink: Sink<'_>,
        progress: &Progress,
    ) -> Result<(), Error> {
        let (action, subject) = ("pull blob", format!("{}@{}", name.name(), blob.digest));
        let work = async {
            let mut tried = Tried::default();
            let total = blob.size;
            let mut download = Download {
                client: self,
                blob,
                sink,
                progress,
                hasher: Hasher::new(),
                done: 0,
                total,
                action,
                subject: &subject,
            };
            for endpoint in self.pull_endpoints(name)? {
                match download.run(&endpoint).await {
                    Ok(()) => return download.finish().await,
                    Err(error) => tried.failed(&endpoint, error)?,
                }
            }
            Err(Error::config(name.registry(), "it has no endpoint"))
        };
        self.run(name.registry(), action, &subject, work).await
    }

    async fn resolve_at(
        &self,
        endpoint: &Endpoint,
        name: &Reference,
        action: &str,
        subject: &str,
    ) -> Result<Descriptor, Error> {
        match self.ask_manifest(Method::HEAD, endpoint, name, action, subject).await {
            Ok(response) => {
                let header = |key: &str| response.headers().get(key).and_then(|v| v.to_str().ok());
                let digest =
                    header("docker-content-digest").and_then(|text| text.parse().ok()).or(name.digest());
                // An answer to HEAD has no body: its length stands in the header alone.
                let size = header(CONTENT_LENGTH.as_str()).and_then(|text| text.parse::<u64>().ok());
                let kind = header(CONTENT_TYPE.as_str()).map(essence).filter(|kind| ACCEPTED.contains(kind));
                if let (Some(digest), Some(size), Some(kind)) = (digest, size.filter(|s| *s > 0), kind) {
                    check_digest(name, digest, action, subject)?;
                    return Ok(Descriptor::new(kind, digest, size));
                }
            }
            Err(error) if error.is_retryable() || endpoint.is_mirror() => return Err(error),
            // A refused HEAD has no text that says why, and some registries know only GET.
            Err(error) => tracing::debug!("asking again by GET: {error}"),
        }
        Ok(self.manifest_at(endpoint, name, action, subject).await?.descriptor())
    }

    async fn manifest_at(
        &self,
        endpoint: &Endpoint,
        name: &Reference,
        action: &str,
        subject: &str,
    ) -> Result<Fetched, Error> {
        let limits = &self.transport.config.limits;
        let mut backoff = Backoff::new(limits, limits.attempts_max);
        loop {
            let mut response = self.ask_manifest(Method::GET, endpoint, name, action, subject).await?;
            let media_type = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
            let media_type = media_type.map(essence).unwrap_or("").to_owned();
            let announced = response.headers().get("docker-content-digest").and_then(|v| v.to_str().ok());
            let announced = announced.and_then(|text| text.parse::<Digest>().ok());
            let read = read_manifest(&mut response, limits.stall_timeout).await;
            let error = match read {
                Ok(bytes) => {
                    let digest = Digest::of(&bytes);
                    check_digest(name, digest, action, subject)?;
                    if let Some(announced) = announced.filter(|announced| *announced != digest) {
                        return Err(mismatch(announced, digest, action, subject));
                    }
                    let media_type = sniff(&bytes).unwrap_or(media_type);
                    return Ok(Fetched { bytes, media_type, digest });
                }
                Err(kind) => Error::new(kind, action, subject),
            };
            match backoff.next(None).filter(|_| error.is_retryable()) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(error),
            }
        }
    }

    async fn ask_manifest(
        &self,
        method: Method,
        endpoint: &Endpoint,
        name: &Reference,
        action: &str,
        subject: &str,
    ) -> Result<Response, Error> {
        let target = match (name.digest(), name.tag_or_latest()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or("latest").to_owned(),
        };
        let scopes = Scopes::pull(&endpoint.repository);
        let mut call = call(endpoint, method, &format!("manifests/{target}"), scopes, action, subject)?;
        for kind in ACCEPTED {
            call.headers.append(ACCEPT, HeaderValue::from_static(kind));
        }
        self.transport.call(&call).await.map_err(|error| match (error.class(), error.code()) {
            (Class::NotFound, Some("NAME_UNKNOWN")) => {
                error.with_hint(format!("{} has no repository {}", endpoint.registry, endpoint.repository))
            }
            (Class::NotFound, _) => {
                error.with_hint("there is no such image: check its name and tag, and that it was pushed")
            }
            _ => error,
        })
    }
}

fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or("").trim()
}

/// The media type that a document gives itself, which counts more than the header.
fn sniff(bytes: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Peek {
        #[serde(rename = "mediaType")]
        media_type: Option<String>,
    }
    serde_json::from_slice::<Peek>(bytes).ok()?.media_type
}

fn check_digest(name: &Reference, got: Digest, action: &str, subject: &str) -> Result<(), Error> {
    match name.digest() {
        Some(expected) if expected != got => Err(mismatch(expected, got, action, subject)),
        _ => Ok(()),
    }
}

fn mismatch(expected: Digest, got: Digest, action: &str, subject: &str) -> Error {
    let kind = Kind::Digest { expected: expected.to_string(), got: got.to_string() };
    Error::new(kind, action, subject).with_hint("the registry or something before it changed the bytes")
}

async fn read_manifest(response: &mut Response, stall: std::time::Duration) -> Result<Bytes, Kind> {
    let total = response.content_length().unwrap_or(0);
    let mut bytes = Vec::new();
    loop {
        let done = bytes.len() as u64;
        let broken = |why: String| Kind::Broken { done, total, why };
        match tokio::time::timeout(stall, response.chunk()).await {
            Err(_) => return Err(broken(format!("no byte within {} s", stall.as_secs()))),
            Ok(Err(error)) => return Err(broken(chain(error))),
            Ok(Ok(None)) => return Ok(bytes.into()),
            Ok(Ok(Some(chunk))) if done + chunk.len() as u64 > MANIFEST_BYTES_MAX => {
                return Err(Kind::Protocol(format!(
                    "the manifest is larger than {MANIFEST_BYTES_MAX} bytes"
                )));
            }
            Ok(Ok(Some(chunk))) => bytes.extend_from_slice(&chunk),
        }
    }
}

enum Sink<'a> {
    Async(&'a mut (dyn AsyncWrite + Unpin + Send)),
    Call(&'a mut (dyn FnMut(&[u8]) -> io::Result<()> + Send)),
}

impl Sink<'_> {
    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Async(sink) => sink.write_all(bytes).await,
            Self::Call(write) => write(bytes),
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Async(sink) => sink.flush().await,
            Self::Call(_) => Ok(()),
        }
    }
}

/// A blob on its way in; survives broken connections and changes of endpoint.
struct Download<'a, 's> {
    client: &'a Client,
    blob: &'a Descriptor,
    sink: Sink<'s>,
    progress: &'a Progress,
    hasher: Hasher,
    done: u64,
    total: u64,
    action: &'a str,
    subject: &'a str,
}

impl Download<'_, '_> {
    fn error(&self, kind: Kind) -> Error {
        Error::new(kind, self.action, self.subject)
    }

    /// Reads what is missing from one endpoint.
    async fn run(&mut self, endpoint: &Endpoint) -> Result<(), Error> {
        let limits = &self.client.transport.config.limits;
        let attempts = if endpoint.is_mirror() { limits.mirror_attempts_max } else { limits.attempts_max };
        let mut backoff = Backoff::new(limits, attempts);
        loop {
            let before = self.done;
            let response = self.ask(endpoint).await?;
            let Err(error) = self.receive(response).await else { return Ok(()) };
            if !error.is_retryable() {
                return Err(error);
            }
            if self.done > before {
                backoff.progress();
            }
            match backoff.next(None) {
                Some(wait) => {
                    tracing::debug!("will go on: {error}");
                    tokio::time::sleep(wait).await;
                }
                None => return Err(error),
            }
        }
    }

    // Exclusive, since a shared borrow of the sink could not move between threads.
    async fn ask(&mut self, endpoint: &Endpoint) -> Result<Response, Error> {
        let scopes = Scopes::pull(&endpoint.repository);
        let tail = format!("blobs/{}", self.blob.digest);
        let mut call = call(endpoint, Method::GET, &tail, scopes, self.action, self.subject)?;
        // A length and a range are of the blob only where nothing compresses it once more.
        call.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if self.done > 0 {
            let range = HeaderValue::from_str(&format!("bytes={}-", self.done));
            call.headers.extend(range.ok().map(|value| (RANGE, value)));
        }
        self.client.transport.call(&call).await
    }

    async fn receive(&mut self, mut response: Response) -> Result<(), Error> {
        let mut skip = self.start_of(&response)?;
        let stall = self.client.transport.config.limits.stall_timeout;
        loop {
            let broken = |why| Kind::Broken { done: self.done, total: self.total, why };
            let mut chunk = match tokio::time::timeout(stall, response.chunk()).await {
                Err(_) => return Err(self.error(broken(format!("no byte within {} s", stall.as_secs())))),
                Ok(Err(error)) => return Err(self.error(broken(chain(error)))),
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) if self.done == self.total => return Ok(()),
                // An honest end that comes too early: nothing tells it from a broken connection.
                Ok(Ok(None)) => return Err(self.error(broken("the body ended".to_owned()))),
            };
            let skipped = chunk.split_to(usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len()));
            skip -= skipped.len() as u64;
            if chunk.is_empty() {
                continue;
            }
            let got = self.done + chunk.len() as u64;
            if got > self.total {
                return Err(self.error(Kind::Size { expected: self.total, got }));
            }
            let local = |error| Kind::Local(format!("cannot write the blob: {error}"));
            self.sink.write(&chunk).await.map_err(|error| self.error(local(error)))?;
            self.hasher.update(&chunk);
            self.done = got;
            self.progress.report(self.done, self.total);
        }
    }

    /// How many bytes of the answer are known already; a server need not honour a range.
    fn start_of(&self, response: &Response) -> Result<u64, Error> {
        if response.status().as_u16() == 206 {
            let text = response.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).unwrap_or("");
            let start =
                text.strip_prefix("bytes ").and_then(|t| t.split('-').next()?.trim().parse::<u64>().ok());
            return match start {
                Some(start) if start <= self.done => Ok(self.done - start),
                _ => Err(self.error(Kind::Protocol(format!("\"{text}\" is not the range asked for")))),
            };
        }
        match response.content_length() {
            Some(got) if got != self.total => Err(self.error(Kind::Size { expected: self.total, got })),
            _ => Ok(self.done),
        }
    }

    async fn finish(mut self) -> Result<(), Error> {
        let local = |error| Kind::Local(format!("cannot write the blob: {error}"));
        self.sink.flush().await.map_err(|error| Error::new(local(error), self.action, self.subject))?;
        let got = self.hasher.finish();
        match got == self.blob.digest {
            true => Ok(()),
            false => Err(mismatch(self.blob.digest, got, self.action, self.subject)),
        }
    }
}
