//! Provenance in the form of SLSA: version 1, and 0.2 for who reads that.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use lapstrake_llb::pb;
use lapstrake_oci::{Descriptor, Digest, Reference};
use serde_json::{Map, Value, json};

use super::asked::{Mode, ProvenanceAsked, Version};
use super::capture::{Capture, GitSource, ImageSource, Sources};
use super::request::{commit_digest, config_source};
use super::steps::{self, Steps};
use super::{purl, request};

/// What kind of build it is, by the words of each version.
const BUILD_TYPE_1: &str =
    "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md";
const BUILD_TYPE_02: &str = "https://mobyproject.org/buildkit@v1";
/// Which of its documents' behaviours a request asks for; there is one.
const COMPATIBILITY: u32 = 30;
/// The frontend whose version is told.
pub(super) const DOCKERFILE: &str = "dockerfile.v0";

/// What is known of a build when its result is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct Made {
    /// When it was begun.
    pub(crate) began: Option<SystemTime>,
    /// A name for this run.
    pub(crate) invocation: String,
    /// The platform of this machine.
    pub(crate) builder_platform: String,
    /// Version of the frontend that is built in.
    pub(crate) dockerfile_version: String,
    /// What an administrator adds to all provenance of this builder.
    pub(crate) environment: Map<String, Value>,
    /// When it was finished: the first time that somebody wants to know what it made.
    pub(crate) finished: Arc<OnceLock<String>>,
}

/// The provenance of a result.
#[derive(Debug, Clone)]
pub(crate) struct Provenance {
    capture: Capture,
    asked: ProvenanceAsked,
    made: Made,
    /// The steps, where they are told.
    steps: Option<Steps>,
    /// Layers of the base image, lowest first.
    base_layers: Vec<Descriptor>,
}

/// The set of a digest under its algorithm's name.
pub(super) fn digest_set(digest: &Digest) -> BTreeMap<String, String> {
    BTreeMap::from([("sha256".to_owned(), digest.hex().to_string())])
}

impl Provenance {
    /// Of a result: what went into it, the definition that makes it, the layers of its base image.
    ///
    /// # Errors
    /// Where everything was to be known and is not; where the definition is none.
    pub(crate) fn new(
        capture: Capture,
        asked: ProvenanceAsked,
        made: Made,
        definition: Option<&pb::Definition>,
        base_layers: Vec<Descriptor>,
    ) -> Result<Self, String> {
        if asked.complete_materials && !is_complete(&capture) {
            return Err(incomplete(&capture));
        }
        let steps = match asked.mode {
            Mode::Min => None,
            Mode::Max => definition.map(steps::read).transpose()?,
        };
        Ok(Self { capture, asked, made, steps, base_layers })
    }

    /// Of what kind it is.
    pub(crate) fn predicate_type(&self) -> &'static str {
        match self.asked.version {
            Version::V1 => "https://slsa.dev/provenance/v1",
            Version::V02 => "https://slsa.dev/provenance/v0.2",
        }
    }

    /// The predicate, of an image with these layers, lowest first; where it is none, without.
    pub(crate) fn predicate(&self, layers: &[Descriptor]) -> Value {
        let finished = self.made.finished.get_or_init(crate::time::now_precise).clone();
        let capture = &self.capture;
        let (config, args) = config_source(capture.request.args.clone(), &capture.sources);
        let mut request = request::Parameters { args, ..capture.request.clone() };
        request.secrets.clone_from(&capture.secrets);
        request.ssh.clone_from(&capture.ssh);
        request.locals.clone_from(&capture.sources.locals);
        request.compatibility_version = COMPATIBILITY;
        let vcs = take_vcs(&mut request.args);
        let complete = !capture.request.frontend.is_empty();
        // What people put secrets into is told only where everything is.
        let complete = !(self.asked.mode == Mode::Min && request.scrub()) && complete;
        let buildkit = self.buildkit_metadata(vcs, layers);
        let hermetic = is_complete(capture) && !capture.network;
        let metadata = Metadata { complete, hermetic, finished, buildkit };
        let config = json!({ "uri": config.uri, "digest": config.digest, "path": config.path });
        match self.asked.version {
            Version::V1 => self.version_1(config, json!(request), metadata),
            Version::V02 => self.version_02(config, json!(request), metadata),
        }
    }

    fn version_1(&self, config: Value, request: Value, metadata: Metadata) -> Value {
        let capture = &self.capture;
        let mut internal = self.environment("builderPlatform");
        if let Some(steps) = &self.steps {
            internal.insert("buildConfig".to_owned(), steps.config());
        }
        let mut definition = json!({
            "buildType": BUILD_TYPE_1,
            "externalParameters": { "configSource": without_empty(config), "request": request },
            "internalParameters": internal,
        });
        let materials = materials(&capture.sources);
        if let (false, Some(definition)) = (materials.is_empty(), definition.as_object_mut()) {
            definition.insert("resolvedDependencies".to_owned(), Value::Array(materials));
        }
        let mut told = json!({
            "invocationId": self.made.invocation,
            "startedOn": self.began(),
            "finishedOn": metadata.finished,
            "buildkit_metadata": metadata.buildkit,
            "buildkit_completeness": {
                "request": metadata.complete,
                "resolvedDependencies": is_complete(capture),
            },
        });
        if let Some(told) = told.as_object_mut() {
            for (key, value) in
                [("buildkit_hermetic", metadata.hermetic), ("buildkit_reproducible", self.asked.reproducible)]
            {
                if value {
                    told.insert(key.to_owned(), json!(true));
                }
            }
        }
        json!({
            "buildDefinition": definition,
            "runDetails": { "builder": { "id": self.asked.builder_id }, "metadata": told },
        })
    }

    fn version_02(&self, config: Value, request: Value, metadata: Metadata) -> Value {
        let capture = &self.capture;
        let config =
            json!({ "uri": config["uri"], "digest": config["digest"], "entryPoint": config["path"] });
        let mut told = json!({
            "buildInvocationID": self.made.invocation,
            "buildStartedOn": self.began(),
            "buildFinishedOn": metadata.finished,
            "completeness": {
                "parameters": metadata.complete,
                "environment": true,
                "materials": is_complete(capture),
            },
            "reproducible": self.asked.reproducible,
            "https://mobyproject.org/buildkit@v1#metadata": metadata.buildkit,
        });
        if let (true, Some(told)) = (metadata.hermetic, told.as_object_mut()) {
            told.insert("https://mobyproject.org/buildkit@v1#hermetic".to_owned(), json!(true));
        }
        let mut predicate = json!({
            "builder": { "id": self.asked.builder_id },
            "buildType": BUILD_TYPE_02,
            "invocation": {
                "configSource": without_empty(config),
                "parameters": request,
                "environment": self.environment("platform"),
            },
            "metadata": told,
        });
        if let Some(predicate) = predicate.as_object_mut() {
            let materials = materials(&capture.sources);
            if !materials.is_empty() {
                predicate.insert("materials".to_owned(), Value::Array(materials));
            }
            if let Some(steps) = &self.steps {
                predicate.insert("buildConfig".to_owned(), steps.config());
            }
        }
        predicate
    }

    fn began(&self) -> String {
        crate::time::rfc3339_precise(self.made.began.unwrap_or(SystemTime::UNIX_EPOCH))
    }

    fn environment(&self, platform: &str) -> Map<String, Value> {
        let mut all = self.made.environment.clone();
        all.insert(platform.to_owned(), json!(self.made.builder_platform));
        if self.capture.request.frontend == DOCKERFILE && !self.made.dockerfile_version.is_empty() {
            all.insert("dockerfileVersion".to_owned(), json!(self.made.dockerfile_version));
        }
        if let (Version::V1, Some(target)) = (self.asked.version, &self.capture.target_platform) {
            all.insert("targetPlatform".to_owned(), json!(target));
        }
        all
    }

    fn buildkit_metadata(&self, vcs: BTreeMap<String, String>, layers: &[Descriptor]) -> Map<String, Value> {
        let mut all = Map::new();
        if !vcs.is_empty() {
            all.insert("vcs".to_owned(), json!(vcs));
        }
        if let Some(steps) = &self.steps {
            if let Some(source) = steps.source() {
                all.insert("source".to_owned(), source);
            }
            let layers = if layers.is_empty() { &self.base_layers } else { layers };
            let of_steps = steps.layers(layers, self.base_layers.len());
            if !of_steps.is_empty() {
                all.insert("layers".to_owned(), Value::Object(of_steps));
            }
        }
        all
    }
}

struct Metadata {
    complete: bool,
    hermetic: bool,
    finished: String,
    buildkit: Map<String, Value>,
}

/// Directories of clients are not known by anything that would find them again.
fn is_complete(capture: &Capture) -> bool {
    !capture.incomplete && capture.sources.locals.is_empty()
}

fn incomplete(capture: &Capture) -> String {
    let mut text =
        "provenance materials are incomplete\n\nThe build requested complete provenance materials, but not \
                    all dependencies could be captured."
            .to_owned();
    if !capture.sources.locals.is_empty() {
        text.push_str("\n\nUncaptured local sources:");
    }
    for local in &capture.sources.locals {
        let name = if local.name.is_empty() { "<unnamed>" } else { &local.name };
        text.push_str(&format!("\n  - {name}\n    reason: local_source"));
    }
    text
}

fn take_vcs(args: &mut BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut vcs = BTreeMap::new();
    args.retain(|key, value| {
        let Some(name) = key.strip_prefix("vcs:") else { return true };
        let value = if name == "source" { super::capture::redacted(value) } else { value.clone() };
        if !value.is_empty() {
            vcs.insert(name.to_owned(), value);
        }
        false
    });
    vcs
}

/// An object without what is empty in it.
fn without_empty(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let empty = |value: &Value| match value {
                Value::String(text) => text.is_empty(),
                Value::Object(map) => map.is_empty(),
                Value::Null => true,
                _ => false,
            };
            Value::Object(map.into_iter().filter(|(_, value)| !empty(value)).collect())
        }
        other => other,
    }
}

fn materials(sources: &Sources) -> Vec<Value> {
    let images = sources.images.iter().map(image);
    let git = sources.git.iter().flat_map(|git| {
        let commit = json!({ "uri": git.url, "digest": commit_digest(&git.commit) });
        std::iter::once(commit).chain(bundle(git))
    });
    let http = sources.http.iter().map(|http| json!({ "uri": http.url, "digest": digest_set(&http.digest) }));
    images.chain(git).chain(http).collect()
}

/// The bundle that a commit came from.
fn bundle(git: &GitSource) -> Option<Value> {
    let (scheme, rest) = git.bundle.as_deref()?.split_once("://")?;
    let (name, digest) = rest.rsplit_once('@')?;
    let (name, digest): (Reference, Digest) = (name.parse().ok()?, digest.parse().ok()?);
    let kind = if scheme.starts_with("oci-layout") { "oci" } else { "docker" };
    let uri = purl::of(kind, &name, None, &[("ref_type", "bundle"), ("vcs_url", &git.url)]);
    Some(json!({ "uri": uri, "digest": digest_set(&digest) }))
}

fn image(image: &ImageSource) -> Value {
    let kind = if image.local { "oci" } else { "docker" };
    let more: &[_] = if image.blob { &[("ref_type", "blob")] } else { &[] };
    let uri = purl::of(kind, &image.reference, image.platform.as_ref(), more);
    match &image.digest {
        Some(digest) => json!({ "uri": uri, "digest": digest_set(digest) }),
        None => json!({ "uri": uri }),
    }
}

/// The names by which an image is the subject of a statement.
pub(crate) fn subject_name(name: &Reference, platform: &lapstrake_oci::Platform) -> String {
    purl::of("docker", name, Some(platform), &[])
}

#[cfg(test)]
mod tests {
    use super::super::request::{FrontendRequest, Lent};
    use super::*;

    fn capture() -> Capture {
        let attributes = [("build-arg:X", "1"), ("filename", "Dockerfile"), ("vcs:revision", "abc")];
        let attributes = attributes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let request = FrontendRequest { frontend: DOCKERFILE.to_owned(), attributes, ..Default::default() };
        let mut capture = Capture::default();
        capture.request.frontend = request.frontend.clone();
        capture.request.args = request.arguments();
        capture.secrets.push(Lent { id: "tok".to_owned(), optional: false });
        capture.network = true;
        capture.add_image(ImageSource {
            reference: "busybox".parse().expect("a name"),
            platform: "linux/amd64".parse().ok(),
            digest: Some(Digest::of(b"index")),
            local: false,
            blob: false,
        });
        capture
    }

    fn predicate(mode: Mode, version: Version) -> Value {
        let asked = ProvenanceAsked { mode, version, ..ProvenanceAsked::default() };
        let made = Made { dockerfile_version: "1.0".to_owned(), ..Made::default() };
        let provenance = Provenance::new(capture(), asked, made, None, Vec::new()).expect("it is complete");
        provenance.predicate(&[])
    }

    #[test]
    fn min_leaves_out_what_people_put_secrets_into_and_says_so() {
        let min = predicate(Mode::Min, Version::V1);
        let request = &min["buildDefinition"]["externalParameters"]["request"];
        assert!(request.get("args").is_none() && request.get("secrets").is_none(), "{request}");
        assert_eq!(min["runDetails"]["metadata"]["buildkit_completeness"]["request"], json!(false));
        let max = predicate(Mode::Max, Version::V1);
        let request = &max["buildDefinition"]["externalParameters"]["request"];
        assert_eq!(request["args"], json!({ "build-arg:X": "1" }));
        assert_eq!(request["secrets"], json!([{ "id": "tok" }]));
        assert_eq!(max["runDetails"]["metadata"]["buildkit_completeness"]["request"], json!(true));
        assert_eq!(max["runDetails"]["metadata"]["buildkit_metadata"]["vcs"]["revision"], json!("abc"));
    }

    #[test]
    fn both_versions_name_the_same_materials() {
        let (one, old) = (predicate(Mode::Max, Version::V1), predicate(Mode::Max, Version::V02));
        let materials = &one["buildDefinition"]["resolvedDependencies"];
        assert_eq!(materials[0]["uri"], json!("pkg:docker/busybox@latest?platform=linux%2Famd64"));
        assert_eq!(*materials, old["materials"]);
        assert_eq!(old["invocation"]["configSource"], json!({ "entryPoint": "Dockerfile" }));
        assert_eq!(old["invocation"]["environment"]["dockerfileVersion"], json!("1.0"));
        assert_eq!(old["metadata"]["completeness"]["materials"], json!(true));
    }

    #[test]
    fn a_build_that_must_be_complete_fails_for_a_directory_of_a_client() {
        let mut capture = capture();
        capture.add_local("context");
        let asked = ProvenanceAsked { complete_materials: true, ..ProvenanceAsked::default() };
        let refused = Provenance::new(capture, asked, Made::default(), None, Vec::new());
        assert!(refused.expect_err("a directory").contains("- context\n    reason: local_source"));
    }
}
