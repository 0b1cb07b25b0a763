//! From a solved file system to where it was asked for.

mod attested;
mod cache;
mod collect;
mod files;
mod layers;
mod making;
pub(crate) mod push;
pub(crate) mod response;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use lapstrake_handoff::{CacheTarget, Compression, Reason, Timings};
use lapstrake_image::assemble::{Assembled, Beside, Spec, assemble, join};
use lapstrake_oci::{Descriptor, Digest, Platform, media_type};
use tokio_util::sync::CancellationToken;

use crate::annotations::Place;
use crate::build::Solved;
use crate::engine::Engine;
use crate::error::{BuildError, chain};
use crate::options::{BuildOptions, Image, Output};
use crate::progress::{Progress, Step};
use crate::time;

pub(crate) use making::Making;

/// An image that was made: of one platform, or an index over several.
#[derive(Debug, Clone)]
pub(crate) struct Exported {
    /// Its manifest or index.
    pub(crate) manifest: Descriptor,
    /// Digest of its config; of several the first platform's.
    pub(crate) config: Digest,
    /// Bytes of configs and layers together, each counted once.
    pub(crate) size_bytes: u64,
    /// Its platforms, in the order asked for.
    pub(crate) platforms: Vec<OfPlatform>,
    /// The same as clients are told of it, without what stands around it.
    pub(crate) told: Descriptor,
    /// What BuildKit's clients are told of it.
    pub(crate) response: BTreeMap<String, String>,
}

/// One platform's image.
#[derive(Debug, Clone)]
pub(crate) struct OfPlatform {
    /// The platform as it was asked for.
    pub(crate) platform: Platform,
    /// Its manifest.
    pub(crate) manifest: Descriptor,
    /// Bytes of config and layers together.
    pub(crate) size_bytes: u64,
    /// Its layers, lowest first.
    pub(crate) layers: Vec<Descriptor>,
    /// The manifest of what is attested of it.
    pub(crate) attestation: Option<Descriptor>,
}

/// An image with its documents, ready to go anywhere.
pub(crate) struct Packed {
    /// One image, or an index and the images that it joins.
    pub(crate) documents: Assembled,
    /// Configs and layers, each once.
    pub(crate) blobs: Vec<Descriptor>,
    /// The layers among them, each of them with where it is.
    pub(crate) layers: Vec<layers::Layer>,
    pub(crate) platforms: Vec<OfPlatform>,
}

impl Packed {
    /// Images of all platforms under one name.
    fn join(
        mut images: Vec<(OfPlatform, Assembled, Vec<Descriptor>)>,
        beside: Vec<Beside>,
        layers: Vec<layers::Layer>,
        options: &BuildOptions,
        docker: bool,
    ) -> Result<Self, BuildError> {
        let annotations = &options.annotations;
        let mut blobs: Vec<Descriptor> = Vec::new();
        let attested = beside.iter().flat_map(|one| one.blobs.iter().map(|(_, blob)| blob));
        for blob in images.iter().flat_map(|(.., blobs)| blobs).chain(attested) {
            if !blobs.iter().any(|known| known.digest == blob.digest) {
                blobs.push(blob.clone());
            }
        }
        let platforms: Vec<OfPlatform> = images.iter().map(|(platform, ..)| platform.clone()).collect();
        let mut documents = match (images.pop(), images.is_empty() && !options.index && beside.is_empty()) {
            (Some((_, only, _)), true) => only,
            (last, _) => {
                let all: Vec<_> = images.into_iter().chain(last).map(|(_, documents, _)| documents).collect();
                let docker =
                    docker && all.iter().all(|i| i.manifest.1.media_type == media_type::DOCKER_MANIFEST);
                let of = platforms.first().map(|p| annotations.of(Place::Index, &p.platform));
                join(all, beside, of.unwrap_or_default(), docker)
                    .map_err(|e| BuildError::internal(chain(&e)))?
            }
        };
        if let (false, Some(first)) = (documents.joined.is_empty(), platforms.first()) {
            documents.manifest.1.annotations = annotations.of(Place::IndexDescriptor, &first.platform);
        }
        Ok(Self { documents, blobs, layers, platforms })
    }

    fn exported(&self, output: &Output, epoch: Option<i64>) -> Exported {
        Exported {
            manifest: self.documents.manifest.1.clone(),
            config: self.documents.config.1.digest,
            size_bytes: self.blobs.iter().map(|blob| blob.size).sum(),
            platforms: self.platforms.clone(),
            told: response::descriptor(self, output, epoch),
            response: response::of(self, output, epoch),
        }
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// An output, and of what it is made.
#[derive(Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) solved: &'a [Solved],
    pub(crate) options: &'a BuildOptions,
    pub(crate) output: &'a Output,
}

/// An image that was made. The step that made it goes on where the image is yet to be pushed.
struct Ready {
    packed: Arc<Packed>,
    step: Option<Step>,
}

/// Outputs that are made; images among them that go to registries have yet to be pushed.
pub(crate) struct Made<'a> {
    all: Vec<(Wanted<'a>, Option<Ready>)>,
    timings: Timings,
}

/// Makes all outputs at once, and writes all but what goes to registries.
pub(crate) async fn make<'a>(
    engine: &Arc<Engine>,
    outputs: Vec<Wanted<'a>>,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<Made<'a>, BuildError> {
    for wanted in &outputs {
        check(wanted.solved, wanted.options)?;
    }
    let began = Instant::now();
    let jobs = outputs.into_iter().map(|wanted| {
        async move |cancel: CancellationToken| {
            let ready = make_one(engine, wanted, progress, &cancel).await?;
            Ok((wanted, ready))
        }
    });
    let all = together(cancel, jobs).await?;
    Ok(Made { all, timings: Timings { export_ms: millis(began), ..Timings::default() } })
}

impl Made<'_> {
    /// The images, in the order of the outputs; files are none.
    pub(crate) fn images(&self) -> impl Iterator<Item = Option<Exported>> {
        self.all.iter().map(|(wanted, ready)| {
            let Ready { packed, .. } = ready.as_ref()?;
            Some(packed.exported(wanted.output, wanted.options.source_date_epoch))
        })
    }

    /// Pushes, and writes the caches at the same time, which find the layers made. What is to be told of the caches, and how long
    /// all of it took.
    pub(crate) async fn finish(
        self,
        engine: &Arc<Engine>,
        caches: (&[Solved], &BuildOptions),
        progress: &Progress,
        cancel: &CancellationToken,
    ) -> Result<(BTreeMap<String, String>, Timings), BuildError> {
        let Self { mut all, mut timings } = self;
        let began = Instant::now();
        let mut jobs: Vec<Work<'_, BTreeMap<String, String>>> = Vec::new();
        for (wanted, ready) in &mut all {
            let (Output::Push(image), Some(Ready { packed, step })) = (wanted.output, ready) else {
                continue;
            };
            let Some(step) = step.take() else { continue };
            let packed = &*packed;
            jobs.push(Box::new(move |cancel| {
                Box::pin(async move {
                    let bases = wanted.solved.iter().flat_map(|solved| solved.bases.iter().cloned());
                    let bases: Vec<_> = bases.collect();
                    let pushed = push::push(engine, packed, image, &bases, &step, &cancel).await;
                    step.close(pushed)?;
                    Ok(BTreeMap::new())
                })
            }));
        }
        let pushes = !jobs.is_empty();
        let (solved, options) = caches;
        for export in &options.cache_to {
            jobs.push(Box::new(move |cancel| {
                Box::pin(
                    async move { cache::cache(engine, solved, options, export, progress, &cancel).await },
                )
            }));
        }
        let told = together(cancel, jobs).await?;
        if pushes {
            timings.push_ms = millis(began);
        }
        Ok((told.into_iter().flatten().collect(), timings))
    }
}

/// Work that ends when its token is cancelled.
type Work<'a, T> = Box<dyn FnOnce(CancellationToken) -> BoxFuture<'a, Result<T, BuildError>> + Send + 'a>;

/// Does all at once. Where one fails the others are cancelled, and are waited for: none leaves anything half-written.
async fn together<T, J, F>(
    cancel: &CancellationToken,
    jobs: impl IntoIterator<Item = J>,
) -> Result<Vec<T>, BuildError>
where
    J: FnOnce(CancellationToken) -> F,
    F: Future<Output = Result<T, BuildError>>,
{
    let shared = cancel.child_token();
    let failed = &OnceLock::new();
    let jobs = jobs.into_iter().map(|job| {
        let (work, shared) = (job(shared.clone()), shared.clone());
        async move {
            match work.await {
                Ok(done) => Some(done),
                Err(error) => {
                    failed.set(error).ok(); // the first one is told
                    shared.cancel();
                    None
                }
            }
        }
    });
    let done: Option<Vec<T>> = futures::future::join_all(jobs).await.into_iter().collect();
    match (done, failed.get()) {
        (Some(done), _) => Ok(done),
        (None, Some(error)) => Err(error.clone()),
        (None, None) => Err(BuildError::canceled()),
    }
}

async fn make_one(
    engine: &Arc<Engine>,
    wanted: Wanted<'_>,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<Option<Ready>, BuildError> {
    let Wanted { solved, options, output } = wanted;
    let image = match output {
        Output::Push(image) | Output::Image(image) => image,
        Output::Oci { image, .. } | Output::Docker { image, .. } => image,
        Output::Local(..) | Output::Tar(..) => {
            files::rootfs(engine, solved, options.index, output, progress, cancel).await?;
            return Ok(None);
        }
    };
    let step = progress.step(match output {
        Output::Oci { .. } => "exporting to oci image format",
        Output::Docker { .. } => "exporting to docker image format",
        _ => "exporting to image",
    });
    let made = async {
        let packed = Arc::new(pack(engine, solved, options, image, &step, cancel).await?);
        match output {
            Output::Push(_) | Output::Image(_) => {
                image.names.iter().for_each(|name| step.part(&format!("naming to {name}"), Duration::ZERO));
            }
            _ => files::image(engine, &packed, output, options.source_date_epoch, &step, cancel).await?,
        }
        Ok(packed)
    };
    match made.await {
        Ok(packed) if matches!(output, Output::Push(_)) => Ok(Some(Ready { packed, step: Some(step) })),
        made => Ok(Some(Ready { packed: step.close(made)?, step: None })),
    }
}

async fn pack(
    engine: &Arc<Engine>,
    solved: &[Solved],
    options: &BuildOptions,
    image: &Image,
    step: &Step,
    cancel: &CancellationToken,
) -> Result<Packed, BuildError> {
    let docker = image.docker_media_types;
    let (mut images, mut layers, mut beside) = (Vec::new(), Vec::new(), Vec::new());
    let attested = attested::goes_along(solved, options, image);
    for of in solved {
        let (mut one, mut its) = pack_one(engine, of, options, image, docker, step, cancel).await?;
        if attested && let Some(made) = attested::pack(engine, of, &one.0, image, step)? {
            one.0.attestation = Some(made.manifest.1.clone());
            beside.push(made);
        }
        images.push(one);
        layers.append(&mut its);
    }
    let began = Instant::now();
    let packed = Packed::join(images, beside, layers, options, docker)?;
    if !packed.documents.joined.is_empty() {
        let (bytes, descriptor) = &packed.documents.manifest;
        engine.store().put_blob(bytes)?;
        step.part(&format!("exporting manifest list {}", descriptor.digest), began.elapsed());
    }
    Ok(packed)
}

async fn pack_one(
    engine: &Arc<Engine>,
    solved: &Solved,
    options: &BuildOptions,
    image: &Image,
    docker: bool,
    step: &Step,
    cancel: &CancellationToken,
) -> Result<((OfPlatform, Assembled, Vec<Descriptor>), Vec<layers::Layer>), BuildError> {
    let layers = layers::make(engine, solved, image, docker, options.source_date_epoch, step, cancel).await?;
    let began = Instant::now();
    let base_history = solved.base.as_ref().map_or(0, |base| base.config.history.len());
    let platform = solved.platform.clone();
    let mut config = solved.config.clone();
    if options.cache_to.iter().any(|export| export.to == CacheTarget::Inline) {
        config.build_cache = cache::inline(engine, solved, &layers)?;
    }
    let spec = Spec {
        config,
        layers: layers.iter().map(layers::Layer::for_assembly).collect(),
        docker_media_types: docker,
        annotations: options.annotations.of(Place::Manifest, &platform),
        created: options.source_date_epoch.map(time::rfc3339),
        base_history,
    };
    let mut documents = assemble(spec).map_err(|e| BuildError::internal(chain(&e)))?;
    documents.manifest.1.annotations = options.annotations.of(Place::ManifestDescriptor, &platform);
    for (bytes, _) in [&documents.config, &documents.manifest] {
        engine.store().put_blob(bytes)?;
    }
    step.part(&format!("exporting config {}", documents.config.1.digest), began.elapsed());
    step.part(&format!("exporting manifest {}", documents.manifest.1.digest), began.elapsed());
    let mut blobs: Vec<Descriptor> = layers.iter().map(|layer| layer.descriptor.clone()).collect();
    blobs.push(documents.config.1.clone());
    let size_bytes = blobs.iter().map(|blob| blob.size).sum();
    let layers_told = layers.iter().map(|layer| layer.descriptor.clone()).collect();
    let manifest = documents.manifest.1.clone();
    let of = OfPlatform { platform, manifest, size_bytes, layers: layers_told, attestation: None };
    Ok(((of, documents, blobs), layers))
}

/// What can't be done with several platforms.
fn check(solved: &[Solved], options: &BuildOptions) -> Result<(), BuildError> {
    let problem = match solved.len() {
        0 | 1 if !options.index && !options.annotations.has_index() => return Ok(()),
        1 if solved.iter().any(|of| !of.attestations.is_empty()) => return Ok(()),
        1 if !options.index && options.annotations.has_index() => {
            "an annotation of the index needs several platforms: an image of one has no index"
        }
        _ if options.outputs.iter().any(|output| matches!(output, Output::Docker { .. })) => {
            "--output type=docker holds one platform; use type=oci for several"
        }
        _ => return Ok(()),
    };
    Err(BuildError::new(Reason::RequestInvalid, problem))
}

/// Layers compress as the user asks.
fn kind(compression: Compression) -> lapstrake_image::compress::Kind {
    use lapstrake_image::compress::Kind;
    match compression {
        Compression::Gzip => Kind::Gzip,
        Compression::Zstd => Kind::Zstd,
        Compression::Uncompressed => Kind::Uncompressed,
    }
}
