//! Waiting, by watching.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use kube::api::Api;
use kube::runtime::watcher::{self, Event, watch_object, watcher};
use kube::{Resource, ResourceExt};
use lapstrake_crds::{ConditionType, ImageBuild};
use serde::de::DeserializeOwned;

/// How long anything may take before a test gives up. Not a measure: a test that passes is much quicker.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// Waits until an object is as asked for; `what` says that in words. `None` is an object that does not exist.
pub async fn wait_until<K>(
    api: &Api<K>,
    name: &str,
    what: &str,
    mut is: impl FnMut(Option<&K>) -> bool,
) -> Result<Option<K>>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut last = None;
    let waited = tokio::time::timeout(PATIENCE, async {
        let mut stream = pin!(watch_object(api.clone(), name));
        while let Some(seen) = stream.next().await {
            // The API server may be away for a moment, as when a test restarts it.
            let Ok(seen) = seen else { continue };
            if is(seen.as_ref()) {
                return Ok(seen);
            }
            last = seen;
        }
        bail!("the watch of {name} ended")
    })
    .await;
    match waited {
        Ok(seen) => seen,
        Err(_) => bail!("{name}: not {what} after {PATIENCE:?}; last seen: {last:#?}"),
    }
}

/// Waits until no object of a kind is left, but for those that `ignore` names.
pub async fn wait_gone<K>(api: &Api<K>, labels: &str, mut ignore: impl FnMut(&K) -> bool) -> Result<()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut left = BTreeSet::new();
    let mut listed = false;
    let waited = tokio::time::timeout(PATIENCE, async {
        let config = watcher::Config::default().labels(labels);
        let mut stream = pin!(watcher(api.clone(), config));
        while let Some(event) = stream.next().await {
            listed &= !matches!(event, Ok(Event::Init));
            let settled = matches!(event, Ok(Event::InitDone));
            match event {
                Ok(Event::Init) => left.clear(),
                Ok(Event::InitApply(object) | Event::Apply(object)) if ignore(&object) => {
                    left.remove(&object.name_any());
                }
                Ok(Event::InitApply(object) | Event::Apply(object)) => {
                    left.insert(object.name_any());
                }
                Ok(Event::Delete(object)) => {
                    left.remove(&object.name_any());
                }
                // The API server may be away for a moment, as when a test restarts it.
                Ok(Event::InitDone) | Err(_) => {}
            }
            listed |= settled;
            if listed && left.is_empty() {
                return;
            }
        }
    })
    .await;
    waited.with_context(|| format!("{} left over: {left:?}", K::plural(&())))
}

/// The status of the condition `Ready` of the spec as it is now; empty before the operator saw it.
fn ready_status(build: &ImageBuild) -> &str {
    let Some(status) = &build.status else { return "" };
    if status.observed_generation != build.metadata.generation {
        return "";
    }
    status.condition(ConditionType::Ready).map_or("", |condition| condition.status.as_str())
}

/// Whether the image is there.
pub fn ready(build: &ImageBuild) -> bool {
    ready_status(build) == "True"
}

/// Whether nothing more happens by itself: the image is there, or the build has failed for good.
pub fn ended(build: &ImageBuild) -> bool {
    let stalled = || {
        let stalled = build.status.as_ref().and_then(|status| status.condition(ConditionType::Stalled));
        stalled.is_some_and(|condition| condition.status == "True")
    };
    ready(build) || (ready_status(build) == "False" && stalled())
}

/// Reason of the condition `Ready`.
pub fn reason(build: &ImageBuild) -> &str {
    let ready = build.status.as_ref().and_then(|status| status.condition(ConditionType::Ready));
    ready.map_or("", |condition| condition.reason.as_str())
}
