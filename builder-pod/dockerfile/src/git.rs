//! Addresses of Git repositories as `ADD` takes them, and the source operation that stands for one.

use std::collections::BTreeMap;

use crate::lower::clean_path;

/// A repository, perhaps with a ref, a directory and options.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct GitRef {
    /// What `git` is given.
    pub(crate) remote: String,
    scheme: String,
    host: String,
    path: String,
    reference: String,
    subdir: String,
    pub(crate) checksum: Option<String>,
    pub(crate) keep_git_dir: Option<bool>,
    submodules: Option<bool>,
    fetch_by_commit: bool,
}

/// Reads an address. `None`: it is no repository; an error: it is one, but what is said about it is wrong.
pub(crate) fn parse(text: &str) -> Option<Result<GitRef, String>> {
    if text.starts_with("./") || text.starts_with("../") {
        return None;
    }
    let (before, fragment) = text.split_once('#').unwrap_or((text, ""));
    let (remote, query) = before.split_once('?').unwrap_or((before, ""));
    let mut found = remote_of(remote)?;
    let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
    // As a URL the fragment is escaped; behind user@host:path it is as written.
    let scp = found.remote == remote && !remote.contains("://");
    let plain = |text: &str| if scp { Some(text.to_owned()) } else { decode(text, false) };
    let (Some(reference), Some(subdir)) = (plain(reference), plain(subdir)) else { return None };
    found.reference = reference;
    found.subdir = clean_path(&format!("/{subdir}")).trim_start_matches('/').to_owned();
    Some(with_query(found, query))
}

/// The address without query and fragment, if it is one of a repository.
fn remote_of(text: &str) -> Option<GitRef> {
    if let Some((scheme, rest)) = text.split_once("://") {
        let scheme = scheme.to_ascii_lowercase();
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let host = authority.rsplit('@').next().unwrap_or("").to_owned();
        let path = decode(path, false)?;
        match scheme.as_str() {
            "http" | "https" if !path.ends_with(".git") => return None,
            "http" | "https" | "ssh" | "git" => {}
            _ => return None,
        }
        let remote = format!("{scheme}://{rest}");
        return Some(GitRef { remote, scheme, host, path, ..GitRef::default() });
    }
    // user@host:path
    let (user, rest) = text.split_once('@')?;
    let (host, path) = rest.split_once(':')?;
    let made_of = |text: &str, more: char| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == more)
    };
    if !made_of(user, '_') || !made_of(host, '.') {
        return None;
    }
    let (remote, scheme) = (text.to_owned(), "ssh".to_owned());
    Some(GitRef { remote, scheme, host: host.to_owned(), path: path.to_owned(), ..GitRef::default() })
}

fn with_query(mut found: GitRef, query: &str) -> Result<GitRef, String> {
    let mut pairs: BTreeMap<String, String> = BTreeMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let bad = || format!("query {pair:?} is badly escaped");
        let (key, value) = (decode(key, true).ok_or_else(bad)?, decode(value, true).ok_or_else(bad)?);
        if pairs.contains_key(&key) {
            return Err(format!("query {key:?} has multiple values"));
        }
        if value.is_empty() && !matches!(key.as_str(), "submodules" | "keep-git-dir" | "fetch-by-commit") {
            return Err(format!("query {key:?} has no value"));
        }
        pairs.insert(key, value);
    }
    let (mut tag, mut branch) = (None, None);
    for (key, value) in pairs {
        let flag = || flag(&value).ok_or_else(|| format!("invalid {key} value: {value:?}"));
        match key.as_str() {
            "ref" => agree(&mut found.reference, "ref", &value)?,
            "subdir" => agree(&mut found.subdir, "subdir", &value)?,
            "tag" => tag = Some(value),
            "branch" => branch = Some(value),
            "checksum" | "commit" => found.checksum = Some(value),
            "keep-git-dir" => found.keep_git_dir = Some(flag()?),
            "submodules" => found.submodules = Some(flag()?),
            "fetch-by-commit" => found.fetch_by_commit = flag()?,
            // It is a matter of the context's files; ADD gives them times of its own.
            "mtime" if value == "checkout" || value == "commit" => {}
            "mtime" => {
                return Err(format!("invalid mtime value: {value:?} (must be \"checkout\" or \"commit\")"));
            }
            _ => return Err(format!("unexpected query {key:?}")),
        }
    }
    let full = |name: String, prefix: &str| match name.starts_with(prefix) {
        true => name,
        false => format!("{prefix}{name}"),
    };
    match (tag, branch) {
        (Some(_), Some(_)) => return Err("branch conflicts with tag".to_owned()),
        (Some(tag), None) => agree(&mut found.reference, "ref", &full(tag, "refs/tags/"))?,
        (None, Some(branch)) => agree(&mut found.reference, "ref", &full(branch, "refs/heads/"))?,
        (None, None) => {}
    }
    Ok(found)
}

fn agree(slot: &mut String, name: &str, value: &str) -> Result<(), String> {
    if !slot.is_empty() && slot != value {
        return Err(format!("{name} conflicts: {slot:?} vs {value:?}"));
    }
    value.clone_into(slot);
    Ok(())
}

/// A boolean as Go reads one; nothing is yes.
fn flag(text: &str) -> Option<bool> {
    match text {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Takes `%41` apart, in queries `+` too; `None` where it is no escape.
fn decode(text: &str, query: bool) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' if query => out.push(b' '),
            b'%' => {
                let digit = |b: Option<u8>| char::from(b?).to_digit(16);
                let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
                out.push(u8::try_from(high * 16 + low).ok()?);
            }
            byte => out.push(byte),
        }
    }
    String::from_utf8(out).ok()
}

/// The text with its escapes taken apart, and as it is where they are no escapes.
pub(crate) fn decoded(text: &str) -> String {
    decode(text, false).unwrap_or_else(|| text.to_owned())
}

impl GitRef {
    /// Identifier and attributes of the source operation.
    pub(crate) fn source(
        &self,
        keep_git_dir: bool,
        checksum: Option<&str>,
    ) -> (String, BTreeMap<String, String>) {
        let path = clean_path(&format!("/{}", self.path));
        let mut id = format!("git://{}{path}", self.host);
        if !self.reference.is_empty() || !self.subdir.is_empty() {
            id.push_str(&format!("#{}", self.reference));
            if !self.subdir.is_empty() {
                id.push_str(&format!(":{}", self.subdir));
            }
        }
        let mut attrs = BTreeMap::new();
        let mut set = |name: &str, value: &str| drop(attrs.insert(format!("git.{name}"), value.to_owned()));
        set("fullurl", &self.remote);
        set("authtokensecret", "GIT_AUTH_TOKEN");
        set("authheadersecret", "GIT_AUTH_HEADER");
        if self.scheme == "ssh" {
            set("mountsshsock", "default");
        }
        if keep_git_dir {
            set("keepgitdir", "true");
        }
        if let Some(checksum) = checksum {
            set("checksum", checksum);
        }
        if self.submodules == Some(false) {
            set("skipsubmodules", "true");
        }
        if self.fetch_by_commit {
            set("fetchbycommit", "true");
        }
        (id, attrs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> String {
        parse(text).expect("a repository").expect("valid").source(false, None).0
    }

    #[test]
    fn the_forms_of_an_address_give_one_identity() {
        assert_eq!(id("https://h/a/b.git#v1:sub/dir"), "git://h/a/b.git#v1:sub/dir");
        assert_eq!(id("https://h/a/b.git?ref=v1&subdir=sub/dir"), "git://h/a/b.git#v1:sub/dir");
        assert_eq!(id("git@h:a/b.git#v1:/sub/../dir"), "git://h/a/b.git#v1:dir");
        assert_eq!(id("ssh://git@h:2222/a/b#main"), "git://h:2222/a/b#main");
        assert_eq!(id("https://u:p@h/b.git?branch=x"), "git://h/b.git#refs/heads/x");
        assert_eq!(id("git://h/b?tag=refs/tags/x"), "git://h/b#refs/tags/x");
    }

    #[test]
    fn what_is_no_repository_is_none() {
        for text in ["https://h/a", "https://h/a.git/", "ftp://h/a.git", "./a.git", "a b@c:d", "x", "h/a.git"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn contradictions_are_told() {
        let error = |text: &str| parse(text).expect("a repository").expect_err("invalid");
        assert_eq!(error("https://h/a.git?ref=b#c"), "ref conflicts: \"c\" vs \"b\"");
        assert_eq!(error("https://h/a.git?tag=b&branch=c"), "branch conflicts with tag");
        assert_eq!(error("https://h/a.git?x=b"), "unexpected query \"x\"");
        assert_eq!(error("https://h/a.git?ref="), "query \"ref\" has no value");
        assert_eq!(error("https://h/a.git?submodules=maybe"), "invalid submodules value: \"maybe\"");
    }
}
