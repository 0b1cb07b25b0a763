//! Watches, and runs reconciles for what they see.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::channel::mpsc;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::controller;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, applier, reflector as reflect, watcher};
use kube::{Api, ResourceExt};
use lapstrake_crds::ImageBuild;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::contexts;
use crate::events::Recorder;
use crate::follow::{Pollers, Registries};
use crate::metrics::Metrics;
use crate::observe::{strip_build, strip_pod};
use crate::progress::Followers;
use crate::reconcile::slots::sweep_for_ever;
use crate::reconcile::{Context, error_policy, reconcile};
use crate::schedule::board::Board;
use crate::settings::Settings;

/// Selects the pods that the operator made.
const PODS: &str = "app.kubernetes.io/managed-by=lapstrake-operator,lapstrake.dev/build-uid";
/// Objects in one answer to a list: each comes with fields that are dropped at once, and what an
/// answer needs while it is read, the process never gives back.
const PAGE: u32 = 50;
/// Changes of the caches within this time are one change to the queue.
const TOGETHER: Duration = Duration::from_millis(20);
/// Logs that may ask for a reconcile in the same moment.
const TRIGGERS_MAX: usize = 1024;

/// What one controller serves.
#[derive(Clone)]
pub struct Scope {
    /// Client of the API server.
    pub client: kube::Client,
    /// Namespace; none: all.
    pub namespace: Option<String>,
    /// Namespaces that are not served, if all others are.
    pub except: Vec<String>,
    /// What the operator was told.
    pub settings: Arc<Settings>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Name of this operator, in Events.
    pub identity: String,
    /// Reconciles in the same moment.
    pub concurrency: u16,
    /// The queue of all scopes.
    pub board: Arc<Board>,
}

/// Serves the scope until `stop`; then lets the reconciles under way end.
///
/// Dropping the future stops at once.
pub async fn run(scope: Scope, stop: CancellationToken) {
    let client = &scope.client;
    let (builds, pods): (Api<ImageBuild>, Api<Pod>) = match &scope.namespace {
        Some(namespace) => {
            (Api::namespaced(client.clone(), namespace), Api::namespaced(client.clone(), namespace))
        }
        None => (Api::all(client.clone()), Api::all(client.clone())),
    };
    let (build_store, build_writer) = reflector::store();
    let (pod_store, pod_writer) = reflector::store();
    let (trigger, triggers) = mpsc::channel::<ObjectRef<ImageBuild>>(TRIGGERS_MAX);
    let watched = watcher::Config { field_selector: all_but(&scope.except), ..watcher::Config::default() }
        .page_size(PAGE);
    let build_stream =
        reflect(build_writer, watcher(builds, watched.clone()).default_backoff().modify(strip_build));
    let pod_stream =
        reflect(pod_writer, watcher(pods, watched.labels(PODS)).default_backoff().modify(strip_pod));
    scope.board.serve(build_store.clone(), pod_store.clone());
    let (on_build, on_pod) = (scope.board.clone(), scope.board.clone());
    let of_contexts = build_store.clone();
    let from_builds =
        build_stream.touched_objects().inspect_ok(move |_| on_build.touch()).map_ok(move |build| {
            let own = ObjectRef::from_obj(&build);
            let all = std::iter::once(own).chain(users(&build, &of_contexts));
            stream::iter(all.map(|build| Ok::<_, watcher::Error>(controller::ReconcileRequest::from(build))))
        });
    let from_builds = from_builds.try_flatten();
    let from_pods = pod_stream
        .touched_objects()
        .inspect_ok(move |_| on_pod.touch())
        .map_ok(|pod| stream::iter(owner(&pod).map(|owner| Ok(controller::ReconcileRequest::from(owner)))))
        .try_flatten();
    let from_logs = triggers.map(|build| Ok(controller::ReconcileRequest::from(build)));
    let from_queue = due(&scope).map(|build| Ok(controller::ReconcileRequest::from(build)));
    let all = [from_builds.boxed(), from_pods.boxed(), from_logs.boxed(), from_queue.boxed()];
    let queue = stream::select_all(all).take_until({
        let stop = stop.clone();
        async move { stop.cancelled().await }
    });
    scope.metrics.serve(build_store.clone(), pod_store.clone());
    // What the builder will refuse too, with a better place to say it.
    let registries = Registries::new(&scope.settings.registries).or_else(|problem| {
        warn!("base images are followed as if nothing were set for their registries: {problem}");
        Registries::new("")
    });
    let registries = match registries {
        Ok(registries) => registries,
        Err(problem) => return warn!("cannot serve: {problem}"),
    };
    let pollers = Pollers::new(registries, trigger.clone(), build_store.clone());
    let context = Arc::new(Context {
        client: client.clone(),
        settings: scope.settings.clone(),
        pods: pod_store,
        builds: build_store.clone(),
        metrics: scope.metrics.clone(),
        recorder: Recorder::new(client.clone(), scope.identity.clone()),
        followers: Followers::new(client.clone(), trigger),
        pollers,
        board: scope.board.clone(),
        errors: Mutex::default(),
    });
    info!(namespace = scope.namespace.as_deref().unwrap_or("(all)"), "serving");
    // Boxed, since the applier wants its futures to be movable.
    let work = applier(
        |build, ctx| Box::pin(reconcile(build, ctx)),
        error_policy,
        context,
        build_store,
        queue,
        controller::Config::default().concurrency(scope.concurrency),
    )
    .for_each(|result| async move {
        match result {
            Ok((build, _)) => debug!(%build, "reconciled"),
            Err(controller::Error::ObjectNotFound(_) | controller::Error::ReconcilerFailed(..)) => {}
            Err(controller::Error::QueueError(error)) => warn!(%error, "watch"),
            Err(controller::Error::RunnerError(error)) => warn!(%error, "runner"),
        }
    });
    let (namespace, except, every) =
        (scope.namespace.clone(), scope.except.clone(), scope.settings.cache_sweep);
    tokio::select! {
        () = work => {}
        () = sweep_for_ever(client.clone(), namespace, except, every) => {}
    }
}

/// ImageBuilds that the queue has something new for, whenever a cache has changed.
fn due(scope: &Scope) -> impl futures::Stream<Item = ObjectRef<ImageBuild>> + Send + use<> {
    let (board, settings, namespace) = (scope.board.clone(), scope.settings.clone(), scope.namespace.clone());
    let changes = board.changes();
    stream::unfold(changes, |mut changes| async move {
        changes.changed().await.ok()?;
        // What comes in the same moment is looked at once.
        tokio::time::sleep(TOGETHER).await;
        changes.mark_unchanged();
        Some(((), changes))
    })
    .flat_map(move |()| {
        let mut due = board.due(&settings);
        due.retain(|build| namespace.is_none() || build.namespace == namespace);
        stream::iter(due)
    })
}

/// Selects what is in none of these namespaces; nothing is left out if there are none.
fn all_but(namespaces: &[String]) -> Option<String> {
    let terms: Vec<_> = namespaces.iter().map(|name| format!("metadata.namespace!={name}")).collect();
    (!terms.is_empty()).then(|| terms.join(","))
}

/// ImageBuilds that have this one as a context.
fn users(build: &ImageBuild, builds: &Store<ImageBuild>) -> Vec<ObjectRef<ImageBuild>> {
    let name = build.name_any();
    let uses = |other: &ImageBuild| {
        other.metadata.namespace == build.metadata.namespace && contexts::names(other).contains(name.as_str())
    };
    builds.state_filter(uses).iter().map(|other| ObjectRef::from_obj(&**other)).collect()
}

/// The ImageBuild that a pod belongs to.
fn owner(pod: &Pod) -> Option<ObjectRef<ImageBuild>> {
    let namespace = pod.namespace()?;
    pod.owner_references()
        .iter()
        .find(|owner| owner.controller == Some(true))
        .and_then(|owner| ObjectRef::from_owner_ref(Some(&namespace), owner, ()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_of_others_are_not_watched() {
        assert_eq!(all_but(&[]), None);
        assert_eq!(
            all_but(&["a".into(), "b".into()]).as_deref(),
            Some("metadata.namespace!=a,metadata.namespace!=b")
        );
    }
}
