//! Spans of builds, as a collector gets them.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use lapstrake_testkit::peer;
use prost::Message as _;
use tokio::sync::mpsc;

use super::hostile::{chain, file_op, mkfile};
use super::{Place, text};

const ARRIVES_MAX: Duration = Duration::from_secs(30);

/// A collector that takes OTLP over HTTP: its address, and what it was sent.
async fn collector() -> (String, mpsc::UnboundedReceiver<Vec<u8>>) {
    let (send, receive) = mpsc::unbounded_channel();
    let take = move |body: axum::body::Bytes| async move {
        send.send(body.to_vec()).ok();
    };
    let service = axum::Router::new().route("/v1/traces", axum::routing::post(take));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, service).await });
    (address, receive)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_gets_the_spans_of_builds_and_of_their_steps() {
    let (address, mut received) = collector().await;
    let place = Place::new();
    let variables =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", address.as_str()), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")];
    let mut daemon = place.daemon_in(&variables, &[]);
    daemon.ready(&place);
    let definition = chain(vec![file_op(mkfile("/seen-by-a-collector"), -1)]);
    let mut build = Command::new(peer::buildctl())
        .args(["--addr", &place.address(), "build", "--progress", "plain"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    build.stdin.take().unwrap().write_all(&definition.encode_to_vec()).unwrap();
    let ended = build.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", text(&ended.stderr));
    let step = async {
        while let Some(request) = received.recv().await {
            if text(&request).contains("seen-by-a-collector") {
                return request;
            }
        }
        panic!("the collector has ended");
    };
    let request = tokio::time::timeout(ARRIVES_MAX, step).await.expect("the step's span");
    assert!(text(&request).contains("buildkitd"), "it says whose it is: {}", text(&request));
    // One that takes nothing holds up nobody.
    drop(received);
    let again = Command::new(peer::buildctl()).args(["--addr", &place.address(), "du"]).output().unwrap();
    assert!(again.status.success(), "{}", text(&again.stderr));
}
