//! The layers of a snapshot as blobs: made once, remembered with the snapshot.

use std::sync::Arc;
use std::time::Instant;

use futures::future::Either;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use lapstrake_handoff::CacheExport;
use lapstrake_image::apply::decompress;
use lapstrake_image::compress::{Compressor, Kind};
use lapstrake_image::diff::{DiffOptions, write_changes, write_diff};
use lapstrake_image::{estargz, media};
use lapstrake_oci::{Descriptor, Digest};
use lapstrake_registry::Progress;
use lapstrake_store::{Durability, LayerFacts, SnapshotInfo, Store, Table, chain_id};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::making::Cell;
use crate::build::{Solved, abortable};
use crate::engine::{ABOUT, CREATED, Engine, LazyLayer, Place, Resolved, Watch, is_bare, origin};
use crate::error::{BuildError, chain, is_no_space};
use crate::options::Image;
use crate::progress::Step;
use crate::room;

/// Layers that are made in a way of their own, clamped to an epoch or packed at a level: they are not what
/// the store knows the snapshot as.
const VARIANTS: Table = Table::named("layer-variants");
/// Annotation of a layer whose files have no later time than this.
const REWRITTEN: &str = "buildkit/rewritten-timestamp";
/// Layers that are made at the same time; each is packed on all processors.
const LAYERS_PARALLEL: usize = 4;

/// A layer of the image.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    /// Its blob.
    pub(crate) descriptor: Descriptor,
    /// Digest of its tar.
    pub(crate) diff_id: Digest,
    /// Size of its tar; 0 where that is not known.
    pub(crate) tar_bytes: u64,
    /// When it was made, RFC 3339.
    pub(crate) created: Option<String>,
    /// What made it, where that is known.
    pub(crate) about: Option<String>,
    /// Where it is, should its blob not be in the store.
    pub(crate) place: Option<Arc<Place>>,
}

impl Layer {
    /// A layer of a cache.
    pub(super) fn of_lazy(layer: &LazyLayer) -> Self {
        Self {
            descriptor: layer.blob.clone(),
            diff_id: layer.diff_id,
            tar_bytes: 0,
            created: layer.created.clone(),
            about: layer.about.clone(),
            place: Some(Arc::clone(&layer.place)),
        }
    }

    /// Brings its blob into the store.
    pub(super) async fn fetch(&self, engine: &Engine, cancel: &CancellationToken) -> Result<(), BuildError> {
        match &self.place {
            None => Ok(()),
            Some(place) => {
                let silent = Progress::none();
                let fetched = engine.images().fetch_from(place, &self.descriptor, &silent, cancel);
                fetched.await.inspect_err(|error| engine.lose(place, error))
            }
        }
    }

    pub(super) fn for_assembly(&self) -> lapstrake_image::assemble::Layer {
        lapstrake_image::assemble::Layer {
            descriptor: self.descriptor.clone(),
            diff_id: self.diff_id,
            created: self.created.clone(),
            about: self.about.clone(),
        }
    }
}

/// How a layer is wanted.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    kind: Kind,
    estargz: bool,
    /// Also layers that came from elsewhere are to be of this kind.
    forced: bool,
    level: Option<i32>,
    userxattr: bool,
    docker: bool,
    epoch: Option<i64>,
    threads: usize,
}

impl Wanted {
    fn is_variant(&self) -> bool {
        self.epoch.is_some() || self.level.is_some() || self.estargz
    }

    /// Where a snapshot's layer is made once for all who want it like this; snapshots of the same files have one.
    fn cell(&self, engine: &Engine, snapshot: &SnapshotInfo) -> Arc<Cell> {
        let mut made_of = snapshot.id;
        while let Some(origin) = origin(engine.store(), made_of) {
            made_of = origin.id;
        }
        let mut key = variant_key(made_of, *self);
        key.push(u8::from(self.forced));
        engine.making().cell(key)
    }
}

/// A layer that another one is making is waited for; `work` makes it where nobody does.
async fn made_once(
    cell: &Cell,
    store: Store,
    snapshot: SnapshotInfo,
    wanted: Wanted,
    work: impl FnOnce(&Store, &SnapshotInfo) -> Result<Layer, BuildError> + Send + 'static,
) -> Result<Layer, BuildError> {
    let mut made = cell.lock().await;
    let fits = |layer: &&Layer| {
        is_there(&store, &layer.descriptor)
            && media::kind_of(&layer.descriptor.media_type) == Some(wanted.kind)
    };
    if let Some(layer) = made.as_ref().filter(fits) {
        let mut layer = layer.clone();
        layer.descriptor.media_type = media::convert(&layer.descriptor.media_type, wanted.docker);
        (layer.created, layer.about) = (created(&store, &snapshot), about(&store, &snapshot));
        return Ok(layer);
    }
    let work = move || work(&store, &snapshot);
    let layer = tokio::task::spawn_blocking(work).await.map_err(BuildError::internal)??;
    *made = Some(layer.clone());
    Ok(layer)
}

#[derive(Serialize, Deserialize)]
struct Variant {
    descriptor: Descriptor,
    diff_id: Digest,
}

/// Makes what is missing, several layers at a time; a base image's layers stay as they came.
pub(super) async fn make(
    engine: &Arc<Engine>,
    solved: &Solved,
    image: &Image,
    docker: bool,
    epoch: Option<i64>,
    step: &Step,
    cancel: &CancellationToken,
) -> Result<Vec<Layer>, BuildError> {
    let began = Instant::now();
    let epoch = epoch.filter(|_| !image.keep_times);
    if let Some(layers) = still_elsewhere(solved, image, docker, epoch) {
        step.part("exporting layers", began.elapsed());
        return Ok(layers);
    }
    let snapshot = match &solved.lazy {
        Some(lazy) => engine.realise(lazy, &Watch::silent(cancel)).await?,
        None => solved.snapshot,
    };
    let Some(top) = snapshot else { return Ok(Vec::new()) };
    let snapshots = engine.store().chain_bottom_first(top)?;
    let base = solved.base.as_ref().map_or(0, |base| base.manifest.layers.len());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (kind, level, userxattr) = (super::kind(image.compression), image.level, engine.userxattr());
    let estargz = image.estargz;
    let forced = image.force_compression;
    let wanted = Wanted { kind, estargz, forced, level, userxattr, docker, epoch, threads };
    let bases = solved
        .base
        .iter()
        .flat_map(|image| (0..base).map(move |at| from_base(engine, image, at, docker, cancel)))
        .map(|layer| async move {
            let layer = layer.await?;
            match forced {
                true => packed_anew(engine.store().clone(), layer, wanted).await,
                false => Ok(layer),
            }
        });
    // They are kept until the store knows the layers.
    let cells: Vec<_> = snapshots.iter().skip(base).map(|it| wanted.cell(engine, it)).collect();
    let jobs = snapshots.iter().skip(base).zip(&cells).map(|(snapshot, cell)| {
        let work = move |store: &Store, snapshot: &SnapshotInfo| {
            room::retried_blocking(store, || one(store, snapshot, wanted))
        };
        made_once(cell, engine.store().clone(), snapshot.clone(), wanted, work)
    });
    let jobs = bases.map(Either::Left).chain(jobs.map(Either::Right));
    let layers: Vec<Layer> =
        abortable(cancel, stream::iter(jobs.collect::<Vec<_>>()).buffered(LAYERS_PARALLEL).try_collect())
            .await?;
    if !wanted.is_variant() {
        remember_chain(engine.store(), &snapshots, &layers, base)?;
    }
    let mut layers = layers;
    if let (Some(epoch), true) = (epoch, image.mark_rewritten) {
        for layer in layers.iter_mut().skip(base) {
            layer.descriptor.annotations.insert(REWRITTEN.to_owned(), epoch.to_string());
        }
    }
    step.part("exporting layers", began.elapsed());
    Ok(layers)
}

/// The layers of a result that is in a cache, without fetching any: as they are wanted they are there already.
fn still_elsewhere(solved: &Solved, image: &Image, docker: bool, epoch: Option<i64>) -> Option<Vec<Layer>> {
    let lazy = solved.lazy.as_ref()?;
    if epoch.is_some() || image.level.is_some() || image.estargz {
        return None;
    }
    let base = solved.base.as_ref().map_or(&[][..], |base| &base.manifest.layers);
    let kind = super::kind(image.compression);
    let mut layers = Vec::with_capacity(lazy.layers.len());
    for (at, layer) in lazy.layers.iter().enumerate() {
        let mut made = Layer::of_lazy(layer);
        match base.get(at) {
            // A base image's layers stay as they came, unless that is not enough.
            Some(_) if image.force_compression && media::kind_of(&layer.blob.media_type) != Some(kind) => {
                return None;
            }
            Some(blob) if blob.digest == layer.blob.digest => {}
            Some(_) => return None,
            None if media::kind_of(&layer.blob.media_type) == Some(kind) => {}
            None => return None,
        }
        made.descriptor.media_type = media::convert(&made.descriptor.media_type, docker);
        layers.push(made);
    }
    Some(layers)
}

/// How snapshots become layers of a cache: as they are known already, else as the image's layers are made.
#[derive(Clone, Copy)]
pub(super) struct CacheLayers {
    wanted: Wanted,
    force: bool,
}

impl CacheLayers {
    pub(super) fn new(engine: &Engine, export: &CacheExport, epoch: Option<i64>) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let wanted = Wanted {
            kind: super::kind(export.compression),
            estargz: false,
            forced: export.force_compression,
            level: export.compression_level,
            userxattr: engine.userxattr(),
            docker: false,
            epoch,
            threads,
        };
        Self { wanted, force: export.force_compression }
    }

    pub(super) fn is_variant(self) -> bool {
        self.wanted.is_variant()
    }

    /// As [`CacheLayers::make`], once for all who want it at the same time.
    pub(super) async fn made_once(
        self,
        engine: &Engine,
        cell: &Cell,
        snapshot: SnapshotInfo,
        from_base: bool,
    ) -> Result<Layer, BuildError> {
        let work = move |store: &Store, snapshot: &SnapshotInfo| self.make(store, snapshot, from_base);
        made_once(cell, engine.store().clone(), snapshot, self.of(from_base), work).await
    }

    /// Where a snapshot's layer is made, to be kept until the store knows the layer.
    pub(super) fn cell(self, engine: &Engine, snapshot: &SnapshotInfo, from_base: bool) -> Arc<Cell> {
        self.of(from_base).cell(engine, snapshot)
    }

    /// Layers of base images keep their times.
    fn of(self, from_base: bool) -> Wanted {
        match from_base {
            true => Wanted { epoch: None, ..self.wanted },
            false => self.wanted,
        }
    }

    /// A snapshot's layer; `from_base` is never clamped or packed anew unless that is forced. Blocking.
    fn make(self, store: &Store, snapshot: &SnapshotInfo, from_base: bool) -> Result<Layer, BuildError> {
        if let Some(facts) =
            snapshot.layer.as_ref().filter(|_| !self.force && (from_base || !self.is_variant()))
            && let Some(blob) = facts.blobs.iter().find(|blob| is_there(store, blob))
        {
            let (created, about) = (created(store, snapshot), about(store, snapshot));
            let (diff_id, tar_bytes) = (facts.diff_id, facts.tar_bytes);
            return Ok(Layer { descriptor: blob.clone(), diff_id, tar_bytes, created, about, place: None });
        }
        let wanted = self.of(from_base);
        // Packed anew, but the tar that its image knows: made anew it would be another layer.
        if let Some(facts) = snapshot.layer.as_ref().filter(|_| from_base && self.force)
            && let Some(blob) = facts.blobs.iter().find(|blob| is_there(store, blob))
        {
            let (descriptor, diff_id, tar_bytes) = (blob.clone(), facts.diff_id, facts.tar_bytes);
            let layer = Layer {
                descriptor,
                diff_id,
                tar_bytes,
                created: created(store, snapshot),
                about: about(store, snapshot),
                place: None,
            };
            return match media::kind_of(&layer.descriptor.media_type) == Some(wanted.kind) {
                true => Ok(layer),
                false => repacked(store, layer, wanted),
            };
        }
        one(store, snapshot, wanted)
    }
}

/// A base image's layer, as its manifest has it. Its blob comes from the registry where it is not here: it
/// was damaged, or the same files came in another blob.
async fn from_base(
    engine: &Engine,
    image: &Resolved,
    at: usize,
    docker: bool,
    cancel: &CancellationToken,
) -> Result<Layer, BuildError> {
    let lacks = || BuildError::internal(format!("image {} lacks a layer", image.reference));
    let blob = image.manifest.layers.get(at).ok_or_else(lacks)?;
    let diff_id = *image.config.rootfs.diff_ids.get(at).ok_or_else(lacks)?;
    if !is_there(engine.store(), blob) {
        let none = Progress::none();
        let fetch = || engine.images().fetch(&image.reference, blob, &none, cancel);
        room::retried(engine.store(), None, fetch).await?;
    }
    let descriptor = Descriptor::new(media::convert(&blob.media_type, docker), blob.digest, blob.size);
    Ok(Layer { descriptor, diff_id, tar_bytes: 0, created: None, about: None, place: None })
}

/// The same layer in the compression that is wanted: the tar stays what it is. Its blob must be in the store.
async fn packed_anew(store: Store, layer: Layer, wanted: Wanted) -> Result<Layer, BuildError> {
    if media::kind_of(&layer.descriptor.media_type) == Some(wanted.kind) && !wanted.estargz {
        return Ok(layer);
    }
    let work = move || repacked(&store, layer, wanted);
    tokio::task::spawn_blocking(work).await.map_err(BuildError::internal)?
}

/// The same, blocking.
fn repacked(store: &Store, layer: Layer, wanted: Wanted) -> Result<Layer, BuildError> {
    let packed = store.open_blob(&layer.descriptor.digest)?;
    let mut tar = decompress(packed).map_err(|e| BuildError::internal(chain(&e)))?;
    if wanted.estargz {
        let (descriptor, diff_id, tar_bytes) = as_estargz(store, tar, wanted)?;
        return Ok(Layer { descriptor, diff_id, tar_bytes, ..layer });
    }
    let mut to = Compressor::new(store.blob_writer()?, wanted.kind, wanted.level, wanted.threads);
    std::io::copy(&mut tar, &mut to).map_err(|e| match is_no_space(&e) {
        true => BuildError::new(lapstrake_handoff::Reason::DiskFull, chain(&e)),
        false => BuildError::internal(chain(&e)),
    })?;
    let made = to.finish().map_err(|e| BuildError::internal(chain(&e)))?;
    if made.diff_id != layer.diff_id {
        let (found, said) = (made.diff_id, layer.diff_id);
        return Err(BuildError::internal(format!("a layer holds {found}, its image says {said}")));
    }
    let (digest, size) = made.out.commit_with(Some(made.digest), Durability::Batched)?;
    let media_type = media::layer_media_type(wanted.kind, wanted.docker);
    Ok(Layer { descriptor: Descriptor::new(media_type, digest, size), ..layer })
}

/// Packs a tar as eStargz: descriptor, diff id and bytes of the tar that it holds then.
fn as_estargz(
    store: &Store,
    tar: impl std::io::Read,
    wanted: Wanted,
) -> Result<(Descriptor, Digest, u64), BuildError> {
    let failed = |error: lapstrake_image::Error| match error.is_no_space() || is_no_space(&error) {
        true => BuildError::new(lapstrake_handoff::Reason::DiskFull, chain(&error)),
        false => BuildError::internal(chain(&error)),
    };
    let made = estargz::pack(tar, store.blob_writer()?, wanted.level).map_err(failed)?;
    let (digest, size) = made.out.commit_with(Some(made.digest), Durability::Batched)?;
    let mut descriptor = Descriptor::new(media::layer_media_type(Kind::Gzip, wanted.docker), digest, size);
    descriptor.annotations.insert(estargz::TOC_DIGEST.to_owned(), made.toc.to_string());
    descriptor.annotations.insert(estargz::UNCOMPRESSED_SIZE.to_owned(), made.tar_bytes.to_string());
    Ok((descriptor, made.diff_id, made.tar_bytes))
}

/// Whether a blob is in the store, by its size: one that a power cut damaged is as a rule too short.
fn is_there(store: &Store, blob: &Descriptor) -> bool {
    store.blob_size_bytes(&blob.digest) == Some(blob.size)
}

/// Tells the store what the snapshots are as layers; the chain needs all below.
pub(super) fn remember_chain(
    store: &Store,
    snapshots: &[SnapshotInfo],
    layers: &[Layer],
    base: usize,
) -> Result<(), BuildError> {
    let mut below = None;
    for (at, (snapshot, layer)) in snapshots.iter().zip(layers).enumerate() {
        let chain = chain_id(below.as_ref(), &layer.diff_id);
        below = Some(chain);
        let known = snapshot.layer.as_ref();
        let there = known.is_some_and(|k| {
            k.chain_id == chain && k.blobs.iter().any(|b| b.digest == layer.descriptor.digest)
        });
        // What was unpacked is known as what it was unpacked from.
        if at < base || there {
            continue;
        }
        // Blobs of one tar: those of another would not fit its diff id.
        let same = known.filter(|k| k.diff_id == layer.diff_id);
        let mut blobs = same.map(|k| k.blobs.clone()).unwrap_or_default();
        blobs.retain(|blob| blob.digest != layer.descriptor.digest);
        blobs.push(layer.descriptor.clone());
        let facts = LayerFacts { diff_id: layer.diff_id, chain_id: chain, tar_bytes: layer.tar_bytes, blobs };
        store.set_layer(snapshot.id, facts)?;
    }
    Ok(())
}

/// Tells the store what the snapshot is as a layer that others have too, so that it is made once whatever they lie on.
fn remember_origin(store: &Store, origin: &SnapshotInfo, layer: &Layer) -> Result<(), BuildError> {
    let below = match origin.parent {
        None => None,
        Some(parent) => match store.snapshot(parent).and_then(|parent| parent.layer) {
            Some(facts) => Some(facts.chain_id),
            // What it is as a chain is not known.
            None => return Ok(()),
        },
    };
    let (diff_id, chain_id) = (layer.diff_id, chain_id(below.as_ref(), &layer.diff_id));
    let known = store.snapshot(origin.id).and_then(|origin| origin.layer);
    let mut blobs =
        known.filter(|known| known.diff_id == diff_id).map(|known| known.blobs).unwrap_or_default();
    if blobs.iter().any(|blob| blob.digest == layer.descriptor.digest) {
        return Ok(());
    }
    blobs.push(layer.descriptor.clone());
    store.set_layer(origin.id, LayerFacts { diff_id, chain_id, tar_bytes: layer.tar_bytes, blobs })?;
    Ok(())
}

fn one(store: &Store, snapshot: &SnapshotInfo, wanted: Wanted) -> Result<Layer, BuildError> {
    let (created, about) = (created(store, snapshot), about(store, snapshot));
    if let Some(layer) = known(store, snapshot, wanted) {
        return Ok(Layer { created, about, ..layer });
    }
    if let Some(origin) = origin(store, snapshot.id) {
        let layer = one(store, &origin, wanted)?;
        if !wanted.is_variant() {
            remember_origin(store, &origin, &layer)?;
        }
        return Ok(Layer { created, about, ..layer });
    }
    let failed = |error: lapstrake_image::Error| match error.is_no_space() || is_no_space(&error) {
        true => BuildError::new(lapstrake_handoff::Reason::DiskFull, chain(&error)),
        false => BuildError::internal(chain(&error)),
    };
    let lowers = match snapshot.parent {
        Some(parent) => store.lowers_top_first(parent)?,
        None => Vec::new(),
    };
    let options = DiffOptions { userxattr: wanted.userxattr, mtime_max: wanted.epoch };
    let dir = store.snapshot_dir(snapshot.id);
    let write = |output: &mut dyn std::io::Write| {
        let written = match is_bare(store, snapshot.id) {
            true => write_diff(&dir, &options, output),
            false => write_changes(&dir, &lowers, &options, output),
        };
        written.map_err(failed)
    };
    let (descriptor, diff_id, tar_bytes) = if wanted.estargz {
        let mut tar = tempfile::tempfile().map_err(BuildError::internal)?;
        write(&mut tar)?;
        std::io::Seek::rewind(&mut tar).map_err(BuildError::internal)?;
        as_estargz(store, std::io::BufReader::new(tar), wanted)?
    } else {
        let mut compressor = Compressor::new(store.blob_writer()?, wanted.kind, wanted.level, wanted.threads);
        write(&mut compressor)?;
        let made = compressor.finish().map_err(failed)?;
        let (digest, size) = made.out.commit_with(Some(made.digest), Durability::Batched)?;
        let media_type = media::layer_media_type(wanted.kind, wanted.docker);
        (Descriptor::new(media_type, digest, size), made.diff_id, made.tar_bytes)
    };
    if wanted.is_variant() {
        let variant = Variant { descriptor: descriptor.clone(), diff_id };
        if let Ok(value) = serde_json::to_vec(&variant) {
            store.put(VARIANTS, &variant_key(snapshot.id, wanted), &value).ok(); // a cache: it is made again
        }
    }
    Ok(Layer { descriptor, diff_id, tar_bytes, created, about, place: None })
}

/// When a snapshot was made.
fn created(store: &Store, snapshot: &SnapshotInfo) -> Option<String> {
    String::from_utf8(store.get(CREATED, snapshot.id.to_string().as_bytes())?).ok()
}

/// What made a snapshot.
fn about(store: &Store, snapshot: &SnapshotInfo) -> Option<String> {
    String::from_utf8(store.get(ABOUT, snapshot.id.to_string().as_bytes())?).ok()
}

fn variant_key(snapshot: lapstrake_store::SnapshotId, wanted: Wanted) -> Vec<u8> {
    let form = if wanted.estargz { " estargz" } else { "" };
    format!("{} {:?} {:?} {:?}{form}", snapshot, wanted.epoch, wanted.kind, wanted.level).into_bytes()
}

fn known(store: &Store, snapshot: &SnapshotInfo, wanted: Wanted) -> Option<Layer> {
    let renamed = |mut descriptor: Descriptor| {
        descriptor.media_type = media::convert(&descriptor.media_type, wanted.docker);
        descriptor
    };
    if wanted.is_variant() {
        let value = store.get(VARIANTS, &variant_key(snapshot.id, wanted))?;
        let variant: Variant = serde_json::from_slice(&value).ok()?;
        is_there(store, &variant.descriptor).then_some(())?;
        let descriptor = renamed(variant.descriptor);
        return Some(Layer {
            descriptor,
            diff_id: variant.diff_id,
            tar_bytes: 0,
            created: None,
            about: None,
            place: None,
        });
    }
    let facts = snapshot.layer.as_ref()?;
    let there = || facts.blobs.iter().filter(|blob| is_there(store, blob));
    let fitting = there().find(|blob| media::kind_of(&blob.media_type) == Some(wanted.kind));
    // What no build made came with an image, and stays as it came.
    let as_it_came = || match wanted.forced || created(store, snapshot).is_some() {
        true => None,
        false => there().find(|blob| media::kind_of(&blob.media_type).is_some()),
    };
    let blob = fitting.or_else(as_it_came)?;
    let (diff_id, tar_bytes) = (facts.diff_id, facts.tar_bytes);
    Some(Layer {
        descriptor: renamed(blob.clone()),
        diff_id,
        tar_bytes,
        created: None,
        about: None,
        place: None,
    })
}
