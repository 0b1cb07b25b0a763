//! Transfers of which the listing is wanted more than the files.

use std::os::fd::{AsFd, BorrowedFd};

use lapstrake_fileop::{Patterns, at};
use prost::Message;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::disk;
use super::mode::Kind;
use super::wire::Stat;

/// The file that the listing is written to: each entry with its length, four bytes, little end first, before it.
pub(super) const NAME: &[u8] = b".fsutil-metadata";
/// Bytes of a listing.
const LISTING_BYTES_MAX: usize = 512 << 20;

/// The listing, and what is sent besides.
pub(super) struct MetadataOnly {
    files: Patterns,
    listing: Vec<u8>,
    /// Directories around the current entry that were not made.
    parents: Vec<(u32, Stat)>,
}

impl MetadataOnly {
    pub(super) fn new(files: Patterns) -> Self {
        Self { files, listing: Vec::new(), parents: Vec::new() }
    }

    /// Notes an entry. When it is to be sent: the directories that it needs before.
    pub(super) fn entry(&mut self, stat: &Stat, id: u32) -> Result<Option<Vec<(u32, Stat)>>, String> {
        if stat.path == NAME {
            return Ok(None);
        }
        let bytes = stat.encoded_len();
        if self.listing.len() + bytes > LISTING_BYTES_MAX {
            return Err(format!("a listing of more than {LISTING_BYTES_MAX} bytes"));
        }
        self.listing.extend_from_slice(&u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes());
        stat.encode(&mut self.listing).map_err(|error| error.to_string())?;
        let within = |parent: &Stat| {
            stat.path.starts_with(&parent.path) && stat.path.get(parent.path.len()) == Some(&b'/')
        };
        while self.parents.last().is_some_and(|(_, parent)| !within(parent)) {
            self.parents.pop();
        }
        let is_sent = std::str::from_utf8(&stat.path).is_ok_and(|path| self.files.matches(path));
        if is_sent {
            return Ok(Some(std::mem::take(&mut self.parents)));
        }
        if Kind::of(stat.mode) == Kind::Directory {
            self.parents.push((id, stat.clone()));
        }
        Ok(None)
    }

    /// Writes the listing, unless it is there already; tells whether it was written.
    pub(super) fn write(&self, root: BorrowedFd<'_>) -> Result<bool, Errno> {
        if self.is_written(root)? {
            return Ok(false);
        }
        at::remove_all(root, NAME)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(root, NAME, flags, Mode::from_raw_mode(0o644))?;
        disk::write_all(file.as_fd(), &self.listing)?;
        Ok(true)
    }

    fn is_written(&self, root: BorrowedFd<'_>) -> Result<bool, Errno> {
        let length = self.listing.len();
        let Some(stat) = at::stat(root, NAME)? else { return Ok(false) };
        let is_file = at::kind(&stat) == rustix::fs::FileType::RegularFile;
        if !is_file || u64::try_from(stat.st_size).ok() != u64::try_from(length).ok() {
            return Ok(false);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = std::fs::File::from(rustix::fs::openat(root, NAME, flags, Mode::empty())?);
        let mut written = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut written).map_err(|_| Errno::IO)?;
        Ok(written == self.listing)
    }
}
