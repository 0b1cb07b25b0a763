//! Paths as Go's `path` package and BuildKit's helpers treat them; no file system is asked.

/// The shortest equal path: no `.`, no `..` but leading ones of a relative path, no doubled slash.
pub(crate) fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    match (rooted, parts.is_empty()) {
        (true, _) => format!("/{}", parts.join("/")),
        (false, true) => ".".to_owned(),
        (false, false) => parts.join("/"),
    }
}

/// `path` below `parent`, cleaned.
pub(crate) fn join(parent: &str, path: &str) -> String {
    match (parent.is_empty(), path.is_empty()) {
        (true, true) => String::new(),
        (true, false) => clean(path),
        (false, true) => clean(parent),
        (false, false) => clean(&format!("{parent}/{path}")),
    }
}

/// An absolute path of `path`, which may be relative to `parent`. An absolute one stays as written.
pub(crate) fn absolute(parent: &str, path: &str) -> String {
    let parent = if parent.starts_with('/') { parent.to_owned() } else { join("/", parent) };
    match path {
        "" => parent,
        path if path.starts_with('/') => path.to_owned(),
        path => join(&parent, path),
    }
}

/// A destination in `dir`: cleaned, but a trailing `/` or `/.` stays, since it says "a directory".
pub(crate) fn destination(dir: &str, path: &str) -> String {
    let path = if path.is_empty() || path == "." { "./" } else { path };
    let out = if path.starts_with('/') { clean(path) } else { join("/", &join(dir, path)) };
    if path.ends_with('/') && !out.ends_with('/') {
        format!("{out}/")
    } else if path.ends_with("/.") {
        if out == "/" { "/.".to_owned() } else { format!("{out}/.") }
    } else {
        out
    }
}

/// The last part of a path.
pub(crate) fn base(path: &str) -> &str {
    let path = path.trim_end_matches('/');
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_as_in_go() {
        for (path, wanted) in
            [("a//b/./c/..", "a/b"), ("/../a", "/a"), ("../a/..", ".."), ("", "."), ("/", "/"), ("a/", "a")]
        {
            assert_eq!(clean(path), wanted, "{path}");
        }
        assert_eq!(join("/a", "../../b"), "/b");
        assert_eq!(absolute("/a", "b/../c"), "/a/c");
        assert_eq!(absolute("/a", "/b/../c"), "/b/../c");
        assert_eq!(absolute("", "b"), "/b");
    }

    #[test]
    fn destinations_keep_what_says_directory() {
        for (path, wanted) in [
            (".", "/w/"),
            ("", "/w/"),
            ("x", "/w/x"),
            ("x/", "/w/x/"),
            ("/x/.", "/x/."),
            ("/", "/"),
            ("..", "/"),
            ("./", "/w/"),
        ] {
            assert_eq!(destination("/w", path), wanted, "{path}");
        }
        assert_eq!(base("/a/b/"), "b");
    }
}
