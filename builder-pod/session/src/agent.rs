//! SSH agents of clients.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::{Stream, StreamExt};
use lapstrake_api::MESSAGE_BYTES_MAX;
use lapstrake_api::sshforward::ssh_client::SshClient;
use lapstrake_api::sshforward::{BytesMessage, CheckAgentRequest};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::StreamReader;
use tokio_util::sync::PollSender;
use tonic::transport::Channel;

use crate::error::Error;
use crate::header;
use crate::session::{Session, method};

/// Bytes of one message to the agent; its own messages are smaller than 256 KiB.
const MESSAGE_BYTES: usize = 32 << 10;
const QUEUE_MESSAGES: usize = 8;
const DEFAULT_ID: &str = "default";

type Incoming = Pin<Box<dyn Stream<Item = io::Result<bytes::Bytes>> + Send>>;

/// A connection to a client's SSH agent. Shutting its writing side down leaves answers readable.
pub struct AgentConnection {
    incoming: StreamReader<Incoming, bytes::Bytes>,
    outgoing: PollSender<BytesMessage>,
}

impl Session {
    fn ssh(&self) -> SshClient<Channel> {
        SshClient::new(self.channel())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Whether the client has an SSH agent, or keys, of this id; an empty one is `default`.
    ///
    /// # Errors
    /// It has none, is gone, or does not forward agents at all.
    pub async fn check_agent(&self, id: &str) -> Result<(), Error> {
        self.require(method::CHECK_AGENT)?;
        let id = if id.is_empty() { DEFAULT_ID } else { id };
        let mut client = self.ssh();
        self.call("check ssh agent", client.check_agent(CheckAgentRequest { id: id.to_owned() })).await?;
        Ok(())
    }

    /// A new connection to the client's SSH agent of this id; an empty one is `default`.
    ///
    /// # Errors
    /// It has none, is gone, or does not forward agents at all.
    pub async fn forward_agent(self: &Arc<Self>, id: &str) -> Result<AgentConnection, Error> {
        const ACTION: &str = "forward ssh agent";
        self.require(method::FORWARD_AGENT)?;
        let id = if id.is_empty() { DEFAULT_ID } else { id };
        let (sender, receiver) = mpsc::channel(QUEUE_MESSAGES);
        let mut request = tonic::Request::new(ReceiverStream::new(receiver));
        header::put(request.metadata_mut(), "buildkit.ssh.id", &[id.to_owned()])
            .map_err(|status| self.failed(ACTION, status))?;
        let mut client = self.ssh();
        // Answered only once the agent has said something, which it does not before it is asked.
        let answers = self.stream(ACTION, async move { client.forward_agent(request).await });
        let incoming = answers
            .map(|answer| answer.map(|message| bytes::Bytes::from(message.data)).map_err(io::Error::other));
        Ok(AgentConnection {
            incoming: StreamReader::new(Box::pin(incoming)),
            outgoing: PollSender::new(sender),
        })
    }
}

impl AsyncRead for AgentConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.incoming).poll_read(context, buffer)
    }
}

impl AsyncWrite for AgentConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        std::task::ready!(self.outgoing.poll_reserve(context)).map_err(|_| gone())?;
        let taken = bytes.get(..MESSAGE_BYTES).unwrap_or(bytes);
        self.outgoing.send_item(BytesMessage { data: taken.to_vec() }).map_err(|_| gone())?;
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.close();
        Poll::Ready(Ok(()))
    }
}
