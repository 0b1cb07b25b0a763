//! `containerd.services.content.v1.Content`, to read from: logs and documents of build records, blobs of the store.
//!
//! Holds: only what is named by its digest is given; nothing can be written.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::sync::Arc;

use lapstrake_api::content::{
    Info, InfoRequest, InfoResponse, ListContentRequest, ListContentResponse, ReadContentRequest,
    ReadContentResponse,
};
use lapstrake_oci::Digest;
use lapstrake_store::Store;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::server::Grpc;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::history::History;
use super::service::{Answering, Call, Methods};

/// Bytes of one answer.
const PIECE_BYTES: usize = 1 << 20;
/// Blobs of one answer.
const LISTED: usize = 1000;

/// The service.
#[derive(Clone)]
pub(crate) struct Contents {
    pub(crate) history: Arc<History>,
    pub(crate) store: Store,
}

type Pieces = ReceiverStream<Result<ReadContentResponse, Status>>;
type Lists = futures::stream::Iter<std::vec::IntoIter<Result<ListContentResponse, Status>>>;

impl Contents {
    /// The blob and its size. Blocking.
    fn open(&self, digest: &str) -> Result<(File, u64), Status> {
        let missing = || Status::not_found(format!("content {digest}: not found"));
        let file = match self.history.blob(digest) {
            Some(file) => file,
            None => {
                let digest: Digest = digest.parse().map_err(|_| missing())?;
                self.store.open_blob(&digest).map_err(|_| missing())?
            }
        };
        let size = file.metadata().map_err(|e| Status::internal(e.to_string()))?.len();
        Ok((file, size))
    }

    async fn opened(self, digest: String) -> Result<(File, u64), Status> {
        let opened = tokio::task::spawn_blocking(move || self.open(&digest)).await;
        opened.unwrap_or_else(|e| Err(Status::internal(e.to_string())))
    }

    async fn info(self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let digest = request.into_inner().digest;
        let (_, size) = self.opened(digest.clone()).await?;
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        Ok(Response::new(InfoResponse { info: Some(Info { digest, size }) }))
    }

    /// The blobs of the store. Filters are about labels, which blobs have none of here.
    async fn list(self, request: Request<ListContentRequest>) -> Result<Response<Lists>, Status> {
        if request.into_inner().filters.iter().any(|filter| !filter.is_empty()) {
            return Err(Status::unimplemented("content can only be listed whole: it has no labels here"));
        }
        let listed = tokio::task::spawn_blocking(move || self.store.blobs()).await;
        let blobs = listed.map_err(|e| Status::internal(e.to_string()))?;
        let blobs = blobs.map_err(|e| Status::internal(format!("the store: {e}")))?;
        let info = |(digest, bytes): &(Digest, u64)| Info {
            digest: digest.to_string(),
            size: i64::try_from(*bytes).unwrap_or(i64::MAX),
        };
        let answers: Vec<_> = blobs
            .chunks(LISTED)
            .map(|some| Ok(ListContentResponse { info: some.iter().map(info).collect() }))
            .collect();
        Ok(Response::new(futures::stream::iter(answers)))
    }

    async fn read(self, request: Request<ReadContentRequest>) -> Result<Response<Pieces>, Status> {
        let ReadContentRequest { digest, offset, size } = request.into_inner();
        let (file, all) = self.opened(digest).await?;
        let wrong = |_| Status::out_of_range("offset and size must not be negative");
        let (offset, size) = (u64::try_from(offset).map_err(wrong)?, u64::try_from(size).map_err(wrong)?);
        if offset > all {
            return Err(Status::out_of_range(format!("read past object length {all} bytes")));
        }
        let left = all - offset;
        let size = if size == 0 { left } else { size };
        if size > left {
            return Err(Status::out_of_range(format!("read past object length {all} bytes")));
        }
        let (send, receive) = mpsc::channel(2);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = pieces(file, offset, size, &send) {
                send.blocking_send(Err(Status::internal(error.to_string()))).ok(); // the client is gone
            }
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }
}

fn pieces(
    mut file: File,
    mut offset: u64,
    mut left: u64,
    send: &mpsc::Sender<Result<ReadContentResponse, Status>>,
) -> std::io::Result<()> {
    file.seek(SeekFrom::Start(offset))?;
    while left > 0 {
        let length = usize::try_from(left).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
        let mut data = vec![0; length];
        file.read_exact(&mut data)?;
        let at = i64::try_from(offset).unwrap_or(i64::MAX);
        if send.blocking_send(Ok(ReadContentResponse { offset: at, data })).is_err() {
            return Ok(());
        }
        offset += length as u64;
        left -= length as u64;
    }
    Ok(())
}

impl Methods for Contents {
    const NAME: &'static str = "containerd.services.content.v1.Content";

    fn answer(self, method: String, call: Call) -> Answering {
        Box::pin(async move {
            match method.as_str() {
                "Info" => {
                    let info = tower::service_fn(move |request| self.clone().info(request));
                    Grpc::new(ProstCodec::<InfoResponse, InfoRequest>::default()).unary(info, call).await
                }
                "List" => {
                    let list = tower::service_fn(move |request| self.clone().list(request));
                    let codec = ProstCodec::<ListContentResponse, ListContentRequest>::default();
                    Grpc::new(codec).server_streaming(list, call).await
                }
                "Read" => {
                    let read = tower::service_fn(move |request| self.clone().read(request));
                    let codec = ProstCodec::<ReadContentResponse, ReadContentRequest>::default();
                    Grpc::new(codec).server_streaming(read, call).await
                }
                other => {
                    Status::unimplemented(format!("content can only be read here: no {other}")).into_http()
                }
            }
        })
    }
}
