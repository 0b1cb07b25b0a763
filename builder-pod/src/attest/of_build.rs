//! What is attested of a build that no client asked for: on a command line, in a pod.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use lapstrake_llb::Graph;
use lapstrake_oci::Digest;
use tokio_util::sync::CancellationToken;

use super::capture::Capture;
use super::request::{FrontendRequest, arguments_of};
use super::{Attestation, Content, Made, Provenance, SubjectOf, gather, sbom};
use crate::build::Solved;
use crate::engine::{Engine, native_platform};
use crate::error::BuildError;
use crate::front::Loaded;
use crate::named::Named;
use crate::options::{BuildOptions, Context};
use crate::platforms::{self, Target};
use crate::progress::Progress;

/// What is known of a build before it begins.
pub(crate) struct Built {
    began: SystemTime,
    request: FrontendRequest,
    context: Capture,
}

impl Built {
    /// Of a context and its Dockerfile.
    pub(crate) fn of(loaded: &Loaded) -> Self {
        let context = super::of_context(&loaded.options.context, loaded.acquired.revision.as_deref());
        Self { began: SystemTime::now(), request: request(loaded), context }
    }
}

/// The build in the words that clients have for it.
fn request(loaded: &Loaded) -> FrontendRequest {
    let options = &loaded.options;
    let mut all = BTreeMap::from([("filename".to_owned(), loaded.dockerfile.name.clone())]);
    all.extend(options.args.iter().map(|(name, value)| (format!("build-arg:{name}"), value.clone())));
    all.extend(options.labels.iter().map(|(name, value)| (format!("label:{name}"), value.clone())));
    all.extend(options.target.iter().map(|target| ("target".to_owned(), target.clone())));
    if options.no_cache {
        all.insert("no-cache".to_owned(), String::new());
    } else if !options.no_cache_stages.is_empty() {
        all.insert("no-cache".to_owned(), options.no_cache_stages.join(","));
    }
    for (name, named) in &options.named {
        let address = match named {
            Named::Image(image) => format!("docker-image://{image}"),
            _ => format!("local:{name}"),
        };
        all.insert(format!("context:{name}"), address);
    }
    match &options.context {
        Context::Git { url, reference, path, .. } => {
            let reference = match reference {
                lapstrake_source::GitRef::Any(name) | lapstrake_source::GitRef::Commit(name) => name.as_str(),
                _ => "",
            };
            let below = path.as_ref().map(|path| format!(":{path}")).unwrap_or_default();
            let fragment = format!("{reference}{below}");
            let address = if fragment.is_empty() { url.clone() } else { format!("{url}#{fragment}") };
            all.insert("context".to_owned(), address);
        }
        Context::Http { url, .. } => {
            all.insert("context".to_owned(), url.clone());
        }
        Context::Directory(_) | Context::Client(_) | Context::Inline(_) => {}
    }
    let frontend = match loaded.other_frontend() {
        Some(image) => {
            all.insert("source".to_owned(), image);
            "gateway.v0"
        }
        None => super::predicate::DOCKERFILE,
    };
    FrontendRequest { frontend: frontend.to_owned(), attributes: all, inputs: BTreeMap::new() }
}

/// Attaches to each result what the options ask to be attested of it.
pub(crate) async fn attach(
    engine: &Arc<Engine>,
    built: &Built,
    options: &BuildOptions,
    solved: &mut [Solved],
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<(), BuildError> {
    let asked = &options.attested;
    if let Some(asked) = &asked.sbom {
        for solved in solved.iter_mut() {
            let Some(definition) = solved.definition.clone() else { continue };
            let (id, extras) = (solved.platform.to_string(), &solved.scanned);
            let scan =
                gather::scan(engine, asked, &id, &definition, extras, options.no_cache, progress).await?;
            solved.attestations.extend(found(engine, &scan, progress, cancel).await?);
        }
    }
    let Some(asked) = &asked.provenance else { return Ok(()) };
    let made = Made {
        began: Some(built.began),
        invocation: invocation(),
        builder_platform: native_platform().to_string(),
        dockerfile_version: super::DOCKERFILE_VERSION.to_owned(),
        ..Made::default()
    };
    let images = super::known_images(engine);
    for solved in solved {
        let Some(definition) = solved.definition.clone() else { continue };
        let graph = Graph::decode(&definition).map_err(BuildError::internal)?;
        let mut capture = super::of_graph(engine, &graph).await;
        capture.merge(&built.context);
        let own = |image: &&super::ImageSource| {
            image.platform.as_ref().is_none_or(|of| of.architecture == solved.platform.architecture)
        };
        images.iter().filter(own).for_each(|image| capture.add_image(image.clone()));
        capture.settle();
        capture.request = arguments_of(&built.request);
        capture.target_platform = Some(solved.platform.to_string());
        let base = solved.base.as_ref().map(|base| base.manifest.layers.clone()).unwrap_or_default();
        let provenance = Provenance::new(capture, asked.clone(), made.clone(), Some(&definition), base);
        let provenance =
            provenance.map_err(|why| BuildError::new(lapstrake_handoff::Reason::RequestInvalid, why))?;
        solved.attestations.push(Attestation::provenance(asked, Arc::new(provenance)));
    }
    Ok(())
}

/// What a scanner found.
async fn found(
    engine: &Arc<Engine>,
    scan: &lapstrake_llb::pb::Definition,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<Vec<Attestation>, BuildError> {
    let graph = Arc::new(Graph::decode(scan).map_err(BuildError::internal)?);
    let target = Target { platform: native_platform(), graph };
    let trees = platforms::solve(engine, &[target], progress, cancel).await?;
    let tree = trees.into_iter().next().unwrap_or_default();
    let root = engine.mount(engine.snapshot_of(&tree, cancel).await?)?;
    let read = tokio::task::spawn_blocking(move || super::bundle(&root, "/")).await;
    let read = read.map_err(BuildError::internal)?;
    let entries = read.map_err(|why| BuildError::new(lapstrake_handoff::Reason::RequestInvalid, why))?;
    let attestation = |(path, said, predicate): super::bundle::Entry| {
        let (predicate_type, subjects) = said.unwrap_or_else(|| (sbom::SPDX.to_owned(), Vec::new()));
        Attestation {
            core: path.rsplit('/').next().and_then(|name| name.split('.').next()) == Some(sbom::CORE),
            path,
            predicate_type,
            subjects: subjects.into_iter().map(SubjectOf::Other).collect(),
            inline_only: false,
            content: Content::Json(Arc::new(predicate)),
        }
    };
    let mut all: Vec<_> = entries.into_iter().map(attestation).collect();
    all.sort_by_key(|one| !one.core);
    Ok(all)
}

/// A name for this run.
fn invocation() -> String {
    let seed = format!("{}{}", crate::time::now_precise(), std::process::id());
    Digest::of(seed.as_bytes()).hex().to_string().chars().take(25).collect()
}
