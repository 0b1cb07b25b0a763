//! Builds that clients asked for: each from its `Control.Solve` to its end.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapstrake_api::pb;
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::answer::{Answer, Ref};
use super::containers::Containers;
use super::status::{StatusLog, Wire};
use super::trail::Trail;
use crate::engine::Engine;
use crate::inputs::Inputs;
use crate::progress::Progress;

/// A client asks for a build's status while it asks for the build: this long its id may be unknown.
pub(crate) const STATUS_WAIT: Duration = Duration::from_secs(6);
/// The same for calls of a frontend on the client's side.
pub(crate) const BRIDGE_WAIT: Duration = Duration::from_secs(3);
/// How long what happened in a build can be asked for after its end.
const KEEP: Duration = Duration::from_secs(6);

/// One build.
pub(crate) struct Job {
    /// The client's name for it.
    pub(crate) id: String,
    /// The session of the client that asked.
    pub(crate) session: String,
    /// What its vertices are made with.
    pub(crate) engine: Arc<Engine>,
    /// Where everything that happens is told.
    pub(crate) progress: Progress,
    /// Everything that happened.
    pub(crate) status: Arc<StatusLog>,
    /// Fires when the client leaves, or the daemon ends.
    pub(crate) cancel: CancellationToken,
    /// Definitions that came with the build, for a frontend on the client's side.
    pub(crate) inputs: HashMap<String, pb::Definition>,
    /// What steps are given.
    pub(crate) inputs_of_steps: Inputs,
    /// Caches to read, as the client said it.
    pub(crate) imports: Vec<(String, super::Attributes)>,
    /// Those that were read already, for a definition of the client or of a frontend: each is read once.
    pub(crate) imported: tokio::sync::Mutex<BTreeSet<String>>,
    /// When it was begun.
    pub(crate) began: std::time::SystemTime,
    /// Who asked for what.
    pub(crate) trail: Arc<Trail>,
    /// What an administrator adds to all provenance.
    pub(crate) environment: serde_json::Map<String, serde_json::Value>,
    /// What a record keeps of it.
    outcome: Mutex<super::attested::Outcome>,
    /// Containers that its frontends asked for.
    pub(crate) containers: Containers,
    refs: Mutex<HashMap<String, Arc<Ref>>>,
    /// Where a frontend on the client's side returns its result to.
    parked: Mutex<Parked>,
}

type Returned = Result<Answer, Status>;

/// Both ends of where a frontend returns its result to: it may do so before anybody waits for it.
struct Parked {
    sender: Option<oneshot::Sender<Returned>>,
    receiver: Option<oneshot::Receiver<Returned>>,
}

impl Default for Parked {
    fn default() -> Self {
        let (sender, receiver) = oneshot::channel();
        Self { sender: Some(sender), receiver: Some(receiver) }
    }
}

impl Job {
    pub(crate) fn new(id: &str, session: &str, engine: Arc<Engine>) -> Self {
        let status = Arc::new(StatusLog::default());
        let wire = Wire { build: id.to_owned(), log: Arc::clone(&status) };
        Self {
            id: id.to_owned(),
            session: session.to_owned(),
            engine,
            progress: Progress::with(Box::new(wire)),
            status,
            cancel: CancellationToken::new(),
            inputs: HashMap::new(),
            inputs_of_steps: Inputs::default(),
            imports: Vec::new(),
            imported: tokio::sync::Mutex::default(),
            began: std::time::SystemTime::now(),
            trail: Arc::default(),
            environment: serde_json::Map::new(),
            outcome: Mutex::default(),
            containers: Containers::default(),
            refs: Mutex::default(),
            parked: Mutex::default(),
        }
    }

    /// Allows its steps what client and daemon allow: `network.host`, `security.insecure`, `device=NAME`.
    pub(crate) fn lend(&mut self, entitlements: &[String]) {
        for entitlement in entitlements {
            match entitlement.split_once('=').unwrap_or((entitlement, "")) {
                ("network.host", _) => self.inputs_of_steps.allow.push(lapstrake_handoff::Allow::NetworkHost),
                ("security.insecure", _) => self.inputs_of_steps.insecure = true,
                ("device", name) => {
                    self.inputs_of_steps.devices.insert(name.to_owned());
                }
                _ => {}
            }
        }
    }

    /// What a record keeps of it.
    pub(crate) fn outcome(&self) -> MutexGuard<'_, super::attested::Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refs(&self) -> MutexGuard<'_, HashMap<String, Arc<Ref>>> {
        self.refs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a result known by its id.
    pub(crate) fn keep(&self, result: &Arc<Ref>) {
        self.refs().insert(result.id.clone(), Arc::clone(result));
    }

    /// A result that was made in this build.
    pub(crate) fn kept(&self, id: &str) -> Result<Arc<Ref>, Status> {
        let unknown = || Status::not_found(format!("no such ref {id} in build {}", self.id));
        self.refs().get(id).cloned().ok_or_else(unknown)
    }

    /// Waits for what a frontend on the client's side returns.
    pub(crate) fn park(&self) -> oneshot::Receiver<Result<Answer, Status>> {
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody waits twice.
        parked.receiver.take().unwrap_or_else(|| oneshot::channel().1)
    }

    /// What the frontend on the client's side made of it; false where nobody waits for one.
    pub(crate) fn unpark(&self, answer: Result<Answer, Status>) -> bool {
        let sender = self.parked.lock().unwrap_or_else(PoisonError::into_inner).sender.take();
        sender.is_some_and(|sender| sender.send(answer).is_ok())
    }
}

/// The end of a build.
pub(crate) struct Ends {
    jobs: Arc<Jobs>,
    job: Arc<Job>,
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.jobs.end(&self.job);
    }
}

/// Builds by their ids.
pub(crate) struct Jobs {
    jobs: Mutex<HashMap<String, Arc<Job>>>,
    changed: watch::Sender<u64>,
    ended: Notify,
}

impl Default for Jobs {
    fn default() -> Self {
        Self { jobs: Mutex::default(), changed: watch::Sender::new(0), ended: Notify::new() }
    }
}

impl Jobs {
    fn jobs(&self) -> MutexGuard<'_, HashMap<String, Arc<Job>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a build known.
    ///
    /// # Errors
    /// One of this id goes on.
    pub(crate) fn add(&self, job: Arc<Job>) -> Result<(), Status> {
        {
            let mut jobs = self.jobs();
            if jobs.get(&job.id).is_some_and(|other| !other.status.has_ended()) {
                return Err(Status::already_exists(format!("job ID {} already exists", job.id)));
            }
            jobs.insert(job.id.clone(), job);
        }
        self.changed.send_modify(|changes| *changes += 1);
        Ok(())
    }

    /// The build of this id, which may be about to come.
    pub(crate) async fn get(&self, id: &str, wait: Duration) -> Result<Arc<Job>, Status> {
        let mut changed = self.changed.subscribe();
        let find = async {
            loop {
                changed.borrow_and_update();
                if let Some(job) = self.jobs().get(id).cloned() {
                    return job;
                }
                if changed.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let unknown = |_| Status::not_found(format!("no such job {id}"));
        tokio::time::timeout(wait, find).await.map_err(unknown)
    }

    /// Ends a build when it is dropped: also one whose work panics has an end that others see.
    pub(crate) fn ends(self: &Arc<Self>, job: &Arc<Job>) -> Ends {
        Ends { jobs: Arc::clone(self), job: Arc::clone(job) }
    }

    /// A build has ended; for some seconds it can still be asked what happened.
    fn end(self: &Arc<Self>, job: &Arc<Job>) {
        job.status.end();
        job.containers.end();
        job.refs().clear();
        self.ended.notify_one();
        let (jobs, job) = (Arc::clone(self), Arc::clone(job));
        // Where the runtime ends, nobody can ask any more.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            tokio::time::sleep(KEEP).await;
            let mut jobs = jobs.jobs();
            if jobs.get(&job.id).is_some_and(|other| Arc::ptr_eq(other, &job)) {
                jobs.remove(&job.id);
            }
        });
    }

    /// Returns once a build has ended since the last call; those that ended in between count as one.
    pub(crate) async fn ended(&self) {
        self.ended.notified().await;
    }

    /// Builds that go on.
    pub(crate) fn running(&self) -> Vec<Arc<Job>> {
        self.jobs().values().filter(|job| !job.status.has_ended()).cloned().collect()
    }

    /// Returns once no build goes on.
    pub(crate) async fn idle(&self) {
        let ends: Vec<_> = self.running().into_iter().map(|job| job.status.clone()).collect();
        for status in ends {
            status.ended().await;
        }
    }
}
