//! What steps are given beside their source: secrets, SSH keys, certificates, proxies. Only places of
//! files are in a request, never what is in them.

use serde::{Deserialize, Serialize};

/// A build secret, or a folder of them.
///
/// The file is read anew each time that a step asks for it: a Secret that is rotated meanwhile counts
/// from then on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretInput {
    /// The id that a Dockerfile names. Unset: `path` is a folder, and each file in it a secret whose id
    /// is the file's name. An entry with an id comes before those of folders, and of folders the first one that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What stands before the name of each file of a folder, in its id.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// A file, or without an id a folder. One that does not exist is a secret that was not given: a step
    /// that requires it fails, another one runs without.
    pub path: String,
}

/// An SSH agent that steps may use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SshInput {
    /// The id that a Dockerfile names; `default` where it names none.
    pub id: String,
    /// Files with private keys (OpenSSH or PEM, without a passphrase), or folders in which every file is one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
    /// A file in the form of `known_hosts`: steps with this agent see it as `/etc/ssh/ssh_known_hosts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_hosts: Option<String>,
}

/// Certificates of authorities that are trusted beside the usual ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Certificates {
    /// Files in PEM form, or folders in which every file is one. The builder itself trusts them for
    /// registries, Git and http.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
    /// True: `RUN` steps trust them too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_steps: bool,
}

/// How the world outside is reached.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Proxy {
    /// For `http` addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// For `https` addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub https: Option<String>,
    /// What is reached without one: names, domains and networks, separated by commas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no: Option<String>,
    /// A folder with the files `http`, `https` and `noProxy`, each for what is not said here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
    /// True: `RUN` steps have it in their environment (`HTTP_PROXY` and so on), as they would have it by a
    /// build argument of that name, which wins.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_steps: bool,
}

/// An address may carry a password: none is shown.
impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |address: &Option<String>| address.as_ref().map(|_| "***");
        f.debug_struct("Proxy")
            .field("http", &shown(&self.http))
            .field("https", &shown(&self.https))
            .field("no", &self.no)
            .field("folder", &self.folder)
            .field("in_steps", &self.in_steps)
            .finish()
    }
}

/// A build argument whose value is in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ArgInput {
    /// Name of the argument.
    pub name: String,
    /// The file that is its value, byte for byte.
    pub path: String,
    /// True: without the file the argument is not given; else the build fails.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
    /// True: the file is a Secret's key; the builder warns, since arguments are no place for secrets.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub secret: bool,
}

/// The network of steps that ask for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StepNetwork {
    /// The builder's: in a pod the pod's.
    #[default]
    Default,
    /// A loopback device and nothing else.
    None,
    /// As `default`, for all steps.
    Host,
}

/// What a Dockerfile may ask for beyond the usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Allow {
    /// `RUN --network=host`.
    #[serde(rename = "network.host")]
    NetworkHost,
}

pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxys_password_is_not_in_its_debug_form() {
        let proxy = Proxy { http: Some("http://me:hunter2@proxy".to_owned()), ..Proxy::default() };
        assert!(!format!("{proxy:?}").contains("hunter2"));
    }

    #[test]
    fn entries_read_as_documented() {
        let secret: SecretInput =
            serde_json::from_str(r#"{"id":"npm","path":"/run/lapstrake/secrets/0/token"}"#).expect("reads");
        assert_eq!(secret.id.as_deref(), Some("npm"));
        assert_eq!(serde_json::to_string(&Allow::NetworkHost).expect("writes"), "\"network.host\"");
        assert!(
            serde_json::from_str::<SshInput>(r#"{"id":"default","key":"x"}"#).is_err(),
            "an unknown field"
        );
    }
}
