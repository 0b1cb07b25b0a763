//! What is attested of an image.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::rules;

/// What is attested of an image, as documents beside it in its index: that index is what `digest` names, also
/// of a single platform.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attestations {
    /// How the image was made, from which sources and base images, as SLSA provenance. `provenance: {}` is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Provenance>,
    /// What is in the image (SBOM), as a scanner finds it. `sbom: {}` is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sbom: Option<Sbom>,
}

/// How provenance is made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Provenance {
    /// How much it tells to everybody who may read the image.
    #[serde(default)]
    pub mode: ProvenanceMode,
}

/// How much provenance tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ProvenanceMode {
    /// Sources and base images by digest, times, and how the build was parametrized, but neither `args` nor the Dockerfile.
    #[default]
    Min,
    /// All of it: `args`, the Dockerfile and the steps made of it as well.
    Max,
}

/// How the list of what is in an image is made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sbom {
    /// Image of the scanner, which runs as a step of the build; one that keeps to BuildKit's SBOM scanner protocol. By
    /// default `docker/buildkit-syft-scanner:stable-1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512), extend("x-kubernetes-validations" = rules(&[(
        "self.matches('^[A-Za-z0-9][A-Za-z0-9._:/-]*(@sha256:[0-9a-f]{64})?$') && !self.contains('://')",
        "output.attestations.sbom.generator must be the name of an image without a scheme, such as \
         registry.example/tools/scanner:1",
    )])))]
    pub generator: Option<String>,
}
