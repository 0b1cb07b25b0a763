//! The byte stream inside `Control.Session`, as a connection.
//!
//! Holds: bytes wait in a queue of fixed length, so a client that reads slowly slows its own calls; a client that
//! is read slowly is slowed by the flow control of the stream around.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::future::BoxFuture;
use futures::{Stream, StreamExt as _};
use lapstrake_api::control::BytesMessage;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, PollSender};
use tonic::Status;

/// Bytes of one message to the client.
const MESSAGE_BYTES: usize = 64 << 10;
/// Bytes that a client may say before somebody asks it anything; it is made to wait then.
const UNREAD_BYTES_MAX: usize = 64 << 10;
/// Messages that wait for the client to read them.
const QUEUE_MESSAGES: usize = 8;

/// What arrives, and what can be sent: a client's connection, which has ended once `closed` fires.
pub(crate) struct Tunnel<S> {
    inbound: Option<S>,
    unread: Vec<u8>,
    read: usize,
    outbound: PollSender<BytesMessage>,
    closed: CancellationToken,
    ended: BoxFuture<'static, ()>,
}

impl<S> Tunnel<S> {
    /// The connection, and the stream of what it sends.
    pub(crate) fn new(inbound: S, closed: &CancellationToken) -> (Self, ReceiverStream<BytesMessage>) {
        let (sender, receiver) = mpsc::channel(QUEUE_MESSAGES);
        let tunnel = Self {
            inbound: Some(inbound),
            unread: Vec::new(),
            read: 0,
            outbound: PollSender::new(sender),
            closed: closed.clone(),
            ended: Box::pin(closed.clone().cancelled_owned()),
        };
        (tunnel, ReceiverStream::new(receiver))
    }
}

impl<S> Tunnel<S>
where
    S: Stream<Item = Result<BytesMessage, Status>> + Unpin,
{
    /// Keeps what the client says until the connection is `wanted`, and gives back what that said; nothing where the client left.
    pub(crate) async fn idle<T>(&mut self, mut wanted: oneshot::Receiver<T>) -> Option<T> {
        while let Some(inbound) = &mut self.inbound {
            let has_room = self.unread.len() < UNREAD_BYTES_MAX;
            let next = tokio::select! {
                wanted = &mut wanted => return wanted.ok(),
                () = self.ended.as_mut() => return None,
                next = inbound.next(), if has_room => next,
            };
            match next {
                Some(Ok(message)) => self.unread.extend(message.data),
                None | Some(Err(_)) => self.inbound = None,
            }
        }
        self.closed.cancel();
        None
    }
}

impl<S> Drop for Tunnel<S> {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

impl<S> AsyncRead for Tunnel<S>
where
    S: Stream<Item = Result<BytesMessage, Status>> + Unpin,
{
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = &mut *self;
        if this.ended.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(std::io::ErrorKind::ConnectionAborted.into()));
        }
        while this.read == this.unread.len() {
            let Some(inbound) = &mut this.inbound else { return Poll::Ready(Ok(())) };
            match ready!(Pin::new(inbound).poll_next(context)) {
                Some(Ok(message)) => (this.unread, this.read) = (message.data, 0),
                // Whether it closed its side or was cut off: nothing more comes.
                None | Some(Err(_)) => {
                    this.inbound = None;
                    this.closed.cancel();
                    return Poll::Ready(Ok(()));
                }
            }
        }
        let rest = this.unread.get(this.read..).unwrap_or_default();
        let taken = rest.len().min(buffer.remaining());
        buffer.put_slice(rest.get(..taken).unwrap_or_default());
        this.read += taken;
        Poll::Ready(Ok(()))
    }
}

impl<S: Unpin> AsyncWrite for Tunnel<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let gone = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        ready!(self.outbound.poll_reserve(context)).map_err(|_| gone())?;
        let taken = bytes.get(..MESSAGE_BYTES).unwrap_or(bytes);
        self.outbound.send_item(BytesMessage { data: taken.to_vec() }).map_err(|_| gone())?;
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.outbound.close();
        Poll::Ready(Ok(()))
    }
}
