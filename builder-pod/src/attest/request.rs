//! What was asked of a frontend, as provenance tells it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::capture::{LocalSource, Sources, redacted};

/// Attributes that are about the machine or about this run alone.
const OF_HOST: [&str; 4] = ["cgroup-parent", "image-resolve-mode", "platform", "cache-imports"];

/// A secret or an SSH agent that a step is lent: its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Lent {
    pub(crate) id: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) optional: bool,
}

/// What was asked of a frontend.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Parameters {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) frontend: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) args: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) secrets: Vec<Lent>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) ssh: Vec<Lent>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) locals: Vec<LocalSource>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) inputs: BTreeMap<String, RequestProvenance>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) root: Option<Box<RequestProvenance>>,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) compatibility_version: u32,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Where what is built from is, as far as the request says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct ConfigSource {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) uri: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) digest: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) path: String,
}

/// A request with what its context was found to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RequestProvenance {
    pub(crate) config_source: ConfigSource,
    pub(crate) request: Parameters,
}

/// A request to a frontend as it came.
#[derive(Debug, Clone, Default)]
pub(crate) struct FrontendRequest {
    pub(crate) frontend: String,
    pub(crate) attributes: BTreeMap<String, String>,
    /// Requests that made the definitions that came along, by their names.
    pub(crate) inputs: BTreeMap<String, RequestProvenance>,
}

impl FrontendRequest {
    /// Whether it asks for anything.
    pub(crate) fn says_something(&self) -> bool {
        !self.frontend.is_empty() || !self.attributes.is_empty() || !self.inputs.is_empty()
    }

    /// Its attributes, without what is about the machine, attestations, and credentials in addresses.
    pub(crate) fn arguments(&self) -> BTreeMap<String, String> {
        let context = self.attributes.get("contextkey").filter(|key| !key.is_empty());
        let context = context.map_or("context", String::as_str);
        let told = self
            .attributes
            .iter()
            .filter(|(key, _)| !OF_HOST.contains(&key.as_str()) && !key.starts_with("attest:"));
        let told = told.map(|(key, value)| match key == context || key.starts_with("context:") {
            true => (key.clone(), redacted(value)),
            false => (key.clone(), value.clone()),
        });
        told.collect()
    }

    /// The request with what its context was found to be among `sources`.
    pub(crate) fn provenance(&self, sources: &Sources) -> RequestProvenance {
        let (config_source, args) = config_source(self.arguments(), sources);
        let frontend = self.frontend.clone();
        let inputs = self.inputs.clone();
        RequestProvenance {
            config_source,
            request: Parameters { frontend, args, inputs, ..Default::default() },
        }
    }
}

/// The request itself, as a predicate tells it: what says where the context is, is taken out of its arguments there.
pub(crate) fn arguments_of(request: &FrontendRequest) -> Parameters {
    Parameters {
        frontend: request.frontend.clone(),
        args: request.arguments(),
        inputs: request.inputs.clone(),
        ..Parameters::default()
    }
}

/// Takes what says where the context is out of arguments.
pub(crate) fn config_source(
    mut args: BTreeMap<String, String>,
    sources: &Sources,
) -> (ConfigSource, BTreeMap<String, String>) {
    let said = |key: &str| args.get(key).is_some_and(|value| !value.is_empty());
    let key = match args.get("contextkey").filter(|key| !key.is_empty()) {
        Some(key) => key.clone(),
        None if said("input:context") => "input:context".to_owned(),
        None => "context".to_owned(),
    };
    let mut config = ConfigSource::default();
    if said(&key)
        && let Some(address) = args.remove(&key)
    {
        let (uri, digest) = material(sources, &address).unwrap_or((address, BTreeMap::new()));
        (config.uri, config.digest) = (redacted(&uri), digest);
    }
    if args.get("filename").is_some_and(|name| !name.is_empty()) {
        config.path = args.remove("filename").unwrap_or_default();
    }
    (config, args)
}

/// The source that an address names, in its usual spelling, and what it was found to be.
fn material(sources: &Sources, address: &str) -> Option<(String, BTreeMap<String, String>)> {
    let git = lapstrake_source::parse_git_url(address).ok().flatten();
    let (full, bare) = match git {
        Some(git) => {
            let reference = git.reference.unwrap_or_default();
            let url = |reference: &str, subdir: &str| match (reference, subdir) {
                ("", "") => git.remote.clone(),
                (reference, "") => format!("{}#{reference}", git.remote),
                (reference, subdir) => format!("{}#{reference}:{subdir}", git.remote),
            };
            (url(&reference, &git.subdir), url(&reference, ""))
        }
        None => (address.to_owned(), address.to_owned()),
    };
    if let Some(git) = sources.git.iter().find(|git| git.url == redacted(&bare)) {
        return Some((full, commit_digest(&git.commit)));
    }
    let http = sources.http.iter().find(|http| http.url == redacted(&bare))?;
    Some((http.url.clone(), super::predicate::digest_set(&http.digest)))
}

/// A commit by the name of its digest.
pub(super) fn commit_digest(commit: &str) -> BTreeMap<String, String> {
    let algorithm = if commit.len() == 64 { "sha256" } else { "sha1" };
    BTreeMap::from([(algorithm.to_owned(), commit.to_owned())])
}

impl Parameters {
    /// Takes what people put secrets into out: arguments, labels, names of what is lent. Whether something was taken of the
    /// arguments.
    pub(crate) fn scrub(&mut self) -> bool {
        let before = self.args.len();
        self.args.retain(|key, _| !key.starts_with("build-arg:") && !key.starts_with("label:"));
        let mut taken = self.args.len() < before;
        self.secrets.clear();
        self.ssh.clear();
        for input in self.inputs.values_mut() {
            taken |= input.request.scrub();
        }
        if let Some(root) = &mut self.root {
            taken |= root.request.scrub();
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::super::capture::GitSource;
    use super::*;

    fn asked(pairs: &[(&str, &str)]) -> FrontendRequest {
        let attributes = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        FrontendRequest { frontend: "dockerfile.v0".to_owned(), attributes, ..Default::default() }
    }

    #[test]
    fn what_is_about_the_machine_is_left_out_and_the_file_is_told_as_the_source() {
        let request = asked(&[
            ("filename", "Dockerfile"),
            ("platform", "linux/amd64"),
            ("attest:provenance", "mode=max"),
            ("build-arg:X", "1"),
            ("context:other", "https://me:pw@h.example/x.git"),
        ]);
        let told = request.provenance(&Sources::default());
        assert_eq!(told.config_source.path, "Dockerfile");
        let keys: Vec<_> = told.request.args.keys().map(String::as_str).collect();
        assert_eq!(keys, ["build-arg:X", "context:other"]);
        assert!(!told.request.args["context:other"].contains("pw"));
    }

    #[test]
    fn a_context_that_is_a_repository_has_its_commit() {
        let commit = "a".repeat(40);
        let url = "https://h.example/x.git#main".to_owned();
        let sources = Sources {
            git: vec![GitSource { url, commit: commit.clone(), bundle: None }],
            ..Default::default()
        };
        let told = asked(&[("context", "https://h.example/x.git#main:sub")]).provenance(&sources);
        assert_eq!(told.config_source.uri, "https://h.example/x.git#main:sub");
        assert_eq!(told.config_source.digest["sha1"], commit);
        assert!(told.request.args.is_empty());
    }

    #[test]
    fn scrubbing_takes_arguments_everywhere_and_says_so() {
        let mut parameters =
            asked(&[("build-arg:X", "1"), ("target", "a")]).provenance(&Sources::default()).request;
        parameters.root = Some(Box::new(asked(&[("label:y", "2")]).provenance(&Sources::default())));
        assert!(parameters.scrub());
        assert_eq!(parameters.args.len(), 1);
        assert!(parameters.root.as_ref().is_some_and(|root| root.request.args.is_empty()));
        assert!(!parameters.scrub());
    }
}
