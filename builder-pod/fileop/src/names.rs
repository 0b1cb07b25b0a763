//! Names in a directory, for messages that say what is there in place of what was asked for.

use crate::view::View;

/// Names that are read of one directory.
const NAMES_MAX: usize = 10_000;

impl View<'_> {
    /// Names in the directory that `path` leads to, hidden ones too; `None` where there is none. At most ten thousand
    /// in no order, and none that is not UTF-8.
    pub fn names_in(&self, path: &str) -> Option<Vec<String>> {
        let whole = View::snapshot(self.root());
        let dir = whole.open_resolved_dir(path).ok()?;
        let entries = rustix::fs::Dir::read_from(&dir).ok()?;
        let names = entries.flatten().filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned));
        Some(names.filter(|name| name != "." && name != "..").take(NAMES_MAX).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use crate::{View, open_root};

    #[test]
    fn names_are_those_that_are_there_and_of_no_file() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("sub")).expect("mkdir");
        std::fs::write(dir.path().join("sub/file"), "").expect("write");
        let root = open_root(dir.path()).expect("open");
        let view = View::context(root.as_fd(), None);
        assert_eq!(view.names_in("").as_deref(), Some(&["sub".to_owned()][..]));
        assert_eq!(view.names_in("sub").as_deref(), Some(&["file".to_owned()][..]));
        assert!(view.names_in("sub/file").is_none() && view.names_in("none").is_none());
    }
}
