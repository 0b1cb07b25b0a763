//! What planning looks at: plain facts, taken out of the cluster's objects.
//!
//! Never: decides anything.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodSchedulingGate, PodSpec};
use kube::ResourceExt;
use lapstrake_crds::{ImageBuild, Reason, label};

use crate::cache::GATE;
use crate::cache::slots::{Holder, Slot};
use crate::schedule::board::Leave;

/// Name of the builder's container.
pub const CONTAINER: &str = "builder";
/// Component of the pod that joins platforms into one image.
pub const INDEX: &str = "index";
/// Name of the volume that the builder keeps its state on.
pub const STATE_VOLUME: &str = "state";
/// How long after the moment at which a pod had to be gone it is still believed that its node is about
/// to end it.
pub const LOST_AFTER: Duration = Duration::from_secs(60);

/// Everything that is known about one ImageBuild in one moment.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The ImageBuild itself.
    pub build: ImageBuild,
    /// All pods that carry its uid, in no order.
    pub pods: Vec<PodFacts>,
    /// Names of the request ConfigMaps and cache volumes that carry its uid; empty unless `fresh`.
    pub objects: Vec<Owned>,
    /// Whether all of this was read from the API server just now, not from a cache of the past.
    pub fresh: bool,
    /// Pod Security level that the namespace enforces; none if it was not looked at.
    pub pod_security: Option<PodSecurity>,
    /// Names of the `imagePullSecrets` of the ServiceAccount that the pod runs as; empty unless `fresh`.
    pub pull_secrets: Vec<String>,
    /// Slots of the shared cache that it uses; empty unless `fresh`.
    pub slots: Vec<Slot>,
    /// Pods of that cache which have not ended, whosesoever, read after the slots.
    pub holders: Vec<Holder>,
    /// What the queue lets it do; none until planning asks.
    pub leave: Option<Leave>,
    /// What the API server said to the pods that this pass tried to create, by their names.
    pub refusals: BTreeMap<String, Refusal>,
    /// Where the places stand that the ImageBuild follows.
    pub follow: crate::follow::Facts,
    /// Other ImageBuilds whose images are contexts of this one.
    pub contexts: crate::contexts::Facts,
}

/// An object other than a pod that belongs to the ImageBuild.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owned {
    /// A ConfigMap with a request.
    Request(String),
    /// A PersistentVolumeClaim with a cache.
    Volume(String),
}

/// Pod Security level that a namespace enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodSecurity {
    /// No label, `privileged`, or a word that we do not know.
    Privileged,
    /// `baseline`.
    Baseline,
    /// `restricted`.
    Restricted,
}

impl PodSecurity {
    /// Reads the label's value.
    pub fn from_label(value: Option<&str>) -> Self {
        match value {
            Some("baseline") => Self::Baseline,
            Some("restricted") => Self::Restricted,
            _ => Self::Privileged,
        }
    }
}

/// Why the API server did not take the pod, or what it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A quota has no room; time helps.
    Quota(String),
    /// Something else that the build waits for is not as it must be; the reason says what.
    NotYet(Reason, String),
    /// An older ImageBuild of the same name had the volume, which is still going.
    Leaving(String),
    /// Pod Security forbids it.
    PodSecurity(String),
    /// Something else forbids it, or finds it invalid.
    Rejected(String),
    /// An object that is not ours has the name.
    NameTaken(String),
}

/// What a builder is doing, as its log tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The source is being fetched.
    Source,
    /// Steps run.
    Steps,
    /// The image is being packed and pushed.
    Push,
}

/// A pod, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// Uid of the ImageBuild that controls it.
    pub owner: String,
    /// Run that it belongs to.
    pub run: String,
    /// What of the run it does: its platforms as a label has them, `index`, or nothing if no platform was
    /// asked for.
    pub part: String,
    /// Attempt of that part, from 1.
    pub attempt: u32,
    /// Volume that its builder keeps its state on, by the name of the claim.
    pub claim: Option<String>,
    /// Whether it waits until its cache slot is its own.
    pub gated: bool,
    /// Whether that volume is a slot of a shared cache.
    pub shared_cache: bool,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Whether it was told to go.
    pub deleting: bool,
    /// When it has to be gone, if it was told to go.
    pub gone_by: Option<Timestamp>,
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    pub phase: String,
    /// Why the kubelet or a controller put it into that phase.
    pub reason: String,
    /// The same in a sentence.
    pub message: String,
    /// Node that it is on.
    pub node: Option<String>,
    /// When the kubelet took it.
    pub taken: Option<Timestamp>,
    /// When it was given its node.
    pub scheduled: Option<Timestamp>,
    /// Why it has no node: the scheduler's reason and message.
    pub unscheduled: Option<Why>,
    /// Why it was or is being disrupted.
    pub disrupted: Option<Why>,
    /// What the builder's container does.
    pub container: Container,
    /// Whether a container other than the builder's runs.
    pub sidecar: bool,
    /// Name of a container that was killed for its memory.
    pub oom_killed: Option<String>,
    /// What Events say of its trouble: the node's last warning, or why its cache volume is not there.
    pub hint: Option<Why>,
    /// How far the builder says it is, from its log.
    pub progress: Option<Phase>,
}

/// A reason and its message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Why {
    /// One word.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

/// What the builder's container does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Container {
    /// The kubelet has not said anything.
    #[default]
    Unseen,
    /// It does not run yet.
    Waiting(Why),
    /// It runs.
    Running {
        /// Since when.
        since: Option<Timestamp>,
    },
    /// It has ended.
    Ended(Ended),
}

/// How a container ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// What its process returned, or 128 + the signal.
    pub exit_code: i32,
    /// The runtime's word, such as `Error` or `OOMKilled`.
    pub reason: String,
    /// The termination message.
    pub message: String,
    /// When it started.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub finished: Option<Timestamp>,
}

impl PodFacts {
    /// Takes the facts out of a pod.
    pub fn of(pod: &Pod) -> Self {
        let labels = pod.labels();
        let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
        let mut facts = Self {
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            owner: pod
                .owner_references()
                .iter()
                .find(|owner| owner.controller == Some(true))
                .map(|owner| owner.uid.clone())
                .unwrap_or_default(),
            run: label(label::RUN),
            part: if label("app.kubernetes.io/component") == INDEX {
                INDEX.to_owned()
            } else {
                label(label::PLATFORM)
            },
            claim: pod.spec.as_ref().and_then(state_claim),
            gated: pod.spec.as_ref().and_then(|spec| spec.scheduling_gates.as_ref()).is_some_and(has_gate),
            shared_cache: labels.contains_key(label::CACHE),
            attempt: label(label::ATTEMPT).parse().unwrap_or_default(),
            created: pod.creation_timestamp().map(|time| time.0),
            deleting: pod.metadata.deletion_timestamp.is_some(),
            gone_by: pod.metadata.deletion_timestamp.as_ref().map(|time| time.0),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            ..Self::default()
        };
        if let Some(status) = &pod.status {
            facts.phase = status.phase.clone().unwrap_or_default();
            facts.reason = status.reason.clone().unwrap_or_default();
            facts.message = status.message.clone().unwrap_or_default();
            facts.taken = status.start_time.as_ref().map(|time| time.0);
            facts.conditions(status.conditions.as_deref().unwrap_or_default());
            let containers = status.container_statuses.as_deref().unwrap_or_default();
            let init = status.init_container_statuses.as_deref().unwrap_or_default();
            facts.oom_killed =
                init.iter().chain(containers).find(|one| was_oom_killed(one)).map(|one| one.name.clone());
            facts.sidecar = containers.iter().any(|one| {
                one.name != CONTAINER && one.state.as_ref().is_some_and(|state| state.running.is_some())
            });
            // A gate of our own, or one that is gone by now, is nobody's queue.
            facts.unscheduled.take_if(|why| why.reason == "SchedulingGated" && !gated_by_others(pod));
            if let Some(builder) = containers.iter().find(|one| one.name == CONTAINER) {
                facts.container = Container::of(builder);
            }
        }
        facts
    }

    fn conditions(&mut self, conditions: &[k8s_openapi::api::core::v1::PodCondition]) {
        for condition in conditions {
            let why = Why {
                reason: condition.reason.clone().unwrap_or_default(),
                message: condition.message.clone().unwrap_or_default(),
            };
            match (condition.type_.as_str(), condition.status.as_str()) {
                ("PodScheduled", "True") => {
                    self.scheduled = condition.last_transition_time.as_ref().map(|time| time.0);
                }
                ("PodScheduled", "False") => self.unscheduled = Some(why),
                ("DisruptionTarget", "True") => self.disrupted = Some(why),
                _ => {}
            }
        }
    }

    /// Whether its builder has ended for good. A sidecar that goes on is not waited for.
    pub fn ended(&self) -> bool {
        matches!(self.phase.as_str(), "Succeeded" | "Failed") || matches!(self.container, Container::Ended(_))
    }

    /// Whether its node has stopped all of it: its volumes are free. That is some time after its builder ended.
    pub fn stopped(&self) -> bool {
        matches!(self.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Whether its builder may still do something, as far as anybody can know.
    pub fn alive(&self, now: Timestamp) -> bool {
        !self.ended() && !self.lost(now)
    }

    /// Whether its node should have ended it long ago and says nothing: most likely the node is dead. The
    /// pod stays, and with it its volume's mount, until the cluster takes the node for gone.
    pub fn lost(&self, now: Timestamp) -> bool {
        !self.ended() && self.gone_by.is_some_and(|gone_by| now >= gone_by + LOST_AFTER)
    }

    /// How long until it is taken for lost, if it was told to go and does not.
    pub fn lost_in(&self, now: Timestamp) -> Option<Duration> {
        let at = self.gone_by.filter(|_| !self.ended())? + LOST_AFTER;
        Some(Duration::try_from(at.duration_since(now)).unwrap_or_default())
    }

    /// Whether the builder ever ran in it.
    pub fn started(&self) -> bool {
        match &self.container {
            Container::Running { .. } => true,
            Container::Ended(ended) => ended.started.is_some(),
            Container::Unseen | Container::Waiting(_) => false,
        }
    }
}

impl Container {
    fn of(status: &ContainerStatus) -> Self {
        let Some(state) = &status.state else {
            return Self::Unseen;
        };
        if let Some(ended) = &state.terminated {
            return Self::Ended(Ended {
                exit_code: ended.exit_code,
                reason: ended.reason.clone().unwrap_or_default(),
                message: ended.message.clone().unwrap_or_default(),
                started: ended.started_at.as_ref().map(|time| time.0),
                finished: ended.finished_at.as_ref().map(|time| time.0),
            });
        }
        if let Some(running) = &state.running {
            return Self::Running { since: running.started_at.as_ref().map(|time| time.0) };
        }
        match &state.waiting {
            Some(waiting) => Self::Waiting(Why {
                reason: waiting.reason.clone().unwrap_or_default(),
                message: waiting.message.clone().unwrap_or_default(),
            }),
            None => Self::Unseen,
        }
    }
}

fn was_oom_killed(status: &ContainerStatus) -> bool {
    let killed = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| {
        state
            .as_ref()
            .and_then(|state| state.terminated.as_ref())
            .is_some_and(|ended| ended.reason.as_deref() == Some("OOMKilled"))
    };
    killed(&status.state) || killed(&status.last_state)
}

/// Whether our own gate is among a pod's.
#[expect(clippy::ptr_arg, reason = "it is what an Option of the field holds")]
fn has_gate(gates: &Vec<PodSchedulingGate>) -> bool {
    gates.iter().any(|gate| gate.name == GATE)
}

/// Whether somebody else holds the pod back from the scheduler.
fn gated_by_others(pod: &Pod) -> bool {
    let gates = pod.spec.as_ref().and_then(|spec| spec.scheduling_gates.as_ref());
    gates.is_some_and(|gates| gates.iter().any(|gate| gate.name != GATE))
}

/// The claim that the builder's state is on.
fn state_claim(spec: &PodSpec) -> Option<String> {
    let volume = spec.volumes.iter().flatten().find(|volume| volume.name == STATE_VOLUME)?;
    volume.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.clone())
}

/// Drops from a pod what no fact is taken from, so that a cache of many pods stays small.
pub fn strip_pod(pod: &mut Pod) {
    pod.metadata.managed_fields = None;
    pod.metadata.annotations = None;
    pod.metadata.generate_name = None;
    if let Some(spec) = &mut pod.spec {
        let node_name = spec.node_name.take();
        let scheduling_gates = spec.scheduling_gates.take();
        let volumes = spec.volumes.take().map(|mut volumes| {
            volumes.retain(|volume| volume.name == STATE_VOLUME);
            volumes
        });
        *spec = PodSpec { node_name, volumes, scheduling_gates, ..PodSpec::default() };
    }
    if let Some(status) = &mut pod.status {
        status.pod_ips = None;
        status.host_ips = None;
        status.resource_claim_statuses = None;
        for container in status
            .container_statuses
            .iter_mut()
            .flatten()
            .chain(status.init_container_statuses.iter_mut().flatten())
        {
            container.volume_mounts = None;
            container.allocated_resources = None;
            container.resources = None;
            container.user = None;
        }
    }
}

/// Drops from an ImageBuild what planning does not look at.
pub fn strip_build(build: &mut ImageBuild) {
    build.metadata.managed_fields = None;
    if let Some(annotations) = &mut build.metadata.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
}
