//! The clients that are connected.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt};
use hyper_util::rt::TokioIo;
use lapstrake_api::control::BytesMessage;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};

use crate::error::Error;
use crate::header::Introduction;
use crate::health;
use crate::session::Session;
use crate::tunnel::Tunnel;

/// What `Control.Session` answers: bytes of the tunnel.
pub type Outbound = Pin<Box<dyn Stream<Item = Result<BytesMessage, Status>> + Send + 'static>>;

/// Sessions that a daemon holds at once; each costs some memory even when it is silent.
const SESSIONS_MAX: usize = 10_000;
/// What one call may have on the way, and what all calls of a session may.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// No stream is sent more than its own window. What a connection may send in small pieces, as the list of a directory's files is,
/// goes by this window: HTTP/2's library ends a connection of which unread pieces take more than half of it, with what it
/// needs to keep each of them.
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

/// The clients that are connected, by the id that each gave itself. Clones are the same set.
#[derive(Clone, Default)]
pub struct Sessions {
    shared: Arc<Shared>,
}

struct Shared {
    by_id: Mutex<HashMap<String, Arc<Session>>>,
    /// Counts arrivals, for those who wait for one.
    arrivals: watch::Sender<u64>,
    auth_timeout: Option<Duration>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            by_id: Mutex::default(),
            arrivals: watch::Sender::new(0),
            auth_timeout: Some(crate::auth::TIMEOUT_DEFAULT),
        }
    }
}

impl Sessions {
    /// None yet; each may take as long as this to answer for a registry, for ever where it is `None`.
    pub fn with_auth_timeout(auth_timeout: Option<Duration>) -> Self {
        Self { shared: Arc::new(Shared { auth_timeout, ..Shared::default() }) }
    }

    /// Serves one `Control.Session` call: `metadata` and `inbound` are its request's, the stream is its answer.
    ///
    /// # Errors
    /// A status for the client: no id, an id that is taken, too many sessions.
    pub fn attach<S>(&self, metadata: &MetadataMap, inbound: S) -> Result<Outbound, Status>
    where
        S: Stream<Item = Result<BytesMessage, Status>> + Send + Unpin + 'static,
    {
        let introduction = Introduction::read(metadata)?;
        let closed = CancellationToken::new();
        let (tunnel, outbound) = Tunnel::new(inbound, &closed);
        let channel = dial(tunnel);
        let health = introduction.health;
        let session =
            Arc::new(Session::new(introduction, channel.clone(), closed.clone(), self.shared.auth_timeout));
        self.enter(&session)?;
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            health::watch(channel, health, &closed).await;
            shared.leave(&session);
        });
        Ok(outbound.map(Ok).boxed())
    }

    fn enter(&self, session: &Arc<Session>) -> Result<(), Status> {
        let mut by_id = self.shared.lock();
        if by_id.len() >= SESSIONS_MAX {
            return Err(Status::resource_exhausted(format!("{SESSIONS_MAX} sessions are open already")));
        }
        if by_id.get(session.id()).is_some_and(|other| !other.closed().is_cancelled()) {
            return Err(Status::already_exists(format!("session {} already exists", session.id())));
        }
        by_id.insert(session.id().to_owned(), Arc::clone(session));
        drop(by_id);
        self.shared.arrivals.send_modify(|count| *count = count.wrapping_add(1));
        Ok(())
    }

    /// The session of this id, which may be about to come: waits up to `wait`.
    ///
    /// # Errors
    /// [`Error::NoSession`] when the time is over.
    pub async fn get(&self, id: &str, wait: Duration) -> Result<Arc<Session>, Error> {
        // Some name a session as `prefix:id`, to tell apart what they use it for.
        let id = id.split_once(':').map_or(id, |(_, rest)| if rest.is_empty() { id } else { rest });
        let arrived = async {
            let mut arrivals = self.shared.arrivals.subscribe();
            loop {
                arrivals.mark_unchanged();
                if let Some(session) = self.find(id) {
                    return Some(session);
                }
                arrivals.changed().await.ok()?;
            }
        };
        let found = tokio::time::timeout(wait, arrived).await.ok().flatten();
        found.ok_or_else(|| Error::NoSession { id: id.to_owned() })
    }

    fn find(&self, id: &str) -> Option<Arc<Session>> {
        let by_id = self.shared.lock();
        by_id.get(id).filter(|session| !session.closed().is_cancelled()).cloned()
    }

    /// How many clients are connected.
    pub fn count(&self) -> usize {
        self.shared.lock().len()
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Session>>> {
        // Nothing that can panic runs under the lock.
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self, session: &Arc<Session>) {
        let mut by_id = self.lock();
        if by_id.get(session.id()).is_some_and(|other| Arc::ptr_eq(other, session)) {
            by_id.remove(session.id());
        }
    }
}

/// A channel over this one connection: when it is lost, it is lost. It is opened by the first call: clients of BuildKit that leave
/// while they are sent something nobody asked for take it for a broken connection, and stay for another second.
fn dial<S>(mut tunnel: Tunnel<S>) -> Channel
where
    S: Stream<Item = Result<BytesMessage, Status>> + Send + Unpin + 'static,
{
    let (ask, asked) = oneshot::channel::<oneshot::Sender<Tunnel<S>>>();
    tokio::spawn(async move {
        if let Some(reply) = tunnel.idle(asked).await {
            reply.send(tunnel).ok(); // who asked may be gone, and the tunnel with it
        }
    });
    let mut ask = Some(ask);
    let connector = tower::service_fn(move |_: tonic::codegen::http::Uri| {
        let ask = ask.take();
        async move {
            let gone = || std::io::Error::from(std::io::ErrorKind::NotConnected);
            let (reply, tunnel) = oneshot::channel();
            ask.ok_or_else(gone)?.send(reply).map_err(|_| gone())?;
            Ok::<_, std::io::Error>(TokioIo::new(tunnel.await.map_err(|_| gone())?))
        }
    });
    Endpoint::from_static("http://localhost")
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .connect_with_connector_lazy(connector)
}
