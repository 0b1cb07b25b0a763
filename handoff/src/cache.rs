//! Caches outside of the builder: where records and layers of other builds are read from and written to.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::request::{Compression, is_false};

/// A cache that a build reads. That it is missing or unreadable fails no build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type", deny_unknown_fields)]
pub enum CacheImport {
    /// A cache, or an image with an inline cache, in a registry.
    #[serde(rename_all = "camelCase")]
    Registry {
        /// Its name.
        #[serde(rename = "ref")]
        reference: String,
        /// Reached by plain http, or https whose certificate nobody checks.
        #[serde(default, skip_serializing_if = "is_false")]
        insecure: bool,
    },
    /// An OCI layout in a directory.
    #[serde(rename_all = "camelCase")]
    Local {
        /// The directory.
        src: String,
        /// Tag in it; unset: `latest`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tag: Option<String>,
        /// Digest of the manifest; wins over the tag.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<String>,
    },
    /// In an object store.
    Store(CacheStore),
}

/// A cache in a store that BuildKit's attributes name: `s3`, `azblob`. Prints without credentials.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CacheStore {
    /// The type, as clients name it.
    pub kind: String,
    /// Its attributes, with credentials.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
}

impl fmt::Debug for CacheStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("CacheStore");
        shown.field("kind", &self.kind);
        for key in ["bucket", "container", "prefix", "name"] {
            if let Some(value) = self.attributes.get(key) {
                shown.field(key, value);
            }
        }
        shown.finish_non_exhaustive()
    }
}

/// A cache that a build writes after it succeeded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CacheExport {
    /// Where to.
    pub to: CacheTarget,
    /// How much goes along.
    #[serde(default)]
    pub mode: CacheMode,
    /// True: the cache is an image manifest; false: an index, as older registries' tools expect.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub image_manifest: bool,
    /// False: Docker's media types, which go with an index only.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub oci_media_types: bool,
    /// How layers are compressed that have no blob yet.
    #[serde(default)]
    pub compression: Compression,
    /// Level of that compression; unset: the builder's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression_level: Option<i32>,
    /// True: layers that have a blob of another compression are packed anew.
    #[serde(default, skip_serializing_if = "is_false")]
    pub force_compression: bool,
    /// True: that it could not be written fails no build.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ignore_error: bool,
}

/// Where a cache is written to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type", deny_unknown_fields)]
pub enum CacheTarget {
    /// Into a registry.
    #[serde(rename_all = "camelCase")]
    Registry {
        /// Its name there.
        #[serde(rename = "ref")]
        reference: String,
        /// Reached by plain http, or https whose certificate nobody checks.
        #[serde(default, skip_serializing_if = "is_false")]
        insecure: bool,
    },
    /// Into an OCI layout in a directory.
    #[serde(rename_all = "camelCase")]
    Local {
        /// The directory.
        dest: String,
        /// Tag in it; unset: `latest`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tag: Option<String>,
    },
    /// Into an object store.
    Store(CacheStore),
    /// Into the config of the image itself.
    Inline,
}

/// How much of a build goes into a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CacheMode {
    /// What the result consists of.
    #[default]
    Min,
    /// All steps, those of intermediate stages too.
    Max,
}

impl CacheExport {
    /// An export with everything else as BuildKit has it by default.
    pub fn new(to: CacheTarget) -> Self {
        Self {
            to,
            mode: CacheMode::default(),
            image_manifest: true,
            oci_media_types: true,
            compression: Compression::default(),
            compression_level: None,
            force_compression: false,
            ignore_error: false,
        }
    }
}

fn yes() -> bool {
    true
}

/// For serde: a flag that is on is not written.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it by reference")]
fn is_true(flag: &bool) -> bool {
    *flag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_buildkits_default() {
        let text = r#"{"type":"registry","ref":"registry.example/shop/cache"}"#;
        let export: CacheExport = serde_json::from_str(&format!(r#"{{"to":{text}}}"#)).unwrap();
        let to = CacheTarget::Registry { reference: "registry.example/shop/cache".into(), insecure: false };
        assert_eq!(export, CacheExport::new(to));
        let import: CacheImport = serde_json::from_str(text).unwrap();
        assert!(matches!(import, CacheImport::Registry { insecure: false, .. }));
        let text = r#"{"to":{"type":"local","dest":"/cache"},"mode":"max","imageManifest":false}"#;
        let export: CacheExport = serde_json::from_str(text).unwrap();
        assert_eq!((export.mode, export.image_manifest), (CacheMode::Max, false));
        let inline: CacheExport = serde_json::from_str(r#"{"to":{"type":"inline"}}"#).unwrap();
        assert_eq!(inline.to, CacheTarget::Inline);
        assert!(serde_json::from_str::<CacheExport>(r#"{"to":{"type":"inline"},"scope":"x"}"#).is_err());
    }

    #[test]
    fn caches_read_back_as_they_were_written() {
        let mut export = CacheExport::new(CacheTarget::Local { dest: "/d".into(), tag: Some("t".into()) });
        export.compression = Compression::Zstd;
        export.ignore_error = true;
        let text = serde_json::to_string(&export).unwrap();
        assert_eq!(serde_json::from_str::<CacheExport>(&text).unwrap(), export);
        let import = CacheImport::Local { src: "/d".into(), tag: None, digest: Some("sha256:0".into()) };
        let text = serde_json::to_string(&import).unwrap();
        assert_eq!(serde_json::from_str::<CacheImport>(&text).unwrap(), import);
    }
}
