//! `opentelemetry.proto.collector.trace.v1.TraceService`: clients send their spans to the daemon, which hands them on as they are
//! to the collector that it knows. Where there is none they go nowhere: a client that could not send them would say so in every
//! build.

use prost::bytes::Bytes;
use tonic::server::Grpc;
use tonic::{Request, Response, Status};

use super::collector::{Collector, Raw};
use super::service::{Answering, Call, Methods};

/// The service.
#[derive(Clone)]
pub(crate) struct Traces(pub(crate) Option<Collector>);

impl Traces {
    /// The answer says that nothing was refused.
    async fn take(self, request: Request<Bytes>) -> Result<Response<Bytes>, Status> {
        if let Some(collector) = self.0 {
            collector.take(request.into_inner());
        }
        Ok(Response::new(Bytes::new()))
    }
}

impl Methods for Traces {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";

    fn answer(self, method: String, call: Call) -> Answering {
        Box::pin(async move {
            match method.as_str() {
                "Export" => {
                    let take = tower::service_fn(move |request| self.clone().take(request));
                    Grpc::new(Raw).unary(take, call).await
                }
                _ => Status::unimplemented("spans can only be exported").into_http(),
            }
        })
    }
}
