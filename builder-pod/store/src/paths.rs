use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use lapstrake_oci::Digest;

use crate::{Error, Result, SnapshotId};

/// Layout that this version writes.
const LAYOUT_VERSION: u32 = 1;

/// Where things lie under the state directory.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    root: PathBuf,
}

impl Paths {
    /// Makes the directories and checks the layout's version.
    pub(crate) fn create(root: &Path) -> Result<Self> {
        std::fs::create_dir_all(root).map_err(|e| Error::io("make", root, e))?;
        // The working directory may change; symlinks on the way are the user's.
        let root = std::path::absolute(root).map_err(|e| Error::io("resolve", root, e))?;
        // Snapshots hold other users' files; nobody but us has business here.
        set_private(&root)?;
        Ok(Self { root })
    }

    pub(crate) fn make_dirs(&self) -> Result<()> {
        for dir in [self.blobs(), self.ingest(), self.snapshots(), self.mounts(), self.trash()] {
            std::fs::create_dir_all(&dir).map_err(|e| Error::io("make", &dir, e))?;
        }
        let file = self.root.join("layout");
        match std::fs::read_to_string(&file) {
            Ok(text) if text.trim() == LAYOUT_VERSION.to_string() => Ok(()),
            // Cut short by a crash: the one layout that ever was.
            Ok(text) if text.trim().is_empty() => {
                write_atomic(&file, format!("{LAYOUT_VERSION}\n").as_bytes())
            }
            Ok(text) => Err(Error::Version {
                root: self.root.clone(),
                found: text.trim().chars().take(20).collect(),
                known: LAYOUT_VERSION,
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                write_atomic(&file, format!("{LAYOUT_VERSION}\n").as_bytes())
            }
            Err(e) => Err(Error::io("read", &file, e)),
        }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(crate) fn index(&self) -> PathBuf {
        self.root.join("index.redb")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    pub(crate) fn ingest(&self) -> PathBuf {
        self.root.join("ingest")
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    pub(crate) fn snapshot(&self, id: SnapshotId) -> PathBuf {
        self.snapshots().join(id.to_string())
    }

    pub(crate) fn fs(&self, id: SnapshotId) -> PathBuf {
        self.snapshot(id).join("fs")
    }

    pub(crate) fn mounts(&self) -> PathBuf {
        self.root.join("mounts")
    }

    pub(crate) fn mount(&self, id: SnapshotId) -> PathBuf {
        self.mounts().join(id.to_string())
    }

    pub(crate) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }
}

fn set_private(root: &Path) -> Result<()> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let meta = std::fs::metadata(root).map_err(|e| Error::io("look at", root, e))?;
    // A volume's root may belong to somebody else; then its mode is not ours to set.
    if meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & 0o077 != 0 {
        std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o700))
            .map_err(|e| Error::io("make private", root, e))?;
    }
    Ok(())
}

/// Writes a small file so that a crash leaves the old one or the new one, on the disk.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().map_err(|e| {
        std::fs::remove_file(&new).ok(); // the first error is the one to tell
        Error::io("write", path, e)
    })?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Makes a directory's entries survive a power cut.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| Error::io("sync", dir, e))
}

/// Moves `path` out of the way in one step, then deletes it; what a kill leaves in `trash` goes at the
/// next open. A path that is not there is fine.
pub(crate) fn discard(paths: &Paths, path: &Path) -> Result<()> {
    to_trash(paths, path)?.map_or(Ok(()), |trash| remove_all(&trash))
}

/// Moves `path` out of the way in one step; its new place, if it was there.
pub(crate) fn to_trash(paths: &Paths, path: &Path) -> Result<Option<PathBuf>> {
    let name = path.file_name().unwrap_or_default();
    let mut target = paths.trash().join(name);
    for attempt in 0u32.. {
        match std::fs::rename(path, &target) {
            Ok(()) => break,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            // Left over from an earlier discard that failed halfway.
            Err(e) if attempt < 64 && target.symlink_metadata().is_ok() => {
                drop(e);
                target = paths.trash().join(format!("{}.{attempt}", name.to_string_lossy()));
            }
            Err(e) => return Err(Error::io("discard", path, e)),
        }
    }
    Ok(Some(target))
}

/// Removes a file or a tree without following symlinks.
pub(crate) fn remove_all(path: &Path) -> Result<()> {
    let gone = match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(e) => Err(e),
    };
    match gone {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}
