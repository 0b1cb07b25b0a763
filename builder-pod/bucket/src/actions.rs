//! The cache of GitHub Actions: version 1 (REST) and version 2 (Twirp, with blobs in Azure).
//!
//! A key is written once. What changes is written under a new number of its name, and the last of them counts.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt as _;
use lapstrake_oci::Digest;
use lapstrake_registry::{BlobReader, Redacted};
use reqwest::header::{ACCEPT, CONTENT_RANGE, CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::settings::Actions as Settings;

/// The version of our entries: a digest that stands for the paths of an archive elsewhere.
const VERSION: &[u8] = b"|go-actionscache-1.0";
/// Bytes of one piece of an upload.
const PIECE_BYTES: usize = 8 << 20;
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Of what a library says of a failure, so much is told.
const TOLD_BYTES_MAX: usize = 512;
const TRIES: u32 = 5;
const WAIT_MAX: Duration = Duration::from_secs(30);
/// How often a document is tried that somebody else is writing.
const BLOCKED_MAX: u32 = 8;
/// May write, in a scope's permission.
const WRITE: u64 = 2;

/// What went wrong, without addresses: those of version 2 are credentials.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    #[error("{0}")]
    Request(String),
    #[error("{status}: {message}")]
    Answer { status: u16, message: String },
    #[error("{0}")]
    Told(String),
    #[error("the blob can't be read: {0}")]
    Read(std::io::Error),
}

impl Failed {
    fn exists(&self) -> bool {
        match self {
            Self::Answer { status, message } => {
                *status == 409 || message.to_lowercase().contains("already exists")
            }
            Self::Told(text) => text.to_lowercase().contains("already exists"),
            Self::Request(_) | Self::Read(_) => false,
        }
    }
}

impl From<reqwest::Error> for Failed {
    fn from(error: reqwest::Error) -> Self {
        let mut told = error.without_url().to_string();
        told.truncate(told.floor_char_boundary(TOLD_BYTES_MAX));
        Self::Request(told)
    }
}

type Result<T> = std::result::Result<T, Failed>;

/// An entry that was found.
struct Entry {
    key: String,
    url: Redacted,
}

#[derive(Deserialize)]
struct Scope {
    #[serde(rename = "Scope")]
    scope: String,
    #[serde(rename = "Permission", default)]
    permission: u64,
}

pub(crate) struct Actions {
    settings: Settings,
    scopes: Vec<Scope>,
    http: reqwest::Client,
}

impl Actions {
    pub(crate) fn open(settings: &Settings) -> Result<Self> {
        let scopes = scopes(settings.token.reveal())?;
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(settings.timeout)
            .build()?;
        Ok(Self { settings: settings.clone(), scopes, http })
    }

    fn index(&self, scope: &str) -> String {
        let digest = Digest::of(scope.as_bytes()).hex().to_string();
        format!("index-{}-1-{}", self.settings.scope, digest.get(..8).unwrap_or_default())
    }

    fn blob(digest: Digest) -> String {
        format!("buildkit-blob-1-{digest}")
    }

    /// The documents of all scopes that the token may read.
    pub(crate) async fn documents(&self, bytes_max: u64) -> Result<Vec<Vec<u8>>> {
        let mut all = Vec::new();
        for scope in &self.scopes {
            let Some(entry) = self.load(&self.index(&scope.scope)).await? else { continue };
            let mut document = Vec::new();
            let mut from = self.download(&entry).await?.take(bytes_max + 1);
            from.read_to_end(&mut document).await.map_err(Failed::Read)?;
            if document.len() as u64 > bytes_max {
                return Err(Failed::Told("the cache's document is larger than any that is read".to_owned()));
            }
            all.push(document);
        }
        Ok(all)
    }

    pub(crate) async fn has(&self, digest: Digest) -> Result<bool> {
        Ok(self.load(&Self::blob(digest)).await?.is_some())
    }

    pub(crate) async fn read(&self, digest: Digest) -> Result<Option<BlobReader>> {
        match self.load(&Self::blob(digest)).await? {
            Some(entry) => self.download(&entry).await.map(Some),
            None => Ok(None),
        }
    }

    pub(crate) async fn write(
        &self,
        digest: Digest,
        size: u64,
        from: impl AsyncRead + Send + Unpin,
    ) -> Result<()> {
        let key = Self::blob(digest);
        match self.reserve(&key).await {
            Ok(place) => self.fill(&key, &place, size, from).await,
            // Somebody else writes the same.
            Err(error) if error.exists() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Writes a document over an older one.
    pub(crate) async fn write_document(&self, document: &[u8]) -> Result<()> {
        let scope = self.scopes.iter().rev().find(|scope| scope.permission & WRITE != 0);
        let name = self.index(scope.map_or("", |scope| &scope.scope));
        let mut blocked: u32 = 0;
        loop {
            let last = self.load(&format!("{name}#")).await?;
            let last =
                last.map_or(Ok(0), |entry| entry.key.rsplit('#').next().unwrap_or_default().parse::<u64>());
            let last = last.map_err(|_| Failed::Told(format!("the last number of {name} is none")))?;
            // A number that stays taken was given up by whoever took it.
            let next = last.saturating_add(1 + u64::from(blocked.saturating_sub(BLOCKED_MAX)));
            let key = format!("{name}#{next}");
            match self.reserve(&key).await {
                Ok(place) => return self.fill(&key, &place, document.len() as u64, document).await,
                Err(error) if error.exists() && blocked < 2 * BLOCKED_MAX => {
                    blocked += 1;
                    if blocked <= BLOCKED_MAX {
                        tokio::time::sleep(Duration::from_secs(2)).await;
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn load(&self, key: &str) -> Result<Option<Entry>> {
        let text = |value: &Value, name: &str| {
            value[name].as_str().map(str::to_owned).filter(|text| !text.is_empty())
        };
        let (found, key, url) = if self.settings.is_v2 {
            let body = json!({ "key": key, "restore_keys": [key], "version": version() });
            let found = self.twirp("GetCacheEntryDownloadURL", &body).await?;
            if found["ok"] != true {
                return Ok(None);
            }
            (found, "matched_key", "signed_download_url")
        } else {
            let path = asked("cache", &[("keys", key), ("version", &version())]);
            let ask = || self.v1(Method::GET, &path);
            let answer = bytes(self.send(ask).await?).await?;
            if answer.is_empty() {
                return Ok(None);
            }
            (parsed(&answer)?, "cacheKey", "archiveLocation")
        };
        let entry = text(&found, key).zip(text(&found, url));
        Ok(entry.map(|(key, url)| Entry { key, url: Redacted::new(url) }))
    }

    /// Where an entry is to be written: a number, or an address.
    async fn reserve(&self, key: &str) -> Result<Redacted> {
        let body = json!({ "key": key, "version": version() });
        if self.settings.is_v2 {
            let answer = self.twirp("CreateCacheEntry", &body).await?;
            return match answer["signed_upload_url"].as_str() {
                Some(url) if answer["ok"] == true => Ok(Redacted::new(url)),
                _ => Err(told(&answer, "failed to reserve cache")),
            };
        }
        let answer = bytes(self.send(|| self.v1(Method::POST, "caches").json(&body)).await?).await?;
        let answer = parsed(&answer)?;
        let id = answer.get("cacheId").or_else(|| answer.get("cacheID")).and_then(Value::as_u64);
        id.filter(|id| *id > 0)
            .map(|id| Redacted::new(id.to_string()))
            .ok_or_else(|| told(&answer, "no place for it"))
    }

    async fn fill(
        &self,
        key: &str,
        place: &Redacted,
        size: u64,
        from: impl AsyncRead + Send + Unpin,
    ) -> Result<()> {
        let mut from = from.take(size);
        let (mut at, mut blocks) = (0_u64, String::new());
        while at < size {
            let piece = piece(&mut from).await.map_err(Failed::Read)?;
            if piece.is_empty() {
                return Err(Failed::Read(std::io::ErrorKind::UnexpectedEof.into()));
            }
            let next = at + piece.len() as u64;
            if self.settings.is_v2 {
                let id =
                    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("{at:020}"));
                let url = asked(place.reveal(), &[("comp", "block"), ("blockid", &id)]);
                let put = || self.http.put(&url).body(piece.clone());
                self.send(put).await?;
                blocks += &format!("<Latest>{id}</Latest>");
            } else {
                let range = format!("bytes {at}-{}/*", next - 1);
                let patch = || {
                    let patch = self.v1(Method::PATCH, &format!("caches/{}", place.reveal()));
                    let patch = patch.header(CONTENT_TYPE, "application/octet-stream");
                    patch.header(CONTENT_RANGE, &range).body(piece.clone())
                };
                self.send(patch).await?;
            }
            at = next;
        }
        if !self.settings.is_v2 {
            let body = json!({ "size": size });
            let path = format!("caches/{}", place.reveal());
            return self.send(|| self.v1(Method::POST, &path).json(&body)).await.map(drop);
        }
        let list = format!("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>{blocks}</BlockList>");
        let url = asked(place.reveal(), &[("comp", "blocklist")]);
        self.send(|| self.http.put(&url).body(list.clone())).await?;
        let body = json!({ "key": key, "size_bytes": size, "version": version() });
        let answer = self.twirp("FinalizeCacheEntryUpload", &body).await?;
        match answer["ok"] == true {
            true => Ok(()),
            false => Err(told(&answer, "failed to commit cache")),
        }
    }

    /// The address is that of whoever keeps the blobs: it has its own credential in it, and gets none of ours.
    async fn download(&self, entry: &Entry) -> Result<BlobReader> {
        let response = self.send(|| self.http.get(entry.url.reveal())).await?;
        let pieces = response.bytes_stream().map_err(|e| std::io::Error::other(e.without_url().to_string()));
        Ok(Box::pin(tokio_util::io::StreamReader::new(pieces)))
    }

    fn v1(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}/_apis/artifactcache/{path}", self.settings.url.reveal().trim_end_matches('/'));
        let request = self.http.request(method, url).bearer_auth(self.settings.token.reveal());
        request.header(ACCEPT, "application/json;api-version=6.0-preview.1")
    }

    async fn twirp(&self, method: &str, body: &Value) -> Result<Value> {
        let service = "twirp/github.actions.results.api.v1.CacheService";
        let url = format!("{}/{service}/{method}", self.settings.url.reveal().trim_end_matches('/'));
        let ask = || self.http.post(&url).bearer_auth(self.settings.token.reveal()).json(body);
        parsed(&bytes(self.send(ask).await?).await?)
    }

    /// Sends a request, again where the server is busy.
    async fn send(&self, request: impl Fn() -> RequestBuilder) -> Result<Response> {
        let mut tries = 0;
        loop {
            let response = request().send().await?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            tries += 1;
            let busy = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
            if !busy || tries >= TRIES {
                let message = String::from_utf8_lossy(&bytes(response).await?).into_owned();
                let message = parsed(message.as_bytes()).ok().and_then(|value| {
                    let text = ["message", "msg", "error"].iter().find_map(|name| value[*name].as_str());
                    text.map(str::to_owned)
                });
                let message =
                    message.unwrap_or_else(|| status.canonical_reason().unwrap_or("refused").to_owned());
                return Err(Failed::Answer { status: status.as_u16(), message });
            }
            let asked =
                response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            let wait = asked.map_or(Duration::from_millis(200 << tries), Duration::from_secs);
            tokio::time::sleep(wait.min(WAIT_MAX)).await;
        }
    }
}

/// An address with more in its query.
fn asked(url: &str, pairs: &[(&str, &str)]) -> String {
    let mut all = url.to_owned();
    for (name, value) in pairs {
        all.push(if all.contains('?') { '&' } else { '?' });
        all += name;
        all.push('=');
        for byte in value.bytes() {
            match byte {
                b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'.' | b'_' | b'~' => {
                    all.push(char::from(byte))
                }
                other => all += &format!("%{other:02X}"),
            }
        }
    }
    all
}

fn version() -> String {
    Digest::of(VERSION).hex().to_string()
}

fn told(answer: &Value, otherwise: &str) -> Failed {
    Failed::Told(answer["message"].as_str().filter(|text| !text.is_empty()).unwrap_or(otherwise).to_owned())
}

fn parsed(bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|e| Failed::Told(format!("the answer is no JSON: {e}")))
}

async fn bytes(response: Response) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    let mut pieces = response.bytes_stream();
    while let Some(piece) = pieces.try_next().await? {
        if all.len() + piece.len() > ANSWER_BYTES_MAX {
            return Err(Failed::Told("the answer is longer than any that is read".to_owned()));
        }
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

async fn piece(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Bytes> {
    let mut piece = BytesMut::with_capacity(PIECE_BYTES);
    while piece.len() < PIECE_BYTES {
        let left = PIECE_BYTES - piece.len();
        if (&mut *from).take(left as u64).read_buf(&mut piece).await? == 0 {
            break;
        }
    }
    Ok(piece.freeze())
}

/// The scopes that a token speaks of. Nobody but the server checks its signature.
fn scopes(token: &str) -> Result<Vec<Scope>> {
    let refused = |why: &str| Failed::Told(format!("invalid token {why}"));
    let payload = token.split('.').nth(1).ok_or_else(|| refused("without claims"))?;
    let payload = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, payload);
    let payload = payload.map_err(|_| refused("whose claims can't be read"))?;
    let claims: Value =
        serde_json::from_slice(&payload).map_err(|_| refused("whose claims can't be read"))?;
    let expires = claims["exp"].as_f64().ok_or_else(|| refused("without expiration time"))?;
    if (jiff::Timestamp::now().as_second() as f64) > expires {
        return Err(Failed::Told("cache token expired".to_owned()));
    }
    let access = claims["ac"].as_str().ok_or_else(|| refused("without access controls"))?;
    serde_json::from_str(access).map_err(|_| refused("with access controls that can't be read"))
}

#[cfg(test)]
#[path = "actions_tests.rs"]
mod tests;
