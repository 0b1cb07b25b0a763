//! Layers as eStargz: gzip that can be read file by file, by a table of contents at its end.
//!
//! Every file's data begins a gzip member of its own; readers that know nothing of this see one gzip file. No files are
//! marked as wanted first.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use lapstrake_oci::{Digest, Hasher};
use serde::Serialize;

use crate::compress::Counted;
use crate::tar::{Entry, Kind, TarReader, TarWriter};
use crate::{Error, Result};

/// Annotation of a layer: the digest of its table of contents.
pub const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
/// Annotation of a layer: bytes of its tar.
pub const UNCOMPRESSED_SIZE: &str = "io.containers.estargz.uncompressed-size";

const TOC: &str = "stargz.index.json";
/// Data of a file are members of this size.
const CHUNK_BYTES: usize = 4 << 20;

/// What was packed.
#[derive(Debug)]
pub struct Packed<W> {
    /// The output.
    pub out: W,
    /// Digest of the packed bytes.
    pub digest: Digest,
    /// Their number.
    pub size_bytes: u64,
    /// Digest of the tar, which has the table too.
    pub diff_id: Digest,
    /// Its size in bytes.
    pub tar_bytes: u64,
    /// Digest of the table.
    pub toc: Digest,
}

/// An entry of the table.
#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct Row {
    name: String,
    r#type: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    size: u64,
    #[serde(rename = "modtime", skip_serializing_if = "String::is_empty")]
    modified: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    link_name: String,
    #[serde(skip_serializing_if = "is_zero")]
    mode: u64,
    #[serde(skip_serializing_if = "is_zero")]
    uid: u64,
    #[serde(skip_serializing_if = "is_zero")]
    gid: u64,
    #[serde(skip_serializing_if = "is_zero")]
    offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    dev_major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    dev_minor: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    chunk_digest: Option<Digest>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it by reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Serialize)]
struct Table {
    version: u32,
    entries: Vec<Row>,
}

/// Packs a layer's tar at a level (1 to 9). Blocking.
///
/// # Errors
/// [`Error::Malformed`] and [`Error::Stream`] of the tar, [`Error::Output`].
pub fn pack<W: Write>(tar: impl Read, out: W, level: Option<i32>) -> Result<Packed<W>> {
    let level = Compression::new(level.unwrap_or(6).clamp(1, 9).unsigned_abs());
    let buffer = Buffer::default();
    let mut packer = Packer {
        out: Counted { out, hasher: Hasher::new(), bytes: 0 },
        level,
        member: None,
        tar: TarWriter::new(buffer.clone()),
        buffer,
        hasher: Hasher::new(),
        tar_bytes: 0,
        rows: Vec::new(),
    };
    let mut reader = TarReader::new(tar);
    while let Some(entry) = reader.next_entry()? {
        packer.entry(&entry, &mut |into| {
            let mut filled = 0;
            while filled < into.len() {
                match reader.read_data(&mut into[filled..])? {
                    0 => break,
                    n => filled += n,
                }
            }
            Ok(filled)
        })?;
    }
    packer.finish()
}

struct Packer<W: Write> {
    out: Counted<W>,
    level: Compression,
    /// Bytes of the member that is open.
    member: Option<GzEncoder<Vec<u8>>>,
    tar: TarWriter<Buffer>,
    buffer: Buffer,
    hasher: Hasher,
    tar_bytes: u64,
    rows: Vec<Row>,
}

impl<W: Write> Packer<W> {
    fn entry(&mut self, entry: &Entry, data: &mut dyn FnMut(&mut [u8]) -> Result<usize>) -> Result<()> {
        self.tar.start(entry).map_err(Error::output)?;
        self.pass_on()?;
        let mut row = describe(entry);
        if entry.kind != Kind::File || entry.size == 0 {
            if entry.kind == Kind::File {
                row.digest = Some(Digest::of(b""));
            }
            self.rows.push(row);
            return Ok(());
        }
        let (first, mut whole, mut at) = (self.rows.len(), Hasher::new(), 0);
        while at < entry.size {
            let want = CHUNK_BYTES.min(usize::try_from(entry.size - at).unwrap_or(CHUNK_BYTES));
            let mut chunk = vec![0; want];
            let read = data(&mut chunk)?;
            chunk.truncate(read);
            if read == 0 {
                return Err(Error::malformed(&entry.path, "its data ends too early"));
            }
            whole.update(&chunk);
            self.end_member()?;
            let offset = self.out.bytes;
            self.tar.write_data(&chunk).map_err(Error::output)?;
            self.pass_on()?;
            let is_whole = chunk.len() as u64 == entry.size;
            let mut row = match at {
                0 => std::mem::take(&mut row),
                _ => Row { name: name_of(entry), r#type: "chunk", ..Row::default() },
            };
            (row.offset, row.chunk_offset) = (offset, at);
            row.chunk_size = if is_whole { 0 } else { chunk.len() as u64 };
            row.chunk_digest = Some(Digest::of(&chunk));
            self.rows.push(row);
            at += chunk.len() as u64;
        }
        if let Some(row) = self.rows.get_mut(first) {
            row.digest = Some(whole.finish());
        }
        Ok(())
    }

    /// What the tar writer wrote goes into the open member.
    fn pass_on(&mut self) -> Result<()> {
        let bytes = self.buffer.take();
        self.hasher.update(&bytes);
        self.tar_bytes += bytes.len() as u64;
        let level = self.level;
        let member = self.member.get_or_insert_with(|| GzEncoder::new(Vec::new(), level));
        member.write_all(&bytes).map_err(Error::output)
    }

    fn end_member(&mut self) -> Result<()> {
        let Some(member) = self.member.take() else { return Ok(()) };
        let bytes = member.finish().map_err(Error::output)?;
        self.out.write_all(&bytes).map_err(Error::output)
    }

    fn finish(mut self) -> Result<Packed<W>> {
        let table = Table { version: 1, entries: std::mem::take(&mut self.rows) };
        let table = serde_json::to_vec(&table)?;
        let toc = Digest::of(&table);
        // The tar ends before the table, as in BuildKit's layers: who unpacks it sees none.
        let tar = std::mem::replace(&mut self.tar, TarWriter::new(self.buffer.clone()));
        tar.finish().map_err(Error::output)?;
        self.pass_on()?;
        self.end_member()?;
        let at = self.out.bytes;
        let entry = Entry { mode: 0o444, size: table.len() as u64, ..Entry::new(TOC, Kind::File) };
        self.tar.append(&entry, &table).map_err(Error::output)?;
        self.tar.close().map_err(Error::output)?;
        self.pass_on()?;
        self.end_member()?;
        self.out.write_all(&footer(at)).map_err(Error::output)?;
        self.out.out.flush().map_err(Error::output)?;
        Ok(Packed {
            out: self.out.out,
            digest: self.out.hasher.finish(),
            size_bytes: self.out.bytes,
            diff_id: self.hasher.finish(),
            tar_bytes: self.tar_bytes,
            toc,
        })
    }
}

fn name_of(entry: &Entry) -> String {
    let path = String::from_utf8_lossy(&entry.path);
    path.trim_start_matches("./").trim_start_matches('/').to_owned()
}

fn describe(entry: &Entry) -> Row {
    let (major, minor) = match entry.kind {
        Kind::Char(major, minor) | Kind::Block(major, minor) => (major, minor),
        _ => (0, 0),
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Row {
        name: name_of(entry),
        r#type: match entry.kind {
            Kind::File => "reg",
            Kind::Hardlink => "hardlink",
            Kind::Symlink => "symlink",
            Kind::Char(..) => "char",
            Kind::Block(..) => "block",
            Kind::Dir => "dir",
            Kind::Fifo => "fifo",
        },
        size: if entry.kind == Kind::File { entry.size } else { 0 },
        modified: jiff::Timestamp::from_second(entry.mtime.seconds)
            .map(|time| time.to_string())
            .unwrap_or_default(),
        link_name: match entry.kind {
            Kind::Hardlink => text(&entry.link).trim_start_matches("./").trim_start_matches('/').to_owned(),
            _ => text(&entry.link),
        },
        mode: entry.mode.into(),
        uid: entry.uid,
        gid: entry.gid,
        dev_major: major.into(),
        dev_minor: minor.into(),
        xattrs: entry.xattrs.iter().map(|(key, value)| (text(key), STANDARD.encode(value))).collect(),
        ..Row::default()
    }
}

/// An empty gzip member that says where the table is; always 51 bytes.
fn footer(at: u64) -> Vec<u8> {
    let place = format!("{at:016x}STARGZ");
    let mut footer = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff];
    footer.extend(26u16.to_le_bytes());
    footer.extend(b"SG");
    footer.extend(22u16.to_le_bytes());
    footer.extend(place.as_bytes());
    footer.extend([1, 0, 0, 0xff, 0xff]);
    footer.extend([0; 8]);
    footer
}

/// Bytes that were written and not yet taken.
#[derive(Clone, Default)]
struct Buffer(Rc<RefCell<Vec<u8>>>);

impl Buffer {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.borrow_mut())
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn packed() -> (Packed<Vec<u8>>, Vec<u8>) {
        let mut tar = TarWriter::new(Vec::new());
        let big: Vec<u8> = (0..CHUNK_BYTES + 1000).map(|at| u8::try_from(at % 251).unwrap()).collect();
        tar.append(&Entry { mode: 0o755, ..Entry::new("d/", Kind::Dir) }, b"").unwrap();
        tar.append(&Entry { size: 5, mode: 0o644, ..Entry::new("d/small", Kind::File) }, b"small").unwrap();
        tar.append(&Entry { size: big.len() as u64, ..Entry::new("big", Kind::File) }, &big).unwrap();
        tar.append(&Entry::new("empty", Kind::File), b"").unwrap();
        let (tar, _) = tar.finish().unwrap();
        (pack(&tar[..], Vec::new(), None).unwrap(), big)
    }

    #[test]
    fn readers_that_know_nothing_see_one_tar() {
        let (made, _) = packed();
        let mut tar = Vec::new();
        flate2::read::MultiGzDecoder::new(&made.out[..]).read_to_end(&mut tar).unwrap();
        assert_eq!((Digest::of(&tar), tar.len() as u64), (made.diff_id, made.tar_bytes));
        assert_eq!((Digest::of(&made.out), made.out.len() as u64), (made.digest, made.size_bytes));
        let mut reader = TarReader::new(&tar[..]);
        let mut names = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            names.push(String::from_utf8(entry.path).unwrap());
        }
        assert_eq!(names, ["d/", "d/small", "big", "empty"]);
    }

    #[test]
    fn the_table_leads_to_every_file() {
        let (made, big) = packed();
        let footer = &made.out[made.out.len() - 51..];
        let at = usize::from_str_radix(std::str::from_utf8(&footer[16..32]).unwrap(), 16).unwrap();
        let mut tail = Vec::new();
        flate2::bufread::GzDecoder::new(&made.out[at..]).read_to_end(&mut tail).unwrap();
        let mut reader = TarReader::new(&tail[..]);
        let size = reader.next_entry().unwrap().unwrap().size;
        let mut table = vec![0; usize::try_from(size).unwrap()];
        let mut filled = 0;
        while filled < table.len() {
            filled += reader.read_data(&mut table[filled..]).unwrap();
        }
        assert_eq!(Digest::of(&table), made.toc);
        let table: serde_json::Value = serde_json::from_slice(&table).unwrap();
        let mut found = Vec::new();
        for row in table["entries"].as_array().unwrap().iter().filter(|row| row["name"] == "big") {
            let offset = usize::try_from(row["offset"].as_u64().unwrap()).unwrap();
            let size = row["chunkSize"].as_u64().unwrap();
            let mut data = Vec::new();
            flate2::bufread::GzDecoder::new(&made.out[offset..]).take(size).read_to_end(&mut data).unwrap();
            assert_eq!(row["chunkDigest"], Digest::of(&data).to_string());
            found.extend(data);
        }
        assert!(found == big);
    }

    #[test]
    fn the_same_tar_gives_the_same_bytes() {
        assert!(packed().0.out == packed().0.out);
    }
}
