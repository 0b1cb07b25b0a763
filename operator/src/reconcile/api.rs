//! The calls to the API server.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, PersistentVolumeClaim, Pod, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Resource, ResourceExt};
use lapstrake_crds::{ImageBuild, Reason, field_manager, label};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tracing::{debug, warn};

use crate::contexts;
use crate::observe::{
    Container, Observed, Owned, PodFacts, PodSecurity, Refusal, Why, strip_build, strip_pod,
};
use crate::plan::{MISSING_INPUT, Plan};
use crate::reconcile::{Context, Error, slots};

/// How applying a plan went.
pub(super) enum Applied {
    /// All of it is done.
    Done,
    /// The pod was refused, and nothing after it was done.
    Refused(Refusal),
}

pub(super) fn failed(doing: &'static str) -> impl FnOnce(kube::Error) -> Error {
    move |source| Error::Api { doing, source: Box::new(source) }
}

fn code(error: &kube::Error) -> Option<(u16, &str, &str)> {
    match error {
        kube::Error::Api(status) => Some((status.code, &status.reason, &status.message)),
        _ => None,
    }
}

pub(super) fn is(error: &kube::Error, wanted: u16) -> bool {
    code(error).is_some_and(|(code, ..)| code == wanted)
}

/// What the caches know.
pub(super) fn cached(build: &ImageBuild, ctx: &Context) -> Observed {
    let uid = build.uid().unwrap_or_default();
    let mut pods: Vec<PodFacts> = ctx
        .pods
        .state_filter(|pod| pod.labels().get(label::BUILD_UID) == Some(&uid))
        .iter()
        .map(|pod| PodFacts::of(pod))
        .collect();
    add_progress(&mut pods, ctx);
    Observed {
        build: build.clone(),
        pods,
        objects: Vec::new(),
        fresh: false,
        pod_security: None,
        pull_secrets: Vec::new(),
        slots: Vec::new(),
        holders: Vec::new(),
        leave: None,
        refusals: BTreeMap::new(),
        follow: ctx.pollers.look(build),
        contexts: context_facts(build, &ctx.builds, |name| cached_other(build, name, &ctx.builds)),
    }
}

/// What is known of the ImageBuilds that are contexts. Whether they go round in a circle the cache says.
fn context_facts(
    build: &ImageBuild,
    builds: &Store<ImageBuild>,
    mut state: impl FnMut(&str) -> contexts::State,
) -> contexts::Facts {
    let names = contexts::names(build);
    if names.is_empty() {
        return contexts::Facts::default();
    }
    let next = |name: &str| {
        let other = builds.get(&other_of(build, name));
        other.iter().flat_map(|other| contexts::names(other)).map(str::to_owned).collect()
    };
    let others = names.iter().map(|name| contexts::Other { name: (*name).to_owned(), state: state(name) });
    contexts::Facts { others: others.collect(), circle: contexts::circle(build, &next) }
}

fn cached_other(build: &ImageBuild, name: &str, builds: &Store<ImageBuild>) -> contexts::State {
    contexts::State::of(builds.get(&other_of(build, name)).as_deref())
}

fn other_of(build: &ImageBuild, name: &str) -> ObjectRef<ImageBuild> {
    ObjectRef::new(name).within(&build.namespace().unwrap_or_default())
}

fn add_progress(pods: &mut [PodFacts], ctx: &Context) {
    for pod in pods.iter_mut().filter(|pod| !pod.ended()) {
        pod.progress = ctx.followers.phase(&pod.uid);
    }
}

/// What the API server says now; none if the ImageBuild is gone.
pub(super) async fn fresh(build: &ImageBuild, ctx: &Context) -> Result<Option<Observed>, Error> {
    let namespace = build.namespace().unwrap_or_default();
    let uid = build.uid().unwrap_or_default();
    let client = || ctx.client.clone();
    let builds: Api<ImageBuild> = Api::namespaced(client(), &namespace);
    let pods: Api<Pod> = Api::namespaced(client(), &namespace);
    let maps: Api<ConfigMap> = Api::namespaced(client(), &namespace);
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client(), &namespace);
    let namespaces: Api<Namespace> = Api::all(client());
    let mine = ListParams::default().labels(&format!("{}={uid}", label::BUILD_UID));
    let name = build.name_any();
    let cache = build.spec.cache.volume.as_ref().and_then(|volume| volume.name.as_deref());
    // Before its own pods: who does not stand among them, and stood on a slot, is gone.
    let (slots, holders) = match cache {
        Some(cache) => slots::look(&ctx.client, &namespace, cache).await?,
        None => (Vec::new(), Vec::new()),
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(client(), &namespace);
    let secrets = pull_secrets(build, &accounts);
    let (build, pods, maps, claims, level, pull_secrets) = futures::try_join!(
        async { builds.get_opt(&name).await.map_err(failed("get the ImageBuild")) },
        async { pods.list(&mine).await.map_err(failed("list pods")) },
        async { maps.list_metadata(&mine).await.map_err(failed("list ConfigMaps")) },
        async { claims.list_metadata(&mine).await.map_err(failed("list PersistentVolumeClaims")) },
        async { pod_security(&namespaces, &namespace).await },
        async { Ok(secrets.await) },
    )?;
    let Some(mut build) = build.filter(|build| build.uid().as_deref() == Some(&uid)) else {
        return Ok(None);
    };
    strip_build(&mut build);
    let mut pods: Vec<PodFacts> = pods
        .items
        .into_iter()
        .map(|mut pod| {
            strip_pod(&mut pod);
            PodFacts::of(&pod)
        })
        .filter(|pod| pod.owner == uid)
        .collect();
    let objects = maps
        .items
        .iter()
        .map(|map| Owned::Request(map.name_any()))
        .chain(claims.items.iter().map(|claim| Owned::Volume(claim.name_any())))
        .collect();
    add_progress(&mut pods, ctx);
    let mut others = BTreeMap::new();
    for name in contexts::names(&build) {
        let other = builds.get_opt(name).await.map_err(failed("get an ImageBuild that is a context"))?;
        others.insert(name.to_owned(), contexts::State::of(other.as_ref()));
    }
    let state = |name: &str| others.remove(name).unwrap_or(contexts::State::Missing);
    Ok(Some(Observed {
        follow: ctx.pollers.look(&build),
        contexts: context_facts(&build, &ctx.builds, state),
        build,
        pods,
        objects,
        fresh: true,
        pod_security: Some(level),
        pull_secrets,
        slots,
        holders,
        leave: None,
        refusals: BTreeMap::new(),
    }))
}

async fn pod_security(namespaces: &Api<Namespace>, namespace: &str) -> Result<PodSecurity, Error> {
    let found = namespaces.get_metadata(namespace).await.map_err(failed("get the namespace"))?;
    Ok(PodSecurity::from_label(found.labels().get(label::POD_SECURITY_ENFORCE).map(String::as_str)))
}

/// Adds what Events say of pods that do not start.
pub(super) async fn add_hints(seen: &mut Observed, ctx: &Context) {
    let namespace = seen.build.namespace().unwrap_or_default();
    for pod in &mut seen.pods {
        let creating = match &pod.container {
            Container::Unseen => true,
            Container::Waiting(why) => why.reason == "ContainerCreating" || why.reason.is_empty(),
            Container::Running { .. } | Container::Ended(_) => false,
        };
        if pod.deleting || pod.ended() || !creating || pod.hint.is_some() {
            continue;
        }
        if pod.node.is_none() {
            if pod.unscheduled.as_ref().is_some_and(|why| why.message.contains("PersistentVolumeClaim")) {
                match volume_hint(&namespace, pod.claim.as_deref().unwrap_or_default(), ctx).await {
                    Ok(hint) => pod.hint = hint,
                    Err(error) => debug!(%error, "cannot read events"),
                }
            }
            continue;
        }
        // A pod that has just come to its node has no troubles yet.
        let young = pod.taken.is_none_or(|taken| jiff::Timestamp::now().duration_since(taken).as_secs() < 4);
        if young {
            continue;
        }
        match hint(&namespace, &pod.uid, ctx).await {
            Ok(hint) => pod.hint = hint.map(|why| explained(&seen.build, why, ctx)),
            // The message is a courtesy: without it the wait is only less well explained.
            Err(error) => debug!(%error, "cannot read events"),
        }
    }
}

/// Why the cache volume is not there.
async fn volume_hint(namespace: &str, claim: &str, ctx: &Context) -> Result<Option<Why>, kube::Error> {
    let events: Api<Event> = Api::namespaced(ctx.client.clone(), namespace);
    let about = ListParams::default()
        .fields(&format!("involvedObject.kind=PersistentVolumeClaim,involvedObject.name={claim}"))
        .limit(50);
    let mut events = events.list(&about).await?.items;
    // One of these is an ordinary Event, not a warning: that of a cluster without a default class.
    events.retain(|event| {
        matches!(event.reason.as_deref(), Some("ProvisioningFailed" | "FailedBinding" | "VolumeMismatch"))
    });
    events.sort_by_key(|event| event.last_timestamp.clone().map(|time| time.0));
    Ok(events.pop().map(|event| Why {
        reason: event.reason.unwrap_or_default(),
        message: event.message.unwrap_or_default(),
    }))
}

/// The same in the words of the spec, where it is about a Secret or a ConfigMap that a field names.
fn explained(build: &ImageBuild, why: Why, ctx: &Context) -> Why {
    if why.reason != "FailedMount" {
        return why;
    }
    match crate::plan::inputs::explain(build, &ctx.settings, &why.message) {
        Some(message) => Why { reason: MISSING_INPUT.to_owned(), message },
        None => why,
    }
}

/// Names of the Secrets for registries that the pod's ServiceAccount has; none where it may not be read.
async fn pull_secrets(build: &ImageBuild, accounts: &Api<ServiceAccount>) -> Vec<String> {
    let name = build.spec.pod.service_account_name.as_deref().unwrap_or("default");
    match accounts.get_opt(name).await {
        Ok(account) => {
            let secrets = account.and_then(|account| account.image_pull_secrets).unwrap_or_default();
            secrets.into_iter().map(|secret| secret.name).filter(|name| !name.is_empty()).collect()
        }
        Err(error) => {
            warn!(%error, account = name, "cannot read the ServiceAccount: its imagePullSecrets are not used");
            Vec::new()
        }
    }
}

/// The last warning about the pod.
async fn hint(namespace: &str, uid: &str, ctx: &Context) -> Result<Option<Why>, kube::Error> {
    let events: Api<Event> = Api::namespaced(ctx.client.clone(), namespace);
    let about = ListParams::default().fields(&format!("involvedObject.uid={uid},type=Warning")).limit(50);
    let mut events = events.list(&about).await?.items;
    // Not what keeps it from starting, and repeated with every try.
    events.retain(|event| event.reason.as_deref() != Some("MissingClusterDNS"));
    events.sort_by_key(|event| event.last_timestamp.clone().map(|time| time.0));
    Ok(events.pop().map(|event| Why {
        reason: event.reason.unwrap_or_default(),
        message: event.message.unwrap_or_default(),
    }))
}

/// Does what the plan says, in its order.
pub(super) async fn apply(seen: &Observed, plan: &Plan, ctx: &Context) -> Result<Applied, Error> {
    let namespace = seen.build.namespace().unwrap_or_default();
    let pods: Api<Pod> = Api::namespaced(ctx.client.clone(), &namespace);
    for (name, uid) in &plan.delete_pods {
        delete(&pods, name, Some(uid)).await?;
    }
    for owned in &plan.delete_objects {
        match owned {
            Owned::Request(name) => {
                delete(&Api::<ConfigMap>::namespaced(ctx.client.clone(), &namespace), name, None).await?;
            }
            Owned::Volume(name) => {
                delete(&Api::<PersistentVolumeClaim>::namespaced(ctx.client.clone(), &namespace), name, None)
                    .await?;
            }
        }
    }
    let mut claimed = None;
    if let Some(claim) = &plan.volume {
        match apply_claim(&Api::namespaced(ctx.client.clone(), &namespace), claim, seen).await? {
            Ok(claim) => claimed = claim,
            Err(refusal) => return Ok(Applied::Refused(refusal)),
        }
    }
    if let Some(map) = &plan.request {
        let maps: Api<ConfigMap> = Api::namespaced(ctx.client.clone(), &namespace);
        if let Err(error) = server_side_apply(&maps, map).await {
            return refused(error, "apply the request").map(Applied::Refused);
        }
    }
    let mut created = None;
    if let Some(pod) = &plan.create {
        match create(&pods, pod, seen).await? {
            Ok(pod) => created = Some(pod),
            Err(refusal) => return Ok(Applied::Refused(refusal)),
        }
    }
    if let Some(enter) = &plan.enter {
        slots::bring_in(&ctx.client, &namespace, enter, created.as_ref(), claimed.as_ref()).await?;
    }
    for back in &plan.give_back {
        slots::give_back(&ctx.client, &namespace, back).await?;
    }
    if let Some(status) = &plan.status {
        write_status(&seen.build, status, ctx).await?;
    }
    Ok(Applied::Done)
}

async fn delete<K>(api: &Api<K>, name: &str, uid: Option<&str>) -> Result<(), Error>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    debug!(object = name, "deletes");
    let params = DeleteParams {
        preconditions: uid.map(|uid| Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
        ..DeleteParams::background()
    };
    match api.delete(name, &params).await {
        Ok(_) => Ok(()),
        // It is gone, or another of the same name took its place.
        Err(error) if is(&error, 404) || is(&error, 409) => Ok(()),
        Err(error) => Err(failed("delete an object")(error)),
    }
}

async fn server_side_apply<K>(api: &Api<K>, object: &K) -> Result<K, kube::Error>
where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let params = PatchParams::apply(field_manager()).force();
    let mut body = serde_json::to_value(object).map_err(kube::Error::SerdeError)?;
    body["apiVersion"] = K::api_version(&()).into();
    body["kind"] = K::kind(&()).into();
    api.patch(&object.name_any(), &params, &Patch::Apply(&body)).await
}

/// Makes the cache volume what it must be, and gives it as it is then; says so if it cannot be had.
async fn apply_claim(
    claims: &Api<PersistentVolumeClaim>,
    claim: &PersistentVolumeClaim,
    seen: &Observed,
) -> Result<Result<Option<PersistentVolumeClaim>, Refusal>, Error> {
    let name = claim.name_any();
    let found = claims.get_metadata_opt(&name).await.map_err(failed("get the cache volume"))?;
    if let Some(refusal) = found.as_ref().and_then(|found| not_ours(&found.metadata, seen)) {
        return Ok(Err(refusal));
    }
    match server_side_apply(claims, claim).await {
        Ok(claim) => Ok(Ok(Some(claim))),
        // The volume is there, but cannot become what is asked for: build on it as it is.
        Err(error) if found.is_some() && (is(&error, 422) || is(&error, 403)) => {
            warn!(%error, "the cache volume stays as it is");
            Ok(Ok(None))
        }
        Err(error) => refused(error, "apply the cache volume").map(Err),
    }
}

/// Why a volume that has the name of ours cannot be taken for the cache, if it cannot: what is not
/// ours is neither written to nor deleted with the ImageBuild.
fn not_ours(found: &ObjectMeta, seen: &Observed) -> Option<Refusal> {
    let name = found.name.as_deref().unwrap_or_default();
    let (build, uid) = (seen.build.name_any(), seen.build.uid().unwrap_or_default());
    if found.deletion_timestamp.is_some() {
        return Some(Refusal::Leaving(format!(
            "waits until the PersistentVolumeClaim {name}, which was deleted, is gone"
        )));
    }
    let owner = found.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    let has = |key: &str, value: &str| found.labels.iter().flatten().any(|(k, v)| k == key && v == value);
    let shared = seen.build.spec.cache.volume.as_ref().and_then(|volume| volume.name.as_deref());
    let is_slot =
        |cache| has(label::CACHE, cache) && found.labels.iter().flatten().any(|(k, _)| k == label::SLOT);
    if owner.is_none() && has("app.kubernetes.io/managed-by", field_manager()) && shared.is_some_and(is_slot)
    {
        return None;
    }
    match owner {
        Some(owner) if owner.uid == uid => None,
        Some(owner) if owner.kind == ImageBuild::kind(&()) && owner.name == build => {
            Some(Refusal::Leaving(format!(
                "waits until the PersistentVolumeClaim {name} of the deleted ImageBuild of the same name is gone"
            )))
        }
        // Orphaned on purpose, to keep the cache: the next ImageBuild of this name takes it over.
        None if has(label::BUILD, &crate::names::label_value(&build))
            && has("app.kubernetes.io/managed-by", field_manager()) =>
        {
            None
        }
        _ => Some(Refusal::NameTaken(format!(
            "a PersistentVolumeClaim named {name} is there already and is not of this ImageBuild, whose cache \
             would have that name: delete it, or set cache.emptyDir, or give the ImageBuild another name"
        ))),
    }
}

/// Creates the pod; says so if it was refused.
///
/// A plain create, not an apply: of two that try, one gets the name.
async fn create(pods: &Api<Pod>, pod: &Pod, seen: &Observed) -> Result<Result<Pod, Refusal>, Error> {
    let params = PostParams { field_manager: Some(field_manager().to_owned()), ..PostParams::default() };
    match pods.create(&params, pod).await {
        Ok(created) => {
            debug!(pod = pod.name_any(), "created");
            Ok(Ok(created))
        }
        Err(error) if code(&error).is_some_and(|(_, reason, _)| reason == "AlreadyExists") => {
            let found = pods.get_metadata_opt(&pod.name_any()).await.map_err(failed("get the pod"))?;
            let uid = seen.build.uid().unwrap_or_default();
            match found {
                Some(found) if found.owner_references().iter().any(|owner| owner.uid == uid) => {
                    Err(Error::Conflict)
                }
                Some(_) => Ok(Err(Refusal::NameTaken(format!(
                    "a pod named {} is there already and belongs to somebody else: delete it, then ask for a new run",
                    pod.name_any()
                )))),
                None => Err(Error::Conflict),
            }
        }
        Err(error) => refused(error, "create the builder pod").map(Err),
    }
}

/// Sorts out why an object was not taken.
fn refused(error: kube::Error, doing: &'static str) -> Result<Refusal, Error> {
    let refusal = code(&error).and_then(|(code, _, message)| match code {
        403 if message.contains("exceeded quota") || message.contains("failed quota") => {
            Some(Refusal::Quota(message.to_owned()))
        }
        403 if message.contains("violates PodSecurity") => Some(Refusal::PodSecurity(message.to_owned())),
        // The namespace is going: so is the ImageBuild.
        403 if message.contains("is being terminated") => None,
        // Ours to be granted, not the user's to change; but the user must learn of it.
        403 if message.contains("cannot create resource")
            || message.contains("cannot patch resource")
            || message.contains("cannot set blockOwnerDeletion") =>
        {
            Some(Refusal::NotYet(
                Reason::Queued,
                format!("the operator lacks a right that its administrator must grant: {message}"),
            ))
        }
        403 if message.contains("error looking up service account") => Some(Refusal::NotYet(
            Reason::WaitingForServiceAccount,
            format!("create the ServiceAccount, or name another in pod.serviceAccountName: {message}"),
        )),
        // A webhook that is down may stay so for long.
        500 if message.contains("failed calling webhook") => Some(Refusal::NotYet(
            Reason::Queued,
            format!("a webhook of the cluster does not answer: {message}"),
        )),
        400 | 403 | 413 | 422 => Some(Refusal::Rejected(message.to_owned())),
        _ => None,
    });
    refusal.ok_or_else(|| failed(doing)(error))
}

/// Writes the status over the one that the plan was made from, and over no other.
async fn write_status(
    build: &ImageBuild,
    status: &lapstrake_crds::ImageBuildStatus,
    ctx: &Context,
) -> Result<(), Error> {
    let namespace = build.namespace().unwrap_or_default();
    let builds: Api<ImageBuild> = Api::namespaced(ctx.client.clone(), &namespace);
    let body = json!({
        "apiVersion": format!("{}/{}", lapstrake_crds::GROUP, lapstrake_crds::VERSION),
        "kind": "ImageBuild",
        "metadata": {
            "name": build.name_any(),
            "uid": build.uid(),
            "resourceVersion": build.resource_version(),
        },
        "status": status,
    });
    let params = PatchParams::apply(field_manager()).force();
    match builds.patch_status(&build.name_any(), &params, &Patch::Apply(&body)).await {
        Ok(_) => {
            debug!(build = %ObjectRef::from_obj(build), "status written");
            Ok(())
        }
        Err(error) if is(&error, 409) => Err(Error::Conflict),
        Err(error) if is(&error, 404) => Ok(()),
        Err(error) => Err(failed("write the status")(error)),
    }
}
