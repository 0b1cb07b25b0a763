//! The engine: what the solver asks of the world, done with the store, the step runner, the file
//! operations and the registry client.

mod advice;
mod attested;
mod based;
mod blob;
pub(crate) mod cdi;
mod container;
mod emulation;
mod exec;
mod failed;
mod file;
mod group;
mod images;
mod key;
mod lazy;
mod merge;
mod mounts;
mod nested;
mod outside;
mod program;
mod remote;
mod world;

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use lapstrake_handoff::Reason;
use lapstrake_llb::{Vertex, pb};
use lapstrake_oci::Platform;
use lapstrake_run::Executor;
use lapstrake_solver::{Solver, Step};
use lapstrake_source::Local;
use lapstrake_store::{Active, CommitOptions, SnapshotId, Store, Table};
use tokio::sync::Semaphore;

use crate::error::BuildError;
use crate::export::Making;
use crate::inputs::{Inputs, StepInputs};
use crate::lender::Lender;
use crate::policy::Policies;
use crate::progress::Progress;
use crate::reach::Reach;

pub(crate) use blob::{LAYOUT as BLOB_LAYOUT, digest as blob_digest};
pub(crate) use container::{Container, Process, Wanted};
use emulation::Emulators;
pub(crate) use failed::{FailedOp, Subject};
pub(crate) use images::{Images, Resolved};
pub(crate) use lazy::Watch;
use lazy::not_realised;
pub(crate) use merge::{is_bare, origin};
pub(crate) use outside::Facts as SourceFacts;
pub(crate) use program::Program;
pub(crate) use remote::{Cache, Lazy, LazyLayer, Place, Remote};

/// When snapshots were made (RFC 3339), by their id.
pub(crate) const CREATED: Table = Table::named("created");

/// What snapshots are, in words for people, by their id.
pub(crate) const ABOUT: Table = Table::named("about");

/// Commits a snapshot and keeps the time with it: it becomes the layer's `created`.
fn commit(store: &Store, active: Active) -> Result<SnapshotId, BuildError> {
    let created = lapstrake_store::Record {
        table: CREATED,
        key: active.id().to_string().into_bytes(),
        value: crate::time::now_precise().into_bytes(),
    };
    Ok(store.commit(active, CommitOptions { layer: None, records: vec![created] })?)
}

/// A result of a vertex.
#[derive(Clone)]
pub(crate) enum Res {
    /// A file system: a snapshot, or nothing at all.
    Snapshot(Option<SnapshotId>),
    /// A directory of the builder, read in place.
    Context(Arc<Local>),
    /// A file system of another build's cache that nothing needed yet; no operation is given one.
    Lazy(Arc<Lazy>),
}

/// All that the vertices of one build are made with. What is the machine's is shared with the builds beside it.
pub(crate) struct Engine {
    store: Store,
    executor: Arc<Executor>,
    emulators: Arc<Emulators>,
    images: Images,
    remote: Remote,
    turns: Arc<lazy::Turns>,
    /// Layers that outputs and caches make.
    making: Arc<Making>,
    contexts: Mutex<HashMap<String, Arc<Local>>>,
    /// Directories of which each vertex says what it wants.
    open: Mutex<HashMap<String, Arc<Local>>>,
    /// Who lends local sources that are no contexts of ours.
    lender: OnceLock<Lender>,
    /// An empty directory: what a copy from `scratch` reads.
    nothing: PathBuf,
    /// Steps that run at the same time.
    slots: Arc<Semaphore>,
    /// The platform of this machine.
    platform: Platform,
    /// What steps are given beside their files.
    inputs: Mutex<Arc<StepInputs>>,
    outside: outside::Outside,
    /// Builds that want the same share its making.
    solver: Arc<OnceLock<Solver<Engine>>>,
    /// What a failed step wrote is kept for who wants to look at it.
    keeps_failed: AtomicBool,
    /// Itself, as builds have it.
    shared: OnceLock<Weak<Self>>,
    /// Where the build shows its steps.
    progress: OnceLock<Progress>,
    /// Definitions that operations made, and that go on.
    waits: Arc<nested::Waits>,
    /// Limits of steps, as all builds beside this one want them.
    wishes: Arc<group::Wishes>,
    /// Cache mounts that this build has dropped already.
    dropped: Mutex<BTreeSet<String>>,
}

/// Steps that run at the same time, where nothing else is said: many more than would keep the processors busy, since steps wait for
/// networks and for one another. BuildKit has no limit; this one keeps a graph of thousands of steps from starting thousands of
/// processes.
fn slots_default() -> usize {
    std::thread::available_parallelism().map_or(4, |n| n.get() * 8).max(64)
}

impl Engine {
    /// An engine on a store. Blocking.
    pub(crate) fn new(store: Store, executor: Executor, images: Images) -> Result<Self, BuildError> {
        let nothing = store.side_dir("nothing")?;
        Ok(Self {
            store,
            executor: Arc::new(executor),
            emulators: Arc::new(Emulators::new(None)),
            images,
            remote: Remote::default(),
            turns: Arc::default(),
            making: Arc::default(),
            contexts: Mutex::default(),
            open: Mutex::default(),
            lender: OnceLock::new(),
            nothing,
            slots: Arc::new(Semaphore::new(slots_default())),
            platform: native_platform(),
            inputs: Mutex::default(),
            outside: outside::Outside::default(),
            solver: Arc::default(),
            keeps_failed: AtomicBool::new(false),
            shared: OnceLock::new(),
            progress: OnceLock::new(),
            waits: Arc::default(),
            wishes: Arc::default(),
            dropped: Mutex::default(),
        })
    }

    /// The same, with at most so many steps at the same time, in all builds beside it too.
    pub(crate) fn with_slots(mut self, slots: std::num::NonZeroUsize) -> Self {
        self.slots = Arc::new(Semaphore::new(slots.get()));
        self
    }

    /// The engine of a build beside this one, which looks names of images up anew with this client.
    pub(crate) fn beside(&self, client: lapstrake_registry::Client) -> Self {
        Self {
            store: self.store.clone(),
            executor: Arc::clone(&self.executor),
            emulators: Arc::clone(&self.emulators),
            images: Images::new(client, self.store.clone()),
            remote: self.remote.beside(),
            turns: Arc::clone(&self.turns),
            making: Arc::clone(&self.making),
            contexts: Mutex::default(),
            open: Mutex::default(),
            lender: OnceLock::new(),
            nothing: self.nothing.clone(),
            slots: Arc::clone(&self.slots),
            platform: self.platform.clone(),
            inputs: Mutex::default(),
            outside: self.outside.beside(),
            solver: Arc::clone(&self.solver),
            keeps_failed: AtomicBool::new(false),
            shared: OnceLock::new(),
            progress: OnceLock::new(),
            waits: Arc::clone(&self.waits),
            wishes: Arc::clone(&self.wishes),
            dropped: Mutex::default(),
        }
    }

    /// Builds have it by this: some operations are builds of their own, whose steps are the build's too.
    pub(crate) fn share(self: &Arc<Self>, progress: &Progress) {
        self.shared.set(Arc::downgrade(self)).ok(); // it is the same every time
        self.progress.set(progress.clone()).ok(); // as above
    }

    /// The solver of all builds that were begun beside each other; needs a tokio runtime.
    pub(crate) fn solver(&self) -> &Solver<Engine> {
        self.solver.get_or_init(Solver::start)
    }

    /// Layers that are being made, in all builds beside this one too.
    pub(crate) fn making(&self) -> &Making {
        &self.making
    }

    /// Looks for emulators in this directory first.
    pub(crate) fn with_emulators(mut self, dir: Option<&std::path::Path>) -> Self {
        self.emulators = Arc::new(Emulators::new(dir));
        self
    }

    /// Platforms whose steps run here: this machine's, and those that an emulator is there for.
    pub(crate) fn platforms(&self) -> Vec<Platform> {
        let mut all = vec![self.platform.clone()];
        for architecture in ["386", "amd64", "arm64", "arm", "riscv64", "ppc64le", "s390x"] {
            let platform = Platform::new("linux", architecture, None);
            if platform != self.platform && self.emulators.can_run(architecture) {
                all.push(platform);
            }
        }
        all
    }

    /// The snapshot of a result, fetched where it is in a cache of another build.
    pub(crate) async fn snapshot_of(
        &self,
        tree: &crate::build::Tree,
        cancel: &tokio_util::sync::CancellationToken,
    ) -> Result<Option<SnapshotId>, BuildError> {
        match (tree.snapshot, &tree.lazy) {
            (None, Some(lazy)) => self.realise(lazy, &Watch::silent(cancel)).await,
            (snapshot, _) => Ok(snapshot),
        }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn images(&self) -> &Images {
        &self.images
    }

    /// Caches of other builds.
    pub(crate) fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Marks of overlay are in `user.overlay.*`.
    pub(crate) fn userxattr(&self) -> bool {
        self.executor.userxattr()
    }

    /// Says what steps are given from now on, and how what `ADD` brings is reached.
    pub(crate) fn give(&self, inputs: &Inputs, reach: &Reach) {
        let inputs = Arc::new(StepInputs::new(inputs.clone()));
        self.outside.reach(reach, &inputs);
        *self.inputs.lock().unwrap_or_else(PoisonError::into_inner) = inputs;
    }

    /// When a download or the commit of a repository was made, seconds since 1970.
    pub(crate) async fn time_of(&self, source: &pb::SourceOp) -> Result<Option<i64>, BuildError> {
        self.bring_bundle(source).await?;
        self.outside.time(&self.store, source).await
    }

    /// What a download or a repository stands for now; none where the source is something else.
    pub(crate) async fn facts_of(
        &self,
        source: &pb::SourceOp,
        objects: bool,
    ) -> Result<Option<SourceFacts>, BuildError> {
        self.bring_bundle(source).await?;
        match outside::is_outside(source) {
            true => self.outside.facts(&self.store, source, objects).await.map(Some),
            false => Ok(None),
        }
    }

    /// What the build's secrets let in at the address of a context.
    pub(crate) async fn access(
        &self,
        url: &str,
        is_git: bool,
    ) -> Result<Option<lapstrake_source::SourceAuth>, BuildError> {
        outside::access(self.step_inputs(), url, is_git).await
    }

    /// Rules about what the build brings from outside.
    pub(crate) fn policies(&self) -> Policies {
        self.step_inputs().policies().clone()
    }

    fn step_inputs(&self) -> Arc<StepInputs> {
        Arc::clone(&self.inputs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes a directory known as the local source `name`.
    pub(crate) fn add_context(&self, name: &str, context: Arc<Local>) {
        self.contexts.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), context);
    }

    /// Makes a directory known as the local source `name`, of which each vertex sees what it asks for.
    pub(crate) fn add_open(&self, name: &str, directory: Arc<Local>) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), directory);
    }

    /// Says who lends what the vertices ask a client for.
    pub(crate) fn lent_by(&self, lender: Lender) {
        self.lender.set(lender).ok(); // a build has one
    }

    /// The client of the build.
    pub(crate) fn lender(&self) -> Option<&Lender> {
        self.lender.get()
    }

    fn given_context(&self, name: &str) -> Option<Arc<Local>> {
        self.contexts.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn context(&self, name: &str) -> Result<Arc<Local>, BuildError> {
        let unknown = || BuildError::internal(format!("no context named \"{name}\" was given to the build"));
        self.given_context(name).ok_or_else(unknown)
    }

    /// Layer directories of a result that is a file system, topmost first.
    fn lowers(&self, of: Option<SnapshotId>) -> Result<Vec<PathBuf>, BuildError> {
        match of {
            None => Ok(Vec::new()),
            Some(id) => mountable(self.store.lowers_top_first(id)?),
        }
    }

    /// Mounts a snapshot for reading.
    pub(crate) fn mount(&self, of: Option<SnapshotId>) -> Result<std::os::fd::OwnedFd, BuildError> {
        let lowers = self.lowers(of)?;
        match lowers.as_slice() {
            [] => Ok(lapstrake_fileop::open_root(&self.nothing)?),
            lowers => lapstrake_sys::overlay::mount_detached(lowers, None, self.userxattr())
                .map_err(BuildError::internal),
        }
    }

    fn commit(&self, active: Active) -> Result<SnapshotId, BuildError> {
        commit(&self.store, active)
    }

    /// Makes the results of a vertex. Where it fails nothing is left, so that it may be done again.
    async fn run_once(&self, vertex: &Vertex, inputs: Vec<Res>, step: &Step) -> Result<Vec<Res>, BuildError> {
        if let pb::op::Op::Passthrough(op) = &vertex.op {
            return passed_through(op, &inputs);
        }
        let platform = platform_of(vertex, &self.platform);
        let inputs = self.all_realised(inputs, step).await?;
        let inputs = self.based(vertex, inputs, step).await?;
        match &vertex.op {
            pb::op::Op::Source(source) => self.source(source, platform, step).await.map(|res| vec![res]),
            pb::op::Op::Exec(exec) => self.exec(exec, vertex, &platform, inputs, step).await,
            pb::op::Op::File(op) => file::run(self, op, vertex, inputs, step).await,
            pb::op::Op::Merge(op) => merge::merge(self, op, inputs, step).await.map(|res| vec![res]),
            pb::op::Op::Diff(op) => merge::diff(self, op, inputs, step).await.map(|res| vec![res]),
            pb::op::Op::Build(op) => {
                let shared = self.shared.get().and_then(Weak::upgrade);
                let shared = shared.ok_or_else(|| BuildError::internal("a build in no build"))?;
                shared.build(op, vertex, &inputs, step).await.map(|res| vec![res])
            }
            pb::op::Op::Passthrough(op) => passed_through(op, &inputs),
        }
    }

    async fn source(
        &self,
        source: &pb::SourceOp,
        platform: Platform,
        step: &Step,
    ) -> Result<Res, BuildError> {
        if let Some(name) = image_name(source) {
            let (resolved, _) = self.images.asked(&name, source, &platform).await?;
            return Ok(Res::Snapshot(
                self.images.pull(&self.store, &resolved, self.userxattr(), step).await?,
            ));
        }
        if let Some(name) = source.identifier.strip_prefix("local://") {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
            if let Some(open) = open {
                return Ok(Res::Context(Arc::new(crate::lender::as_asked(&open, source)?)));
            }
            if let (None, Some(lender)) = (self.given_context(name), self.lender.get()) {
                return Ok(Res::Context(Arc::new(lender.directory(&self.store, source, step).await?)));
            }
            return Ok(Res::Context(self.context(name)?));
        }
        if blob::is_blob(source) {
            return self.blob(source, step).await;
        }
        if outside::is_outside(source) {
            self.bring_bundle(source).await?;
            // Who reads a download in place sees no owner of it.
            if let Some((path, owner)) = self.outside.owned(&self.store, source).await? {
                return self.owned(&path, owner).await;
            }
            return Ok(Res::Context(self.outside.fetch(&self.store, source).await?));
        }
        Err(unsupported_source(&source.identifier))
    }
}

/// The results of an operation that hands its inputs on, wherever they are.
fn passed_through(op: &pb::PassthroughOp, inputs: &[Res]) -> Result<Vec<Res>, BuildError> {
    let why =
        |what: &str| BuildError::new(Reason::RequestInvalid, format!("invalid passthrough op with {what}"));
    if op.id.is_empty() {
        return Err(why("no id"));
    }
    if op.outputs.is_empty() {
        return Err(why("no outputs"));
    }
    let result = |at: &i64| usize::try_from(*at).ok().and_then(|at| inputs.get(at)).cloned();
    op.outputs.iter().map(|at| result(at).ok_or_else(|| why(&format!("output input index {at}")))).collect()
}

/// Layers that can be laid over each other: the kernel takes one more, which steps have for their mount points.
const LAYERS_MAX: usize = 499;

/// Refuses more layers than can be mounted, in words that help.
fn mountable<T>(layers: Vec<T>) -> Result<Vec<T>, BuildError> {
    if layers.len() > LAYERS_MAX {
        let message =
            format!("more than {LAYERS_MAX} layers can't be laid over each other; join some instructions");
        return Err(BuildError::new(Reason::StepFailed, message));
    }
    Ok(layers)
}

/// The image that a source operation is about. One of a client's layout was brought here before, and is known by its
/// digest alone.
pub(crate) fn image_name(source: &pb::SourceOp) -> Option<Cow<'_, str>> {
    if let Some(name) = source.identifier.strip_prefix("docker-image://") {
        return Some(Cow::Borrowed(name));
    }
    let (_, digest) = source.identifier.strip_prefix("oci-layout://")?.rsplit_once('@')?;
    Some(Cow::Owned(format!("localhost/oci-layout@{digest}")))
}

fn unsupported_source(identifier: &str) -> BuildError {
    BuildError::new(Reason::NotSupported, format!("source {identifier} is not supported yet"))
}

/// The platform of this machine.
pub(crate) fn native_platform() -> Platform {
    Platform::new("linux", std::env::consts::ARCH, None)
}

/// The platform that an operation asks for; this machine's where it asks for none.
pub(crate) fn platform_of(vertex: &Vertex, native: &Platform) -> Platform {
    match &vertex.platform {
        Some(p) if !p.os.is_empty() => Platform::new(&p.os, &p.architecture, Some(&p.variant)),
        _ => native.clone(),
    }
}
