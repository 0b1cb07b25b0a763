//! Files that are written out in the build's own description.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::Path;

use lapstrake_fileop::{MkdirAction, MkfileAction, Owner, mkdir, mkfile, open_root};

use crate::error::Error;

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InlineFile {
    /// What is in it.
    pub content: Vec<u8>,
    /// Mode 0755 instead of 0644.
    pub executable: bool,
}

/// Checks that each path is relative and plain, and that no file is another's directory.
///
/// # Errors
/// The first path that is not.
pub fn check_inline(files: &BTreeMap<String, InlineFile>) -> Result<(), Error> {
    for path in files.keys() {
        let bad = |reason: &str| Err(Error::Invalid(format!("inline file \"{path}\" {reason}")));
        if path.is_empty() || path.starts_with('/') {
            return bad("needs a path relative to the context");
        }
        if path.contains('\0') {
            return bad("has a zero byte in its path");
        }
        if path.len() > 4000 || path.split('/').any(|part| part.len() > 255) {
            return bad("has too long a path");
        }
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return bad("may have no empty, \".\" or \"..\" part in its path");
        }
        if let Some((at, _)) = path.match_indices('/').find(|(at, _)| files.contains_key(&path[..*at])) {
            return bad(&format!("needs \"{}\" as a directory, which is a file", &path[..at]));
        }
    }
    Ok(())
}

/// Writes `files` into the directory `dir`; owner 0, times as given, so that equal files are equal trees.
///
/// # Errors
/// A path that is not plain, or what writing may meet.
pub fn write_inline(
    dir: &Path,
    files: &BTreeMap<String, InlineFile>,
    modified_seconds: i64,
) -> Result<(), Error> {
    check_inline(files)?;
    let root = open_root(dir)?;
    let owner = Some(Owner { uid: 0, gid: 0 });
    let timestamp_ns = Some(modified_seconds.saturating_mul(1_000_000_000));
    let mut directories = std::collections::BTreeSet::new();
    for (path, file) in files {
        for (at, _) in path.match_indices('/') {
            directories.insert(&path[..at]);
            let action =
                MkdirAction { path: path[..at].to_owned(), mode: 0o755, owner, ..MkdirAction::default() };
            mkdir(root.as_fd(), &action)?;
        }
        let action = MkfileAction {
            path: path.clone(),
            mode: if file.executable { 0o755 } else { 0o644 },
            data: file.content.clone(),
            owner,
            timestamp_ns,
        };
        mkfile(root.as_fd(), &action)?;
    }
    for path in directories.iter().rev() {
        lapstrake_fileop::set_times(root.as_fd(), path, modified_seconds)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    fn files(list: &[(&str, &str, bool)]) -> BTreeMap<String, InlineFile> {
        let file = |content: &str, executable| InlineFile { content: content.into(), executable };
        list.iter()
            .map(|(path, content, executable)| ((*path).to_owned(), file(content, *executable)))
            .collect()
    }

    #[test]
    fn files_are_written_with_modes_and_times() {
        let dir = tempfile::TempDir::new().unwrap_or_else(|e| panic!("{e}"));
        let list = files(&[("a/b/run.sh", "#!/bin/sh\n", true), ("Dockerfile", "FROM scratch\n", false)]);
        write_inline(dir.path(), &list, 42).unwrap_or_else(|e| panic!("{e}"));
        for (path, mode) in [("a/b/run.sh", 0o755), ("Dockerfile", 0o644), ("a", 0o755), ("a/b", 0o755)] {
            let meta = dir.path().join(path).metadata().unwrap_or_else(|e| panic!("{path}: {e}"));
            assert_eq!((meta.permissions().mode() & 0o7777, meta.mtime()), (mode, 42), "{path}");
        }
        assert_eq!(
            std::fs::read(dir.path().join("Dockerfile")).ok().as_deref(),
            Some(&b"FROM scratch\n"[..])
        );
    }

    #[test]
    fn paths_that_are_not_plain_are_refused() {
        for path in ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/", "a\0b", &"x".repeat(256)] {
            assert!(check_inline(&files(&[(path, "", false)])).is_err(), "{path:?}");
        }
        assert!(check_inline(&files(&[("a", "", false), ("a/b", "", false)])).is_err());
        assert!(
            check_inline(&files(&[("a-b", "", false), ("a/b", "", false), ("..x/y..", "", false)])).is_ok()
        );
    }
}
