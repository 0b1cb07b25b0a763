//! The order in which a tree is listed: a directory before what is in it, siblings by their bytes.
//!
//! In: paths as a client sends them. Out: that they can be nowhere but in the tree, or what is wrong.

use lapstrake_fileop::limits::DEPTH_MAX;

/// Longest name and path that the kernel takes.
const NAME_BYTES_MAX: usize = 255;
const PATH_BYTES_MAX: usize = 4095;

/// Where a listing is.
pub(crate) struct Order {
    /// The innermost directory that is still open.
    path: Vec<u8>,
    levels: Vec<Level>,
}

struct Level {
    /// Length of this directory's path.
    length: usize,
    /// The last name in it.
    last: Vec<u8>,
}

impl Default for Order {
    fn default() -> Self {
        Self { path: Vec::new(), levels: vec![Level { length: 0, last: Vec::new() }] }
    }
}

impl Order {
    /// Takes the next path of the listing.
    pub(crate) fn next(&mut self, path: &[u8], is_dir: bool) -> Result<(), String> {
        check(path)?;
        let (parent, name) = split(path);
        while self.path != parent {
            let popped = if self.levels.len() > 1 { self.levels.pop() } else { None };
            if popped.is_none() {
                return Err(format!(
                    "{} comes out of order: its directory was not listed before",
                    show(path)
                ));
            }
            self.path.truncate(self.levels.last().map_or(0, |level| level.length));
        }
        let Some(level) = self.levels.last_mut() else { return Err("the root was left".to_owned()) };
        if name <= level.last.as_slice() {
            let last =
                if parent.is_empty() { level.last.clone() } else { [parent, b"/", &level.last].concat() };
            return Err(format!("{} comes out of order: after {}", show(path), show(&last)));
        }
        level.last.clear();
        level.last.extend_from_slice(name);
        if is_dir {
            if self.levels.len() > DEPTH_MAX {
                return Err(format!("{}: directories are nested too deeply", show(path)));
            }
            self.path.clear();
            self.path.extend_from_slice(path);
            self.levels.push(Level { length: path.len(), last: Vec::new() });
        }
        Ok(())
    }
}

/// Whether `path` is relative, clean and possible.
pub(crate) fn check(path: &[u8]) -> Result<(), String> {
    let problem = if path.is_empty() {
        "an empty path"
    } else if path.first() == Some(&b'/') {
        "an absolute path"
    } else if path.contains(&0) {
        "a path with a NUL byte"
    } else if path.split(|&byte| byte == b'/').any(|part| part == b"..") {
        "a path that leads out"
    } else if path.split(|&byte| byte == b'/').any(|part| part.is_empty() || part == b".") {
        "an unclean path"
    } else if path.len() > PATH_BYTES_MAX
        || path.split(|&byte| byte == b'/').any(|part| part.len() > NAME_BYTES_MAX)
    {
        "a path that is too long"
    } else {
        return Ok(());
    };
    Err(format!("{}: {problem}", show(path)))
}

/// Directory and name.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None => (b"", path),
    }
}

/// A path in a message, shortened.
pub(crate) fn show(path: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 200;
    match path.get(..SHOWN_BYTES_MAX) {
        Some(start) if path.len() > SHOWN_BYTES_MAX => format!("{:?}…", String::from_utf8_lossy(start)),
        _ => format!("{:?}", String::from_utf8_lossy(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(paths: &[&str]) -> Result<(), String> {
        let mut order = Order::default();
        paths.iter().try_for_each(|path| {
            let (path, is_dir) = path.strip_suffix('/').map_or((*path, false), |dir| (dir, true));
            order.next(path.as_bytes(), is_dir)
        })
    }

    #[test]
    fn a_directory_comes_before_what_is_in_it_and_that_before_its_siblings() {
        assert_eq!(listed(&["a/", "a/b/", "a/b/c", "a/d", "a.txt", "a\\b", "b/", "c"]), Ok(()));
    }

    #[test]
    fn what_cannot_be_in_a_tree_is_told_by_its_fault() {
        for (paths, fault) in [
            (&["b", "a"][..], "\"a\" comes out of order: after \"b\""),
            (&["a", "a"], "\"a\" comes out of order: after \"a\""),
            (&["a", "a/b"], "\"a/b\" comes out of order: its directory was not listed before"),
            (&["a/b"], "\"a/b\" comes out of order: its directory was not listed before"),
            (&["a/", "b/", "a/c"], "\"a/c\" comes out of order: its directory was not listed before"),
            (&["a/", "a/c", "a/b"], "\"a/b\" comes out of order: after \"a/c\""),
            (&[".."], "\"..\": a path that leads out"),
            (&["a/", "a/../b"], "\"a/../b\": a path that leads out"),
            (&["/etc"], "\"/etc\": an absolute path"),
            (&["a//b"], "\"a//b\": an unclean path"),
            (&["./a"], "\"./a\": an unclean path"),
            (&["a/b/"], "\"a/b\" comes out of order: its directory was not listed before"),
            (&[""], "\"\": an empty path"),
            (&["a\0b"], "\"a\\0b\": a path with a NUL byte"),
        ] {
            assert_eq!(listed(paths).expect_err(fault), fault);
        }
        assert!(listed(&["a".repeat(256).as_str()]).expect_err("long").ends_with("a path that is too long"));
    }
}
