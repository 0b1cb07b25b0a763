//! Tar archives, plain or compressed: telling whether a file is one, and unpacking it.
//!
//! Holds: an archive writes nothing outside the directory that it is unpacked in. Entries go through
//! symlinks as a process confined to that directory would: `..` and absolute targets end at its top.

mod tar;
mod unpack;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

pub use unpack::{UnpackOptions, unpack};

use crate::limits;

/// How an archive is compressed, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not, as far as one can tell.
    None,
    /// gzip
    Gzip,
    /// bzip2
    Bzip2,
    /// xz
    Xz,
    /// Zstandard
    Zstd,
}

impl Compression {
    /// Tells by the first bytes of a file (six are enough).
    pub fn sniff(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            [b'B', b'Z', b'h', ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0x00, ..] => Self::Xz,
            // A frame, or a skippable frame before it.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    /// Reads the decompressed bytes of `reader`, all members and frames of it.
    ///
    /// # Errors
    /// When the decompressor cannot be set up.
    pub fn decompress<'a>(self, reader: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::None => Box::new(reader),
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
            Self::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(reader)),
            // The decoder takes a read of no bytes for the end of a block; a buffer in front never asks for none.
            Self::Xz => {
                let xz = lzma_rust2::XzReader::new_mem_limit(reader, true, limits::XZ_MEMORY_KIB_MAX);
                Box::new(BufReader::with_capacity(64 << 10, xz))
            }
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(reader)?),
        })
    }
}

/// The decompressed bytes of what may be an archive.
pub(crate) fn open<'a>(reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut reader = BufReader::with_capacity(128 << 10, reader);
    let compression = Compression::sniff(reader.fill_buf()?);
    compression.decompress(reader)
}

/// Whether `file` is a tar archive: it decompresses, and its first header is in order.
///
/// Reads from the start and leaves the file there.
pub fn is_archive(file: &File) -> bool {
    fn first_header(mut file: &File) -> io::Result<bool> {
        file.seek(SeekFrom::Start(0))?;
        let found = matches!(tar::Reader::new(open(file)?).next(), Ok(Some(_)));
        file.seek(SeekFrom::Start(0))?;
        Ok(found)
    }
    // A file that cannot be read is copied as a file, and that reports the error.
    first_header(file).unwrap_or(false)
}

#[cfg(test)]
#[path = "archive/tests.rs"]
mod tests;
