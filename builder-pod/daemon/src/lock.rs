//! One daemon per state directory.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::{Error, Result};

/// The lock of a state directory, `buildkitd.lock`; let go when dropped.
#[derive(Debug)]
pub struct RootLock {
    path: PathBuf,
    _file: File,
}

impl RootLock {
    /// Makes the directory where it is missing, and locks it.
    ///
    /// # Errors
    /// Another daemon has it, or I/O.
    pub fn take(root: &Path) -> Result<Self> {
        let make = DirBuilder::new().recursive(true).mode(0o700).create(root);
        make.map_err(Error::io("create", root))?;
        let path = root.join("buildkitd.lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.map_err(Error::io("open", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path, _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Locked(path)),
            Err(error) => Err(Error::io("lock", path)(error.into())),
        }
    }
}

impl Drop for RootLock {
    fn drop(&mut self) {
        // Held until the file is closed; one that stays behind is taken over.
        std::fs::remove_file(&self.path).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_has_one_daemon_at_a_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("deep/root");
        let lock = RootLock::take(&root).expect("free");
        let refused = RootLock::take(&root).expect_err("taken").to_string();
        let path = root.join("buildkitd.lock");
        assert_eq!(refused, format!("could not lock {}, another instance running?", path.display()));
        drop(lock);
        assert!(!path.exists());
        RootLock::take(&root).expect("free again");
    }
}
