use std::collections::BTreeMap;
use std::io::{self, Write};

use super::header::{self, Header, put_octal};
use super::{BLOCK_BYTES, Entry, Kind, padding, pax};

/// Writes entries as containerd does: ustar headers, PAX records where something does not fit.
pub struct TarWriter<W> {
    output: W,
    /// Data that the current entry still needs.
    left: u64,
    padding: u64,
    written: u64,
}

impl<W: Write> TarWriter<W> {
    /// A writer at the start of an archive.
    pub fn new(output: W) -> Self {
        Self { output, left: 0, padding: 0, written: 0 }
    }

    /// Starts an entry; `entry.size` bytes of data follow by [`TarWriter::write_data`]. Times are cut to
    /// whole seconds and names of owners left out, as in every layer that BuildKit makes.
    ///
    /// # Errors
    /// Of the output; `InvalidData` where the last entry's data are not complete.
    pub fn start(&mut self, entry: &Entry) -> io::Result<()> {
        self.close()?;
        let mut records: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        for (name, value) in &entry.xattrs {
            records.insert([b"SCHILY.xattr.", &*pax::encode_attribute(name)].concat(), value.clone());
        }
        let header = encode(entry, &mut records);
        if !records.is_empty() {
            self.write_extended(&entry.path, &pax::encode(&records))?;
        }
        self.put(&header.0)?;
        let stored = if entry.kind == Kind::File { entry.size } else { 0 };
        (self.left, self.padding) = (stored, padding(stored));
        Ok(())
    }

    /// Writes data of the current entry.
    ///
    /// # Errors
    /// Of the output; `InvalidData` where it is more than the entry's size.
    pub fn write_data(&mut self, data: &[u8]) -> io::Result<()> {
        match self.left.checked_sub(data.len() as u64) {
            Some(left) => self.left = left,
            None => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "file has grown while it was read"));
            }
        }
        self.put(data)
    }

    /// Writes `count` zero bytes of data.
    ///
    /// # Errors
    /// As [`TarWriter::write_data`].
    pub fn write_zeros(&mut self, mut count: u64) -> io::Result<()> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        while count > 0 {
            let n = ZEROS.len().min(usize::try_from(count).unwrap_or(usize::MAX));
            self.write_data(&ZEROS[..n])?;
            count -= n as u64;
        }
        Ok(())
    }

    /// An entry with its data at hand.
    ///
    /// # Errors
    /// As [`TarWriter::start`].
    pub fn append(&mut self, entry: &Entry, data: &[u8]) -> io::Result<()> {
        self.start(entry)?;
        self.write_data(data)
    }

    /// Ends the archive; gives the output back, and how many bytes were written.
    ///
    /// # Errors
    /// As [`TarWriter::start`].
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        self.close()?;
        self.put(&[0; 2 * BLOCK_BYTES])?;
        self.output.flush()?;
        Ok((self.output, self.written))
    }

    /// Ends the last entry's data.
    pub(crate) fn close(&mut self) -> io::Result<()> {
        if self.left > 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "file has shrunk while it was read"));
        }
        let padding = std::mem::take(&mut self.padding);
        self.put(&[0; BLOCK_BYTES][..usize::try_from(padding).unwrap_or(0)])
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn write_extended(&mut self, path: &[u8], records: &[u8]) -> io::Result<()> {
        // The name has no meaning; this is the one that Go gives.
        let trimmed = path.strip_suffix(b"/").unwrap_or(path);
        let cut = trimmed.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
        let mut name = [&trimmed[..cut], b"PaxHeaders.0/", &trimmed[cut..]].concat();
        name.retain(u8::is_ascii);
        name.truncate(header::NAME.len());
        let mut header = Header([0; BLOCK_BYTES]);
        header.0[..name.len()].copy_from_slice(&name);
        for field in
            [header::MODE, header::UID, header::GID, header::MTIME, header::DEV_MAJOR, header::DEV_MINOR]
        {
            put_octal(&mut header.0[field], 0);
        }
        put_octal(&mut header.0[header::SIZE], records.len() as u64);
        header.0[header::TYPE] = b'x';
        seal(&mut header);
        self.put(&header.0)?;
        self.put(records)?;
        self.put(&[0; BLOCK_BYTES][..usize::try_from(padding(records.len() as u64)).unwrap_or(0)])
    }
}

/// The header of an entry; what does not fit goes to `records`.
fn encode(entry: &Entry, records: &mut BTreeMap<Vec<u8>, Vec<u8>>) -> Header {
    let mut header = Header([0; BLOCK_BYTES]);
    put_text(&mut header, header::NAME, &entry.path, b"path", records);
    put_text(&mut header, header::LINK, &entry.link, b"linkpath", records);
    put_octal(&mut header.0[header::MODE], u64::from(entry.mode & 0o7777));
    let size = if entry.kind == Kind::File { entry.size } else { 0 };
    put_number(&mut header, header::UID, entry.uid, b"uid", records);
    put_number(&mut header, header::GID, entry.gid, b"gid", records);
    put_number(&mut header, header::SIZE, size, b"size", records);
    let fits = u64::try_from(entry.mtime.seconds).is_ok_and(|s| put_octal(&mut header.0[header::MTIME], s));
    if !fits {
        put_octal(&mut header.0[header::MTIME], 0);
        records.insert(b"mtime".to_vec(), entry.mtime.seconds.to_string().into_bytes());
    }
    let (kind, major, minor) = match entry.kind {
        Kind::File => (b'0', 0, 0),
        Kind::Hardlink => (b'1', 0, 0),
        Kind::Symlink => (b'2', 0, 0),
        Kind::Char(major, minor) => (b'3', major, minor),
        Kind::Block(major, minor) => (b'4', major, minor),
        Kind::Dir => (b'5', 0, 0),
        Kind::Fifo => (b'6', 0, 0),
    };
    header.0[header::TYPE] = kind;
    for (field, value) in [(header::DEV_MAJOR, major), (header::DEV_MINOR, minor)] {
        if !put_octal(&mut header.0[field.clone()], u64::from(value)) {
            // Beyond seven octal digits only base 256 is left; every reader knows it.
            let bytes = &mut header.0[field];
            bytes[0] = 0x80;
            bytes[4..].copy_from_slice(&value.to_be_bytes());
        }
    }
    seal(&mut header);
    header
}

fn put_text(
    header: &mut Header,
    field: header::Field,
    text: &[u8],
    key: &[u8],
    records: &mut BTreeMap<Vec<u8>, Vec<u8>>,
) {
    let room = &mut header.0[field];
    let plain: Vec<u8> = text.iter().copied().filter(u8::is_ascii).take(room.len()).collect();
    room[..plain.len()].copy_from_slice(&plain);
    if plain.len() != text.len() {
        records.insert(key.to_vec(), text.to_vec());
    }
}

fn put_number(
    header: &mut Header,
    field: header::Field,
    value: u64,
    key: &[u8],
    records: &mut BTreeMap<Vec<u8>, Vec<u8>>,
) {
    if !put_octal(&mut header.0[field.clone()], value) {
        put_octal(&mut header.0[field], 0);
        records.insert(key.to_vec(), value.to_string().into_bytes());
    }
}

/// Writes magic and checksum.
fn seal(header: &mut Header) {
    header.0[header::MAGIC].copy_from_slice(header::USTAR);
    header.0[header::CHECKSUM].fill(b' ');
    let sum: u64 = header.0.iter().map(|b| u64::from(*b)).sum();
    put_octal(&mut header.0[148..155], sum);
}
