//! The key-value tables: what may be lost.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use redb::{Database, ReadableDatabase as _, TableDefinition, TableError};

use crate::flush::locked;
use crate::{Error, Result, Store, limits};

/// Version of what stands in the tables; another one in the file empties it.
const SCHEMA: &[u8] = b"1";
pub(crate) const SCHEMA_TABLE: Table = Table::named("schema");

/// A table of records. Records are a cache: any may be missing at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Table(&'static str);

impl Table {
    /// The solver's cache records.
    pub const CACHE: Self = Self::named("cache");
    /// Entity tags and digests of http sources.
    pub const HTTP: Self = Self::named("http");
    /// Commits of git references.
    pub const GIT: Self = Self::named("git");
    /// Digests of files by their identity on disk.
    pub const FILE_HASHES: Self = Self::named("file-hashes");
    /// Resolved image references and their manifests.
    pub const IMAGES: Self = Self::named("images");

    /// A table of a caller's own.
    pub const fn named(name: &'static str) -> Self {
        Self(name)
    }

    /// The table's name.
    pub fn name(self) -> &'static str {
        self.0
    }

    fn definition(self) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
        TableDefinition::new(self.0)
    }
}

/// Changes that are not in the file yet; `None` deletes.
pub(crate) type Changes = BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>>;

/// The index file. `None` inside means that it failed and waits to be opened again.
pub(crate) struct Index {
    path: PathBuf,
    database: Mutex<Option<Arc<Database>>>,
}

impl Index {
    /// Opens the index; a broken one is replaced by an empty one, and the reason is returned.
    pub(crate) fn open(path: &Path) -> Result<(Self, Option<String>)> {
        let new = |database| Self { path: path.to_owned(), database: Mutex::new(Some(Arc::new(database))) };
        let reason = match attempt(path, || open_checked(path)) {
            Ok((database, fresh)) => return Ok((new(database), fresh.then(|| "there was none".to_owned()))),
            // A full disk is not a broken index.
            Err(error) if error.is_no_space() => return Err(error),
            Err(error) => error.to_string(),
        };
        crate::paths::remove_all(path)?;
        let (database, _) = attempt(path, || open_checked(path))?;
        Ok((new(database), Some(reason)))
    }

    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Option<Vec<u8>> {
        // A record that cannot be read is a miss; the next write notices a broken file.
        self.read(table, |t| Ok(t.get(key)?.map(|v| v.value().to_vec()))).ok().flatten().flatten()
    }

    /// [`Self::get`] of many; what is missing at the end of the answer is not there.
    pub(crate) fn get_all<'k>(
        &self,
        table: Table,
        keys: impl Iterator<Item = &'k [u8]>,
    ) -> Vec<Option<Vec<u8>>> {
        let mut found = Vec::new();
        let read = self.read(table, |t| {
            for key in keys {
                found.push(t.get(key)?.map(|v| v.value().to_vec()));
            }
            Ok(())
        });
        read.ok(); // as `get`
        found
    }

    /// All records of `table` whose key starts with `prefix`.
    pub(crate) fn scan(&self, table: Table, prefix: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let rows = self.read(table, |t| {
            let mut rows = BTreeMap::new();
            for row in t.range(prefix..)? {
                let (key, value) = row?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                rows.insert(key.value().to_vec(), value.value().to_vec());
            }
            Ok(rows)
        });
        rows.ok().flatten().unwrap_or_default() // as `get`
    }

    fn read<T>(
        &self,
        table: Table,
        job: impl FnOnce(redb::ReadOnlyTable<&'static [u8], &'static [u8]>) -> Result<T, redb::Error>,
    ) -> Result<Option<T>> {
        let Some(database) = locked(&self.database).clone() else { return Ok(None) };
        attempt(&self.path, || {
            let read = database.begin_read()?;
            match read.open_table(table.definition()) {
                Ok(table) => job(table).map(Some),
                Err(TableError::TableDoesNotExist(_)) => Ok(None),
                Err(e) => Err(e.into()),
            }
        })
    }

    /// The tables of the file.
    pub(crate) fn tables(&self) -> Vec<String> {
        let Some(database) = locked(&self.database).clone() else { return Vec::new() };
        let names = attempt(&self.path, || {
            let read = database.begin_read()?;
            Ok(read.list_tables()?.map(|t| redb::TableHandle::name(&t).to_owned()).collect())
        });
        names.unwrap_or_default() // as `get`
    }

    /// Writes `changes` in one durable transaction. After a failure the file is closed and opened again.
    pub(crate) fn write(&self, changes: &Changes) -> Result<()> {
        let open = locked(&self.database).clone();
        let database = match open {
            Some(database) => database,
            None => {
                let (again, _) = attempt(&self.path, || open_checked(&self.path))?;
                let again = Arc::new(again);
                *locked(&self.database) = Some(Arc::clone(&again));
                again
            }
        };
        let written = attempt(&self.path, || {
            let mut transaction = database.begin_write()?;
            // Opening after a kill must not walk the whole file.
            transaction.set_quick_repair(true);
            let mut rest = changes.iter().peekable();
            while let Some(((table, _), _)) = rest.peek() {
                let current = *table;
                let mut open = transaction.open_table(current.definition())?;
                while let Some(((_, key), value)) = rest.next_if(|((t, _), _)| *t == current) {
                    match value {
                        Some(value) => drop(open.insert(key.as_slice(), value.as_slice())?),
                        None => drop(open.remove(key.as_slice())?),
                    }
                }
            }
            transaction.commit()?;
            Ok(())
        });
        if written.is_err() {
            // After a failed write it answers nothing any more. Where it cannot be opened again at once
            // (the disk is full, somebody reads), records are missed until the next write.
            *locked(&self.database) = None;
            drop(database);
            if let Ok((again, _)) = attempt(&self.path, || open_checked(&self.path)) {
                *locked(&self.database) = Some(Arc::new(again));
            }
        }
        written
    }
}

/// Runs a database job; its panics on damaged files become errors.
fn attempt<T>(path: &Path, job: impl FnOnce() -> Result<T, redb::Error>) -> Result<T> {
    let error = match std::panic::catch_unwind(AssertUnwindSafe(job)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error,
        Err(_) => {
            return Err(Error::Index { path: path.to_owned(), message: "the file is damaged".to_owned() });
        }
    };
    Err(match error {
        redb::Error::Io(source) if crate::error::is_no_space(&source) => Error::io("write", path, source),
        error => Error::Index { path: path.to_owned(), message: error.to_string() },
    })
}

/// Opens the file and checks its schema; true where it was empty.
fn open_checked(path: &Path) -> Result<(Database, bool), redb::Error> {
    let mut database = Database::builder().set_cache_size(limits::INDEX_CACHE_BYTES).create(path)?;
    let found = {
        let read = database.begin_read()?;
        match read.open_table(SCHEMA_TABLE.definition()) {
            Ok(table) => table.get(b"version".as_slice())?.map(|v| v.value().to_vec()),
            Err(TableError::TableDoesNotExist(_)) => None,
            Err(e) => return Err(e.into()),
        }
    };
    match found.as_deref() {
        Some(SCHEMA) => {}
        None => {
            let write = database.begin_write()?;
            write.open_table(SCHEMA_TABLE.definition())?.insert(b"version".as_slice(), SCHEMA)?;
            write.commit()?;
        }
        Some(other) => {
            let other = String::from_utf8_lossy(other);
            return Err(redb::Error::Corrupted(format!("schema {other} is not known")));
        }
    }
    // Best effort: it works as it is too.
    trim(&mut database, path, limits::INDEX_BYTES_MAX).ok();
    Ok((database, found.is_none()))
}

/// Digests of files are the only records that nothing else bounds: each new file has one. Where the index got
/// long they go, and files are read again. Whether that was so.
fn trim(database: &mut Database, path: &Path, bytes_max: u64) -> Result<bool, redb::Error> {
    if std::fs::metadata(path).map_or(0, |meta| meta.len()) <= bytes_max {
        return Ok(false);
    }
    let write = database.begin_write()?;
    let were_there = write.delete_table(Table::FILE_HASHES.definition())?;
    write.commit()?;
    if were_there {
        database.compact()?;
    }
    Ok(were_there)
}

impl Store {
    /// The record under `key`; what was put in this process is seen at once.
    pub fn get(&self, table: Table, key: &[u8]) -> Option<Vec<u8>> {
        self.shared.get(table, key)
    }

    /// Puts a record. It is seen at once; it is on the disk after the next flush. Put a record that
    /// names a snapshot or a blob only after that was committed (see [`Store::flush`]).
    ///
    /// # Errors
    /// [`Error::RecordTooLarge`].
    pub fn put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<()> {
        check_size(table, key, value)?;
        self.shared.change(table, key, Some(value.to_vec()));
        Ok(())
    }

    /// [`Store::get`] of many.
    pub fn get_all(&self, table: Table, keys: &[Vec<u8>]) -> Vec<Option<Vec<u8>>> {
        self.shared.get_all(table, keys)
    }

    /// [`Store::put`] of many.
    ///
    /// # Errors
    /// [`Error::RecordTooLarge`], and then none is put.
    pub fn put_all(&self, table: Table, records: Vec<(Vec<u8>, Vec<u8>)>) -> Result<()> {
        records.iter().try_for_each(|(key, value)| check_size(table, key, value))?;
        self.shared.change_all(table, records.into_iter().map(|(key, value)| (key, Some(value))));
        Ok(())
    }

    /// Deletes a record; one that is not there is fine.
    pub fn delete(&self, table: Table, key: &[u8]) {
        self.shared.change(table, key, None);
    }

    /// All records of `table` whose key starts with `prefix`, by key.
    pub fn scan(&self, table: Table, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.shared.scan(table, prefix)
    }
}

pub(crate) fn check_size(table: Table, key: &[u8], value: &[u8]) -> Result<()> {
    if key.len() > limits::KEY_BYTES_MAX || value.len() > limits::VALUE_BYTES_MAX {
        return Err(Error::RecordTooLarge {
            table: table.name(),
            key_bytes: key.len(),
            value_bytes: value.len(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_got_long_loses_digests_of_files_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index.redb");
        let (index, _) = Index::open(&path).unwrap();
        let mut changes = Changes::new();
        changes.insert((Table::CACHE, b"kept".to_vec()), Some(b"1".to_vec()));
        for n in 0u32..3000 {
            changes.insert((Table::FILE_HASHES, n.to_be_bytes().to_vec()), Some(vec![7; 1000]));
        }
        index.write(&changes).unwrap();
        drop(index);
        let length = || std::fs::metadata(&path).unwrap().len();
        let before = length();
        let (mut database, _) = open_checked(&path).unwrap();
        assert!(!trim(&mut database, &path, before).unwrap(), "it is not too long");
        assert!(trim(&mut database, &path, 1_000_000).unwrap());
        drop(database);
        assert!(length() < before / 2, "{} of {before}", length());
        let (index, _) = Index::open(&path).unwrap();
        assert_eq!(index.get(Table::CACHE, b"kept").as_deref(), Some(&b"1"[..]));
        assert_eq!(index.get(Table::FILE_HASHES, &1u32.to_be_bytes()), None);
    }
}
