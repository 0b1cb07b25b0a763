//! Files that are downloaded: each is asked for anew by what the server said of it, and kept with the mode and the owner that its source
//! operation gives it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use lapstrake_handoff::Reason;
use lapstrake_llb::pb;
use lapstrake_oci::Digest;
use lapstrake_source::{Download, Fetched, HttpRequest, shown_url};
use lapstrake_store::{Store, Table};
use serde::{Deserialize, Serialize};

use super::{Outside, attr, auth, number};
use crate::context::{self, DOWNLOAD_BYTES_MAX, Place};
use crate::error::BuildError;

/// Mode of a downloaded file where nothing else is said.
pub(super) const FILE_MODE: u32 = 0o600;
/// Directories of downloaded files.
const FILES: &str = "files";

/// A file that was downloaded.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct File {
    pub(super) digest: Digest,
    pub(super) filename: String,
    pub(super) mode: u32,
    /// Owner and group.
    #[serde(default)]
    pub(super) owner: (u32, u32),
    pub(super) etag: Option<String>,
    pub(super) last_modified: Option<String>,
}

/// Headers that a download may be asked with, and the attributes that say so; others mean nothing, as with BuildKit.
const HEADERS: [(&str, &str); 2] =
    [("http.header.accept", "Accept"), ("http.header.user-agent", "User-Agent")];

pub(super) fn headers(source: &pb::SourceOp) -> Vec<(&'static str, String)> {
    let given = |(name, header): (&str, &'static str)| Some((header, attr(source, name)?.to_owned()));
    HEADERS.into_iter().filter_map(given).collect()
}

impl Outside {
    pub(super) async fn file(&self, store: &Store, source: &pb::SourceOp) -> Result<File, BuildError> {
        let url = &source.identifier;
        let wrong =
            |what: &str| BuildError::new(Reason::DockerfileInvalid, format!("{}: {what}", shown_url(url)));
        let checksum: Option<Digest> = match attr(source, "http.checksum") {
            Some(text) => Some(text.parse().map_err(|_| wrong("its checksum is no digest"))?),
            None => None,
        };
        let mode = match attr(source, "http.perm") {
            Some(text) => u32::from_str_radix(text, 8).map_err(|_| wrong("its mode is no octal number"))?,
            None => FILE_MODE,
        };
        let id = |name: &str| match attr(source, name) {
            // As Go reads numbers: with a prefix for their base.
            Some(text) => number(text).ok_or_else(|| wrong(&format!("{name} is no number"))),
            None => Ok(0),
        };
        let owner = (id("http.uid")?, id("http.gid")?);
        let filename = attr(source, "http.filename").unwrap_or_else(|| name_in(url));
        let headers = headers(source);
        let mut place_of = vec!["file".to_owned(), url.clone(), filename.to_owned(), mode.to_string()];
        if owner != (0, 0) || !headers.is_empty() {
            place_of.push(format!("{owner:?} {headers:?}"));
        }
        let place_of: Vec<&str> = place_of.iter().map(String::as_str).collect();
        let remembered = context::digest_of(&place_of);
        let known: Option<File> = store
            .get(Table::HTTP, remembered.as_bytes())
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let known = known.filter(|file| place(store, file).is_ok_and(|place| place.ready()));
        if let Some(known) = &known
            && checksum == Some(known.digest)
        {
            return Ok(known.clone());
        }
        let request = HttpRequest {
            url: url.clone(),
            checksum,
            etag: known.as_ref().and_then(|k| k.etag.clone()),
            last_modified: known.as_ref().and_then(|k| k.last_modified.clone()),
            bytes_max: DOWNLOAD_BYTES_MAX,
            headers,
        };
        let http = self.way().http(url)?.with_auth(auth::http(self.inputs(), source).await?);
        match (http.fetch(&request, &store.side_dir("download")?).await?, known) {
            (Fetched::NotModified, Some(known)) => Ok(known),
            (Fetched::NotModified, None) => {
                Err(BuildError::internal("a download was not modified, but is not here"))
            }
            (Fetched::Body(download), _) => {
                let file = File {
                    digest: download.digest,
                    filename: match (attr(source, "http.filename"), &download.named) {
                        (None, Some(named)) => named.clone(),
                        _ => filename.to_owned(),
                    },
                    mode,
                    owner,
                    etag: download.etag.clone(),
                    last_modified: download.last_modified.clone(),
                };
                let turn = self.turn(file.key());
                let _turn = turn.lock().await;
                if !place(store, &file)?.ready() {
                    keep(store, &file, download).await?;
                }
                if let Ok(value) = serde_json::to_vec(&file) {
                    store.put(Table::HTTP, remembered.as_bytes(), &value).ok(); // a cache: it is downloaded again
                }
                Ok(file)
            }
        }
    }
}

impl File {
    /// What decides which file it is.
    pub(super) fn key(&self) -> Digest {
        let (mode, modified) = (self.mode.to_string(), self.last_modified.as_deref().unwrap_or_default());
        let digest = self.digest.to_string();
        let owner = format!("{:?}", self.owner);
        let all = [&digest, &self.filename, &mode, modified, &owner];
        context::digest_of(if self.owner == (0, 0) { &all[..4] } else { &all[..] })
    }
}

/// The directory of a downloaded file.
pub(super) fn place(store: &Store, file: &File) -> Result<Place, BuildError> {
    Place::new(store, FILES, file.key())
}

/// Puts a download into its directory, with the mode and the time that it should have.
async fn keep(store: &Store, file: &File, download: Download) -> Result<(), BuildError> {
    let (place, name, mode, owner) = (place(store, file)?, file.filename.clone(), file.mode, file.owner);
    let work = move || {
        let dir = place.fresh()?;
        let path = lapstrake_source::place_file(download.path(), &dir, &name)?;
        dress(&path, mode, owner, download.modified_seconds)
            .map_err(|e| BuildError::internal(format!("{}: {e}", path.display())))?;
        place.finish(&dir)
    };
    tokio::task::spawn_blocking(work).await.map_err(BuildError::internal)?
}

fn dress(
    path: &Path,
    mode: u32,
    (uid, gid): (u32, u32),
    modified_seconds: Option<i64>,
) -> std::io::Result<()> {
    if (uid, gid) != (0, 0) {
        std::os::unix::fs::chown(path, Some(uid), Some(gid))?;
    }
    let seconds = modified_seconds.unwrap_or(0).max(0).unsigned_abs();
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    std::fs::File::open(path)?.set_modified(time)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode & 0o7777))
}

/// What a download is called whose address ends in a name.
fn name_in(url: &str) -> &str {
    let path = url.split(['?', '#']).next().unwrap_or(url);
    let after_host = path.split_once("://").map_or(path, |(_, rest)| rest);
    match after_host.trim_end_matches('/').split_once('/').and_then(|(_, path)| path.rsplit('/').next()) {
        Some(name) if !matches!(name, "" | "." | "..") => name,
        _ => "download",
    }
}
