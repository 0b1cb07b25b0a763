//! The document that holds a cache together in a registry or layout.

use lapstrake_oci::{Descriptor, Document, Index, Manifest, media_type};

use crate::Error;
use crate::doc::CONFIG_MEDIA_TYPE;

/// How a cache is put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// An image manifest; else an index.
    pub image_manifest: bool,
    /// OCI's media types; else Docker's.
    pub oci: bool,
}

impl Form {
    /// Makes the document over config and layers: its bytes and media type.
    ///
    /// # Errors
    /// [`Error::Form`] of an image manifest without OCI's media types.
    pub fn write(self, config: &[u8], layers: &[Descriptor]) -> Result<(Vec<u8>, &'static str), Error> {
        let config = Descriptor::of(CONFIG_MEDIA_TYPE, config);
        let malformed = |source| Error::Malformed { what: "manifest", source };
        if self.image_manifest {
            if !self.oci {
                return Err(Error::Form);
            }
            let kind = media_type::OCI_MANIFEST;
            let manifest = Manifest {
                schema_version: 2,
                media_type: Some(kind.to_owned()),
                artifact_type: None,
                config,
                layers: layers.to_vec(),
                subject: None,
                annotations: Default::default(),
            };
            return Ok((serde_json::to_vec(&manifest).map_err(malformed)?, kind));
        }
        let kind = if self.oci { media_type::OCI_INDEX } else { media_type::DOCKER_INDEX };
        let manifests = layers.iter().cloned().chain([config]).collect();
        let index = Index {
            schema_version: 2,
            media_type: Some(kind.to_owned()),
            manifests,
            annotations: Default::default(),
        };
        Ok((serde_json::to_vec(&index).map_err(malformed)?, kind))
    }
}

/// What a document under a cache's name is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A cache.
    Cache {
        /// Its config.
        config: Box<Descriptor>,
        /// Its layers, in no order.
        layers: Vec<Descriptor>,
    },
    /// An image, which may have an inline cache.
    Image(Box<Manifest>),
    /// Images of several platforms, each of which may have one.
    Images(Vec<Descriptor>),
}

/// Tells what a document is.
pub fn kind(document: Document) -> Kind {
    match document {
        Document::Manifest(manifest) if manifest.config.media_type == CONFIG_MEDIA_TYPE => {
            Kind::Cache { config: Box::new(manifest.config), layers: manifest.layers }
        }
        Document::Manifest(manifest) => Kind::Image(Box::new(manifest)),
        Document::Index(index) => {
            let (mut configs, layers): (Vec<_>, Vec<_>) =
                index.manifests.into_iter().partition(|entry| entry.media_type == CONFIG_MEDIA_TYPE);
            match configs.pop() {
                Some(config) => Kind::Cache { config: Box::new(config), layers },
                None => Kind::Images(layers),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use lapstrake_oci::Digest;

    use super::*;

    #[test]
    fn both_forms_are_read_as_what_was_written() {
        let layers = vec![Descriptor::new(media_type::OCI_LAYER_GZIP, Digest::of(b"l"), 3)];
        for (image_manifest, oci) in [(true, true), (false, true), (false, false)] {
            let (bytes, media_type) = Form { image_manifest, oci }.write(b"{}", &layers).unwrap();
            let document = Document::parse(&bytes, media_type).unwrap();
            let config = Box::new(Descriptor::of(CONFIG_MEDIA_TYPE, b"{}"));
            assert_eq!(kind(document), Kind::Cache { config, layers: layers.clone() });
        }
        assert!(matches!(Form { image_manifest: true, oci: false }.write(b"{}", &layers), Err(Error::Form)));
    }
}
