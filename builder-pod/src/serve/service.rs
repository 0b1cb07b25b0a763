//! gRPC services for which no code is generated: each answers by the name of the method.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::NamedService;

/// A call and its answer, as bytes travel.
pub(crate) type Call = http::Request<Body>;
pub(crate) type Answering = Pin<Box<dyn Future<Output = http::Response<Body>> + Send>>;

/// What answers a service's methods.
pub(crate) trait Methods: Clone + Send + 'static {
    /// The service's full name.
    const NAME: &'static str;

    /// Answers a call of a method.
    fn answer(self, method: String, call: Call) -> Answering;
}

/// A service for the server.
#[derive(Clone)]
pub(crate) struct Service<M>(pub(crate) M);

impl<M: Methods> NamedService for Service<M> {
    const NAME: &'static str = M::NAME;
}

impl<M: Methods> tower::Service<Call> for Service<M> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let method = call.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let answer = self.0.clone().answer(method, call);
        Box::pin(async move { Ok(answer.await) })
    }
}
