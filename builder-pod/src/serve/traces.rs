//! `opentelemetry.proto.collector.trace.v1.TraceService`: clients send their spans to the daemon. They are taken, and
//! go nowhere: a client that could not send them would say so in every build.

use tonic::server::Grpc;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::service::{Answering, Call, Methods};

/// The service.
#[derive(Clone)]
pub(crate) struct Traces;

/// Of a request nothing is kept, whatever is in it; the answer says that nothing was refused.
async fn take(_: Request<()>) -> Result<Response<()>, Status> {
    Ok(Response::new(()))
}

impl Methods for Traces {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";

    fn answer(self, method: String, call: Call) -> Answering {
        Box::pin(async move {
            match method.as_str() {
                "Export" => {
                    let codec = ProstCodec::<(), ()>::default();
                    Grpc::new(codec).unary(tower::service_fn(take), call).await
                }
                _ => Status::unimplemented("spans can only be exported").into_http(),
            }
        })
    }
}
