//! One test: a namespace, and what is done in it.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, anyhow, bail};
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Pod, Secret};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt;
use kube::{Client, ResourceExt};
use lapstrake_crds::{ImageBuild, Reason, label};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::manifest::Manifest;
use crate::pods::log_of;
use crate::wait::{ended, ready, reason, wait_gone, wait_until};

/// Who applies what a test applies.
const MANAGER: &str = "e2e";

/// A namespace of its own on the cluster, and what tests do there.
#[derive(Clone)]
pub struct Test {
    /// The cluster.
    pub cluster: &'static Cluster,
    /// Its API.
    pub client: Client,
    /// The namespace.
    pub namespace: String,
    /// ImageBuilds in it.
    pub builds: Api<ImageBuild>,
    /// Pods in it.
    pub pods: Api<Pod>,
}

/// Runs a test in a namespace of its own, which is gone afterwards.
///
/// When the test has passed, its ImageBuilds are deleted first, and whatever they leave behind fails it.
///
/// # Panics
/// With all that was seen, if the test fails.
pub fn run(name: &str, test: impl AsyncFnOnce(&Test) -> Result<()>) {
    run_in(name, BTreeMap::new(), test);
}

/// The same in a namespace with these labels.
///
/// # Panics
/// With all that was seen, if the test fails.
pub fn run_in(name: &str, labels: BTreeMap<String, String>, test: impl AsyncFnOnce(&Test) -> Result<()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let failed = runtime.block_on(async {
        let here = Test::new(name, labels).await.map_err(|error| format!("{error:#}"))?;
        let result = AssertUnwindSafe(test(&here)).catch_unwind().await;
        let result = match result {
            Ok(Ok(())) => here.nothing_is_left().await,
            Ok(Err(error)) => Err(error),
            Err(panic) => Err(anyhow!("{}", text_of(panic.as_ref()))),
        };
        if let Err(error) = &result {
            let report = here.report().await;
            let text = format!("{error:#}\n\n{report}");
            if std::env::var_os("LAPSTRAKE_KEEP").is_none() {
                here.delete_namespace().await.ok(); // The failure itself is what counts.
            }
            return Err(text);
        }
        here.delete_namespace().await.map_err(|error| format!("{error:#}"))
    });
    if let Err(text) = failed {
        panic!("{name}: {text}");
    }
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a text")
}

impl Test {
    async fn new(name: &str, labels: BTreeMap<String, String>) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let cluster = tokio::task::spawn_blocking(Cluster::connect).await??;
        let client = cluster.client().await?;
        let namespace = format!("e2e-{name}-{:x}-{number}", std::process::id());
        let object: Namespace = serde_json::from_value(json!({
            "metadata": { "name": namespace, "labels": labels },
        }))?;
        Api::all(client.clone()).create(&PostParams::default(), &object).await?;
        Ok(Self {
            cluster,
            builds: Api::namespaced(client.clone(), &namespace),
            pods: Api::namespaced(client.clone(), &namespace),
            client,
            namespace,
        })
    }

    /// Another namespace for the same test, which has to [`close`](Self::close) it.
    pub async fn beside(&self, name: &str) -> Result<Self> {
        Self::new(name, BTreeMap::new()).await
    }

    /// Takes the namespace away, once nothing of Lapstrake's is left in it.
    pub async fn close(&self) -> Result<()> {
        self.nothing_is_left().await?;
        self.delete_namespace().await
    }

    /// Where this test pushes an image of this name.
    pub fn image(&self, name: &str) -> String {
        format!("{}/e2e/{}/{name}", self.cluster.registry, self.namespace)
    }

    /// A base image, such as `busybox:1`.
    pub fn base(&self, name: &str) -> String {
        format!("{}/{name}", self.cluster.base)
    }

    /// An ImageBuild of an inline Dockerfile, whose argument `BASE` is busybox.
    pub fn manifest(&self, name: &str, dockerfile: &str) -> Manifest {
        Manifest::inline(name, dockerfile, &self.image(name)).arg("BASE", &self.base("busybox:1"))
    }

    /// Applies an ImageBuild, as `kubectl apply --server-side` does.
    pub async fn apply(&self, manifest: &Manifest) -> Result<ImageBuild> {
        let parameters = PatchParams::apply(MANAGER).force();
        let name = manifest.name();
        let applied = self.builds.patch(name, &parameters, &Patch::Apply(&manifest.0)).await;
        applied.with_context(|| format!("apply {name}"))
    }

    /// Applies any object of this namespace.
    pub async fn create<K>(&self, object: Value) -> Result<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::Serialize
            + serde::de::DeserializeOwned,
    {
        let object: K = serde_json::from_value(object)?;
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.namespace);
        let ours = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        Ok(api.create(&ours, &object).await?)
    }

    /// Makes a Secret with a registry's credentials.
    pub async fn registry_secret(
        &self,
        name: &str,
        registry: &str,
        user: &str,
        password: &str,
    ) -> Result<()> {
        let config = json!({ "auths": { registry: { "username": user, "password": password } } });
        let secret = json!({
            "metadata": { "name": name },
            "type": "kubernetes.io/dockerconfigjson",
            "stringData": { ".dockerconfigjson": config.to_string() },
        });
        self.create::<Secret>(secret).await.map(drop)
    }

    /// Changes an ImageBuild by a merge patch.
    pub async fn patch(&self, name: &str, patch: Value) -> Result<ImageBuild> {
        Ok(self.builds.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?)
    }

    /// Sets an annotation.
    pub async fn annotate(&self, name: &str, annotation: &str, value: &str) -> Result<ImageBuild> {
        self.patch(name, json!({ "metadata": { "annotations": { annotation: value } } })).await
    }

    /// Waits until an ImageBuild is as asked for.
    pub async fn until(
        &self,
        name: &str,
        what: &str,
        mut is: impl FnMut(&ImageBuild) -> bool,
    ) -> Result<ImageBuild> {
        let seen = wait_until(&self.builds, name, what, |build| build.is_some_and(&mut is)).await?;
        seen.context("a build")
    }

    /// The same, but gives up when the build ends otherwise: it will not become what it is not any more.
    ///
    /// After an annotation [`Test::until`] is right, since until it is seen the build reads as ended.
    async fn until_or_ended(
        &self,
        name: &str,
        what: &str,
        is: impl Fn(&ImageBuild) -> bool,
    ) -> Result<ImageBuild> {
        let build = self.until(name, what, |build| is(build) || ended(build)).await?;
        if !is(&build) {
            bail!("{name} ended and is not {what}:\n{}", yaml(&build.status));
        }
        Ok(build)
    }

    /// Waits until a reason stands in `Ready`.
    pub async fn until_reason(&self, name: &str, wanted: Reason) -> Result<ImageBuild> {
        self.until_or_ended(name, wanted.as_str(), |build| reason(build) == wanted.as_str()).await
    }

    /// Waits until nothing more happens by itself.
    pub async fn ended(&self, name: &str) -> Result<ImageBuild> {
        self.until(name, "ended", ended).await
    }

    /// Waits for the image.
    pub async fn ready(&self, name: &str) -> Result<ImageBuild> {
        self.until_or_ended(name, "ready", ready).await
    }

    /// Applies, and waits for the image.
    pub async fn build(&self, manifest: &Manifest) -> Result<ImageBuild> {
        self.apply(manifest).await?;
        self.ready(manifest.name()).await
    }

    /// Applies, and waits for a failure of this reason; gives what the status says of it.
    pub async fn fails(&self, manifest: &Manifest, wanted: Reason) -> Result<ImageBuild> {
        self.apply(manifest).await?;
        let name = manifest.name();
        let build = self.ended(name).await?;
        if reason(&build) != wanted.as_str() {
            bail!("{name} ended otherwise than with {wanted}:\n{}", yaml(&build.status));
        }
        Ok(build)
    }

    /// Waits until a builder pod of the ImageBuild writes a line with this text; gives the pod's name.
    ///
    /// What is waited for must come within [`crate::wait`]'s patience.
    pub async fn until_log(&self, name: &str, text: &str) -> Result<String> {
        use futures::AsyncBufReadExt;
        let build = self
            .until(name, "in a pod", |build| {
                let status = build.status.as_ref();
                status.is_some_and(|status| status.platforms.iter().any(|platform| platform.pod.is_some()))
            })
            .await?;
        let status = build.status.unwrap_or_default();
        let pod = status.platforms.into_iter().find_map(|platform| platform.pod).context("a pod")?;
        wait_until(&self.pods, &pod, "started", |pod| pod.is_some_and(has_started)).await?;
        let parameters = kube::api::LogParams { follow: true, ..Default::default() };
        let found = tokio::time::timeout(crate::wait::PATIENCE, async {
            let mut lines = self.pods.log_stream(&pod, &parameters).await?.lines();
            while let Some(line) = lines.next().await {
                if line?.contains(text) {
                    return Ok(());
                }
            }
            bail!("{pod} ended without writing {text:?}")
        });
        found.await.with_context(|| format!("{pod} never wrote {text:?}"))??;
        Ok(pod)
    }

    /// The log of an ImageBuild's last run.
    pub async fn log(&self, build: &ImageBuild) -> Result<String> {
        log_of(&self.pods, build).await
    }

    /// Runs an image as a pod and gives what it printed.
    pub async fn run_image(&self, name: &str, image: &str) -> Result<String> {
        self.create::<Pod>(json!({
            "metadata": { "name": name },
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": false,
                "containers": [{
                    "name": "image",
                    "image": image,
                    // Admitted where Pod Security `baseline` is enforced.
                    "securityContext": { "allowPrivilegeEscalation": false },
                }],
            },
        }))
        .await?;
        let phase = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.clone());
        let pod = wait_until(&self.pods, name, "at its end", |pod| {
            let phase = pod.and_then(phase);
            matches!(phase.as_deref(), Some("Succeeded" | "Failed"))
        })
        .await?;
        let log = self.pods.logs(name, &Default::default()).await?;
        if pod.as_ref().and_then(phase).as_deref() != Some("Succeeded") {
            bail!("{image} failed as a pod:\n{log}");
        }
        Ok(log)
    }

    /// Waits for an Event of this reason on an ImageBuild; Events come after the status.
    pub async fn until_event(&self, name: &str, wanted: &str) -> Result<()> {
        use k8s_openapi::api::events::v1::Event;
        let api: Api<Event> = Api::namespaced(self.client.clone(), &self.namespace);
        let fields = format!("regarding.kind=ImageBuild,regarding.name={name},reason={wanted}");
        let config = kube::runtime::watcher::Config::default().fields(&fields);
        let mut seen = std::pin::pin!(kube::runtime::watcher(api, config).applied_objects());
        let waited = tokio::time::timeout(crate::wait::PATIENCE, seen.next()).await;
        waited.with_context(|| format!("no Event {wanted} on {name}"))?.context("a watch")??;
        Ok(())
    }

    /// Reasons and notes of the Events on an ImageBuild, the oldest first.
    pub async fn events(&self, name: &str) -> Result<Vec<(String, String)>> {
        use k8s_openapi::api::events::v1::Event;
        let api: Api<Event> = Api::namespaced(self.client.clone(), &self.namespace);
        let fields = format!("regarding.kind=ImageBuild,regarding.name={name}");
        let mut events = api.list(&ListParams::default().fields(&fields)).await?.items;
        events.sort_by_key(|event| event.event_time.clone().map(|time| time.0));
        Ok(events
            .into_iter()
            .map(|event| (event.reason.unwrap_or_default(), event.note.unwrap_or_default()))
            .collect())
    }

    /// Deletes all ImageBuilds of the namespace and waits until all that they made is gone.
    pub async fn nothing_is_left(&self) -> Result<()> {
        self.builds.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
        wait_gone(&self.builds, "", |_| false).await?;
        wait_gone(&self.pods, label::BUILD, |_| false).await?;
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &self.namespace);
        // What several share outlives each of them.
        wait_gone(&claims, "", |claim| claim.labels().contains_key(label::SLOT)).await?;
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let ours =
            |map: &ConfigMap| map.managed_fields().iter().any(|by| by.manager.as_deref() == Some(MANAGER));
        wait_gone(&maps, "", |map| map.name_any() == "kube-root-ca.crt" || ours(map)).await
    }

    /// Deletes the namespace.
    async fn delete_namespace(&self) -> Result<()> {
        let all: Api<Namespace> = Api::all(self.client.clone());
        // Nothing of Lapstrake's is in it any more; the rest is the cluster's own to clear up.
        all.delete(&self.namespace, &DeleteParams::default()).await?;
        Ok(())
    }

    /// All that a person would look at after a failure.
    async fn report(&self) -> String {
        let mut text = format!("--- namespace {}\n", self.namespace);
        for build in self.builds.list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default()
        {
            text += &format!("--- ImageBuild {}\n{}\n", build.name_any(), yaml(&build.status));
            for (reason, note) in self.events(&build.name_any()).await.unwrap_or_default() {
                text += &format!("event {reason}: {note}\n");
            }
        }
        for pod in self.pods.list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default() {
            let name = pod.name_any();
            let containers = pod.status.and_then(|status| status.container_statuses).unwrap_or_default();
            let states: Vec<_> = containers.into_iter().map(|container| container.state).collect();
            text += &format!("--- pod {name}\n{}\n", yaml(&states));
            let last = kube::api::LogParams { tail_lines: Some(80), ..Default::default() };
            let log = self.pods.logs(&name, &last);
            text += &log.await.unwrap_or_else(|error| format!("no log: {error}\n"));
        }
        text + &self.operator_log()
    }

    /// What the operator wrote of this namespace.
    fn operator_log(&self) -> String {
        let arguments = ["-n", crate::SYSTEM_NAMESPACE, "logs", "deploy/lapstrake", "--tail=2000"];
        let log = self.cluster.kubectl(&arguments).unwrap_or_else(|error| format!("no log: {error:#}"));
        let ours: Vec<&str> = log.lines().filter(|line| line.contains(&self.namespace)).collect();
        let from = ours.len().saturating_sub(60);
        format!("--- operator\n{}\n", ours[from..].join("\n"))
    }
}

fn has_started(pod: &Pod) -> bool {
    let containers = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    containers.is_some_and(|containers| containers.iter().any(|container| container.container_id.is_some()))
}

fn yaml(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|error| error.to_string())
}

/// Runs a program and gives what it printed; fails with both its streams.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}
