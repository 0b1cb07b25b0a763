//! The words that conditions and reasons may take.

use std::fmt;
use std::str::FromStr;

/// Type of a condition in `status.conditions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConditionType {
    /// Whether the image that the spec asks for is in the registry. Always present once the operator
    /// has seen the object; Unknown while a run is under way.
    Ready,
    /// Present, and True, while the operator has something to do or to wait for.
    Reconciling,
    /// Present, and True, when nothing more will happen until the user changes something.
    Stalled,
    /// How the last run ended: True, False, or Unknown while it goes on.
    Succeeded,
}

impl ConditionType {
    /// The word as written in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Reconciling => "Reconciling",
            Self::Stalled => "Stalled",
            Self::Succeeded => "Succeeded",
        }
    }
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a [`Reason`] says about the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReasonKind {
    /// It waits for something outside, and goes on by itself when that is there.
    Waiting,
    /// It is under way.
    Working,
    /// The image is in the registry.
    Success,
    /// It ended without an image, and nothing happens until the user changes something.
    Failure,
}

/// A reason that is not one of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownReason(pub String);

impl fmt::Display for UnknownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown reason {:?}", self.0)
    }
}

impl std::error::Error for UnknownReason {}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident: $kind:ident,)+) => {
        /// Why the conditions are as they are: a word that a person understands.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            /// All reasons, in the order of a build's life.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The word as written in the API.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),+ }
            }

            /// What it says about the run.
            pub const fn kind(self) -> ReasonKind {
                match self { $(Self::$name => ReasonKind::$kind),+ }
            }

            /// What it means, for the reference.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii()),+ }
            }
        }
    };
}

reasons! {
    /// The run waits for its turn.
    Queued: Waiting,
    /// No new run starts, since `spec.suspend` is set.
    Suspended: Waiting,
    /// An ImageBuild that `spec.contexts` names is not there or not Ready yet; the message names it, and what it is doing.
    WaitingForBuild: Waiting,
    /// No node takes the builder pod yet; the message repeats what the scheduler says.
    WaitingForNode: Waiting,
    /// A quota of the namespace has no room for the builder pod yet.
    WaitingForQuota: Waiting,
    /// The ServiceAccount that the spec names does not exist yet.
    WaitingForServiceAccount: Waiting,
    /// A Secret or ConfigMap that the spec names does not exist yet, or lacks a key; the message names it.
    WaitingForSecret: Waiting,
    /// The cache volume is not bound or mounted yet.
    WaitingForVolume: Waiting,
    /// The builder's own image cannot be pulled yet.
    WaitingForBuilderImage: Waiting,
    /// An attempt was broken by something other than the build, and another one follows.
    ProgressingWithRetry: Waiting,
    /// The builder pod is on a node and starts.
    Starting: Working,
    /// The source is being fetched.
    FetchingSource: Working,
    /// The steps run.
    Building: Working,
    /// The image is being pushed.
    Pushing: Working,
    /// The builder pod is being stopped.
    Canceling: Working,
    /// The image is in the registry.
    Succeeded: Success,
    /// The spec asks for something that cannot be done; the message names the field.
    SpecInvalid: Failure,
    /// The repository, branch, tag, commit, directory or download does not exist.
    SourceNotFound: Failure,
    /// The server refused access to the source.
    SourceDenied: Failure,
    /// The server of the source could not be reached, or answered with a fault of its own.
    SourceUnavailable: Failure,
    /// What was downloaded does not have the checksum that was asked for.
    ChecksumMismatch: Failure,
    /// The Dockerfile is missing or has an error; the message has the line and the column.
    DockerfileInvalid: Failure,
    /// The Dockerfile uses something that this version cannot do yet; the message has the line and the column.
    NotSupported: Failure,
    /// A step requires a secret or an SSH agent that the spec does not give it; the message names it.
    SecretNotFound: Failure,
    /// A base image does not exist, or not for this platform.
    ImageNotFound: Failure,
    /// The registry refused to hand out a base image with the credentials given.
    PullDenied: Failure,
    /// A step ended with an exit code other than 0.
    StepFailed: Failure,
    /// A step, or the builder itself, was killed because its memory was used up.
    OutOfMemory: Failure,
    /// The cache volume or the node's disk is full.
    DiskFull: Failure,
    /// The registry refused the push with the credentials given.
    PushDenied: Failure,
    /// A registry could not be reached, or answered with a fault of its own until no attempt was left.
    RegistryUnavailable: Failure,
    /// Another builder holds the cache volume.
    StateBusy: Failure,
    /// The run took longer than `spec.timeout`.
    TimedOut: Failure,
    /// The run was stopped, since `spec.cancel` is set.
    Canceled: Failure,
    /// The builder pod was evicted, and no attempt is left.
    Evicted: Failure,
    /// The builder pod's node was lost or shut down, and no attempt is left.
    NodeLost: Failure,
    /// The builder pod was deleted by somebody, and no attempt is left.
    PodDeleted: Failure,
    /// The cluster does not admit the builder pod or its volume; the message repeats what it says.
    PodRejected: Failure,
    /// The builder pod could not be started; the message repeats what the node says.
    PodFailed: Failure,
    /// The builder's own image cannot be pulled.
    BuilderImageUnavailable: Failure,
    /// The node does not give the builder the sandbox that the spec asks for.
    SandboxUnavailable: Failure,
    /// The operator and the builder do not understand each other: their versions differ too much.
    RequestInvalid: Failure,
    /// A fault in Lapstrake itself; please report it.
    Internal: Failure,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(word: &str) -> Result<Self, UnknownReason> {
        Self::ALL
            .iter()
            .copied()
            .find(|reason| reason.as_str() == word)
            .ok_or_else(|| UnknownReason(word.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_reads_back_from_its_word() {
        for &reason in Reason::ALL {
            assert_eq!(reason.as_str().parse::<Reason>(), Ok(reason));
        }
        assert_eq!("Odd".parse::<Reason>(), Err(UnknownReason("Odd".into())));
    }

    #[test]
    fn a_reason_is_a_word_that_a_condition_may_have() {
        for reason in Reason::ALL {
            let word = reason.as_str();
            assert!(word.len() <= 128 && word.chars().all(|c| c.is_ascii_alphabetic()), "{word}");
            assert!(word.starts_with(|c: char| c.is_ascii_uppercase()), "{word}");
            assert!(!reason.meaning().is_empty());
        }
    }
}
