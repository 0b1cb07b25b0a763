//! How a run begins, and what of the one before still stands.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use lapstrake_crds::{
    ImageBuild, ImageBuildStatus, IndexStatus, PlatformStatus, Reason, RunStatus, SourceKind,
};

use crate::plan::parts::Part;
use crate::plan::share::{self, PLATFORM_UNKNOWN};
use crate::plan::status::succeeded;

/// A new run: what the last one left goes, but for the image, and for platforms that need not be built
/// again.
pub(super) fn begin(
    status: &mut ImageBuildStatus,
    build: &ImageBuild,
    parts: &[Part],
    run: RunStatus,
    now: Timestamp,
) {
    let kept = kept(status, build, parts, &run);
    let attempt = run.attempt;
    let names = match build.spec.platforms.as_slice() {
        [] => vec![PLATFORM_UNKNOWN.to_owned()],
        names => names.to_vec(),
    };
    status.platforms = names
        .into_iter()
        .map(|platform| match kept.iter().find(|entry| entry.platform == platform) {
            Some(entry) => entry.clone(),
            None => PlatformStatus { platform, attempt: Some(attempt), ..PlatformStatus::default() },
        })
        .collect();
    for part in parts {
        if !share::of(status, part).done {
            share::place(status, part);
        }
    }
    status.index = (parts.len() > 1).then(|| IndexStatus { attempt, ..IndexStatus::default() });
    status.run = Some(run);
    status.start_time = Some(Time(now));
    status.completion_time = None;
    status.duration_milliseconds = None;
    status.failure = None;
    if let Some(summary) = &mut status.summary {
        summary.duration = None;
    }
}

/// What the run in status built of what the new one is to build.
///
/// Nothing of a run that succeeded: whoever asks again wants to know what has moved. Nothing if that were
/// all, of a source that may move: somebody has to look at it.
fn kept(
    status: &ImageBuildStatus,
    build: &ImageBuild,
    parts: &[Part],
    run: &RunStatus,
) -> Vec<PlatformStatus> {
    let Some(old) = &status.run else {
        return Vec::new();
    };
    if parts.len() < 2 || old.inputs.is_none() || old.inputs != run.inputs || succeeded(status) {
        return Vec::new();
    }
    let mut kept = Vec::new();
    for part in parts {
        let entries: Vec<_> = status
            .platforms
            .iter()
            .filter(|entry| part.platforms.contains(&entry.platform))
            .filter(|entry| entry.digest.is_some() && entry.manifest_bytes.is_some())
            .collect();
        if entries.len() == part.platforms.len() {
            kept.extend(entries.into_iter().map(|entry| PlatformStatus {
                kept_from: entry.kept_from.clone().or_else(|| Some(old.id.clone())),
                pod: None,
                message: None,
                attempt: None,
                retries: None,
                uncounted_attempts: None,
                retry_after: None,
                reason: Some(Reason::Succeeded.as_str().to_owned()),
                ..entry.clone()
            }));
        }
    }
    let all: usize = parts.iter().map(|part| part.platforms.len()).sum();
    if kept.len() == all && moves(build) { Vec::new() } else { kept }
}

/// Whether the source may be another one tomorrow.
fn moves(build: &ImageBuild) -> bool {
    match build.spec.source.kind() {
        Some(SourceKind::Git(git)) => git.commit.is_none(),
        Some(SourceKind::Http(http)) => http.sha256.is_none(),
        Some(SourceKind::Inline(_)) | None => false,
    }
}
