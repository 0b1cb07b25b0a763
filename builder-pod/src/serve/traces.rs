//! `opentelemetry.proto.collector.trace.v1.TraceService`: clients send their spans to the daemon. They are taken, and
//! go nowhere: a client that could not send them would say so in every build.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::{Grpc, NamedService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// The service.
#[derive(Clone)]
pub(crate) struct TraceServer;

impl NamedService for TraceServer {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

/// Of a request nothing is kept, whatever is in it; the answer says that nothing was refused.
async fn take(_: Request<()>) -> Result<Response<()>, Status> {
    Ok(Response::new(()))
}

impl tower::Service<http::Request<Body>> for TraceServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            Ok(match request.uri().path().rsplit('/').next() {
                Some("Export") => {
                    let codec = ProstCodec::<(), ()>::default();
                    Grpc::new(codec).unary(tower::service_fn(take), request).await
                }
                _ => Status::unimplemented("spans can only be exported").into_http(),
            })
        })
    }
}
