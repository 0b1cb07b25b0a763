//! One build, from its context to its outputs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use futures::future::try_join_all;
use lapstrake_dockerfile::{
    AllowedDevices, Capabilities, Images as ImageConfigs, Lowered, MainContext, NamedContext, Network,
    NoCache, Options, Plan, ResolvedImage,
};
use lapstrake_handoff::{BaseImage, Reason, SourceFacts, StepNetwork, Timings};
use lapstrake_llb::Graph;
use lapstrake_oci::{Digest, Platform, Reference};
use lapstrake_solver::CacheKey;
use lapstrake_source::Local;
use lapstrake_store::SnapshotId;
use tokio_util::sync::CancellationToken;

use crate::annotations::Place;
use crate::context::{self, Acquired};
use crate::engine::{Engine, Lazy, Resolved, native_platform};
use crate::error::BuildError;
use crate::excerpt::Excerpt;
use crate::export::{self, Exported};
use crate::import;
use crate::naming;
use crate::options::{BuildOptions, Context};
use crate::platforms::{self, Target};
use crate::progress::{Counts, Progress};
use crate::room;

/// A Dockerfile is no longer than this.
const DOCKERFILE_BYTES_MAX: u64 = 1 << 20;
/// The build argument that keeps cache mounts apart, as BuildKit has it.
const CACHE_NAMESPACE: &str = "BUILDKIT_CACHE_MOUNT_NS";
/// The name of the main context among the local sources.
const CONTEXT: &str = "context";

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
pub(crate) struct Solved {
    /// The platform that it is for.
    pub(crate) platform: Platform,
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
}

/// A file system that was built: where it is, and what it is in caches.
#[derive(Default)]
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
    let began = Instant::now();
    let acquired = abortable(cancel, load_context(engine, options, progress)).await?;
    let (revision, facts) = (acquired.revision.clone(), acquired.facts.clone());
    let (options, left_out) = fill_in(options, &facts)?;
    for (name, placeholder) in &left_out {
        progress.text(&format!("warning: {name} is left out: the source has no {{{placeholder}}}"));
    }
    let options = &options;
    let dockerfile = load_dockerfile(&acquired, options, progress)?;
    let source_ms = millis(began);

    let began = Instant::now();
    import::caches(engine, &options.cache_from, options.client.as_ref(), progress, cancel).await?;
    let platforms = platforms::wanted(options);
    let multi = platforms.len() > 1 || options.index;
    let contexts = abortable(cancel, crate::named::offer(engine, &options.named, &options.reach)).await?;
    let mut times = contexts.times;
    times.extend(acquired.time.map(|time| (CONTEXT.to_owned(), time)));
    let contexts = contexts.contexts;
    times.extend(abortable(cancel, epoch_of_stage(engine, options, &dockerfile, &contexts, progress)).await?);
    let ignored = ignore_lines(&acquired.local, &dockerfile.name);
    let planned = platforms.iter().map(|p| {
        let asked = Options {
            named_contexts: contexts.clone(),
            context_times: times.clone(),
            ignore_patterns: ignored.clone(),
            ..frontend_options(options, p, multi)
        };
        resolve_images(engine, &dockerfile, asked, progress)
    });
    let planned = abortable(cancel, try_join_all(planned)).await?;
    let (mut lowered, mut bases) = (Vec::new(), Vec::new());
    for ((plan, configs), images) in planned {
        lowered.push(plan.lower(&configs).map_err(invalid)?);
        bases.push(images);
    }
    let mut options = options.clone();
    options.source_date_epoch =
        options.source_date_epoch.or(lowered.first().and_then(|lowered| lowered.epoch));
    let options = &options;
    warn(&lowered, progress);
    offer_context(engine, acquired, &dockerfile, &lowered)?;
    let mut targets = Vec::new();
    for (platform, lowered) in platforms.iter().zip(&lowered) {
        let graph = Arc::new(Graph::decode(&lowered.definition).map_err(BuildError::internal)?);
        targets.push(Target { platform: platform.clone(), graph });
    }
    let trees = platforms::solve(engine, &targets, progress, cancel).await?;
    let solve_ms = millis(began);

    let mut solved = Vec::new();
    for (((tree, lowered), bases), target) in trees.into_iter().zip(lowered).zip(bases).zip(targets) {
        let base = base_of(engine, &tree, &lowered.config, &bases)?;
        let Tree { snapshot, lazy, key } = tree;
        let (platform, config) = (target.platform, lowered.config);
        solved.push(Solved { platform, snapshot, lazy, key, config, bases, base });
    }
    let (image, mut timings) = export::export(engine, &solved, options, progress, cancel).await?;
    timings.source_ms = source_ms;
    timings.solve_ms = solve_ms;
    drop(export::cache(engine, &solved, options, progress, cancel).await?);
    let Counts { steps, cached } = progress.counts();
    let names = options.outputs.iter().filter_map(|output| output.image()).flat_map(|image| &image.names);
    Ok(Built {
        image,
        revision,
        base_images: base_images(solved.iter().flat_map(|solved| &solved.bases)),
        steps: (steps, cached),
        timings,
        platform: platforms.into_iter().next(),
        names: names.map(ToString::to_string).collect(),
        left_out: left_out.into_iter().map(|(name, _)| name).collect(),
        facts,
        cache_bytes: None,
    })
}

/// The time of what a stage downloads, where the build asks for it by the stage's name.
async fn epoch_of_stage(
    engine: &Engine,
    options: &BuildOptions,
    dockerfile: &Dockerfile,
    contexts: &BTreeMap<String, NamedContext>,
    progress: &Progress,
) -> Result<Option<(String, i64)>, BuildError> {
    let parsed = lapstrake_dockerfile::parse(&dockerfile.name, &dockerfile.text);
    let asked = Options {
        build_args: options.args.clone(),
        named_contexts: contexts.clone(),
        target: options.target.clone(),
        target_platform: platforms::wanted(options).into_iter().next(),
        build_platform: native_platform(),
        ..Options::default()
    };
    let Some(found) = lapstrake_dockerfile::epoch_source(&parsed, &asked).map_err(invalid)? else {
        return Ok(None);
    };
    let step = progress.step(&format!("[internal] resolve SOURCE_DATE_EPOCH source stage {}", found.stage));
    let time = step.close(engine.time_of(&found.source).await)?;
    Ok(time.map(|time| (found.stage, time)))
}

/// Findings that do not keep a Dockerfile from being built, each once.
fn warn(lowered: &[Lowered], progress: &Progress) {
    let mut said = Vec::new();
    for lowered in lowered {
        for warning in lowered.warnings.iter() {
            let text = lowered.warnings.short(warning);
            if !said.contains(&text) {
                progress.text(&format!("warning: {text}"));
                said.push(text);
            }
        }
    }
}

/// Names that were left out, and the placeholder that has no value.
type LeftOut = Vec<(String, String)>;

/// The options with all that comes from the source filled in.
fn fill_in(options: &BuildOptions, facts: &SourceFacts) -> Result<(BuildOptions, LeftOut), BuildError> {
    let mut options = options.clone();
    let mut left_out = Vec::new();
    for image in options.outputs.iter_mut().filter_map(|output| output.image_mut()) {
        if !image.templates.is_empty() {
            let mut all: Vec<String> = image.names.iter().map(ToString::to_string).collect();
            all.append(&mut image.templates);
            let filled = naming::fill(&all, facts).map_err(|e| BuildError::new(Reason::SourceNotFound, e))?;
            image.names = filled.names;
            left_out.extend(filled.left_out);
        }
    }
    if options.from_source.epoch && options.source_date_epoch.is_none() {
        options.source_date_epoch = facts.time;
    }
    let url = match &options.context {
        Context::Git { url, .. } | Context::Http { url, .. } => Some(lapstrake_source::shown_url(url)),
        Context::Directory(_) | Context::Inline(_) => None,
    };
    let standard = naming::standard(url.as_deref(), facts, options.source_date_epoch);
    let places = match platforms::wanted(&options).len() {
        1 if !options.index => &[Place::Manifest][..],
        _ => &[Place::Manifest, Place::Index],
    };
    for (key, value) in standard {
        if options.from_source.annotations {
            places.iter().for_each(|place| options.annotations.default_to(*place, &key, &value));
        }
        if options.from_source.labels {
            options.labels.entry(key).or_insert(value);
        }
    }
    Ok((options, left_out))
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

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn invalid(findings: lapstrake_dockerfile::Diagnostics) -> BuildError {
    BuildError::dockerfile(findings, Reason::DockerfileInvalid)
}

async fn load_context(
    engine: &Engine,
    options: &BuildOptions,
    progress: &Progress,
) -> Result<Acquired, BuildError> {
    if let Context::Directory(_) = &options.context {
        return context::acquire(engine.store(), &options.context, &options.reach, false).await;
    }
    let templates = options.outputs.iter().filter_map(|o| o.image()).flat_map(|image| &image.templates);
    let from_source = options.from_source.annotations || options.from_source.labels;
    let ask = from_source || naming::asks_repository(templates);
    let name = match &options.context {
        Context::Git { url, .. } => {
            format!("[internal] load git source {}", lapstrake_source::shown_url(url))
        }
        Context::Http { url, .. } => {
            format!("[internal] load remote build context {}", lapstrake_source::shown_url(url))
        }
        Context::Inline(_) | Context::Directory(_) => "[internal] load inline build context".to_owned(),
    };
    let step = progress.step(&name);
    let acquire = || context::acquire_with_secrets(engine, &options.context, &options.reach, ask);
    step.close(room::retried(engine.store(), None, acquire).await)
}

struct Dockerfile {
    name: String,
    text: String,
}

fn load_dockerfile(
    acquired: &Acquired,
    options: &BuildOptions,
    progress: &Progress,
) -> Result<Dockerfile, BuildError> {
    let asked = options.dockerfile.as_deref().or(acquired.only_dockerfile.as_deref());
    let name = asked.unwrap_or("Dockerfile").to_owned();
    let step = progress.step(&format!("[internal] load build definition from {name}"));
    if let Some(text) = &options.dockerfile_text {
        step.done();
        return Ok(Dockerfile { name, text: text.clone() });
    }
    let read = || {
        let content = match acquired.local.read(&name, DOCKERFILE_BYTES_MAX)? {
            Some(content) => content,
            // As BuildKit: the lower-case name is the second guess.
            None if asked.is_none() => acquired
                .local
                .read("dockerfile", DOCKERFILE_BYTES_MAX)?
                .ok_or_else(|| no_dockerfile(&name))?,
            None => return Err(no_dockerfile(&name)),
        };
        let text = String::from_utf8(content)
            .map_err(|_| BuildError::new(Reason::DockerfileInvalid, format!("{name} is not valid UTF-8")))?;
        Ok(Dockerfile { name: name.clone(), text })
    };
    step.close(read())
}

/// The lines of the ignore file, for the frontend to say what it leaves out; errors are told where it is used.
fn ignore_lines(context: &Local, dockerfile: &str) -> Vec<String> {
    let names = [format!("{dockerfile}.dockerignore"), ".dockerignore".to_owned()];
    let content = names.iter().find_map(|name| context.read(name, DOCKERFILE_BYTES_MAX).ok().flatten());
    let text = content.and_then(|content| String::from_utf8(content).ok()).unwrap_or_default();
    let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

fn no_dockerfile(name: &str) -> BuildError {
    let message =
        format!("the context has no file {name}; name another one with --file or spec.dockerfile.path");
    BuildError::new(Reason::DockerfileInvalid, message)
}

type Planned = (Plan, ImageConfigs);

async fn resolve_images(
    engine: &Engine,
    dockerfile: &Dockerfile,
    asked: Options,
    progress: &Progress,
) -> Result<(Planned, Vec<Arc<Resolved>>), BuildError> {
    let parsed = lapstrake_dockerfile::parse(&dockerfile.name, &dockerfile.text);
    let plan = lapstrake_dockerfile::plan(&parsed, &asked).map_err(invalid)?;
    let mut known = ImageConfigs::new();
    let mut bases = Vec::new();
    loop {
        let needed = plan.images_needed(&known);
        if needed.is_empty() {
            return Ok(((plan, known), bases));
        }
        let lookups = needed.iter().map(|request| async {
            let of = if asked.multi_platform { format!("{} ", request.key.platform) } else { String::new() };
            let step = progress.step(&format!("[{of}internal] load metadata for {}", request.key.reference));
            let found = engine.images().resolve(&request.key.reference, &request.key.platform).await;
            step.close(found).map_err(|error| at_request(&plan, request, &error))
        });
        for (request, resolved) in needed.iter().zip(try_join_all(lookups).await?) {
            let config = ResolvedImage { digest: Some(resolved.digest), config: resolved.config.clone() };
            known.insert(request.key.clone(), config);
            bases.push(resolved);
        }
    }
}

/// An image that could not be had, with the line that asks for it.
fn at_request(plan: &Plan, request: &lapstrake_dockerfile::ImageRequest, error: &BuildError) -> BuildError {
    let reason = error.failure().reason;
    if reason == Reason::Canceled {
        return error.clone();
    }
    BuildError::dockerfile(plan.image_error(request, &error.to_string()), reason)
}

fn frontend_options(options: &BuildOptions, platform: &Platform, multi: bool) -> Options {
    let mut asked = Options {
        target: options.target.clone(),
        build_args: options.args.clone(),
        labels: options.labels.clone(),
        target_platform: Some(platform.clone()),
        build_platform: native_platform(),
        multi_platform: multi,
        no_cache: match (options.no_cache, options.no_cache_stages.as_slice()) {
            (true, _) => NoCache::All,
            (false, []) => NoCache::Nothing,
            (false, stages) => NoCache::Stages(stages.to_vec()),
        },
        source_date_epoch: options.source_date_epoch,
        context: MainContext::Local { name: CONTEXT.to_owned(), session: None, exclude_patterns: Vec::new() },
        network: match options.inputs.network {
            StepNetwork::Default => Network::Default,
            StepNetwork::None => Network::None,
            StepNetwork::Host => Network::Host,
        },
        allow_host_network: options.inputs.allows_host_network(),
        allow_insecure: options.inputs.insecure,
        allow_devices: match options.inputs.devices.contains("") {
            true => AllowedDevices::All,
            false => AllowedDevices::Named(options.inputs.devices.clone()),
        },
        cache_namespace: options.args.get(CACHE_NAMESPACE).cloned().unwrap_or_default(),
        capabilities: Capabilities {
            cache_mounts: true,
            secret_mounts: true,
            ssh_mounts: true,
            host_network: true,
            http_sources: true,
            git_sources: true,
            merge: true,
            insecure: true,
            devices: true,
        },
        ..Options::default()
    };
    options.steps.apply(&mut asked);
    options.frontend.apply(&mut asked);
    asked
}

/// Makes the context known to the engine, reduced to what the build uses.
fn offer_context(
    engine: &Engine,
    acquired: Acquired,
    dockerfile: &Dockerfile,
    lowered: &[Lowered],
) -> Result<(), BuildError> {
    let mut used = lowered.iter().filter_map(|lowered| lowered.context.as_ref()).peekable();
    if used.peek().is_none() {
        return Ok(());
    }
    // What any of the platforms needs.
    let mut paths: Option<Vec<String>> = Some(Vec::new());
    for usage in used {
        match usage {
            lapstrake_dockerfile::ContextUse::Whole => paths = None,
            lapstrake_dockerfile::ContextUse::Paths(more) => {
                if let Some(paths) = &mut paths {
                    paths.extend(more.iter().cloned());
                }
            }
        }
    }
    let bad_rules =
        |e: lapstrake_source::Error| BuildError::new(Reason::DockerfileInvalid, crate::error::chain(&e));
    let (_, rules) = acquired.local.ignore_rules(&dockerfile.name).map_err(bad_rules)?;
    let mut local: Local = acquired.local.with_ignore(rules);
    if let Some(mut paths) = paths {
        paths.sort();
        paths.dedup();
        local = local.with_only(&paths)?;
    }
    engine.add_context(CONTEXT, Arc::new(local));
    Ok(())
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
