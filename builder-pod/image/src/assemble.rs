//! Config, manifest and index of an image, from its parts.
//!
//! Pure: the same parts give the same bytes.

use std::collections::BTreeMap;

use lapstrake_oci::{Descriptor, Digest, History, ImageConfig, Index, Manifest, media_type, to_json};

use crate::{Error, Result, media};

/// What BuildKit writes into history entries that it adds itself.
const EXPORTER: &str = "buildkit.exporter.image.v0";

/// A layer of the image, lowest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The blob. Its media type is rewritten to the image's family.
    pub descriptor: Descriptor,
    /// Digest of its uncompressed bytes.
    pub diff_id: Digest,
    /// When it was made, RFC 3339; for history entries that do not say.
    pub created: Option<String>,
    /// What made it; for layers of which the history does not speak.
    pub about: Option<String>,
}

/// What an image is made of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Spec {
    /// The config, its history complete; its list of diff ids is replaced.
    pub config: ImageConfig,
    /// The layers, lowest first.
    pub layers: Vec<Layer>,
    /// Docker's media types instead of OCI's. Annotations exist in OCI's family only: with them, the image is
    /// made in that one.
    pub docker_media_types: bool,
    /// Annotations of the manifest.
    pub annotations: BTreeMap<String, String>,
    /// RFC 3339, from `SOURCE_DATE_EPOCH`: no history entry of ours has a later time.
    pub created: Option<String>,
    /// How many leading history entries came from the base image; they stay as they are.
    pub base_history: usize,
}

/// An image's documents: bytes, and the descriptor that names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assembled {
    /// The image config.
    pub config: (Vec<u8>, Descriptor),
    /// The manifest; its descriptor carries the platform, ready for an index.
    pub manifest: (Vec<u8>, Descriptor),
    /// The images of an index: then `manifest` is the index, and `config` the first image's.
    pub joined: Vec<Assembled>,
    /// What the index names beside them: what is attested of its images.
    pub beside: Vec<Beside>,
}

/// A manifest that is no image, with all that it names: small documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beside {
    /// The manifest, its descriptor ready for an index.
    pub manifest: (Vec<u8>, Descriptor),
    /// Config and layers.
    pub blobs: Vec<(Vec<u8>, Descriptor)>,
}

/// Makes config and manifest.
///
/// History entries that stand for a layer match the layers one to one. Where the base image has layers
/// without history, plain entries are put in before the first one that is ours; where it has more history
/// than layers, its first entries lose theirs, as BuildKit has it.
///
/// # Errors
/// [`Error::Inconsistent`] where there are fewer layers than entries of ours that need one.
pub fn assemble(spec: Spec) -> Result<Assembled> {
    let docker = spec.docker_media_types && spec.annotations.is_empty();
    let Spec { mut config, layers, annotations, created, base_history, .. } = spec;

    match_layers(&mut config.history, layers.len(), base_history)?;
    date(&mut config.history, &layers, created.as_deref(), base_history);
    if let Some(last) = config.history.last() {
        config.created.clone_from(&last.created);
    } else if created.is_some() {
        config.created = created;
    }
    config.rootfs.diff_ids = layers.iter().map(|l| l.diff_id).collect();

    let config_bytes = config.to_bytes()?;
    let config_type = if docker { media_type::DOCKER_CONFIG } else { media_type::OCI_CONFIG };
    let config_descriptor = Descriptor::of(config_type, &config_bytes);

    let manifest_type = if docker { media_type::DOCKER_MANIFEST } else { media_type::OCI_MANIFEST };
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(manifest_type.to_owned()),
        artifact_type: None,
        config: config_descriptor.clone(),
        layers: layers.into_iter().map(|l| layer_descriptor(l.descriptor, docker)).collect(),
        subject: None,
        annotations,
    };
    let manifest_bytes = to_json(&manifest, true)?;
    let mut manifest_descriptor = Descriptor::of(manifest_type, &manifest_bytes);
    let mut platform = config.platform();
    platform.os_version.clone_from(&config.os_version);
    manifest_descriptor.platform = Some(platform);
    Ok(Assembled {
        config: (config_bytes, config_descriptor),
        manifest: (manifest_bytes, manifest_descriptor),
        joined: Vec::new(),
        beside: Vec::new(),
    })
}

/// Joins images of several platforms by an index over them, and over what is attested of them; their descriptors stand in it as they
/// are.
///
/// # Errors
/// [`Error::Inconsistent`] where there is no image.
pub fn join(
    images: Vec<Assembled>,
    beside: Vec<Beside>,
    annotations: BTreeMap<String, String>,
    docker: bool,
) -> Result<Assembled> {
    let first = images.first().ok_or_else(|| Error::Inconsistent("an index over no image".to_owned()))?;
    let config = first.config.clone();
    let named = images.iter().map(|image| &image.manifest).chain(beside.iter().map(|one| &one.manifest));
    let manifest = index(named.map(|manifest| manifest.1.clone()).collect(), annotations, docker)?;
    Ok(Assembled { config, manifest, joined: images, beside })
}

/// Makes an index (Docker: a manifest list) over manifests.
///
/// # Errors
/// [`Error::Json`], which valid descriptors do not cause.
pub fn index(
    manifests: Vec<Descriptor>,
    annotations: BTreeMap<String, String>,
    docker: bool,
) -> Result<(Vec<u8>, Descriptor)> {
    let docker = docker && annotations.is_empty();
    let kind = if docker { media_type::DOCKER_INDEX } else { media_type::OCI_INDEX };
    let index = Index { schema_version: 2, media_type: Some(kind.to_owned()), manifests, annotations };
    let bytes = to_json(&index, true)?;
    let descriptor = Descriptor::of(kind, &bytes);
    Ok((bytes, descriptor))
}

/// A layer as a manifest lists it.
fn layer_descriptor(from: Descriptor, docker: bool) -> Descriptor {
    let mut layer = Descriptor::new(media::convert(&from.media_type, docker), from.digest, from.size);
    if !docker {
        layer.annotations = from.annotations;
    }
    layer
}

/// Makes as many entries with a layer as there are layers.
fn match_layers(history: &mut Vec<History>, layers: usize, base_history: usize) -> Result<()> {
    if base_history > history.len() {
        let there = history.len();
        let why = format!("{base_history} history entries are said to be the base's, but there are {there}");
        return Err(Error::Inconsistent(why));
    }
    let mut with_layer = history.iter().filter(|h| !h.empty_layer).count();
    for entry in history.iter_mut().take(base_history).filter(|h| !h.empty_layer) {
        if with_layer <= layers {
            break;
        }
        entry.empty_layer = true;
        with_layer -= 1;
    }
    let Some(missing) = layers.checked_sub(with_layer) else {
        let why = format!("its history speaks of {with_layer} layers, but there are {layers}");
        return Err(Error::Inconsistent(why));
    };
    history.splice(base_history..base_history, std::iter::repeat_n(unspoken(), missing));
    Ok(())
}

/// Gives each entry that is ours its time; the base's entries are before `base_history`. An entry without a layer has that
/// of the layer before it; those before our first layer have that layer's, not the base's. None is later than `latest`.
fn date(history: &mut [History], layers: &[Layer], latest: Option<&str>, base_history: usize) {
    let mut layers = layers.iter();
    for (at, entry) in history.iter_mut().enumerate() {
        let layer = if entry.empty_layer { None } else { layers.next() };
        if at < base_history {
            continue;
        }
        let added = *entry == unspoken();
        if let Some(layer) = layer.filter(|_| added) {
            entry.created_by.clone_from(&layer.about);
        }
        if entry.created.is_none() {
            entry.created = match (latest, layer) {
                // Whoever wrote the entry leaves its time to the image's, whenever its layer was made.
                (Some(latest), _) if !added => Some(latest.to_owned()),
                (_, layer) => layer.and_then(|layer| layer.created.clone()),
            };
        }
    }
    let (base, ours) = history.split_at_mut(base_history.min(history.len()));
    let first = ours.iter().find_map(|entry| entry.created.clone());
    let mut last = first.or_else(|| base.iter().rev().find_map(|entry| entry.created.clone()));
    for entry in ours {
        match &entry.created {
            Some(created) => last = Some(created.clone()),
            None => entry.created.clone_from(&last),
        }
        if let Some(latest) = latest.filter(|latest| is_later(entry.created.as_deref(), latest)) {
            entry.created = Some(latest.to_owned());
        }
    }
}

/// The entry of a layer of which the history does not speak.
fn unspoken() -> History {
    History { comment: Some(EXPORTER.to_owned()), ..History::default() }
}

/// Whether a time is later than another one, or none at all.
fn is_later(time: Option<&str>, than: &str) -> bool {
    let parsed = |text: &str| text.parse::<jiff::Timestamp>().ok();
    match (time.and_then(parsed), parsed(than)) {
        (Some(time), Some(than)) => time > than,
        _ => true,
    }
}

#[cfg(test)]
mod tests;
