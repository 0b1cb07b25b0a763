//! `moby.buildkit.v1.frontend.LLBBridge`: what frontends ask while they work, those on the client's side and those
//! that run here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use lapstrake_api::apicaps::ApiCap;
use lapstrake_api::frontend::llb_bridge_server::LlbBridge;
use lapstrake_api::frontend::{
    EvaluateRequest, EvaluateResponse, ExecMessage, InputsRequest, InputsResponse, NewContainerRequest,
    NewContainerResponse, PingRequest, PongResponse, ReadDirRequest, ReadDirResponse, ReadFileRequest,
    ReadFileResponse, ReleaseContainerRequest, ReleaseContainerResponse, ResolveImageConfigRequest,
    ResolveImageConfigResponse, ResolveSourceGitResponse, ResolveSourceHttpResponse,
    ResolveSourceImageRequest, ResolveSourceImageResponse, ResolveSourceMetaRequest,
    ResolveSourceMetaResponse, ReturnRequest, ReturnResponse, SolveRequest, SolveResponse, StatFileRequest,
    StatFileResponse, WarnRequest, WarnResponse,
};
use lapstrake_api::sourcepolicy::Policy;
use lapstrake_api::{control, frontend, pb};
use lapstrake_oci::Platform;
use tonic::{Request, Response, Status, Streaming};

use super::Daemon;
use super::answer::Answer;
use super::errors::status;
use super::host::Host;
use super::job::{BRIDGE_WAIT, Job, Jobs};
use super::trail::Trail;
use super::{build, containers, files};
use crate::engine::{Engine, SourceFacts};
use crate::error::BuildError;

/// By this a call on the control socket says which build it belongs to.
const BUILD_ID: &str = "buildkit-controlapi-buildid";

/// What of LLB can be asked for.
const LLB_CAPS: &[&str] = &[
    "source.image",
    "source.image.resolvemode",
    "source.image.layerlimit",
    "source.image.checksum",
    "source.imageblob",
    "source.local",
    "source.local.unique",
    "source.local.sessionid",
    "source.local.includepatterns",
    "source.local.followpaths",
    "source.local.excludepatterns",
    "source.local.sharedkeyhint",
    "source.local.differ",
    "source.local.metadatatransfer",
    "source.git",
    "source.git.keepgitdir",
    "source.git.fullurl",
    "source.git.httpauth",
    "source.git.knownsshhosts",
    "source.git.mountsshsock",
    "source.git.subdir",
    "source.git.checksum",
    "source.git.signatureverify",
    "source.git.mtime",
    "source.git.bundle",
    "source.git.checkoutbundle",
    "source.git.skipsubmodules",
    "source.git.fetchbycommit",
    "source.http",
    "source.http.auth",
    "source.http.checksum",
    "source.http.perm",
    "source.http.header",
    "soruce.http.uidgid", // as BuildKit writes it
    "source.http.signatureverify",
    "source.ocilayout",
    "source.buildop.llbfilename",
    "exec.meta.base",
    "exec.meta.cgroup.parent",
    "exec.meta.linux.resources",
    "exec.meta.network",
    "exec.meta.proxyenv",
    "exec.meta.security",
    "exec.meta.security.devices.v1",
    "exec.meta.setsdefaultpath",
    "exec.meta.ulimit",
    "exec.meta.cdi",
    "exec.meta.removemountstubs.recursive",
    "exec.mount.bind",
    "exec.mount.bind.readwrite-nooutput",
    "exec.mount.cache",
    "exec.mount.cache.sharing",
    "exec.mount.cache.content",
    "exec.mount.selector",
    "exec.mount.tmpfs",
    "exec.mount.tmpfs.size",
    "exec.mount.secret",
    "exec.mount.ssh",
    "exec.cgroup",
    "exec.secretenv",
    "exec.validexitcode",
    "file.base",
    "file.rm.wildcard",
    "file.copy.includeexcludepatterns",
    "file.copy.requiredpaths",
    "file.rm.nofollowsymlink",
    "file.copy.alwaysreplaceexistingdestpaths",
    "file.copy.modestring",
    "file.symlink.create",
    "constraints",
    "platform",
    "meta.ignorecache",
    "meta.description",
    "meta.exportcache",
    "mergeop",
    "diffop",
    "passthroughop",
    "exporter.image.annotations",
    "exporter.image.attestations",
    "exporter.sourcedateepoch",
    "exporter.multiple",
    "exporter.session",
    "cache.gha",
    "cache.s3",
    "cache.azblob",
    "source.policy",
    "source.policy.session",
    "gc.freespacefilter",
    "history.filter",
];

/// What a frontend can ask.
const FRONTEND_CAPS: &[&str] = &[
    "solve.base",
    "solve.inlinereturn",
    "resolveimage",
    "resolveimage.resolvemode",
    "readfile",
    "return",
    "returnmap",
    "readdir",
    "statfile",
    "importcaches",
    "proto.refarray",
    "reference.output",
    "reference.attestations",
    "frontend.inputs",
    "gateway.solve.metadata",
    "gateway.exec",
    "gateway.exec.extrahosts",
    "gateway.exec.secretenv",
    "gateway.exec.signals",
    "gateway.exec.filesystem",
    "frontend.caps",
    "gateway.solve.evaluate",
    "gateway.evaluate",
    "gateway.warnings",
    "source.metaresolver",
    "source.metaresolver.image.attestations",
];

fn caps(ids: &[&str]) -> Vec<ApiCap> {
    ids.iter().map(|id| ApiCap { id: (*id).to_owned(), enabled: true, ..ApiCap::default() }).collect()
}

/// Whose call it is.
#[derive(Clone)]
enum Caller {
    /// A frontend on the client's side: calls on the daemon's socket name their build.
    Client(Arc<Jobs>),
    /// A frontend that runs here, for one request.
    Frontend(Arc<Frontend>),
}

/// A frontend that runs here.
pub(crate) struct Frontend {
    /// The build that it works for.
    pub(crate) job: Arc<Job>,
    /// What is done for that request.
    pub(crate) trail: Arc<Trail>,
    /// Definitions that it was given.
    pub(crate) inputs: HashMap<String, pb::Definition>,
    /// What it returned.
    pub(crate) returned: Mutex<Option<Result<Answer, Status>>>,
}

/// The service.
#[derive(Clone)]
pub(crate) struct Bridge {
    host: Arc<Host>,
    caller: Caller,
}

impl Bridge {
    /// On the daemon's socket.
    pub(crate) fn on_control(daemon: &Daemon) -> Self {
        Self { host: Arc::clone(&daemon.host), caller: Caller::Client(Arc::clone(&daemon.jobs)) }
    }

    /// For a frontend that runs here.
    pub(crate) fn for_frontend(host: Arc<Host>, frontend: Arc<Frontend>) -> Self {
        Self { host, caller: Caller::Frontend(frontend) }
    }

    async fn of<T>(&self, request: Request<T>) -> Result<(Arc<Job>, T), Status> {
        let jobs = match &self.caller {
            Caller::Frontend(frontend) => return Ok((Arc::clone(&frontend.job), request.into_inner())),
            Caller::Client(jobs) => jobs,
        };
        let id = request.metadata().get(BUILD_ID).and_then(|id| id.to_str().ok()).map(str::to_owned);
        let id = id.ok_or_else(|| {
            Status::invalid_argument(format!(
                "no buildid found in context: no {BUILD_ID} in the call's metadata"
            ))
        })?;
        Ok((jobs.get(&id, BRIDGE_WAIT).await?, request.into_inner()))
    }

    /// Takes what a frontend made of its request.
    fn take(&self, job: &Job, answer: Result<Answer, Status>) -> Result<ReturnResponse, Status> {
        match &self.caller {
            Caller::Frontend(frontend) => {
                *frontend.returned.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
                Ok(ReturnResponse {})
            }
            Caller::Client(_) if job.unpark(answer) => Ok(ReturnResponse {}),
            Caller::Client(_) => {
                Err(Status::failed_precondition(format!("build {} waits for no result", job.id)))
            }
        }
    }
}

async fn image_config(
    job: &Job,
    request: ResolveImageConfigRequest,
) -> Result<ResolveImageConfigResponse, Status> {
    let mut source =
        pb::SourceOp { identifier: format!("docker-image://{}", request.r#ref), ..pb::SourceOp::default() };
    judge(job, &request.source_policies, &mut source, request.platform.as_ref())?;
    let no_image = || Status::unknown(format!("{} is no image", source.identifier));
    let name = source.identifier.strip_prefix("docker-image://").ok_or_else(no_image)?;
    let found = image(job, name, request.platform.as_ref(), &request.log_name).await?;
    Ok(ResolveImageConfigResponse { digest: found.0, config: found.1, r#ref: name.to_owned() })
}

/// What counts in place of a source, under the rules of the build and of the request.
fn judge(
    job: &Job,
    more: &[Policy],
    source: &mut pb::SourceOp,
    platform: Option<&pb::Platform>,
) -> Result<(), Status> {
    let policies = job.engine.policies().and(&build::policies(more)?);
    let judged = policies.evaluate(source, platform);
    judged.map(drop).map_err(|error| status(&error.failure("could not resolve image due to policy")))
}

/// Digest and config of an image.
async fn image(
    job: &Job,
    name: &str,
    platform: Option<&pb::Platform>,
    log_name: &str,
) -> Result<(String, Vec<u8>), Status> {
    let platform = platform_of(platform);
    let shown = match log_name {
        "" => format!("resolve image config for {name}"),
        shown => shown.to_owned(),
    };
    let step = job.progress.step(&shown);
    let found =
        step.close(job.engine.images().resolve_text(name, &platform).await).map_err(|e| status(&e))?;
    let config = job.engine.images().config_bytes(&found).map_err(|e| status(&e))?;
    Ok((found.digest.to_string(), config))
}

async fn source_meta(
    job: &Job,
    request: ResolveSourceMetaRequest,
) -> Result<ResolveSourceMetaResponse, Status> {
    let mut source = request.source.ok_or_else(|| Status::invalid_argument("no source was given"))?;
    judge(job, &request.source_policies, &mut source, request.platform.as_ref())?;
    if let Some(name) = source.identifier.strip_prefix("docker-image://") {
        let (digest, config) = image(job, name, request.platform.as_ref(), &request.log_name).await?;
        let asked = request.image.as_ref();
        let chain = chain_of(&job.engine, name, request.platform.as_ref(), asked).await;
        let attestation_chain = chain.map_err(|e| status(&e))?;
        let config = if asked.is_some_and(|image| image.no_config) { Vec::new() } else { config };
        let image = Some(ResolveSourceImageResponse { digest, config, attestation_chain });
        return Ok(ResolveSourceMetaResponse { source: Some(source), image, ..Default::default() });
    }
    let answer = ResolveSourceMetaResponse { source: Some(source.clone()), ..Default::default() };
    let objects = request.git.as_ref().is_some_and(|git| git.return_object);
    match job.engine.facts_of(&source, objects).await.map_err(|e| status(&e))? {
        Some(facts) => Ok(told(facts, answer)),
        None => Err(Status::unimplemented(format!("nothing can be told of source {}", source.identifier))),
    }
}

/// The platform that a message names; this machine's where it names none.
pub(super) fn platform_of(asked: Option<&pb::Platform>) -> Platform {
    match asked.filter(|platform| !platform.os.is_empty()) {
        None => crate::engine::native_platform(),
        Some(p) => {
            let variant = Some(p.variant.as_str()).filter(|variant| !variant.is_empty());
            Platform::new(&p.os, &p.architecture, variant)
        }
    }
}

/// What is attested of an image, as far as that was asked for.
pub(super) async fn chain_of(
    engine: &Engine,
    name: &str,
    platform: Option<&pb::Platform>,
    asked: Option<&ResolveSourceImageRequest>,
) -> Result<Option<frontend::AttestationChain>, BuildError> {
    let wants = |asked: &&ResolveSourceImageRequest| {
        asked.attestation_chain || !asked.resolve_attestations.is_empty()
    };
    let Some(asked) = asked.filter(wants) else { return Ok(None) };
    let platform = platform_of(platform);
    let chain = engine.images().attestation_chain(name, &platform, &asked.resolve_attestations).await?;
    let blob = |(descriptor, data): (lapstrake_oci::Descriptor, Vec<u8>)| {
        let told = frontend::Descriptor {
            media_type: descriptor.media_type,
            digest: descriptor.digest.to_string(),
            size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
            annotations: descriptor.annotations.into_iter().collect(),
        };
        (told.digest.clone(), frontend::Blob { descriptor: Some(told), data })
    };
    Ok(chain.map(|chain| frontend::AttestationChain {
        root: chain.root.to_string(),
        image_manifest: chain.image.to_string(),
        attestation_manifest: chain.attestations.map(|digest| digest.to_string()).unwrap_or_default(),
        signature_manifests: Vec::new(),
        blobs: chain.blobs.into_iter().map(blob).collect(),
    }))
}

/// What is known of a source that is no image, in an answer about it.
pub(super) fn told(facts: SourceFacts, answer: ResolveSourceMetaResponse) -> ResolveSourceMetaResponse {
    match facts {
        SourceFacts::Commit { commit, tag, objects, reference } => {
            // A tag with a text of its own is what was found; then the commit is told beside it.
            let (checksum, commit_checksum) = match tag {
                Some(tag) => (tag, commit),
                None => (commit, String::new()),
            };
            let (commit_object, tag_object) = objects.unwrap_or_default();
            let git = ResolveSourceGitResponse {
                checksum,
                r#ref: reference.unwrap_or_default(),
                commit_checksum,
                commit_object,
                tag_object: tag_object.unwrap_or_default(),
            };
            ResolveSourceMetaResponse { git: Some(git), ..answer }
        }
        SourceFacts::File { digest, filename, modified } => {
            let last_modified = modified.map(|seconds| lapstrake_api::Timestamp { seconds, nanos: 0 });
            let checksum = digest.to_string();
            let http = ResolveSourceHttpResponse { checksum, filename, last_modified, ..Default::default() };
            ResolveSourceMetaResponse { http: Some(http), ..answer }
        }
    }
}

fn warn(job: &Job, request: WarnRequest) -> WarnResponse {
    job.status.warn(control::VertexWarning {
        vertex: request.digest,
        level: request.level,
        short: request.short,
        detail: request.detail,
        url: request.url,
        info: request.info,
        ranges: request.ranges,
    });
    WarnResponse {}
}

fn returned(job: &Job, request: ReturnRequest) -> Result<Result<Answer, Status>, Status> {
    Ok(match (request.error, request.result) {
        (Some(error), _) => {
            use prost::Message as _;
            let code = tonic::Code::from_i32(error.code);
            let message = error.message.clone();
            Err(Status::with_details(code, message, error.encode_to_vec().into()))
        }
        (None, Some(result)) => Ok(Answer::from_message(job, result)?),
        (None, None) => Ok(Answer::one(None)),
    })
}

#[tonic::async_trait]
impl LlbBridge for Bridge {
    async fn resolve_image_config(
        &self,
        request: Request<ResolveImageConfigRequest>,
    ) -> Result<Response<ResolveImageConfigResponse>, Status> {
        let (job, request) = self.of(request).await?;
        image_config(&job, request).await.map(Response::new)
    }

    async fn resolve_source_meta(
        &self,
        request: Request<ResolveSourceMetaRequest>,
    ) -> Result<Response<ResolveSourceMetaResponse>, Status> {
        let (job, request) = self.of(request).await?;
        source_meta(&job, request).await.map(Response::new)
    }

    async fn solve(&self, request: Request<SolveRequest>) -> Result<Response<SolveResponse>, Status> {
        let (job, request) = self.of(request).await?;
        let trail = match &self.caller {
            Caller::Client(_) => &job.trail,
            Caller::Frontend(frontend) => &frontend.trail,
        };
        build::nested(&self.host, &job, trail, request).await.map(Response::new)
    }

    async fn read_file(
        &self,
        request: Request<ReadFileRequest>,
    ) -> Result<Response<ReadFileResponse>, Status> {
        let (job, request) = self.of(request).await?;
        files::read_file(&job, request).await.map(Response::new)
    }

    async fn read_dir(&self, request: Request<ReadDirRequest>) -> Result<Response<ReadDirResponse>, Status> {
        let (job, request) = self.of(request).await?;
        files::read_dir(&job, request).await.map(Response::new)
    }

    async fn stat_file(
        &self,
        request: Request<StatFileRequest>,
    ) -> Result<Response<StatFileResponse>, Status> {
        let (job, request) = self.of(request).await?;
        files::stat_file(&job, request).await.map(Response::new)
    }

    async fn evaluate(
        &self,
        request: Request<EvaluateRequest>,
    ) -> Result<Response<EvaluateResponse>, Status> {
        let (job, request) = self.of(request).await?;
        let result = job.kept(&request.r#ref)?;
        result.tree(&job).await.map_err(|e| job.containers.status(&e))?;
        Ok(Response::new(EvaluateResponse {}))
    }

    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PongResponse>, Status> {
        self.of(request).await?;
        Ok(Response::new(PongResponse {
            frontend_api_caps: caps(FRONTEND_CAPS),
            llb_caps: caps(LLB_CAPS),
            workers: vec![self.host.worker.clone()],
        }))
    }

    async fn r#return(&self, request: Request<ReturnRequest>) -> Result<Response<ReturnResponse>, Status> {
        let (job, request) = self.of(request).await?;
        let answer = returned(&job, request)?;
        self.take(&job, answer).map(Response::new)
    }

    async fn inputs(&self, request: Request<InputsRequest>) -> Result<Response<InputsResponse>, Status> {
        let (job, _) = self.of(request).await?;
        let definitions = match &self.caller {
            Caller::Client(_) => job.inputs.clone(),
            Caller::Frontend(frontend) => frontend.inputs.clone(),
        };
        Ok(Response::new(InputsResponse { definitions }))
    }

    async fn new_container(
        &self,
        request: Request<NewContainerRequest>,
    ) -> Result<Response<NewContainerResponse>, Status> {
        let (job, request) = self.of(request).await?;
        containers::create(&job, request).await.map(Response::new)
    }

    async fn release_container(
        &self,
        request: Request<ReleaseContainerRequest>,
    ) -> Result<Response<ReleaseContainerResponse>, Status> {
        let (job, request) = self.of(request).await?;
        job.containers.release(&request.container_id).await?;
        Ok(Response::new(ReleaseContainerResponse {}))
    }

    type ExecProcessStream = containers::Messages;

    async fn exec_process(
        &self,
        request: Request<Streaming<ExecMessage>>,
    ) -> Result<Response<Self::ExecProcessStream>, Status> {
        let (job, messages) = self.of(request).await?;
        Ok(Response::new(containers::exec(job, messages)))
    }

    async fn read_file_container(
        &self,
        request: Request<ReadFileRequest>,
    ) -> Result<Response<ReadFileResponse>, Status> {
        let (job, request) = self.of(request).await?;
        files::read_file_container(&job, request).await.map(Response::new)
    }

    async fn read_dir_container(
        &self,
        request: Request<ReadDirRequest>,
    ) -> Result<Response<ReadDirResponse>, Status> {
        let (job, request) = self.of(request).await?;
        files::read_dir_container(&job, request).await.map(Response::new)
    }

    async fn stat_file_container(
        &self,
        request: Request<StatFileRequest>,
    ) -> Result<Response<StatFileResponse>, Status> {
        let (job, request) = self.of(request).await?;
        files::stat_file_container(&job, request).await.map(Response::new)
    }

    async fn warn(&self, request: Request<WarnRequest>) -> Result<Response<WarnResponse>, Status> {
        let (job, request) = self.of(request).await?;
        Ok(Response::new(warn(&job, request)))
    }
}
