//! What a build did, as a cache that other builders read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use lapstrake_cache::limits::BUILDKIT_BYTES_MAX;
use lapstrake_cache::manifest::Form;
use lapstrake_cache::{Draft, RecordId, inline};
use lapstrake_handoff::{CacheExport, CacheMode, CacheStore, CacheTarget, Reason};
use lapstrake_image::{export, media};
use lapstrake_oci::{Descriptor, Digest, Reference};
use lapstrake_store::{SnapshotId, SnapshotInfo};
use tokio_util::sync::CancellationToken;

use super::collect::{Collected, collect};
use super::{files, layers, push};
use crate::build::{Solved, abortable};
use crate::client::cache_store;
use crate::engine::{CREATED, Engine, Res};
use crate::error::{Asked, BuildError, chain};
use crate::options::{BuildOptions, Output};
use crate::progress::{Progress, Step};

/// Blobs that are made or sent at the same time.
const PARALLEL: usize = 4;

/// What a client is told of a cache: its manifest, by which it finds it again.
const MANIFEST: &str = "cache.manifest";

/// Writes a cache, unless it is within an image; what BuildKit's clients are told of it.
pub(super) async fn cache(
    engine: &Arc<Engine>,
    solved: &[Solved],
    options: &BuildOptions,
    export: &CacheExport,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<BTreeMap<String, String>, BuildError> {
    let name = match &export.to {
        CacheTarget::Inline => return Ok(BTreeMap::new()),
        CacheTarget::Registry { .. } => "exporting cache to registry",
        CacheTarget::Local { .. } => "exporting cache to client directory",
        CacheTarget::Store(store) if store.kind == "s3" => "exporting cache to Amazon S3",
        CacheTarget::Store(store) if store.kind == "gha" => "exporting to GitHub Actions Cache",
        CacheTarget::Store(_) => "exporting cache to Azure Blob Storage",
    };
    let step = progress.step(name);
    let job = Job { engine, solved, options, export, step: &step, cancel };
    match abortable(cancel, job.run()).await {
        Err(error) if export.ignore_error && error.failure().reason != Reason::Canceled => {
            step.failed(&error.to_string());
            progress.text(&format!("warning: the cache was not written: {error}"));
            Ok(BTreeMap::new())
        }
        done => {
            let Some(manifest) = step.close(done)? else { return Ok(BTreeMap::new()) };
            let text = serde_json::to_string(&manifest).map_err(BuildError::internal)?;
            Ok(BTreeMap::from([(MANIFEST.to_owned(), text)]))
        }
    }
}

/// A file system by the layers that it consists of: each as a snapshot, as a chain of diff ids, or both.
type Marks = Vec<(Option<SnapshotId>, Option<Digest>)>;

fn marks(engine: &Engine, solved: &Solved) -> Result<Marks, BuildError> {
    if let Some(lazy) = &solved.lazy {
        // What the export itself unpacked is known as a snapshot since.
        let mark = |chain| (engine.store().snapshot_of_chain(&chain), Some(chain));
        return Ok(lazy.layers.iter().map(|layer| mark(layer.chain)).collect());
    }
    let Some(top) = solved.snapshot else { return Ok(Vec::new()) };
    let chain = engine.store().chain_bottom_first(top)?;
    Ok(chain.iter().map(|s| (Some(s.id), s.layer.as_ref().map(|l| l.chain_id))).collect())
}

/// With which layer of a file system a result ends that is the lower part of it.
fn place_in(marks: &Marks, result: &Res) -> Option<usize> {
    match result {
        Res::Snapshot(Some(id)) => marks.iter().position(|(snapshot, _)| *snapshot == Some(*id)),
        Res::Lazy(lazy) => lazy.chain().and_then(|chain| marks.iter().position(|(_, c)| *c == Some(chain))),
        Res::Snapshot(None) | Res::Context(_) => None,
    }
}

fn created(engine: &Engine, id: SnapshotId) -> Option<String> {
    let bytes = engine.store().get(CREATED, id.to_string().as_bytes())?;
    String::from_utf8(bytes).ok()
}

/// The cache that goes into the config of an image with these layers.
pub(super) fn inline(
    engine: &Engine,
    solved: &Solved,
    layers: &[layers::Layer],
) -> Result<Option<String>, BuildError> {
    let Collected { mut draft, results } = collect(engine, solved.key);
    let marks = marks(engine, solved)?;
    for (id, result) in results {
        if let Some(at) = place_in(&marks, &result)
            && let Some(below) = layers.get(..=at)
        {
            let time = below.last().and_then(|layer| layer.created.as_ref()?.parse().ok());
            draft.result(id, below.iter().map(|layer| layer.descriptor.clone()).collect(), time);
        }
    }
    let digests: Vec<Digest> = layers.iter().map(|layer| layer.descriptor.digest).collect();
    inline::write(&draft, &digests).map_err(BuildError::internal)
}

struct Job<'a> {
    engine: &'a Arc<Engine>,
    solved: &'a [Solved],
    options: &'a BuildOptions,
    export: &'a CacheExport,
    step: &'a Step,
    cancel: &'a CancellationToken,
}

impl Job<'_> {
    /// The manifest of the cache, where there was something to write.
    async fn run(&self) -> Result<Option<Descriptor>, BuildError> {
        let began = Instant::now();
        let form = Form { image_manifest: self.export.image_manifest, oci: self.export.oci_media_types };
        // A form that does not exist is told before anything is made.
        form.write(b"", &[]).map_err(|e| BuildError::new(Reason::RequestInvalid, e.to_string()))?;
        let (draft, made) = self.draft().await?;
        if !draft.has_results() {
            self.step.part("skipping cache export for empty result", began.elapsed());
            return Ok(None);
        }
        let (config, descriptors) = draft.finish();
        if let CacheTarget::Store(store) = &self.export.to {
            self.keep(store, config, &descriptors, &made).await?;
            return Ok(None);
        }
        let config = serde_json::to_vec(&config).map_err(BuildError::internal)?;
        if config.len() as u64 > BUILDKIT_BYTES_MAX {
            let size = config.len();
            tracing::warn!(
                "the cache's config has {size} bytes; BuildKit reads no more than {BUILDKIT_BYTES_MAX}"
            );
        }
        let (bytes, media_type) = form.write(&config, &descriptors).map_err(BuildError::internal)?;
        self.step.part("preparing build cache for export", began.elapsed());
        let manifest = Descriptor::of(media_type, &bytes);
        match &self.export.to {
            CacheTarget::Registry { reference, insecure } => {
                let name: Reference = reference.parse().map_err(|e| {
                    BuildError::new(Reason::RequestInvalid, format!("cache {reference}: {e}"))
                })?;
                self.push(&name, *insecure, &descriptors, &made, &config, &bytes, media_type).await?;
            }
            CacheTarget::Local { dest, .. } if self.options.client.is_some() => {
                self.send(&cache_store(dest), &descriptors, &made, &config, &bytes, &manifest).await?;
            }
            CacheTarget::Local { dest, tag } => {
                let tag = tag.clone().unwrap_or_else(|| "latest".to_owned());
                self.write(PathBuf::from(dest), tag, descriptors, &made, config, &bytes, manifest.clone())
                    .await?;
            }
            CacheTarget::Inline | CacheTarget::Store(_) => {}
        }
        self.step.part(&format!("writing cache manifest {}", manifest.digest), began.elapsed());
        Ok(Some(manifest))
    }

    /// The records, their layers made, and the layers by digest.
    async fn draft(&self) -> Result<(Draft, HashMap<Digest, layers::Layer>), BuildError> {
        let targets = self.solved.iter().filter_map(|solved| solved.key);
        let Collected { mut draft, results } = collect(self.engine, targets);
        let results = match self.export.mode {
            CacheMode::Max => results,
            CacheMode::Min => {
                let all: Vec<Marks> =
                    self.solved.iter().map(|s| marks(self.engine, s)).collect::<Result<_, _>>()?;
                let kept = |(_, result): &(RecordId, Res)| all.iter().any(|m| place_in(m, result).is_some());
                results.into_iter().filter(kept).collect()
            }
        };
        let mut chains: Vec<(RecordId, Vec<SnapshotInfo>)> = Vec::new();
        let mut all: Vec<(RecordId, Vec<layers::Layer>)> = Vec::new();
        for (id, result) in results {
            match result {
                Res::Snapshot(Some(top)) => chains.push((id, self.engine.store().chain_bottom_first(top)?)),
                // What a cache has lost stays a record, by which others find what rests on it.
                Res::Lazy(lazy) if !self.engine.is_there(&lazy).await => {}
                Res::Lazy(lazy) => all.push((id, lazy.layers.iter().map(layers::Layer::of_lazy).collect())),
                Res::Snapshot(None) | Res::Context(_) => {}
            }
        }
        let by_snapshot = self.layers(&chains).await?;
        for (id, chain) in &chains {
            let layers: Option<Vec<_>> = chain.iter().map(|s| by_snapshot.get(&s.id).cloned()).collect();
            let Some(mut layers) = layers else { continue };
            if let (Some(last), Some(top)) = (layers.last_mut(), chain.last()) {
                last.created = created(self.engine, top.id);
            }
            all.push((*id, layers));
        }
        let times = self.times(&by_snapshot)?;
        let mut made: HashMap<Digest, layers::Layer> = HashMap::new();
        for (id, layers) in all {
            self.result(&mut draft, id, &layers, &times);
            made.extend(layers.into_iter().map(|layer| (layer.descriptor.digest, layer)));
        }
        Ok((draft, made))
    }

    /// When the layers of the results themselves were made: a step of another stage may have made the same one at another time, and
    /// what is built of the cache shall be the same image.
    fn times(
        &self,
        by_snapshot: &BTreeMap<SnapshotId, layers::Layer>,
    ) -> Result<HashMap<Digest, String>, BuildError> {
        let mut times = HashMap::new();
        for solved in self.solved {
            if let Some(top) = solved.snapshot {
                for snapshot in self.engine.store().chain_bottom_first(top)? {
                    let time = created(self.engine, snapshot.id);
                    let layer = by_snapshot.get(&snapshot.id).map(|layer| layer.descriptor.digest);
                    times.extend(layer.zip(time));
                }
            }
            let lazy = solved.lazy.iter().flat_map(|lazy| &lazy.layers);
            times.extend(lazy.filter_map(|layer| Some((layer.blob.digest, layer.created.clone()?))));
        }
        Ok(times)
    }

    fn result(
        &self,
        draft: &mut Draft,
        id: RecordId,
        layers: &[layers::Layer],
        times: &HashMap<Digest, String>,
    ) {
        let time = layers.last().and_then(|layer| layer.created.as_ref()?.parse().ok());
        let descriptor = |layer: &layers::Layer| {
            let mut descriptor = layer.descriptor.clone();
            descriptor.media_type = media::convert(&descriptor.media_type, !self.export.oci_media_types);
            descriptor.annotations.insert(inline::UNCOMPRESSED.to_owned(), layer.diff_id.to_string());
            if let Some(created) = times.get(&layer.descriptor.digest).or(layer.created.as_ref()) {
                descriptor.annotations.insert(inline::CREATED_AT.to_owned(), created.clone());
            }
            descriptor
        };
        draft.result(id, layers.iter().map(descriptor).collect(), time);
    }

    /// All snapshots as layers, each made once.
    async fn layers(
        &self,
        chains: &[(RecordId, Vec<SnapshotInfo>)],
    ) -> Result<BTreeMap<SnapshotId, layers::Layer>, BuildError> {
        let mut snapshots: BTreeMap<SnapshotId, SnapshotInfo> = BTreeMap::new();
        for snapshot in chains.iter().flat_map(|(_, chain)| chain) {
            snapshots.entry(snapshot.id).or_insert_with(|| snapshot.clone());
        }
        let bases: BTreeSet<Digest> = self.base_chains();
        let cache = layers::CacheLayers::new(self.engine, self.export, self.options.source_date_epoch);
        let wanted: Vec<_> = snapshots
            .into_values()
            .map(|snapshot| {
                let from_base = snapshot.layer.as_ref().is_some_and(|l| bases.contains(&l.chain_id));
                (cache.cell(self.engine, &snapshot, from_base), snapshot, from_base)
            })
            .collect();
        let jobs = wanted.iter().map(|(cell, snapshot, from_base)| async move {
            let layer = cache.made_once(self.engine, cell, snapshot.clone(), *from_base).await?;
            Ok::<_, BuildError>((snapshot.id, layer))
        });
        let made: BTreeMap<SnapshotId, layers::Layer> =
            stream::iter(jobs.collect::<Vec<_>>()).buffer_unordered(PARALLEL).try_collect().await?;
        if !cache.is_variant() {
            self.remember(chains, &made)?;
        }
        Ok(made)
    }

    /// Chain ids of all layers of base images: those are never made anew.
    fn base_chains(&self) -> BTreeSet<Digest> {
        let mut chains = BTreeSet::new();
        for base in self.solved.iter().flat_map(|solved| &solved.bases) {
            let mut below: Option<Digest> = None;
            for diff_id in &base.config.rootfs.diff_ids {
                let chain = lapstrake_store::chain_id(below.as_ref(), diff_id);
                chains.insert(chain);
                below = Some(chain);
            }
        }
        chains
    }

    /// Tells the store what its snapshots are as layers; what lies in a longer chain needs no telling twice.
    fn remember(
        &self,
        chains: &[(RecordId, Vec<SnapshotInfo>)],
        made: &BTreeMap<SnapshotId, layers::Layer>,
    ) -> Result<(), BuildError> {
        let mut longest: Vec<&Vec<SnapshotInfo>> = chains.iter().map(|(_, chain)| chain).collect();
        longest.sort_by_key(|chain| std::cmp::Reverse(chain.len()));
        let mut told: BTreeSet<SnapshotId> = BTreeSet::new();
        for chain in longest {
            if chain.iter().all(|snapshot| told.contains(&snapshot.id)) {
                continue;
            }
            let layers: Option<Vec<_>> = chain.iter().map(|s| made.get(&s.id).cloned()).collect();
            if let Some(layers) = layers {
                layers::remember_chain(self.engine.store(), chain, &layers, 0)?;
            }
            told.extend(chain.iter().map(|snapshot| snapshot.id));
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one document")]
    async fn push(
        &self,
        name: &Reference,
        insecure: bool,
        descriptors: &[Descriptor],
        made: &HashMap<Digest, layers::Layer>,
        config: &[u8],
        manifest: &[u8],
        media_type: &str,
    ) -> Result<(), BuildError> {
        let client = self.engine.images().client();
        let client = if insecure { client.with_insecure(name.registry()) } else { client.clone() };
        let client = client.with_cancel(self.cancel.clone());
        let denied = |e: &lapstrake_registry::Error| BuildError::registry(e, Asked::Push);
        let also = self.pushed_to(name);
        let pushes = descriptors.iter().filter_map(|d| made.get(&d.digest)).map(|layer| {
            let (client, also, began) = (&client, &also, Instant::now());
            async move {
                let source = push::source(self.engine, layer, self.cancel);
                let from = self.candidates(layer, name, also);
                let silent = lapstrake_registry::Progress::none();
                let pushed = client.push_blob(name, &layer.descriptor, &source, &from, &silent).await;
                pushed.map_err(|e| denied(&e))?;
                self.step.part(&format!("writing layer {}", layer.descriptor.digest), began.elapsed());
                Ok::<_, BuildError>(())
            }
        });
        stream::iter(pushes.collect::<Vec<_>>()).buffer_unordered(PARALLEL).try_collect::<Vec<_>>().await?;
        let began = Instant::now();
        let descriptor = Descriptor::of(lapstrake_cache::doc::CONFIG_MEDIA_TYPE, config);
        self.engine.store().put_blob(config)?;
        let source = push::stored(self.engine.store(), descriptor.digest);
        let silent = lapstrake_registry::Progress::none();
        client.push_blob(name, &descriptor, &source, &[], &silent).await.map_err(|e| denied(&e))?;
        self.step.part(&format!("writing config {}", descriptor.digest), began.elapsed());
        client.push_manifest(name, media_type, manifest.to_vec()).await.map_err(|e| denied(&e))?;
        Ok(())
    }

    /// Into a content store of the client, which writes the index of its directory itself.
    async fn send(
        &self,
        store: &str,
        descriptors: &[Descriptor],
        made: &HashMap<Digest, layers::Layer>,
        config: &[u8],
        manifest: &[u8],
        named: &Descriptor,
    ) -> Result<(), BuildError> {
        let Some(receiver) = &self.options.client else { return Ok(()) };
        for layer in descriptors.iter().filter_map(|d| made.get(&d.digest)) {
            let began = Instant::now();
            let source = push::source(self.engine, layer, self.cancel);
            receiver.blob(store, &layer.descriptor, &source).await?;
            self.step.part(&format!("writing layer {}", layer.descriptor.digest), began.elapsed());
        }
        let config_descriptor = Descriptor::of(lapstrake_cache::doc::CONFIG_MEDIA_TYPE, config);
        let documents = [(&config_descriptor, config), (named, manifest)];
        for (descriptor, bytes) in documents {
            let source = lapstrake_registry::BlobSource::bytes(bytes.to_vec());
            receiver.blob(store, descriptor, &source).await?;
        }
        Ok(())
    }

    /// Into an object store: what it has is not sent again, and the document goes last.
    async fn keep(
        &self,
        store: &CacheStore,
        config: lapstrake_cache::doc::Config,
        descriptors: &[Descriptor],
        made: &HashMap<Digest, layers::Layer>,
    ) -> Result<(), BuildError> {
        let failed = |e: lapstrake_bucket::Error| BuildError::new(Reason::RegistryUnavailable, chain(&e));
        let bucket = crate::import::bucket(store).await?;
        let document = lapstrake_cache::object::write(config, descriptors).map_err(BuildError::internal)?;
        let sends = descriptors.iter().filter_map(|d| made.get(&d.digest)).map(|layer| {
            let (bucket, began) = (&bucket, Instant::now());
            async move {
                let (digest, size) = (layer.descriptor.digest, layer.descriptor.size);
                if bucket.keep(digest).await.map_err(failed)? {
                    return Ok::<_, BuildError>(());
                }
                let source = push::source(self.engine, layer, self.cancel);
                let from = source.open(0).await.map_err(|e| BuildError::internal(chain(&e)))?;
                bucket.write(digest, size, from).await.map_err(failed)?;
                self.step.part(&format!("writing layer {digest}"), began.elapsed());
                Ok(())
            }
        });
        let sends = stream::iter(sends.collect::<Vec<_>>()).buffer_unordered(bucket.parallelism());
        sends.try_collect::<Vec<_>>().await?;
        bucket.write_document(&document).await.map_err(failed)
    }

    /// Repositories of the cache's registry that this build pushed to.
    fn pushed_to(&self, name: &Reference) -> Vec<String> {
        let names = self.options.outputs.iter().flat_map(|output| match output {
            Output::Push(image) => image.names.as_slice(),
            _ => &[],
        });
        let same = names.filter(|n| n.registry() == name.registry() && n.repository() != name.repository());
        same.map(|n| n.repository().to_owned()).collect()
    }

    fn candidates(&self, layer: &layers::Layer, name: &Reference, also: &[String]) -> Vec<String> {
        let bases = self.solved.iter().flat_map(|solved| solved.bases.iter());
        let mut from = push::mount_candidates(layer, name, bases);
        from.extend(also.iter().cloned());
        from
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one document")]
    async fn write(
        &self,
        dest: PathBuf,
        tag: String,
        descriptors: Vec<Descriptor>,
        made: &HashMap<Digest, layers::Layer>,
        config: Vec<u8>,
        manifest: &[u8],
        descriptor: Descriptor,
    ) -> Result<(), BuildError> {
        for layer in descriptors.iter().filter_map(|d| made.get(&d.digest)) {
            layer.fetch(self.engine, self.cancel).await?;
        }
        let (store, manifest) = (self.engine.store().clone(), manifest.to_vec());
        let work = move || {
            let blobs: Vec<_> = descriptors.iter().map(|d| (d.digest, d.size)).collect();
            let documents = [config.as_slice(), manifest.as_slice()];
            export::oci_layout_artifact(&dest, &blobs, &documents, &files::Blobs(store), &descriptor, &tag)
                .map_err(files::failed)
        };
        tokio::task::spawn_blocking(work).await.map_err(BuildError::internal)?
    }
}
