//! What status remembers of one part of a run: all that the next pass needs to go on with it.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use lapstrake_crds::{ImageBuildStatus, IndexStatus, PlatformStatus, Reason, ReasonKind, Timings};
use lapstrake_handoff::{PlatformResult, Success};

use crate::observe::{Container, PodFacts};
use crate::plan::ending::{Broken, Retry};
use crate::plan::parts::{Kind, Part};
use crate::plan::status::cut;

/// Name of the platform while the builder has not said which it is.
pub(super) const PLATFORM_UNKNOWN: &str = "default";
/// Longest message of a part.
const MESSAGE_CHARS_MAX: usize = 1024;

/// Where a part stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Share {
    /// Attempt under way or next, from 1.
    pub attempt: u32,
    /// Attempts that count against `spec.retries`.
    pub retries: u32,
    /// Attempts whose builder never started.
    pub uncounted: u32,
    /// When the next attempt starts.
    pub retry_after: Option<Timestamp>,
    /// Pod that was made for this attempt.
    pub pod: Option<String>,
    /// Whether all that it has to push is pushed.
    pub done: bool,
    /// Why it has failed for good.
    pub failed: Option<Reason>,
}

/// Entries of the platforms that a part builds.
fn entries<'a>(
    status: &'a mut ImageBuildStatus,
    part: &'a Part,
) -> impl Iterator<Item = &'a mut PlatformStatus> {
    // Without platforms in the spec there is one entry, whose name the builder tells.
    let any = part.platforms.is_empty();
    status.platforms.iter_mut().filter(move |entry| any || part.platforms.contains(&entry.platform))
}

/// The same, to look at.
fn mine<'a>(status: &'a ImageBuildStatus, part: &'a Part) -> impl Iterator<Item = &'a PlatformStatus> {
    let any = part.platforms.is_empty();
    status.platforms.iter().filter(move |entry| any || part.platforms.contains(&entry.platform))
}

/// What was last said of a part, as a word.
pub(super) fn reason(status: &ImageBuildStatus, part: &Part) -> Option<String> {
    match part.kind {
        Kind::Build => mine(status, part).next()?.reason.clone(),
        Kind::Index => status.index.as_ref()?.reason.clone(),
    }
}

/// What was last said of a part, in a sentence.
pub(super) fn message(status: &ImageBuildStatus, part: &Part) -> Option<String> {
    match part.kind {
        Kind::Build => mine(status, part).next()?.message.clone(),
        Kind::Index => status.index.as_ref()?.message.clone(),
    }
}

fn failed(reason: Option<&str>) -> Option<Reason> {
    reason?.parse().ok().filter(|reason: &Reason| reason.kind() == ReasonKind::Failure)
}

/// Where `part` stands.
pub(super) fn of(status: &ImageBuildStatus, part: &Part) -> Share {
    let first = status.run.as_ref().map_or(1, |run| run.attempt);
    if part.kind == Kind::Index {
        let Some(index) = &status.index else {
            return Share { attempt: first, ..Share::default() };
        };
        return Share {
            attempt: index.attempt,
            retries: index.retries.unwrap_or_default(),
            uncounted: index.uncounted_attempts.unwrap_or_default(),
            retry_after: index.retry_after.as_ref().map(|time| time.0),
            pod: index.pod.clone(),
            done: false,
            failed: failed(index.reason.as_deref()),
        };
    }
    let done = mine(status, part).all(|entry| entry.digest.is_some());
    let Some(entry) = mine(status, part).next() else {
        return Share { attempt: first, ..Share::default() };
    };
    Share {
        attempt: entry.attempt.unwrap_or(first),
        retries: entry.retries.unwrap_or_default(),
        uncounted: entry.uncounted_attempts.unwrap_or_default(),
        retry_after: entry.retry_after.as_ref().map(|time| time.0),
        pod: entry.pod.clone(),
        done,
        failed: failed(entry.reason.as_deref()),
    }
}

/// Says what a part is doing; in a sentence too, where there are several.
pub(super) fn say(status: &mut ImageBuildStatus, part: &Part, reason: Reason, message: &str) {
    let message = (!part.whole).then(|| cut(message, MESSAGE_CHARS_MAX));
    if part.kind == Kind::Index {
        if let Some(index) = &mut status.index {
            (index.reason, index.message) = (Some(reason.as_str().to_owned()), message);
        }
        return;
    }
    for entry in entries(status, part) {
        (entry.reason, entry.message) = (Some(reason.as_str().to_owned()), message.clone());
    }
}

/// Puts what is known of the pod into a part's entries.
pub(super) fn record_pod(status: &mut ImageBuildStatus, part: &Part, pod: &PodFacts) {
    let start = status.start_time.as_ref().map(|time| time.0);
    let (started, finished) = match &pod.container {
        Container::Running { since } => (*since, None),
        Container::Ended(ended) => (ended.started, ended.finished),
        Container::Unseen | Container::Waiting(_) => (None, None),
    };
    if part.kind == Kind::Index {
        let index = status.index.get_or_insert_default();
        index.pod = Some(pod.name.clone());
        index.node = pod.node.clone();
        index.retry_after = None;
        (index.started, index.finished) = (started.map(Time), finished.map(Time));
        return;
    }
    let milliseconds = |from: Option<Timestamp>, to: Option<Timestamp>| {
        let length = to?.duration_since(from?).as_millis();
        i64::try_from(length).ok().map(|length| length.max(0))
    };
    for entry in entries(status, part) {
        entry.pod = Some(pod.name.clone());
        entry.node = pod.node.clone();
        entry.retry_after = None;
        (entry.started, entry.finished) = (started.map(Time), finished.map(Time));
        // Only once the builder runs: before, each step of the way would be a write.
        if started.is_some() {
            let timings = entry.timings.get_or_insert_default();
            timings.queued_milliseconds = milliseconds(start, pod.created);
            timings.scheduled_milliseconds = milliseconds(pod.created, pod.scheduled);
            timings.started_milliseconds = milliseconds(pod.scheduled, started);
        }
    }
}

/// The pod of this attempt goes unused, and another is made for it.
pub(super) fn forget_pod(status: &mut ImageBuildStatus, part: &Part) {
    if part.kind == Kind::Index {
        return status.index.iter_mut().for_each(|index| index.pod = None);
    }
    entries(status, part).for_each(|entry| entry.pod = None);
}

/// The platforms of a part are in the registry.
pub(super) fn succeed(status: &mut ImageBuildStatus, part: &Part, success: &Success) {
    let milliseconds = |value: u64| i64::try_from(value).ok();
    let single = PlatformResult {
        platform: success.platform.clone(),
        digest: success.digest.clone(),
        manifest_bytes: success.manifest_bytes,
        media_type: success.media_type.clone(),
        size_bytes: success.size_bytes,
        attestation: None,
    };
    let count = part.platforms.len().max(1);
    for entry in entries(status, part) {
        let told = if count == 1 {
            Some(success.platforms.first().filter(|_| success.platforms.len() == 1).unwrap_or(&single))
        } else {
            told_of(success, part, &entry.platform)
        };
        // Left open, it would be built again and again: what was not told counts as the whole.
        let result = told.unwrap_or(&single);
        if part.platforms.is_empty() && !success.platform.is_empty() {
            entry.platform = cut(&success.platform, 64);
        }
        entry.digest = Some(cut(&result.digest, 256));
        entry.media_type = Some(cut(&result.media_type, 128)).filter(|_| !part.whole);
        entry.manifest_bytes = i64::try_from(result.manifest_bytes).ok().filter(|_| !part.whole);
        let attestation = result.attestation.as_ref().filter(|_| !part.whole);
        entry.attestation_digest = attestation.map(|of| cut(&of.digest, 256));
        entry.attestation_bytes = attestation.and_then(|of| i64::try_from(of.bytes).ok());
        entry.size_bytes = i64::try_from(result.size_bytes).ok();
        entry.steps = Some(success.steps);
        entry.cached_steps = Some(success.cached_steps);
        entry.revision = success.revision.as_deref().map(|text| cut(text, 1024)).filter(|_| !part.whole);
        (entry.reason, entry.message) = (Some(Reason::Succeeded.as_str().to_owned()), None);
        let timings = entry.timings.get_or_insert_with(Timings::default);
        timings.source_milliseconds = milliseconds(success.timings.source_ms);
        timings.solve_milliseconds = milliseconds(success.timings.solve_ms);
        timings.push_milliseconds = milliseconds(success.timings.export_ms + success.timings.push_ms);
    }
}

/// What the builder told of one of several platforms: by its name, or else by its place in the request.
fn told_of<'a>(success: &'a Success, part: &Part, platform: &str) -> Option<&'a PlatformResult> {
    success.platforms.iter().find(|one| one.platform == platform).or_else(|| {
        let place = part.platforms.iter().position(|one| one == platform)?;
        success.platforms.get(place).filter(|_| success.platforms.len() == part.platforms.len())
    })
}

/// An attempt broke, and another follows after `wait`.
pub(super) fn retry(
    status: &mut ImageBuildStatus,
    part: &Part,
    share: &Share,
    broken: &Broken,
    due: Timestamp,
) {
    let next = Share {
        attempt: share.attempt + 1,
        retries: share.retries + u32::from(broken.retry == Retry::Counted),
        uncounted: share.uncounted + u32::from(broken.retry == Retry::Free),
        retry_after: Some(due),
        ..Share::default()
    };
    if let Some(run) = &mut status.run {
        let who = if part.whole { String::new() } else { format!("{}: ", part.told()) };
        let message = format!("{who}{}: {}", broken.reason, broken.message);
        run.last_attempt_message = Some(cut(&message, MESSAGE_CHARS_MAX));
    }
    again(status, part, &next);
}

/// Empties a part's entries for another attempt.
pub(super) fn again(status: &mut ImageBuildStatus, part: &Part, next: &Share) {
    let some = |count: u32| (count > 0).then_some(count);
    let after = next.retry_after.map(Time);
    if part.kind == Kind::Index {
        status.index = Some(IndexStatus {
            attempt: next.attempt,
            retries: some(next.retries),
            uncounted_attempts: some(next.uncounted),
            retry_after: after,
            ..IndexStatus::default()
        });
        return;
    }
    for entry in entries(status, part) {
        *entry = PlatformStatus {
            platform: entry.platform.clone(),
            architecture: entry.architecture.clone(),
            emulated: entry.emulated,
            attempt: Some(next.attempt),
            retries: some(next.retries),
            uncounted_attempts: some(next.uncounted),
            retry_after: after.clone(),
            ..PlatformStatus::default()
        };
    }
}

/// A part has failed for good.
pub(super) fn fail(status: &mut ImageBuildStatus, part: &Part, broken: &Broken, message: &str) {
    say(status, part, broken.reason, message);
    if part.kind == Kind::Index {
        return;
    }
    for entry in entries(status, part) {
        entry.retry_after = None;
        if let Some(detail) = &broken.detail {
            entry.steps = Some(detail.steps);
            entry.cached_steps = Some(detail.cached_steps);
        }
    }
}

/// A part is given up, since the run has failed without it.
pub(super) fn stop(status: &mut ImageBuildStatus, part: &Part, message: &str) {
    for entry in entries(status, part) {
        entry.pod = None;
        entry.retry_after = None;
    }
    say(status, part, Reason::Canceled, message);
}

/// From now on a part is built on nodes of another architecture, under the next attempt's number.
pub(super) fn move_to(status: &mut ImageBuildStatus, part: &Part, share: &Share, architecture: &str) {
    let next = Share { attempt: share.attempt + 1, pod: None, retry_after: None, ..share.clone() };
    again(status, part, &next);
    let moved = Part { architecture: Some(architecture.to_owned()), ..part.clone() };
    place(status, &moved);
}

/// Says where a part is built.
pub(super) fn place(status: &mut ImageBuildStatus, part: &Part) {
    for entry in entries(status, part) {
        entry.architecture = part.architecture.clone();
        entry.emulated = part.emulates(&entry.platform).then_some(true);
    }
}

/// Wait after the attempt with this number.
pub(super) fn backoff(attempt: u32) -> Duration {
    use crate::settings::limits::{BACKOFF_MAX, BACKOFF_MIN};
    let factor = 1_u32 << attempt.saturating_sub(1).min(16);
    BACKOFF_MIN.saturating_mul(factor).min(BACKOFF_MAX)
}
