//! `oci-layout://`: images in layouts of clients, which are brought here before anything is built on them.

use std::path::Path;
use std::sync::Arc;

use lapstrake_api::pb;
use lapstrake_handoff::Reason;
use lapstrake_llb::Graph;
use lapstrake_oci::Digest;

use super::job::Job;
use super::receiver::SessionReceiver;
use crate::client::Receiver;
use crate::error::BuildError;

/// What the identifiers of such sources begin with.
const SCHEME: &str = "oci-layout://";

/// Brings the images of layouts that a graph begins with.
///
/// # Errors
/// One is not named by its digest, or is not there; the client is gone.
pub(crate) async fn bring(job: &Job, graph: &Graph) -> Result<(), BuildError> {
    for vertex in graph.vertices() {
        let pb::op::Op::Source(source) = &vertex.op else { continue };
        let Some(reference) = source.identifier.strip_prefix(SCHEME) else { continue };
        let wrong = |why: &str| {
            BuildError::new(Reason::RequestInvalid, format!("source {}: {why}", source.identifier))
        };
        let digest: Option<Digest> = reference.rsplit_once('@').and_then(|(_, digest)| digest.parse().ok());
        let digest = digest.ok_or_else(|| wrong("an image of a layout is named by its digest"))?;
        let attr = |name: &str| source.attrs.get(name).map(String::as_str).filter(|value| !value.is_empty());
        let store = attr("oci.store").ok_or_else(|| wrong("it names no layout of the client"))?;
        let lender = job.engine.lender().ok_or_else(|| wrong("there is no client that has it"))?;
        let session = lender.session(attr("oci.session")).await?;
        let client: Arc<dyn Receiver> = Arc::new(SessionReceiver::new(session, job.cancel.clone()));
        crate::named::lent(&job.engine, &client, Path::new(store), digest).await?;
    }
    Ok(())
}
