//! From a client's request to its outputs.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use lapstrake_api::control::SolveRequest;
use lapstrake_api::{frontend, pb};
use lapstrake_handoff::{CacheImport, Reason};
use lapstrake_oci::{Descriptor, Reference};
use tonic::Status;

use super::answer::{Answer, Of, Ref, Refs};
use super::attested::{self, Known};
use super::dockerfile::Outcome;
use super::errors::status;
use super::exporters::Exporter;
use super::host::Host;
use super::job::Job;
use super::no_receiver::NoReceiver;
use super::receiver::SessionReceiver;
use super::trail::Trail;
use super::values::refused;
use super::{Attributes, caches, dockerfile, exporters, gateway, layouts};
use crate::attest::{self, FrontendRequest};
use crate::build::Solved;
use crate::client::Receiver;
use crate::engine::Resolved;
use crate::error::BuildError;
use crate::export;
use crate::options::{BuildOptions, Context, Image, Output};
use crate::platforms::{self, Target};
use crate::policy::Policies;

/// Key of the time that a result says that it is from, seconds since 1970.
pub(crate) const EPOCH: &str = "source.date.epoch";
/// What of a result's metadata its client is told.
const OF_FRONTEND: &str = "frontend.";
/// The frontend that is built in.
const DOCKERFILE: &str = "dockerfile.v0";
/// The frontend that runs images.
pub(crate) const GATEWAY: &str = "gateway.v0";

/// What a frontend is asked.
pub(crate) struct Asked {
    pub(crate) definition: Option<pb::Definition>,
    pub(crate) frontend: String,
    pub(crate) opts: HashMap<String, String>,
    pub(crate) inputs: HashMap<String, pb::Definition>,
    /// Caches to read for the definition beside those of the build.
    pub(crate) imports: Vec<(String, Attributes)>,
    /// Rules for the definition beside those of the build.
    pub(crate) policies: Policies,
}

fn sorted(attributes: &HashMap<String, String>) -> Attributes {
    attributes.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// What was asked of a frontend, as provenance will tell it.
pub(crate) fn request(
    host: &Host,
    frontend: &str,
    attributes: &HashMap<String, String>,
    inputs: &HashMap<String, pb::Definition>,
) -> FrontendRequest {
    let known = inputs.iter().filter_map(|(name, of)| Some((name.clone(), host.requests.of(of)?)));
    FrontendRequest { frontend: frontend.to_owned(), attributes: sorted(attributes), inputs: known.collect() }
}

/// What a request's frontend, or its definition, makes. `trail` is that of who asks.
pub(crate) async fn answer(
    host: &Arc<Host>,
    job: &Arc<Job>,
    trail: &Arc<Trail>,
    asked: Asked,
) -> Result<Answer, Status> {
    if asked.frontend.is_empty() {
        let answer = ask(host, job, trail, asked).await?;
        trail.made(&answer);
        return Ok(answer);
    }
    let inner = trail.ask(request(host, &asked.frontend, &asked.opts, &asked.inputs));
    let answer = ask(host, job, &inner, asked).await?;
    host.requests.remember(job, &inner, &answer).await;
    trail.answered(inner, &answer);
    Ok(answer)
}

/// Asks the image that a file names in place of the frontend that is built in.
async fn other(
    host: &Arc<Host>,
    job: &Arc<Job>,
    trail: &Arc<Trail>,
    image: &str,
    asked: Asked,
) -> Result<Answer, Status> {
    let opts = gateway::with_source(asked.opts.clone(), image);
    let inner = trail.ask(request(host, GATEWAY, &opts, &asked.inputs));
    let answer = gateway::solve(host, job, &inner, image, asked).await?;
    trail.answered(inner, &answer);
    Ok(answer)
}

async fn ask(host: &Arc<Host>, job: &Arc<Job>, trail: &Arc<Trail>, asked: Asked) -> Result<Answer, Status> {
    let frontends = &host.frontends;
    let disabled = |name: &str| Err(Status::unknown(format!("frontend {name} is disabled")));
    match asked.frontend.as_str() {
        "" => {
            let definition = asked.definition.filter(|definition| !definition.def.is_empty());
            if definition.is_some() {
                read_caches(job, asked.imports).await.map_err(|e| status(&e))?;
            }
            let policies = job.engine.policies().and(&asked.policies);
            let result = definition.map(|definition| Ref::new(definition, &policies)).transpose();
            let result = result.map_err(|e| status(&e))?;
            Ok(Answer::one(result))
        }
        DOCKERFILE if !frontends.dockerfile => disabled(DOCKERFILE),
        GATEWAY if !frontends.gateway => disabled(GATEWAY),
        DOCKERFILE => match dockerfile::solve(job, trail, &asked).await.map_err(|e| status(&e))? {
            Outcome::Answer(answer) => Ok(answer),
            Outcome::Other(image) => {
                if !frontends.gateway {
                    return disabled(GATEWAY);
                }
                other(host, job, trail, &image, asked).await
            }
        },
        GATEWAY => {
            let source = asked.opts.get("source").cloned().unwrap_or_default();
            match dockerfile::is_built_in(&source) && frontends.dockerfile {
                true => match dockerfile::solve(job, trail, &asked).await.map_err(|e| status(&e))? {
                    Outcome::Answer(answer) => Ok(answer),
                    Outcome::Other(image) => other(host, job, trail, &image, asked).await,
                },
                false => gateway::solve(host, job, trail, &source, asked).await,
            }
        }
        unknown => Err(Status::unknown(format!("invalid frontend: {unknown}"))),
    }
}

/// Reads the caches that the client named, and those of who asks, for a definition; frontends do that for theirs.
async fn read_caches(job: &Arc<Job>, more: Vec<(String, Attributes)>) -> Result<(), BuildError> {
    // Who asks at the same time waits: it is to find what is read.
    let mut known = job.imported.lock().await;
    let asked = job.imports.iter().cloned().chain(more);
    let caches = readable(job, asked.filter(|import| known.insert(format!("{import:?}"))));
    if caches.is_empty() {
        return Ok(());
    }
    let client = receiver(job).await?;
    crate::import::caches(&job.engine, &caches, Some(&client), &job.progress, &job.cancel).await
}

/// Caches to read, of a request or of a frontend's attributes. One that can't be read is told of.
pub(crate) fn imports(job: &Job, opts: &HashMap<String, String>) -> Result<Vec<CacheImport>, BuildError> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Entry {
        r#type: String,
        #[serde(default)]
        attrs: Attributes,
    }
    let mut asked = job.imports.clone();
    if let Some(text) = opts.get("cache-imports").filter(|text| !text.is_empty()) {
        let entries: Vec<Entry> = serde_json::from_str(text).map_err(|e| {
            // Not the text itself, as BuildKit does: it may hold credentials.
            BuildError::new(Reason::RequestInvalid, format!("failed to unmarshal cache-imports: {e}"))
        })?;
        asked.extend(entries.into_iter().map(|entry| (entry.r#type, entry.attrs)));
    }
    if let Some(list) = opts.get("cache-from") {
        for name in list.split(',').filter(|name| !name.is_empty()) {
            asked.push(("registry".to_owned(), BTreeMap::from([("ref".to_owned(), name.to_owned())])));
        }
    }
    Ok(readable(job, asked))
}

/// Those of the caches that can be understood; the others are told of.
fn readable(job: &Job, asked: impl IntoIterator<Item = (String, Attributes)>) -> Vec<CacheImport> {
    let mut all = Vec::new();
    for import in caches::imports(asked) {
        match import.cache {
            Ok(cache) => all.push(cache),
            Err(error) => {
                let step = job.progress.step(&format!("importing cache manifest from {}", import.shown));
                step.failed(&error.to_string());
            }
        }
    }
    all
}

/// What a request wants made of its result.
pub(crate) struct Wanted {
    pub(crate) exporters: Vec<Exporter>,
    pub(crate) cache_to: Vec<lapstrake_handoff::CacheExport>,
    pub(crate) attested: attest::Asked,
    /// Nothing is taken from the cache.
    pub(crate) no_cache: bool,
    /// Platforms that were asked for, as the client wrote them; this machine's where it wrote none.
    pub(crate) platforms: String,
    /// The client chooses more outputs once it knows the result.
    pub(crate) asks_session: bool,
}

impl Wanted {
    /// Reads a request, before anything is built.
    pub(crate) fn of(request: &SolveRequest) -> Result<Self, BuildError> {
        let frontend = sorted(&request.frontend_attrs);
        let mut asked: Vec<_> =
            request.exporters.iter().map(|one| (one.r#type.clone(), sorted(&one.attrs))).collect();
        if asked.is_empty() && !request.exporter_deprecated.is_empty() {
            asked.push((request.exporter_deprecated.clone(), sorted(&request.exporter_attrs_deprecated)));
        }
        let exporters = exporters::read(asked, &frontend)?;
        for key in exporters.iter().flat_map(Exporter::ignored) {
            tracing::debug!("an exporter's attribute {key} has no meaning here");
        }
        let exports = request.cache.iter().flat_map(|cache| &cache.exports);
        Ok(Self {
            exporters,
            cache_to: caches::exports(exports.map(|one| (one.r#type.clone(), sorted(&one.attrs))))?,
            no_cache: request.frontend_attrs.get("no-cache").is_some_and(String::is_empty),
            asks_session: request.enable_session_exporter,
            attested: attest::Asked::of(&request.frontend_attrs).map_err(refused)?,
            platforms: match request.frontend_attrs.get("platform") {
                Some(asked) => asked.clone(),
                None => crate::engine::native_platform().to_string(),
            },
        })
    }
}

/// Works out all results, and makes of them what the client wants.
pub(crate) async fn export(
    job: &Arc<Job>,
    answer: &Answer,
    wanted: &Wanted,
) -> Result<HashMap<String, String>, BuildError> {
    let all = answer.all()?;
    verify(job, answer, &all, wanted);
    let mut solved = solve(job, answer, &all).await?;
    let answer = &attested::scanned(job, answer, &all, &wanted.attested, wanted.no_cache).await?;
    let known = Known::of(job, answer, &all).await;
    attested::attach(job, answer, &all, &known, &wanted.attested, &mut solved).await?;
    let record = |solved: &[Solved], layers: &[Vec<Descriptor>]| {
        job.outcome().record(&all, &known, &wanted.attested, solved, layers);
    };
    let chosen =
        if wanted.asks_session { chosen(job, answer, &all, wanted.exporters.len()).await? } else { vec![] };
    let mut layers: Vec<Vec<Descriptor>> = Vec::new();
    let mut exported = write(job, answer, wanted, &chosen, &all, &solved, &mut layers).await;
    if let (Ok(response), true) = (&exported, wanted.asks_session)
        && let Err(error) = tell_chooser(job, response).await
    {
        exported = Err(error);
    }
    // What was made is told of also where it could not be written.
    record(&solved, &layers);
    exported
}

/// Tells where a result is not for the platforms that were asked for; a client that wants no output is told too.
fn verify(job: &Job, answer: &Answer, all: &[Of], wanted: &Wanted) {
    let is_map = matches!(&answer.refs, Refs::Many(refs) if !refs.is_empty());
    if !is_map && matches!(&answer.refs, Refs::One(None) | Refs::Many(_)) && !answer.names_platforms() {
        // Answers to questions are for no platform.
        return;
    }
    let made: Vec<&lapstrake_oci::Platform> = all.iter().map(|of| &of.platform).collect();
    for text in super::verify::platforms(&wanted.platforms, &made, is_map) {
        let step = job.progress.step("verifying platforms");
        job.status.warn(lapstrake_api::control::VertexWarning {
            vertex: super::status::digest_of_step(&job.id, step.id()),
            level: 1,
            short: text.into_bytes(),
            ..Default::default()
        });
        step.done();
    }
}

/// The outputs that the client chooses for a result; their ids follow those of the `asked` that the request had.
async fn chosen(
    job: &Arc<Job>,
    answer: &Answer,
    all: &[Of],
    asked: usize,
) -> Result<Vec<Exporter>, BuildError> {
    let Some(lender) = job.engine.lender() else { return Ok(Vec::new()) };
    let refs = all.iter().filter_map(|of| of.result.as_ref().map(|result| result.id.clone())).collect();
    let session = lender.session(None).await?;
    let found =
        session.exporters(answer.metadata.clone(), refs).await.map_err(|e| crate::lender::failed(&e))?;
    let found = found.into_iter().map(|(kind, attributes)| (kind, sorted(&attributes)));
    let mut exporters = exporters::read(found, &Attributes::new())?;
    for exporter in &mut exporters {
        exporter.id = exporter.id.saturating_add(asked);
    }
    Ok(exporters)
}

/// Tells the client that chose outputs what was made.
async fn tell_chooser(job: &Arc<Job>, response: &HashMap<String, String>) -> Result<(), BuildError> {
    let Some(lender) = job.engine.lender() else { return Ok(()) };
    let session = lender.session(None).await?;
    session.exported(response.clone()).await.map_err(|e| crate::lender::failed(&e))
}

/// Writes all outputs and caches; `layers` are those of each platform's image, where one was made.
async fn write(
    job: &Arc<Job>,
    answer: &Answer,
    wanted: &Wanted,
    chosen: &[Exporter],
    all: &[Of],
    solved: &[Solved],
    layers: &mut Vec<Vec<Descriptor>>,
) -> Result<HashMap<String, String>, BuildError> {
    let said: Vec<_> = solved.iter().flat_map(|solved| &solved.attestations).cloned().collect();
    let mut options = BuildOptions::new(Context::Inline(BTreeMap::new()));
    options.platforms = solved.iter().map(|solved| solved.platform.clone()).collect();
    options.index = all.len() > 1 || all.iter().any(|of| of.key.is_some());
    options.cache_to.clone_from(&wanted.cache_to);
    let text = |key: &str| answer.metadata.get(key).and_then(|bytes| std::str::from_utf8(bytes).ok());
    let (name, epoch) = (text(export::response::NAME), text(EPOCH).and_then(|text| text.parse().ok()));
    let receiver = receiver(job).await?;
    options.client = Some(Arc::clone(&receiver));
    let mut outputs = Vec::new();
    for exporter in wanted.exporters.iter().chain(chosen) {
        let mut options = options.clone();
        let exporter = exporter.with_annotations(&answer.metadata)?;
        exporter.apply(&mut options, name, epoch, &receiver, &said)?;
        let own = exporter.metadata(&answer.metadata).map(|metadata| {
            let answer = Answer { metadata, ..answer.clone() };
            let config = |of: &Of| answer.config(of.key.as_deref());
            all.iter().zip(solved).map(|(of, one)| one.with_config(&job.engine, config(of)?)).collect()
        });
        let own: Option<Vec<Solved>> = own.transpose()?;
        outputs.push((exporter.id, options, own));
    }
    let asked = outputs.iter().flat_map(|(_, options, own)| {
        let solved = own.as_deref().unwrap_or(solved);
        options.outputs.iter().map(move |output| export::Wanted { solved, options, output })
    });
    let made = export::make(&job.engine, asked.collect(), &job.progress, &job.cancel).await?;
    let images: Vec<_> = made.images().collect();
    if let Some(last) = images.iter().flatten().next_back() {
        *layers = last.platforms.iter().map(|of| of.layers.clone()).collect();
    }
    let (of_caches, _) = made.finish(&job.engine, (solved, &options), &job.progress, &job.cancel).await?;
    let mut response = HashMap::new();
    for ((id, ..), exported) in outputs.iter().zip(images) {
        let Some(exported) = exported else { continue };
        job.outcome().results.insert(i64::try_from(*id).unwrap_or(i64::MAX), exported.told);
        response.extend(exported.response);
    }
    let told = answer.metadata.iter().filter(|(key, _)| key.starts_with(OF_FRONTEND));
    response.extend(told.map(|(key, bytes)| (key.clone(), String::from_utf8_lossy(bytes).into_owned())));
    response.extend(of_caches);
    Ok(response)
}

/// The client, to take what is made; who opened no session can be given nothing.
pub(crate) async fn receiver(job: &Job) -> Result<Arc<dyn Receiver>, BuildError> {
    Ok(match job.engine.lender() {
        Some(lender) => Arc::new(SessionReceiver::new(lender.session(None).await?, job.cancel.clone())),
        None => Arc::new(NoReceiver),
    })
}

/// Works a definition out and makes an image of it that is known by its digest alone, for what is built on it.
/// `metadata` is what is said about it, its config above all.
pub(crate) async fn as_image(
    job: &Arc<Job>,
    definition: &pb::Definition,
    metadata: HashMap<String, Vec<u8>>,
) -> Result<Reference, BuildError> {
    let result = (!definition.def.is_empty())
        .then(|| Ref::new(definition.clone(), &job.engine.policies()))
        .transpose()?;
    let answer = Answer { refs: Refs::One(result), metadata, attestations: BTreeMap::new() };
    let all = answer.all()?;
    let solved = solve(job, &answer, &all).await?;
    let mut options = BuildOptions::new(Context::Inline(BTreeMap::new()));
    options.platforms = solved.iter().map(|solved| solved.platform.clone()).collect();
    let output = Output::Image(Image::default());
    let wanted = export::Wanted { solved: &solved, options: &options, output: &output };
    let made = export::make(&job.engine, vec![wanted], &job.progress, &job.cancel).await?;
    let exported =
        made.images().flatten().next().ok_or_else(|| BuildError::internal("a definition became no image"))?;
    let reference: Reference = "localhost/input".parse().map_err(|e| BuildError::internal(format!("{e}")))?;
    Ok(reference.with_digest(exported.manifest.digest))
}

/// Works out all results of an answer, with the configs that go with them.
pub(crate) async fn solve(job: &Arc<Job>, answer: &Answer, all: &[Of]) -> Result<Vec<Solved>, BuildError> {
    let with_graph = |of: &Of| of.result.as_ref().map(|result| (of.platform.clone(), Arc::clone(result)));
    let open: Vec<_> = all.iter().filter_map(with_graph).collect();
    let targets: Vec<_> = open
        .iter()
        .map(|(platform, result)| Target { platform: platform.clone(), graph: Arc::clone(result.graph()) })
        .collect();
    for target in &targets {
        layouts::bring(job, &target.graph).await?;
    }
    let trees = platforms::solve(&job.engine, &targets, &job.progress, &job.cancel).await;
    let placed =
        |error| open.iter().fold(error, |error: BuildError, (_, result)| error.placed(&result.definition));
    let mut trees = trees.map_err(placed)?.into_iter();
    let mut solved = Vec::new();
    for of in all {
        let tree = match &of.result {
            Some(_) => trees.next().unwrap_or_default(),
            None => crate::build::Tree::default(),
        };
        let graph = of.result.as_ref().map(|result| result.graph());
        let config = match answer.config(of.key.as_deref())? {
            Some(config) => config,
            None => plain_config(&of.platform),
        };
        let bases = match graph {
            Some(graph) => bases(job, graph).await?,
            None => Vec::new(),
        };
        let mut one = Solved::new(&job.engine, tree, of.platform.clone(), config, bases)?;
        one.definition = of.result.as_ref().map(|result| result.definition.clone());
        one.id.clone_from(&of.key);
        solved.push(one);
    }
    Ok(solved)
}

/// The config of an image about which nothing is said.
fn plain_config(platform: &lapstrake_oci::Platform) -> lapstrake_oci::ImageConfig {
    lapstrake_oci::ImageConfig {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone(),
        config: lapstrake_oci::ContainerConfig {
            env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()],
            working_dir: "/".to_owned(),
            ..lapstrake_oci::ContainerConfig::default()
        },
        ..lapstrake_oci::ImageConfig::default()
    }
}

/// Base images in a graph; all of them were looked up while it was worked out.
async fn bases(job: &Job, graph: &lapstrake_llb::Graph) -> Result<Vec<Arc<Resolved>>, BuildError> {
    let mut all = Vec::new();
    for vertex in graph.vertices() {
        let pb::op::Op::Source(source) = &vertex.op else { continue };
        let Some(name) = crate::engine::image_name(source) else { continue };
        let platform = crate::engine::platform_of(vertex, &crate::engine::native_platform());
        // A base that came from a cache was never looked up; its layers are then pushed as others are.
        if let Some(known) = job.engine.images().known(&name, &platform) {
            all.push(known);
        }
    }
    Ok(all)
}

/// Rules of a request.
pub(crate) fn policies<'a>(
    of: impl IntoIterator<Item = &'a lapstrake_api::sourcepolicy::Policy>,
) -> Result<Policies, Status> {
    Policies::new(of).map_err(|error| Status::unknown(error.to_string()))
}

/// Answers a frontend that asks for more.
pub(crate) async fn nested(
    host: &Arc<Host>,
    job: &Arc<Job>,
    trail: &Arc<Trail>,
    request: frontend::SolveRequest,
) -> Result<frontend::SolveResponse, Status> {
    let imports = request.cache_imports.into_iter().map(|one| (one.r#type, one.attrs.into_iter().collect()));
    let asked = Asked {
        definition: request.definition,
        frontend: request.frontend,
        opts: request.frontend_opt,
        inputs: request.frontend_inputs,
        imports: imports.collect(),
        policies: policies(&request.source_policies)?,
    };
    let answer = answer(host, job, trail, asked).await?;
    if request.evaluate {
        evaluate(job, &answer).await.map_err(|e| job.containers.status(&e))?;
    }
    let result = answer.to_message(job);
    if request.allow_result_return {
        return Ok(frontend::SolveResponse { r#ref: String::new(), result: Some(result) });
    }
    // A client of the first days, which knows one result only.
    match &answer.refs {
        Refs::One(result) => Ok(frontend::SolveResponse {
            r#ref: result.as_ref().map(|result| result.id.clone()).unwrap_or_default(),
            result: None,
        }),
        Refs::Many(_) => {
            Err(Status::invalid_argument("a solve with several results needs allow_result_return"))
        }
    }
}

/// Works out all results of an answer.
async fn evaluate(job: &Arc<Job>, answer: &Answer) -> Result<(), BuildError> {
    let all: Vec<&Arc<Ref>> = match &answer.refs {
        Refs::One(result) => result.iter().collect(),
        Refs::Many(refs) => refs.values().flatten().collect(),
    };
    futures::future::try_join_all(all.into_iter().map(|result| result.tree(job))).await?;
    Ok(())
}
