use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lapstrake_oci::{Digest, Hasher};

use crate::flush::Shared;
use crate::paths::sync_dir;
use crate::{Error, Result, Store};

/// When a blob must be on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Before `commit` returns.
    Now,
    /// With the next flush. After a power cut the blob may be damaged; the check at the first read then
    /// removes it, and it reads as missing.
    Batched,
}

/// A blob in the making. Dropped without a commit it leaves nothing.
pub struct BlobWriter {
    shared: Arc<Shared>,
    file: Option<File>,
    path: PathBuf,
    hasher: Hasher,
    written_bytes: u64,
}

impl Store {
    /// Starts a blob.
    ///
    /// # Errors
    /// I/O.
    pub fn blob_writer(&self) -> Result<BlobWriter> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = self.shared.paths.ingest().join(format!("{}-{number}", std::process::id()));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(|e| Error::io("make", &path, e))?;
        Ok(BlobWriter {
            shared: Arc::clone(&self.shared),
            file: Some(file),
            path,
            hasher: Hasher::new(),
            written_bytes: 0,
        })
    }

    /// Stores `bytes` as a blob (with the next flush, see [`Durability::Batched`]).
    ///
    /// # Errors
    /// I/O.
    pub fn put_blob(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if !self.has_blob(&digest) {
            let mut writer = self.blob_writer()?;
            writer.write_all(bytes).map_err(|e| Error::io("write", &writer.path, e))?;
            writer.commit_with(Some(digest), Durability::Batched)?;
        }
        Ok(digest)
    }

    /// Whether the blob is there. Its bytes are checked only when it is opened.
    pub fn has_blob(&self, digest: &Digest) -> bool {
        self.shared.touch_blob(digest);
        self.shared.paths.blob(digest).is_file()
    }

    /// Size of a blob, if it is there.
    pub fn blob_size_bytes(&self, digest: &Digest) -> Option<u64> {
        self.shared.touch_blob(digest);
        let meta = self.shared.paths.blob(digest).symlink_metadata().ok()?;
        meta.is_file().then_some(meta.len())
    }

    /// Opens a blob for reading. The first time in this process its bytes are checked.
    ///
    /// # Errors
    /// [`Error::BlobMissing`], [`Error::BlobCorrupt`] (it is gone then) or I/O.
    pub fn open_blob(&self, digest: &Digest) -> Result<File> {
        self.shared.touch_blob(digest);
        let path = self.shared.paths.blob(digest);
        let open = || match File::open(&path) {
            Ok(file) => Ok(file),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::BlobMissing(*digest)),
            Err(e) => Err(Error::io("open", &path, e)),
        };
        let mut file = open()?;
        if self.shared.is_verified(digest) {
            return Ok(file);
        }
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => hasher.update(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io("read", &path, e)),
            }
        }
        if hasher.finish() != *digest {
            std::fs::remove_file(&path).map_err(|e| Error::io("remove damaged", &path, e))?;
            return Err(Error::BlobCorrupt(*digest));
        }
        self.shared.set_verified(*digest);
        open()
    }

    /// The bytes of a small blob (a manifest, a config).
    ///
    /// # Errors
    /// As [`Store::open_blob`], and [`Error::BlobTooLarge`] beyond `max_bytes`.
    pub fn blob_bytes(&self, digest: &Digest, max_bytes: u64) -> Result<Vec<u8>> {
        let size_bytes = self.blob_size_bytes(digest).ok_or(Error::BlobMissing(*digest))?;
        if size_bytes > max_bytes {
            return Err(Error::BlobTooLarge { digest: *digest, size_bytes, max_bytes });
        }
        let mut bytes = Vec::new();
        self.open_blob(digest)?
            .take(max_bytes)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io("read", self.shared.paths.blob(digest), e))?;
        Ok(bytes)
    }

    /// Removes a blob; one that is not there is fine. Readers that have it open go on.
    ///
    /// # Errors
    /// I/O.
    pub fn remove_blob(&self, digest: &Digest) -> Result<()> {
        let path = self.shared.paths.blob(digest);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &path, e)),
            _ => Ok(()),
        }
    }

    /// All blobs with their sizes in bytes, by digest.
    ///
    /// # Errors
    /// I/O.
    pub fn blobs(&self) -> Result<Vec<(Digest, u64)>> {
        let dir = self.shared.paths.blobs();
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(|e| Error::io("list", &dir, e))? {
            let entry = entry.map_err(|e| Error::io("list", &dir, e))?;
            let name = entry.file_name();
            // What is not a digest is not ours.
            let Ok(digest) = format!("sha256:{}", name.to_string_lossy()).parse() else { continue };
            if let Ok(meta) = entry.metadata() {
                found.push((digest, meta.len()));
            }
        }
        found.sort_unstable();
        Ok(found)
    }
}

impl BlobWriter {
    /// Bytes written so far.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Gives the blob its name and puts it on the disk; returns digest and size in bytes.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`] where `expected` is something else, [`Error::NoSpace`], I/O. Nothing is
    /// left then.
    pub fn commit(self, expected: Option<Digest>) -> Result<(Digest, u64)> {
        self.commit_with(expected, Durability::Now)
    }

    /// As [`BlobWriter::commit`], with a choice of when it must be on the disk.
    ///
    /// # Errors
    /// As [`BlobWriter::commit`].
    pub fn commit_with(mut self, expected: Option<Digest>, durability: Durability) -> Result<(Digest, u64)> {
        let actual = std::mem::take(&mut self.hasher).finish();
        if let Some(expected) = expected.filter(|e| *e != actual) {
            return Err(Error::DigestMismatch { expected, actual });
        }
        // From here on it stays, if it is there.
        self.shared.touch_blob(&actual);
        let target = self.shared.paths.blob(&actual);
        let file = self.file.take().expect("a writer has its file until it is committed");
        // One that is there but unverified may be damaged: the bytes at hand are better.
        if !(self.shared.is_verified(&actual) && target.is_file()) {
            if durability == Durability::Now {
                file.sync_data().map_err(|e| Error::io("sync", &self.path, e))?;
            }
            std::fs::rename(&self.path, &target).map_err(|e| Error::io("name", &target, e))?;
            self.path = PathBuf::new();
            match durability {
                Durability::Now => sync_dir(&self.shared.paths.blobs())?,
                Durability::Batched => self.shared.mark_dirty(),
            }
            self.shared.set_verified(actual);
        }
        Ok((actual, self.written_bytes))
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let file = self.file.as_mut().expect("a writer has its file until it is committed");
        let n = file.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.written_bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            std::fs::remove_file(&self.path).ok(); // the next open removes what stays
        }
    }
}
