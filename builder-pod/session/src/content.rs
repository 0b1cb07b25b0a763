//! Content stores of the client: directories of caches (`local:DIR`), image layouts (`oci:NAME`), what it exports into
//! (`export`).

use std::io;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use lapstrake_api::content::{
    ContentClient, InfoRequest, ReadContentRequest, STORE_HEADER, WriteAction, WriteContentRequest,
    WriteContentResponse,
};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::StreamReader;
use tonic::Code;

use crate::error::Error;
use crate::header;
use crate::session::{Session, method};

/// Bytes of one message.
const CHUNK_BYTES: usize = 1 << 20;

impl Session {
    /// The size of a blob in one of the client's stores; `None` where it has none of this digest.
    ///
    /// # Errors
    /// The client has no such store, or is gone.
    pub async fn content_bytes(self: &Arc<Self>, store: &str, digest: &str) -> Result<Option<u64>, Error> {
        const ACTION: &str = "look for content";
        self.require(method::CONTENT_READ)?;
        let request = self.of_store(ACTION, store, InfoRequest { digest: digest.to_owned() })?;
        let mut client = ContentClient::new(self.channel());
        match self.call(ACTION, client.info(request)).await {
            Ok(answer) => Ok(answer.info.and_then(|info| u64::try_from(info.size).ok())),
            Err(Error::Call { status, .. }) if status.code() == Code::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The bytes of a blob in one of the client's stores, from `offset`. Nobody has checked them.
    ///
    /// # Errors
    /// The client serves no stores. What else there may be shows when it is read.
    pub fn read_content(
        self: &Arc<Self>,
        store: &str,
        digest: &str,
        offset: u64,
    ) -> Result<impl AsyncRead + Send + Unpin + use<>, Error> {
        const ACTION: &str = "read content";
        self.require(method::CONTENT_READ)?;
        let offset = i64::try_from(offset).unwrap_or(i64::MAX);
        let request = ReadContentRequest { digest: digest.to_owned(), offset, size: 0 };
        let request = self.of_store(ACTION, store, request)?;
        let mut client = ContentClient::new(self.channel());
        let pieces = self.stream(ACTION, async move { client.read(request).await });
        let chunks = pieces.map(|piece| piece.map(|p| bytes::Bytes::from(p.data)).map_err(io::Error::other));
        Ok(StreamReader::new(Box::pin(chunks)))
    }

    /// Writes a blob of `size` bytes into one of the client's stores; one that it has is left.
    ///
    /// # Errors
    /// The client has no such store, can't write, or is gone; `from` can't be read.
    pub async fn write_content(
        self: &Arc<Self>,
        store: &str,
        digest: &str,
        size: u64,
        mut from: impl AsyncRead + Unpin + Send,
    ) -> Result<(), Error> {
        const ACTION: &str = "write content";
        self.require(method::CONTENT_READ)?;
        let (sender, receiver) = mpsc::channel(1);
        let request = self.of_store(ACTION, store, ReceiverStream::new(receiver))?;
        let mut client = ContentClient::new(self.channel());
        let answers = self.stream(ACTION, async move { client.write(request).await });
        let mut write = Write { session: self, sender, answers, offset: 0 };
        let total = i64::try_from(size).unwrap_or(i64::MAX);
        let message = |action: WriteAction| WriteContentRequest {
            action: action.into(),
            r#ref: format!("lapstrake-{digest}"),
            total,
            expected: digest.to_owned(),
            ..WriteContentRequest::default()
        };
        let known = |result: Result<(), Error>| match result {
            Err(Error::Call { status, .. }) if status.code() == Code::AlreadyExists => Ok(true),
            other => other.map(|()| false),
        };
        if known(write.say(message(WriteAction::Stat)).await)? {
            return Ok(());
        }
        let read = |error: io::Error| Error::Receiver(format!("reading {digest}: {error}"));
        // A write that broke off before is taken up where it was.
        skip(&mut from, write.offset).await.map_err(read)?;
        loop {
            let mut data = Vec::with_capacity(CHUNK_BYTES);
            let mut piece = (&mut from).take(CHUNK_BYTES as u64);
            if piece.read_to_end(&mut data).await.map_err(read)? == 0 {
                break;
            }
            let offset = i64::try_from(write.offset).unwrap_or(i64::MAX);
            write.say(WriteContentRequest { offset, data, ..message(WriteAction::Write) }).await?;
        }
        let offset = i64::try_from(write.offset).unwrap_or(i64::MAX);
        known(write.say(WriteContentRequest { offset, ..message(WriteAction::Commit) }).await).map(drop)
    }

    fn of_store<T>(&self, action: &'static str, store: &str, message: T) -> Result<tonic::Request<T>, Error> {
        let mut request = tonic::Request::new(message);
        header::put_plain(request.metadata_mut(), STORE_HEADER, store)
            .map_err(|status| self.failed(action, status))?;
        Ok(request)
    }
}

async fn skip(from: &mut (impl AsyncRead + Unpin), bytes: u64) -> io::Result<()> {
    let copied = tokio::io::copy(&mut from.take(bytes), &mut tokio::io::sink()).await?;
    if copied == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// A write that goes on: each message is answered before the next.
struct Write<'a> {
    session: &'a Arc<Session>,
    sender: mpsc::Sender<WriteContentRequest>,
    answers: BoxStream<'static, Result<WriteContentResponse, Error>>,
    /// Bytes that the client has.
    offset: u64,
}

impl Write<'_> {
    async fn say(&mut self, message: WriteContentRequest) -> Result<(), Error> {
        // Where the client takes no more, its answer says why.
        self.sender.send(message).await.ok();
        let answer = self.answers.next().await.unwrap_or_else(|| Err(self.session.ended("write content")))?;
        self.offset = u64::try_from(answer.offset).unwrap_or(0);
        Ok(())
    }
}
