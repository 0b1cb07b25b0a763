//! What is told of single platforms and of the source, in either direction: a builder says it of what it
//! built, and is told it when it only joins what others built.

use serde::{Deserialize, Serialize};

use crate::attestations::AttestationManifest;

/// Most manifests that an index request joins; also most platforms of one build.
pub const PLATFORMS_MAX: usize = 16;

/// Media type of a manifest where nothing else is said.
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A platform's manifest that is in the repository already.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlatformManifest {
    /// `os/arch[/variant]`.
    pub platform: String,
    /// Digest of the manifest.
    pub digest: String,
    /// Bytes of the manifest itself, as an index must state them.
    pub manifest_bytes: u64,
    /// Its media type; OCI's where it is not said.
    #[serde(default = "oci_manifest", skip_serializing_if = "is_oci_manifest")]
    pub media_type: String,
    /// What is attested of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attestation: Option<AttestationManifest>,
}

/// One platform of what was built.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlatformResult {
    /// `os/arch[/variant]`.
    pub platform: String,
    /// Digest of its manifest.
    pub digest: String,
    /// Bytes of the manifest itself, as an index must state them.
    #[serde(default)]
    pub manifest_bytes: u64,
    /// Its media type; OCI's where it is not said.
    #[serde(default = "oci_manifest", skip_serializing_if = "is_oci_manifest")]
    pub media_type: String,
    /// Bytes of config and compressed layers together.
    #[serde(default)]
    pub size_bytes: u64,
    /// What is attested of it, where others join it into their index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attestation: Option<AttestationManifest>,
}

impl PlatformResult {
    /// What an index request says of it.
    pub fn manifest(&self) -> PlatformManifest {
        PlatformManifest {
            platform: self.platform.clone(),
            digest: self.digest.clone(),
            manifest_bytes: self.manifest_bytes,
            media_type: self.media_type.clone(),
            attestation: self.attestation.clone(),
        }
    }
}

/// What is known of the source's revision: what names with placeholders, annotations and
/// `SOURCE_DATE_EPOCH` are filled from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceFacts {
    /// Full commit id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The commit's time, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<i64>,
    /// The branch that was asked for, or the repository's default branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// The tag that was asked for, or the one of the commit with the highest version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
}

fn oci_manifest() -> String {
    OCI_MANIFEST.to_owned()
}

fn is_oci_manifest(text: &str) -> bool {
    text.is_empty() || text == OCI_MANIFEST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_becomes_an_entry_of_an_index_and_the_usual_media_type_costs_nothing() {
        let result = PlatformResult {
            platform: "linux/arm64".to_owned(),
            digest: format!("sha256:{}", "a".repeat(64)),
            manifest_bytes: 700,
            media_type: OCI_MANIFEST.to_owned(),
            size_bytes: 1 << 20,
            attestation: None,
        };
        let text = serde_json::to_string(&result.manifest()).unwrap();
        assert!(!text.contains("mediaType"), "{text}");
        assert_eq!(serde_json::from_str::<PlatformManifest>(&text).unwrap(), result.manifest());
    }
}
