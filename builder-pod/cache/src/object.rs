//! A cache in an object store: one document, whose layers describe themselves.

use lapstrake_oci::Descriptor;

use crate::doc::{Config, LayerAnnotations};
use crate::{Error, Records, inline, limits};

/// The document of a config whose layers have these descriptors.
///
/// # Errors
/// [`Error::Damaged`] of a layer without a descriptor, or without the digest of its tar.
pub fn write(mut config: Config, layers: &[Descriptor]) -> Result<Vec<u8>, Error> {
    for layer in &mut config.layers {
        let found = layers.iter().find(|descriptor| descriptor.digest == layer.blob);
        let damaged = || Error::Damaged(format!("layer {} is not described", layer.blob));
        let descriptor = found.ok_or_else(damaged)?;
        let diff_id = descriptor.annotations.get(inline::UNCOMPRESSED).ok_or_else(damaged)?;
        let created = descriptor.annotations.get(inline::CREATED_AT);
        layer.annotations = Some(LayerAnnotations {
            media_type: descriptor.media_type.clone(),
            diff_id: diff_id.clone(),
            size: descriptor.size,
            created: created.and_then(|text| text.parse().ok()),
        });
    }
    serde_json::to_vec(&config).map_err(|source| Error::Malformed { what: "config", source })
}

/// The records of such a document.
///
/// # Errors
/// As [`Records::parse`], and [`Error::Damaged`] of a layer that does not describe itself.
pub fn read(document: &[u8]) -> Result<Records, Error> {
    let size_bytes = document.len() as u64;
    if size_bytes > limits::DOCUMENT_BYTES_MAX {
        return Err(Error::TooLarge { what: "config", size_bytes, limit_bytes: limits::DOCUMENT_BYTES_MAX });
    }
    let config: Config =
        serde_json::from_slice(document).map_err(|source| Error::Malformed { what: "config", source })?;
    let mut layers = Vec::with_capacity(config.layers.len());
    for layer in &config.layers {
        let missing = |what: &str| Error::Damaged(format!("cache layer with missing {what}"));
        let told = layer.annotations.as_ref().ok_or_else(|| missing("annotations"))?;
        if told.diff_id.is_empty() {
            return Err(missing("diffid"));
        }
        let mut descriptor = Descriptor::new(&told.media_type, layer.blob, told.size);
        descriptor.annotations.insert(inline::UNCOMPRESSED.to_owned(), told.diff_id.clone());
        if let Some(created) = &told.created {
            descriptor.annotations.insert(inline::CREATED_AT.to_owned(), created.to_string());
        }
        layers.push(descriptor);
    }
    Records::new(&config, &layers)
}

#[cfg(test)]
mod tests {
    use lapstrake_oci::Digest;

    use super::*;
    use crate::{Draft, record_digest};

    #[test]
    fn layers_describe_themselves_and_are_read_back() {
        let mut layer = Descriptor::new("application/x", Digest::of(b"blob"), 4);
        let diff = Digest::of(b"tar").to_string();
        layer.annotations.insert(inline::UNCOMPRESSED.to_owned(), diff.clone());
        layer.annotations.insert(inline::CREATED_AT.to_owned(), "2026-01-02T03:04:05Z".to_owned());
        let mut draft = Draft::new();
        let name = record_digest(&Digest::of(b"op"), 0);
        let id = draft.record(name, []).unwrap();
        draft.result(id, vec![layer.clone()], None);
        let (config, layers) = draft.finish();
        let document = write(config, &layers).unwrap();
        let text = String::from_utf8(document.clone()).unwrap();
        let expected = format!(
            r#""annotations":{{"mediaType":"application/x","diffID":"{diff}","size":4,"createdAt":"2026-01-02T03:04:05Z"}}"#
        );
        assert!(text.contains(&expected), "{text}");
        let records = read(&document).unwrap();
        let node = *records.find(&name, &[]).iter().next().unwrap();
        assert_eq!(records.results(node)[0].layers, [layer]);
    }

    #[test]
    fn a_layer_that_does_not_describe_itself_is_told() {
        let blob = Digest::of(b"b");
        for (annotations, told) in
            [("", "missing annotations"), (r#","annotations":{"size":1}"#, "missing diffid")]
        {
            let text = format!(r#"{{"layers":[{{"blob":"{blob}","parent":-1{annotations}}}]}}"#);
            let error = read(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }
}
