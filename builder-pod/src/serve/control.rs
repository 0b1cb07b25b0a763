//! `moby.buildkit.v1.Control`.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use lapstrake_api::control::control_server::Control as Service;
use lapstrake_api::control::{
    BuildHistoryEvent, BuildHistoryRequest, BytesMessage, DiskUsageRequest, DiskUsageResponse, InfoRequest,
    InfoResponse, ListWorkersRequest, ListWorkersResponse, PruneRequest, SolveRequest, SolveResponse,
    StatusRequest, StatusResponse, UpdateBuildHistoryRequest, UpdateBuildHistoryResponse, UsageRecord,
};
use lapstrake_api::{pb, types};
use tonic::{Request, Response, Status, Streaming};

use super::Daemon;
use super::build::{self, Asked, Wanted};
use super::errors::status;
use super::job::{Job, STATUS_WAIT};
use crate::lender::Lender;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
pub(crate) struct Control(pub(crate) Arc<Daemon>);

/// What this program calls itself. Clients compare the version with BuildKit's to know what they may ask for.
pub(crate) fn version() -> types::BuildkitVersion {
    types::BuildkitVersion {
        package: "github.com/lapstrake/lapstrake".to_owned(),
        version: concat!("v", env!("CARGO_PKG_VERSION")).to_owned(),
        revision: String::new(),
    }
}

impl Daemon {
    /// Begins a build.
    fn job(&self, request: &SolveRequest) -> Result<Job, Status> {
        if self.draining.is_cancelled() {
            return Err(Status::unavailable("the daemon is shutting down: no new builds are taken"));
        }
        if let Some(denied) = request.entitlements.iter().find(|one| !self.allows(one)) {
            return Err(Status::permission_denied(format!("{denied} is not allowed")));
        }
        let id = if request.r#ref.is_empty() { super::id() } else { request.r#ref.clone() };
        let engine = self.engine.beside(self.client.clone());
        let mut job = Job::new(&id, &request.session, Arc::new(engine));
        if !request.session.is_empty() {
            let lender = Lender::new(self.sessions.clone(), &request.session, Arc::clone(&self.dirs));
            job.engine.lent_by(lender.clone());
            job.inputs_of_steps.lender = Some(lender);
        }
        job.lend(&request.entitlements);
        job.inputs.clone_from(&request.frontend_inputs);
        let imports = request.cache.iter().flat_map(|cache| &cache.imports);
        let entry = |one: &lapstrake_api::control::CacheOptionsEntry| {
            (one.r#type.clone(), one.attrs.clone().into_iter().collect())
        };
        job.imports = imports.map(entry).collect();
        job.engine.give(&job.inputs_of_steps, &crate::reach::Reach::default());
        Ok(job)
    }

    /// Runs a build to its end.
    async fn run(self: &Arc<Self>, job: &Arc<Job>, request: SolveRequest) -> Result<SolveResponse, Status> {
        let wanted = Wanted::of(&request).map_err(|e| status(&e))?;
        let is_parked = request.frontend.is_empty()
            && request.definition.as_ref().is_none_or(|definition| definition.def.is_empty());
        let answer = if is_parked {
            let parked = job.park();
            tokio::select! {
                answer = parked => answer.map_err(|_| Status::internal("the frontend went away"))??,
                () = job.cancel.cancelled() => return Err(Status::cancelled("context canceled")),
            }
        } else {
            let asked = Asked {
                definition: request.definition,
                frontend: request.frontend,
                opts: request.frontend_attrs,
                inputs: request.frontend_inputs,
            };
            build::answer(self, job, asked).await?
        };
        let exporter_response = build::export(job, &answer, &wanted).await.map_err(|e| status(&e))?;
        Ok(SolveResponse { exporter_response })
    }
}

#[tonic::async_trait]
impl Service for Control {
    async fn disk_usage(&self, _: Request<DiskUsageRequest>) -> Result<Response<DiskUsageResponse>, Status> {
        Err(Status::unimplemented("DiskUsage"))
    }

    type PruneStream = Answers<UsageRecord>;

    async fn prune(&self, _: Request<PruneRequest>) -> Result<Response<Self::PruneStream>, Status> {
        Err(Status::unimplemented("Prune"))
    }

    async fn solve(&self, request: Request<SolveRequest>) -> Result<Response<SolveResponse>, Status> {
        let request = request.into_inner();
        let daemon = Arc::clone(&self.0);
        let job = Arc::new(daemon.job(&request)?);
        daemon.jobs.add(Arc::clone(&job))?;
        // The client that goes away cancels its build; what runs is given the time to clean up.
        let _leaves = job.cancel.clone().drop_guard();
        let build = tokio::spawn(async move {
            let pins = daemon.engine.store().job();
            let result = daemon.run(&job, request).await;
            daemon.jobs.end(&job);
            drop(pins);
            result
        });
        let result =
            build.await.map_err(|e| Status::internal(format!("a mistake of the daemon's own: {e}")))?;
        result.map(Response::new)
    }

    type StatusStream = Answers<StatusResponse>;

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<Self::StatusStream>, Status> {
        let job = self.0.jobs.get(&request.into_inner().r#ref, STATUS_WAIT).await?;
        Ok(Response::new(job.status.follow().boxed()))
    }

    type SessionStream = Answers<BytesMessage>;

    async fn session(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (metadata, _, inbound) = request.into_parts();
        Ok(Response::new(self.0.sessions.attach(&metadata, inbound)?))
    }

    async fn list_workers(
        &self,
        _: Request<ListWorkersRequest>,
    ) -> Result<Response<ListWorkersResponse>, Status> {
        Ok(Response::new(ListWorkersResponse { record: vec![self.0.worker()] }))
    }

    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        Ok(Response::new(InfoResponse { buildkit_version: Some(version()) }))
    }

    type ListenBuildHistoryStream = Answers<BuildHistoryEvent>;

    async fn listen_build_history(
        &self,
        _: Request<BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        Err(Status::unimplemented("ListenBuildHistory"))
    }

    async fn update_build_history(
        &self,
        _: Request<UpdateBuildHistoryRequest>,
    ) -> Result<Response<UpdateBuildHistoryResponse>, Status> {
        Err(Status::unimplemented("UpdateBuildHistory"))
    }
}

impl Daemon {
    /// The only worker, as clients see it.
    pub(crate) fn worker(&self) -> types::WorkerRecord {
        let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let label =
            |name: &str, value: &str| (format!("org.mobyproject.buildkit.worker.{name}"), value.to_owned());
        types::WorkerRecord {
            id: self.worker.clone(),
            labels: [
                label("executor", "oci"),
                label("hostname", hostname.trim()),
                label("network", "host"),
                label("oci.process-mode", "sandbox"),
                label("snapshotter", "overlayfs"),
                label("selinux.enabled", "false"),
            ]
            .into(),
            platforms: self.engine.platforms().iter().map(platform).collect(),
            gc_policy: Vec::new(),
            buildkit_version: Some(version()),
            cdi_devices: Vec::new(),
        }
    }
}

/// A platform as messages have it.
pub(crate) fn platform(platform: &lapstrake_oci::Platform) -> pb::Platform {
    pb::Platform {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone().unwrap_or_default(),
        ..pb::Platform::default()
    }
}
