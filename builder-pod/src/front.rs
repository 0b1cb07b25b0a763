//! From a context to graphs: what comes before anything is built.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use futures::future::try_join_all;
use lapstrake_dockerfile::{
    AllowedDevices, Capabilities, Images as ImageConfigs, Lowered, MainContext, NamedContext, Network,
    NoCache, Options, Parsed, Plan, ResolvedImage,
};
use lapstrake_handoff::{Reason, SourceFacts, StepId, StepNetwork};
use lapstrake_oci::Platform;
use lapstrake_source::Local;
use tokio_util::sync::CancellationToken;

use crate::annotations::Place;
use crate::attest::scans::{self, Extra};
use crate::build::{abortable, millis};
use crate::context::{self, Acquired, Files};
use crate::engine::{Engine, Resolved, native_platform};
use crate::error::BuildError;
use crate::import;
use crate::naming;
use crate::options::{BuildOptions, Context};
use crate::platforms;
use crate::progress::Progress;
use crate::room;

/// A Dockerfile is no longer than this.
const DOCKERFILE_BYTES_MAX: u64 = 1 << 20;
/// The build argument that keeps cache mounts apart, as BuildKit has it.
const CACHE_NAMESPACE: &str = "BUILDKIT_CACHE_MOUNT_NS";
/// The build argument that names a frontend's image.
const SYNTAX: &str = "BUILDKIT_SYNTAX";
/// The name of the main context among the local sources.
const CONTEXT: &str = "context";

/// A context and its Dockerfile.
pub(crate) struct Loaded {
    /// The options with all that comes from the source filled in.
    pub(crate) options: BuildOptions,
    /// The Dockerfile.
    pub(crate) dockerfile: Dockerfile,
    /// The context.
    pub(crate) acquired: Acquired,
    left_out: LeftOut,
    /// How long it took.
    pub(crate) source_ms: u64,
}

/// What the frontend made of a Dockerfile.
pub(crate) struct Fronted {
    /// The options with all that comes from the source filled in, `SOURCE_DATE_EPOCH` among them.
    pub(crate) options: BuildOptions,
    /// What is to be built for each platform.
    pub(crate) platforms: Vec<OfPlatform>,
    /// What the frontend was told for the first platform, and the images that it had.
    pub(crate) told: Option<(Options, ImageConfigs)>,
}

/// What is to be built for a platform.
pub(crate) struct OfPlatform {
    pub(crate) platform: Platform,
    pub(crate) lowered: Lowered,
    /// Base images.
    pub(crate) bases: Vec<Arc<Resolved>>,
    /// What scanners are given beside the result, by names.
    pub(crate) scanned: BTreeMap<String, lapstrake_llb::pb::Definition>,
}

/// Fetches a context and reads its Dockerfile.
pub(crate) async fn load(
    engine: &Engine,
    options: &BuildOptions,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<Loaded, BuildError> {
    let began = Instant::now();
    let acquired = abortable(cancel, load_context(engine, options, progress)).await?;
    let (options, left_out) = fill_in(options, &acquired.facts)?;
    for (name, placeholder) in &left_out {
        progress.text(&format!("warning: {name} is left out: the source has no {{{placeholder}}}"));
    }
    let dockerfile = abortable(cancel, load_dockerfile(&acquired, &options, progress)).await?;
    Ok(Loaded { options, dockerfile, acquired, left_out, source_ms: millis(began) })
}

/// What the frontend is told of a context, but for the platform.
struct Told {
    contexts: BTreeMap<String, NamedContext>,
    times: BTreeMap<String, i64>,
    ignored: Vec<String>,
    context: MainContext,
}

impl Loaded {
    async fn told(
        &self,
        engine: &Engine,
        progress: &Progress,
        cancel: &CancellationToken,
    ) -> Result<Told, BuildError> {
        let (options, dockerfile) = (&self.options, &self.dockerfile);
        let known = abortable(
            cancel,
            crate::named::offer(engine, &options.named, &options.reach, options.client.as_ref()),
        )
        .await?;
        let (contexts, mut times) = (known.contexts, known.times);
        times.extend(self.acquired.time.map(|time| (CONTEXT.to_owned(), time)));
        let of_stage = epoch_of_stage(engine, options, dockerfile, &contexts, progress);
        times.extend(abortable(cancel, of_stage).await?);
        let local = |name: &str, session, exclude_patterns| MainContext::Local {
            name: name.to_owned(),
            session,
            exclude_patterns,
        };
        let (ignored, context) = match &self.acquired.files {
            Files::Here(here) => (ignore_lines(here, &dockerfile.name), local(CONTEXT, None, Vec::new())),
            Files::Lent(dir, lender) => {
                let step = progress.step("[internal] load .dockerignore");
                let read = self.acquired.files.ignore_patterns(&dockerfile.name, DOCKERFILE_BYTES_MAX);
                let ignored = step.close(abortable(cancel, read).await)?;
                let session = Some(lender.id_or(&dir.session).to_owned());
                (ignored.clone(), local(&dir.name, session, ignored))
            }
        };
        Ok(Told { contexts, times, ignored, context })
    }

    /// The frontend's image that the file, or a build argument in its place, names; none where it is the one that is
    /// built in.
    pub(crate) fn other_frontend(&self) -> Option<String> {
        let of_arg = self.options.args.get(SYNTAX).and_then(|line| line.split(' ').next());
        let of_arg = of_arg.filter(|image| !image.is_empty()).map(str::to_owned);
        let line = of_arg.or_else(|| lapstrake_dockerfile::frontend_of(&self.dockerfile.text))?;
        let image = line.split_whitespace().next()?;
        (!lapstrake_dockerfile::is_built_in(image)).then(|| image.to_owned())
    }

    /// Names of the image that were left out, since a placeholder had no value.
    pub(crate) fn left_out(&self) -> Vec<String> {
        self.left_out.iter().map(|(name, _)| name.clone()).collect()
    }

    /// The Dockerfile, parsed.
    pub(crate) fn parsed(&self) -> Parsed {
        lapstrake_dockerfile::parse(&self.dockerfile.name, &self.dockerfile.text)
    }

    /// What the frontend is told, for questions about the file.
    pub(crate) async fn frontend_options(
        &self,
        engine: &Engine,
        progress: &Progress,
        cancel: &CancellationToken,
    ) -> Result<Options, BuildError> {
        let told = self.told(engine, progress, cancel).await?;
        let platform = platforms::wanted(&self.options).into_iter().next().unwrap_or_else(native_platform);
        Ok(told.options(&self.options, &platform, false))
    }
}

impl Told {
    fn options(&self, options: &BuildOptions, platform: &Platform, multi: bool) -> Options {
        Options {
            named_contexts: self.contexts.clone(),
            context_times: self.times.clone(),
            ignore_patterns: self.ignored.clone(),
            ..frontend_options(options, platform, multi, self.context.clone())
        }
    }
}

/// From a Dockerfile to a graph for each platform; nothing is built.
pub(crate) async fn lower(
    engine: &Arc<Engine>,
    loaded: Loaded,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<Fronted, BuildError> {
    let client = loaded.options.client.as_ref();
    import::caches(engine, &loaded.options.cache_from, client, progress, cancel).await?;
    let told_all = loaded.told(engine, progress, cancel).await?;
    let Loaded { mut options, dockerfile, acquired, .. } = loaded;
    let platforms = platforms::wanted(&options);
    let multi = platforms.len() > 1 || options.index;
    let planned = platforms.iter().map(|platform| {
        resolve_images(engine, &dockerfile, told_all.options(&options, platform, multi), progress)
    });
    let planned = abortable(cancel, try_join_all(planned)).await?;
    let (mut lowered, mut bases, mut first) = (Vec::new(), Vec::new(), None);
    for ((plan, configs), images) in planned {
        lowered.push(plan.lower(&configs).map_err(invalid)?);
        bases.push(images);
        first.get_or_insert(configs);
    }
    let told = first.zip(platforms.first());
    let told = told.map(|(configs, platform)| (told_all.options(&options, platform, multi), configs));
    options.source_date_epoch =
        options.source_date_epoch.or(lowered.first().and_then(|lowered| lowered.epoch));
    offer_context(engine, acquired, &dockerfile, &lowered)?;
    let extras = match options.attested.sbom {
        Some(_) => abortable(cancel, extras(engine, &told_all, &options, &dockerfile, progress)).await?,
        None => Vec::new(),
    };
    let platforms = platforms
        .into_iter()
        .zip(lowered)
        .zip(bases)
        .map(|((platform, lowered), bases)| {
            let its = extras.iter().filter(|extra| extra.platform == platform);
            let scanned = scans::extras(&lowered.definition, its);
            OfPlatform { platform, lowered, bases, scanned }
        })
        .collect();
    Ok(Fronted { options, platforms, told })
}

/// Stages that a scanner is given beside the result, where the file asks for it. The context stands among them as a directory of
/// its name.
async fn extras(
    engine: &Engine,
    told: &Told,
    options: &BuildOptions,
    dockerfile: &Dockerfile,
    progress: &Progress,
) -> Result<Vec<Extra>, BuildError> {
    let parsed = lapstrake_dockerfile::parse(&dockerfile.name, &dockerfile.text);
    let found = scans::of(&parsed, &options.args, options.target.as_deref());
    let platforms = platforms::wanted(options);
    let multi = platforms.len() > 1 || options.index;
    let mut all = Vec::new();
    for platform in platforms {
        if let (Some(true), MainContext::Local { name, .. }) = (found.with_context, &told.context) {
            let what = scans::What::Source(format!("local://{name}"));
            all.push(Extra { platform: platform.clone(), name: CONTEXT.to_owned(), what });
        }
        for name in &found.stages {
            let asked = BuildOptions { target: Some(name.clone()), ..options.clone() };
            let told = told.options(&asked, &platform, multi);
            let ((plan, configs), _) = resolve_images(engine, dockerfile, told, progress).await?;
            let definition = plan.lower(&configs).map_err(invalid)?.definition;
            let (platform, name) = (platform.clone(), name.clone());
            all.push(Extra { platform, name, what: scans::What::Stage(definition) });
        }
    }
    Ok(all)
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
pub(crate) fn warn<'a>(lowered: impl Iterator<Item = &'a Lowered>, progress: &Progress) {
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
        Context::Directory(_) | Context::Client(_) | Context::Inline(_) => None,
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

async fn load_context(
    engine: &Engine,
    options: &BuildOptions,
    progress: &Progress,
) -> Result<Acquired, BuildError> {
    if let Context::Directory(_) | Context::Client(_) = &options.context {
        return context::acquire_with_secrets(engine, &options.context, &options.reach, false).await;
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
        Context::Inline(_) | Context::Directory(_) | Context::Client(_) => {
            "[internal] load inline build context".to_owned()
        }
    };
    let step = progress.step(&name);
    let acquire = || context::acquire_with_secrets(engine, &options.context, &options.reach, ask);
    step.close(room::retried(engine.store(), None, acquire).await)
}

/// A Dockerfile as it was read.
#[derive(Clone)]
pub(crate) struct Dockerfile {
    /// Its name.
    pub(crate) name: String,
    /// Its text.
    pub(crate) text: String,
    /// The step that read it.
    pub(crate) step: StepId,
}

async fn load_dockerfile(
    acquired: &Acquired,
    options: &BuildOptions,
    progress: &Progress,
) -> Result<Dockerfile, BuildError> {
    let asked = options.dockerfile.as_deref().or(acquired.only_dockerfile.as_deref());
    let name = asked.unwrap_or("Dockerfile").to_owned();
    let step = progress.step(&format!("[internal] load build definition from {name}"));
    let id = step.id();
    if let Some(text) = &options.dockerfile_text {
        step.done();
        return Ok(Dockerfile { name, text: text.clone(), step: id });
    }
    let read = async {
        let files = &acquired.files;
        let content = match files.read(true, &name, DOCKERFILE_BYTES_MAX).await? {
            Some(content) => Some(content),
            // As BuildKit: the lower-case name is the second guess.
            None if asked.is_none_or(|asked| asked == "Dockerfile") => {
                files.read(true, "dockerfile", DOCKERFILE_BYTES_MAX).await?
            }
            None => None,
        };
        let content = content.ok_or_else(|| no_dockerfile(&name))?;
        let text = String::from_utf8(content)
            .map_err(|_| BuildError::new(Reason::DockerfileInvalid, format!("{name} is not valid UTF-8")))?;
        Ok(Dockerfile { name: name.clone(), text, step: id })
    };
    step.close(read.await)
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

pub(crate) async fn resolve_images(
    engine: &Engine,
    dockerfile: &Dockerfile,
    asked: Options,
    progress: &Progress,
) -> Result<(Planned, Vec<Arc<Resolved>>), BuildError> {
    let parsed = lapstrake_dockerfile::parse(&dockerfile.name, &dockerfile.text);
    let plan = lapstrake_dockerfile::plan(&parsed, &asked).map_err(invalid)?;
    let mut known = ImageConfigs::new();
    let mut bases = Vec::new();
    let policies = engine.policies();
    loop {
        let needed = plan.images_needed(&known);
        if needed.is_empty() {
            return Ok(((plan, known), bases));
        }
        let lookups = needed.iter().map(|request| async {
            let of = if asked.multi_platform { format!("{} ", request.key.platform) } else { String::new() };
            let step = progress.step(&format!("[{of}internal] load metadata for {}", request.key.reference));
            let found = async {
                let taken = policies.image(&request.key.reference, &request.key.platform)?;
                let resolved = engine.images().resolve(&taken, &request.key.platform).await?;
                Ok((resolved, (taken != request.key.reference).then_some(taken)))
            };
            step.close(found.await).map_err(|error| at_request(&plan, request, &error))
        });
        for (request, (resolved, instead)) in needed.iter().zip(try_join_all(lookups).await?) {
            let digest = Some(resolved.digest);
            let config = ResolvedImage { digest, config: resolved.config.clone(), instead };
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

fn frontend_options(
    options: &BuildOptions,
    platform: &Platform,
    multi: bool,
    context: MainContext,
) -> Options {
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
        context,
        network: match options.inputs.network {
            StepNetwork::Default => Network::Default,
            StepNetwork::None => Network::None,
            StepNetwork::Host => Network::Host,
        },
        allow_host_network: options.inputs.allows_host_network(),
        allow_insecure: options.inputs.insecure,
        allow_devices: match options.inputs.devices_by_step || options.inputs.devices.contains("") {
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
    let Files::Here(context) = acquired.files else { return Ok(()) };
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
    let (_, rules) = context.ignore_rules(&dockerfile.name).map_err(bad_rules)?;
    let mut local: Local = context.with_ignore(rules);
    if let Some(mut paths) = paths {
        paths.sort();
        paths.dedup();
        local = local.with_only(&paths)?;
    }
    engine.add_context(CONTEXT, Arc::new(local));
    Ok(())
}

fn invalid(findings: lapstrake_dockerfile::Diagnostics) -> BuildError {
    BuildError::dockerfile(findings, Reason::DockerfileInvalid)
}
