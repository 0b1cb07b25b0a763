//! Of `moby.exporter.v1`: what a client is asked when it chooses the outputs of a build once there is a result.

use std::collections::HashMap;

use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{IntoRequest, Response, Status};

use crate::call;

/// Asks for the outputs of a result.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FindExportersRequest {
    /// What is said of the result.
    #[prost(map = "string, bytes", tag = "1")]
    pub metadata: HashMap<String, Vec<u8>>,
    /// Its parts, by ids that say nothing.
    #[prost(string, repeated, tag = "2")]
    pub refs: Vec<String>,
}

/// The answer to that.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FindExportersResponse {
    /// The outputs.
    #[prost(message, repeated, tag = "1")]
    pub exporters: Vec<ExporterRequest>,
}

/// An output.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExporterRequest {
    /// Its kind.
    #[prost(string, tag = "1")]
    pub r#type: String,
    /// What is said of it.
    #[prost(map = "string, string", tag = "2")]
    pub attrs: HashMap<String, String>,
}

/// Tells that all was exported.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FinalizeExportRequest {
    /// What the client of the build will be told.
    #[prost(map = "string, string", tag = "1")]
    pub exporter_response: HashMap<String, String>,
}

/// The answer to that.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FinalizeExportResponse {}

/// A client of the service.
#[derive(Debug, Clone)]
pub struct ExporterClient(Grpc<Channel>);

impl ExporterClient {
    /// A client that calls over this channel.
    pub fn new(channel: Channel) -> Self {
        Self(call::client(channel))
    }

    /// The outputs of a result.
    ///
    /// # Errors
    /// The server's.
    pub async fn find(
        &mut self,
        request: impl IntoRequest<FindExportersRequest>,
    ) -> Result<Response<FindExportersResponse>, Status> {
        const PATH: &str = "/moby.exporter.v1.Exporter/FindExporters";
        call::unary(&mut self.0, PATH, request.into_request()).await
    }

    /// Tells that all was exported.
    ///
    /// # Errors
    /// The server's.
    pub async fn finalize(
        &mut self,
        request: impl IntoRequest<FinalizeExportRequest>,
    ) -> Result<Response<FinalizeExportResponse>, Status> {
        const PATH: &str = "/moby.exporter.v1.Exporter/FinalizeExport";
        call::unary(&mut self.0, PATH, request.into_request()).await
    }
}
