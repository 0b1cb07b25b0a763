//! One client.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::error::Error;
use crate::header::Introduction;

/// Paths of the methods that a client may serve.
pub mod method {
    /// Files of a directory that the client lends.
    pub const SYNC: &str = "/moby.filesync.v1.FileSync/DiffCopy";
    /// Outputs that the client takes.
    pub const SEND: &str = "/moby.filesync.v1.FileSend/DiffCopy";
    /// Secrets.
    pub const SECRET: &str = "/moby.buildkit.secrets.v1.Secrets/GetSecret";
    /// Whether there is an SSH agent.
    pub const CHECK_AGENT: &str = "/moby.sshforward.v1.SSH/CheckAgent";
    /// A connection to an SSH agent.
    pub const FORWARD_AGENT: &str = "/moby.sshforward.v1.SSH/ForwardAgent";
    /// Name and password for a registry.
    pub const CREDENTIALS: &str = "/moby.filesync.v1.Auth/Credentials";
    /// A registry's token, fetched by the client.
    pub const FETCH_TOKEN: &str = "/moby.filesync.v1.Auth/FetchToken";
    /// The key of a client that answers for its credentials.
    pub const TOKEN_AUTHORITY: &str = "/moby.filesync.v1.Auth/GetTokenAuthority";
    /// Proof that it has that key.
    pub const VERIFY_TOKEN_AUTHORITY: &str = "/moby.filesync.v1.Auth/VerifyTokenAuthority";
    /// Whether a build may have a source.
    pub const CHECK_POLICY: &str = lapstrake_api::policysession::CHECK_POLICY;
    /// A stream that the client has, such as a context on its standard input.
    pub const UPLOAD: &str = "/moby.upload.v1.Upload/Pull";
    /// A blob of one of the client's content stores.
    pub const CONTENT_READ: &str = "/containerd.services.content.v1.Content/Read";
    /// Outputs that the client chooses once there is a result.
    pub const FIND_EXPORTERS: &str = "/moby.exporter.v1.Exporter/FindExporters";
    /// That all was exported.
    pub const FINALIZE_EXPORT: &str = "/moby.exporter.v1.Exporter/FinalizeExport";
}

/// A client that is connected, and what it serves.
pub struct Session {
    introduction: Introduction,
    channel: Channel,
    closed: CancellationToken,
    auth_timeout: Option<Duration>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("id", &self.introduction.id).finish_non_exhaustive()
    }
}

impl Session {
    pub(crate) fn new(
        introduction: Introduction,
        channel: Channel,
        closed: CancellationToken,
        auth_timeout: Option<Duration>,
    ) -> Self {
        Self { introduction, channel, closed, auth_timeout }
    }

    /// How long it may take to answer for a registry.
    pub(crate) fn auth_timeout(&self) -> Option<Duration> {
        self.auth_timeout
    }

    /// The id that the client gave itself.
    pub fn id(&self) -> &str {
        &self.introduction.id
    }

    /// The client's name for what it builds; may be empty.
    pub fn name(&self) -> &str {
        &self.introduction.name
    }

    /// What tells apart the clients, or directories, whose files must not be compared; may be empty.
    pub fn shared_key(&self) -> &str {
        &self.introduction.shared_key
    }

    /// Whether the client said that it serves the method of this path, such as [`method::SECRET`].
    pub fn serves(&self, method: &str) -> bool {
        self.introduction.methods.contains(&method.to_ascii_lowercase())
    }

    /// Fires when the client is gone or fails its health check. It is for waiting; whoever cancels it ends the session.
    pub fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// An error unless the client serves `method`.
    pub(crate) fn require(&self, method: &'static str) -> Result<(), Error> {
        if self.serves(method) {
            return Ok(());
        }
        Err(Error::NotServed { method, session: self.id().to_owned() })
    }

    pub(crate) fn ended(&self, action: &'static str) -> Error {
        Error::Ended { session: self.id().to_owned(), action }
    }

    /// What a client's status means: that it is gone, when it is.
    pub(crate) fn failed(&self, action: &'static str, status: Status) -> Error {
        if self.closed.is_cancelled() || (status.code() == Code::Unavailable && is_transport(&status)) {
            return self.ended(action);
        }
        Error::Call { action, status: Box::new(status) }
    }

    /// Awaits a call's answer, for as long as the client is there.
    pub(crate) async fn call<T>(
        &self,
        action: &'static str,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Error> {
        match self.closed.run_until_cancelled(call).await {
            Some(Ok(response)) => Ok(response.into_inner()),
            Some(Err(status)) => Err(self.failed(action, status)),
            None => Err(self.ended(action)),
        }
    }

    /// What a call streams, for as long as the client is there. The call is made at once, and ends when the stream is
    /// dropped.
    pub(crate) fn stream<T: Send + 'static>(
        self: &Arc<Self>,
        action: &'static str,
        call: impl Future<Output = Result<tonic::Response<Streaming<T>>, Status>> + Send + 'static,
    ) -> BoxStream<'static, Result<T, Error>> {
        let session = Arc::clone(self);
        let call = AbortOnDropHandle::new(tokio::spawn(call));
        let state = Opening(call);
        futures::stream::unfold(state, move |mut state| {
            let session = Arc::clone(&session);
            async move {
                let step = session.closed.run_until_cancelled(state.next()).await;
                let item = match step {
                    Some(Ok(None)) => return None,
                    Some(Ok(Some(item))) => return Some((Ok(item), state)),
                    Some(Err(status)) => Err(session.failed(action, status)),
                    None => Err(session.ended(action)),
                };
                Some((item, Over))
            }
        })
        // One who looks ahead may ask again after the end.
        .fuse()
        .boxed()
    }
}

/// A call that streams its answer.
enum Answer<T> {
    Opening(AbortOnDropHandle<Result<tonic::Response<Streaming<T>>, Status>>),
    Open(Box<Streaming<T>>),
    Over,
}
use Answer::{Open, Opening, Over};

impl<T> Answer<T> {
    async fn next(&mut self) -> Result<Option<T>, Status> {
        if let Opening(call) = self {
            let answer = call.await.map_err(|_| Status::cancelled("the call was dropped"))??;
            *self = Open(Box::new(answer.into_inner()));
        }
        match self {
            Open(stream) => stream.message().await,
            _ => Ok(None),
        }
    }
}

/// Whether a status tells of the connection, and was not sent by the client.
pub(crate) fn is_transport(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}
