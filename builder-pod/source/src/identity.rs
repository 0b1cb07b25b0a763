//! What a source is, for the cache: equal identities, equal trees.

use std::collections::BTreeMap;

use lapstrake_oci::{Digest, Hasher};

use crate::git::FileTime;
use crate::inline::InlineFile;

/// The identity of a source, as far as it is known without reading its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// A commit of a repository; which one does not matter.
    Git {
        /// The commit's id.
        commit: String,
        /// The directory in it; empty for all of it.
        subdir: String,
        /// With its submodules.
        submodules: bool,
        /// What times the files get.
        time: FileTime,
    },
    /// The body of a download.
    Http {
        /// Its digest.
        digest: Digest,
        /// The name of the file that it became; empty when it was unpacked.
        filename: String,
    },
    /// Files that the build describes itself, by their digest.
    Inline(Digest),
    /// A local directory: only its content tells.
    Local,
}

impl Identity {
    /// The identity of inline files.
    pub fn inline(files: &BTreeMap<String, InlineFile>) -> Self {
        let mut hasher = Hasher::new();
        for (path, file) in files {
            field(&mut hasher, path.as_bytes());
            field(&mut hasher, &[u8::from(file.executable)]);
            field(&mut hasher, &file.content);
        }
        Self::Inline(hasher.finish())
    }

    /// The cache key; `None` when the content has to be hashed.
    pub fn key(&self) -> Option<Digest> {
        let mut hasher = Hasher::new();
        match self {
            Self::Git { commit, subdir, submodules, time } => {
                field(&mut hasher, b"git");
                field(&mut hasher, commit.as_bytes());
                field(&mut hasher, subdir.trim_matches('/').as_bytes());
                let time = match time {
                    FileTime::Checkout => 0,
                    FileTime::Commit => 1,
                };
                field(&mut hasher, &[u8::from(*submodules), time]);
            }
            Self::Http { digest, filename } => {
                field(&mut hasher, b"http");
                field(&mut hasher, digest.as_bytes());
                field(&mut hasher, filename.as_bytes());
            }
            Self::Inline(digest) => {
                field(&mut hasher, b"inline");
                field(&mut hasher, digest.as_bytes());
            }
            Self::Local => return None,
        }
        Some(hasher.finish())
    }
}

fn field(hasher: &mut Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_be_bytes());
    hasher.update(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_sources_have_different_keys() {
        let git = |commit: &str, subdir: &str, submodules| Identity::Git {
            commit: commit.to_owned(),
            subdir: subdir.to_owned(),
            submodules,
            time: FileTime::Checkout,
        };
        let inline = |path: &str, content: &str| {
            let file = InlineFile { content: content.into(), executable: false };
            Identity::inline(&BTreeMap::from([(path.to_owned(), file)]))
        };
        let http = |name: &str| Identity::Http { digest: Digest::of(b"x"), filename: name.to_owned() };
        let all = [
            git("a", "", false),
            git("a", "", true),
            git("a", "s", false),
            git("b", "", false),
            http("f"),
            http(""),
            inline("ab", "c"),
            inline("a", "bc"),
        ];
        let keys: std::collections::BTreeSet<_> = all.iter().map(Identity::key).collect();
        assert_eq!(keys.len(), all.len());
        assert_eq!(Identity::Local.key(), None);
        assert_eq!(git("a", "/s/", false).key(), git("a", "s", false).key());
    }
}
