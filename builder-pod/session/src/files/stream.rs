//! A transfer's packets, both ways.

use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use lapstrake_api::MESSAGE_BYTES_MAX;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http::uri::PathAndQuery;

use super::wire::Packet;
use crate::error::Error;
use crate::header;
use crate::session::Session;

/// Packets, and bytes, that are handed on at once.
const BATCH_PACKETS: usize = 512;
const BATCH_BYTES: usize = 1 << 20;

/// What comes from the other side.
pub(super) struct Packets {
    stream: BoxStream<'static, Result<Packet, Error>>,
    /// What came after a batch, and belongs behind it.
    next: Option<Result<Packet, Error>>,
}

impl Session {
    /// Opens a transfer: `outgoing` is sent, the rest comes back.
    pub(super) fn transfer(
        self: &Arc<Self>,
        action: &'static str,
        method: &'static str,
        headers: &[(String, Vec<String>)],
        outgoing: mpsc::Receiver<Packet>,
    ) -> Result<Packets, Error> {
        self.require(method)?;
        let mut request = tonic::Request::new(ReceiverStream::new(outgoing));
        for (key, values) in headers {
            header::put(request.metadata_mut(), key, values).map_err(|status| self.failed(action, status))?;
        }
        let mut grpc = tonic::client::Grpc::new(self.channel())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let call = async move {
            grpc.ready().await.map_err(|error| tonic::Status::from_error(error.into()))?;
            let codec = tonic_prost::ProstCodec::<Packet, Packet>::default();
            grpc.streaming(request, PathAndQuery::from_static(method), codec).await
        };
        Ok(Packets { stream: self.stream(action, call), next: None })
    }
}

impl Packets {
    /// The next packet; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<Result<Packet, Error>> {
        match self.next.take() {
            Some(packet) => Some(packet),
            None => self.stream.next().await,
        }
    }

    /// The next packet with those that came with it. Canceling it loses none.
    pub(super) async fn batch(&mut self) -> Option<Result<Vec<Packet>, Error>> {
        let first = match self.next().await? {
            Ok(packet) => packet,
            Err(error) => return Some(Err(error)),
        };
        let mut bytes = first.data.len();
        let mut batch = vec![first];
        while bytes < BATCH_BYTES && batch.len() < BATCH_PACKETS {
            match self.stream.next().now_or_never() {
                Some(Some(Ok(packet))) => {
                    bytes += packet.data.len();
                    batch.push(packet);
                }
                Some(last) => {
                    self.next = last;
                    break;
                }
                None => break,
            }
        }
        Some(Ok(batch))
    }

    /// Reads on to the end.
    pub(super) async fn drain(&mut self) -> Result<(), Error> {
        while let Some(packet) = self.next().await {
            packet?;
        }
        Ok(())
    }
}
