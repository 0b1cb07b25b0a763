use std::collections::BTreeMap;
use std::io::{self, Read};

use lapstrake_oci::{Descriptor, Digest, Hasher, Manifest};

use crate::assemble::Assembled;
use crate::{Error, Result};

const BUFFER_BYTES: usize = 256 << 10;

/// Where an image's layers are read from.
pub trait BlobSource {
    /// Opens a blob at its start.
    ///
    /// # Errors
    /// Whatever keeps the blob from being read.
    fn open(&self, digest: &Digest) -> io::Result<Box<dyn Read>>;
}

impl<F: Fn(&Digest) -> io::Result<Box<dyn Read>>> BlobSource for F {
    fn open(&self, digest: &Digest) -> io::Result<Box<dyn Read>> {
        self(digest)
    }
}

/// One blob of an image.
enum Content<'a> {
    /// A document.
    Bytes(&'a [u8]),
    /// A layer, in the source.
    Source,
}

/// All blobs of an image, each once, sorted by digest.
pub(super) struct Blobs<'a> {
    all: BTreeMap<Digest, (u64, Content<'a>)>,
    source: &'a dyn BlobSource,
    /// The image's manifest, read; of several the first.
    pub(super) manifest: Manifest,
}

impl<'a> Blobs<'a> {
    pub(super) fn of(image: &'a Assembled, source: &'a dyn BlobSource) -> Result<Self> {
        let mut all = BTreeMap::new();
        let mut manifest = None;
        let images = if image.joined.is_empty() { std::slice::from_ref(image) } else { &image.joined };
        for image in images {
            let parsed: Manifest = serde_json::from_slice(&image.manifest.0)?;
            for layer in &parsed.layers {
                all.insert(layer.digest, (layer.size, Content::Source));
            }
            for (bytes, descriptor) in [&image.config, &image.manifest] {
                all.insert(descriptor.digest, (bytes.len() as u64, Content::Bytes(bytes.as_slice())));
            }
            manifest.get_or_insert(parsed);
        }
        for (bytes, descriptor) in image.beside.iter().flat_map(|one| one.blobs.iter().chain([&one.manifest]))
        {
            all.insert(descriptor.digest, (bytes.len() as u64, Content::Bytes(bytes.as_slice())));
        }
        let (bytes, descriptor) = &image.manifest;
        all.insert(descriptor.digest, (bytes.len() as u64, Content::Bytes(bytes.as_slice())));
        let manifest =
            manifest.ok_or_else(|| Error::Inconsistent("an image without a manifest".to_owned()))?;
        Ok(Self { all, source, manifest })
    }

    /// Digests and sizes in bytes, sorted.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Digest, u64)> + '_ {
        self.all.iter().map(|(digest, (size, _))| (*digest, *size))
    }

    /// Copies a blob to `write`, and checks that it is what its name says.
    pub(super) fn copy(&self, digest: &Digest, mut write: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let Some((size, content)) = self.all.get(digest) else { return Ok(()) };
        let mut source: Box<dyn Read + '_> = match content {
            Content::Bytes(bytes) => Box::new(*bytes),
            Content::Source => self.source.open(digest).map_err(|e| unreadable(digest, e))?,
        };
        let mut hasher = Hasher::new();
        let mut copied = 0;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let n = match source.read(&mut buffer) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(unreadable(digest, e)),
            };
            copied += n as u64;
            // One byte too many must not reach an archive whose header tells the size.
            if n == 0 || copied > *size {
                break;
            }
            hasher.update(&buffer[..n]);
            write(&buffer[..n])?;
        }
        if copied != *size || hasher.finish() != *digest {
            return Err(Error::Inconsistent(format!(
                "blob {digest} does not have the content that its digest names"
            )));
        }
        Ok(())
    }
}

fn unreadable(digest: &Digest, error: io::Error) -> Error {
    Error::io("read blob", digest.to_string().as_bytes(), error)
}

/// The descriptor of an image in an index that holds several.
pub(super) fn bare(image: &Assembled) -> Descriptor {
    image.manifest.1.clone()
}
