//! Drives the machine through random graphs, records, failures, cancellations and orders of answers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lapstrake_llb::{Builder, Graph, Output, VertexDigest, pb};
use lapstrake_oci::Digest;
use proptest::prelude::*;

use crate::key::{CacheKey, Keying, OpKey, OpName};
use crate::machine::{Action, Event, Looked, Machine, Outcome, Record, VertexId};

type Result_ = u64;
type Ev = Event<Result_, &'static str>;
type Act = Action<Result_, &'static str>;

/// A graph of operations with two outputs each; node `i` takes the inputs in `edges[i]`, all below `i`, each either output of them.
fn graph(edges: &[Vec<usize>], ignore: &[bool]) -> (Arc<Graph>, Vec<VertexDigest>) {
    salted_graph(edges, ignore, "")
}

/// The same with other vertices: `salt` is in their bytes.
fn salted_graph(edges: &[Vec<usize>], ignore: &[bool], salt: &str) -> (Arc<Graph>, Vec<VertexDigest>) {
    let mut builder = Builder::new();
    let mut made: Vec<Output> = Vec::new();
    for (i, inputs) in edges.iter().enumerate() {
        let inputs: BTreeSet<usize> = inputs.iter().filter(|_| i > 0).map(|x| x % i.max(1)).collect();
        let op = pb::op::Op::Passthrough(pb::PassthroughOp { id: format!("{i}"), outputs: vec![0, 0] });
        let output = |x: &usize| Output { index: ((i + x) % 2) as u32, ..made[*x] };
        let inputs = inputs.iter().map(|x| Builder::input(output(x))).collect();
        let constraints = Some(pb::WorkerConstraints { filter: vec![format!("{i}{salt}")] });
        let metadata =
            pb::OpMetadata { ignore_cache: ignore.get(i).copied().unwrap_or(false), ..Default::default() };
        let vertex =
            builder.add(&pb::Op { inputs, op: Some(op), constraints, platform: None }, metadata, &[]);
        made.push(Output { vertex, index: 0 });
    }
    let digests = made.iter().map(|o| o.vertex).collect();
    let graph = Graph::decode(&builder.finish(made.last().copied())).expect("valid graph");
    (Arc::new(graph), digests)
}

/// Performs actions with facts that a seed gives, and checks what must hold.
struct Sim {
    machine: Machine<Result_, &'static str>,
    open: Vec<Act>,
    records: BTreeMap<CacheKey, Record<Result_>>,
    ended: BTreeMap<u64, Outcome<Result_, &'static str>>,
    ran: BTreeMap<VertexId, usize>,
    running: BTreeSet<VertexId>,
    /// Keys that were told of.
    derived: BTreeSet<CacheKey>,
    fails: BTreeSet<VertexDigest>,
    content: BTreeSet<VertexDigest>,
    ephemeral: BTreeSet<VertexDigest>,
    /// Vertices whose records have no results any more.
    lost: BTreeSet<VertexDigest>,
    /// Vertices of whose results only the first, or only the second one is in their records.
    halved: BTreeMap<VertexDigest, usize>,
    /// Vertices that do the work of another.
    same: BTreeMap<VertexDigest, VertexDigest>,
}

impl Sim {
    fn new() -> Self {
        Self {
            machine: Machine::new(),
            open: Vec::new(),
            records: BTreeMap::new(),
            ended: BTreeMap::new(),
            ran: BTreeMap::new(),
            running: BTreeSet::new(),
            derived: BTreeSet::new(),
            fails: BTreeSet::new(),
            content: BTreeSet::new(),
            ephemeral: BTreeSet::new(),
            lost: BTreeSet::new(),
            halved: BTreeMap::new(),
            same: BTreeMap::new(),
        }
    }

    fn step(&mut self, event: Ev) {
        for action in self.machine.step(event) {
            match action {
                Action::Save(key, record) => {
                    self.records.insert(key, record);
                }
                Action::JobEnded(job, outcome) => {
                    assert!(self.ended.insert(job, outcome).is_none(), "job {job} ended twice");
                }
                Action::Run(id, ..) => {
                    assert!(self.running.insert(id), "{id:?} runs twice at a time");
                    *self.ran.entry(id).or_default() += 1;
                    self.open.push(action);
                }
                Action::Derived(key, derivation) => {
                    for (input, _) in derivation.inputs.iter().filter_map(|origin| origin.key) {
                        let known =
                            self.derived.contains(&input) || self.records.values().any(|r| r.key == input);
                        assert!(known, "{key} came of {input}, of which nobody was told");
                    }
                    self.derived.insert(key);
                }
                Action::LookUp(_, key) => {
                    assert!(self.derived.contains(&key), "{key} is looked up, of which nobody was told");
                    self.open.push(action);
                }
                Action::Cached(..) | Action::Cancel(_) => {}
                _ => self.open.push(action),
            }
        }
    }

    fn work(&self, digest: VertexDigest) -> VertexDigest {
        self.same.get(&digest).copied().unwrap_or(digest)
    }

    fn answer(&mut self, action: Act) -> Ev {
        let number = |v: VertexDigest| u64::from(v.0.as_bytes()[0]) << 8 | u64::from(v.0.as_bytes()[1]);
        match action {
            Action::Describe(id, vertex) => {
                let work = self.work(id.digest);
                let keying = if self.content.contains(&work) { Keying::ByContent } else { Keying::ByKey };
                let inputs = vec![keying; vertex.inputs.len()];
                let selectors = vec![None; inputs.len()];
                let name = Some(OpName { digest: work.0, selectors, outputs: 2 });
                let ephemeral = self.ephemeral.contains(&work);
                Event::Described(id, Ok(OpKey { digest: work.0, inputs, ephemeral, name }))
            }
            Action::LookUp(id, key) => {
                let lost = self.lost.contains(&self.work(id.digest));
                let mut record = self.records.get(&key).cloned();
                if let (Some(record), Some(kept)) = (&mut record, self.halved.get(&self.work(id.digest))) {
                    record.results[1 - kept] = None;
                }
                let looked = match record {
                    Some(record) if lost => Looked::Known(record.key),
                    Some(record) => Looked::Found(record),
                    None => Looked::Nothing,
                };
                Event::LookedUp(id, looked)
            }
            Action::Hash(id, _, input, of) => Event::Hashed(id, input, Ok(Digest::of(&of.to_le_bytes()))),
            Action::Run(id, _, inputs) => {
                self.running.remove(&id);
                let work = self.work(id.digest);
                if self.fails.contains(&work) {
                    return Event::Ran(id, Err("failed"));
                }
                let made = inputs.iter().fold(number(work), |a, b| a.wrapping_mul(31).wrapping_add(*b));
                Event::Ran(id, Ok(vec![made, made.wrapping_add(1)]))
            }
            other => unreachable!("{other:?} has no answer"),
        }
    }

    /// Answers open actions in an order that `picks` gives, until none is open.
    fn drain(&mut self, picks: &mut impl Iterator<Item = usize>, steps_max: usize) {
        let mut steps = 0;
        while !self.open.is_empty() && steps < steps_max {
            let pick = picks.next().unwrap_or(0) % self.open.len();
            let action = self.open.swap_remove(pick);
            let event = self.answer(action);
            self.step(event);
            steps += 1;
        }
    }
}

fn picks(seed: u64) -> impl Iterator<Item = usize> {
    let mut x = seed | 1;
    std::iter::repeat_with(move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 11) as usize
    })
}

fn subset(digests: &[VertexDigest], bits: u32) -> BTreeSet<VertexDigest> {
    digests.iter().enumerate().filter(|(i, _)| bits >> (i % 32) & 1 == 1).map(|(_, d)| *d).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn every_job_ends_and_nothing_runs_twice(
        edges in prop::collection::vec(prop::collection::vec(0usize..32, 0..4), 1..14),
        (content, ephemeral, failing) in (any::<u32>(), any::<u32>(), prop_oneof![3 => Just(0), 1 => any::<u32>()]),
        (cancel_after, seed) in (prop::option::of(0usize..40), any::<u64>()),
        (second_after, losing) in (0usize..40, prop_oneof![1 => Just(0), 1 => any::<u32>(), 1 => Just(u32::MAX)]),
    ) {
        let (graph, digests) = graph(&edges, &[]);
        let mut sim = Sim::new();
        let mut picks = picks(seed);
        sim.content = subset(&digests, content);
        sim.ephemeral = subset(&digests, ephemeral & seed as u32);
        sim.fails = subset(&digests, failing & (seed >> 32) as u32);
        sim.step(Event::JobAdded(1, Arc::clone(&graph)));
        sim.drain(&mut picks, second_after);
        sim.step(Event::JobAdded(2, Arc::clone(&graph)));
        if let Some(steps) = cancel_after {
            sim.drain(&mut picks, steps);
            sim.step(Event::JobCanceled(1));
        }
        sim.drain(&mut picks, usize::MAX);
        prop_assert_eq!(sim.ended.len(), 2, "a job did not end");
        prop_assert_eq!(sim.machine.vertices_known(), 0, "a vertex stayed");
        if sim.fails.is_empty() {
            prop_assert!(matches!(sim.ended[&2], Outcome::Done(Some(_))));
            if cancel_after.is_none() && sim.ephemeral.is_empty() {
                prop_assert!(sim.ran.values().all(|n| *n == 1), "{:?}", sim.ran);
            }
        }

        // A third job over the records: the same result, and only what is not recorded runs. Of the target there is one, so that
        // nothing has to be made on which it rests, whatever became of that.
        let first = sim.ended.get(&2).cloned();
        sim.lost = subset(&digests, losing);
        sim.lost.remove(&graph.target().unwrap().vertex);
        sim.ran.clear();
        sim.step(Event::JobAdded(3, Arc::clone(&graph)));
        sim.drain(&mut picks, usize::MAX);
        if let (Some(Outcome::Done(Some((was, _)))), Outcome::Done(Some((is, _)))) = (&first, &sim.ended[&3]) {
            prop_assert_eq!(was, is);
        }
        if sim.fails.is_empty() && sim.ephemeral.is_empty() {
            prop_assert!(sim.ran.is_empty(), "a recorded build ran {:?}", sim.ran);
        }

        // A fourth and a fifth one, while records have one result each: what is not there is made, and nothing else.
        sim.halved = subset(&digests, seed as u32).into_iter().map(|digest| (digest, (seed >> 40) as usize % 2)).collect();
        for job in 4..=5 {
            sim.step(Event::JobAdded(job, Arc::clone(&graph)));
            sim.drain(&mut picks, second_after);
        }
        sim.drain(&mut picks, usize::MAX);
        for job in 4..=5 {
            if let (Some(Outcome::Done(Some((was, _)))), Outcome::Done(Some((is, _)))) = (&first, &sim.ended[&job]) {
                prop_assert_eq!(was, is);
            }
        }
        prop_assert_eq!((sim.ended.len(), sim.machine.vertices_known()), (5, 0), "a job did not end, or a vertex stayed");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn jobs_whose_graphs_do_equal_work_all_end(
        edges in prop::collection::vec(prop::collection::vec(0usize..32, 0..4), 1..10),
        (content, failing) in (any::<u32>(), prop_oneof![3 => Just(0), 1 => any::<u32>()]),
        events in prop::collection::vec((0usize..12, 0usize..6), 1..16),
        seed in any::<u64>(),
    ) {
        let (first, digests) = graph(&edges, &[]);
        let (second, others) = salted_graph(&edges, &[], "x");
        let mut sim = Sim::new();
        sim.same = others.into_iter().zip(digests.iter().copied()).collect();
        sim.content = subset(&digests, content);
        sim.fails = subset(&digests, failing & seed as u32);
        let mut picks = picks(seed);
        let mut canceled = BTreeSet::new();
        let mut jobs = 0;
        for (steps, event) in events {
            match event {
                0 | 1 => {
                    jobs += 1;
                    sim.step(Event::JobAdded(jobs, Arc::clone(&first)));
                }
                2 | 3 => {
                    jobs += 1;
                    sim.step(Event::JobAdded(jobs, Arc::clone(&second)));
                }
                _ if jobs > 0 => {
                    let job = 1 + steps as u64 % jobs;
                    canceled.insert(job);
                    sim.step(Event::JobCanceled(job));
                }
                _ => {}
            }
            sim.drain(&mut picks, steps);
        }
        sim.drain(&mut picks, usize::MAX);
        prop_assert_eq!(sim.ended.len() as u64, jobs, "a job did not end");
        prop_assert_eq!(sim.machine.vertices_known(), 0, "a vertex stayed");
        for (job, outcome) in &sim.ended {
            let fine = canceled.contains(job) || !sim.fails.is_empty() || matches!(outcome, Outcome::Done(Some(_)));
            prop_assert!(fine, "job {} ended as {:?}", job, outcome);
        }
    }
}

#[test]
fn work_that_somebody_waits_for_goes_on_when_its_first_asker_leaves() {
    let (first, digests) = graph(&[vec![]], &[]);
    let (second, others) = salted_graph(&[vec![]], &[], "x");
    let mut sim = Sim::new();
    sim.same = others.into_iter().zip(digests).collect();
    let until_runs = |sim: &mut Sim| {
        while let Some(at) = sim.open.iter().position(|action| !matches!(action, Action::Run(..))) {
            let action = sim.open.swap_remove(at);
            let event = sim.answer(action);
            sim.step(event);
        }
    };
    sim.step(Event::JobAdded(1, first));
    until_runs(&mut sim);
    for job in 2..=3 {
        sim.step(Event::JobAdded(job, Arc::clone(&second)));
        until_runs(&mut sim);
    }
    sim.step(Event::JobCanceled(1));
    sim.step(Event::JobCanceled(2));
    sim.drain(&mut picks(1), usize::MAX);
    assert!(matches!(sim.ended.get(&3), Some(Outcome::Done(Some(_)))), "{:?}", sim.ended.get(&3));
    assert_eq!((sim.ran.len(), sim.machine.vertices_known()), (1, 0), "it ran once, and all is forgotten");
}

#[test]
fn an_equal_input_made_anew_changes_nothing_downstream() {
    // 0: source; 1: reads the contents of 0; 2: on top of 1.
    let (graph, digests) = graph(&[vec![], vec![0], vec![1]], &[]);
    let mut sim = Sim::new();
    sim.content.insert(digests[1]);
    sim.ephemeral.insert(digests[0]);
    sim.step(Event::JobAdded(1, Arc::clone(&graph)));
    sim.drain(&mut picks(1), usize::MAX);
    assert_eq!(sim.ran.len(), 3);
    sim.ran.clear();
    sim.step(Event::JobAdded(2, graph));
    sim.drain(&mut picks(2), usize::MAX);
    let ran: Vec<_> = sim.ran.keys().map(|id| id.digest).collect();
    assert_eq!(ran, [digests[0]], "only the directory is read again");
}

#[test]
fn a_record_of_the_output_that_is_wanted_is_enough() {
    // 0: source; 1: takes output 1 of 0; 2: takes output 1 of 1.
    let (graph, digests) = graph(&[vec![], vec![0], vec![1]], &[]);
    let mut sim = Sim::new();
    sim.content.insert(digests[2]);
    let ran = |sim: &mut Sim, job, kept: usize| {
        sim.ran.clear();
        sim.halved = digests.iter().map(|digest| (*digest, kept)).collect();
        sim.step(Event::JobAdded(job, Arc::clone(&graph)));
        sim.drain(&mut picks(job), usize::MAX);
        assert!(matches!(sim.ended.get(&job), Some(Outcome::Done(Some(_)))), "{:?}", sim.ended.get(&job));
        sim.ran.len()
    };
    assert_eq!(ran(&mut sim, 1, 0), 3, "nothing is recorded");
    assert_eq!(ran(&mut sim, 2, 0), 0, "the target's first output is there, which is all that is wanted");
    assert_eq!(ran(&mut sim, 3, 1), 1, "the target's is not, and all that it takes is");
}

#[test]
fn no_cache_runs_again_and_still_records() {
    let (graph, _) = graph(&[vec![], vec![0]], &[true, true]);
    let mut sim = Sim::new();
    for job in 1..=2 {
        sim.step(Event::JobAdded(job, Arc::clone(&graph)));
        sim.drain(&mut picks(job), usize::MAX);
    }
    assert!(sim.ran.values().all(|n| *n == 2), "{:?}", sim.ran);
    assert_eq!(sim.records.len(), 2);
}

#[test]
fn a_failure_names_the_vertex_that_failed() {
    let (graph, digests) = graph(&[vec![], vec![0], vec![1]], &[]);
    let mut sim = Sim::new();
    sim.fails.insert(digests[0]);
    sim.step(Event::JobAdded(1, graph));
    sim.drain(&mut picks(3), usize::MAX);
    let culprit = VertexId { digest: digests[0], ignore_cache: false };
    assert_eq!(sim.ended[&1], Outcome::Failed(culprit, "failed"));
}

#[test]
fn stages_that_are_copied_from_run_side_by_side() {
    // 0: base; 1 and 2: stages on it; 3: copies from 1; 4: copies from 2 onto 3.
    let (graph, digests) = graph(&[vec![], vec![0], vec![0], vec![0, 1], vec![2, 3]], &[]);
    let mut sim = Sim::new();
    sim.content.extend([digests[3], digests[4]]);
    sim.step(Event::JobAdded(1, graph));
    // Everything is answered but the two stages' own work.
    let stage =
        |action: &Act| matches!(action, Action::Run(id, ..) if [digests[1], digests[2]].contains(&id.digest));
    while let Some(at) = sim.open.iter().position(|action| !stage(action)) {
        let action = sim.open.swap_remove(at);
        let event = sim.answer(action);
        sim.step(event);
    }
    assert_eq!(sim.open.len(), 2, "both stages run: {:?}", sim.open);
}
