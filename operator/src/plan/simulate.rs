//! A cluster in miniature, in which the operator is killed, sees the past, and meets users who
//! change their mind: whatever happens, the invariants of planning hold.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use lapstrake_crds::ReasonKind;
use lapstrake_handoff::{Failure, Outcome, Reason as Why, Success};
use proptest::prelude::*;

use super::kstatus::{Kstatus, kstatus_of, meant_by};
use super::tests::{build, pod_of, settings};
use super::*;
use crate::observe::{Container, Ended, Observed, PodFacts, PodSecurity};

/// Something that happens.
#[derive(Clone, Debug)]
enum Happens {
    /// The operator looks, plans and applies; it may see the past, and be killed after some calls.
    Reconcile { past: bool, killed_after: Option<u8> },
    /// The caches catch up.
    Sync,
    /// The kubelet takes the next step with a pod.
    Kubelet { ending: u8 },
    /// A pod vanishes.
    Vanish,
    /// Somebody changes what is to be built.
    Edit(u8),
    /// Somebody asks for a new run.
    Rebuild(u8),
    /// Somebody turns `cancel` on or off.
    Cancel(bool),
    /// Somebody turns `suspend` on or off.
    Suspend(bool),
    /// Time passes.
    Seconds(u16),
}

struct World {
    now: Timestamp,
    version: u64,
    uids: u32,
    build: ImageBuild,
    pods: BTreeMap<String, PodFacts>,
    /// What the caches say.
    past: (ImageBuild, Vec<PodFacts>),
    /// Digests that pods pushed.
    pushed: BTreeSet<String>,
    /// Whether something was asked for since the last run ended.
    asked: bool,
}

use lapstrake_crds::ImageBuild;

impl World {
    fn new() -> Self {
        let build = build();
        Self {
            now: Timestamp::from_second(1_700_000_000).unwrap(),
            version: 1,
            uids: 0,
            past: (build.clone(), Vec::new()),
            build,
            pods: BTreeMap::new(),
            pushed: BTreeSet::new(),
            asked: true,
        }
    }

    fn touch(&mut self) {
        self.version += 1;
        self.build.metadata.resource_version = Some(self.version.to_string());
    }

    fn edit(&mut self, edit: impl FnOnce(&mut ImageBuild)) {
        let before = self.build.spec.clone();
        edit(&mut self.build);
        if self.build.spec != before {
            let generation = self.build.metadata.generation.unwrap_or_default();
            self.build.metadata.generation = Some(generation + 1);
        }
        self.touch();
        self.asked = true;
    }

    fn seen(&self, past: bool) -> Observed {
        let (build, pods) = if past {
            self.past.clone()
        } else {
            (self.build.clone(), self.pods.values().cloned().collect())
        };
        Observed {
            build,
            pods,
            objects: Vec::new(),
            fresh: !past,
            pod_security: (!past).then_some(PodSecurity::Privileged),
            pull_secrets: Vec::new(),
            refusal: None,
            progress: None,
            follow: crate::follow::Facts::default(),
        }
    }

    fn sync(&mut self) {
        self.past = (self.build.clone(), self.pods.values().cloned().collect());
    }

    /// One pass of the operator; true if it left something changed.
    fn reconcile(&mut self, past: bool, killed_after: Option<u8>) -> bool {
        let mut seen = self.seen(past);
        let mut plan = super::plan(&seen, &settings(), self.now);
        if plan.look_closer {
            assert!(!seen.fresh, "a closer look than the API server's own there is not");
            seen = self.seen(false);
            plan = super::plan(&seen, &settings(), self.now);
            assert!(!plan.look_closer);
        }
        let mut calls = 0;
        let mut alive = || {
            calls += 1;
            killed_after.is_none_or(|after| calls <= after)
        };
        let mut changed = false;
        for (name, uid) in &plan.delete_pods {
            if !alive() {
                return true;
            }
            if let Some(pod) = self.pods.get_mut(name).filter(|pod| pod.uid == *uid) {
                changed = true;
                if pod.ended() {
                    self.pods.remove(name);
                } else {
                    pod.deleting = true;
                }
            }
        }
        if let Some(pod) = &plan.create {
            if !alive() {
                return true;
            }
            changed = true;
            self.create(pod);
        }
        if let Some(status) = plan.status {
            if !alive() {
                return true;
            }
            if seen.build.metadata.resource_version == self.build.metadata.resource_version {
                changed = true;
                self.write(*status);
            }
        }
        changed
    }

    fn create(&mut self, pod: &Pod) {
        let mut facts = PodFacts::of(pod);
        assert!(
            self.pods.values().all(|other| other.ended()),
            "a second pod while one lives: {} beside {:?}",
            facts.name,
            self.pods.keys()
        );
        assert!(self.asked, "a run that has ended was built again: {}", facts.name);
        if self.pods.contains_key(&facts.name) {
            return;
        }
        self.uids += 1;
        facts.uid = self.uids.to_string();
        facts.phase = "Pending".into();
        facts.created = Some(self.now);
        self.pods.insert(facts.name.clone(), facts);
    }

    fn write(&mut self, status: ImageBuildStatus) {
        let ended_before = self.build.status.as_ref().and_then(|status| status.completion_time.clone());
        if status.completion_time.is_some() && status.completion_time != ended_before {
            self.asked = status.observed_generation != self.build.metadata.generation;
        }
        let mut runs = BTreeSet::new();
        for entry in &status.history {
            let start = entry.start_time.clone().map(|time| time.0);
            let key = (entry.run.clone(), start, entry.attempts, entry.generation);
            assert!(runs.insert(key), "a run is twice in the history: {:#?}", status.history);
        }
        check_kstatus(&status);
        let reason: Reason = status.reason.as_deref().unwrap().parse().unwrap();
        check_no_empty_objects(&serde_json::to_value(&status).unwrap());
        if let Some(digest) = &status.digest {
            assert!(self.pushed.contains(digest), "a digest that nobody pushed");
        }
        let observed = status.observed_generation == self.build.metadata.generation;
        self.build.status = Some(status);
        let meant = if observed { meant_by(reason) } else { Kstatus::InProgress };
        assert_eq!(kstatus_of(&self.build), meant, "{reason}");
        self.touch();
    }

    fn kubelet(&mut self, ending: u8) {
        let Some(name) = self.pods.values().find(|pod| pod.alive()).map(|pod| pod.name.clone()) else {
            return;
        };
        let now = self.now;
        let pod = self.pods.get_mut(&name).unwrap();
        if pod.deleting && !matches!(pod.container, Container::Running { .. }) {
            self.pods.remove(&name);
            return;
        }
        match pod.container {
            Container::Unseen if pod.node.is_none() => {
                pod.node = Some("node".into());
                pod.scheduled = Some(now);
            }
            Container::Unseen | Container::Waiting(_) => {
                pod.phase = "Running".into();
                pod.container = Container::Running { since: Some(now) };
            }
            Container::Running { since } => {
                let digest = format!("sha256:{}", pod.uid);
                let failed = |reason| Outcome::Failure(Failure::new(reason, "no"));
                let outcome = match (ending, pod.deleting) {
                    (0..=4, _) => {
                        self.pushed.insert(digest.clone());
                        Some(Outcome::Success(Success { digest, ..Success::default() }))
                    }
                    (_, true) => Some(failed(Why::Canceled)),
                    (5, _) => Some(failed(Why::StepFailed)),
                    (6, _) => Some(failed(Why::RegistryUnavailable)),
                    (7, _) => {
                        pod.reason = "Evicted".into();
                        None
                    }
                    _ => None,
                };
                pod.phase = if ending <= 4 { "Succeeded" } else { "Failed" }.into();
                pod.container = Container::Ended(Ended {
                    exit_code: outcome.as_ref().map_or(137, |outcome| outcome.exit_code().into()),
                    reason: "Error".into(),
                    message: outcome.map(|outcome| outcome.encode()).unwrap_or_default(),
                    started: since,
                    finished: Some(now),
                });
            }
            Container::Ended(_) => {}
        }
        if self.pods.get(&name).is_some_and(|pod| pod.deleting && pod.ended()) {
            self.pods.remove(&name);
        }
    }

    fn happen(&mut self, event: &Happens) {
        match event {
            Happens::Reconcile { past, killed_after } => {
                // No two passes fall into the same second, so that runs can be told apart.
                self.now += std::time::Duration::from_secs(1);
                self.reconcile(*past, *killed_after);
            }
            Happens::Sync => self.sync(),
            Happens::Kubelet { ending } => self.kubelet(*ending),
            Happens::Vanish => {
                if let Some(name) = self.pods.keys().next().cloned() {
                    self.pods.remove(&name);
                }
            }
            Happens::Edit(which) => {
                self.edit(|build| build.spec.output.tags = vec![format!("v{}", which % 3)])
            }
            Happens::Rebuild(which) => self.edit(|build| {
                let annotations = build.metadata.annotations.get_or_insert_default();
                annotations.insert(lapstrake_crds::annotation::REBUILD.into(), format!("n{}", which % 3));
            }),
            Happens::Cancel(on) => self.edit(|build| build.spec.cancel = *on),
            Happens::Suspend(on) => self.edit(|build| build.spec.suspend = *on),
            Happens::Seconds(seconds) => self.now += std::time::Duration::from_secs(u64::from(*seconds)),
        }
        assert!(self.pods.values().filter(|pod| pod.alive()).count() <= 1);
    }

    /// Left in peace, everything comes to an end, and stays there.
    fn settle(&mut self) {
        for _ in 0..60 {
            self.now += std::time::Duration::from_secs(301);
            self.sync();
            self.reconcile(true, None);
            self.kubelet(0);
        }
        self.sync();
        assert!(!self.reconcile(true, None), "planning again changes something");
        let status = self.build.status.clone().unwrap();
        let reason: Reason = status.reason.clone().unwrap().parse().unwrap();
        let suspended = self.build.spec.suspend && reason == Reason::Suspended;
        assert!(
            suspended || matches!(reason.kind(), ReasonKind::Success | ReasonKind::Failure),
            "left in peace, yet {reason}"
        );
        assert_eq!(status.observed_generation, self.build.metadata.generation);
    }
}

/// What kstatus demands of any status that is written.
fn check_kstatus(status: &ImageBuildStatus) {
    let value =
        |kind: &str| status.conditions.iter().find(|one| one.type_ == kind).map(|one| one.status.as_str());
    let (ready, reconciling, stalled) = (value("Ready"), value("Reconciling"), value("Stalled"));
    assert!(
        matches!(
            (ready, reconciling, stalled),
            (Some("Unknown"), Some("True"), None)
                | (Some("True"), None, None)
                | (Some("False"), None, Some("True"))
        ),
        "{ready:?} {reconciling:?} {stalled:?}"
    );
    assert_eq!(value("Succeeded"), ready, "Succeeded goes with Ready");
}

/// An empty object is applied as null, and refused.
fn check_no_empty_objects(value: &serde_json::Value) {
    match value {
        serde_json::Value::Object(map) => {
            assert!(!map.is_empty());
            map.values().for_each(check_no_empty_objects);
        }
        serde_json::Value::Array(list) => list.iter().for_each(check_no_empty_objects),
        _ => {}
    }
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        6 => (any::<bool>(), proptest::option::weighted(0.3, 0_u8..3))
            .prop_map(|(past, killed_after)| Happens::Reconcile { past, killed_after }),
        3 => Just(Happens::Sync),
        5 => (0_u8..9).prop_map(|ending| Happens::Kubelet { ending }),
        1 => Just(Happens::Vanish),
        1 => any::<u8>().prop_map(Happens::Edit),
        1 => any::<u8>().prop_map(Happens::Rebuild),
        1 => proptest::bool::weighted(0.3).prop_map(Happens::Cancel),
        1 => proptest::bool::weighted(0.3).prop_map(Happens::Suspend),
        2 => (0_u16..400).prop_map(Happens::Seconds),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_one_pod_lives_and_an_end_is_an_end(story in proptest::collection::vec(happens(), 1..60)) {
        let mut world = World::new();
        for event in &story {
            world.happen(event);
        }
        world.settle();
    }
}

#[test]
fn a_result_outlives_the_operator() {
    let mut world = World::new();
    world.reconcile(false, None);
    for _ in 0..3 {
        world.kubelet(0);
    }
    let pod = pod_of(&world.pods);
    assert!(pod.ended());
    // Killed before it could write, twice; the third one finds the pod.
    world.reconcile(false, Some(0));
    world.reconcile(false, Some(0));
    world.reconcile(false, None);
    let status = world.build.status.clone().unwrap();
    assert_eq!(status.digest.as_deref(), Some("sha256:1"));
    assert_eq!(status.history.len(), 1);
    assert_eq!(world.uids, 1, "built once");
}
