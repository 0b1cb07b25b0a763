use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use lapstrake_oci::Digest;

/// The folder of a registry: blobs by digest, and per repository which blobs, manifests and tags it has.
///
/// Names below a repository start with `_`, which no repository's part may.
#[derive(Debug)]
pub struct Storage {
    dir: PathBuf,
}

impl Storage {
    /// Opens or makes the folder.
    pub fn open(dir: &Path) -> io::Result<Self> {
        for sub in ["blobs", "uploads", "repositories"] {
            std::fs::create_dir_all(dir.join(sub))?;
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file of a blob, whether it is there or not.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs").join(digest.hex())
    }

    fn repository(&self, repository: &str, sub: &str) -> PathBuf {
        self.dir.join("repositories").join(repository).join(sub)
    }

    pub(super) fn upload_path(&self, id: &str) -> PathBuf {
        self.dir.join("uploads").join(id)
    }

    /// The file of a blob that the repository has.
    pub fn find_blob(&self, repository: &str, digest: &Digest) -> Option<PathBuf> {
        let linked = self.repository(repository, "_blobs").join(digest.hex()).exists();
        Some(self.blob_path(digest)).filter(|path| linked && path.exists())
    }

    /// Puts a blob in.
    pub fn put_blob(&self, repository: &str, bytes: &[u8]) -> io::Result<Digest> {
        let digest = Digest::of(bytes);
        write(&self.blob_path(&digest), bytes)?;
        self.link(repository, &digest)?;
        Ok(digest)
    }

    /// Puts a blob in that is a file elsewhere, without a copy where the disk allows that.
    pub fn put_blob_file(&self, repository: &str, digest: &Digest, file: &Path) -> io::Result<()> {
        let path = self.blob_path(digest);
        if !path.exists() && std::fs::hard_link(file, &path).is_err() {
            std::fs::copy(file, &path)?;
        }
        self.link(repository, digest)
    }

    /// Makes a stored blob part of a repository.
    pub(super) fn link(&self, repository: &str, digest: &Digest) -> io::Result<()> {
        write(&self.repository(repository, "_blobs").join(digest.hex()), b"")
    }

    /// Takes a blob out of a repository.
    pub fn delete_blob(&self, repository: &str, digest: &Digest) -> io::Result<()> {
        std::fs::remove_file(self.repository(repository, "_blobs").join(digest.hex()))
    }

    /// Puts a manifest in, and under a tag.
    pub fn put_manifest(
        &self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: &[u8],
    ) -> io::Result<Digest> {
        let digest = Digest::of(bytes);
        let file = [media_type.as_bytes(), b"\n", bytes].concat();
        write(&self.repository(repository, "_manifests").join(digest.hex()), &file)?;
        if let Some(tag) = tag {
            write(&self.repository(repository, "_tags").join(tag), digest.to_string().as_bytes())?;
        }
        Ok(digest)
    }

    /// Media type, bytes and digest of a manifest by tag or digest.
    pub fn manifest(&self, repository: &str, reference: &str) -> Option<(String, Vec<u8>, Digest)> {
        let digest = match reference.parse::<Digest>() {
            Ok(digest) => digest,
            Err(_) => {
                let tag = std::fs::read_to_string(self.repository(repository, "_tags").join(reference));
                tag.ok()?.parse().ok()?
            }
        };
        let file = std::fs::read(self.repository(repository, "_manifests").join(digest.hex())).ok()?;
        let line = file.iter().position(|b| *b == b'\n')?;
        Some((String::from_utf8_lossy(&file[..line]).into_owned(), file[line + 1..].to_vec(), digest))
    }

    /// Takes a tag, or a manifest with its tags, out.
    pub fn delete_manifest(&self, repository: &str, reference: &str) -> io::Result<()> {
        let Ok(digest) = reference.parse::<Digest>() else {
            return std::fs::remove_file(self.repository(repository, "_tags").join(reference));
        };
        for (tag, target) in self.tags(repository) {
            if target == digest.to_string() {
                std::fs::remove_file(self.repository(repository, "_tags").join(tag))?;
            }
        }
        std::fs::remove_file(self.repository(repository, "_manifests").join(digest.hex()))
    }

    /// The tags of a repository and their digests.
    pub fn tags(&self, repository: &str) -> BTreeMap<String, String> {
        let entries = std::fs::read_dir(self.repository(repository, "_tags"));
        let read = |entry: std::fs::DirEntry| {
            let digest = std::fs::read_to_string(entry.path()).ok()?;
            Some((entry.file_name().into_string().ok()?, digest))
        };
        entries.into_iter().flatten().flatten().filter_map(read).collect()
    }

    /// Whether anything was ever put into the repository.
    pub fn has_repository(&self, repository: &str) -> bool {
        self.repository(repository, "_manifests").exists()
    }
}

/// Writes by rename, so that a reader never sees half a file.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    io::Write::write_all(&mut file, bytes)?;
    file.persist(path).map(drop).map_err(|error| error.error)
}
