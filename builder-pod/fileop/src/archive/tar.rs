//! Reads a tar archive entry by entry.

use std::io::{self, Read};

use tar_core::EntryType;
use tar_core::parse::{Limits, ParseEvent, ParsedEntry, Parser};

/// The header of an entry.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) modified_ns: i128,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File(Content),
    Directory,
    Symlink(Vec<u8>),
    Hardlink(Vec<u8>),
    Character {
        major: u32,
        minor: u32,
    },
    Block {
        major: u32,
        minor: u32,
    },
    Fifo,
    /// Volume labels and the like.
    Other,
}

/// How the bytes of an entry make a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Content {
    /// Length of the file.
    pub(crate) len: u64,
    /// Where the bytes go, in order: offset and length. The rest is holes.
    pub(crate) pieces: Vec<(u64, u64)>,
}

/// Yields the entries of an archive; the bytes of the current one are read from it.
pub(crate) struct Reader<R> {
    inner: R,
    parser: Parser,
    /// Header bytes that were read and not used yet.
    ahead: Vec<u8>,
    /// Bytes of the current entry that are left, and padding after them.
    left: u64,
    padding: u64,
}

impl<R: Read> Reader<R> {
    pub(crate) fn new(inner: R) -> Self {
        let limits = Limits { max_path_len: Some(4096), ..Limits::default() };
        let mut parser = Parser::new(limits);
        parser.set_ignore_pax_errors(true);
        Self { inner, parser, ahead: Vec::new(), left: 0, padding: 0 }
    }

    /// The next entry; what is left of the current one is skipped.
    pub(crate) fn next(&mut self) -> io::Result<Option<Entry>> {
        self.skip()?;
        loop {
            let bad = |error| io::Error::new(io::ErrorKind::InvalidData, error);
            match self.parser.parse(&self.ahead).map_err(bad)? {
                ParseEvent::NeedData { min_bytes } => {
                    let had = self.ahead.len();
                    let want = min_bytes.saturating_sub(had).max(1) as u64;
                    (&mut self.inner).take(want).read_to_end(&mut self.ahead)?;
                    if self.ahead.len() == had {
                        // Some archivers leave the end marker out, or write half of it.
                        let clean = self.ahead.iter().all(|&b| b == 0);
                        return if clean { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
                    }
                }
                ParseEvent::End { .. } => return Ok(None),
                ParseEvent::GlobalExtensions { consumed, .. } => {
                    self.ahead.drain(..consumed);
                }
                ParseEvent::Entry { consumed, entry } => {
                    let (entry, size) = (owned(&entry, None), entry.size);
                    return Ok(Some(self.begin(consumed, size, entry)));
                }
                ParseEvent::SparseEntry { consumed, entry, sparse_map, real_size } => {
                    let pieces = sparse_map.iter().map(|piece| (piece.offset, piece.length)).collect();
                    let (entry, size) = (owned(&entry, Some(Content { len: real_size, pieces })), entry.size);
                    return Ok(Some(self.begin(consumed, size, entry)));
                }
            }
        }
    }

    fn begin(&mut self, consumed: usize, size: u64, entry: Entry) -> Entry {
        self.ahead.drain(..consumed);
        let has_content = matches!(entry.kind, Kind::File(_) | Kind::Other);
        self.left = if has_content { size } else { 0 };
        self.padding = self.left.wrapping_neg() % 512;
        entry
    }

    fn skip(&mut self) -> io::Result<()> {
        let rest = self.left.saturating_add(self.padding);
        (self.left, self.padding) = (rest, 0);
        io::copy(self, &mut io::sink())?;
        // A last entry without its padding is fine.
        self.left = 0;
        Ok(())
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        // Decoders take a read of no bytes for the end.
        if want == 0 {
            return Ok(0);
        }
        let got = if self.ahead.is_empty() {
            self.inner.read(&mut buf[..want])?
        } else {
            let got = want.min(self.ahead.len());
            buf[..got].copy_from_slice(&self.ahead[..got]);
            self.ahead.drain(..got);
            got
        };
        self.left -= got as u64;
        Ok(got)
    }
}

fn owned(entry: &ParsedEntry<'_>, sparse: Option<Content>) -> Entry {
    let link = || entry.link_target.as_ref().map(|link| link.to_vec()).unwrap_or_default();
    let device = || (entry.dev_major.unwrap_or(0), entry.dev_minor.unwrap_or(0));
    let path = entry.path.to_vec();
    let whole = || Content { len: entry.size, pieces: vec![(0, entry.size)] };
    let kind = match entry.entry_type {
        _ if sparse.is_some() => Kind::File(sparse.unwrap_or_else(whole)),
        // Before POSIX a directory was a file whose name ends with a slash.
        EntryType::Regular if path.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous => Kind::File(whole()),
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink(link()),
        EntryType::Link => Kind::Hardlink(link()),
        EntryType::Char => Kind::Character { major: device().0, minor: device().1 },
        EntryType::Block => Kind::Block { major: device().0, minor: device().1 },
        EntryType::Fifo => Kind::Fifo,
        _ => Kind::Other,
    };
    Entry {
        path,
        kind,
        mode: entry.mode & 0o7777,
        uid: entry.uid,
        gid: entry.gid,
        modified_ns: entry.pax.and_then(pax_modified_ns).unwrap_or(i128::from(entry.mtime) * 1_000_000_000),
        xattrs: entry.xattrs.iter().map(|(key, value)| (attribute(key), value.to_vec())).collect(),
    }
}

/// An attribute's name out of a record's key, in which GNU tar writes `=` as `%3D` and `%` as `%25`.
fn attribute(mut key: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(key.len());
    while let [first, rest @ ..] = key {
        let (byte, rest) = match (key.strip_prefix(b"%3D"), key.strip_prefix(b"%25")) {
            (Some(rest), _) => (b'=', rest),
            (_, Some(rest)) => (b'%', rest),
            _ => (*first, rest),
        };
        name.push(byte);
        key = rest;
    }
    name
}

/// The `mtime` record, which unlike the header's field has a fraction.
fn pax_modified_ns(pax: &[u8]) -> Option<i128> {
    let record = tar_core::PaxExtensions::new(pax).flatten().find(|record| record.key_bytes() == b"mtime")?;
    let text = std::str::from_utf8(record.value_bytes()).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanos: i128 = digits.parse().ok()?;
    let sign = if whole.starts_with('-') { -1 } else { 1 };
    Some(i128::from(seconds) * 1_000_000_000 + sign * nanos)
}
