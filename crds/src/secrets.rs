//! What a build is given out of Secrets and ConfigMaps. Only names stand in the spec: the node mounts the
//! contents into the builder pod, and nobody else reads them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::output::SecretReference;
use crate::schema::rules;

/// A key of a Secret or a ConfigMap in the ImageBuild's own namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyReference {
    /// Name of the object. It may be created after the ImageBuild; the build waits for it.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its key.
    #[schemars(length(max = 253), extend("x-kubernetes-validations" = rules(&[(KEY_RULE, KEY_MESSAGE)])))]
    pub key: String,
}

const KEY_RULE: &str = "self.matches('^[-._a-zA-Z0-9]+$') && self != '.' && !self.startsWith('..')";
const KEY_MESSAGE: &str =
    "a key of a Secret or ConfigMap has letters, digits, dashes, dots and underscores, as in token or .npmrc";

/// A secret that a step of the Dockerfile may ask for by its id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuildSecret {
    /// Id that the Dockerfile names, as in `RUN --mount=type=secret,id=npm`.
    #[schemars(length(max = 128), extend("x-kubernetes-validations" = rules(&[(
        "self.matches('^[-._a-zA-Z0-9]+$')",
        "the id of a secret has letters, digits, dashes, dots and underscores, as in RUN --mount=type=secret,id=npm",
    )])))]
    pub id: String,
    /// The key of a Secret that it is.
    pub secret_ref: KeyReference,
    /// Whether the build goes on without it when the Secret or the key does not exist. A step that says
    /// `required` fails then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}

/// All keys of a Secret, each as a build secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuildSecretsFrom {
    /// The Secret.
    pub secret_ref: SecretReference,
    /// What stands before each key in the id of its secret; nothing by default.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-validations" = rules(&[(
        "self.matches('^[-._a-zA-Z0-9]*$')",
        "the prefix of secretsFrom has letters, digits, dashes, dots and underscores, as in npm-",
    )])))]
    pub prefix: String,
    /// Whether the build goes on without it when the Secret does not exist.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}

/// An SSH agent that a step of the Dockerfile may ask for by its id. It runs in the builder pod and signs;
/// no step can read a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SshAgent {
    /// Id that the Dockerfile names, as in `RUN --mount=type=ssh,id=deploy`; `default` is the one that
    /// `RUN --mount=type=ssh` asks for.
    #[schemars(length(max = 128), extend("x-kubernetes-validations" = rules(&[(
        "self.matches('^[-._a-zA-Z0-9]+$')",
        "the id of an SSH agent has letters, digits, dashes, dots and underscores, as in RUN --mount=type=ssh,id=deploy",
    )])))]
    pub id: String,
    /// The Secret with its keys.
    pub secret_ref: SshSecretReference,
    /// What servers are trusted, in the form of a `known_hosts` file: steps with this agent see it as
    /// `/etc/ssh/ssh_known_hosts`. Without it, the key `known_hosts` of the Secret, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65536))]
    pub known_hosts: Option<String>,
}

/// A Secret with private SSH keys, in the ImageBuild's own namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SshSecretReference {
    /// Name of the Secret. It may be created after the ImageBuild; the build waits for it.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Keys of the Secret that hold private keys without a passphrase; `ssh-privatekey` by default, as in
    /// Secrets of type `kubernetes.io/ssh-auth`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(length(max = 253)),
        extend("x-kubernetes-list-type" = "set", "x-kubernetes-validations" = crate::schema::each(
            "x.matches('^[-._a-zA-Z0-9]+$') && x != '.' && !x.startsWith('..')",
            "ssh.secretRef.keys holds what is not a key of a Secret",
            "; a key has letters, digits, dashes, dots and underscores",
        ))
    )]
    pub keys: Vec<String>,
}

impl SshSecretReference {
    /// The keys, with their default.
    pub fn keys(&self) -> Vec<&str> {
        match self.keys.as_slice() {
            [] => vec!["ssh-privatekey"],
            keys => keys.iter().map(String::as_str).collect(),
        }
    }
}

/// Where the value of a build argument comes from: exactly one of `configMapKeyRef` and `secretKeyRef`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "has(self.configMapKeyRef) != has(self.secretKeyRef)",
    "valueFrom of a build argument takes exactly one of configMapKeyRef and secretKeyRef",
)])))]
pub struct ArgSource {
    /// A key of a ConfigMap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<ArgKeyReference>,
    /// A key of a Secret. Only for what is no secret but happens to be kept in one: build arguments end up
    /// in the image's history, and the builder warns. `secrets` is the place for secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<ArgKeyReference>,
}

/// A key of a Secret or a ConfigMap whose value becomes a build argument.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ArgKeyReference {
    /// Name of the object. It may be created after the ImageBuild; the build waits for it.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its key.
    #[schemars(length(max = 253), extend("x-kubernetes-validations" = rules(&[(KEY_RULE, KEY_MESSAGE)])))]
    pub key: String,
    /// Whether the argument keeps the Dockerfile's default when the object or the key does not exist.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}
