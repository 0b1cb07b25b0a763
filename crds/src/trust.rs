//! What a corporate network needs: certificates of its own authorities, and its proxies.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::output::SecretReference;
use crate::schema::rules;

/// Certificates of authorities that are trusted beside the usual ones: for registries, Git and downloads,
/// and by choice in the steps of the Dockerfile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Certificates {
    /// Where they come from: keys with one or more certificates in PEM form.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub from: Vec<CertificateSource>,
    /// Whether RUN steps trust them too: they are seen where distributions and tools look for them, for as
    /// long as the step runs, and never get into a layer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_steps: bool,
}

/// A key with certificates: exactly one of `configMapRef` and `secretRef`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "has(self.configMapRef) != has(self.secretRef)",
    "each entry of certificates.from takes exactly one of configMapRef and secretRef",
)])))]
pub struct CertificateSource {
    /// A key of a ConfigMap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_ref: Option<CertificateReference>,
    /// A key of a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<CertificateReference>,
}

/// A key with certificates, in an object of the ImageBuild's own namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CertificateReference {
    /// Name of the object. It may be created after the ImageBuild; the build waits for it.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its key; `ca.crt` by default.
    #[serde(default = "default_key")]
    #[schemars(length(max = 253), extend("default" = "ca.crt", "x-kubernetes-validations" = rules(&[(
        "self.matches('^[-._a-zA-Z0-9]+$') && self != '.' && !self.startsWith('..')",
        "a key of a Secret or ConfigMap has letters, digits, dashes, dots and underscores, as in ca.crt",
    )])))]
    pub key: String,
}

fn default_key() -> String {
    "ca.crt".to_owned()
}

impl Certificates {
    /// Whether nothing differs from the default.
    pub fn is_default(&self) -> bool {
        self == &Self::default()
    }
}

/// Proxies by which the builder, and by choice the steps of the Dockerfile, reach registries, Git and
/// downloads. What is said here takes the place of the operator's own setting as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "!has(self.from) || has(self.from.configMapRef) != has(self.from.secretRef)",
    "proxy.from takes exactly one of configMapRef and secretRef",
)])))]
pub struct Proxy {
    /// Proxy for `http` addresses, such as `http://proxy.example:3128`. One with a password belongs into
    /// the Secret of `from`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), extend("x-kubernetes-validations" = rules(&[
        (PROXY_RULE, "proxy.http must be an http or https address, such as http://proxy.example:3128"),
        (PASSWORD_RULE, "proxy.http must not hold a password: everybody who may read the ImageBuild would read it; \
                         put the address into a Secret and name that in proxy.from"),
    ])))]
    pub http: Option<String>,
    /// Proxy for `https` addresses, such as `http://proxy.example:3128`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), extend("x-kubernetes-validations" = rules(&[
        (PROXY_RULE, "proxy.https must be an http or https address, such as http://proxy.example:3128"),
        (PASSWORD_RULE, "proxy.https must not hold a password: everybody who may read the ImageBuild would read it; \
                         put the address into a Secret and name that in proxy.from"),
    ])))]
    pub https: Option<String>,
    /// What is reached without a proxy: names, domains, addresses and networks, separated by commas, such
    /// as `.svc,.cluster.local,10.0.0.0/8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub no_proxy: Option<String>,
    /// An object with the keys `http`, `https` and `noProxy`, each for what is not said here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<ProxySource>,
    /// Whether RUN steps find them in their environment (`HTTP_PROXY` and so on). They are not in the
    /// image, and do not count for the cache.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_steps: bool,
}

const PROXY_RULE: &str = "self.matches('^https?://[^/ ]+/?$')";
const PASSWORD_RULE: &str = "!self.contains('@')";

/// An object with proxies: exactly one of `configMapRef` and `secretRef`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProxySource {
    /// A ConfigMap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_ref: Option<SecretReference>,
    /// A Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretReference>,
}

impl Proxy {
    /// Whether nothing differs from the default.
    pub fn is_default(&self) -> bool {
        self == &Self::default()
    }
}
