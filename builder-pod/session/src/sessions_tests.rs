use std::time::Duration;

use futures::StreamExt as _;
use lapstrake_api::control::BytesMessage;
use tonic::Code;
use tonic::service::Routes;

use crate::testing::{attach, connect, introduce};
use crate::{Error, Sessions, method};

const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_session_is_what_its_client_said_of_itself() {
    let client = connect(Routes::default(), &[method::SECRET, method::SYNC]).await;
    let session = &client.session;
    assert_eq!((session.id(), session.name(), session.shared_key()), ("one", "test", "key"));
    assert!(session.serves("/moby.filesync.v1.filesync/diffcopy") && session.serves(method::SECRET));
    assert!(!session.serves(method::SEND));
    assert_eq!(client.sessions.count(), 1);
}

#[tokio::test]
async fn one_who_asks_before_the_client_came_waits_for_it() {
    let sessions = Sessions::default();
    let waiting = tokio::spawn({
        let sessions = sessions.clone();
        async move { sessions.get("context:late", SOON).await.map(|session| session.id().to_owned()) }
    });
    tokio::task::yield_now().await;
    let _other = attach(&sessions, "other", Routes::default(), &[]);
    let _client = attach(&sessions, "late", Routes::default(), &[]);
    assert_eq!(waiting.await.expect("join").expect("session"), "late");
}

#[tokio::test]
async fn a_client_that_does_not_come_is_named() {
    let error = Sessions::default().get("nobody", Duration::from_millis(1)).await.expect_err("none");
    assert!(error.to_string().starts_with("no active session for nobody: "), "{error}");
}

#[tokio::test]
async fn a_client_that_vanishes_is_forgotten() {
    let client = connect(Routes::default(), &[]).await;
    let sessions = client.sessions.clone();
    let session = client.vanish();
    tokio::time::timeout(SOON, session.closed().cancelled()).await.expect("closed");
    while sessions.count() > 0 {
        tokio::task::yield_now().await;
    }
    assert!(matches!(sessions.get("one", Duration::ZERO).await, Err(Error::NoSession { .. })));
}

#[tokio::test]
async fn an_id_that_is_in_use_is_refused_and_so_is_none() {
    let client = connect(Routes::default(), &[]).await;
    let refused = |id: &str| {
        let inbound = futures::stream::pending();
        client.sessions.attach(&introduce(id, &[]), inbound).err().map(|status| status.code())
    };
    assert_eq!(refused("one"), Some(Code::AlreadyExists));
    assert_eq!(refused(""), Some(Code::InvalidArgument));
    assert_eq!(client.sessions.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_answer_its_health_checks_is_closed() {
    // Bytes go nowhere, and none come.
    let sessions = Sessions::default();
    let _outbound = sessions.attach(&introduce("mute", &[]), futures::stream::pending()).expect("attach");
    let session = sessions.get("mute", SOON).await.expect("session");
    let started = tokio::time::Instant::now();
    session.closed().cancelled().await;
    // Two checks of 15 s, 5 s before each.
    assert_eq!(started.elapsed().as_secs(), 40);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_asked_nothing_is_sent_nothing_and_may_leave() {
    let sessions = Sessions::default();
    let (client, inbound) = tokio::sync::mpsc::channel(8);
    let inbound = tokio_stream::wrappers::ReceiverStream::new(inbound);
    let mut outbound = sessions.attach(&introduce("one", &[]), inbound).expect("attach");
    // A server says what it can do before it is asked.
    client.send(Ok(BytesMessage { data: b"settings".to_vec() })).await.expect("read");
    let quiet = tokio::time::timeout(Duration::from_secs(4), outbound.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    drop(client);
    assert!(outbound.next().await.is_none());
    while sessions.count() > 0 {
        tokio::task::yield_now().await;
    }
}
