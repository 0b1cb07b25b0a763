//! The layers of a snapshot as blobs: made once, remembered with the snapshot.

use std::sync::Arc;
use std::time::Instant;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use lapstrake_image::compress::{Compressor, Kind};
use lapstrake_image::diff::{DiffOptions, write_changes};
use lapstrake_image::media;
use lapstrake_oci::{Descriptor, Digest};
use lapstrake_store::{Durability, LayerFacts, SnapshotInfo, Store, Table, chain_id};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::build::{Solved, abortable};
use crate::engine::{CREATED, Engine};
use crate::error::{BuildError, chain, is_no_space};
use crate::options::Image;
use crate::progress::Step;

/// Layers whose files were clamped to an epoch: another epoch makes another layer of the same snapshot.
const CLAMPED: Table = Table::named("layers-by-epoch");

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
}

impl Layer {
    pub(super) fn for_assembly(&self) -> lapstrake_image::assemble::Layer {
        lapstrake_image::assemble::Layer {
            descriptor: self.descriptor.clone(),
            diff_id: self.diff_id,
            created: self.created.clone(),
        }
    }
}

/// How a layer is wanted.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    kind: Kind,
    level: Option<i32>,
    userxattr: bool,
    docker: bool,
    epoch: Option<i64>,
    threads: usize,
}

#[derive(Serialize, Deserialize)]
struct Clamped {
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
    let Some(top) = solved.snapshot else { return Ok(Vec::new()) };
    let began = Instant::now();
    let snapshots = engine.store().chain_bottom_first(top)?;
    let base = solved.from_base.0;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (kind, level, userxattr) = (super::kind(image.compression), image.level, engine.userxattr());
    let wanted = Wanted { kind, level, userxattr, docker, epoch, threads };
    let jobs = snapshots.iter().enumerate().map(|(at, snapshot)| {
        let (store, snapshot) = (engine.store().clone(), snapshot.clone());
        let wanted = if at < base { Wanted { epoch: None, ..wanted } } else { wanted };
        async move {
            let work = move || one(&store, &snapshot, at < base, wanted);
            tokio::task::spawn_blocking(work).await.map_err(BuildError::internal)?
        }
    });
    let layers: Vec<Layer> = abortable(cancel, stream::iter(jobs).buffered(threads).try_collect()).await?;
    if epoch.is_none() {
        remember_chain(engine.store(), &snapshots, &layers)?;
    }
    step.part("exporting layers", began.elapsed());
    Ok(layers)
}

/// Tells the store what the snapshots are as layers; the chain needs all below.
fn remember_chain(store: &Store, snapshots: &[SnapshotInfo], layers: &[Layer]) -> Result<(), BuildError> {
    let mut below = None;
    for (snapshot, layer) in snapshots.iter().zip(layers) {
        let chain = chain_id(below.as_ref(), &layer.diff_id);
        below = Some(chain);
        let known = snapshot.layer.as_ref();
        if known.is_some_and(|k| k.chain_id == chain && k.blobs.iter().any(|b| b.digest == layer.descriptor.digest)) {
            continue;
        }
        let mut blobs = known.map(|k| k.blobs.clone()).unwrap_or_default();
        blobs.push(layer.descriptor.clone());
        let facts = LayerFacts { diff_id: layer.diff_id, chain_id: chain, tar_bytes: layer.tar_bytes, blobs };
        store.set_layer(snapshot.id, facts)?;
    }
    Ok(())
}

fn one(store: &Store, snapshot: &SnapshotInfo, base: bool, wanted: Wanted) -> Result<Layer, BuildError> {
    let created = store.get(CREATED, snapshot.id.to_string().as_bytes()).and_then(|b| String::from_utf8(b).ok());
    if let Some(layer) = known(store, snapshot, base, wanted) {
        return Ok(Layer { created, ..layer });
    }
    let failed = |error: lapstrake_image::Error| match error.is_no_space() || is_no_space(&error) {
        true => BuildError::new(lapstrake_handoff::Reason::DiskFull, chain(&error)),
        false => BuildError::internal(chain(&error)),
    };
    let lowers = match snapshot.parent {
        Some(parent) => store.lowers_top_first(parent)?,
        None => Vec::new(),
    };
    let mut compressor = Compressor::new(store.blob_writer()?, wanted.kind, wanted.level, wanted.threads);
    let options = DiffOptions { userxattr: wanted.userxattr, mtime_max: wanted.epoch };
    write_changes(&store.snapshot_dir(snapshot.id), &lowers, &options, &mut compressor).map_err(failed)?;
    let made = compressor.finish().map_err(failed)?;
    let (digest, size) = made.out.commit_with(Some(made.digest), Durability::Batched)?;
    let descriptor = Descriptor::new(media::layer_media_type(wanted.kind, wanted.docker), digest, size);
    if let Some(epoch) = wanted.epoch {
        let clamped = Clamped { descriptor: descriptor.clone(), diff_id: made.diff_id };
        if let Ok(value) = serde_json::to_vec(&clamped) {
            store.put(CLAMPED, &clamped_key(snapshot, epoch, wanted), &value).ok(); // a cache: it is made again
        }
    }
    Ok(Layer { descriptor, diff_id: made.diff_id, tar_bytes: made.tar_bytes, created })
}

fn clamped_key(snapshot: &SnapshotInfo, epoch: i64, wanted: Wanted) -> Vec<u8> {
    format!("{} {epoch} {:?} {:?}", snapshot.id, wanted.kind, wanted.level).into_bytes()
}

fn known(store: &Store, snapshot: &SnapshotInfo, base: bool, wanted: Wanted) -> Option<Layer> {
    let renamed = |mut descriptor: Descriptor| {
        descriptor.media_type = media::convert(&descriptor.media_type, wanted.docker);
        descriptor
    };
    if let Some(epoch) = wanted.epoch {
        let value = store.get(CLAMPED, &clamped_key(snapshot, epoch, wanted))?;
        let clamped: Clamped = serde_json::from_slice(&value).ok()?;
        store.has_blob(&clamped.descriptor.digest).then_some(())?;
        // Layers of an epoch are not told to the store.
        let descriptor = renamed(clamped.descriptor);
        return Some(Layer { descriptor, diff_id: clamped.diff_id, tar_bytes: 0, created: None });
    }
    let facts = snapshot.layer.as_ref()?;
    let fits = |blob: &&Descriptor| {
        store.has_blob(&blob.digest) && (base || media::kind_of(&blob.media_type) == Some(wanted.kind))
    };
    let blob = facts.blobs.iter().find(fits)?;
    let (diff_id, tar_bytes) = (facts.diff_id, facts.tar_bytes);
    Some(Layer { descriptor: renamed(blob.clone()), diff_id, tar_bytes, created: None })
}
