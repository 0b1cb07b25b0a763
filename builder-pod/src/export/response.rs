//! What BuildKit's clients are told of an image that was made.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lapstrake_oci::{Descriptor, Reference};

use super::Packed;
use crate::options::{Image, Output};
use crate::time;

/// Names of the answers: `image.name`, `containerimage.…`.
pub(crate) const NAME: &str = "image.name";
const DIGEST: &str = "containerimage.digest";
const CONFIG_DIGEST: &str = "containerimage.config.digest";
const DESCRIPTOR: &str = "containerimage.descriptor";
/// When an archive was written, by which readers of layouts sort.
const CREATED: &str = "org.opencontainers.image.created";

/// The answers; nothing for what is no image.
pub(super) fn of(packed: &Packed, output: &Output, epoch: Option<i64>) -> BTreeMap<String, String> {
    let Some(image) = output.image() else { return BTreeMap::new() };
    let archive = matches!(output, Output::Oci { .. } | Output::Docker { .. });
    let descriptor = descriptor(packed, output, epoch);
    let mut answers = BTreeMap::from([(DIGEST.to_owned(), descriptor.digest.to_string())]);
    if packed.documents.joined.is_empty() {
        answers.insert(CONFIG_DIGEST.to_owned(), packed.documents.config.1.digest.to_string());
    }
    if let Some(name) = name(image, archive, &descriptor.digest.to_string()) {
        answers.insert(NAME.to_owned(), name);
    }
    if let Ok(json) = serde_json::to_vec(&descriptor) {
        answers.insert(DESCRIPTOR.to_owned(), STANDARD.encode(json));
    }
    answers
}

/// What names the image, as clients are told.
pub(super) fn descriptor(packed: &Packed, output: &Output, epoch: Option<i64>) -> Descriptor {
    let mut descriptor = packed.documents.manifest.1.clone();
    if !packed.documents.joined.is_empty() {
        descriptor.platform = None;
    }
    if matches!(output, Output::Oci { .. } | Output::Docker { .. }) {
        date(&mut descriptor, epoch);
    }
    descriptor
}

/// Says when an archive was written, where nothing else is said.
pub(super) fn date(descriptor: &mut Descriptor, epoch: Option<i64>) {
    let created = || time::rfc3339(epoch.unwrap_or_else(time::now_seconds));
    descriptor.annotations.entry(CREATED.to_owned()).or_insert_with(created);
}

/// All names, separated by commas: as they were given, or of an archive as they stand in it.
fn name(image: &Image, archive: bool, digest: &str) -> Option<String> {
    let mut names: Vec<String> = match (&image.asked_name, archive) {
        (Some(asked), false) => vec![asked.clone()],
        _ => image.names.iter().map(whole).collect(),
    };
    if let Some(prefix) = image.dangling_prefix.as_ref().filter(|_| !archive) {
        names.push(format!("{prefix}@{digest}"));
    }
    (!names.is_empty()).then(|| names.join(","))
}

fn whole(name: &Reference) -> String {
    match (name.tag(), name.tag_or_latest()) {
        (None, Some(tag)) => format!("{name}:{tag}"),
        _ => name.to_string(),
    }
}
