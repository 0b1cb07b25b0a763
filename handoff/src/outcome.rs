//! How a builder pod ended: one JSON object in the termination message.

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::limits::OUTCOME_BYTES_MAX;
use crate::platforms::{PlatformResult, SourceFacts};
use crate::request::is_false;

/// How a run ended.
///
/// Encoded it never exceeds [`OUTCOME_BYTES_MAX`]; see [`Outcome::encode`] for
/// what is shortened first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// The image exists where it was asked for.
    Success(Success),
    /// It does not.
    Failure(Failure),
}

/// An image that was built and pushed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Success {
    /// Digest of the manifest (or index) that was pushed.
    pub digest: String,
    /// Digest of the image's config: its id.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub config_digest: String,
    /// Media type of what `digest` names.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// Bytes of config and compressed layers together.
    #[serde(default)]
    pub size_bytes: u64,
    /// Bytes of the manifest itself, as an index must state them.
    #[serde(default)]
    pub manifest_bytes: u64,
    /// Platform that was built, `os/arch[/variant]`; of several the first.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub platform: String,
    /// Each platform of the image; with several, `digest` names the index over them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<PlatformResult>,
    /// Full names with their placeholders filled in: pushed, unless the request said `push_by_digest`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Names of the request that were left out, since a placeholder had no value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names_left_out: Vec<String>,
    /// What is known of the source's revision; goes into an index request as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<SourceFacts>,
    /// What the source was resolved to: commit id, or digest of the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Base images by the name in the Dockerfile and the digest found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub base_images: Vec<BaseImage>,
    /// Steps of the graph that this build needed.
    #[serde(default)]
    pub steps: u32,
    /// How many of them came from the cache.
    #[serde(default)]
    pub cached_steps: u32,
    /// Where the time went.
    #[serde(default)]
    pub timings: Timings,
    /// Bytes on the disk that the state folder takes when the builder ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_bytes: Option<u64>,
}

/// A base image and what its name meant at the time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BaseImage {
    /// Reference, as written.
    pub name: String,
    /// Digest it resolved to.
    pub digest: String,
    /// True: the Dockerfile names it by this digest.
    #[serde(default, skip_serializing_if = "is_false")]
    pub pinned: bool,
}

/// Where a run's time went, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Timings {
    /// Fetching the context.
    #[serde(default)]
    pub source_ms: u64,
    /// Running the graph, pulls included.
    #[serde(default)]
    pub solve_ms: u64,
    /// Diffing, compressing and assembling.
    #[serde(default)]
    pub export_ms: u64,
    /// Pushing.
    #[serde(default)]
    pub push_ms: u64,
}

/// Why there is no image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// One word for machines and for the STATUS column.
    pub reason: Reason,
    /// True when the same run may succeed if it is tried again.
    #[serde(default)]
    pub retryable: bool,
    /// One sentence for people; names the object.
    #[serde(default)]
    pub message: String,
    /// The step's name as progress shows it, `[build 2/4] RUN make`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Dockerfile the step stands in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Line in it, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Column in it, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
    /// What the step's command returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The step's last lines of output; of a mistake in the Dockerfile its lines, marked.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub excerpt: String,
    /// The platform that failed, where several were built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Steps that were started before the failure.
    #[serde(default)]
    pub steps: u32,
    /// How many of them came from the cache.
    #[serde(default)]
    pub cached_steps: u32,
    /// Bytes on the disk that the state folder takes when the builder ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_bytes: Option<u64>,
}

/// Why a build failed, as one word that a person understands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// The Dockerfile does not parse or cannot be built as written.
    DockerfileInvalid,
    /// The Dockerfile uses something that this builder does not have yet.
    NotSupported,
    /// A step's command returned something other than 0.
    StepFailed,
    /// Repository, revision, path or file does not exist.
    SourceNotFound,
    /// The source's server refused us.
    SourceDenied,
    /// What was fetched does not have the checksum that was asked for.
    ChecksumMismatch,
    /// The source's server did not answer.
    SourceUnavailable,
    /// A step requires a secret or an SSH agent that the build was not given.
    SecretNotFound,
    /// A base image does not exist, or not for this platform.
    ImageNotFound,
    /// The registry refused a pull.
    PullDenied,
    /// The registry refused the push.
    PushDenied,
    /// A registry did not answer, or answered 5xx or 429 until we gave up.
    RegistryUnavailable,
    /// The state volume is full.
    DiskFull,
    /// A step or the builder was killed for its memory.
    OutOfMemory,
    /// `timeout` passed.
    TimedOut,
    /// Somebody asked for it to stop.
    Canceled,
    /// The pod is not the sandbox that the request names.
    SandboxUnavailable,
    /// Another builder holds the state folder.
    StateBusy,
    /// The request could not be read.
    RequestInvalid,
    /// A mistake of ours; also any reason that this side does not know.
    #[default]
    #[serde(other)]
    Internal,
}

/// Whose turn it is after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The user must change something.
    User,
    /// Something that was named does not exist.
    NotFound,
    /// Somebody said no.
    Denied,
    /// The world was not ready; the same again may do.
    Unavailable,
    /// More memory or disk is needed.
    Resources,
    /// Time was up.
    TimedOut,
    /// Asked to stop.
    Canceled,
    /// The cluster does not give the sandbox.
    Sandbox,
    /// A mistake of ours.
    Bug,
}

impl Class {
    /// What the builder's process returns. Stable; 125 and up are left to runtimes.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Bug => 1,
            Self::User => 10,
            Self::NotFound => 11,
            Self::Denied => 12,
            Self::Unavailable => 13,
            Self::Resources => 14,
            Self::TimedOut => 15,
            Self::Canceled => 16,
            Self::Sandbox => 17,
        }
    }

    /// The class behind an exit code, when it is one of ours.
    pub const fn from_exit_code(code: i32) -> Option<Self> {
        Some(match code {
            1 => Self::Bug,
            10 => Self::User,
            11 => Self::NotFound,
            12 => Self::Denied,
            13 => Self::Unavailable,
            14 => Self::Resources,
            15 => Self::TimedOut,
            16 => Self::Canceled,
            17 => Self::Sandbox,
            _ => return None,
        })
    }
}

impl Reason {
    /// All reasons, for tables and docs.
    pub const ALL: [Self; 20] = [
        Self::DockerfileInvalid,
        Self::NotSupported,
        Self::StepFailed,
        Self::SourceNotFound,
        Self::SourceDenied,
        Self::ChecksumMismatch,
        Self::SourceUnavailable,
        Self::SecretNotFound,
        Self::ImageNotFound,
        Self::PullDenied,
        Self::PushDenied,
        Self::RegistryUnavailable,
        Self::DiskFull,
        Self::OutOfMemory,
        Self::TimedOut,
        Self::Canceled,
        Self::SandboxUnavailable,
        Self::StateBusy,
        Self::RequestInvalid,
        Self::Internal,
    ];

    /// Whose turn it is.
    pub const fn class(self) -> Class {
        match self {
            Self::DockerfileInvalid | Self::NotSupported | Self::StepFailed | Self::ChecksumMismatch => {
                Class::User
            }
            Self::SourceNotFound | Self::SecretNotFound | Self::ImageNotFound => Class::NotFound,
            Self::SourceDenied | Self::PullDenied | Self::PushDenied => Class::Denied,
            Self::SourceUnavailable | Self::RegistryUnavailable | Self::StateBusy => Class::Unavailable,
            Self::DiskFull | Self::OutOfMemory => Class::Resources,
            Self::TimedOut => Class::TimedOut,
            Self::Canceled => Class::Canceled,
            Self::SandboxUnavailable => Class::Sandbox,
            Self::RequestInvalid | Self::Internal => Class::Bug,
        }
    }

    /// Whether the same run is worth trying again.
    pub const fn retryable(self) -> bool {
        matches!(self.class(), Class::Unavailable)
    }

    /// The word itself.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DockerfileInvalid => "DockerfileInvalid",
            Self::NotSupported => "NotSupported",
            Self::StepFailed => "StepFailed",
            Self::SourceNotFound => "SourceNotFound",
            Self::SourceDenied => "SourceDenied",
            Self::ChecksumMismatch => "ChecksumMismatch",
            Self::SourceUnavailable => "SourceUnavailable",
            Self::SecretNotFound => "SecretNotFound",
            Self::ImageNotFound => "ImageNotFound",
            Self::PullDenied => "PullDenied",
            Self::PushDenied => "PushDenied",
            Self::RegistryUnavailable => "RegistryUnavailable",
            Self::DiskFull => "DiskFull",
            Self::OutOfMemory => "OutOfMemory",
            Self::TimedOut => "TimedOut",
            Self::Canceled => "Canceled",
            Self::SandboxUnavailable => "SandboxUnavailable",
            Self::StateBusy => "StateBusy",
            Self::RequestInvalid => "RequestInvalid",
            Self::Internal => "Internal",
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Failure {
    /// A failure with the reason's own idea of whether a retry helps.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, retryable: reason.retryable(), message: message.into(), ..Self::default() }
    }
}

impl Outcome {
    /// What the builder's process returns.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Success(_) => 0,
            Self::Failure(failure) => failure.reason.class().exit_code(),
        }
    }

    /// Compact JSON of at most [`OUTCOME_BYTES_MAX`] bytes.
    ///
    /// Too long a success loses base images from the end, then names that were left out, then names, then
    /// the revision; never a digest. Too long a failure loses its excerpt's oldest lines, then
    /// the ends of message, step and file; never reason, place or exit code.
    pub fn encode(&self) -> String {
        let mut kept = self.clone();
        loop {
            let text = serde_json::to_string(&kept).expect("an outcome has string keys only");
            let Some(excess) = text.len().checked_sub(OUTCOME_BYTES_MAX + 1) else {
                return text;
            };
            if !kept.shorten(excess + 1) {
                // Only absurd digests get here; what is left still says how it ended.
                return Self::Failure(Failure::new(Reason::Internal, "outcome does not fit")).encode();
            }
        }
    }

    /// Reads a termination message.
    pub fn parse(text: &str) -> Result<Self, Error> {
        const WHAT: &str = "outcome";
        let text = text.trim();
        if text.is_empty() {
            return Err(Error::Empty);
        }
        if text.len() > OUTCOME_BYTES_MAX {
            return Err(Error::TooLong { what: WHAT, bytes: text.len(), bytes_max: OUTCOME_BYTES_MAX });
        }
        serde_json::from_str(text).map_err(|source| Error::Malformed { what: WHAT, source })
    }

    /// Drops the least needed bytes, about `excess` of them; false when nothing is left to drop.
    fn shorten(&mut self, excess: usize) -> bool {
        match self {
            Self::Success(success) => {
                if success.base_images.pop().is_some()
                    || success.names_left_out.pop().is_some()
                    || success.names.pop().is_some()
                {
                    return true;
                }
                for text in [&mut success.media_type, &mut success.platform] {
                    if text.len() > 128 {
                        text.clear();
                        return true;
                    }
                }
                success.revision.take().is_some()
            }
            Self::Failure(failure) => {
                if !failure.excerpt.is_empty() {
                    drop_oldest(&mut failure.excerpt, excess);
                    return true;
                }
                // A message keeps enough to be understood until all else is gone.
                for text in [Some(&mut failure.message), failure.step.as_mut(), failure.file.as_mut()]
                    .into_iter()
                    .flatten()
                {
                    if text.len() > 512 {
                        drop_end(text, excess, 512);
                        return true;
                    }
                }
                if !failure.message.is_empty() {
                    failure.message.clear();
                    return true;
                }
                failure.step.take().is_some()
                    || failure.file.take().is_some()
                    || failure.platform.take().is_some()
            }
        }
    }
}

/// Cuts about `bytes` from the front, at a line if there is one, else at a character.
fn drop_oldest(text: &mut String, bytes: usize) {
    let mut cut = bytes.min(text.len());
    while !text.is_char_boundary(cut) {
        cut += 1;
    }
    if let Some(newline) = text[cut..].find('\n') {
        cut += newline + 1;
    }
    text.drain(..cut);
}

/// Cuts about `bytes` from the end, marks the cut, and keeps at most what fits,
/// at least `bytes_min`.
fn drop_end(text: &mut String, bytes: usize, bytes_min: usize) {
    const MARK: &str = "…";
    let mut cut = text.len().saturating_sub(bytes + MARK.len()).max(bytes_min - MARK.len());
    while !text.is_char_boundary(cut) {
        cut -= 1;
    }
    text.truncate(cut);
    text.push_str(MARK);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn failure(message: String, excerpt: String) -> Outcome {
        Outcome::Failure(Failure {
            message,
            excerpt,
            step: Some("[build 2/4] RUN make".to_owned()),
            file: Some("Dockerfile".to_owned()),
            line: Some(7),
            exit_code: Some(2),
            ..Failure::new(Reason::StepFailed, "")
        })
    }

    #[test]
    fn a_long_excerpt_keeps_its_last_lines() {
        let excerpt: String = (0..1000).map(|n| format!("line {n}\n")).collect();
        let text = failure("make returned 2".to_owned(), excerpt).encode();
        assert!(text.len() <= OUTCOME_BYTES_MAX);
        let Outcome::Failure(read) = Outcome::parse(&text).unwrap() else {
            panic!("a failure reads back as a failure");
        };
        assert!(read.excerpt.ends_with("line 999\n"), "{}", read.excerpt);
        assert!(read.excerpt.starts_with("line "), "cut at a line");
        assert_eq!(read.message, "make returned 2");
        assert_eq!((read.line, read.exit_code), (Some(7), Some(2)));
    }

    #[test]
    fn too_many_base_images_never_cost_the_digest() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let base = BaseImage {
            name: "registry.example/base/image:tag".to_owned(),
            digest: digest.clone(),
            pinned: false,
        };
        let outcome = Outcome::Success(Success {
            digest: digest.clone(),
            base_images: vec![base; 200],
            platforms: vec![PlatformResult { digest: digest.clone(), ..PlatformResult::default() }; 12],
            names: vec!["registry.example/a/b:c".to_owned(); 100],
            steps: 40,
            ..Success::default()
        });
        let text = outcome.encode();
        assert!(text.len() <= OUTCOME_BYTES_MAX);
        let Outcome::Success(read) = Outcome::parse(&text).unwrap() else {
            panic!("a success reads back as a success");
        };
        assert_eq!(read.digest, digest);
        assert_eq!(read.steps, 40);
        assert_eq!(read.platforms.len(), 12);
        assert!(!read.names.is_empty(), "as many as fit are kept");
    }

    #[test]
    fn a_reason_of_a_newer_builder_is_still_a_failure() {
        let text = r#"{"failure":{"reason":"MoonPhaseWrong","message":"no"}}"#;
        let Outcome::Failure(read) = Outcome::parse(text).unwrap() else {
            panic!("a failure");
        };
        assert_eq!(read.reason, Reason::Internal);
        assert_eq!(read.message, "no");
    }

    #[test]
    fn every_reason_has_an_exit_code_that_leads_back_to_its_class() {
        for reason in Reason::ALL {
            let class = reason.class();
            assert_eq!(Class::from_exit_code(class.exit_code().into()), Some(class), "{reason}");
            assert_ne!(class.exit_code(), 0, "{reason}");
            assert_eq!(serde_json::to_string(&reason).unwrap(), format!("\"{reason}\""));
        }
    }

    proptest! {
        #[test]
        fn an_encoded_failure_always_fits_and_keeps_its_reason(
            message in "\\PC{0,6000}", excerpt in "(?s).{0,6000}",
        ) {
            let text = failure(message, excerpt).encode();
            prop_assert!(text.len() <= OUTCOME_BYTES_MAX, "{}", text.len());
            let Outcome::Failure(read) = Outcome::parse(&text).unwrap() else {
                panic!("a failure");
            };
            prop_assert_eq!(read.reason, Reason::StepFailed);
            prop_assert_eq!(read.line, Some(7));
        }
    }
}
