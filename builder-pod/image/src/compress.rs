//! Packs layers: gzip in parallel, zstd, or not at all. The bytes depend on the data and the level only.

use std::io::{self, Write};

use lapstrake_oci::{Digest, Hasher};

use crate::{Error, Result};

mod gzip;

use gzip::GzipWriter;

/// How a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Kind {
    /// Not packed.
    Uncompressed,
    /// gzip; everything reads it.
    #[default]
    Gzip,
    /// zstd.
    Zstd,
}

impl Kind {
    /// The level where none is asked for: 6 of gzip's 9, 3 of zstd's 22.
    fn level(self, wanted: Option<i32>) -> i32 {
        match self {
            Self::Uncompressed => 0,
            Self::Gzip => wanted.unwrap_or(6).clamp(1, 9),
            Self::Zstd => wanted.unwrap_or(3).clamp(1, 22),
        }
    }
}

/// What a [`Compressor`] made.
#[derive(Debug)]
pub struct Compressed<W> {
    /// The output.
    pub out: W,
    /// Digest of the packed bytes.
    pub digest: Digest,
    /// Their number.
    pub size_bytes: u64,
    /// Digest of what was written to the compressor.
    pub diff_id: Digest,
    /// Its size in bytes.
    pub tar_bytes: u64,
}

/// Packs what is written to it and hashes both sides.
pub struct Compressor<W: Write> {
    inner: Inner<W>,
    hasher: Hasher,
    tar_bytes: u64,
}

enum Inner<W: Write> {
    Gzip(GzipWriter<Counted<W>>),
    Zstd(zstd::stream::write::Encoder<'static, Counted<W>>),
    Plain(Counted<W>),
    /// The encoder could not be made; told at the first write.
    Failed(Option<io::Error>),
}

impl<W: Write> Compressor<W> {
    /// Packs to `out` on up to `threads` threads besides the caller's; a level out of range is moved into
    /// it. Fails at the first write, if at all.
    pub fn new(out: W, kind: Kind, level: Option<i32>, threads: usize) -> Self {
        let out = Counted { out, hasher: Hasher::new(), bytes: 0 };
        let level = kind.level(level);
        let inner = match kind {
            Kind::Uncompressed => Inner::Plain(out),
            Kind::Gzip => Inner::Gzip(GzipWriter::new(out, level.unsigned_abs(), threads)),
            Kind::Zstd => {
                zstd_encoder(out, level, threads).map_or_else(|e| Inner::Failed(Some(e)), Inner::Zstd)
            }
        };
        Self { inner, hasher: Hasher::new(), tar_bytes: 0 }
    }

    /// Packs the rest; gives the output back, flushed.
    ///
    /// # Errors
    /// Of the output.
    pub fn finish(self) -> Result<Compressed<W>> {
        let finish = || match self.inner {
            Inner::Gzip(writer) => writer.finish(),
            Inner::Zstd(encoder) => encoder.finish(),
            Inner::Plain(out) => Ok(out),
            Inner::Failed(error) => Err(error.unwrap_or_else(failed_before)),
        };
        let mut out = finish().map_err(Error::output)?;
        out.out.flush().map_err(Error::output)?;
        Ok(Compressed {
            out: out.out,
            digest: out.hasher.finish(),
            size_bytes: out.bytes,
            diff_id: self.hasher.finish(),
            tar_bytes: self.tar_bytes,
        })
    }
}

fn zstd_encoder<W: Write>(
    out: W,
    level: i32,
    threads: usize,
) -> io::Result<zstd::stream::write::Encoder<'static, W>> {
    let mut encoder = zstd::stream::write::Encoder::new(out, level)?;
    // One worker or many give the same bytes; none at all would give others.
    encoder.multithread(u32::try_from(threads.clamp(1, 64)).unwrap_or(1))?;
    encoder.include_checksum(true)?;
    Ok(encoder)
}

fn failed_before() -> io::Error {
    io::Error::other("the encoder failed before")
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = match &mut self.inner {
            Inner::Gzip(writer) => writer.write(bytes),
            Inner::Zstd(encoder) => encoder.write(bytes),
            Inner::Plain(out) => out.write(bytes),
            Inner::Failed(error) => Err(error.take().unwrap_or_else(failed_before)),
        }?;
        self.hasher.update(&bytes[..n]);
        self.tar_bytes += n as u64;
        Ok(n)
    }

    /// Does nothing: a flush would change the bytes.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Counts and digests what is written.
pub(crate) struct Counted<W> {
    pub(crate) out: W,
    pub(crate) hasher: Hasher,
    pub(crate) bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// Text-like bytes that are neither trivial nor incompressible.
    pub(super) fn sample(length: usize) -> Vec<u8> {
        let mut state = 7u64;
        let mut out = Vec::with_capacity(length);
        while out.len() < length {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let word = (state >> 33) % 500;
            out.extend_from_slice(format!("word{word} ").as_bytes());
        }
        out.truncate(length);
        out
    }

    fn pack(data: &[u8], kind: Kind, threads: usize, piece: usize) -> Vec<u8> {
        let mut packer = Compressor::new(Vec::new(), kind, None, threads);
        data.chunks(piece).for_each(|p| packer.write_all(p).expect("write"));
        let made = packer.finish().expect("finish");
        assert_eq!((made.digest, made.size_bytes), (Digest::of(&made.out), made.out.len() as u64));
        assert_eq!((made.diff_id, made.tar_bytes), (Digest::of(data), data.len() as u64));
        made.out
    }

    #[test]
    fn the_bytes_do_not_depend_on_threads_or_on_how_they_came() {
        for length in [0, 1, 1000, gzip::BLOCK_BYTES - 1, gzip::BLOCK_BYTES, gzip::BLOCK_BYTES + 1, 3_000_000]
        {
            let data = sample(length);
            for compression in [Kind::Gzip, Kind::Zstd, Kind::Uncompressed] {
                let wanted = pack(&data, compression, 1, 1 << 20);
                for (threads, piece) in [(2, 1 << 20), (7, 777), (3, 300_001)] {
                    assert!(
                        pack(&data, compression, threads, piece) == wanted,
                        "{length} {compression:?} {threads}"
                    );
                }
                let mut back = Vec::new();
                crate::apply::decompress(&wanted[..]).expect("magic").read_to_end(&mut back).expect("unpack");
                assert!(back == data, "{length} {compression:?}");
            }
        }
    }

    #[test]
    fn gzip_is_one_member_that_any_reader_takes() {
        let data = sample(2_000_000);
        let packed = pack(&data, Kind::Gzip, 3, 4096);
        let mut back = Vec::new();
        let mut one = flate2::bufread::GzDecoder::new(&packed[..]);
        one.read_to_end(&mut back).expect("one member");
        assert!(back == data && one.into_inner().is_empty());
        assert!(packed.len() < data.len() / 2);
    }

    #[test]
    fn a_failing_output_is_an_error_and_no_hang() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let data = sample(100_000);
        for kind in [Kind::Gzip, Kind::Zstd, Kind::Uncompressed] {
            let run = || {
                let mut packer = Compressor::new(Full, kind, None, 2);
                for _ in 0..100 {
                    packer.write_all(&data).map_err(Error::output)?;
                }
                packer.finish().map(drop)
            };
            assert!(run().is_err_and(|e| e.is_no_space()), "{kind:?}");
        }
    }
}
