//! `moby.buildkit.v1.Control`.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use lapstrake_api::control::control_server::Control as Service;
use lapstrake_api::control::{
    BuildHistoryEvent, BuildHistoryRequest, BytesMessage, DiskUsageRequest, DiskUsageResponse, InfoRequest,
    InfoResponse, ListWorkersRequest, ListWorkersResponse, PruneRequest, SolveRequest, SolveResponse,
    StatusRequest, StatusResponse, UpdateBuildHistoryRequest, UpdateBuildHistoryResponse, UsageRecord,
};
use lapstrake_api::types;
use lapstrake_registry::Credentials;
use tonic::{Request, Response, Status, Streaming};

use super::build::{self, Asked, Wanted};
use super::collector::Parent;
use super::errors::{self, status};
use super::job::{Job, STATUS_WAIT};
use super::judge::SessionJudge;
use super::{Daemon, personality, usage};
use crate::engine::cdi;
use crate::lender::Lender;
use crate::policy::Policies;

/// Does what may wait for the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Status::internal(format!("a mistake of the daemon's own: {e}"))))
}

/// A device as messages have it.
fn device(device: cdi::Described) -> types::CdiDevice {
    types::CdiDevice {
        name: device.name,
        auto_allow: device.auto_allow,
        annotations: device.annotations.into_iter().collect(),
        on_demand: false,
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
pub(crate) struct Control(pub(crate) Arc<Daemon>);

/// What this program calls itself. Clients compare the version with BuildKit's to know what they may ask for.
pub(crate) fn version() -> types::BuildkitVersion {
    types::BuildkitVersion {
        package: personality::PACKAGE.to_owned(),
        version: personality::VERSION.to_owned(),
        revision: personality::REVISION.to_owned(),
    }
}

/// So much of an entitlement that nobody knows is told.
const ENTITLEMENT_CHARS_MAX: usize = 200;

impl Daemon {
    /// Begins a build.
    fn job(&self, request: &SolveRequest) -> Result<Job, Status> {
        if self.draining.is_cancelled() {
            return Err(Status::unavailable("the daemon is shutting down: no new builds are taken"));
        }
        if let Some(denied) = request.entitlements.iter().find(|one| !self.allows(one)) {
            // The message travels in a header, of which a client takes so much.
            let denied: String = denied.chars().take(ENTITLEMENT_CHARS_MAX).collect();
            return Err(Status::permission_denied(format!("{denied} is not allowed")));
        }
        let id = if request.r#ref.is_empty() { super::id() } else { request.r#ref.clone() };
        let lender = (!request.session.is_empty())
            .then(|| Lender::new(self.sessions.clone(), &request.session, Arc::clone(&self.dirs)));
        let client = match &lender {
            Some(lender) => {
                let credentials = Credentials::none().with_keeper(Arc::new(lender.clone()));
                self.client.with_credentials(credentials)
            }
            None => self.client.clone(),
        };
        let mut job = Job::new(&id, &request.session, Arc::new(self.engine.beside(client)));
        if let Some(lender) = lender {
            job.engine.lent_by(lender.clone());
            job.inputs_of_steps.lender = Some(lender);
        }
        job.environment.clone_from(&self.environment);
        let root =
            build::request(&self.host, &request.frontend, &request.frontend_attrs, &request.frontend_inputs);
        job.trail = super::trail::Trail::of(root);
        job.lend(&request.entitlements);
        job.inputs_of_steps.device_dirs.clone_from(&self.config.cdi.spec_dirs);
        job.inputs_of_steps.auto_devices.clone_from(&self.config.cdi.auto_allowed);
        job.inputs_of_steps.devices_by_step = true;
        job.inputs_of_steps.cgroup_parent = self.config.worker.cgroup_parent.clone().unwrap_or_default();
        let policies = build::policies(&request.source_policy)?;
        job.inputs_of_steps.policies = match request.source_policy_session.as_str() {
            "" => policies,
            session => {
                let engine = Arc::downgrade(&job.engine);
                policies.with_judge(Arc::new(SessionJudge::new(self.sessions.clone(), session, engine)))
            }
        };
        job.inputs.clone_from(&request.frontend_inputs);
        let imports = request.cache.iter().flat_map(|cache| &cache.imports);
        let entry = |one: &lapstrake_api::control::CacheOptionsEntry| {
            (one.r#type.clone(), one.attrs.clone().into_iter().collect())
        };
        job.imports = imports.map(entry).collect();
        if request.frontend.is_empty() || request.frontend == build::GATEWAY {
            // Frontends can enter what failed.
            job.engine.keep_failed();
        }
        job.engine.give(&job.inputs_of_steps, &crate::reach::Reach::default());
        Ok(job)
    }

    /// Runs a build to its end.
    async fn run(self: &Arc<Self>, job: &Arc<Job>, request: SolveRequest) -> Result<SolveResponse, Status> {
        let wanted = Wanted::of(&request).map_err(|e| status(&e))?;
        // A definition without operations is one too: that of nothing.
        let is_parked = request.frontend.is_empty() && request.definition.is_none();
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
                imports: Vec::new(),
                policies: Policies::default(),
            };
            build::answer(&self.host, job, &job.trail, asked).await?
        };
        let exporter_response = build::export(job, &answer, &wanted).await.map_err(|e| status(&e))?;
        Ok(SolveResponse { exporter_response })
    }
}

#[tonic::async_trait]
impl Service for Control {
    async fn disk_usage(
        &self,
        request: Request<DiskUsageRequest>,
    ) -> Result<Response<DiskUsageResponse>, Status> {
        let store = self.0.engine.store().clone();
        blocking(move || usage::disk_usage(&store, request.get_ref())).await.map(Response::new)
    }

    type PruneStream = Answers<UsageRecord>;

    async fn prune(&self, request: Request<PruneRequest>) -> Result<Response<Self::PruneStream>, Status> {
        let store = self.0.engine.store().clone();
        let removed = blocking(move || usage::prune(&store, request.get_ref())).await?;
        Ok(Response::new(futures::stream::iter(removed.into_iter().map(Ok)).boxed()))
    }

    async fn solve(&self, request: Request<SolveRequest>) -> Result<Response<SolveResponse>, Status> {
        let within = Parent::of(request.metadata());
        // As with the daemon's own option: nothing is enforced here, so nothing is promised.
        if request.extensions().get::<lapstrake_api::ProxyNetwork>().is_some() {
            return Err(Status::unimplemented("traffic of builds is not enforced through a proxy here"));
        }
        let request = request.into_inner();
        let daemon = Arc::clone(&self.0);
        let job = Arc::new(daemon.job(&request)?);
        daemon.jobs.add(Arc::clone(&job))?;
        // The client that goes away cancels its build; what runs is given the time to clean up.
        let _leaves = job.cancel.clone().drop_guard();
        let build = tokio::spawn(async move {
            let pins = daemon.engine.store().job();
            let ends = daemon.jobs.ends(&job);
            let began = std::time::Instant::now();
            let record = daemon.history.begin(&request, &job.id);
            let result = daemon.run(&job, request).await;
            // What a client was told is finished outlives us, however we end.
            if let Err(error) = crate::wiring::flush(&job.engine).await {
                tracing::warn!("what build {} made may not outlive a crash: {error}", job.id);
            }
            daemon.host.requests.forget(&job.id);
            drop(ends);
            drop(pins);
            let events = job.status.events();
            daemon.metrics.ended(result.as_ref().err(), began.elapsed(), &events);
            if let Some(collector) = &daemon.collector {
                let error = result.as_ref().err().map_or("", |status| status.message());
                collector.build(&job.id, within, [job.began, std::time::SystemTime::now()], error, &events);
            }
            if let Some(record) = record {
                let history = Arc::clone(&daemon.history);
                let (response, error) = match &result {
                    Ok(response) => (response.exporter_response.clone(), None),
                    Err(status) => (HashMap::new(), Some(errors::message(status))),
                };
                let outcome = std::mem::take(&mut *job.outcome());
                let kept = move || {
                    history.finish(record, &events, response, outcome, error);
                    Ok(())
                };
                blocking(kept).await?;
            }
            result
        });
        let result =
            build.await.map_err(|e| Status::internal(format!("a mistake of the daemon's own: {e}")))?;
        result.map(Response::new)
    }

    type StatusStream = Answers<StatusResponse>;

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<Self::StatusStream>, Status> {
        let name = request.into_inner().r#ref;
        let job = match self.0.jobs.get(&name, std::time::Duration::ZERO).await {
            Ok(job) => job,
            Err(_) => match self.0.history.replay(&name) {
                Some(replay) => return Ok(Response::new(replay.stream().boxed())),
                None => self.0.jobs.get(&name, STATUS_WAIT).await?,
            },
        };
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
        let mut worker = self.0.host.worker.clone();
        let cdi = self.0.config.cdi.clone();
        if cdi.enabled {
            // Descriptions come and go while the daemon runs.
            let list = move || Ok(cdi::list(&cdi.spec_dirs, &cdi.auto_allowed));
            worker.cdi_devices = blocking(list).await?.into_iter().map(device).collect();
        }
        Ok(Response::new(ListWorkersResponse { record: vec![worker] }))
    }

    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        Ok(Response::new(InfoResponse { buildkit_version: Some(version()) }))
    }

    type ListenBuildHistoryStream = Answers<BuildHistoryEvent>;

    async fn listen_build_history(
        &self,
        request: Request<BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        let events = self.0.history.listen(request.get_ref())?;
        // Who listens for ever does not keep the daemon.
        Ok(Response::new(events.take_until(self.0.draining.clone().cancelled_owned()).boxed()))
    }

    async fn update_build_history(
        &self,
        request: Request<UpdateBuildHistoryRequest>,
    ) -> Result<Response<UpdateBuildHistoryResponse>, Status> {
        let history = Arc::clone(&self.0.history);
        blocking(move || history.update(request.get_ref())).await?;
        Ok(Response::new(UpdateBuildHistoryResponse {}))
    }
}
