//! Unpacks a layer into an overlay upper directory.

mod attributes;
mod stack;
mod tree;

use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use lapstrake_oci::{Digest, Hasher};

use crate::tar::{Entry, Kind, TarReader};
use crate::{Error, Result, limits, media};
pub use stack::{stack_changes, stack_layer};
use tree::Tree;

/// How a layer is unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ApplyOptions {
    /// Overlay's marks are `user.overlay.*` (in a user namespace, mounted with `userxattr`), else
    /// `trusted.overlay.*` (as real root).
    pub userxattr: bool,
    /// The layers below, topmost first: directories that the layer does not list look like theirs.
    pub lowers_top_first: Vec<PathBuf>,
}

/// What was unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Digest of the uncompressed layer. The caller compares it with the image config's before anybody
    /// sees the snapshot.
    pub diff_id: Digest,
    /// Its size in bytes.
    pub tar_bytes: u64,
    /// Entries in it.
    pub entries: u64,
    /// What this user namespace may not make, and was left out: device nodes, foreign attributes.
    pub skipped: Vec<String>,
}

/// Unpacks `blob` into `upper`, an empty directory that nobody else writes to.
///
/// The compression is found by looking at the bytes; `media_type` must be that of a layer. On an error
/// `upper` holds rubbish, which goes with the caller's snapshot.
///
/// # Errors
/// [`Error::Hostile`] and [`Error::Malformed`] for what the archive says, [`Error::Stream`] for
/// what cannot be decompressed, [`Error::NoSpace`], I/O.
pub fn apply_layer(
    blob: impl Read,
    media_type: &str,
    upper: &Path,
    options: &ApplyOptions,
) -> Result<Applied> {
    if !is_layer(media_type) {
        return Err(Error::MediaType(media_type.to_owned()));
    }
    let plain = Hashing { input: decompress(blob)?, hasher: Hasher::new(), bytes: 0 };
    let mut tree = Tree::open(upper, options)?;
    let mut reader = TarReader::new(BufReader::with_capacity(256 << 10, plain));
    let mut entries = 0;
    while let Some(entry) = reader.next_entry()? {
        entries += 1;
        one(&mut tree, &mut reader, &entry)?;
    }
    let mut rest = reader.into_inner();
    // Padding after the end belongs to the diff id.
    std::io::copy(&mut rest, &mut std::io::sink()).map_err(Error::Stream)?;
    let plain = rest.into_inner();
    let (diff_id, tar_bytes) = (plain.hasher.finish(), plain.bytes);
    let skipped = tree.finish()?;
    Ok(Applied { diff_id, tar_bytes, entries, skipped })
}

fn one<R: Read>(tree: &mut Tree<'_>, reader: &mut TarReader<R>, entry: &Entry) -> Result<()> {
    place(tree, entry, |tree, path, name| match entry.kind {
        Kind::Dir => tree.dir(path, name, entry),
        Kind::File => tree.file(path, name, entry, reader),
        Kind::Symlink => tree.symlink(path, name, entry),
        Kind::Hardlink => {
            let mut target = clean(&entry.link)?;
            let target_name = target
                .pop()
                .ok_or_else(|| Error::malformed(&entry.path, "hard link to the root directory"))?;
            tree.hardlink(path, name, entry, &target, target_name)
        }
        // What overlay would take for a whiteout becomes one by its own rules.
        Kind::Char(0, 0) => tree.whiteout(path, name),
        Kind::Char(..) | Kind::Block(..) | Kind::Fifo => tree.node(path, name, entry),
    })
}

/// Does what an entry says by its name alone; `other` does the rest, with the entry's directory and name.
fn place<'a>(
    tree: &mut Tree<'a>,
    entry: &Entry,
    other: impl FnOnce(&mut Tree<'a>, &[&[u8]], &[u8]) -> Result<()>,
) -> Result<()> {
    let mut path = clean(&entry.path)?;
    let Some(name) = path.pop() else {
        return match entry.kind {
            Kind::Dir => tree.root_attributes(entry),
            _ => Err(Error::hostile(&entry.path, "it would replace the root directory")),
        };
    };
    match name.strip_prefix(b".wh.") {
        None => other(tree, &path, name),
        Some(b".wh..opq") => tree.opaque(&path),
        // What aufs kept for itself.
        Some(hidden) if hidden.starts_with(b".wh.") => Ok(()),
        Some(b"" | b"." | b"..") => Err(Error::hostile(&entry.path, "it is a whiteout of no file")),
        Some(hidden) => tree.whiteout(&path, hidden),
    }
}

/// Splits a path into its names; `.` and empty ones go, `..` is resolved by text, and may not leave.
fn clean(path: &[u8]) -> Result<Vec<&[u8]>> {
    let mut names = Vec::new();
    for name in path.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop().ok_or_else(|| Error::hostile(path, "its path leaves the root directory"))?;
            }
            name => names.push(name),
        }
    }
    if names.len() > limits::DEPTH_MAX {
        return Err(Error::malformed(path, "path is too deep"));
    }
    Ok(names)
}

/// Whether a media type is that of a layer that is a tar file.
fn is_layer(media_type: &str) -> bool {
    // The last one stands in archives that older tools saved.
    media::kind_of(media_type).is_some()
        || media_type == "application/vnd.docker.image.rootfs.foreign.diff.tar"
        || media_type == "application/vnd.docker.container.image.rootfs.diff+x-gtar"
}

/// Decompresses by the first bytes, as containerd does: gzip (any number of members), zstd, or plain.
///
/// # Errors
/// Where the first bytes cannot be read.
pub fn decompress<'a>(blob: impl Read + 'a) -> Result<Box<dyn Read + 'a>> {
    let mut blob = blob;
    let mut magic = [0; 4];
    let mut filled = 0;
    while filled < magic.len() {
        match blob.read(&mut magic[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::Stream(e)),
        }
    }
    let start = std::io::Cursor::new(magic).take(filled as u64);
    let whole = BufReader::with_capacity(128 << 10, start.chain(blob));
    Ok(match magic {
        [0x1f, 0x8b, _, _] => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
        // A frame, or a skippable frame in front of one.
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(whole).map_err(Error::Stream)?;
            decoder.window_log_max(limits::ZSTD_WINDOW_LOG_MAX).map_err(Error::Stream)?;
            Box::new(decoder)
        }
        _ => Box::new(whole),
    })
}

/// Hashes and counts what is read.
struct Hashing<R> {
    input: R,
    hasher: Hasher,
    bytes: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.input.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        self.bytes += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
