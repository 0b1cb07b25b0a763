//! What the status says, by kstatus' rules.
//!
//! `Ready` is always there; `Reconciling` or `Stalled` only while true and never both; `Succeeded`
//! says how the last run ended. A transition time moves only with its status.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use lapstrake_crds::{
    BaseImageStatus, ConditionType, Failure, FollowStatus, HistoryEntry, ImageBuild, ImageBuildStatus,
    Reason, ReasonKind, RunResult, SourceStatus, Summary, Timings,
};
use lapstrake_handoff::Success;

use crate::plan::ending::Broken;
use crate::plan::share::PLATFORM_UNKNOWN;

/// Longest message of a condition that is written.
const MESSAGE_CHARS_MAX: usize = 4096;
/// Names of the image that status has.
const NAMES_MAX: usize = 64;
/// Base images that status names.
const BASE_IMAGES_MAX: usize = 64;

/// The first `chars_max` characters, marked if there were more.
pub(super) fn cut(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    text.chars().take(chars_max.saturating_sub(1)).chain(['…']).collect()
}

/// Whether the last run succeeded.
pub(super) fn succeeded(status: &ImageBuildStatus) -> bool {
    status.condition(ConditionType::Succeeded).is_some_and(|condition| condition.status == "True")
}

/// Whether the last run was canceled.
pub(super) fn canceled(status: &ImageBuildStatus) -> bool {
    status
        .condition(ConditionType::Succeeded)
        .is_some_and(|condition| condition.status == "False" && condition.reason == Reason::Canceled.as_str())
}

/// Sets conditions and reason.
pub(super) fn say(status: &mut ImageBuildStatus, reason: Reason, message: &str, now: Timestamp) {
    let (ready, other, succeeded) = match reason.kind() {
        ReasonKind::Waiting | ReasonKind::Working => ("Unknown", Some(ConditionType::Reconciling), "Unknown"),
        ReasonKind::Success => ("True", None, "True"),
        ReasonKind::Failure => ("False", Some(ConditionType::Stalled), "False"),
    };
    let wanted = [
        Some((ConditionType::Ready, ready)),
        other.map(|other| (other, "True")),
        Some((ConditionType::Succeeded, succeeded)),
    ];
    let old = std::mem::take(&mut status.conditions);
    status.conditions = wanted
        .into_iter()
        .flatten()
        .map(|(kind, value)| {
            let same = old.iter().find(|one| one.type_ == kind.as_str() && one.status == value);
            Condition {
                type_: kind.as_str().to_owned(),
                status: value.to_owned(),
                reason: reason.as_str().to_owned(),
                message: cut(message, MESSAGE_CHARS_MAX),
                observed_generation: status.observed_generation,
                last_transition_time: same.map_or(Time(now), |same| same.last_transition_time.clone()),
            }
        })
        .collect();
    status.reason = Some(reason.as_str().to_owned());
}

/// Says that the conditions hold for the present generation too.
pub(super) fn observe_generation(status: &mut ImageBuildStatus) {
    for condition in &mut status.conditions {
        condition.observed_generation = status.observed_generation;
    }
}

/// The image is in the registry.
pub(super) fn succeed(status: &mut ImageBuildStatus, build: &ImageBuild, success: &Success, now: Timestamp) {
    let image = format!("{}@{}", build.spec.output.repository(), success.digest);
    let platforms: Vec<_> = status.platforms.iter().map(|entry| entry.platform.as_str()).collect();
    let platforms = platforms.join(",");
    status.summary = Some(Summary {
        digest: Some(short(&success.digest)),
        platforms: Some(cut(&platforms, 1024)).filter(|name| name != PLATFORM_UNKNOWN),
        duration: None,
    });
    // The pod that only joined what others built knows nothing of the source.
    if status.index.is_none() {
        status.source = None;
        source(status, success);
        status.base_images.clear();
        base_images(status, success);
    }
    if let Some(index) = &mut status.index {
        (index.reason, index.message) = (Some(Reason::Succeeded.as_str().to_owned()), None);
    }
    status.names = names(&success.names);
    status.names_left_out = names(&success.names_left_out);
    status.failure = None;
    status.digest = Some(cut(&success.digest, 256));
    status.image = Some(cut(&image, 1024));
    close(status, RunResult::Succeeded, Reason::Succeeded, &format!("pushed {image}"), now, build);
    say(status, Reason::Succeeded, &format!("pushed {image}"), now);
}

/// As many of these names as status has room for.
fn names(all: &[String]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let fits = |name: &&String| name.len() <= 1024 && seen.insert((*name).clone());
    all.iter().filter(fits).take(NAMES_MAX).cloned().collect()
}

/// What the source resolved to, as one of those who looked says.
pub(super) fn source(status: &mut ImageBuildStatus, success: &Success) {
    let Some(revision) = &success.revision else {
        return;
    };
    let agreed = status.run.as_ref().and_then(|run| run.revision.as_ref());
    if agreed.is_some_and(|agreed| agreed != revision) {
        return;
    }
    let facts = success.facts.clone().unwrap_or_default();
    let before = status.source.take().filter(|before| before.revision == *revision).unwrap_or_default();
    status.source = Some(SourceStatus {
        revision: cut(revision, 1024),
        time: facts.time.and_then(|time| Timestamp::from_second(time).ok()).map(Time).or(before.time),
        // Who was asked for a commit does not know the branch.
        branch: facts.branch.map(|name| cut(&name, 1024)).or(before.branch),
        tag: facts.tag.map(|name| cut(&name, 1024)).or(before.tag),
    });
}

/// Base images that one more part was built upon. Each once: the name is a key.
pub(super) fn base_images(status: &mut ImageBuildStatus, success: &Success) {
    let fresh = success.base_images.iter().map(|base| BaseImageStatus {
        image: cut(&base.name, 512),
        digest: cut(&base.digest, 256),
        pinned: base.pinned,
    });
    let mut named = BTreeSet::new();
    let before = std::mem::take(&mut status.base_images);
    status.base_images =
        fresh.chain(before).filter(|base| named.insert(base.image.clone())).take(BASE_IMAGES_MAX).collect();
    status.base_images.sort_by(|one, other| one.image.cmp(&other.image));
}

/// The run has ended without an image.
pub(super) fn fail(
    status: &mut ImageBuildStatus,
    build: &ImageBuild,
    result: RunResult,
    reason: Reason,
    message: &str,
    now: Timestamp,
) {
    close(status, result, reason, message, now, build);
    say(status, reason, message, now);
}

/// The message with its place in the Dockerfile in front, unless it is there already.
pub(super) fn place(failure: &Failure) -> String {
    let place = failure.file.as_ref().zip(failure.line).map(|(file, line)| match failure.column {
        Some(column) => format!("{file}:{line}:{column}"),
        None => format!("{file}:{line}"),
    });
    match place {
        Some(place) if !failure.message.contains(&place) => format!("{place}: {}", failure.message),
        _ => failure.message.clone(),
    }
}

/// What went wrong, for `status.failure`.
pub(super) fn failure(broken: &Broken, platform: Option<String>) -> Failure {
    let detail = broken.detail.as_ref();
    Failure {
        reason: broken.reason.as_str().to_owned(),
        message: cut(&broken.message, 4096),
        platform,
        step: detail.and_then(|detail| detail.step.as_deref()).map(|step| cut(step, 1024)),
        file: detail.and_then(|detail| detail.file.as_deref()).map(|file| cut(file, 1024)),
        line: detail.and_then(|detail| detail.line),
        column: detail.and_then(|detail| detail.column),
        exit_code: detail.and_then(|detail| detail.exit_code),
        excerpt: detail.map(|detail| cut(&detail.excerpt, 4096)).filter(|excerpt| !excerpt.is_empty()),
    }
}

/// Ends the run in status and puts it into the history.
pub(super) fn close(
    status: &mut ImageBuildStatus,
    result: RunResult,
    reason: Reason,
    message: &str,
    now: Timestamp,
    build: &ImageBuild,
) {
    status.completion_time = Some(Time(now));
    status.duration_milliseconds = status.start_time.as_ref().map(|start| {
        // Times in status have whole seconds: what is between them must agree with them.
        (now.as_second() - start.0.as_second()).max(0).saturating_mul(1000)
    });
    let duration = status.duration_milliseconds.map(|length| people(length / 1000));
    status.summary.get_or_insert_default().duration = duration;
    let run = status.run.clone().unwrap_or_default();
    let success = result == RunResult::Succeeded;
    status.history.insert(
        0,
        HistoryEntry {
            run: run.id,
            result,
            reason: reason.as_str().to_owned(),
            message: Some(cut(message, 1024)),
            why: status.why,
            change: status.change.clone(),
            generation: run.generation,
            revision: status.source.as_ref().filter(|_| success).map(|source| source.revision.clone()),
            digest: status.digest.clone().filter(|_| success),
            attempts: Some(run.attempt),
            start_time: status.start_time.clone(),
            completion_time: status.completion_time.clone(),
            duration_milliseconds: status.duration_milliseconds,
        },
    );
    shorten_history(status, build, now);
}

/// When a past run is too old to be remembered.
fn expiry(entry: &HistoryEntry, age: Duration) -> Option<Timestamp> {
    entry.completion_time.as_ref().and_then(|end| end.0.checked_add(age).ok())
}

/// When the next of the past runs is to be forgotten, if any is.
pub(super) fn history_expires(status: &ImageBuildStatus, build: &ImageBuild) -> Option<Timestamp> {
    let age = build.spec.history.max_age()?;
    status.history.iter().filter_map(|entry| expiry(entry, age)).min()
}

/// Forgets runs beyond the limits.
pub(super) fn shorten_history(status: &mut ImageBuildStatus, build: &ImageBuild, now: Timestamp) {
    let history = &build.spec.history;
    let limit = usize::try_from(history.limit).unwrap_or(usize::MAX);
    status.history.truncate(limit);
    if let Some(age) = history.max_age() {
        status.history.retain(|entry| expiry(entry, age).is_none_or(|end| end > now));
    }
}

/// Leaves out objects without a field: applied, they would become null, which the schema refuses.
pub(super) fn tidy(status: &mut ImageBuildStatus) {
    status.summary.take_if(|summary| *summary == Summary::default());
    status.follow.take_if(|follow| *follow == FollowStatus::default());
    for entry in &mut status.platforms {
        entry.timings.take_if(|timings| *timings == Timings::default());
    }
    let Some(run) = &mut status.run else { return };
    // What the parts have come to together.
    let index = status.index.iter().map(|index| (Some(index.attempt), index.uncounted_attempts));
    let platforms = status.platforms.iter().map(|entry| (entry.attempt, entry.uncounted_attempts));
    for (attempt, uncounted) in platforms.chain(index) {
        run.attempt = run.attempt.max(attempt.unwrap_or_default());
        run.uncounted_attempts = run.uncounted_attempts.max(uncounted);
    }
    let waits = status.platforms.iter().filter_map(|entry| entry.retry_after.clone());
    let waits = waits.chain(status.index.iter().filter_map(|index| index.retry_after.clone()));
    run.retry_after = waits.min_by_key(|time| time.0);
}

/// The first twelve digits of a digest.
fn short(digest: &str) -> String {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    hex.chars().take(12).collect()
}

/// A length of time as a person writes it.
fn people(seconds: i64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}
