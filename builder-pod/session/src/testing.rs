//! A client in the same process: a gRPC server behind the tunnel, as BuildKit's clients are.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use lapstrake_api::control::BytesMessage;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::service::Routes;

use crate::{Session, Sessions};

/// A client that is connected, until this is dropped.
pub(crate) struct Connected {
    pub(crate) session: Arc<Session>,
    pub(crate) sessions: Sessions,
    gone: DropGuard,
}

impl Connected {
    /// The client vanishes without a word.
    pub(crate) fn vanish(self) -> Arc<Session> {
        drop(self.gone);
        self.session
    }
}

pub(crate) fn introduce(id: &str, methods: &[&str]) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    metadata.insert("x-docker-expose-session-uuid", id.parse().expect("id"));
    metadata.insert("x-docker-expose-session-name", AsciiMetadataValue::from_static("test"));
    metadata.insert("x-docker-expose-session-sharedkey", AsciiMetadataValue::from_static("key"));
    for method in methods {
        metadata.append("x-docker-expose-session-grpc-method", method.parse().expect("method"));
    }
    metadata
}

/// Connects a client that serves `routes`, and says that these are `methods`.
pub(crate) async fn connect(routes: Routes, methods: &[&str]) -> Connected {
    let sessions = Sessions::default();
    let gone = attach(&sessions, "one", routes, methods);
    let session = sessions.get("one", Duration::from_secs(5)).await.expect("session");
    Connected { session, sessions, gone: gone.drop_guard() }
}

/// The same for an id of many; it vanishes when the token fires.
pub(crate) fn attach(sessions: &Sessions, id: &str, routes: Routes, methods: &[&str]) -> CancellationToken {
    let (sender, receiver) = mpsc::channel(8);
    let inbound = ReceiverStream::new(receiver);
    let outbound = sessions.attach(&introduce(id, methods), inbound).expect("attach");
    let gone = CancellationToken::new();
    let (near, far) = tokio::io::duplex(64 << 10);
    let (mut reader, mut writer) = tokio::io::split(near);
    let to_daemon = async move {
        let mut buffer = vec![0; 32 << 10];
        while let Ok(read @ 1..) = reader.read(&mut buffer).await {
            let data = buffer[..read].to_vec();
            if sender.send(Ok(BytesMessage { data })).await.is_err() {
                return;
            }
        }
    };
    let from_daemon = async move {
        let mut outbound = outbound;
        while let Some(Ok(message)) = outbound.next().await {
            if writer.write_all(&message.data).await.is_err() {
                return;
            }
        }
    };
    let serve = tonic::transport::Server::builder().add_routes(routes).serve_with_incoming(
        futures::stream::iter([Ok::<_, std::io::Error>(far)]).chain(futures::stream::pending()),
    );
    let until = gone.clone();
    tokio::spawn(async move {
        let all = async { tokio::join!(to_daemon, from_daemon, serve) };
        let _ = until.run_until_cancelled(all).await;
    });
    gone
}
