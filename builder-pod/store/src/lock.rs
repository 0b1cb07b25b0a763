use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};

use rustix::fs::FlockOperation;

use crate::paths::Paths;
use crate::{Error, Result};

/// The store's lock; the kernel gives it back when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock, or says who has it.
    pub(crate) fn take(paths: &Paths) -> Result<Self> {
        let path = paths.lock();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| Error::io("open", &path, e))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                // Best effort: the holder may be between its lock and its writing.
                let read = file.read_to_string(&mut text).is_ok() && !text.trim().is_empty();
                let holder = if read { text.trim().to_owned() } else { "an unknown process".to_owned() };
                return Err(Error::Busy { root: paths.root().to_owned(), holder });
            }
            Err(e) => return Err(Error::io("lock", &path, e.into())),
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let line = match host.trim() {
            "" => format!("process {}\n", std::process::id()),
            host => format!("process {} on {host}\n", std::process::id()),
        };
        // Only for people: a full disk must not keep us from opening.
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(line.as_bytes())).ok();
        Ok(Self { _file: file })
    }
}
