//! From a request to an answer.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt as _;
use http::header::{AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt as _;
use lapstrake_oci::{Digest, Document};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use super::access::{self, Need};
use super::fault::{self, What};
use super::listener::Connection;
use super::{Ask, Entry, Shared, lock, uploads};

/// A request taken apart.
struct Route {
    ask: Ask,
    repository: String,
    /// Tag, digest or upload id.
    target: String,
}

/// An answer.
pub(super) fn answer(status: StatusCode, headers: &[(&str, &str)], body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (http::HeaderName::try_from(*name), value.parse()) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// An error as the protocol words it.
pub(super) fn error(status: u16, code: &str, message: &str) -> Response {
    let body = serde_json::json!({ "errors": [{ "code": code, "message": message }] }).to_string();
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer(status, &[("content-type", "application/json")], Body::from(body))
}

impl Entry {
    fn of(route: &Route, request: &Request) -> Self {
        let text = |name: &http::HeaderName| {
            request.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned)
        };
        Self {
            ask: route.ask,
            method: request.method().to_string(),
            path: request.uri().path_and_query().map_or(String::new(), ToString::to_string),
            range: text(&RANGE).or_else(|| text(&CONTENT_RANGE)),
            auth: text(&AUTHORIZATION).and_then(|t| t.split(' ').next().map(str::to_owned)),
            status: 0,
        }
    }
}

/// Counts a request as running.
struct Running<'a>(&'a Shared, Ask);

impl<'a> Running<'a> {
    fn new(shared: &'a Shared, ask: Ask) -> Self {
        let mut running = lock(&shared.running);
        let (now, max) = running.entry(ask).or_default();
        *now += 1;
        *max = (*max).max(*now);
        Self(shared, ask)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some((now, _)) = lock(&self.0.running).get_mut(&self.1) {
            *now -= 1;
        }
    }
}

/// The one handler: repositories' names have slashes, so paths are taken apart by hand.
pub(super) async fn serve(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    request: Request,
) -> Response {
    let route = route(&request);
    let mut entry = Entry::of(&route, &request);
    let _running = Running::new(&shared, route.ask);
    let fault = fault::take(&mut lock(&shared.faults), route.ask);
    let response = match &fault {
        Some(What::Status(status, after)) => {
            let mut response = error(*status, "UNAVAILABLE", "told to fail");
            if let Some(after) = after {
                response.headers_mut().insert("retry-after", (*after).into());
            }
            response
        }
        Some(What::Body(status, body)) => {
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            answer(status, &[("content-type", "application/json")], Body::from(body.clone()))
        }
        Some(What::Drop(bytes)) => {
            handle(&shared, &route, request, *bytes).await;
            connection.cut();
            lock(&shared.log).push(entry);
            return answer(StatusCode::OK, &[], Body::empty());
        }
        Some(What::Redirect(origin)) => {
            let location = format!("{origin}{}", entry.path);
            answer(StatusCode::TEMPORARY_REDIRECT, &[("location", &location)], Body::empty())
        }
        Some(What::Hold(gate)) => {
            gate.wait().await;
            handle(&shared, &route, request, u64::MAX).await
        }
        Some(What::Delay(time)) => {
            tokio::time::sleep(*time).await;
            handle(&shared, &route, request, u64::MAX).await
        }
        _ => handle(&shared, &route, request, u64::MAX).await,
    };
    entry.status = response.status().as_u16();
    lock(&shared.log).push(entry);
    match fault {
        Some(What::Cut(bytes)) => cut(response, bytes),
        Some(What::Corrupt) => corrupt(response),
        _ => response,
    }
}

fn route(request: &Request) -> Route {
    let (method, path) = (request.method(), request.uri().path());
    let plain = |ask| Route { ask, repository: String::new(), target: String::new() };
    if path == "/token" {
        return plain(Ask::Token);
    }
    let Some(path) = path.strip_prefix("/v2/") else { return plain(Ask::Unknown) };
    if path.is_empty() {
        return plain(Ask::Ping);
    }
    for (mark, kind) in [
        ("/blobs/uploads/", "upload"),
        ("/blobs/", "blob"),
        ("/manifests/", "manifest"),
        ("/tags/", "tags"),
        ("/referrers/", "referrers"),
    ] {
        let Some(at) = path.rfind(mark) else { continue };
        let (repository, target) = (path[..at].to_owned(), path[at + mark.len()..].to_owned());
        let mount = request.uri().query().is_some_and(|query| query.contains("mount="));
        let ask = match (kind, method.as_str()) {
            ("upload", "POST") if mount => Ask::Mount,
            ("upload", "POST") => Ask::UploadStart,
            ("upload", "PATCH") => Ask::UploadPatch,
            ("upload", "PUT") => Ask::UploadPut,
            ("upload", "GET") => Ask::UploadStatus,
            ("upload", "DELETE") => Ask::UploadCancel,
            ("blob", "HEAD") => Ask::BlobHead,
            ("blob", "GET") => Ask::BlobGet,
            ("blob", "DELETE") => Ask::BlobDelete,
            ("manifest", "HEAD") => Ask::ManifestHead,
            ("manifest", "GET") => Ask::ManifestGet,
            ("manifest", "PUT") => Ask::ManifestPut,
            ("manifest", "DELETE") => Ask::ManifestDelete,
            ("tags", "GET") => Ask::Tags,
            ("referrers", "GET") => Ask::Referrers,
            _ => Ask::Unknown,
        };
        return Route { ask, repository, target };
    }
    plain(Ask::Unknown)
}

async fn handle(shared: &Shared, route: &Route, request: Request, limit: u64) -> Response {
    let (parts, body) = request.into_parts();
    let (repository, target) = (route.repository.as_str(), route.target.as_str());
    let query = pairs(parts.uri.query().unwrap_or(""));
    let param = |name: &str| query.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
    if route.ask == Ask::Token {
        let post = parts.method == Method::POST;
        let form = if post { pairs(&String::from_utf8_lossy(&all(body).await)) } else { query };
        let (status, json) = access::token(shared, &parts.headers, &form, post);
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        return answer(status, &[("content-type", "application/json")], Body::from(json.to_string()));
    }
    let need = Need {
        repository: Some(repository).filter(|name| !name.is_empty()),
        push: matches!(
            route.ask,
            Ask::ManifestPut
                | Ask::ManifestDelete
                | Ask::BlobDelete
                | Ask::Mount
                | Ask::UploadStart
                | Ask::UploadPatch
                | Ask::UploadPut
                | Ask::UploadStatus
                | Ask::UploadCancel
        ),
        from: param("from"),
    };
    if let Err(refusal) = access::check(shared, &parts.headers, &need) {
        let mut response = error(refusal.status, "UNAUTHORIZED", "authentication required");
        if let Some(challenge) = refusal.challenge.and_then(|text| text.parse().ok()) {
            response.headers_mut().insert("www-authenticate", challenge);
        }
        return response;
    }
    match route.ask {
        Ask::Ping => answer(StatusCode::OK, &[], Body::from("{}")),
        Ask::ManifestHead if shared.options.refuse_heads => error(405, "UNSUPPORTED", "no HEAD here"),
        Ask::ManifestHead | Ask::ManifestGet => manifest(shared, route),
        Ask::ManifestPut => put_manifest(shared, route, &parts.headers, all(body).await),
        Ask::ManifestDelete => done(shared.storage.delete_manifest(repository, target), "MANIFEST_UNKNOWN"),
        Ask::BlobHead | Ask::BlobGet => blob(shared, route, &parts.headers).await,
        Ask::BlobDelete => match target.parse::<Digest>() {
            Ok(digest) => done(shared.storage.delete_blob(repository, &digest), "BLOB_UNKNOWN"),
            Err(_) => error(400, "DIGEST_INVALID", "malformed digest"),
        },
        Ask::Mount => {
            let digest = param("mount").and_then(|text| text.parse::<Digest>().ok());
            let found = digest.filter(|digest| {
                let from = param("from").unwrap_or("");
                !shared.options.refuse_mounts && shared.storage.find_blob(from, digest).is_some()
            });
            match found.filter(|digest| shared.storage.link(repository, digest).is_ok()) {
                Some(digest) => uploads::created(repository, &digest),
                None => uploads::start(shared, repository),
            }
        }
        Ask::UploadStart => uploads::start(shared, repository),
        Ask::UploadStatus => uploads::status(shared, repository, target),
        Ask::UploadCancel => uploads::cancel(shared, repository, target),
        Ask::UploadPatch => uploads::patch(shared, repository, target, &parts.headers, body, limit).await,
        Ask::UploadPut => uploads::put(shared, repository, target, param("digest"), body, limit).await,
        Ask::Tags => tags(shared, repository, param("n"), param("last")),
        Ask::Referrers => {
            let kind = lapstrake_oci::media_type::OCI_INDEX;
            let body = serde_json::json!({ "schemaVersion": 2, "mediaType": kind, "manifests": [] });
            answer(StatusCode::OK, &[("content-type", kind)], Body::from(body.to_string()))
        }
        Ask::Token | Ask::Unknown => error(404, "UNSUPPORTED", "no such route"),
    }
}

fn done(result: std::io::Result<()>, code: &str) -> Response {
    match result {
        Ok(()) => answer(StatusCode::ACCEPTED, &[], Body::empty()),
        Err(_) => error(404, code, "not there"),
    }
}

fn manifest(shared: &Shared, route: &Route) -> Response {
    let Some((kind, bytes, digest)) = shared.storage.manifest(&route.repository, &route.target) else {
        return match shared.storage.has_repository(&route.repository) {
            true => error(404, "MANIFEST_UNKNOWN", "manifest unknown"),
            false => error(404, "NAME_UNKNOWN", "repository name not known to registry"),
        };
    };
    let (length, digest) = (bytes.len().to_string(), digest.to_string());
    let headers =
        [("content-type", kind.as_str()), ("content-length", &length), ("docker-content-digest", &digest)];
    let body = if route.ask == Ask::ManifestHead { Body::empty() } else { Body::from(bytes) };
    answer(StatusCode::OK, &headers, body)
}

fn put_manifest(shared: &Shared, route: &Route, headers: &HeaderMap, bytes: Bytes) -> Response {
    let kind = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    let document = match Document::parse(&bytes, kind) {
        Ok(document) => document,
        Err(failure) => return error(400, "MANIFEST_INVALID", &failure.to_string()),
    };
    let (storage, repository) = (&shared.storage, &route.repository);
    let missing = match &document {
        Document::Manifest(manifest) => std::iter::once(&manifest.config)
            .chain(&manifest.layers)
            .find(|blob| storage.find_blob(repository, &blob.digest).is_none()),
        Document::Index(index) => {
            // As the registries in use: an index may name blobs too, as that of a build cache does.
            index.manifests.iter().find(|m| {
                storage.manifest(repository, &m.digest.to_string()).is_none()
                    && storage.find_blob(repository, &m.digest).is_none()
            })
        }
    };
    if let Some(missing) = missing {
        return error(404, "MANIFEST_BLOB_UNKNOWN", &format!("{} is not in the repository", missing.digest));
    }
    let by_digest = route.target.parse::<Digest>().ok();
    if by_digest.is_some_and(|digest| digest != Digest::of(&bytes)) {
        return error(400, "DIGEST_INVALID", "the manifest has another digest");
    }
    let tag = by_digest.is_none().then_some(route.target.as_str());
    match storage.put_manifest(repository, tag, kind, &bytes) {
        Ok(digest) => {
            let location = format!("/v2/{repository}/manifests/{digest}");
            let digest = digest.to_string();
            let headers = [("location", location.as_str()), ("docker-content-digest", &digest)];
            answer(StatusCode::CREATED, &headers, Body::empty())
        }
        Err(failure) => error(500, "UNKNOWN", &failure.to_string()),
    }
}

async fn blob(shared: &Shared, route: &Route, headers: &HeaderMap) -> Response {
    let digest = route.target.parse::<Digest>().ok();
    let found = digest.and_then(|digest| shared.storage.find_blob(&route.repository, &digest));
    let Some(path) = found else { return error(404, "BLOB_UNKNOWN", "blob unknown to registry") };
    let opened = async {
        let file = tokio::fs::File::open(&path).await?;
        let length = file.metadata().await?.len();
        std::io::Result::Ok((file, length))
    };
    let Ok((mut file, length)) = opened.await else { return error(500, "UNKNOWN", "cannot read the blob") };
    let range = headers.get(RANGE).and_then(|v| v.to_str().ok()).filter(|_| !shared.options.ignore_ranges);
    let (start, end) = match range.map(|text| parse_range(text, length)) {
        None => (0, length),
        Some(Some(range)) => range,
        Some(None) => return error(416, "RANGE_INVALID", "range not satisfiable"),
    };
    let (size, content_range) =
        ((end - start).to_string(), format!("bytes {start}-{}/{length}", end.max(1) - 1));
    let mut sent = vec![
        ("content-type", "application/octet-stream"),
        ("content-length", &size),
        ("accept-ranges", "bytes"),
        ("docker-content-digest", &route.target),
    ];
    if range.is_some() {
        sent.push(("content-range", &content_range));
    }
    let status = if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    if route.ask == Ask::BlobHead {
        return answer(status, &sent, Body::empty());
    }
    if file.seek(std::io::SeekFrom::Start(start)).await.is_err() {
        return error(500, "UNKNOWN", "cannot seek in the blob");
    }
    let stream = futures::stream::try_unfold((file, end - start), |(mut file, left)| async move {
        let mut chunk = vec![0; usize::try_from(left.min(64 << 10)).unwrap_or(0)];
        let read = file.read(&mut chunk).await?;
        chunk.truncate(read);
        std::io::Result::Ok((read > 0).then(|| (Bytes::from(chunk), (file, left - read as u64))))
    });
    answer(status, &sent, Body::from_stream(stream))
}

/// The bytes `start..end` of `bytes=a-b`.
fn parse_range(text: &str, length: u64) -> Option<(u64, u64)> {
    let (start, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let start = start.parse::<u64>().ok()?;
    let end = if last.is_empty() { length } else { last.parse::<u64>().ok()?.saturating_add(1).min(length) };
    (start < end).then_some((start, end))
}

fn tags(shared: &Shared, repository: &str, n: Option<&str>, last: Option<&str>) -> Response {
    if !shared.storage.has_repository(repository) {
        return error(404, "NAME_UNKNOWN", "repository name not known to registry");
    }
    let tags = shared.storage.tags(repository);
    let rest: Vec<&String> = tags.keys().filter(|tag| last.is_none_or(|last| tag.as_str() > last)).collect();
    let n = n.and_then(|n| n.parse().ok()).unwrap_or(2);
    let page: Vec<&String> = rest.iter().copied().take(n).collect();
    let body = serde_json::json!({ "name": repository, "tags": page }).to_string();
    let mut headers = vec![("content-type", "application/json")];
    let link =
        page.last().map(|last| format!("</v2/{repository}/tags/list?n={n}&last={last}>; rel=\"next\""));
    if rest.len() > page.len()
        && let Some(link) = &link
    {
        headers.push(("link", link));
    }
    answer(StatusCode::OK, &headers, Body::from(body))
}

async fn all(body: Body) -> Bytes {
    body.collect().await.map(|collected| collected.to_bytes()).unwrap_or_default()
}

/// Decodes a query or form.
fn pairs(text: &str) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let bytes = text.as_bytes();
        let mut out = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
            match (bytes[at], hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
                (b'%', Some(byte)) => {
                    out.push(byte);
                    at += 2;
                }
                (b'+', _) => out.push(b' '),
                (byte, _) => out.push(byte),
            }
            at += 1;
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    text.split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}

/// The same answer, whose body breaks off.
fn cut(response: Response, bytes: u64) -> Response {
    let (parts, body) = response.into_parts();
    let stream =
        futures::stream::try_unfold((body.into_data_stream(), bytes), |(mut body, left)| async move {
            if left == 0 {
                // What was given out so far must reach the socket before the end does.
                tokio::task::yield_now().await;
                return Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
            }
            let Some(Ok(mut chunk)) = body.next().await else { return Ok(None) };
            chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len()));
            let left = left - chunk.len() as u64;
            Ok(Some((chunk, (body, left))))
        });
    Response::from_parts(parts, Body::from_stream(stream))
}

/// The same answer with its first byte changed.
fn corrupt(response: Response) -> Response {
    let (parts, body) = response.into_parts();
    let stream = body.into_data_stream().enumerate().map(|(at, chunk)| {
        chunk.map(|chunk| match chunk.split_first() {
            Some((first, rest)) if at == 0 => Bytes::from([&[first ^ 1], rest].concat()),
            _ => chunk,
        })
    });
    Response::from_parts(parts, Body::from_stream(stream))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_to_the_blob() {
        assert_eq!(parse_range("bytes=0-", 10), Some((0, 10)));
        assert_eq!(parse_range("bytes=3-4", 10), Some((3, 5)));
        assert_eq!(parse_range("bytes=3-99", 10), Some((3, 10)));
        assert_eq!(parse_range("bytes=10-", 10), None);
        assert_eq!(parse_range("lines=1-2", 10), None);
    }

    #[test]
    fn forms_are_decoded() {
        let wanted = [("a", "1 2"), ("b", "x:y"), ("c", "%")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(pairs("a=1+2&b=x%3Ay&c=%&d"), wanted);
    }
}
