//! Many ImageBuilds on few slots of one cache.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams};
use kube::runtime::watcher::{self, Event, watcher};
use lapstrake_crds::{annotation, label};
use lapstrake_e2e::{run, wait_until};
use serde_json::json;

const BUILDS: usize = 20;
const SLOTS: usize = 3;

/// Pods of a cache as the API server's history tells of them, one after the other.
#[derive(Default)]
struct History {
    /// Claim of each pod that may have it mounted, by uid.
    mounted: BTreeMap<String, String>,
    pods: usize,
    most: usize,
    twice: Vec<String>,
}

impl History {
    fn see(&mut self, pod: &Pod, gone: bool) {
        let uid = pod.uid().unwrap_or_default();
        let spec = pod.spec.as_ref();
        let gated =
            spec.and_then(|spec| spec.scheduling_gates.as_ref()).is_some_and(|gates| !gates.is_empty());
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if gone || gated || matches!(phase, Some("Succeeded" | "Failed")) {
            self.mounted.remove(&uid);
            return;
        }
        let volumes = spec.and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
        let claims = volumes.iter().filter_map(|volume| volume.persistent_volume_claim.as_ref());
        let Some(claim) = claims.map(|source| source.claim_name.clone()).next() else { return };
        if let Some((other, _)) = self.mounted.iter().find(|(other, its)| **other != uid && **its == claim) {
            self.twice.push(format!("{claim}: {} beside {other}", pod.name_any()));
        }
        self.pods += usize::from(self.mounted.insert(uid, claim).is_none());
        self.most = self.most.max(self.mounted.len());
    }
}

#[test]
fn twenty_builds_take_turns_on_three_slots_though_pods_are_killed() {
    run("slots", async |test| {
        let history = Arc::new(Mutex::new(History::default()));
        let (into, pods) = (history.clone(), test.pods.clone());
        let watching = tokio::spawn(async move {
            let config = watcher::Config::default().labels(label::CACHE);
            let mut events = Box::pin(watcher(pods, config));
            while let Some(event) = events.next().await {
                let mut history = into.lock().unwrap_or_else(PoisonError::into_inner);
                match event {
                    Ok(Event::InitApply(pod) | Event::Apply(pod)) => history.see(&pod, false),
                    Ok(Event::Delete(pod)) => history.see(&pod, true),
                    _ => {}
                }
            }
        });
        let name = |number: usize| format!("build-{number}");
        for number in 0..BUILDS {
            let dockerfile = format!("ARG BASE\nFROM ${{BASE}}\nRUN sleep 1; echo {number} > /number\n");
            let manifest = test
                .manifest(&name(number), &dockerfile)
                .set("/spec/cache", json!({ "volume": { "name": "shared", "slots": SLOTS, "size": "1Gi" } }))
                .set("/spec/retries", 10);
            test.apply(&manifest).await?;
        }
        // One in four is killed as soon as its pod is there: with its gate, pending, or at work.
        for number in (0..BUILDS).step_by(4) {
            let build = test
                .until(&name(number), "in a pod", |build| {
                    let status = build.status.as_ref();
                    status.is_some_and(|status| status.platforms.iter().any(|entry| entry.pod.is_some()))
                })
                .await?;
            let platforms = build.status.map(|status| status.platforms).unwrap_or_default();
            let pod = platforms.into_iter().find_map(|entry| entry.pod).context("a pod")?;
            let now = DeleteParams {
                grace_period_seconds: (number % 8 == 0).then_some(0),
                ..DeleteParams::default()
            };
            test.pods.delete(&pod, &now).await.ok(); // It may have ended meanwhile.
        }
        for number in 0..BUILDS {
            test.ready(&name(number)).await?;
        }
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(test.client.clone(), &test.namespace);
        let slots =
            claims.list(&ListParams::default().labels(&format!("{}=shared", label::CACHE))).await?.items;
        assert!((1..=SLOTS).contains(&slots.len()), "{} slots", slots.len());
        for slot in &slots {
            let freed = |claim: Option<&PersistentVolumeClaim>| {
                claim.is_some_and(|claim| !claim.annotations().contains_key(annotation::LEASED_TO))
            };
            wait_until(&claims, &slot.name_any(), "free", freed).await?;
            assert!(slot.annotations().contains_key(annotation::LAST_USER), "{:?}", slot.annotations());
            assert!(slot.owner_references().is_empty(), "a shared cache is nobody's alone");
        }
        watching.abort();
        {
            let history = history.lock().unwrap_or_else(PoisonError::into_inner);
            if !history.twice.is_empty() {
                bail!("slots were mounted twice: {:#?}", history.twice);
            }
            assert!(history.pods >= BUILDS, "only {} pods were seen", history.pods);
            assert!(history.most <= SLOTS, "{} pods at once", history.most);
        }
        Ok(())
    });
}
