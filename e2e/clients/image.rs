//! Images as facts: documents, and the files of their layers together.

use std::collections::BTreeMap;
use std::io::Read as _;

use lapstrake_image::apply::decompress;
use lapstrake_oci::Digest;
use serde_json::Value;

use crate::Result;
use crate::facts::Facts;

/// Reads a blob of what an image is in.
type Blob<'a> = &'a dyn Fn(&Digest) -> Option<Vec<u8>>;

/// An archive: of an image, or of a file system.
pub(crate) fn archive(facts: &mut Facts, name: &str, bytes: &[u8]) -> Result<()> {
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut archive = tar::Archive::new(bytes);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        files.insert(path, content);
    }
    if !files.contains_key("oci-layout") && !files.contains_key("manifest.json") {
        return facts.tar(name, bytes);
    }
    let blob = |digest: &Digest| files.get(&format!("blobs/sha256/{}", digest.hex())).cloned();
    if let Some(docker) = files.get("manifest.json") {
        facts.json(&format!("{name}/manifest.json"), &serde_json::from_slice(docker)?);
    }
    match files.get("index.json") {
        Some(text) => index(facts, name, text, &blob),
        None => Ok(()),
    }
}

/// The index of a layout, and all that it names.
pub(crate) fn index(facts: &mut Facts, name: &str, text: &[u8], blob: Blob<'_>) -> Result<()> {
    let value: Value = serde_json::from_slice(text)?;
    facts.json(&format!("{name}/index"), &value);
    for (at, entry) in value["manifests"].as_array().into_iter().flatten().enumerate() {
        // The index of a cache names layers too.
        let media_type = entry["mediaType"].as_str().unwrap_or_default();
        if !media_type.contains("manifest") && !media_type.contains("index") {
            continue;
        }
        let digest: Digest = entry["digest"].as_str().unwrap_or_default().parse()?;
        let bytes = blob(&digest).ok_or_else(|| format!("{name} lacks {digest}"))?;
        document(facts, &format!("{name}/{at}"), &bytes, blob)?;
    }
    Ok(())
}

/// A manifest or an index of several.
pub(crate) fn document(facts: &mut Facts, name: &str, bytes: &[u8], blob: Blob<'_>) -> Result<()> {
    let mut value: Value = serde_json::from_slice(bytes)?;
    if value.get("manifests").is_some() {
        return index(facts, name, bytes, blob);
    }
    let get = |value: &Value| -> Result<Vec<u8>> {
        let digest: Digest = value["digest"].as_str().unwrap_or_default().parse()?;
        Ok(blob(&digest).ok_or_else(|| format!("{name} lacks {digest}"))?)
    };
    let kind = value["config"]["mediaType"].as_str().unwrap_or_default().to_owned();
    let layers = value["layers"].as_array().cloned().unwrap_or_default();
    facts.json(&format!("{name}/manifest"), &value);
    if let Ok(mut config) = serde_json::from_slice::<Value>(&get(&value["config"])?) {
        if let Some(ids) = config.pointer_mut("/rootfs/diff_ids") {
            *ids = ids.as_array().map_or(0, Vec::len).into();
        }
        // An inline cache names digests: that it is there is what counts.
        if let Some(cache) = config.get_mut("moby.buildkit.cache.v0") {
            *cache = "(a cache)".into();
        }
        facts.json(&format!("{name}/config"), &config);
    }
    if kind.contains("cacheconfig") {
        value["layers"] = Value::Null;
        return Ok(());
    }
    for layer in &layers {
        let media_type = layer["mediaType"].as_str().unwrap_or_default();
        if media_type.ends_with("+json") {
            facts.json(&format!("{name}/statement"), &serde_json::from_slice(&get(layer)?)?);
        } else {
            let bytes = get(layer)?;
            facts.tar(&format!("{name}/files"), decompress(&bytes[..])?)?;
        }
    }
    Ok(())
}
