//! How a pod ended, as the first signal that matches tells.

use lapstrake_crds::Reason;
use lapstrake_handoff as handoff;
use lapstrake_handoff::{Class, Outcome, Success};

use crate::observe::{Container, Ended, PodFacts};

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    /// The image was pushed.
    Success(Box<Success>),
    /// It was not.
    Failure(Box<Broken>),
}

/// An attempt that did not push an image.
#[derive(Clone, Debug, PartialEq)]
pub struct Broken {
    /// Why, as a word.
    pub reason: Reason,
    /// Why, in a sentence.
    pub message: String,
    /// Whether another attempt may do better.
    pub retry: Retry,
    /// What the builder said about it.
    pub detail: Option<handoff::Failure>,
}

/// Whether an attempt that broke is followed by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same again would end the same.
    Never,
    /// It was not the build's fault; counts against `spec.retries`.
    Counted,
    /// Its builder never started; counts against a budget of its own.
    Free,
}

impl Broken {
    /// An attempt that broke without a word of the builder.
    pub(crate) fn new(reason: Reason, retry: Retry, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), retry, detail: None }
    }
}

/// Reasons of a pod that its node or the scheduler refused or lost.
const NODE_REASONS: [&str; 10] = [
    "NodeShutdown",
    "Terminated",
    "NodeLost",
    "Preempting",
    "UnexpectedAdmissionError",
    "OutOfcpu",
    "OutOfmemory",
    "OutOfpods",
    "OutOfephemeral-storage",
    "NodeAffinity",
];

/// How `pod`, which has ended, ended.
pub(crate) fn ending(pod: &PodFacts) -> Ending {
    let none = Ended::default();
    let ended = match &pod.container {
        Container::Ended(ended) => ended,
        _ => &none,
    };
    let outcome = Outcome::parse(&ended.message).ok();
    let failure = match outcome {
        // A result is a result, whatever happened to its pod afterwards.
        Some(Outcome::Success(success)) => return Ending::Success(Box::new(success)),
        Some(Outcome::Failure(failure)) => Some(failure),
        None => None,
    };
    let broken = disrupted(pod)
        .or_else(|| evicted(pod))
        .or_else(|| refused_by_node(pod))
        .or_else(|| out_of_memory(pod, failure.as_ref()))
        .or_else(|| past_deadline(pod, failure.as_ref()))
        .or_else(|| failure.map(|failure| told(pod, failure)))
        .unwrap_or_else(|| untold(pod, ended));
    Ending::Failure(Box::new(broken))
}

/// The recorded pod is gone and left no result.
pub(crate) fn gone(pod: &str) -> Broken {
    Broken::new(
        Reason::PodDeleted,
        Retry::Counted,
        format!("pod {pod} was deleted before it could tell a result"),
    )
}

/// The pod should have ended long ago, and its node says nothing.
pub(crate) fn lost(pod: &PodFacts) -> Broken {
    let node = pod.node.as_deref().unwrap_or("its node");
    let lead =
        format!("{node} does not end pod {}, which was told to go: the node seems to be dead", pod.name);
    let words = pod.disrupted.as_ref().map(|why| why.message.clone()).unwrap_or_default();
    Broken::new(Reason::NodeLost, counted_if_started(pod), sentence(&lead, &words))
}

fn counted_if_started(pod: &PodFacts) -> Retry {
    if pod.started() { Retry::Counted } else { Retry::Free }
}

fn sentence(lead: &str, words: &str) -> String {
    let words = words.trim();
    if words.is_empty() { lead.to_owned() } else { format!("{lead}: {words}") }
}

fn disrupted(pod: &PodFacts) -> Option<Broken> {
    let why = pod.disrupted.as_ref()?;
    let reason = match why.reason.as_str() {
        "DeletionByPodGC" | "DeletionByTaintManager" => Reason::NodeLost,
        // The kubelet evicts under this reason too; then the message tells whose fault it was.
        "TerminationByKubelet" if pod.reason == "Evicted" => return evicted(pod),
        _ => Reason::Evicted,
    };
    let lead = format!("pod {} was disrupted ({})", pod.name, why.reason);
    Some(Broken::new(reason, counted_if_started(pod), sentence(&lead, &why.message)))
}

fn evicted(pod: &PodFacts) -> Option<Broken> {
    if pod.reason != "Evicted" {
        return None;
    }
    let text = pod.message.to_lowercase();
    let own_fault = text.contains("exceed") && (text.contains("ephemeral") || text.contains("emptydir"));
    Some(if own_fault {
        let lead = "the build needs more disk than its pod may use";
        Broken::new(Reason::DiskFull, Retry::Never, sentence(lead, &pod.message))
    } else {
        let lead = format!("pod {} was evicted", pod.name);
        Broken::new(Reason::Evicted, counted_if_started(pod), sentence(&lead, &pod.message))
    })
}

fn refused_by_node(pod: &PodFacts) -> Option<Broken> {
    if !NODE_REASONS.contains(&pod.reason.as_str()) {
        return None;
    }
    let reason = match pod.reason.as_str() {
        "NodeShutdown" | "Terminated" | "NodeLost" => Reason::NodeLost,
        "Preempting" => Reason::Evicted,
        _ => Reason::PodFailed,
    };
    let lead = format!("the node ended pod {} ({})", pod.name, pod.reason);
    Some(Broken::new(reason, counted_if_started(pod), sentence(&lead, &pod.message)))
}

fn out_of_memory(pod: &PodFacts, failure: Option<&handoff::Failure>) -> Option<Broken> {
    let container = pod.oom_killed.as_ref()?;
    // The builder knows which step it was, if it lived to tell.
    if let Some(failure) = failure.filter(|failure| failure.reason == handoff::Reason::OutOfMemory) {
        return Some(told(pod, failure.clone()));
    }
    let message = format!(
        "container {container} was killed since its memory was used up: \
         raise pod.resources.limits.memory, or let steps use less"
    );
    // If it told what became of the step all the same, that is where to look.
    Some(Broken { detail: failure.cloned(), ..Broken::new(Reason::OutOfMemory, Retry::Never, message) })
}

fn past_deadline(pod: &PodFacts, failure: Option<&handoff::Failure>) -> Option<Broken> {
    if pod.reason != "DeadlineExceeded" {
        return None;
    }
    // It was stopped for the deadline, unless it failed of itself just before.
    if let Some(failure) = failure.filter(|failure| failure.reason != handoff::Reason::Canceled) {
        return Some(told(pod, failure.clone()));
    }
    Some(Broken::new(Reason::TimedOut, Retry::Never, "the run took longer than spec.timeout"))
}

/// The builder said why.
fn told(pod: &PodFacts, failure: handoff::Failure) -> Broken {
    if failure.reason == handoff::Reason::Canceled {
        // Nobody here asked for it: the pod was told to go by somebody else.
        let message = format!("pod {} was stopped in mid build", pod.name);
        return Broken { detail: Some(failure), ..Broken::new(Reason::PodDeleted, Retry::Counted, message) };
    }
    let reason = failure.reason.as_str().parse().unwrap_or(Reason::Internal);
    let message =
        if failure.message.is_empty() { reason.meaning().to_owned() } else { failure.message.clone() };
    let retry = if failure.retryable { Retry::Counted } else { Retry::Never };
    Broken { reason, message, retry, detail: Some(failure) }
}

/// The builder said nothing that could be read.
fn untold(pod: &PodFacts, ended: &Ended) -> Broken {
    let code = ended.exit_code;
    let lead = format!("pod {} ended with exit code {code} and left no result", pod.name);
    let words =
        if ended.reason == "Error" || ended.reason == "Completed" { "" } else { ended.message.trim() };
    match (ended.reason.as_str(), code) {
        ("StartError" | "ContainerCannotRun" | "RunContainerError", _) => start_error(&pod.name, words),
        ("ContainerStatusUnknown", _) => {
            Broken::new(Reason::NodeLost, Retry::Counted, format!("the node lost sight of pod {}", pod.name))
        }
        ("", _) => Broken::new(
            Reason::PodFailed,
            counted_if_started(pod),
            match pod.reason.as_str() {
                "" => sentence(&format!("pod {} failed before its builder ran", pod.name), &pod.message),
                reason => sentence(&format!("pod {} failed ({reason})", pod.name), &pod.message),
            },
        ),
        // Killed, but not seen to be for memory; a signal of a shutdown looks the same.
        (_, 137 | 143) => Broken::new(
            Reason::PodFailed,
            Retry::Counted,
            format!("{lead}: it was killed, perhaps since the node or the pod ran out of memory"),
        ),
        (_, 0) => Broken::new(Reason::Internal, Retry::Counted, lead),
        _ => match Class::from_exit_code(code) {
            Some(Class::Unavailable) => Broken::new(Reason::RegistryUnavailable, Retry::Counted, lead),
            Some(Class::TimedOut) => Broken::new(Reason::TimedOut, Retry::Never, lead),
            Some(Class::Sandbox) => Broken::new(Reason::SandboxUnavailable, Retry::Never, lead),
            _ => Broken::new(Reason::Internal, Retry::Never, sentence(&lead, words)),
        },
    }
}

/// The runtime could not start the builder's container.
pub(crate) fn start_error(pod: &str, words: &str) -> Broken {
    let text = words.to_lowercase();
    let sandbox =
        ["user namespace", "userns", "idmap", "uid_map", "hostusers"].iter().any(|word| text.contains(word));
    let lead = format!("the node cannot start pod {pod}");
    if sandbox {
        Broken::new(Reason::SandboxUnavailable, Retry::Never, sentence(&lead, words))
    } else {
        Broken::new(Reason::PodFailed, Retry::Counted, sentence(&lead, words))
    }
}
