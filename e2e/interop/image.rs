//! An image as a client sees it: config, and files with all that they have.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::Arc;

use flate2::read::GzDecoder;
use lapstrake_oci::{Digest, Manifest};
use lapstrake_testkit::registry::Storage;
use serde_json::Value;

use crate::Result;

/// A longer text is not shown where it differs, bytes.
const SHOWN_BYTES_MAX: usize = 400;

/// A file of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// What it is, with its target or its numbers: `file`, `directory`, `link to x`, `fifo`, `device 1:3`.
    pub(crate) kind: String,
    /// Permissions, with set-user-id, set-group-id and sticky bit.
    pub(crate) mode: u32,
    /// Owner and group.
    pub(crate) owner: (u64, u64),
    /// Bytes of a regular file, and their digest; what a short text says.
    pub(crate) content: Option<(u64, String, String)>,
    /// Extended attributes.
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
    /// Seconds since 1970.
    pub(crate) time: u64,
}

/// All files by their names, hard links with what they are of.
pub(crate) type Files = BTreeMap<String, Entry>;

/// An image as it was pushed.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) manifest: Manifest,
    pub(crate) config: Value,
    pub(crate) files: Files,
}

/// Files of layers that were read before: base images are in many images.
#[derive(Debug, Default)]
pub(crate) struct Bases(BTreeMap<String, Arc<Files>>);

impl Image {
    /// Reads an image from the registry; layers of a base image that is remembered are not read again.
    pub(crate) fn read(storage: &Storage, name: &str, tag: &str, bases: &mut Bases) -> Result<Self> {
        let (_, bytes, _) = storage.manifest(name, tag).ok_or("the image was not pushed")?;
        let manifest: Manifest = serde_json::from_slice(&bytes)?;
        let config = serde_json::from_slice(&std::fs::read(storage.blob_path(&manifest.config.digest))?)?;
        let mut files = Files::new();
        let mut below = String::new();
        for layer in &manifest.layers {
            below += &layer.digest.to_string();
            match bases.0.get(&below) {
                Some(known) => files = Files::clone(known),
                None => apply(&mut files, &std::fs::read(storage.blob_path(&layer.digest))?)?,
            }
        }
        Ok(Self { manifest, config, files })
    }

    /// Remembers the files of a base image, all layers of it.
    pub(crate) fn remember(storage: &Storage, name: &str, tag: &str, bases: &mut Bases) -> Result<()> {
        let image = Self::read(storage, name, tag, bases)?;
        let key: String = image.manifest.layers.iter().map(|layer| layer.digest.to_string()).collect();
        bases.0.insert(key, Arc::new(image.files));
        Ok(())
    }
}

/// Puts a layer on top.
fn apply(files: &mut Files, bytes: &[u8]) -> Result<()> {
    let mut archive = tar::Archive::new(GzDecoder::new(bytes));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let path = path.trim_start_matches("./").trim_end_matches('/').to_owned();
        let (folder, name) =
            path.rsplit_once('/').map_or(("", path.as_str()), |(folder, name)| (folder, name));
        if name == ".wh..wh..opq" {
            remove(files, folder, false);
        } else if let Some(gone) = name.strip_prefix(".wh.") {
            remove(files, format!("{folder}/{gone}").trim_start_matches('/'), true);
        } else if !path.is_empty() {
            let read = read(&mut entry)?;
            if files.get(&path).is_some_and(|old| old.kind == "directory") && read.kind != "directory" {
                remove(files, &path, true);
            }
            files.insert(path, read);
        }
    }
    Ok(())
}

/// Takes away what lies below a name, and the name itself.
fn remove(files: &mut Files, name: &str, itself: bool) {
    let prefix = format!("{name}/");
    files.retain(|path, _| !(path.starts_with(&prefix) || itself && path == name));
}

fn read<R: std::io::Read>(entry: &mut tar::Entry<'_, R>) -> Result<Entry> {
    let mut xattrs = BTreeMap::new();
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            if let Some(name) = extension.key()?.strip_prefix("SCHILY.xattr.") {
                xattrs.insert(name.to_owned(), extension.value_bytes().to_vec());
            }
        }
    }
    let header = entry.header();
    let link = || entry.link_name_bytes().map(|name| String::from_utf8_lossy(&name).into_owned());
    let kind = header.entry_type();
    let text = match kind {
        tar::EntryType::Directory => "directory".to_owned(),
        tar::EntryType::Symlink => format!("link to {}", link().unwrap_or_default()),
        tar::EntryType::Link => format!("second name of {}", link().unwrap_or_default()),
        tar::EntryType::Fifo => "fifo".to_owned(),
        tar::EntryType::Char | tar::EntryType::Block => {
            let number = |number: Option<u32>| number.unwrap_or_default();
            format!("device {kind:?} {}:{}", number(header.device_major()?), number(header.device_minor()?))
        }
        _ => "file".to_owned(),
    };
    let (mode, time) = (header.mode()? & 0o7777, header.mtime()?);
    let owner = (header.uid()?, header.gid()?);
    let mut content = None;
    if text == "file" {
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        let text = std::str::from_utf8(&bytes).ok().filter(|text| text.len() <= SHOWN_BYTES_MAX);
        content = Some((bytes.len() as u64, Digest::of(&bytes).hex(), text.unwrap_or_default().to_owned()));
    }
    Ok(Entry { kind: text, mode, owner, content, xattrs, time })
}
