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

/// A part that is of another revision than its siblings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Odd {
    /// Its place among the parts.
    pub place: usize,
    /// It is built again; otherwise no retry is left for that.
    pub again: bool,
}

/// Notes the revision, and finds the parts that are of another one. Building them again is a retry: a source
/// that cannot be asked for as it was may be another one each time.
pub(super) fn agree(status: &mut ImageBuildStatus, parts: &[Part], retries_max: u32) -> Vec<Odd> {
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
            let again = kept || built.retries < retries_max;
            if again {
                // What was kept has had no pod in this run.
                let (attempt, retries) = match kept {
                    true => (built.attempt, built.retries),
                    false => (built.attempt + 1, built.retries + 1),
                };
                let next = share::Share { attempt, retries, pod: None, done: false, ..built };
                share::again(status, part, &next);
            }
            odd.push(Odd { place, again });
        }
    }
    odd
}
