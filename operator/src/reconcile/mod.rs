//! Fetch, plan, apply: the thin part.
//!
//! Holds: a plan that does more than write status was made on facts read from the API server in the
//! same pass; a status is written only over the resource version it was planned on.
//! Never: a decision.

mod api;
mod run;
mod slots;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::runtime::controller::Action;
use kube::runtime::reflector::{ObjectRef, Store};
use lapstrake_crds::{ImageBuild, ImageBuildStatus};
use tracing::{Instrument, debug, info, info_span, warn};

pub use run::{Scope, run};

use crate::events::Recorder;
use crate::follow::Pollers;
use crate::metrics::Metrics;
use crate::observe::{Container, Observed, PodFacts};
use crate::plan::{Plan, plan};
use crate::progress::Followers;
use crate::schedule::board::Board;
use crate::settings::Settings;

/// Wait after a conflict, which is over as soon as the cache has caught up; doubles if it repeats.
const CONFLICT_BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest wait after an error that repeats.
const ERROR_BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Passes of observing and planning within one reconcile, before it is left to the next: each pod that is
/// refused takes one.
const PASSES_MAX: u32 = 24;

/// What every reconcile shares.
pub struct Context {
    /// Client of the API server.
    pub client: kube::Client,
    /// What the operator was told at its start.
    pub settings: Arc<Settings>,
    /// Cache of builder pods.
    pub pods: Store<Pod>,
    /// Cache of ImageBuilds.
    pub builds: Store<ImageBuild>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Writes Events.
    pub recorder: Recorder,
    /// Follows the logs of running builders.
    pub followers: Followers,
    /// Asks the places that ImageBuilds follow.
    pub pollers: Pollers,
    /// The queue.
    pub board: Arc<Board>,
    /// Errors in a row.
    pub errors: Mutex<HashMap<ObjectRef<ImageBuild>, u32>>,
}

/// Why a reconcile did not get through.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server did not do what was asked.
    #[error("{doing}: {}", words(source))]
    Api {
        /// What was asked.
        doing: &'static str,
        /// What it said.
        source: Box<kube::Error>,
    },
    /// Somebody changed the object while we looked at it.
    #[error("the ImageBuild changed meanwhile")]
    Conflict,
    /// The planner asked for a closer look at what was read just now.
    #[error("planning does not come to an end")]
    Endless,
}

/// What the API server said, without the whole of its answer.
fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        other => other.to_string(),
    }
}

/// One pass over one ImageBuild.
pub async fn reconcile(build: Arc<ImageBuild>, ctx: Arc<Context>) -> Result<Action, Error> {
    let namespace = build.namespace().unwrap_or_default();
    let span = info_span!("reconcile", %namespace, imagebuild = %build.name_any());
    let key = ObjectRef::from_obj(&*build);
    ctx.board.ready().await;
    let begun = Instant::now();
    let result = pass(&build, &ctx).instrument(span).await;
    // A conflict is the ordinary way to find out that a cache lags.
    let well = matches!(result, Ok(_) | Err(Error::Conflict));
    ctx.metrics.reconciled(begun.elapsed(), well);
    if result.is_ok() {
        ctx.errors.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }
    result
}

async fn pass(build: &ImageBuild, ctx: &Context) -> Result<Action, Error> {
    let mut seen = api::cached(build, ctx);
    for _ in 0..PASSES_MAX {
        api::add_hints(&mut seen, ctx).await;
        let plan = decide(&mut seen, ctx);
        if plan.look_closer {
            if seen.fresh {
                return Err(Error::Endless);
            }
            debug!("looks at the API server itself");
            match api::fresh(build, ctx).await? {
                Some(fresh) => seen = fresh,
                None => {
                    ctx.board.release(&build.uid().unwrap_or_default());
                    return Ok(Action::await_change());
                }
            }
            continue;
        }
        match api::apply(&seen, &plan, ctx).await? {
            api::Applied::Done => {
                let status = plan.status.as_deref().or(seen.build.status.as_ref());
                if !status.is_some_and(has_its_place) {
                    ctx.board.release(&build.uid().unwrap_or_default());
                }
                after(&seen, &plan, ctx).await;
                return Ok(plan.requeue.map_or_else(Action::await_change, Action::requeue));
            }
            api::Applied::Refused(refusal) => {
                info!(?refusal, "the builder pod was refused");
                if plan.admits.is_some() {
                    ctx.board.release(&build.uid().unwrap_or_default());
                }
                seen.refusals.insert(plan.subject.clone(), refusal);
            }
        }
    }
    Err(Error::Endless)
}

/// Plans; with the queue's leave, if that is asked for, which is taken in the same step.
fn decide(seen: &mut Observed, ctx: &Context) -> Plan {
    let now = Timestamp::now();
    let first = plan(seen, &ctx.settings, now);
    if !first.ask {
        return first;
    }
    let lives = seen.pods.iter().any(|pod| !pod.ended());
    seen.leave = Some(ctx.board.leave(&seen.build, lives, &ctx.settings, now));
    let second = plan(seen, &ctx.settings, now);
    if let Some(at) = second.admits {
        ctx.board.grant(&seen.build.uid().unwrap_or_default(), at);
    }
    second
}

/// Whether a run is under way that was admitted.
fn has_its_place(status: &ImageBuildStatus) -> bool {
    let queue = status.run.as_ref().and_then(|run| run.queue.as_ref());
    status.completion_time.is_none() && queue.is_some_and(|queue| queue.admitted.is_some())
}

/// What follows once the plan is durable.
async fn after(seen: &Observed, plan: &Plan, ctx: &Context) {
    if let Some(finished) = &plan.finished {
        ctx.metrics.finished(finished);
    }
    for note in &plan.events {
        info!(reason = %note.reason, action = note.action, "{}", note.message);
        if let Err(error) = ctx.recorder.publish(&seen.build, plan.status.as_deref(), note).await {
            // An Event is a courtesy: status says the same.
            warn!(%error, "cannot write an event");
        }
    }
    for pod in &seen.pods {
        if pod.ended() {
            ctx.followers.forget(&pod.uid);
        } else if follows(pod) {
            ctx.followers.follow(&seen.build, pod);
        }
    }
}

/// Whether the pod's log is worth following.
fn follows(pod: &PodFacts) -> bool {
    !pod.deleting && matches!(pod.container, Container::Running { .. })
}

/// When to try again after an error.
pub fn error_policy(build: Arc<ImageBuild>, error: &Error, ctx: Arc<Context>) -> Action {
    let key = ObjectRef::from_obj(&*build);
    let mut errors = ctx.errors.lock().unwrap_or_else(PoisonError::into_inner);
    let count = errors.entry(key.clone()).or_default();
    *count = count.saturating_add(1);
    let conflict = matches!(error, Error::Conflict);
    let first = if conflict { CONFLICT_BACKOFF_MIN } else { Duration::from_secs(1) };
    let wait = first.saturating_mul(1 << (*count - 1).min(6)).min(ERROR_BACKOFF_MAX);
    if conflict {
        debug!(namespace = key.namespace, imagebuild = key.name, "{error}");
        return Action::requeue(wait);
    }
    warn!(namespace = key.namespace, imagebuild = key.name, %error, retry_seconds = wait.as_secs(), "cannot reconcile");
    Action::requeue(wait)
}
