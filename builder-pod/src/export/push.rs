//! An image to its registries.

use std::io;
use std::sync::Arc;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use lapstrake_oci::{Descriptor, Digest, Reference};
use lapstrake_registry::{BlobReader, BlobSource, Client};
use lapstrake_store::Store;
use tokio::io::AsyncSeekExt as _;
use tokio_util::sync::CancellationToken;

use super::Packed;
use super::layers::Layer;
use crate::engine::{Engine, Place, Resolved};
use crate::error::{Asked, BuildError, chain};
use crate::options::Image;
use crate::progress::Step;

/// Blobs of one push that travel at the same time.
const BLOBS_PARALLEL: usize = 4;

/// Pushes blobs first, then the manifest under its digest, then the tags: a tag never names what is not there. As with BuildKit
/// it is a part of the step that has made the image.
pub(super) async fn push(
    engine: &Arc<Engine>,
    packed: &Arc<Packed>,
    image: &Image,
    bases: &[Arc<Resolved>],
    step: &Step,
    cancel: &CancellationToken,
) -> Result<(), BuildError> {
    let client = engine.images().client().with_cancel(cancel.clone());
    let mut done: Vec<String> = Vec::new();
    for name in &image.names {
        let insecure = image.insecure.then(|| client.with_insecure(name.registry()));
        let client = insecure.as_ref().unwrap_or(&client);
        let repository = name.name();
        if !done.contains(&repository) {
            let pushed = blobs(engine, client, packed, name, bases, cancel);
            step.does("pushing layers", pushed).await?;
            done.push(repository);
        }
        let digest = packed.documents.manifest.1.digest;
        let target = if image.by_digest { pinned(name, digest) } else { name.clone() };
        let told = format!("pushing manifest for {}", name.with_digest(digest));
        step.does(&told, manifests(client, packed, name, &target)).await?;
    }
    Ok(())
}

/// The manifest, after those that it names.
async fn manifests(
    client: &Client,
    packed: &Packed,
    name: &Reference,
    target: &Reference,
) -> Result<(), BuildError> {
    let documents = &packed.documents;
    let joined = documents.joined.iter().map(|image| &image.manifest);
    for document in joined.chain(documents.beside.iter().map(|one| &one.manifest)) {
        manifest(client, document, &pinned(name, document.1.digest)).await?;
    }
    manifest(client, &documents.manifest, target).await
}

/// The name without its tag, by a digest.
pub(crate) fn pinned(name: &Reference, digest: Digest) -> Reference {
    match name.name().parse::<Reference>() {
        Ok(bare) => bare.with_digest(digest),
        Err(_) => name.with_digest(digest),
    }
}

async fn blobs(
    engine: &Arc<Engine>,
    client: &Client,
    packed: &Packed,
    name: &Reference,
    bases: &[Arc<Resolved>],
    cancel: &CancellationToken,
) -> Result<(), BuildError> {
    let pushes = packed.blobs.iter().map(|blob| async move {
        let layer = packed.layers.iter().find(|layer| layer.descriptor.digest == blob.digest);
        let (source, from) = match layer {
            Some(layer) => (source(engine, layer, cancel), mount_candidates(layer, name, bases)),
            None => (stored(engine.store(), blob.digest), Vec::new()),
        };
        let silent = lapstrake_registry::Progress::none();
        client
            .push_blob(name, blob, &source, &from, &silent)
            .await
            .map_err(|e| BuildError::registry(&e, Asked::Push))
    });
    stream::iter(pushes.collect::<Vec<_>>()).buffer_unordered(BLOBS_PARALLEL).try_collect::<Vec<_>>().await?;
    Ok(())
}

/// A layer's blob, which comes from where it is should its bytes be needed.
pub(super) fn source(engine: &Arc<Engine>, layer: &Layer, cancel: &CancellationToken) -> BlobSource {
    if layer.place.is_none() {
        return stored(engine.store(), layer.descriptor.digest);
    }
    let (engine, layer, cancel) = (Arc::clone(engine), layer.clone(), cancel.clone());
    BlobSource::new(move |offset| {
        let (engine, layer, cancel) = (Arc::clone(&engine), layer.clone(), cancel.clone());
        Box::pin(async move {
            layer.fetch(&engine, &cancel).await.map_err(io::Error::other)?;
            open(engine.store().clone(), layer.descriptor.digest, offset).await
        })
    })
}

/// A blob of the store; its digest is checked when it is opened first.
pub(super) fn stored(store: &Store, digest: Digest) -> BlobSource {
    let store = store.clone();
    BlobSource::new(move |offset| {
        let store = store.clone();
        Box::pin(open(store, digest, offset))
    })
}

async fn open(store: Store, digest: Digest, offset: u64) -> io::Result<BlobReader> {
    let open = move || store.open_blob(&digest).map_err(|e| io::Error::other(chain(&e)));
    let mut file = tokio::fs::File::from_std(tokio::task::spawn_blocking(open).await??);
    file.seek(io::SeekFrom::Start(offset)).await?;
    Ok(Box::pin(file))
}

/// Repositories of the same registry that a layer's blob is in: a base image's, a cache's.
pub(super) fn mount_candidates<'a>(
    layer: &Layer,
    name: &Reference,
    bases: impl IntoIterator<Item = &'a Arc<Resolved>>,
) -> Vec<String> {
    let blob = &layer.descriptor;
    let has = |base: &&Arc<Resolved>| {
        base.reference.registry() == name.registry()
            && base.reference.repository() != name.repository()
            && base.manifest.layers.iter().any(|layer| layer.digest == blob.digest)
    };
    let bases = bases.into_iter().filter(has).map(|base| base.reference.repository().to_owned());
    let mut from: Vec<String> = bases.collect();
    if let Some(Place::Registry { name: cache, .. }) = layer.place.as_deref()
        && cache.registry() == name.registry()
    {
        from.push(cache.repository().to_owned());
    }
    from.dedup();
    from
}

pub(crate) async fn manifest(
    client: &Client,
    (bytes, descriptor): &(Vec<u8>, Descriptor),
    name: &Reference,
) -> Result<(), BuildError> {
    let pushed = client.push_manifest(name, &descriptor.media_type, bytes.clone()).await;
    pushed.map(drop).map_err(|e| BuildError::registry(&e, Asked::Push))
}
