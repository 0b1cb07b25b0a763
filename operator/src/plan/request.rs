//! From the spec to the request that a builder pod is given.

use lapstrake_crds::{
    Attestations, ContextKind, GitSource, HttpSource, ImageBuild, ImageBuildStatus, NamedContext,
    ProvenanceMode, Sandbox, SourceKind, StepNetwork, Steps, Ulimit,
};
use lapstrake_handoff as handoff;
use lapstrake_handoff::{paths, request::REQUEST_VERSION};

use crate::cache::claims::bytes;
use crate::follow::Target;
use crate::plan::parts::{Kind, Part};
use crate::plan::{caches, docker_config_path};
use crate::settings::{Settings, limits::REQUEST_BYTES_MAX};

/// Mode of an inline file that may be executed.
const MODE_EXECUTABLE: u32 = 0o755;
/// Mode of any other inline file.
const MODE_PLAIN: u32 = 0o644;

/// What one pod is asked to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    /// Run.
    pub run: &'a str,
    /// Its share of the run.
    pub part: &'a Part,
    /// Sandbox, decided.
    pub sandbox: Sandbox,
    /// Names of the `imagePullSecrets` of the pod's ServiceAccount.
    pub pull_secrets: &'a [String],
    /// What is known of the run: revision, and what other parts pushed.
    pub status: &'a ImageBuildStatus,
}

/// The request of one part of a run, as text, or what the spec asks for that cannot be done.
pub(crate) fn request(build: &ImageBuild, asked: &Asked<'_>, settings: &Settings) -> Result<String, String> {
    let (part, joins) = (asked.part, asked.part.kind == Kind::Index);
    let build = &*asked.part.needs(build);
    let spec = &build.spec;
    let meta = &build.metadata;
    let mut request = handoff::Request {
        api_version: REQUEST_VERSION.to_owned(),
        build: handoff::BuildRef {
            name: meta.name.clone().unwrap_or_default(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
        },
        run: asked.run.to_owned(),
        platforms: if joins { Vec::new() } else { part.platforms.clone() },
        index: if joins { manifests(asked.status)? } else { Vec::new() },
        facts: joins.then(|| facts(asked.status)),
        source: match part.kind {
            Kind::Index => handoff::Source::Inline(Vec::new()),
            Kind::Build => pinned(source(build, asked.status)?, part, asked.status),
        },
        dockerfile: handoff::Dockerfile {
            path: spec.dockerfile.path.clone(),
            // It may be long, and who only joins does not look at it.
            inline: spec.dockerfile.inline.clone().filter(|_| !joins),
            target: spec.dockerfile.target.clone(),
        },
        args: spec.args.iter().map(|arg| (arg.name.clone(), arg.value.clone())).collect(),
        args_from: Vec::new(),
        output: handoff::Output {
            names: spec.output.names(),
            labels: spec.output.labels.clone(),
            annotations: spec.output.annotations.clone(),
            annotations_from_source: spec.output.source_metadata,
            labels_from_source: spec.output.source_metadata,
            push_by_digest: !part.whole && !joins,
            ..handoff::Output::default()
        },
        attestations: attestations(&spec.output.attestations),
        source_date_epoch: spec.output.timestamp.as_deref().and_then(|seconds| seconds.parse().ok()),
        source_date_epoch_from_source: spec.output.timestamp.as_deref() == Some("Commit"),
        no_cache: spec.no_cache.all,
        no_cache_stages: spec.no_cache.stages.clone(),
        frontend_options: spec.dockerfile.options.clone(),
        contexts: contexts(build, asked.status),
        steps: steps(&spec.steps)?,
        secrets: Vec::new(),
        ssh: Vec::new(),
        certificates: handoff::Certificates::default(),
        proxy: handoff::Proxy::default(),
        network: match spec.steps.network {
            StepNetwork::Default => handoff::StepNetwork::Default,
            StepNetwork::None => handoff::StepNetwork::None,
        },
        allow: Vec::new(),
        cache_from: caches::imports(build, part),
        cache_to: caches::exports(build, part),
        state_dir: paths::STATE_DIR.to_owned(),
        cache_max_bytes: caches::max_bytes(build, part, settings),
        registries_config: (!settings.registries.is_empty()).then(|| paths::REGISTRIES_FILE.to_owned()),
        docker_configs_optional: Vec::new(),
        docker_configs: {
            let output = spec.output.secret_ref.iter().map(|_| docker_config_path());
            output.chain(caches::docker_configs(build)).collect()
        },
        timeout_seconds: Some(spec.timeout().as_secs_f64().ceil().max(1.0) as u64),
        sandbox: match asked.sandbox {
            Sandbox::Baseline => handoff::SandboxMode::Baseline,
            Sandbox::Auto | Sandbox::UserNamespace => handoff::SandboxMode::UserNamespace,
        },
        progress: handoff::ProgressFormat::Plain,
    };
    crate::plan::inputs::fill(build, asked.pull_secrets, settings, &mut request);
    let text = request.encode();
    if text.len() + settings.registries.len() > REQUEST_BYTES_MAX {
        return Err(format!(
            "the files of source.inline and dockerfile.inline do not fit into a request of {REQUEST_BYTES_MAX} bytes: \
             keep them in Git or in an archive"
        ));
    }
    Ok(text)
}

/// What is to be attested.
fn attestations(asked: &Attestations) -> handoff::Attestations {
    let mode = |mode| match mode {
        ProvenanceMode::Min => handoff::ProvenanceMode::Min,
        ProvenanceMode::Max => handoff::ProvenanceMode::Max,
    };
    handoff::Attestations {
        provenance: asked.provenance.as_ref().map(|of| handoff::Provenance { mode: mode(of.mode) }),
        sbom: asked.sbom.as_ref().map(|of| handoff::Sbom { generator: of.generator.clone() }),
    }
}

/// What the others pushed, in the order of the spec.
fn manifests(status: &ImageBuildStatus) -> Result<Vec<handoff::PlatformManifest>, String> {
    status
        .platforms
        .iter()
        .map(|entry| {
            let missing = || format!("what was pushed for {} is not known", entry.platform);
            let bytes = entry.manifest_bytes.and_then(|bytes| u64::try_from(bytes).ok());
            Ok(handoff::PlatformManifest {
                platform: entry.platform.clone(),
                digest: entry.digest.clone().ok_or_else(missing)?,
                manifest_bytes: bytes.ok_or_else(missing)?,
                media_type: entry.media_type.clone().unwrap_or_default(),
                attestation: match (&entry.attestation_digest, entry.attestation_bytes) {
                    (Some(digest), Some(bytes)) => Some(handoff::AttestationManifest {
                        digest: digest.clone(),
                        bytes: u64::try_from(bytes).map_err(|_| missing())?,
                    }),
                    _ => None,
                },
            })
        })
        .collect()
}

/// What they found out about the source.
fn facts(status: &ImageBuildStatus) -> handoff::SourceFacts {
    let source = status.source.clone().unwrap_or_default();
    let commit = source.revision.len() == 40 && source.revision.bytes().all(|byte| byte.is_ascii_hexdigit());
    handoff::SourceFacts {
        commit: commit.then_some(source.revision),
        time: source.time.map(|time| time.0.as_second()),
        branch: source.branch,
        tag: source.tag,
    }
}

/// The source at the revision that another platform was built from, if one was.
fn pinned(source: handoff::Source, part: &Part, status: &ImageBuildStatus) -> handoff::Source {
    let agreed = status.run.as_ref().and_then(|run| run.revision.clone()).filter(|_| !part.whole);
    match (source, agreed) {
        (handoff::Source::Git(git), Some(commit)) => {
            handoff::Source::Git(handoff::GitSource { commit: Some(commit), ..git })
        }
        (source, _) => source,
    }
}

fn source(build: &ImageBuild, status: &ImageBuildStatus) -> Result<handoff::Source, String> {
    Ok(match build.spec.source.kind() {
        Some(SourceKind::Git(git)) => {
            handoff::Source::Git(handoff::GitSource { commit: followed(build, status), ..of_git(git) })
        }
        Some(SourceKind::Http(http)) => handoff::Source::Http(of_http(http)),
        Some(SourceKind::Inline(inline)) => handoff::Source::Inline(
            inline
                .files
                .iter()
                .map(|file| handoff::InlineFile {
                    path: file.path.clone(),
                    content: file.content.clone(),
                    mode: Some(if file.executable { MODE_EXECUTABLE } else { MODE_PLAIN }),
                })
                .collect(),
        ),
        None => return Err("source needs exactly one of git, http and inline".to_owned()),
    })
}

/// What names of the Dockerfile stand for. The image of an ImageBuild that is not known yet is left out: no pod is made
/// before it is.
fn contexts(build: &ImageBuild, status: &ImageBuildStatus) -> Vec<handoff::ContextInput> {
    let one = |context: &NamedContext| {
        let from = match context.kind()? {
            ContextKind::Image(image) => handoff::ContextFrom::Image(image.to_owned()),
            ContextKind::Git(git) => handoff::ContextFrom::Git(of_git(git)),
            ContextKind::Http(http) => handoff::ContextFrom::Http(of_http(http)),
            ContextKind::Build(name) => {
                let known =
                    status.contexts.iter().find(|one| one.name == context.name && one.build == name)?;
                handoff::ContextFrom::Image(known.image.clone())
            }
        };
        Some(handoff::ContextInput { name: context.name.clone(), from })
    };
    build.spec.contexts.iter().filter_map(one).collect()
}

/// What steps find around them, or what of it cannot be.
fn steps(steps: &Steps) -> Result<handoff::Steps, String> {
    let mut hosts = Vec::new();
    for alias in &steps.hosts {
        let ip =
            alias.ip.parse().map_err(|_| format!("steps.hosts has {}, which is no IP address", alias.ip))?;
        hosts.extend(alias.hostnames.iter().map(|name| handoff::Host { name: name.clone(), ip }));
    }
    let limit = |limit: &Ulimit| handoff::Ulimit {
        name: limit.name.clone(),
        soft: limit.soft,
        hard: limit.hard.unwrap_or(limit.soft),
    };
    Ok(handoff::Steps {
        hosts,
        ulimits: steps.ulimits.iter().map(limit).collect(),
        shm_bytes: steps.shm_size.as_ref().and_then(bytes),
        hostname: steps.hostname.clone(),
    })
}

/// The commit that the run was started for, if its source is followed.
fn followed(build: &ImageBuild, status: &ImageBuildStatus) -> Option<String> {
    let target = Target::source(build).filter(|_| build.spec.follow.source)?;
    let source = status.follow.as_ref()?.source.as_ref()?;
    (source.name == target.to_string()).then(|| source.revision.clone())
}

fn of_git(git: &GitSource) -> handoff::GitSource {
    handoff::GitSource {
        url: git.url.clone(),
        reference: reference(git),
        commit: None,
        path: git.path.clone(),
        submodules: git.submodules,
        credentials: None,
    }
}

fn of_http(http: &HttpSource) -> handoff::HttpSource {
    handoff::HttpSource {
        url: http.url.clone(),
        sha256: http.sha256.as_deref().map(|sum| sum.trim_start_matches("sha256:").to_owned()),
        path: http.path.clone(),
        credentials: None,
    }
}

fn reference(git: &GitSource) -> Option<handoff::GitRef> {
    let branch = git.branch.clone().map(handoff::GitRef::Branch);
    let tag = git.tag.clone().map(handoff::GitRef::Tag);
    let commit = git.commit.clone().map(handoff::GitRef::Commit);
    commit.or(tag).or(branch)
}
