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
        ("GET", "pods") => (200, list("PodList")),
        ("GET", "configmaps" | "persistentvolumeclaims") => (
            200,
            json!({ "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": {}, "items": [] }),
        ),
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
    let settings =
        Arc::new(Settings { builder_image: "registry.example/builder:1".into(), ..Settings::default() });
    let context = Context::new(
        client.clone(),
        settings,
        pods,
        Arc::new(Metrics::new()),
        Recorder::new(client.clone(), "me".into()),
        Followers::new(client, trigger),
    );
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
