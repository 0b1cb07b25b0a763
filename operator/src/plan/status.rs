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
    PlatformStatus, Reason, ReasonKind, RunResult, RunStatus, Sandbox, SourceStatus, Summary, Timings, Why,
};
use lapstrake_handoff::Success;

use crate::observe::{Container, PodFacts};
use crate::plan::ending::Broken;

/// Name of the platform while the builder has not said which it is.
const PLATFORM_UNKNOWN: &str = "default";
/// Longest message of a condition that is written.
const MESSAGE_CHARS_MAX: usize = 4096;
/// Names of the image that status has.
const NAMES_MAX: usize = 64;
/// Base images that status names.
const BASE_IMAGES_MAX: usize = 64;

/// The first `chars_max` characters, marked if there were more.
fn cut(text: &str, chars_max: usize) -> String {
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
    for entry in &mut status.platforms {
        entry.reason = Some(reason.as_str().to_owned());
    }
}

/// Says that the conditions hold for the present generation too.
pub(super) fn observe_generation(status: &mut ImageBuildStatus) {
    for condition in &mut status.conditions {
        condition.observed_generation = status.observed_generation;
    }
}

/// A new run: what the last one left goes, but for the image.
#[expect(clippy::too_many_arguments, reason = "each is one field of the status")]
pub(super) fn begin(
    status: &mut ImageBuildStatus,
    build: &ImageBuild,
    id: &str,
    attempt: u32,
    why: Why,
    sandbox: Sandbox,
    platform: Option<&str>,
    now: Timestamp,
) {
    status.run = Some(RunStatus {
        id: id.to_owned(),
        generation: build.metadata.generation,
        attempt,
        ..RunStatus::default()
    });
    status.why = Some(why);
    status.sandbox = Some(sandbox);
    status.platforms = vec![PlatformStatus {
        platform: platform.unwrap_or(PLATFORM_UNKNOWN).to_owned(),
        ..PlatformStatus::default()
    }];
    status.start_time = Some(Time(now));
    status.completion_time = None;
    status.duration_milliseconds = None;
    status.failure = None;
    if let Some(summary) = &mut status.summary {
        summary.duration = None;
    }
}

/// The pod that status names for the attempt under way.
pub(super) fn recorded_pod(status: &ImageBuildStatus) -> Option<&str> {
    status.platforms.first()?.pod.as_deref()
}

/// Puts what is known of the pod into the platform's entry.
pub(super) fn record_pod(status: &mut ImageBuildStatus, pod: &PodFacts) {
    let start = status.start_time.as_ref().map(|time| time.0);
    let Some(entry) = status.platforms.first_mut() else {
        return;
    };
    entry.pod = Some(pod.name.clone());
    entry.node = pod.node.clone();
    let (started, finished) = match &pod.container {
        Container::Running { since } => (*since, None),
        Container::Ended(ended) => (ended.started, ended.finished),
        Container::Unseen | Container::Waiting(_) => (None, None),
    };
    entry.started = started.map(Time);
    entry.finished = finished.map(Time);
    let milliseconds = |from: Option<Timestamp>, to: Option<Timestamp>| {
        let length = to?.duration_since(from?).as_millis();
        i64::try_from(length).ok().map(|length| length.max(0))
    };
    // Only once the builder runs: before, each step of the way would be a write.
    if started.is_some() {
        let timings = entry.timings.get_or_insert_default();
        timings.queued_milliseconds = milliseconds(start, pod.created);
        timings.scheduled_milliseconds = milliseconds(pod.created, pod.scheduled);
        timings.started_milliseconds = milliseconds(pod.scheduled, started);
    }
}

/// The image is in the registry.
pub(super) fn succeed(status: &mut ImageBuildStatus, build: &ImageBuild, success: &Success, now: Timestamp) {
    let image = format!("{}@{}", build.spec.output.repository(), success.digest);
    if let Some(entry) = status.platforms.first_mut() {
        if !success.platform.is_empty() {
            entry.platform = cut(&success.platform, 64);
        }
        entry.digest = Some(cut(&success.digest, 256));
        entry.size_bytes = i64::try_from(success.size_bytes).ok();
        entry.steps = Some(success.steps);
        entry.cached_steps = Some(success.cached_steps);
        entry.reason = Some(Reason::Succeeded.as_str().to_owned());
        let timings = entry.timings.get_or_insert_with(Timings::default);
        let milliseconds = |value: u64| i64::try_from(value).ok();
        timings.source_milliseconds = milliseconds(success.timings.source_ms);
        timings.solve_milliseconds = milliseconds(success.timings.solve_ms);
        timings.push_milliseconds = milliseconds(success.timings.export_ms + success.timings.push_ms);
        status.summary = Some(Summary {
            digest: Some(short(&success.digest)),
            platforms: Some(entry.platform.clone()).filter(|name| name != PLATFORM_UNKNOWN),
            duration: None,
        });
    }
    status.source = success.revision.as_ref().map(|revision| SourceStatus { revision: cut(revision, 1024) });
    // Each image once: its name is a key.
    let mut named = BTreeSet::new();
    status.base_images = success
        .base_images
        .iter()
        .map(|base| BaseImageStatus {
            image: cut(&base.name, 512),
            digest: cut(&base.digest, 256),
            pinned: base.pinned,
        })
        .filter(|base| named.insert(base.image.clone()))
        .take(BASE_IMAGES_MAX)
        .collect();
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

/// The run has failed for good.
pub(super) fn fail(status: &mut ImageBuildStatus, build: &ImageBuild, broken: &Broken, now: Timestamp) {
    if let Some(entry) = status.platforms.first_mut() {
        entry.reason = Some(broken.reason.as_str().to_owned());
        if let Some(detail) = &broken.detail {
            entry.steps = Some(detail.steps);
            entry.cached_steps = Some(detail.cached_steps);
        }
    }
    let platform =
        status.platforms.first().map(|entry| entry.platform.clone()).filter(|name| name != PLATFORM_UNKNOWN);
    status.failure = Some(failure(broken, platform));
    let result = if broken.reason == Reason::Canceled { RunResult::Canceled } else { RunResult::Failed };
    let message = place(broken);
    close(status, result, broken.reason, &message, now, build);
    say(status, broken.reason, &message, now);
}

/// The message with its place in the Dockerfile in front, unless it is there already.
pub(super) fn place(broken: &Broken) -> String {
    let place = broken.detail.as_ref().and_then(|detail| {
        let (file, line) = (detail.file.as_ref()?, detail.line?);
        Some(match detail.column {
            Some(column) => format!("{file}:{line}:{column}"),
            None => format!("{file}:{line}"),
        })
    });
    match place {
        Some(place) if !broken.message.contains(&place) => format!("{place}: {}", broken.message),
        _ => broken.message.clone(),
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

/// An attempt broke, and another follows.
pub(super) fn retry(
    status: &mut ImageBuildStatus,
    broken: &Broken,
    attempt: u32,
    now: Timestamp,
    wait: Duration,
) {
    if let Some(run) = &mut status.run {
        run.attempt = attempt;
        run.retry_after = Some(Time(now + wait));
        run.last_attempt_message = Some(cut(&format!("{}: {}", broken.reason, broken.message), 1024));
    }
    for entry in &mut status.platforms {
        *entry = PlatformStatus { platform: entry.platform.clone(), ..PlatformStatus::default() };
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
