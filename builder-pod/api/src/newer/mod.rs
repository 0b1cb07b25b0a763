//! Servers whose messages have definitions: the published crate's, but for the calls in which a definition travels, whose messages
//! have fields that the crate's lack ([`messages`]).

pub(crate) mod messages;

use std::convert::Infallible;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context, Poll};

use prost::bytes::{Buf as _, BufMut as _};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};

use crate::MESSAGE_BYTES_MAX;
use crate::control::control_server as control;
use crate::frontend::llb_bridge_server as bridge;
use messages::{Incoming, Outgoing};

/// The build asks that whatever its steps do on the network goes through a proxy that notes and judges it. Among the extensions of
/// a request to solve, whose own message has no place for it.
#[derive(Debug, Clone, Copy)]
pub struct ProxyNetwork;

/// Writes and reads messages by way of the forms that have all fields.
struct Whole<A, Q>(PhantomData<(A, Q)>);

impl<A: Outgoing, Q: Incoming> Codec for Whole<A, Q> {
    type Encode = A;
    type Decode = Q;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self(PhantomData)
    }

    fn decoder(&mut self) -> Self {
        Self(PhantomData)
    }
}

impl<A: Outgoing, Q: Incoming> Encoder for Whole<A, Q> {
    type Item = A;
    type Error = Status;

    fn encode(&mut self, item: A, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let bytes = item.bytes();
        into.reserve(bytes.len());
        into.put_slice(&bytes);
        Ok(())
    }
}

impl<A: Outgoing, Q: Incoming> Decoder for Whole<A, Q> {
    type Item = Q;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Q>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        Q::read(bytes).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

/// A method, as the transport wants it.
struct Method<F>(F);

impl<Q, A, F, Answer> UnaryService<Q> for Method<F>
where
    F: FnMut(Request<Q>) -> Answer,
    Answer: Future<Output = Result<Response<A>, Status>>,
{
    type Response = A;
    type Future = Answer;

    fn call(&mut self, request: Request<Q>) -> Answer {
        self.0(request)
    }
}

type Called = BoxFuture<http::Response<Body>, Infallible>;

/// Answers a call of a method by this.
fn answer<Q, A, F, Answer>(call: http::Request<Body>, method: F) -> Called
where
    Q: Incoming,
    A: Outgoing,
    F: FnMut(Request<Q>) -> Answer + Send + 'static,
    Answer: Future<Output = Result<Response<A>, Status>> + Send + 'static,
{
    Box::pin(async move {
        let limit = Some(MESSAGE_BYTES_MAX);
        let mut grpc = Grpc::new(Whole(PhantomData)).apply_max_message_size_config(limit, limit);
        Ok(grpc.unary(Method(method), call).await)
    })
}

/// A server that answers some calls itself and has the published crate's (`R`) answer the rest.
#[derive(Debug)]
pub struct Server<T, R> {
    service: Arc<T>,
    rest: R,
}

impl<T, R: Clone> Clone for Server<T, R> {
    fn clone(&self) -> Self {
        Self { service: Arc::clone(&self.service), rest: self.rest.clone() }
    }
}

impl<T, R: NamedService> NamedService for Server<T, R> {
    const NAME: &'static str = R::NAME;
}

/// The server of `moby.buildkit.v1.Control`.
pub type ControlServer<T> = Server<T, control::ControlServer<T>>;

impl<T: control::Control> ControlServer<T> {
    /// A server of this.
    pub fn new(service: T) -> Self {
        let service = Arc::new(service);
        let rest = control::ControlServer::from_arc(Arc::clone(&service))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Self { service, rest }
    }
}

impl<T: control::Control> Service<http::Request<Body>> for ControlServer<T> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Called;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: http::Request<Body>) -> Called {
        if call.uri().path() != "/moby.buildkit.v1.Control/Solve" {
            return self.rest.call(call);
        }
        let service = Arc::clone(&self.service);
        answer(call, move |request: Request<messages::Solve>| {
            let service = Arc::clone(&service);
            async move {
                let (metadata, mut extensions, asked) = request.into_parts();
                if asked.proxy_network {
                    extensions.insert(ProxyNetwork);
                }
                service.solve(Request::from_parts(metadata, extensions, asked.request)).await
            }
        })
    }
}

/// The server of `moby.buildkit.v1.frontend.LLBBridge`.
pub type LlbBridgeServer<T> = Server<T, bridge::LlbBridgeServer<T>>;

impl<T: bridge::LlbBridge> LlbBridgeServer<T> {
    /// A server of this.
    pub fn new(service: T) -> Self {
        let service = Arc::new(service);
        let rest = bridge::LlbBridgeServer::from_arc(Arc::clone(&service))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Self { service, rest }
    }
}

impl<T: bridge::LlbBridge> Service<http::Request<Body>> for LlbBridgeServer<T> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Called;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: http::Request<Body>) -> Called {
        let service = Arc::clone(&self.service);
        match call.uri().path() {
            "/moby.buildkit.v1.frontend.LLBBridge/Solve" => answer(call, move |request| {
                let service = Arc::clone(&service);
                async move { service.solve(request).await }
            }),
            "/moby.buildkit.v1.frontend.LLBBridge/Return" => answer(call, move |request| {
                let service = Arc::clone(&service);
                async move { service.r#return(request).await }
            }),
            "/moby.buildkit.v1.frontend.LLBBridge/Inputs" => answer(call, move |request| {
                let service = Arc::clone(&service);
                async move { service.inputs(request).await }
            }),
            _ => self.rest.call(call),
        }
    }
}
