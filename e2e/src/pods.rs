//! Builder pods, as they come and go.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, LogParams};
use kube::runtime::watcher::{self, Event, watcher};
use lapstrake_crds::{ImageBuild, label};
use tokio::task::JoinHandle;

/// Every builder pod that a namespace has had since the watch began.
#[derive(Debug)]
pub struct BuilderPods {
    seen: Arc<Mutex<BTreeMap<String, String>>>,
    task: JoinHandle<()>,
}

impl BuilderPods {
    /// Watches from now on.
    pub fn watch(pods: Api<Pod>) -> Self {
        let seen = Arc::new(Mutex::new(BTreeMap::new()));
        let into = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let config = watcher::Config::default().labels(label::BUILD);
            let mut stream = Box::pin(watcher(pods, config));
            while let Some(event) = stream.next().await {
                if let Ok(Event::InitApply(pod) | Event::Apply(pod) | Event::Delete(pod)) = event {
                    let mut seen = into.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.insert(pod.uid().unwrap_or_default(), pod.name_any());
                }
            }
        });
        Self { seen, task }
    }

    /// Their names, each pod once, also those that are gone.
    pub fn names(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.values().cloned().collect()
    }
}

impl Drop for BuilderPods {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The log of the pod of an ImageBuild's last run.
pub async fn log_of(pods: &Api<Pod>, build: &ImageBuild) -> Result<String> {
    let status = build.status.as_ref().context("no status")?;
    let pod = status.platforms.iter().find_map(|platform| platform.pod.as_deref());
    let pod = pod.context("the status names no pod")?;
    pods.logs(pod, &LogParams::default()).await.with_context(|| format!("the log of {pod}"))
}
