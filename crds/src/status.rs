//! What came of an `ImageBuild`.
//!
//! Written by the operator alone, and only when something changed: nothing in here ticks.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::conditions::ConditionType;
use crate::pod::Sandbox;
use crate::queue::QueueStatus;

/// What came of the ImageBuild: the image, and how its last run went.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageBuildStatus {
    /// Generation of the spec that this status speaks of; -1 until the operator has seen the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready` (True: the image is in the registry; Unknown: it is being built; False: it is not
    /// there), `Reconciling` and `Stalled` (present only while True) and `Succeeded` (how the last
    /// run ended), in kstatus' meaning.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
    /// Reason of the condition `Ready`, repeated so that objects can be selected by it:
    /// `kubectl get ib --field-selector status.reason=StepFailed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub reason: Option<String>,
    /// The last image that was pushed, as repository@digest: what to deploy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub image: Option<String>,
    /// Digest of that image (of its index, for several platforms).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub digest: Option<String>,
    /// Full names that the image was pushed under, with their placeholders filled in; the first 64 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 1024)), extend("x-kubernetes-list-type" = "set"))]
    pub names: Vec<String>,
    /// Names that the image was not pushed under, since the source has no value for a placeholder of their tag.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 1024)), extend("x-kubernetes-list-type" = "set"))]
    pub names_left_out: Vec<String>,
    /// What the columns of `kubectl get` print. Programs read the fields that it is made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
    /// The last run: the one under way, or the one that ended last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunStatus>,
    /// What made the last run start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<Why>,
    /// What moved, if that made the last run start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
    /// What is known of what `spec.follow` follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow: Option<FollowStatus>,
    /// Images of other ImageBuilds, by the contexts of the spec that are theirs, that the last run was started with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub contexts: Vec<ContextStatus>,
    /// What the source resolved to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceStatus>,
    /// Sandbox that the last run was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<Sandbox>,
    /// How the last run went on each platform.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["platform"])
    )]
    pub platforms: Vec<PlatformStatus>,
    /// How the last run went about joining its platforms into one image; absent where one pod built
    /// all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<IndexStatus>,
    /// Images that the last run built upon, by the digest that they had then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["image"])
    )]
    pub base_images: Vec<BaseImageStatus>,
    /// When the last run started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the last run ended; absent while it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// How long the last run took, in milliseconds; absent while it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_milliseconds: Option<i64>,
    /// What went wrong in the last run; absent unless it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// Past runs, the newest first, at most as many as `spec.history.limit`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50), extend("x-kubernetes-list-type" = "atomic"))]
    pub history: Vec<HistoryEntry>,
    /// Value of the annotation `reconcile.fluxcd.io/requestedAt` that was acted on last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub last_handled_reconcile_at: Option<String>,
    /// Value of the annotation `reconcile.fluxcd.io/forceAt` that was acted on last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub last_handled_force_at: Option<String>,
    /// Value of the annotation `lapstrake.dev/rebuild` that was acted on last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub last_handled_rebuild: Option<String>,
}

impl ImageBuildStatus {
    /// The condition of this type, if it is there.
    pub fn condition(&self, of: ConditionType) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.type_ == of.as_str())
    }
}

/// What the columns of `kubectl get` print.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// The first twelve digits of the digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub digest: Option<String>,
    /// The platforms, separated by commas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub platforms: Option<String>,
    /// How long the last run took, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub duration: Option<String>,
}

/// One run: everything between a reason to build and a result. A run has one attempt, or more if
/// something other than the build broke it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunStatus {
    /// Name of the run: a hash of what it was asked to build. It is a label of the run's pods.
    #[schemars(length(max = 64))]
    pub id: String,
    /// Generation of the spec that the run builds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// How it got through the operator's queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueStatus>,
    /// Name of all that decides what is built, whatever the platform: what another platform built
    /// under the same name still stands when a run is asked for again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub inputs: Option<String>,
    /// Revision of the source that the first platform was built from, and that the others have to be of;
    /// absent where one pod builds all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub revision: Option<String>,
    /// Number of the attempt, from 1; of several platforms the highest.
    pub attempt: u32,
    /// How many of the attempts before this one broke before their builder started. They do not count
    /// against `spec.retries`. Of several platforms the highest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncounted_attempts: Option<u32>,
    /// When the next attempt starts, after one that broke; of several platforms the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<Time>,
    /// Why the last attempt that broke did so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub last_attempt_message: Option<String>,
}

/// What made a run start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Why {
    /// The ImageBuild is new.
    Created,
    /// The spec changed.
    SpecChanged,
    /// The branch or tag that is followed moved.
    SourceChanged,
    /// A base image that is followed moved.
    BaseImageChanged,
    /// An ImageBuild that is a context of this one pushed another image.
    ContextChanged,
    /// A new run was asked for by annotation.
    Requested,
}

impl Why {
    /// The word as written in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "Created",
            Self::SpecChanged => "SpecChanged",
            Self::SourceChanged => "SourceChanged",
            Self::BaseImageChanged => "BaseImageChanged",
            Self::ContextChanged => "ContextChanged",
            Self::Requested => "Requested",
        }
    }
}

/// The image of another ImageBuild that a run was started with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ContextStatus {
    /// Name of the context.
    #[schemars(length(max = 256))]
    pub name: String,
    /// Name of the other ImageBuild.
    #[schemars(length(max = 253))]
    pub build: String,
    /// Its image, by digest.
    #[schemars(length(max = 1024))]
    pub image: String,
}

/// Something that moved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// The branch or tag with its repository, as in `https://git.example/web.git#main`, or the image, or the other
    /// ImageBuild.
    #[schemars(length(max = 2560))]
    pub name: String,
    /// The commit or digest that was built before; absent if nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub from: Option<String>,
    /// The commit or digest that it was found at.
    #[schemars(length(max = 256))]
    pub to: String,
}

/// What is known of what `spec.follow` follows. Nothing in it ticks: it changes when a run starts, or when following
/// stops or begins to work.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FollowStatus {
    /// The branch or tag that is followed, and the commit that the last run was started for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<FollowedSource>,
    /// Base images by the digest that the last run was started for, where it was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["image"])
    )]
    pub base_images: Vec<BaseImageStatus>,
    /// Why something cannot be followed now; absent if all can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub problem: Option<String>,
}

/// A branch or tag, and the commit that it was found at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FollowedSource {
    /// The branch or tag with its repository, as in `https://git.example/web.git#main`.
    #[schemars(length(max = 2560))]
    pub name: String,
    /// The commit.
    #[schemars(length(max = 64))]
    pub revision: String,
}

/// What the source resolved to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// The id of the commit, or the digest of the download or of the inline files.
    #[schemars(length(max = 1024))]
    pub revision: String,
    /// The commit's time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
    /// The branch that the commit was found on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub branch: Option<String>,
    /// The tag of the commit: the one that was asked for, or the one with the highest version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub tag: Option<String>,
}

/// How the last run went on one platform.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlatformStatus {
    /// The platform, such as `linux/amd64`.
    #[schemars(length(max = 64))]
    pub platform: String,
    /// What the build is doing on this platform, or why it ended as it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub reason: Option<String>,
    /// The same in a sentence, where several pods build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// Architecture of the nodes that it is built on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub architecture: Option<String>,
    /// True where the steps of this platform are emulated, since its nodes are of another architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emulated: Option<bool>,
    /// Number of the attempt on this platform, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// How many of the attempts before this one count against `spec.retries`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    /// How many of the attempts before this one broke before their builder started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncounted_attempts: Option<u32>,
    /// When the next attempt starts, after one that broke.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<Time>,
    /// Run that built this platform, if it was an earlier one, whose work still stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub kept_from: Option<String>,
    /// What the source resolved to when this platform was built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub revision: Option<String>,
    /// Digest of this platform's image manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub digest: Option<String>,
    /// Media type of that manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub media_type: Option<String>,
    /// Bytes of that manifest itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_bytes: Option<i64>,
    /// Digest of the manifest of what is attested of this platform's image, where an index pod joins them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub attestation_digest: Option<String>,
    /// Bytes of that manifest itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attestation_bytes: Option<i64>,
    /// Sum of the image's layers and config as they lie in the registry, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<i64>,
    /// Node that it was built on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node: Option<String>,
    /// Pod that built it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub pod: Option<String>,
    /// When the builder started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Time>,
    /// When the builder ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Time>,
    /// Steps that the image is made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u32>,
    /// How many of them were found in the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_steps: Option<u32>,
    /// Where the time went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
}

/// How the last run went about joining its platforms: one short pod that pushes the index and its tags,
/// once every platform is in the registry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IndexStatus {
    /// What it is doing or waiting for, or why it ended as it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub reason: Option<String>,
    /// The same in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// Number of the attempt, from 1.
    pub attempt: u32,
    /// How many of the attempts before this one count against `spec.retries`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    /// How many of the attempts before this one broke before their builder started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncounted_attempts: Option<u32>,
    /// When the next attempt starts, after one that broke.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<Time>,
    /// Node that it ran on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node: Option<String>,
    /// Pod that does it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub pod: Option<String>,
    /// When it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Time>,
}

/// Where the time of a run went, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Timings {
    /// From the reason to build until the pod was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_milliseconds: Option<i64>,
    /// From then until the pod was on a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled_milliseconds: Option<i64>,
    /// From then until the builder ran: pulling its image, mounting volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_milliseconds: Option<i64>,
    /// Fetching the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_milliseconds: Option<i64>,
    /// Running the steps, pulling base images included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub solve_milliseconds: Option<i64>,
    /// Packing the layers and pushing the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push_milliseconds: Option<i64>,
}

/// An image that the run built upon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BaseImageStatus {
    /// Name as the Dockerfile has it.
    #[schemars(length(max = 512))]
    pub image: String,
    /// Digest that the name stood for.
    #[schemars(length(max = 256))]
    pub digest: String,
    /// Whether the Dockerfile names it by this digest, so that it never moves.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
}

/// What went wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// What kind of thing went wrong, such as `StepFailed`.
    #[schemars(length(max = 128))]
    pub reason: String,
    /// What went wrong, in a sentence.
    #[schemars(length(max = 4096))]
    pub message: String,
    /// Platform that it went wrong on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub platform: Option<String>,
    /// Step that failed, as in `[build 2/4] RUN make`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub step: Option<String>,
    /// File that the fault is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub file: Option<String>,
    /// Line of that file, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Column of that line, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
    /// Exit code of the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The last lines that the step wrote; of a mistake in the Dockerfile its lines, marked, and what to write instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub excerpt: Option<String>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RunResult {
    /// The image was pushed.
    Succeeded,
    /// It was not.
    Failed,
    /// It was stopped by the user, or a newer spec took its place.
    Canceled,
}

/// A past run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEntry {
    /// Name of the run.
    #[schemars(length(max = 64))]
    pub run: String,
    /// How it ended.
    pub result: RunResult,
    /// Why it ended so, as a word.
    #[schemars(length(max = 128))]
    pub reason: String,
    /// Why it ended so, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// What made it start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<Why>,
    /// What moved, if that made it start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
    /// Generation of the spec that it built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// What the source had resolved to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub revision: Option<String>,
    /// Digest of the image that it pushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub digest: Option<String>,
    /// How many attempts it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// When it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// How long it took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_milliseconds: Option<i64>,
}
