//! The solver's decisions: `step(event) -> actions`.
//!
//! Each vertex first gets a key, then a result, and either only when somebody asks.
//!
//! A key is *fast* where every input enters by its own key; it costs no work. An operation that reads
//! an input's contents (a copy) is looked up under its fast key first; on a miss the input is brought
//! into being, and its contents give the *slow* key. The slow key, where there is one, is the vertex'
//! key for all that comes after: so a rebuilt but equal input changes nothing downstream. Records are
//! kept under both. What is known under a fast key, but has no results any more, is vouched for by its record: it has a
//! key, and is worked on only when its result is wanted.
//!
//! A result is looked up by key; on a miss the inputs' results are asked for, then the vertex runs.
//! While a key is being worked on, others with the same key wait for that run.

mod keys;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use lapstrake_llb::{Graph, Vertex, VertexDigest};
use lapstrake_oci::Digest;

use crate::key::{CacheKey, Derivation, OpKey};

/// One caller's wish for one target.
pub type JobId = u64;

/// A vertex as the machine knows it: one that must not use the cache is another than one that may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VertexId {
    /// The operation.
    pub digest: VertexDigest,
    /// Records are not looked up.
    pub ignore_cache: bool,
}

/// What is kept of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<R> {
    /// The key that vertices downstream use.
    pub key: CacheKey,
    /// One result per output; `None` is one that is not there: another builder's cache has what that one needed.
    pub results: Vec<Option<R>>,
}

/// What is known under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Looked<R> {
    /// A record with its results.
    Found(Record<R>),
    /// Somebody did this before, and the results are gone. This is the key that vertices downstream use.
    Known(CacheKey),
    /// Nothing.
    Nothing,
}

/// What happened.
#[derive(Debug)]
pub enum Event<R, E> {
    /// Somebody wants the graph's target.
    JobAdded(JobId, Arc<Graph>),
    /// Nobody wants it any more.
    JobCanceled(JobId),
    /// Answer to [`Action::Describe`].
    Described(VertexId, Result<OpKey, E>),
    /// Answer to [`Action::LookUp`].
    LookedUp(VertexId, Looked<R>),
    /// Answer to [`Action::Hash`].
    Hashed(VertexId, usize, Result<Digest, E>),
    /// Answer to [`Action::Run`], also when it was canceled.
    Ran(VertexId, Result<Vec<R>, E>),
}

/// What to do. Every action but `Cancel`, `Save`, `Derived`, `Cached` and `JobEnded` is answered by one event.
#[derive(Debug)]
pub enum Action<R, E> {
    /// Find out the operation's own key.
    Describe(VertexId, Arc<Vertex>),
    /// Look for a record.
    LookUp(VertexId, CacheKey),
    /// Digest what the vertex reads of an input.
    Hash(VertexId, Arc<Vertex>, usize, R),
    /// Run the operation.
    Run(VertexId, Arc<Vertex>, Vec<R>),
    /// Keep a record under a key.
    Save(CacheKey, Record<R>),
    /// A key is known, and this is how it came to be. Keys of inputs were told before.
    Derived(CacheKey, Derivation),
    /// A record was found: the vertex will not run.
    Cached(VertexId, Arc<Vertex>),
    /// Stop what is being done for a vertex; its answer is still awaited.
    Cancel(VertexId),
    /// The job is over.
    JobEnded(JobId, Outcome<R, E>),
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome<R, E> {
    /// The target's result and key; `None` is the empty file system.
    Done(Option<(R, CacheKey)>),
    /// A vertex failed.
    Failed(VertexId, E),
    /// The job was canceled.
    Canceled,
}

#[derive(Debug)]
enum State<R, E> {
    /// Nobody asked yet.
    Idle,
    Describing,
    /// The operation's key is known, some input's is not.
    AwaitKeys(OpKey),
    /// Looking under the fast key of an operation that has a slow one.
    LookingFast(OpKey, CacheKey),
    /// It has a key without that anything was read, and no result: who is keyed by it may have one.
    Vouched(OpKey, Keys),
    /// Waiting for the inputs that are read.
    AwaitContent(OpKey, Option<CacheKey>),
    /// Digesting them.
    Hashing(OpKey, Option<CacheKey>, Vec<Option<Digest>>),
    /// The key is known; a result is not wanted yet.
    Keyed(Keys),
    Looking(Keys),
    /// No record: waiting for all inputs' results.
    AwaitInputs(Keys),
    /// Another vertex does the same work now.
    Following(Keys),
    Running(Keys),
    Done(Keys, Vec<Option<R>>),
    Failed(VertexId, E),
    /// Nobody wants it, or it starts anew; an action of before has not answered yet.
    Canceling,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Keys {
    /// The key for everybody downstream.
    key: CacheKey,
    /// The fast key, where it is another one.
    fast: Option<CacheKey>,
    /// No record is looked up or kept: the key holds for this job only.
    ephemeral: bool,
}

struct Entry<R, E> {
    vertex: Arc<Vertex>,
    inputs: Vec<(VertexId, u32)>,
    users: BTreeSet<VertexId>,
    jobs: BTreeSet<JobId>,
    want_key: bool,
    /// The outputs whose results somebody asked for.
    wanted: BTreeSet<u32>,
    /// Its key needs work first: the cheap look-up failed, here or for an input.
    slow: bool,
    /// Actions that have not answered yet.
    pending: usize,
    state: State<R, E>,
}

impl<R, E> Entry<R, E> {
    /// Whether all that was asked for is among these results.
    fn has_wanted(&self, results: &[Option<R>]) -> bool {
        // What an operation does not have at all is nobody's to make.
        self.wanted.iter().all(|output| !matches!(results.get(*output as usize), Some(None)))
    }
}

struct Wanted {
    target: VertexId,
    output: u32,
}

/// The state machine. `R` is a handle of a result, `E` an error, both cheap to clone.
pub struct Machine<R, E> {
    entries: BTreeMap<VertexId, Entry<R, E>>,
    jobs: BTreeMap<JobId, Wanted>,
    /// Who works on a key, and who waits for it.
    in_flight: BTreeMap<CacheKey, (VertexId, Vec<VertexId>)>,
    queue: VecDeque<VertexId>,
    actions: Vec<Action<R, E>>,
}

impl<R: Clone, E: Clone> Default for Machine<R, E> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            jobs: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            queue: VecDeque::new(),
            actions: Vec::new(),
        }
    }
}

impl<R: Clone, E: Clone> Machine<R, E> {
    /// A machine without jobs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one event and says what to do.
    pub fn step(&mut self, event: Event<R, E>) -> Vec<Action<R, E>> {
        match event {
            Event::JobAdded(job, graph) => self.add_job(job, &graph),
            Event::JobCanceled(job) => self.end_job(job, Outcome::Canceled),
            Event::Described(id, result) => self.described(id, result),
            Event::LookedUp(id, record) => self.looked_up(id, record),
            Event::Hashed(id, input, result) => self.hashed(id, input, result),
            Event::Ran(id, result) => self.ran(id, result),
        }
        while let Some(id) = self.queue.pop_front() {
            self.advance(id);
        }
        std::mem::take(&mut self.actions)
    }

    /// Jobs that have not ended.
    pub fn jobs_running(&self) -> usize {
        self.jobs.len()
    }

    /// Vertices that are known; none when no job runs and every action has answered.
    pub fn vertices_known(&self) -> usize {
        self.entries.len()
    }

    /// Whether a job wants the vertex, or an answer about it is awaited.
    pub fn knows(&self, id: VertexId) -> bool {
        self.entries.contains_key(&id)
    }

    /// The vertex, while it has not failed.
    pub fn unfailed(&self, id: VertexId) -> Option<&Arc<Vertex>> {
        self.entries.get(&id).filter(|e| !matches!(e.state, State::Failed(..))).map(|e| &e.vertex)
    }

    fn add_job(&mut self, job: JobId, graph: &Graph) {
        let Some(target) = graph.target() else {
            self.actions.push(Action::JobEnded(job, Outcome::Done(None)));
            return;
        };
        let id_of = |digest: VertexDigest| {
            let ignore_cache = graph.vertex(digest).is_some_and(|v| v.metadata.ignore_cache);
            VertexId { digest, ignore_cache }
        };
        for vertex in graph.vertices() {
            let id = id_of(vertex.digest);
            let inputs: Vec<_> = vertex.inputs.iter().map(|o| (id_of(o.vertex), o.index)).collect();
            for (input, _) in &inputs {
                if let Some(entry) = self.entries.get_mut(input) {
                    entry.users.insert(id);
                }
            }
            let entry = self.entries.entry(id).or_insert_with(|| Entry {
                vertex: Arc::clone(vertex),
                inputs,
                users: BTreeSet::new(),
                jobs: BTreeSet::new(),
                want_key: false,
                wanted: BTreeSet::new(),
                slow: false,
                pending: 0,
                state: State::Idle,
            });
            entry.jobs.insert(job);
            if matches!(entry.state, State::Failed(..)) {
                // Another job saw it fail; this one asks anew.
                entry.state = if entry.pending == 0 { State::Idle } else { State::Canceling };
                entry.slow = false;
                self.queue.push_back(id);
            }
        }
        let target_id = id_of(target.vertex);
        self.jobs.insert(job, Wanted { target: target_id, output: target.index });
        self.want_result(target_id, target.index);
        self.queue.push_back(target_id);
    }

    fn want_key(&mut self, id: VertexId) {
        if let Some(entry) = self.entries.get_mut(&id)
            && !entry.want_key
        {
            entry.want_key = true;
            self.queue.push_back(id);
        }
    }

    fn want_result(&mut self, id: VertexId, output: u32) {
        if let Some(entry) = self.entries.get_mut(&id)
            && entry.wanted.insert(output)
        {
            entry.want_key = true;
            self.queue.push_back(id);
        }
    }

    fn looked_up(&mut self, id: VertexId, looked: Looked<R>) {
        if self.gone(id) {
            return;
        }
        let Some(entry) = self.entries.get_mut(&id) else { return };
        match (std::mem::replace(&mut entry.state, State::Idle), looked) {
            // Of what is asked for something is missing: as if all results were gone.
            (State::LookingFast(op, fast), Looked::Found(record)) if !entry.has_wanted(&record.results) => {
                self.set(
                    id,
                    State::Vouched(op, Keys { key: record.key, fast: Some(fast), ephemeral: false }),
                );
            }
            (State::LookingFast(_, fast), Looked::Found(record)) => {
                self.actions.push(Action::Cached(id, Arc::clone(&entry.vertex)));
                let keys = Keys { key: record.key, fast: Some(fast), ephemeral: false };
                self.set(id, State::Done(keys, record.results));
            }
            (State::LookingFast(op, fast), Looked::Known(key)) => {
                self.set(id, State::Vouched(op, Keys { key, fast: Some(fast), ephemeral: false }));
            }
            (State::LookingFast(op, fast), Looked::Nothing) => {
                self.set(id, State::AwaitContent(op, Some(fast)));
                self.mark_slow(id);
            }
            (State::Looking(keys), Looked::Found(record)) if entry.has_wanted(&record.results) => {
                self.actions.push(Action::Cached(id, Arc::clone(&entry.vertex)));
                if let Some(fast) = keys.fast {
                    self.actions.push(Action::Save(fast, record.clone()));
                }
                self.set(id, State::Done(keys, record.results));
            }
            (State::Looking(keys), _) => self.set(id, State::AwaitInputs(keys)),
            (other, _) => entry.state = other,
        }
    }

    fn ran(&mut self, id: VertexId, result: Result<Vec<R>, E>) {
        if self.gone(id) {
            return;
        }
        let Some(State::Running(keys)) = self.entries.get(&id).map(|e| &e.state) else { return };
        let keys = *keys;
        let followers = self.in_flight.remove(&keys.key).map(|(_, followers)| followers).unwrap_or_default();
        match result {
            Ok(results) => {
                let results: Vec<_> = results.into_iter().map(Some).collect();
                if !keys.ephemeral {
                    let record = Record { key: keys.key, results: results.clone() };
                    self.actions.push(Action::Save(keys.key, record.clone()));
                    if let Some(fast) = keys.fast {
                        self.actions.push(Action::Save(fast, record));
                    }
                }
                for follower in followers {
                    self.follow_up(follower, &keys, &results);
                }
                self.set(id, State::Done(keys, results));
            }
            Err(error) => {
                for follower in followers {
                    if matches!(self.entries.get(&follower).map(|e| &e.state), Some(State::Following(_))) {
                        self.set(follower, State::Failed(id, error.clone()));
                    }
                }
                self.set(id, State::Failed(id, error));
            }
        }
    }

    fn follow_up(&mut self, follower: VertexId, done: &Keys, results: &[Option<R>]) {
        let Some(entry) = self.entries.get_mut(&follower) else { return };
        let State::Following(keys) = entry.state else { return };
        self.actions.push(Action::Cached(follower, Arc::clone(&entry.vertex)));
        if let (Some(fast), false) = (keys.fast, done.ephemeral) {
            self.actions.push(Action::Save(fast, Record { key: keys.key, results: results.to_vec() }));
        }
        self.set(follower, State::Done(keys, results.to_vec()));
    }

    /// Counts an answer. True where it came too late: then the vertex is forgotten with its last
    /// answer, or starts anew when a job that came since wants it.
    fn gone(&mut self, id: VertexId) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else { return true };
        entry.pending = entry.pending.saturating_sub(1);
        if !matches!(entry.state, State::Canceling) {
            return false;
        }
        if entry.pending > 0 {
            return true;
        }
        if entry.jobs.is_empty() {
            self.forget(id);
        } else {
            entry.state = State::Idle;
            entry.slow = false;
            self.queue.push_back(id);
        }
        true
    }

    fn forget(&mut self, id: VertexId) {
        if let Some(entry) = self.entries.remove(&id) {
            for (input, _) in entry.inputs {
                if let Some(input) = self.entries.get_mut(&input) {
                    input.users.remove(&id);
                }
            }
        }
    }

    /// Enters a state; those who may wait for it look again.
    fn set(&mut self, id: VertexId, state: State<R, E>) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.state = state;
        self.queue.push_back(id);
        let known = matches!(entry.state, State::Keyed(_) | State::Vouched(..));
        if known || matches!(entry.state, State::Done(..) | State::Failed(..)) {
            self.queue.extend(entry.users.iter().copied());
        }
    }

    /// Does for a vertex what its inputs and its users' wishes allow now.
    fn advance(&mut self, id: VertexId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        match &entry.state {
            State::Idle if entry.want_key => {
                entry.state = State::Describing;
                entry.pending += 1;
                self.actions.push(Action::Describe(id, Arc::clone(&entry.vertex)));
                // Inputs' keys are needed in any case: let them be found out meanwhile.
                let inputs = entry.inputs.clone();
                inputs.into_iter().for_each(|(input, _)| self.want_key(input));
            }
            State::AwaitKeys(_) => self.try_key(id),
            State::Vouched(op, keys) if !entry.wanted.is_empty() => {
                entry.state = State::AwaitContent(op.clone(), keys.fast);
                self.queue.push_back(id);
                self.mark_slow(id);
            }
            State::AwaitContent(..) => self.try_hash(id),
            State::Hashing(..) => self.try_slow_key(id),
            State::Keyed(keys) if !entry.wanted.is_empty() => {
                let keys = *keys;
                if id.ignore_cache || keys.ephemeral {
                    self.set(id, State::AwaitInputs(keys));
                } else {
                    entry.state = State::Looking(keys);
                    entry.pending += 1;
                    self.actions.push(Action::LookUp(id, keys.key));
                }
            }
            State::AwaitInputs(_) => self.try_run(id),
            State::Done(keys, results) => {
                // A record that was found may lack what somebody asked for since.
                let again = (!entry.has_wanted(results)).then_some(State::Keyed(*keys));
                self.end_jobs_of(id);
                if let Some(keyed) = again {
                    self.set(id, keyed);
                }
            }
            State::Failed(..) => self.end_jobs_of(id),
            _ => {}
        }
    }

    /// The result of one input; `None` while it is missing. A failed input fails the vertex.
    fn input_result(&mut self, id: VertexId, input: VertexId, index: u32) -> Option<R> {
        self.want_result(input, index);
        match self.entries.get(&input).map(|e| &e.state) {
            Some(State::Done(_, results)) => results.get(index as usize).cloned().flatten(),
            Some(State::Failed(culprit, error)) => {
                let failed = State::Failed(*culprit, error.clone());
                self.set(id, failed);
                None
            }
            _ => None,
        }
    }

    fn try_run(&mut self, id: VertexId) {
        let Some(entry) = self.entries.get(&id) else { return };
        let State::AwaitInputs(keys) = entry.state else { return };
        let inputs = entry.inputs.clone();
        if !self.in_flight.contains_key(&keys.key) {
            let results: Vec<_> =
                inputs.iter().map(|(input, index)| self.input_result(id, *input, *index)).collect();
            let Some(entry) = self.entries.get_mut(&id) else { return };
            if !matches!(entry.state, State::AwaitInputs(_)) {
                return;
            }
            let Some(results) = results.into_iter().collect::<Option<Vec<_>>>() else { return };
            entry.state = State::Running(keys);
            entry.pending += 1;
            self.actions.push(Action::Run(id, Arc::clone(&entry.vertex), results));
            self.in_flight.insert(keys.key, (id, Vec::new()));
            return;
        }
        // The same work is being done: wait for it, and keep it alive as long as we live.
        let jobs = entry.jobs.clone();
        if let Some((leader, followers)) = self.in_flight.get_mut(&keys.key) {
            let leader = *leader;
            followers.push(id);
            if let Some(leader) = self.entries.get_mut(&leader) {
                leader.jobs.extend(jobs);
            }
            self.set(id, State::Following(keys));
        }
    }

    fn end_jobs_of(&mut self, id: VertexId) {
        let ended: Vec<_> =
            self.jobs.iter().filter(|(_, w)| w.target == id).map(|(j, w)| (*j, w.output)).collect();
        for (job, output) in ended {
            let outcome = match self.entries.get(&id).map(|e| &e.state) {
                Some(State::Done(keys, results)) => match results.get(output as usize) {
                    Some(None) => continue,
                    result => Outcome::Done(result.cloned().flatten().map(|result| (result, keys.key))),
                },
                Some(State::Failed(culprit, error)) => Outcome::Failed(*culprit, error.clone()),
                _ => continue,
            };
            self.end_job(job, outcome);
        }
    }

    fn end_job(&mut self, job: JobId, outcome: Outcome<R, E>) {
        if self.jobs.remove(&job).is_none() {
            return;
        }
        self.actions.push(Action::JobEnded(job, outcome));
        let mut orphans = Vec::new();
        for (id, entry) in &mut self.entries {
            if entry.jobs.remove(&job) && entry.jobs.is_empty() {
                orphans.push(*id);
            }
        }
        for id in orphans {
            self.abandon(id);
        }
    }

    /// Nobody asks for the vertex any more: stops its work, or forgets it where none is going on. Work that
    /// others wait for becomes theirs.
    fn abandon(&mut self, id: VertexId) {
        let heirs = self.heirs(id);
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if !heirs.is_empty() {
            entry.jobs = heirs;
            return;
        }
        if entry.pending == 0 {
            self.forget(id);
            return;
        }
        match std::mem::replace(&mut entry.state, State::Canceling) {
            State::Canceling => return,
            State::Running(keys) => {
                self.in_flight.remove(&keys.key);
            }
            _ => {}
        }
        self.actions.push(Action::Cancel(id));
    }

    /// The jobs that wait for the run of a vertex without asking for the vertex itself.
    fn heirs(&self, id: VertexId) -> BTreeSet<JobId> {
        let Some(State::Running(keys)) = self.entries.get(&id).map(|e| &e.state) else {
            return BTreeSet::new();
        };
        let followers = self.in_flight.get(&keys.key).map_or(&[][..], |(_, followers)| followers);
        followers.iter().flat_map(|follower| self.jobs_of(*follower)).collect()
    }

    /// The jobs that want a vertex.
    pub fn jobs_of(&self, id: VertexId) -> impl Iterator<Item = JobId> + '_ {
        self.entries.get(&id).into_iter().flat_map(|e| e.jobs.iter().copied())
    }
}
