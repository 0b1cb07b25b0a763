//! Follows the logs of running builders, to know what they are doing.
//!
//! Only a change of [`Phase`] asks for a reconcile: no line of a log is ever a write of its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::channel::mpsc;
use futures::{AsyncBufReadExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::LogParams;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use lapstrake_crds::ImageBuild;
use lapstrake_handoff::{ProgressLine, StepEvent};
use tokio::task::AbortHandle;
use tracing::debug;

use crate::observe::{CONTAINER, Phase, PodFacts};

/// Logs that are followed in the same moment; further builds only lack the detail.
const FOLLOWED_MAX: usize = 256;

/// The logs being followed. Dropping it stops all.
pub struct Followers {
    client: kube::Client,
    trigger: mpsc::Sender<ObjectRef<ImageBuild>>,
    open: Arc<Mutex<HashMap<String, Followed>>>,
}

struct Followed {
    phase: Option<Phase>,
    task: AbortHandle,
}

impl Drop for Followers {
    fn drop(&mut self) {
        for (_, followed) in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain() {
            followed.task.abort();
        }
    }
}

impl Followers {
    /// Follows nothing yet; changes are sent to `trigger`.
    pub fn new(client: kube::Client, trigger: mpsc::Sender<ObjectRef<ImageBuild>>) -> Self {
        Self { client, trigger, open: Arc::default() }
    }

    /// What the builder in the pod of this uid is doing.
    pub fn phase(&self, uid: &str) -> Option<Phase> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).get(uid).and_then(|followed| followed.phase)
    }

    /// Follows the pod's log, if it is not followed already. A log that broke off is taken up again,
    /// and what was known of its phase is kept.
    pub fn follow(&self, build: &ImageBuild, pod: &PodFacts) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let known = open.get(&pod.uid);
        if known.is_some_and(|followed| !followed.task.is_finished()) {
            return;
        }
        let phase = known.and_then(|followed| followed.phase);
        if open.len() >= FOLLOWED_MAX {
            open.retain(|_, followed| !followed.task.is_finished());
        }
        if open.len() >= FOLLOWED_MAX {
            return;
        }
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &build.namespace().unwrap_or_default());
        let (uid, name, build) = (pod.uid.clone(), pod.name.clone(), ObjectRef::from_obj(build));
        let (shared, trigger) = (self.open.clone(), self.trigger.clone());
        let task = tokio::spawn(async move {
            if let Err(error) = read(&pods, &name, &uid, &shared, trigger, build).await {
                debug!(pod = name, %error, "log ended");
            }
        });
        open.insert(pod.uid.clone(), Followed { phase, task: task.abort_handle() });
    }

    /// The pod has ended: nothing more is to be known of it.
    pub fn forget(&self, uid: &str) {
        if let Some(followed) = self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(uid) {
            followed.task.abort();
        }
    }
}

async fn read(
    pods: &Api<Pod>,
    name: &str,
    uid: &str,
    shared: &Mutex<HashMap<String, Followed>>,
    mut trigger: mpsc::Sender<ObjectRef<ImageBuild>>,
    build: ObjectRef<ImageBuild>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let params = LogParams { container: Some(CONTAINER.to_owned()), follow: true, ..LogParams::default() };
    let mut lines = pods.log_stream(name, &params).await?.lines();
    while let Some(line) = lines.try_next().await? {
        let Some(next) = phase_of(&ProgressLine::parse(&line)) else {
            continue;
        };
        let changed = {
            let mut open = shared.lock().unwrap_or_else(PoisonError::into_inner);
            match open.get_mut(uid) {
                // A builder never goes back to an earlier part of its work.
                Some(followed) if followed.phase.is_none_or(|phase| phase < next) => {
                    followed.phase = Some(next);
                    true
                }
                _ => false,
            }
        };
        if changed {
            // A full queue means that reconciles are coming anyway.
            trigger.try_send(build.clone()).ok();
        }
    }
    Ok(())
}

/// The phase that a step's beginning shows.
fn phase_of(line: &ProgressLine) -> Option<Phase> {
    let ProgressLine::Step { event: StepEvent::Started { name }, .. } = line else {
        return None;
    };
    let name = name.as_str();
    Some(if name.starts_with("export") || name.starts_with("push") {
        Phase::Push
    } else if name.starts_with("[internal]") || name.starts_with("[context") || name.starts_with("source") {
        Phase::Source
    } else {
        Phase::Steps
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steps_name_tells_the_phase() {
        let phase = |line: &str| phase_of(&ProgressLine::parse(line));
        assert_eq!(phase("#1 [internal] load build context"), Some(Phase::Source));
        assert_eq!(phase("#4 [build 2/4] RUN make push"), Some(Phase::Steps));
        assert_eq!(phase("#9 exporting to image"), Some(Phase::Push));
        assert_eq!(phase("#9 0.1 exporting to image"), None);
        assert_eq!(phase("hello"), None);
    }
}
