//! `grpc.health.v1.Health`: the daemon serves as long as it answers.

use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use lapstrake_api::health::health_check_response::ServingStatus;
use lapstrake_api::health::health_server::Health;
use lapstrake_api::health::{HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse};
use tonic::{Request, Response, Status};

/// Answers that it serves.
pub(crate) struct Serving;

fn serving() -> HealthCheckResponse {
    HealthCheckResponse { status: ServingStatus::Serving.into() }
}

#[tonic::async_trait]
impl Health for Serving {
    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(serving()))
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        Ok(Response::new(HealthListResponse { statuses: [(String::new(), serving())].into() }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let first = futures::stream::once(async { Ok(serving()) });
        Ok(Response::new(first.chain(futures::stream::pending()).boxed()))
    }
}
