//! Calls of services that the published crate has no client of.

use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// A client that calls over this channel.
pub(crate) fn client(channel: Channel) -> Grpc<Channel> {
    Grpc::new(channel)
        .max_decoding_message_size(crate::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(crate::MESSAGE_BYTES_MAX)
}

/// Waits until the channel takes a call.
pub(crate) async fn ready(grpc: &mut Grpc<Channel>) -> Result<(), Status> {
    grpc.ready().await.map_err(|e| Status::unknown(format!("the service is not ready: {e}")))
}

/// One message there, one back.
pub(crate) async fn unary<Q, A>(
    grpc: &mut Grpc<Channel>,
    path: &'static str,
    request: Request<Q>,
) -> Result<Response<A>, Status>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    ready(grpc).await?;
    grpc.unary(request, PathAndQuery::from_static(path), ProstCodec::default()).await
}
