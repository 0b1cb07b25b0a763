use std::collections::BTreeMap;
use std::io::{self, Read};

use super::header::{self, Header};
use super::sparse::{self, PaxSparse, Pieces};
use super::{BLOCK_BYTES, Entry, Kind, Time, padding, pax};
use crate::limits::{EXTENDED_HEADER_BYTES_MAX, PATH_BYTES_MAX, SPARSE_PIECES_MAX};
use crate::{Error, Result};

/// Reads entries one after the other. Any input gives entries or an error, never a panic, and memory
/// stays within [`crate::limits`].
pub struct TarReader<R> {
    input: R,
    /// Stored bytes of the current entry that are still to be read.
    left: u64,
    padding: u64,
    /// Bytes read, for error texts.
    offset: u64,
}

/// What extended headers say about the next entry.
#[derive(Default)]
struct Extended {
    pax: Vec<u8>,
    gnu_path: Option<Vec<u8>>,
    gnu_link: Option<Vec<u8>>,
}

impl<R: Read> TarReader<R> {
    /// A reader at the start of an archive; `input` should be buffered.
    pub fn new(input: R) -> Self {
        Self { input, left: 0, padding: 0, offset: 0 }
    }

    /// The next entry; what was not read of the last one's data is skipped.
    ///
    /// # Errors
    /// [`Error::Malformed`] and [`Error::Stream`].
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        self.skip_rest()?;
        let mut extended = Extended::default();
        loop {
            let Some(header) = self.read_header()? else { return Ok(None) };
            let size = self.size_of(&header)?;
            match header.0[header::TYPE] {
                b'x' => extended.pax = self.read_special(size)?,
                // As Go and containerd: what is said of all entries (`git archive`'s comment) is not heeded.
                b'g' => drop(self.read_special(size)?),
                b'L' => extended.gnu_path = Some(until_nul(self.read_special(size)?)),
                b'K' => extended.gnu_link = Some(until_nul(self.read_special(size)?)),
                _ => return self.entry(&header, size, &extended).map(Some),
            }
        }
    }

    /// Reads stored data of the current entry; 0 is its end. The data of a sparse entry are its pieces,
    /// one after the other.
    ///
    /// # Errors
    /// [`Error::Stream`], also where the archive ends too early.
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let n = retry(|| self.input.read(&mut buffer[..want])).map_err(Error::Stream)?;
        if n == 0 {
            return Err(truncated());
        }
        self.left -= n as u64;
        self.offset += n as u64;
        Ok(n)
    }

    /// The input, with whatever follows what was read.
    pub fn into_inner(self) -> R {
        self.input
    }

    fn malformed(&self, why: &str) -> Error {
        Error::malformed(format!("at byte {}", self.offset).as_bytes(), why)
    }

    fn skip_rest(&mut self) -> Result<()> {
        let skip = self.left + self.padding;
        let skipped =
            io::copy(&mut self.input.by_ref().take(skip), &mut io::sink()).map_err(Error::Stream)?;
        self.offset += skipped;
        // Some writers leave out the padding of the very last entry.
        if skipped < self.left {
            return Err(truncated());
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    /// The next block; `None` at a clean end of input.
    fn read_block(&mut self) -> Result<Option<Header>> {
        let mut block = [0; BLOCK_BYTES];
        let mut filled = 0;
        while filled < BLOCK_BYTES {
            match retry(|| self.input.read(&mut block[filled..])).map_err(Error::Stream)? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(truncated()),
                n => filled += n,
            }
        }
        self.offset += BLOCK_BYTES as u64;
        Ok(Some(Header(block)))
    }

    /// The next header; `None` after the two zero blocks, or where the input just ends.
    fn read_header(&mut self) -> Result<Option<Header>> {
        let Some(header) = self.read_block()? else { return Ok(None) };
        if header.is_zero() {
            return match self.read_block()? {
                Some(second) if !second.is_zero() => {
                    Err(self.malformed("a single zero block stands between entries"))
                }
                _ => Ok(None),
            };
        }
        if !header.checksum_fits() {
            return Err(self.malformed("header checksum does not fit"));
        }
        Ok(Some(header))
    }

    fn size_of(&self, header: &Header) -> Result<u64> {
        let size = header.number(header::SIZE).and_then(|s| u64::try_from(s).ok());
        size.ok_or_else(|| self.malformed("size is not a number"))
    }

    /// The data of an extended header.
    fn read_special(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > EXTENDED_HEADER_BYTES_MAX {
            return Err(self.malformed("extended header is too long"));
        }
        let mut data = Vec::new();
        let whole = size + padding(size);
        self.input.by_ref().take(whole).read_to_end(&mut data).map_err(Error::Stream)?;
        self.offset += data.len() as u64;
        if data.len() as u64 != whole {
            return Err(truncated());
        }
        data.truncate(usize::try_from(size).unwrap_or(0));
        Ok(data)
    }

    fn entry(&mut self, header: &Header, stored: u64, extended: &Extended) -> Result<Entry> {
        let path = extended.gnu_path.clone().unwrap_or_else(|| header.path());
        let bad = |path: &[u8], why: &str| Error::malformed(path, why);
        let id = |field: header::Field, what: &str| {
            let value = header.number(field).and_then(|v| u64::try_from(v).ok());
            value.ok_or_else(|| bad(&path, what))
        };
        let mut entry = Entry::new(path.clone(), Kind::File);
        entry.link = extended.gnu_link.clone().unwrap_or_else(|| header.text(header::LINK).to_vec());
        entry.mode = (id(header::MODE, "mode is not a number")? & 0o7777) as u32;
        entry.uid = id(header::UID, "user id is not a number")?;
        entry.gid = id(header::GID, "group id is not a number")?;
        let mtime = header.number(header::MTIME).ok_or_else(|| bad(&path, "time is not a number"))?;
        entry.mtime = Time::seconds(mtime);

        let records = pax::parse(&extended.pax).map_err(|why| bad(&path, why))?;
        let mut stored = stored;
        apply_records(&mut entry, &mut stored, &records)?;
        let pax_sparse = PaxSparse::read(&records).map_err(|why| bad(&entry.path, why))?;
        if let Some(name) = pax_sparse.as_ref().and_then(|s| s.name.clone()) {
            entry.path = name;
        }
        if entry.path.len() > PATH_BYTES_MAX || entry.link.len() > PATH_BYTES_MAX {
            return Err(self.malformed("path is too long"));
        }
        if entry.path.contains(&0) || entry.link.contains(&0) {
            return Err(bad(&entry.path, "path contains a NUL"));
        }
        entry.kind = self.kind(header, &entry)?;
        if entry.kind != Kind::File {
            // As Go: these have no data, whatever the size says.
            stored = 0;
        }
        entry.size = stored;
        (self.left, self.padding) = (stored, padding(stored));
        self.read_sparse(header, &mut entry, pax_sparse)?;
        Ok(entry)
    }

    fn kind(&self, header: &Header, entry: &Entry) -> Result<Kind> {
        let device = |field| {
            let number = header.number(field).and_then(|n| u32::try_from(n).ok());
            number.ok_or_else(|| Error::malformed(&entry.path, "device number is not a number"))
        };
        Ok(match header.0[header::TYPE] {
            b'0' | 0 | b'7' | b'S' if entry.path.ends_with(b"/") => Kind::Dir,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::Hardlink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char(device(header::DEV_MAJOR)?, device(header::DEV_MINOR)?),
            b'4' => Kind::Block(device(header::DEV_MAJOR)?, device(header::DEV_MINOR)?),
            b'5' => Kind::Dir,
            b'6' => Kind::Fifo,
            other => {
                let why = format!("type {:?} is not supported", char::from(other));
                return Err(Error::malformed(&entry.path, why));
            }
        })
    }

    /// Finds the pieces of a sparse file; those that stand in the archive are read off.
    fn read_sparse(&mut self, header: &Header, entry: &mut Entry, pax: Option<PaxSparse>) -> Result<()> {
        if entry.kind != Kind::File {
            return Ok(());
        }
        let bad = |path: &[u8], why: &str| Error::malformed(path, why);
        let (pieces, real) = match pax {
            Some(PaxSparse { in_data: true, real_size: Some(real), .. }) => {
                (self.read_text_map(&entry.path)?, real)
            }
            Some(PaxSparse { pieces: Some(pieces), real_size: Some(real), .. }) => (pieces, real),
            _ if header.0[header::TYPE] == b'S' && header.is_gnu() => {
                let real = header.number(header::GNU_REAL_SIZE).and_then(|n| u64::try_from(n).ok());
                let real = real.ok_or_else(|| bad(&entry.path, "sparse file has no size"))?;
                (self.read_gnu_map(header, &entry.path)?, real)
            }
            _ => return Ok(()),
        };
        if i64::try_from(real).is_err() {
            return Err(bad(&entry.path, "size is too large"));
        }
        let pieces = sparse::check(pieces, real, self.left).map_err(|why| bad(&entry.path, why))?;
        entry.size = real;
        entry.sparse = Some(pieces);
        Ok(())
    }

    fn read_gnu_map(&mut self, header: &Header, path: &[u8]) -> Result<Pieces> {
        let (mut pieces, mut more) = sparse::gnu_header(header).map_err(|why| Error::malformed(path, why))?;
        while more {
            // These blocks belong to the header: the size does not count them.
            let block = self.read_block()?.ok_or_else(truncated)?;
            let (next, again) = sparse::gnu_block(&block).map_err(|why| Error::malformed(path, why))?;
            pieces.extend(next);
            more = again;
            if pieces.len() > SPARSE_PIECES_MAX {
                return Err(Error::malformed(path, "sparse file has too many pieces"));
            }
        }
        Ok(pieces)
    }

    fn read_text_map(&mut self, path: &[u8]) -> Result<Pieces> {
        let mut text = Vec::new();
        // Parsed again only when the text has doubled, so that a long map costs no more than linear time.
        let mut parse_at = 0;
        loop {
            if text.len() >= parse_at {
                if let Some(pieces) = sparse::text_map(&text).map_err(|why| Error::malformed(path, why))? {
                    return Ok(pieces);
                }
                parse_at = text.len() + text.len() / 8;
            }
            if self.left < BLOCK_BYTES as u64 {
                return Err(Error::malformed(path, "sparse file has a bad map"));
            }
            let block = self.read_block()?.ok_or_else(truncated)?;
            self.left -= BLOCK_BYTES as u64;
            text.extend_from_slice(&block.0);
            if text.len() > SPARSE_PIECES_MAX * 42 {
                return Err(Error::malformed(path, "sparse file has too many pieces"));
            }
        }
    }
}

fn apply_records(entry: &mut Entry, stored: &mut u64, records: &[pax::Record<'_>]) -> Result<()> {
    let mut xattrs = BTreeMap::new();
    let path = entry.path.clone();
    let bad = || Error::malformed(&path, "extended header has a value that is not a number");
    for (key, value) in records {
        match *key {
            // An empty value takes back what an earlier record said.
            _ if value.is_empty() && !key.starts_with(b"SCHILY.xattr.") => {}
            b"path" => entry.path = value.to_vec(),
            b"linkpath" => entry.link = value.to_vec(),
            b"size" => *stored = pax::decimal(value).filter(|s| *s <= i64::MAX as u64).ok_or_else(bad)?,
            b"uid" => entry.uid = pax::decimal(value).ok_or_else(bad)?,
            b"gid" => entry.gid = pax::decimal(value).ok_or_else(bad)?,
            b"mtime" => entry.mtime = pax::time(value).ok_or_else(bad)?,
            key => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.").filter(|n| !n.is_empty()) {
                    xattrs.insert(pax::decode_attribute(name), value.to_vec());
                }
            }
        }
    }
    entry.xattrs = xattrs;
    Ok(())
}

fn until_nul(mut text: Vec<u8>) -> Vec<u8> {
    text.truncate(text.iter().position(|b| *b == 0).unwrap_or(text.len()));
    text
}

fn retry(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match read() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn truncated() -> Error {
    Error::Stream(io::Error::new(io::ErrorKind::UnexpectedEof, "archive ends in the middle of an entry"))
}
