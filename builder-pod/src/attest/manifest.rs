//! The manifest that stands beside an image in its index, and holds what is attested of it.

use lapstrake_image::assemble::Beside;
use lapstrake_oci::{Descriptor, Digest, Manifest, Platform, media_type};

use super::statement::{IN_TOTO, PREDICATE_TYPE, Statement};

/// Type of such a manifest.
const ARTIFACT: &str = "application/vnd.docker.attestation.manifest.v1+json";
/// Media type of a config that says nothing.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// Annotations of its entry in the index.
pub(crate) const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
pub(crate) const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";
/// What such an entry is of.
pub(crate) const ATTESTATION_MANIFEST: &str = "attestation-manifest";

/// Makes the manifest of what is attested of the image with this one: as an artifact that refers to the image, or as readers of old have it, an image of its own.
///
/// # Errors
/// What can't be written as JSON, which statements can.
pub(crate) fn manifest(
    target: &Descriptor,
    statements: &[Statement],
    artifact: bool,
) -> Result<Beside, serde_json::Error> {
    let mut layers = Vec::new();
    for statement in statements {
        let bytes = lapstrake_oci::to_json(statement, false)?;
        let mut layer = Descriptor::of(IN_TOTO, &bytes);
        layer.annotations.insert(PREDICATE_TYPE.to_owned(), statement.predicate_type.clone());
        layers.push((bytes, layer));
    }
    let config = match artifact {
        true => {
            let bytes = b"{}".to_vec();
            let mut descriptor = Descriptor::of(EMPTY, &bytes);
            descriptor.data = Some("e30=".to_owned());
            (bytes, descriptor)
        }
        false => {
            let diff_ids: Vec<_> = layers.iter().map(|(bytes, _)| Digest::of(bytes)).collect();
            let config = serde_json::json!({
                "architecture": nowhere().architecture,
                "os": nowhere().os,
                "config": {},
                "rootfs": { "type": "layers", "diff_ids": diff_ids },
            });
            let bytes = lapstrake_oci::to_json(&config, false)?;
            let descriptor = Descriptor::of(media_type::OCI_CONFIG, &bytes);
            (bytes, descriptor)
        }
    };
    let subject = Descriptor::new(&target.media_type, target.digest, target.size);
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        artifact_type: artifact.then(|| ARTIFACT.to_owned()),
        config: config.1.clone(),
        layers: layers.iter().map(|(_, layer)| layer.clone()).collect(),
        subject: artifact.then_some(subject),
        annotations: Default::default(),
    };
    let bytes = lapstrake_oci::to_json(&manifest, true)?;
    let descriptor = beside(target.digest, Descriptor::of(media_type::OCI_MANIFEST, &bytes));
    let blobs = layers.into_iter().chain([config]).collect();
    Ok(Beside { manifest: (bytes, descriptor), blobs })
}

/// The entry of an index for what is attested of the image whose manifest has this digest.
pub(crate) fn beside(image: Digest, attestation: Descriptor) -> Descriptor {
    let mut entry = Descriptor { platform: Some(nowhere()), ..attestation };
    entry.annotations.insert(REFERENCE_TYPE.to_owned(), ATTESTATION_MANIFEST.to_owned());
    entry.annotations.insert(REFERENCE_DIGEST.to_owned(), image.to_string());
    entry
}

/// The platform of what runs nowhere.
fn nowhere() -> Platform {
    Platform::new("unknown", "unknown", None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_refers_to_its_image_and_an_old_manifest_has_a_config() {
        let target = Descriptor::of(media_type::OCI_MANIFEST, b"image");
        let statement = Statement::new("https://slsa.dev/provenance/v1", &[], &[], serde_json::json!({}));
        let made = manifest(&target, std::slice::from_ref(&statement), true).expect("it can be written");
        let read: Manifest = serde_json::from_slice(&made.manifest.0).expect("a manifest");
        assert_eq!(read.subject.as_ref().map(|subject| subject.digest), Some(target.digest));
        assert_eq!(read.config.data.as_deref(), Some("e30="));
        assert_eq!(read.layers[0].annotations[PREDICATE_TYPE], "https://slsa.dev/provenance/v1");
        assert_eq!(made.manifest.1.annotations[REFERENCE_DIGEST], target.digest.to_string());
        let old = manifest(&target, &[statement], false).expect("it can be written");
        let read: Manifest = serde_json::from_slice(&old.manifest.0).expect("a manifest");
        assert!(read.subject.is_none() && read.config.media_type == media_type::OCI_CONFIG);
        let config: lapstrake_oci::ImageConfig = serde_json::from_slice(&old.blobs[1].0).expect("a config");
        assert_eq!((config.os.as_str(), config.rootfs.diff_ids.len()), ("unknown", 1));
    }
}
