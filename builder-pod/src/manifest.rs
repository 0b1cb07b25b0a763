//! An ImageBuild manifest as a build on this machine: what decides the image; where and how a pod
//! would run is left aside.
//!
//! The shapes are those of the API's types (checked by a test over all examples), written once more
//! here so that a builder does not carry a Kubernetes client.

use std::collections::BTreeMap;
use std::path::Path;

use lapstrake_dockerfile::{ExtraHost, Ulimit};
use lapstrake_handoff::{Attestations, Reason, StepNetwork};
use lapstrake_oci::{Platform, Reference};
use serde::Deserialize;

use crate::annotations::{Annotations, Place};
use crate::asked;
use crate::error::BuildError;
use crate::in_cluster::{InCluster, Named};
use crate::named::Named as StandsFor;
use crate::options::{BuildOptions, Context, FromSource, Image, Output};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    api_version: String,
    kind: String,
    spec: Spec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    source: Source,
    #[serde(default)]
    dockerfile: Dockerfile,
    #[serde(default)]
    args: Vec<Arg>,
    #[serde(default)]
    contexts: Vec<NamedSpec>,
    #[serde(default)]
    steps: Steps,
    #[serde(default, rename = "noCache")]
    no_cache: NoCache,
    #[serde(default)]
    platforms: Vec<String>,
    output: OutputSpec,
    #[serde(flatten)]
    in_cluster: InCluster,
}

#[derive(Deserialize)]
struct Source {
    git: Option<Git>,
    http: Option<Http>,
    inline: Option<Inline>,
}

#[derive(Deserialize)]
struct Git {
    url: String,
    branch: Option<String>,
    tag: Option<String>,
    commit: Option<String>,
    path: Option<String>,
    #[serde(default)]
    submodules: bool,
    #[serde(rename = "secretRef")]
    secret_ref: Option<Named>,
}

#[derive(Deserialize)]
struct Http {
    url: String,
    sha256: Option<String>,
    path: Option<String>,
    #[serde(rename = "secretRef")]
    secret_ref: Option<Named>,
}

#[derive(Deserialize)]
struct Inline {
    #[serde(default)]
    files: Vec<File>,
}

#[derive(Deserialize)]
struct File {
    path: String,
    #[serde(default)]
    content: String,
    #[serde(default)]
    executable: bool,
}

#[derive(Deserialize, Default)]
struct Dockerfile {
    path: Option<String>,
    inline: Option<String>,
    target: Option<String>,
    #[serde(default)]
    options: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct NamedSpec {
    name: String,
    image: Option<String>,
    git: Option<Git>,
    http: Option<Http>,
    build: Option<Named>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Steps {
    hosts: Vec<HostAlias>,
    ulimits: Vec<Limit>,
    shm_size: Option<String>,
    hostname: Option<String>,
    network: Option<String>,
}

#[derive(Deserialize)]
struct HostAlias {
    ip: std::net::IpAddr,
    hostnames: Vec<String>,
}

#[derive(Deserialize)]
struct Limit {
    name: String,
    soft: i64,
    hard: Option<i64>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NoCache {
    all: bool,
    stages: Vec<String>,
}

#[derive(Deserialize)]
struct Arg {
    name: String,
    #[serde(default)]
    value: String,
    #[serde(rename = "valueFrom")]
    value_from: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OutputSpec {
    image: String,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    additional_images: Vec<String>,
    #[serde(default)]
    source_metadata: bool,
    timestamp: Option<String>,
    #[serde(default)]
    attestations: Attestations,
}

/// Reads the manifest at `path`: the options of the build, and what of it is in the cluster.
pub(crate) fn read(path: &Path) -> Result<(BuildOptions, InCluster), BuildError> {
    let failed = |why: String| BuildError::new(Reason::RequestInvalid, format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
    parse(&text).map_err(failed)
}

fn parse(text: &str) -> Result<(BuildOptions, InCluster), String> {
    let manifest: Manifest = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
    if manifest.kind != "ImageBuild" || !manifest.api_version.starts_with("lapstrake.dev/") {
        return Err(format!(
            "it is a {} of {}, not an ImageBuild of lapstrake.dev",
            manifest.kind, manifest.api_version
        ));
    }
    let spec = manifest.spec;
    let mut in_cluster = spec.in_cluster;
    let git = spec.source.git.as_ref().and_then(|git| git.secret_ref.as_ref());
    let http = spec.source.http.as_ref().and_then(|http| http.secret_ref.as_ref());
    in_cluster.source_credentials = git.or(http).map(|secret| secret.name.clone());
    let mut options = BuildOptions::new(context(spec.source)?);
    options.dockerfile = spec.dockerfile.path;
    options.dockerfile_text = spec.dockerfile.inline;
    options.target = spec.dockerfile.target;
    for (name, value) in &spec.dockerfile.options {
        let added = options.frontend.add("spec.dockerfile.options", name, value);
        added.map_err(|error| error.failure().message.clone())?;
    }
    options.no_cache = spec.no_cache.all;
    options.no_cache_stages = spec.no_cache.stages;
    steps(&spec.steps, &mut options)?;
    for named in spec.contexts {
        let (name, stands_for) = match named {
            NamedSpec { name, build: Some(build), .. } => {
                in_cluster.builds.push((name, build.name));
                continue;
            }
            NamedSpec { name, image: Some(image), .. } => {
                let image = asked::image_context(&name, &image);
                (name, image.map_err(|error| error.failure().message.clone())?)
            }
            NamedSpec { name, git, http, .. } => {
                let files = context(Source { git, http, inline: None });
                let files = files.map_err(|error| format!("spec.contexts[{name}]: {error}"))?;
                (name, StandsFor::Files(files))
            }
        };
        let name = asked::context_name(&name).map_err(|error| error.failure().message.clone())?;
        options.named.insert(name, stands_for);
    }
    for arg in spec.args {
        match arg.value_from {
            None => drop(options.args.insert(arg.name, arg.value)),
            Some(_) => in_cluster.args.push(arg.name),
        }
    }
    options.labels = spec.output.labels.clone();
    options.from_source = FromSource {
        annotations: spec.output.source_metadata,
        labels: spec.output.source_metadata,
        epoch: spec.output.timestamp.as_deref() == Some("Commit"),
    };
    options.source_date_epoch = spec.output.timestamp.as_deref().and_then(|seconds| seconds.parse().ok());
    let platforms = spec.platforms.iter().enumerate();
    let platform = |(at, text): (usize, &String)| {
        text.parse::<Platform>().map_err(|e| format!("spec.platforms[{at}]: {e}"))
    };
    options.platforms = platforms.map(platform).collect::<Result<_, _>>()?;
    let places: &[Place] = match options.platforms.len() {
        0 | 1 => &[Place::Manifest],
        _ => &[Place::Manifest, Place::Index],
    };
    options.annotations = Annotations::everywhere(&spec.output.annotations, places);
    let mut image = Image::default();
    for name in names(&spec.output)? {
        image.add_name(&name).map_err(|e| format!("spec.output.tags: {e}"))?;
    }
    options.outputs = vec![Output::Push(image)];
    let attested = asked::attested(&spec.output.attestations);
    options.attested = attested.map_err(|error| error.failure().message.clone())?;
    Ok((options, in_cluster))
}

fn steps(steps: &Steps, options: &mut BuildOptions) -> Result<(), String> {
    for alias in &steps.hosts {
        let host = |name: &String| ExtraHost { host: name.to_ascii_lowercase(), address: alias.ip };
        options.steps.hosts.extend(alias.hostnames.iter().map(host));
    }
    for Limit { name, soft, hard } in &steps.ulimits {
        let limit = Ulimit::new(name, *soft, hard.unwrap_or(*soft));
        options.steps.limit(limit.map_err(|why| format!("spec.steps.ulimits[{name}]: {why}"))?);
    }
    if let Some(size) = &steps.shm_size {
        let bytes = crate::cli::quantity(size).map_err(|why| format!("spec.steps.shmSize: {why}"))?;
        options.steps.shm_bytes = Some(bytes);
    }
    options.steps.hostname.clone_from(&steps.hostname);
    match steps.network.as_deref() {
        None | Some("Default") => {}
        Some("None") => options.inputs.network = StepNetwork::None,
        Some(other) => return Err(format!("spec.steps.network: {other} is neither Default nor None")),
    }
    Ok(())
}

fn context(source: Source) -> Result<Context, String> {
    match (source.git, source.http, source.inline) {
        (Some(git), None, None) => {
            use lapstrake_source::GitRef;
            let reference = match (git.branch, git.tag, git.commit) {
                (None, None, None) => GitRef::Default,
                (Some(branch), None, None) => GitRef::Branch(branch),
                (None, Some(tag), None) => GitRef::Tag(tag),
                (_, _, Some(commit)) => GitRef::Commit(commit),
                _ => return Err("spec.source.git: branch and tag exclude each other".to_owned()),
            };
            Ok(Context::Git {
                url: git.url,
                reference,
                commit: None,
                path: git.path,
                submodules: git.submodules,
                keep_git_dir: false,
            })
        }
        (None, Some(http), None) => Ok(Context::Http { url: http.url, sha256: http.sha256, path: http.path }),
        (None, None, Some(inline)) => {
            let file = |f: File| {
                let content = lapstrake_source::InlineFile {
                    content: f.content.into_bytes(),
                    executable: f.executable,
                };
                (f.path, content)
            };
            Ok(Context::Inline(inline.files.into_iter().map(file).collect()))
        }
        _ => Err("spec.source needs exactly one of git, http and inline".to_owned()),
    }
}

/// `image` may carry a tag; with none anywhere it is `latest`.
fn names(output: &OutputSpec) -> Result<Vec<String>, String> {
    let image: Reference = output.image.parse().map_err(|e| format!("spec.output.image: {e}"))?;
    let mut tags: Vec<&str> = image.tag().into_iter().collect();
    tags.extend(output.tags.iter().map(String::as_str));
    if tags.is_empty() {
        tags.push("latest");
    }
    let all = |name: String| tags.iter().map(|tag| format!("{name}:{tag}")).collect::<Vec<_>>();
    let mut names = all(image.name());
    for text in &output.additional_images {
        let more: Reference = text.parse().map_err(|e| format!("spec.output.additionalImages: {e}"))?;
        match more.tag() {
            Some(tag) => names.push(format!("{}:{tag}", more.name())),
            None => names.extend(all(more.name())),
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_reads() {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
        let mut seen = 0;
        for entry in std::fs::read_dir(examples).expect("examples").flatten() {
            let manifest = entry.path().join("imagebuild.yaml");
            if manifest.exists() {
                let (options, _) = read(&manifest).unwrap_or_else(|e| panic!("{}: {e}", manifest.display()));
                let [Output::Push(image)] = &options.outputs[..] else { panic!("{}", manifest.display()) };
                assert!(image.names.len() + image.templates.len() > 0, "{}", manifest.display());
                seen += 1;
            }
        }
        assert!(seen >= 5, "{seen} examples");
    }

    #[test]
    fn what_is_no_imagebuild_is_refused() {
        let error =
            parse("apiVersion: v1\nkind: Pod\nspec: {source: {}, output: {image: a}}\n").expect_err("a pod");
        assert!(error.contains("not an ImageBuild"), "{error}");
    }
}
