//! The forms in which BuildKit takes a Git repository as a build context.

use crate::error::Error;

/// A repository, perhaps with a ref, a directory and options.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GitUrl {
    /// What `git` is given: a URL or `user@host:path`. May hold credentials.
    pub remote: String,
    /// Branch, tag, full ref or commit; none for the default branch.
    pub reference: Option<String>,
    /// Directory in the repository; empty for all of it.
    pub subdir: String,
    /// The commit that the ref must be.
    pub checksum: Option<String>,
    /// Whether to keep `.git`, if said.
    pub keep_git_dir: Option<bool>,
    /// Whether to take submodules along, if said.
    pub submodules: Option<bool>,
    /// Files have the commit's time instead of the checkout's, if said.
    pub commit_time: Option<bool>,
    /// Fetch the checksum's commit without asking where the ref is.
    pub fetch_by_commit: bool,
}

/// Reads a build context that may be a Git repository; `None` when it is something else, such as a path or an
/// archive's address.
///
/// Taken are `https://…​.git`, `http://…​.git`, `ssh://…`, `git://…`, `user@host:path` and `github.com/…`, with
/// `#ref:subdir` or the query keys `ref`, `branch`, `tag`, `subdir`, `checksum` or `commit`, `keep-git-dir`,
/// `submodules`, `mtime`, `fetch-by-commit`.
///
/// # Errors
/// When it is a repository, but what is said about it is wrong or contradictory.
pub fn parse_git_url(text: &str) -> Result<Option<GitUrl>, Error> {
    let (before, fragment) = text.split_once('#').unwrap_or((text, ""));
    let (remote, query) = before.split_once('?').unwrap_or((before, ""));
    let Some(remote) = remote_of(remote) else { return Ok(None) };
    let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
    let mut url = GitUrl {
        remote,
        reference: Some(decode(reference)?).filter(|reference| !reference.is_empty()),
        subdir: clean_subdir(&decode(subdir)?),
        ..GitUrl::default()
    };
    let (mut branch, mut tag) = (None, None);
    let mut seen = std::collections::BTreeSet::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (key, value) = (decode(key)?, decode(value)?);
        if !seen.insert(key.clone()) {
            return Err(Error::Invalid(format!("git URL: query \"{key}\" is given twice")));
        }
        match key.as_str() {
            "branch" => branch = Some(full_ref(&value, "refs/heads/")),
            "tag" => tag = Some(full_ref(&value, "refs/tags/")),
            _ => set(&mut url, &key, &value)?,
        }
        if value.is_empty() && !matches!(key.as_str(), "keep-git-dir" | "submodules" | "fetch-by-commit") {
            return Err(Error::Invalid(format!("git URL: query \"{key}\" has no value")));
        }
    }
    if branch.is_some() && tag.is_some() {
        return Err(Error::Invalid("git URL: a branch and a tag cannot both be given".to_owned()));
    }
    if let Some(full) = branch.or(tag) {
        agree(&mut url.reference, "ref", &full)?;
    }
    Ok(Some(url))
}

/// What `git` is given, if this is a repository at all.
fn remote_of(text: &str) -> Option<String> {
    if text.starts_with("github.com/") {
        return Some(format!("https://{text}"));
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        let known = match scheme.to_ascii_lowercase().as_str() {
            "http" | "https" => rest.contains('/') && rest.ends_with(".git"),
            "ssh" | "git" => !rest.is_empty(),
            _ => false,
        };
        return known.then(|| format!("{}://{rest}", scheme.to_ascii_lowercase()));
    }
    let (user, rest) = text.split_once('@')?;
    let (host, _) = rest.split_once(':')?;
    let plain = |text: &str, more: char| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == more)
    };
    (plain(user, '_') && plain(host, '.')).then(|| text.to_owned())
}

fn set(url: &mut GitUrl, key: &str, value: &str) -> Result<(), Error> {
    let flag = || match value {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(Error::Invalid(format!("git URL: invalid {key} value: \"{value}\""))),
    };
    match key {
        "ref" => agree(&mut url.reference, "ref", value)?,
        "subdir" => {
            let cleaned = clean_subdir(value);
            if !url.subdir.is_empty() && url.subdir != cleaned {
                return Err(Error::Invalid(format!(
                    "git URL: subdir conflicts: \"{}\" vs \"{value}\"",
                    url.subdir
                )));
            }
            url.subdir = cleaned;
        }
        "checksum" | "commit" => agree(&mut url.checksum, "checksum", value)?,
        "keep-git-dir" => url.keep_git_dir = Some(flag()?),
        "submodules" => url.submodules = Some(flag()?),
        "fetch-by-commit" => url.fetch_by_commit = flag()?,
        "mtime" => {
            url.commit_time = Some(match value {
                "commit" => true,
                "checkout" => false,
                _ => {
                    let text = "must be \"checkout\" or \"commit\"";
                    return Err(Error::Invalid(format!(
                        "git URL: invalid mtime value: \"{value}\" ({text})"
                    )));
                }
            });
        }
        _ => return Err(Error::Invalid(format!("git URL: unexpected query \"{key}\""))),
    }
    Ok(())
}

fn agree(slot: &mut Option<String>, name: &str, value: &str) -> Result<(), Error> {
    match slot {
        Some(old) if old != value => {
            Err(Error::Invalid(format!("git URL: {name} conflicts: \"{old}\" vs \"{value}\"")))
        }
        _ => {
            *slot = Some(value.to_owned());
            Ok(())
        }
    }
}

fn full_ref(name: &str, prefix: &str) -> String {
    if name.starts_with(prefix) { name.to_owned() } else { format!("{prefix}{name}") }
}

/// The directory below the repository's root; `..` ends there.
fn clean_subdir(text: &str) -> String {
    String::from_utf8_lossy(&lapstrake_fileop::path::clean(text.as_bytes())).into_owned()
}

fn decode(text: &str) -> Result<String, Error> {
    let bad = || Error::Invalid(format!("git URL: \"{text}\" is badly escaped"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let hex = rest.get(..2).and_then(|hex| std::str::from_utf8(hex).ok()).ok_or_else(bad)?;
        bytes.push(u8::from_str_radix(hex, 16).map_err(|_| bad())?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<GitUrl> {
        parse_git_url(text).unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn what_is_no_repository_is_left_to_others() {
        for text in [
            "https://example.com/",
            "https://example.com/foo",
            "https://example.com/foo.git/",
            "https://example.com/foo.git.tar.gz",
            "https://foo.git",
            "ftp://example.com/foo.git",
            "./foo.git",
            "../foo.git",
            ".",
            "/srv/foo.git",
            "foo.git",
            "example.com/foo.git",
            "http://example.com/foo.git:#branch",
            "a b@c:d",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn refs_and_directories_are_split_off() {
        for (text, remote, reference, subdir) in [
            ("https://h/a.git", "https://h/a.git", None, ""),
            ("https://h/a.git#main", "https://h/a.git", Some("main"), ""),
            ("https://h/a.git#feat/x:dir/sub", "https://h/a.git", Some("feat/x"), "dir/sub"),
            ("https://h/a.git#:dir", "https://h/a.git", None, "dir"),
            ("https://h/a.git#:../../etc", "https://h/a.git", None, "etc"),
            ("https://u:p@h/a.git", "https://u:p@h/a.git", None, ""),
            ("HTTPS://h/a.git", "https://h/a.git", None, ""),
            ("git://h/a", "git://h/a", None, ""),
            ("ssh://git@h:22/a#v1", "ssh://git@h:22/a", Some("v1"), ""),
            ("git@h.example:a/b", "git@h.example:a/b", None, ""),
            ("git@h:a/b.git?subdir=/s#v1", "git@h:a/b.git", Some("v1"), "s"),
            ("github.com/a/b", "https://github.com/a/b", None, ""),
            ("github.com/a/b?tag=v1", "https://github.com/a/b", Some("refs/tags/v1"), ""),
            ("https://h/a.git?ref=v1&subdir=/s", "https://h/a.git", Some("v1"), "s"),
            ("https://h/a.git?branch=x%2Fy", "https://h/a.git", Some("refs/heads/x/y"), ""),
            ("https://h/a.git?tag=refs/tags/v1#refs/tags/v1", "https://h/a.git", Some("refs/tags/v1"), ""),
        ] {
            let want = GitUrl {
                remote: remote.to_owned(),
                reference: reference.map(str::to_owned),
                subdir: subdir.to_owned(),
                ..GitUrl::default()
            };
            assert_eq!(parse(text), Some(want), "{text}");
        }
    }

    #[test]
    fn options_are_read() {
        let text = "https://h/a.git?checksum=abc&keep-git-dir&submodules=0&mtime=commit&fetch-by-commit=true";
        let want = GitUrl {
            remote: "https://h/a.git".to_owned(),
            checksum: Some("abc".to_owned()),
            keep_git_dir: Some(true),
            submodules: Some(false),
            commit_time: Some(true),
            fetch_by_commit: true,
            ..GitUrl::default()
        };
        assert_eq!(parse(text), Some(want));
    }

    #[test]
    fn contradictions_and_unknown_options_are_errors() {
        for (query, text) in [
            ("?ref=a#b", "ref conflicts"),
            ("?ref=a&tag=a", "ref conflicts"),
            ("?tag=a&branch=a", "cannot both"),
            ("?subdir=a#:b", "subdir conflicts"),
            ("?mtime=never", "invalid mtime"),
            ("?submodules=maybe", "invalid submodules"),
            ("?color=red", "unexpected query \"color\""),
            ("?ref=", "has no value"),
            ("?ref=a&ref=a", "given twice"),
            ("?ref=%zz", "badly escaped"),
            ("?commit=a&checksum=b", "checksum conflicts"),
        ] {
            let error =
                parse_git_url(&format!("https://h/a.git{query}")).err().map(|error| error.to_string());
            assert!(error.as_ref().is_some_and(|error| error.contains(text)), "{query}: {error:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,40}", tail in "[?#:@%&=/.a-z]{0,20}") {
            let _any = parse_git_url(&text);
            let _any = parse_git_url(&format!("https://h/a.git{tail}"));
        }
    }
}
