//! `oci-layout://` and `oci-layout+blob://`: images and blobs in layouts of clients, which are brought here before anything is
//! built on them.

use std::path::Path;
use std::sync::Arc;

use lapstrake_api::pb;
use lapstrake_handoff::Reason;
use lapstrake_llb::Graph;
use lapstrake_oci::{Descriptor, Digest};

use super::job::Job;
use super::receiver::SessionReceiver;
use crate::client::Receiver;
use crate::engine::{BLOB_LAYOUT, Place};
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
        let wrong = |why: &str| {
            BuildError::new(Reason::RequestInvalid, format!("source {}: {why}", source.identifier))
        };
        let attr = |name: &str| source.attrs.get(name).map(String::as_str).filter(|value| !value.is_empty());
        // A repository may be a blob too.
        let of_blob = |address: &str| address.strip_prefix(BLOB_LAYOUT).map(str::to_owned);
        let bundle = || attr("git.checksum").and_then(|_| of_blob(attr("git.bundle")?));
        let blob = of_blob(&source.identifier).or_else(bundle);
        let image = source.identifier.strip_prefix(SCHEME);
        let Some(reference) = blob.as_deref().or(image) else { continue };
        let digest: Option<Digest> = reference.rsplit_once('@').and_then(|(_, digest)| digest.parse().ok());
        let digest = digest.ok_or_else(|| wrong("what is in a layout is named by its digest"))?;
        let named = reference.split_once('@').map(|(name, _)| name).filter(|_| blob.is_some());
        let store = attr("oci.store").or(named).ok_or_else(|| wrong("it names no layout of the client"))?;
        let lender = job.engine.lender().ok_or_else(|| wrong("there is no client that has it"))?;
        let session = lender.session(attr("oci.session")).await?;
        let client: Arc<dyn Receiver> = Arc::new(SessionReceiver::new(session, job.cancel.clone()));
        match blob {
            None => crate::named::lent(&job.engine, &client, Path::new(store), digest).await?,
            Some(_) => {
                let place = Place::Client {
                    receiver: client,
                    store: format!("oci:{}", store.split(':').next().unwrap_or_default()),
                };
                let silent = lapstrake_registry::Progress::none();
                let blob = Descriptor::new("", digest, 0);
                job.engine.images().fetch_from(&place, &blob, &silent, &job.cancel).await?;
            }
        }
    }
    Ok(())
}
