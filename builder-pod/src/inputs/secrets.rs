//! Where a secret is, and reading it.

use std::io::Read as _;
use std::path::Path;

use lapstrake_handoff::Reason;

use super::SecretSource;
use crate::error::BuildError;

/// The most bytes of a secret, as BuildKit has it.
pub(crate) const SECRET_BYTES_MAX: u64 = 500 * 1024;

/// Reads the secret; entries that name it come before folders.
pub(super) fn read(sources: &[SecretSource], id: &str) -> Result<Option<Vec<u8>>, BuildError> {
    for source in sources {
        match source {
            SecretSource::File { id: own, path } if own == id => {
                if let Some(value) = file(id, path)? {
                    return Ok(Some(value));
                }
            }
            SecretSource::Variable { id: own, name } if own == id => {
                use std::os::unix::ffi::OsStringExt as _;
                // As BuildKit: a variable that is not set is an empty secret.
                let value = std::env::var_os(name).unwrap_or_default().into_vec();
                return small(id, value).map(Some);
            }
            _ => {}
        }
    }
    for source in sources {
        if let SecretSource::Folder { dir, prefix } = source
            && let Some(name) = id.strip_prefix(prefix.as_str()).filter(|name| is_file_name(name))
            && let Some(value) = file(id, &dir.join(name))?
        {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// Names under which a source is known.
pub(super) fn ids(source: &SecretSource) -> Vec<String> {
    match source {
        SecretSource::File { id, .. } | SecretSource::Variable { id, .. } => vec![id.clone()],
        SecretSource::Folder { dir, prefix } => {
            let names = std::fs::read_dir(dir).into_iter().flatten().flatten();
            let names = names.filter_map(|entry| entry.file_name().into_string().ok());
            names.filter(|name| is_file_name(name)).map(|name| format!("{prefix}{name}")).collect()
        }
    }
}

/// A Secret's folder has keys, and links of the kubelet's that begin with two dots.
fn is_file_name(id: &str) -> bool {
    !id.is_empty() && !id.contains('/') && !id.starts_with("..") && id != "."
}

fn file(id: &str, path: &Path) -> Result<Option<Vec<u8>>, BuildError> {
    let failed = |error: std::io::Error| {
        BuildError::new(Reason::SecretNotFound, format!("secret {id}: {}: {error}", path.display()))
    };
    let open = match std::fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        open => open.map_err(failed)?,
    };
    let mut value = Vec::new();
    open.take(SECRET_BYTES_MAX + 1).read_to_end(&mut value).map_err(failed)?;
    small(id, value).map(Some)
}

fn small(id: &str, value: Vec<u8>) -> Result<Vec<u8>, BuildError> {
    if value.len() as u64 > SECRET_BYTES_MAX {
        let message = format!(
            "secret {id} is larger than {} KiB, the most that a secret may be",
            SECRET_BYTES_MAX >> 10
        );
        return Err(BuildError::new(Reason::DockerfileInvalid, message));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_its_own_comes_before_folders_and_a_missing_file_is_none() {
        let dir = tempfile::tempdir().expect("directory");
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
        write("token", "folder");
        write("..data", "kubelet's");
        write("own", "own");
        let own = |path: &str| SecretSource::File { id: "token".to_owned(), path: dir.path().join(path) };
        let folder =
            |prefix: &str| SecretSource::Folder { dir: dir.path().to_owned(), prefix: prefix.to_owned() };
        let sources = [folder(""), folder("p-"), own("missing"), own("own")];
        let read = |id: &str| {
            read(&sources, id).expect("readable").map(|v| String::from_utf8_lossy(&v).into_owned())
        };
        assert_eq!(read("token").as_deref(), Some("own"));
        assert_eq!(read("own").as_deref(), Some("own"));
        assert_eq!(read("p-token").as_deref(), Some("folder"));
        for none in ["other", "..data", "../x", "p-../x", "p-", "", ".", "a/token"] {
            assert_eq!(read(none), None, "{none}");
        }
    }

    #[test]
    fn a_secret_has_500_kib_at_most() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("s");
        let sources = [SecretSource::File { id: "s".to_owned(), path: path.clone() }];
        std::fs::write(&path, vec![0xff; 500 * 1024]).expect("written");
        assert_eq!(read(&sources, "s").expect("fits").map(|v| v.len()), Some(500 * 1024));
        std::fs::write(&path, vec![0xff; 500 * 1024 + 1]).expect("written");
        assert!(read(&sources, "s").expect_err("too large").to_string().contains("larger than 500 KiB"));
    }
}
