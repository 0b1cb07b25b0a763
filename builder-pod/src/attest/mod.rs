//! What is attested of a build: provenance (SLSA) and lists of what is in an image (SBOM), as in-toto statements.
//!
//! Pure but for `sbom.rs`, `bundle.rs` and `gather.rs`: a graph, what its sources were found to be and what was asked for make a
//! predicate; a predicate and an image's digest make a statement. The form of all documents is BuildKit's.
//! Holds: no value of a secret is known here: what steps are lent is told by its name.

mod asked;
mod bundle;
mod capture;
mod gather;
mod manifest;
mod of_build;
mod predicate;
mod purl;
mod request;
mod sbom;
pub(crate) mod scans;
mod statement;
mod steps;

use std::sync::Arc;

#[cfg(test)]
pub(crate) use asked::Mode;
pub(crate) use asked::{Asked, ProvenanceAsked, SbomAsked};
pub(crate) use bundle::{bundle, predicate};
pub(crate) use capture::{Capture, ImageSource};
pub(crate) use gather::{environment, known_images, of_context, of_graph, scan};
pub(crate) use manifest::{ATTESTATION_MANIFEST, REFERENCE_DIGEST, REFERENCE_TYPE, beside, manifest};
pub(crate) use of_build::{Built, attach};
pub(crate) use predicate::{Made, Provenance, subject_name};
pub(crate) use request::{FrontendRequest, RequestProvenance, arguments_of};
pub(crate) use sbom::{CORE, SPDX, supplement};
pub(crate) use statement::{IN_TOTO, PREDICATE_TYPE, Statement, Subject, SubjectOf, Subjects};

/// The release of `docker/dockerfile` whose language the frontend speaks that is built in.
pub(crate) const DOCKERFILE_VERSION: &str = "1.28.0";

/// What is attested of a result, for exporters to make statements of.
#[derive(Debug, Clone)]
pub(crate) struct Attestation {
    /// The name of its file, where it becomes one.
    pub(crate) path: String,
    /// Of what kind the predicate is: an address.
    pub(crate) predicate_type: String,
    /// What it is said of.
    pub(crate) subjects: Subjects,
    /// Only for what holds an image and its attestations together.
    pub(crate) inline_only: bool,
    /// It is what a scanner found in the image itself.
    pub(crate) core: bool,
    /// What is said.
    pub(crate) content: Content,
}

/// What is said in an attestation.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// A predicate as JSON.
    Json(Arc<serde_json::Value>),
    /// How the result was made; when it was finished is known once it is asked for.
    Provenance(Arc<Provenance>),
}

impl Attestation {
    /// How a result was made, as was asked for.
    pub(crate) fn provenance(asked: &ProvenanceAsked, provenance: Arc<Provenance>) -> Self {
        Self {
            path: asked.filename.clone().unwrap_or_else(|| "provenance.json".to_owned()),
            predicate_type: provenance.predicate_type().to_owned(),
            subjects: Vec::new(),
            inline_only: asked.inline_only,
            core: false,
            content: Content::Provenance(provenance),
        }
    }

    /// The predicate, as it is now. `layers` are those of the image, lowest first, where it is known.
    pub(crate) fn predicate(&self, layers: &[lapstrake_oci::Descriptor]) -> serde_json::Value {
        match &self.content {
            Content::Json(value) => (**value).clone(),
            Content::Provenance(provenance) => provenance.predicate(layers),
        }
    }
}
