use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex};

use futures::channel::mpsc;
use http::{Request, Response};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::Pod;
use kube::client::Body;
use kube::runtime::reflector;
use lapstrake_crds::{ImageBuild, ImageBuildSpec, InlineFile, InlineSource, Output, Source};
use serde_json::{Value, json};
use tower_test::mock;

use super::*;
use crate::follow::Registries;

/// One request that the API server got.
#[derive(Clone, Debug)]
struct Asked {
    method: String,
    path: String,
    query: String,
    body: Value,
}

type Log = Arc<Mutex<Vec<Asked>>>;
/// Answers that differ from the usual, by method and path.
type Answers = BTreeMap<(&'static str, &'static str), (u16, Value)>;

fn build() -> ImageBuild {
    let file = InlineFile { path: "Dockerfile".into(), content: "FROM scratch\n".into(), executable: false };
    let source = Source { inline: Some(InlineSource { files: vec![file] }), ..Source::default() };
    let output = Output { image: "registry.example/web".into(), ..Output::default() };
    let mut build = ImageBuild::new("web", ImageBuildSpec { source, output, ..ImageBuildSpec::default() });
    build.metadata.namespace = Some("shop".into());
    build.metadata.uid = Some("u1".into());
    build.metadata.generation = Some(1);
    build.metadata.resource_version = Some("41".into());
    build
}

fn usual(method: &str, path: &str) -> (u16, Value) {
    let list = |kind: &str| json!({ "apiVersion": "v1", "kind": kind, "metadata": {}, "items": [] });
    let meta = |name: &str| json!({ "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": { "name": name } });
    match (method, path.rsplit('/').next().unwrap_or_default()) {
        ("GET", "web") | ("PATCH", "status") => (200, serde_json::to_value(build()).unwrap()),
        ("GET", "shop") => (200, meta("shop")),
        ("GET", "default") => {
            (200, json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } }))
        }
        ("GET", "pods") => (200, list("PodList")),
        ("GET", "configmaps" | "persistentvolumeclaims") => (
            200,
            json!({ "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": {}, "items": [] }),
        ),
        ("GET", "web-cache") => refusal(404, "NotFound", "persistentvolumeclaims \"web-cache\" not found"),
        ("PATCH", _) if path.contains("/configmaps/") => {
            (200, json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "x" } }))
        }
        ("PATCH", _) => {
            (200, json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": "x" } }))
        }
        ("POST", "pods") => (201, json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "x" } })),
        ("POST", "events") => (
            201,
            json!({ "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": { "name": "x" }, "eventTime": null }),
        ),
        other => panic!("nobody expected {other:?}"),
    }
}

fn refusal(code: u16, reason: &str, message: &str) -> (u16, Value) {
    (
        code,
        json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message }),
    )
}

fn context(answers: Answers) -> (Arc<Context>, Log) {
    let (service, handle) = mock::pair::<Request<Body>, Response<Body>>();
    let log: Log = Arc::default();
    let kept = log.clone();
    tokio::spawn(async move {
        let mut handle = pin!(handle);
        while let Some((request, send)) = handle.next_request().await {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let asked = Asked {
                method: parts.method.to_string(),
                path: parts.uri.path().to_owned(),
                query: parts.uri.query().unwrap_or_default().to_owned(),
                body: serde_json::from_slice(&body).unwrap_or_default(),
            };
            let last = asked.path.rsplit('/').next().unwrap_or_default();
            let special = answers.iter().find(|((method, end), _)| *method == asked.method && *end == last);
            let (code, value) =
                special.map_or_else(|| usual(&asked.method, &asked.path), |(_, answer)| answer.clone());
            kept.lock().unwrap().push(asked);
            send.send_response(
                Response::builder()
                    .status(code)
                    .body(Body::from(serde_json::to_vec(&value).unwrap()))
                    .unwrap(),
            );
        }
    });
    let client = kube::Client::new(service, "default");
    let (pods, mut writer) = reflector::store::<Pod>();
    writer.apply_watcher_event(&kube::runtime::watcher::Event::InitDone);
    // The store lives as long as its writer.
    std::mem::forget(writer);
    let (trigger, _triggers) = mpsc::channel(1);
    let (builds, _) = reflector::store();
    let pollers = Pollers::new(Registries::new("").unwrap(), trigger.clone(), builds.clone());
    let settings =
        Arc::new(Settings { builder_image: "registry.example/builder:1".into(), ..Settings::default() });
    let context = Context {
        settings,
        pods,
        builds,
        metrics: Arc::new(Metrics::new()),
        recorder: Recorder::new(client.clone(), "me".into()),
        followers: Followers::new(client.clone(), trigger),
        client,
        pollers,
        board: Arc::default(),
        errors: Mutex::default(),
    };
    (Arc::new(context), log)
}

async fn go(answers: Answers) -> (Result<Action, Error>, Vec<Asked>) {
    let (ctx, log) = context(answers);
    let result = reconcile(Arc::new(build()), ctx).await;
    let log = log.lock().unwrap().clone();
    (result, log)
}

#[tokio::test]
async fn a_new_build_is_looked_at_closely_then_applied_in_order() {
    let (result, log) = go(Answers::new()).await;
    // The pod's creation is an event: nothing else needs to wake us.
    assert_eq!(result.unwrap(), Action::await_change());
    let writes: Vec<_> = log.iter().filter(|asked| asked.method != "GET").collect();
    let kinds: Vec<_> = writes
        .iter()
        .map(|asked| {
            let part = ["persistentvolumeclaims", "configmaps", "pods", "imagebuilds", "events"];
            (asked.method.as_str(), *part.iter().find(|part| asked.path.contains(**part)).unwrap())
        })
        .collect();
    assert_eq!(
        kinds,
        [
            ("PATCH", "persistentvolumeclaims"),
            ("PATCH", "configmaps"),
            ("POST", "pods"),
            ("PATCH", "imagebuilds"),
            ("POST", "events")
        ]
    );
    for asked in writes.iter().filter(|asked| asked.method == "PATCH") {
        assert!(
            asked.query.contains("fieldManager=lapstrake-operator") && asked.query.contains("force=true"),
            "{}",
            asked.query
        );
        assert!(asked.body["kind"].is_string(), "an apply names its kind");
    }
    let status = &writes[3];
    assert!(status.path.ends_with("/imagebuilds/web/status"));
    assert_eq!(status.body["metadata"]["resourceVersion"], "41", "over this version and no other");
    assert_eq!(status.body["status"]["observedGeneration"], 1);
    assert_eq!(writes[2].body["metadata"]["ownerReferences"][0]["uid"], "u1");
}

#[tokio::test]
async fn a_quota_becomes_a_wait_on_status() {
    let (result, log) = go(Answers::from([(
        ("POST", "pods"),
        refusal(403, "Forbidden", "pods \"x\" is forbidden: exceeded quota: q"),
    )]))
    .await;
    assert_eq!(result.unwrap(), Action::requeue(crate::settings::limits::QUOTA_RECHECK));
    let status = log.iter().rfind(|asked| asked.path.ends_with("/status")).unwrap();
    assert_eq!(status.body["status"]["reason"], "WaitingForQuota");
}

#[tokio::test]
async fn pod_security_that_refuses_is_said_on_status() {
    let words = "pods \"x\" is forbidden: violates PodSecurity \"baseline:latest\": non-default capabilities";
    let (result, log) = go(Answers::from([(("POST", "pods"), refusal(403, "Forbidden", words))])).await;
    assert!(result.is_ok());
    let status = log.iter().rfind(|asked| asked.path.ends_with("/status")).unwrap();
    assert_eq!(status.body["status"]["reason"], "SandboxUnavailable");
    assert!(status.body["status"]["failure"]["message"].as_str().unwrap().contains("baseline"));
}

#[tokio::test]
async fn a_newer_status_is_never_overwritten() {
    let (result, _) = go(Answers::from([(("PATCH", "status"), refusal(409, "Conflict", "changed"))])).await;
    assert!(matches!(result, Err(Error::Conflict)));
}

#[tokio::test]
async fn an_error_of_the_api_server_is_not_a_failed_build() {
    let (result, log) = go(Answers::from([(("POST", "pods"), refusal(500, "InternalError", "etcd"))])).await;
    assert!(matches!(result, Err(Error::Api { .. })));
    assert!(!log.iter().any(|asked| asked.path.ends_with("/status")));
}

#[tokio::test]
async fn a_build_that_is_gone_is_left_alone() {
    let (result, log) = go(Answers::from([(("GET", "web"), refusal(404, "NotFound", "gone"))])).await;
    assert_eq!(result.unwrap(), Action::await_change());
    assert!(log.iter().all(|asked| asked.method == "GET"));
}

/// The last status that was written.
fn told(log: &[Asked]) -> &Value {
    &log.iter().rfind(|asked| asked.path.ends_with("/status")).expect("a status").body["status"]
}

#[tokio::test]
async fn whatever_refuses_the_volume_is_said_on_status() {
    let cases = [
        (refusal(403, "Forbidden", "\"web-cache\" is forbidden: exceeded quota: q"), "WaitingForQuota"),
        (refusal(422, "Invalid", "\"web-cache\" is invalid: spec.storageClassName"), "PodRejected"),
    ];
    for (answer, reason) in cases {
        let (result, log) = go(Answers::from([(("PATCH", "web-cache"), answer)])).await;
        assert!(result.is_ok(), "{result:?}");
        assert_eq!(told(&log)["reason"], reason);
        assert!(!log.iter().any(|asked| asked.method == "POST" && asked.path.ends_with("/pods")));
    }
}

#[tokio::test]
async fn what_a_pod_lacks_is_a_wait_on_status() {
    let cases = [
        (
            403,
            "error looking up service account shop/ci: serviceaccount \"ci\" not found",
            "WaitingForServiceAccount",
        ),
        (403, "User \"operator\" cannot create resource \"pods\" in API group", "Queued"),
        (500, "Internal error occurred: failed calling webhook \"policy\"", "Queued"),
    ];
    for (code, words, reason) in cases {
        let (result, log) = go(Answers::from([(("POST", "pods"), refusal(code, "Forbidden", words))])).await;
        assert_eq!(result.unwrap(), Action::requeue(crate::settings::limits::QUOTA_RECHECK), "{words}");
        assert_eq!(told(&log)["reason"], reason);
        assert!(told(&log)["conditions"][0]["message"].as_str().unwrap().contains(words));
    }
}

/// A claim with the name of the cache volume.
fn claim(metadata: Value) -> Answers {
    let mut metadata = metadata;
    metadata["name"] = "web-cache".into();
    let found =
        json!({ "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata });
    Answers::from([(("GET", "web-cache"), (200, found))])
}

fn owned_by(uid: &str, name: &str) -> Value {
    json!({ "ownerReferences": [{
        "apiVersion": "lapstrake.dev/v1alpha1", "kind": "ImageBuild", "name": name, "uid": uid, "controller": true,
    }] })
}

#[tokio::test]
async fn a_volume_of_somebody_else_is_not_touched() {
    for metadata in
        [json!({}), owned_by("u0", "other"), json!({ "labels": { "lapstrake.dev/build": "web" } })]
    {
        let (result, log) = go(claim(metadata.clone())).await;
        assert_eq!(result.unwrap(), Action::await_change());
        assert_eq!(told(&log)["reason"], "PodRejected", "{metadata}");
        assert!(
            log.iter().all(|asked| asked.method == "GET" || !asked.path.contains("/persistentvolumeclaims/"))
        );
    }
}

#[tokio::test]
async fn a_volume_that_is_going_is_waited_for() {
    for metadata in [owned_by("u0", "web"), json!({ "deletionTimestamp": "2026-01-01T00:00:00Z" })] {
        let (result, log) = go(claim(metadata.clone())).await;
        assert_eq!(result.unwrap(), Action::requeue(crate::settings::limits::LEAVING_RECHECK));
        assert_eq!(told(&log)["reason"], "Queued", "{metadata}");
        assert!(!log.iter().any(|asked| asked.method == "POST" && asked.path.ends_with("/pods")));
    }
}

#[tokio::test]
async fn a_volume_of_ours_and_one_that_was_orphaned_are_built_on() {
    let orphan = json!({ "labels": {
        "lapstrake.dev/build": "web", "app.kubernetes.io/managed-by": "lapstrake-operator",
    } });
    for metadata in [owned_by("u1", "web"), orphan] {
        let (result, log) = go(claim(metadata)).await;
        assert!(result.is_ok());
        assert!(log.iter().any(|asked| asked.method == "PATCH" && asked.path.ends_with("/web-cache")));
        assert!(log.iter().any(|asked| asked.method == "POST" && asked.path.ends_with("/pods")));
    }
}

#[tokio::test]
async fn conflicts_that_repeat_are_no_storm() {
    let (ctx, _) = context(Answers::new());
    let build = Arc::new(build());
    let waits: Vec<_> = (0..8).map(|_| error_policy(build.clone(), &Error::Conflict, ctx.clone())).collect();
    assert_eq!(waits[0], Action::requeue(Duration::from_millis(50)));
    assert_eq!(waits[7], Action::requeue(Duration::from_millis(3200)));
}
