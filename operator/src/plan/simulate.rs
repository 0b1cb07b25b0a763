//! A cluster in miniature, in which the operator is killed, sees the past, and meets users who
//! change their mind, nodes die or are not there, and the source moves while it is built: whatever
//! happens, the invariants of planning hold, for one platform and for several.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use lapstrake_crds::ReasonKind;
use lapstrake_handoff::{
    Failure, GitSource, Outcome, PlatformResult, Reason as Why, Request, Source, Success,
};
use proptest::prelude::*;

use super::kstatus::{Kstatus, kstatus_of, meant_by};
use super::tests::{build, pod_of, settings};
use super::*;
use crate::observe::{Container, Ended, Observed, PodFacts, PodSecurity};
use crate::schedule::board::Leave;
use crate::schedule::queue::Turn;

/// Something that happens.
#[derive(Clone, Debug)]
enum Happens {
    /// The operator looks, plans and applies; it may see the past, and be killed after some calls.
    Reconcile { past: bool, killed_after: Option<u8> },
    /// The caches catch up.
    Sync,
    /// The kubelet takes the next step with one of the pods.
    Kubelet { which: u8, ending: u8 },
    /// A pod vanishes.
    Vanish(u8),
    /// The node of a pod dies: the pod is told to go, and stays.
    Dies(u8),
    /// The source moves.
    Moves,
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
    /// What each pod was asked, and the architecture of the nodes that it may run on.
    asked_of: BTreeMap<String, (Request, Option<String>)>,
    /// What the caches say.
    past: (ImageBuild, Vec<PodFacts>),
    /// Digests that pods pushed, with the platform and the revision that they are of.
    pushed: BTreeMap<String, (String, String)>,
    /// Digests that have the image's names.
    named: BTreeSet<String>,
    /// Attempts that a pod was made for, by run and part.
    made: BTreeMap<(String, String), BTreeSet<u32>>,
    /// Pods that a status named.
    told: BTreeSet<String>,
    /// Attempts whose pods vanished before a status named them, by run and part.
    unseen: BTreeSet<(String, String, u32)>,
    /// Pods whose node is dead.
    dead: BTreeSet<String>,
    /// What the source is now.
    revision: u32,
    /// Architectures that no node has.
    without_nodes: BTreeSet<String>,
    /// Whether something was asked for since the last run ended.
    asked: bool,
}

use lapstrake_crds::ImageBuild;

impl World {
    fn new(platforms: &[&str]) -> Self {
        let mut build = build();
        build.spec.platforms = platforms.iter().map(|one| (*one).to_owned()).collect();
        Self {
            now: Timestamp::from_second(1_700_000_000).unwrap(),
            version: 1,
            uids: 0,
            past: (build.clone(), Vec::new()),
            build,
            pods: BTreeMap::new(),
            asked_of: BTreeMap::new(),
            pushed: BTreeMap::new(),
            named: BTreeSet::new(),
            made: BTreeMap::new(),
            told: BTreeSet::new(),
            unseen: BTreeSet::new(),
            dead: BTreeSet::new(),
            revision: 0,
            without_nodes: BTreeSet::new(),
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
            slots: Vec::new(),
            holders: Vec::new(),
            leave: Some(Leave { turn: Turn::Go, slots: BTreeSet::new() }),
            refusals: BTreeMap::new(),
            follow: crate::follow::Facts::default(),
            contexts: crate::contexts::Facts::default(),
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
                    pod.gone_by = Some(self.now + std::time::Duration::from_secs(30));
                }
            }
        }
        if let Some(pod) = &plan.create {
            if !alive() {
                return true;
            }
            changed = true;
            let text = &plan.request.as_ref().unwrap().data.as_ref().unwrap()["request.json"];
            self.create(pod, Request::parse(text.as_bytes()).unwrap());
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

    fn create(&mut self, pod: &Pod, request: Request) {
        let mut facts = PodFacts::of(pod);
        for other in self.pods.values().filter(|other| other.alive(self.now)) {
            assert!(
                other.run == facts.run && other.part != facts.part,
                "a second pod while one lives: {} beside {}",
                facts.name,
                other.name
            );
            assert!(facts.claim.is_none() || facts.claim != other.claim, "two pods on one volume");
        }
        assert!(self.asked, "a run that has ended was built again: {}", facts.name);
        if self.pods.contains_key(&facts.name) {
            return;
        }
        self.check_index(&request);
        self.made.entry((facts.run.clone(), facts.part.clone())).or_default().insert(facts.attempt);
        let selector = pod.spec.as_ref().and_then(|spec| spec.node_selector.clone()).unwrap_or_default();
        let architecture = selector.get("kubernetes.io/arch").cloned();
        self.asked_of.insert(facts.name.clone(), (request, architecture));
        self.uids += 1;
        facts.uid = self.uids.to_string();
        facts.phase = "Pending".into();
        facts.created = Some(self.now);
        self.pods.insert(facts.name.clone(), facts);
    }

    /// What is joined is all of the image, and all of one revision.
    fn check_index(&self, request: &Request) {
        if request.index.is_empty() {
            return;
        }
        let joined: Vec<_> = request.index.iter().map(|one| one.platform.clone()).collect();
        assert_eq!(joined, self.build.spec.platforms, "the index has every platform");
        let mut revisions = BTreeSet::new();
        for one in &request.index {
            let (platform, revision) = self.pushed.get(&one.digest).expect("a manifest that was pushed");
            assert_eq!(*platform, one.platform);
            revisions.insert(revision);
        }
        assert_eq!(revisions.len(), 1, "one revision: {:?}", request.index);
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
        self.told.extend(status.platforms.iter().filter_map(|entry| entry.pod.clone()));
        self.told.extend(status.index.iter().filter_map(|index| index.pod.clone()));
        check_kstatus(&status);
        let reason: Reason = status.reason.as_deref().unwrap().parse().unwrap();
        check_no_empty_objects(&serde_json::to_value(&status).unwrap());
        if let Some(digest) = &status.digest {
            assert!(self.named.contains(digest), "a digest that has no name");
        }
        let observed = status.observed_generation == self.build.metadata.generation;
        self.build.status = Some(status);
        let meant = if observed { meant_by(reason) } else { Kstatus::InProgress };
        assert_eq!(kstatus_of(&self.build), meant, "{reason}");
        self.touch();
    }

    fn kubelet(&mut self, which: u8, ending: u8) {
        let alive: Vec<_> = self
            .pods
            .values()
            .filter(|pod| !pod.ended() && !self.dead.contains(&pod.name))
            .map(|pod| pod.name.clone())
            .collect();
        let Some(name) = alive.get(usize::from(which) % alive.len().max(1)).cloned() else {
            return;
        };
        let now = self.now;
        let architecture = self.asked_of[&name].1.clone();
        let placeless = architecture.is_some_and(|one| self.without_nodes.contains(&one));
        let pod = self.pods.get_mut(&name).unwrap();
        if pod.deleting && !matches!(pod.container, Container::Running { .. }) {
            self.pods.remove(&name);
            return;
        }
        match pod.container {
            Container::Unseen if pod.node.is_none() && placeless => {
                let message = "0/1 nodes are available".to_owned();
                pod.unscheduled = Some(crate::observe::Why { reason: "Unschedulable".into(), message });
            }
            Container::Unseen if pod.node.is_none() => {
                pod.node = Some("node".into());
                pod.unscheduled = None;
                pod.scheduled = Some(now);
            }
            Container::Unseen | Container::Waiting(_) => {
                pod.phase = "Running".into();
                pod.taken = Some(now);
                // The source is looked at when the builder starts.
                pod.message = format!("{:040}", self.revision);
                pod.container = Container::Running { since: Some(now) };
            }
            Container::Running { since } => {
                let failed = |reason| Outcome::Failure(Failure::new(reason, "no"));
                let outcome = match (ending, pod.deleting) {
                    (0..=4, _) => Some(self.push(&name)),
                    (_, true) => Some(failed(Why::Canceled)),
                    (5, _) => Some(failed(Why::StepFailed)),
                    (6, _) => Some(failed(Why::RegistryUnavailable)),
                    _ => None,
                };
                let pod = self.pods.get_mut(&name).unwrap();
                if ending == 7 && !pod.deleting {
                    pod.reason = "Evicted".into();
                }
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

    /// What a builder pushes that gets through.
    fn push(&mut self, name: &str) -> Outcome {
        let request = &self.asked_of[name].0;
        let pod = &self.pods[name];
        let revision = match &request.source {
            Source::Git(GitSource { commit: Some(pinned), .. }) => pinned.clone(),
            _ => pod.message.clone(),
        };
        let digest = format!("sha256:{}", pod.uid);
        let platforms: Vec<_> = request
            .platforms
            .iter()
            .map(|platform| {
                let digest = format!("{digest}-{platform}");
                self.pushed.insert(digest.clone(), (platform.clone(), revision.clone()));
                PlatformResult { platform: platform.clone(), digest, manifest_bytes: 7, ..Default::default() }
            })
            .collect();
        let digest = match platforms.as_slice() {
            [one] => one.digest.clone(),
            _ => digest,
        };
        if !request.output.push_by_digest {
            self.named.insert(digest.clone());
        }
        let joined = !request.index.is_empty();
        let revision = (!joined).then_some(revision);
        Outcome::Success(Success { digest, platforms, manifest_bytes: 7, revision, ..Success::default() })
    }

    /// One of the pods, if there are any.
    fn pod_at(&self, which: u8) -> Option<String> {
        self.pods.keys().nth(usize::from(which) % self.pods.len().max(1)).cloned()
    }

    fn vanish(&mut self, which: u8) {
        if let Some(pod) = self.pod_at(which).and_then(|name| self.pods.remove(&name)) {
            self.dead.remove(&pod.name);
            // Nobody who looks later can know that it was there: its attempt need not be counted.
            if !self.told.contains(&pod.name) {
                self.unseen.insert((pod.run, pod.part, pod.attempt));
            }
        }
    }

    fn die(&mut self, which: u8) {
        let Some(name) = self.pod_at(which).filter(|name| self.pods[name].node.is_some()) else {
            return;
        };
        let pod = self.pods.get_mut(&name).unwrap();
        if pod.ended() || self.dead.contains(&name) {
            return;
        }
        // Nobody moves the time at which a pod that was told to go has to be gone.
        pod.deleting = true;
        pod.gone_by.get_or_insert(self.now + std::time::Duration::from_secs(30));
        self.dead.insert(name);
    }

    fn happen(&mut self, event: &Happens) {
        match event {
            Happens::Reconcile { past, killed_after } => {
                // No two passes fall into the same second, so that runs can be told apart.
                self.now += std::time::Duration::from_secs(1);
                self.reconcile(*past, *killed_after);
            }
            Happens::Sync => self.sync(),
            Happens::Kubelet { which, ending } => self.kubelet(*which, *ending),
            Happens::Vanish(which) => self.vanish(*which),
            Happens::Dies(which) => self.die(*which),
            Happens::Moves => self.revision += 1,
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
        let mut living = BTreeSet::new();
        for pod in self.pods.values().filter(|pod| pod.alive(self.now)) {
            assert!(living.insert(&pod.part), "two pods of one part live: {:?}", self.pods.keys());
        }
    }

    /// Left in peace, everything comes to an end, and stays there.
    fn settle(&mut self) {
        for _ in 0..60 {
            self.now += std::time::Duration::from_secs(301);
            for _ in 0..8 {
                self.sync();
                self.reconcile(true, None);
            }
            let pods = u8::try_from(self.pods.len()).unwrap();
            (0..pods).for_each(|which| self.kubelet(which, 0));
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

    /// Each attempt that status counts had one pod, and there were no others.
    fn check_pods_made(&self) {
        let status = self.build.status.clone().unwrap();
        let run = status.run.unwrap();
        let mut planned = BTreeMap::new();
        let (mut kept, parts) =
            (BTreeSet::new(), super::parts::divide(&self.build, &ImageBuildStatus::default(), &settings()));
        for part in &parts {
            let entry = status.platforms.iter().find(|entry| part.platforms.contains(&entry.platform));
            let entry = entry.or(status.platforms.first()).unwrap();
            if entry.pod.is_some() {
                planned.insert(part.platform_label(), entry.attempt.unwrap());
            } else {
                kept.insert(part.platform_label());
            }
        }
        if let Some(index) = status.index.filter(|index| index.pod.is_some()) {
            planned.insert(crate::observe::INDEX.to_owned(), index.attempt);
        }
        for ((of, part), attempts) in self.made.iter().filter(|((of, _), _)| *of == run.id) {
            // A part that was given up has had pods that status need not name.
            if kept.contains(part) {
                continue;
            }
            // An index that was begun, and whose parts' results were lost before a status had them, is never told of.
            let Some(last) = planned.get(part).copied() else {
                assert_eq!(part, crate::observe::INDEX);
                continue;
            };
            let all: BTreeSet<u32> = (1..=last).collect();
            let counted = |attempt: &u32| {
                *attempt <= last || !self.unseen.contains(&(of.clone(), part.clone(), *attempt))
            };
            let attempts: BTreeSet<u32> = attempts.iter().copied().filter(counted).collect();
            assert_eq!(attempts, all, "{of} {part}");
        }
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

fn happens(users: bool) -> impl Strategy<Value = Happens> {
    let any_pod = || any::<u8>();
    let world = prop_oneof![
        12 => (any::<bool>(), proptest::option::weighted(0.3, 0_u8..3))
            .prop_map(|(past, killed_after)| Happens::Reconcile { past, killed_after }),
        6 => Just(Happens::Sync),
        12 => (any_pod(), 0_u8..9).prop_map(|(which, ending)| Happens::Kubelet { which, ending }),
        1 => any_pod().prop_map(Happens::Vanish),
        1 => any_pod().prop_map(Happens::Dies),
        2 => Just(Happens::Moves),
        3 => (0_u16..400).prop_map(Happens::Seconds),
    ];
    let user = prop_oneof![
        2 => any::<u8>().prop_map(Happens::Edit),
        2 => any::<u8>().prop_map(Happens::Rebuild),
        2 => proptest::bool::weighted(0.3).prop_map(Happens::Cancel),
        2 => proptest::bool::weighted(0.3).prop_map(Happens::Suspend),
    ];
    let user = user.prop_map(move |event| if users { event } else { Happens::Sync });
    prop_oneof![10 => world, 1 => user]
}

/// Two that one kind of node serves, one of another kind, and one that no node is there for.
const SEVERAL: [&str; 4] = ["linux/arm64", "linux/amd64", "linux/386", "linux/riscv64"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_one_pod_lives_and_an_end_is_an_end(story in proptest::collection::vec(happens(true), 1..60)) {
        let mut world = World::new(&[]);
        for event in &story {
            world.happen(event);
        }
        world.settle();
    }

}

proptest! {
    // A story of four platforms takes as long as eight of one.
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_to_several_platforms_they_become_one_image(
        story in proptest::collection::vec(happens(true), 1..120),
    ) {
        let mut world = World::new(&SEVERAL);
        world.without_nodes.insert("riscv64".into());
        for event in &story {
            world.happen(event);
        }
        world.settle();
    }

    #[test]
    fn each_attempt_at_each_platform_has_one_pod(
        story in proptest::collection::vec(happens(false), 1..120),
    ) {
        let mut world = World::new(&SEVERAL);
        world.without_nodes.insert("riscv64".into());
        for event in &story {
            world.happen(event);
        }
        world.settle();
        world.check_pods_made();
    }
}

#[test]
fn a_result_outlives_the_operator() {
    let mut world = World::new(&[]);
    world.reconcile(false, None);
    for _ in 0..3 {
        world.kubelet(0, 0);
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
