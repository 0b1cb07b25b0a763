//! Performs the machine's actions, each in a task of its own, and feeds the answers back.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use async_trait::async_trait;
use futures::FutureExt as _;
use lapstrake_llb::{Graph, Vertex, VertexDigest};
use lapstrake_oci::Digest;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::key::{CacheKey, Derivation, OpKey};
use crate::machine::{self, Action, JobId, Looked, Machine, Outcome, Record, VertexId};

/// What the solver asks of the world.
#[async_trait]
pub trait World: Send + Sync + 'static {
    /// A handle of a result.
    type Result: Clone + Send + Sync + 'static;
    /// An error; it goes to every job that needed the vertex.
    type Error: Clone + Send + Sync + fmt::Display + 'static;

    /// The operation's own key; may resolve names over the network.
    async fn describe(&self, vertex: &Vertex, step: &Step) -> Result<OpKey, Self::Error>;
    /// A record of which some result is there. Must not block for long.
    fn look_up(&self, key: CacheKey) -> Option<Record<Self::Result>>;
    /// The key for all that comes after, of work that was done before and whose results are gone. Must not block for long.
    fn vouch(&self, _key: CacheKey) -> Option<CacheKey> {
        None
    }
    /// The digest of what the vertex reads of an input.
    async fn hash(
        &self,
        vertex: &Vertex,
        input: usize,
        of: &Self::Result,
        step: &Step,
    ) -> Result<Digest, Self::Error>;
    /// Runs the operation: one result per output.
    async fn run(
        &self,
        vertex: &Vertex,
        inputs: Vec<Self::Result>,
        step: &Step,
    ) -> Result<Vec<Self::Result>, Self::Error>;
    /// Keeps a record, for the worlds of all jobs. Best effort: a record that could not be kept costs a rerun.
    fn save(&self, key: CacheKey, record: &Record<Self::Result>);
    /// How a key came to be; told before anything is looked up under it, once for the worlds of all jobs.
    fn derived(&self, _key: CacheKey, _derivation: Derivation) {}
    /// The error of a vertex that was canceled.
    fn canceled(&self) -> Self::Error;
    /// The error of work that panicked.
    fn panicked(&self, message: &str) -> Self::Error;
}

/// Bytes of output that may be on their way to those who show them.
const OUTPUT_BYTES_MAX: usize = 4 << 20;

/// Something that a step printed.
#[derive(Debug, Clone)]
pub struct Output(Arc<Piece>);

#[derive(Debug)]
struct Piece {
    bytes: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

impl std::ops::Deref for Output {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0.bytes
    }
}

/// What a vertex' work has to do with the job: cancellation and progress.
#[derive(Clone)]
pub struct Step {
    id: VertexId,
    /// Fires when nobody wants the vertex any more.
    pub cancel: CancellationToken,
    report: mpsc::UnboundedSender<(VertexId, ProgressKind)>,
    room: Arc<Semaphore>,
}

impl Step {
    /// Work beside all jobs: nobody is told of it.
    pub fn unwatched(cancel: CancellationToken) -> Self {
        let (report, _) = mpsc::unbounded_channel();
        let id = VertexId { digest: VertexDigest(Digest::of(b"")), ignore_cache: false };
        Self { id, cancel, report, room: Arc::new(Semaphore::new(OUTPUT_BYTES_MAX)) }
    }

    /// Passes on what the step printed; `stream` is 1 or 2. Blocks while more was printed than is shown, so
    /// that a step which prints without end fills no memory; needs a multi-threaded runtime.
    pub fn log(&self, stream: u8, bytes: &[u8]) {
        for bytes in bytes.chunks(OUTPUT_BYTES_MAX / 16) {
            // Of a step that nobody wants nobody reads on.
            let Some(room) = self.room_for(bytes.len()) else { return };
            self.report(ProgressKind::Log(
                stream,
                Output(Arc::new(Piece { bytes: bytes.to_vec(), _room: room })),
            ));
        }
    }

    fn room_for(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        if let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(permits) {
            return Some(room);
        }
        let wait = async {
            tokio::select! {
                room = Arc::clone(&self.room).acquire_many_owned(permits) => room.ok(),
                () = self.cancel.cancelled() => None,
            }
        };
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(wait))
    }

    /// Passes on how far something named is, in bytes; `total` 0 is unknown.
    pub fn status(&self, name: &str, current: u64, total: u64) {
        self.report(ProgressKind::Status { name: name.to_owned(), current, total });
    }

    fn report(&self, kind: ProgressKind) {
        // The receiver is gone when the solver was dropped: then nobody listens.
        self.report.send((self.id, kind)).ok();
    }
}

/// Something about a vertex that a person may see.
#[derive(Debug, Clone)]
pub struct Event {
    /// The vertex.
    pub vertex: Arc<Vertex>,
    /// What about it.
    pub kind: ProgressKind,
}

/// What can be said about a vertex.
#[derive(Debug, Clone)]
pub enum ProgressKind {
    /// Its work began.
    Started,
    /// Its result was there already.
    Cached,
    /// It printed something.
    Log(u8, Output),
    /// A part of it moved on.
    Status {
        /// What moves.
        name: String,
        /// Bytes so far.
        current: u64,
        /// Bytes in all, 0 where unknown.
        total: u64,
    },
    /// Its result is there.
    Done,
    /// It failed.
    Failed(String),
    /// It was stopped, since nobody wanted it any more.
    Canceled,
}

/// A wish for the target of a graph.
pub struct Job<W> {
    /// The graph.
    pub graph: Arc<Graph>,
    /// What its vertices are made with. A vertex that several jobs want is made with one of theirs.
    pub world: Arc<W>,
    /// Receives what happens to its vertices.
    pub progress: mpsc::UnboundedSender<Event>,
    /// Fires to give the job up.
    pub cancel: CancellationToken,
}

/// A job's end.
pub type Solved<W> = Outcome<<W as World>::Result, <W as World>::Error>;

type MachineEvent<W> = machine::Event<<W as World>::Result, <W as World>::Error>;

struct Request<W: World> {
    job: Job<W>,
    done: oneshot::Sender<Solved<W>>,
}

/// Solves graphs; jobs of one solver share work. Dropping it ends its task when its jobs have ended.
pub struct Solver<W: World> {
    requests: mpsc::UnboundedSender<Request<W>>,
}

impl<W: World> Solver<W> {
    /// Starts a solver; needs a tokio runtime.
    pub fn start() -> Self {
        let (requests, receiver) = mpsc::unbounded_channel();
        tokio::spawn(Driver::<W>::new().run(receiver));
        Self { requests }
    }

    /// Brings the target of a graph into being. When this returns, with whatever outcome, no work goes on
    /// that only this job wanted.
    pub async fn solve(&self, job: Job<W>) -> Solved<W> {
        let (done, outcome) = oneshot::channel();
        if self.requests.send(Request { job, done }).is_err() {
            return Outcome::Canceled;
        }
        outcome.await.unwrap_or(Outcome::Canceled)
    }
}

struct Running<W: World> {
    world: Arc<W>,
    progress: mpsc::UnboundedSender<Event>,
    done: oneshot::Sender<Solved<W>>,
    watch: tokio::task::JoinHandle<()>,
}

/// A run that goes on in the world of one of the jobs that want it.
struct Lent<W: World> {
    by: JobId,
    inputs: Vec<W::Result>,
}

/// A job whose outcome is known, while work that only it wanted is being stopped.
struct Ending<W: World> {
    running: Running<W>,
    outcome: Solved<W>,
    left: HashSet<VertexId>,
}

impl<W: World> Ending<W> {
    fn deliver(self) {
        self.running.done.send(self.outcome).ok(); // the caller may have gone
    }
}

struct Driver<W: World> {
    machine: Machine<W::Result, W::Error>,
    jobs: HashMap<JobId, Running<W>>,
    ending: Vec<Ending<W>>,
    next_job: JobId,
    tokens: HashMap<VertexId, CancellationToken>,
    running: HashMap<VertexId, Arc<Vertex>>,
    /// Whose world a run goes on in, and its inputs, to run it once more in another one's.
    lent: HashMap<VertexId, Lent<W>>,
    events: mpsc::UnboundedSender<MachineEvent<W>>,
    inbox: mpsc::UnboundedReceiver<MachineEvent<W>>,
    report: mpsc::UnboundedSender<(VertexId, ProgressKind)>,
    reports: mpsc::UnboundedReceiver<(VertexId, ProgressKind)>,
    room: Arc<Semaphore>,
}

impl<W: World> Driver<W> {
    fn new() -> Self {
        let (events, inbox) = mpsc::unbounded_channel();
        let (report, reports) = mpsc::unbounded_channel();
        Self {
            machine: Machine::new(),
            jobs: HashMap::new(),
            ending: Vec::new(),
            next_job: 0,
            tokens: HashMap::new(),
            running: HashMap::new(),
            lent: HashMap::new(),
            events,
            inbox,
            report,
            reports,
            room: Arc::new(Semaphore::new(OUTPUT_BYTES_MAX)),
        }
    }

    async fn run(mut self, mut requests: mpsc::UnboundedReceiver<Request<W>>) {
        let mut open = true;
        while open || self.machine.jobs_running() > 0 || self.machine.vertices_known() > 0 {
            tokio::select! {
                // Logs before answers: a step's last lines come before its end.
                biased;
                Some((id, kind)) = self.reports.recv() => self.tell(id, kind),
                Some(event) = self.inbox.recv() => self.step(event),
                request = requests.recv(), if open => match request {
                    Some(request) => self.add(request),
                    None => open = false,
                },
            }
        }
    }

    fn add(&mut self, request: Request<W>) {
        let id = self.next_job;
        self.next_job += 1;
        let Job { graph, world, progress, cancel } = request.job;
        let events = self.events.clone();
        let watch = tokio::spawn(async move {
            cancel.cancelled().await;
            events.send(machine::Event::JobCanceled(id)).ok(); // the solver may be gone: nothing to cancel
        });
        self.jobs.insert(id, Running { world, progress, done: request.done, watch });
        self.step(machine::Event::JobAdded(id, graph));
    }

    fn step(&mut self, event: MachineEvent<W>) {
        if self.borrow_again(&event) {
            return;
        }
        self.note_end(&event);
        let mut todo = vec![event];
        while let Some(event) = todo.pop() {
            for action in self.machine.step(event) {
                if let Some(answer) = self.act(action) {
                    todo.push(answer);
                }
            }
        }
    }

    /// Jobs that want a vertex, with their worlds; the first is the one that it is made with.
    fn lenders(&self, id: VertexId) -> impl Iterator<Item = (JobId, &Arc<W>)> {
        self.machine.jobs_of(id).filter_map(|job| Some((job, &self.jobs.get(&job)?.world)))
    }

    /// Runs a vertex once more that failed in the world of a job which has ended meanwhile: what that world
    /// lent (a client's files, secrets) went away with it, and says nothing of the others that want the vertex.
    fn borrow_again(&mut self, event: &MachineEvent<W>) -> bool {
        let machine::Event::Ran(id, result) = event else { return false };
        let Some(lent) = self.lent.remove(id) else { return false };
        let failed = result.is_err() && !self.jobs.contains_key(&lent.by);
        let canceled = self.tokens.get(id).is_some_and(CancellationToken::is_cancelled);
        match self.running.get(id).cloned() {
            Some(vertex) if failed && !canceled && self.lenders(*id).next().is_some() => {
                self.start(*id, vertex, lent.inputs);
                true
            }
            _ => false,
        }
    }

    /// Runs a vertex in the world of one of the jobs that want it.
    fn start(&mut self, id: VertexId, vertex: Arc<Vertex>, inputs: Vec<W::Result>) {
        let lender = self.lenders(id).map(|(by, _)| by).next();
        if let Some(by) = lender {
            self.lent.insert(id, Lent { by, inputs: inputs.clone() });
        }
        // A run cleans up after itself: it is told of the cancellation and awaited.
        let work = |world: Arc<W>, step: Step| async move { world.run(&vertex, inputs, &step).await };
        self.spawn(id, work, move |result| machine::Event::Ran(id, result));
    }

    /// Progress of a run that ended; told before the machine may end its job.
    fn note_end(&mut self, event: &MachineEvent<W>) {
        let (id, result) = match event {
            machine::Event::Ran(id, result) => (id, result),
            machine::Event::Described(id, Err(error)) | machine::Event::Hashed(id, _, Err(error)) => {
                return self.note_early_end(*id, error);
            }
            _ => return,
        };
        if !self.running.contains_key(id) {
            return;
        }
        while let Ok((id, kind)) = self.reports.try_recv() {
            self.tell(id, kind);
        }
        let canceled = self.tokens.get(id).is_some_and(CancellationToken::is_cancelled);
        let kind = match result {
            Ok(_) => ProgressKind::Done,
            Err(_) if canceled => ProgressKind::Canceled,
            Err(error) => ProgressKind::Failed(error.to_string()),
        };
        self.tell(*id, kind);
        self.running.remove(id);
        for ending in &mut self.ending {
            ending.left.remove(id);
        }
        for ending in self.ending.extract_if(.., |ending| ending.left.is_empty()) {
            ending.deliver();
        }
    }

    /// A vertex that failed before it could run is shown as one that failed.
    fn note_early_end(&mut self, id: VertexId, error: &W::Error) {
        let canceled = self.tokens.get(&id).is_some_and(CancellationToken::is_cancelled);
        let Some(vertex) = self.machine.unfailed(id).filter(|_| !canceled) else { return };
        self.running.insert(id, Arc::clone(vertex));
        self.tell(id, ProgressKind::Started);
        self.tell(id, ProgressKind::Failed(error.to_string()));
        self.running.remove(&id);
    }

    fn act(&mut self, action: Action<W::Result, W::Error>) -> Option<MachineEvent<W>> {
        use machine::Event as E;
        match action {
            Action::Describe(id, vertex) => {
                let work = |world: Arc<W>, step: Step| async move {
                    guard(&*world, &step, world.describe(&vertex, &step)).await
                };
                self.spawn(id, work, move |result| E::Described(id, result));
            }
            Action::LookUp(id, key) => {
                let there = |record: &Record<W::Result>| record.results.iter().flatten().count();
                let found = self.lenders(id).filter_map(|(_, world)| world.look_up(key)).max_by_key(there);
                let vouched = || self.lenders(id).find_map(|(_, world)| world.vouch(key));
                let looked = match found {
                    Some(record) => Looked::Found(record),
                    None => vouched().map_or(Looked::Nothing, Looked::Known),
                };
                return Some(E::LookedUp(id, looked));
            }
            Action::Hash(id, vertex, input, of) => {
                let work = move |world: Arc<W>, step: Step| async move {
                    guard(&*world, &step, world.hash(&vertex, input, &of, &step)).await
                };
                self.spawn(id, work, move |result| E::Hashed(id, input, result));
            }
            Action::Run(id, vertex, inputs) => {
                self.running.insert(id, Arc::clone(&vertex));
                self.tell(id, ProgressKind::Started);
                self.start(id, vertex, inputs);
            }
            Action::Save(key, record) => {
                if let Some(running) = self.jobs.values().next() {
                    running.world.save(key, &record);
                }
            }
            Action::Derived(key, derivation) => {
                if let Some(running) = self.jobs.values().next() {
                    running.world.derived(key, derivation);
                }
            }
            Action::Cached(id, vertex) => {
                self.running.insert(id, vertex);
                self.tell(id, ProgressKind::Cached);
                self.running.remove(&id);
            }
            Action::Cancel(id) => {
                if let Some(token) = self.tokens.get(&id) {
                    token.cancel();
                }
            }
            Action::JobEnded(job, outcome) => {
                if let Some(running) = self.jobs.remove(&job) {
                    running.watch.abort();
                    self.tokens.retain(|id, _| self.machine.knows(*id));
                    let unwanted = |id: &&VertexId| self.machine.jobs_of(**id).next().is_none();
                    let left: HashSet<_> = self.running.keys().filter(unwanted).copied().collect();
                    let ending = Ending { running, outcome, left };
                    if ending.left.is_empty() { ending.deliver() } else { self.ending.push(ending) }
                }
            }
        }
        None
    }

    /// Does work in a task of its own. It is answered in any case: a vertex without an answer would keep its
    /// jobs for ever.
    fn spawn<T, Fut>(
        &mut self,
        id: VertexId,
        work: impl FnOnce(Arc<W>, Step) -> Fut + Send + 'static,
        answer: impl FnOnce(Result<T, W::Error>) -> MachineEvent<W> + Send + 'static,
    ) where
        T: Send + 'static,
        Fut: Future<Output = Result<T, W::Error>> + Send + 'static,
    {
        let token = self.tokens.entry(id).or_default();
        if token.is_cancelled() {
            *token = CancellationToken::new();
        }
        let step =
            Step { id, cancel: token.clone(), report: self.report.clone(), room: Arc::clone(&self.room) };
        // A job that has just ended in the machine is still here: its `JobEnded` comes behind this action.
        let any = || self.jobs.values().map(|running| &running.world).next();
        let Some(world) = self.lenders(id).map(|(_, world)| world).next().or_else(any) else {
            return tracing::error!("a vertex that no job wants is to be worked on");
        };
        let (world, events) = (Arc::clone(world), self.events.clone());
        tokio::spawn(async move {
            let done = AssertUnwindSafe(work(Arc::clone(&world), step)).catch_unwind().await;
            let result = done.unwrap_or_else(|panic| Err(world.panicked(message_of(&*panic))));
            events.send(answer(result)).ok(); // the solver is gone: nobody waits
        });
    }

    fn tell(&mut self, id: VertexId, kind: ProgressKind) {
        let Some(vertex) = self.running.get(&id) else { return };
        for job in self.machine.jobs_of(id) {
            if let Some(running) = self.jobs.get(&job) {
                running.progress.send(Event { vertex: Arc::clone(vertex), kind: kind.clone() }).ok(); // listening is optional
            }
        }
        for ending in self.ending.iter().filter(|ending| ending.left.contains(&id)) {
            ending.running.progress.send(Event { vertex: Arc::clone(vertex), kind: kind.clone() }).ok(); // as above
        }
    }
}

/// What a panic said.
fn message_of(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (None, Some(text)) => text,
        (None, None) => "no message",
    }
}

/// Drops work that only reads as soon as it is canceled.
async fn guard<W: World, T>(
    world: &W,
    step: &Step,
    work: impl Future<Output = Result<T, W::Error>>,
) -> Result<T, W::Error> {
    tokio::select! {
        result = work => result,
        () = step.cancel.cancelled() => Err(world.canceled()),
    }
}
