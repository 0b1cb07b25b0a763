//! Keeps the platforms of an image to one revision of its source.
//!
//! The first platform that is built says which revision the others have to be of. Those that start later
//! are asked for that one; those that ran at the same time, and found another one since the source moved
//! between, are built again. What was kept of an earlier run says nothing, so that a run that is asked for
//! again finds what the source is now.

use jiff::Timestamp;
use lapstrake_crds::{ImageBuildStatus, PlatformStatus};

use crate::plan::parts::Part;
use crate::plan::share;

/// The revision that the run's platforms must be of, once there is one.
pub(super) fn agreed(status: &ImageBuildStatus) -> Option<&str> {
    if let Some(revision) = status.run.as_ref().and_then(|run| run.revision.as_deref()) {
        return Some(revision);
    }
    let at = |entry: &PlatformStatus| entry.finished.as_ref().map_or(Timestamp::MAX, |time| time.0);
    status
        .platforms
        .iter()
        .filter(|entry| entry.digest.is_some() && entry.kept_from.is_none() && entry.revision.is_some())
        .min_by_key(|entry| at(entry))
        .and_then(|entry| entry.revision.as_deref())
}

/// Notes the revision; parts that are of another one are to be built again: their places.
pub(super) fn agree(status: &mut ImageBuildStatus, parts: &[Part]) -> Vec<usize> {
    if parts.len() < 2 {
        return Vec::new();
    }
    let Some(revision) = agreed(status).map(str::to_owned) else {
        return Vec::new();
    };
    if let Some(run) = &mut status.run {
        run.revision = Some(revision.clone());
    }
    let mut odd = Vec::new();
    for (place, part) in parts.iter().enumerate() {
        let built = share::of(status, part);
        let other = status.platforms.iter().any(|entry| {
            part.platforms.contains(&entry.platform)
                && entry.digest.is_some()
                && entry.revision.as_ref().is_some_and(|found| *found != revision)
        });
        if built.done && other {
            let kept = status
                .platforms
                .iter()
                .any(|entry| part.platforms.contains(&entry.platform) && entry.kept_from.is_some());
            // What was kept has had no pod in this run.
            let attempt = if kept { built.attempt } else { built.attempt + 1 };
            share::again(status, part, &share::Share { attempt, pod: None, done: false, ..built });
            odd.push(place);
        }
    }
    odd
}
