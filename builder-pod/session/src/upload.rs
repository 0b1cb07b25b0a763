use std::io;
use std::sync::Arc;

use futures::StreamExt;
use lapstrake_api::MESSAGE_BYTES_MAX;
use lapstrake_api::upload::BytesMessage;
use lapstrake_api::upload::upload_client::UploadClient;
use tokio::io::AsyncRead;
use tokio_util::io::StreamReader;

use crate::error::Error;
use crate::header;
use crate::session::{Session, method};

impl Session {
    /// What the client offers at `http://<host><path>`, such as a context on its standard input (host `buildkit-session`).
    /// It can be read once.
    ///
    /// # Errors
    /// The client has no such thing, or is gone.
    pub async fn upload(
        self: &Arc<Self>,
        host: &str,
        path: &str,
    ) -> Result<impl AsyncRead + Send + Unpin + use<>, Error> {
        const ACTION: &str = "upload";
        self.require(method::UPLOAD)?;
        // One side of the stream is enough: the client is not told anything.
        let mut request = tonic::Request::new(futures::stream::empty::<BytesMessage>());
        for (key, value) in [("urlpath", path), ("urlhost", host)] {
            header::put(request.metadata_mut(), key, &[value.to_owned()])
                .map_err(|status| self.failed(ACTION, status))?;
        }
        let mut client = UploadClient::new(self.channel())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let messages = self.stream(ACTION, async move { client.pull(request).await });
        let chunks = messages
            .map(|message| message.map(|message| bytes::Bytes::from(message.data)).map_err(io::Error::other));
        Ok(StreamReader::new(Box::pin(chunks)))
    }
}
