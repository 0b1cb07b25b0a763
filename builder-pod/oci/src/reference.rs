use std::fmt;
use std::str::FromStr;

use crate::{Digest, DigestError};

/// The name of an image, normalised as Docker does: `registry/repository[:tag][@digest]`.
///
/// A name without a registry is Docker Hub's (`docker.io`), one without a slash is in `library/`.
/// A tag is never invented: [`Reference::tag_or_latest`] says what to ask a registry for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The repository part is malformed.
    #[error("image name \"{text}\" is not valid: {why}")]
    Name {
        /// The text as given.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The digest after `@` is malformed.
    #[error("image name \"{text}\" has a bad digest: {source}")]
    Digest {
        /// The text as given.
        text: String,
        /// What is wrong with the digest.
        source: DigestError,
    },
}

const NAME_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;

impl Reference {
    /// Host and port of the registry, as in the name (`docker.io` for Docker Hub).
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Repository within the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// `registry/repository`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The tag, if one was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was given.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The tag, or `latest` where neither a tag nor a digest was given.
    pub fn tag_or_latest(&self) -> Option<&str> {
        self.tag.as_deref().or_else(|| self.digest.is_none().then_some("latest"))
    }

    /// The same repository under another tag, without a digest.
    pub fn with_tag(&self, tag: &str) -> Result<Self, ReferenceError> {
        check_tag(tag, tag)?;
        Ok(Self { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }

    /// The same name pinned to a digest; the tag stays.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let bad = |why| ReferenceError::Name { text: text.to_owned(), why };
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => (
                rest,
                Some(
                    digest
                        .parse()
                        .map_err(|source| ReferenceError::Digest { text: text.to_owned(), source })?,
                ),
            ),
        };
        let slash = rest.rfind('/').map_or(0, |i| i + 1);
        let (name, tag) = match rest[slash..].split_once(':') {
            None => (rest, None),
            Some((last, tag)) => (&rest[..slash + last.len()], Some(tag)),
        };
        if name.is_empty() {
            return Err(bad("it is empty"));
        }
        if let Some(tag) = tag {
            check_tag(tag, text)?;
        }
        let (registry, repository) = match name.split_once('/') {
            Some((host, rest)) if is_host(host) => (host.to_owned(), rest.to_owned()),
            Some(_) => ("docker.io".to_owned(), name.to_owned()),
            None => ("docker.io".to_owned(), format!("library/{name}")),
        };
        let registry = match registry.as_str() {
            "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
            _ => registry,
        };
        let repository = match (registry.as_str(), repository.contains('/')) {
            ("docker.io", false) => format!("library/{repository}"),
            _ => repository,
        };
        check_host(&registry).map_err(bad)?;
        if registry.len() + repository.len() + 1 > NAME_BYTES_MAX {
            return Err(bad("it is longer than 255 characters"));
        }
        check_repository(&repository).map_err(bad)?;
        Ok(Self { registry, repository, tag: tag.map(str::to_owned), digest })
    }
}

fn is_host(part: &str) -> bool {
    part.contains(['.', ':']) || part == "localhost" || part.bytes().any(|b| b.is_ascii_uppercase())
}

fn check_host(host: &str) -> Result<(), &'static str> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((v6, port)) if v6.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') => {
                ("v6", port.strip_prefix(':'))
            }
            _ => return Err("the registry is not a host name"),
        },
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    if port.is_some_and(|p| p.parse::<u16>().is_err()) {
        return Err("the registry's port is not a number up to 65535");
    }
    let label = |l: &str| {
        !l.is_empty()
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    if name.split('.').all(label) { Ok(()) } else { Err("the registry is not a host name") }
}

fn check_repository(repository: &str) -> Result<(), &'static str> {
    for part in repository.split('/') {
        if part.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err("the repository must be lower case");
        }
        let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = part.as_bytes();
        let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
            return Err("the repository has an empty part between slashes");
        };
        if !alnum(*first) || !alnum(*last) {
            return Err("each part of the repository must start and end with a letter or digit");
        }
        if !bytes.iter().all(|b| alnum(*b) || matches!(b, b'.' | b'_' | b'-')) {
            return Err("the repository may hold a-z, 0-9, '.', '_', '-' and '/' only");
        }
        for separators in part.split(|c: char| c.is_ascii_alphanumeric()).filter(|s| !s.is_empty()) {
            if !(separators == "."
                || separators == "_"
                || separators == "__"
                || separators.bytes().all(|b| b == b'-'))
            {
                return Err("separators in the repository must be '.', '_', '__' or dashes");
            }
        }
    }
    Ok(())
}

fn check_tag(tag: &str, text: &str) -> Result<(), ReferenceError> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let ok = tag.len() <= TAG_BYTES_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'));
    if ok {
        return Ok(());
    }
    let why = "the tag must be 1 to 128 letters, digits, '_', '.' or '-', and not start with '.' or '-'";
    Err(ReferenceError::Name { text: text.to_owned(), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_normalise_as_docker_does() {
        for (text, wanted) in [
            ("debian", "docker.io/library/debian"),
            ("debian:12", "docker.io/library/debian:12"),
            ("me/app", "docker.io/me/app"),
            ("localhost/app", "localhost/app"),
            ("localhost:5000/a/b:1", "localhost:5000/a/b:1"),
            ("index.docker.io/debian", "docker.io/library/debian"),
            ("registry.example/a__b/c-d", "registry.example/a__b/c-d"),
            ("[::1]:5000/app", "[::1]:5000/app"),
        ] {
            assert_eq!(text.parse::<Reference>().map(|r| r.to_string()), Ok(wanted.to_owned()));
        }
    }

    #[test]
    fn only_a_bare_name_means_latest() {
        let tag = |text: &str| text.parse::<Reference>().expect("valid").tag_or_latest().map(str::to_owned);
        assert_eq!(tag("a"), Some("latest".to_owned()));
        assert_eq!(tag("a:1"), Some("1".to_owned()));
        assert_eq!(tag(&format!("a@{}", Digest::of(b""))), None);
    }

    #[test]
    fn malformed_names_say_why() {
        for (text, why) in [
            ("", "empty"),
            ("Debian", "lower case"),
            ("a//b", "empty part"),
            ("a/b:", "tag"),
            ("a:-x", "tag"),
            ("a___b", "separators"),
            ("host.example:99999/a", "port"),
            ("-bad.example/a", "host name"),
            ("a@sha256:12", "64 lower-case"),
        ] {
            let error = text.parse::<Reference>().expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
