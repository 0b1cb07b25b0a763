//! Base images: what a name means, and their layers as snapshots.

use std::collections::HashMap;
use std::io::Write as _;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use lapstrake_handoff::Reason;
use lapstrake_image::apply::{ApplyOptions, apply_layer};
use lapstrake_llb::pb;
use lapstrake_oci::{Descriptor, Digest, Document, ImageConfig, Manifest, Platform, Reference};
use lapstrake_registry::Client;
use lapstrake_solver::Step;
use lapstrake_store::{LayerFacts, SnapshotId, Store, Table, chain_id};
use tokio::io::AsyncReadExt as _;
use tokio::sync::{OnceCell, mpsc};
use tokio_util::sync::CancellationToken;

use super::lazy::Watch;
use super::remote::{LazyLayer, Place};
use crate::error::{Asked, BuildError, chain, is_no_space};

/// Documents of an image are no longer than this.
const DOCUMENT_BYTES_MAX: u64 = 8 << 20;
/// Layers of one image that are fetched at the same time.
const LAYERS_PARALLEL: usize = 4;

/// Documents that a repository was found to have: what is named by its digest is not everybody's who knows that.
const ORIGINS: Table = Table::named("origins");
/// Names of what was made or brought here, which no registry has.
const MADE_HERE: [&str; 2] = ["localhost/oci-layout", "localhost/input"];

/// A base image of one platform.
#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    /// Where it comes from.
    pub(crate) reference: Reference,
    /// What the name stood for: index or manifest.
    pub(crate) digest: Digest,
    /// The name had the digest in it, so that it always stands for the same.
    pub(crate) pinned: bool,
    /// The platform's manifest.
    pub(crate) manifest: Manifest,
    /// Its config.
    pub(crate) config: ImageConfig,
}

type Cell = Arc<OnceCell<Arc<Resolved>>>;

/// Looks images up, each at most once per process: one build sees one meaning of a name.
pub(crate) struct Images {
    client: Client,
    store: Store,
    known: Mutex<HashMap<(Reference, Platform), Cell>>,
}

impl Images {
    pub(crate) fn new(client: Client, store: Store) -> Self {
        Self { client, store, known: Mutex::default() }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// What a name was found to mean in this build.
    pub(crate) fn known(&self, name: &str, platform: &Platform) -> Option<Arc<Resolved>> {
        let key = (name.parse().ok()?, platform.clone());
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&key)?.get().cloned()
    }

    /// All names that were looked up in this build, for each platform what they were found to mean.
    pub(crate) fn all_known(&self) -> Vec<(Reference, Platform, Arc<Resolved>)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.iter().filter_map(|((name, platform), cell)| {
            Some((name.clone(), platform.clone(), Arc::clone(cell.get()?)))
        });
        found.collect()
    }

    /// The config of an image as its registry has it.
    pub(crate) fn config_bytes(&self, image: &Resolved) -> Result<Vec<u8>, BuildError> {
        Ok(self.store.blob_bytes(&image.manifest.config.digest, DOCUMENT_BYTES_MAX)?)
    }

    /// The image of a source operation.
    pub(crate) async fn resolve_text(
        &self,
        name: &str,
        platform: &Platform,
    ) -> Result<Arc<Resolved>, BuildError> {
        let reference =
            name.parse().map_err(|e| BuildError::new(Reason::DockerfileInvalid, format!("{e}")))?;
        self.resolve(&reference, platform).await
    }

    /// The image of a source operation as that wants it: the one that it names by a checksum beside its name, and its
    /// first layers alone where not all are to count.
    pub(super) async fn asked(
        &self,
        name: &str,
        source: &pb::SourceOp,
        platform: &Platform,
    ) -> Result<(Arc<Resolved>, Option<usize>), BuildError> {
        let attr = |name: &str| source.attrs.get(name).map(String::as_str).filter(|text| !text.is_empty());
        let invalid = |what: String| BuildError::new(Reason::RequestInvalid, format!("image {name}: {what}"));
        let resolved = self.resolve_text(name, platform).await?;
        if let Some(text) = attr("image.checksum") {
            let wanted: Digest =
                text.parse().map_err(|e| invalid(format!("invalid image checksum {text}: {e}")))?;
            if resolved.digest != wanted {
                let why = format!(
                    "image digest {} for {name} does not match expected checksum {wanted}",
                    resolved.digest
                );
                return Err(BuildError::new(Reason::ChecksumMismatch, why));
            }
        }
        let Some(text) = attr("image.layerlimit").or_else(|| attr("oci.layerlimit")) else {
            return Ok((resolved, None));
        };
        let limit: Option<usize> = text.parse().ok().filter(|limit| *limit > 0);
        let limit = limit.ok_or_else(|| invalid(format!("invalid layer limit {text}")))?;
        let there = resolved.manifest.layers.len();
        if limit > there {
            let why =
                format!("layer limit {limit} is greater than the number of layers in the image {there}");
            return Err(invalid(why));
        }
        let mut limited = (*resolved).clone();
        limited.manifest.layers.truncate(limit);
        limited.config.rootfs.diff_ids.truncate(limit);
        Ok((Arc::new(limited), Some(limit)))
    }

    /// What a name means for a platform. A tag is asked for at its registry; what is named by digest and
    /// is in the store needs no network.
    pub(crate) async fn resolve(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Arc<Resolved>, BuildError> {
        let key = (reference.clone(), platform.clone());
        let cell =
            Arc::clone(self.known.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default());
        cell.get_or_try_init(|| self.look_up(reference, platform)).await.cloned()
    }

    async fn look_up(&self, reference: &Reference, platform: &Platform) -> Result<Arc<Resolved>, BuildError> {
        let digest = match reference.digest() {
            Some(digest) => digest,
            None => self.client.resolve(reference).await.map_err(pull_error)?.digest,
        };
        let pinned = reference.with_digest(digest);
        let manifest = match self.document(&pinned).await? {
            Document::Manifest(manifest) => manifest,
            Document::Index(index) => {
                let found = index.select(platform).ok_or_else(|| no_platform(reference, platform, &index))?;
                match self.document(&reference.with_digest(found.digest)).await? {
                    Document::Manifest(manifest) => manifest,
                    Document::Index(_) => {
                        let message = format!("image {reference}: an index inside an index is not supported");
                        return Err(BuildError::new(Reason::ImageNotFound, message));
                    }
                }
            }
        };
        let config = self.config(&pinned, &manifest.config).await?;
        if config.rootfs.diff_ids.len() != manifest.layers.len() {
            let message = format!(
                "image {reference} is damaged: {} layers, but {} diff ids in its config",
                manifest.layers.len(),
                config.rootfs.diff_ids.len()
            );
            return Err(BuildError::new(Reason::ImageNotFound, message));
        }
        // Remember what the digest means, under the names that later steps use.
        let named_by_digest = reference.digest().is_some();
        let resolved =
            Resolved { reference: pinned.clone(), digest, pinned: named_by_digest, manifest, config };
        let resolved = Arc::new(resolved);
        if pinned != *reference {
            let cell = Arc::new(OnceCell::new_with(Some(Arc::clone(&resolved))));
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.insert((pinned, platform.clone()), cell);
        }
        Ok(resolved)
    }

    /// A manifest or index by digest, from the store or the registry.
    async fn document(&self, pinned: &Reference) -> Result<Document, BuildError> {
        self.read(pinned).await.map(|(document, _)| document)
    }

    /// The same with its bytes.
    pub(super) async fn read(&self, pinned: &Reference) -> Result<(Document, Vec<u8>), BuildError> {
        let digest = pinned.digest().ok_or_else(|| BuildError::internal("a manifest is read by digest"))?;
        let damaged = |e| BuildError::new(Reason::ImageNotFound, format!("image {pinned}: {e}"));
        let origin = format!("{digest} {}", pinned.name());
        let is_known = MADE_HERE.contains(&pinned.name().as_str())
            || self.store.get(ORIGINS, origin.as_bytes()).is_some();
        if let (true, Ok(bytes)) = (is_known, self.store.blob_bytes(&digest, DOCUMENT_BYTES_MAX)) {
            return Ok((Document::parse(&bytes, "").map_err(damaged)?, bytes));
        }
        let fetched = self.client.manifest(pinned).await.map_err(pull_error)?;
        self.store.put_blob(&fetched.bytes)?;
        self.store.put(ORIGINS, origin.as_bytes(), &[]).ok(); // it is asked for again
        let document = Document::parse(&fetched.bytes, &fetched.media_type).map_err(damaged)?;
        Ok((document, fetched.bytes.to_vec()))
    }

    /// A blob that is a document, from the store or the registry.
    pub(super) async fn small_blob(
        &self,
        name: &Reference,
        descriptor: &Descriptor,
    ) -> Result<Vec<u8>, BuildError> {
        if let Ok(bytes) = self.store.blob_bytes(&descriptor.digest, DOCUMENT_BYTES_MAX) {
            return Ok(bytes);
        }
        if descriptor.size > DOCUMENT_BYTES_MAX {
            let what = format!("image {name}: its document {} is too large", descriptor.digest);
            return Err(BuildError::new(Reason::ImageNotFound, what));
        }
        let mut bytes = Vec::new();
        let take = |piece: &[u8]| bytes.write_all(piece);
        let silent = lapstrake_registry::Progress::none();
        self.client.pull_blob_with(name, descriptor, take, &silent).await.map_err(pull_error)?;
        self.store.put_blob(&bytes)?;
        Ok(bytes)
    }

    async fn config(&self, name: &Reference, descriptor: &Descriptor) -> Result<ImageConfig, BuildError> {
        let bytes = self.small_blob(name, descriptor).await?;
        let damaged =
            |e| BuildError::new(Reason::ImageNotFound, format!("image {name}: its config is not valid: {e}"));
        serde_json::from_slice(&bytes).map_err(damaged)
    }

    /// The image's file system as a snapshot: fetches and unpacks the layers that are not there.
    pub(crate) async fn pull(
        &self,
        store: &Store,
        image: &Arc<Resolved>,
        userxattr: bool,
        step: &Step,
    ) -> Result<Option<SnapshotId>, BuildError> {
        let mut chain = None;
        let mut layers = Vec::new();
        let place = Arc::new(Place::Registry { name: image.reference.clone(), client: self.client.clone() });
        for (diff_id, blob) in image.config.rootfs.diff_ids.iter().zip(&image.manifest.layers) {
            let id = chain_id(chain.as_ref(), diff_id);
            chain = Some(id);
            let (blob, place) = (blob.clone(), Arc::clone(&place));
            layers.push(LazyLayer { blob, diff_id: *diff_id, chain: id, created: None, about: None, place });
        }
        self.unpack_all(store, layers, userxattr, &Watch::of(step)).await
    }

    /// Layers, lowest first, as a snapshot: fetches and unpacks those that are not there.
    pub(crate) async fn unpack_all(
        &self,
        store: &Store,
        mut layers: Vec<LazyLayer>,
        userxattr: bool,
        step: &Watch,
    ) -> Result<Option<SnapshotId>, BuildError> {
        let there = layers.iter().rposition(|layer| store.snapshot_of_chain(&layer.chain).is_some());
        let missing = layers.split_off(there.map_or(0, |at| at + 1));
        let mut parent = layers.last().and_then(|layer| store.snapshot_of_chain(&layer.chain));
        // Layers are fetched side by side and unpacked in order, each as soon as it and those below are
        // there, while the next ones go on coming.
        let (fetched, mut unpackable) = mpsc::channel(missing.len().max(1));
        let fetch = async move {
            let layers = stream::iter(missing.into_iter().map(|layer| async move {
                self.fetch_for(&layer, step).await?;
                Ok::<_, BuildError>(layer)
            }));
            let mut layers = layers.buffered(LAYERS_PARALLEL);
            while let Some(layer) = layers.try_next().await? {
                fetched.send(layer).await.ok(); // who unpacks has failed, and says so
            }
            Ok::<_, BuildError>(())
        };
        let unpack = async {
            while let Some(layer) = unpackable.recv().await {
                let (store, below) = (store.clone(), parent);
                let unpacked = tokio::task::spawn_blocking(move || layer.unpack(&store, below, userxattr));
                parent = Some(unpacked.await.map_err(BuildError::internal)??);
                if step.cancel.is_cancelled() {
                    return Err(BuildError::canceled());
                }
            }
            Ok(())
        };
        // Once unpacking failed nothing more is fetched; once fetching failed what is being unpacked is
        // waited for, so that nothing goes on when this returns.
        {
            let (mut fetch, mut unpack) = (pin!(fetch), pin!(unpack));
            tokio::select! {
                unpacked = &mut unpack => unpacked?,
                fetched = &mut fetch => {
                    let unpacked = unpack.await;
                    fetched.and(unpacked)?;
                }
            }
        }
        Ok(parent)
    }

    /// Brings a layer's blob into the store, and says how far it is.
    async fn fetch_for(&self, layer: &LazyLayer, step: &Watch) -> Result<(), BuildError> {
        let label = format!("sha256:{}", layer.blob.digest.short());
        let (reporter, total) = (step.clone(), layer.blob.size);
        let progress =
            lapstrake_registry::Progress::new(move |done, _| (reporter.status)(&label, done, total));
        self.fetch_from(&layer.place, &layer.blob, &progress, &step.cancel).await
    }

    /// Brings a layer's blob into the store; one that is there and whole stays.
    pub(crate) async fn fetch(
        &self,
        name: &Reference,
        blob: &Descriptor,
        progress: &lapstrake_registry::Progress,
        cancel: &CancellationToken,
    ) -> Result<(), BuildError> {
        let place = Place::Registry { name: name.clone(), client: self.client.clone() };
        self.fetch_from(&place, blob, progress, cancel).await
    }

    /// Whether a blob is here, or where a cache says that it is. Who would have to ask over a network takes the cache's word.
    pub(super) async fn is_there(&self, place: &Place, digest: Digest) -> bool {
        let theirs = match place {
            Place::Registry { .. } | Place::Bucket(_) => return true,
            Place::Directory(dir) => {
                tokio::fs::try_exists(dir.join("blobs/sha256").join(digest.hex())).await.ok()
            }
            Place::Client { receiver, store } => {
                receiver.content_bytes(store, digest).await.ok().map(|bytes| bytes.is_some())
            }
        };
        theirs == Some(true) || self.store.has_blob(&digest)
    }

    /// The same from wherever it is.
    pub(crate) async fn fetch_from(
        &self,
        place: &Place,
        blob: &Descriptor,
        progress: &lapstrake_registry::Progress,
        cancel: &CancellationToken,
    ) -> Result<(), BuildError> {
        let (store, digest) = (self.store.clone(), blob.digest);
        // Opening checks the bytes: after a power cut there may be others under the name.
        let whole = tokio::task::spawn_blocking(move || store.open_blob(&digest).is_ok());
        if whole.await.map_err(BuildError::internal)? {
            return Ok(());
        }
        let mut writer = self.store.blob_writer()?;
        match place {
            Place::Registry { name, client } => {
                let client = client.with_cancel(cancel.clone());
                let take = |piece: &[u8]| writer.write_all(piece);
                client.pull_blob_with(name, blob, take, progress).await.map_err(pull_error)?;
            }
            Place::Directory(dir) => {
                let path = dir.join("blobs/sha256").join(digest.hex());
                let copy = move || {
                    let copied =
                        std::fs::File::open(&path).and_then(|mut from| std::io::copy(&mut from, &mut writer));
                    copied.map(|_| writer).map_err(|e| {
                        BuildError::new(Reason::ImageNotFound, format!("cache {}: {e}", path.display()))
                    })
                };
                writer = tokio::task::spawn_blocking(copy).await.map_err(BuildError::internal)??;
            }
            Place::Client { receiver, store } => {
                let from = receiver.content(store, digest).await?;
                copy(from, &mut writer, place, cancel).await?;
            }
            Place::Bucket(bucket) => {
                let opened = cancel.run_until_cancelled(bucket.read(digest)).await;
                let failed = |e| BuildError::new(Reason::ImageNotFound, chain(&e));
                let from = opened.ok_or_else(BuildError::canceled)?.map_err(failed)?;
                copy(from, &mut writer, place, cancel).await?;
            }
        }
        let commit = move || writer.commit_with(Some(digest), lapstrake_store::Durability::Batched);
        tokio::task::spawn_blocking(commit).await.map_err(BuildError::internal)??;
        Ok(())
    }
}

/// Copies a blob from a place into the store, whose writer checks it at the end.
async fn copy(
    mut from: lapstrake_registry::BlobReader,
    writer: &mut impl std::io::Write,
    place: &Place,
    cancel: &CancellationToken,
) -> Result<(), BuildError> {
    let failed =
        |e: std::io::Error| BuildError::new(Reason::ImageNotFound, format!("cache {place}: {}", chain(&e)));
    let mut piece = vec![0; 256 << 10];
    loop {
        let read = cancel.run_until_cancelled(from.read(&mut piece)).await;
        let read = read.ok_or_else(BuildError::canceled)?.map_err(failed)?;
        let Some(bytes) = piece.get(..read).filter(|bytes| !bytes.is_empty()) else { return Ok(()) };
        writer.write_all(bytes).map_err(failed)?;
    }
}

impl LazyLayer {
    fn unpack(
        &self,
        store: &Store,
        parent: Option<SnapshotId>,
        userxattr: bool,
    ) -> Result<SnapshotId, BuildError> {
        store.unpack_once(self.chain, parent, |active| {
            let file = store.open_blob(&self.blob.digest)?;
            let options = ApplyOptions { userxattr, lowers_top_first: active.lowers_top_first() };
            let applied = apply_layer(file, &self.blob.media_type, &active.upper(), &options)
                .map_err(|e| self.damaged(&e))?;
            if applied.diff_id != self.diff_id {
                let message = format!(
                    "failed to verify layer {}: it has diff id {}, but the image's config says {}",
                    self.blob.digest, applied.diff_id, self.diff_id
                );
                return Err(BuildError::new(Reason::ImageNotFound, message));
            }
            if let Some(first) = applied.skipped.first() {
                let more = applied.skipped.len() - 1;
                tracing::warn!("layer {}: {first} and {more} more were left out", self.blob.digest);
            }
            let blobs = vec![Descriptor::new(&self.blob.media_type, self.blob.digest, self.blob.size)];
            Ok(LayerFacts {
                diff_id: self.diff_id,
                chain_id: self.chain,
                tar_bytes: applied.tar_bytes,
                blobs,
            })
        })
    }
}

impl LazyLayer {
    fn damaged(&self, error: &lapstrake_image::Error) -> BuildError {
        let reason = match error.is_no_space() || is_no_space(error) {
            true => Reason::DiskFull,
            false if error.is_corrupt() => Reason::ImageNotFound,
            false => Reason::Internal,
        };
        BuildError::new(reason, format!("unpacking layer {}: {}", self.blob.digest, chain(error)))
    }
}

fn no_platform(reference: &Reference, platform: &Platform, index: &lapstrake_oci::Index) -> BuildError {
    let there: Vec<String> = index
        .manifests
        .iter()
        .filter_map(|m| m.platform.as_ref())
        .filter(|p| p.os != "unknown")
        .map(ToString::to_string)
        .collect();
    let message = format!("image {reference} has no manifest for {platform}; it has {}", there.join(", "));
    BuildError::new(Reason::ImageNotFound, message)
}

fn pull_error(error: lapstrake_registry::Error) -> BuildError {
    BuildError::registry(&error, Asked::Pull)
}
