use std::collections::VecDeque;
use std::pin::pin;

use http::{Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::{Value, json};
use tower_test::mock;

use super::*;

/// Answers each request with the next of `answers`, the last of them for ever, and sends on what was asked.
fn api(answers: Vec<(u16, Value)>) -> (kube::Client, tokio::sync::mpsc::UnboundedReceiver<(String, Value)>) {
    let (service, handle) = mock::pair::<Request<Body>, Response<Body>>();
    let (asked, requests) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut handle = pin!(handle);
        let mut answers: VecDeque<_> = answers.into();
        while let Some((request, send)) = handle.next_request().await {
            let method = request.method().to_string();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            asked.send((method, body)).ok();
            let (code, value) =
                if answers.len() > 1 { answers.pop_front().unwrap() } else { answers[0].clone() };
            send.send_response(
                Response::builder()
                    .status(code)
                    .body(Body::from(serde_json::to_vec(&value).unwrap()))
                    .unwrap(),
            );
        }
    });
    (kube::Client::new(service, "ns"), requests)
}

fn lease(holder: &str, seconds: i32, version: &str) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "name": "lease", "namespace": "ns", "resourceVersion": version },
        "spec": {
            "holderIdentity": holder, "leaseDurationSeconds": seconds, "leaseTransitions": 3,
            // Long ago by anybody's clock.
            "renewTime": "2001-01-01T00:00:00.000000Z",
        },
    })
}

fn refusal(code: u16, reason: &str) -> (u16, Value) {
    (
        code,
        json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason }),
    )
}

fn me() -> Candidate {
    Candidate {
        retry_period: Duration::from_millis(2),
        renew_deadline: Duration::from_millis(60),
        ..Candidate::new("ns".into(), "lease".into(), "me".into())
    }
}

#[tokio::test]
async fn a_lease_that_is_not_there_is_created() {
    let (client, mut asked) = api(vec![refusal(404, "NotFound"), (201, lease("me", 15, "1"))]);
    assert!(Elector::new(client, me()).try_once().await.unwrap());
    assert_eq!(asked.recv().await.unwrap().0, "GET");
    let (method, body) = asked.recv().await.unwrap();
    assert_eq!((method.as_str(), body["spec"]["holderIdentity"].as_str()), ("POST", Some("me")));
}

#[tokio::test]
async fn of_two_that_create_it_one_loses() {
    let (client, _asked) = api(vec![refusal(404, "NotFound"), refusal(409, "AlreadyExists")]);
    assert!(!Elector::new(client, me()).try_once().await.unwrap());
}

#[tokio::test]
async fn a_foreign_lease_is_not_expired_by_its_date() {
    let (client, mut asked) = api(vec![(200, lease("other", 15, "7"))]);
    assert!(!Elector::new(client, me()).try_once().await.unwrap());
    assert_eq!(asked.recv().await.unwrap().0, "GET");
    assert!(asked.try_recv().is_err(), "nothing is written");
}

#[tokio::test]
async fn a_foreign_lease_that_stood_still_for_its_length_is_taken_over_the_version_read() {
    let (client, mut asked) = api(vec![(200, lease("other", 0, "7")), (200, lease("me", 15, "8"))]);
    assert!(Elector::new(client, me()).try_once().await.unwrap());
    asked.recv().await.unwrap();
    let (method, body) = asked.recv().await.unwrap();
    assert_eq!(method, "PUT");
    assert_eq!(body["metadata"]["resourceVersion"], "7");
    assert_eq!(body["spec"]["leaseTransitions"], 4);
    assert_eq!(body["spec"]["leaseDurationSeconds"], 15);
}

#[tokio::test]
async fn a_write_in_between_wins() {
    let (client, _asked) = api(vec![(200, lease("", 1, "7")), refusal(409, "Conflict")]);
    assert!(!Elector::new(client, me()).try_once().await.unwrap());
}

#[tokio::test]
async fn a_write_over_ours_that_takes_nothing_ends_no_leadership() {
    let (client, _asked) = api(vec![
        (200, lease("me", 15, "7")),
        (200, lease("me", 15, "7")),
        (200, lease("me", 15, "7")),
        refusal(409, "Conflict"),
        (200, lease("me", 15, "9")),
    ]);
    let mut elector = Elector::new(client, me());
    assert!(elector.try_once().await.unwrap());
    assert!(elector.try_once().await.is_err(), "not renewed, and not lost either");
    assert!(elector.try_once().await.unwrap());
}

#[tokio::test]
async fn a_renewal_keeps_the_time_of_its_taking() {
    let mut mine = lease("me", 15, "7");
    mine["spec"]["acquireTime"] = json!("2020-01-01T00:00:00.000000Z");
    let (client, mut asked) = api(vec![(200, mine.clone()), (200, mine)]);
    assert!(Elector::new(client, me()).try_once().await.unwrap());
    asked.recv().await.unwrap();
    let (_, body) = asked.recv().await.unwrap();
    assert!(body["spec"]["acquireTime"].as_str().unwrap().starts_with("2020-01-01"));
    assert_eq!(body["spec"]["leaseTransitions"], 3);
}

#[tokio::test]
async fn a_leader_that_ends_hands_the_lease_back() {
    let (client, mut asked) = api(vec![(200, lease("me", 15, "7"))]);
    let (leads, mut lead) = watch::channel(false);
    let stop = CancellationToken::new();
    let elector = tokio::spawn(Elector::new(client, me()).run(leads, stop.clone()));
    lead.wait_for(|leads| *leads).await.unwrap();
    stop.cancel();
    elector.await.unwrap();
    let mut last = None;
    while let Some((method, body)) = asked.recv().await {
        if method == "PUT" {
            last = Some(body);
        }
    }
    assert_eq!(last.unwrap()["spec"]["holderIdentity"], "");
}

#[tokio::test]
async fn a_leader_that_cannot_renew_gives_up() {
    let (client, _asked) =
        api(vec![(200, lease("me", 15, "7")), (200, lease("me", 15, "7")), refusal(500, "InternalError")]);
    let (leads, mut lead) = watch::channel(false);
    let stop = CancellationToken::new();
    let elector = tokio::spawn(Elector::new(client, me()).run(leads, stop.clone()));
    lead.wait_for(|leads| *leads).await.unwrap();
    lead.wait_for(|leads| !*leads).await.unwrap();
    stop.cancel();
    elector.await.unwrap();
}
