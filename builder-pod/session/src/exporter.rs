//! Outputs that a client chooses once it knows what was built.

use std::collections::HashMap;

use lapstrake_api::exporter::{ExporterClient, FinalizeExportRequest, FindExportersRequest};
use tonic::Code;

use crate::error::Error;
use crate::session::{Session, method};

/// Outputs that a client chooses at most.
const EXPORTERS_MAX: usize = 64;

/// A client that does not choose.
fn chooses_none(error: &Error) -> bool {
    matches!(error, Error::Call { status, .. } if matches!(status.code(), Code::Unavailable | Code::Unimplemented))
}

impl Session {
    /// The outputs that the client chooses for a result, by kind and attributes; none where it does not choose. `metadata`
    /// is what is said of the result, `refs` are ids of its parts.
    ///
    /// # Errors
    /// The client is gone or failed, or chose more than is sensible.
    pub async fn exporters(
        &self,
        metadata: HashMap<String, Vec<u8>>,
        refs: Vec<String>,
    ) -> Result<Vec<(String, HashMap<String, String>)>, Error> {
        if !self.serves(method::FIND_EXPORTERS) {
            return Ok(Vec::new());
        }
        let mut client = ExporterClient::new(self.channel());
        match self.call("find exporters", client.find(FindExportersRequest { metadata, refs })).await {
            Ok(found) if found.exporters.len() > EXPORTERS_MAX => Err(self.ended("find exporters")),
            Ok(found) => Ok(found.exporters.into_iter().map(|one| (one.r#type, one.attrs)).collect()),
            Err(error) if chooses_none(&error) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Tells the client that all was exported, and what it will be told of it.
    ///
    /// # Errors
    /// The client is gone or failed.
    pub async fn exported(&self, exporter_response: HashMap<String, String>) -> Result<(), Error> {
        if !self.serves(method::FINALIZE_EXPORT) {
            return Ok(());
        }
        let mut client = ExporterClient::new(self.channel());
        match self.call("finalize export", client.finalize(FinalizeExportRequest { exporter_response })).await
        {
            Err(error) if !chooses_none(&error) => Err(error),
            _ => Ok(()),
        }
    }
}
