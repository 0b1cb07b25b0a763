//! Images as one tar file: an OCI layout, or what `docker load` reads (which is a layout as well).

use std::collections::BTreeMap;
use std::io::Write;

use lapstrake_oci::{Descriptor, Reference};
use serde::Serialize;

use super::blobs::{BlobSource, Blobs};
use super::layout::{LAYOUT, index_of};
use crate::assemble::Assembled;
use crate::tar::{Entry, Kind, TarWriter};
use crate::{Error, Result};

/// Writes an OCI image layout as a tar file. Blocking.
///
/// # Errors
/// Of the output, and as [`super::oci_layout_dir`].
pub fn oci_layout_tar(
    out: impl Write,
    image: &Assembled,
    names: &[Reference],
    source: &dyn BlobSource,
) -> Result<()> {
    write(out, &Blobs::of(image, source)?, &layout_files(image, names)?)
}

/// Writes an archive for `docker load` (skopeo: `docker-archive:`). Blocking.
///
/// # Errors
/// Of the output, and as [`super::oci_layout_dir`].
pub fn docker_archive(
    out: impl Write,
    image: &Assembled,
    names: &[Reference],
    source: &dyn BlobSource,
) -> Result<()> {
    let blobs = Blobs::of(image, source)?;
    let mut files = layout_files(image, names)?;
    let tagged: Vec<(String, &str)> =
        names.iter().filter_map(|name| Some((familiar(name), name.tag_or_latest()?))).collect();
    let listed = DockerImage {
        config: path_of(&image.config.1),
        repo_tags: (!tagged.is_empty())
            .then(|| tagged.iter().map(|(name, tag)| format!("{name}:{tag}")).collect()),
        layers: blobs.manifest.layers.iter().map(path_of).collect(),
    };
    files.insert("manifest.json", serde_json::to_vec(&[listed])?);
    // From before `manifest.json`: name → tag → top layer. Some readers still look for it.
    let top = blobs.manifest.layers.last().unwrap_or(&image.config.1).digest.hex();
    let mut repositories: BTreeMap<&str, BTreeMap<&str, &str>> = BTreeMap::new();
    for (name, tag) in &tagged {
        repositories.entry(name).or_default().insert(tag, &top);
    }
    files.insert("repositories", serde_json::to_vec(&repositories)?);
    write(out, &blobs, &files)
}

/// An entry of `manifest.json`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    /// `null` where there are none, as Docker writes it.
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

type Files = BTreeMap<&'static str, Vec<u8>>;

fn layout_files(image: &Assembled, names: &[Reference]) -> Result<Files> {
    let index = serde_json::to_vec(&index_of(image, names))?;
    Ok(Files::from([("index.json", index), ("oci-layout", LAYOUT.to_vec())]))
}

fn path_of(descriptor: &Descriptor) -> String {
    format!("blobs/sha256/{}", descriptor.digest.hex())
}

/// The name as Docker shows it.
fn familiar(name: &Reference) -> String {
    let name = name.name();
    let short = name.strip_prefix("docker.io/").map(|rest| rest.strip_prefix("library/").unwrap_or(rest));
    short.map(str::to_owned).unwrap_or(name)
}

fn write(out: impl Write, blobs: &Blobs<'_>, files: &Files) -> Result<()> {
    let mut tar = TarWriter::new(out);
    for path in ["blobs/", "blobs/sha256/"] {
        tar.start(&Entry { mode: 0o755, ..Entry::new(path, Kind::Dir) }).map_err(Error::output)?;
    }
    let file = |path: String, size| Entry { mode: 0o644, size, ..Entry::new(path, Kind::File) };
    for (digest, size) in blobs.iter() {
        tar.start(&file(format!("blobs/sha256/{}", digest.hex()), size)).map_err(Error::output)?;
        blobs.copy(&digest, |piece| tar.write_data(piece).map_err(Error::output))?;
    }
    for (path, bytes) in files {
        tar.append(&file((*path).to_owned(), bytes.len() as u64), bytes).map_err(Error::output)?;
    }
    tar.finish().map_err(Error::output)?;
    Ok(())
}
