//! What is attested of an image: asked for in a request, told of in an outcome.

use serde::{Deserialize, Serialize};

/// What is attested of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Attestations {
    /// How it was made (SLSA provenance); unset: nothing is said of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Provenance>,
    /// What is in it (SBOM); unset: nothing is said of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sbom: Option<Sbom>,
}

/// How provenance is made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Provenance {
    /// How much it tells.
    #[serde(default)]
    pub mode: ProvenanceMode,
}

/// How much provenance tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProvenanceMode {
    /// Neither arguments nor the Dockerfile.
    #[default]
    Min,
    /// Everything: arguments, the Dockerfile and the steps made of it too.
    Max,
}

/// How a list of what is in an image is made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sbom {
    /// Image that makes it; unset: the builder's own choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generator: Option<String>,
}

/// The manifest of what is attested of one platform's image; of OCI's type, in the repository already.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AttestationManifest {
    /// Its digest.
    pub digest: String,
    /// Bytes of it, as an index must state them.
    pub bytes: u64,
}
