//! Attestations that stand in a file system, as frontends and scanners leave them.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, openat2};
use serde_json::Value;

use super::statement::{Statement, Subject};

/// A statement or predicate is no longer than this.
const BYTES_MAX: u64 = 40 << 20;
/// Statements of one directory.
const ENTRIES_MAX: usize = 10_000;

/// One of a directory: its path, kind and subjects, and the predicate.
pub(super) type Entry = (String, Option<(String, Vec<Subject>)>, Value);

/// A predicate that stands in a file. Links lead nowhere outside of `root`. Blocking.
///
/// # Errors
/// Where there is no such file, it is too long, or no JSON.
pub(crate) fn predicate(root: &OwnedFd, path: &str) -> Result<Value, String> {
    let bytes = read(root, path).map_err(|why| format!("cannot read in-toto attestation: {why}"))?;
    match bytes.as_slice() {
        [] => Ok(Value::Null),
        bytes => serde_json::from_slice(bytes).map_err(|e| format!("{path}: {e}")),
    }
}

/// The statements of a directory, sorted by their names. Blocking.
///
/// # Errors
/// Where there is no such directory, or something in it is no statement.
pub(crate) fn bundle(root: &OwnedFd, path: &str) -> Result<Vec<Entry>, String> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = open(root, path, flags)?;
    let mut names = Vec::new();
    for entry in Dir::read_from(&dir).map_err(|e| format!("{path}: {e}"))? {
        let entry = entry.map_err(|e| format!("{path}: {e}"))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
        if names.len() > ENTRIES_MAX {
            return Err(format!("{path}: there are more than {ENTRIES_MAX} attestations"));
        }
    }
    names.sort();
    let mut all = Vec::new();
    for name in names {
        let path = format!("{}/{name}", path.trim_end_matches('/')).trim_start_matches('/').to_owned();
        let statement: Statement = serde_json::from_slice(&read(root, &path)?)
            .map_err(|e| format!("cannot decode in-toto statement: {path}: {e}"))?;
        all.push((path, Some((statement.predicate_type, statement.subject)), statement.predicate));
    }
    Ok(all)
}

fn open(root: &OwnedFd, path: &str, flags: OFlags) -> Result<OwnedFd, String> {
    let inside = match path.trim_start_matches('/') {
        "" => ".",
        path => path,
    };
    openat2(root, inside, flags, Mode::empty(), ResolveFlags::IN_ROOT)
        .map_err(|e| format!("open {path}: {}", std::io::Error::from(e)))
}

fn read(root: &OwnedFd, path: &str) -> Result<Vec<u8>, String> {
    // Not even a look may wait for a pipe's other end.
    let file = open(root, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC)?;
    let stat = rustix::fs::fstat(file.as_fd()).map_err(|e| format!("{path}: {e}"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(format!("{path} is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::from(file).take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| format!("{path}: {e}"))?;
    match bytes.len() as u64 > BYTES_MAX {
        true => Err(format!("{path} exceeds {BYTES_MAX} bytes")),
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &str)]) -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).expect("a file");
        }
        let fd = File::open(dir.path()).expect("it is there").into();
        (dir, fd)
    }

    const STATEMENT: &str = r#"{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"p","subject":[{"name":"a",
        "digest":{"sha256":"00"}}],"predicate":{"x":1}}"#;

    #[test]
    fn statements_of_a_directory_are_read_with_their_subjects() {
        let (_dir, root) = root(&[("b.json", STATEMENT), ("a.json", STATEMENT)]);
        let all = bundle(&root, "/").expect("two statements");
        let paths: Vec<_> = all.iter().map(|(path, ..)| path.as_str()).collect();
        assert_eq!(paths, ["a.json", "b.json"]);
        assert_eq!(all[0].2, serde_json::json!({ "x": 1 }));
    }

    #[test]
    fn links_lead_nowhere_else_and_what_is_no_file_is_refused() {
        let (dir, root) = root(&[("bad", "no JSON")]);
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).expect("a link");
        assert!(predicate(&root, "link").is_err());
        assert!(predicate(&root, "bad").is_err());
        assert!(predicate(&root, "/").expect_err("a directory").contains("not a regular file"));
        assert!(bundle(&root, "none").is_err());
    }
}
