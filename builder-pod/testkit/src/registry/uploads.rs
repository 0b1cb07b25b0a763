//! Upload sessions.

use std::io;

use axum::body::Body;
use axum::response::Response;
use futures::StreamExt as _;
use http::{HeaderMap, StatusCode};
use lapstrake_oci::{Digest, Hasher};
use tokio::io::AsyncWriteExt as _;

use super::serve::{answer, error};
use super::{Shared, lock};

/// What was received of a blob.
#[derive(Debug, Clone)]
pub(super) struct Session {
    repository: String,
    bytes: u64,
}

/// Opens a session.
pub(super) fn start(shared: &Shared, repository: &str) -> Response {
    let mut sessions = lock(&shared.sessions);
    let id = format!("{:016x}", fresh());
    sessions.insert(id.clone(), Session { repository: repository.to_owned(), bytes: 0 });
    drop(sessions);
    state(StatusCode::ACCEPTED, repository, &id, 0)
}

fn fresh() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::hash::RandomState::new().build_hasher().finish()
}

fn state(status: StatusCode, repository: &str, id: &str, bytes: u64) -> Response {
    // Relative, and with a query of its own: clients must keep both right.
    let location = format!("/v2/{repository}/blobs/uploads/{id}?state={bytes}");
    let range = format!("0-{}", bytes.saturating_sub(1));
    answer(status, &[("location", &location), ("range", &range), ("docker-upload-uuid", id)], Body::empty())
}

fn find(shared: &Shared, repository: &str, id: &str) -> Option<Session> {
    lock(&shared.sessions).get(id).filter(|session| session.repository == repository).cloned()
}

/// Says how far a session is.
pub(super) fn status(shared: &Shared, repository: &str, id: &str) -> Response {
    match find(shared, repository, id) {
        Some(session) => state(StatusCode::NO_CONTENT, repository, id, session.bytes),
        None => error(404, "BLOB_UPLOAD_UNKNOWN", "upload unknown"),
    }
}

/// Forgets a session.
pub(super) fn cancel(shared: &Shared, repository: &str, id: &str) -> Response {
    if find(shared, repository, id).is_none() {
        return error(404, "BLOB_UPLOAD_UNKNOWN", "upload unknown");
    }
    lock(&shared.sessions).remove(id);
    std::fs::remove_file(shared.storage.upload_path(id)).ok(); // it may have no bytes yet
    answer(StatusCode::NO_CONTENT, &[], Body::empty())
}

/// Takes bytes in, at most `limit` of them.
pub(super) async fn patch(
    shared: &Shared,
    repository: &str,
    id: &str,
    headers: &HeaderMap,
    body: Body,
    limit: u64,
) -> Response {
    let Some(session) = find(shared, repository, id) else {
        return error(404, "BLOB_UPLOAD_UNKNOWN", "upload unknown");
    };
    let range = headers.get("content-range").and_then(|v| v.to_str().ok());
    let start = range.and_then(|text| text.split('-').next()?.parse::<u64>().ok());
    if start.is_some_and(|start| start != session.bytes) {
        return state(StatusCode::RANGE_NOT_SATISFIABLE, repository, id, session.bytes);
    }
    match append(shared, id, body, limit).await {
        Ok(bytes) => state(StatusCode::ACCEPTED, repository, id, bytes),
        Err(failure) => error(500, "UNKNOWN", &failure.to_string()),
    }
}

/// Appends to the session's file; what arrived before a break is kept.
async fn append(shared: &Shared, id: &str, body: Body, limit: u64) -> io::Result<u64> {
    let path = shared.storage.upload_path(id);
    let mut file = tokio::fs::OpenOptions::new().create(true).append(true).open(&path).await?;
    let mut stream = body.into_data_stream();
    let mut taken = 0;
    let mut broken = None;
    while let Some(chunk) = stream.next().await {
        let mut chunk = match chunk {
            Ok(chunk) => chunk,
            Err(failure) => {
                broken = Some(io::Error::other(failure));
                break;
            }
        };
        chunk.truncate(usize::try_from(limit - taken).unwrap_or(usize::MAX).min(chunk.len()));
        taken += chunk.len() as u64;
        file.write_all(&chunk).await?;
        if taken >= limit {
            break;
        }
    }
    file.flush().await?;
    let bytes = file.metadata().await?.len();
    if let Some(session) = lock(&shared.sessions).get_mut(id) {
        session.bytes = bytes;
    }
    broken.map_or(Ok(bytes), Err)
}

/// Takes the last bytes in, checks the digest and keeps the blob.
pub(super) async fn put(
    shared: &Shared,
    repository: &str,
    id: &str,
    digest: Option<&str>,
    body: Body,
    limit: u64,
) -> Response {
    if find(shared, repository, id).is_none() {
        return error(404, "BLOB_UPLOAD_UNKNOWN", "upload unknown");
    }
    let Some(digest) = digest.and_then(|text| text.parse::<Digest>().ok()) else {
        return error(400, "DIGEST_INVALID", "digest missing or malformed");
    };
    if let Err(failure) = append(shared, id, body, limit).await {
        return error(500, "UNKNOWN", &failure.to_string());
    }
    if limit < u64::MAX {
        return error(500, "UNKNOWN", "cut");
    }
    let path = shared.storage.upload_path(id);
    let hashed = tokio::task::spawn_blocking({
        let path = path.clone();
        move || {
            let mut hasher = Hasher::new();
            io::copy(&mut std::fs::File::open(path)?, &mut hasher)?;
            io::Result::Ok(hasher.finish())
        }
    });
    let got = match hashed.await {
        Ok(Ok(got)) => got,
        _ => return error(500, "UNKNOWN", "cannot read the upload"),
    };
    lock(&shared.sessions).remove(id);
    if got != digest {
        std::fs::remove_file(path).ok(); // nobody refers to it
        return error(400, "DIGEST_INVALID", "provided digest did not match uploaded content");
    }
    let kept = std::fs::rename(path, shared.storage.blob_path(&digest));
    match kept.and_then(|()| shared.storage.link(repository, &digest)) {
        Ok(()) => created(repository, &digest),
        Err(failure) => error(500, "UNKNOWN", &failure.to_string()),
    }
}

/// The answer to a finished upload or mount.
pub(super) fn created(repository: &str, digest: &Digest) -> Response {
    let location = format!("/v2/{repository}/blobs/{digest}");
    let digest = digest.to_string();
    answer(StatusCode::CREATED, &[("location", &location), ("docker-content-digest", &digest)], Body::empty())
}
