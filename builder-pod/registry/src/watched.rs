//! Files of credentials that are read anew whenever they changed: what the kubelet mounts is rotated
//! under a running build.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::Error;
use crate::credentials::{Credential, Credentials};

/// Longest document of credentials that is read: as much as a Secret holds, with room.
const DOCUMENT_BYTES_MAX: u64 = 4 << 20;

/// A file (or a folder with the keys of a Secret) of credentials.
pub(crate) struct Watched {
    path: PathBuf,
    /// Whether it may be absent or malformed without harm.
    optional: bool,
    seen: Mutex<Option<Seen>>,
}

/// What a file held when it was read last.
struct Seen {
    mark: Mark,
    entries: Vec<Arc<Credential>>,
}

/// Tells one state of a file from the next: the kubelet puts a new file in the old one's place.
#[derive(PartialEq, Eq, Clone)]
struct Mark(Vec<(PathBuf, u64, u64, Option<SystemTime>)>);

/// The keys that Secrets of the two types for registries have.
const KEYS: [&str; 3] = [".dockerconfigjson", ".dockercfg", "config.json"];

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

impl Watched {
    pub(crate) fn new(path: PathBuf, optional: bool) -> Self {
        Self { path, optional, seen: Mutex::default() }
    }

    /// What is in it now. A document that became unreadable leaves what it held before.
    pub(crate) fn entries(&self) -> Vec<Arc<Credential>> {
        self.read().unwrap_or_else(|error| {
            tracing::warn!("credentials of registries can't be read, those from before are used: {error}");
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.as_ref().map(|seen| seen.entries.clone()).unwrap_or_default()
        })
    }

    /// Reads it unless it is as it was (blocking, small).
    pub(crate) fn read(&self) -> Result<Vec<Arc<Credential>>, Error> {
        let files = self.files();
        let mark = Mark(files.iter().filter_map(|path| marked(path)).collect());
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = seen.as_ref().filter(|seen| seen.mark == mark) {
            return Ok(seen.entries.clone());
        }
        let mut all = Credentials::none();
        for path in &files {
            match open(path) {
                Ok(one) => all = all.merge(one),
                Err(error) if self.optional => {
                    tracing::warn!("credentials that are optional are left out: {error}");
                }
                Err(error) => return Err(error),
            }
        }
        if files.is_empty() && !self.optional {
            let why = "it has no .dockerconfigjson: a Secret for registries is of type \
                       kubernetes.io/dockerconfigjson, as `kubectl create secret docker-registry` makes it";
            return Err(Error::config(self.path.display().to_string(), why));
        }
        let entries = all.into_entries();
        *seen = Some(Seen { mark, entries: entries.clone() });
        Ok(entries)
    }

    /// The documents: the file itself, or those keys of a Secret that are one.
    fn files(&self) -> Vec<PathBuf> {
        if self.path.is_dir() {
            return KEYS.iter().map(|key| self.path.join(key)).filter(|path| path.is_file()).collect();
        }
        // A required file that is absent is an error where it is opened.
        let wanted = !self.optional || self.path.exists();
        wanted.then(|| self.path.clone()).into_iter().collect()
    }
}

fn marked(path: &Path) -> Option<(PathBuf, u64, u64, Option<SystemTime>)> {
    let meta = path.metadata().ok()?;
    Some((path.to_owned(), meta.ino(), meta.len(), meta.modified().ok()))
}

fn open(path: &Path) -> Result<Credentials, Error> {
    let origin = path.display().to_string();
    let bytes =
        std::fs::read(path).map_err(|error| Error::config(&origin, format!("cannot read it: {error}")))?;
    if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
        return Err(Error::config(&origin, format!("it is longer than {DOCUMENT_BYTES_MAX} bytes")));
    }
    match path.file_name().and_then(|name| name.to_str()) {
        Some(".dockercfg") => Credentials::parse_legacy(&bytes, &origin),
        _ => Credentials::parse(&bytes, &origin),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(user: &str) -> String {
        format!(r#"{{"auths":{{"r.example":{{"username":"{user}","password":"p"}}}}}}"#)
    }

    async fn users(credentials: &Credentials) -> Vec<String> {
        let found = credentials.candidates("r.example", "a").await;
        found.iter().map(|one| one.user().unwrap_or_default().to_owned()).collect()
    }

    #[tokio::test]
    async fn what_was_rotated_counts_with_the_next_request() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, document("one")).unwrap();
        let credentials = Credentials::none().with_file(&path, false).unwrap();
        assert_eq!(users(&credentials).await, ["one"]);
        // As the kubelet does it: another file takes the name.
        let next = dir.path().join("next");
        std::fs::write(&next, document("another")).unwrap();
        std::fs::rename(&next, &path).unwrap();
        assert_eq!(users(&credentials).await, ["another"]);
        std::fs::write(dir.path().join("next"), "{").unwrap();
        std::fs::rename(&next, &path).unwrap();
        assert_eq!(users(&credentials).await, ["another"], "what can't be read takes nothing away");
    }

    #[tokio::test]
    async fn a_secret_of_either_type_is_read_from_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let error = Credentials::none().with_file(dir.path(), false).unwrap_err().to_string();
        assert!(error.contains("no .dockerconfigjson"), "{error}");
        let optional = Credentials::none().with_file(dir.path(), true).unwrap();
        assert_eq!(users(&optional).await, [""; 0]);
        std::fs::write(dir.path().join(".dockerconfigjson"), document("new")).unwrap();
        // A name without a dot, which the new form would take for a setting.
        let old =
            r#"{"r.example":{"username":"old","password":"p"},"localhost":{"username":"l","password":"p"}}"#;
        std::fs::write(dir.path().join(".dockercfg"), old).unwrap();
        let both = Credentials::none().with_file(dir.path(), false).unwrap();
        assert_eq!(users(&both).await, ["new", "old"]);
        assert_eq!(both.candidates("localhost", "a").await.len(), 1);
        assert_eq!(users(&optional).await, ["new", "old"], "it appeared meanwhile");
    }

    #[tokio::test]
    async fn several_documents_are_tried_the_longest_key_first() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, key: &str, user: &str| {
            let text = format!(r#"{{"auths":{{"{key}":{{"username":"{user}","password":"p"}}}}}}"#);
            std::fs::write(dir.path().join(name), text).unwrap();
            dir.path().join(name)
        };
        let mut credentials = Credentials::none().with_basic("*.example", "glob", "p");
        for (name, key, user) in [("a", "r.example", "host"), ("b", "r.example/a", "path")] {
            credentials = credentials.with_file(&write(name, key, user), false).unwrap();
        }
        assert_eq!(users(&credentials).await, ["path", "host", "glob"]);
    }
}
