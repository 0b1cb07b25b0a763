//! What a pod that lives is doing or waiting for.

use std::time::Duration;

use jiff::Timestamp;
use lapstrake_crds::Reason;

use crate::observe::{Container, Phase, PodFacts, Why};
use crate::plan::ending::{Broken, Retry, start_error};
use crate::plan::pod::CREDENTIALS;
use crate::settings::limits::{PENDING_RECHECK, PULL_GRACE, SILENT_GRACE, START_GRACE};

/// Reason of a hint that says which field of the spec waits for which Secret or ConfigMap.
pub(crate) const MISSING_INPUT: &str = "MissingInput";

/// What a living pod is doing.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Doing {
    /// As a word.
    pub reason: Reason,
    /// In a sentence.
    pub message: String,
    /// When to look again though no event may come.
    pub recheck: Option<Duration>,
    /// It has waited long enough for something that will not come.
    pub given_up: Option<Broken>,
}

impl Doing {
    fn working(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), recheck: None, given_up: None }
    }

    fn waiting(reason: Reason, message: impl Into<String>) -> Self {
        Self { recheck: Some(PENDING_RECHECK), ..Self::working(reason, message) }
    }

    fn for_at_most(mut self, grace: Duration, waited: Duration, end: impl FnOnce() -> Broken) -> Self {
        if waited >= grace {
            self.given_up = Some(end());
        }
        self
    }
}

/// What `pod`, which has not ended and mounts this Secret, is doing.
pub(crate) fn doing(pod: &PodFacts, secret: Option<&str>, now: Timestamp) -> Doing {
    if pod.deleting {
        let message = match &pod.node {
            Some(node) => format!("pod {} was deleted, and is being stopped by node {node}", pod.name),
            None => format!("pod {} was deleted, and is being stopped", pod.name),
        };
        return Doing { recheck: pod.lost_in(now), ..Doing::working(Reason::Canceling, message) };
    }
    match &pod.container {
        Container::Running { .. } | Container::Ended(_) => running(pod),
        Container::Waiting(why) => not_started(pod, why, secret, now),
        Container::Unseen if pod.node.is_none() => not_placed(pod),
        Container::Unseen => not_started(pod, &Why::default(), secret, now),
    }
}

fn running(pod: &PodFacts) -> Doing {
    let node = pod.node.as_deref().unwrap_or("its node");
    match pod.progress {
        Some(Phase::Source) => {
            Doing::working(Reason::FetchingSource, format!("fetching the source on {node}"))
        }
        Some(Phase::Push) => {
            Doing::working(Reason::Pushing, format!("packing and pushing the image from {node}"))
        }
        Some(Phase::Steps) | None => Doing::working(Reason::Building, format!("building on {node}")),
    }
}

fn not_placed(pod: &PodFacts) -> Doing {
    match &pod.unscheduled {
        Some(why) if why.reason == "SchedulingGated" => Doing::waiting(
            Reason::Queued,
            format!("pod {} waits for its turn in a queue of the cluster", pod.name),
        ),
        Some(why)
            if why.message.contains("unbound immediate PersistentVolumeClaim")
                || why.message.contains("persistentvolumeclaim") =>
        {
            Doing::waiting(Reason::WaitingForVolume, no_volume(pod, why))
        }
        Some(why) => {
            Doing::waiting(Reason::WaitingForNode, format!("no node takes the builder pod: {}", why.message))
        }
        None => Doing::waiting(Reason::Queued, format!("pod {} waits for the scheduler", pod.name)),
    }
}

/// The scheduler only says that the claim is not bound; its own Events say why.
fn no_volume(pod: &PodFacts, why: &Why) -> String {
    match &pod.hint {
        Some(hint) => format!(
            "the cache volume is not there yet: {}; if that stays so, set cache.emptyDir, or make the \
             ImageBuild anew with another cache.volume.storageClassName",
            hint.message
        ),
        None => format!("the cache volume is not there yet: {}", why.message),
    }
}

fn not_started(pod: &PodFacts, why: &Why, secret: Option<&str>, now: Timestamp) -> Doing {
    let since = pod.taken.or(pod.scheduled).or(pod.created).unwrap_or(now);
    let waited = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    match why.reason.as_str() {
        "ImagePullBackOff"
        | "ErrImagePull"
        | "ErrImageNeverPull"
        | "ImageInspectError"
        | "RegistryUnavailable"
        | "SignatureValidationFailed"
        | "InvalidImageName" => {
            let message = format!("the builder's image cannot be pulled ({}): {}", why.reason, why.message);
            // A name that is wrong does not become right.
            let hopeless = matches!(why.reason.as_str(), "InvalidImageName" | "ErrImageNeverPull");
            let grace = if hopeless { Duration::ZERO } else { PULL_GRACE };
            Doing::waiting(Reason::WaitingForBuilderImage, message.clone()).for_at_most(grace, waited, || {
                Broken::new(Reason::BuilderImageUnavailable, Retry::Never, message)
            })
        }
        "CreateContainerConfigError"
        | "CreateContainerError"
        | "RunContainerError"
        | "PostStartHookError" => {
            let message = format!("the builder does not start ({}): {}", why.reason, why.message);
            Doing::waiting(Reason::Starting, message)
                .for_at_most(START_GRACE, waited, || start_error(&pod.name, &why.message))
        }
        _ => creating(pod, secret, waited),
    }
}

/// The pod is on a node, and its volumes and sandbox are being made.
fn creating(pod: &PodFacts, secret: Option<&str>, waited: Duration) -> Doing {
    let node = pod.node.as_deref().unwrap_or("its node");
    if pod.taken.is_none() && waited >= SILENT_GRACE {
        let message = format!(
            "{node} has the builder pod and does not start it: nothing is heard of it since {} s",
            SILENT_GRACE.as_secs()
        );
        return Doing::waiting(Reason::WaitingForNode, message);
    }
    let Some(hint) = &pod.hint else {
        return Doing {
            recheck: Some(PENDING_RECHECK),
            ..Doing::working(Reason::Starting, format!("the builder starts on {node}"))
        };
    };
    match (hint.reason.as_str(), secret) {
        (MISSING_INPUT, _) => Doing::waiting(Reason::WaitingForSecret, hint.message.clone()),
        ("FailedMount", Some(secret)) if hint.message.contains(CREDENTIALS) => {
            Doing::waiting(Reason::WaitingForSecret, no_secret(secret, &hint.message))
        }
        _ => delayed(pod, node, hint, waited),
    }
}

/// What is wrong with the Secret that `output.secretRef` names.
fn no_secret(secret: &str, words: &str) -> String {
    if words.contains("non-existent secret key") {
        format!(
            "the Secret {secret} has no key .dockerconfigjson: output.secretRef must name a Secret of type \
             kubernetes.io/dockerconfigjson, as `kubectl create secret docker-registry` makes it"
        )
    } else if words.contains("not found") {
        format!(
            "the Secret {secret} that output.secretRef names does not exist: the build goes on within two \
             minutes of its creation"
        )
    } else {
        format!("the Secret {secret} that output.secretRef names cannot be mounted yet: {words}")
    }
}

fn delayed(pod: &PodFacts, node: &str, hint: &Why, waited: Duration) -> Doing {
    match hint.reason.as_str() {
        "FailedMount" | "FailedAttachVolume" | "FailedMapVolume" => Doing::waiting(
            Reason::WaitingForVolume,
            format!("a volume cannot be mounted yet: {}", hint.message),
        ),
        "FailedCreatePodSandBox" => {
            Doing::waiting(Reason::Starting, format!("{node} does not start the pod: {}", hint.message))
                .for_at_most(START_GRACE, waited, || start_error(&pod.name, &hint.message))
        }
        _ => Doing::waiting(Reason::Starting, format!("the builder starts on {node}")),
    }
}
