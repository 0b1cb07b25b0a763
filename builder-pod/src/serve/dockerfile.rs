//! `dockerfile.v0`: the frontend that is built in, asked in the words of BuildKit's clients.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use lapstrake_api::control::VertexWarning;
use lapstrake_api::pb;
use lapstrake_dockerfile::{Images, NoCache, Options, Subrequest};
use lapstrake_handoff::Reason;
use lapstrake_llb::RESOURCE_NAMES;
use lapstrake_oci::Platform;

use super::answer::{Answer, CONFIG, PLATFORMS, Ref, Refs, platform_list};
use super::build::Asked;
use super::job::Job;
use super::status::digest_of_step;
use super::trail::Trail;
use crate::build::abortable;
use crate::error::BuildError;
use crate::front::{self, Dockerfile, Loaded};
use crate::inputs::Inputs;
use crate::named::{self, Named};
use crate::options::{BuildOptions, Context, LentDir};

/// The directory of the client that the Dockerfile is in, where nothing else is said.
const DOCKERFILES: &str = "dockerfile";
/// The directory that is built from.
const CONTEXT: &str = "context";
/// What stands before the name of a definition that came with the request.
const INPUT: &str = "input:";
/// The attribute that says more about such a definition.
const INPUT_METADATA: &str = "input-metadata:";
/// Level of a finding that is no error, as clients sort them.
const WARNING_LEVEL: i64 = 1;

fn invalid(why: impl Into<String>) -> BuildError {
    BuildError::new(Reason::RequestInvalid, why)
}

/// The build that attributes ask for.
///
/// # Errors
/// A value that can't be read, an attribute that nobody knows.
pub(crate) fn options(opts: &HashMap<String, String>, inputs: &Inputs) -> Result<BuildOptions, BuildError> {
    let opt = |name: &str| opts.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let context = match opt("context") {
        None => Context::Client(LentDir {
            name: opt("contextkey").unwrap_or(CONTEXT).to_owned(),
            session: String::new(),
            dockerfiles: Some(opt("dockerfilekey").unwrap_or(DOCKERFILES).to_owned()),
        }),
        Some(url) => crate::cli::build::remote_context(url)?.ok_or_else(|| {
            invalid(format!("context {url:?} is no address of a Git repository, file or archive"))
        })?,
    };
    let mut options = BuildOptions::new(context);
    options.inputs = inputs.clone();
    options.dockerfile = opt("filename").map(str::to_owned);
    options.target = opt("target").map(str::to_owned);
    for (name, value) in opts {
        if let Some(arg) = name.strip_prefix("build-arg:") {
            options.args.insert(arg.to_owned(), value.clone());
        } else if let Some(label) = name.strip_prefix("label:") {
            options.labels.insert(label.to_owned(), value.clone());
        } else if value.starts_with(INPUT) && name.starts_with("context:") {
            continue; // it is worked out before it has a name
        } else if let Some(context) = name.strip_prefix("context:") {
            let (name, named) = named_context(context, value)?;
            options.named.insert(name, named);
        } else {
            other(&mut options, name, value)?;
        }
    }
    Ok(options)
}

fn other(options: &mut BuildOptions, name: &str, value: &str) -> Result<(), BuildError> {
    match name {
        "platform" => {
            for text in value.split(',').map(str::trim).filter(|text| !text.is_empty()) {
                let platform = text.parse::<Platform>();
                let platform =
                    platform.map_err(|e| invalid(format!("failed to parse target platform {text}: {e}")))?;
                options.platforms.push(platform);
            }
        }
        "multi-platform" => {
            options.index = value
                .parse()
                .map_err(|_| invalid(format!("invalid boolean value {value} for multi-platform")))?;
        }
        "no-cache" => match NoCache::from_attribute(value) {
            NoCache::All => options.no_cache = true,
            NoCache::Nothing => {}
            NoCache::Stages(stages) => options.no_cache_stages = stages,
        },
        "add-hosts" | "ulimit" | "shm-size" | "hostname" | "cgroup-parent" | "force-network-mode"
        | "image-resolve-mode" => {
            options.frontend.add("frontend option", name, value)?;
        }
        limit if RESOURCE_NAMES.contains(&limit) => options.frontend.add("frontend option", name, value)?,
        // What they say is read elsewhere, or is about what is not asked of this frontend.
        _ => {}
    }
    Ok(())
}

fn named_context(name: &str, value: &str) -> Result<(String, Named), BuildError> {
    named::parse(&format!("{name}={value}"), |value| {
        if let Some(dir) = value.strip_prefix("local:") {
            return Ok(Context::Client(LentDir { name: dir.to_owned(), ..LentDir::default() }));
        }
        let remote = crate::cli::build::remote_context(value)?;
        remote.ok_or_else(|| {
            BuildError::new(Reason::NotSupported, format!("context {name}: {value} is not supported yet"))
        })
    })
}

/// Contexts that came with the request as definitions: targets of other builds, as a rule.
async fn inputs(job: &Arc<Job>, asked: &Asked) -> Result<Vec<(String, Named)>, BuildError> {
    let mut all = Vec::new();
    for (name, value) in &asked.opts {
        let (Some(context), Some(input)) = (name.strip_prefix("context:"), value.strip_prefix(INPUT)) else {
            continue;
        };
        let missing = || invalid(format!("invalid input {input} for {context}"));
        let definition = asked.inputs.get(input).ok_or_else(missing)?;
        let metadata = asked.opts.get(&format!("{INPUT_METADATA}{input}")).map(String::as_str);
        let metadata: HashMap<String, String> = match metadata.filter(|text| !text.is_empty()) {
            Some(text) => serde_json::from_str(text)
                .map_err(|e| invalid(format!("failed to unmarshal input metadata of {input}: {e}")))?,
            None => HashMap::new(),
        };
        // Bytes are text in JSON by base64.
        let metadata = metadata
            .into_iter()
            .filter_map(|(key, text)| Some((key, BASE64_STANDARD.decode(text).ok()?)))
            .collect();
        let image = super::build::as_image(job, definition, metadata).await?;
        all.push((named::canonical(context).map_err(invalid)?, Named::Image(image)));
    }
    Ok(all)
}

/// What became of a request.
pub(crate) enum Outcome {
    /// An answer.
    Answer(Answer),
    /// The file names another frontend: this image.
    Other(String),
}

/// Answers a request for a Dockerfile's results, or a question about it.
pub(crate) async fn solve(job: &Arc<Job>, trail: &Trail, asked: &Asked) -> Result<Outcome, BuildError> {
    let opts = &asked.opts;
    let mut options = options(opts, &job.inputs_of_steps)?;
    options.named.extend(inputs(job, asked).await?);
    options.cache_from = super::build::imports(job, opts)?;
    options.client = Some(super::build::receiver(job).await?);
    let sbom = crate::attest::Asked::of(opts).map_err(invalid)?.sbom;
    options.attested.sbom.clone_from(&sbom);
    let loaded = front::load(&job.engine, &options, &job.progress, &job.cancel).await?;
    trail.used(crate::attest::of_context(&options.context, loaded.acquired.revision.as_deref()));
    // One that was started for that reason has the line before it as `cmdline`, and does not look again.
    if let (Some(image), None) = (loaded.other_frontend(), opts.get("cmdline")) {
        return Ok(Outcome::Other(image));
    }
    if let Some(id) = opts.get("requestid").filter(|id| !id.is_empty()) {
        return question(job, &loaded, id).await.map(Outcome::Answer);
    }
    let dockerfile = loaded.dockerfile.clone();
    let fronted = front::lower(&job.engine, loaded, &job.progress, &job.cancel).await?;
    for definition in asked.inputs.values() {
        if let Ok(graph) = lapstrake_llb::Graph::decode(definition) {
            trail.used(crate::attest::of_graph(&job.engine, &graph).await);
        }
    }
    if let Some(told) = &fronted.told {
        warn(job, &dockerfile, told);
    }
    let several = fronted.platforms.len() > 1 || fronted.options.index;
    let platforms: Vec<Platform> = fronted.platforms.iter().map(|of| of.platform.clone()).collect();
    let mut metadata = HashMap::from([(PLATFORMS.to_owned(), platform_list(&platforms))]);
    if let Some(epoch) = fronted.options.source_date_epoch {
        metadata.insert(super::build::EPOCH.to_owned(), epoch.to_string().into_bytes());
    }
    let (mut refs, mut attestations) = (Vec::new(), BTreeMap::new());
    for of in fronted.platforms {
        let key = of.platform.to_string();
        let config = serde_json::to_vec(&of.lowered.config).map_err(BuildError::internal)?;
        let at = if several { format!("{CONFIG}/{key}") } else { CONFIG.to_owned() };
        metadata.insert(at, config);
        let mut definition = of.lowered.definition;
        if let (Context::Client(dir), Some(source)) = (&options.context, &mut definition.source) {
            let info = source.infos.iter_mut().find(|info| info.filename == dockerfile.name);
            info.into_iter().for_each(|info| info.definition = Some(origin(dir, &dockerfile.name)));
        }
        if let (Some(sbom), false) = (&sbom, definition.def.is_empty()) {
            let extras = &of.scanned;
            let told = super::attested::scan(job, sbom, &key, &definition, extras, options.no_cache).await?;
            attestations.insert(key.clone(), vec![told]);
        }
        let result = match definition.def.is_empty() {
            true => None,
            false => Some(Ref::new(definition, &job.engine.policies())?),
        };
        refs.push((key, result));
    }
    let refs = match (several, refs.pop()) {
        (false, Some((_, only))) => Refs::One(only),
        (_, last) => Refs::Many(refs.into_iter().chain(last).collect()),
    };
    Ok(Outcome::Answer(Answer { refs, metadata, attestations }))
}

/// Where a Dockerfile at a client comes from, as a definition.
fn origin(dir: &LentDir, name: &str) -> pb::Definition {
    let from = dir.dockerfiles.as_ref().unwrap_or(&dir.name);
    let mut paths = vec![name.to_owned(), format!("{name}.dockerignore")];
    if name == "Dockerfile" {
        paths.push("dockerfile".to_owned());
    }
    let paths = serde_json::to_string(&paths).unwrap_or_default();
    let attrs = [("local.differ", "none"), ("local.followpaths", &paths), ("local.sharedkeyhint", from)];
    let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let source = pb::SourceOp { identifier: format!("local://{from}"), attrs };
    let op = pb::Op {
        op: Some(pb::op::Op::Source(source)),
        constraints: Some(pb::WorkerConstraints::default()),
        ..Default::default()
    };
    let mut builder = lapstrake_llb::Builder::new();
    let vertex = builder.add(&op, pb::OpMetadata::default(), &[]);
    builder.finish(Some(lapstrake_llb::Output { vertex, index: 0 }))
}

async fn question(job: &Arc<Job>, loaded: &Loaded, id: &str) -> Result<Answer, BuildError> {
    let asked = Subrequest::named(id)
        .ok_or_else(|| BuildError::new(Reason::NotSupported, format!("unsupported request {id}")))?;
    let told = loaded.frontend_options(&job.engine, &job.progress, &job.cancel).await?;
    let parsed = loaded.parsed();
    let images = match lapstrake_dockerfile::plan(&parsed, &told) {
        Ok(_) if asked != Subrequest::Describe && asked != Subrequest::Targets => {
            let resolved =
                front::resolve_images(&job.engine, &loaded.dockerfile, told.clone(), &job.progress);
            abortable(&job.cancel, resolved).await?.0.1
        }
        _ => Images::new(),
    };
    let answer = asked.answer(&parsed, &told, &images);
    let answer = answer.map_err(|findings| BuildError::dockerfile(findings, Reason::DockerfileInvalid))?;
    let metadata = answer.into_iter().map(|(key, value)| (key.to_owned(), value.into_bytes())).collect();
    Ok(Answer { refs: Refs::One(None), metadata, attestations: BTreeMap::new() })
}

/// Tells the client what rules find; it does not stop the build.
fn warn(job: &Job, dockerfile: &Dockerfile, told: &(Options, Images)) {
    let parsed = lapstrake_dockerfile::parse(&dockerfile.name, &dockerfile.text);
    let checked = lapstrake_dockerfile::lint::check(&parsed, &told.0, &told.1);
    for warning in checked.client_warnings() {
        let at = |line: u32| pb::Position { line: i32::try_from(line).unwrap_or(i32::MAX), character: 0 };
        let (first, last) = warning.lines;
        job.status.warn(VertexWarning {
            vertex: digest_of_step(&job.id, dockerfile.step),
            level: WARNING_LEVEL,
            short: format!("{}: {} (line {first})", warning.rule, warning.detail).into_bytes(),
            detail: vec![warning.description.as_bytes().to_vec()],
            url: warning.url.to_owned(),
            info: Some(pb::SourceInfo {
                filename: dockerfile.name.clone(),
                data: dockerfile.text.clone().into_bytes(),
                language: "Dockerfile".to_owned(),
                definition: None,
            }),
            ranges: vec![pb::Range { start: Some(at(first)), end: Some(at(last)) }],
        });
    }
}

/// Whether a frontend image is the one that is built in: `docker/dockerfile` of version 1.
pub(crate) fn is_built_in(image: &str) -> bool {
    lapstrake_dockerfile::is_built_in(image)
}
