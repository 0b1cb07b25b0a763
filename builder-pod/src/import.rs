//! Caches of other builds: read before a build, so that its steps are found in them.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::join_all;
use lapstrake_bucket::{Bucket, Settings};
use lapstrake_cache::limits::DOCUMENT_BYTES_MAX;
use lapstrake_cache::manifest::{self, Kind};
use lapstrake_cache::{Records, inline};
use lapstrake_handoff::{CacheImport, CacheStore, Reason};
use lapstrake_oci::{Descriptor, Digest, Document, Index, Manifest, Reference};
use tokio::io::AsyncReadExt as _;
use tokio_util::sync::CancellationToken;

use crate::build::abortable;
use crate::client::{Receiver, cache_store};
use crate::engine::{Engine, Place};
use crate::error::{Asked, BuildError, chain};
use crate::progress::Progress;

/// The annotation by which a layout names what is in it.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Makes caches known to the engine. One that can't be read is told of and left out, as BuildKit does.
pub(crate) async fn caches(
    engine: &Engine,
    from: &[CacheImport],
    client: Option<&Arc<dyn Receiver>>,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<(), BuildError> {
    let reads = from.iter().map(|cache| async {
        let step = progress.step(&format!("importing cache manifest from {}", shown(cache)));
        let read = abortable(cancel, read(engine, cache, client)).await;
        step.close(read)
    });
    for (cache, read) in from.iter().zip(join_all(reads).await) {
        match read {
            Ok(found) => found.into_iter().for_each(|(records, place)| engine.remote().add(records, place)),
            Err(error) if error.failure().reason == Reason::Canceled => return Err(error),
            Err(error) => {
                progress.text(&format!("warning: cache {} is not used: {error}", shown(cache)));
            }
        }
    }
    Ok(())
}

fn shown(cache: &CacheImport) -> &str {
    match cache {
        CacheImport::Registry { reference, .. } => reference,
        CacheImport::Local { src, .. } => src,
        CacheImport::Store(store) => &store.kind,
    }
}

fn damaged(error: impl std::fmt::Display) -> BuildError {
    BuildError::new(Reason::ImageNotFound, error.to_string())
}

async fn read(
    engine: &Engine,
    cache: &CacheImport,
    client: Option<&Arc<dyn Receiver>>,
) -> Result<Vec<(Records, Place)>, BuildError> {
    match (cache, client) {
        (CacheImport::Registry { reference, insecure }, _) => {
            let name: Reference = reference.parse().map_err(|e| damaged(format!("its name: {e}")))?;
            let client = engine.images().client();
            let client = if *insecure { client.with_insecure(name.registry()) } else { client.clone() };
            let place = Place::Registry { name: name.clone(), client };
            let document = document(&place, None).await?;
            found(&place, document).await
        }
        (CacheImport::Local { src, digest, .. }, Some(client)) => {
            let place = Place::Client { receiver: Arc::clone(client), store: cache_store(src) };
            let digest = digest.as_deref().unwrap_or_default().parse().map_err(damaged)?;
            let document = document(&place, Some(digest)).await?;
            found(&place, document).await
        }
        (CacheImport::Local { src, tag, digest }, None) => {
            let place = Place::Directory(PathBuf::from(src));
            let digest = match digest {
                Some(digest) => digest.parse().map_err(damaged)?,
                None => tagged(Path::new(src), tag.as_deref().unwrap_or("latest"))?,
            };
            let document = document(&place, Some(digest)).await?;
            found(&place, document).await
        }
        (CacheImport::Store(store), _) => {
            let bucket = bucket(store).await?;
            // As BuildKit: a name that nothing was written to yet is an empty cache.
            let documents = bucket.documents().await.map_err(|e| damaged(chain(&e)))?;
            let read = |document: Vec<u8>| {
                let records = lapstrake_cache::object::read(&document).map_err(damaged)?;
                Ok((records, Place::Bucket(bucket.clone())))
            };
            documents.into_iter().map(read).collect()
        }
    }
}

/// Reaches the object store of a cache.
pub(crate) async fn bucket(store: &CacheStore) -> Result<Bucket, BuildError> {
    let settings = Settings::read(&store.kind, &store.attributes, |name| std::env::var(name).ok());
    let settings = settings.map_err(|e| BuildError::new(Reason::RequestInvalid, e.to_string()))?;
    Bucket::open(settings).await.map_err(|e| BuildError::new(Reason::ImageNotFound, chain(&e)))
}

/// What a layout calls by a tag; the only thing in it where nothing has a name.
fn tagged(dir: &Path, tag: &str) -> Result<Digest, BuildError> {
    let path = dir.join("index.json");
    let text = std::fs::read(&path).map_err(|e| damaged(format!("{}: {e}", path.display())))?;
    let index: Index =
        serde_json::from_slice(&text).map_err(|e| damaged(format!("{}: {e}", path.display())))?;
    let name = |entry: &Descriptor| entry.annotations.get(REF_NAME).cloned();
    let found = index.manifests.iter().find(|entry| name(entry).as_deref() == Some(tag));
    let only = match index.manifests.as_slice() {
        [one] if name(one).is_none() => Some(one),
        _ => None,
    };
    let missing = || damaged(format!("{} has nothing with the tag {tag}", path.display()));
    found.or(only).map(|entry| entry.digest).ok_or_else(missing)
}

/// A manifest or index of a place; the one that the place names where no digest is given.
async fn document(place: &Place, digest: Option<Digest>) -> Result<Document, BuildError> {
    match place {
        Place::Registry { name, client } => {
            let name = match digest {
                Some(digest) => name.with_digest(digest),
                None => name.clone(),
            };
            let fetched = client.manifest(&name).await.map_err(|e| BuildError::registry(&e, Asked::Pull))?;
            Document::parse(&fetched.bytes, &fetched.media_type).map_err(damaged)
        }
        Place::Directory(_) | Place::Client { .. } | Place::Bucket(_) => {
            let digest = digest.ok_or_else(|| BuildError::internal("a layout is read by digest"))?;
            Document::parse(&blob(place, &Descriptor::new("", digest, 0)).await?, "").map_err(damaged)
        }
    }
}

/// A small blob of a place.
async fn blob(place: &Place, descriptor: &Descriptor) -> Result<Vec<u8>, BuildError> {
    let too_large = |size: u64| {
        damaged(format!(
            "{} has {size} bytes, more than the {DOCUMENT_BYTES_MAX} that are read",
            descriptor.digest
        ))
    };
    if descriptor.size > DOCUMENT_BYTES_MAX {
        return Err(too_large(descriptor.size));
    }
    match place {
        Place::Registry { name, client } => {
            let mut bytes = Vec::new();
            let take = |piece: &[u8]| bytes.write_all(piece);
            let silent = lapstrake_registry::Progress::none();
            let pulled = client.pull_blob_with(name, descriptor, take, &silent).await;
            pulled.map_err(|e| BuildError::registry(&e, Asked::Pull))?;
            Ok(bytes)
        }
        // Its documents have names, not digests, and describe themselves.
        Place::Bucket(bucket) => Err(BuildError::internal(format!("{bucket} has layers only"))),
        Place::Client { receiver, store } => {
            let missing = || damaged(format!("{store} has no {}", descriptor.digest));
            let size = receiver.content_bytes(store, descriptor.digest).await?.ok_or_else(missing)?;
            if size > DOCUMENT_BYTES_MAX {
                return Err(too_large(size));
            }
            let mut bytes = Vec::new();
            let from = receiver.content(store, descriptor.digest).await?;
            from.take(DOCUMENT_BYTES_MAX).read_to_end(&mut bytes).await.map_err(damaged)?;
            match Digest::of(&bytes) == descriptor.digest {
                true => Ok(bytes),
                false => Err(damaged(format!("{} is not what its name says", descriptor.digest))),
            }
        }
        Place::Directory(dir) => {
            let path = dir.join("blobs/sha256").join(descriptor.digest.hex());
            let failed = |e| damaged(format!("{}: {e}", path.display()));
            let size = std::fs::metadata(&path).map_err(failed)?.len();
            if size > DOCUMENT_BYTES_MAX {
                return Err(too_large(size));
            }
            let bytes = std::fs::read(&path).map_err(failed)?;
            match Digest::of(&bytes) == descriptor.digest {
                true => Ok(bytes),
                false => Err(damaged(format!("{} is not what its name says", path.display()))),
            }
        }
    }
}

async fn found(place: &Place, document: Document) -> Result<Vec<(Records, Place)>, BuildError> {
    let images = match manifest::kind(document) {
        Kind::Cache { config, layers } => {
            let config = blob(place, &config).await?;
            let records = Records::parse(&config, &layers).map_err(damaged)?;
            return Ok(vec![(records, place.clone())]);
        }
        Kind::Image(manifest) => vec![*manifest],
        Kind::Images(entries) => {
            let mut images: Vec<Manifest> = Vec::new();
            // Attestations stand beside images, for a platform that nobody has.
            let is_image = |entry: &&Descriptor| entry.platform.as_ref().is_none_or(|p| p.os != "unknown");
            for entry in entries.iter().filter(is_image) {
                if let Document::Manifest(manifest) = self::document(place, Some(entry.digest)).await? {
                    images.push(manifest);
                }
            }
            images
        }
    };
    let mut all = Vec::new();
    for image in images {
        let config = blob(place, &image.config).await?;
        if let Some(records) = inline::read(&config, &image).map_err(damaged)? {
            all.push((records, place.clone()));
        }
    }
    match all.is_empty() {
        true => Err(damaged(lapstrake_cache::Error::NoCache)),
        false => Ok(all),
    }
}
