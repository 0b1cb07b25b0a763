//! The calls that lend slots of shared caches to pods, and take them back.
//!
//! Holds: a pod's uid is written onto a claim only over the version of it that was looked at, and its gate
//! is taken away only after that; a lease is taken off only if it still is the one that was meant.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt};
use lapstrake_crds::{annotation, field_manager, label};
use serde_json::{Value, json};
use tracing::{debug, info, warn};

use crate::cache::slots::{Holder, Slot, is_free};
use crate::cache::{GATE, claims, retention};
use crate::observe::PodFacts;
use crate::plan::{Enter, GiveBack};
use crate::reconcile::Error;
use crate::reconcile::api::{failed, is};

/// Tries to take a lease off, when the claim changes at the same time.
const TRIES_MAX: u32 = 4;

/// Slots of a cache, and then the pods of that cache which have not stopped: in this order, so that a holder
/// that is not among the pods is gone.
pub(super) async fn look(
    client: &kube::Client,
    namespace: &str,
    cache: &str,
) -> Result<(Vec<Slot>, Vec<Holder>), Error> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let of_cache = ListParams::default().labels(&format!("{}={cache}", label::CACHE));
    let slots = claims.list(&of_cache).await.map_err(failed("list the cache's slots"))?;
    let pods = pods.list(&of_cache).await.map_err(failed("list the cache's pods"))?;
    Ok((slots.iter().filter_map(claims::slot).collect(), pods.iter().filter_map(holder).collect()))
}

fn holder(pod: &Pod) -> Option<Holder> {
    let facts = PodFacts::of(pod);
    let claim = facts.claim.clone().unwrap_or_default();
    (!facts.stopped()).then_some(Holder { claim, gated: facts.gated, uid: facts.uid })
}

/// Brings a pod into its slot, if that is still to be had; what was made a moment ago is given along.
///
/// That it is not to be had is no error: the pod keeps its gate, and the next pass looks again.
pub(super) async fn bring_in(
    client: &kube::Client,
    namespace: &str,
    enter: &Enter,
    pod: Option<&Pod>,
    claim: Option<&PersistentVolumeClaim>,
) -> Result<(), Error> {
    let known = enter.pod.clone().or_else(|| Some((pod?.name_any(), pod?.uid()?)));
    let Some((name, uid)) = known else { return Ok(()) };
    if !enter.leased {
        let holder_now = claim.map(|claim| claim.annotations().get(annotation::LEASED_TO));
        let version = match (&enter.version, holder_now) {
            (_, Some(holder)) if holder != enter.holder_before.as_ref() => return Ok(()),
            (_, Some(_)) => claim.and_then(ResourceExt::resource_version),
            (version, None) => version.clone(),
        };
        let Some(version) = version else { return Ok(()) };
        let body = claims::lease(&version, &uid, &enter.user, enter.unused_for, enter.at);
        if !merge(client, namespace, &enter.claim, &body).await? {
            debug!(claim = enter.claim, "somebody was faster");
            return Ok(());
        }
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let body = json!({
        "metadata": { "uid": uid },
        "spec": { "schedulingGates": [{ "name": GATE, "$patch": "delete" }] },
    });
    match pods.patch(&name, &manager(), &Patch::Strategic(&body)).await {
        Ok(_) => debug!(pod = name, claim = enter.claim, "has its slot"),
        Err(error) if is(&error, 404) || is(&error, 409) => {}
        Err(error) => return Err(failed("take the pod's gate away")(error)),
    }
    Ok(())
}

/// Takes a lease off, if it is still that pod's, and writes down how much the cache takes.
pub(super) async fn give_back(client: &kube::Client, namespace: &str, back: &GiveBack) -> Result<(), Error> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    for _ in 0..TRIES_MAX {
        let found = claims.get_metadata_opt(&back.claim).await.map_err(failed("get the cache's volume"))?;
        let Some(found) = found else { return Ok(()) };
        let holder = found.annotations().get(annotation::LEASED_TO);
        if back.holder.is_some() && holder != back.holder.as_ref() {
            return Ok(());
        }
        let version = found.resource_version().unwrap_or_default();
        if merge(client, namespace, &back.claim, &claims::give_back(&version, back.used_bytes, back.at))
            .await?
        {
            return Ok(());
        }
    }
    // What is left is a holder that does not live: it keeps nobody out.
    Ok(())
}

/// Writes onto a claim; false if it changed or is gone.
async fn merge(client: &kube::Client, namespace: &str, claim: &str, body: &Value) -> Result<bool, Error> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    match claims.patch_metadata(claim, &manager(), &Patch::Merge(body)).await {
        Ok(_) => Ok(true),
        Err(error) if is(&error, 409) || is(&error, 404) => Ok(false),
        Err(error) => Err(failed("write onto the cache's volume")(error)),
    }
}

fn manager() -> PatchParams {
    PatchParams { field_manager: Some(field_manager().to_owned()), ..PatchParams::default() }
}

/// Looks through the slots of a namespace, or of all, again and again.
pub(super) async fn sweep_for_ever(
    client: kube::Client,
    namespace: Option<String>,
    except: Vec<String>,
    every: Duration,
) {
    if every.is_zero() {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(every).await;
        if let Err(error) = sweep(&client, namespace.as_deref(), &except, Timestamp::now()).await {
            warn!(%error, "cannot look through the caches' slots");
        }
    }
}

/// Deletes slots that were unused for too long, and takes leases off whose pods are gone.
async fn sweep(
    client: &kube::Client,
    namespace: Option<&str>,
    except: &[String],
    now: Timestamp,
) -> Result<(), Error> {
    let claims: Api<PersistentVolumeClaim> =
        namespace.map_or_else(|| Api::all(client.clone()), |name| Api::namespaced(client.clone(), name));
    let pods: Api<Pod> =
        namespace.map_or_else(|| Api::all(client.clone()), |name| Api::namespaced(client.clone(), name));
    let ours = format!("app.kubernetes.io/managed-by={},{}", field_manager(), label::SLOT);
    let found = claims.list(&ListParams::default().labels(&ours)).await.map_err(failed("list slots"))?;
    if found.items.is_empty() {
        return Ok(());
    }
    let pods = pods.list(&ListParams::default().labels(label::CACHE)).await.map_err(failed("list pods"))?;
    let mut living: BTreeMap<String, Vec<Holder>> = BTreeMap::new();
    for pod in &pods {
        living.entry(pod.namespace().unwrap_or_default()).or_default().extend(holder(pod));
    }
    let none = Vec::new();
    for claim in found.iter().filter(|claim| !except.contains(&claim.namespace().unwrap_or_default())) {
        let namespace = claim.namespace().unwrap_or_default();
        let living = living.get(&namespace).unwrap_or(&none);
        let Some(slot) = claims::slot(claim) else { continue };
        let created = claim.creation_timestamp().map(|time| time.0);
        if retention::expired(&slot, living, created, claims::unused_for(claim), now) {
            remove(client, &namespace, claim).await?;
        } else if slot.leased_to.is_some() && is_free(&slot, living) {
            let holder = slot.leased_to.clone();
            let back = GiveBack { claim: slot.claim, holder, used_bytes: None, at: now };
            give_back(client, &namespace, &back).await?;
        }
    }
    Ok(())
}

/// Deletes the very version of a slot that was looked at: one that was taken meanwhile stays.
async fn remove(client: &kube::Client, namespace: &str, claim: &PersistentVolumeClaim) -> Result<(), Error> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let name = claim.name_any();
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: claim.uid(), resource_version: claim.resource_version() }),
        ..DeleteParams::background()
    };
    match claims.delete(&name, &params).await {
        Ok(_) => {
            info!(namespace, claim = name, "deleted a cache slot that was unused for long");
            Ok(())
        }
        Err(error) if is(&error, 404) || is(&error, 409) => Ok(()),
        Err(error) => Err(failed("delete a cache slot")(error)),
    }
}
