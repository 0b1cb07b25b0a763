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
use crate::engine::{Engine, Resolved};
use crate::error::{Asked, BuildError, chain};
use crate::options::Image;
use crate::progress::Progress;

/// Blobs of one push that travel at the same time.
const BLOBS_PARALLEL: usize = 4;

/// Pushes blobs first, then the manifest under its digest, then the tags: a tag never names what is not there.
pub(super) async fn push(
    engine: &Arc<Engine>,
    packed: &Arc<Packed>,
    image: &Image,
    bases: &[Arc<Resolved>],
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<(), BuildError> {
    let client = engine.images().client().with_cancel(cancel.clone());
    let mut done: Vec<String> = Vec::new();
    for name in &image.names {
        let repository = name.name();
        if !done.contains(&repository) {
            let step = progress.step(&format!("pushing layers to {repository}"));
            step.close(blobs(engine, &client, packed, name, bases).await)?;
            done.push(repository);
        }
        for image in &packed.documents.joined {
            let target = pinned(name, image.manifest.1.digest);
            let step = progress.step(&format!("pushing manifest for {target}"));
            step.close(manifest(&client, &image.manifest, &target).await)?;
        }
        let digest = packed.documents.manifest.1.digest;
        let target = if image.by_digest { pinned(name, digest) } else { name.clone() };
        let step = progress.step(&format!("pushing manifest for {target}"));
        step.close(manifest(&client, &packed.documents.manifest, &target).await)?;
    }
    Ok(())
}

/// The name without its tag, by a digest.
pub(crate) fn pinned(name: &Reference, digest: Digest) -> Reference {
    match name.name().parse::<Reference>() {
        Ok(bare) => bare.with_digest(digest),
        Err(_) => name.with_digest(digest),
    }
}

async fn blobs(
    engine: &Engine,
    client: &Client,
    packed: &Packed,
    name: &Reference,
    bases: &[Arc<Resolved>],
) -> Result<(), BuildError> {
    let pushes = packed.blobs.iter().map(|blob| async move {
        let source = source(engine.store(), blob.digest);
        let from = mount_candidates(blob, name, bases);
        let silent = lapstrake_registry::Progress::none();
        client
            .push_blob(name, blob, &source, &from, &silent)
            .await
            .map_err(|e| BuildError::registry(&e, Asked::Push))
    });
    stream::iter(pushes).buffer_unordered(BLOBS_PARALLEL).try_collect::<Vec<_>>().await?;
    Ok(())
}

/// A blob of the store; its digest is checked when it is opened first.
fn source(store: &Store, digest: Digest) -> BlobSource {
    let store = store.clone();
    BlobSource::new(move |offset| {
        let store = store.clone();
        Box::pin(async move {
            let open = move || store.open_blob(&digest).map_err(|e| io::Error::other(chain(&e)));
            let mut file = tokio::fs::File::from_std(tokio::task::spawn_blocking(open).await??);
            file.seek(io::SeekFrom::Start(offset)).await?;
            Ok(Box::pin(file) as BlobReader)
        })
    })
}

/// Repositories of the same registry that a base image's blob came from.
fn mount_candidates(blob: &Descriptor, name: &Reference, bases: &[Arc<Resolved>]) -> Vec<String> {
    let has = |base: &&Arc<Resolved>| {
        base.reference.registry() == name.registry()
            && base.reference.repository() != name.repository()
            && base.manifest.layers.iter().any(|layer| layer.digest == blob.digest)
    };
    bases.iter().filter(has).map(|base| base.reference.repository().to_owned()).collect()
}

pub(crate) async fn manifest(
    client: &Client,
    (bytes, descriptor): &(Vec<u8>, Descriptor),
    name: &Reference,
) -> Result<(), BuildError> {
    let pushed = client.push_manifest(name, &descriptor.media_type, bytes.clone()).await;
    pushed.map(drop).map_err(|e| BuildError::registry(&e, Asked::Push))
}
