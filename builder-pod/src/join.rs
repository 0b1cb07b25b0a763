//! An index over manifests that were built and pushed before, each by its digest.

use lapstrake_handoff::{Reason, Request, SourceFacts};
use lapstrake_image::assemble;
use lapstrake_oci::{Descriptor, Digest, Platform, Reference, media_type};
use lapstrake_registry::Client;

use crate::annotations::{Annotations, Place};
use crate::attest;
use crate::build::Built;
use crate::error::{Asked, BuildError, chain};
use crate::export::push::{manifest, pinned};
use crate::export::{Exported, OfPlatform};
use crate::naming;
use crate::progress::Progress;

/// Pushes the index under its digest and then under all names. Doing it again changes nothing.
pub(crate) async fn join(
    client: &Client,
    request: &Request,
    progress: &Progress,
) -> Result<Built, BuildError> {
    let invalid = |message: String| BuildError::new(Reason::RequestInvalid, message);
    let facts = request.facts.clone().unwrap_or_default();
    let filled = naming::fill(&request.output.names, &facts)
        .map_err(|e| BuildError::new(Reason::SourceNotFound, e))?;
    let platforms = platforms(request).map_err(invalid)?;
    let docker = request.output.docker_media_types
        && platforms
            .iter()
            .all(|p| p.manifest.media_type == media_type::DOCKER_MANIFEST && p.attestation.is_none());
    let mut entries = Vec::new();
    for of in &platforms {
        entries.push(Descriptor { platform: Some(of.platform.clone()), ..of.manifest.clone() });
    }
    entries.extend(platforms.iter().filter_map(|of| of.attestation.clone()));
    let annotations = annotations(request, &facts);
    let index = assemble::index(entries, annotations, docker).map_err(|e| BuildError::internal(chain(&e)))?;
    let mut repositories: Vec<&Reference> = Vec::new();
    for name in &filled.names {
        if !repositories.iter().any(|known| known.name() == name.name()) {
            repositories.push(name);
        }
    }
    for name in repositories {
        for of in &platforms {
            for manifest in [&of.manifest].into_iter().chain(&of.attestation) {
                is_there(client, &pinned(name, manifest.digest)).await?;
            }
        }
        push(client, &index, &pinned(name, index.1.digest), progress).await?;
    }
    if !request.output.push_by_digest {
        for name in &filled.names {
            push(client, &index, name, progress).await?;
        }
    }
    let first = platforms.first().map(|of| of.platform.clone());
    let config = index.1.digest;
    let image = Exported {
        told: index.1.clone(),
        manifest: index.1,
        config,
        size_bytes: 0,
        platforms,
        response: Default::default(),
    };
    Ok(Built {
        image: Some(image),
        platform: first,
        names: filled.names.iter().map(ToString::to_string).collect(),
        left_out: filled.left_out.into_iter().map(|(name, _)| name).collect(),
        revision: facts.commit.clone(),
        facts,
        ..Built::default()
    })
}

fn platforms(request: &Request) -> Result<Vec<OfPlatform>, String> {
    let one = |entry: &lapstrake_handoff::PlatformManifest| {
        let digest: Digest = entry.digest.parse().map_err(|e| format!("index: {}: {e}", entry.platform))?;
        let platform: Platform = entry.platform.parse().map_err(|e| format!("index: {e}"))?;
        let manifest = Descriptor::new(&entry.media_type, digest, entry.manifest_bytes);
        let attestation = match &entry.attestation {
            None => None,
            Some(of) => {
                let its = of.digest.parse().map_err(|e| format!("index: {}: {e}", entry.platform))?;
                let manifest = Descriptor::new(media_type::OCI_MANIFEST, its, of.bytes);
                Some(attest::beside(digest, manifest))
            }
        };
        Ok(OfPlatform { platform, manifest, size_bytes: 0, layers: Vec::new(), attestation })
    };
    let all: Vec<OfPlatform> = request.index.iter().map(one).collect::<Result<_, String>>()?;
    for (at, of) in all.iter().enumerate() {
        if all.iter().take(at).any(|earlier| earlier.platform == of.platform) {
            return Err(format!("index: {} is there twice", of.platform));
        }
    }
    Ok(all)
}

fn annotations(request: &Request, facts: &SourceFacts) -> std::collections::BTreeMap<String, String> {
    let mut all = Annotations::everywhere(&request.output.annotations, &[Place::Index]);
    if request.output.annotations_from_source {
        let url = match &request.source {
            lapstrake_handoff::Source::Git(git) => Some(lapstrake_source::shown_url(&git.url)),
            lapstrake_handoff::Source::Http(http) => Some(lapstrake_source::shown_url(&http.url)),
            lapstrake_handoff::Source::Inline(_) => None,
        };
        for (key, value) in naming::standard(url.as_deref(), facts, request.source_date_epoch) {
            all.default_to(Place::Index, &key, &value);
        }
    }
    all.of(Place::Index, &Platform::new("linux", "amd64", None))
}

/// An index that names what is not there would be of no use.
async fn is_there(client: &Client, name: &Reference) -> Result<(), BuildError> {
    client.resolve(name).await.map(drop).map_err(|e| BuildError::registry(&e, Asked::Pull))
}

async fn push(
    client: &Client,
    index: &(Vec<u8>, Descriptor),
    name: &Reference,
    progress: &Progress,
) -> Result<(), BuildError> {
    let step = progress.step(&format!("pushing manifest for {name}"));
    step.close(manifest(client, index, name).await)
}
