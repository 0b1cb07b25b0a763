//! Digests of files of directories of the builder, so that what did not change is not read again.

use std::sync::{Mutex, PoisonError};

use lapstrake_fileop::{FileStat, HashCache};
use lapstrake_oci::Digest;
use lapstrake_store::{Store, Table};

/// Digests that are put at once.
const BATCH: usize = 4096;

/// The digests that the store keeps. What is put is seen by others after [`Self::flush`], or when this is dropped.
pub(crate) struct Hashes {
    store: Store,
    new: Mutex<Vec<(Vec<u8>, Vec<u8>)>>,
}

impl Hashes {
    pub(crate) fn new(store: &Store) -> Self {
        Self { store: store.clone(), new: Mutex::default() }
    }

    /// Puts what was gathered.
    pub(crate) fn flush(&self) {
        let new = std::mem::take(&mut *self.new.lock().unwrap_or_else(PoisonError::into_inner));
        if !new.is_empty() {
            self.store.put_all(Table::FILE_HASHES, new).ok(); // a cache: the file is read again
        }
    }
}

impl Drop for Hashes {
    fn drop(&mut self) {
        self.flush();
    }
}

fn key(stat: &FileStat) -> Vec<u8> {
    let mut key = Vec::with_capacity(57);
    key.extend(stat.dev.to_le_bytes());
    key.extend(stat.ino.to_le_bytes());
    key.extend(stat.size_bytes.to_le_bytes());
    key.extend(stat.modified_ns.to_le_bytes());
    key.extend(stat.changed_ns.to_le_bytes());
    // Digests of another kind were kept under the same places.
    key.push(2);
    key
}

fn digest(value: Vec<u8>) -> Option<Digest> {
    Some(Digest::from_bytes(value.try_into().ok()?))
}

impl HashCache for Hashes {
    fn lookup(&self, _path: &[u8], stat: &FileStat) -> Option<Digest> {
        self.store.get(Table::FILE_HASHES, &key(stat)).and_then(digest)
    }

    fn lookup_all(&self, files: &[(&[u8], FileStat)]) -> Vec<Option<Digest>> {
        let keys: Vec<_> = files.iter().map(|(_, stat)| key(stat)).collect();
        let found = self.store.get_all(Table::FILE_HASHES, &keys);
        found.into_iter().map(|value| value.and_then(digest)).collect()
    }

    fn store(&self, _path: &[u8], stat: &FileStat, digest: &Digest) {
        let mut new = self.new.lock().unwrap_or_else(PoisonError::into_inner);
        new.push((key(stat), digest.as_bytes().to_vec()));
        let is_much = new.len() >= BATCH;
        drop(new);
        if is_much {
            self.flush();
        }
    }
}
