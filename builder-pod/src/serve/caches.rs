//! What a client says of caches, as caches of a build.
//!
//! Attributes, defaults and refusals are BuildKit's. A cache that can't be read fails no build there, so what is wrong
//! with an import is told where it would be read.

use std::collections::{BTreeSet, HashMap};

use lapstrake_handoff::{CacheExport, CacheImport, CacheMode, CacheStore, CacheTarget};
use lapstrake_oci::Reference;

use super::Attributes;
use super::values::{boolean, packing, refused};
use crate::error::BuildError;

/// A cache to read, and what it is called in progress.
#[derive(Debug)]
pub(crate) struct Import {
    /// `importing cache manifest from …`: the cache's name, or its type.
    pub(crate) shown: String,
    /// The cache, or why it is none: that fails its step, but not the build. A local one is a content store of the client.
    pub(crate) cache: Result<CacheImport, BuildError>,
}

/// Reads all imports of a request.
pub(crate) fn imports(asked: impl IntoIterator<Item = (String, Attributes)>) -> Vec<Import> {
    let mut seen = BTreeSet::new();
    let asked = asked.into_iter().filter(|entry| seen.insert(format!("{entry:?}")));
    asked
        .map(|(kind, attributes)| {
            let shown = match (kind.as_str(), attributes.get("ref")) {
                ("registry", Some(name)) if !name.is_empty() => name.clone(),
                _ => match attributes.get("src") {
                    Some(src) => format!("{kind}:{src}"),
                    None => kind.clone(),
                },
            };
            Import { shown, cache: import(&kind, attributes) }
        })
        .collect()
}

fn import(kind: &str, mut attributes: Attributes) -> Result<CacheImport, BuildError> {
    let failed = |why: String| refused(format!("failed to configure {kind} cache importer: {why}"));
    match kind {
        "registry" => {
            let reference = reference(&mut attributes).map_err(failed)?;
            let insecure = flag(&mut attributes, "registry.insecure").map_err(failed)?.unwrap_or(false);
            Ok(CacheImport::Registry { reference, insecure })
        }
        "local" => {
            let needed = |value: Option<String>, what: &str| {
                value
                    .filter(|text| !text.is_empty())
                    .ok_or_else(|| failed(format!("local cache importer requires {what}")))
            };
            // A client that knows a tag only has looked it up itself.
            let digest = needed(attributes.remove("digest"), "explicit digest")?;
            let src = needed(attributes.remove("src"), "src")?;
            Ok(CacheImport::Local { src, tag: None, digest: Some(digest) })
        }
        "s3" | "azblob" | "gha" => store(kind, attributes).map(CacheImport::Store).map_err(failed),
        other => Err(refused(format!("unknown cache importer: {other}"))),
    }
}

/// Reads all exports of a request.
///
/// # Errors
/// In BuildKit's words, of the first that it would refuse.
pub(crate) fn exports(
    asked: impl IntoIterator<Item = (String, Attributes)>,
) -> Result<Vec<CacheExport>, BuildError> {
    let (mut seen, mut twice, mut all) = (BTreeSet::new(), Vec::new(), Vec::new());
    for (kind, attributes) in asked {
        let is_new = seen.insert(match kind.as_str() {
            "inline" => kind.clone(),
            _ => format!("{kind} {attributes:?}"),
        });
        match kind.as_str() {
            // Once is enough, and twice is no mistake.
            "inline" if !is_new => {}
            _ if !is_new => twice.push(kind),
            _ => all.push((kind, attributes)),
        }
    }
    if !twice.is_empty() {
        return Err(refused(format!("duplicate cache exports [{}]", twice.join(" "))));
    }
    all.into_iter().map(|(kind, attributes)| export(&kind, attributes)).collect()
}

fn export(kind: &str, mut attributes: Attributes) -> Result<CacheExport, BuildError> {
    let failed = |why: String| refused(format!("failed to configure {kind} cache exporter: {why}"));
    let failed_by = |error: BuildError| failed(error.failure().message.clone());
    let mut export = match kind {
        "inline" => CacheExport::new(CacheTarget::Inline),
        "registry" | "local" => {
            let local = attributes.remove("dest").filter(|dest| !dest.is_empty());
            let local = match (kind, local) {
                ("local", None) => return Err(failed("local cache exporter requires dest".to_owned())),
                (_, dest) => dest,
            };
            let packing = packing(&mut attributes).map_err(failed_by)?;
            let to = match (kind, local) {
                ("local", Some(dest)) => CacheTarget::Local { dest, tag: attributes.remove("tag") },
                _ => {
                    let reference = reference(&mut attributes).map_err(failed)?;
                    let insecure =
                        flag(&mut attributes, "registry.insecure").map_err(failed)?.unwrap_or(false);
                    CacheTarget::Registry { reference, insecure }
                }
            };
            let mut export = CacheExport::new(to);
            (export.compression, export.compression_level) = (packing.compression, packing.level);
            export.force_compression = packing.force;
            export.oci_media_types = flag(&mut attributes, "oci-mediatypes").map_err(failed)?.unwrap_or(true);
            let image = flag(&mut attributes, "image-manifest").map_err(failed)?;
            export.image_manifest = image.unwrap_or(export.oci_media_types);
            export
        }
        "s3" | "azblob" | "gha" => {
            let packing = match kind {
                "s3" => packing(&mut attributes).map_err(failed_by)?,
                // As BuildKit: it has its default there.
                _ => super::values::Packing::default(),
            };
            let mut export =
                CacheExport::new(CacheTarget::Store(store(kind, attributes.clone()).map_err(failed)?));
            (export.compression, export.compression_level) = (packing.compression, packing.level);
            export.force_compression = packing.force;
            export
        }
        other => return Err(refused(format!("unknown cache exporter: {other:?}"))),
    };
    // As BuildKit: what it does not know of these two is passed over.
    if attributes.get("mode").is_some_and(|mode| mode == "max") && export.to != CacheTarget::Inline {
        export.mode = CacheMode::Max;
    }
    export.ignore_error = attributes.get("ignore-error").is_some_and(|text| boolean(text) == Ok(true));
    Ok(export)
}

/// A cache in an object store, whose attributes are looked at before anything is built.
fn store(kind: &str, attributes: Attributes) -> Result<CacheStore, String> {
    let read = lapstrake_bucket::Settings::read(kind, &attributes, |name| std::env::var(name).ok());
    read.map_err(|e| e.to_string())?;
    Ok(CacheStore { kind: kind.to_owned(), attributes })
}

/// Attributes of a frontend as a record of the build may keep them: those of caches may hold credentials.
pub(super) fn without_credentials(attributes: &HashMap<String, String>) -> HashMap<String, String> {
    let mut kept = attributes.clone();
    let Some(text) = kept.remove("cache-imports") else { return kept };
    let Ok(mut entries) = serde_json::from_str::<serde_json::Value>(&text) else { return kept };
    for entry in entries.as_array_mut().into_iter().flatten() {
        let attributes = entry.get_mut("Attrs").and_then(serde_json::Value::as_object_mut);
        for (key, value) in attributes.into_iter().flatten() {
            if lapstrake_bucket::SECRETS.contains(&key.as_str()) {
                *value = "[redacted]".into();
            }
        }
    }
    kept.insert("cache-imports".to_owned(), entries.to_string());
    kept
}

fn reference(attributes: &mut Attributes) -> Result<String, String> {
    let text = attributes.remove("ref").filter(|text| !text.is_empty()).ok_or("missing ref")?;
    text.parse::<Reference>().map_err(|e| e.to_string())?;
    Ok(text)
}

fn flag(attributes: &mut Attributes, key: &str) -> Result<Option<bool>, String> {
    let read = |text: String| boolean(&text).map_err(|why| format!("failed to parse {key}: {why}"));
    attributes.remove(key).map(read).transpose()
}

#[cfg(test)]
#[path = "caches_tests.rs"]
mod tests;
