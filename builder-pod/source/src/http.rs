//! Downloads: a file, or an archive that is a build context.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lapstrake_fileop::{Cancel, Owner, archive};
use lapstrake_oci::{Digest, Hasher};
use reqwest::header::{self, HeaderMap};
use reqwest::{Client, Response, StatusCode};
use tokio::io::AsyncWriteExt;

use crate::auth::SourceAuth;
use crate::error::{Class, Error, shown_url};

/// How often a download is tried.
const ATTEMPTS_MAX: u32 = 5;
/// The pause after the first failure; it grows fourfold.
const PAUSE: Duration = Duration::from_millis(200);
/// The longest pause, also if a server asks for more.
const PAUSE_MAX: Duration = Duration::from_secs(20);
/// How long a server may say nothing.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What is wanted.
#[derive(Debug, Clone)]
pub struct HttpRequest {
    /// The address.
    pub url: String,
    /// The digest that the body must have; then a body comes, whatever the caller has.
    pub checksum: Option<Digest>,
    /// The `ETag` of the body that the caller has.
    pub etag: Option<String>,
    /// The `Last-Modified` of the body that the caller has.
    pub last_modified: Option<String>,
    /// Size of the body at most.
    pub bytes_max: u64,
    /// More headers, by their names.
    pub headers: Vec<(&'static str, String)>,
}

/// What came.
#[derive(Debug)]
pub enum Fetched {
    /// What the caller has is still right.
    NotModified,
    /// A body.
    Body(Download),
}

/// A body, in a file that goes away with this.
#[derive(Debug)]
pub struct Download {
    file: tempfile::NamedTempFile,
    /// Digest of the body.
    pub digest: Digest,
    /// Size of the body.
    pub size_bytes: u64,
    /// A name for it: what the server says, else the last part of the address, else `download`.
    pub filename: String,
    /// The name that the server says, where it says one.
    pub named: Option<String>,
    /// For the next time.
    pub etag: Option<String>,
    /// For the next time, as the server wrote it.
    pub last_modified: Option<String>,
    /// The same in seconds since 1970.
    pub modified_seconds: Option<i64>,
}

impl Download {
    /// What came in another way than by HTTP, with the digest that was taken on the way.
    pub fn of(file: tempfile::NamedTempFile, digest: Digest, size_bytes: u64) -> Self {
        let filename = "context".to_owned();
        Self {
            file,
            digest,
            size_bytes,
            filename,
            named: None,
            etag: None,
            last_modified: None,
            modified_seconds: None,
        }
    }

    /// Where the body is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Moves the body to `path`, on the same file system.
    ///
    /// # Errors
    /// When it cannot be moved there.
    pub fn persist(self, path: &Path) -> Result<(), Error> {
        let failed = Error::io(format!("move a download to {}", path.display()));
        self.file.persist(path).map(drop).map_err(|error| failed(error.error))
    }
}

/// What a downloaded build context turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpContext {
    /// An archive; it was unpacked.
    Archive,
    /// Something else: it is the Dockerfile, under this name, and all there is.
    Dockerfile(String),
}

/// Downloads over HTTP.
#[derive(Debug, Clone)]
pub struct Http {
    client: Client,
    auth: Option<SourceAuth>,
}

impl Http {
    /// Uses `client`, with its proxies and certificates. It should follow redirects.
    pub fn new(client: Client) -> Self {
        Self { client, auth: None }
    }

    /// Shows these credentials to the host that they are for. A redirect to another host leaves them behind.
    pub fn with_auth(mut self, auth: Option<SourceAuth>) -> Self {
        self.auth = auth;
        self
    }

    /// Downloads into a new file in `dir`. Connection and server errors are tried again for a while.
    ///
    /// # Errors
    /// [`Error::Http`], [`Error::Checksum`], or [`Error::Io`] when the file cannot be written.
    pub async fn fetch(&self, request: &HttpRequest, dir: &Path) -> Result<Fetched, Error> {
        let url = reqwest::Url::parse(&request.url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https"))
            .ok_or_else(|| {
                Error::Invalid(format!("\"{}\" is not an http address", shown_url(&request.url)))
            })?;
        let mut pause = PAUSE;
        for attempt in 1.. {
            let (error, wait) = match self.attempt(&url, request, dir).await {
                Ok(fetched) => return Ok(fetched),
                Err(Attempt::Final(error)) => return Err(error),
                Err(Attempt::Again(error, wait)) => (error, wait),
            };
            if attempt >= ATTEMPTS_MAX {
                return Err(error);
            }
            let wait = wait.unwrap_or(pause).min(PAUSE_MAX);
            tracing::warn!(url = shown_url(&request.url), %error, ?wait, "download failed, trying again");
            tokio::time::sleep(wait).await;
            pause *= 4;
        }
        unreachable!("the last attempt returns")
    }

    async fn attempt(
        &self,
        url: &reqwest::Url,
        request: &HttpRequest,
        dir: &Path,
    ) -> Result<Fetched, Attempt> {
        // A body with a checksum is wanted itself: "not modified" would speak of whatever the caller has instead.
        let validated = request.checksum.is_none();
        if let Some(etag) = request.etag.as_ref().filter(|_| validated)
            && self.is_still(url, request, etag).await?
        {
            return Ok(Fetched::NotModified);
        }
        let get = self.asked(reqwest::Method::GET, url, request)?;
        let sent = tokio::time::timeout(SILENCE_MAX, get.send()).await;
        let response = match sent {
            Ok(response) => response.map_err(|error| broken(request, error))?,
            Err(_) => return Err(silent(request)),
        };
        let status = response.status();
        if status == StatusCode::NOT_MODIFIED && (request.etag.is_some() || request.last_modified.is_some()) {
            return Ok(Fetched::NotModified);
        }
        if !status.is_success() {
            return Err(refused(request, status, response.headers()));
        }
        if response.content_length().is_some_and(|length| length > request.bytes_max) {
            return Err(Attempt::Final(too_large(request)));
        }
        self.body(response, request, dir).await.map(Fetched::Body)
    }

    /// Whether the body is the one of this `ETag`, asked for in a way that every server answers right: some send the whole
    /// body again although they have not changed it.
    async fn is_still(&self, url: &reqwest::Url, request: &HttpRequest, etag: &str) -> Result<bool, Attempt> {
        let head = self.asked(reqwest::Method::HEAD, url, request)?;
        // Who does not answer that is asked for the body.
        let Ok(Ok(response)) = tokio::time::timeout(SILENCE_MAX, head.send()).await else { return Ok(false) };
        let now = response.headers().get(header::ETAG).and_then(|value| value.to_str().ok());
        let strong = |etag: &str| etag.strip_prefix("W/").unwrap_or(etag).to_owned();
        Ok(match (response.status(), now) {
            (StatusCode::OK | StatusCode::NOT_MODIFIED, Some(now)) => strong(now) == strong(etag),
            (StatusCode::NOT_MODIFIED, None) => true,
            _ => false,
        })
    }

    fn asked(
        &self,
        method: reqwest::Method,
        url: &reqwest::Url,
        request: &HttpRequest,
    ) -> Result<reqwest::RequestBuilder, Attempt> {
        // Servers may have an `ETag` for each form.
        let mut get = self.client.request(method, url.clone()).header(header::ACCEPT_ENCODING, "gzip");
        if let Some(auth) = self.auth.as_ref().filter(|auth| auth.is_for(url.as_str()))
            && let Some(value) = auth.header().map_err(Attempt::Final)?
        {
            get = get.header(header::AUTHORIZATION, value);
        }
        for (name, value) in &request.headers {
            get = get.header(*name, value);
        }
        let validated = request.checksum.is_none();
        // Two validators for one body: servers that know both prefer the first.
        if let Some(etag) = request.etag.as_ref().filter(|_| validated) {
            get = get.header(header::IF_NONE_MATCH, etag);
        }
        if let Some(date) = request.last_modified.as_ref().filter(|_| validated) {
            get = get.header(header::IF_MODIFIED_SINCE, date);
        }
        Ok(get)
    }

    async fn body(
        &self,
        mut response: Response,
        request: &HttpRequest,
        dir: &Path,
    ) -> Result<Download, Attempt> {
        let failed = || {
            let wrap = Error::io(format!("save {}", shown_url(&request.url)));
            move |error| Attempt::Final(wrap(error))
        };
        let file = tempfile::NamedTempFile::new_in(dir).map_err(failed())?;
        let mut out = tokio::fs::File::from_std(file.reopen().map_err(failed())?);
        let encoded = response.headers().get(header::CONTENT_ENCODING).is_some_and(|form| form == "gzip");
        // What was packed for the way alone is what it was before.
        let mut unpacked = encoded.then(|| flate2::write::MultiGzDecoder::new(Vec::new()));
        let mut hasher = Hasher::new();
        let mut size_bytes = 0;
        loop {
            let chunk = match tokio::time::timeout(SILENCE_MAX, response.chunk()).await {
                Ok(chunk) => chunk.map_err(|error| broken(request, error))?,
                Err(_) => return Err(silent(request)),
            };
            let (chunk, last) = match (chunk, &mut unpacked) {
                (None, None) => break,
                (Some(chunk), None) => (chunk.to_vec(), false),
                (chunk, Some(unpacker)) => {
                    let last = chunk.is_none();
                    let piece = unpack(unpacker, chunk.as_deref()).map_err(|e| {
                        Attempt::Again(error(request, Class::Unavailable, format!("its gzip: {e}")), None)
                    })?;
                    (piece, last)
                }
            };
            size_bytes += chunk.len() as u64;
            if size_bytes > request.bytes_max {
                return Err(Attempt::Final(too_large(request)));
            }
            hasher.update(&chunk);
            out.write_all(&chunk).await.map_err(failed())?;
            if last {
                break;
            }
        }
        out.flush().await.map_err(failed())?;
        let digest = hasher.finish();
        if let Some(expected) = request.checksum.filter(|expected| *expected != digest) {
            let url = shown_url(&request.url);
            return Err(Attempt::Final(Error::Checksum { url, expected, actual: digest }));
        }
        let text =
            |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let last_modified = text(header::LAST_MODIFIED);
        let modified_seconds = last_modified.as_deref().and_then(http_date_seconds);
        Ok(Download {
            file,
            digest,
            size_bytes,
            filename: filename(&request.url, text(header::CONTENT_DISPOSITION).as_deref()),
            named: named(text(header::CONTENT_DISPOSITION).as_deref())
                .map(|name| safe_name(last_part(&name))),
            etag: text(header::ETAG),
            last_modified,
            modified_seconds,
        })
    }
}

/// The seconds since 1970 of a date as HTTP writes it.
pub fn http_date_seconds(text: &str) -> Option<i64> {
    if let Ok(date) = jiff::fmt::rfc2822::parse(text) {
        return Some(date.timestamp().as_second());
    }
    // The two forms of old, which servers still use: RFC 850's, and that of C.
    let bare = text.strip_suffix(" GMT").or_else(|| text.strip_suffix(" UTC")).unwrap_or(text);
    ["%A, %d-%b-%y %H:%M:%S", "%a %b %e %H:%M:%S %Y"].iter().find_map(|form| {
        let date = jiff::fmt::strtime::parse(form, bare).ok()?.to_datetime().ok()?;
        Some(date.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second())
    })
}

/// Makes a build context of a download in the empty directory `dir`: an archive is unpacked (at most
/// `bytes_max` of it), anything else is the Dockerfile.
///
/// Blocking. What is unpacked belongs to uid and gid 0, and device files are left out.
///
/// # Errors
/// When the archive is damaged or too large, or the directory cannot be written.
pub fn unpack_context(
    download: &Path,
    filename: &str,
    dir: &Path,
    bytes_max: u64,
    cancel: &Cancel,
) -> Result<HttpContext, Error> {
    let failed = || Error::io(format!("read download {filename}"));
    let file = std::fs::File::open(download).map_err(failed())?;
    if !archive::is_archive(&file) {
        std::fs::copy(download, dir.join(safe_name(filename))).map_err(failed())?;
        return Ok(HttpContext::Dockerfile(safe_name(filename)));
    }
    let root = lapstrake_fileop::open_root(dir)?;
    let options = archive::UnpackOptions {
        owner: Some(Owner { uid: 0, gid: 0 }),
        name: filename.to_owned(),
        bytes_max,
        skip_devices: true,
    };
    archive::unpack(file, std::os::fd::AsFd::as_fd(&root), &options, cancel)?;
    Ok(HttpContext::Archive)
}

/// Where a downloaded file goes when it is a source of its own.
///
/// # Errors
/// When the file cannot be written.
pub fn place_file(download: &Path, dir: &Path, filename: &str) -> Result<PathBuf, Error> {
    let place = dir.join(safe_name(filename));
    std::fs::copy(download, &place).map_err(Error::io(format!("write {filename}")))?;
    Ok(place)
}

enum Attempt {
    Final(Error),
    Again(Error, Option<Duration>),
}

fn error(request: &HttpRequest, class: Class, reason: String) -> Error {
    Error::Http { class, url: shown_url(&request.url), reason }
}

fn too_large(request: &HttpRequest) -> Error {
    error(request, Class::User, format!("larger than the {} bytes that are allowed", request.bytes_max))
}

fn silent(request: &HttpRequest) -> Attempt {
    let text = format!("the server was silent for {} seconds", SILENCE_MAX.as_secs());
    Attempt::Again(error(request, Class::Unavailable, text), None)
}

/// A connection that could not be made or broke. A redirect loop is no such thing.
fn broken(request: &HttpRequest, cause: reqwest::Error) -> Attempt {
    let (redirect, builder) = (cause.is_redirect(), cause.is_builder());
    let cause = cause.without_url();
    let mut reason = cause.to_string();
    let mut source = std::error::Error::source(&cause);
    while let Some(inner) = source {
        reason = format!("{reason}: {inner}");
        source = inner.source();
    }
    if redirect || builder {
        return Attempt::Final(error(request, Class::User, reason));
    }
    Attempt::Again(error(request, Class::Unavailable, reason), None)
}

fn refused(request: &HttpRequest, status: StatusCode, headers: &HeaderMap) -> Attempt {
    let reason = format!("the server answers {status}");
    let class = match status.as_u16() {
        401 | 403 | 407 => Class::Denied,
        404 | 410 => Class::NotFound,
        408 | 425 | 429 | 500.. => Class::Unavailable,
        _ => Class::User,
    };
    let error = error(request, class, reason);
    // "Not implemented" and the like will be so the next time.
    if class != Class::Unavailable || matches!(status.as_u16(), 501 | 505) {
        return Attempt::Final(error);
    }
    let after = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    Attempt::Again(error, after.map(Duration::from_secs))
}

fn filename(url: &str, disposition: Option<&str>) -> String {
    let path = || {
        let url = reqwest::Url::parse(url).ok()?;
        url.path_segments()?.next_back().map(str::to_owned)
    };
    let name = named(disposition).or_else(path).unwrap_or_default();
    safe_name(last_part(&name))
}

fn last_part(name: &str) -> &str {
    name.rsplit(['/', '\\']).next().unwrap_or_default()
}

/// The name that a server gives what it sends.
fn named(disposition: Option<&str>) -> Option<String> {
    disposition?.split(';').skip(1).find_map(|part| {
        let (key, value) = part.split_once('=')?;
        let value = value.trim().trim_matches('"');
        (key.trim().eq_ignore_ascii_case("filename") && !value.ends_with('/')).then(|| value.to_owned())
    })
}

/// What a piece of a packed body gives; none is its end.
fn unpack(
    unpacker: &mut flate2::write::MultiGzDecoder<Vec<u8>>,
    piece: Option<&[u8]>,
) -> std::io::Result<Vec<u8>> {
    use std::io::Write as _;
    match piece {
        Some(piece) => unpacker.write_all(piece)?,
        None => unpacker.try_finish()?,
    }
    Ok(std::mem::take(unpacker.get_mut()))
}

/// A name that is one, and stays in its directory.
fn safe_name(name: &str) -> String {
    let bad = matches!(name, "" | "." | "..") || name.len() > 255 || name.contains(['/', '\0']);
    if bad { "download".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests;
