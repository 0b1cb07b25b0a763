//! Of containerd's content service (`containerd.services.content.v1`): what is asked of a client's stores.

use std::collections::HashMap;

use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{IntoRequest, IntoStreamingRequest, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::call;

/// Header with the name of the store that is meant, of a client that has several.
pub const STORE_HEADER: &str = "buildkit-attachable-store-id";

/// Asks for a blob's facts.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InfoRequest {
    /// The blob.
    #[prost(string, tag = "1")]
    pub digest: String,
}

/// The answer to that.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InfoResponse {
    /// The facts.
    #[prost(message, optional, tag = "1")]
    pub info: Option<Info>,
}

/// A blob's facts.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Info {
    /// The blob.
    #[prost(string, tag = "1")]
    pub digest: String,
    /// Its size in bytes.
    #[prost(int64, tag = "2")]
    pub size: i64,
}

/// Asks for all blobs.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListContentRequest {
    /// Which of them; empty: all.
    #[prost(string, repeated, tag = "1")]
    pub filters: Vec<String>,
}

/// Some of them.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListContentResponse {
    /// Their facts.
    #[prost(message, repeated, tag = "1")]
    pub info: Vec<Info>,
}

/// Asks for a blob's bytes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReadContentRequest {
    /// The blob.
    #[prost(string, tag = "1")]
    pub digest: String,
    /// Where to begin.
    #[prost(int64, tag = "2")]
    pub offset: i64,
    /// How many; 0: to the end.
    #[prost(int64, tag = "3")]
    pub size: i64,
}

/// A piece of them.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReadContentResponse {
    /// Where it is from.
    #[prost(int64, tag = "1")]
    pub offset: i64,
    /// The bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub data: Vec<u8>,
}

/// What a message of a write is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum WriteAction {
    /// How far the write is.
    Stat = 0,
    /// More bytes.
    Write = 1,
    /// The end.
    Commit = 2,
}

/// A part of a write.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WriteContentRequest {
    /// What it is for.
    #[prost(enumeration = "WriteAction", tag = "1")]
    pub action: i32,
    /// The name of the write, by which it may be taken up again.
    #[prost(string, tag = "2")]
    pub r#ref: String,
    /// Bytes of the whole.
    #[prost(int64, tag = "3")]
    pub total: i64,
    /// The digest that it will have.
    #[prost(string, tag = "4")]
    pub expected: String,
    /// Where the bytes belong.
    #[prost(int64, tag = "5")]
    pub offset: i64,
    /// The bytes.
    #[prost(bytes = "vec", tag = "6")]
    pub data: Vec<u8>,
    /// Labels of the blob.
    #[prost(map = "string, string", tag = "7")]
    pub labels: HashMap<String, String>,
}

/// How far a write is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WriteContentResponse {
    /// What it answers.
    #[prost(enumeration = "WriteAction", tag = "1")]
    pub action: i32,
    /// Bytes that are there.
    #[prost(int64, tag = "4")]
    pub offset: i64,
    /// Bytes of the whole.
    #[prost(int64, tag = "5")]
    pub total: i64,
    /// The digest, at the end.
    #[prost(string, tag = "6")]
    pub digest: String,
}

/// A client of the service.
#[derive(Debug, Clone)]
pub struct ContentClient(Grpc<Channel>);

macro_rules! path {
    ($method:literal) => {
        PathAndQuery::from_static(concat!("/containerd.services.content.v1.Content/", $method))
    };
}

impl ContentClient {
    /// A client that calls over this channel.
    pub fn new(channel: Channel) -> Self {
        Self(call::client(channel))
    }

    /// A blob's facts.
    ///
    /// # Errors
    /// The server's.
    pub async fn info(
        &mut self,
        request: impl IntoRequest<InfoRequest>,
    ) -> Result<Response<InfoResponse>, Status> {
        call::ready(&mut self.0).await?;
        self.0.unary(request.into_request(), path!("Info"), ProstCodec::default()).await
    }

    /// A blob's bytes.
    ///
    /// # Errors
    /// The server's.
    pub async fn read(
        &mut self,
        request: impl IntoRequest<ReadContentRequest>,
    ) -> Result<Response<Streaming<ReadContentResponse>>, Status> {
        call::ready(&mut self.0).await?;
        self.0.server_streaming(request.into_request(), path!("Read"), ProstCodec::default()).await
    }

    /// Writes a blob.
    ///
    /// # Errors
    /// The server's.
    pub async fn write(
        &mut self,
        request: impl IntoStreamingRequest<Message = WriteContentRequest>,
    ) -> Result<Response<Streaming<WriteContentResponse>>, Status> {
        call::ready(&mut self.0).await?;
        self.0.streaming(request.into_streaming_request(), path!("Write"), ProstCodec::default()).await
    }
}
