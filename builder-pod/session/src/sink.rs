//! Outputs that are one file: an archive.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use lapstrake_api::MESSAGE_BYTES_MAX;
use lapstrake_api::auth::BytesMessage;
use lapstrake_api::auth::file_send_client::FileSendClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::error::Error;
use crate::header;
use crate::session::{Session, method};

const ACTION: &str = "send file";
/// Header with the output's place among the request's exporters.
pub(crate) const EXPORTER: &str = "buildkit-attachable-exporter-id";
/// Before the names of an output's facts.
const METADATA_PREFIX: &str = "exporter-md-";
/// Bytes of one message: clients take 4 MiB, if they were not told otherwise.
const CHUNK_BYTES: usize = 1 << 20;
/// Small writes are gathered up to this.
const BUFFER_BYTES: usize = 256 << 10;
const QUEUE_CHUNKS: usize = 2;

/// A file at a client, being written. Dropped without [`FileSink::finish`], the client sees that the call was
/// canceled.
pub struct FileSink {
    session: Arc<Session>,
    chunks: Option<mpsc::Sender<BytesMessage>>,
    buffer: Vec<u8>,
    answers: BoxStream<'static, Result<BytesMessage, Error>>,
}

impl Session {
    /// Opens the client's output `exporter` (its place among the request's exporters); `metadata` tells it about the
    /// result.
    ///
    /// # Errors
    /// The client takes no outputs. What else it may refuse shows when it is written to.
    pub async fn send_file(
        self: &Arc<Self>,
        exporter: usize,
        metadata: &[(String, String)],
    ) -> Result<FileSink, Error> {
        self.require(method::SEND)?;
        let (sender, receiver) = mpsc::channel(QUEUE_CHUNKS);
        let mut request = tonic::Request::new(ReceiverStream::new(receiver));
        let headers = request.metadata_mut();
        header::put(headers, EXPORTER, &[exporter.to_string()])
            .map_err(|status| self.failed(ACTION, status))?;
        for (key, value) in metadata {
            let key = format!("{METADATA_PREFIX}{}", key.to_ascii_lowercase());
            header::put(headers, &key, std::slice::from_ref(value))
                .map_err(|status| self.failed(ACTION, status))?;
        }
        let mut client = FileSendClient::new(self.channel())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        // Answered only at the end, or when the client refuses.
        let answers = self.stream(ACTION, async move { client.diff_copy(request).await });
        Ok(FileSink { session: Arc::clone(self), chunks: Some(sender), buffer: Vec::new(), answers })
    }
}

impl Drop for FileSink {
    fn drop(&mut self) {
        // An end of the stream would say that the file is whole: the call is reset before.
        let Some(chunks) = self.chunks.take() else { return };
        self.answers = futures::stream::empty().boxed();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { chunks.closed().await });
        }
    }
}

impl FileSink {
    /// Writes all of `bytes`; waits while the client is slow.
    ///
    /// # Errors
    /// The client is gone, or wants no more: with its reason.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if self.buffer.len() + bytes.len() >= BUFFER_BYTES {
            self.flush().await?;
            let mut rest = bytes;
            while rest.len() >= BUFFER_BYTES {
                let (chunk, tail) = rest.split_at(rest.len().min(CHUNK_BYTES));
                self.send(chunk.to_vec()).await?;
                rest = tail;
            }
            self.buffer.extend_from_slice(rest);
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Error> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::take(&mut self.buffer);
        self.send(chunk).await
    }

    async fn send(&mut self, data: Vec<u8>) -> Result<(), Error> {
        let sent = match &self.chunks {
            Some(chunks) => {
                let session = Arc::clone(&self.session);
                let sending = chunks.send(BytesMessage { data });
                session.closed().run_until_cancelled(sending).await.is_some_and(|sent| sent.is_ok())
            }
            None => false,
        };
        if sent { Ok(()) } else { Err(self.reason().await) }
    }

    /// Why the client takes no more.
    async fn reason(&mut self) -> Error {
        self.chunks = None;
        match self.answers.next().await {
            Some(Err(error)) => error,
            _ => Error::Receiver("the client closed the output before its end".to_owned()),
        }
    }

    /// Ends the file, and waits until the client has it.
    ///
    /// # Errors
    /// The client is gone or could not write it.
    pub async fn finish(mut self) -> Result<(), Error> {
        self.flush().await?;
        self.chunks = None;
        while let Some(answer) = self.answers.next().await {
            answer?;
        }
        Ok(())
    }
}
