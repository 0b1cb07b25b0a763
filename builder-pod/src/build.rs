//! One build, from its context to its outputs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use lapstrake_handoff::{BaseImage, SourceFacts, Timings};
use lapstrake_llb::{Graph, pb};
use lapstrake_oci::{Digest, Platform, Reference};
use lapstrake_solver::CacheKey;
use lapstrake_store::SnapshotId;
use tokio_util::sync::CancellationToken;

use crate::attest::{self, Attestation};
use crate::engine::{Engine, Lazy, Resolved};
use crate::error::BuildError;
use crate::excerpt::Excerpt;
use crate::export::{self, Exported};
use crate::front;
use crate::frontend_image;
use crate::options::BuildOptions;
use crate::platforms::{self, Target};
use crate::progress::{Counts, Progress};

/// What a build yielded.
#[derive(Debug, Clone, Default)]
pub(crate) struct Built {
    /// The image, where one was made.
    pub(crate) image: Option<Exported>,
    /// What the context was resolved to.
    pub(crate) revision: Option<String>,
    /// Base images and what their names stood for.
    pub(crate) base_images: Vec<BaseImage>,
    /// Steps, and those that came from the cache.
    pub(crate) steps: (u32, u32),
    /// Where the time went.
    pub(crate) timings: Timings,
    /// The platform that was built; of several the first.
    pub(crate) platform: Option<Platform>,
    /// Bytes that the state directory takes afterwards.
    pub(crate) cache_bytes: Option<u64>,
    /// Full names of the image.
    pub(crate) names: Vec<String>,
    /// Names that were left out, since a placeholder had no value.
    pub(crate) left_out: Vec<String>,
    /// What is known of the source's revision.
    pub(crate) facts: SourceFacts,
}

/// A file system that was built, and all that an exporter needs to know of it.
#[derive(Clone)]
pub(crate) struct Solved {
    /// The platform that it is for.
    pub(crate) platform: Platform,
    /// What the frontend calls that, where it is not its name.
    pub(crate) id: Option<String>,
    /// The file system.
    pub(crate) snapshot: Option<SnapshotId>,
    /// In place of a snapshot: the file system is in a cache of another build, and nothing needed it yet.
    pub(crate) lazy: Option<Arc<Lazy>>,
    /// What it is in caches: a key, and the number of the result.
    pub(crate) key: Option<(CacheKey, u32)>,
    /// Config of the image around it, with its history.
    pub(crate) config: lapstrake_oci::ImageConfig,
    /// Base images: their layers may be mounted from their repositories.
    pub(crate) bases: Vec<Arc<Resolved>>,
    /// The base image that the file system begins with.
    pub(crate) base: Option<Arc<Resolved>>,
    /// What makes it; none of the empty file system.
    pub(crate) definition: Option<pb::Definition>,
    /// What is attested of it.
    pub(crate) attestations: Vec<Attestation>,
    /// What scanners are given beside it, by names.
    pub(crate) scanned: BTreeMap<String, pb::Definition>,
}

impl Solved {
    /// A file system that was built, with the config that goes with it.
    pub(crate) fn new(
        engine: &Engine,
        tree: Tree,
        platform: Platform,
        config: lapstrake_oci::ImageConfig,
        bases: Vec<Arc<Resolved>>,
    ) -> Result<Self, BuildError> {
        let base = base_of(engine, &tree, &config, &bases)?;
        let Tree { snapshot, lazy, key } = tree;
        Ok(Self {
            platform,
            id: None,
            snapshot,
            lazy,
            key,
            config,
            bases,
            base,
            definition: None,
            attestations: Vec::new(),
            scanned: BTreeMap::new(),
        })
    }
}

/// A file system that was built: where it is, and what it is in caches.
#[derive(Clone, Default)]
pub(crate) struct Tree {
    pub(crate) snapshot: Option<SnapshotId>,
    pub(crate) lazy: Option<Arc<Lazy>>,
    pub(crate) key: Option<(CacheKey, u32)>,
}

/// The base image that a file system begins with: both its layers and its history stand at the beginning.
/// (Layers alone may be an image's that was built here from the same steps and is now only copied from.)
fn base_of(
    engine: &Engine,
    tree: &Tree,
    config: &lapstrake_oci::ImageConfig,
    bases: &[Arc<Resolved>],
) -> Result<Option<Arc<Resolved>>, BuildError> {
    let chain: Vec<Option<Digest>> = match (&tree.lazy, tree.snapshot) {
        (Some(lazy), _) => lazy.layers.iter().map(|layer| Some(layer.chain)).collect(),
        (None, None) => Vec::new(),
        (None, Some(snapshot)) => {
            let chain = engine.store().chain_bottom_first(snapshot)?;
            chain.iter().map(|s| s.layer.as_ref().map(|l| l.chain_id)).collect()
        }
    };
    let begins = |base: &&Arc<Resolved>| {
        let diff_ids = &base.config.rootfs.diff_ids;
        let wanted = lapstrake_store::chain_of(diff_ids);
        let at = diff_ids.len().checked_sub(1).and_then(|top| chain.get(top)).copied().flatten();
        at == wanted && config.history.starts_with(&base.config.history)
    };
    let extent = |base: &&Arc<Resolved>| (base.config.rootfs.diff_ids.len(), base.config.history.len());
    Ok(bases.iter().filter(begins).max_by_key(extent).cloned())
}

/// Runs a build. Everything that fails says so on `progress` and in the error.
pub(crate) async fn build(
    engine: &Arc<Engine>,
    options: &BuildOptions,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<Built, BuildError> {
    let work = async {
        loop {
            let result = run(engine, options, progress, cancel).await;
            let lost = engine.remote().lost();
            if result.is_ok() || lost.is_empty() || cancel.is_cancelled() {
                return result;
            }
            // A cache only saves work: once more, without it. What was made meanwhile is there.
            for cache in lost {
                progress.text(&format!("warning: cache {cache} lacks what it promised: building without it"));
            }
        }
    };
    tokio::select! {
        result = work => result,
        // Steps see the token themselves; this ends what only waits for others.
        () = graceful(cancel) => Err(BuildError::canceled()),
    }
}

/// Some time after a cancellation, in which what runs cleans up.
async fn graceful(cancel: &CancellationToken) {
    cancel.cancelled().await;
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
}

async fn run(
    engine: &Arc<Engine>,
    options: &BuildOptions,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<Built, BuildError> {
    engine.give(&options.inputs, &options.reach);
    for warning in &options.warnings {
        progress.text(&format!("warning: {warning}"));
    }
    let loaded = front::load(engine, options, progress, cancel).await?;
    let began = Instant::now();
    let (source_ms, left_out) = (loaded.source_ms, loaded.left_out());
    let (revision, facts) = (loaded.acquired.revision.clone(), loaded.acquired.facts.clone());
    let attested = attest::Built::of(&loaded);
    let (options, mut solved) = match loaded.other_frontend() {
        Some(image) => {
            let asked = frontend_image::solve(engine, &loaded, &image, progress, cancel).await?;
            (asked.options, asked.solved)
        }
        None => lowered(engine, loaded, progress, cancel).await?,
    };
    let solve_ms = millis(began);
    attest::attach(engine, &attested, &options, &mut solved, progress, cancel).await?;
    let wanted = |output| export::Wanted { solved: &solved, options: &options, output };
    let outputs = options.outputs.iter().map(wanted).collect();
    let made = export::make(engine, outputs, progress, cancel).await?;
    let image = made.images().flatten().last();
    let (_, mut timings) = made.finish(engine, (&solved, &options), progress, cancel).await?;
    timings.source_ms = source_ms;
    timings.solve_ms = solve_ms;
    let Counts { steps, cached } = progress.counts();
    let names = options.outputs.iter().filter_map(|output| output.image()).flat_map(|image| &image.names);
    Ok(Built {
        image,
        revision,
        base_images: base_images(solved.iter().flat_map(|solved| &solved.bases)),
        steps: (steps, cached),
        timings,
        platform: solved.first().map(|solved| solved.platform.clone()),
        names: names.map(ToString::to_string).collect(),
        left_out,
        facts,
        cache_bytes: None,
    })
}

/// What a Dockerfile makes by the frontend that is built in.
async fn lowered(
    engine: &Arc<Engine>,
    loaded: front::Loaded,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<(BuildOptions, Vec<Solved>), BuildError> {
    let fronted = front::lower(engine, loaded, progress, cancel).await?;
    front::warn(fronted.platforms.iter().map(|of| &of.lowered), progress);
    let mut targets = Vec::new();
    for of in &fronted.platforms {
        let graph = Arc::new(Graph::decode(&of.lowered.definition).map_err(BuildError::internal)?);
        targets.push(Target { platform: of.platform.clone(), graph });
    }
    let trees = platforms::solve(engine, &targets, progress, cancel).await?;
    let mut solved = Vec::new();
    for (tree, of) in trees.into_iter().zip(fronted.platforms) {
        let mut one = Solved::new(engine, tree, of.platform, of.lowered.config, of.bases)?;
        one.definition = Some(of.lowered.definition).filter(|definition| !definition.def.is_empty());
        one.scanned = of.scanned;
        solved.push(one);
    }
    Ok((fronted.options, solved))
}

impl Solved {
    /// The same with another config, where one is given.
    pub(crate) fn with_config(
        &self,
        engine: &Engine,
        config: Option<lapstrake_oci::ImageConfig>,
    ) -> Result<Self, BuildError> {
        let mut changed = self.clone();
        if let Some(config) = config {
            changed.config = config;
            let tree = Tree { snapshot: self.snapshot, lazy: self.lazy.clone(), key: self.key };
            changed.base = base_of(engine, &tree, &changed.config, &changed.bases)?;
        }
        Ok(changed)
    }

    /// The directory that it has where several stand beside each other, as buildx names it: never one elsewhere.
    pub(crate) fn directory(&self) -> String {
        let id = self.id.clone().unwrap_or_else(|| self.platform.to_string());
        let plain = id.replace(['/', '\\', ':'], "_");
        match plain.as_str() {
            "." | ".." => "_".repeat(plain.len()),
            _ => plain,
        }
    }
}

/// Ends work that leaves nothing behind as soon as the build is canceled.
pub(crate) async fn abortable<T>(
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T, BuildError>>,
) -> Result<T, BuildError> {
    tokio::select! {
        result = work => result,
        () = cancel.cancelled() => Err(BuildError::canceled()),
    }
}

pub(crate) fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Adds the file that a failed step stands in, and its lines.
pub(crate) fn in_file(graph: &Graph, error: &BuildError) -> BuildError {
    let Some(line) = error.failure().line else { return error.clone() };
    if error.failure().file.is_some() {
        return error.clone();
    }
    let error = error.with(|failure| failure.file = graph.files().first().map(|f| f.name.clone()));
    let Some(mut excerpt) = Excerpt::of(graph, line) else { return error };
    let word = error.advice().and_then(|advice| advice.word.clone());
    let at = word.and_then(|word| excerpt.point_at(&word));
    let error = match at {
        Some(at) => error.noted(|failure| {
            failure.line = Some(at.line);
            failure.column = Some(at.column);
        }),
        None => error,
    };
    error.shown_with(excerpt)
}

fn base_images<'a>(bases: impl Iterator<Item = &'a Arc<Resolved>>) -> Vec<BaseImage> {
    let mut seen: Vec<BaseImage> = Vec::new();
    for base in bases {
        let name = plain_name(&base.reference);
        let image = BaseImage { name, digest: base.digest.to_string(), pinned: base.pinned };
        if !seen.contains(&image) {
            seen.push(image);
        }
    }
    seen
}

/// A name with its tag, without the digest that it was pinned to.
fn plain_name(reference: &Reference) -> String {
    match reference.tag() {
        Some(tag) => format!("{}:{tag}", reference.name()),
        None => reference.name(),
    }
}
