//! What is attested of an image, for those who decide about it by that.

use lapstrake_handoff::Reason;
use lapstrake_oci::{Descriptor, Digest, Document, Platform, Reference, media_type};

use super::images::Images;
use crate::attest::{ATTESTATION_MANIFEST, PREDICATE_TYPE, REFERENCE_DIGEST, REFERENCE_TYPE};
use crate::error::BuildError;

/// From an index to what is attested of one of its images. Signatures of that are not looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AttestationChain {
    /// The index.
    pub(crate) root: Digest,
    /// The image's manifest.
    pub(crate) image: Digest,
    /// The manifest of what is attested.
    pub(crate) attestations: Option<Digest>,
    /// Documents: the index, that manifest, and the attestations that were asked for.
    pub(crate) blobs: Vec<(Descriptor, Vec<u8>)>,
}

impl Images {
    /// What is attested of an image of a platform, with those attestations that say something of these kinds; none where
    /// its name stands for no index.
    pub(crate) async fn attestation_chain(
        &self,
        name: &str,
        platform: &Platform,
        predicates: &[String],
    ) -> Result<Option<AttestationChain>, BuildError> {
        let reference: Reference =
            name.parse().map_err(|e| BuildError::new(Reason::DockerfileInvalid, format!("{e}")))?;
        let root = self.resolve(&reference, platform).await?.digest;
        let (document, bytes) = self.read(&reference.with_digest(root)).await?;
        let Document::Index(index) = document else { return Ok(None) };
        let Some(image) = index.select(platform).map(|image| image.digest) else { return Ok(None) };
        let kind = index.media_type.clone().unwrap_or_else(|| media_type::OCI_INDEX.to_owned());
        if kind != media_type::OCI_INDEX {
            return Ok(None);
        }
        let mut blobs = vec![(described(kind, root, &bytes), bytes)];
        let is_of = |entry: &&Descriptor| {
            let says = |key: &str| entry.annotations.get(key).map(String::as_str);
            says(REFERENCE_TYPE) == Some(ATTESTATION_MANIFEST)
                && says(REFERENCE_DIGEST) == Some(image.to_string().as_str())
        };
        let attested = index.manifests.iter().find(is_of);
        let attestations = attested.map(|entry| entry.digest);
        if let Some(entry) = attested {
            let (document, bytes) = self.read(&reference.with_digest(entry.digest)).await?;
            blobs.push((entry.clone(), bytes));
            let Document::Manifest(manifest) = document else { return Ok(None) };
            let wanted = |layer: &&Descriptor| {
                layer.annotations.get(PREDICATE_TYPE).is_some_and(|kind| predicates.contains(kind))
            };
            for layer in manifest.layers.iter().filter(wanted) {
                let bytes = self.small_blob(&reference.with_digest(root), layer).await?;
                blobs.push((layer.clone(), bytes));
            }
        }
        Ok(Some(AttestationChain { root, image, attestations, blobs }))
    }
}

fn described(kind: String, digest: Digest, bytes: &[u8]) -> Descriptor {
    Descriptor::new(kind, digest, bytes.len() as u64)
}
