//! An OCI image layout as a directory.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use lapstrake_oci::{Descriptor, Digest, Index, Reference, media_type};

use super::blobs::{BlobSource, Blobs, bare};
use crate::assemble::Assembled;
use crate::{Error, Result};

/// The tag, by which `oci:DIR:TAG` finds an image.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The full name, by which containerd does.
const IMAGE_NAME: &str = "io.containerd.image.name";
/// Content of the file `oci-layout`.
pub(super) const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// Longest `index.json` that is extended.
const INDEX_BYTES_MAX: u64 = 16 << 20;

/// Writes an image into the OCI layout at `dest`, under its names.
///
/// A layout that is there already keeps its images; a name that it gave to another image moves.
/// The image should be made with OCI's media types: readers of a layout look for no others.
/// Blobs come first and `index.json` is replaced last, at once: a reader sees the old layout or the new.
/// Blocking.
///
/// # Errors
/// [`Error::Io`] and [`Error::NoSpace`] of the directory, [`Error::Inconsistent`] where its
/// index is not one, or a blob is not what its digest says.
pub fn oci_layout_dir(
    dest: &Path,
    image: &Assembled,
    names: &[Reference],
    source: &dyn BlobSource,
) -> Result<()> {
    let blobs = Blobs::of(image, source)?;
    let dir = dest.join("blobs/sha256");
    fs::create_dir_all(&dir).map_err(|e| Error::io_at("create", &dir, e))?;
    let index_path = dest.join("index.json");
    let mut index = read_index(&index_path)?;
    for (digest, size) in blobs.iter() {
        let path = dir.join(digest.hex());
        if fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() == size) {
            continue;
        }
        replace(&path, |file| {
            blobs.copy(&digest, |piece| file.write_all(piece).map_err(|e| Error::io_at("write", &path, e)))
        })?;
    }
    write_whole(&dest.join("oci-layout"), LAYOUT)?;
    extend(&mut index, &describe(image, names));
    write_whole(&index_path, &serde_json::to_vec(&index)?)
}

/// Writes something that is no image into the OCI layout at `dest`, under a tag: blobs of `source`, documents given
/// as bytes, and the descriptor of the one that stands for all. As [`oci_layout_dir`] in all else. Blocking.
///
/// # Errors
/// As [`oci_layout_dir`].
pub fn oci_layout_artifact(
    dest: &Path,
    blobs: &[(Digest, u64)],
    documents: &[&[u8]],
    source: &dyn BlobSource,
    descriptor: &Descriptor,
    tag: &str,
) -> Result<()> {
    let dir = dest.join("blobs/sha256");
    fs::create_dir_all(&dir).map_err(|e| Error::io_at("create", &dir, e))?;
    let index_path = dest.join("index.json");
    let mut index = read_index(&index_path)?;
    let there = |path: &Path, size: u64| {
        fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == size)
    };
    for (digest, size) in blobs {
        let path = dir.join(digest.hex());
        if there(&path, *size) {
            continue;
        }
        let mut from = source.open(digest).map_err(|e| Error::io_at("open", &path, e))?;
        replace(&path, |file| {
            io::copy(&mut from, file).map(drop).map_err(|e| Error::io_at("write", &path, e))
        })?;
    }
    for bytes in documents {
        let path = dir.join(Digest::of(bytes).hex());
        if !there(&path, bytes.len() as u64) {
            write_whole(&path, bytes)?;
        }
    }
    write_whole(&dest.join("oci-layout"), LAYOUT)?;
    let mut named = descriptor.clone();
    named.annotations.insert(REF_NAME.to_owned(), tag.to_owned());
    extend(&mut index, &[named]);
    write_whole(&index_path, &serde_json::to_vec(&index)?)
}

/// The index of a layout that holds this image alone.
pub(super) fn index_of(image: &Assembled, names: &[Reference]) -> Index {
    Index {
        schema_version: 2,
        media_type: Some(media_type::OCI_INDEX.to_owned()),
        manifests: describe(image, names),
        annotations: Default::default(),
    }
}

/// One descriptor per name; one without a name where there is none.
fn describe(image: &Assembled, names: &[Reference]) -> Vec<Descriptor> {
    let plain = bare(image);
    let mut tags = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for name in names.iter().filter(|name| seen.insert(full_name(name))) {
        let mut descriptor = plain.clone();
        descriptor.annotations.insert(IMAGE_NAME.to_owned(), full_name(name));
        // A tag that two names share is given once: readers want it to be unique.
        if let Some(tag) = name.tag_or_latest().filter(|tag| tags.insert((*tag).to_owned())) {
            descriptor.annotations.insert(REF_NAME.to_owned(), tag.to_owned());
        }
        all.push(descriptor);
    }
    if all.is_empty() { vec![plain] } else { all }
}

/// The name with its tag, `latest` included.
fn full_name(name: &Reference) -> String {
    match (name.tag(), name.tag_or_latest()) {
        (None, Some(tag)) => format!("{name}:{tag}"),
        _ => name.to_string(),
    }
}

/// Puts descriptors into an index; the names that they carry are taken from all others.
fn extend(index: &mut Index, new: &[Descriptor]) {
    for descriptor in new {
        let name = |key: &str| descriptor.annotations.get(key);
        index.manifests.retain_mut(|old| {
            if *old == *descriptor {
                return false;
            }
            let same = |key: &str| name(key).is_some() && name(key) == old.annotations.get(key);
            if same(IMAGE_NAME) {
                return false;
            }
            if same(REF_NAME) {
                old.annotations.remove(REF_NAME);
                // Nobody could ask for it any more.
                return old.annotations.contains_key(IMAGE_NAME);
            }
            true
        });
    }
    index.manifests.extend_from_slice(new);
}

fn read_index(path: &Path) -> Result<Index> {
    let bytes = match fs::metadata(path) {
        Ok(meta) if meta.len() > INDEX_BYTES_MAX => {
            return Err(Error::Inconsistent(format!("{} is too large to be an index", path.display())));
        }
        Ok(_) => fs::read(path).map_err(|e| Error::io_at("read", path, e))?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let media_type = Some(media_type::OCI_INDEX.to_owned());
            return Ok(Index {
                schema_version: 2,
                media_type,
                manifests: Vec::new(),
                annotations: Default::default(),
            });
        }
        Err(e) => return Err(Error::io_at("read", path, e)),
    };
    serde_json::from_slice(&bytes).map_err(|e| {
        Error::Inconsistent(format!("{} is not the index of an image layout: {e}", path.display()))
    })
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, |file| file.write_all(bytes).map_err(|e| Error::io_at("write", path, e)))
}

/// Writes a file beside `path`, syncs it, and moves it there.
fn replace(path: &Path, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let part = path.with_file_name(name);
    let written = (|| {
        let mut file = File::create(&part).map_err(|e| Error::io_at("create", &part, e))?;
        fill(&mut file)?;
        file.sync_all().map_err(|e| Error::io_at("sync", &part, e))?;
        fs::rename(&part, path).map_err(|e| Error::io_at("rename", &part, e))
    })();
    if written.is_err() {
        fs::remove_file(&part).ok(); // the first error is the one to tell
    }
    written
}
